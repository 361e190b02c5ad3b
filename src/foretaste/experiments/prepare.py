"""What a run starts from: its rows, its tokens and its untrained model with a head."""

from __future__ import annotations

import copy
import functools
import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from foretaste import data
from foretaste.data import Loaded
from foretaste.errors import UserError
from foretaste.experiments.plan import Resources
from foretaste.models import heads, load
from foretaste.models.encode import Encoded, encode
from foretaste.seeds import borrowed_global_state
from foretaste.spec import DataSpec, RunSpec, digest
from foretaste.training import trainer


@dataclass
class Workspace:
    """What every run of a sweep shares: the folder, the request, and data or model in memory."""

    folder: Path
    base_dir: Path
    sweep: str
    request: dict[str, Any]
    resources: Resources = field(default_factory=Resources)
    processes: int = 1


@functools.lru_cache(maxsize=2)
def _load(request: str, base_dir: Path, fingerprint: str) -> Loaded:
    loaded = data.load(DataSpec.model_validate_json(request), base_dir)
    if data.fingerprint(loaded) != fingerprint:
        raise UserError("the data changed since the sweep was planned", cure="Start the sweep anew.")
    return loaded


def rows_of(run: RunSpec, workspace: Workspace) -> tuple[Loaded, data.Split]:
    """The data of a run, and the rows that its data seed draws.

    Raises:
        UserError: The data changed since the sweep was planned.
    """
    loaded = workspace.resources.data or _load(
        run.data.request.model_dump_json(), workspace.base_dir, run.data.fingerprint
    )
    return loaded, data.draw(loaded, run.data.request, run.seeds.data)


def tokens(tokenizer: PreTrainedTokenizerBase, rows: Dataset, run: RunSpec) -> Encoded:
    """Training rows as tokens."""
    request = run.model.request
    return encode(tokenizer, rows, max_length=request.max_length, pair_separator=request.pair_separator)


def fresh_model(run: RunSpec, workspace: Workspace) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """Tokenizer and untrained classifier on the run's device; a random head comes from the init seed."""
    device = trainer.device_of(run.training)
    with borrowed_global_state(run.seeds.init, "init", "head"):
        if workspace.resources.model is not None:
            assert workspace.resources.tokenizer is not None
            tokenizer = workspace.resources.tokenizer
            model = copy.deepcopy(workspace.resources.model)
            if not run.training.dropout:
                _drop_dropout(model)
            if run.model.pooling == "mean":
                model = load.mean_pooled(cast(PreTrainedModel, model.base_model), len(run.data.classes))
        else:
            location = load.locate(run.model.request, workspace.base_dir)
            tokenizer = load.load_tokenizer(location)
            model = load.load_classifier(
                location,
                run.model.pooling,
                classes=run.data.classes,
                dtype=trainer.dtype_of(run.training),
                dropout=run.training.dropout,
                pad_token_id=tokenizer.pad_token_id,
            )
    model.to(device)  # type: ignore[arg-type]
    return tokenizer, model


def _drop_dropout(model: PreTrainedModel) -> None:
    """No dropout in a model that is built already, where its configuration comes too late."""
    load.no_dropout(model.config)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name, value in list(vars(module).items()):
            if "drop" in name and isinstance(value, float):  # attention keeps its share as a number
                setattr(module, name, 0.0)


_features: dict[str, np.ndarray] = {}
"""Frozen features of the last training sets seen by this process, by content."""


def set_probe_head(
    model: PreTrainedModel, train: Encoded, tokenizer: PreTrainedTokenizerBase, run: RunSpec
) -> float:
    """Start the head from a logistic regression on frozen features; the accuracy that it has on them."""
    inputs = [row["input_ids"] for row in train.features]
    training = run.training
    size = training.eval_batch_size  # decides the padding, and with it the last digits
    key = digest([run.model.fingerprint, run.model.pooling, training.precision, training.device, size])
    key += hashlib.sha256(repr(inputs).encode()).hexdigest()
    if key not in _features:
        # Label flips leave the texts alone, so adapters and rates of one seed share their features.
        if len(_features) >= 4:
            del _features[next(iter(_features))]
        device = next(model.parameters()).device
        batches, order = trainer.padded_batches(train, tokenizer, size, device)
        raw = heads.features(model, batches, tokenizer.pad_token_id)
        _features[key] = raw[np.argsort(order)]
    return heads.set_head(model, _features[key], train.labels).accuracy
