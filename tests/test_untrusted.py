"""Folders from others: nothing in them is run or unpickled, and what they say is text on every page."""

from __future__ import annotations

import ast
import contextlib
import json
import pickle
import re
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

import foretaste
from foretaste import data
from foretaste.errors import UserError
from foretaste.experiments.plan import plan
from foretaste.models import causal, load
from foretaste.record import Layout
from foretaste.report import load as read_folders
from foretaste.report import report, trajectory
from foretaste.spec import DataSpec, MeasureSpec, ModelSpec

SOURCE = Path(foretaste.__file__).parent


class Bomb:
    """Whoever unpickles it writes the file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.write_text, (self.mark, "run")


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """The file that is there once something was run."""
    return tmp_path / "run-by-a-bomb"


@pytest.fixture
def bomb(mark: Path) -> bytes:
    return pickle.dumps(Bomb(mark))


def test_the_bomb_works(bomb: bytes, mark: Path) -> None:
    pickle.loads(bomb)
    assert mark.exists()


# --- models --------------------------------------------------------------------------------------


@pytest.fixture
def model(tiny_bert: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bert, tmp_path / "model"))


def classifier(folder: Path) -> Any:
    location = load.locate(ModelSpec(base=str(folder)), Path())
    return load.load_classifier(
        location, "model", classes=["a", "b"], dtype=torch.float32, dropout=False, pad_token_id=0
    )


def pickled(path: Path, mark: Path, bomb: bytes, how: str) -> None:
    """A pickle as it is, or as torch writes one."""
    if how == "torch":
        torch.save({"x": Bomb(mark)}, path)
    else:
        path.write_bytes(bomb)


@pytest.mark.parametrize("how", ["pickle", "torch"])
def test_pickled_weights_are_refused(model: Path, mark: Path, bomb: bytes, how: str) -> None:
    (model / "model.safetensors").unlink()
    pickled(model / "pytorch_model.bin", mark, bomb, how)
    with pytest.raises(UserError, match="pickled weights are not loaded"):
        load.resolve(ModelSpec(base=str(model)), Path())
    with pytest.raises(UserError, match="cannot load"):
        classifier(model)
    assert not mark.exists()


@pytest.mark.parametrize("how", ["pickle", "torch"])
def test_pickled_weights_behind_a_decoy_are_not_opened(
    model: Path, mark: Path, bomb: bytes, how: str
) -> None:
    """A folder that has some safetensors, and whose weights are pickled all the same."""
    (model / "model.safetensors").rename(model / "decoy.safetensors")
    pickled(model / "pytorch_model.bin", mark, bomb, how)
    with pytest.raises(UserError, match="cannot load"):
        classifier(model)
    assert not mark.exists()


def test_honest_pickled_weights_behind_a_decoy_are_not_opened_either(model: Path) -> None:
    """They would be weights that the run's id does not name."""
    from safetensors.torch import load_file

    torch.save(load_file(model / "model.safetensors"), model / "pytorch_model.bin")
    (model / "model.safetensors").rename(model / "decoy.safetensors")
    with pytest.raises(UserError, match="cannot load"):
        classifier(model)


def test_pickles_beside_the_weights_are_not_opened(model: Path, mark: Path, bomb: bytes) -> None:
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt", "vocab.pkl", "scaler.joblib"):
        (model / name).write_bytes(bomb)
    classifier(model)
    load.load_tokenizer(load.locate(ModelSpec(base=str(model)), Path()))
    assert not mark.exists()


@pytest.mark.parametrize("model_type", ["its-own", "bert"])
def test_code_of_a_model_is_not_run_nor_asked_for(
    model: Path, mark: Path, model_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(*_: Any) -> str:
        raise AssertionError("the user was asked whether to run it")

    monkeypatch.setattr("builtins.input", asked)
    code = f"from pathlib import Path\nPath({str(mark)!r}).write_text('run')\n"
    (model / "own.py").write_text(code + "class Config: ...\nclass Model: ...\nclass Tokenizer: ...\n")
    config = json.loads((model / "config.json").read_text())
    names = {
        **{"AutoConfig": "own.Config", "AutoModel": "own.Model"},
        "AutoModelForSequenceClassification": "own.Model",
    }
    config |= {"model_type": model_type, "auto_map": names}
    (model / "config.json").write_text(json.dumps(config))
    settings = json.loads((model / "tokenizer_config.json").read_text())
    settings["auto_map"] = {"AutoTokenizer": ["own.Tokenizer", "own.Tokenizer"]}
    (model / "tokenizer_config.json").write_text(json.dumps(settings))
    location = load.locate(ModelSpec(base=str(model)), Path())
    if model_type == "bert":  # what transformers itself knows is used in place of the folder's own
        classifier(model)
    else:
        with pytest.raises(UserError, match="cannot load"):
            classifier(model)
    with contextlib.suppress(UserError):  # a tokenizer is data enough to do without its code
        load.load_tokenizer(location)
    assert not mark.exists()


def test_pickled_weights_of_a_generative_model_are_not_opened(
    tiny_chat: Any, tmp_path: Path, mark: Path, bomb: bytes
) -> None:
    folder = Path(shutil.copytree(tiny_chat("gpt2"), tmp_path / "chat"))
    (folder / "model.safetensors").rename(folder / "decoy.safetensors")
    (folder / "pytorch_model.bin").write_bytes(bomb)
    location = load.locate(ModelSpec(base=str(folder)), Path())
    with pytest.raises(UserError, match="cannot load"):
        causal.load_causal(location, dtype=torch.float32, dropout=False)
    assert not mark.exists()


@pytest.mark.parametrize("damage", ["cut", "empty", "no safetensors", "config"])
def test_a_damaged_model_is_a_users_error(model: Path, damage: str) -> None:
    weights = model / "model.safetensors"
    if damage == "config":
        (model / "config.json").write_text('{"model_type": ')
    else:
        whole = weights.read_bytes()
        weights.write_bytes({"cut": whole[:-9], "empty": b"", "no safetensors": b"x" * 99}[damage])
    with pytest.raises(UserError, match="cannot load"):
        classifier(model)


# --- data ----------------------------------------------------------------------------------------


def test_a_data_folder_with_pickles_is_refused_without_opening_them(
    tmp_path: Path, mark: Path, bomb: bytes
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("train.pkl", "train.pickle", "data.pt", "data.npy", "cache.joblib"):
        (folder / name).write_bytes(bomb)
    with pytest.raises(UserError, match="no data file"):
        data.load(DataSpec(source=str(folder)), tmp_path)
    for name in ("train.csv", "train.parquet", "train.jsonl"):
        (tmp_path / name).write_bytes(bomb)
        with pytest.raises(UserError):
            data.load(DataSpec(source=str(tmp_path / name)), tmp_path)
    assert not mark.exists()


def test_a_saved_data_set_with_pickled_state_is_read_or_refused_without_unpickling(
    make_rows: Any, tmp_path: Path, mark: Path, bomb: bytes
) -> None:
    folder = tmp_path / "saved"
    make_rows(24).save_to_disk(folder)
    for name in ("state.pkl", "fingerprint.pickle", "cache-0.arrow", "saved.py"):
        (folder / name).write_bytes(bomb)
    assert len(data.load(DataSpec(source=str(folder)), tmp_path).train) == 24
    for name in ("state.json", "dataset_info.json", "data-00000-of-00001.arrow"):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(bomb)
        with pytest.raises(UserError, match="not a whole folder of save_to_disk"):
            data.load(DataSpec(source=str(folder)), tmp_path)
        (folder / name).write_bytes(whole)
    assert not mark.exists()


def test_a_saved_data_set_with_a_script_does_not_run_it(make_rows: Any, tmp_path: Path, mark: Path) -> None:
    folder = tmp_path / "scripted"
    folder.mkdir()
    code = f"from pathlib import Path\nPath({str(mark)!r}).write_text('run')\n"
    (folder / "scripted.py").write_text(code)
    with pytest.raises(UserError, match="no data file"):
        data.load(DataSpec(source=str(folder)), tmp_path)
    assert not mark.exists()


def test_a_parquet_file_with_a_pickled_type_is_not_unpickled(tmp_path: Path, mark: Path, bomb: bytes) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    marks = {"ARROW:extension:name": "arrow.py_extension_type", "ARROW:extension:metadata": bomb}
    kind = pa.field("text", pa.string(), metadata=marks)
    table = pa.table([["a", "b"] * 4, [0, 1] * 4], schema=pa.schema([kind, pa.field("label", pa.int64())]))
    pq.write_table(table, tmp_path / "a.parquet")
    data.load(DataSpec(source=str(tmp_path / "a.parquet")), tmp_path)
    assert not mark.exists()


# --- records -------------------------------------------------------------------------------------


def test_a_folder_of_records_with_pickles_is_read_without_opening_them(
    csv_folder: Path, tiny_bert: Path, tmp_path: Path, mark: Path, bomb: bytes
) -> None:
    from foretaste.experiments.measure import measure

    spec = MeasureSpec.model_validate(
        {
            "data": {"source": str(csv_folder)},
            "model": {"base": str(tiny_bert), "max_length": 32, "head": "random-then-train"},
            "adapters": [{"method": "full"}],
            "training": {"steps": 1},
            "seeds": [0],
        }
    )
    folder = tmp_path / "sweep"
    (run,) = plan(spec, Path("/nonexistent")).runs
    measure(spec, folder, base_dir=Path("/nonexistent"), processes=1, threads=1)
    layout = Layout(folder)
    for path in (layout.runs / "a.pkl", layout.manifests / "b.pkl", layout.folder / "spec.pkl"):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bomb)
    layout.record("planted").write_bytes(bomb)
    layout.prediction(run.id).write_bytes(bomb)
    (loaded,) = read_folders([folder])
    assert [record.run_id for record in loaded.records] == [run.id]
    assert any("planted.json: not a foretaste record" in line for line in loaded.problems)
    html = report(folder, tmp_path / "page", images=False).read_text()
    assert "planted.json" in html
    assert not mark.exists()


# --- the source ----------------------------------------------------------------------------------

FORBIDDEN_MODULES = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "jsonpickle"}
FORBIDDEN_CALLS = {
    *(
        "eval",
        "exec",
        "compile",
        "yaml.unsafe_load",
        "yaml.full_load",
        "pd.read_pickle",
        "pandas.read_pickle",
    ),
    *("torch.hub.load", "torch.jit.load", "torch.package.PackageImporter", "os.system"),
}


def offences(code: str) -> list[str]:
    """Lines that would run or unpickle what comes from outside."""
    found = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names]
            if isinstance(node, ast.ImportFrom):
                names.append(str(node.module))
            found += [f"{node.lineno}: imports {n}" for n in names if n.split(".")[0] in FORBIDDEN_MODULES]
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if name in FORBIDDEN_CALLS:
            found.append(f"{node.lineno}: calls {name}")
        if name == "yaml.load" and not given.get("Loader", "").endswith(("SafeLoader", "_UniqueKeys")):
            found.append(f"{node.lineno}: yaml.load without a safe loader")
        if name == "torch.load" and given.get("weights_only") != "True":
            found.append(f"{node.lineno}: torch.load without weights_only")
        if "True" in (given.get("allow_pickle"), given.get("trust_remote_code"), given.get("shell")):
            found.append(f"{node.lineno}: {name} with pickles, remote code or a shell")
        if given.get("weights_only") == "False":
            found.append(f"{node.lineno}: {name} without weights_only")
    return found


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE)))
def test_no_file_of_the_source_runs_what_it_reads(path: Path) -> None:
    assert offences(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "code",
    [
        *("import pickle", "from joblib import load", "eval('1')", "exec(x)", "import cloudpickle as c"),
        *("yaml.load(x)", "yaml.load(x, Loader=yaml.Loader)", "yaml.unsafe_load(x)", "torch.load(x)"),
        *("torch.load(x, weights_only=False)", "np.load(x, allow_pickle=True)", "pd.read_pickle(x)"),
        *("AutoModel.from_pretrained(x, trust_remote_code=True)", "subprocess.run(x, shell=True)"),
    ],
)
def test_that_search_finds_what_it_looks_for(code: str) -> None:
    assert len(offences(code)) >= 1


@pytest.mark.parametrize("code", ["model.eval()", "torch.load(x, weights_only=True)", "re.compile(x)"])
def test_that_search_leaves_the_rest(code: str) -> None:
    assert offences(code) == []


def test_every_model_is_loaded_without_code_and_without_pickles() -> None:
    """Each call of `from_pretrained` in the source says so itself."""
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Call) and ast.unparse(node.func).endswith(".from_pretrained")):
                continue
            said = ast.unparse(node)
            assert re.search(r"trust_remote_code=False|NO_CODE|WEIGHTS_ONLY|\*\*local\b", said), (path, said)


# --- pages ---------------------------------------------------------------------------------------
# The pages of sweeps, reproductions, predictions, generative models and the theory's surface have this test
# beside their own (tests/report); here is the one that had none.

SCRIPT = "<script>alert('x')</script>"


def test_the_page_on_trajectories_shows_scripts_as_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trajectory, "save", lambda *_: [])
    line = {
        **dict.fromkeys(["frobenius", "spectral", "nuclear", "max_abs", "clean", "relative"], 1.0),
        **{"rank": 1, "stable_rank": 1.0},
    }
    place = {"pair": "p", "arm": SCRIPT, "attack": SCRIPT, "amount": SCRIPT, "seed": "0"}
    beside = dict.fromkeys(
        ["parameters", "head", "head_clean", "head_parameters", "logits", "disagreement"], 0.5
    )
    told = ["m_prime_fro", "m_prime_op", "m_prime_cosine_fro", "one_step", "one_step_body", "foretold_step"]
    measured = ["first", "last", "first_parameters", "last_parameters", "last_relative", "mean"]
    counts = {"steps": 4, "changed": 1, "used": 1, "without": 0, "vectors": 3}
    pairs = {
        **{**place, "status": "diverged", "reason": SCRIPT, "optimizer": SCRIPT, "learning_rate": 0.1},
        **dict.fromkeys([*measured, *told, "head_start", "head_start_relative"], 1.0),
        **counts,
    }
    frames = (
        pd.DataFrame([{**place, "step": step, **line, **beside} for step in (0, 1, 4)]),
        pd.DataFrame([{**place, "matrix": SCRIPT, "step": step, **line} for step in (0, 1, 4)]),
        pd.DataFrame([pairs]),
    )
    html = trajectory.write(*frames, [(SCRIPT, SCRIPT)], tmp_path, title=SCRIPT).page.read_text()
    assert "<script>alert" not in html
    assert "&lt;script&gt;alert" in html


def test_no_template_switches_escaping_off() -> None:
    """`safe`, and blocks without escaping: nowhere in a template."""
    for path in (SOURCE / "report" / "templates").iterdir():
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"\|\s*safe\b|autoescape\s+false", text), path
