"""The kernels of every arm of a spec, from one capture of the base model wherever that is exact."""

from __future__ import annotations

import copy
import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import peft
import torch
from datasets import Dataset
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from foretaste import data
from foretaste.errors import UserError
from foretaste.experiments import prepare, store
from foretaste.experiments.kernel_result import (
    ARMS,
    BASE,
    FILE,
    OTHERS,
    ArmKernel,
    Captured,
    Kernels,
    by_group,
    read,
    stored_parts,
    write,
)
from foretaste.experiments.plan import Resources, plan
from foretaste.experiments.prepare import Workspace
from foretaste.kernels import (
    Adapted,
    Arm,
    Gram,
    Inputs,
    Job,
    Outputs,
    Parts,
    Projection,
    Ranks,
    below,
    kernels,
    logits,
    margin,
    parse_bytes,
    plain_lora,
    starts_at,
    trainable,
)
from foretaste.locks import locked
from foretaste.models import adapters, load
from foretaste.models.encode import Encoded, encode
from foretaste.record import write_atomic
from foretaste.spec import KernelSpec, MeasureSpec, RunSpec, digest
from foretaste.training import trainer

Float = npt.NDArray[np.float64]
OnProgress = Callable[[str, float], None]

REQUEST = "request.json"
OUTPUTS: dict[str, Outputs] = {"margin": margin, "logits": logits}


@dataclass(frozen=True)
class Subject:
    """What kernels are computed of: rows as tokens, and how to pad them."""

    tokenizer: PreTrainedTokenizerBase
    rows: Encoded
    train_rows: int
    device: torch.device

    def inputs(self) -> Inputs:
        """The rows as batches on the model's device."""
        collate = trainer.Collator(self.tokenizer)

        def batch(numbers: Sequence[int]) -> dict[str, torch.Tensor]:
            made = collate([self.rows[i] for i in numbers])
            del made["labels"]
            return {key: value.to(self.device) for key, value in made.items()}

        return Inputs(self.rows.lengths, batch)


def kernel(
    spec: MeasureSpec,
    folder: Path | None,
    *,
    base_dir: Path,
    resources: Resources | None = None,
    on_progress: OnProgress | None = None,
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

    Raises:
        UserError: The spec does not fit, the folder holds another kernel, or the model has no exact kernel.
    """
    began = time.perf_counter()
    memory = parse_bytes(spec.kernel.memory)
    resources = resources or Resources()
    first = spec.seed_tuples()[0]
    clean = spec.model_copy(update={"attacks": [], "seeds": [first.data]})
    planned = plan(clean, base_dir, resources)
    runs = [run.model_copy(update={"seeds": first}) for run in planned.runs]
    space = Workspace(Path(), base_dir, spec.name, {}, resources)
    model, subject, notes = _prepare(runs[0], space, spec.kernel)
    request = _request(spec.kernel, [run.adapter.model_dump(mode="json") for run in runs], model, subject)
    request["seeds"] = digest(first.model_dump(mode="json"))

    def compute(place: Path | None) -> Kernels:
        return _compute(spec, runs, model, subject, place, memory, notes, began, on_progress)

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
    name = _outputs(settings, model)
    projection = Projection(settings.projection, 0) if settings.projection else None

    captures = _Captures(settings, subject, name, memory, projection, on_progress)
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


def _outputs(settings: KernelSpec, model: nn.Module) -> str:
    classes = getattr(model.config, "num_labels", 0)
    name = settings.outputs or ("margin" if classes == 2 else "logits")
    if name == "margin" and classes != 2:
        raise UserError("the margin is for two classes", where="kernel.outputs", cure="Use logits.")
    return name


def _prepare(run: RunSpec, space: Workspace, spec: KernelSpec) -> tuple[PreTrainedModel, Subject, list[str]]:
    """The base model with its head, and the rows; every trainable parameter requires a gradient."""
    loaded, split = prepare.rows_of(run, space)
    given = space.resources.data
    # A caller's rows stay in their order; those of a spec are drawn.
    drawn, to_test = (split.train, split.test) if given is None else (given.train, given.test or split.test)
    tokenizer, model = prepare.fresh_model(run, space)
    train = prepare.tokens(tokenizer, drawn, run)
    if run.model.request.head == "probe-then-train":
        prepare.set_probe_head(model, train, tokenizer, run)
    count = min(spec.train_rows or len(train), len(train))
    tested = len(to_test) if spec.test_rows is None else min(spec.test_rows, len(to_test))
    request = run.model.request
    rows = Encoded(train.ids[:count], train.features[:count], train.truncated)
    if tested:
        test = encode(
            tokenizer,
            data.take(to_test, list(range(tested))),
            max_length=request.eval_max_length or request.max_length,
            pair_separator=request.pair_separator,
        )
        rows = Encoded(rows.ids + test.ids, rows.features + test.features, rows.truncated + test.truncated)
    notes = [*loaded.notes, *split.notes]
    if rows.truncated:
        notes.append(f"{rows.truncated} rows are longer than the model's max_length and were cut")
    if spec.precision == "float64":
        model.double()
    model.train(False)
    for name, parameter in model.named_parameters():
        if not parameter.is_floating_point():
            raise UserError(
                f"parameter '{name}' is {parameter.dtype}: a kernel needs floating point",
                where="model.base",
                cure="Load the model without quantisation.",
            )
        parameter.requires_grad_(True)
    device = next(model.parameters()).device
    return model, Subject(tokenizer, rows, count, device), notes


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


@dataclass(frozen=True)
class _Captures:
    """Captures one model after another, on the same rows and with the same settings."""

    settings: KernelSpec
    subject: Subject
    outputs: str
    memory: int
    projection: Projection | None
    on_progress: OnProgress | None

    def of(
        self, part: nn.Module, what: str, products: Sequence[Any], place: Path | None
    ) -> tuple[Parts, Captured]:
        """The parts of one model, those of a finished capture from its folder."""
        finished = None if place is None else Captured.read(place)
        if place is not None and finished is not None:
            return Parts(folders=[place]), finished
        report = self.on_progress
        job = Job(
            part,
            trainable(part),
            OUTPUTS[self.outputs],
            self.subject.inputs(),
            self.subject.train_rows,
            [*products, *([self.projection] if self.projection else [])],
            self.projection.reduce if self.projection else None,
        )
        parts, done = kernels(
            job,
            memory=self.memory,
            folder=place,
            on_progress=None if report is None else lambda share: report(what, share),
        )
        captured = Captured.of(done)
        if place is not None:
            captured.write(place)
        return parts, captured


def _compute(
    spec: MeasureSpec,
    runs: Sequence[RunSpec],
    model: PreTrainedModel,
    subject: Subject,
    folder: Path | None,
    memory: int,
    notes: list[str],
    began: float,
    on_progress: OnProgress | None,
) -> Kernels:
    """The base model's capture, then one for each arm that it does not serve."""
    settings = spec.kernel
    name = _outputs(settings, model)
    seed = runs[0].seeds.init
    grams = [Gram(kind, settings.by) for kind in settings.kinds]
    plain = _plain_arms(settings, model, runs)
    surface = [Ranks(tuple(settings.ranks), seed, settings.law)] if settings.ranks else []
    projection = Projection(settings.projection, seed) if settings.projection else None
    captures = _Captures(settings, subject, name, memory, projection, on_progress)

    products = [*grams, *(Arm(f"{ARMS}/{arm}", layers) for arm, (layers, _) in plain.items()), *surface]
    parts, done = captures.of(model, "base model", products, None if folder is None else folder / BASE)
    groups = [n for n in parts if n.partition("/")[0] in settings.kinds]
    arms: dict[str, ArmKernel] = {}
    others: dict[str, Parts] = {}
    for run in runs:
        arm = run.adapter.name
        if run.adapter.method == adapters.FULL:
            arms[arm] = done.arm(settings.kinds, groups)
        elif arm in plain:
            own = [n for n in (f"{ARMS}/{arm}/A", f"{ARMS}/{arm}/B") if n in parts]
            arms[arm] = _plain_arm(own, plain[arm][1], done, groups)
        else:
            prefix = f"{ARMS}/{arm}/"
            place = None if folder is None else below(folder / OTHERS, f"{ARMS}/{arm}")
            others[arm], other = captures.of(attached(model, run), arm, grams, place)
            arms[arm] = other.arm(settings.kinds, [prefix + n for n in others[arm]], prefix)
    return Kernels(
        parts=_joined(parts, others, folder),
        arms=arms,
        ids=subject.rows.ids,
        labels=subject.rows.labels,
        train_rows=subject.train_rows,
        outputs=name,
        values=np.asarray(done.values),
        ranks=tuple(settings.ranks),
        seconds=time.perf_counter() - began,
        folder=folder,
        notes=notes,
    )


def _plain_arms(
    settings: KernelSpec, model: PreTrainedModel, runs: Sequence[RunSpec]
) -> dict[str, tuple[dict[str, Adapted], dict[str, int]]]:
    """LoRA arms that the base model's capture serves: what they adapt, and their parameters by group."""
    found: dict[str, tuple[dict[str, Adapted], dict[str, int]]] = {}
    # The identities for LoRA hold for gradients, not for their signs or projections.
    if settings.kinds != ["sgd"] or settings.projection:
        return found
    for run in runs:
        if run.adapter.method == adapters.FULL:
            continue
        wrapped = attached(model, run)
        layers = plain_lora(wrapped)
        if layers and starts_at(model, layers, wrapped):
            found[run.adapter.name] = layers, by_group(trainable(wrapped))
    return found


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


def attached(model: PreTrainedModel, run: RunSpec) -> nn.Module:
    """A copy of the model with the arm's adapter, in evaluation mode."""
    wrapped, _ = adapters.attach(
        copy.deepcopy(model),
        run.adapter,
        head_policy=run.model.request.head,
        seed=run.seeds.init,
        total_steps=trainer.planned_steps(run.training, max(run.data.train_rows, 1)),
    )
    return wrapped.train(False)
