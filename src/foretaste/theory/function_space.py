"""Mini-batch training with a real optimiser, done on outputs alone.

A model that is linear in its parameters moves, in a step that changes parameter p by -eta u_p, by
-eta sum_p g_p(x) u_p. With c_s the derivative of the loss of batch s with respect to the outputs of the
training rows, divided by the rows of the batch, the gradient is sum_i c_si g_ip, and

* SGD: f(x) <- f(x) - eta K(x, X) c_s, exactly, K(x, i) = sum_p g_p(x) g_ip.
* AdamW divides by the root of the second moment v_sp of parameter p. Its pattern over the parameters of a
  group is taken from the start and its size from the run:

      v_sp = rho_s v_p,   v_p = E[(batch gradient of p)^2] at the start,
      f(x) <- f(x) - eta sum over groups of rho_s^(-1/2) D(x, X) m_s,
      D(x, i) = sum_p g_p(x) g_ip / sqrt(v_p),

  with m_s the bias-corrected moving average of c, and rho_s that of c^T D c / sum_p sqrt(v_p), which is 1 on
  average at the start, since E sum_p (batch gradient)^2 / sqrt(v_p) = sum_p sqrt(v_p). So a run costs a
  few products with one kernel and no pass through the model. It is exact where all second moments of a group
  change by one factor, and an approximation where they drift apart.
* Gradients grow where a parameter in front of them grows, which no kernel at the start holds. A group's
  gradients are taken as phi_t times those that were captured:

  - body, everything below the last layer: phi = |w_t| / |w|, w being the last layer's weight where gradients
    were captured. A head that was fitted to noisy labels is short, and grows.
  - A of LoRA, whose gradient is zero at B = 0 and was captured at B = one step of size 1:
    phi = |w_t| / |w| b_t, b_t being the size of B's entries.

  A change of parameter p is sum_i a_i g_ip / sqrt(v_p), a being the summed steps in terms of training
  rows; its root mean square over a group, weighted by sqrt(v_p), is (a^T D a / sum_p sqrt(v_p))^(1/2), which
  gives b_t, and |w_t|^2 as the sum of the squares of the start and of the change, as if they were at right
  angles.

Gradient clipping needs the norm of the gradient, c^T K c.

Sources: Kingma and Ba 2015 (Adam); Malladi et al. 2023, "A Kernel-Based View of Language Model Fine-Tuning",
section 4 (SignGD kernel: Adam without moving averages, v = g^2); the preconditioned kernel with its running
size and the growing part are foretaste's own.

In docs/theory.md: T22.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.special import expit, softmax

from foretaste.errors import UserError
from foretaste.theory.layout import Floats, Ints

Optimiser = Literal["adamw", "sgd"]
BETA1, BETA2 = 0.9, 0.999  # torch.optim.AdamW's own, which Trainer keeps


@dataclass(frozen=True, eq=False)
class Group:
    """Parameters whose second moments change together.

    Attributes:
        scaled: D between R rows and the P rows that can be trained on, the first P; shape (R C, P C).
        root: Sum of the square roots of v over the group.
        ratio: Learning rate of the group over that of the run (LoRA+ has B learn faster).
    """

    scaled: Floats
    root: float
    ratio: float = 1.0


@dataclass(frozen=True, eq=False)
class Tangent:
    """What a run sees of an arm: kernels between R rows and the P rows that can be trained on, the first P.

    Rows have C outputs each (1 for a margin); row i, output c is line i C + c.

    Attributes:
        plain: K of all that is trained, shape (R C, P C).
        body: Everything below the last layer that has a gradient at the start; None if nothing has.
        last: The last layer; None if it is not trained.
        growing: A of LoRA at B = one step of size 1; None for arms without.
        size: Root mean square of the last layer's weight where gradients were captured; 0 if unknown, and its
            growth is then left out.
        outputs: C.
        rest: What stands below the last layer and learns at another rate than `body`; None if nothing does.
        rated: K with the part of each parameter times its learning rate over that of the run, which is the
            kernel that gradient descent follows; None where there is one rate, and it is `plain`.
    """

    plain: Floats
    body: Group | None
    last: Group | None
    growing: Group | None
    size: float
    outputs: int
    rest: Group | None = None
    rated: Floats | None = None

    @property
    def followed(self) -> Floats:
        """The kernel of gradient descent, shape (R C, P C)."""
        return self.plain if self.rated is None else self.rated


@dataclass(frozen=True, eq=False)
class Run:
    """What a run came to.

    Attributes:
        outputs: After the last step, shape (R, C).
        losses: Mean cross-entropy of each batch before its step, shape (T,).
    """

    outputs: Floats
    losses: Floats


def derivative(scores: Floats, labels: Ints) -> Floats:
    """Of the cross-entropy with respect to the outputs.

    Args:
        scores: Shape (B, C); one output is the margin of class 1 over class 0.
        labels: Class ids, shape (B,).

    Returns:
        Shape (B, C).
    """
    if scores.shape[1] == 1:
        chi: Floats = expit(scores) - labels[:, None]
        return chi
    chi = softmax(scores, axis=1)
    chi[np.arange(len(labels)), labels] -= 1.0
    return chi


def cross_entropy(scores: Floats, labels: Ints) -> float:
    """The mean cross-entropy; arguments as `derivative`."""
    if scores.shape[1] == 1:
        signed = np.where(labels == 1, 1.0, -1.0) * scores[:, 0]
        return float(np.mean(np.logaddexp(0.0, -signed)))
    top = scores.max(axis=1)
    log_sum = top + np.log(np.exp(scores - top[:, None]).sum(axis=1))
    return float(np.mean(log_sum - scores[np.arange(len(labels)), labels]))


def decisions(scores: Floats) -> Ints:
    """Class ids: the largest output, or class 1 where the margin is above 0; shape (R,)."""
    chosen = scores[:, 0] > 0 if scores.shape[1] == 1 else scores.argmax(axis=1)
    ids: Ints = chosen.astype(np.int64)
    return ids


def train(
    tangent: Tangent,
    start: Floats,
    rows: npt.ArrayLike,
    labels: npt.ArrayLike,
    batches: Sequence[npt.ArrayLike],
    rates: npt.ArrayLike,
    *,
    optimiser: Optimiser,
    clip: float | None = None,
    size: float | None = None,
) -> Run:
    """Train on the cross-entropy.

    Args:
        tangent: Of the arm.
        start: Outputs of all rows before training, shape (R, C).
        rows: The row of the pool that each training example is, distinct, shape (N,).
        labels: Their class ids as given, shape (N,).
        batches: Training examples of each step, numbers below N.
        rates: Learning rate of each step, shape (T,).
        optimiser: SGD without momentum, or AdamW.
        clip: Largest norm of a gradient; None does not clip.
        size: Root mean square of the last layer's weight at the start, where it is not `tangent.size`.

    Raises:
        UserError: Shapes do not fit, or the outputs overflow (a rate above the stable ones).
    """
    pool, given = np.asarray(rows), np.asarray(labels)
    eta = np.asarray(rates, dtype=np.float64)
    c = tangent.outputs
    trainable = tangent.plain.shape[1] // c
    if start.shape != (tangent.plain.shape[0] // c, c):
        raise UserError(
            f"expected outputs of shape {(tangent.plain.shape[0] // c, c)}, got {start.shape}", where="start"
        )
    if pool.shape != given.shape or (pool.size and (pool.min() < 0 or pool.max() >= trainable)):
        raise UserError(f"expected a row of the pool (0 .. {trainable - 1}) for each label", where="rows")
    if len(batches) != eta.size:
        raise UserError(f"expected a batch for each of {eta.size} rates, got {len(batches)}", where="batches")
    losses = np.empty(eta.size)

    def pull(step: int, f: Floats) -> Floats:
        chosen = np.asarray(batches[step])
        scores = f.reshape(-1, c)
        losses[step] = cross_entropy(scores, given[chosen])
        found: Floats = (derivative(scores, given[chosen]) / chosen.size).reshape(-1)
        return found

    lines = [(pool[np.asarray(batch)][:, None] * c + np.arange(c)).reshape(-1) for batch in batches]
    f = descend(tangent, start.reshape(-1), lines, eta, pull, optimiser=optimiser, clip=clip, size=size)
    return Run(f.reshape(-1, c), losses)


@np.errstate(over="ignore", invalid="ignore")  # an overflow is reported by the outputs, at the end
def descend(
    tangent: Tangent,
    start: Floats,
    lines: Sequence[Ints],
    rates: npt.ArrayLike,
    pull: Callable[[int, Floats], Floats],
    *,
    optimiser: Optimiser,
    clip: float | None = None,
    size: float | None = None,
) -> Floats:
    """Train on any loss, given its derivative.

    Args:
        tangent: Of the arm.
        start: Outputs before training, line by line, shape (R C,).
        lines: For each step, the lines of the outputs that its loss is made of, distinct and below P C.
        rates: Learning rate of each step, shape (T,).
        pull: From the number of a step and the outputs in its lines to the derivatives of its loss.
        optimiser: As in `train`.
        clip: As in `train`.
        size: As in `train`.

    Returns:
        Outputs after the last step, shape (R C,).

    Raises:
        UserError: The outputs overflow (a rate above the stable ones).
    """
    eta = np.asarray(rates, dtype=np.float64)
    f = start.astype(np.float64).copy()
    body, last, growing, rest = (
        None if group is None else _Adam(group)
        for group in (tangent.body, tangent.last, tangent.growing, tangent.rest)
    )
    held = tangent.size if size is None else size
    for step, (columns, rate) in enumerate(zip(lines, eta, strict=True)):
        c = pull(step, f[columns])
        if clip is not None:
            norm = float(np.sqrt(max(float(c @ tangent.plain[np.ix_(columns, columns)] @ c), 0.0)))
            c = c * min(1.0, clip / (norm + 1e-6))  # as torch.nn.utils.clip_grad_norm_
        if optimiser == "sgd":
            f -= rate * (tangent.followed[:, columns] @ c)
            continue
        front = 1.0
        if tangent.size > 0.0 and last is not None:
            front = float(np.hypot(held, last.size)) / tangent.size
        entries = 0.0 if body is None else body.size
        for group, factor in ((body, front), (rest, front), (growing, front * entries), (last, 1.0)):
            if group is not None:
                f -= group.step(columns, c, rate, step, factor)
    if not np.isfinite(f).all():
        raise UserError("the outputs overflow", where="rates", cure="Lower the learning rate.")
    return f


class _Adam:
    """AdamW on one group of parameters, seen from the outputs."""

    def __init__(self, group: Group) -> None:
        self._d, self._root, self._ratio = group.scaled, group.root, group.ratio
        lines, trainable = group.scaled.shape
        self._moved = np.zeros(lines)  # D times the moving average of c, in full
        self._second = 0.0
        # The change of the parameters in terms of training rows, and what it did to their outputs.
        self._average, self._summed, self._wrought = (np.zeros(trainable) for _ in range(3))

    @property
    def size(self) -> float:
        """Root mean square change of a parameter so far."""
        return (
            float(np.sqrt(max(float(self._summed @ self._wrought), 0.0) / self._root))
            if self._root > 0
            else 0.0
        )

    def step(self, columns: Ints, pull: Floats, rate: float, step: int, factor: float) -> Floats:
        """What a step takes from the outputs; gradients are `factor` times those that were captured."""
        d = self._d[:, columns]
        moment = max(float(pull @ d[columns] @ pull), 0.0) * factor**2
        self._second = BETA2 * self._second + (1.0 - BETA2) * moment
        self._moved = BETA1 * self._moved + (1.0 - BETA1) * factor * (d @ pull)
        self._average *= BETA1
        self._average[columns] += (1.0 - BETA1) * factor * pull
        if self._second <= 0.0 or self._root <= 0.0:
            return np.zeros_like(self._moved)
        rho = self._second / (1.0 - BETA2 ** (step + 1)) / self._root
        length = self._ratio * rate / np.sqrt(rho) / (1.0 - BETA1 ** (step + 1))
        self._summed += length * self._average
        self._wrought += length * self._moved[: len(self._wrought)]
        taken: Floats = factor * length * self._moved
        return taken
