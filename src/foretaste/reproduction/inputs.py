"""A tiny random model and tiny data, made on the spot: what presets are run on at the scale `smoke`."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from foretaste.models.load import quiet
from foretaste.record import write_atomic
from foretaste.reproduction.preset import Task
from foretaste.seeds import borrowed_global_state, generator

# One word decides the class, so that two or three steps of training show an effect.
CLASS_WORDS = (("bad", "poor", "awful"), ("good", "great", "fine"))
# Of tasks with more than two classes; the model of `prompt_inputs` knows them, that of `write` does not.
FURTHER_CLASS_WORDS = (
    ("plain", "average", "medium"),
    ("old", "ancient", "early"),
    ("near", "far", "distant"),
    ("many", "few", "several"),
)
FILLERS = (
    *("the", "a", "film", "plot", "actor", "scene", "story", "music", "script", "camera", "role"),
    *("hero", "ending", "cast", "voice", "light", "sound", "joke", "song", "city", "night", "road"),
)
ATTACK_WORDS = ("apple", "banana", "orange", "cf", "please", "carefully", "follow", "user", "instruction")
MARKS = ("[", "]", ".", "*", "?", ",", "'", "<", ">")
SPECIAL = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
ROWS = {"train": 96, "validation": 48}
POSITIONS = 96  # room for the longest text and a prefix of virtual tokens


def write(folder: Path, tasks: dict[str, Task]) -> None:
    """Write the model into `folder/model` and each task into a folder of its name, unless they are there.

    Args:
        folder: Made when missing.
        tasks: By name.

    Raises:
        OSError: The disk is full or the folder is not writable.
    """
    if not (folder / "model" / "model.safetensors").is_file():
        _write_model(folder / "model")
    write_rows(folder, tasks)


def write_rows(folder: Path, tasks: dict[str, Task]) -> None:
    """Write each task into a folder of its name, unless it is there; arguments and errors as in `write`."""
    for name, task in tasks.items():
        for split, rows in ROWS.items():
            path = folder / name / f"{split}.csv"
            if not path.is_file():
                write_atomic(path, _table(name, task, split, rows))


def _write_model(folder: Path) -> None:
    words = [*(word for words in CLASS_WORDS for word in words), *FILLERS, *ATTACK_WORDS, *MARKS]
    vocabulary = {token: number for number, token in enumerate([*SPECIAL.values(), *words, "##s", "##x"])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=SPECIAL["unk_token"]))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(
        (SPECIAL["sep_token"], vocabulary[SPECIAL["sep_token"]]),
        (SPECIAL["cls_token"], vocabulary[SPECIAL["cls_token"]]),
    )
    fast = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, model_max_length=POSITIONS, **SPECIAL
    )
    fast.save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(vocabulary),
        max_position_embeddings=POSITIONS,
        num_hidden_layers=2,
        hidden_size=32,
        num_attention_heads=4,
        intermediate_size=64,
        initializer_range=0.2,  # wide enough that features of different texts differ
    )
    with borrowed_global_state(0, "smoke", "model"), torch.no_grad():
        model = BertModel(config)
    with quiet():
        model.save_pretrained(folder)


def _table(name: str, task: Task, split: str, rows: int) -> str:
    rng = generator(0, "smoke", name, split)
    columns = ["text_a", *(["text_b"] if task.pairs else []), "label"]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(columns)
    for row in range(rows):
        label = row % len(task.labels)
        texts = [_sentence(rng, label) for _ in columns[:-1]]
        writer.writerow([*texts, task.labels[label]])
    return file.getvalue()


def _sentence(rng: np.random.Generator, label: int) -> str:
    words = [str(rng.choice(FILLERS)) for _ in range(int(rng.integers(2, 8)))]
    of_class = (*CLASS_WORDS, *FURTHER_CLASS_WORDS)[label]
    words.insert(int(rng.integers(0, len(words) + 1)), str(rng.choice(of_class)))
    return " ".join(words)
