"""Write docs/presets.md from the presets' own YAML: `python tools/preset_reference.py`. A test compares."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

from foretaste.experiments import plan
from foretaste.fewshot.spec import FewShotSpec, FineTune
from foretaste.instruct.spec import InstructSpec, TriggerSpec
from foretaste.reproduction import compose
from foretaste.reproduction.preset import Preset, Scale
from foretaste.spec import AttackSpec, MeasureSpec, TrainingSpec

Spec = MeasureSpec | InstructSpec

SCALES: tuple[Scale, ...] = get_args(Scale)
MOST_ARMS = 9

HEAD = """# Figures and tables, one command each

Made from the presets by `python tools/preset_reference.py`.

```
foretaste reproduce ttr-fig1                                  # laptop scale, foretaste's own protocol
foretaste reproduce ttr-fig1 --variant clean --variant paper  # drawn over the paper's protocol
foretaste reproduce --all --scale smoke                       # all of them, on a tiny random model
```

A preset names the sweeps that its figure or table is drawn from: those of the TTR paper (`ttr-`), those of
the kernel paper (`kernel-`, which have one protocol, the paper's), and comparisons that both lack. Presets
share sweeps, and a run is done once. Pages lie in `runs/reproduce/pages/`, with the figure as SVG, PNG and
PDF and the numbers as CSV, LaTeX and Parquet. What the variant `paper` switches back to the original's way:
[protocol.md](protocol.md).
"""


def seeds_of(spec: Spec) -> str:
    """The seeds as a list."""
    return ", ".join(str(seeds.data) for seeds in spec.seed_tuples())


def rows_of(spec: Spec) -> str:
    """Training and test rows."""
    train = f"{spec.data.train_rows:,}" if spec.data.train_rows else "all"
    test = f"{spec.data.test_rows:,}" if spec.data.test_rows else "all"
    return f"{train} training, {test} test"


def length_of(training: TrainingSpec) -> str:
    """Steps or epochs."""
    return f"{training.steps:,} steps" if training.steps else f"{training.epochs or 3:g} epochs"


def arms_of(spec: Spec) -> list[str]:
    """Names of the arms, as they stand in tables."""
    return [arm.adapter.name for arm in plan.arms(spec)]


def arms_text(names: list[str]) -> str:
    """The arms; a long sweep by its first, second and last."""
    shown = names if len(names) <= MOST_ARMS else [*names[:2], "...", names[-1]]
    listed = ", ".join(name if name == "..." else f"`{name}`" for name in shown)
    return listed if len(names) <= MOST_ARMS else f"{listed} ({len(names)} arms)"


def poisons_of(spec: Spec, drawn: list[str]) -> list[AttackSpec | TriggerSpec]:
    """Attacks or triggers of a sweep that a preset draws."""
    poisons = spec.triggers if isinstance(spec, InstructSpec) else spec.attacks
    return [poison for poison in poisons if poison.name in drawn]


def amounts_of(poison: AttackSpec | TriggerSpec) -> str:
    """An attack or trigger with its amounts."""
    amounts = ", ".join(f"{rate * 100:g}" for rate in poison.rates)
    return f"{poison.name} {amounts} %"


def spec_of(preset: Preset, sweep: str, task: str, scale: Scale) -> Spec:
    """A sweep as the clean variant runs it; data from the hub."""
    inputs = Path("inputs")
    if preset.generative:
        return compose.compose_generative(sweep, task, scale=scale, data=None, inputs=inputs)
    return compose.compose(sweep, task, scale=scale, variant="clean", data=None, inputs=inputs)


def runs_of(spec: Spec, drawn: list[str]) -> int:
    """Runs of a sweep on one task that a preset draws, the clean ones and the untrained model with them."""
    amounts = sum(len(poison.rates) for poison in poisons_of(spec, drawn))
    trained = (1 + amounts) * len(arms_of(spec)) * len(spec.seed_tuples())
    return trained + isinstance(spec, InstructSpec)


def sweeps_table(preset: Preset) -> list[str]:
    """One row a scale and sweep."""
    lines = [
        "| scale | tasks | sweep | arms | poison | model, rows, length | seeds | runs |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for scale in SCALES:
        tasks = preset.tasks.get(scale, [])
        for sweep, drawn in preset.sweeps.items():
            spec = spec_of(preset, sweep, tasks[0], scale)
            base = "a tiny random model" if scale == "smoke" else spec.model.base
            poison = "; ".join(map(amounts_of, poisons_of(spec, drawn)))
            setting = f"{base}, {rows_of(spec)}, {length_of(spec.training)}"
            titles = ", ".join(compose.data_titles(preset)[task] for task in tasks)
            runs = runs_of(spec, drawn) * len(tasks)
            cells = [scale, titles, f"`{sweep}`", arms_text(arms_of(spec)), poison or "none", setting]
            lines.append(f"| {' | '.join([*cells, seeds_of(spec), str(runs)])} |")
    return lines


def grid_text(arm: FineTune) -> str:
    """The grid of a fine-tuning arm where the spec names one."""
    points = "the paper's grid"
    if arm.learning_rates or arm.batch_sizes:
        rates = ", ".join(f"{rate:g}" for rate in arm.learning_rates) or "the paper's"
        points = f"{rates}; batch {', '.join(map(str, arm.batch_sizes)) or 'as in the paper'}"
    length = f"{arm.steps} steps" if arm.steps else "32 k C steps"
    return f"{arm.label}: {points}; {length}" + ("; criteria" if arm.criteria else "")


def few_shot_table(preset: Preset) -> list[str]:
    """One row a scale and sweep of few-shot runs."""
    lines = [
        "| scale | tasks | sweep | arms | model, k, test rows | fine-tuning | splits | runs |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for scale in SCALES:
        tasks = preset.tasks.get(scale, [])
        for sweep in preset.sweeps_at(scale):
            specs = [_few_shot(sweep, task, scale) for task in tasks]
            spec = specs[0]
            base = "a tiny random model" if scale == "smoke" else spec.model.base
            k, splits = ", ".join(map(str, spec.k)), ", ".join(map(str, spec.splits))
            rows = spec.tasks[0].test_rows
            variant = spec.tasks[0].variant
            setting = f"{base}, k {k}, {f'at most {rows:,}' if rows else 'all'}"
            setting += "" if variant == "manual" else f", {variant} prompts"
            grids = "<br>".join(grid_text(arm) for arm in spec.arms if isinstance(arm, FineTune))
            runs = sum(len(one.arms) * len(one.k) * len(one.splits) * len(one.tasks) for one in specs)
            titles = ", ".join(compose.data_titles(preset)[task] for task in tasks)
            arms = arms_text([arm.label for arm in spec.arms])
            cells = [scale, titles, f"`{sweep}`", arms, setting, grids or "none", splits, str(runs)]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def _few_shot(sweep: str, task: str, scale: Scale) -> FewShotSpec:
    return compose.compose_few_shot(sweep, task, scale=scale, data=None, inputs=Path("inputs"))


def section(name: str) -> list[str]:
    """One preset."""
    preset = compose.read(name)
    lines = [f"## {name}: {preset.title}", "", f"*{preset.item}.* {preset.says}", ""]
    if preset.few_shot:
        lines += [*few_shot_table(preset), ""]
    else:
        lines += [*sweeps_table(preset), ""] if preset.sweeps else ["Nothing is trained for it.", ""]
    if preset.findings:
        lines += [f"Findings that it speaks to: {', '.join(f'`{name}`' for name in preset.findings)}.", ""]
    if preset.differences:
        lines += ["Known differences from the paper:", ""]
        lines += [*(f"* {line}" for line in preset.differences), ""]
    return lines


def render() -> str:
    """The whole page."""
    lines = [HEAD, "| preset | shows | in the paper |", "|---|---|---|"]
    for name in compose.names():
        preset = compose.read(name)
        lines.append(f"| [{name}](#{anchor(name, preset.title)}) | {preset.title} | {preset.item} |")
    lines.append("")
    for name in compose.names():
        lines += section(name)
    return "\n".join(lines).rstrip() + "\n"


def anchor(name: str, title: str) -> str:
    """The address of a section, as forges make it from its heading."""
    kept = "".join(c for c in f"{name} {title}".lower() if c.isalnum() or c in " -")
    return kept.replace(" ", "-")


if __name__ == "__main__":
    target = Path(__file__).resolve().parents[1] / "docs" / "presets.md"
    target.write_text(render(), encoding="utf-8")
