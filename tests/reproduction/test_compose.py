"""Presets of figures and tables: every one gives valid specs, and says truly what it varies."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any, get_args

import pytest

from foretaste.errors import UserError
from foretaste.experiments import plan as planning
from foretaste.reproduction import compose
from foretaste.reproduction.preset import Preset, Scale, Variant
from foretaste.spec import AttackSpec, MeasureSpec

SCALES: tuple[Scale, ...] = get_args(Scale)
VARIANTS: tuple[Variant, ...] = get_args(Variant)
NAMES = compose.names()
# Those of generative models: test_ttr_tab3.py; of few-shot learning: test_kernel_presets.py.
TRAINED = [name for name in NAMES if compose.read(name).classifies]


def spec_of(sweep: str, task: str, scale: Scale, variant: Variant = "clean") -> MeasureSpec:
    return compose.compose(sweep, task, scale=scale, variant=variant, data=None, inputs=Path("inputs"))


def arms_of(spec: MeasureSpec) -> dict[str, Any]:
    """Name to (resolved adapter, training) of every arm, without loading a model."""
    return {arm.adapter.name: arm for arm in planning.arms(spec)}


@pytest.mark.parametrize("name", TRAINED)
@pytest.mark.parametrize(("scale", "variant"), list(itertools.product(SCALES, VARIANTS)))
def test_every_preset_gives_valid_specs(name: str, scale: Scale, variant: Variant) -> None:
    preset = compose.read(name)
    assert preset.tasks[scale], "no task at this scale"
    for sweep, attacks in preset.sweeps.items():
        for task in preset.tasks[scale]:
            spec = spec_of(sweep, task, scale, variant)
            assert set(attacks) <= {attack.name for attack in spec.attacks}
            assert arms_of(spec), "arms have equal names, or fields that peft does not know"


@pytest.mark.parametrize("name", TRAINED)
def test_the_view_speaks_of_attacks_that_are_measured(name: str) -> None:
    preset = compose.read(name)
    measures = getattr(preset.view, "measures", None)
    if isinstance(measures, dict):
        assert set(measures) == set(itertools.chain.from_iterable(preset.sweeps.values()))


@pytest.mark.parametrize("sweep", sorted({sweep for name in TRAINED for sweep in compose.read(name).sweeps}))
def test_a_laptop_figure_has_five_points_and_three_seeds(sweep: str) -> None:
    spec = spec_of(sweep, "sst2", "laptop")
    assert isinstance(spec.seeds, list)
    assert len(spec.seeds) >= 3
    if sweep == "ttr-rates":
        assert all(len(attack.rates) >= 5 for attack in spec.attacks)
    if sweep in {"ttr-rank-flips", "ttr-rank-trigger", "ttr-variance"}:
        assert len(arms_of(spec)) >= 5


def test_every_file_is_used() -> None:
    from foretaste import presets

    used = {sweep for name in TRAINED for sweep in compose.read(name).sweeps}
    assert used == set(presets.files("reproduce/sweeps"))


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize(("sweep", "power"), [("ranks-matched", 1), ("ranks-matched-sgd", 2)])
def test_matched_ranks_take_equal_effective_steps(sweep: str, power: int, scale: Scale) -> None:
    """Learning rate x s x r x sigma for Adam, x s^2 x r x sigma^2 for SGD; sigma is the same everywhere."""
    arms = arms_of(spec_of(sweep, "sst2", scale)).values()
    steps = [
        arm.training.learning_rate
        * (arm.adapter.config["lora_alpha"] / arm.adapter.config["r"]) ** power
        * arm.adapter.config["r"]
        for arm in arms
    ]
    assert steps == pytest.approx([steps[0]] * len(steps))
    assert len(steps) >= 2
    assert {arm.training.optimizer for arm in arms} == {"adamw" if power == 1 else "sgd"}
    if power == 1:  # and it is the step of the usual arm, r = 8 and alpha = 16
        usual = arms_of(spec_of("ttr-rates", "sst2", scale))["lora-r8"]
        assert steps[0] == pytest.approx(usual.training.learning_rate * 16)


def test_rslora_starts_from_the_usual_scaling_at_rank_eight() -> None:
    arms = arms_of(spec_of("ranks-rslora", "sst2", "laptop"))
    for arm in arms.values():
        assert arm.adapter.config["lora_alpha"] / 8**0.5 == pytest.approx(16 / 8)


@pytest.mark.parametrize("sweep", ["ttr-rank-flips", "ttr-rank-trigger", "ranks-alpha-r"])
def test_alpha_follows_the_rank_where_it_says_so(sweep: str) -> None:
    for scale in SCALES:
        for arm in arms_of(spec_of(sweep, "sst2", scale)).values():
            assert arm.adapter.config["lora_alpha"] == arm.adapter.config["r"]


def test_the_papers_protocol_is_the_papers() -> None:
    """Against protocol.md, 1.1 to 1.3."""
    spec = spec_of("ttr-rates", "sst2", "paper", "paper")
    flip, trigger = spec.attacks
    assert flip.method == "label-flip"
    assert flip.rates == [0.05, 0.10, 0.15, 0.20, 0.25, 0.30, 0.35, 0.40]
    assert flip.options == {}
    assert trigger.method == "trigger"
    assert trigger.rates == [0.001, 0.0015, 0.002, 0.0025, 0.003, 0.0035, 0.004, 0.0045]
    assert trigger.options == {
        "text": "[.*?]",
        "position": "start",
        "spacing": "",
        "target": 1,
        "source_classes": "all",
    }
    assert {attack.selection for attack in spec.attacks} == {"bernoulli"}
    full, lora = spec.adapters
    assert (full.method, full.training) == ("full", {"learning_rate": 3e-6})
    assert (lora.method, lora.training) == ("lora", {"learning_rate": 3e-5})
    assert lora.config == {"r": 8, "lora_alpha": 16}
    model = spec.model
    assert model.base == "google-bert/bert-large-uncased"
    assert (model.head, model.pooling, model.pair_separator) == ("paper", "model", " <SEP> ")
    assert (model.max_length, model.eval_max_length) == (512, 128)
    training = spec.training
    assert (training.batch_size, training.steps, training.epochs) == (8, 10_000, None)
    assert (training.schedule, training.warmup_ratio) == ("constant", 0.0)
    assert (training.weight_decay, training.max_grad_norm) == (0.01, None)
    assert (training.optimizer, training.dropout, training.grouping) == ("adamw", False, "none")
    assert spec.seeds == [1, 2, 3, 4, 5]
    assert (spec.data.source, spec.data.config, spec.data.test_split) == (
        "nyu-mll/glue",
        "sst2",
        "validation",
    )


def test_the_clean_variant_keeps_foretastes_own_protocol() -> None:
    spec = spec_of("ttr-rates", "sst2", "laptop", "clean")
    assert spec.model.head == "probe-then-train"
    assert all(attack.selection == "exact-nested" for attack in spec.attacks)
    assert all(attack.options.get("source_classes", "other") == "other" for attack in spec.attacks)


def test_a_tasks_data_come_from_the_hub_or_from_a_folder(tmp_path: Path) -> None:
    hub = compose.task_fields("qqp", scale="laptop", data=None, inputs=None)
    assert (hub["source"], hub["config"], hub["test_split"]) == ("nyu-mll/glue", "qqp", "validation")
    (tmp_path / "qqp").mkdir()
    local = compose.task_fields("qqp", scale="laptop", data=tmp_path, inputs=None)
    assert (local["source"], local["test_split"]) == (str(tmp_path / "qqp"), "dev")
    with pytest.raises(UserError, match="no folder 'rte'"):
        compose.task_fields("rte", scale="laptop", data=tmp_path, inputs=None)
    with pytest.raises(UserError, match="Did you mean 'cola'"):
        compose.task_fields("colla", scale="laptop", data=None, inputs=None)


# --- merging -------------------------------------------------------------------------------------


def test_later_parts_win_and_none_takes_a_section_out() -> None:
    base = {"a": {"x": 1, "y": 2}, "b": [1, 2], "c": 3}
    assert compose.merged(base, {"a": {"y": 5}, "b": [9]}) == {"a": {"x": 1, "y": 5}, "b": [9], "c": 3}
    assert compose.merged(base, {"a": None}) == {"b": [1, 2], "c": 3}
    assert compose.merged(base, {"c": None}) == {"a": {"x": 1, "y": 2}, "b": [1, 2], "c": None}
    assert base == {"a": {"x": 1, "y": 2}, "b": [1, 2], "c": 3}


def test_parallel_lists_give_one_arm_for_each_place() -> None:
    arms = compose.zipped({"method": "lora", "zip": {"r": [2, 4], "training.learning_rate": [0.1, 0.2]}})
    assert arms == [
        {"method": "lora", "r": 2, "training": {"learning_rate": 0.1}},
        {"method": "lora", "r": 4, "training": {"learning_rate": 0.2}},
    ]
    assert compose.zipped({"method": "full"}) == [{"method": "full"}]
    with pytest.raises(UserError, match="different lengths"):
        compose.zipped({"method": "lora", "zip": {"r": [2, 4], "lora_alpha": [1]}})


def test_an_unknown_preset_is_named_with_the_nearest() -> None:
    with pytest.raises(UserError, match="ttr-fig1"):
        compose.read("ttr-figl")


def test_a_presets_findings_are_known() -> None:
    from foretaste.hypotheses import HYPOTHESES

    for name in NAMES:
        preset: Preset = compose.read(name)
        for finding in preset.findings:
            assert finding in HYPOTHESES, f"{name}: {finding}"


def test_poison_amounts_are_given_at_every_scale() -> None:
    for name, scale in itertools.product(TRAINED, SCALES):
        for sweep in compose.read(name).sweeps:
            attacks: list[AttackSpec] = spec_of(sweep, "sst2", scale).attacks
            assert all(attack.rates or attack.counts for attack in attacks)
