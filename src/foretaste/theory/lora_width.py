"""LoRA at infinite width: mean and variance over A of its kernel, per layer and for a whole network.

LoRA: h = W_0 x + s B A x, B = 0, A of r x n with independent entries of variance k / n, in both
parametrisations on the effective weight. Its kernel s^2 <delta, delta'> <A a, A a'> is exact at any width and
random in A, with mean c times that of the effective weight, c = s^2 r k / n. At a fixed rank it stays random
in the limit, s^2 P_l o Wishart_r(k q^l), so Theorem 2.1 ("deterministic") does not cover it.

The recursion that gives q^l and P_l is in `infinite_width.py`.

In docs/theory.md: T3 to T5.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from foretaste.errors import UserError
from foretaste.theory.activations import Activation
from foretaste.theory.infinite_width import LayerKernels, Pieces, printed_layers, summed, whole
from foretaste.theory.layout import Floats, at_least, real

PEFT_K = 1 / 3
"""k of peft's own start: kaiming_uniform with a = sqrt 5, so that Var(A_ij) = k / n_in with k = 1/3."""


@dataclass(frozen=True)
class Adapter:
    """LoRA on one linear layer, B = 0.

    Attributes:
        rank: r >= 1.
        k: n times the variance of A's entries, > 0. peft's default is 1/3: kaiming_uniform(a=sqrt 5).
        scaling: s > 0, see `lora_scaling` and `rslora_scaling`; the TTR paper's formulas have s = 1.
        kurtosis: Excess kurtosis of A's entries, >= -2: 0 for normal, -6/5 for uniform entries.

    Raises:
        UserError: A number is out of its range.
    """

    rank: int
    k: float
    scaling: float
    kurtosis: float

    def __post_init__(self) -> None:
        whole(self.rank, "rank")
        at_least(self.k, 0.0, "k", strict=True)
        at_least(self.scaling, 0.0, "scaling", strict=True)
        at_least(self.kurtosis, -2.0, "kurtosis")

    def scale_factor(self, width: int) -> float:
        """The scale factor c = s^2 r k / n: mean kernel of the adapter over the kernel of the whole weight.

        Args:
            width: n, in_features of the layer.

        Raises:
            UserError: The rank is above the width.
        """
        self.check(width)
        return self.scaling**2 * self.rank * self.k / width

    def check(self, width: int) -> None:
        """Refuse a rank above the layer's in_features.

        Raises:
            UserError: It is.
        """
        whole(width, "width")
        if self.rank > width:
            raise UserError(f"expected a rank up to in_features = {width}, got {self.rank}", where="rank")


@dataclass(frozen=True, eq=False)
class Moments:
    """Mean and variance over A of a LoRA kernel.

    Attributes:
        mean: Shape (N, M).
        variance: Shape (N, M).
    """

    mean: Floats
    variance: Floats


# --- scalings, and the kernels of a network ------------------------------------------------------


def lora_scaling(rank: int, alpha: float) -> float:
    """The scaling s = alpha / r (Hu et al. 2022, peft's default); alpha = r, the TTR sweep, gives 1.

    Raises:
        UserError: The rank or alpha is not positive.
    """
    return at_least(alpha, 0.0, "alpha", strict=True) / whole(rank, "rank")


def rslora_scaling(rank: int, alpha: float) -> float:
    """The scaling s = alpha / sqrt(r) of rank-stabilised LoRA (Kalajdzievski 2023).

    Raises:
        UserError: The rank or alpha is not positive.
    """
    return at_least(alpha, 0.0, "alpha", strict=True) / math.sqrt(whole(rank, "rank"))


def unadapted(layers: LayerKernels, adapters: Mapping[int, Adapter], *, biases_trained: bool) -> list[Floats]:
    """Kernels of the layers without an adapter, for networks that train them in full beside the adapters.

    With one adapter, on the last layer, this is the paper's assumption OOLD (3.2): only this layer differs.

    Args:
        layers: Of full fine-tuning, in the wanted parametrisation.
        adapters: By layer, 1 .. L.
        biases_trained: Whether these layers' biases are trained too; an adapted layer's never is, as in peft
            with bias="none".

    Raises:
        UserError: An adapter's layer does not exist.
    """
    _layers(adapters, len(layers.weights))
    free = [i for i in range(len(layers.weights)) if i + 1 not in adapters]
    kernels = [layers.weights[i] for i in free]
    return [*kernels, *(layers.biases[i] for i in free)] if biases_trained else kernels


def lora_mean(pieces: Pieces, adapters: Mapping[int, Adapter], trained: Iterable[Floats] = ()) -> Floats:
    """Mean over A of the NTK at B = 0: sum of s^2 r k q^l o P_l, and of what else is trained.

    Args:
        pieces: Of the network.
        adapters: By layer, 1 .. L; layer 1 reads the inputs.
        trained: Kernels of the parameters trained outright: `unadapted(...)`, or the biases of chosen layers.
            Everything else is frozen, so none means adapters alone.

    Returns:
        Shape (N, M).

    Raises:
        UserError: There is no adapter, its layer does not exist, or its rank is above n_0 in layer 1.
    """
    _adapters(adapters, pieces)
    return summed(
        [
            *(
                a.scaling**2 * a.rank * a.k * pieces.q[i - 1] * pieces.backward[i - 1]
                for i, a in adapters.items()
            ),
            *trained,
        ]
    )


def lora_variance(pieces: Pieces, adapters: Mapping[int, Adapter]) -> Floats:
    """Variance over A, at fixed ranks, of the limiting NTK; what else is trained adds none.

    Of layer l: s^4 r k^2 P_l^2 (q_ii q_jj + q_ij^2 + kurtosis sum_p x_p^2 x'_p^2 / n^2), independent between
    layers. The last term is of order 1/n, so only layer 1, whose width is finite, has it. A diagonal entry
    under normal A has the relative standard deviation sqrt(2 / r).

    Args:
        pieces: Of the network.
        adapters: By layer, 1 .. L.

    Returns:
        Shape (N, M).

    Raises:
        UserError: There is no adapter, its layer does not exist, or its rank is above n_0 in layer 1.
    """
    _adapters(adapters, pieces)
    variances = []
    for layer, a in adapters.items():
        i = layer - 1
        spread = np.multiply.outer(pieces.q_rows[i], pieces.q_columns[i]) + pieces.q[i] ** 2
        if layer == 1:
            spread = spread + a.kurtosis * pieces.quartic
        variances.append(a.scaling**4 * a.rank * a.k**2 * pieces.backward[i] ** 2 * spread)
    return summed(variances)


def lora_moments(gradients: npt.ArrayLike, adapter: Adapter, other: npt.ArrayLike | None = None) -> Moments:
    """Mean and variance over A of one layer's LoRA kernel, exact at any width and for any token count.

    K = s^2 tr(A M A^T) with M = G^T G'. With sigma^2 = k / n and sym M = (M + M^T) / 2,

        mean = s^2 r sigma^2 tr M = c <G, G'>,
        variance = s^4 r sigma^4 (2 |sym M|_F^2 + kurtosis sum_p M_pp^2).

    Args:
        gradients: G, of N outputs (examples, or logits of examples) by the effective weight, (N, m, n).
        adapter: Of this layer.
        other: G' of the columns, shape (M, m, n); `gradients` itself when not given.

    Raises:
        UserError: Shapes do not fit, a value is not finite, or the rank is above n.
    """
    g = real(gradients, "gradients")
    h = g if other is None else real(other, "other")
    for name, array in (("gradients", g), ("other", h)):
        if array.ndim != 3 or array.shape[1:] != g.shape[1:] or 0 in array.shape:
            raise UserError(f"expected shape (N, m, n), got {array.shape}", where=name)
    n = g.shape[2]
    mean = adapter.scale_factor(n) * np.einsum("iap,jap->ij", g, h)
    spread = np.empty_like(mean)
    squares = np.einsum("jap,jbp->jab", h, h)
    for i, one in enumerate(g):
        # 2 |sym M|^2 = |M|^2 + tr M^2, and both are traces of m x m matrices: |M|^2 = <G G^T, G' G'^T>,
        # tr M^2 = tr (G' G^T)^2. M itself is n x n.
        mixed = np.einsum("jap,bp->jab", h, one)
        norms = np.einsum("ab,jab->j", one @ one.T, squares) + np.einsum("jab,jba->j", mixed, mixed)
        diagonal = np.einsum("ap,jap->jp", one, h)
        spread[i] = norms + adapter.kurtosis * (diagonal**2).sum(axis=1)
    return Moments(mean, adapter.scaling**4 * adapter.rank * (adapter.k / n) ** 2 * spread)


# --- as the paper prints it ----------------------------------------------------------------------


def lora_ntk_as_printed(
    x: npt.ArrayLike,
    other: npt.ArrayLike | None = None,
    *,
    activation: Activation,
    widths: Sequence[int],
    rank: int,
    k: float,
) -> Floats:
    """Mean over A of the TTR paper's Lemma 3.1 (Eq. 14), to the letter: layer 1 in full, LoRA above, s = 1.

    Sigma_LoRA^l = phi^T A^T A phi has the mean r sigma^2 Sigma^l, with sigma^2 = k / n_{l-1}.

    Args:
        x: Inputs, shape (N, n_0).
        other: Inputs, shape (M, n_0); `x` itself when not given.
        activation: The paper's sigma.
        widths: n_0 .. n_{L-1}.
        rank: r, in every layer but the first.
        k: n times the variance of A's entries.

    Returns:
        Shape (N, M).

    Raises:
        UserError: See `ntk_as_printed`; or `k` is not positive, or the rank is above a width.
    """
    first, *above = printed_layers(x, other, activation, widths)
    adapter = Adapter(rank, k, scaling=1.0, kurtosis=0.0)
    return summed([first, *(adapter.scale_factor(n) * K for n, K in zip(widths[1:], above, strict=True))])


# --- checks --------------------------------------------------------------------------------------


def _layers(adapters: Mapping[int, Adapter], depth: int) -> None:
    wrong = sorted(set(adapters) - set(range(1, depth + 1)))
    if wrong:
        raise UserError(f"expected layers 1 .. {depth}, got {wrong}", where="adapters")
    if not adapters:
        raise UserError("no layer has an adapter", where="adapters", cure="Use full_kernel instead.")


def _adapters(adapters: Mapping[int, Adapter], pieces: Pieces) -> None:
    _layers(adapters, pieces.depth)
    if 1 in adapters:
        adapters[1].check(pieces.inputs)
