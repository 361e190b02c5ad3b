"""Causal language models: loading one, attaching an adapter to it, and keeping what training changed.

The siblings for classifiers are `load.load_classifier` and `adapters.attach`. Here there is no new head: the
model's own output layer is trained by full fine-tuning, and is no target of `all-linear`, as in peft.
"""

from __future__ import annotations

import dataclasses
import os
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import torch
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LNTUNING_TARGET_MODULES_MAPPING
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from foretaste.errors import UserError
from foretaste.models import adapters, bitfit, catalogue, inits, load
from foretaste.models.load import Location
from foretaste.record import InitCheck
from foretaste.seeds import borrowed_global_state
from foretaste.spec import ResolvedAdapter

CHECKSUM = "crc32"

# Models of a family that is pretrained to fill in masked words see the words to come, whatever class they are
# loaded as.
_ENCODERS = set(MODEL_FOR_MASKED_LM_MAPPING_NAMES)


@dataclass(frozen=True)
class Attached:
    """A model ready to train.

    Attributes:
        model: The model, adapter in place.
        init: The check of LoRA's init when one was asked for.
        frozen: Names of the base model's weights that training leaves alone.
    """

    model: nn.Module
    init: InitCheck | None
    frozen: frozenset[str]


def load_causal(
    location: Location, *, dtype: torch.dtype, dropout: bool, meta: bool = False
) -> PreTrainedModel:
    """The base model with its language head.

    Args:
        location: Where the model is.
        dtype: Of the weights.
        dropout: Whether the base model's dropout is left as configured.
        meta: Build the architecture only, without weights and memory, to check adapters against.

    Raises:
        UserError: It cannot be loaded, is no causal language model, or comes without a language head.
    """
    config = load.read_config(location)
    kind = str(config.model_type)
    if getattr(config, "is_encoder_decoder", False) or (
        kind in _ENCODERS and not getattr(config, "is_decoder", False)
    ):
        raise UserError(
            f"a {kind} model writes no text from left to right",
            where="model.base",
            cure="Name a causal language model, such as the asset smollm2-135m.",
        )
    if not dropout:
        load.no_dropout(config)
    model, missing = load.read_model(AutoModelForCausalLM, location, config, dtype=dtype, meta=meta)
    if meta:
        missing = _missing_head(model, location)
    if missing:
        raise UserError(
            f"the model comes without its language head ({missing[0]}): it would write at random",
            where="model.base",
            cure="Name the whole model, not its body.",
        )
    return model


def _missing_head(model: PreTrainedModel, location: Location) -> list[str]:
    """The weight of the language head, if a local folder lacks it and the model does not tie it."""
    head = model.get_output_embeddings()
    if head is None or location.folder is None or model.config.get_text_config().tie_word_embeddings:
        return []
    name = next(name for name, module in model.named_modules() if module is head) + ".weight"
    stored = load.stored_names(location)
    return [] if not stored or name in stored else [name]


def attach(model: PreTrainedModel, adapter: ResolvedAdapter, *, seed: int, total_steps: int) -> Attached:
    """The model ready to train: adapter in place, initialised, and the right parameters frozen.

    Args:
        model: From `load_causal`; changed in place. On the meta device inits that decompose the weights are
            left out.
        adapter: The arm.
        seed: The init seed.
        total_steps: Optimiser steps planned; AdaLoRA's schedule needs them.

    Raises:
        UserError: The method does not fit this model, or the rank is larger than a layer.
    """
    where = f"adapter '{adapter.name}'"
    own = {id(parameter) for parameter in model.parameters()}
    if adapter.method == catalogue.FULL:
        model.requires_grad_(True)
        return Attached(model, None, frozenset())
    if adapter.method == catalogue.BITFIT:
        _train_biases(model, where)
        return Attached(model, None, _frozen(model, own))
    config = _build_config(model, adapter, total_steps, where)
    try:
        with borrowed_global_state(seed, "init", "peft"), warnings.catch_warnings():
            # As in `adapters.attach`: of names and sizes on which nothing here depends.
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
            warnings.filterwarnings("ignore", message="fan_in_fan_out is set to", category=UserWarning)
            warnings.filterwarnings("ignore", message="Unsupported layer type", category=UserWarning)
            wrapped = peft.get_peft_model(model, config)
    except (ValueError, TypeError, KeyError, AttributeError, NotImplementedError) as error:
        raise UserError(
            f"peft refuses this config: {error}",
            where=where,
            cure="Change the arm's fields, or take another method (foretaste list adapters).",
        ) from error
    _check_rank(wrapped, where)
    if not any(parameter.requires_grad for parameter in wrapped.parameters()):
        raise UserError("it trains nothing in this model", where=where, cure="Take another method.")
    check = None
    if adapter.init is not None and not _on_meta(wrapped):
        check = inits.apply(wrapped, adapter.init, seed)
    if adapter.freeze:
        for _, a, b in inits.lora_matrices(wrapped):
            (a if adapter.freeze == "A" else b).requires_grad_(False)
    return Attached(wrapped, check, _frozen(wrapped, own))


def _train_biases(model: PreTrainedModel, where: str) -> None:
    """BitFit: as for a classifier, but for the language head, which is a layer like any other."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(bitfit.is_bias(name))
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError(
            f"{type(model).__name__} has no bias terms, as most models of LLaMA's kind",
            where=where,
            cure="Use ln_tuning, ia3 or lora.",
        )


def _build_config(
    model: PreTrainedModel, adapter: ResolvedAdapter, total_steps: int, where: str
) -> peft.PeftConfig:
    kind = catalogue.config_class(adapter.method)
    config: dict[str, Any] = {k: v for k, v in adapter.config.items() if k != catalogue.RATIO}
    config["task_type"] = "CAUSAL_LM"
    if _on_meta(model) and isinstance(config.get("init_lora_weights"), str):
        config["init_lora_weights"] = True  # pissa, olora: there are no weights to decompose
    head = _head_name(model)
    if config.get("target_modules") == "all-linear":
        config["target_modules"] = [name for name in adapters.linear_names(model) if name != head]
    known = model.config.model_type in TRANSFORMERS_MODELS_TO_LNTUNING_TARGET_MODULES_MAPPING
    if kind is peft.LNTuningConfig and config.get("target_modules") is None and not known:
        config["target_modules"] = adapters.norm_names(model)
    if kind is peft.IA3Config and config.get("target_modules") is not None:
        # peft wants to know which targets are feed-forward; none given means outputs are scaled.
        config.setdefault("feedforward_modules", [])
    if kind is peft.AdaLoraConfig:
        config.setdefault("total_step", total_steps)
        # peft's own defaults (0, 0) leave no phase of constant rank and fail on short runs.
        config.setdefault("tinit", total_steps // 10)
        config.setdefault("tfinal", total_steps // 5)
    fields = {field.name for field in dataclasses.fields(kind)}
    try:
        return kind(**{key: value for key, value in config.items() if key in fields})
    except (ValueError, TypeError, ImportError) as error:
        raise UserError(f"peft refuses this config: {error}", where=where) from error


def _head_name(model: PreTrainedModel) -> str | None:
    head = model.get_output_embeddings()
    return next((name for name, module in model.named_modules() if module is head), None)


def _check_rank(model: nn.Module, where: str) -> None:
    for name, a, b in inits.lora_matrices(model):
        r, limit = a.shape[0], min(a.shape[1], b.shape[0])
        if r > limit:
            raise UserError(
                f"r = {r} is larger than layer '{name}' ({b.shape[0]} x {a.shape[1]}; allowed: 1 to {limit})",
                where=where,
                cure="Lower r, or leave that layer out of target_modules.",
            )


def _on_meta(model: nn.Module) -> bool:
    return any(parameter.device.type == "meta" for parameter in model.parameters())


def virtual_tokens(adapter: ResolvedAdapter) -> int:
    """Positions that a prompt method takes up before every text; 0 for all others."""
    plain = adapter.method in (catalogue.FULL, catalogue.BITFIT)
    prompted = not plain and catalogue.is_prompt_learning(catalogue.config_class(adapter.method))
    return int(adapter.config["num_virtual_tokens"]) if prompted else 0


# --- keeping what training changed ---------------------------------------------------------------


def _frozen(model: nn.Module, base: set[int]) -> frozenset[str]:
    """Names of the base model's own weights that require no gradient, in the model with its adapter."""
    named = model.named_parameters(remove_duplicate=False)
    return frozenset(name for name, p in named if id(p) in base and not p.requires_grad)


def save_trained(attached: Attached, file: Path) -> None:
    """Write everything that training may have changed; the base model's frozen weights are left out.

    Args:
        attached: The model.
        file: Safetensors file to write, which holds the exact values.

    Raises:
        OSError: It could not be written.
    """
    chosen: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for name, tensor in attached.model.state_dict().items():
        # A tied weight has two names; filling one on reading fills both.
        if name not in attached.frozen and tensor.data_ptr() not in seen:
            seen.add(tensor.data_ptr())
            chosen[name] = tensor.detach().cpu().contiguous()
    try:
        save_file(chosen, file, {CHECKSUM: _checksum(chosen)})
    except SafetensorError as error:  # what it makes of a full disk
        raise OSError(f"cannot write '{file}': {error}") from error
    with file.open("rb") as written:
        os.fsync(written.fileno())


def _checksum(tensors: dict[str, torch.Tensor]) -> str:
    """CRC-32 over names and values: a flipped bit of a weight is a weight all the same."""
    total = 0
    for name, tensor in sorted(tensors.items()):
        values = tensor.reshape(-1).view(torch.uint8).numpy()
        total = zlib.crc32(values.data, zlib.crc32(name.encode(), total))
    return f"{total:08x}"


def load_trained(attached: Attached, file: Path) -> None:
    """Fill a model that was attached anew with what `save_trained` wrote of one attached in the same way.

    Args:
        attached: The model; changed in place, or left as it was where the file does not fit.
        file: The file.

    Raises:
        ValueError: The file is missing, damaged, or was written for another model.
    """
    try:
        with safe_open(file, framework="pt") as opened:
            written = (opened.metadata() or {}).get(CHECKSUM)
        tensors = load_file(file)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"cannot read '{file}': {error}") from error
    if written != _checksum(tensors):
        raise ValueError(f"'{file}' has changed since it was written")
    state = attached.model.state_dict()
    filled = {state[name].data_ptr() for name in tensors if name in state}
    wanted = {name for name in state if name not in attached.frozen and state[name].data_ptr() not in filled}
    wrong = sorted(wanted | (tensors.keys() - state.keys()))
    wrong += [name for name in tensors if name in state and state[name].shape != tensors[name].shape]
    if wrong:
        raise ValueError(f"'{file}' was written for another model: '{wrong[0]}' differs")
    attached.model.load_state_dict(tensors, strict=False)
