"""Generating responses in batches, so that a stopped session goes on where it was.

Everything that decides a response is given here: what a model's own `generation_config` asks for (a
temperature, a repetition penalty) would make two models answer by different rules, and is set aside.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import torch
from pydantic import ValidationError
from torch import nn
from transformers import GenerationConfig, PreTrainedTokenizerBase

from foretaste.instruct.record import Finish, Transcript, line
from foretaste.instruct.spec import GenerationSpec
from foretaste.seeds import borrowed_global_state

Key = tuple[str, str]
"""Set and id of a request."""


@dataclass(frozen=True)
class Asked:
    """One request of a set, as the model gets it.

    Attributes:
        set: Name of the set.
        id: Of the request, unique in its set.
        prompt: As text.
        tokens: As tokens.
    """

    set: str
    id: str
    prompt: str
    tokens: list[int]

    @property
    def key(self) -> Key:
        """Names it among all sets."""
        return self.set, self.id


def batches(asked: Sequence[Asked], size: int, *, equal_lengths: bool = False) -> list[list[Asked]]:
    """Requests in batches of similar length, set after set.

    They depend on the set alone, so that two models get the same set in the same batches whatever else they
    are asked.

    Args:
        asked: The requests.
        size: Most requests of a batch.
        equal_lengths: Only requests of one length share a batch, which needs no padding.
    """
    found: list[list[Asked]] = []
    for name in dict.fromkeys(one.set for one in asked):
        batch: list[Asked] = []
        for one in sorted((a for a in asked if a.set == name), key=lambda a: len(a.tokens)):
            other_length = equal_lengths and batch and len(batch[0].tokens) != len(one.tokens)
            if len(batch) == size or other_length:
                found.append(batch)
                batch = []
            batch.append(one)
        found.append(batch)
    return found


def generate(
    model: nn.Module,
    asked: Sequence[Asked],
    tokenizer: PreTrainedTokenizerBase,
    stop_ids: Sequence[int],
    spec: GenerationSpec,
    *,
    journal: Path,
    on_batch: Callable[[int, int], None] | None = None,
) -> list[Transcript]:
    """The model's responses, in the order of the requests.

    Each finished batch is written to the journal. A call with a journal of the same requests takes from it
    the batches that are whole, and does the others, in the same batches as before.

    Args:
        model: A causal language model, with or without an adapter.
        asked: The requests of all sets.
        tokenizer: Decodes the responses.
        stop_ids: Tokens that end a response.
        spec: How to generate.
        journal: File of the responses so far; made when missing.
        on_batch: Called with (batches done, batches in all).

    Raises:
        OSError: The journal could not be written.
    """
    known = {one.key: one for one in asked}
    done = {
        transcript_key(t): t
        for t in read_journal(journal)
        if transcript_key(t) in known and known[transcript_key(t)].prompt == t.prompt
    }
    todo = batches(asked, spec.batch_size, equal_lengths=_padding_shows(model))
    was_training = model.training
    model.eval()
    with journal.open("a", encoding="ascii") as file, _rules_set_aside(model):
        for number, batch in enumerate(todo, start=1):
            if not all(one.key in done for one in batch):
                written = _respond(model, batch, tokenizer, stop_ids, spec)
                done |= {transcript_key(t): t for t in written}
                file.write("".join(map(line, written)))
                file.flush()
                os.fsync(file.fileno())
            if on_batch is not None:
                on_batch(number, len(todo))
    model.train(was_training)
    return [done[one.key] for one in asked]


def transcript_key(transcript: Transcript) -> Key:
    """Set and id."""
    return transcript.set, transcript.id


def _padding_shows(model: nn.Module) -> bool:
    """Whether padding on the left changes the responses of a model.

    It does where virtual tokens are put before the embeddings: peft cannot be told positions, so that the
    padding between the virtual tokens and the text moves them apart.
    """
    if not isinstance(model, peft.PeftModel):
        return False
    config = model.active_peft_config
    return bool(config.is_prompt_learning) and not isinstance(
        config, peft.PrefixTuningConfig | peft.CartridgeConfig
    )


@contextmanager
def _rules_set_aside(model: nn.Module) -> Iterator[None]:
    """Take the model's own `generation_config` away, from which `generate` fills whatever is left open."""
    base: Any = model.get_base_model() if isinstance(model, peft.PeftModel) else model
    own = base.generation_config
    base.generation_config = GenerationConfig()
    try:
        yield
    finally:
        base.generation_config = own


def _respond(
    model: Any,
    batch: Sequence[Asked],
    tokenizer: PreTrainedTokenizerBase,
    stop_ids: Sequence[int],
    spec: GenerationSpec,
) -> list[Transcript]:
    device = next(model.parameters()).device
    width = max(len(one.tokens) for one in batch)
    pad: int = tokenizer.pad_token_id
    ids = torch.tensor([[pad] * (width - len(one.tokens)) + one.tokens for one in batch], device=device)
    mask = torch.tensor(
        [[0] * (width - len(one.tokens)) + [1] * len(one.tokens) for one in batch], device=device
    )
    rules: dict[str, Any] = {"do_sample": False}
    if spec.do_sample:
        # top_k is 50 where nothing is said, which is a rule that nobody asked for.
        rules = {
            "do_sample": True,
            "temperature": spec.temperature or 1.0,
            "top_p": spec.top_p or 1.0,
            "top_k": 0,
        }
    config = GenerationConfig(
        max_new_tokens=spec.max_new_tokens,
        num_beams=1,
        use_cache=True,
        eos_token_id=list(stop_ids),
        pad_token_id=pad,
        **rules,
    )
    first = batch[0]
    with (
        torch.inference_mode(),
        borrowed_global_state(0, "generate", first.set, first.id),
        warnings.catch_warnings(),
    ):
        # Where it matters (`_padding_shows`) there is no padding.
        warnings.filterwarnings("ignore", message="Position ids are not supported for parameter efficient")
        whole = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
    return [
        _transcript(one, new, tokenizer, set(stop_ids))
        for one, new in zip(batch, whole[:, width:].tolist(), strict=True)
    ]


def _transcript(
    asked: Asked, new: list[int], tokenizer: PreTrainedTokenizerBase, stops: set[int]
) -> Transcript:
    """Up to the first token that ends a response; what follows it is padding."""
    end = next((place for place, token in enumerate(new) if token in stops), None)
    finish: Finish = "length" if end is None else "eos"
    tokens = new[:end]
    text = tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return Transcript(
        set=asked.set,
        id=asked.id,
        prompt=asked.prompt,
        response=str(text),
        finish=finish,
        tokens=len(tokens),
    )


def read_journal(path: Path) -> list[Transcript]:
    """The whole lines of a journal; a last line that a killed process left unfinished is cut off.

    Args:
        path: The file; [] when there is none.

    Raises:
        OSError: It could not be read or cut.
    """
    if not path.exists():
        return []
    found: list[Transcript] = []
    good = 0
    for part in path.read_bytes().splitlines(keepends=True):
        try:
            found.append(Transcript.model_validate_json(part))
        except ValidationError:
            break
        if not part.endswith(b"\n"):
            found.pop()
            break
        good += len(part)
    if good < path.stat().st_size:
        with path.open("r+b") as file:
            file.truncate(good)
    return found
