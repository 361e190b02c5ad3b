# Every target sets up what it needs: a virtual environment, pinned packages, assets.
PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: quickstart test check slow smoke bench docs format clean

quickstart: .venv/run  ## predict, poison, fine-tune and test on real movie reviews; ends with one HTML page
	$(BIN)/foretaste audit quickstart -o runs/quickstart

test: .venv/dev  ## the fast test suite: CPU, no network
	$(BIN)/python -m pytest -n 2 --dist loadfile

check: .venv/dev  ## lint, format, types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

slow: .venv/dev  ## the tests that take minutes
	$(BIN)/python -m pytest -m slow

smoke: .venv/run  ## every figure and table of both papers, on a tiny random model
	$(BIN)/foretaste reproduce --all --scale smoke --no-images -o runs/smoke

bench: .venv/dev  ## speed, as ratios measured in one run
	$(BIN)/python -m benchmarks

docs: .venv/docs  ## the documentation site, in site/; ends with an error at a dead link or a page that needs a network
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

format: .venv/dev
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:
	rm -rf .venv runs site .pytest_cache .mypy_cache .ruff_cache .hypothesis

# torch first and by itself: its pin decides the build that everything else is installed against.
.venv/run: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(INSTALL) torch==2.13.0
	$(INSTALL) -e '.[gguf]'
	touch $@

.venv/dev: .venv/run
	$(INSTALL) -e '.[dev]'
	touch $@

.venv/docs: .venv/run
	$(INSTALL) -e '.[docs]'
	touch $@
