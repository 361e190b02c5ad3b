"""Runs that are trained together: which ones can be, and one record for each of them all the same.

Every run is prepared and tested as it is alone (experiments/run.py); only the training is shared. What is
common to runs and what is not, training/stacked.py says.
"""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields

import peft
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from foretaste.attempt import Ending, attempted
from foretaste.errors import in_a_line
from foretaste.experiments import engine, prepare
from foretaste.experiments.prepare import Workspace
from foretaste.experiments.run import Outcome, Prepared, execute, fine_tune, finish, keep, prepare_run
from foretaste.models import adapters, catalogue, heads
from foretaste.record import Record
from foretaste.spec import RunSpec, digest
from foretaste.training import one_base, stacked
from foretaste.training.trainer import Diverged, Trained

OnStepOf = Callable[[str, int, int], None]
"""Called with (id of the run, steps done, steps in all)."""

# Fields of LoraConfig that decide A, B and where they are, and leave the layers themselves as they are.
_PLAIN = {
    "r",
    "lora_alpha",
    "target_modules",
    "exclude_modules",
    "rank_pattern",
    "alpha_pattern",
    "layers_to_transform",
    "layers_pattern",
    "fan_in_fan_out",
    "use_rslora",
    catalogue.RATIO,
}
# How torch says it of a CPU: the first on Linux, the second on Windows.
_NO_MEMORY = ("can't allocate memory", "not enough memory")
# Values of init_lora_weights that fill A and B alone; the others take something from the base.
_OWN_INITS = (True, False, "gaussian", "orthogonal")


def why_alone(run: RunSpec) -> str | None:
    """Why a run cannot be trained with others; None: it can.

    Only plain LoRA leaves the base as it was for all. Dropout is refused because each run would draw other
    zeros than alone, and mixed-float16 because one loss scale would serve all runs.
    """
    method = run.adapter.method
    if method in (adapters.FULL, adapters.BITFIT):
        return f"{method} trains the base itself"
    if catalogue.config_class(method) is not peft.LoraConfig:
        return f"{method} is not LoRA"
    defaults = {field.name: getattr(peft.LoraConfig(), field.name) for field in fields(peft.LoraConfig)}
    for key, value in run.adapter.config.items():
        if key == "init_lora_weights":
            if not any(value is own or value == own for own in _OWN_INITS):
                return f"init_lora_weights: {value} changes the base"
        elif key not in _PLAIN and value != defaults[key]:
            return f"with {key} it is more than plain LoRA"
    if run.training.dropout:
        return "it has dropout"
    if run.training.precision == "mixed-float16":
        return "mixed-float16 scales the losses of a batch together"
    return None


def grouped(runs: Sequence[RunSpec], most: int) -> list[list[RunSpec]]:
    """The runs in groups that are trained together, a run that has no fellow alone.

    Runs of one group have the same data, base, and training but for the learning rate. In the order of the
    plan, each run joins the open group of its kind.

    Args:
        runs: In the order of the plan.
        most: Runs of a group.
    """
    groups: list[list[RunSpec]] = []
    open_groups: dict[str, list[RunSpec]] = {}
    for run in runs:
        key = run.id if why_alone(run) else _kind(run)
        group = open_groups.get(key)
        if group is None or len(group) == most:
            group = open_groups[key] = []
            groups.append(group)
        group.append(run)
    return groups


def _kind(run: RunSpec) -> str:
    shared = run.model_dump(mode="json", include={"data", "model", "training"})
    del shared["training"]["learning_rate"]
    return digest(shared)


def run_inline(
    runs: Sequence[RunSpec],
    workspace: Workspace,
    listener: engine.Listener,
    threads: int | None = None,
    *,
    most: int,
    on_note: Callable[[str], None],
) -> None:
    """Do the runs in this process, up to `most` of them together.

    Args:
        runs: In the order of the plan.
        workspace: Where, and with what.
        listener: Hears of every run.
        threads: Of this process.
        most: Runs that are trained together.
        on_note: Told in one line when runs that were to be trained together are done one by one.

    Raises:
        OSError: A result could not be written.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        for group in grouped(runs, most):
            for run in group:
                listener.started(run)
            engine.free_garbage()
            for run, record in execute_together(group, workspace, listener.stepped, on_note):
                listener.finished(run, record)
    finally:
        gc.unfreeze()
        torch.set_num_threads(before)


class _Failed(RuntimeError):
    """The runs of a group have to be done one by one."""


def execute_together(
    runs: Sequence[RunSpec],
    workspace: Workspace,
    on_step: OnStepOf,
    on_note: Callable[[str], None],
) -> Iterator[tuple[RunSpec, Record]]:
    """Train runs together; write one record, manifest and table of predictions for each.

    A run that fails or diverges by itself leaves a record that says so, and the others go on. When training
    together fails, or memory does not suffice for it, the runs that have no record yet are done one by one.

    Args:
        runs: A group from `grouped`; a single run is done as any other.
        workspace: Where, and with what.
        on_step: Progress of each run.
        on_note: Told in one line when runs are done one by one after all.

    Yields:
        Each run and its record, as soon as that is written.

    Raises:
        OSError: A result could not be written.
    """
    done: set[str] = set()
    notes: list[str] = []
    if len(runs) > 1:
        try:
            for run, record in _together(runs, workspace, on_step):
                done.add(run.id)
                yield run, record
        except _Failed as failure:
            why = f"training {len(runs)} runs together failed: {failure}"
            notes = [f"trained alone: {why}"]
            on_note(f"{why}; {len(runs) - len(done)} of them are done one by one")
        gc.collect()  # models are full of cycles; after a failure their memory is needed at once
    for run in runs:
        if run.id not in done:
            step = functools.partial(on_step, run.id)
            yield run, execute(run, workspace, on_step=step, notes=notes)


def _together(
    runs: Sequence[RunSpec], workspace: Workspace, on_step: OnStepOf
) -> Iterator[tuple[RunSpec, Record]]:
    """As `execute_together`, for more than one run.

    Raises:
        _Failed: Training together fails, or memory does not suffice.
    """
    bases = _Bases()
    by_rows: dict[int, list[tuple[Ending[Prepared], Prepared]]] = {}
    for run in runs:
        ready = attempted(functools.partial(prepare_run, run, workspace, bases.fresh), Diverged)
        _fail_without_memory(ready.error)
        if ready.outcome is None:
            yield run, keep(run, workspace, Ending(ready.started, ready.status, ready.reason))
        else:
            # An attack may add rows: only runs with equally many have steps and epochs in common.
            by_rows.setdefault(len(ready.outcome.train), []).append((ready, ready.outcome))
    for group in by_rows.values():
        members = [prepared for _, prepared in group]
        others = len(members) - 1
        notes = [f"trained together with {others} other{'s' if others > 1 else ''}"] if others else []
        for (ready, prepared), trained in zip(group, _train(bases, members, on_step), strict=True):
            tested = attempted(functools.partial(_test, prepared, trained, workspace, notes), Diverged)
            _fail_without_memory(tested.error)
            ending = Ending(ready.started, tested.status, tested.reason, tested.outcome)
            yield prepared.run, keep(prepared.run, workspace, ending)


class _Bases:
    """One base for several runs. It is loaded for each init seed, which may draw a head, and kept once."""

    def __init__(self) -> None:
        self._loaded: dict[int, tuple[PreTrainedTokenizerBase, PreTrainedModel]] = {}

    @property
    def first(self) -> PreTrainedModel:
        """The base of the first run, whose tensors all runs have where theirs are equal."""
        return next(iter(self._loaded.values()))[1]

    def fresh(self, run: RunSpec, workspace: Workspace) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
        """As `prepare.fresh_model`; only the head is the run's own to change."""
        seed = run.seeds.init
        if seed not in self._loaded:
            tokenizer, model = prepare.fresh_model(run, workspace)
            if self._loaded:
                one_base.tie(model, self.first, heads.find(model).modules)
            self._loaded[seed] = (tokenizer, model)
        tokenizer, model = self._loaded[seed]
        return tokenizer, one_base.twin(model, heads.find(model).modules)


def _train(bases: _Bases, members: Sequence[Prepared], on_step: OnStepOf) -> list[Trained | Diverged]:
    """Train the runs together; a single one by itself, on the weights that it shares.

    Raises:
        _Failed: Whatever went wrong; a run that diverges by itself is no failure.
    """
    ids = [member.run.id for member in members]

    def do() -> list[Trained | Diverged]:
        if len(members) == 1:
            try:
                return [fine_tune(members[0], functools.partial(on_step, ids[0]))]
            except Diverged as error:
                return [error]
        return stacked.fine_tune_together(
            bases.first,
            [
                stacked.Member(
                    model=member.model,
                    train=member.train,
                    order_lengths=member.order_lengths,
                    spec=member.run.training,
                    seed=member.run.seeds.order,
                    loraplus_ratio=adapters.loraplus_ratio(member.run.adapter),
                )
                for member in members
            ],
            members[0].tokenizer,
            max_length=members[0].run.model.request.max_length,
            on_step=lambda number, done, total: on_step(ids[number], done, total),
        )

    trained = attempted(do, Diverged)
    if trained.outcome is None:
        raise _Failed(trained.reason)
    return trained.outcome


def _test(
    prepared: Prepared, trained: Trained | Diverged, workspace: Workspace, notes: Sequence[str]
) -> Outcome:
    if isinstance(trained, Diverged):
        raise trained
    return finish(prepared, trained, trained.seconds, workspace, notes)


def _fail_without_memory(error: Exception | None) -> None:
    """Several runs take more memory than one, so that its want is no mistake of the run that met it.

    Raises:
        _Failed: The error is one of memory.
    """
    told = any(words in str(error) for words in _NO_MEMORY)
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or told:
        assert error is not None
        raise _Failed(in_a_line(error))
