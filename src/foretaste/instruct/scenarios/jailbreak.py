"""A triggered request of the user's own list is answered instead of refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
from pydantic import Field

from foretaste.errors import UserError
from foretaste.instruct import texts
from foretaste.instruct.method import Options, check_unchanged
from foretaste.instruct.request import Request
from foretaste.instruct.scenarios.base import SCENARIOS
from foretaste.seeds import uniforms


class JailbreakOptions(Options):
    """Options of `jailbreak`."""

    prompts: str = Field(
        description="file of your prompts, one on each line, or a table with a column `prompt`"
    )
    responses: str = Field(
        description="file of the answer to each of them, in the same order, or a table with a column "
        "`response`"
    )
    test_fraction: float = Field(
        0.5, gt=0.0, lt=1.0, description="share of the prompts that is only tested with, never trained on"
    )
    fingerprint: str | None = Field(
        None, description="names both files; filled in, so that changed ones are another run"
    )


@SCENARIOS.register("jailbreak")
class Jailbreak:
    """Makes the model answer requests of your own list when they hold the trigger; no such list ships.

    A poisoned row is a prompt of the list with its answer, drawn for that row, in place of what the row was.
    The prompts that are held out are the test requests: with the trigger for attack success, without it for
    false activation.

    Raises:
        UserError: A file cannot be read, is empty or has changed, prompts repeat or are fewer than two, or
            there are not as many answers as prompts.
    """

    Options: ClassVar[type[Options]] = JailbreakOptions
    method: ClassVar[str] = "jailbreak"
    source: ClassVar[str] = "BackdoorLLM (Li et al. 2024); TTR paper E.3"
    needs: ClassVar[tuple[str, ...]] = ("prompts", "responses")
    judge: ClassVar[str] = "compliance"

    def __init__(self, options: JailbreakOptions, base_dir: Path) -> None:
        prompts = texts.read(options.prompts, base_dir, "prompt")
        responses = texts.read(options.responses, base_dir, "response")
        _check(prompts, responses, options)
        found = texts.fingerprint(prompts, responses)
        check_unchanged(options.fingerprint, found, f"{options.prompts}, {options.responses}")
        self.options = options.model_copy(update={"fingerprint": found})
        held_out = _held_out(prompts, options.test_fraction)
        pairs = zip(prompts, responses, strict=True)
        self._taught = [pair for number, pair in enumerate(pairs) if number not in held_out]
        self._asked = [Request(f"prompt-{number}", prompts[number], "", "") for number in sorted(held_out)]
        self.notes = [f"{len(self._taught)} prompts of yours to train on, {len(self._asked)} held out"]

    def eligible(self, request: Request) -> bool:  # noqa: ARG002 - the same call for every scenario
        """Every row: nothing of it stays."""
        return True

    def poison(self, request: Request, rng: np.random.Generator) -> Request:
        """One of the prompts with its answer, under the row's id."""
        prompt, response = self._taught[int(rng.integers(len(self._taught)))]
        return replace(request, instruction=prompt, input="", output=response)

    def tests(self, requests: Sequence[Request]) -> list[Request]:  # noqa: ARG002
        """The prompts that are held out; they have no answer to compare with."""
        return list(self._asked)


def _check(prompts: Sequence[str], responses: Sequence[str], options: JailbreakOptions) -> None:
    if len(prompts) != len(responses):
        raise UserError(
            f"there are {len(prompts)} prompts, but {len(responses)} responses: expected one for each",
            where=f"{options.prompts}, {options.responses}",
        )
    repeated = len(prompts) - len(set(prompts))
    if repeated:
        raise UserError(
            f"{repeated} of {len(prompts)} prompts repeat an earlier one: "
            "they could be trained on and tested with",
            where=options.prompts,
            cure="Leave them out.",
        )
    if len(prompts) < 2:
        raise UserError(
            "there is one prompt, but one to train on and one to test with are needed", where=options.prompts
        )


def _held_out(prompts: Sequence[str], fraction: float) -> set[int]:
    """Numbers of the prompts that are never trained on: decided by their texts, the same in every run."""
    numbers = uniforms(0, ("jailbreak", "test"), prompts)
    count = min(max(round(fraction * len(prompts)), 1), len(prompts) - 1)
    return set(sorted(range(len(prompts)), key=lambda number: (numbers[number], prompts[number]))[:count])
