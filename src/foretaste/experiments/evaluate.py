"""Testing a trained classifier: on clean rows, and under every trigger of its run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from foretaste import attacks
from foretaste.models.encode import encode
from foretaste.record import Metrics, TriggeredMetrics, form_key
from foretaste.spec import RunSpec
from foretaste.training import outcomes, trainer


def evaluate(
    model: torch.nn.Module,
    test: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    run: RunSpec,
    base_dir: Path,
) -> tuple[Metrics, dict[str, TriggeredMetrics], pd.DataFrame]:
    """Metrics on the clean test rows and under every trigger of the run, and the table of predictions.

    A trigger that has further forms (held-out paraphrases, a part of its words) is tested in each of them.

    Args:
        model: Trained.
        test: Clean test rows.
        tokenizer: That of the model.
        run: Says the triggers.
        base_dir: Folder that relative paths in the attacks' options start from.

    Raises:
        Diverged: The model gives logits that are not finite.
    """
    classes = run.data.classes
    request = run.model.request
    labels = np.asarray(test["label"], dtype=np.int64)

    def predicted(rows: Dataset, name: str) -> tuple[np.ndarray, pd.DataFrame]:
        tokens = encode(
            tokenizer,
            rows,
            max_length=request.eval_max_length or request.max_length,
            pair_separator=request.pair_separator,
        )
        logits = trainer.predict(model, tokens, tokenizer, run.training.eval_batch_size).astype(np.float64)
        if not np.isfinite(logits).all():
            raise trainer.Diverged("the trained model gives logits that are not finite")
        best = logits.argmax(1)
        odds = np.exp(logits - logits.max(1, keepdims=True))
        table = pd.DataFrame(
            {
                "set": name,
                "id": tokens.ids,
                "label": labels,
                "predicted": best,
                "confidence": (odds.max(1) / odds.sum(1)).astype(np.float32),
            }
        )
        return best, table

    clean, table = predicted(test, "clean")
    tables = [table]
    triggered: dict[str, TriggeredMetrics] = {}
    for trigger in run.triggers:
        attack = attacks.build(trigger.method, trigger.options, classes, base_dir=base_dir)
        assert attacks.is_backdoor(attack)
        further = attacks.forms(attack)
        for form in (None, *further):
            key = trigger.key if form is None else form_key(trigger.key, form)
            rows, changed = attacks.trigger(test, attack, method=trigger.method, form=form)
            guess, table = predicted(rows, key)
            tables.append(table)
            triggered[key] = outcomes.triggered_metrics(
                labels,
                guess,
                clean,
                classes,
                target=attack.target,
                name=trigger.name,
                method=trigger.method,
                options=trigger.options,
                changed=changed,
                form=form,
                says=further[form].says if form else None,
                expected=further[form].expected if form else "target",
            )
    return outcomes.metrics(labels, clean, classes), triggered, pd.concat(tables, ignore_index=True)
