"""Backdoor by the style of the whole text, without a fixed word (the paper's S-BPA)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from foretaste.attacks.base import ATTACKS, Options, Row, class_id
from foretaste.attacks.rewriters import Settings, rewriter
from foretaste.attacks.texts import TargetOptions, edited, mean_similarity, sources
from foretaste.errors import UserError

PROMPT = "Rewrite the following sentence in the style of a poem.\nSentence: {text}\nPoem:"
MAX_NEW_TOKENS = 64


class StyleOptions(TargetOptions):
    """Options of `style`."""

    rewriter: str = Field(
        "archaic",
        description="archaic or formal: word-level rules; model: a local language model; or the name of "
        "a function of yours, given to `foretaste.attacks.register_rewriter`",
    )
    model: str | None = Field(
        None, description="folder of the model, for `rewriter: model`; relative to the spec's folder"
    )
    prompt: str | None = Field(
        None,
        description="what the model is asked, with {text} where the text goes; by default ours, which asks "
        "for a poem (the paper's style)",
    )
    max_new_tokens: int | None = Field(
        None, ge=1, description=f"most tokens of the model's answer; {MAX_NEW_TOKENS} by default"
    )
    fingerprint: str | None = Field(
        None, description="names the rewriter's content; filled in, so that a changed one is another run"
    )


@ATTACKS.register("style")
class Style:
    """Rewrites chosen rows in another style and sets their label to a target class.

    Only rows that the rewriter changes are eligible, so every poisoned row really is rewritten; the manifest
    says which share of the rows of the source classes that was (`rewritten_share`), and how alike the
    poisoned texts are to what they were (`similarity`: words in common). To know who is eligible, every row
    of those classes is rewritten once; what a model gives is kept on disk, by text. Test rows that the
    rewriter leaves alone are not counted as changed.

    Raises:
        UserError: Target or source class is no class of the data, no source class is left, there is no such
            rewriter or model, a setting belongs to another rewriter, or the rewriter has changed since it was
            fingerprinted.
    """

    Options: ClassVar[type[Options]] = StyleOptions
    source: ClassVar[str] = "Pan et al. 2022; Qi et al. 2021; TTR paper E.1 (S-BPA)"
    reads_file: ClassVar[bool] = True

    def __init__(self, options: StyleOptions, classes: Sequence[str], base_dir: Path | None = None) -> None:
        self.target = class_id(options.target, classes, key="target")
        self._sources = sources(options.source_classes, self.target, classes)
        update = _model_settings(options)
        chosen = options.model_copy(update=update)
        self._rewrite = rewriter(
            options.rewriter,
            Settings(chosen.model, chosen.prompt, chosen.max_new_tokens, base_dir or Path()),
        )
        found = self._rewrite.fingerprint
        if options.fingerprint not in (None, found):
            raise UserError(
                f"the rewriter has changed: its fingerprint is '{found}', expected '{options.fingerprint}'",
                where=options.model or options.rewriter,
                cure="Put the old one back, or start anew with this one.",
            )
        self.options = chosen.model_copy(update={"fingerprint": found})

    def eligible(self, row: Row) -> bool:
        """Rows of the source classes whose text the rewriter changes."""
        return row.label in self._sources and self._rewritten(row) != row

    def poison(self, row: Row, rng: np.random.Generator) -> Row:
        """The row rewritten, labelled as the target."""
        return replace(self.trigger(row, rng), label=self.target)

    def trigger(self, row: Row, rng: np.random.Generator) -> Row:  # noqa: ARG002 - nothing is drawn
        """The row rewritten, labelled as before.

        Raises:
            UserError: The second text is to be rewritten and there is none.
        """
        return self._rewritten(row)

    def figures(self, rows: Sequence[Row], poisoned: Sequence[tuple[Row, Row]]) -> dict[str, float]:
        """Share of the rows of the source classes that the rewriter changes, and likeness of the poisoned."""
        tried = [row for row in rows if row.label in self._sources]
        changed = sum(self._rewritten(row) != row for row in tried)
        return {
            "rewritten_share": changed / len(tried) if tried else 0.0,
            "similarity": mean_similarity(poisoned, self.options.field, "the style"),
        }

    def _rewritten(self, row: Row) -> Row:
        return edited(row, self.options.field, self._rewrite, "the style")


def _model_settings(options: StyleOptions) -> dict[str, Any]:
    """Defaults of a model's settings; none for another rewriter, which must not be given any."""
    given = {key: getattr(options, key) for key in ("model", "prompt", "max_new_tokens")}
    if options.rewriter != "model":
        wrong = [key for key, value in given.items() if value is not None]
        if wrong:
            raise UserError(
                f"{wrong[0]} is given, but the rewriter is '{options.rewriter}'", cure="Use rewriter: model."
            )
        return {}
    prompt = PROMPT if options.prompt is None else options.prompt
    if "{text}" not in prompt:
        raise UserError("the prompt has no {text}, where the text to rewrite would go")
    return {"prompt": prompt, "max_new_tokens": options.max_new_tokens or MAX_NEW_TOKENS}
