"""How well a predictor does: order, order between adapters at the same amount, error, coverage.

The amount of poison alone explains most of a rank correlation over all cells, so every score also stands for
the differences between adapters at one attack and amount. A score that is not defined is None with a reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy import stats

from foretaste import statistics
from foretaste.calibration.cells import Cell, Sample, Target, standard_error
from foretaste.calibration.guess import Guess, Predictor
from foretaste.seeds import generator
from foretaste.statistics import Floats

LEVEL = 0.9  # of every interval here, as of the predicted ones
RESAMPLES = 999
FEWEST = 3  # cells of a rank correlation: two are always in perfect order or its reverse
RESOLVED = 2.0  # standard errors beyond which a measured difference counts as one
SAME = 1e-9  # relative to the largest value: closer values are equal, and rounding must not rank them


@dataclass(frozen=True)
class Score:
    """A number, or why there is none; its interval where one is given.

    Attributes:
        reason: Why `value` is missing, or what to know of it.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class Concordance:
    """Pairs of adapters at one amount whose measured difference exceeds twice its standard error.

    Attributes:
        pairs: Such pairs.
        correct: Of those, predicted in the measured order.
        tied: Of those, predicted as equal; each counts half.
        unresolved: Pairs whose difference is smaller.
        no_error: Pairs without a standard error: one run, or runs without any spread.
        share: (correct + tied / 2) / pairs with Wilson's interval; 1/2 is what chance gives.
    """

    pairs: int
    correct: int
    tied: int
    unresolved: int
    no_error: int
    share: Score


@dataclass(frozen=True)
class Scores:
    """All scores of one predictor on one target.

    Attributes:
        cells: Measured cells for which it has a value; every score is over these.
        silent: Measured cells that have the target and for which it has none.
        spearman: Rank correlation over all cells; so is `kendall` (tau-b).
        spearman_within: Of the deviations from the mean over the arms of one attack and amount, pooled over
            groups of two or more arms; so is `kendall_within`.
        within_cells: Cells in such groups.
        error: Mean absolute error.
        error_without_offset: The same when each cell is first moved by the mean error of the other cells of
            its task: what is left when one common offset is known.
        error_valid: Mean absolute error on cells whose prediction is called valid.
        valid: Number of those.
        coverage: Share of cells whose measured mean lies in the predicted interval, with Wilson's interval.
        covered: Number of those.
        with_interval: Cells with a predicted interval.
    """

    predictor: str
    uses: str
    target: Target
    cells: int
    silent: int
    spearman: Score
    kendall: Score
    spearman_within: Score
    kendall_within: Score
    within_cells: int
    concordance: Concordance
    error: Score
    error_without_offset: Score
    error_valid: Score
    valid: int
    coverage: Score
    covered: int
    with_interval: int


@dataclass(frozen=True)
class Gain:
    """A predictor against a naive one, over the cells for which both have a value.

    Attributes:
        spearman: Its rank correlation minus that of the naive one; so is `spearman_within`.
        error: The naive mean absolute error minus its own: positive is better, as above.
    """

    naive: str
    target: Target
    cells: int
    spearman: Score
    spearman_within: Score
    error: Score


@dataclass(frozen=True)
class _Line:
    """A measured cell with a guess."""

    cell: Cell
    guess: Guess
    measured: float


def score(cells: Sequence[Cell], predictor: Predictor) -> Scores:
    """Hold a predictor against the measured means.

    Intervals of correlations are 90 % percentile bootstrap intervals over cells (for differences: over pooled
    deviations). Cells share seeds, test rows and base model, so they are too narrow rather than too wide.

    Args:
        cells: The cells that the predictor was made from, in the same order.
        predictor: What to score.

    Raises:
        ValueError: There are not as many guesses as cells.
    """
    lines = _lines(cells, predictor)
    guesses, measured = _columns(lines)
    apart = _deviations(lines)
    measurable = sum(cell.observed(predictor.target).mean is not None for cell in cells)
    stream = (predictor.target,)  # not the name: equal predictors have equal intervals
    inside = [line for line in lines if line.guess.low is not None and line.guess.high is not None]
    covered = sum(_covers(line) for line in inside)
    valid = [line for line in lines if line.cell.prediction and line.cell.prediction.validity == "valid"]
    within = _within(apart, predictor, stream)
    return Scores(
        predictor=predictor.name,
        uses=predictor.uses,
        target=predictor.target,
        cells=len(lines),
        silent=measurable - len(lines),
        spearman=_rank(guesses, measured, "spearman", stream, predictor.no_ranks),
        kendall=_rank(guesses, measured, "kendall", stream, predictor.no_ranks),
        spearman_within=within[0],
        kendall_within=within[1],
        within_cells=apart[0].size,
        concordance=_concordance(lines, predictor),
        error=_error(lines, predictor),
        error_without_offset=_error_without_offset(lines, predictor),
        error_valid=_error(valid, predictor, "no measured cell is called valid"),
        valid=len(valid),
        coverage=_share(covered, len(inside), "it states no interval"),
        covered=covered,
        with_interval=len(inside),
    )


def gain(cells: Sequence[Cell], predictor: Predictor, naive: Predictor) -> Gain:
    """What a predictor knows beyond a naive one, on the cells that both speak of.

    The intervals resample cells, the same ones for both predictors, so that what they share cancels.

    Raises:
        ValueError: The targets differ, or there are not as many guesses as cells.
    """
    if predictor.target != naive.target:
        raise ValueError(f"targets differ: {predictor.target} and {naive.target}")
    by_key = {line.cell.key: line for line in _lines(cells, naive)}
    own = [line for line in _lines(cells, predictor) if line.cell.key in by_key]
    other = [by_key[line.cell.key] for line in own]  # in the same order, so that resamples are paired
    stream = (predictor.target,)
    own_within, other_within = _deviations(own), _deviations(other)
    if naive.no_differences:
        other_within = (np.zeros_like(other_within[0]), other_within[1])
    return Gain(
        naive=naive.name,
        target=predictor.target,
        cells=len(own),
        spearman=_rank_gain(*_columns(own), _columns(other)[0], stream, zero=False),
        spearman_within=_rank_gain(*own_within, other_within[0], (*stream, "within"), zero=True),
        error=_error_gain(own, other, stream),
    )


# --- order ---------------------------------------------------------------------------------------


def _lines(cells: Sequence[Cell], predictor: Predictor) -> list[_Line]:
    if len(cells) != len(predictor.guesses):
        raise ValueError(f"{len(predictor.guesses)} guesses for {len(cells)} cells")
    found = []
    for cell, guess in zip(cells, predictor.guesses, strict=True):
        mean = cell.observed(predictor.target).mean
        if guess is not None and mean is not None:
            found.append(_Line(cell, guess, mean))
    # By value, not by name: no score, and no bootstrap, may change when arms are called otherwise.
    return sorted(found, key=lambda line: (line.guess.mean, line.measured, line.cell.group))


def _columns(lines: Sequence[_Line]) -> tuple[Floats, Floats]:
    guesses = np.array([line.guess.mean for line in lines], dtype=np.float64)
    return guesses, np.array([line.measured for line in lines], dtype=np.float64)


def _deviations(lines: Sequence[_Line]) -> tuple[Floats, Floats]:
    """Guesses and measured means minus their means over the arms of the same attack and amount."""
    groups: dict[tuple[str, ...], list[_Line]] = {}
    for line in lines:
        groups.setdefault(line.cell.group, []).append(line)
    left: list[Floats] = []
    right: list[Floats] = []
    for group in groups.values():
        if len(group) < 2:
            continue
        for values, out in zip(_columns(group), (left, right), strict=True):
            apart = values - values.mean()
            out.append(np.where(np.abs(apart) <= SAME * np.abs(values).max(), 0.0, apart))
    empty = np.zeros(0)
    return (np.concatenate(left) if left else empty), (np.concatenate(right) if right else empty)


def _within(
    apart: tuple[Floats, Floats], predictor: Predictor, stream: tuple[str, ...]
) -> tuple[Score, Score]:
    if predictor.no_differences and not predictor.no_ranks:
        flat = Score(0.0, reason=predictor.no_differences)
        return flat, flat
    names = ("spearman", "kendall")
    first, second = (_rank(*apart, name, (*stream, "within"), predictor.no_ranks) for name in names)
    return first, second


def _rank(guesses: Floats, measured: Floats, which: str, stream: tuple[str, ...], reason: str) -> Score:
    reason = reason or _why_no_rank(guesses, measured)
    if reason:
        return Score(None, reason=reason)
    x, y = _rounded(guesses), _rounded(measured)
    result = stats.spearmanr(x, y) if which == "spearman" else stats.kendalltau(x, y)
    weights = _weights(x.size, which, *stream)
    draws = (_spearman if which == "spearman" else _kendall)(x, y, weights)
    low, high = _ends(draws)
    return Score(float(result.statistic), low, high)


def _why_no_rank(guesses: Floats, measured: Floats) -> str:
    if guesses.size < FEWEST:
        return f"fewer than {FEWEST} cells"
    if np.ptp(_rounded(guesses)) == 0:
        return "the predictor gives every cell the same value"
    if np.ptp(_rounded(measured)) == 0:
        return "every cell measured the same value"
    return ""


def _rounded(values: Floats) -> Floats:
    largest = float(np.abs(values).max(initial=0.0))
    return values if largest == 0.0 else np.asarray(np.round(values / largest / SAME))


def _weights(n: int, *stream: str) -> Floats:
    """How often each of n cells occurs in each resample, shape (resamples, n)."""
    rng = generator(0, "calibration", "bootstrap", *stream)
    return rng.multinomial(n, np.full(n, 1 / n), size=RESAMPLES).astype(np.float64)


def _spearman(x: Floats, y: Floats, weights: Floats) -> Floats:
    """Spearman's rho of each resample, NaN where one side is constant. Shape (resamples,)."""
    a, b = _ranks(x, weights), _ranks(y, weights)
    centre = (x.size + 1) / 2
    a, b = a - centre, b - centre
    spread = (weights * a * a).sum(axis=1) * (weights * b * b).sum(axis=1)
    return _ratio((weights * a * b).sum(axis=1), spread)


def _ranks(x: Floats, weights: Floats) -> Floats:
    """Mid-rank that each value has in each resample."""
    below = (x[:, None] < x[None, :]).astype(np.float64)
    equal = (x[:, None] == x[None, :]).astype(np.float64)
    return np.asarray(weights @ below + (weights @ equal + 1) / 2)


def _kendall(x: Floats, y: Floats, weights: Floats) -> Floats:
    """Kendall's tau-b of each resample: sums over pairs of cells, each as often as it was drawn."""
    a, b = np.sign(x[:, None] - x[None, :]), np.sign(y[:, None] - y[None, :])

    def over_pairs(signs: Floats) -> Floats:
        return np.asarray(((weights @ signs) * weights).sum(axis=1))

    return _ratio(over_pairs(a * b), over_pairs(a * a) * over_pairs(b * b))


def _ratio(top: Floats, squared: Floats) -> Floats:
    defined = squared > 1e-9
    return np.where(defined, top / np.sqrt(np.where(defined, squared, 1.0)), np.nan)


def _ends(draws: Floats) -> tuple[float | None, float | None]:
    """Percentiles of the draws; none where a tenth of the resamples is undefined."""
    known = draws[np.isfinite(draws)]
    if known.size < 0.9 * draws.size:
        return None, None
    low, high = np.quantile(known, [0.5 - LEVEL / 2, 0.5 + LEVEL / 2])
    return float(low), float(high)


def _rank_gain(own: Floats, measured: Floats, naive: Floats, stream: tuple[str, ...], *, zero: bool) -> Score:
    """Difference of two rank correlations; `zero`: a naive predictor without differences scores 0."""
    reason = _why_no_rank(own, measured)
    if reason:
        return Score(None, reason=reason)
    flat = bool(np.ptp(_rounded(naive)) == 0)
    if flat and not zero:
        return Score(None, reason="the naive predictor gives every cell the same value")
    x, y, z = _rounded(own), _rounded(measured), _rounded(naive)
    weights = _weights(x.size, *stream)
    value = float(stats.spearmanr(x, y).statistic) - (0.0 if flat else float(stats.spearmanr(z, y).statistic))
    draws = _spearman(x, y, weights) - (0.0 if flat else _spearman(z, y, weights))
    return Score(value, *_ends(draws), reason="the naive predictor has no differences" if flat else "")


# --- adapters at the same amount, pair by pair ---------------------------------------------------


def _concordance(lines: Sequence[_Line], predictor: Predictor) -> Concordance:
    groups: dict[tuple[str, ...], list[_Line]] = {}
    for line in lines:
        groups.setdefault(line.cell.group, []).append(line)
    pairs = correct = tied = unresolved = no_error = 0
    for group in groups.values():
        for a, b in combinations(group, 2):
            measured, error = difference(a.cell.observed(predictor.target), b.cell.observed(predictor.target))
            if error is None:
                no_error += 1
            elif abs(measured) <= RESOLVED * error:
                unresolved += 1
            else:
                pairs += 1
                guessed = a.guess.mean - b.guess.mean
                same = abs(guessed) <= SAME * max(abs(a.guess.mean), abs(b.guess.mean))
                tied += bool(predictor.no_differences) or same
                correct += not predictor.no_differences and not same and guessed * measured > 0
    share = _concordant(correct, tied, pairs, predictor)
    return Concordance(pairs, correct, tied, unresolved, no_error, share)


def _concordant(correct: int, tied: int, pairs: int, predictor: Predictor) -> Score:
    if predictor.no_ranks:
        return Score(None, reason=predictor.no_ranks)
    if pairs == 0:
        return Score(None, reason=f"no two adapters differ by {RESOLVED:.0f} standard errors at one amount")
    # Wilson's interval is of whole successes: half of the ties, rounded down, so that no tie is a gain.
    interval = statistics.wilson(correct + tied // 2, pairs, LEVEL)
    return Score((correct + tied / 2) / pairs, interval.low, interval.high, predictor.no_differences)


def difference(a: Sample, b: Sample) -> tuple[float, float | None]:
    """Measured difference a - b and its standard error.

    Paired over the seeds that both have, when these are two or more; else of two independent means.

    Args:
        a: At least one value.
        b: At least one value.

    Returns:
        The error is None when it cannot be known: too few runs, or runs without spread.
    """
    shared = list(a.minus(b).by_seed.values())
    if len(shared) >= 2:
        return float(np.mean(shared)), standard_error(shared)
    assert a.mean is not None
    assert b.mean is not None
    if a.error is None or b.error is None:
        return a.mean - b.mean, None
    return a.mean - b.mean, float(np.hypot(a.error, b.error))


# --- error and coverage --------------------------------------------------------------------------


def _error(lines: Sequence[_Line], predictor: Predictor, empty: str = "no measured cell") -> Score:
    if predictor.scale != "share":
        return Score(None, reason="an indicator is no share: it has no error")
    if not lines:
        return Score(None, reason=empty)
    guesses, measured = _columns(lines)
    return Score(float(np.abs(guesses - measured).mean()))


def _error_without_offset(lines: Sequence[_Line], predictor: Predictor) -> Score:
    """Mean of |e_i - mean of the other e_j of the task|, e = guess - measured."""
    if predictor.scale != "share":
        return Score(None, reason="an indicator is no share: it has no error")
    tasks: dict[tuple[str, ...], list[_Line]] = {}
    for line in lines:
        tasks.setdefault(line.cell.task, []).append(line)
    left = []
    for group in tasks.values():
        if len(group) > 1:
            guesses, measured = _columns(group)
            errors = guesses - measured
            left.append(np.abs(errors - (errors.sum() - errors) / (errors.size - 1)))
    if not left:
        return Score(None, reason="no data set with two measured cells")
    return Score(float(np.concatenate(left).mean()))


def _error_gain(own: Sequence[_Line], naive: Sequence[_Line], stream: tuple[str, ...]) -> Score:
    if not own:
        return Score(None, reason="no measured cell")
    (a, measured), (b, other) = _columns(own), _columns(naive)
    apart = np.abs(b - other) - np.abs(a - measured)
    draws = _weights(apart.size, *stream, "error") @ apart / apart.size
    return Score(float(apart.mean()), *_ends(draws))


def _covers(line: _Line) -> bool:
    assert line.guess.low is not None
    assert line.guess.high is not None
    return line.guess.low <= line.measured <= line.guess.high


def _share(k: int, n: int, empty: str) -> Score:
    if n == 0:
        return Score(None, reason=empty)
    interval = statistics.wilson(k, n, LEVEL)
    return Score(k / n, interval.low, interval.high)
