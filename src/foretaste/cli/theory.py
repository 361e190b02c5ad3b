"""`foretaste theory`: the mathematics of the papers, checked and drawn."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from foretaste.cli.console import err, out, print_json
from foretaste.cli.options import Json, read_spec
from foretaste.spec import MeasureSpec

theory_app = typer.Typer(
    help="What the papers claim, checked and drawn as it should be.", no_args_is_help=True
)


@theory_app.command(epilog="Example: `foretaste theory surface quickstart -o runs/surface`")
def surface(
    spec: Annotated[
        str | None,
        typer.Argument(help="A YAML file or a preset: adds the LoRA kernel of its model over its ranks."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Folder; runs/NAME-surface or runs/theory-surface by default."),
    ] = None,
    inputs: Annotated[int, typer.Option(min=256, help="Inputs n of the layer that A is drawn for.")] = 1024,
    json_output: Json = False,
) -> None:
    """Draw the TTR paper's Figure 3 as printed and as it should be: entropies over rank and variance."""
    from foretaste.cli import display
    from foretaste.experiments import entropy_surface
    from foretaste.report import theory_surface
    from foretaste.theory.entropy_surface import DEFAULT_K

    content, base_dir = (None, Path.cwd()) if spec is None else read_spec(spec, MeasureSpec)
    folder = output or Path("runs") / f"{'theory' if content is None else content.name}-surface"
    facts = [("layer", f"{inputs:,} inputs, s = 1"), ("drawn A", "uniform entries, peft's law")]
    points = entropy_surface.of_matrices(inputs)
    if content is not None:
        display.pull_assets([content.model.base, content.data.source], err)
        with display.kernel_progress(err, quiet=json_output) as on_progress:
            found, kernels = entropy_surface.of_model(
                content, folder / "kernel", base_dir=base_dir, on_progress=on_progress
            )
        points += found
        facts.append(("model", f"{content.model.base}, {kernels.train_rows} rows, {kernels.outputs}"))
    with err.status("Drawing ..."):
        written = theory_surface.write(points, facts, folder)
    if json_output:
        # The printed numbers and the grids are in tables/; here is what there is at peft's variance.
        rows = [asdict(point) for point in points if point.k == DEFAULT_K]
        names = [str(path) for path in written.figures]
        print_json({"page": str(written.page), "figures": names, "gaps": written.gaps, "rows": rows})
    else:
        out.print(f"Page: [bold]{escape(str(written.page))}[/]", soft_wrap=True)


@theory_app.command(epilog="Example: `foretaste theory verify -o runs/claims`")
def verify(
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Folder for a page; none is written by default.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the networks and matrices that are drawn.")] = 0,
    json_output: Json = False,
) -> None:
    """Compute, for every theorem and claim of both papers, whether it holds, holds only if, or fails."""
    import time

    from foretaste.cli import verdicts
    from foretaste.theory import claims

    start = time.perf_counter()
    with verdicts.claims_progress(err, quiet=json_output) as on_verdict:
        found = claims.verify(seed, on_verdict)
    seconds = time.perf_counter() - start
    page = None
    if output is not None:
        from foretaste.report import theory_claims

        page = theory_claims.write(found, [("claims", str(len(found))), ("seed", str(seed))], output)
    if json_output:
        content = [verdict.to_json() for verdict in found]
        print_json(
            {"page": None if page is None else str(page), "seconds": seconds, "seed": seed, "claims": content}
        )
        return
    verdicts.show_verdicts(found, seconds, out)
    if page is not None:
        out.print(f"Page: [bold]{escape(str(page))}[/]", soft_wrap=True)
