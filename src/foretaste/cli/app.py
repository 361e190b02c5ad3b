"""The `foretaste` command and its subcommands."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from rich.table import Table

from foretaste.cli.console import err, out, print_json
from foretaste.cli.distortion import distortion
from foretaste.cli.export import export_app
from foretaste.cli.fewshot import fewshot
from foretaste.cli.forecast import forecast
from foretaste.cli.instruct import instruct
from foretaste.cli.options import (
    Address,
    DryRun,
    Engine,
    Extend,
    Images,
    Json,
    Output,
    Processes,
    Spec,
    Stack,
    Threads,
    read_spec,
)
from foretaste.cli.reproduce import reproduce
from foretaste.cli.theory import theory_app
from foretaste.cli.trajectory import trajectory
from foretaste.errors import EXIT_CODE, UserError, unknown
from foretaste.spec import MeasureSpec

# Heavy imports (torch, transformers, altair) happen inside the commands: `--help` is instant.

app = typer.Typer(
    name="foretaste",
    help="How far can poisoned training data push your language model? Measure it before somebody else does.",
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
assets_app = typer.Typer(help="Models and data that come as PyPI wheels.", no_args_is_help=True)
app.add_typer(assets_app, name="assets")
app.add_typer(export_app, name="export")
app.add_typer(theory_app, name="theory")

INTERRUPTED = 130


def main() -> None:
    """Run the command line; a user's error is one line and exit code 2."""
    try:
        app()
    except UserError as error:
        err.print(f"[bold red]error[/] {_escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(EXIT_CODE)
    except SystemExit as end:
        if end.code == INTERRUPTED:  # typer turns Ctrl-C into this
            err.print("Stopped. Finished runs are kept; the same command goes on from here.")
        raise


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)


@app.command(epilog="Example: `foretaste measure quickstart -o runs/quickstart`")
def measure(
    spec: Spec,
    output: Output = None,
    dry_run: DryRun = False,
    extend: Extend = False,
    processes: Processes = None,
    threads: Threads = None,
    stack: Stack = None,
    engine: Engine = "local",
    address: Address = None,
    json_output: Json = False,
) -> None:
    """Poison, fine-tune and test every run of SPEC; finished runs are not done again."""
    from foretaste.cli import display
    from foretaste.experiments import cluster
    from foretaste.experiments import measure as experiment
    from foretaste.training import ranks

    where = cluster.chosen(engine, address)
    experiment.refuse_stacks(stack, processes, where)
    content, base_dir = read_spec(spec, MeasureSpec)
    folder = output or Path("runs") / content.name
    display.pull_assets([content.model.base, content.data.source], err)
    if dry_run:
        with err.status("Reading data and model ..."):
            preview = experiment.preview(content, folder, base_dir=base_dir, cluster=where)
        if json_output:
            print_json({**display.preview_json(preview), "truncated_training_rows": preview.truncated})
        else:
            display.show_preview(preview, out)
        return
    silent = ranks.number() > 0  # of several processes that train together, the first one speaks
    with display.SweepDisplay(err, quiet=json_output or silent) as watcher:
        measured = experiment.measure(
            content,
            folder,
            base_dir=base_dir,
            extend=extend,
            processes=processes,
            threads=threads,
            watcher=watcher,
            cluster=where,
            stack=stack,
        )
    if json_output and not silent:
        print_json({"folder": str(folder), "statuses": measured.statuses})
    elif not silent:
        display.show_measured(measured, out)
    if any(record.status != "completed" for record in measured.records):
        raise typer.Exit(1)


@app.command(epilog="Example: `foretaste predict quickstart -o runs/quickstart`")
def predict(
    spec: Spec,
    output: Output = None,
    json_output: Json = False,
) -> None:
    """Predict every cell of SPEC from the untrained model and the training data; no run is done."""
    from foretaste.cli import display, foretold
    from foretaste.experiments.predict import predict as run

    content, base_dir = read_spec(spec, MeasureSpec)
    folder = output or Path("runs") / content.name
    display.pull_assets([content.model.base, content.data.source], err)
    with display.kernel_progress(err, quiet=json_output) as on_progress:
        found = run(content, folder, base_dir=base_dir, on_progress=on_progress)
    if json_output:
        print_json(foretold.summary(folder, found.seconds, found.notes))
    else:
        foretold.show(folder, found.seconds, found.notes, out)


@app.command(epilog="Example: `foretaste audit quickstart -o runs/quickstart`")
def audit(
    spec: Spec,
    output: Output = None,
    measure: Annotated[
        str,
        typer.Option(
            help="What is measured by real training: none, corners (every arm clean and under the largest "
            "amount of each attack) or all."
        ),
    ] = "corners",
    fail_if: Annotated[
        list[str] | None,
        typer.Option(
            "--fail-if",
            metavar="CONDITION",
            help="End with exit code 3 where the mean over seeds of a measured cell is so, such as "
            "'asr_margin>0.2'. May be repeated.",
        ),
    ] = None,
    extend: Extend = False,
    processes: Processes = None,
    threads: Threads = None,
    stack: Stack = None,
    engine: Engine = "local",
    address: Address = None,
    json_output: Json = False,
) -> None:
    """Predict SPEC, measure a part of it, and say which adapter holds out best, where that can be told."""
    from typing import get_args

    from foretaste.calibration import pair
    from foretaste.cli import display, foretold, gate
    from foretaste.experiments import audit as experiment
    from foretaste.experiments import cluster
    from foretaste.experiments.measure import refuse_stacks
    from foretaste.report import report as make

    where = cluster.chosen(engine, address)
    refuse_stacks(stack, processes, where)
    if measure not in get_args(experiment.Part):
        raise unknown("part to measure", measure, get_args(experiment.Part), where="--measure")
    content, base_dir = read_spec(spec, MeasureSpec)
    conditions = gate.read(fail_if or [], content, measure)
    folder = output or Path("runs") / content.name
    display.pull_assets([content.model.base, content.data.source], err)
    with foretold.AuditDisplay(err, quiet=json_output) as shown:
        found = experiment.audit(
            content,
            folder,
            base_dir=base_dir,
            part=cast("experiment.Part", measure),
            extend=extend,
            processes=processes,
            threads=threads,
            watcher=shown.measuring,
            on_progress=shown.predicting,
            cluster=where,
            stack=stack,
        )
    with err.status("Drawing ...") if not json_output else _nothing():
        page = make([folder])
    # The runs of this spec alone: an extended folder also holds those of others.
    records = found.measured.records if found.measured else []
    verdicts = gate.judge(conditions, pair(found.predicted.records, records, content.name))
    if json_output:
        summary = foretold.summary(folder, found.predicted.seconds, found.predicted.notes)
        statuses = found.measured.statuses if found.measured else {}
        judged = {"fail_if": gate.to_json(verdicts)} if verdicts else {}
        print_json({**summary, "page": str(page), "statuses": statuses, **judged})
    else:
        foretold.show(folder, found.predicted.seconds, found.predicted.notes, out)
        out.print(f"Page: [bold]{_escape(str(page))}[/]", soft_wrap=True)
        gate.show(verdicts, out)
    gate.end(verdicts)
    if any(record.status != "completed" for record in records):
        raise typer.Exit(1)


@app.command(epilog="Example: `foretaste kernel quickstart -o runs/kernel`")
def kernel(
    spec: Spec,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Folder; runs/NAME-kernel by default."),
    ] = None,
    memory: Annotated[
        str | None, typer.Option(help="Budget for everything beside the model, such as 2GiB.")
    ] = None,
    engine: Engine = "local",
    address: Address = None,
    json_output: Json = False,
) -> None:
    """Compute the exact kernel of every arm of SPEC before training; a stopped run goes on."""
    from foretaste.cli import display
    from foretaste.experiments import cluster
    from foretaste.experiments.kernel import kernel as compute

    where = cluster.chosen(engine, address)
    content, base_dir = read_spec(spec, MeasureSpec)
    if memory is not None:
        settings = content.kernel.model_copy(update={"memory": memory})
        content = content.model_copy(update={"kernel": settings})
    folder = output or Path("runs") / f"{content.name}-kernel"
    display.pull_assets([content.model.base, content.data.source], err)
    with display.kernel_progress(err, quiet=json_output) as on_progress:
        result = compute(content, folder, base_dir=base_dir, on_progress=on_progress, cluster=where)
    summary = display.kernel_summary(result)
    if json_output:
        print_json({"folder": str(folder), "seconds": result.seconds, "arms": summary})
    else:
        display.show_kernels(result, summary, out)


app.command(epilog="Example: `foretaste trajectory quickstart -o runs/trajectory`")(trajectory)


@app.command(epilog="Example: `foretaste calibrate runs/audit -o calibration.json`")
def calibrate(
    folders: Annotated[list[Path], typer.Argument(help="Folders with predicted and measured runs.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE.json", help="Also write the result here.")
    ] = None,
    json_output: Json = False,
) -> None:
    """Hold predictions against measured runs and against naive predictors, and say which arm to use."""
    from foretaste.calibration import calibrate as compute
    from foretaste.cli import calibrate as display
    from foretaste.report import advised

    result = compute(folders)
    findings = advised.of_folders(folders)
    content = display.to_json(result, findings)
    if output is not None:
        display.write(content, output)
    if json_output:
        print_json(content)
    else:
        display.show(result, findings, out)
        if output is not None:
            out.print(f"Result: [bold]{_escape(str(output))}[/]", soft_wrap=True)


app.command(epilog="Example: `foretaste reproduce ttr-fig1 --scale laptop`")(reproduce)
app.command(epilog="Example: `foretaste instruct spec.yaml -o runs/instruct`")(instruct)
app.command(epilog="Example: `foretaste forecast spec.yaml -o runs/instruct`")(forecast)
app.command(epilog="Example: `foretaste fewshot spec.yaml -o runs/fewshot`")(fewshot)
app.command(epilog="Example: `foretaste distortion spec.yaml -o distortion.json`")(distortion)


@app.command(epilog="Example: `foretaste report runs/quickstart`")
def report(
    folders: Annotated[list[Path], typer.Argument(help="Folders of sweeps; several are compared.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Folder of the page; FOLDER/report by default.")
    ] = None,
    images: Images = True,
    json_output: Json = False,
) -> None:
    """Make one offline HTML page, figures and tables from the records in FOLDERS."""
    from foretaste.report import report as make

    with err.status("Drawing ...") if not json_output else _nothing():
        page = make(folders, output, images=images)
    if json_output:
        print_json({"page": str(page)})
    else:
        out.print(f"Page: [bold]{_escape(str(page))}[/]", soft_wrap=True)


@app.command(
    epilog="Example: `foretaste poison reviews.csv poisoned.csv --attack trigger --rate 0.01 "
    "--option text=cf --option target=positive`"
)
def poison(
    source: Annotated[Path, typer.Argument(metavar="IN", help="CSV, TSV, JSONL or Parquet file.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="The poisoned file.")],
    attack: Annotated[str, typer.Option(help="`foretaste list attacks`")],
    rate: Annotated[float | None, typer.Option(min=0, max=1, help="Share of the eligible rows.")] = None,
    count: Annotated[int | None, typer.Option(min=0, help="Number of rows.")] = None,
    selection: Annotated[str, typer.Option(help="exact-nested or bernoulli")] = "exact-nested",
    seed: Annotated[int, typer.Option(min=0)] = 0,
    option: Annotated[list[str] | None, typer.Option(help="An option of the attack, as key=value.")] = None,
    text_a: Annotated[str | None, typer.Option(help="Column of the (first) text.")] = None,
    text_b: Annotated[str | None, typer.Option(help="Column of the second text.")] = None,
    label: Annotated[str | None, typer.Option(help="Column of the label.")] = None,
    id_column: Annotated[str | None, typer.Option("--id", help="Column of the row id.")] = None,
    labels: Annotated[
        str | None, typer.Option(help="Class names in the order of their ids, separated by commas.")
    ] = None,
    json_output: Json = False,
) -> None:
    """Write a poisoned copy of a data file, and beside it a manifest of the changed rows."""
    from foretaste.api import poison_file
    from foretaste.attacks import classes_named
    from foretaste.spec import Columns

    notes: list[str] = []
    manifest_path = target.with_name(target.name + ".manifest.json")
    manifest = poison_file(
        source,
        target,
        manifest_path,
        attack,
        rate=rate,
        count=count,
        selection=selection,
        seed=seed,
        columns=Columns(text_a=text_a, text_b=text_b, label=label, id=id_column),
        labels=labels.split(",") if labels else None,
        on_note=notes.append,
        **_options(option or [], attack),
    )
    beside = len(manifest.companions)
    named = classes_named(manifest.options, manifest.classes)
    if json_output:
        print_json(
            {
                "output": str(target),
                "manifest": str(manifest_path),
                "poisoned": len(manifest.poisoned),
                "eligible": manifest.eligible,
                "rows": manifest.rows,
                **({"companions": beside} if beside else {}),
                **({"figures": manifest.figures} if manifest.figures else {}),
                **{key: {"name": manifest.classes[place], "id": place} for key, place in named.items()},
                **({"notes": notes} if notes else {}),
            }
        )
        return
    poisoned = f"{len(manifest.poisoned)} of {manifest.eligible} eligible rows"
    lines = [f"Poisoned {poisoned} ({manifest.rows} in all)."]
    lines += [
        f"{key}: class {_escape(repr(manifest.classes[place]))} (id {place})" for key, place in named.items()
    ]
    lines += [f"Changed beside them: {beside} companion row{'' if beside == 1 else 's'}."] if beside else []
    lines += [f"{_escape(key.replace('_', ' '))}: {value:.3g}" for key, value in manifest.figures.items()]
    lines += [f"[dim]note[/] {_escape(note)}" for note in notes]
    lines.append(f"Rows: [bold]{_escape(str(target))}[/]\nManifest: [bold]{_escape(str(manifest_path))}[/]")
    out.print("\n".join(lines), soft_wrap=True)


def _options(pairs: list[str], attack: str) -> dict[str, Any]:
    """`key=value` options of an attack, values read as YAML so that numbers and lists are possible."""
    import yaml

    from foretaste.attacks import ATTACKS

    allowed = ATTACKS.get(attack).Options.model_fields
    options: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise UserError(f"'{pair}' is not of the form key=value", where="--option")
        if key not in allowed:
            raise unknown(f"option of '{attack}'", key, allowed, where="--option")
        try:
            options[key] = yaml.safe_load(value) if value.strip() else value
        except yaml.YAMLError:
            options[key] = value
    return options


@app.command("list", epilog="Example: `foretaste list attacks`")
def list_(
    what: Annotated[
        str,
        typer.Argument(
            help="attacks, adapters, inits, sources, indicators, figures, presets, assets, triggers, "
            "scenarios or judges"
        ),
    ],
    json_output: Json = False,
) -> None:
    """List what can be named in a spec."""
    from foretaste.cli import listing

    rows = listing.rows_of(what)
    if json_output:
        print_json([{"name": name, "description": text} for name, text in rows])
        return
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in rows:
        table.add_row(_escape(name), _escape(text))
    out.print(table)


@app.command(epilog="Example: `foretaste version --json`")
def version(json_output: Json = False) -> None:
    """Versions of foretaste and of the packages that decide its numbers."""
    from foretaste.experiments.run import source_commit, versions

    commit, dirty = source_commit()
    content: dict[str, Any] = {**versions(), "commit": commit, "dirty": dirty}
    if json_output:
        print_json(content)
        return
    for name, value in content.items():
        if value is not None:
            out.print(f"{name:14} {value}", highlight=False)


@assets_app.command("list", epilog="Example: `foretaste assets list`")
def assets_list(json_output: Json = False) -> None:
    """Every asset, and whether it is in the cache."""
    from foretaste import assets

    rows = [
        {
            "name": name,
            "kind": asset.kind,
            "wheel": f"{asset.wheel.distribution}=={asset.wheel.version}",
            "megabytes": round(asset.wheel.size / 1e6),
            "licence": asset.licence,
            "pulled": assets.is_pulled(asset),
            "description": asset.description,
        }
        for name, asset in assets.ASSETS.items()
    ]
    if json_output:
        print_json(rows)
        return
    table = Table(box=None)
    table.add_column("asset", no_wrap=True)
    for heading in ("kind", "wheel", "MB", "licence", "pulled", "what it is"):
        table.add_column(heading)
    for row in rows:
        words = ("yes" if v is True else "no" if v is False else str(v) for v in row.values())
        table.add_row(*map(_escape, words))
    out.print(table)
    out.print(f"Cache: {_escape(str(assets.cache_dir()))} (FORETASTE_CACHE)", soft_wrap=True)


@assets_app.command("pull", epilog="Example: `foretaste assets pull minilm-l6 movie-reviews`")
def assets_pull(
    names: Annotated[list[str] | None, typer.Argument(help="Assets; all by default.")] = None,
) -> None:
    """Fetch assets, check their hashes and unpack them into the cache."""
    from foretaste import assets
    from foretaste.cli import display

    for name in names or assets.ASSETS.names():
        asset = assets.ASSETS.get(name)
        display.pull_assets([name], err)
        assets.verify(asset)
        out.print(f"{name}: {_escape(str(asset.path))}", soft_wrap=True)


def _nothing() -> Any:
    from contextlib import nullcontext

    return nullcontext()
