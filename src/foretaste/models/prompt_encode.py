"""Rows as the tokens of prompts, with the position at which the answer is read.

A prompt is tokenised piece by piece, as the code of Malladi et al. 2023 does (`src/dataset.py`): the tokens
of the template are then the same in every row. Where a row is too long its texts are cut, never the template:
the text behind the answer first, as that code's cut at the tail does, then the longest. (That code cuts the
end of the whole, closing token included, and stops with an error when the answer's position is lost.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from foretaste.data.dataset import columns_of
from foretaste.data.prompts import Gap, Kind, Literally, Piece, Prompt, Slot
from foretaste.errors import UserError


@dataclass(frozen=True)
class EncodedPrompts:
    """Tokenised rows, in the order of the data set that they came from.

    Attributes:
        ids: Of the rows.
        input_ids: Tokens of each row, without padding.
        answer_positions: Where in `input_ids` the logits of the answer are read: the [MASK] token of a masked
            model, the last token of a causal one.
        labels: Class ids.
        cut: Ids of rows whose texts were cut.
    """

    ids: list[str]
    input_ids: list[list[int]]
    answer_positions: list[int]
    labels: list[int]
    cut: list[str]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row."""
        return [len(tokens) for tokens in self.input_ids]


def encode(
    rows: Dataset,
    prompt: Prompt,
    tokenizer: PreTrainedTokenizerBase,
    kind: Kind,
    max_length: int | None = None,
) -> EncodedPrompts:
    """Rows in a prompt.

    Args:
        rows: Columns id, text_a, text_b, label.
        prompt: The template.
        tokenizer: The model's.
        kind: masked or causal.
        max_length: Tokens of a row at most, special ones included; the prompt's own when None.

    Raises:
        UserError: The template has no form for causal models, or has a place for a second text that the rows
            do not have; the template alone fills `max_length`; the tokenizer has no mask token.
    """
    pieces = prompt.pieces_for(kind)
    return _encode(
        rows, pieces, tokenizer, kind, max_length or prompt.max_length, prompt.first_limit, prompt.name
    )


def encode_standard(
    rows: Dataset, tokenizer: PreTrainedTokenizerBase, kind: Kind, max_length: int, first_limit: int | None
) -> EncodedPrompts:
    """Rows without a prompt, for a head on the first token (masked models) or the last (causal ones).

    Two texts are parted by the separator of a masked model and by a line break for a causal one.

    Args:
        rows: Columns id, text_a, text_b, label.
        tokenizer: The model's.
        kind: masked or causal.
        max_length: Tokens of a row at most, special ones included.
        first_limit: Tokens of text_a at most.

    Raises:
        UserError: `max_length` leaves no room for a text, or the tokenizer has no classification token.
    """
    pair = columns_of(rows, ["text_b"])["text_b"][:1] not in ([], [None])
    pieces: list[Piece] = [Slot(field="text_a")]
    if pair:
        pieces += [Literally(text=_SEPARATOR if kind == "masked" else "\n"), Slot(field="text_b")]
    if kind == "masked" and _opening(tokenizer, kind) == []:
        raise UserError("the tokenizer has no classification token", where="model.base")
    return _encode(rows, pieces, tokenizer, kind, max_length, first_limit, "standard")


# Stands for the separator token, which is no text.
_SEPARATOR = "\0separator"


def _encode(
    rows: Dataset,
    pieces: Sequence[Piece],
    tokenizer: PreTrainedTokenizerBase,
    kind: Kind,
    max_length: int,
    first_limit: int | None,
    name: str,
) -> EncodedPrompts:
    columns = columns_of(rows)
    opening, closing = _opening(tokenizer, kind), _closing(tokenizer, kind)
    parts: list[list[list[int]] | None] = []  # by piece: tokens of each row; None is the gap
    limited: set[int] = set()
    for piece in pieces:
        if isinstance(piece, Gap):
            parts.append(None)
        elif isinstance(piece, Literally):
            parts.append([_literal(piece.text, tokenizer)] * len(rows))
        else:
            parts.append(_texts(columns[piece.field], piece, tokenizer, name))
            if piece.field == "text_a" and first_limit is not None:
                whole = parts[-1] or []
                limited |= {row for row, tokens in enumerate(whole) if len(tokens) > first_limit}
                parts[-1] = [tokens[:first_limit] for tokens in whole]
    gap = next((place for place, part in enumerate(parts) if part is None), None)
    mask: list[int] = [] if kind == "causal" or gap is None else [_mask(tokenizer, name)]
    slots = [place for place, piece in enumerate(pieces) if isinstance(piece, Slot)]
    input_ids: list[list[int]] = []
    positions: list[int] = []
    cut: list[str] = []
    for row in range(len(rows)):
        tokens = [mask if part is None else list(part[row]) for part in parts]
        fixed = len(opening) + len(closing)
        fixed += sum(len(part) for place, part in enumerate(tokens) if place not in slots)
        if fixed >= max_length:
            raise UserError(
                f"the template alone has {fixed} tokens, max_length is {max_length}",
                where=f"prompt {name}",
                cure="Raise max_length, or shorten the template.",
            )
        shortened = _shorten(tokens, slots, gap, max_length - fixed)
        if shortened or row in limited:
            cut.append(columns["id"][row])
        whole_row = [*opening, *(token for part in tokens for token in part), *closing]
        if not whole_row:
            raise UserError(f"row {columns['id'][row]} has no token", where=f"prompt {name}")
        if kind == "causal":
            positions.append(len(whole_row) - 1)
        elif gap is None:
            positions.append(0)
        else:
            positions.append(len(opening) + sum(len(part) for part in tokens[:gap]))
        input_ids.append(whole_row)
    return EncodedPrompts(list(columns["id"]), input_ids, positions, [int(x) for x in columns["label"]], cut)


def _shorten(tokens: list[list[int]], slots: Sequence[int], gap: int | None, room: int) -> bool:
    """Cut texts at their ends, in place, until they fit; whether anything was cut."""
    over = sum(len(tokens[place]) for place in slots) - room
    if over <= 0:
        return False
    for place in reversed(slots):
        if gap is not None and place > gap and over > 0:
            taken = min(over, len(tokens[place]))
            del tokens[place][len(tokens[place]) - taken :]
            over -= taken
    while over > 0:
        longest = max(slots, key=lambda place: len(tokens[place]))
        tokens[longest].pop()
        over -= 1
    return True


def _texts(
    texts: Sequence[str | None], slot: Slot, tokenizer: PreTrainedTokenizerBase, name: str
) -> list[list[int]]:
    if any(text is None for text in texts):
        raise UserError(
            "the template has a place for a second text, the rows have one",
            where=f"prompt {name}",
            cure="Leave {text_b} out, or name the column under data.columns.text_b.",
        )
    rendered = [slot.render(text) for text in texts if text is not None]
    if not rendered:
        return []
    found: list[list[int]] = tokenizer(rendered, add_special_tokens=False, verbose=False)["input_ids"]
    return found


def _literal(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    if text == _SEPARATOR:
        return _closing(tokenizer, "masked")
    if len(text) == 1:
        # As the paper's code: tokenizers that put a space before every text would make another token of it.
        known = tokenizer.convert_tokens_to_ids(text)
        if isinstance(known, int) and known != tokenizer.unk_token_id:
            return [known]
    found: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return found


def _mask(tokenizer: PreTrainedTokenizerBase, name: str) -> int:
    if tokenizer.mask_token_id is None:
        raise UserError(
            "the tokenizer has no mask token to stand for {answer}",
            where=f"prompt {name}",
            cure="Name a masked language model with its own tokenizer, or a causal one.",
        )
    return int(tokenizer.mask_token_id)


def _opening(tokenizer: PreTrainedTokenizerBase, kind: Kind) -> list[int]:
    """Special tokens before the text."""
    if kind == "masked":
        first = tokenizer.cls_token_id if tokenizer.cls_token_id is not None else tokenizer.bos_token_id
        return [] if first is None else [int(first)]
    plain: list[int] = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole: list[int] = tokenizer("a")["input_ids"]
    return whole[: whole.index(plain[0])] if plain and plain[0] in whole else []


def _closing(tokenizer: PreTrainedTokenizerBase, kind: Kind) -> list[int]:
    """Special tokens behind the text; none for a causal model, which goes on writing there."""
    if kind == "causal":
        return []
    last = tokenizer.sep_token_id if tokenizer.sep_token_id is not None else tokenizer.eos_token_id
    return [] if last is None else [int(last)]


def collate(
    encoded: EncodedPrompts,
    rows: Sequence[int],
    pad_token_id: int,
    device: torch.device | str = "cpu",
    *,
    labels: bool = False,
) -> dict[str, torch.Tensor]:
    """A batch as the models of `label_words` take it, padded on the right.

    Args:
        encoded: Tokenised rows.
        rows: Numbers of those that are wanted.
        pad_token_id: Padding token.
        device: Where the tensors go.
        labels: Whether labels come with them.

    Returns:
        input_ids and attention_mask of shape (rows, tokens), answer_position and maybe labels of shape
        (rows,), all int64.
    """
    longest = max(len(encoded.input_ids[row]) for row in rows)
    ids = torch.full((len(rows), longest), pad_token_id, dtype=torch.int64)
    mask = torch.zeros((len(rows), longest), dtype=torch.int64)
    for place, row in enumerate(rows):
        tokens = encoded.input_ids[row]
        ids[place, : len(tokens)] = torch.tensor(tokens)
        mask[place, : len(tokens)] = 1
    batch = {
        "input_ids": ids,
        "attention_mask": mask,
        "answer_position": torch.tensor([encoded.answer_positions[row] for row in rows]),
    }
    if labels:
        batch["labels"] = torch.tensor([encoded.labels[row] for row in rows])
    return {name: tensor.to(device) for name, tensor in batch.items()}
