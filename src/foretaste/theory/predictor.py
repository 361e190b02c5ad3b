"""What every kernel solver but the SVM returns: coefficients over the training outputs, and their use.

h(x) = K(x, X) coefficients, added to the pre-trained output f_PT(x) where the fit started from it (Malladi
et al. 2023, App. A.3: "we add the pre-trained model's output to the output from the kernel").
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from foretaste.errors import UserError
from foretaste.theory.layout import Floats, Ints, Layout, cross_matrix, decide, outputs


@dataclass(frozen=True, eq=False)
class KernelFit:
    """Coefficients of a kernel predictor.

    Attributes:
        coefficients: Shape (..., N) or (..., N, C).
        layout: Training examples and outputs.
        uses_pretrained: The prediction is f_PT + K coefficients rather than K coefficients.
    """

    coefficients: Floats
    layout: Layout
    uses_pretrained: bool


def residual(targets: Floats, layout: Layout, scale: float, pretrained: npt.ArrayLike | None) -> Floats:
    """Targets of the kernel part: f0 Y - f_PT, or Y where f0 is infinite.

    Malladi et al. 2023, App. A.3: f0 scales the labels to the size of logits; f0 = inf drops f_PT. The
    released code fits Y - f_PT / f0 instead, which is this one divided by f0: the same decisions.

    Args:
        targets: Y, shape (..., N) or (..., N, C).
        layout: Of the training examples.
        scale: f0, above 0; inf drops f_PT.
        pretrained: f_PT(X), shape (N,) or (N, C), or with the targets' leading axes; unused for f0 = inf.

    Raises:
        UserError: `scale` is not above 0, or finite without `pretrained`, or `pretrained` does not fit.
    """
    if not scale > 0:
        raise UserError(f"expected a label scale f0 above 0, or inf, got {scale!r}", where="scale")
    if np.isinf(scale):
        return targets
    if pretrained is None:
        raise UserError(
            f"the label scale f0 = {scale:g} is finite but the pre-trained outputs are missing",
            where="pretrained",
            cure="Pass f_PT of the training rows, or scale=inf.",
        )
    shifted: Floats = scale * targets - outputs(pretrained, layout, "pretrained")
    return shifted


def predict(fit: KernelFit, cross: npt.ArrayLike, pretrained: npt.ArrayLike | None = None) -> Floats:
    """Scores of other examples.

    Args:
        fit: From any solver of this package but the SVM.
        cross: K(x, X), shape (M, N) or (M, C, N, C).
        pretrained: f_PT(x), shape (M,) or (M, C); needed when `fit.uses_pretrained`, else unused.

    Returns:
        Shape (..., M) or (..., M, C).

    Raises:
        UserError: A shape does not fit, or the pre-trained outputs are missing.
    """
    matrix, rows = cross_matrix(cross, fit.layout)
    leading = fit.coefficients.shape[: -len(fit.layout.shape)]
    flat = fit.coefficients.reshape(*leading, fit.layout.size)
    scores: Floats = (flat @ matrix.T).reshape(*leading, *rows.shape)
    if not fit.uses_pretrained:
        return scores
    if pretrained is None:
        raise UserError(
            "the fit starts from the pre-trained outputs, but those of these rows are missing",
            where="pretrained",
        )
    return scores + outputs(pretrained, rows, "pretrained")


def classify(fit: KernelFit, cross: npt.ArrayLike, pretrained: npt.ArrayLike | None = None) -> Ints:
    """Classes of other examples: `predict`, then the sign or the largest output (see `layout.decide`).

    Returns:
        Shape (..., M).

    Raises:
        UserError: See `predict`.
    """
    scores = predict(fit, cross, pretrained)
    return decide(scores, fit.layout.of(scores.shape[-len(fit.layout.shape)]))
