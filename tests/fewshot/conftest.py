"""Shared by the few-shot tests: tiny masked and causal language models whose tokenizers know label words."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from foretaste.data.prompts import TASKS, builtin
from foretaste.errors import UserError

POSITIONS = 96
FILLERS = (
    "the a film movie plot actor scene story music script camera role hero villain ending cast voice light "
    "sound joke song dance city night day rain snow road house door bad poor awful good great fine plain "
    "average medium It was This is article about news Question Type Answer Yes Maybe or No Do both say same "
    "ask Does this answer question believe you are right one all quality known"
)


def _words() -> list[str]:
    """Every label word of the built-in prompts, and the words of templates and rows."""
    found = FILLERS.split()
    for task in TASKS:
        for variant in ("manual", "searched"):
            try:
                found += builtin(task, variant).words  # type: ignore[arg-type]
            except UserError:
                assert (task, variant) == ("agnews", "searched")
    return list(dict.fromkeys(found))


def byte_level_tokenizer(special: dict[str, str]) -> Any:
    """Byte-level BPE as GPT-2's and RoBERTa's: every known word, with a space before it, is one token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=6000,
        special_tokens=list(dict.fromkeys(special.values())),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator([" " + " ".join([*_words(), *_words()])], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


def word_piece_tokenizer() -> Any:
    """Lower-casing WordPiece as BERT's, which knows single letters beside the known words."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = {
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "mask_token": "[MASK]",
    }
    letters = "abcdefghijklmnopqrstuvwxyz"
    tokens = [*special.values(), *".,:?!'", *letters, *(f"##{letter}" for letter in letters)]
    tokens += [word.lower() for word in _words()]
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.BertProcessing(
        ("[SEP]", vocabulary["[SEP]"]), ("[CLS]", vocabulary["[CLS]"])
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        **special,
    )


ROBERTA = {
    "bos_token": "<s>",
    "cls_token": "<s>",
    "pad_token": "<pad>",
    "eos_token": "</s>",
    "sep_token": "</s>",
    "unk_token": "<unk>",
    "mask_token": "<mask>",
}
GPT2 = {"eos_token": "<|endoftext|>"}


def make_tokenizer(kind: str) -> Any:
    if kind == "bert":
        return word_piece_tokenizer()
    return byte_level_tokenizer(ROBERTA if kind == "roberta" else GPT2)


@pytest.fixture(scope="session")
def tokenizers_by_kind() -> dict[str, Any]:
    """Tokenizers of the kinds bert, roberta and gpt2."""
    return {kind: make_tokenizer(kind) for kind in ("bert", "roberta", "gpt2")}


@pytest.fixture(scope="session")
def prompt_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`prompt_model("bert" | "roberta" | "llama" | "gpt2")`: folder of a language model with its head.

    Two layers, 32 wide, 96 positions, random weights. All but the Llama tie their head to the embeddings.
    """
    cache: dict[str, Path] = {}

    def make(kind: str) -> Path:
        import torch
        import transformers as t

        if kind in cache:
            return cache[kind]
        folder = tmp_path_factory.mktemp(f"prompt-{kind}")
        tokenizer = make_tokenizer("gpt2" if kind == "llama" else kind)
        tokenizer.save_pretrained(folder)
        shape = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64}
        common = {"vocab_size": len(tokenizer), "initializer_range": 0.2}
        ends = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id}
        pad = {"pad_token_id": tokenizer.pad_token_id}
        configs: dict[str, tuple[Any, Callable[[], Any]]] = {
            "bert": (
                t.BertForMaskedLM,
                lambda: t.BertConfig(max_position_embeddings=POSITIONS, **pad, **shape, **common),
            ),
            "roberta": (
                t.RobertaForMaskedLM,
                lambda: t.RobertaConfig(
                    max_position_embeddings=POSITIONS + tokenizer.pad_token_id + 1,
                    type_vocab_size=1,
                    **pad,
                    **ends,
                    **shape,
                    **common,
                ),
            ),
            "llama": (
                t.LlamaForCausalLM,
                lambda: t.LlamaConfig(
                    max_position_embeddings=POSITIONS, num_key_value_heads=2, **ends, **shape, **common
                ),
            ),
            "gpt2": (
                t.GPT2LMHeadModel,
                lambda: t.GPT2Config(n_positions=POSITIONS, n_embd=32, n_layer=2, n_head=4, **ends, **common),
            ),
        }
        model, config = configs[kind]
        with torch.random.fork_rng():
            torch.manual_seed(1)
            model(config()).save_pretrained(folder)
        cache[kind] = folder
        return folder

    return make
