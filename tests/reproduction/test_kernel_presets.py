"""Presets of the kernel paper: their specs, runs of them at `smoke`, and what a user gets wrong."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pandas as pd
import pytest

from foretaste import assets, presets
from foretaste.data.prompts import TASKS, builtin
from foretaste.errors import UserError
from foretaste.fewshot.prepare import words_as_tokens
from foretaste.fewshot.record import FewShotRecord
from foretaste.fewshot.spec import PAPER_SPLITS, FewShotSpec, FineTune, KernelArm
from foretaste.hypotheses import HYPOTHESES
from foretaste.hypotheses.kernel_view import NAMES as KERNEL_FINDINGS
from foretaste.models import load
from foretaste.report.fewshot.published import TABLES
from foretaste.reproduction import compose, names, prompt_inputs, read, refusal, reproduce, steps
from foretaste.reproduction import run as module
from foretaste.reproduction.preset import Preset, Scale
from foretaste.spec import ModelSpec
from foretaste.specfile import validate

KERNEL = [name for name in names() if read(name).few_shot]
SCALES: tuple[Scale, ...] = get_args(Scale)


def spec_of(sweep: str, task: str, scale: Scale, data: Path | None = None) -> FewShotSpec:
    return compose.compose_few_shot(sweep, task, scale=scale, data=data, inputs=Path("inputs"))


# --- specs ---------------------------------------------------------------------------------------


def test_the_tables_and_figures_of_the_issue_are_there() -> None:
    numbers = {f"kernel-tab{number}" for number in (1, 2, 5, 6, 7, 8, 9, 11)}
    assert set(KERNEL) == numbers | {"kernel-fig1", "kernel-fig2"}


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", KERNEL)
def test_every_preset_gives_valid_specs(name: str, scale: Scale) -> None:
    preset = read(name)
    assert preset.sweeps_at(scale)
    for sweep in preset.sweeps_at(scale):
        for task in preset.tasks[scale]:
            spec = spec_of(sweep, task, scale)
            assert [one.name for one in spec.tasks] == [task]
            assert len(spec.splits) >= (2 if scale == "smoke" else 3)
            labels = [arm.label for arm in spec.arms]
            bare = [arm.model_copy(update={"name": None}).label for arm in spec.arms]
            assert labels == bare, "an arm's name must say what it is: published values are found by it"


def test_every_file_is_used_and_every_finding_known() -> None:
    assert {sweep for name in KERNEL for sweep in read(name).sweeps} == set(
        presets.files("reproduce/few-shot")
    )
    spoken = {finding for name in KERNEL for finding in read(name).findings}
    assert spoken == set(KERNEL_FINDINGS)
    assert spoken <= set(HYPOTHESES.names())
    assert {read(name).published for name in KERNEL} == set(TABLES)


def test_a_sweep_is_one_and_the_same_in_every_preset(tmp_path: Path) -> None:
    for scale in SCALES:
        found: dict[Path, FewShotSpec] = {}
        for name in KERNEL:
            for step in steps(name, scale=scale, out=tmp_path, base_dir=tmp_path):
                assert isinstance(step.spec, FewShotSpec)
                assert found.setdefault(step.folder, step.spec) == step.spec


def test_the_papers_scale_is_the_papers() -> None:
    """Against protocol.md, section 2."""
    spec = spec_of("kernel-main", "qqp", "paper")
    assert (spec.model.base, spec.k, spec.splits) == ("FacebookAI/roberta-base", [16, 64], PAPER_SPLITS)
    assert spec.tasks[0].test_rows == 1000
    resolved = {arm.label: arm.resolved(32) for arm in spec.arms}
    sgd, adam = resolved["sgd"], resolved["adam"]
    assert isinstance(sgd, FineTune)
    assert isinstance(adam, FineTune)
    assert (sgd.learning_rates, sgd.batch_sizes) == ([1e-4, 5e-4, 1e-3, 5e-3, 1e-2], [2, 4, 8])
    assert (adam.learning_rates, adam.batch_sizes) == ([1e-5, 2e-5, 5e-5], [2, 4, 8])
    assert (sgd.steps, sgd.check_every, sgd.criteria) == (32 * 32, 4 * 32, True)
    asymmetric = resolved["kernel-asymmetric"]
    assert isinstance(asymmetric, KernelArm)
    assert asymmetric.regularisations == [0, 0.001, 0.01, 0.1, 1]
    assert asymmetric.scales == [10, 100, 1000, 10000, "inf"]
    assert asymmetric.gammas == [0.01, 0.1, 1, 10]
    lora = {arm.label: arm.resolved(32) for arm in spec_of("kernel-lora", "qqp", "paper").arms}["sgd-lora"]
    assert isinstance(lora, FineTune)
    assert (lora.learning_rates, lora.batch_sizes) == ([1e-4, 1e-3, 1e-2], [4, 16])
    assert (lora.rank, lora.alpha) == (8, 16)
    assert spec_of("kernel-many", "qqp", "paper").k == [512]
    assert spec_of("kernel-width-wide", "qqp", "paper").model.base == "FacebookAI/roberta-large"
    assert read("kernel-tab1").tasks["paper"] == list(TASKS)


def test_criteria_are_measured_where_they_are_needed_only() -> None:
    measured = spec_of("kernel-main", "sst2", "laptop")
    plain = spec_of("kernel-lora", "sst2", "laptop")
    assert not any(isinstance(arm, FineTune) and arm.criteria for arm in plain.arms)
    assert all(arm.criteria for arm in measured.arms if isinstance(arm, FineTune))
    sgd = next(arm for arm in measured.arms if arm.label == "sgd")
    assert isinstance(sgd, FineTune)
    assert (sgd.learning_rates, sgd.batch_sizes, sgd.steps, sgd.check_every) == (
        [1e-3, 1e-2, 1e-1],
        [8],
        256,
        64,
    )
    assert (measured.k, measured.splits, measured.tasks[0].test_rows) == ([16, 64], [13, 21, 42], 500)


def test_every_task_has_rows_on_the_hub_and_in_a_folder(tmp_path: Path) -> None:
    for task in TASKS:
        known = compose.tasks()[task]
        (tmp_path / known.folder).mkdir()
        hub = compose.task_fields(task, scale="paper", data=None, inputs=None)
        local = compose.task_fields(task, scale="paper", data=tmp_path, inputs=None)
        assert hub["source"] == known.hub
        assert local["labels"] == known.labels
        assert len(hub["labels"]) == len(local["labels"])
        assert len(spec_of("kernel-main", task, "paper", tmp_path).tasks) == 1


def test_only_names_sweeps_that_are_drawn() -> None:
    content = read("kernel-tab1").model_dump(exclude_unset=True)
    content["only"] = {"kernel-mian": ["paper"]}
    with pytest.raises(UserError, match="kernel-mian"):
        validate(content, Preset, origin="x")


# --- runs ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[module.Reproduced, Path]:
    out = tmp_path_factory.mktemp("kernel")
    return reproduce("kernel-tab1", scale="smoke", out=out, base_dir=out, images=False, command="again"), out


def test_table_1_is_measured_and_drawn(made: tuple[module.Reproduced, Path]) -> None:
    done, _ = made
    records = [record for one in done.measured for record in one.records]
    assert len(records) == 12
    assert {record.status for record in records} == {"completed"}
    text = done.page.read_text(encoding="utf-8")
    preset = read("kernel-tab1")
    assert preset.title in text
    assert "Kernel paper, Table 1" in text
    assert "Known differences" in text
    tables = done.page.parent / "tables"
    dots = pd.read_csv(tables / "dots.csv")
    assert sorted(set(dots["arm"])) == ["adam", "sgd"]
    assert len(dots) == 4
    published = pd.read_csv(tables / "published.csv")
    assert (published["n_here"] > 0).any()
    assert {finding.hypothesis for finding in done.findings} == set(preset.findings)
    assert all(finding.decision in {"not resolved", "no records"} for finding in done.findings), "two splits"


def test_table_2_shares_its_runs_and_the_index_lists_both(made: tuple[module.Reproduced, Path]) -> None:
    first, out = made
    before = {path: path.stat().st_mtime_ns for path in out.rglob("runs/*.json")}
    done = reproduce("kernel-tab2", scale="smoke", out=out, base_dir=out, images=False, tasks=["sst2"])
    assert {path: path.stat().st_mtime_ns for path in out.rglob("runs/*.json")} == before
    index, findings = module.draw_index([first, done], scale="smoke", out=out)
    html = index.read_text(encoding="utf-8")
    assert html.count("12 of 12 runs completed") == 2
    assert set(read("kernel-tab2").findings) <= {f.hypothesis for f in findings if f.place is not None}


def test_table_8_has_two_widths_and_a_slope(made: tuple[module.Reproduced, Path]) -> None:
    _, out = made
    done = reproduce("kernel-tab8", scale="smoke", out=out, base_dir=out, images=False)
    records = [record for one in done.measured for record in one.records if isinstance(record, FewShotRecord)]
    assert {record.facts["hidden_size"] for record in records} == {32.0, 64.0}
    assert all(record.criteria is not None and 0 < (record.criteria.chi or 0) < 1 for record in records)
    (finding,) = done.findings
    assert finding.n == 2
    assert any("depth" in line for line in finding.cautions)
    chi = pd.read_csv(done.page.parent / "tables" / "chi.csv")
    assert len(chi) == 4


def test_inputs_are_made_once_and_alike(made: tuple[module.Reproduced, Path], tmp_path: Path) -> None:
    _, out = made
    prompt_inputs.write(tmp_path, {"sst2": compose.tasks()["sst2"], "trec": compose.tasks()["trec"]})
    for name in prompt_inputs.MODELS:
        weights = tmp_path / name / "model.safetensors"
        assert weights.read_bytes() == (out / module.INPUTS / name / "model.safetensors").read_bytes()
    rows = pd.read_csv(tmp_path / "trec" / "train.csv")
    assert rows["label"].value_counts().to_dict() == dict.fromkeys(compose.tasks()["trec"].labels, 16)


# --- what a user gets wrong ----------------------------------------------------------------------


def test_there_is_one_protocol(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="its only protocol is the paper's"):
        steps("kernel-tab2", scale="smoke", variants=["paper"], out=tmp_path, base_dir=tmp_path)


def test_only_tasks_with_a_prompt_are_taken() -> None:
    assert refusal("kernel-tab2", variants=["clean"], tasks=["trec"]) is None
    refused = refusal("kernel-tab2", variants=["clean"], tasks=["cola"])
    assert refused is not None
    assert "unknown task 'cola'" in str(refused)


# --- the models of a scale -------------------------------------------------------------------------


def test_the_laptop_model_knows_every_label_word_whole() -> None:
    """A preset that names a task whose words its model breaks in two could not be run."""
    asset = assets.ASSETS.get("bert-tiny-splade")
    if not assets.is_pulled(asset):
        pytest.skip("the asset bert-tiny-splade is not pulled")
    tokenizer = load.load_tokenizer(load.locate(ModelSpec(base=asset.name), Path()))
    asked = 0
    for name in KERNEL:
        for sweep in read(name).sweeps_at("laptop"):
            for task in read(name).tasks["laptop"]:
                spec = spec_of(sweep, task, "laptop")
                assert spec.model.base == asset.name
                words = words_as_tokens(builtin(task, spec.tasks[0].variant), tokenizer, "masked")
                assert len(words) == len(set(words))
                asked += 1
    assert asked > 0
    with pytest.raises(UserError, match="'Alas' is 2 tokens"):
        words_as_tokens(builtin("mrpc", "searched"), tokenizer, "masked")
