"""`foretaste distortion`: how much of a model's kernel LoRA keeps, by rank."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from foretaste.cli.console import err, out, print_json
from foretaste.cli.options import Images, Json, read_spec

if TYPE_CHECKING:
    from foretaste.fewshot.distortion import Distortion


def distortion(
    spec: Annotated[str, typer.Argument(help="A few-shot spec (YAML), or the name of a preset.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="File for the record, as JSON.")
    ] = None,
    task: Annotated[str | None, typer.Option(help="Task of the spec; the first by default.")] = None,
    rows: Annotated[int, typer.Option(min=2, help="Training and validation rows at most.")] = 64,
    rank: Annotated[
        list[int] | None,
        typer.Option("--rank", min=1, help="May be given again; 1, 2, 4 ... 512 by default."),
    ] = None,
    draws: Annotated[int, typer.Option(min=1, help="Draws of LoRA's A in every layer.")] = 5,
    uniform: Annotated[
        bool, typer.Option("--uniform", help="Uniform entries of A, as peft draws them, for normal ones.")
    ] = False,
    alpha: Annotated[float, typer.Option(help="LoRA's alpha.")] = 16.0,
    images: Images = True,
    json_output: Json = False,
) -> None:
    """Measure how far LoRA's kernel is from that of full fine-tuning, by rank and scaling.

    Beside what is measured stands what the theorem of Malladi et al. (2023) promises at that rank. With -o
    the errors over rank are also drawn, in a picture beside the record.
    """
    from foretaste.cli import display
    from foretaste.experiments.distortion import distortion as measure
    from foretaste.fewshot.distortion import RANKS
    from foretaste.fewshot.spec import FewShotSpec

    content, base_dir = read_spec(spec, FewShotSpec)
    display.pull_assets([content.model.base, *(task.data.source for task in content.tasks)], err)
    with display.kernel_progress(err, quiet=json_output) as on_progress:
        record = measure(
            content,
            output,
            base_dir=base_dir,
            task=task,
            rows=rows,
            ranks=sorted(set(rank)) if rank else RANKS,
            draws=draws,
            law="uniform" if uniform else "gaussian",
            alpha=alpha,
            on_progress=lambda share: on_progress("kernels", share),
        )
    if output is not None and images:
        from foretaste.report.figures import distortion as figure
        from foretaste.report.figures import theme

        points = [point.model_dump() for point in record.points]
        theme.save(figure.distortion(points), output.with_suffix(""))
    if json_output:
        print_json(record.model_dump(mode="json"))
    else:
        show(record, out)


def show(record: Distortion, console: Console) -> None:
    """What is kept at each rank and scaling, then the theorem's bound beside what was measured."""
    console.print(
        f"{escape(record.model)} · {escape(record.rows)} · {record.layers} adapted layers, of which "
        f"{record.effective_layers:.0f} share the kernel · {record.draws} draws",
        highlight=False,
        soft_wrap=True,
    )
    kept = Table("rank", "scaling", "error", "largest", "scale", "alignment", "shape", box=None)
    for rank in record.ranks:
        for scaling in dict.fromkeys(point.scaling for point in record.points):
            points = [p for p in record.points if (p.rank, p.scaling) == (rank, scaling)]
            means = [
                float(np.mean([getattr(p, key) for p in points]))
                for key in ("relative_error", "largest", "scale", "alignment", "shape_error")
            ]
            kept.add_row(str(rank), scaling, *(f"{value:.3g}" for value in means))
    console.print(kept)
    console.print(
        "error: |K_LoRA - K| / |K|. largest: of one entry, over the largest K(i, i). scale: the multiple of "
        "K that is nearest. shape: the error at that scale. Means over draws.",
        style="dim",
        highlight=False,
        soft_wrap=True,
    )
    bounds = Table("rank", "epsilon", "bound", "draws off", "layers off", "entries within", box=None)
    for bound in record.bounds:
        said = "says nothing" if bound.bound >= 1 else f"{bound.bound:.2g}"
        bounds.add_row(
            str(bound.rank),
            f"{bound.epsilon:.2g}",
            said,
            f"{bound.failures} of {bound.draws}",
            f"{bound.layer_failures} of {bound.layer_trials}",
            f"{bound.layer_within:.3f}",
        )
    console.print(bounds)
    needed = ", ".join(
        f"{rank:,} (epsilon {epsilon:.2g})"
        for rank, epsilon in zip(record.least_ranks, record.epsilons, strict=True)
    )
    console.print(
        f"bound: Theorem D.5's, on the probability that any of {record.count} x {record.count} entries is "
        f"off by epsilon times the largest K(i, i), at variance 1/r. It is 0.05 at rank {needed}.",
        style="dim",
        highlight=False,
        soft_wrap=True,
    )
