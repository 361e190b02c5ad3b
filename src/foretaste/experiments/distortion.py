"""Kernel distortion of LoRA by rank, on the few-shot rows of a task (Malladi et al. 2023, Theorem D.5)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from foretaste.errors import UserError, unknown
from foretaste.experiments import devices
from foretaste.experiments.fewshot_plan import plan
from foretaste.experiments.run import source_commit, versions
from foretaste.fewshot.adapt import lora_targets
from foretaste.fewshot.distortion import ALPHA, EPSILONS, RANKS, Distortion, measure
from foretaste.fewshot.prepare import prepare
from foretaste.fewshot.solve import inputs_of
from foretaste.fewshot.spec import FewShotSpec, ZeroShot
from foretaste.kernels import Inputs, logits, margin
from foretaste.kernels.lora import Law
from foretaste.record import write_atomic

ROWS = 64
"""Rows by default: those of one split of a binary task with k = 16, training and validation together."""


def distortion(
    spec: FewShotSpec,
    output: Path | None = None,
    *,
    base_dir: Path,
    task: str | None = None,
    rows: int = ROWS,
    ranks: Sequence[int] = RANKS,
    draws: int = 5,
    law: Law = "gaussian",
    alpha: float = ALPHA,
    epsilons: Sequence[float] = EPSILONS,
    on_progress: Callable[[float], None] | None = None,
) -> Distortion:
    """Measure how much of the pretrained model's kernel LoRA keeps, on the rows of the first k and split.

    LoRA adapts every linear layer of the body. The outputs are those of kernel arms: the difference of the
    label words' logits for two classes, else all of them.

    Args:
        spec: A few-shot spec; its arms are not used.
        output: File that the record is written to, as JSON.
        base_dir: Folder that relative paths in the spec start from.
        task: Name of one of the spec's tasks; the first by default.
        rows: Training rows, then validation rows, this many at most.
        ranks: Ascending.
        draws: Of A in every layer.
        law: Of A's entries.
        alpha: Of LoRA.
        epsilons: Errors that are counted, ascending.
        on_progress: Called with the share that is done.

    Raises:
        UserError: The spec does not fit, there is no such task, or as `fewshot.distortion.measure`.
        OSError: The record could not be written.
    """
    if rows < 2:
        raise UserError(f"rows are {rows}: expected at least 2", where="rows")
    devices.refuse_absent({"model.device": spec.model.device})
    planned = plan(spec, base_dir)
    names = [found.name for found in spec.tasks]
    if task is not None and task not in names:
        raise unknown("task", task, names)
    first = next(run for run in planned.runs if task in (None, run.task.name))
    prepared = prepare(first.model_copy(update={"arm": ZeroShot(kind="zero-shot")}), base_dir)
    both = inputs_of([prepared.train, prepared.dev], prepared.pad_token_id, prepared.device)
    count = min(rows, len(both))
    model = prepared.model()
    record = measure(
        model,
        lora_targets(model),
        margin if len(prepared.classes) == 2 else logits,
        Inputs(both.lengths[:count], both.collate),
        name=first.model.request.base,
        rows=f"{first.task.name}, k = {first.k}, split {first.split}: {count} training and validation rows",
        ranks=ranks,
        draws=draws,
        seed=first.split,
        law=law,
        alpha=alpha,
        epsilons=epsilons,
        memory=planned.memory,
        on_progress=on_progress,
    )
    record = record.model_copy(update={"versions": versions(), "commit": source_commit()[0]})
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(output, record.model_dump_json(indent=1))
    return record
