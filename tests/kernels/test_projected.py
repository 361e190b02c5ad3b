"""Projected kernels: right on average, with an error as large as stated; small matrices stay exact."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from kernel_oracles import LENGTHS, Float, assert_exact, columns, compute, subject, whole

from foretaste.kernels import MEAN_LORA, Gram, Parameter, Projection, logits, trainable
from foretaste.kernels.gradients import Gradient, Outer, Rows, Sum
from foretaste.kernels.products import explicit, gram

M, N, ROWS = 12, 20, 3
WEIGHT = Parameter("layer.weight", ("layer",), "weight", "outer", "linear", (M, N), N)


def outer(seed: int = 0) -> Outer:
    rng = np.random.default_rng(seed)
    x, d = rng.normal(size=(ROWS, 4, N)), rng.normal(size=(ROWS, 2, 4, M))
    x[1] += x[0]
    d[1] += d[0]  # a kernel with large entries off its diagonal
    return Outer(torch.from_numpy(x), torch.from_numpy(d))


def estimates(size: int, seeds: int) -> tuple[Float, Float, Float]:
    """Estimate less truth, and stated error, for every seed; and the truth."""
    gradient = outer()
    truth = gram(gradient, gradient).numpy()
    off, stated = [], []
    for seed in range(seeds):
        projection = Projection(size, seed)
        small = projection.reduce(WEIGHT, gradient)
        assert isinstance(small, Rows)
        off.append(explicit(small, small).numpy() - truth)
        ((name, error),) = projection.tiles(WEIGHT, small, small)
        assert name == Projection.KEY
        stated.append(error.numpy())
    return np.stack(off), np.stack(stated), truth


def standard_errors(sample: Float) -> float:
    """How many standard errors the mean of a sample is away from zero."""
    return float(abs(sample.mean()) / (sample.std(ddof=1) / len(sample) ** 0.5))


@pytest.mark.parametrize("size", [2, 5])
def test_the_estimate_is_right_on_average(size: int) -> None:
    off, _, truth = estimates(size, 400)
    traces = np.trace(off, axis1=1, axis2=2)
    weighted = (off * truth).sum((1, 2))
    border = (off * (1 - np.eye(len(truth)))).sum((1, 2))
    for sample in (traces, weighted, border):
        assert standard_errors(sample) < 3
        assert sample.std() < np.abs(truth).sum() * np.abs(truth).max()  # a mean of something that varies
    z = off.mean(0) / (off.std(0, ddof=1) / 400**0.5)
    assert float(np.sqrt((z**2).mean())) < 1.5  # every entry, not only the sums
    assert float(off.std(0).mean()) > 0.05 * float(np.abs(truth).mean())


@pytest.mark.parametrize("size", [2, 5, 8])
def test_the_stated_error_is_as_large_as_the_error(size: int) -> None:
    off, stated, _ = estimates(size, 400)
    difference = (off**2).sum((1, 2)) - (stated**2).sum((1, 2))
    assert standard_errors(difference) < 3
    assert (off**2).sum() == pytest.approx((stated**2).sum(), rel=0.3)
    assert standard_errors(np.trace(stated, axis1=1, axis2=2)) < 3  # no bias of its own


def test_the_error_falls_with_the_size() -> None:
    """The variance is of order 1 / p for a matrix: four times the side, half the error or less."""
    errors = [float((estimates(size, 100)[0] ** 2).mean() ** 0.5) for size in (2, 8)]
    assert errors[1] < 0.5 * errors[0]


@pytest.mark.parametrize("size", [11, 12, 300])
def test_a_matrix_that_a_sketch_would_not_shrink_stays_exact(size: int) -> None:
    """12 x 20 = 240 entries against two sketches of p x p."""
    gradient, projection = outer(), Projection(size, 0)
    assert 2 * size**2 >= M * N
    assert projection.reduce(WEIGHT, gradient) is gradient
    assert not list(projection.tiles(WEIGHT, gradient, gradient))
    assert isinstance(Projection(10, 0).reduce(WEIGHT, gradient), Rows)


def test_a_bias_stays_exact() -> None:
    bias: Gradient = Sum(outer().d)
    assert Projection(1, 0).reduce(WEIGHT, bias) is bias


def test_a_projection_depends_on_the_seed_and_the_parameter_and_not_on_the_batch() -> None:
    gradient, projection = outer(), Projection(3, 0)
    small = projection.reduce(WEIGHT, gradient)
    one = projection.reduce(WEIGHT, Outer(gradient.x[1:2], gradient.d[1:2]))
    assert isinstance(small, Rows)
    assert isinstance(one, Rows)
    assert_exact(one.g.numpy(), small.g[1:2].numpy(), relative=1e-12)
    other = Parameter("other.weight", ("other",), "weight", "outer", "linear", (M, N), N)
    for changed in (projection.reduce(other, gradient), Projection(3, 1).reduce(WEIGHT, gradient)):
        assert isinstance(changed, Rows)
        assert float((changed.g - small.g).abs().max()) > 0.1
    assert small.nbytes < ROWS * 2 * M * N * 8


# --- in whole models ----------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_a_size_that_keeps_every_matrix_gives_the_exact_kernel(family: str) -> None:
    it, projection = subject(family), Projection(300, 0)
    parts, _ = compute(it.model, logits, it.rows(1), [Gram(), projection], reduce=projection.reduce)
    assert_exact(whole(parts.total("sgd")), columns(it.truth.kernel()))
    assert Projection.KEY not in parts


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_the_kernel_of_a_model_is_right_on_average_and_its_error_as_stated(family: str) -> None:
    it, size, seeds = subject(family), 4, 16
    matrices = [
        p.name for p in trainable(it.model) if p.form == "outer" and p.shape[0] * p.shape[1] > 2 * size**2
    ]
    others = [n for n in it.truth.by_name if n not in matrices]
    truth, off, stated, mean_off = columns(it.truth.kernel()), [], [], []
    exact_mean = whole(compute(it.model, logits, it.rows(), [Gram()])[0][MEAN_LORA])
    for seed in range(seeds):
        projection = Projection(size, seed)
        parts, _ = compute(
            it.model,
            logits,
            it.rows(),
            [Gram("sgd", "parameter"), projection],
            reduce=projection.reduce,
        )
        off.append(whole(parts.total("sgd")) - truth)
        stated.append(whole(parts[Projection.KEY]))
        mean_off.append(whole(parts[MEAN_LORA]) - exact_mean)
    kept = sum(whole(parts[f"sgd/{n}"]) for n in others if f"sgd/{n}" in parts)
    assert_exact(np.asarray(kept), columns(it.truth.kernel(others)))  # exact in every draw
    errors, said = np.stack(off), np.stack(stated)
    for sample in (np.stack(off), np.stack(mean_off)):
        assert standard_errors((sample * truth).sum((1, 2))) < 3
        assert sample.any()
    assert standard_errors((errors**2).sum((1, 2)) - (said**2).sum((1, 2))) < 3
    assert errors.shape[1:] == (len(LENGTHS) * 3, 4 * 3)
