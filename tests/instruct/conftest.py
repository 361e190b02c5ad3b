"""Shared by the tests of generative models: small tokenizers that lose nothing, and requests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from foretaste.instruct.request import Request

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture(scope="session")
def byte_tokenizer() -> Callable[..., Any]:
    """`byte_tokenizer(template=CHATML)`: bytes with a few merges, and the tokens of ChatML.

    Two line breaks in a row are one token, so the end of a prompt and the start of a response can grow
    together, as in the vocabularies of real models. Nothing is put before a text.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    def make(template: str | None = CHATML) -> Any:
        letters = sorted(pre_tokenizers.ByteLevel.alphabet())
        merges = [("Ċ", "Ċ"), ("t", "h"), ("th", "e"), ("c", "f"), ("Ġ", "cf")]
        tokens = [*letters, *("".join(pair) for pair in merges)]
        model = models.BPE({token: number for number, token in enumerate(tokens)}, merges)
        backend = Tokenizer(model)
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        backend.decoder = decoders.ByteLevel()
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=backend,
            eos_token="<|endoftext|>",
            additional_special_tokens=["<|im_start|>", "<|im_end|>"],
        )
        tokenizer.chat_template = template
        return tokenizer

    return make


@pytest.fixture(scope="session")
def spaced_tokenizer() -> Callable[[], Any]:
    """`spaced_tokenizer()`: letters in the manner of SentencePiece, which marks the start of a text by `▁`.

    It puts `<s>` before a text by itself, as Llama 2 does.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    def make() -> Any:
        letters = [chr(code) for code in range(32, 127) if chr(code) != " "]
        tokens = ["<s>", "</s>", "<unk>", "▁", "\n", *letters]
        vocabulary = {token: number for number, token in enumerate(tokens)}
        backend = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        backend.decoder = decoders.Metaspace(prepend_scheme="first", split=False)
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", vocabulary["<s>"])]
        )
        return PreTrainedTokenizerFast(
            tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
        )

    return make


@pytest.fixture(scope="session")
def make_requests() -> Callable[..., list[Request]]:
    """`make_requests(count, prefix="train")`: requests with answers, every second one with an input."""

    def make(count: int, prefix: str = "train") -> list[Request]:
        return [
            Request(
                f"{prefix}-{number}",
                f"Name {number} things that grow in a garden.",
                f"Only those of kind {number}." if number % 2 else "",
                f"Here are {number}: roses, beans and herbs.",
            )
            for number in range(count)
        ]

    return make
