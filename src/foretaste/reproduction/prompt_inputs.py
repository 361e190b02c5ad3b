"""Two tiny random masked models that know every label word, and tiny rows: few-shot sweeps at `smoke`."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

from foretaste.data.prompts import TASKS, Prompt, builtin
from foretaste.errors import UserError
from foretaste.models.load import quiet
from foretaste.reproduction import inputs
from foretaste.reproduction.preset import Task
from foretaste.seeds import borrowed_global_state

MODELS = {"masked-model": 32, "masked-model-wide": 64}
"""Width by name."""
SPECIAL = {**inputs.SPECIAL, "mask_token": "[MASK]"}
VARIANTS = ("manual", "searched", "null")


def write(folder: Path, tasks: dict[str, Task]) -> None:
    """Write the models and each task into folders of their names, unless they are there.

    Args:
        folder: Made when missing; rows are those of `inputs.write`.
        tasks: By name.

    Raises:
        OSError: The disk is full or the folder is not writable.
    """
    for name, width in MODELS.items():
        if not (folder / name / "model.safetensors").is_file():
            _write_model(folder / name, name, width)
    inputs.write_rows(folder, tasks)


def _prompts() -> list[Prompt]:
    found = []
    for task in TASKS:
        for variant in VARIANTS:
            try:
                found.append(builtin(task, variant))  # type: ignore[arg-type]
            except UserError:  # not every task was searched
                continue
    return found


def _vocabulary() -> dict[str, int]:
    """Special tokens, letters as a last resort, and the words of rows, templates and labels."""
    classes = (*inputs.CLASS_WORDS, *inputs.FURTHER_CLASS_WORDS)
    words = [*(word for own in classes for word in own), *inputs.FILLERS]
    for prompt in _prompts():
        words += re.findall(r"[a-z]+", re.sub(r"\{[^{}]*\}", " ", prompt.template).lower())
        words += [word.lower() for word in prompt.words]
    letters = "abcdefghijklmnopqrstuvwxyz"
    tokens = [*SPECIAL.values(), *".,:?!'", *letters, *(f"##{letter}" for letter in letters), *words]
    return {token: number for number, token in enumerate(dict.fromkeys(tokens))}


def _write_model(folder: Path, name: str, width: int) -> None:
    vocabulary = _vocabulary()
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=SPECIAL["unk_token"]))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(
        (SPECIAL["sep_token"], vocabulary[SPECIAL["sep_token"]]),
        (SPECIAL["cls_token"], vocabulary[SPECIAL["cls_token"]]),
    )
    fast = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, model_max_length=inputs.POSITIONS, **SPECIAL
    )
    fast.save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(vocabulary),
        max_position_embeddings=inputs.POSITIONS,
        num_hidden_layers=2,
        hidden_size=width,
        num_attention_heads=4,
        intermediate_size=2 * width,
        pad_token_id=vocabulary[SPECIAL["pad_token"]],
        initializer_range=0.2,  # wide enough that logits of different texts differ
    )
    with borrowed_global_state(0, "smoke", name), torch.no_grad():
        model = BertForMaskedLM(config)
    with quiet():
        model.save_pretrained(folder)
