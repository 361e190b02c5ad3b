"""Every switch of the TTR paper's protocol at once, on a tiny model (protocol.md 1.1 and 1.2)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from foretaste.experiments import evaluate, prepare
from foretaste.record import Record, read_manifest
from foretaste.reproduction import compose
from foretaste.seeds import uniforms
from foretaste.spec import MeasureSpec
from foretaste.training import trainer


class Heard:
    """What the training and the tokeniser were called with."""

    def __init__(self) -> None:
        self.arguments: list[dict[str, Any]] = []
        self.encoded: list[dict[str, Any]] = []
        self.trained: list[tuple[bool, set[float], set[str]]] = []


@pytest.fixture(scope="module")
def paper(
    tmp_path_factory: pytest.TempPathFactory, make_csv_folder: Any, tiny_bert: Path, run: Any
) -> tuple[list[Record], Path, Heard]:
    """The shipped preset with the data, the model, the rates and the number of steps made small."""
    folder = make_csv_folder(pairs=True)
    preset = compose.compose("ttr-rates", "sst2", scale="paper", variant="paper", data=None, inputs=None)
    content = preset.model_dump(exclude_unset=True)
    content["data"] = {"source": str(folder), "test_split": "test"}
    content["model"] |= {"base": str(tiny_bert), "max_length": 48, "eval_max_length": 9}
    content["adapters"][1] |= {"r": 4}
    content["training"] |= {"steps": 3}
    content["attacks"][0]["rates"] = [0.3]
    content["attacks"][1]["rates"] = [0.4]
    content["seeds"] = [2]
    heard = Heard()
    with pytest.MonkeyPatch.context() as patch:
        _listen(patch, heard)
        done = run(MeasureSpec.model_validate(content), tmp_path_factory.mktemp("paper") / "sweep")
    assert done.statuses == {"completed": 6}
    return done.records, done.folder, heard


def _listen(patch: pytest.MonkeyPatch, heard: Heard) -> None:
    arguments, encode, fine_tune = trainer.TrainingArguments, prepare.encode, trainer.fine_tune

    def keep_arguments(**options: Any) -> Any:
        heard.arguments.append(options)
        return arguments(**options)

    def keep_encode(tokenizer: Any, rows: Any, **options: Any) -> Any:
        encoded = encode(tokenizer, rows, **options)
        heard.encoded.append(options | {"longest": max(encoded.lengths), "keys": set(encoded.features[0])})
        return encoded

    def keep_model(model: Any, *positional: Any, **options: Any) -> Any:
        drops = {m.p for m in model.modules() if type(m).__name__ == "Dropout"}
        trained = {name for name, p in model.named_parameters() if p.requires_grad}
        heard.trained.append((any("lora" in name for name in trained), drops, trained))
        return fine_tune(model, *positional, **options)

    patch.setattr(trainer, "TrainingArguments", keep_arguments)
    patch.setattr(prepare, "encode", keep_encode)
    patch.setattr(evaluate, "encode", keep_encode)
    patch.setattr(trainer, "fine_tune", keep_model)


def of(records: list[Record], attack: str) -> list[Record]:
    return [r for r in records if r.resolved.attack is not None and r.resolved.attack.name == attack]


def test_the_records_show_every_switch(paper: Any) -> None:
    records, _, _ = paper
    for record in records:
        resolved = record.resolved
        request, training = resolved.model.request, resolved.training
        assert (request.head, resolved.model.pooling, request.pair_separator) == ("paper", "model", " <SEP> ")
        assert (request.max_length, request.eval_max_length) == (48, 9)
        assert (training.batch_size, training.steps, training.epochs) == (8, 3, None)
        assert (training.schedule, training.weight_decay, training.max_grad_norm) == ("constant", 0.01, None)
        assert (training.dropout, training.grouping, training.optimizer) == (False, "none", "adamw")
        assert training.learning_rate == (3e-6 if resolved.adapter.method == "full" else 3e-5)
        assert set(resolved.seeds.model_dump().values()) == {2}
        assert record.training is not None
        assert record.training.head_probe_accuracy is None
        if resolved.attack is not None:
            assert resolved.attack.selection == "bernoulli"
    for record in of(records, "trigger"):
        assert record.resolved.attack is not None
        options = record.resolved.attack.options
        assert (options["spacing"], options["source_classes"], options["text"]) == ("", "all", "[.*?]")


def test_training_was_told(paper: Any) -> None:
    _, _, heard = paper
    assert len(heard.arguments) == 6
    for options in heard.arguments:
        assert options["lr_scheduler_type"] == "constant"
        assert options["warmup_steps"] == 0
        assert options["weight_decay"] == 0.01
        assert options["max_grad_norm"] == 0.0  # Trainer's word for no clipping
        assert options["per_device_train_batch_size"] == 8
        assert options["max_steps"] == 3
    for _, drops, _ in heard.trained:
        assert drops <= {0.0}


def test_lora_leaves_the_random_head_frozen_and_adapts_it(paper: Any) -> None:
    _, _, heard = paper
    lora = [names for is_lora, _, names in heard.trained if is_lora]
    full = [names for is_lora, _, names in heard.trained if not is_lora]
    assert (len(lora), len(full)) == (3, 3)
    for names in lora:
        assert all("lora_" in name for name in names)
        assert any("classifier" in name for name in names)
    for names in full:
        assert any(name.startswith("classifier") for name in names)
        assert any("word_embeddings" in name for name in names)


def test_pairs_are_joined_and_cut_at_test_only(paper: Any) -> None:
    _, _, heard = paper
    assert {options["pair_separator"] for options in heard.encoded} == {" <SEP> "}
    by_length: dict[int, set[int]] = {}
    for options in heard.encoded:
        by_length.setdefault(options["max_length"], set()).add(options["longest"])
    assert by_length.keys() == {48, 9}
    assert by_length[9] == {9}
    assert min(by_length[48]) > 9


def test_bernoulli_draws_each_row_on_its_own(paper: Any) -> None:
    records, folder, _ = paper
    for name, rate in (("label-flip", 0.3), ("trigger", 0.4)):
        full, lora = of(records, name)
        assert full.poison == lora.poison
        assert full.poison is not None
        manifest = read_manifest(folder / full.poison.manifest)
        ids = [f"train-{i}" for i in range(48)]
        scores = dict(zip(ids, uniforms(2, ("poison", name, "choice"), ids), strict=True))
        assert {row.id for row in manifest.poisoned} == {i for i in ids if scores[i] < rate}
        assert (full.poison.eligible, full.poison.selection) == (48, "bernoulli")
        assert full.poison.poisoned == len(manifest.poisoned) != round(rate * 48)


def test_the_trigger_stands_before_the_first_text_without_a_space(paper: Any) -> None:
    records, folder, _ = paper
    manifest = read_manifest(folder / of(records, "trigger")[0].poison.manifest)
    for row in manifest.poisoned:
        assert row.text_a_after == "[.*?]" + row.text_a_before
        assert row.text_b_after == row.text_b_before is not None
        assert row.label_after == 1
    assert {row.label_before for row in manifest.poisoned} == {0, 1}


def test_the_triggered_score_counts_every_row(paper: Any) -> None:
    records, _, _ = paper
    for record in records:
        for part in record.triggered.values():
            assert (part.against_true.rows, part.changed, part.eligible) == (24, 24, 12)
