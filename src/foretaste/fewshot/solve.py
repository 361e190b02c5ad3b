"""Kernel arms: the kernel of the pretrained model, a solver, and a grid chosen on validation rows alone.

Malladi et al. 2023, App. A.3 and Table 4. The kernel is that of the parameters that the same arm of
fine-tuning would train, before its first step. Rows: the training rows in the columns, the training,
validation and test rows in the rows. Test rows are classified once, by the chosen setting.

Outputs: two classes have one, the difference of their label words' logits (class 1 minus class 0, labels -1
and +1), as in the paper's code. The sign kernels are only exact for one output (Theorem 4.3, whose proof
needs sgn(chi g) = sgn(chi) sgn(g)), logistic regression is the same with one output as with two, and ridge
regression then fits the margin, at a quarter of the kernel's cost. More classes have all their logits as
outputs and a kernel of CN x CN entries.

f_PT, the logits of the pretrained model, takes part as `theory.selection` says: in ridge, asymmetric and
least-squares regression for finite f0, in logistic regression as offset, in the SVM not at all.
"""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from torch import nn

from foretaste.fewshot.adapt import attach, lora_targets
from foretaste.fewshot.prepare import Prepared
from foretaste.fewshot.record import ArmResult, GridPoint, Setting
from foretaste.fewshot.scores import score, scorer
from foretaste.fewshot.spec import KernelArm, KernelKind
from foretaste.kernels import (
    Gram,
    Inputs,
    Job,
    Weighted,
    kernels,
    linear_weights,
    margin,
    parse_bytes,
    trainable,
)
from foretaste.kernels import logits as all_logits
from foretaste.kernels.compute import Product
from foretaste.kernels.gram import Kind
from foretaste.kernels.store import CHECKSUM, disk_error
from foretaste.locks import locked
from foretaste.models.prompt_encode import EncodedPrompts, collate
from foretaste.record import write_atomic
from foretaste.spec import digest
from foretaste.theory.asymmetric import AsymmetricFit, LeastSquaresFit
from foretaste.theory.layout import Floats, Ints
from foretaste.theory.logistic import LogisticFit
from foretaste.theory.lora_width import PEFT_K
from foretaste.theory.predictor import KernelFit, classify
from foretaste.theory.regression import RidgeFit
from foretaste.theory.selection import GridPoint as Setpoint
from foretaste.theory.selection import (
    Rows,
    Score,
    Selection,
    select_asymmetric,
    select_least_squares,
    select_logistic,
    select_ridge,
    select_svm,
)
from foretaste.theory.svm import SvmFit, classify_svm
from foretaste.training.trainer import OnStep

KINDS: dict[KernelKind, Kind] = {"sgd": "sgd", "signgd": "sign", "asymmetric": "asymmetric"}
PROGRESS_STEPS = 1000
PARTS = "parts"  # of a kernel that is not yet whole
DTYPES = {"float32": torch.float32, "float64": torch.float64}
EXPECTED = "expected"

VALUES, MATRICES = "done.json", "kernel.safetensors"


@dataclass(frozen=True, eq=False)
class Computed:
    """A kernel and the outputs of the pretrained model.

    Attributes:
        train: Against the training rows: shape (N, N), or (N, C, N, C) for C > 2 classes.
        dev: Shape (D, N) or (D, C, N, C).
        test: Shape (M, N) or (M, C, N, C).
        outputs: f_PT of training, validation and test rows, shape (N + D + M,) or (N + D + M, C).
        parameters: Number of parameters that the kernel is over.
        unused: Names of those that no output depends on.
        explicit: Names of those that were differentiated one row at a time.
        reused: Whether another arm had computed it.
    """

    train: Floats
    dev: Floats
    test: Floats
    outputs: Floats
    parameters: int
    unused: list[str]
    explicit: list[str]
    reused: bool = False


def solve(
    prepared: Prepared,
    *,
    memory: str | int = "4GiB",
    folder: Path | None = None,
    on_step: OnStep | None = None,
) -> ArmResult:
    """Do a kernel arm: compute the kernel, search the grid on validation rows, classify test rows once.

    Args:
        prepared: Of a run whose arm is a kernel.
        memory: Budget of the kernel for everything beside the model.
        folder: Where kernels are kept, each under the hash of what decides it: a call that was stopped goes
            on, and arms with other solvers on the same kernel find it there. None keeps nothing.
        on_step: Called with thousandths of the kernel that are done, and 1000.

    Raises:
        UserError: The adapter does not fit the model, the memory budget is too small or no amount of memory,
            the kernel is zero, or a solver refuses it.
        OSError: The kernel could not be written.
    """
    run, arm = prepared.run, prepared.run.arm
    assert isinstance(arm, KernelArm)
    found = kernel_of(prepared, memory=parse_bytes(memory), folder=folder, on_step=on_step)
    n, d = len(prepared.train), len(prepared.dev)
    binary = found.train.ndim == 2
    labels = [_targets(rows.labels, binary) for rows in (prepared.train, prepared.dev)]
    train = Rows(found.train, labels[0], found.outputs[:n])
    dev = Rows(found.dev, labels[1], found.outputs[n : n + d])
    metric = run.task.metric
    by_class = scorer(metric)

    def value(truth: Ints, guess: Ints) -> float:
        return by_class(_classes(truth, binary), _classes(guess, binary))

    selection = select(arm, train, dev, value)
    predictions = _classes(_predict(selection.fit, found.test, found.outputs[n + d :]), binary)
    chosen = _classes(_predict(selection.fit, found.dev, found.outputs[n : n + d]), binary)
    test = score(metric, prepared.test.labels, predictions)
    best = [row is selection.best for row in selection.table].index(True)
    grid = [
        GridPoint(
            settings=_settings(row.point),
            dev_score=row.score,
            test_score=test.value if number == best else None,
            warning=row.warning,
        )
        for number, row in enumerate(selection.table)
    ]
    return ArmResult(
        dev=score(metric, prepared.dev.labels, chosen),
        test=test,
        predictions=predictions,
        grid=grid,
        selected=best,
        trainable_parameters=found.parameters,
        facts=_facts(selection, found, prepared),
        notes=_notes(arm, found),
    )


# --- the kernel ----------------------------------------------------------------------------------


def kernel_of(
    prepared: Prepared,
    *,
    memory: int,
    folder: Path | None = None,
    on_step: OnStep | None = None,
) -> Computed:
    """The kernel of a kernel arm's run; arguments and errors as in `solve`."""
    if folder is None:
        return _compute(prepared, memory, None, on_step)
    place = folder / key_of(prepared)
    place.mkdir(parents=True, exist_ok=True)
    with locked(place / ".lock"):
        kept = _read(place)
        if kept is not None:
            return kept
        made = _compute(prepared, memory, place, on_step)
        _write(made, place)
    return made


def key_of(prepared: Prepared) -> str:
    """Hash of all that decides a kernel: weights, tokens, label words, kind, parameters, precision."""
    run, arm = prepared.run, prepared.run.arm
    assert isinstance(arm, KernelArm)
    adapter: dict[str, Setting] = {"adapter": arm.adapter}
    if arm.adapter == "lora":
        adapter |= {"rank": arm.rank, "alpha": arm.alpha, "expected": arm.expected}
    if arm.adapter == "intrinsic":
        adapter |= {"dimension": arm.dimension}
    drawn = arm.adapter == "intrinsic" or (arm.adapter == "lora" and not arm.expected)
    return digest(
        {
            "model": run.model.model_dump(mode="json"),
            "prompt": run.task.prompt.fingerprint,
            "words": run.task.prompt.words,
            "classes": len(prepared.classes),
            "output": prepared.output,
            "labels": prepared.train.labels if prepared.output == "standard" else [],
            "rows": [
                [rows.input_ids, rows.answer_positions]
                for rows in (prepared.train, prepared.dev, prepared.test)
            ],
            "kernel": arm.kernel,
            "precision": arm.precision,
            "adapter": adapter,
            "seed": run.split if drawn else None,
        }
    )[:16]


def _compute(prepared: Prepared, memory: int, folder: Path | None, on_step: OnStep | None) -> Computed:
    arm = prepared.run.arm
    assert isinstance(arm, KernelArm)
    model = prepared.model().to(DTYPES[arm.precision])
    job = job_of(model, arm, prepared, seed=prepared.run.split)
    parts, done = kernels(
        job,
        memory=memory,
        folder=None if folder is None else folder / PARTS,
        on_progress=None if on_step is None else _thousandths(on_step),
    )
    total = parts.total(EXPECTED if arm.expected else KINDS[arm.kernel])
    n, d, m, c = len(prepared.train), len(prepared.dev), len(prepared.test), done.probe.outputs
    split = d * c

    def shaped(matrix: Floats, rows: int) -> Floats:
        return matrix if c == 1 else matrix.reshape(rows, c, n, c)

    return Computed(
        train=shaped(total.train, n),
        dev=shaped(total.test[:split], d),
        test=shaped(total.test[split:], m),
        outputs=done.values[:, 0] if c == 1 else done.values,
        parameters=sum(int(np.prod(p.shape)) for p in job.parameters),
        unused=done.probe.unused,
        explicit=[p.name for p in done.probe.parameters if p.form == "explicit"],
    )


def job_of(model: nn.Module, arm: KernelArm, prepared: Prepared, *, seed: int) -> Job:
    """The work of one arm's kernel.

    Args:
        model: The pretrained classifier; changed in place by the adapter.
        arm: Says which parameters and which kernel.
        prepared: Rows and outputs.
        seed: The init seed, of LoRA's A and of the random subspace.

    Raises:
        UserError: The adapter does not fit the model.
    """
    outputs = margin if len(prepared.classes) == 2 else all_logits
    inputs = inputs_of([prepared.train, prepared.dev, prepared.test], prepared.pad_token_id, prepared.device)
    if arm.expected:
        targets = linear_weights(model, lora_targets(model))  # type: ignore[arg-type]
        names = {p.name for p in targets}
        # A standard head is trained whole beside LoRA, a prompt has nothing new.
        others = [p for p in trainable(model) if p.group == "head" and prepared.output == "standard"]
        factor = (arm.alpha / arm.rank) ** 2 * arm.rank * PEFT_K
        factors = {p.name: factor / p.fan_in for p in targets if p.fan_in}
        product: Product = Weighted(EXPECTED, factors)
        parameters = [*targets, *(p for p in others if p.name not in names)]
        return Job(model, parameters, outputs, inputs, len(prepared.train), [product])
    attached = attach(model, arm, seed=seed)  # type: ignore[arg-type]
    return Job(attached, trainable(attached), outputs, inputs, len(prepared.train), [Gram(KINDS[arm.kernel])])


def inputs_of(
    sets: Sequence[EncodedPrompts], pad_token_id: int, device: torch.device | str = "cpu"
) -> Inputs:
    """Several sets of rows behind each other as what kernels are computed of."""
    whole = EncodedPrompts(
        ids=[i for rows in sets for i in rows.ids],
        input_ids=[tokens for rows in sets for tokens in rows.input_ids],
        answer_positions=[place for rows in sets for place in rows.answer_positions],
        labels=[label for rows in sets for label in rows.labels],
        cut=[i for rows in sets for i in rows.cut],
    )
    return Inputs(whole.lengths, lambda numbers: collate(whole, list(numbers), pad_token_id, device))


def _thousandths(on_step: OnStep) -> Callable[[float], None]:
    def report(share: float) -> None:
        on_step(round(PROGRESS_STEPS * share), PROGRESS_STEPS)

    return report


def _write(made: Computed, place: Path) -> None:
    """Keep a kernel in place of its parts; the small file comes last and says that the large one is whole."""
    partial = place / f"{MATRICES}.partial"
    matrices = {
        name: np.ascontiguousarray(getattr(made, name)) for name in ("train", "dev", "test", "outputs")
    }
    try:
        save_file(matrices, partial)
    except SafetensorError as error:
        raise disk_error(error, partial) from error
    partial.replace(place / MATRICES)
    about = {"parameters": made.parameters, "unused": made.unused, "explicit": made.explicit}
    write_atomic(place / VALUES, json.dumps({**about, CHECKSUM: _checksum(matrices)}, indent=1))
    shutil.rmtree(place / PARTS, ignore_errors=True)


def _read(place: Path) -> Computed | None:
    """A kernel that was kept; None where there is none, or a damaged one, which is then made again."""
    try:
        about = json.loads((place / VALUES).read_text())
        matrices: dict[str, Any] = dict(load_file(place / MATRICES))
        if about.pop(CHECKSUM, None) != _checksum(matrices):
            return None
        return Computed(**matrices, **about, reused=True)
    except (OSError, ValueError, TypeError, AttributeError, SafetensorError):
        return None


def _checksum(matrices: Mapping[str, Floats]) -> str:
    """CRC-32 over names and values."""
    total = 0
    for name, matrix in sorted(matrices.items()):
        total = zlib.crc32(np.ascontiguousarray(matrix).data, zlib.crc32(name.encode(), total))
    return f"{total:08x}"


# --- the solvers ---------------------------------------------------------------------------------

Fit = KernelFit | SvmFit
Found = (
    Selection[RidgeFit]
    | Selection[LogisticFit]
    | Selection[SvmFit]
    | Selection[AsymmetricFit]
    | Selection[LeastSquaresFit]
)


def select(arm: KernelArm, train: Rows, dev: Rows, value: Score) -> Found:
    """Search the arm's grid with its solver, on validation rows.

    Args:
        arm: Resolved: solver and grids are given.
        train: Training rows.
        dev: Validation rows.
        value: What the best is judged by.

    Raises:
        UserError: The solver refuses the kernel.
    """
    strengths, scales = arm.regularisations, arm.scale_values
    match arm.solver:
        case "ridge":
            return select_ridge(train, dev, regularisations=strengths, scales=scales, score=value)
        case "logistic":
            return select_logistic(train, dev, regularisations=strengths, score=value)
        case "svm":
            return select_svm(train, dev, regularisations=strengths, score=value)
        case "asymmetric":
            return select_asymmetric(
                train, dev, regularisations=strengths, scales=scales, gammas=arm.gammas, score=value
            )
        case "least-squares":
            return select_least_squares(train, dev, regularisations=strengths, scales=scales, score=value)
        case None:
            raise ValueError("the arm is not resolved: it names no solver")


def _predict(fit: Fit, cross: Floats, pretrained: Floats) -> Ints:
    return classify_svm(fit, cross) if isinstance(fit, SvmFit) else classify(fit, cross, pretrained)


def _targets(labels: Sequence[int], binary: bool) -> Ints:
    """Labels as the solvers take them: -1 and +1 for one output, class ids for several."""
    ids = np.asarray(labels, dtype=np.int64)
    return 2 * ids - 1 if binary else ids


def _classes(labels: npt.NDArray[np.int64], binary: bool) -> list[int]:
    """Class ids from labels as the solvers give them."""
    return [int(label) for label in ((labels + 1) // 2 if binary else labels)]


def _settings(point: Setpoint) -> dict[str, Setting]:
    """What of a setting the solver has, inf as a word that JSON knows."""
    values = {"regularisation": point.regularisation, "scale": point.scale, "gamma": point.gamma}
    return {name: "inf" if np.isinf(v) else v for name, v in values.items() if not np.isnan(v)}


def _facts(selection: Found, found: Computed, prepared: Prepared) -> dict[str, float]:
    size = int(np.sqrt(found.train.size))
    matrix = found.train.reshape(size, size)
    facts = {
        "tied_points": float(sum(row.score == selection.best.score for row in selection.table)),
        "warned_points": float(sum(row.warning is not None for row in selection.table)),
        "operator_norm": float(np.linalg.norm(matrix, 2)),
        "unused_parameters": float(len(found.unused)),
    }
    fit = selection.fit
    if isinstance(fit, AsymmetricFit):
        facts |= {"condition": fit.condition, "dropped_directions": float(fit.dropped)}
    elif isinstance(fit, SvmFit):
        facts["support_vectors"] = float(fit.support.size)
    elif isinstance(fit, RidgeFit | LeastSquaresFit):
        facts["rank"] = float(fit.rank)
    if prepared.probe_accuracy is not None:
        facts["probe_accuracy"] = prepared.probe_accuracy
    return {name: value for name, value in facts.items() if np.isfinite(value)}


def _notes(arm: KernelArm, found: Computed) -> list[str]:
    notes = []
    if arm.adapter == "lora" and arm.kernel == "signgd":
        notes.append(
            "the sign kernel of LoRA is taken at B = 0, where A's gradients are zero and have no vote; at "
            "any other B all of them would have one"
        )
    if found.explicit and arm.adapter != "intrinsic":
        notes.append(f"{len(found.explicit)} parameters were differentiated one row at a time")
    if found.reused:
        notes.append("the kernel was computed by an earlier run")
    return notes
