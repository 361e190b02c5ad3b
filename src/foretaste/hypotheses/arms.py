"""Arms by their settings: full fine-tuning or plain LoRA, its rank, scale, variance of A, effective step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from foretaste.calibration.places import natural
from foretaste.record import InitCheck, Training
from foretaste.spec import ResolvedAdapter, TrainingSpec, canonical_json, digest
from foretaste.theory.lora_width import PEFT_K

KAIMING = "kaiming-uniform"


@dataclass(frozen=True)
class Arm:
    """One adapter with one training, whatever it is called.

    Attributes:
        name: As the user named it, where several names were given the first in natural order.
        k: Variance of LoRA's A times n_in; None when it is no LoRA or cannot be known from the records.
    """

    key: str
    name: str
    adapter: ResolvedAdapter
    training: TrainingSpec
    k: float | None

    @property
    def full(self) -> bool:
        """Full fine-tuning."""
        return self.adapter.method == "full"

    @property
    def lora(self) -> bool:
        """LoRA as in the TTR paper: A and B trained, B zero at first, no decomposition of weights."""
        config = self.adapter.config
        return (
            self.adapter.method in ("lora", "rslora")
            and self.adapter.freeze is None
            and not config.get("use_dora", False)
            and config.get("init_lora_weights", True) is True
        )

    @property
    def rank(self) -> int:
        """LoRA's r."""
        return int(self.adapter.config["r"])

    @property
    def alpha(self) -> float:
        """LoRA's alpha."""
        return float(self.adapter.config["lora_alpha"])

    @property
    def rank_stabilised(self) -> bool:
        """The scale is alpha / sqrt(r) and not alpha / r."""
        return bool(self.adapter.config.get("use_rslora", False))

    @property
    def scale(self) -> float:
        """s, which stands before B A."""
        return self.alpha / (math.sqrt(self.rank) if self.rank_stabilised else self.rank)

    @property
    def law(self) -> str:
        """Distribution of A's entries at initialisation."""
        return self.adapter.init.law if self.adapter.init else KAIMING

    @property
    def usual_start(self) -> bool:
        """A starts as peft starts it."""
        return self.law == KAIMING and self.k is not None and math.isclose(self.k, PEFT_K, rel_tol=0.01)

    @property
    def rate(self) -> float:
        """Learning rate."""
        assert self.training.learning_rate is not None  # planning fills it in
        return self.training.learning_rate

    @property
    def step(self) -> float | None:
        """How far one step moves the outputs, up to a factor that ranks and variances share.

        SGD: learning rate x s^2 r k, the scale of LoRA's kernel. Adam: learning rate x s r sqrt(k), because a
        step has the sign of the gradient but not its size (theory.md, section 10). None for an optimiser
        that is neither, and where k is unknown.
        """
        if self.k is None:
            return None
        if self.training.optimizer == "sgd":
            return self.rate * self.scale**2 * self.rank * self.k
        if self.training.optimizer == "adamw":
            return self.rate * self.scale * self.rank * math.sqrt(self.k)
        return None

    @property
    def rest(self) -> dict[str, Any]:
        """The training beside the learning rate."""
        return self.training.model_dump(mode="json", exclude={"learning_rate"})

    @property
    def label(self) -> str:
        """Name and learning rate."""
        return f"{self.name} at {self.rate:g}"


@dataclass(frozen=True)
class Setting:
    """What a run says of its arm.

    Attributes:
        init: Requested and realised variance of A, where it was checked.
    """

    adapter: ResolvedAdapter
    training: TrainingSpec
    init: InitCheck | None

    @property
    def key(self) -> str:
        """Equal for equal settings, whatever their names."""
        adapter = self.adapter.model_dump(mode="json", exclude={"name"})
        return digest([adapter, self.training.model_dump(mode="json")])[:12]


def setting_of(adapter: ResolvedAdapter, training: TrainingSpec, done: Training | None) -> Setting:
    """The setting of a run.

    Args:
        adapter: As it was resolved.
        training: As it was asked for.
        done: What training did, if it got that far.
    """
    return Setting(adapter, training, done.init if done else None)


def arm_of(settings: Sequence[Setting]) -> Arm:
    """The arm of settings that share a key."""
    first = settings[0]
    return Arm(
        key=first.key,
        name=min((setting.adapter.name for setting in settings), key=natural),
        adapter=first.adapter,
        training=first.training,
        k=_variance(first.adapter, [setting.init for setting in settings if setting.init]),
    )


def family(arm: Arm, *, without: Sequence[str], init: bool) -> str:
    """Equal for LoRA arms that differ in nothing but some config fields and the learning rate.

    Args:
        arm: A LoRA arm.
        without: Config fields that may differ.
        init: The start of A must be equal too; otherwise its law must.
    """
    adapter = arm.adapter
    start = adapter.init.model_dump(mode="json") if adapter.init else None
    return canonical_json(
        {
            "config": {key: value for key, value in adapter.config.items() if key not in without},
            "init": start if init else arm.law,
            "training": arm.rest,
        }
    )


def _variance(adapter: ResolvedAdapter, checks: Sequence[InitCheck]) -> float | None:
    if "r" not in adapter.config:
        return None
    init = adapter.init
    if init is not None and init.k is not None:
        return init.k
    if init is None or init.law == KAIMING:
        return PEFT_K if adapter.config.get("init_lora_weights", True) is True else None
    # The other laws have a conventional k that depends on the layers' shapes: what was requested is recorded.
    return checks[0].k_requested if checks else None
