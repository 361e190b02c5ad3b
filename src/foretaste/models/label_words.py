"""A language model as a classifier whose logits are those of its label words, and the head beside it.

Masked models are read at the [MASK] token, causal ones at the last token of the prompt, whose logits are
those of the next. `LinearHeadModel` is the standard alternative, a new linear layer on the hidden state of
one token (Malladi et al. 2023, section 3). Both take the same inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoModelForMaskedLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)
from transformers.utils.generic import ModelOutput

from foretaste.data.prompts import Kind, Prompt
from foretaste.errors import UserError
from foretaste.models import causal, load
from foretaste.models.load import Location
from foretaste.spec import ModelSpec


class LabelWordModel(nn.Module):
    """A language model whose outputs are the logits of the label words at one position of each row.

    The head is applied to that position alone: logits over the vocabulary at every token would take a
    thousand times the memory. The whole vocabulary's logits of the position are made, so that tied and
    untied heads are the model's own; those of the label words are kept.

    Args:
        lm: A masked or causal language model; its weights are this model's.
        word_ids: Token of each class's label word, in the order of the class ids.
        kind: masked or causal.
    """

    def __init__(self, lm: PreTrainedModel, word_ids: Sequence[int], kind: Kind) -> None:
        super().__init__()
        self.lm = lm
        self.kind = kind
        self.word_ids = list(word_ids)
        self.num_labels = len(self.word_ids)

    @property
    def config(self) -> PretrainedConfig:
        """The language model's."""
        return self.lm.config

    @property
    def body(self) -> nn.Module:
        """The language model without its head."""
        return body_of(self.lm)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        answer_position: torch.Tensor,
        labels: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
    ) -> SequenceClassifierOutput:
        """Logits of shape (rows, classes), and the mean cross-entropy when labels are given.

        Args:
            input_ids: Shape (rows, tokens), int64.
            attention_mask: The same shape, 1 at tokens that are no padding.
            answer_position: Shape (rows,): where the answer's logits are read.
            labels: Shape (rows,): class ids.
            token_type_ids: The shape of `input_ids`; the model's own default when None.
        """
        more: dict[str, Any] = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        if self.kind == "causal":
            more["use_cache"] = False

        def pick(_: nn.Module, __: object, output: Any) -> Any:
            return _replaced(output, _at(_hidden(output), answer_position).unsqueeze(1))

        # A hook lives for one call: one that stayed would be copied with the model and point to the old one.
        handle = self.body.register_forward_hook(pick)
        try:
            vocabulary = self.lm(input_ids=input_ids, attention_mask=attention_mask, **more).logits
        finally:
            handle.remove()
        logits = vocabulary[:, 0, self.word_ids]
        return _output(logits, labels)


class LinearHeadModel(nn.Module):
    """A linear layer on the hidden state of one token of each row.

    Args:
        body: A model without its head; its weights are this model's.
        num_labels: Number of classes.
        kind: masked or causal: what the body was.
    """

    def __init__(self, body: PreTrainedModel, num_labels: int, kind: Kind) -> None:
        super().__init__()
        self.lm = body
        self.kind = kind
        self.num_labels = num_labels
        size = body.config.get_text_config().hidden_size
        device = next(body.parameters()).device
        self.classifier = nn.Linear(size, num_labels, dtype=body.dtype, device=device)
        nn.init.zeros_(self.classifier.weight)
        nn.init.zeros_(self.classifier.bias)

    @property
    def config(self) -> PretrainedConfig:
        """The language model's."""
        return self.lm.config

    @property
    def body(self) -> nn.Module:
        """The language model without its head."""
        return self.lm

    def features(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        answer_position: torch.Tensor,
        token_type_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """What the linear layer sees: shape (rows, d)."""
        more: dict[str, Any] = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        if self.kind == "causal":
            more["use_cache"] = False
        output = self.lm(input_ids=input_ids, attention_mask=attention_mask, **more)
        return _at(_hidden(output), answer_position)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        answer_position: torch.Tensor,
        labels: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
    ) -> SequenceClassifierOutput:
        """As `LabelWordModel.forward`; `answer_position` is the token whose hidden state is read."""
        seen = self.features(input_ids, attention_mask, answer_position, token_type_ids)
        return _output(self.classifier(seen), labels)


FewShotClassifier = LabelWordModel | LinearHeadModel


def body_of(lm: PreTrainedModel) -> nn.Module:
    """The language model without its head.

    Raises:
        UserError: Its class does not say which part that is.
    """
    body = lm.base_model
    if body is lm:
        raise UserError(f"{type(lm).__name__} has no body apart from its head", where="model.base")
    return body


def _hidden(output: Any) -> torch.Tensor:
    hidden = output[0]
    assert isinstance(hidden, torch.Tensor)
    return hidden


def _at(hidden: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    return hidden[torch.arange(len(hidden), device=hidden.device), position]


def _replaced(output: Any, hidden: torch.Tensor) -> Any:
    """The body's output with another last hidden state."""
    if isinstance(output, ModelOutput):
        return type(output)(**{**output, next(iter(output)): hidden})
    return (hidden, *output[1:])


def _output(logits: torch.Tensor, labels: torch.Tensor | None) -> SequenceClassifierOutput:
    loss = None
    if labels is not None:
        # float64 stays: only half precisions are too coarse for a loss.
        wide = logits if logits.dtype in (torch.float32, torch.float64) else logits.float()
        loss = nn.functional.cross_entropy(wide, labels)
    return SequenceClassifierOutput(loss=loss, logits=logits)


# --- loading -------------------------------------------------------------------------------------


def kind_of(location: Location) -> Kind:
    """Whether a model fills in masked words or writes from left to right.

    Raises:
        UserError: It does neither, or cannot be read.
    """
    config = load.read_config(location)
    name = str(config.model_type)
    if not getattr(config, "is_encoder_decoder", False):
        if name in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False):
            return "masked"
        if name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
            return "causal"
    raise UserError(
        f"a {name} model is neither a masked nor a causal language model",
        where="model.base",
        cure="Name one that is, such as FacebookAI/roberta-base or the asset smollm2-135m.",
    )


def load_lm(location: Location, *, dtype: torch.dtype, meta: bool = False) -> tuple[PreTrainedModel, Kind]:
    """A language model with its head, in evaluation mode and without dropout.

    Args:
        location: Where the model is.
        dtype: Of the weights.
        meta: Build the architecture only, without weights and memory.

    Raises:
        UserError: It cannot be loaded, is no language model, or comes without a language head.
    """
    kind = kind_of(location)
    if kind == "causal":
        return causal.load_causal(location, dtype=dtype, dropout=False, meta=meta).eval(), kind
    config = load.no_dropout(load.read_config(location))
    model, missing = load.read_model(AutoModelForMaskedLM, location, config, dtype=dtype, meta=meta)
    if meta:
        missing = _missing_head(model, location)
    if missing:
        raise UserError(
            f"the model comes without its language head ({missing[0]}): it would fill in at random",
            where="model.base",
            cure="Name the whole model, not its body or a sentence encoder.",
        )
    return model.eval(), kind


def _missing_head(model: PreTrainedModel, location: Location) -> list[str]:
    """A weight outside the body, if a local folder holds none of those."""
    if location.folder is None:
        return []
    inside = f"{model.base_model_prefix}."
    outside = [name for name, _ in model.named_parameters() if not name.startswith(inside)]
    stored = load.stored_names(location)
    heads = {name.partition(".")[0] for name in outside}
    lacking = stored and not any(name.partition(".")[0] in heads for name in stored)
    return outside[:1] if lacking else []


def word_ids(
    words: Sequence[str], tokenizer: PreTrainedTokenizerBase, *, spaced: bool, where: str
) -> list[int]:
    """The token of each label word.

    Args:
        words: Label words without spaces around them.
        tokenizer: The model's.
        spaced: Whether a space stands before the word in the prompt.
        where: For errors.

    Raises:
        UserError: A word is not exactly one token, is unknown to the tokenizer, or two are the same token.
    """
    found: dict[int, str] = {}
    for word in words:
        ids = tokenizer(f" {word}" if spaced else word, add_special_tokens=False)["input_ids"]
        shown = ", ".join(repr(piece) for piece in tokenizer.convert_ids_to_tokens(ids))
        if len(ids) != 1:
            raise UserError(
                f"the label word '{word}' is {len(ids)} tokens ({shown}), expected one",
                where=where,
                cure="Choose a word that the tokenizer knows whole.",
            )
        if ids[0] == tokenizer.unk_token_id:
            raise UserError(f"the tokenizer does not know the label word '{word}'", where=where)
        if ids[0] in found:
            raise UserError(
                f"the label words '{found[ids[0]]}' and '{word}' are the same token ({shown})", where=where
            )
        found[ids[0]] = word
    return list(found)


def load_label_words(
    base: str,
    prompt: Prompt,
    *,
    base_dir: Path,
    revision: str | None = None,
    dtype: torch.dtype = torch.float32,
) -> tuple[LabelWordModel, PreTrainedTokenizerBase]:
    """A pretrained model as a classifier by a prompt's label words, and its tokenizer.

    Args:
        base: An asset, a local folder or a hub id.
        prompt: Its words become the outputs, in their order.
        base_dir: Folder that relative paths start from.
        revision: Branch, tag or commit of a hub model.
        dtype: Of the weights.

    Raises:
        UserError: As `load_lm` and `word_ids`.
    """
    location = load.locate(ModelSpec(base=base, revision=revision), base_dir)
    tokenizer = load.load_tokenizer(location)
    kind = kind_of(location)
    ids = word_ids(prompt.words, tokenizer, spaced=prompt.spaced(kind), where=f"prompt {prompt.name}")
    lm, kind = load_lm(location, dtype=dtype)
    return LabelWordModel(lm, ids, kind).eval(), tokenizer


def load_linear_head(
    base: str,
    num_labels: int,
    *,
    base_dir: Path,
    revision: str | None = None,
    dtype: torch.dtype = torch.float32,
) -> tuple[LinearHeadModel, PreTrainedTokenizerBase]:
    """A pretrained model with a new linear head, all zero, and its tokenizer; raises as `load_lm`."""
    location = load.locate(ModelSpec(base=base, revision=revision), base_dir)
    lm, kind = load_lm(location, dtype=dtype)
    body = body_of(lm)
    assert isinstance(body, PreTrainedModel)
    return LinearHeadModel(body, num_labels, kind).eval(), load.load_tokenizer(location)
