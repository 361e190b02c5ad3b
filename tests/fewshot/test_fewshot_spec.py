"""What a few-shot spec takes, refuses and fills in."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from foretaste import specfile
from foretaste.errors import UserError
from foretaste.fewshot.spec import PAPER_SPLITS, FewShotSpec, FineTune, KernelArm

TEXT = """
tasks:
  - name: sst2
    data: {source: data/sst2}
model: {base: smollm2-135m}
arms:
  - {kind: zero-shot}
  - {kind: fine-tune, optimiser: adam, adapter: lora}
  - {kind: kernel, kernel: asymmetric, scales: [10, inf]}
"""


def parse(text: str) -> FewShotSpec:
    return specfile.parse(text, FewShotSpec)


def arm(**fields: Any) -> Any:
    base = {"tasks": [{"name": "mr", "data": {"source": "x"}}], "model": {"base": "y"}}
    return FewShotSpec.model_validate(base | {"arms": [fields]}).arms[0]


def test_defaults_are_the_paper_s() -> None:
    spec = parse(TEXT)
    assert spec.splits == PAPER_SPLITS == [13, 21, 42, 87, 100]
    assert spec.k == [16]
    assert spec.tasks[0].test_rows == 1000
    assert spec.tasks[0].metric_used == "accuracy"
    assert [one.label for one in spec.arms] == ["zero-shot", "adam-lora", "kernel-asymmetric"]


@pytest.mark.parametrize(
    ("fields", "rates", "sizes"),
    [
        ({"optimiser": "sgd"}, [1e-4, 5e-4, 1e-3, 5e-3, 1e-2], [2, 4, 8]),
        ({"optimiser": "adam"}, [1e-5, 2e-5, 5e-5], [2, 4, 8]),
        ({"optimiser": "sgd", "adapter": "lora"}, [1e-4, 1e-3, 1e-2], [4, 16]),
        ({"optimiser": "adam", "adapter": "lora"}, [1e-5, 4e-5, 4e-4], [4, 16]),
        ({"optimiser": "signgd"}, [1e-5, 2e-5, 5e-5], [2, 4, 8]),
    ],
)
def test_grids_and_steps_of_table_4(fields: Any, rates: list[float], sizes: list[int]) -> None:
    found = arm(kind="fine-tune", **fields).resolved(16 * 2)
    assert isinstance(found, FineTune)
    assert (found.learning_rates, found.batch_sizes) == (rates, sizes)
    assert (found.steps, found.check_every) == (32 * 32, 4 * 32)
    assert (found.rank, found.alpha) == (8, 16)
    assert found.resolved(99) == found  # what is written out stays


def test_steps_of_a_short_run_are_checked_at_its_end() -> None:
    found = arm(kind="fine-tune", steps=10).resolved(32)
    assert found.check_every == 10


def test_kernel_grids_of_table_4() -> None:
    found = arm(kind="kernel").resolved(32)
    assert isinstance(found, KernelArm)
    assert found.solver == "ridge"
    assert found.regularisations == [0.0, 1e-3, 1e-2, 1e-1, 1.0]
    assert found.scale_values == [10.0, 100.0, 1000.0, 10000.0, math.inf]
    assert found.gammas == []
    asymmetric = arm(kind="kernel", kernel="asymmetric").resolved(32)
    assert (asymmetric.solver, asymmetric.gammas) == ("asymmetric", [0.01, 0.1, 1.0, 10.0])
    logistic = arm(kind="kernel", solver="logistic").resolved(32)
    assert (logistic.regularisations, logistic.scales) == ([1e-3, 1e-2, 1e-1, 1.0], [])
    assert parse(TEXT).arms[2].resolved(32).scale_values == [10.0, math.inf]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("fields", "label"),
    [
        ({"kind": "fine-tune"}, "sgd"),
        ({"kind": "fine-tune", "adapter": "lora", "rank": 4}, "sgd-lora-r4-a16"),
        ({"kind": "fine-tune", "adapter": "intrinsic", "dimension": 50}, "sgd-intrinsic-50"),
        ({"kind": "fine-tune", "output": "standard"}, "sgd-standard"),
        ({"kind": "kernel", "adapter": "bitfit"}, "kernel-sgd-bitfit"),
        ({"kind": "kernel", "solver": "svm"}, "kernel-sgd-svm"),
        ({"kind": "kernel", "name": "mine"}, "mine"),
    ],
)
def test_labels_say_what_is_not_the_default(fields: Any, label: str) -> None:
    assert arm(**fields).label == label


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "fine-tune", "adapter": "intrinsic"}, "needs a dimension"),
        ({"kind": "fine-tune", "dimension": 5}, "belongs to adapter: intrinsic"),
        ({"kind": "fine-tune", "rank": 4}, "belong to adapter: lora"),
        ({"kind": "fine-tune", "learning_rates": [1e-3, 1e-3]}, "repeat"),
        ({"kind": "kernel", "kernel": "asymmetric", "solver": "ridge"}, "takes asymmetric or least-squares"),
        ({"kind": "kernel", "gammas": [1.0]}, "gammas belong to"),
        ({"kind": "kernel", "solver": "svm", "scales": [10.0]}, "has no scales"),
        ({"kind": "kernel", "solver": "logistic", "regularisations": [0.0]}, "above 0"),
        ({"kind": "kernel", "steps": 3}, "Extra inputs"),
        ({"kind": "tuning"}, "fine-tune"),
    ],
)
def test_wrong_arms_are_refused(fields: Any, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        arm(**fields)


def test_equal_names_are_refused() -> None:
    for twice in ("k: [4, 4]", "splits: [13, 13]"):
        with pytest.raises(UserError, match="repeat"):
            parse(TEXT + twice)
    with pytest.raises(UserError, match="arms repeat: zero-shot; give one a `name`"):
        parse(TEXT + "  - {kind: zero-shot}\n")


def test_an_unknown_task_and_a_wrong_key_are_located() -> None:
    with pytest.raises(UserError, match=r"no built-in prompt of 'sst3'"):
        parse(TEXT.replace("name: sst2", "name: sst3"))
    with pytest.raises(UserError, match=r"spec:8: unknown key.*learning_rate.*Did you mean 'learning_rates'"):
        parse(TEXT.replace("adapter: lora", "adapter: lora, learning_rate: [1.0]"))


def test_a_prompt_of_one_s_own() -> None:
    own = "    prompt: {template: '{text_a} {answer}', words: {negative: bad, positive: good}}\n"
    spec = parse(TEXT.replace("    data:", own + "    data:").replace("sst2\n", "mine\n", 1))
    prompt = spec.tasks[0].prompt
    assert not isinstance(prompt, str)
    assert prompt is not None
    assert prompt.prompt("mine/own").classes == ["negative", "positive"]
    with pytest.raises(UserError, match="quotation marks"):
        parse(
            TEXT.replace(
                "    data:", "    prompt: {template: '{text_a} {answer}', words: [Yes, No]}\n    data:"
            )
        )
    with pytest.raises(UserError, match=r"no \{answer\}"):
        parse(TEXT.replace("    data:", "    prompt: {template: '{text_a}', words: [a, b]}\n    data:"))
    with pytest.raises(UserError, match="variant is for built-in"):
        parse(TEXT.replace("    data:", own + "    variant: 'null'\n    data:"))


def test_a_prompt_may_be_borrowed() -> None:
    spec = parse(TEXT.replace("name: sst2", "name: reviews\n    prompt: qqp"))
    assert spec.tasks[0].task == "qqp"
    assert spec.tasks[0].metric_used == "f1"


def test_the_example_reads_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(TEXT, encoding="utf-8")
    assert specfile.load(path, FewShotSpec) == parse(TEXT)
