"""Tiny random models of every family in float64, and their gradients by autograd, row by row.

Models and gradients are made once for all tests: a test that changes a model changes a copy of its own.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import transformers as hf
from torch import nn

from foretaste.kernels import Done, Inputs, Job, Outputs, Part, Parts, kernels, logits, trainable
from foretaste.models.load import mean_pooled

Float = npt.NDArray[np.float64]

GIB = 2**30
VOCABULARY = 50
LENGTHS = (5, 3, 7, 4, 6, 7)
TRAIN = 4
EXACT = 1e-8
"""The error that issue 3 allows. Float64 sums of at most 10^4 terms round to about 10^-12."""

_COMMON: dict[str, Any] = {"vocab_size": VOCABULARY}
_SHAPE: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
    "initializer_range": 0.3,
}


def _deberta(**options: Any) -> Any:
    return hf.DebertaV2Config(
        **_COMMON,
        **_SHAPE,
        **{
            "relative_attention": True,
            "position_buckets": 4,
            "pos_att_type": ["p2c", "c2p"],
            "share_att_key": True,
            "norm_rel_ebd": "layer_norm",
            "position_biased_input": False,
            "pad_token_id": 0,
        }
        | options,
    )


def _decoder(kind: Any) -> Any:
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    return kind(**_COMMON, **_SHAPE, num_key_value_heads=1, **special)


CONFIGS: dict[str, Callable[[], Any]] = {
    "bert": lambda: hf.BertConfig(**_COMMON, **_SHAPE),
    "roberta": lambda: hf.RobertaConfig(**_COMMON, **_SHAPE, pad_token_id=1),
    "distilbert": lambda: hf.DistilBertConfig(
        **_COMMON,
        dim=16,
        n_layers=2,
        n_heads=2,
        hidden_dim=24,
        max_position_embeddings=32,
        initializer_range=0.3,
    ),
    "deberta-shared-keys": _deberta,
    "deberta-own-keys": lambda: _deberta(share_att_key=False),
    "deberta-c2p": lambda: _deberta(pos_att_type=["c2p"], share_att_key=False, norm_rel_ebd="none"),
    "deberta-p2c": lambda: _deberta(pos_att_type=["p2c"], position_biased_input=True),
    "deberta-convolution": lambda: _deberta(conv_kernel_size=3, conv_act="gelu"),
    "albert": lambda: hf.AlbertConfig(**_COMMON, **_SHAPE | {"num_hidden_layers": 3}, embedding_size=8),
    "electra": lambda: hf.ElectraConfig(**_COMMON, **_SHAPE, embedding_size=8),
    "gpt2": lambda: hf.GPT2Config(
        **_COMMON,
        n_embd=16,
        n_layer=2,
        n_head=2,
        n_positions=32,
        initializer_range=0.3,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    ),
    "opt": lambda: hf.OPTConfig(
        **_COMMON,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        ffn_dim=24,
        max_position_embeddings=32,
        word_embed_proj_dim=8,
        init_std=0.3,
        pad_token_id=1,
    ),
    "gpt-neox": lambda: hf.GPTNeoXConfig(**_COMMON, **_SHAPE, pad_token_id=0, bos_token_id=1, eos_token_id=2),
    "llama": lambda: _decoder(hf.LlamaConfig),
    "qwen2": lambda: _decoder(hf.Qwen2Config),
    "t5": lambda: hf.T5Config(
        **_COMMON, d_model=16, d_kv=8, num_layers=2, num_heads=2, d_ff=24, initializer_factor=1.0
    ),
}
FAMILIES = tuple(CONFIGS)


def build(family: str, classes: int = 3, *, attention: str | None = None, seed: int = 0) -> Any:
    """A new model in float64 and evaluation mode: no weight of it is zero, and none is frozen.

    Args:
        family: A name in `CONFIGS`.
        classes: Number of outputs.
        attention: "eager" where a test needs derivatives that fused attention lacks.
        seed: Of the weights.
    """
    config = CONFIGS[family]()
    config.num_labels = classes
    if attention:
        config._attn_implementation = attention
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if family == "t5":
            model: Any = mean_pooled(hf.T5EncoderModel(config), classes)
        else:
            model = hf.AutoModelForSequenceClassification.from_config(config)
        return perturbed(model)


def perturbed(model: nn.Module, size: float = 0.1) -> Any:
    """The model in float64 and evaluation mode, every parameter moved off special values such as 0 and 1."""
    model.double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(size * torch.randn_like(parameter))
    return model.requires_grad_(True)


def sequences(lengths: Sequence[int] = LENGTHS, seed: int = 1, first: int = 3) -> list[list[int]]:
    """Token ids from `first` on, which spares the special ones."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(first, VOCABULARY, (n,), generator=generator).tolist() for n in lengths]


def inputs(tokens: Sequence[Sequence[int]], pad: int, extra: int = 0) -> Inputs:
    """Rows that are padded to the longest of a batch, and `extra` tokens further."""

    def collate(rows: Sequence[int]) -> dict[str, torch.Tensor]:
        longest = max(len(tokens[i]) for i in rows) + extra
        ids = [[*tokens[i], *[pad] * (longest - len(tokens[i]))] for i in rows]
        mask = [[1] * len(tokens[i]) + [0] * (longest - len(tokens[i])) for i in rows]
        return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}

    return Inputs([len(row) for row in tokens], collate)


def pad_of(model: nn.Module) -> int:
    config: Any = model.config
    return getattr(config, "pad_token_id", None) or 0


@dataclass(frozen=True)
class Jacobian:
    """Gradients by automatic differentiation.

    Attributes:
        by_name: Shape (rows * outputs, entries) for each trainable parameter; zero where there is none.
        unused: Parameters on which no output depends.
    """

    by_name: dict[str, Float]
    unused: list[str]

    def kernel(self, names: Iterable[str] | None = None) -> Float:
        """<g_i, g_j> over the named parameters, all by default."""
        chosen = list(self.by_name) if names is None else list(names)
        return np.asarray(sum(self.by_name[n] @ self.by_name[n].T for n in chosen))

    def ordered(self, rows: Sequence[int]) -> Jacobian:
        """With the rows in another order."""
        count = len(next(iter(self.by_name.values()))) // len(LENGTHS)
        places = (np.asarray(rows)[:, None] * count + np.arange(count)).ravel()
        return Jacobian({name: g[places] for name, g in self.by_name.items()}, self.unused)


def jacobian(model: nn.Module, outputs: Outputs, rows: Inputs) -> Jacobian:
    """One row a forward pass, unpadded; one output a backward pass."""
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    found: dict[str, list[Float]] = {name: [] for name, _ in named}
    used = set()
    for i in range(len(rows)):
        values = outputs(model, rows.collate([i]))[0]
        for value in values:
            grads = torch.autograd.grad(value, [p for _, p in named], retain_graph=True, allow_unused=True)
            for (name, parameter), grad in zip(named, grads, strict=True):
                if grad is not None:
                    used.add(name)
                filled = torch.zeros_like(parameter) if grad is None else grad
                found[name].append(filled.detach().double().flatten().numpy())
    return Jacobian({n: np.stack(g) for n, g in found.items()}, [n for n in found if n not in used])


@dataclass(frozen=True)
class Subject:
    """A model with rows and the truth about it."""

    model: Any
    outputs: Outputs
    tokens: list[list[int]]
    truth: Jacobian

    def rows(self, extra: int = 0, order: Sequence[int] | None = None) -> Inputs:
        tokens = self.tokens if order is None else [self.tokens[i] for i in order]
        return inputs(tokens, pad_of(self.model), extra)


@functools.cache
def subject(
    family: str, classes: int = 3, outputs: Outputs = logits, attention: str | None = None
) -> Subject:
    """The model of a family with its gradients, made once. Do not change it."""
    model, tokens = build(family, classes, attention=attention), sequences()
    return Subject(model, outputs, tokens, jacobian(model, outputs, inputs(tokens, pad_of(model))))


def compute(
    model: nn.Module,
    outputs: Outputs,
    rows: Inputs,
    products: Sequence[Any],
    *,
    parameters: Any = None,
    train: int = TRAIN,
    memory: int = 4 * GIB,
    **options: Any,
) -> tuple[Parts, Done]:
    """`kernels` of the trainable parameters, with room for everything."""
    chosen = trainable(model) if parameters is None else parameters
    reduce = options.pop("reduce", None)
    return kernels(Job(model, chosen, outputs, rows, train, products, reduce), memory=memory, **options)


def whole(part: Part) -> Float:
    """Rows to train on and to test on behind each other, columns to train on."""
    return np.concatenate([part.train, part.test], axis=-2)


def columns(truth: Float, train: int = TRAIN, rows: int = len(LENGTHS)) -> Float:
    """What of a kernel of all rows with all rows is computed: the columns of rows to train on."""
    return truth[:, : train * (truth.shape[1] // rows)]


def assert_exact(got: Float, want: Float, *, scale: float | None = None, relative: float = EXACT) -> None:
    """Every entry within `relative` of the largest; `scale` stands in for a kernel that is zero in truth."""
    largest = float(np.abs(want).max())
    allowed = relative * max(largest, scale or 0.0)
    assert got.shape == want.shape
    assert allowed > 0
    assert np.abs(got - want).max() <= allowed, np.abs(got - want).max() / allowed


def own(model: nn.Module) -> Any:
    """A copy that a test may change."""
    return copy.deepcopy(model)
