"""How much of the SGD kernel LoRA keeps, by rank: measured, and by Theorem D.5 of Malladi et al. 2023.

A layer's kernel is K(i, j) = <G_i, G_j>; LoRA's at B = 0 is s^2 <G_i A^T, G_j A^T>. The theorem: for gaussian
A, P(an entry is off by c^2 eps or more) <= 4 N^2 exp(-(eps^2 - eps^3) r / 4). It is stated for one fully
connected layer and one token, with c^2 >= |dh|^2 |x|^2, and needs entries of variance 1/r, which it does not
say (docs/theory.md, T19). Here c^2 is the largest K(i, i), and the same bound then holds

* for sequences: |G z|^2 of a gaussian z is a sum of chi-squares, weighted with the eigenvalues of G^T G. Of
  all weights with one sum, a single one has the largest moment generating function: one token is the worst;
* for all adapted layers at once, with K summed over them: eigenvalues of all layers are weights of one sum.

So N is the number of rows times outputs, and each entry counts. The bound is below 1 for no eps unless
r > 27 ln(4 N^2), since eps^2 - eps^3 <= 4/27: at the ranks that people use it says nothing, and what is kept
is a matter of measurement. Four scalings are compared:

===========  ====================  =====================================================================
scaling      A and s               kernel over that of full fine-tuning, in expectation
===========  ====================  =====================================================================
1/r          variance 1/r, s = 1   1: the theorem's
alpha/r      peft, s = alpha / r   alpha^2 / (3 n r) of each layer with n inputs: peft's default
alpha=r      peft, s = 1           r / (3 n): the rank sweep of the TTR paper
rslora       peft, s = alpha/sqrt r  alpha^2 / (3 n)
===========  ====================  =====================================================================

The last three are multiples of each other. As an absolute statement the theorem fails for them; the alignment
and the distance at the best scale say what is left of the shape.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field
from torch import nn

from foretaste.errors import UserError
from foretaste.kernels import Gram, Inputs, Job, Outputs, Parts, Ranks, kernels, linear_weights
from foretaste.kernels.lora import RULES, Law
from foretaste.kernels.parameters import Parameter
from foretaste.record import Part
from foretaste.seeds import integer
from foretaste.theory.claims.projection import failure_bound, rank_needed
from foretaste.theory.layout import Floats
from foretaste.theory.lora_width import PEFT_K

Scaling = Literal["1/r", "alpha/r", "alpha=r", "rslora"]
SCALINGS: tuple[Scaling, ...] = ("1/r", "alpha/r", "alpha=r", "rslora")
_RULE = {"alpha/r": "alpha/r", "alpha=r": "alpha=r", "rslora": "alpha/sqrt(r)"}

RANKS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
EPSILONS = (0.1, 0.25, 0.5, 2 / 3)
"""2/3 is where the exponent eps^2 - eps^3 is largest: the smallest bound for any rank."""
ALPHA = 16.0
"""Of the kernel paper (Table 4) and of the TTR paper."""
FAILURE = 0.05
"""Probability of failure of "with high probability"."""


class Point(Part):
    """One draw of A in all adapted layers, at one rank and scaling."""

    scaling: Scaling
    rank: int
    draw: int
    relative_error: float = Field(description="|K_LoRA - K| / |K|, Frobenius")
    largest: float = Field(description="largest |K_LoRA(i, j) - K(i, j)| over c^2 = max K(i, i)")
    alignment: float = Field(description="<K_LoRA, K> / (|K_LoRA| |K|)")
    scale: float = Field(description="the number c for which c K is nearest to K_LoRA")
    shape_error: float = Field(description="|K_LoRA - c K| / |K_LoRA|")
    within: list[float] = Field(description="by epsilon: share of entries with an error below c^2 epsilon")


class Bound(Part):
    """What Theorem D.5 says of one rank and epsilon, and how often that was so; 1/r scaling."""

    rank: int
    epsilon: float
    bound: float = Field(description="4 N^2 exp(-(eps^2 - eps^3) r / 4); from 1 on it says nothing")
    failures: int = Field(description="draws with an entry of the whole kernel off by c^2 epsilon or more")
    draws: int
    layer_failures: int = Field(description="the same for single layers: of `layer_trials`")
    layer_trials: int
    layer_within: float = Field(description="share of entries of single layers' kernels within c^2 epsilon")


class Distortion(Part):
    """Kernel distortion of LoRA by rank, of one model on some rows."""

    format: Literal[1] = 1
    kind: Literal["distortion"] = "distortion"
    versions: dict[str, str] = Field(
        default_factory=dict, description="of the packages that decide the numbers"
    )
    commit: str | None = Field(None, description="commit of foretaste's own source, when run from one")
    model: str
    rows: str = Field(description="what the kernel is of")
    count: int = Field(description="N: rows times outputs")
    layers: int = Field(description="adapted layers whose gradients are not all zero")
    silent_layers: int = Field(description="adapted layers whose gradients are all zero, left out")
    widths: list[int] = Field(description="numbers of inputs of adapted layers, distinct")
    law: Law = Field(description="of the entries of A")
    alpha: float
    ranks: list[int]
    draws: int
    epsilons: list[float]
    effective_layers: float = Field(
        description="(sum of traces)^2 / sum of squared traces: how many layers share the kernel"
    )
    points: list[Point]
    bounds: list[Bound]
    least_ranks: list[int] = Field(
        description="by epsilon: the rank at which the bound is 0.05; what the theorem needs"
    )


def measure(
    model: nn.Module,
    layers: Sequence[str],
    outputs: Outputs,
    inputs: Inputs,
    *,
    name: str,
    rows: str,
    ranks: Sequence[int] = RANKS,
    draws: int = 5,
    seed: int = 0,
    law: Law = "gaussian",
    alpha: float = ALPHA,
    epsilons: Sequence[float] = EPSILONS,
    memory: int = 4 * 2**30,
    folder: Path | None = None,
    on_progress: Callable[[float], None] | None = None,
) -> Distortion:
    """Measure the distortion of LoRA's kernel at B = 0, for all ranks and draws from one capture.

    Ranks of one draw are nested: A of rank r is the first r rows.

    Args:
        model: The pretrained model, in evaluation mode.
        layers: Names of the linear layers that LoRA adapts.
        outputs: What is differentiated.
        inputs: The rows.
        name: Of the model, for the record.
        rows: What the rows are, for the record.
        ranks: Ascending.
        draws: Independent draws of A in every layer, at least 1.
        seed: Of the draws.
        law: gaussian as in the theorem, or uniform as peft draws; both scaled to the variance.
        alpha: Of the scalings alpha/r and rslora.
        epsilons: Ascending, in (0, 1).
        memory: Budget in bytes for everything beside the model.
        folder: Where a stopped call goes on from.
        on_progress: Called with the share that is done.

    Raises:
        UserError: A number is out of its range, a name is no linear layer, or the budget is too small.
    """
    if draws < 1:
        raise UserError(f"draws are {draws}: expected at least 1", where="draws")
    if not epsilons or list(epsilons) != sorted(set(epsilons)) or not 0 < epsilons[0] <= epsilons[-1] < 1:
        raise UserError(f"epsilons are {list(epsilons)}: expected ascending numbers in (0, 1)")
    chosen = linear_weights(model, layers)
    names = frozenset(p.name for p in chosen)
    products = [
        Ranks(
            tuple(ranks),
            seed=_draw_seed(seed, draw),
            law=law,
            layers=names,
            name=f"draw-{draw}",
            by="parameter",
        )
        for draw in range(draws)
    ]
    job = Job(model, chosen, outputs, inputs, len(inputs), [Gram("sgd", "parameter"), *products])
    parts, done = kernels(job, memory=memory, folder=folder, on_progress=on_progress)
    used = done.probe.parameters
    return compare(
        parts,
        used,
        name=name,
        rows=rows,
        ranks=ranks,
        draws=draws,
        law=law,
        alpha=alpha,
        epsilons=epsilons,
    )


def _draw_seed(seed: int, draw: int) -> int:
    return integer(seed, "distortion", draw)


def compare(
    parts: Parts,
    layers: Sequence[Parameter],
    *,
    name: str,
    rows: str,
    ranks: Sequence[int],
    draws: int,
    law: Law,
    alpha: float,
    epsilons: Sequence[float],
) -> Distortion:
    """The record from the kernels of `measure`: of every layer in full, and by draw and rank."""
    full = {p.name: parts[f"sgd/{p.name}"].train for p in layers}
    silent = [p for p in layers if not full[p.name].any()]
    layers = [p for p in layers if p not in silent]
    whole: Floats = np.sum([full[p.name] for p in layers], axis=0)
    count = len(whole)
    trials = np.zeros((len(ranks), len(epsilons), 2), dtype=np.int64)  # failures of the whole, of a layer
    within = np.zeros((len(ranks), len(epsilons)))
    points: list[Point] = []
    for draw in range(draws):
        normalised = np.zeros((len(ranks), count, count))  # variance 1/r
        peft = np.zeros_like(normalised)  # variance 1/(3 n), s = 1
        for p in layers:
            unit = parts[f"draw-{draw}/{p.name}"].train
            assert p.fan_in is not None
            low = unit * (p.fan_in / np.asarray(ranks, dtype=float))[:, None, None]
            normalised += low
            peft += PEFT_K * unit
            errors = _errors(low, full[p.name])
            for e, epsilon in enumerate(epsilons):
                trials[:, e, 1] += (errors >= epsilon).any((1, 2))
                within[:, e] += (errors < epsilon).mean((1, 2))
        for place, rank in enumerate(ranks):
            trials[place, :, 0] += [
                bool((_errors(normalised[place], whole) >= epsilon).any()) for epsilon in epsilons
            ]
            for scaling in SCALINGS:
                if scaling == "1/r":
                    low = normalised[place]
                else:
                    low = RULES[_RULE[scaling]](alpha, rank) ** 2 * peft[place]
                points.append(_point(scaling, rank, draw, low, whole, epsilons))
    bounds = [
        Bound(
            rank=rank,
            epsilon=epsilon,
            bound=failure_bound(count, epsilon, rank),
            failures=int(trials[place, e, 0]),
            draws=draws,
            layer_failures=int(trials[place, e, 1]),
            layer_trials=draws * len(layers),
            layer_within=float(within[place, e]) / (draws * len(layers)),
        )
        for place, rank in enumerate(ranks)
        for e, epsilon in enumerate(epsilons)
    ]
    traces = np.asarray([np.trace(full[p.name]) for p in layers])
    return Distortion(
        model=name,
        rows=rows,
        count=count,
        layers=len(layers),
        silent_layers=len(silent),
        widths=sorted({p.fan_in for p in layers if p.fan_in is not None}),
        law=law,
        alpha=alpha,
        ranks=list(ranks),
        draws=draws,
        epsilons=list(epsilons),
        effective_layers=float(traces.sum() ** 2 / (traces**2).sum()),
        points=points,
        bounds=bounds,
        least_ranks=[math.ceil(rank_needed(count, epsilon, FAILURE)) for epsilon in epsilons],
    )


def _errors(low: Floats, full: Floats) -> Floats:
    """|K_LoRA(i, j) - K(i, j)| / c^2 with c^2 = max K(i, i); leading axes of `low` are kept."""
    errors: Floats = np.abs(low - full) / np.diag(full).max()
    return errors


def _point(
    scaling: Scaling, rank: int, draw: int, low: Floats, full: Floats, epsilons: Sequence[float]
) -> Point:
    errors = _errors(low, full)
    length, size = float(np.linalg.norm(full)), float(np.linalg.norm(low))
    scale = float(np.sum(low * full)) / length**2
    return Point(
        scaling=scaling,
        rank=rank,
        draw=draw,
        relative_error=float(np.linalg.norm(low - full)) / length,
        largest=float(errors.max()),
        alignment=scale * length / size,
        scale=scale,
        shape_error=float(np.linalg.norm(low - scale * full)) / size,
        within=[float((errors < epsilon).mean()) for epsilon in epsilons],
    )
