"""One example of instruction data: what is asked, and the answer to it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Request:
    """One row of instruction data.

    Attributes:
        id: Names the row; all randomness about it depends on this alone.
        instruction: What is asked.
        input: What the instruction is about; "" where there is nothing.
        output: The response that is trained on; "" for requests that are only asked, never trained on.
    """

    id: str
    instruction: str
    input: str
    output: str
