"""`foretaste trajectory`: what it writes and prints, and how it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.usefixtures("no_figure_files")
ARMS = [{"method": "full"}, {"method": "lora", "r": 2}, {"method": "lora", "r": 4}]


@pytest.fixture
def no_figure_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures as files take seconds; tests/report/test_trajectory_page.py writes them."""
    from foretaste.report import trajectory

    monkeypatch.setattr(trajectory, "save", lambda *_: [])


def test_pairs_to_a_page(cli: Any, write_spec: Any, tmp_path: Path) -> None:
    spec, folder = write_spec(adapters=ARMS, title="Mine"), tmp_path / "out"
    done = cli("trajectory", spec, "-o", folder, "--json")
    assert (done.code, done.err) == (0, "")
    printed = json.loads(done.out)
    assert printed.keys() == {"folder", "page", "statuses", "findings"}
    assert printed["statuses"] == {"completed": 3}
    assert printed["findings"][0].startswith("label-flip 50 %: at the last step the weights are apart by ")
    html = Path(printed["page"]).read_text(encoding="utf-8")
    assert "<h1>Mine</h1>" in html
    assert "48 training rows" in html
    assert len(list((folder / "trajectories").glob("*.json"))) == 3
    assert not (folder / "snapshots").exists()
    again = cli("trajectory", spec, "-o", folder)
    assert again.code == 0
    assert "3 pairs, 3 of them done before." in again.err
    assert f"Page: {printed['page']}" in again.out
    assert printed["findings"][0] in again.out


def test_dry_run(cli: Any, write_spec: Any, tmp_path: Path) -> None:
    spec, folder = write_spec(adapters=ARMS[:2], seeds=[0, 1]), tmp_path / "out"
    shown = cli("trajectory", spec, "-o", folder, "--dry-run")
    assert shown.code == 0
    assert "4 of 4 pairs to do: 4 poisoned and 4 clean runs" in " ".join(shown.out.split())
    assert "0, 1, 2" in shown.out
    told = json.loads(cli("trajectory", spec, "-o", folder, "--dry-run", "--json").out)
    assert told["steps"] == {"full": [0, 1, 2], "lora-r2": [0, 1, 2]}
    assert told["snapshot_bytes"]["full"] > told["snapshot_bytes"]["lora-r2"] > 0
    assert [pair["id"] for pair in told["pairs"]] == told["missing"]
    assert not folder.exists()


def test_a_failed_pair_ends_with_one(cli: Any, write_spec: Any, tmp_path: Path) -> None:
    wild = {"learning_rate": 1e30, "steps": 3, "optimizer": "sgd", "max_grad_norm": None}
    done = cli("trajectory", write_spec(training=wild), "-o", tmp_path / "out")
    assert done.code == 1
    assert "diverged full · label-flip 0.5 · seed 0: clean run: " in done.err
    assert "label-flip 50 %: no completed pair." in done.out


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"attacks": []}, "attacks: there is no attack, so nothing to compare. Give one."),
        ({"attacks": [{"method": "label-flp", "rates": [0.1]}]}, "Did you mean 'label-flip'?"),
    ],
)
def test_refusals(changes: Any, says: str, cli: Any, write_spec: Any, tmp_path: Path) -> None:
    refused = cli("trajectory", write_spec(**changes), "-o", tmp_path / "out")
    assert (refused.code, refused.out) == (2, "")
    assert says in refused.err


def test_another_spec_in_the_folder(cli: Any, write_spec: Any, tmp_path: Path) -> None:
    assert cli("trajectory", write_spec(), "-o", tmp_path / "out", "--json").code == 0
    other = write_spec(attacks=[{"method": "label-flip", "rates": [0.25]}])
    refused = cli("trajectory", other, "-o", tmp_path / "out")
    assert refused.code == 2
    assert "this folder holds another spec" in refused.err
    assert cli("trajectory", other, "-o", tmp_path / "out", "--extend", "--json").code == 0
