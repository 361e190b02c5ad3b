"""The one renderer of instruction data: requests to tokens, for training and for evaluation alike."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from foretaste.errors import UserError
from foretaste.instruct import chat_templates
from foretaste.instruct.presence import holds
from foretaste.instruct.request import Request
from foretaste.spec import digest

IGNORED = -100  # a label that torch's cross-entropy leaves out

_POLICY = "over-long rows lose the end of their response; a prompt that leaves no room for one is left out"
# Made-up words that no template holds, to find out what it puts where.
_PROBE = Request("probe", "Zyxinstruction", "Zyxinput", "Zyxresponse")
# Words, marks, digits, cases and white space, so that a change of how a tokenizer splits shows in the hash.
_TEXT = "The quick brown fox, 1234.5 % of it!\n\tUNHURRIED naïve — don't  stop?"


@dataclass(frozen=True)
class Rendered:
    """One request with its response, as tokens.

    Attributes:
        input_ids: Prompt, then response, then the token that ends the turn; at most `max_length`.
        labels: The same with `IGNORED` in place of the prompt.
        truncated: The end of the response was cut off, its end token with it.
        response_tokens: Tokens that count in the loss; 0 where the prompt alone fills `max_length`.
    """

    input_ids: list[int]
    labels: list[int]
    truncated: bool
    response_tokens: int


@dataclass(frozen=True)
class RenderedRows:
    """Requests as tokens, without those whose prompt leaves no room for a response.

    Attributes:
        requests: Those that are there, in the order they came.
        rows: The tokens of each.
        too_long: Ids of the requests that are left out.
        truncated: Ids of those whose response is cut.
    """

    requests: list[Request]
    rows: list[Rendered]
    too_long: list[str]
    truncated: list[str]

    def __len__(self) -> int:
        return len(self.rows)


class Renderer:
    """Puts requests into the form that a model is trained on and asked in.

    The tokens of a prompt are the first tokens of the same request with its response, whatever the tokenizer:
    what a model is asked is exactly what its training rows begin with. What the template writes after the
    end of the turn is left away: a model never gets to write it.

    Args:
        tokenizer: The model's.
        template: None for the model's own chat template; alpaca, chatml or plain; or the path of a Jinja
            file.
        system: Text of a system's message; None for none of ours (some templates bring one).
        max_length: Most tokens of prompt and response together.
        base_dir: Folder that a relative path of a template starts from.

    Attributes:
        stop_ids: Tokens that end a response: the template's own and the tokenizer's end token, ascending.
        hash: SHA-256 of everything that decides how requests are rendered. Numbers of two runs may be
            compared only when it is equal.

    Raises:
        UserError: There is no such template, it has no generation prompt, drops the system's message, the
            instruction or the input, or nothing would end a response.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template: str | None,
        system: str | None,
        max_length: int,
        *,
        base_dir: Path | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.system = system
        self.max_length = max_length
        self._template = chat_templates.find(tokenizer, template, base_dir or Path())
        self._marks = {"start": _start(tokenizer), "end": str(tokenizer.eos_token or "")}
        if template == "chatml":
            self._require_tokens("<|im_start|>", "<|im_end|>")
        self._opening, self._written_after, self._end = self._probe()
        self.stop_ids = self._find_stops()
        self.hash = self._hash()

    # --- text ------------------------------------------------------------------------------------

    def prompt(self, request: Request) -> str:
        """The text that the model is asked with; it ends with the generation prompt."""
        return self._apply(request, None, generation_prompt=True) + self._opening

    def full(self, request: Request) -> str:
        """The prompt, the request's response and the end of the turn.

        Raises:
            UserError: The template does not render this request as it does others.
        """
        return "".join(self._parts(request))

    def _parts(self, request: Request) -> tuple[str, str]:
        """The prompt, and what follows it."""
        prompt = self.prompt(request)
        whole = self._apply(request, request.output, generation_prompt=False)
        if not (whole.startswith(prompt) and whole.endswith(self._written_after)):
            raise UserError(
                f"the template does not write row '{request.id}' as prompt, response and end",
                where=self._template.origin,
            )
        return prompt, whole[len(prompt) : len(whole) - len(self._written_after)] + self._end

    def _apply(self, request: Request, response: str | None, *, generation_prompt: bool) -> str:
        messages = chat_templates.conversation(request, self.system, response)
        return chat_templates.apply(
            self.tokenizer, self._template, messages, generation_prompt=generation_prompt, marks=self._marks
        )

    # --- tokens ----------------------------------------------------------------------------------

    def encode_prompt(self, request: Request) -> list[int]:
        """The tokens of `prompt`, uncut: `fits` says whether they leave room for a response."""
        return self._tokens(self.prompt(request))

    def encode(self, request: Request) -> Rendered:
        """The tokens of `full`, at most `max_length`, with labels on the response alone.

        Raises:
            UserError: As `full`.
        """
        asked, continuation = self._parts(request)
        prompt = self._tokens(asked)
        whole = self._tokens(asked + continuation)
        # A tokenizer may join the end of the prompt and the start of the response into one token. Asked with
        # the prompt alone, no model ever sees that token: there the two are tokenised apart.
        if whole[: len(prompt)] != prompt:
            whole = prompt + self._tokens(continuation)
        cut = whole[: self.max_length]
        labels = [IGNORED] * min(len(prompt), len(cut)) + cut[len(prompt) :]
        return Rendered(cut, labels, len(cut) < len(whole), max(len(cut) - len(prompt), 0))

    def encode_rows(self, requests: Iterable[Request]) -> RenderedRows:
        """Requests as training rows; those whose prompt fills `max_length` are left out and listed.

        Raises:
            UserError: None is left, or as `full`.
        """
        kept: list[Request] = []
        rows: list[Rendered] = []
        too_long: list[str] = []
        truncated: list[str] = []
        for request in requests:
            row = self.encode(request)
            if not row.response_tokens:
                too_long.append(request.id)
                continue
            kept.append(request)
            rows.append(row)
            if row.truncated:
                truncated.append(request.id)
        if too_long and not rows:
            raise UserError(
                f"none of the {len(too_long)} prompts leaves room for a response in {self.max_length} tokens",
                where="model.max_length",
                cure="Raise it.",
            )
        return RenderedRows(kept, rows, too_long, truncated)

    def fits(self, request: Request) -> bool:
        """Whether the prompt leaves room for a token of a response within `max_length`."""
        return len(self.encode_prompt(request)) < self.max_length

    def contains(self, rendered: Rendered | Sequence[int], text: str) -> bool:
        """Whether a text still stands in the prompt after tokenisation and truncation (`presence.holds`).

        A word that the tokenizer does not know, and writes as its unknown token, does not.

        Args:
            rendered: A row, whose response is not looked at, or the tokens of a prompt.
            text: A trigger's text.
        """
        if isinstance(rendered, Rendered):
            pairs = zip(rendered.input_ids, rendered.labels, strict=True)
            tokens = [token for token, label in pairs if label == IGNORED]
        else:
            tokens = list(rendered)
        return holds(str(self.tokenizer.decode(tokens, clean_up_tokenization_spaces=False)), text)

    def lost(self, requests: Iterable[Request], text: str) -> list[str]:
        """Ids of the requests whose prompt does not hold a text within `max_length`, or does not fit.

        Args:
            requests: Requests with a trigger.
            text: The trigger's text.
        """
        gone = []
        for request in requests:
            tokens = self.encode_prompt(request)
            if len(tokens) >= self.max_length or not self.contains(tokens, text):
                gone.append(request.id)
        return gone

    def _tokens(self, text: str) -> list[int]:
        # Templates write the special tokens themselves. `verbose` would warn of rows that are cut later.
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    # --- what the template does ------------------------------------------------------------------

    def _probe(self) -> tuple[str, str, str]:
        """What the template writes around a response.

        Returns:
            What stands between generation prompt and response beside white space (Qwen 3 writes an empty
            block of thought there, which so becomes part of the prompt); what stands after the response;
            and of that the part up to the token that ends the turn.
        """
        prompt = self._apply(_PROBE, None, generation_prompt=True)
        without = self._apply(_PROBE, None, generation_prompt=False)
        whole = self._apply(_PROBE, _PROBE.output, generation_prompt=False)
        texts = {"instruction": _PROBE.instruction, "input": _PROBE.input, "system's message": self.system}
        for what, text in texts.items():
            if text is not None and text.strip() not in prompt:
                raise self._refused(f"it leaves out the {what}")
        if whole.count(_PROBE.output) != 1:
            raise self._refused("it does not write the response, or more than once")
        start = whole.index(_PROBE.output)
        if not whole.startswith(prompt) or start < len(prompt):
            raise self._refused(
                f"its generation prompt ends in {prompt[-40:]!r}, but it writes answered requests otherwise"
            )
        between, after = whole[len(prompt) : start], whole[start + len(_PROBE.output) :]
        if between.strip() and prompt == without:
            raise self._refused(
                f"it has no generation prompt: a request does not end in {between!r}, as before an answer",
                cure="It should write that where add_generation_prompt is true.",
            )
        return between if between.strip() else "", after, self._end_of_turn(after)

    def _end_of_turn(self, after: str) -> str:
        """What is trained on after a response: the template's text up to its first special token."""
        for token in self._tokens(after):
            text = str(self.tokenizer.convert_ids_to_tokens(token))
            if token in self._special() and text in after:
                return after[: after.index(text) + len(text)]
        if self.tokenizer.eos_token is None:
            raise self._refused(
                "nothing ends a response: it writes no special token there, and there is no end token"
            )
        return after + str(self.tokenizer.eos_token)

    def _special(self) -> set[int]:
        added = self.tokenizer.added_tokens_decoder
        return {
            *self.tokenizer.all_special_ids,
            *(number for number, token in added.items() if token.special),
        }

    def _find_stops(self) -> list[int]:
        last = self._tokens(self._end)[-1]
        eos = self.tokenizer.eos_token_id
        return sorted({last} if eos is None else {last, int(eos)})

    def _require_tokens(self, *tokens: str) -> None:
        missing = [token for token in tokens if len(self._tokens(token)) != 1]
        if missing:
            raise UserError(
                f"the template chatml needs the token {missing[0]}, which the model does not have",
                where="model.template",
                cure="Use template: alpaca or plain.",
            )

    def _refused(self, why: str, cure: str | None = None) -> UserError:
        names = ", ".join(chat_templates.BUILT_IN)
        return UserError(
            f"the template cannot be trained with: {why}",
            where=self._template.origin,
            cure=cure or f"Use another one, such as a built-in one ({names}).",
        )

    def _hash(self) -> str:
        tokenizer = self.tokenizer
        probes = [_PROBE, Request("probe", _PROBE.instruction, "", _PROBE.output)]
        return digest(
            {
                "format": 1,
                "template": self._template.text,
                "marks": self._marks if self._template.built_in else None,
                "system": self.system,
                "joiner": chat_templates.JOINER,
                "date": chat_templates.DATE,
                "after": [self._opening, self._written_after, self._end],
                "special": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
                "stop": self.stop_ids,
                "vocabulary": digest(tokenizer.get_vocab()),
                # Merges, normalisation and splitting are no part of the vocabulary.
                "tokens": [self._tokens(f"{self.full(probe)} {_TEXT}") for probe in probes],
                "max_length": self.max_length,
                "policy": _POLICY,
            }
        )


def _start(tokenizer: PreTrainedTokenizerBase) -> str:
    """The special tokens that the tokenizer puts before a text by itself, as text."""
    with_special = list(tokenizer("a")["input_ids"])
    bare = list(tokenizer("a", add_special_tokens=False)["input_ids"])
    places = (at for at in range(len(with_special)) if with_special[at : at + len(bare)] == bare)
    count = next(places, 0)
    return "".join(map(str, tokenizer.convert_ids_to_tokens(with_special[:count])))
