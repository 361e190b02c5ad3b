"""Adapters: full fine-tuning, BitFit and every method of upstream peft, attached to a classifier."""

from __future__ import annotations

import dataclasses
import enum
import itertools
import math
import warnings
from collections.abc import Sequence
from typing import Any

import peft
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LNTUNING_TARGET_MODULES_MAPPING
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from foretaste.errors import UserError, unknown
from foretaste.models import bitfit, catalogue, heads, inits, prompts
from foretaste.models.catalogue import BITFIT as BITFIT
from foretaste.models.catalogue import FULL as FULL
from foretaste.models.catalogue import config_class as config_class
from foretaste.models.catalogue import methods as methods
from foretaste.record import InitCheck
from foretaste.seeds import borrowed_global_state
from foretaste.spec import AdapterSpec, HeadPolicy, ResolvedAdapter
from foretaste.specfile import validate

_NOT_OURS = {
    "task_type",
    "peft_type",
    "peft_version",
    "modules_to_save",
    "inference_mode",
    "base_model_name_or_path",
}

# What to do about a config that peft refuses: its own message says what is wrong.
_OTHERWISE = "Change the arm's fields, or take another method (foretaste list adapters)."


def expand(spec: AdapterSpec, index: int) -> list[tuple[AdapterSpec, dict[str, Any]]]:
    """One spec for each combination of the grid, with the grid's values for the name.

    Keys are config fields, or dotted paths into `init` and `training` (`init.k`).

    Raises:
        UserError: A key is set both in the grid and beside it, or has no values.
    """
    where = f"adapters.{index}.grid"
    if spec.grid and spec.name:
        raise UserError(f"one name, '{spec.name}', for every arm of a grid", where=where, cure="Drop `name`.")
    base = spec.model_dump(exclude_unset=True, exclude={"grid"})
    nested = {f"{head}.{key}" for head in ("init", "training") for key in base.get(head) or {}}
    for key, values in spec.grid.items():
        if not values:
            raise UserError(f"grid key '{key}' has no values", where=where)
        if key in base or key in nested:
            raise UserError(f"'{key}' is set both in the grid and beside it", where=where)
    expanded = []
    for combination in itertools.product(*spec.grid.values()):
        chosen = dict(zip(spec.grid, combination, strict=True))
        content = {key: dict(value) if isinstance(value, dict) else value for key, value in base.items()}
        for key, value in chosen.items():
            head, _, tail = key.partition(".")
            if tail and head in {"init", "training"}:
                content.setdefault(head, {})[tail] = value
            else:
                content[key] = value
        expanded.append((validate(content, AdapterSpec, origin=f"adapters.{index}"), chosen))
    return expanded


def resolve(spec: AdapterSpec, chosen: dict[str, Any], *, where: str) -> ResolvedAdapter:
    """The arm with every field that foretaste decides filled in and checked against peft's config class.

    Args:
        spec: The arm.
        chosen: Values that the grid set, which appear in the arm's name.
        where: Key of the arm, for errors.

    Raises:
        UserError: Unknown method or field, or a combination that makes no sense.
    """
    if spec.method in (FULL, BITFIT):
        return _resolve_plain(spec, chosen, where)
    kind = config_class(spec.method, where=f"{where}.method")
    catalogue.refuse_unfit(spec.method, spec.config, where=where)
    is_lora = kind is peft.LoraConfig
    fields = {field.name for field in dataclasses.fields(kind)} - _NOT_OURS
    fields |= {catalogue.RATIO} if is_lora else set()
    for key in spec.config:
        if key not in fields:
            error = unknown(f"field of peft's {kind.__name__}", key, fields, where=where)
            if key == "rank" and "r" in fields:  # by its letters it is nearest to rank_pattern
                error.cure = "Did you mean 'r'?"
            raise error
    fixed = catalogue.VARIANTS.get(spec.method, {})
    clash = [key for key in fixed if key in spec.config and spec.config[key] != fixed[key]]
    if clash:
        raise UserError(f"'{spec.method}' sets {clash[0]} = {fixed[clash[0]]} itself", where=where)
    defaults = catalogue.defaults(spec.method)
    config = {key: value for key, value in defaults.items() if key in fields} | spec.config | fixed
    if spec.freeze == "B" and config.get("init_lora_weights", True) in (True, "gaussian", "orthogonal"):
        raise UserError(
            "with B frozen at zero, A gets no gradient and the adapter never moves",
            where=f"{where}.freeze",
            cure="Freeze A, or start from pissa or olora, where B is not zero.",
        )
    if not is_lora and (spec.init or spec.freeze):
        raise UserError("init and freeze are for LoRA's A and B", where=where)
    if spec.init and "init_lora_weights" in config:
        raise UserError("give `init` or peft's init_lora_weights, not both", where=where)
    for key in ("r", "num_virtual_tokens"):
        count = config.get(key)
        if key in defaults and (not isinstance(count, int) or isinstance(count, bool) or count < 1):
            raise UserError(f"{key} is {count!r}: expected a whole number above zero", where=where)
    if catalogue.RATIO in config:
        config[catalogue.RATIO] = _ratio(config[catalogue.RATIO], spec, where)
    return ResolvedAdapter(
        name=spec.name or _name(spec, config, chosen),
        method=spec.method,
        config=config,
        init=spec.init,
        freeze=spec.freeze,
    )


def _resolve_plain(spec: AdapterSpec, chosen: dict[str, Any], where: str) -> ResolvedAdapter:
    """Full fine-tuning and BitFit, which have no settings of their own."""
    if spec.config or spec.init or spec.freeze:
        wrong = next(iter(spec.config), "init" if spec.init else "freeze")
        called = "full fine-tuning" if spec.method == FULL else "BitFit"
        raise UserError(f"{called} has no '{wrong}'", where=where)
    return ResolvedAdapter(
        name=spec.name or _name(spec, {}, chosen), method=spec.method, config={}, init=None, freeze=None
    )


def _ratio(value: Any, spec: AdapterSpec, where: str) -> float:
    where = f"{where}.{catalogue.RATIO}"
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or value <= 0:
        raise UserError(f"it is {value!r}: expected a number above zero", where=where)
    if spec.freeze == "B":
        raise UserError("with B frozen there is no rate of B", where=where, cure="Drop one of the two.")
    return float(value)


def loraplus_ratio(adapter: ResolvedAdapter) -> float | None:
    """Learning rate of B over that of all else (LoRA+, Hayou et al. 2024); None: one rate for all."""
    ratio: float | None = adapter.config.get(catalogue.RATIO)
    return ratio


def _name(spec: AdapterSpec, config: dict[str, Any], chosen: dict[str, Any]) -> str:
    parts = [spec.method]
    if "r" in config:
        parts.append(f"r{config['r']}")
    parts += [f"{key.rpartition('.')[2]}={value}" for key, value in chosen.items() if key != "r"]
    if spec.freeze:
        parts.append(f"frozen-{spec.freeze}")
    return "-".join(parts)


def from_peft(config: peft.PeftConfig, name: str | None = None) -> AdapterSpec:
    """An arm from a peft config object, for the Python API: fields that differ from peft's defaults.

    Fields for which foretaste has defaults of its own (r, lora_alpha, target_modules) are taken as they are.
    """
    method = str(getattr(config.peft_type, "value", config.peft_type)).lower()
    ours = {*catalogue.defaults(method), "target_modules"}
    changed: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        value = value.value if isinstance(value, enum.Enum) else value
        factory = field.default_factory
        default = field.default if factory is dataclasses.MISSING else factory()
        differs = value != default and value is not None
        if field.init and field.name not in _NOT_OURS and (field.name in ours or differs):
            changed[field.name] = value
    listed = {key: sorted(value) if isinstance(value, set) else value for key, value in changed.items()}
    return AdapterSpec.model_validate({"method": method, "name": name, **listed})


def linear_names(model: nn.Module, *, head: Sequence[str] = ()) -> list[str]:
    """Full names of all linear layers (Linear, GPT-2's Conv1D) outside the modules of the head."""
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and name.partition(".")[0] not in head
    ]


def norm_names(model: nn.Module, *, head: Sequence[str] = ()) -> list[str]:
    """Full names of all normalisation layers with weights (LayerNorm, RMSNorm) outside the head."""
    return [
        name
        for name, module in model.named_modules()
        if type(module).__name__.endswith("Norm")
        and any(True for _ in module.parameters(recurse=False))
        and name.partition(".")[0] not in head
    ]


def attach(
    model: PreTrainedModel,
    adapter: ResolvedAdapter,
    *,
    head_policy: HeadPolicy,
    seed: int,
    total_steps: int,
) -> tuple[nn.Module, InitCheck | None]:
    """The model ready to train: adapter in place, initialised, and the right parameters frozen.

    Under `probe-then-train` and `random-then-train` every arm trains the whole head. Under `paper` a PEFT arm
    leaves the random head frozen, as a LoRA target like any other linear layer (protocol.md 1.1).

    Args:
        model: A classifier with its head already set; changed in place. On the meta device inits that
            decompose the weights are left out.
        adapter: The arm.
        head_policy: Who trains the head.
        seed: The init seed.
        total_steps: Optimiser steps planned; AdaLoRA's schedule needs them.

    Returns:
        The model, and the check of LoRA's init when one was asked for.

    Raises:
        UserError: The method does not fit this model, or the rank is larger than a layer.
    """
    where = f"adapter '{adapter.name}'"
    if adapter.method == FULL:
        model.requires_grad_(True)
        return model, None
    if adapter.method == BITFIT:
        bitfit.train_biases(model, head_policy=head_policy, where=where)
        return model, None
    prompts.refuse(model, config_class(adapter.method), head_policy=head_policy, where=where)
    _refuse_olora_on_conv1d(model, adapter, where)
    config = _build_config(model, adapter, head_policy, total_steps)
    head = heads.find(model).modules
    try:
        with borrowed_global_state(seed, "init", "peft"), warnings.catch_warnings():
            # peft asks transformers by a name that transformers renamed; nothing here depends on it.
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
            # For GPT-2's Conv1D peft sets it right by itself, and says so once for each layer.
            warnings.filterwarnings("ignore", message="fan_in_fan_out is set to", category=UserWarning)
            # Of the sizes of normalisation layers, which nothing asks for.
            warnings.filterwarnings("ignore", message="Unsupported layer type", category=UserWarning)
            wrapped = peft.get_peft_model(model, config)
    except (ValueError, TypeError, KeyError, AttributeError, NotImplementedError, OSError) as error:
        raise UserError(f"peft refuses this config: {error}", where=where, cure=_OTHERWISE) from error
    _check_rank(wrapped, adapter, head)
    if catalogue.is_prompt_learning(type(config)) and not isinstance(config, prompts.KEYS_AND_VALUES):
        prompts.show_head_only_text(model, adapter.config["num_virtual_tokens"])
    if head_policy != "paper":
        _train_head(model, head)
    _refuse_idle(wrapped, model, () if head_policy == "paper" else head, where)
    check = None
    if adapter.init is not None and not _on_meta(wrapped):
        check = inits.apply(wrapped, adapter.init, seed)
    if adapter.freeze:
        for _, a, b in inits.lora_matrices(wrapped):
            (a if adapter.freeze == "A" else b).requires_grad_(False)
    return wrapped, check


def _build_config(
    model: PreTrainedModel, adapter: ResolvedAdapter, head_policy: HeadPolicy, total_steps: int
) -> peft.PeftConfig:
    kind = config_class(adapter.method)
    fields = {field.name for field in dataclasses.fields(kind)}
    config = {key: value for key, value in adapter.config.items() if key != catalogue.RATIO}
    head = heads.find(model).modules
    if _on_meta(model) and isinstance(config.get("init_lora_weights"), str):
        config["init_lora_weights"] = True  # pissa, olora: there are no weights to decompose
    if config.get("target_modules") == "all-linear":
        config["target_modules"] = linear_names(model, head=() if head_policy == "paper" else head)
    known = model.config.model_type in TRANSFORMERS_MODELS_TO_LNTUNING_TARGET_MODULES_MAPPING
    if kind is peft.LNTuningConfig and config.get("target_modules") is None and not known:
        config["target_modules"] = norm_names(model, head=head)
    if issubclass(kind, peft.PromptTuningConfig | peft.PromptEncoderConfig):
        # peft looks for these under names that DistilBERT does not use, and takes the width of the hidden
        # states for that of the embeddings, which is smaller in ELECTRA and ALBERT.
        words: Any = model.get_input_embeddings()
        config.setdefault("token_dim", words.weight.shape[1])
        config.setdefault("num_layers", model.config.num_hidden_layers)
        config.setdefault("num_attention_heads", model.config.num_attention_heads)
    if head_policy != "paper":
        config["task_type"] = "SEQ_CLS"
        if "modules_to_save" in fields:
            config["modules_to_save"] = list(head)
    if kind is peft.IA3Config and config.get("target_modules") is not None:
        # peft wants to know which targets are feed-forward; none given means outputs are scaled.
        config.setdefault("feedforward_modules", [])
    if kind is peft.AdaLoraConfig:
        config.setdefault("total_step", total_steps)
        # peft's own defaults (0, 0) leave no phase of constant rank and fail on short runs.
        config.setdefault("tinit", total_steps // 10)
        config.setdefault("tfinal", total_steps // 5)
    try:
        return kind(**config)
    except (ValueError, TypeError, ImportError) as error:
        where = f"adapter '{adapter.name}'"
        raise UserError(f"peft refuses this config: {error}", where=where, cure=_OTHERWISE) from error


def _refuse_olora_on_conv1d(model: nn.Module, adapter: ResolvedAdapter, where: str) -> None:
    """OLoRA of peft takes GPT-2's transposed weights for plain ones; where they are square, unnoticed."""
    if adapter.config.get("init_lora_weights") == "olora" and any(
        isinstance(module, Conv1D) for module in model.modules()
    ):
        raise UserError(
            "peft's OLoRA cannot start from layers of GPT-2's kind", where=where, cure="Use pissa."
        )


def _train_head(model: nn.Module, head: Sequence[str]) -> None:
    """Let the head train also where peft's method has no place for it (`modules_to_save`)."""
    for name in head:
        module = model.get_submodule(name)
        if not any(parameter.requires_grad for parameter in module.parameters()):
            module.requires_grad_(True)


def _refuse_idle(wrapped: nn.Module, model: nn.Module, head: Sequence[str], where: str) -> None:
    """Check that something is trained beside the head: some methods pass over layers of unknown kinds."""
    inside = {id(parameter) for name in head for parameter in model.get_submodule(name).parameters()}
    if all(id(p) in inside for p in wrapped.parameters() if p.requires_grad):
        raise UserError("it trains nothing in this model beside its head", where=where, cure=_OTHERWISE)


def _check_rank(model: nn.Module, adapter: ResolvedAdapter, head: Sequence[str]) -> None:
    for name, a, b in inits.lora_matrices(model):
        r, limit = a.shape[0], min(a.shape[1], b.shape[0])
        # Under `paper` the head is adapted at the rank of all others, although it has few outputs.
        if r > limit and not set(head) & set(name.split(".")):
            raise UserError(
                f"r = {r} is larger than layer '{name}' ({b.shape[0]} x {a.shape[1]}; allowed: 1 to {limit})",
                where=f"adapter '{adapter.name}'",
                cure="Lower r, or leave that layer out of target_modules.",
            )


def _on_meta(model: nn.Module) -> bool:
    return any(parameter.device.type == "meta" for parameter in model.parameters())


def trainable(model: nn.Module) -> tuple[int, int]:
    """Number of trainable parameters, and of all."""
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(n for n, used in sizes if used), sum(n for n, _ in sizes)


def refuse_equal_names(arms: Sequence[ResolvedAdapter]) -> None:
    """Check that all arms can be told apart.

    Raises:
        UserError: Two arms have the same name, so that tables could not tell them apart.
    """
    seen: set[str] = set()
    for arm in arms:
        if arm.name in seen:
            raise UserError(
                f"two adapters are called '{arm.name}'", where="adapters", cure="Give one a `name`."
            )
        seen.add(arm.name)
