"""The classification head: where it is, and what it starts from."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_score
from torch import nn
from transformers import PreTrainedModel

from foretaste.errors import UserError


@dataclass(frozen=True)
class Head:
    """Which parts of a classifier are its head, by name.

    Attributes:
        modules: Everything outside the base model that has weights, such as DistilBERT's `pre_classifier`
            and `classifier`: all of it is new, so every arm has to train all of it.
        linear: The last linear layer, which gives the logits (`classifier.out_proj`).
    """

    modules: tuple[str, ...]
    linear: str


def find(model: PreTrainedModel) -> Head:
    """The head of a sequence classifier: its last linear layer outside the base model.

    Raises:
        UserError: No such layer has one output for each class.
    """
    inside = f"{model.base_model_prefix}."
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and module.out_features == model.config.num_labels
        and not name.startswith(inside)
    ]
    if not names:
        raise UserError(f"found no classification head in {type(model).__name__}", where="model.base")
    outside = [
        name
        for name, child in model.named_children()
        if name != model.base_model_prefix and any(True for _ in child.parameters())
    ]
    return Head(modules=tuple(outside), linear=names[-1])


def adapted(model: nn.Module, linear: str) -> str:
    """Name of the head's last linear layer in a model that may have an adapter.

    Args:
        model: From `adapters.attach`, its head trained whole.
        linear: The name before.
    """
    wanted = linear.split(".")
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and "original_module" not in (parts := name.split("."))  # peft trains a copy
        and [part for part in parts if part not in ("modules_to_save", "default")][-len(wanted) :] == wanted
    ]
    # A layer inside the body may end in the same word; the head's comes last, as in `find`.
    found: str = names[-1]
    return found


def features(
    model: nn.Module,
    batches: Sequence[dict[str, torch.Tensor]],
    pad_token_id: int | None,
    linear: str | None = None,
) -> npt.NDArray[np.float32]:
    """What the head's last linear layer sees for each row, with the model frozen.

    Args:
        model: A classifier.
        batches: Padded model inputs, without labels.
        pad_token_id: Padding token; decoders read the last token that is not it.
        linear: Name of that layer; None finds it, in a model without an adapter.

    Returns:
        Shape (rows, d).
    """
    captured: list[torch.Tensor] = []
    if linear is None:
        assert isinstance(model, PreTrainedModel)
        linear = find(model).linear
    layer = model.get_submodule(linear)

    def keep(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        captured.append(inputs[0].detach())

    was_training = model.training
    model.eval()
    handle = layer.register_forward_pre_hook(keep)
    rows = []
    try:
        with torch.inference_mode():
            for batch in batches:
                model(**batch)
                seen = captured.pop()
                if seen.dim() == 3:  # a decoder scores every token and keeps the last of each row
                    last = _last_token(batch["input_ids"], pad_token_id)
                    seen = seen[torch.arange(len(seen)), last]
                rows.append(seen.float().cpu().numpy())
    finally:
        handle.remove()
        model.train(was_training)
    return np.concatenate(rows)


def _last_token(input_ids: torch.Tensor, pad_token_id: int | None) -> torch.Tensor:
    """Position of the last token of each row that is no padding (transformers' own rule)."""
    if pad_token_id is None:
        return torch.full((len(input_ids),), input_ids.shape[1] - 1)
    positions = torch.arange(input_ids.shape[1], device=input_ids.device)
    return (positions * (input_ids != pad_token_id)).argmax(-1)


# Inverse strengths of the l2 penalty that cross-validation chooses from. The weakest, 10, separates any few
# hundred rows of 384 features; the strongest hardly leaves the class frequencies.
PENALTIES = np.logspace(-4, 1, 11)


@dataclass(frozen=True)
class Probe:
    """A linear classifier on frozen features: logits = features @ weight.T + bias.

    Attributes:
        weight: Shape (classes, d).
        bias: Shape (classes,).
        accuracy: On the rows that it was fitted to, labels as given.
        C: The chosen inverse penalty.
    """

    weight: npt.NDArray[np.float64]
    bias: npt.NDArray[np.float64]
    accuracy: float
    C: float


def fit_probe(
    x: npt.NDArray[np.float32], labels: Sequence[int], classes: int, *, intercept: bool = True
) -> Probe:
    """Logistic regression, its l2 penalty chosen by cross-validated log-loss on the labels as given.

    The penalty matters: an unpenalised probe fits every flipped label, and its saturated logits leave
    training no gradient. Features are centred and divided by one number, their overall standard deviation;
    scaling each feature by its own would give the nearly constant ones (sentence encoders have some) weights
    so large that they swamp every other gradient.

    Args:
        x: Features, shape (rows, d).
        labels: Class ids as given, poisoned ones included: the defender has no others.
        classes: Number of classes; one that no row has gets a logit that does not win. When all rows are of
            one class, the weight is zero.
        intercept: Whether the head has a bias; without one the features are not centred.
    """
    y = np.asarray(labels)
    if np.all(y == y[0]):
        sole = np.where(np.arange(classes) == y[0], 0.0, -10.0) * intercept
        return Probe(np.zeros((classes, x.shape[1])), sole, float(sole.argmax() == y[0]), float(PENALTIES[0]))
    mean = x.mean(0, dtype=np.float64) if intercept else np.zeros(x.shape[1])
    centred = x - mean
    scale = float(np.sqrt(np.mean(centred**2)))
    if scale <= 1e-6 * np.abs(x).max():  # all rows are equal: what is left is rounding
        scale = 1.0
    centred /= scale
    fit = _logistic(centred, y, intercept)
    present = fit.classes_
    coefficients, intercepts = fit.coef_ / scale, np.broadcast_to(fit.intercept_, len(fit.coef_))
    if len(present) == 2:  # scikit-learn keeps one row for two classes: split the margin evenly
        coefficients = np.concatenate([-coefficients / 2, coefficients / 2])
        intercepts = np.concatenate([-intercepts / 2, intercepts / 2])
    weight = np.zeros((classes, x.shape[1]))
    bias = np.full(classes, intercepts.min() - 10.0)
    weight[present] = coefficients
    bias[present] = intercepts - coefficients @ mean
    return Probe(weight, bias, float(np.mean(fit.predict(centred) == y)), float(fit.C))


def _logistic(x: npt.NDArray[np.float64], y: npt.NDArray[np.int64], intercept: bool) -> LogisticRegression:
    """The fit at the best penalty; with fewer than two rows of a class there is no fold to judge it by."""
    folds = min(5, int(np.unique_counts(y).counts.min()))
    best = 0.01
    with warnings.catch_warnings():
        # A head that is a few iterations short of the optimum is as good a start for training.
        warnings.simplefilter("ignore", ConvergenceWarning)
        if folds >= 2:
            losses = [
                -cross_val_score(
                    LogisticRegression(C=C, max_iter=500, fit_intercept=intercept),
                    x,
                    y,
                    cv=StratifiedKFold(folds),
                    scoring="neg_log_loss",
                ).mean()
                for C in PENALTIES
            ]
            best = float(PENALTIES[int(np.argmin(losses))])
        return LogisticRegression(C=best, max_iter=500, fit_intercept=intercept).fit(x, y)


def set_head(model: PreTrainedModel, x: npt.NDArray[np.float32], labels: Sequence[int]) -> Probe:
    """Fit a probe on features and copy it into the head's last linear layer.

    Args:
        model: The classifier; its head decides the number of classes and whether there is a bias.
        x: What `features` gave for the training rows.
        labels: Their labels as given.
    """
    layer = model.get_submodule(find(model).linear)
    assert isinstance(layer, nn.Linear)
    probe = fit_probe(x, labels, layer.out_features, intercept=layer.bias is not None)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(probe.weight))
        if layer.bias is not None:
            layer.bias.copy_(torch.from_numpy(probe.bias))
    return probe
