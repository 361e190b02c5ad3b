"""What makes a kernel meaningless is an error that names the layer or the parameter."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from kernel_oracles import compute, inputs, own, pad_of, sequences, subject
from peft_models import lora

from foretaste.errors import UserError
from foretaste.kernels import Gram, logits

FAMILIES = ("bert", "gpt2", "llama")
FIRST_LAYERS = {
    "bert": "bert.encoder.layer.0.attention.self.value",
    "gpt2": "transformer.h.0.attn.c_attn",
    "llama": "model.layers.0.self_attn.v_proj",
}


def kernel_of(model: Any, tokens: Any = None) -> Any:
    rows = inputs(sequences() if tokens is None else tokens, pad_of(model))
    return compute(model, logits, rows, [Gram()], train=min(4, len(rows)))


def spoil(model: Any, name: str, value: float) -> None:
    with torch.no_grad():
        model.get_parameter(name).view(-1)[0] = value


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_weight_that_is_not_finite_is_an_error_that_names_its_layer(family: str, value: float) -> None:
    model, layer = own(subject(family).model), FIRST_LAYERS[family]
    spoil(model, f"{layer}.weight", value)
    with pytest.raises(UserError, match=re.escape(f"the output of layer '{layer}' is not finite")):
        kernel_of(model)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_frozen_weight_that_is_not_finite_is_named_too(family: str) -> None:
    model = lora(
        family, target_modules=["c_proj" if family == "gpt2" else "dense" if family == "bert" else "o_proj"]
    )
    layer = f"base_model.model.{FIRST_LAYERS[family]}"
    assert not model.get_parameter(f"{layer}.weight").requires_grad
    spoil(model, f"{layer}.weight", float("nan"))
    with pytest.raises(UserError, match=re.escape(f"layer '{layer}' is not finite")):
        kernel_of(model)


def test_one_bad_row_of_a_table_is_found_in_whatever_row_it_is_looked_up() -> None:
    model = own(subject("bert").model)
    tokens = [[5, 6], [5, 6, 7], [5, 6, 7], [5, 49, 7], [5, 6, 7, 8]]  # neither the shortest nor the longest
    with torch.no_grad():
        model.bert.embeddings.word_embeddings.weight[49] = float("nan")
    layer = "bert.embeddings.word_embeddings"
    with pytest.raises(UserError, match=re.escape(f"the output of layer '{layer}' is not finite")):
        kernel_of(model, tokens)
    kernel_of(model, [row for row in tokens if 49 not in row])  # a row that nothing looks up hurts nobody


def test_a_gradient_that_is_not_finite_is_an_error_that_names_the_parameter() -> None:
    """Finite outputs may have infinite derivatives: here a square root at zero."""
    model = own(subject("bert").model)

    def outputs(model: Any, batch: Any) -> torch.Tensor:
        values = logits(model, batch)
        return values + (values - values.detach()).abs().sqrt()

    with pytest.raises(UserError, match=r"the gradients of 'bert\..*' are not finite"):
        compute(model, outputs, subject("bert").rows(), [Gram()])


@pytest.mark.parametrize(
    ("family", "layer"),
    [
        ("bert", "bert.embeddings.dropout"),
        ("gpt2", "transformer.drop"),
        ("distilbert", "distilbert.embeddings.dropout"),
    ],
)
def test_dropout_that_was_left_on_is_an_error_that_names_the_layer(family: str, layer: str) -> None:
    model = own(subject(family).model).train()
    message = f"the model is not deterministic: layer '{layer}' gives two outputs for the same rows"
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        kernel_of(model)
    assert caught.value.cure is not None
    assert "model.eval()" in caught.value.cure


def test_dropout_of_lora_or_inside_attention_is_noticed() -> None:
    model = lora("bert", b=0.3, lora_dropout=0.5, target_modules=["value"])
    kernel_of(model)  # off in evaluation mode
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout) and module.p == 0.5:
            module.train()
    with pytest.raises(UserError, match=r"layer '.*layer\.0\.attention\.self\.value\.lora_dropout\.default'"):
        kernel_of(model)
    model = own(subject("bert").model)
    model.bert.encoder.layer[1].attention.self.train()  # its share is an argument of a function
    with pytest.raises(
        UserError,
        match=r"layer 'bert\.encoder\.layer\.1\.attention\.self\.dropout|"
        r"layer 'bert\.encoder\.layer\.1\.attention\.output\.dense'",
    ):
        kernel_of(model)


def test_a_kernel_of_zeros_is_an_error() -> None:
    model = own(subject("bert").model)
    with torch.no_grad():
        model.classifier.weight.zero_()
    kernel_of(model)  # the head itself still moves the outputs
    model.classifier.requires_grad_(False)
    with pytest.raises(
        UserError, match=r"the kernel is zero: no parameter from 'bert\.embeddings\.word"
    ) as caught:
        kernel_of(model)
    assert "empty head" in str(caught.value)


def test_lora_with_a_frozen_b_of_zero_is_a_kernel_of_zeros() -> None:
    model = lora("bert")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_A" in name)
    with pytest.raises(UserError, match=r"the kernel is zero: no parameter from '.*lora_A"):
        kernel_of(model)


def test_outputs_that_nothing_moves_are_an_error() -> None:
    model = own(subject("bert").model)
    model.requires_grad_(False)
    with pytest.raises(UserError, match="the model has no trainable parameter"):
        kernel_of(model)
    model.bystander = torch.nn.Linear(2, 2).double()
    with pytest.raises(UserError, match="no output of the model depends on any trainable parameter"):
        kernel_of(model)


def test_a_trained_parameter_that_is_no_real_number_is_refused_by_name() -> None:
    model = own(subject("bert").model)
    model.odd = torch.nn.Parameter(torch.zeros(2, dtype=torch.complex128))
    with pytest.raises(
        UserError, match=r"parameter 'odd' is torch\.complex128: a kernel needs floating point"
    ):
        kernel_of(model)


def test_frozen_integers_stay_as_they_are() -> None:
    """A quantised weight below an adapter is no parameter of the kernel."""
    model = lora("bert")
    codes = torch.nn.Parameter(torch.arange(3, dtype=torch.int8), requires_grad=False)
    model.base_model.model.codes = codes
    kernel_of(model)
    assert not codes.requires_grad
    assert codes.dtype == torch.int8


@pytest.mark.parametrize("family", ["bert", "t5"])
def test_hooks_and_switches_are_gone_afterwards_also_after_an_error(family: str) -> None:
    model = own(subject(family).model)
    names = [n for n, p in model.named_parameters()]
    model.get_parameter(names[0]).requires_grad_(False)
    before = {n: p.requires_grad for n, p in model.named_parameters()}
    kernel_of(model)
    spoil(model, names[-1], float("nan"))
    with pytest.raises(UserError, match="is not finite"):
        kernel_of(model)
    assert {n: p.requires_grad for n, p in model.named_parameters()} == before
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in model.modules())
    assert all(p.grad is None for p in model.parameters())
