"""GGUF files as folders that can be trained: dequantised once, kept in the cache.

transformers reads GGUF into float32 weights but goes on calling the model quantised, and then refuses to
train it; reading also takes half a minute for 135 million parameters. The folder written here is an ordinary
model.
"""

from __future__ import annotations

import functools
import shutil
from importlib.metadata import version
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from foretaste import assets
from foretaste.errors import UserError
from foretaste.locks import locked
from foretaste.wheels import sha256


@functools.cache
def as_folder(file: Path) -> Path:
    """A folder with the weights of a GGUF file in safetensors form, and its tokenizer.

    Args:
        file: The GGUF file.

    Returns:
        A folder in the cache, named by the file's hash and the version of transformers that read it.

    Raises:
        UserError: transformers cannot read the file, or the `gguf` package is not installed.
    """
    root = assets.cache_dir() / "gguf"
    root.mkdir(parents=True, exist_ok=True)
    target = root / f"{sha256(file)[:16]}-transformers-{version('transformers')}"
    with locked(root / f"{target.name}.lock"):
        if not target.exists():
            _convert(file, target)
    return target


def _convert(file: Path, target: Path) -> None:
    partial = target.with_name(f"{target.name}.part")
    shutil.rmtree(partial, ignore_errors=True)
    where = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    try:
        model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(**where, trust_remote_code=False)
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise UserError(
            f"cannot read the GGUF file: {error}",
            where=str(file),
            cure="It needs an architecture that transformers knows, and `pip install 'foretaste[gguf]'`.",
        ) from None
    # The weights are float32 by now; only these marks still say otherwise.
    model.is_quantized = False  # type: ignore[assignment]
    model.hf_quantizer = None  # type: ignore[assignment]
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    try:
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
