"""How long a few-shot sweep will take: operations over the measured speed of the machine."""

from __future__ import annotations

from collections.abc import Sequence

from foretaste.experiments.estimate import EFFICIENCY, FORWARD, FULL_STEP, PEFT_STEP, gemm_speed
from foretaste.experiments.fewshot_plan import FewShotPlan
from foretaste.fewshot.spec import FewShotRun, FineTune, KernelArm

OVERHEAD = 3.0  # seconds of a run that are none of these
# Of the speed of a large matrix product, what the products of rows' gradients reach.
PRODUCTS = 0.5


def seconds(runs: Sequence[FewShotRun], planned: FewShotPlan) -> float:
    """Expected wall time of the runs one after another, all threads at work.

    Args:
        runs: What is to be done.
        planned: The sizes of the model and of the rows.
    """
    if not runs:
        return 0.0
    speed = gemm_speed()
    tested: set[str] = set()
    total = 0.0
    for run in runs:
        total += operations(run, planned) / speed + OVERHEAD
        if run.task.name not in tested:  # zero-shot, which is kept for the other runs of a task
            tested.add(run.task.name)
            total += _forward(run.task.test_rows, planned.lengths[run.task.name].test, planned) / speed
    return total


def _forward(rows: float, length: float, planned: FewShotPlan) -> float:
    return rows * length * planned.multiplied * FORWARD / EFFICIENCY


def operations(run: FewShotRun, planned: FewShotPlan) -> float:
    """Operations of a run in units of those of a large matrix product.

    Args:
        run: What is to be done.
        planned: The sizes of the model and of the rows.
    """
    arm, length = run.arm, planned.lengths[run.task.name]
    classes = len(run.task.classes)
    few = run.k * classes
    if isinstance(arm, FineTune):
        assert arm.steps is not None
        assert arm.check_every is not None
        per_token = FULL_STEP if arm.adapter in ("full", "intrinsic") else PEFT_STEP
        points = len(arm.learning_rates)
        steps = points * arm.steps * sum(arm.batch_sizes) * length.train * planned.multiplied
        checks = points * len(arm.batch_sizes) * (arm.steps / arm.check_every) * few
        total = steps * per_token / EFFICIENCY + _forward(checks, length.train, planned)
        return total + _forward(run.task.test_rows, length.test, planned)
    if isinstance(arm, KernelArm):
        # One forward pass, and one backward pass for each output; a margin is the one output of two classes.
        outputs = 1 if classes == 2 else classes
        tokens = 2 * few * length.train + run.task.test_rows * length.test
        capture = tokens * planned.multiplied * (FORWARD + outputs * (FULL_STEP - FORWARD)) / EFFICIENCY
        pairs = (few / 2 + few + run.task.test_rows) * few * outputs**2
        return capture + 2.0 * pairs * planned.parameters / PRODUCTS
    return 0.0
