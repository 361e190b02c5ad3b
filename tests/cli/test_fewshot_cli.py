"""`foretaste fewshot` as a user meets it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml


@pytest.fixture(scope="session")
def tiny_masked(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> Path:
    """The tiny BERT with a language head, and its tokenizer with a mask token."""
    import torch
    from transformers import AutoTokenizer, BertConfig, BertForMaskedLM

    folder = tmp_path_factory.mktemp("tiny-masked")
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    tokenizer.add_special_tokens({"mask_token": "[MASK]"})
    tokenizer.save_pretrained(folder)
    config = BertConfig.from_pretrained(tiny_bert)
    config.vocab_size = len(tokenizer)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        BertForMaskedLM(config).save_pretrained(folder)
    return folder


@pytest.fixture
def write(tiny_masked: Path, csv_folder: Path, tmp_path: Path) -> Callable[..., Path]:
    """`write(**sections)`: a YAML file of a sweep of four quick runs."""

    def make(**sections: Any) -> Path:
        prompt = {"template": "{text_a} the film {answer}.", "words": ["bad", "good"]}
        tune = {"kind": "fine-tune", "learning_rates": [0.01], "batch_sizes": [4], "steps": 2}
        base: dict[str, Any] = {
            "name": "tiny",
            "tasks": [
                {"name": "films", "data": {"source": str(csv_folder)}, "prompt": prompt, "test_rows": 10}
            ],
            "model": {"base": str(tiny_masked)},
            "k": [2],
            "splits": [13, 21],
            "arms": [{"kind": "zero-shot"}, tune],
        }
        path = tmp_path / "tiny.yaml"
        path.write_text(yaml.safe_dump(base | sections), encoding="utf-8")
        return path

    return make


def test_a_sweep_and_what_it_says(write: Any, cli: Any, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    dry = cli("fewshot", write(), "-o", folder, "--dry-run", "--json")
    assert (dry.code, dry.err) == (0, "")
    planned = json.loads(dry.out)
    assert [run["label"] for run in planned["runs"]] == [
        "films · k 2 · split 13 · zero-shot",
        "films · k 2 · split 13 · sgd",
        "films · k 2 · split 21 · zero-shot",
        "films · k 2 · split 21 · sgd",
    ]
    assert planned["missing"] == [run["id"] for run in planned["runs"]]
    assert planned["seconds"] > 0
    assert not folder.exists()

    done = cli("fewshot", write(), "-o", folder, "--processes", 1, "--threads", 1)
    assert done.code == 0
    assert "4 runs." in done.err
    lines = [line.split() for line in done.out.splitlines()]
    assert lines[0] == ["task", "k", "metric", "zero-shot", "sgd"]
    assert lines[1][:3] == ["films", "2", "accuracy"]
    assert lines[1][4].startswith("(")
    assert len(lines[1]) == 7
    assert f"4 completed in {folder}" in done.out

    again = cli("fewshot", write(), "-o", folder, "--json")
    assert (again.code, again.err) == (0, "")
    told = json.loads(again.out)
    assert told["statuses"] == {"completed": 4}
    cell = next(cell for cell in told["scores"] if cell["arm"] == "sgd")
    assert cell["splits"] == [13, 21]
    assert all(0 <= value <= 1 for value in cell["test"])
    mean = 100 * sum(cell["test"]) / 2
    assert f"{mean:.1f}" == lines[1][5]


def test_the_plan_as_a_table(write: Any, cli: Any, tmp_path: Path) -> None:
    shown = cli("fewshot", write(), "-o", tmp_path / "out", "--dry-run")
    assert shown.code == 0
    assert ["films", "2", "sgd", "1", "2", "2"] in [line.split() for line in shown.out.splitlines()]
    assert "4 of 4 runs to do" in shown.out
    assert "note films: label words go by the order" in shown.out


def test_an_error_is_one_line(write: Any, cli: Any, tmp_path: Path) -> None:
    done = cli("fewshot", write(k=[20]), "-o", tmp_path / "out")
    assert done.code == 2
    assert "k = 20 takes 40 rows of each class" in done.err
    assert not (tmp_path / "out").exists()


def test_a_failed_run_ends_with_code_1(write: Any, cli: Any, tmp_path: Path) -> None:
    wild = {
        "kind": "fine-tune",
        "learning_rates": [1e30],
        "batch_sizes": [4],
        "steps": 2,
        "max_grad_norm": None,
    }
    done = cli("fewshot", write(arms=[wild]), "-o", tmp_path / "out", "--processes", 1, "--threads", 1)
    assert done.code == 1
    assert "2 diverged in" in done.out
    assert ["films", "2", "accuracy", "none"] in [line.split() for line in done.out.splitlines()]
