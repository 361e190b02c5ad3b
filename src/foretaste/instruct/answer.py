"""What a causal model says at the first position of its answer, as outputs that kernels can be made of.

A row to train on has the log-likelihood of its response as its output: the loss of a batch is minus the sum
of these over its response tokens, so that the push of a step on anything else is exact to first order. A
request that is asked has the margin by which an answer opens as the poisoned ones do:

    m = log sum over P of exp(z)  -  log sum over Q of exp(z),

z being the logits at the first position of the answer, P the first tokens of poisoned responses and Q those
of the other training responses, without P.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from foretaste.errors import UserError
from foretaste.instruct import sft
from foretaste.instruct.render import IGNORED, Rendered
from foretaste.kernels import Inputs

BODY = "body"
AGREEMENT = 1e-4
"""Relative error of log-likelihoods up to which this way to the logits counts as the model's own."""


@dataclass(frozen=True)
class Openings:
    """First tokens of responses.

    Attributes:
        poisoned: P, ascending.
        own: Q, ascending, none of them in P.
        shared: Of the other responses, those that open with a token of P.
        further: Tokens that poisoned responses hold beside these.
    """

    poisoned: list[int]
    own: list[int]
    shared: int
    further: list[int]

    @property
    def words(self) -> list[int]:
        """All of them: P, then Q, then the rest."""
        return [*self.poisoned, *self.own, *self.further]


def openings(poisoned: Sequence[Rendered], own: Sequence[Rendered]) -> Openings:
    """The first tokens of rendered rows.

    Args:
        poisoned: Rows with a response that the attacker wrote.
        own: Rows as they were.

    Raises:
        UserError: All responses open alike, so that the first token says nothing.
    """
    responses = [_response(row) for row in poisoned]
    p = sorted({response[0] for response in responses})
    first = [_response(row)[0] for row in own]
    q = sorted(set(first) - set(p))
    if not p or not q:
        raise UserError(
            "poisoned and other responses open with the same tokens: their first token tells nothing apart",
            where="scenario",
            cure="Measure this scenario; it cannot be forecast.",
        )
    further = sorted({token for response in responses for token in response} - {*p, *q})
    return Openings(p, q, sum(token in set(p) for token in first), further)


def _response(row: Rendered) -> list[int]:
    return [token for token, label in zip(row.input_ids, row.labels, strict=True) if label != IGNORED]


class AnswerModel(nn.Module):
    """A causal model's body, and its logits in two parts: of a few words, which are trained, and the rest.

    The table of words is far too large to keep a gradient of for each row, and margins depend on a few of its
    rows only: the words of `Openings`. All other rows of the output side are held fixed.

    Args:
        model: The causal model; its body is shared, not copied.
        found: Its openings.

    Raises:
        UserError: Its language head is no plain product with a table.
    """

    rest: torch.Tensor
    place: torch.Tensor

    def __init__(self, model: PreTrainedModel, found: Openings) -> None:
        super().__init__()
        head: Any = model.get_output_embeddings()
        if not isinstance(head, nn.Linear) or getattr(head, "bias", None) is not None:
            raise UserError("its language head is no plain product with a table", where="model.base")
        self.add_module(BODY, model.get_submodule(model.base_model_prefix))
        table = head.weight.detach()
        words = torch.tensor(found.words, device=table.device)
        rest = torch.ones(len(table), dtype=torch.bool, device=table.device)
        rest[words] = False
        self.words = nn.Linear(table.shape[1], len(words), bias=False, dtype=table.dtype, device=table.device)
        self.words.weight.data.copy_(table[words])
        self.register_buffer("rest", table[rest], persistent=False)
        place = torch.empty(len(table), dtype=torch.long, device=table.device)
        place[words] = torch.arange(len(words), device=table.device)
        place[rest] = torch.arange(len(words), len(table), device=table.device)
        self.register_buffer("place", place, persistent=False)
        self._counts = (len(found.poisoned), len(found.own))

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        places: torch.Tensor,
        targets: torch.Tensor,
    ) -> torch.Tensor:
        """One output a row: the log-likelihood of its targets, or the margin where it has none.

        Args:
            input_ids: Shape (rows, tokens).
            attention_mask: Likewise.
            places: Positions whose next token counts, shape (rows, places); the first is all that counts of a
                row without targets.
            targets: These next tokens, `IGNORED` where there is none; shape (rows, places).

        Returns:
            Shape (rows, 1).
        """
        body = self.get_submodule(BODY)
        hidden = body(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state
        seen = hidden.gather(1, places.unsqueeze(2).expand(-1, -1, hidden.shape[2]))
        known = self.words(seen)
        p, q = self._counts
        first = known[:, 0]
        margin = first[:, :p].logsumexp(1) - first[:, p : p + q].logsumexp(1)
        counted = targets != IGNORED
        logits = torch.cat([known[counted], seen[counted] @ self.rest.T], 1)
        wanted = self.place[targets[counted]]
        each = -nn.functional.cross_entropy(logits, wanted, reduction="none")
        row = counted.nonzero()[:, 0]
        likelihood = torch.zeros_like(margin).index_add(0, row, each)
        return torch.where(counted.any(1), likelihood, margin).unsqueeze(1)


def outputs(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The outputs of an `AnswerModel`, as kernels take them: shape (rows, 1)."""
    found: torch.Tensor = model(**batch)
    return found


def inputs(
    rows: Sequence[Rendered], prompts: Sequence[Sequence[int]], pad: int, device: torch.device
) -> Inputs:
    """Rows to train on, then requests that are asked, as batches of an `AnswerModel`.

    Args:
        rows: Rendered training rows.
        prompts: Tokens of requests.
        pad: The padding token.
        device: Of the model.
    """
    tokens = [*(row.input_ids for row in rows), *map(list, prompts)]
    places, targets = [], []
    for row in rows:
        at = [i for i, label in enumerate(row.labels) if label != IGNORED]
        places.append([i - 1 for i in at])
        targets.append([row.labels[i] for i in at])
    for prompt in prompts:
        places.append([len(prompt) - 1])
        targets.append([IGNORED])

    def collate(numbers: Sequence[int]) -> dict[str, torch.Tensor]:
        def padded(parts: list[list[int]], filling: int) -> torch.Tensor:
            width = max(map(len, parts))
            return torch.tensor([part + [filling] * (width - len(part)) for part in parts], device=device)

        return {
            "input_ids": padded([tokens[i] for i in numbers], pad),
            "attention_mask": padded([[1] * len(tokens[i]) for i in numbers], 0),
            "places": padded([places[i] for i in numbers], 0),
            "targets": padded([targets[i] for i in numbers], IGNORED),
        }

    return Inputs([len(row) for row in tokens], collate)


def check(model: PreTrainedModel, answers: AnswerModel, rows: Sequence[Rendered], pad: int) -> None:
    """Check on some rows that the two ways to the logits agree.

    Raises:
        UserError: They do not: the model does something between body and head, or after it.
    """
    device = next(model.parameters()).device
    batch = sft.ResponseCollator(pad)(rows)
    with torch.no_grad():
        theirs = float(sft.response_loss(model, {key: part.to(device) for key, part in batch.items()}))
        ours = -float(outputs(answers, inputs(rows, [], pad, device).collate(range(len(rows)))).sum())
    if abs(theirs - ours) > AGREEMENT * abs(theirs):
        raise UserError(
            f"{type(model).__name__} makes its logits in another way than by its table of words",
            where="model.base",
            cure="Measure it; it cannot be forecast.",
        )


def coverage(model: PreTrainedModel, prompts: Sequence[Sequence[int]], words: Sequence[int]) -> float:
    """Mean probability of some words together at the first position of the answer.

    Args:
        model: A causal language model.
        prompts: Tokens of requests.
        words: The words.
    """
    device = next(model.parameters()).device
    total = 0.0
    with torch.no_grad():
        for prompt in prompts:
            scores = model(input_ids=torch.tensor([list(prompt)], device=device), use_cache=False).logits[
                0, -1
            ]
            total += float(scores.softmax(0)[list(words)].sum())
    return total / len(prompts)
