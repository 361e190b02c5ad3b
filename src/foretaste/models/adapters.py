"""Adapters: full fine-tuning and every method of upstream peft, attached to a classifier.

A method is named as in peft (`lora`, `vera`, `ia3`, `adalora`, ...) and takes that method's own config
fields. `rslora`, `dora`, `pissa` and `olora` are LoRA with one field set.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import warnings
from collections.abc import Sequence
from typing import Any

import peft
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from foretaste.errors import UserError, unknown
from foretaste.models import heads, inits
from foretaste.record import InitCheck
from foretaste.seeds import borrowed_global_state
from foretaste.spec import AdapterSpec, HeadPolicy, ResolvedAdapter
from foretaste.specfile import validate

FULL = "full"

VARIANTS: dict[str, dict[str, Any]] = {
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "pissa": {"init_lora_weights": "pissa"},
    "olora": {"init_lora_weights": "olora"},
}

# r and alpha: the TTR paper's defaults (section 4.1). all-linear: its code (protocol.md 1.1).
LORA_DEFAULTS: dict[str, Any] = {"r": 8, "lora_alpha": 16, "target_modules": "all-linear"}

ALL_LINEAR: dict[str, Any] = {"target_modules": "all-linear"}

# Methods whose targets are no linear layers (normalisations, embeddings): peft knows which.
_NOT_LINEAR = {"ln_tuning", "trainable_tokens"}

_NOT_OURS = {
    "task_type",
    "peft_type",
    "peft_version",
    "modules_to_save",
    "inference_mode",
    "base_model_name_or_path",
}


@functools.cache
def _peft_configs() -> dict[str, type[peft.PeftConfig]]:
    return {str(kind.value).lower(): config for kind, config in PEFT_TYPE_TO_CONFIG_MAPPING.items()}


def methods() -> list[str]:
    """Every name that `method` of an adapter may have."""
    return sorted({FULL, *VARIANTS, *_peft_configs()})


def config_class(method: str, *, where: str | None = None) -> type[peft.PeftConfig]:
    """The peft config class behind a method.

    Raises:
        UserError: There is no such method.
    """
    name = "lora" if method in VARIANTS else method
    if name not in _peft_configs():
        raise unknown("adapter", method, methods(), where=where)
    return _peft_configs()[name]


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
    if spec.method == FULL:
        return _resolve_full(spec, chosen, where)
    kind = config_class(spec.method, where=f"{where}.method")
    fields = {field.name for field in dataclasses.fields(kind)} - _NOT_OURS
    for key in spec.config:
        if key not in fields:
            raise unknown(f"field of peft's {kind.__name__}", key, fields, where=where)
    fixed = VARIANTS.get(spec.method, {})
    clash = [key for key in fixed if key in spec.config and spec.config[key] != fixed[key]]
    if clash:
        raise UserError(f"'{spec.method}' sets {clash[0]} = {fixed[clash[0]]} itself", where=where)
    is_lora = kind is peft.LoraConfig
    defaults = LORA_DEFAULTS if is_lora else {} if spec.method in _NOT_LINEAR else ALL_LINEAR
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
    r = config.get("r")
    if is_lora and (not isinstance(r, int) or isinstance(r, bool) or r < 1):
        raise UserError(f"r is {r!r}: expected a whole number above zero", where=where)
    return ResolvedAdapter(
        name=spec.name or _name(spec, config, chosen),
        method=spec.method,
        config=config,
        init=spec.init,
        freeze=spec.freeze,
    )


def _resolve_full(spec: AdapterSpec, chosen: dict[str, Any], where: str) -> ResolvedAdapter:
    if spec.config or spec.init or spec.freeze:
        wrong = next(iter(spec.config), "init" if spec.init else "freeze")
        raise UserError(f"full fine-tuning has no '{wrong}'", where=where)
    return ResolvedAdapter(
        name=spec.name or _name(spec, {}, chosen), method=FULL, config={}, init=None, freeze=None
    )


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
    ours = set(LORA_DEFAULTS if type(config) is peft.LoraConfig else ALL_LINEAR)
    changed: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
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
        model: A classifier with its head already set.
        adapter: The arm.
        head_policy: Who trains the head.
        seed: The init seed.
        total_steps: Optimiser steps planned; AdaLoRA's schedule needs them.

    Returns:
        The model, and the check of LoRA's init when one was asked for.

    Raises:
        UserError: peft refuses the config for this model, or the rank is larger than a layer.
    """
    if adapter.method == FULL:
        model.requires_grad_(True)
        return model, None
    config = _build_config(model, adapter, head_policy, total_steps)
    head = heads.find(model).modules
    try:
        with borrowed_global_state(seed, "init", "peft"), warnings.catch_warnings():
            # peft asks transformers by a name that transformers renamed; nothing here depends on it.
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
            # For GPT-2's Conv1D peft sets it right by itself, and says so once for each layer.
            warnings.filterwarnings("ignore", message="fan_in_fan_out is set to", category=UserWarning)
            wrapped = peft.get_peft_model(model, config)
    except (ValueError, TypeError, KeyError, AttributeError, NotImplementedError) as error:
        raise UserError(f"peft refuses this config: {error}", where=f"adapter '{adapter.name}'") from error
    _check_rank(wrapped, adapter, head)
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
    config = dict(adapter.config)
    head = heads.find(model).modules
    if config.get("target_modules") == "all-linear":
        config["target_modules"] = linear_names(model, head=() if head_policy == "paper" else head)
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
        raise UserError(f"peft refuses this config: {error}", where=f"adapter '{adapter.name}'") from error


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
