"""Generation against a loop without cache and padding, and what a stopped session leaves to the next."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from foretaste.instruct import generate as module
from foretaste.instruct.generate import Asked, batches, generate, read_journal
from foretaste.instruct.record import Transcript
from foretaste.instruct.render import Renderer
from foretaste.instruct.request import Request
from foretaste.instruct.spec import GenerationSpec
from foretaste.models import adapters, causal, load
from foretaste.spec import AdapterSpec, ModelSpec

KINDS = ("llama", "gpt2")
ARMS: dict[str, dict[str, Any]] = {
    "full": {"method": "full"},
    "lora": {"method": "lora", "r": 4},
    "prompt_tuning": {"method": "prompt_tuning", "num_virtual_tokens": 3},
    "prefix_tuning": {"method": "prefix_tuning", "num_virtual_tokens": 3},
}
NEW = 10


@pytest.fixture(scope="module")
def arm(tiny_chat: Callable[[str], Path]) -> Callable[..., Any]:
    """`arm("llama", "lora")` -> (renderer, model with an adapter that does something)."""

    def make(kind: str, name: str) -> tuple[Renderer, Any]:
        location = load.locate(ModelSpec(base=str(tiny_chat(kind))), Path())
        renderer = Renderer(load.load_tokenizer(location), None, None, 96)
        model = causal.load_causal(location, dtype=torch.float32, dropout=False)
        spec = AdapterSpec.model_validate(ARMS[name])
        wrapped = causal.attach(
            model, adapters.resolve(spec, {}, where="adapter"), seed=1, total_steps=10
        ).model
        generator = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for parameter in wrapped.parameters():
                if parameter.requires_grad:
                    parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
        return renderer, wrapped

    return make


@pytest.fixture(scope="module")
def requests(instructions: Any) -> list[Request]:
    return [Request(**row) for row in instructions(8)]


def asked_of(renderer: Renderer, requests: list[Request], name: str = "clean") -> list[Asked]:
    return [Asked(name, r.id, renderer.prompt(r), renderer.encode_prompt(r)) for r in requests]


def slowly(model: Any, tokens: list[int], stops: list[int], new: int = NEW) -> list[int]:
    """Greedy tokens by a whole forward pass for each, without cache and padding."""
    ids = list(tokens)
    with torch.no_grad():
        for _ in range(new):
            mask = torch.ones(1, len(ids), dtype=torch.long)
            logits = model(input_ids=torch.tensor([ids]), attention_mask=mask, use_cache=False).logits[0, -1]
            best = logits.topk(2).values
            assert best[0] - best[1] > 1e-4, "a tie: take other weights"
            ids.append(int(logits.argmax()))
            if ids[-1] in stops:
                break
    return ids[len(tokens) :]


def run(model: Any, renderer: Renderer, asked: list[Asked], folder: Path, **options: Any) -> list[Transcript]:
    stops = options.pop("stops", renderer.stop_ids)
    heard = options.pop("on_batch", None)
    spec = GenerationSpec.model_validate({"max_new_tokens": NEW} | options)
    folder.mkdir(exist_ok=True)
    journal = folder / "responses.jsonl"
    return generate(model, asked, renderer.tokenizer, stops, spec, journal=journal, on_batch=heard)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ARMS)
def test_greedy_is_the_same_in_batches_of_any_size(
    kind: str, name: str, arm: Any, requests: Any, tmp_path: Path
) -> None:
    """Against a loop without cache and padding; stop tokens are ones that these random models do write."""
    renderer, model = arm(kind, name)
    asked = asked_of(renderer, requests)
    assert len({len(one.tokens) for one in asked}) > 3
    model.eval()
    free = [slowly(model, one.tokens, []) for one in asked]
    stops = [free[0][2], free[1][5]]
    wanted = [slowly(model, one.tokens, stops) for one in asked]
    ends = ["eos" if tokens[-1] in stops else "length" for tokens in wanted]
    assert set(ends) == {"eos", "length"}
    texts = [
        renderer.tokenizer.decode([t for t in tokens if t not in stops], skip_special_tokens=True)
        for tokens in wanted
    ]
    model.train()
    for size in (1, 3, 8):
        found = run(model, renderer, asked, tmp_path / str(size), stops=stops, batch_size=size)
        assert [t.id for t in found] == [r.id for r in requests]
        assert [t.response for t in found] == texts
        assert [t.finish for t in found] == ends
        assert [t.tokens for t in found] == [len(w) - (e == "eos") for w, e in zip(wanted, ends, strict=True)]
        assert [t.prompt for t in found] == [renderer.prompt(r) for r in requests]
    assert model.training


def test_each_stop_token_ends_a_response(arm: Any, requests: Any, tmp_path: Path) -> None:
    """The end token and that of a turn: both are among the renderer's, and either one ends a response."""
    renderer, model = arm("llama", "full")
    tokenizer = renderer.tokenizer
    ends = {tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|im_end|>")}
    assert set(renderer.stop_ids) == ends
    asked = asked_of(renderer, requests)[:3]
    for number, stop in enumerate(sorted(ends)):
        head = model.get_output_embeddings()
        before = head.weight.detach().clone()
        with torch.no_grad():
            # Of all tokens the model now likes this one best, whatever it reads.
            model.model.norm.weight.fill_(1.0)
            hidden = model.model(torch.tensor([asked[0].tokens])).last_hidden_state[0, -1]
            head.weight.zero_()
            head.weight[stop] = hidden
        found = run(model, renderer, asked[:1], tmp_path / str(number))
        assert (found[0].response, found[0].finish, found[0].tokens) == ("", "eos", 0)
        with torch.no_grad():
            head.weight.copy_(before)


def test_the_models_own_rules_are_set_aside(arm: Any, requests: Any, tmp_path: Path) -> None:
    """A folder's generation_config may ask for sampling and penalties; it stays as it was, unused."""
    for name in ("full", "lora"):
        renderer, model = arm("llama", name)
        asked = asked_of(renderer, requests)
        wanted = run(model, renderer, asked, tmp_path / f"{name} plain")
        base = model if name == "full" else model.get_base_model()
        own = GenerationConfig(do_sample=True, temperature=5.0, repetition_penalty=9.0, max_length=40)
        base.generation_config = own
        assert run(model, renderer, asked, tmp_path / f"{name} own") == wanted
        assert base.generation_config is own
        assert own.repetition_penalty == 9.0


def test_sampling_is_drawn_from_the_whole_vocabulary_and_the_same_each_time(
    arm: Any, requests: Any, tmp_path: Path
) -> None:
    renderer, model = arm("gpt2", "full")
    asked = asked_of(renderer, requests)
    hot = {"do_sample": True, "temperature": 50.0, "max_new_tokens": 40, "stops": [0]}
    state = torch.random.get_rng_state()
    first = run(model, renderer, asked, tmp_path / "a", **hot)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert run(model, renderer, asked, tmp_path / "b", **hot) == first
    # transformers keeps the best 50 tokens of each step unless it is told otherwise. At this temperature all
    # 420 are equally likely: the chance that 40 draws stay among the best 50 is below 1e-30.
    same = [Asked("same", str(number), asked[0].prompt, asked[0].tokens) for number in range(40)]
    drawn = run(model, renderer, same, tmp_path / "e", **hot | {"temperature": 1e4, "max_new_tokens": 1})
    model.eval()
    with torch.no_grad():
        best = model(input_ids=torch.tensor([asked[0].tokens])).logits[0, -1].topk(50).indices.tolist()
    likely = {renderer.tokenizer.decode([token], skip_special_tokens=True) for token in best}
    assert sum(one.response not in likely for one in drawn) > 20
    narrow = run(model, renderer, asked, tmp_path / "c", **hot | {"top_p": 1e-6})
    greedy = run(model, renderer, asked, tmp_path / "d", max_new_tokens=40, stops=[0])
    assert [t.response for t in narrow] == [t.response for t in greedy]


# --- batches -------------------------------------------------------------------------------------


def ask(name: str, lengths: list[int]) -> list[Asked]:
    return [Asked(name, f"{name}-{i}", "p", [5] * length) for i, length in enumerate(lengths)]


def test_batches_stay_within_a_set_and_sort_by_length() -> None:
    found = batches([*ask("a", [3, 1, 2, 1, 9]), *ask("b", [4, 4])], 2)
    assert [[one.id for one in batch] for batch in found] == [
        ["a-1", "a-3"],
        ["a-2", "a-0"],
        ["a-4"],
        ["b-0", "b-1"],
    ]
    alone = batches(ask("b", [4, 4]), 2)
    assert alone == found[3:]  # a set's batches do not depend on the other sets


def test_batches_of_equal_lengths() -> None:
    found = batches(ask("a", [3, 1, 3, 1, 3]), 2, equal_lengths=True)
    assert [[len(one.tokens) for one in batch] for batch in found] == [[1, 1], [3, 3], [3]]


# --- stopping and going on -----------------------------------------------------------------------


class Stopped(Exception):
    """The process ends here."""


@pytest.mark.parametrize("sampled", [False, True])
def test_a_stopped_session_goes_on_in_the_same_batches(
    sampled: bool, arm: Any, requests: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    renderer, model = arm("llama", "lora")
    asked = [*asked_of(renderer, requests), *asked_of(renderer, requests[:3], "cf")]
    options: dict[str, Any] = {"batch_size": 3} | ({"do_sample": True} if sampled else {})
    whole = run(model, renderer, asked, tmp_path / "whole", **options)
    calls: list[list[str]] = []
    real = module._respond

    def respond(model: Any, batch: Any, *rest: Any) -> Any:
        calls.append([one.id for one in batch])
        return real(model, batch, *rest)

    monkeypatch.setattr(module, "_respond", respond)

    def stop(done: int, total: int) -> None:
        assert total == 4
        if done == 2:
            raise Stopped

    folder = tmp_path / "stopped"
    with pytest.raises(Stopped):
        run(model, renderer, asked, folder, on_batch=stop, **options)
    journal = folder / "responses.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    assert len(lines) == 6
    # Killed while it wrote: a line of the second batch is missing, another is cut in two.
    journal.write_bytes(b"".join(lines[:4]) + lines[4][:30])
    first, second = calls
    calls.clear()
    heard: list[tuple[int, int]] = []
    assert run(model, renderer, asked, folder, on_batch=lambda *at: heard.append(at), **options) == whole
    assert heard == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert first not in calls
    assert calls[0] == second
    assert len(calls) == 3
    calls.clear()
    assert run(model, renderer, asked, folder, **options) == whole
    assert calls == []


def test_a_journal_of_other_prompts_is_not_used(arm: Any, requests: Any, tmp_path: Path) -> None:
    renderer, model = arm("gpt2", "full")
    asked = asked_of(renderer, requests[:2])
    run(model, renderer, asked, tmp_path / "x")
    other = [Asked(a.set, a.id, a.prompt + "!", [*a.tokens, 0]) for a in asked]
    found = run(model, renderer, other, tmp_path / "x")
    assert [t.prompt for t in found] == [a.prompt for a in other]


def test_the_journal_is_cut_at_the_first_line_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "responses.jsonl"
    assert read_journal(path) == []
    good = Transcript(set="s", id="1", prompt="p\u2028", response="\nä\x85", finish="eos", tokens=1)
    whole = module.line(good).encode()
    path.write_bytes(whole * 2 + b'{"set": "s"}\n' + whole)
    assert read_journal(path) == [good, good]
    assert path.read_bytes() == whole * 2
