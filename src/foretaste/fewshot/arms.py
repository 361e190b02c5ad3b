"""The arms of a few-shot sweep: zero-shot, fine-tuning and kernels, each with its grid (Table 4)."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from foretaste.spec import Strict
from foretaste.theory.selection import GAMMAS, POSITIVE_REGULARISATIONS, REGULARISATIONS, SCALES

Optimiser = Literal["sgd", "adam", "signgd"]
Adapter = Literal["full", "lora", "bitfit", "intrinsic"]
Output = Literal["prompt", "standard"]
KernelKind = Literal["sgd", "signgd", "asymmetric"]
Solver = Literal["ridge", "logistic", "svm", "asymmetric", "least-squares"]
Positive = Annotated[float, Field(gt=0.0)]
NonNegative = Annotated[float, Field(ge=0.0)]
Scale = Positive | Literal["inf"]

LORA_RANK, LORA_ALPHA = 8, 16
"""Of SGD-LoRA and Adam-LoRA (Table 4)."""
STEPS = 32
"""Optimiser steps by default: 32 k C (Malladi et al. 2023, App. A)."""
CHECK_EVERY = 4
"""Steps between two looks at the validation rows by default: 4 k C."""


class ZeroShot(Strict):
    """The pretrained model as it is."""

    kind: Literal["zero-shot"]
    name: str | None = Field(None, description="label in tables; made from the settings by default")

    @property
    def output(self) -> Output:
        """Without training there is no other."""
        return "prompt"

    @property
    def label(self) -> str:
        """Name, given or made."""
        return self.name or "zero-shot"

    def resolved(self, _: int) -> ZeroShot:
        """With every default written out."""
        return self.model_copy(update={"name": self.label})


class _Adapted(Strict):
    """Which parameters move."""

    name: str | None = Field(None, description="label in tables; made from the settings by default")
    adapter: Adapter = Field("full", description="which parameters: all, LoRA's, biases, a random subspace")
    rank: PositiveInt = Field(LORA_RANK, description="of LoRA")
    alpha: PositiveInt = Field(LORA_ALPHA, description="of LoRA")
    dimension: PositiveInt | None = Field(None, description="of the random subspace (paper, App. D.1)")
    output: Output = Field(
        "prompt",
        description="prompt: the label words' logits; standard: a new linear head on the first (masked) or "
        "last (causal) token, which begins as logistic regression on the frozen model's features",
    )

    @model_validator(mode="after")
    def _dimension_where_needed(self) -> Self:
        if self.adapter == "intrinsic" and self.dimension is None:
            raise ValueError("adapter intrinsic needs a dimension")
        if self.adapter != "intrinsic" and self.dimension is not None:
            raise ValueError("dimension belongs to adapter: intrinsic")
        # The defaults may be spelt out, as in a record.
        if self.adapter != "lora" and (self.rank, self.alpha) != (LORA_RANK, LORA_ALPHA):
            raise ValueError("rank and alpha belong to adapter: lora")
        return self

    @property
    def _suffix(self) -> str:
        # What is the default goes without saying.
        parts = {"full": "", "intrinsic": f"-intrinsic-{self.dimension}"}.get(
            self.adapter, f"-{self.adapter}"
        )
        if self.adapter == "lora" and (self.rank, self.alpha) != (LORA_RANK, LORA_ALPHA):
            parts += f"-r{self.rank}-a{self.alpha}"
        return parts + ("" if self.output == "prompt" else "-standard")


_RATES: dict[tuple[Optimiser, bool], list[float]] = {
    ("sgd", False): [1e-4, 5e-4, 1e-3, 5e-3, 1e-2],
    ("adam", False): [1e-5, 2e-5, 5e-5],
    ("sgd", True): [1e-4, 1e-3, 1e-2],
    ("adam", True): [1e-5, 4e-5, 4e-4],
}
"""Learning rates by optimiser and whether it is LoRA that is trained (Table 4)."""


class FineTune(_Adapted):
    """Fine-tuning; one model for each learning rate and batch size, the best on validation rows is tested.

    The paper's code decays the rate linearly without warm-up, has no weight decay, clips the gradient at norm
    1 and keeps the best checkpoint; so do we. Dropout is off, so that kernels describe the same model.
    """

    kind: Literal["fine-tune"]
    optimiser: Optimiser = "sgd"
    learning_rates: list[Positive] = Field(
        default_factory=list,
        description="the paper's grid by default (Table 4); for signgd, which it does not train, Adam's",
    )
    batch_sizes: list[PositiveInt] = Field(
        default_factory=list, description="2, 4, 8, or 4, 16 for LoRA by default (Table 4)"
    )
    steps: PositiveInt | None = Field(None, description="32 k C by default, C classes")
    check_every: PositiveInt | None = Field(
        None, description="steps between two looks at the validation rows; 4 k C by default"
    )
    max_grad_norm: Positive | None = Field(1.0, description="null: no clipping")
    criteria: bool = Field(False, description="measure the criteria of kernel behaviour of the chosen model")

    @property
    def label(self) -> str:
        """Name, given or made."""
        return self.name or f"{self.optimiser}{self._suffix}"

    def resolved(self, shots: int) -> FineTune:
        """With every default written out.

        Args:
            shots: k times C.
        """
        lora = self.adapter == "lora"
        rates = _RATES["sgd" if self.optimiser == "sgd" else "adam", lora]
        steps = self.steps or STEPS * shots
        return self.model_copy(
            update={
                "name": self.label,
                "learning_rates": self.learning_rates or rates,
                "batch_sizes": self.batch_sizes or ([4, 16] if lora else [2, 4, 8]),
                "steps": steps,
                "check_every": self.check_every or min(steps, CHECK_EVERY * shots),
            }
        )

    @model_validator(mode="after")
    def _grids_without_repeats(self) -> Self:
        _refuse_repeats(self, "learning_rates", "batch_sizes")
        return self


class KernelArm(_Adapted):
    """A kernel of the pretrained model and a solver; the grid's best on validation rows is tested."""

    kind: Literal["kernel"]
    kernel: KernelKind = Field(
        "sgd", description="sgd: <g, g'>; signgd: <sgn g, sgn g'>; asymmetric: <g, sgn g'>, g of the test row"
    )
    solver: Solver | None = Field(None, description="ridge, or asymmetric for that kernel, by default")
    regularisations: list[NonNegative] = Field(
        default_factory=list, description="times ||K||_op; the paper's grid by default (Table 4)"
    )
    scales: list[Scale] = Field(
        default_factory=list,
        description="f0: one-hot targets times this, inf drops the pretrained logits; the paper's grid",
    )
    gammas: list[Positive] = Field(
        default_factory=list, description="of the asymmetric system; the paper's grid by default"
    )
    precision: Literal["float32", "float64"] = Field(
        "float32", description="in which gradients are taken; their products are summed in float64"
    )
    expected: bool = Field(
        False, description="LoRA's sgd kernel in expectation over A, and not of the one A of this split"
    )

    @property
    def label(self) -> str:
        """Name, given or made."""
        if self.name:
            return self.name
        usual = self.solver in (None, "asymmetric" if self.kernel == "asymmetric" else "ridge")
        suffix = self._suffix + ("-expected" if self.expected else "")
        return f"kernel-{self.kernel}{suffix}" + ("" if usual else f"-{self.solver}")

    def resolved(self, _: int) -> KernelArm:
        """With every default written out; grids that the solver has no use for stay empty."""
        solver = self.solver or ("asymmetric" if self.kernel == "asymmetric" else "ridge")
        positive = solver in ("logistic", "svm")
        strengths = list(POSITIVE_REGULARISATIONS if positive else REGULARISATIONS)
        scales: list[Any] = ["inf" if math.isinf(scale) else scale for scale in SCALES]
        return self.model_copy(
            update={
                "name": self.label,
                "solver": solver,
                "regularisations": self.regularisations or strengths,
                "scales": [] if positive else self.scales or scales,
                "gammas": (self.gammas or list(GAMMAS)) if solver == "asymmetric" else [],
            }
        )

    @property
    def scale_values(self) -> list[float]:
        """`scales` as numbers."""
        return [float(scale) for scale in self.scales]

    @model_validator(mode="after")
    def _solver_fits(self) -> Self:
        _refuse_repeats(self, "regularisations", "scales", "gammas")
        two_sided = self.solver in ("asymmetric", "least-squares")
        if self.kernel == "asymmetric" and self.solver is not None and not two_sided:
            raise ValueError(f"the asymmetric kernel takes asymmetric or least-squares, not {self.solver}")
        if self.gammas and (self.solver or self.kernel) != "asymmetric":
            raise ValueError("gammas belong to solver: asymmetric")
        if self.expected and (self.adapter, self.kernel) != ("lora", "sgd"):
            raise ValueError("expected is for adapter: lora and kernel: sgd")
        if self.solver in ("logistic", "svm"):
            if self.scales:
                raise ValueError(f"solver {self.solver} has no scales")
            if 0.0 in self.regularisations:
                raise ValueError(f"solver {self.solver} needs regularisations above 0")
        return self


def _refuse_repeats(arm: Strict, *names: str) -> None:
    for name in names:
        values = getattr(arm, name)
        if len(set(values)) < len(values):
            raise ValueError(f"{name} repeat: {values}")


Arm = Annotated[ZeroShot | FineTune | KernelArm, Field(discriminator="kind")]
