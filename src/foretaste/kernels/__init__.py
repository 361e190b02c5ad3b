"""Empirical kernels of real models: exact, for full fine-tuning and for every adapter.

A kernel entry is the inner product of the gradients of an output at two rows. Nothing here forms one gradient
vector a row: layer inputs and output derivatives are captured once (`capture`) and multiplied block by block
within a memory budget (`compute`).
"""

from foretaste.kernels.behaviour import LoraTraces, linearised, lora_traces, output_derivative
from foretaste.kernels.capture import Inputs, Outputs, logits, margin
from foretaste.kernels.compute import Done, Job, Place, kernels, parse_bytes
from foretaste.kernels.gram import MEAN_LORA, Gram
from foretaste.kernels.kernel import Part, Parts, below
from foretaste.kernels.lora import RULES, Adapted, Arm, Ranks, Surface, Weighted, expected
from foretaste.kernels.parameters import Parameter, linear_weights, trainable
from foretaste.kernels.peft_lora import plain_lora, starts_at
from foretaste.kernels.projected import Projection

__all__ = [
    "MEAN_LORA",
    "RULES",
    "Adapted",
    "Arm",
    "Done",
    "Gram",
    "Inputs",
    "Job",
    "LoraTraces",
    "Outputs",
    "Parameter",
    "Part",
    "Parts",
    "Place",
    "Projection",
    "Ranks",
    "Surface",
    "Weighted",
    "below",
    "expected",
    "kernels",
    "linear_weights",
    "linearised",
    "logits",
    "lora_traces",
    "margin",
    "output_derivative",
    "parse_bytes",
    "plain_lora",
    "starts_at",
    "trainable",
]
