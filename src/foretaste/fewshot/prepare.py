"""What a run starts from: its rows as tokens, and the pretrained model with the outputs that the arm has."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from foretaste import data
from foretaste.data import Loaded, kshot
from foretaste.data.kshot import KShot
from foretaste.data.prompts import Kind, Prompt
from foretaste.errors import UserError
from foretaste.fewshot.record import Rows
from foretaste.fewshot.scores import BATCH_ROWS
from foretaste.fewshot.spec import FewShotData, FewShotModel, FewShotRun, Output
from foretaste.models import heads, load
from foretaste.models.label_words import (
    FewShotClassifier,
    LabelWordModel,
    LinearHeadModel,
    body_of,
    load_lm,
    word_ids,
)
from foretaste.models.prompt_encode import EncodedPrompts, collate, encode, encode_standard
from foretaste.spec import ModelSpec, digest
from foretaste.training import trainer


@dataclass
class Prepared:
    """What the function of an arm works with.

    Attributes:
        run: What to do.
        location: Where the model is.
        tokenizer: The model's.
        prompt: Its words in the order of the class ids.
        kind: masked or causal.
        output: The arm's: prompt or standard.
        classes: Class names.
        train: Training rows as tokens.
        dev: Validation rows, to choose on.
        test: Test rows, to be looked at once.
        rows: What the record says of them.
        device: Where the model goes.
        dtype: Of the weights.
        notes: What a reader should know.
    """

    run: FewShotRun
    location: load.Location
    tokenizer: PreTrainedTokenizerBase
    prompt: Prompt
    kind: Kind
    output: Output
    classes: list[str]
    train: EncodedPrompts
    dev: EncodedPrompts
    test: EncodedPrompts
    rows: Rows
    device: torch.device
    dtype: torch.dtype
    notes: list[str] = field(default_factory=list)
    _probe: heads.Probe | None = None

    @property
    def pad_token_id(self) -> int:
        """Padding token."""
        return int(self.tokenizer.pad_token_id)

    def batch(
        self, encoded: EncodedPrompts, rows: list[int], *, labels: bool = False
    ) -> dict[str, torch.Tensor]:
        """Some rows as the model takes them, on its device."""
        return collate(encoded, rows, self.pad_token_id, self.device, labels=labels)

    def model(self) -> FewShotClassifier:
        """A pretrained model of its own for each call, in evaluation mode, every parameter trainable.

        With standard output its head is logistic regression on the frozen features of the training rows.

        Raises:
            UserError: As `label_words.load_lm` and `label_words.word_ids`.
        """
        lm, kind = load_lm(self.location, dtype=self.dtype)
        lm.to(self.device)  # type: ignore[arg-type]
        if self.output == "prompt":
            ids = words_as_tokens(self.prompt, self.tokenizer, kind)
            return LabelWordModel(lm, ids, kind).eval()
        body = body_of(lm)
        assert isinstance(body, PreTrainedModel)
        model = LinearHeadModel(body, len(self.classes), kind).eval()
        if self._probe is None:
            self._probe = self._fitted(model)
        with torch.no_grad():
            model.classifier.weight.copy_(torch.from_numpy(self._probe.weight))
            model.classifier.bias.copy_(torch.from_numpy(self._probe.bias))
        return model

    def _fitted(self, model: LinearHeadModel) -> heads.Probe:
        """The linear probing solution that the paper's standard fine-tuning starts from (footnote 1).

        Its l2 penalty is chosen by cross-validation on the training rows; the paper does not say how.
        """
        found = []
        with torch.inference_mode():
            for start in range(0, len(self.train), BATCH_ROWS):
                some = list(range(start, min(start + BATCH_ROWS, len(self.train))))
                found.append(model.features(**self.batch(self.train, some)).float().cpu().numpy())
        return heads.fit_probe(np.concatenate(found), self.train.labels, len(self.classes))

    @property
    def probe_accuracy(self) -> float | None:
        """Training accuracy of the head that a standard output starts from, once a model was made."""
        return None if self._probe is None else self._probe.accuracy


def words_as_tokens(prompt: Prompt, tokenizer: PreTrainedTokenizerBase, kind: Kind) -> list[int]:
    """The token of each label word; raises as `label_words.word_ids` does."""
    return word_ids(prompt.words, tokenizer, spaced=prompt.spaced(kind), where=f"prompt {prompt.name}")


def location_of(model: FewShotModel, base_dir: Path) -> load.Location:
    """Where the model is; raises as `load.locate` does."""
    return load.locate(ModelSpec(base=model.base, revision=model.revision), base_dir)


@functools.lru_cache(maxsize=2)
def _load(request: str, base_dir: Path, fingerprint: str) -> Loaded:
    loaded = data.load(FewShotData.model_validate_json(request).whole(), base_dir)
    if data.fingerprint(loaded) != fingerprint:
        raise UserError("the data changed since the sweep was planned", cure="Start the sweep anew.")
    return loaded


def rows_of(run: FewShotRun, base_dir: Path) -> KShot:
    """The rows of a run.

    Raises:
        UserError: The data changed since the sweep was planned.
    """
    task = run.task
    loaded = _load(task.request.model_dump_json(), base_dir, task.fingerprint)
    return kshot.draw(
        loaded, run.k, run.split, test_rows=task.test_rows, test_fraction=task.request.test_fraction
    )


def encoded_rows(
    drawn: KShot, prompt: Prompt, output: Output, tokenizer: PreTrainedTokenizerBase, kind: Kind
) -> tuple[EncodedPrompts, EncodedPrompts, EncodedPrompts]:
    """Training, validation and test rows as tokens; raises as `prompt_encode.encode` does."""
    sets = (drawn.train, drawn.dev, drawn.test)
    if output == "prompt":
        train, dev, test = (encode(rows, prompt, tokenizer, kind) for rows in sets)
    else:
        limits = prompt.max_length, prompt.first_limit
        train, dev, test = (encode_standard(rows, tokenizer, kind, *limits) for rows in sets)
    return train, dev, test


def prepare(run: FewShotRun, base_dir: Path) -> Prepared:
    """Everything that a run needs, but for the weights.

    Args:
        run: What to do.
        base_dir: Folder that relative paths in the spec start from.

    Raises:
        UserError: The data changed since the sweep was planned, or model or tokenizer cannot be read.
    """
    location = location_of(run.model.request, base_dir)
    tokenizer = load.load_tokenizer(location)
    drawn = rows_of(run, base_dir)
    prompt, kind, output = run.task.prompt, run.model.kind, run.arm.output
    train, dev, test = encoded_rows(drawn, prompt, output, tokenizer, kind)
    return Prepared(
        run=run,
        location=location,
        tokenizer=tokenizer,
        prompt=prompt,
        kind=kind,
        output=output,
        classes=run.task.classes,
        train=train,
        dev=dev,
        test=test,
        rows=Rows(
            train=len(train),
            dev=len(dev),
            test=len(test),
            train_hash=digest(train.ids)[:16],
            dev_hash=digest(dev.ids)[:16],
            test_hash=digest(test.ids)[:16],
            train_cut=train.cut,
            dev_cut=dev.cut,
            test_cut=test.cut,
            shared_texts=drawn.shared_texts,
        ),
        device=trainer.device_of(run.model.request.computing),
        dtype={"float32": torch.float32, "float64": torch.float64}[run.model.request.precision],
        notes=list(drawn.notes),
    )
