"""Prompts as tokens: the same ids as the paper's code gives, and an answer position that is never lost."""

from __future__ import annotations

from typing import Any

import pytest

from foretaste.data import dataset
from foretaste.data.prompts import TASKS, Literally, Prompt, builtin
from foretaste.errors import UserError
from foretaste.models.prompt_encode import collate, encode, encode_standard

FIRST, SECOND = "A hero walks the road at night.", "The Road is good."
# From `run_fewshot.sh`; spelt out once more in tests/data/test_prompts.py, with the notation explained.
SENTIMENT = "*cls**sent_0*_It_was*mask*.*sep+*"
NLI = "*cls**sent-_0*?*mask*,*+sentl_1**sep+*"
PARAPHRASE = "*cls**sent_0**mask*,*+sentl_1**sep+*"
CODE = {
    **dict.fromkeys(("sst2", "sst5", "mr", "cr", "mpqa"), SENTIMENT),
    **dict.fromkeys(("mnli", "snli", "qnli", "rte"), NLI),
    **dict.fromkeys(("mrpc", "qqp"), PARAPHRASE),
    "subj": "*cls**sent_0*_This_is*mask*.*sep+*",
    "trec": "*cls**mask*:*+sent_0**sep+*",
    "agnews": "*cls**sent_0*_This_article_is_about*mask*_news.*sep+*",
}


def as_the_code(template: str, texts: list[str], tokenizer: Any, first_limit: int | None) -> list[int]:
    """What the paper's code makes of a row, by its own rules part by part."""

    def enc(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False))

    special = {"cls": "cls_token_id", "mask": "mask_token_id", "sep+": "sep_token_id"}
    ids: list[int] = []
    for part in template.split("*"):
        if part in special:
            new = [getattr(tokenizer, special[part])]
        elif "sent" in part:
            text = texts[int(part[-1])]
            text = text[:1].lower() + text[1:] if "sentl" in part else text
            text = text[:-1] if "-" in part else text
            new = enc(" " + text if part.startswith("+") else text)
            if part.endswith("0") and first_limit is not None:
                new = new[:first_limit]
        elif len(part) == 1:
            new = [tokenizer.convert_tokens_to_ids(part)]
        else:
            new = enc(part.replace("_", " ")) if part else []
        ids += new
    return ids


def rows(text_a: str, text_b: str | None, count: int = 1) -> Any:
    return dataset.make([f"r{n}" for n in range(count)], [text_a] * count, [text_b] * count, [0] * count)


@pytest.mark.parametrize("kind", ["bert", "roberta"])
@pytest.mark.parametrize("task", TASKS)
def test_ids_are_those_of_the_paper_s_code(task: str, kind: str, tokenizers_by_kind: Any) -> None:
    tokenizer, prompt = tokenizers_by_kind[kind], builtin(task)
    encoded = encode(rows(FIRST, SECOND if prompt.pair else None), prompt, tokenizer, "masked", 96)
    assert encoded.input_ids[0] == as_the_code(CODE[task], [FIRST, SECOND], tokenizer, prompt.first_limit)
    position = encoded.answer_positions[0]
    assert encoded.input_ids[0][position] == tokenizer.mask_token_id
    assert encoded.input_ids[0].count(tokenizer.mask_token_id) == 1
    assert encoded.cut == []


@pytest.mark.parametrize("task", TASKS)
def test_a_causal_prompt_ends_where_the_word_begins(task: str, tokenizers_by_kind: Any) -> None:
    tokenizer, prompt = tokenizers_by_kind["gpt2"], builtin(task)
    encoded = encode(rows(FIRST, SECOND if prompt.pair else None), prompt, tokenizer, "causal", 96)
    ids = encoded.input_ids[0]
    assert encoded.answer_positions == [len(ids) - 1]
    text = tokenizer.decode(ids)
    template = prompt.causal_template or prompt.template.partition("{answer}")[0] + "{answer}"
    assert text == template.format(text_a=FIRST, text_b=SECOND, answer="").rstrip(" ")


@pytest.mark.parametrize("length", [20, 24, 40])
@pytest.mark.parametrize("task", ["sst2", "trec", "qnli", "qqp", "agnews"])
def test_the_answer_s_position_survives_cutting(task: str, length: int, tokenizers_by_kind: Any) -> None:
    tokenizer, prompt = tokenizers_by_kind["roberta"], builtin(task)
    long = "the film " * 60
    encoded = encode(rows(long, long if prompt.pair else None, 3), prompt, tokenizer, "masked", length)
    words = [piece.text for piece in prompt.pieces_for("masked") if isinstance(piece, Literally)]
    frame = {token for text in words for token in tokenizer(text)["input_ids"]}
    for ids, position in zip(encoded.input_ids, encoded.answer_positions, strict=True):
        assert len(ids) == length
        assert ids[position] == tokenizer.mask_token_id
        assert frame <= set(ids)  # no word of the template is cut
        assert ids[-1] == tokenizer.sep_token_id
    assert encoded.cut == ["r0", "r1", "r2"]


def test_a_causal_prompt_keeps_its_end_when_it_is_cut(tokenizers_by_kind: Any) -> None:
    tokenizer, prompt = tokenizers_by_kind["gpt2"], builtin("mnli")
    long = "the film " * 60
    short = encode(rows(long, "a day"), prompt, tokenizer, "causal", 40)
    whole = encode(rows("a", "a day"), prompt, tokenizer, "causal", 96)
    assert len(short.input_ids[0]) == 40
    assert short.answer_positions == [39]
    tail = len(whole.input_ids[0]) - 1  # everything behind text_a: the longest text is cut, not the short one
    assert short.input_ids[0][-tail:] == whole.input_ids[0][-tail:]


def test_the_text_behind_the_answer_is_cut_first(tokenizers_by_kind: Any) -> None:
    tokenizer, prompt = tokenizers_by_kind["bert"], builtin("qqp")
    first, second = " ".join(["film"] * 30), " ".join(["plot"] * 20)
    film, plot = (tokenizer.convert_tokens_to_ids(word) for word in ("film", "plot"))
    for length, films, plots in ((54, 30, 20), (44, 30, 10), (34, 30, 0), (24, 20, 0)):
        ids = encode(rows(first, second), prompt, tokenizer, "masked", length).input_ids[0]
        assert (ids.count(film), ids.count(plot)) == (films, plots)


def test_the_first_text_s_limit_counts_as_cutting(tokenizers_by_kind: Any) -> None:
    tokenizer = tokenizers_by_kind["bert"]
    prompt = builtin("mr").model_copy(update={"first_limit": 4})
    data = dataset.make(["s", "l"], ["a film", "a film " * 9], [None] * 2, [0, 1])
    encoded = encode(data, prompt, tokenizer, "masked")
    assert encoded.cut == ["l"]
    assert encoded.lengths == [2 + 6, 4 + 6]  # [CLS] ... it was [MASK] . [SEP]
    assert encoded.labels == [0, 1]


def test_what_does_not_fit_is_refused(tokenizers_by_kind: Any) -> None:
    bert, gpt2 = tokenizers_by_kind["bert"], tokenizers_by_kind["gpt2"]
    with pytest.raises(UserError, match="the template alone has 6 tokens, max_length is 6"):
        encode(rows("a film", None), builtin("sst2"), bert, "masked", 6)
    with pytest.raises(UserError, match="a place for a second text"):
        encode(rows("a film", None), builtin("rte"), bert, "masked")
    with pytest.raises(UserError, match="no mask token"):
        encode(rows("a film", None), builtin("sst2"), gpt2, "masked")
    own = Prompt(name="own", template="{answer}, {text_a}", words=["good", "bad"])
    with pytest.raises(UserError, match="a text follows"):
        encode(rows("a film", None), own, gpt2, "causal")


def test_a_mask_token_in_the_text_is_not_the_answer(tokenizers_by_kind: Any) -> None:
    tokenizer = tokenizers_by_kind["bert"]
    encoded = encode(rows("a [MASK] film", None), builtin("sst2"), tokenizer, "masked")
    ids, position = encoded.input_ids[0], encoded.answer_positions[0]
    assert ids.count(tokenizer.mask_token_id) == 2
    assert position == len(ids) - 3  # before the full stop and the closing token


def test_standard_rows_are_texts_between_special_tokens(tokenizers_by_kind: Any) -> None:
    bert, gpt2 = tokenizers_by_kind["bert"], tokenizers_by_kind["gpt2"]
    pair = encode_standard(rows("a film", "the plot"), bert, "masked", 64, None)
    assert bert.decode(pair.input_ids[0]) == "[CLS] a film [SEP] the plot [SEP]"
    assert pair.answer_positions == [0]
    single = encode_standard(rows("a film", None), gpt2, "causal", 64, None)
    assert gpt2.decode(single.input_ids[0]) == "a film"
    assert single.answer_positions == [len(single.input_ids[0]) - 1]
    both = encode_standard(rows("a film", "the plot"), gpt2, "causal", 64, None)
    assert gpt2.decode(both.input_ids[0]) == "a film\nthe plot"
    short = encode_standard(rows("a film " * 20, "the plot " * 20), bert, "masked", 11, None)
    assert len(short.input_ids[0]) == 11
    assert short.cut == ["r0"]


def test_batches_are_padded_on_the_right(tokenizers_by_kind: Any) -> None:
    tokenizer = tokenizers_by_kind["bert"]
    data = dataset.make(["s", "l"], ["a film", "a film a film"], [None] * 2, [0, 1])
    encoded = encode(data, builtin("sst2"), tokenizer, "masked")
    batch = collate(encoded, [1, 0], tokenizer.pad_token_id, labels=True)
    assert batch["input_ids"].tolist() == [
        encoded.input_ids[1],
        encoded.input_ids[0] + [tokenizer.pad_token_id] * 2,
    ]
    assert batch["attention_mask"].sum(1).tolist() == encoded.lengths[::-1]
    assert batch["labels"].tolist() == [1, 0]
    assert batch["answer_position"].tolist() == encoded.answer_positions[::-1]
    assert "labels" not in collate(encoded, [0], tokenizer.pad_token_id)
