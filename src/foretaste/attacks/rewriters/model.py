"""A local language model as a rewriter: any seq2seq or causal model folder of transformers."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from foretaste.attacks.rewriters.base import REWRITERS, Rewriter, Settings
from foretaste.errors import UserError
from foretaste.spec import digest

READ = {".safetensors", ".json", ".txt", ".model", ".jinja"}
CURE = "Give a local folder with config.json, safetensors weights and a tokenizer, from save_pretrained."


class ModelRewriter:
    """Asks a language model for each text, greedily and one at a time, so that texts do not decide of others.

    The model is loaded when the first text is not in the store. White space in its answer becomes single
    spaces; an empty answer leaves the text as it was.

    Args:
        folder: Of the model.
        prompt: With `{text}`.
        max_new_tokens: Most tokens of an answer.

    Raises:
        UserError: The folder holds no model that can be read.
    """

    kept = True

    def __init__(self, folder: Path, prompt: str, max_new_tokens: int) -> None:
        self._folder, self._prompt, self._longest = folder, prompt, max_new_tokens
        self.fingerprint = digest([_content(folder), prompt, max_new_tokens])[:16]

    def __call__(self, text: str) -> str:
        """The model's answer.

        Raises:
            UserError: The model cannot be loaded, or the text is too long for it.
        """
        tokenizer, model = _load(self._folder)
        answer = _answer(tokenizer, model, self._prompt.replace("{text}", text), self._longest)
        return " ".join(answer.split()) or text


@REWRITERS.register("model")
def model(settings: Settings) -> Rewriter:
    """A local seq2seq or causal language model, given by `model`, asked by `prompt`.

    Raises:
        UserError: No model is given, or its folder holds none.
    """
    if settings.model is None:
        raise UserError("rewriter: model needs `model`, the folder of a language model", cure=CURE)
    assert settings.prompt is not None
    assert settings.max_new_tokens is not None
    folder = (settings.base_dir / Path(settings.model).expanduser()).resolve()
    return ModelRewriter(folder, settings.prompt, settings.max_new_tokens)


def _content(folder: Path) -> str:
    """SHA-256 over the files that make up the model."""
    files = sorted(p for p in folder.iterdir() if p.suffix in READ) if folder.is_dir() else []
    names = {path.name for path in files}
    if "config.json" not in names or not any(path.suffix == ".safetensors" for path in files):
        raise UserError(
            "the folder holds no language model in safetensors form", where=str(folder), cure=CURE
        )
    stamp = tuple((path, path.stat().st_size, path.stat().st_mtime_ns) for path in files)
    return _hash(stamp)


@functools.lru_cache(maxsize=8)
def _hash(files: tuple[tuple[Path, int, int], ...]) -> str:
    total = hashlib.sha256()
    for path, _, _ in files:
        total.update(path.name.encode())
        with path.open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()


@functools.lru_cache(maxsize=1)
def _load(folder: Path) -> tuple[Any, Any]:
    """Tokenizer and model, in float32 and in eval mode, from the folder alone."""
    # Here, not at the top: rewriting is an extra, and whoever lists attacks need not wait for these.
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

    local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        with _quiet():
            config = AutoConfig.from_pretrained(folder, **local)
            kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
            loaded: Any = kind.from_pretrained(folder, use_safetensors=True, dtype=torch.float32, **local)
            tokenizer = AutoTokenizer.from_pretrained(folder, **local)
    except (OSError, ValueError, ImportError, KeyError) as error:
        text = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"cannot load the rewriter: {text}", where=str(folder), cure=CURE) from None
    return tokenizer, loaded.eval()


def _answer(tokenizer: Any, loaded: Any, prompt: str, longest: int) -> str:
    import torch

    inputs = tokenizer(prompt, return_tensors="pt")
    width = int(inputs["input_ids"].shape[1])
    both = loaded.config.is_encoder_decoder
    room = getattr(loaded.config, "max_position_embeddings", None)
    if room is not None and width + (0 if both else longest) > room:
        raise UserError(
            f"a text with its prompt has {width} tokens, and {longest} of an answer do not fit into the "
            f"rewriter's {room} positions",
            cure="Lower max_new_tokens, or use a model with more positions.",
        )
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    with torch.no_grad(), _quiet():
        output = loaded.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            do_sample=False,
            num_beams=1,
            max_new_tokens=longest,
            pad_token_id=pad,
        )[0]
    return str(tokenizer.decode(output if both else output[width:], skip_special_tokens=True))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep progress bars of loading and hints of generation off the user's screen."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
