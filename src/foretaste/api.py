"""foretaste from Python: poison a data set, predict, measure or audit a sweep, compute a kernel."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel

from foretaste.errors import UserError
from foretaste.record import Manifest, write_atomic
from foretaste.spec import AdapterSpec, AttackSpec, Columns, KernelSpec, MeasureSpec
from foretaste.specfile import load as load_spec
from foretaste.specfile import validate

if TYPE_CHECKING:
    import peft
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from foretaste.attacks import Poisoned
    from foretaste.experiments.cluster import Cluster
    from foretaste.experiments.kernel_result import Kernels
    from foretaste.experiments.measure import Measured, Watcher
    from foretaste.experiments.plan import Resources
    from foretaste.notebook import Foretold

MEMORY = "memory"
"""What `data.source` and `model.base` say when the caller hands over objects."""


def poison(
    rows: Dataset,
    attack: str,
    *,
    rate: float | None = None,
    count: int | None = None,
    selection: str = "exact-nested",
    seed: int = 0,
    columns: Columns | None = None,
    labels: Sequence[str] | None = None,
    base_dir: str | Path | None = None,
    **options: Any,
) -> Poisoned:
    """Poison a data set in memory.

    Args:
        rows: A data set with a text and a label column, named by `columns` or by convention.
        attack: Name of the attack (`foretaste list attacks`).
        rate: Share of the eligible rows, in [0, 1].
        count: Number of rows, instead of a rate.
        selection: "exact-nested" (default) or "bernoulli".
        seed: Decides which rows are chosen, and how.
        columns: Names of the columns.
        labels: Class names in the order of their ids.
        base_dir: Folder that relative paths in the options start from; the working folder by default.
        **options: The attack's own options, such as `text="cf"`.

    Returns:
        The poisoned rows (columns id, text_a, text_b, label) and the manifest of what changed.

    Raises:
        UserError: The attack, its options or the amount do not fit the rows.
    """
    from foretaste import data

    loaded = data.from_dataset(rows, columns=columns, labels=list(labels) if labels else None)
    if len(loaded.train) < len(rows):
        raise UserError(
            f"{len(rows) - len(loaded.train)} of {len(rows)} rows have no label",
            where="rows",
            cure="Take them out first (`rows.filter`): the poisoned rows would lack them.",
        )
    return _poison(loaded.train, loaded.classes, attack, rate, count, selection, seed, base_dir, options)


def poison_file(
    source: Path,
    target: Path,
    manifest: Path,
    attack: str,
    /,
    *,
    rate: float | None = None,
    count: int | None = None,
    selection: str = "exact-nested",
    seed: int = 0,
    columns: Columns | None = None,
    labels: Sequence[str] | None = None,
    base_dir: str | Path | None = None,
    on_note: Callable[[str], None] | None = None,
    **options: Any,
) -> Manifest:
    """Write a poisoned copy of a data file with all its columns, and a manifest of the changed rows.

    Args:
        source: CSV, TSV, JSON Lines or Parquet.
        target: The copy, in the format that its suffix names.
        manifest: Where the manifest goes (JSON).
        attack: Name of the attack.
        rate: Share of the eligible rows.
        count: Number of rows, instead of a rate.
        selection: "exact-nested" or "bernoulli".
        seed: Decides which rows are chosen, and how.
        columns: Names of the columns.
        labels: Class names in the order of their ids.
        base_dir: Folder that relative paths in the options start from; the working folder by default.
        on_note: Hears, in sentences, of rows that stay as they are for want of a label, and of an older file
            that `target` has replaced.
        **options: The attack's own options.

    Raises:
        UserError: As `poison`, or a file that cannot be read, or a target that is the source.
    """
    from foretaste import data

    # A missing source is the reader's to refuse.
    if target.exists() and source.exists() and target.samefile(source):
        raise UserError("input and output are the same file", where=str(target))
    file = data.read_rows(source, columns, labels=labels)
    poisoned = _poison(file.rows, file.classes, attack, rate, count, selection, seed, base_dir, options)
    replaced = target.exists()
    data.write_rows(file, poisoned.rows, target)
    write_atomic(manifest, poisoned.manifest.model_dump_json(indent=1))
    notes = [f"{file.unlabelled} rows without a label are left as they are"] if file.unlabelled else []
    notes += [f"an older file {target} is replaced"] if replaced else []
    for note in notes if on_note is not None else []:
        on_note(note)  # type: ignore[misc]
    return poisoned.manifest


def _poison(
    rows: Dataset,
    classes: list[str],
    attack: str,
    rate: float | None,
    count: int | None,
    selection: str,
    seed: int,
    base_dir: str | Path | None,
    options: Mapping[str, Any],
) -> Poisoned:
    from foretaste import attacks

    if (rate is None) == (count is None):
        raise UserError("give a rate or a count, one of the two")
    amount = {"rates": [rate]} if rate is not None else {"counts": [count]}
    place = Path(base_dir) if base_dir is not None else None
    spec = validate(
        {"method": attack, "selection": selection, **amount, **options}, AttackSpec, origin="poison"
    )
    return attacks.poison(
        rows,
        attacks.build(attack, spec.options, classes, base_dir=place),
        method=attack,
        classes=classes,
        seed=seed,
        rate=rate,
        count=count,
        selection=spec.selection,
    )


def measure(
    spec: MeasureSpec | Mapping[str, Any] | str | Path | None = None,
    *,
    train: Dataset | None = None,
    test: Dataset | None = None,
    model: PreTrainedModel | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    adapters: Sequence[str | Mapping[str, Any] | AdapterSpec | peft.PeftConfig] | None = None,
    attacks: Sequence[Mapping[str, Any] | AttackSpec] | None = None,
    folder: str | Path | None = None,
    extend: bool = False,
    processes: int | None = None,
    threads: int | None = None,
    watcher: Watcher | None = None,
    cluster: Cluster | None = None,
    stack: int | None = None,
    **fields: Any,
) -> Measured:
    """Poison, fine-tune and test; finished runs in `folder` are not done again.

    Everything can come from a spec (a file, a mapping, an object), from the arguments, or from both: an
    argument replaces what the spec says.

    Args:
        spec: A spec file, its content, or None when the arguments say everything.
        train: Training rows in memory, instead of `data.source`.
        test: Test rows in memory; without them a part of `train` is set aside.
        model: A sequence classifier in memory, instead of `model.base`; it is copied for each run and never
            changed. Runs then stay in this process.
        tokenizer: Its tokenizer.
        adapters: Arms: "full", a mapping as in YAML, or a `peft` config object.
        attacks: Attacks, as in YAML.
        folder: Where the results go; a new temporary folder by default (it is in the result).
        extend: Accept a folder that holds a different spec, and add to it.
        processes: Worker processes; measured when None.
        threads: Threads of each.
        watcher: Hears of progress.
        cluster: A Ray that does the runs: `foretaste.experiments.cluster.Cluster()`.
        stack: LoRA runs that are trained together through one frozen base, in this process; results are those
            of single runs up to rounding.
        **fields: Other keys of the spec (`training`, `seeds`, `name`, ...).

    Raises:
        UserError: Something does not fit; nothing was trained.
    """
    from foretaste.experiments.measure import measure as run

    full, base_dir, resources = _request(spec, train, test, model, tokenizer, adapters, attacks, fields)
    return run(
        full,
        _place(folder),
        base_dir=base_dir,
        resources=resources,
        extend=extend,
        processes=processes,
        threads=threads,
        watcher=watcher,
        cluster=cluster,
        stack=stack,
    )


def predict(
    model: PreTrainedModel | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    train: Dataset | None = None,
    test: Dataset | None = None,
    *,
    adapters: Sequence[str | Mapping[str, Any] | AdapterSpec | peft.PeftConfig] | None = None,
    attacks: Sequence[Mapping[str, Any] | AttackSpec] | None = None,
    spec: MeasureSpec | Mapping[str, Any] | str | Path | None = None,
    folder: str | Path | None = None,
    on_progress: Callable[[str, float], None] | None = None,
    **fields: Any,
) -> Foretold:
    """How each adapter will stand up to each attack, before anything is trained.

    Args:
        model: A sequence classifier in memory, instead of `model.base` of a spec; it is not changed.
        tokenizer: Its tokenizer.
        train: Training rows in memory, instead of `data.source`. Shares are predicted on rows held out of it.
        test: Test rows; only their number is used.
        adapters: As in `measure`.
        attacks: As in `measure`.
        spec: As in `measure`; arguments replace what it says.
        folder: Where the records go; a new temporary folder by default (it is in the result).
        on_progress: Called with what is being done and the share of it that is done.
        **fields: Other keys of the spec (`training`, `seeds`, `predict`, ...).

    Returns:
        `.table()`, `.figure()` and `.advice`; a notebook shows it as a table.

    Raises:
        UserError: Something does not fit.
    """
    from foretaste.experiments.predict import predict as run
    from foretaste.notebook import Foretold

    full, base_dir, resources = _request(spec, train, test, model, tokenizer, adapters, attacks, fields)
    place = _place(folder)
    found = run(full, place, base_dir=base_dir, resources=resources, on_progress=on_progress)
    return Foretold(place, found.records, [], found.notes)


def audit(
    model: PreTrainedModel | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    train: Dataset | None = None,
    test: Dataset | None = None,
    *,
    adapters: Sequence[str | Mapping[str, Any] | AdapterSpec | peft.PeftConfig] | None = None,
    attacks: Sequence[Mapping[str, Any] | AttackSpec] | None = None,
    spec: MeasureSpec | Mapping[str, Any] | str | Path | None = None,
    part: Literal["none", "corners", "all"] = "corners",
    folder: str | Path | None = None,
    extend: bool = False,
    processes: int | None = None,
    threads: int | None = None,
    watcher: Watcher | None = None,
    cluster: Cluster | None = None,
    stack: int | None = None,
    on_progress: Callable[[str, float], None] | None = None,
    **fields: Any,
) -> Foretold:
    """Predict, measure a part of it by real training, and recommend an adapter.

    Args:
        model: As in `predict`.
        tokenizer: As in `predict`.
        train: As in `predict`.
        test: Rows that trained models are tested on; without them a part of `train` is set aside.
        adapters: As in `measure`.
        attacks: As in `measure`.
        spec: As in `measure`.
        part: What is measured. `corners`: every arm clean and under the largest amount of each attack.
        folder: As in `measure`; finished runs in it are not done again.
        extend: As in `measure`.
        processes: As in `measure`.
        threads: As in `measure`.
        watcher: Hears of the measuring.
        cluster: As in `measure`.
        stack: As in `measure`.
        on_progress: Hears of the predicting.
        **fields: Other keys of the spec.

    Raises:
        UserError: Something does not fit.
    """
    from foretaste.experiments.audit import audit as run
    from foretaste.notebook import Foretold

    full, base_dir, resources = _request(spec, train, test, model, tokenizer, adapters, attacks, fields)
    place = _place(folder)
    found = run(
        full,
        place,
        base_dir=base_dir,
        part=part,
        resources=resources,
        extend=extend,
        processes=processes,
        threads=threads,
        watcher=None if watcher is None else lambda: watcher,
        cluster=cluster,
        stack=stack,
        on_progress=on_progress,
    )
    measured = found.measured.records if found.measured else []
    return Foretold(place, found.predicted.records, measured, found.predicted.notes)


def _request(
    spec: MeasureSpec | Mapping[str, Any] | str | Path | None,
    train: Dataset | None,
    test: Dataset | None,
    model: PreTrainedModel | None,
    tokenizer: PreTrainedTokenizerBase | None,
    adapters: Sequence[str | Mapping[str, Any] | AdapterSpec | peft.PeftConfig] | None,
    attacks: Sequence[Mapping[str, Any] | AttackSpec] | None,
    fields: Mapping[str, Any],
) -> tuple[MeasureSpec, Path, Resources]:
    """The spec that arguments and a given spec make together, its folder, and what is in memory."""
    from foretaste import data
    from foretaste.experiments.plan import Resources

    if (model is None) != (tokenizer is None):
        raise UserError("model and tokenizer go together: give both or neither")
    if test is not None and train is None:
        raise UserError("test rows without training rows: give `train` too")
    base_dir, content = _content(spec)
    content |= {key: _plain(value) for key, value in fields.items()}
    if train is not None:
        content.setdefault("data", {})["source"] = MEMORY
    if model is not None:
        content.setdefault("model", {})["base"] = MEMORY
    if adapters is not None:
        content["adapters"] = [_adapter(arm) for arm in adapters]
    if attacks is not None:
        content["attacks"] = [
            arm.model_dump(exclude_unset=True) if isinstance(arm, AttackSpec) else dict(arm)
            for arm in attacks
        ]
    full = validate(content, MeasureSpec, origin="measure")
    loaded = None
    if train is not None:
        loaded = data.from_dataset(train, test, columns=full.data.columns, labels=full.data.labels)
    return full, base_dir, Resources(loaded, model, tokenizer)


def _place(folder: str | Path | None) -> Path:
    return Path(folder) if folder is not None else Path(tempfile.mkdtemp(prefix="foretaste-"))


def kernel(
    model: PreTrainedModel | peft.PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Dataset,
    adapter: str | Mapping[str, Any] | AdapterSpec | peft.PeftConfig | Sequence[Any] | None = None,
    *,
    test: Dataset | None = None,
    columns: Columns | None = None,
    labels: Sequence[str] | None = None,
    max_length: int = 128,
    seed: int = 0,
    folder: str | Path | None = None,
    on_progress: Callable[[str, float], None] | None = None,
    **settings: Any,
) -> Kernels:
    """The empirical neural tangent kernel of a classifier, exactly.

    Args:
        model: A sequence classifier in evaluation mode; it is not changed.
        tokenizer: Its tokenizer.
        rows: Rows between which the kernel is computed.
        adapter: None for the trainable parameters of the model as it stands (also of a peft model). Otherwise
            one adapter or several, as in `measure`: "full", a mapping, a `peft` config. The model's own head
            is kept, and all LoRA arms come from one capture.
        test: Rows whose kernel with `rows` is wanted too.
        columns: Names of the columns.
        labels: Class names in the order of their ids.
        max_length: Tokens; longer rows are cut, which a note of the result says.
        seed: Of the adapters' random matrices.
        folder: Where kernels are written; None keeps them in memory. A call that was stopped goes on.
        on_progress: Called with what is being done and the share that is done.
        **settings: Keys of the spec's section `kernel`, such as `kinds=["sgd"]` or `memory="4GiB"`; all rows
            are used unless `train_rows` says otherwise.

    Returns:
        `.of(arm).train` and `.test` are the kernels; `.surface()` is LoRA over ranks, variances and scalings.

    Raises:
        UserError: Something does not fit, or the model has no exact kernel.
    """
    import peft

    from foretaste import data
    from foretaste.experiments import kernel as experiment
    from foretaste.experiments.plan import Resources

    if test is None and settings.get("test_rows"):
        raise UserError("`test_rows` without rows to test on", where="test_rows", cure="Give `test` too.")
    tested = None if test is not None else 0
    chosen = validate({"train_rows": None, "test_rows": tested, **settings}, KernelSpec, origin="kernel")
    loaded = data.from_dataset(
        rows, rows if test is None else test, columns=columns, labels=list(labels) if labels else None
    )
    place = None if folder is None else Path(folder)
    if adapter is None:
        assert loaded.test is not None
        return experiment.as_it_stands(
            model,
            tokenizer,
            _first(loaded.train, chosen.train_rows),
            None if test is None else _first(loaded.test, chosen.test_rows),
            chosen,
            max_length=max_length,
            folder=place,
            on_progress=on_progress,
        )
    if isinstance(model, peft.PeftModel):
        raise UserError("the model has an adapter already", where="adapter", cure="Leave `adapter` out.")
    arms = [adapter] if isinstance(adapter, str | Mapping | AdapterSpec | peft.PeftConfig) else adapter
    content = {
        "data": {"source": MEMORY},
        "model": {"base": MEMORY, "head": "random-then-train", "max_length": max_length},
        "adapters": [_adapter(arm) for arm in arms],
        "seeds": [seed],
        "kernel": chosen.model_dump(),
    }
    return experiment.kernel(
        validate(content, MeasureSpec, origin="kernel"),
        place,
        base_dir=Path.cwd(),
        resources=Resources(loaded, model, tokenizer),
        on_progress=on_progress,
    )


def _first(rows: Dataset, count: int | None) -> Dataset:
    from foretaste.data import take

    return rows if count is None else take(rows, list(range(min(count, len(rows)))))


def _content(spec: MeasureSpec | Mapping[str, Any] | str | Path | None) -> tuple[Path, dict[str, Any]]:
    """Folder that relative paths start from, and the spec as a mapping that may be changed."""
    if spec is None:
        return Path.cwd(), {}
    if isinstance(spec, str | Path):
        path = Path(spec)
        return path.resolve().parent, load_spec(path, MeasureSpec).model_dump(exclude_unset=True)
    if isinstance(spec, MeasureSpec):
        return Path.cwd(), spec.model_dump(exclude_unset=True)
    return Path.cwd(), {key: _plain(value) for key, value in spec.items()}


def _plain(value: Any) -> Any:
    """A section of a spec as a mapping of its own, so that the caller's object stays as it is."""
    if isinstance(value, BaseModel):
        return value.model_dump(exclude_unset=True)
    return dict(value) if isinstance(value, Mapping) else value


def _adapter(arm: str | Mapping[str, Any] | AdapterSpec | peft.PeftConfig) -> dict[str, Any]:
    if isinstance(arm, str):
        return {"method": arm}
    if isinstance(arm, AdapterSpec):
        return arm.model_dump(exclude_unset=True)
    if isinstance(arm, Mapping):
        return dict(arm)
    from foretaste.models.adapters import from_peft

    return from_peft(arm).model_dump(exclude_unset=True)


__all__ = ["audit", "kernel", "measure", "poison", "poison_file", "predict"]
