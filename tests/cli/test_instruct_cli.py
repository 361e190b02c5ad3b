"""`foretaste instruct` as a user meets it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml


@pytest.fixture
def write(tiny_chat: Any, instruct_folder: Any, tmp_path: Path) -> Callable[..., Path]:
    """`write(**sections)`: a YAML file of a sweep of three quick runs."""
    folder = instruct_folder()

    def make(**sections: Any) -> Path:
        base: dict[str, Any] = {
            "name": "tiny",
            "data": {"source": str(folder), "test_rows": 3},
            "model": {"base": str(tiny_chat("llama")), "max_length": 96},
            "adapters": [{"method": "lora", "r": 4}],
            "scenario": {"method": "refusal"},
            "triggers": [{"method": "badnet", "rates": [0.25]}],
            "training": {"steps": 1, "batch_size": 4},
            "generation": {"max_new_tokens": 4},
            "seeds": [0],
        }
        path = tmp_path / "tiny.yaml"
        path.write_text(yaml.safe_dump(base | sections), encoding="utf-8")
        return path

    return make


def test_a_sweep_and_what_it_says(write: Any, cli: Any, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    dry = cli("instruct", write(), "-o", folder, "--dry-run", "--json")
    assert (dry.code, dry.err) == (0, "")
    planned = json.loads(dry.out)
    assert [run["label"] for run in planned["runs"]] == [
        "base",
        "lora-r4 · clean · seed 0",
        "lora-r4 · badnet 0.25 · seed 0",
    ]
    assert planned["missing"] == [run["id"] for run in planned["runs"]]
    assert planned["seconds"] > 0
    assert not folder.exists()

    done = cli("instruct", write(), "-o", folder, "--processes", 1, "--threads", 1)
    assert done.code == 0
    assert "3 runs." in done.err
    lines = [line.split() for line in done.out.splitlines()]
    assert lines[0][:5] == ["adapter", "trained", "on", "asked", "runs"]
    assert ["base", "none", "badnet", "1"] in [line[:4] for line in lines]
    assert ["lora-r4", "badnet,", "0.25", "badnet", "1"] in [line[:5] for line in lines]
    assert f"3 completed in {folder}" in done.out
    page = folder / "report" / "index.html"
    assert f"Page: {page}" in done.out
    html = page.read_text(encoding="utf-8")
    assert "badnet · 25 % poisoned · seed 0" in html
    assert (page.parent / "figures" / "asr.svg").is_file()

    again = cli("instruct", write(judge={"method": "compliance"}), "-o", folder, "--json", "--processes", 1)
    assert (again.code, again.err) == (0, "")
    content = json.loads(again.out)
    assert content["statuses"] == {"completed": 3}
    assert content["rejudged"] == 3
    assert content["page"] == str(page)
    assert "compliance looks for" in page.read_text(encoding="utf-8")  # the page is that of the new judge
    shares = {(s["adapter"], s["trained_on"], s["asked"]): (s["runs"], s["n"]) for s in content["shares"]}
    assert shares == {
        ("base", "none", "clean"): (1, 3),
        ("base", "none", "badnet"): (1, 3),
        ("lora-r4", "clean", "clean"): (1, 3),
        ("lora-r4", "clean", "badnet"): (1, 3),
        ("lora-r4", "badnet, 0.25", "clean"): (1, 3),
        ("lora-r4", "badnet, 0.25", "badnet"): (1, 3),
    }

    shown = cli("instruct", write(), "-o", folder, "--dry-run")
    drawn = cli("report", folder, "-o", tmp_path / "drawn", "--no-images", "--json")
    assert json.loads(drawn.out)["page"] == str(tmp_path / "drawn" / "index.html")

    assert "0 of 3 runs to do" in " ".join(shown.out.split())


def test_one_line_for_what_is_wrong(write: Any, cli: Any, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    for sections, part in (
        ({"trigger": []}, "unknown key 'trigger'"),
        ({"scenario": {"method": "jailbreak"}}, "needs prompts and responses from you"),
    ):
        done = cli("instruct", write(**sections), "-o", folder)
        assert (done.code, done.out) == (2, "")
        assert part in done.err
        assert len(done.err.strip().splitlines()) == 1
    done = cli("instruct", "no-such-preset")
    assert done.code == 2
    assert "no-such-preset" in done.err
    assert not folder.exists()


def test_a_run_that_fails_gives_exit_code_one(
    write: Any, cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from foretaste.instruct import outcomes

    monkeypatch.setattr(outcomes, "overlaps", lambda *_: 1 / 0)
    done = cli("instruct", write(), "-o", tmp_path / "out", "--processes", 1)
    assert done.code == 1
    assert "ZeroDivisionError" in done.err
    assert "3 error in" in done.out
