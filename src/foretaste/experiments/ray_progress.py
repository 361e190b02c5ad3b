"""Progress of runs on other machines. A process of its own holds it, which loads neither torch nor models."""

from __future__ import annotations


class Progress:
    """The last step that each run has told of, until somebody asks."""

    def __init__(self) -> None:
        self._last: dict[str, tuple[int, int]] = {}

    def tell(self, run_id: str, done: int, total: int) -> None:
        """A run has done some of its steps."""
        self._last[run_id] = (done, total)

    def take(self) -> dict[str, tuple[int, int]]:
        """What was told since the last call: steps done and steps in all, by run."""
        taken, self._last = self._last, {}
        return taken
