"""Base models: where they come from, what names them, and how they become a classifier."""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    Cache,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.modeling_outputs import SequenceClassifierOutput

from foretaste import assets
from foretaste.errors import UserError, nearest
from foretaste.models import gguf
from foretaste.spec import ModelSpec, Pooling, ResolvedModel

# What comes with a model is data: Python in its folder is not run, not even after asking, and pickles, which
# could run code, are not opened, whatever else lies beside them.
NO_CODE: dict[str, Any] = {"trust_remote_code": False}
WEIGHTS_ONLY: dict[str, Any] = {**NO_CODE, "use_safetensors": True}

HUB_ID = re.compile(r"^[\w.-]+/[\w.-]+$")


@dataclass(frozen=True)
class Location:
    """What `from_pretrained` is called with, and the pooling that suits the model."""

    name: str
    kwargs: dict[str, Any]
    pooling: Pooling
    folder: Path | None


class MeanPooledClassifier(PreTrainedModel):
    """A linear head on the mean of the last hidden states over the tokens that are no padding.

    Works for every encoder and decoder that `AutoModel` loads. Sentence encoders such as MiniLM are trained
    with this pooling; their own pooler, where one exists, is random.

    Args:
        encoder: The model without a head.
        num_labels: Number of classes.
    """

    base_model_prefix = "encoder"
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(self, encoder: PreTrainedModel, num_labels: int) -> None:
        super().__init__(encoder.config)
        self.num_labels = num_labels
        self.encoder = encoder
        # The head takes the encoder's dtype, so that float32 features never meet bfloat16 weights.
        self.classifier = nn.Linear(encoder.config.hidden_size, num_labels, dtype=encoder.dtype)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The encoder's word embeddings."""
        return self.encoder.get_input_embeddings()

    def forward(
        self,
        attention_mask: torch.Tensor,
        input_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        return_dict: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutput:
        """Logits of shape (batch, classes), and the mean cross-entropy when labels are given."""
        if past_key_values is not None:
            kwargs["past_key_values"] = past_key_values
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask, **kwargs).last_hidden_state
        # Under prompt methods the mask begins with the virtual tokens, which are no part of the text.
        mask = attention_mask[:, -hidden.shape[1] :].unsqueeze(-1).to(hidden.dtype)
        logits = self.classifier((hidden * mask).sum(1) / mask.sum(1))
        loss = None if labels is None else nn.functional.cross_entropy(logits.float(), labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)


def locate(spec: ModelSpec, base_dir: Path) -> Location:
    """Where the base model is: an asset (pulled when missing), a local folder, or the hub.

    Args:
        spec: The model as the user named it.
        base_dir: Folder that relative paths start from.

    Raises:
        UserError: It is none of the three; the message names the nearest asset.
    """
    base = spec.base
    if base in assets.ASSETS:
        asset = assets.ASSETS.get(base)
        if asset.kind != "model":
            raise UserError(f"asset '{base}' holds data, not a model", where="model.base")
        path = assets.pull(asset)
        pooling = asset.pooling or "model"
        return _local(path, pooling)
    path = (base_dir / Path(base).expanduser()).resolve()
    if (path.is_file() and path.suffix == ".gguf") or (path / "config.json").is_file():
        return _local(path, "model")
    if path.exists() or base.startswith((".", "/", "~")):
        raise UserError(f"no config.json in '{path}'", where="model.base")
    if HUB_ID.match(base):
        return Location(base, {"revision": spec.revision} if spec.revision else {}, "model", None)
    models = [name for name, asset in assets.ASSETS.items() if asset.kind == "model"]
    guess = nearest(base, models)
    raise UserError(
        f"'{base}' is no asset ({', '.join(models)}), no local folder and no hub id (owner/name)",
        where="model.base",
        cure=f"Did you mean '{guess}'?" if guess else None,
    )


def _local(path: Path, pooling: Pooling) -> Location:
    """A folder as it is; a GGUF file through the folder that it is converted to."""
    if path.suffix != ".gguf":
        return Location(str(path), {}, pooling, path)
    with quiet():
        return Location(str(gguf.as_folder(path)), {}, pooling, path.parent)


def resolve(spec: ModelSpec, base_dir: Path) -> ResolvedModel:
    """The model with its pooling filled in, named by its content.

    Raises:
        UserError: The model cannot be found or read.
    """
    location = locate(spec, base_dir)
    if location.folder is not None:
        fingerprint = _hash_weights(location)
    else:
        config = read_config(location)
        commit = getattr(config, "_commit_hash", None)
        if commit is None:
            raise UserError(f"the hub gave no commit for '{spec.base}'", where="model.base")
        fingerprint = f"commit:{commit}"
    return resolved(spec, spec.pooling or location.pooling, fingerprint)


def resolved(spec: ModelSpec, pooling: Pooling, fingerprint: str) -> ResolvedModel:
    """The model with its content's name and every default written out: spelling one out is the same run."""
    filled = {"pooling": pooling, "eval_max_length": spec.eval_max_length or spec.max_length}
    return ResolvedModel(request=spec.model_copy(update=filled), pooling=pooling, fingerprint=fingerprint)


def _hash_weights(location: Location) -> str:
    """SHA-256 over every file that `from_pretrained` could read from a local folder."""
    assert location.folder is not None
    wanted = {".safetensors", ".gguf", ".json", ".txt", ".model"}
    total = hashlib.sha256()
    files = sorted(path for path in location.folder.iterdir() if path.suffix in wanted)
    if not any(path.suffix in {".safetensors", ".gguf"} for path in files):
        raise UserError(
            "no weights in safetensors (or GGUF) form; pickled weights are not loaded",
            where=str(location.folder),
            cure="Convert them with save_pretrained of a current transformers.",
        )
    for path in files:
        total.update(path.name.encode())
        with path.open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return f"sha256:{total.hexdigest()}"


def hash_state(model: nn.Module) -> str:
    """Fingerprint of a model in memory: SHA-256 over the names, shapes and values of its weights."""
    config = getattr(model, "config", None)
    total = hashlib.sha256(config.to_json_string().encode() if config is not None else b"")
    for name, tensor in sorted(model.state_dict().items()):
        total.update(f"{name}:{tuple(tensor.shape)}:{tensor.dtype}".encode())
        total.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return f"sha256:{total.hexdigest()}"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers while it loads: a new head is what we ask for, not news."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        # The progress bar of the weights goes to stderr whatever the log level.
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)


def read_model(
    auto: Any, location: Location, config: PretrainedConfig, *, dtype: torch.dtype, meta: bool
) -> tuple[PreTrainedModel, list[str]]:
    """A model, and the names of weights that its files lack; with `meta` none are looked for.

    Args:
        auto: Such as AutoModelForCausalLM.
        location: Where the model is.
        config: Its configuration.
        dtype: Of the weights.
        meta: Build the architecture only, without weights and memory.

    Raises:
        UserError: It cannot be loaded.
    """
    try:
        with quiet():
            if meta:
                with torch.device("meta"):
                    return auto.from_config(config), []
            loaded: Any = auto.from_pretrained(
                location.name,
                config=config,
                dtype=dtype,
                output_loading_info=True,
                **WEIGHTS_ONLY,
                **location.kwargs,
            )
            return loaded[0], sorted(loaded[1]["missing_keys"])
    except (OSError, ValueError, ImportError, KeyError, SafetensorError) as error:
        raise unreadable(location, error) from None


def stored_names(location: Location) -> set[str]:
    """Names of the weights in a local folder's safetensors; none where there is no folder.

    Raises:
        UserError: A file is damaged.
    """
    stored: set[str] = set()
    if location.folder is None:
        return stored
    try:
        for file in sorted(Path(location.name).glob("*.safetensors")):
            with safe_open(file, framework="pt") as tensors:
                stored |= set(tensors.keys())
    except (OSError, SafetensorError) as error:
        raise unreadable(location, error) from None
    return stored


def read_config(location: Location) -> PretrainedConfig:
    """The model's configuration, without its weights.

    Raises:
        UserError: It cannot be read, or the hub cannot be reached.
    """
    try:
        with quiet():
            config: PretrainedConfig = AutoConfig.from_pretrained(location.name, **NO_CODE, **location.kwargs)
    except (OSError, ValueError, ImportError) as error:
        raise unreadable(location, error) from None
    return config


def unreadable(location: Location, error: Exception) -> UserError:
    """The error of a model that transformers cannot load, in one line."""
    text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return UserError(
        f"cannot load '{location.name}': {text}",
        where="model.base",
        cure="Check the name, or use a local folder or an asset when there is no network.",
    )


def no_dropout(config: PretrainedConfig) -> PretrainedConfig:
    """The configuration with every dropout and layer-drop probability set to zero."""
    for name, value in config.to_dict().items():
        if "drop" in name and isinstance(value, float):
            setattr(config, name, 0.0)
    return config


def load_tokenizer(location: Location) -> PreTrainedTokenizerBase:
    """The tokenizer, padding on the right and always with a padding token.

    Raises:
        UserError: It cannot be read, or has neither a padding nor an end token.
    """
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(location.name, **NO_CODE, **location.kwargs)
    except (OSError, ValueError, ImportError) as error:
        raise unreadable(location, error) from None
    tokenizer.padding_side = "right"
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise UserError("the tokenizer has neither a padding nor an end token", where=location.name)
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_classifier(
    location: Location,
    pooling: Pooling,
    *,
    classes: list[str],
    dtype: torch.dtype,
    dropout: bool,
    pad_token_id: int | None,
    meta: bool = False,
) -> PreTrainedModel:
    """The base model with a new head, drawn from torch's global generator.

    Args:
        location: Where the model is.
        pooling: `model` for its own head, `mean` for `MeanPooledClassifier`.
        classes: Class names; their number is the head's output size.
        dtype: Of the weights.
        dropout: Whether the base model's dropout is left as configured.
        pad_token_id: Padding token, which decoders need to find the last token of a row.
        meta: Build the architecture only, without weights and memory, to check adapters against.

    Raises:
        UserError: The model cannot be loaded as a sequence classifier.
    """
    config = read_config(location)
    config.num_labels = len(classes)
    config.pad_token_id = pad_token_id if pad_token_id is not None else config.pad_token_id
    if not dropout:
        no_dropout(config)
    auto = AutoModelForSequenceClassification if pooling == "model" else AutoModel
    model, _ = read_model(auto, location, config, dtype=dtype, meta=meta)
    if pooling == "model":
        return model
    with torch.device("meta") if meta else contextlib.nullcontext():
        return mean_pooled(model, len(classes))


def mean_pooled(model: PreTrainedModel, num_labels: int) -> MeanPooledClassifier:
    """A model without a head as a `MeanPooledClassifier`; its own pooler, which would idle, is dropped."""
    if getattr(model, "pooler", None) is not None:
        model.pooler = None  # type: ignore[assignment]
    return MeanPooledClassifier(model, num_labels)
