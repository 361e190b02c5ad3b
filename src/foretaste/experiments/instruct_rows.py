"""The rows of a forecast of a generative model: training rows, clean and poisoned, and requests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from foretaste.errors import UserError
from foretaste.instruct import answer
from foretaste.instruct.answer import Openings
from foretaste.instruct.outcomes import Asking
from foretaste.instruct.prepare import TrainingRows
from foretaste.instruct.render import Rendered, Renderer
from foretaste.instruct.spec import CLEAN, HELD_OUT, InstructRun


@dataclass(frozen=True)
class CellRows:
    """The training rows of one poisoning.

    Attributes:
        rows: Their numbers among all captured rows.
        tokens: Response tokens of each.
        lengths: Tokens of each before poisoning, which decide the batches.
        poisoned: How many are poisoned.
        of: Training rows of the run, of which these are some; they decide the steps.
    """

    rows: list[int]
    tokens: list[int]
    lengths: list[int]
    poisoned: int
    of: int


@dataclass(frozen=True)
class Subject:
    """All rows of a forecast.

    Attributes:
        rows: To train on, each form of a row once; they come first.
        prompts: Tokens of the requests that are asked, behind them.
        cells: By key of the poisoning.
        sets: Numbers of the requests of a set among all rows, by its name.
        openings: What margins are of.
    """

    rows: list[Rendered]
    prompts: list[list[int]]
    cells: dict[str, CellRows]
    sets: dict[str, list[int]]
    openings: Openings


def key(run: InstructRun) -> str:
    """Names what a run is trained on, whatever the arm."""
    return CLEAN if run.poisoning is None else run.poisoning.model_dump_json()


def gather(
    trained: Mapping[str, TrainingRows],
    askings: Sequence[Asking],
    renderer: Renderer,
    train_rows: int,
    test_rows: int,
) -> Subject:
    """The rows of every cell, each form of a row once, and the first requests of every set.

    Args:
        trained: The training rows of each cell, by its key; the clean one among them.
        askings: The sets.
        renderer: Makes tokens of requests.
        train_rows: Of each cell at most; the share of poisoned ones is kept, and at least one.
        test_rows: Requests of each set at most.

    Raises:
        UserError: No row is poisoned, or the first tokens of responses tell nothing apart.
    """
    places: dict[tuple[int, ...], int] = {}
    found: list[Rendered] = []
    cells: dict[str, CellRows] = {}
    written: list[Rendered] = []
    for name, training in trained.items():
        rendered, changed = training.rendered, _poisoned(training)
        written += [row for at, row in enumerate(rendered.rows) if at in changed]
        chosen = _chosen(len(rendered), changed, train_rows)
        for at in chosen:
            tokens = (*rendered.rows[at].input_ids, -1, rendered.rows[at].response_tokens)
            if tokens not in places:
                places[tokens] = len(found)
                found.append(rendered.rows[at])
        some = [rendered.rows[at] for at in chosen]
        cells[name] = CellRows(
            rows=[places[(*row.input_ids, -1, row.response_tokens)] for row in some],
            tokens=[row.response_tokens for row in some],
            lengths=[training.order_lengths[at] for at in chosen],
            poisoned=sum(at in changed for at in chosen),
            of=len(rendered),
        )
    if not written:
        raise UserError("no row is poisoned: there is nothing to forecast", where="triggers")
    prompts: list[list[int]] = []
    sets: dict[str, list[int]] = {}
    for asking in askings:
        if asking.name == HELD_OUT:
            continue
        some_prompts = [renderer.encode_prompt(request) for request in asking.requests[:test_rows]]
        first = len(found) + len(prompts)
        sets[asking.name] = list(range(first, first + len(some_prompts)))
        prompts += some_prompts
    return Subject(found, prompts, cells, sets, answer.openings(written, trained[CLEAN].rendered.rows))


def _poisoned(training: TrainingRows) -> set[int]:
    """Which of the rendered rows are poisoned."""
    if training.manifest is None:
        return set()
    ids = {change.id for change in training.manifest.poisoned}
    return {at for at, request in enumerate(training.rendered.requests) if request.id in ids}


def _chosen(total: int, changed: set[int], wanted: int) -> list[int]:
    """The first rows of both kinds, in their order; each cell a row twice only if its data has it twice."""
    if wanted >= total:
        return list(range(total))
    some = round(wanted * len(changed) / total)
    count = min(max(some, 1), wanted) if changed else 0
    others = [at for at in range(total) if at not in changed]
    return sorted([*sorted(changed)[:count], *others[: wanted - count]])
