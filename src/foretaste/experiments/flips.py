"""The worst case by a kernel: which labels it says to flip, and how far no flips can push its predictor.

The list of named flips is the input of the attack `adversarial-flip`, with which a run really trains. What is
exact here is so for the kernel predictor; for the network that it stands for it is a prediction.

In docs/theory.md: T15 and T16.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from foretaste.attacks.adversarial_flip import NamedFlips
from foretaste.errors import UserError
from foretaste.record import Certified, HeadFollows, write_atomic
from foretaste.specfile import validate
from foretaste.theory.certificates import certified_accuracy, certify, greedy_attack
from foretaste.theory.flow import LinearPredictor
from foretaste.theory.label_noise import draw_flips, drawn_accuracy, exact_moments, normal_accuracy

DRAWS = 400
"""Draws of random flips for more than two classes: the error of a share of M rows is below 0.5 / sqrt(DRAWS)
even if all rows fell together."""


def name_flips(
    predictor: LinearPredictor,
    labels: npt.ArrayLike,
    eval_labels: npt.ArrayLike,
    ids: Sequence[str],
    flips: int,
) -> list[tuple[str, int]]:
    """Training rows to flip, worst first, by `certificates.greedy_attack`.

    The greedy path for `flips` rows is taken once and its order kept, so that the sets of all smaller amounts
    are nested. For a smaller amount a path of its own can do a little better.

    Args:
        predictor: Linear in the labels of the N training rows, for M held-out training rows; never test rows.
        labels: Of the training rows, shape (N,): -1 and +1 for a margin, else 0 .. C - 1.
        eval_labels: Of the held-out rows, shape (M,), alike.
        ids: Of the training rows, N of them.
        flips: Rows wanted, in 1 .. N.

    Returns:
        Row ids and new class ids (a margin's -1 is class 0, its +1 is class 1): `flips` of them, or fewer
        where no further flip lowers the soft count of right decisions; the attack refuses larger amounts.

    Raises:
        UserError: A size or a label does not fit, or `flips` is out of range.
    """
    if len(ids) != predictor.layout.examples:
        raise UserError(f"expected {predictor.layout.examples} row ids, got {len(ids)}", where="ids")
    if flips < 1:
        raise UserError(f"expected 1 .. {predictor.layout.examples} flips, got {flips}", where="flips")
    attack = greedy_attack(predictor, labels, eval_labels, flips=flips)
    classes = (attack.labels + 1) // 2 if predictor.layout.classes is None else attack.labels
    return [(ids[row], int(label)) for row, label in zip(attack.rows, classes, strict=True)]


def certified_curve(
    predictor: LinearPredictor,
    labels: npt.ArrayLike,
    eval_labels: npt.ArrayLike,
    flips: Sequence[int],
    *,
    head: HeadFollows,
    rng: np.random.Generator | None = None,
) -> list[Certified]:
    """Certified accuracy under any m flips, beside the accuracy under m found and under m random ones.

    `share` is exact: each held-out row against the m flips that are worst for it, which no one set of flips
    need reach. `found` is reached, by at most m flips of `certificates.greedy_attack`. What is worst for
    all rows together lies between the two. `random` is the mean over
    all sets of m flips: for two classes from the exact mean and variance of each output by the normal law,
    else over `DRAWS` draws.

    Args:
        predictor: Linear in the labels of the N training rows, for M held-out training rows; never test rows.
        labels: Of the training rows, shape (N,): -1 and +1 for a margin, else 0 .. C - 1.
        eval_labels: Of the held-out rows, shape (M,), alike.
        flips: Numbers of flipped rows m, each in 0 .. N.
        head: What the predictor's head does when labels are flipped; it is said in the record.
        rng: Source of the draws; needed for more than two classes, unused for two.

    Raises:
        UserError: A size or a label does not fit, a number of flips is out of range, or the generator is
            missing.
    """
    m = np.asarray(flips)
    classes = predictor.layout.classes
    if classes is None or classes == 2:
        random = normal_accuracy(exact_moments(predictor, labels, m), eval_labels)
    elif rng is None:
        raise UserError("more than two classes need a generator", where="rng")
    else:
        draws = draw_flips(labels, classes, draws=DRAWS, rng=rng)
        random = drawn_accuracy(predictor, draws, eval_labels, m).mean
    share = certified_accuracy(certify(predictor, labels), eval_labels, m)
    path = greedy_attack(predictor, labels, eval_labels, flips=int(m.max())).accuracy
    found = np.minimum.accumulate(path)[np.minimum(m, len(path) - 1)]
    return [
        Certified(flips=int(count), share=float(sure), found=float(one), random=float(mean), head=head)
        for count, sure, one, mean in zip(m, share, found, random, strict=True)
    ]


def write(
    path: Path,
    *,
    arm: str,
    kernel: str,
    classes: Sequence[str],
    data: str,
    flips: Sequence[tuple[str, int]],
) -> NamedFlips:
    """Write named flips for the attack `adversarial-flip`, atomically.

    Args:
        path: JSON file; an existing one is replaced.
        arm: Whose kernel named them.
        kernel: What kernel and budget that was, for a reader.
        classes: Class names in the order of their ids.
        data: Fingerprint of the data set.
        flips: Row ids and new class ids, worst first, as from `name_flips`.

    Raises:
        UserError: There is no flip, a row is named twice, or a label is no class.
    """
    content = {
        "arm": arm,
        "kernel": kernel,
        "classes": list(classes),
        "data": data,
        "flips": [{"id": name, "label": label} for name, label in flips],
    }
    named = validate(content, NamedFlips, origin=str(path))
    write_atomic(path, named.model_dump_json(indent=1) + "\n")
    return named
