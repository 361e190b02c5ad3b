"""The one renderer: text to tokens, for training rows and test rows alike."""

from __future__ import annotations

from dataclasses import dataclass

from datasets import Dataset
from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Encoded:
    """Tokenised rows, in the order of the data set they came from.

    `features[i]` holds the lists that the model takes (input_ids, attention_mask, ...) and `labels`.
    """

    ids: list[str]
    features: list[dict[str, list[int] | int]]
    truncated: int

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, index: int) -> dict[str, list[int] | int]:
        return self.features[index]

    @property
    def labels(self) -> list[int]:
        """Class ids."""
        return [int(row["labels"]) for row in self.features]  # type: ignore[arg-type]

    @property
    def token_ids(self) -> set[int]:
        """Every token id that occurs."""
        return {token for row in self.features for token in row["input_ids"]}  # type: ignore[union-attr]

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row."""
        return [len(row["input_ids"]) for row in self.features]  # type: ignore[arg-type]


def encode(
    tokenizer: PreTrainedTokenizerBase,
    rows: Dataset,
    *,
    max_length: int,
    pair_separator: str | None = None,
) -> Encoded:
    """Tokenise rows once, without padding.

    Args:
        tokenizer: The base model's tokenizer.
        rows: Columns id, text_a, text_b, label.
        max_length: Longer inputs are cut to this many tokens and counted in `truncated`.
        pair_separator: Join pairs by this text into one (TTR paper's code: " <SEP> "); None uses the
            tokenizer's own pair encoding.
    """
    columns = rows.with_format(None)[:]
    first, second = list(columns["text_a"]), columns["text_b"]
    pairs = bool(second) and second[0] is not None
    if pairs and pair_separator is not None:
        first = [a + pair_separator + b for a, b in zip(first, second, strict=True)]
        pairs = False
    texts = (first, list(second)) if pairs else (first,)
    output = tokenizer(*texts, truncation=False, padding=False, verbose=False)
    full = [len(ids) for ids in output["input_ids"]]
    truncated = sum(length > max_length for length in full)
    if truncated:
        output = tokenizer(*texts, truncation=True, max_length=max_length, padding=False)
    names = [name for name in output if name in tokenizer.model_input_names]
    features: list[dict[str, list[int] | int]] = [
        {name: output[name][i] for name in names} | {"labels": int(label)}
        for i, label in enumerate(columns["label"])
    ]
    return Encoded(list(columns["id"]), features, truncated)
