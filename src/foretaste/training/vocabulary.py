"""Training only the word embeddings that the training rows use: the same result in less time.

The row of a token that never occurs gets an exactly zero gradient, so SGD and Adam without weight decay leave
it where it was. Its zeros are nevertheless written, normed, averaged and stepped at every step: for MiniLM
half of all parameters. While training, the embedding is therefore replaced by the rows in use.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from foretaste.spec import TrainingSpec


class UsedRows(nn.Module):
    """An embedding of the tokens in use, indexed by the ids of the whole vocabulary.

    Args:
        whole: The embedding that it stands for.
        used: Token ids in use, ascending; looking up any other id is an error.
    """

    def __init__(self, whole: nn.Embedding, used: torch.Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(whole.weight.detach()[used].clone())
        places = torch.full((whole.num_embeddings,), len(used), device=used.device)
        places[used] = torch.arange(len(used), device=used.device)
        self.register_buffer("places", places, persistent=False)
        self._whole = (whole, used)  # in a tuple: a submodule's weight would be a parameter of this one
        pad = whole.padding_idx
        self.padding_idx = None if pad is None or pad not in used else int(places[pad])

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Embeddings of shape (*input_ids.shape, d)."""
        places: torch.Tensor = self.get_buffer("places")
        return nn.functional.embedding(places[input_ids], self.weight, padding_idx=self.padding_idx)

    def write_back(self) -> nn.Embedding:
        """The embedding that it stands for, with the rows in use as they are now."""
        whole, used = self._whole
        with torch.no_grad():
            whole.weight[used] = self.weight.detach()
        return whole


@contextmanager
def only_used_tokens(model: nn.Module, token_ids: Iterable[int], spec: TrainingSpec) -> Iterator[None]:
    """Exchange the model's word embedding for the rows in use, and write them back at the end.

    Nothing is exchanged where the result could differ: weight decay or Adafactor (which move every row), a
    frozen or tied embedding, or one that is more than a plain lookup.

    Args:
        model: The model to train.
        token_ids: Every token id that training will look up, padding included.
        spec: How it is trained.
    """
    whole = _plain_embedding(model)
    exact = spec.weight_decay == 0.0 and spec.optimizer in {"adamw", "sgd"}
    if whole is None or not exact:
        yield
        return
    used = torch.tensor(sorted(set(token_ids)), device=whole.weight.device)
    part = UsedRows(whole, used)
    parent, name = _place_of(model, whole)
    setattr(parent, name, part)
    try:
        yield
    finally:
        setattr(parent, name, part.write_back())


@contextmanager
def every_token(model: nn.Module) -> Iterator[None]:
    """Amid `only_used_tokens`, put the whole embedding back for a moment: for a look at the model.

    Training goes on as if nothing had happened. Elsewhere this does nothing.

    Args:
        model: The model in training.
    """
    part = next((module for module in model.modules() if isinstance(module, UsedRows)), None)
    if part is None:
        yield
        return
    parent, name = _place_of(model, part)
    setattr(parent, name, part.write_back())
    try:
        yield
    finally:
        setattr(parent, name, part)


def _plain_embedding(model: nn.Module) -> nn.Embedding | None:
    try:
        found = model.get_input_embeddings()  # type: ignore[operator]
    except (AttributeError, NotImplementedError):
        return None
    if type(found) is not nn.Embedding or not found.weight.requires_grad:
        return None
    owners = [m for m in model.modules() if any(p is found.weight for p in m.parameters(recurse=False))]
    plain = found.max_norm is None and not found.scale_grad_by_freq and not found.sparse
    return found if plain and len(owners) == 1 else None


def _place_of(model: nn.Module, wanted: nn.Module) -> tuple[nn.Module, str]:
    for name, module in model.named_modules():
        if module is wanted:
            parent, _, last = name.rpartition(".")
            return model.get_submodule(parent), last
    raise AssertionError("the input embedding is no submodule of its model")
