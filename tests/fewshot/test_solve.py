"""Kernel arms on tiny language models: kernels against explicit gradients, solvers against linear algebra."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tuning_subjects import Given, prepared, with_labels

from foretaste.errors import UserError
from foretaste.fewshot import solve as solving
from foretaste.fewshot.adapt import attach, lora_targets
from foretaste.fewshot.prepare import Prepared
from foretaste.fewshot.scores import logits_of, score
from foretaste.fewshot.solve import Computed, kernel_of, key_of, solve
from foretaste.fewshot.spec import KernelArm
from foretaste.kernels import compute as computing
from foretaste.kernels import linear_weights
from foretaste.models.prompt_encode import collate
from foretaste.theory.asymmetric import decompose_asymmetric, fit_asymmetric, fit_least_squares
from foretaste.theory.logistic import fit_logistic
from foretaste.theory.predictor import classify, predict
from foretaste.theory.regression import decompose, fit_ridge
from foretaste.theory.selection import REGULARISATIONS, SCALES
from foretaste.theory.svm import classify_svm, fit_svm

GIB = 2**30


def arm(**fields: Any) -> KernelArm:
    """A resolved kernel arm in float64."""
    given = {"kind": "kernel", "precision": "float64"} | fields
    return KernelArm.model_validate(given).resolved(8)


def given(family: str = "roberta", classes: int = 2, metric: str = "accuracy", **fields: Any) -> Given:
    return prepared(arm(**fields), family=family, classes=classes, metric=metric)  # type: ignore[arg-type]


def jacobian(it: Prepared, model: Any, parameters: Sequence[torch.Tensor]) -> Any:
    """Explicit gradients of train, dev and test rows: shape (rows, outputs, entries), margin or logits."""
    found = []
    for encoded in (it.train, it.dev, it.test):
        for row in range(len(encoded)):
            logits = model(**collate(encoded, [row], it.pad_token_id)).logits[0]
            values = logits if len(logits) > 2 else logits[1:] - logits[:1]
            per_output = []
            for value in values:
                grads = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
                flat = [
                    torch.zeros(p.numel(), dtype=p.dtype) if g is None else g.reshape(-1)
                    for g, p in zip(grads, parameters, strict=True)
                ]
                per_output.append(torch.cat(flat).numpy())
            found.append(np.stack(per_output))
    return np.stack(found)


def product(kind: str, g: Any, train: int) -> Any:
    """The kernel of all rows with training rows: shape (rows, C, train, C), or without C for one output."""
    live = np.where(np.abs(g) > 1e-13, g, 0.0)  # rounding error has no sign
    left = live if kind != "signgd" else np.sign(live)
    right = live[:train] if kind == "sgd" else np.sign(live[:train])
    flat = left.reshape(-1, g.shape[2]) @ right.reshape(-1, g.shape[2]).T
    kernel = flat.reshape(*left.shape[:2], *right.shape[:2])
    return kernel[:, 0, :, 0] if g.shape[1] == 1 else kernel


def assert_kernel(it: Prepared, want: Any) -> None:
    found = kernel_of(it, memory=GIB)
    whole = np.concatenate([found.train, found.dev, found.test])
    assert whole.shape == want.shape
    assert np.abs(whole - want).max() <= 1e-8 * np.abs(want).max()


KERNELS = ("sgd", "signgd", "asymmetric")


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(
    ("family", "adapter", "classes"),
    [
        ("roberta", {}, 2),
        ("llama", {}, 3),
        ("gpt2", {"adapter": "bitfit"}, 2),
        ("roberta", {"adapter": "bitfit", "output": "standard"}, 3),
        ("llama", {"adapter": "lora", "rank": 3, "alpha": 5}, 2),
        ("gpt2", {"adapter": "lora", "rank": 2, "output": "standard"}, 3),
        ("llama", {"adapter": "intrinsic", "dimension": 20}, 2),
        ("roberta", {"adapter": "intrinsic", "dimension": 7}, 3),
    ],
)
def test_the_kernel_is_that_of_what_fine_tuning_trains(
    kernel: str, family: str, adapter: dict[str, Any], classes: int
) -> None:
    it = given(family, classes, kernel=kernel, **adapter)
    model = attach(it.model(), it.run.arm, seed=it.run.split)  # type: ignore[arg-type]
    parameters = [p for p in model.parameters() if p.requires_grad]
    assert_kernel(it, product(kernel, jacobian(it, model, parameters), len(it.train)))
    assert kernel_of(it, memory=GIB).parameters == sum(p.numel() for p in parameters)


@pytest.mark.parametrize(("family", "output"), [("llama", "prompt"), ("gpt2", "standard")])
def test_the_expected_kernel_weights_layers_by_their_inputs(family: str, output: str) -> None:
    """s^2 r / (3 n) of each adapted layer, and a new head in full; the mean of drawn kernels is it."""
    lora = {"adapter": "lora", "rank": 4, "alpha": 8, "output": output}
    it = given(family, 2, expected=True, **lora)
    model = it.model()
    adapted = linear_weights(model, lora_targets(model))
    head = [*model.classifier.parameters()] if output == "standard" else []  # type: ignore[union-attr]
    g = jacobian(it, model, [*(model.get_parameter(p.name) for p in adapted), *head])
    factors = [(8 / 4) ** 2 * 4 / (3 * p.fan_in) for p in adapted if p.fan_in]
    weights = np.concatenate(
        [
            *(np.full(np.prod(p.shape), f) for p, f in zip(adapted, factors, strict=True)),
            *(np.ones(p.numel()) for p in head),
        ]
    )
    want = product("sgd", g * np.sqrt(weights), len(it.train))
    assert_kernel(it, want)
    drawn = []
    for split in range(12):
        one = prepared(arm(**lora), family=family, split=split)  # type: ignore[arg-type]
        drawn.append(kernel_of(one, memory=GIB).train)
    ratio = np.array([np.trace(k) for k in drawn]) / np.trace(want[: len(it.train)])
    assert abs(ratio.mean() - 1) < 4 * ratio.std(ddof=1) / len(ratio) ** 0.5


@pytest.mark.parametrize("classes", [2, 3])
def test_outputs_are_the_pretrained_models(classes: int) -> None:
    it = given("llama", classes)
    found = kernel_of(it, memory=GIB)
    logits = np.concatenate([logits_of(it.model(), rows, 1) for rows in (it.train, it.dev, it.test)])
    want = logits[:, 1] - logits[:, 0] if classes == 2 else logits
    np.testing.assert_allclose(found.outputs, want, atol=1e-12)


# --- solving ------------------------------------------------------------------------------------------


def ridge(it: Prepared, found: Computed, strength: float, scale: float) -> tuple[Any, Any]:
    """Classes of dev and test rows by ridge regression, written down once more."""
    n, d = len(it.train), len(it.dev)
    binary = found.train.ndim == 2
    size = n if binary else n * len(it.classes)
    K = found.train.reshape(size, size)
    y = np.asarray(it.train.labels)
    targets = 2.0 * y - 1 if binary else np.eye(len(it.classes))[y].ravel()
    f0 = found.outputs.reshape(len(found.outputs), -1)
    start = 0.0 if scale == np.inf else 1.0
    residual = (1.0 if scale == np.inf else scale) * targets - start * f0[:n].ravel()
    a = np.linalg.lstsq(K + strength * np.linalg.norm(K, 2) * np.eye(size), residual, rcond=1e-12)[0]
    guesses = []
    for cross, offset in ((found.dev, f0[n : n + d]), (found.test, f0[n + d :])):
        values = (cross.reshape(-1, size) @ a).reshape(offset.shape) + start * offset
        guesses.append((values[:, 0] > 0).astype(int) if binary else values.argmax(1))
    return guesses[0], guesses[1]


@pytest.mark.parametrize("classes", [2, 3])
def test_ridge_on_the_papers_grid(classes: int) -> None:
    it = given("llama", classes)
    result, found = solve(it, memory=GIB), kernel_of(it, memory=GIB)
    points = [(r, s) for r in REGULARISATIONS for s in SCALES]
    assert len(result.grid) == len(points)
    for point, (strength, scale) in zip(result.grid, points, strict=True):
        assert point.settings == {
            "regularisation": strength,
            "scale": "inf" if scale == np.inf else scale,
        }
        if strength:  # at 0 the kernel's own rank decides
            dev, _ = ridge(it, found, strength, scale)
            assert point.dev_score == np.mean(dev == it.dev.labels)
    assert result.selected is not None
    best = result.grid[result.selected]
    assert best.dev_score == max(p.dev_score for p in result.grid if p.dev_score is not None)
    assert result.dev.value == best.dev_score
    assert result.test.value == best.test_score
    assert result.test.value == np.mean(np.asarray(result.predictions) == it.test.labels)
    assert [p.test_score for p in result.grid].count(None) == len(points) - 1
    assert result.facts["tied_points"] == sum(p.dev_score == best.dev_score for p in result.grid)
    strength, scale = points[result.selected]
    if strength:
        assert list(ridge(it, found, strength, scale)[1]) == result.predictions


def test_test_rows_have_no_part_in_the_choice() -> None:
    it = given("llama")
    before = solve(it, memory=GIB)
    other = dataclasses.replace(it, test=with_labels(it.test, [1 - label for label in it.test.labels]))
    other.base = it.base
    after = solve(other, memory=GIB)
    assert after.selected == before.selected
    assert after.predictions == before.predictions
    assert after.test.correct == before.test.n - before.test.correct


SOLVERS = [
    {"solver": "ridge"},
    {"solver": "logistic"},
    {"solver": "svm"},
    {"solver": "asymmetric"},
    {"solver": "least-squares"},
    {"kernel": "signgd"},
    {"kernel": "signgd", "solver": "logistic"},
    {"kernel": "asymmetric"},
    {"kernel": "asymmetric", "solver": "least-squares"},
]


def fit_again(it: Prepared, found: Computed, settings: dict[str, Any]) -> Any:
    """The solver at one setting, straight from `theory`."""
    n, a = len(it.train), it.run.arm
    assert isinstance(a, KernelArm)
    y = np.asarray(it.train.labels)
    labels = 2 * y - 1 if found.train.ndim == 2 else y
    lam, f0 = settings["regularisation"], {"pretrained": found.outputs[:n]}
    scale = {"scale": float(settings.get("scale", "inf"))} | f0
    match a.solver:
        case "ridge":
            return fit_ridge(decompose(found.train), labels, regularisation=lam, **scale)
        case "logistic":
            return fit_logistic(decompose(found.train), labels, regularisation=lam, **f0)
        case "svm":
            return fit_svm(found.train, labels, regularisation=lam)
        case "asymmetric":
            kernel = decompose_asymmetric(found.train, lam)
            return fit_asymmetric(kernel, labels, gamma=settings["gamma"], **scale)
        case _:
            return fit_least_squares(decompose_asymmetric(found.train), labels, regularisation=lam, **scale)


@pytest.mark.parametrize("fields", SOLVERS)
@pytest.mark.parametrize(("classes", "metric"), [(2, "f1"), (3, "accuracy")])
def test_the_test_rows_are_classified_by_the_chosen_setting(
    fields: dict[str, Any], classes: int, metric: str
) -> None:
    it = given("roberta", classes, metric, **fields)
    result, found = solve(it, memory=GIB), kernel_of(it, memory=GIB)
    a, n, d = it.run.arm, len(it.train), len(it.dev)
    assert isinstance(a, KernelArm)
    assert len(result.grid) == len(a.regularisations) * max(1, len(a.scales)) * max(1, len(a.gammas))
    assert result.selected is not None
    chosen = result.grid[result.selected]
    assert chosen.dev_score == max(p.dev_score for p in result.grid if p.dev_score is not None)
    fit = fit_again(it, found, chosen.settings)
    guesses = []
    for cross, offset in ((found.dev, found.outputs[n : n + d]), (found.test, found.outputs[n + d :])):
        guess = classify_svm(fit, cross) if a.solver == "svm" else classify(fit, cross, offset)
        guesses.append([int(g) for g in ((guess + 1) // 2 if classes == 2 else guess)])
    assert score(metric, it.dev.labels, guesses[0]) == result.dev  # type: ignore[arg-type]
    assert chosen.dev_score == result.dev.value
    assert guesses[1] == result.predictions
    assert score(metric, it.test.labels, guesses[1]) == result.test  # type: ignore[arg-type]
    assert all(np.isfinite(v) for v in result.facts.values())


def test_with_two_classes_the_margin_is_all_that_logistic_regression_sees() -> None:
    """On the 2N x 2N kernel of both logits the fitted margins are those of the N x N margin kernel."""
    it = given("llama", 2)
    found = kernel_of(it, memory=GIB)
    g = jacobian_of_logits(it)
    n = len(it.train)
    both = np.einsum("icp,jdp->icjd", g, g[:n])
    logits = np.concatenate([logits_of(it.model(), rows, 1) for rows in (it.train, it.dev, it.test)])
    labels = np.asarray(it.train.labels)
    margins, pairs = decompose(found.train), decompose(both[:n])
    one = fit_logistic(
        margins, 2 * labels - 1, regularisation=0.02 / margins.norm, pretrained=found.outputs[:n]
    )
    two = fit_logistic(pairs, labels, regularisation=0.02 / pairs.norm, pretrained=logits[:n])
    scores = predict(two, both[n:], logits[n:])
    want = predict(one, np.concatenate([found.dev, found.test]), found.outputs[n:])
    np.testing.assert_allclose(scores[:, 1] - scores[:, 0], want, atol=1e-5 * np.abs(want).max())


def jacobian_of_logits(it: Prepared) -> Any:
    model = it.model()
    parameters = [p for p in model.parameters() if p.requires_grad]
    found = []
    for encoded in (it.train, it.dev, it.test):
        for row in range(len(encoded)):
            logits = model(**collate(encoded, [row], it.pad_token_id)).logits[0]
            grads = [torch.autograd.grad(v, parameters, retain_graph=True) for v in logits]
            found.append(np.stack([torch.cat([x.reshape(-1) for x in g]).numpy() for g in grads]))
    return np.stack(found)


# --- what is kept -------------------------------------------------------------------------------------


def test_arms_with_one_kernel_compute_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = solve(given("llama"), memory=GIB, folder=tmp_path)
    alone = solve(given("llama", solver="logistic"), memory=GIB)
    monkeypatch.setattr(solving, "_compute", None)  # would fail
    second = solve(given("llama", solver="logistic"), memory=GIB, folder=tmp_path)
    assert second.predictions == alone.predictions
    assert any("earlier run" in note for note in second.notes)
    assert not any("earlier run" in note for note in first.notes)


def test_what_decides_a_kernel_decides_its_key() -> None:
    lora = {"adapter": "lora"}
    arms = [
        {},
        {"kernel": "signgd"},
        {"kernel": "asymmetric"},
        {"precision": "float32"},
        {"adapter": "bitfit"},
        lora,
        lora | {"rank": 4},
        lora | {"alpha": 4},
        lora | {"expected": True},
        {"adapter": "intrinsic", "dimension": 5},
        {"adapter": "intrinsic", "dimension": 6},
        {"output": "standard"},
    ]
    keys = [key_of(given("roberta", **fields)) for fields in arms]
    assert len(set(keys)) == len(arms)
    assert key_of(given("roberta", solver="svm", regularisations=[0.5])) == keys[0]
    assert key_of(given("llama")) not in keys
    assert key_of(given("roberta", classes=3)) not in keys

    def at(split: int, **fields: Any) -> str:
        return key_of(prepared(arm(**fields), split=split))  # type: ignore[arg-type]

    assert at(1) == at(2)  # the same rows: nothing of the kernel is drawn
    assert at(1, **lora) != at(2, **lora)
    assert at(1, expected=True, **lora) == at(2, expected=True, **lora)


def test_a_stopped_kernel_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(computing, "BLOCK_ROWS", 8)
    it = given("llama", kernel="asymmetric")
    whole = solve(it, memory=GIB)

    class Stop(Exception):
        pass

    def stop(done: int, total: int) -> None:
        assert total == 1000
        if done > 300:
            raise Stop

    with pytest.raises(Stop):
        solve(it, memory=GIB, folder=tmp_path, on_step=stop)
    steps: list[int] = []
    result = solve(it, memory=GIB, folder=tmp_path, on_step=lambda done, _: steps.append(done))
    assert result.predictions == whole.predictions
    assert [p.dev_score for p in result.grid] == [p.dev_score for p in whole.grid]
    assert steps[-1] == 1000
    place = tmp_path / key_of(it)
    assert not list(place.rglob("units"))


def test_a_damaged_kernel_is_made_again(tmp_path: Path) -> None:
    it = given("llama")
    first = solve(it, memory=GIB, folder=tmp_path)
    path = tmp_path / key_of(it) / solving.MATRICES
    whole = path.read_bytes()
    for damaged in (whole[:100], whole[:-9] + bytes([whole[-9] ^ 0x10]) + whole[-8:]):  # cut; one bit
        path.write_bytes(damaged)
        again = solve(it, memory=GIB, folder=tmp_path)
        assert again.predictions == first.predictions
        assert not any("earlier run" in note for note in again.notes)
        assert path.read_bytes() == whole


def test_a_whole_kernel_is_kept_once(tmp_path: Path) -> None:
    it = given("llama")
    solve(it, memory=GIB, folder=tmp_path)
    kept = {path.name for path in (tmp_path / key_of(it)).iterdir()}
    assert kept == {solving.MATRICES, solving.VALUES, ".lock"}


def test_too_small_a_budget_is_refused() -> None:
    with pytest.raises(UserError, match="too small"):
        solve(given("llama"), memory="10 KiB")


def test_the_sign_kernel_of_lora_says_where_it_is_taken() -> None:
    notes = solve(given("llama", kernel="signgd", adapter="lora"), memory=GIB).notes
    assert any("at B = 0" in note for note in notes)


def test_single_precision_gives_nearly_the_same_kernel() -> None:
    exact = kernel_of(given("llama"), memory=GIB)
    single = kernel_of(given("llama", precision="float32"), memory=GIB)
    assert np.abs(single.test - exact.test).max() < 1e-4 * np.abs(exact.test).max()
    assert single.outputs.dtype == np.float64
