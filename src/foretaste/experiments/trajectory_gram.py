"""What the Gram of an untrained arm says of a pair: M' (TTR paper, Eq. 7) and one step of Eq. 5 (T13)."""

from __future__ import annotations

import copy
import json

import numpy as np
import numpy.typing as npt
from torch import nn
from transformers import PreTrainedTokenizerBase

from foretaste.errors import UserError
from foretaste.experiments.kernel_jobs import OUTPUTS, PRECISIONS, Subject
from foretaste.experiments.trajectory_result import Foretold
from foretaste.indicators import Evidence, read
from foretaste.indicators.evidence import Twin
from foretaste.kernels import Gram, Job, kernels, parse_bytes, trainable
from foretaste.models.encode import Encoded
from foretaste.spec import KernelSpec

Float = npt.NDArray[np.float64]


def changed_rows(clean: Encoded, poisoned: Encoded) -> list[int]:
    """Rows that differ as the model reads them: a trigger behind the last token that is kept changes none.

    Args:
        clean: Training rows.
        poisoned: The same rows after the attack, in the same order.
    """
    pairs = zip(clean.features, poisoned.features, strict=True)
    return [i for i, (a, b) in enumerate(pairs) if a != b]


def foretell(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    clean: Encoded,
    poisoned: Encoded,
    settings: KernelSpec,
    classes: int,
) -> Foretold:
    """M' and the one-step distance of Eq. 5, from the kernel of what the arm trains.

    The kernel is of the rows that poisoning changed and of their poisoned forms, at the clean run's start.
    Where there are more than `settings.train_rows` of them, those that come first stand for all, and the
    training set is taken to be smaller in proportion: then the step is an estimate, and else exact for one
    step of gradient descent on all rows.

    Args:
        model: The arm before training.
        tokenizer: Pads the rows.
        clean: Training rows.
        poisoned: The same rows after the attack.
        settings: Rows, precision and memory.
        classes: Number of classes.

    Raises:
        UserError: No row changed, or the model has no exact kernel.
    """
    changed = changed_rows(clean, poisoned)
    if not changed:
        raise UserError("poisoning changed no row as the model reads it")
    used = changed[: settings.train_rows or len(changed)]
    sides = [rows.features[i] for rows in (clean, poisoned) for i in used]
    inputs = [json.dumps({k: v for k, v in row.items() if k != "labels"}, sort_keys=True) for row in sides]
    places = {text: place for place, text in enumerate(dict.fromkeys(inputs))}
    first = {text: sides[inputs.index(text)] for text in places}
    rows = Encoded([str(i) for i in range(len(first))], list(first.values()), 0)
    name = "margin" if classes == 2 else "logits"
    head, body, values = _grams(model, tokenizer, rows, settings, name)
    order = np.array([places[text] for text in inputs])
    outputs = values.shape[1]
    lines = (order[:, None] * outputs + np.arange(outputs)).reshape(-1)
    labels = np.array([int(row["labels"]) for row in sides])  # type: ignore[arg-type]

    def evidence(kernel: Float) -> Evidence:
        square = kernel[np.ix_(lines, lines)]
        shape = (len(order), outputs, len(order), outputs)
        one = outputs == 1
        twin = Twin(
            kernel=square if one else square.reshape(shape),
            logits=values[order, 0] if one else values[order],
            labels=2 * labels - 1 if one else labels,
            examples=max(len(used), round(len(clean) * len(used) / len(changed))),
        )
        return Evidence(twin=twin)

    whole = evidence(head + body)
    return Foretold(
        m_prime_fro=read("m_prime_fro", whole).value,
        m_prime_op=read("m_prime_op", whole).value,
        m_prime_cosine_fro=read("m_prime_cosine_fro", whole).value,
        one_step=read("one_step", whole).value,
        # A kernel of zeros is refused: where the head alone is trained, the body does not move.
        one_step_body=read("one_step", evidence(body)).value if np.any(body) else 0.0,
        changed=len(changed),
        used=len(used),
    )


def _grams(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    rows: Encoded,
    settings: KernelSpec,
    name: str,
) -> tuple[Float, Float, Float]:
    """Kernel of the head's parameters and of all others, and the outputs, in the order of the rows."""
    dtype = PRECISIONS[settings.precision]
    subject = model if next(model.parameters()).dtype == dtype else copy.deepcopy(model).to(dtype)
    training = subject.training
    subject.train(False)
    try:
        device = next(subject.parameters()).device
        job = Job(
            subject,
            trainable(subject),
            OUTPUTS[name],
            Subject(tokenizer, rows, len(rows), device).inputs(),
            len(rows),
            [Gram("sgd", "group")],
        )
        parts, done = kernels(job, memory=parse_bytes(settings.memory))
    finally:
        subject.train(training)
    size = len(rows) * done.values.shape[1]
    sums = {True: np.zeros((size, size)), False: np.zeros((size, size))}
    for part in parts:
        if part.startswith("sgd/"):
            sums[part == "sgd/head"] += parts[part].train
    return sums[True], sums[False], done.values
