"""The kernels of every arm of a spec, from one capture of the base model wherever that is exact."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import peft
from datasets import Dataset
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from foretaste.errors import UserError
from foretaste.experiments import devices, store
from foretaste.experiments.cluster import Cluster
from foretaste.experiments.kernel_jobs import (
    Captures,
    OnProgress,
    Ready,
    SpreadOver,
    Subject,
    attached,
    base_of,
    captures_of,
    grams_of,
    outputs_of,
    place_of,
    prepared,
)
from foretaste.experiments.kernel_result import (
    ARMS,
    BASE,
    FILE,
    ArmKernel,
    Captured,
    Kernels,
    read,
    stored_parts,
    write,
)
from foretaste.experiments.plan import Resources
from foretaste.kernels import (
    Gram,
    Parts,
    Projection,
    parse_bytes,
    trainable,
)
from foretaste.locks import locked
from foretaste.models import adapters, load
from foretaste.models.encode import Encoded, encode
from foretaste.record import write_atomic
from foretaste.spec import KernelSpec, MeasureSpec, digest

Float = npt.NDArray[np.float64]

REQUEST = "request.json"


def kernel(
    spec: MeasureSpec,
    folder: Path | None,
    *,
    base_dir: Path,
    resources: Resources | None = None,
    on_progress: OnProgress | None = None,
    cluster: Cluster | None = None,
) -> Kernels:
    """Compute the kernels of every arm of a spec, on the clean rows of its first seed.

    LoRA arms come from the capture of the base model that also gives the kernel of full fine-tuning; every
    other method is captured as peft builds it.

    Args:
        spec: Data, model, adapters, and the section `kernel`.
        folder: Where the kernels are written; None keeps them in memory. A call that was stopped goes on.
        base_dir: Folder that relative paths in the spec start from.
        resources: Data and model in memory.
        on_progress: Called with what is being done and the share that is done.
        cluster: Does blocks of the kernels, where a capture has several of them; needs a folder.

    Raises:
        UserError: The spec does not fit, the folder holds another kernel, the model has no exact kernel, or
            the cluster cannot do the work.
    """
    began = time.perf_counter()
    if cluster is None:
        devices.refuse_absent(devices.asked(spec))
    ready = prepared(spec, base_dir, resources or Resources())
    adapters_of = [run.adapter.model_dump(mode="json") for run in ready.runs]
    request = _request(spec.kernel, adapters_of, ready.model, ready.subject)
    request["seeds"] = digest(spec.seed_tuples()[0].model_dump(mode="json"))

    def compute(place: Path | None) -> Kernels:
        if cluster is None or place is None:
            return _compute(spec, ready, place, began, on_progress)
        from foretaste.experiments import ray_kernel  # Ray is an extra

        parameters = sum(p.numel() for p in ready.model.parameters())
        with ray_kernel.spreading(spec, place, base_dir, cluster, parameters, on_progress) as spread:
            return _compute(spec, ready, place, began, on_progress, spread)

    if cluster is not None and (folder is None or resources is not None):
        raise UserError("only what comes from a spec can be spread over a cluster", where="engine ray")
    return _kept(folder, request, compute)


def as_it_stands(
    model: PreTrainedModel | peft.PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Dataset,
    test: Dataset | None,
    settings: KernelSpec,
    *,
    max_length: int = 128,
    folder: Path | None = None,
    on_progress: OnProgress | None = None,
) -> Kernels:
    """The kernel of the trainable parameters of a classifier in memory, a peft model or not.

    Args:
        model: In evaluation mode, its trained parameters requiring gradients.
        tokenizer: Its tokenizer.
        rows: Rows to train on (columns id, text_a, text_b, label).
        test: Rows to test on, if any.
        settings: The section `kernel` of a spec; `ranks` is for the base model and is not used here.
        max_length: Tokens; longer rows are cut, which a note says.
        folder: Where the kernels are written; None keeps them in memory.
        on_progress: Called with what is being done and the share that is done.

    Raises:
        UserError: As `kernel`.
    """
    began = time.perf_counter()
    memory = parse_bytes(settings.memory)
    train = encode(tokenizer, rows, max_length=max_length)
    tested = None if test is None else encode(tokenizer, test, max_length=max_length)
    both = Encoded(
        ids=train.ids + (tested.ids if tested else []),
        features=train.features + (tested.features if tested else []),
        truncated=train.truncated + (tested.truncated if tested else 0),
    )
    cut = f"{both.truncated} rows are longer than {max_length} tokens and were cut"
    notes = [cut] if both.truncated else []
    subject = Subject(tokenizer, both, len(train), next(model.parameters()).device)
    trained = [p.name for p in trainable(model)]
    request = _request(settings, [trained, _adapters_of(model)], model, subject)
    name = outputs_of(settings, model)
    projection = Projection(settings.projection, 0) if settings.projection else None

    captures = Captures(settings, subject, name, memory, projection, on_progress)
    grams = [Gram(kind, settings.by) for kind in settings.kinds]

    def compute(place: Path | None) -> Kernels:
        parts, done = captures.of(model, "model", grams, None if place is None else place / BASE)
        return Kernels(
            parts=parts,
            arms={"model": done.arm(settings.kinds, list(parts))},
            ids=both.ids,
            labels=both.labels,
            train_rows=len(train),
            outputs=name,
            values=np.asarray(done.values),
            seconds=time.perf_counter() - began,
            folder=place,
            notes=notes,
        )

    return _kept(folder, request, compute)


def _kept(folder: Path | None, request: dict[str, Any], compute: Callable[[Path | None], Kernels]) -> Kernels:
    """Compute once for a folder: a finished kernel is read, another one's folder is refused."""
    if folder is None:
        return compute(None)
    folder.mkdir(parents=True, exist_ok=True)
    with store.full_disk_explained(folder), locked(folder / ".lock"):
        _claim(folder, request)
        if (folder / FILE).exists():
            return read(folder)
        result = compute(folder)
        write(result, folder)
    return result


def _request(settings: KernelSpec, adapters: Any, model: nn.Module, subject: Subject) -> dict[str, Any]:
    """What decides the numbers, under names that an error can show."""
    rows = hashlib.sha256(repr((subject.rows.ids, subject.rows.features)).encode()).hexdigest()
    return {
        "weights": load.hash_state(model),
        "rows": rows,
        "adapters": digest(adapters),
        "kernel settings": digest(settings.model_dump(mode="json", exclude={"memory"})),
    }


def _adapters_of(model: nn.Module) -> dict[str, Any]:
    """What the weights of a peft model do not say: scaling above all."""
    if not isinstance(model, peft.PeftModel):
        return {}
    configs: dict[str, Any] = {}
    for name, config in model.peft_config.items():
        fields = config.to_dict()
        listed = {key: sorted(value) if isinstance(value, set) else value for key, value in fields.items()}
        configs[name] = json.loads(json.dumps(listed, default=str))
    return {"active": list(model.active_adapters), "configs": configs}


def _claim(folder: Path, request: dict[str, Any]) -> None:
    path = folder / REQUEST
    if not path.exists():
        write_atomic(path, json.dumps(request, indent=1))
        return
    try:
        held = json.loads(path.read_text())
    except ValueError:
        raise UserError("the folder's request.json is damaged", where=str(folder)) from None
    changed = [name for name in request if held.get(name) != request[name]]
    if changed:
        raise UserError(
            f"the folder holds another kernel: {', '.join(changed)} changed",
            where=str(folder),
            cure="Choose another folder, or remove this one.",
        )


def _compute(
    spec: MeasureSpec,
    ready: Ready,
    folder: Path | None,
    began: float,
    on_progress: OnProgress | None,
    spread: SpreadOver | None = None,
) -> Kernels:
    """The base model's capture, then one for each arm that it does not serve."""
    settings, model, subject = spec.kernel, ready.model, ready.subject
    captures = captures_of(settings, ready, on_progress, spread)
    base = base_of(settings, ready)

    def place(arm: str | None) -> Path | None:
        return None if folder is None else place_of(folder, arm)

    parts, done = captures.of(model, None, base.products, place(None))
    groups = [n for n in parts if n.partition("/")[0] in settings.kinds]
    arms: dict[str, ArmKernel] = {}
    others: dict[str, Parts] = {}
    for run in ready.runs:
        arm = run.adapter.name
        if run.adapter.method == adapters.FULL:
            arms[arm] = done.arm(settings.kinds, groups)
        elif arm in base.plain:
            own = [n for n in (f"{ARMS}/{arm}/A", f"{ARMS}/{arm}/B") if n in parts]
            arms[arm] = _plain_arm(own, base.plain[arm][1], done, groups)
        else:
            prefix = f"{ARMS}/{arm}/"
            others[arm], other = captures.of(attached(model, run), arm, grams_of(settings), place(arm))
            arms[arm] = other.arm(settings.kinds, [prefix + n for n in others[arm]], prefix)
    return Kernels(
        parts=_joined(parts, others, folder),
        arms=arms,
        ids=subject.rows.ids,
        labels=subject.rows.labels,
        train_rows=subject.train_rows,
        outputs=captures.outputs,
        values=np.asarray(done.values),
        ranks=tuple(settings.ranks),
        seconds=time.perf_counter() - began,
        folder=folder,
        notes=ready.notes,
    )


def _plain_arm(own: list[str], counts: dict[str, int], done: Captured, groups: Sequence[str]) -> ArmKernel:
    """A LoRA arm from the base model's capture, which shares the head's parts with full fine-tuning."""
    heads = [n for n in groups if n == "sgd/head" or n.removeprefix("sgd/") in done.head]
    shared = heads if "head" in counts else []
    return ArmKernel(
        parts={"sgd": [*own, *shared]},
        parameters=sum(counts.values()),
        by_group=counts,
        unused=[],
        rows_share_batches=done.batched,
        explicit=[],
        head=shared,
    )


def _joined(base: Parts, others: dict[str, Parts], folder: Path | None) -> Parts:
    """Every part under one roof: those of other arms carry the arm's name in front."""
    if folder is not None:
        return stored_parts(folder)
    together = {name: base[name] for name in base}
    for arm, parts in others.items():
        together |= {f"{ARMS}/{arm}/{name}": parts[name] for name in parts}
    return Parts(together)
