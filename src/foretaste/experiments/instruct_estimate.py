"""How long a sweep of a generative model will take: operations over the measured speed of the machine."""

from __future__ import annotations

from collections.abc import Sequence

from foretaste.experiments.estimate import EFFICIENCY, FORWARD, FULL_STEP, PEFT_STEP, gemm_speed
from foretaste.experiments.instruct_plan import InstructPlan
from foretaste.instruct.spec import CLEAN, HELD_OUT, InstructRun
from foretaste.models.catalogue import FULL
from foretaste.training import trainer

# Of the speed of a large matrix product, what a batch of single tokens reaches: it reads all weights for few
# rows.
DECODING = 0.15
OVERHEAD = 4.0  # seconds of a run that are none of these


def seconds(runs: Sequence[InstructRun], planned: InstructPlan) -> float:
    """Expected wall time of the runs one after another, all threads at work, every response of full length.

    Args:
        runs: What is to be done.
        planned: The sizes of the models, rows and prompts.
    """
    if not runs:
        return 0.0
    speed = gemm_speed()
    return sum(_operations(run, planned) / speed + OVERHEAD for run in runs)


def _operations(run: InstructRun, planned: InstructPlan) -> float:
    """Operations of a run in units of those of a large matrix product."""
    parameters = planned.sizes[run.arm][1]
    rows = run.data.train_rows
    total = 0.0
    if run.tuning is not None:
        training = run.tuning.training
        steps = trainer.planned_steps(training, rows)
        seen = steps * training.batch_size * training.gradient_accumulation
        length = planned.train_tokens / rows
        if training.padding == "max_length":
            length = run.model.request.max_length
        per_token = FULL_STEP if run.tuning.adapter.method == FULL else PEFT_STEP
        total += seen * length * per_token / EFFICIENCY
    sets = [CLEAN, *(trigger.name for trigger in run.triggers), HELD_OUT]
    prompts = [length for name in sets for length in planned.prompt_tokens.get(name, [])]
    total += sum(prompts) * FORWARD / EFFICIENCY
    total += len(prompts) * run.generation.max_new_tokens * FORWARD / DECODING
    return total * parameters
