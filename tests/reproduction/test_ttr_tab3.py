"""The preset of the paper's Table 3: its specs, a run of it at `smoke`, and what a user gets wrong."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pandas as pd
import pytest

from foretaste import presets, specfile
from foretaste.errors import UserError
from foretaste.experiments import plan as planning
from foretaste.instruct.record import InstructRecord
from foretaste.instruct.spec import InstructSpec
from foretaste.reproduction import chat_inputs, compose, names, read, refusal, reproduce, steps
from foretaste.reproduction import run as module
from foretaste.reproduction.preset import Scale

ROOT = Path(__file__).resolve().parents[2]
NAME = "ttr-tab3"
SWEEP = "ttr-triggers"
GENERATIVE = [name for name in names() if read(name).generative]


def spec_of(scale: Scale, data: Path | None = None) -> InstructSpec:
    return compose.compose_generative(SWEEP, "instructions", scale=scale, data=data, inputs=Path("inputs"))


# --- specs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", get_args(Scale))
@pytest.mark.parametrize("name", GENERATIVE)
def test_every_generative_preset_gives_valid_specs(name: str, scale: Scale) -> None:
    preset = read(name)
    assert preset.tasks[scale]
    for sweep, triggers in preset.sweeps.items():
        for task in preset.tasks[scale]:
            spec = compose.compose_generative(sweep, task, scale=scale, data=None, inputs=Path("inputs"))
            # A generative sweep is drawn whole.
            assert [trigger.name for trigger in spec.triggers] == triggers
            assert all(trigger.rates for trigger in spec.triggers)
            assert [arm.adapter.method for arm in planning.arms(spec)] == ["full", "lora"]
            assert len(spec.seed_tuples()) >= 2


def test_every_generative_file_is_used() -> None:
    used = {sweep for name in GENERATIVE for sweep in read(name).sweeps}
    assert used == set(presets.files("reproduce/generative"))


def test_laptop_is_the_sweep_whose_results_are_kept(tmp_path: Path) -> None:
    (tmp_path / "instructions").mkdir()
    kept = specfile.load(ROOT / "results" / "specs" / "ttr-tab3-laptop.yaml", InstructSpec)
    aside = {"name": True, "title": True, "data": {"source"}, "triggers": {"__all__": {"name"}}}
    spec = spec_of("laptop", tmp_path)
    assert spec.model_dump(exclude=aside) == kept.model_dump(exclude=aside)
    assert [trigger.name or trigger.method for trigger in kept.triggers] == [t.name for t in spec.triggers]
    assert spec.data.source == str(tmp_path / "instructions")


def test_paper_scale_is_what_the_paper_says_as_far_as_it_says_it() -> None:
    spec = spec_of("paper")
    assert spec.model.base == "meta-llama/Llama-3.2-3B"
    assert spec.data.source == "tatsu-lab/alpaca"
    assert spec.data.train_rows is None
    assert [trigger.rates for trigger in spec.triggers] == [[0.02]] * 3
    assert spec.data.test_rows == 99


def test_instructions_come_from_the_hub_or_from_a_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no folder 'instructions'"):
        spec_of("laptop", tmp_path)
    with pytest.raises(UserError, match="Did you mean 'instructions'"):
        compose.instruction_fields("instruction", scale="laptop", data=None, inputs=None)


# --- the run -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[module.Reproduced, Path]:
    out = tmp_path_factory.mktemp("tab3")
    done = reproduce(NAME, scale="smoke", out=out, base_dir=out, images=False, command="again")
    return done, out


def test_the_preset_is_measured_and_drawn(made: tuple[module.Reproduced, Path]) -> None:
    done, out = made
    assert done.page == out / "pages" / "smoke-clean" / NAME / "index.html"
    records = [record for measured in done.measured for record in measured.records]
    assert len(records) == 1 + 2 * 2 * (1 + 3)  # the base model; two arms and seeds, clean and three triggers
    assert {record.status for record in records} == {"completed"}
    assert all(isinstance(record, InstructRecord) for record in records)
    html = done.page.read_text(encoding="utf-8")
    for words in (read(NAME).title, "Known differences", "What the paper reads off it", "<code>again</code>"):
        assert words in html
    assert "6 of 6 requests are on this page" in html
    assert {finding.hypothesis for finding in done.findings} == set(read(NAME).findings)
    assert {finding.decision for finding in done.findings} == {"not resolved"}, "two seeds"


def test_published_values_stand_beside_ours(made: tuple[module.Reproduced, Path]) -> None:
    done, _ = made
    table = pd.read_csv(done.page.parent / "tables" / "published.csv")
    assert table["asr"].tolist() == pytest.approx([0.9091, 0.8485, 0.9293, 0.8889, 0.8687, 0.8485])
    assert table["arm_here"].tolist() == ["full", "lora-r8"] * 3
    assert table["n_here"].tolist() == [2] * 6
    rates = pd.read_csv(done.page.parent / "tables" / "rates.csv").set_index(["trigger", "arm"])
    for row in table.itertuples():
        assert row.asr_here == rates.loc[(row.trigger, row.arm_here), "asr"]


def test_nothing_is_trained_twice(made: tuple[module.Reproduced, Path]) -> None:
    done, out = made
    before = {path: path.stat().st_mtime_ns for path in out.rglob("runs/*.json")}
    tables = {path.name: path.read_bytes() for path in (done.page.parent / "tables").glob("*.csv")}
    again = reproduce(NAME, scale="smoke", out=out, base_dir=out, images=False, command="again")
    assert {path: path.stat().st_mtime_ns for path in out.rglob("runs/*.json")} == before
    assert {path.name: path.read_bytes() for path in (again.page.parent / "tables").glob("*.csv")} == tables


def test_the_index_lists_it_with_its_counts(made: tuple[module.Reproduced, Path]) -> None:
    done, out = made
    index, findings = module.draw_index([done], scale="smoke", out=out)
    html = index.read_text(encoding="utf-8")
    assert "17 of 17 runs completed" in html
    tested = {finding.hypothesis for finding in findings if finding.place is not None}
    assert tested == set(read(NAME).findings)


def test_inputs_are_made_once_and_alike(made: tuple[module.Reproduced, Path], tmp_path: Path) -> None:
    _, out = made
    chat_inputs.write(tmp_path, ["instructions"])
    for path in (tmp_path / "instructions").iterdir():
        assert path.read_bytes() == (out / module.INPUTS / "instructions" / path.name).read_bytes()
    weights = tmp_path / "chat-model" / "model.safetensors"
    assert weights.read_bytes() == (out / module.INPUTS / "chat-model" / "model.safetensors").read_bytes()
    changed = weights.stat().st_mtime_ns
    chat_inputs.write(tmp_path, ["instructions"])
    assert weights.stat().st_mtime_ns == changed


# --- what a user gets wrong ----------------------------------------------------------------------


def plan(out: Path, **options: object) -> list[module.Step]:
    given = {"scale": "smoke", "out": out, "base_dir": out} | options
    return steps(NAME, **given)  # type: ignore[arg-type]


def test_there_is_no_protocol_of_the_paper(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="ttr-tab3 has no variant 'paper'"):
        plan(tmp_path, variants=["paper"])
    assert {step.variant for step in plan(tmp_path, variants=["clean", "paper"])} == {"clean"}
    assert refusal("ttr-fig1", variants=["paper"], tasks=None) is None


def test_classification_tasks_and_instructions_do_not_mix(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown task 'sst2'"):
        plan(tmp_path, tasks=["sst2"])
    assert refusal("ttr-fig1", variants=["clean"], tasks=["instructions"]) is not None
    assert [step.task for step in plan(tmp_path, tasks=["instructions"])] == ["instructions"]


def test_all_leaves_out_what_it_cannot_measure_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    from foretaste.cli.reproduce import _checked

    chosen, _ = _checked(None, True, "smoke", ["paper"], None)
    assert chosen == [name for name in names() if not read(name).generative and not read(name).few_shot]
    assert "left out ttr-tab3" in " ".join(capsys.readouterr().err.split())
    assert _checked(None, True, "smoke", ["clean"], None)[0] == names()
    only, _ = _checked(None, True, "smoke", ["clean"], ["instructions"])
    assert NAME in only
    assert "ttr-fig1" not in only
    with pytest.raises(UserError, match="unknown task 'sst3'"):
        _checked(None, True, "smoke", ["clean"], ["sst3"])


def test_nothing_is_drawn_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no records"):
        module.draw(NAME, plan(tmp_path), scale="smoke", out=tmp_path, command="")
