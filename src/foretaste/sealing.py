"""Files that say when they have been damaged: JSON with the checksum of its own text.

A flipped bit in a digit leaves valid JSON that says something else, so that reading alone does not tell.
"""

from __future__ import annotations

import re
import zlib

from pydantic import BaseModel

_SEAL = re.compile(rb',\n "crc32": "([0-9a-f]{8})"\n}\s*\Z')


def sealed(part: BaseModel) -> str:
    """The JSON of an object with at least one field, with the CRC-32 of its text as its last key, `crc32`."""
    text = part.model_dump_json(indent=1)
    body = text.removesuffix("\n}")
    return f'{body},\n "crc32": "{zlib.crc32(text.encode()):08x}"\n}}'


def unsealed(content: bytes) -> bytes:
    """The JSON that was sealed; content without a seal, as older versions wrote it, is returned as it is.

    Damage to the seal itself is found by whoever reads the JSON: it is broken, or has a key too many.

    Raises:
        ValueError: The content has changed since it was sealed.
    """
    seal = _SEAL.search(content)
    if seal is None:
        return content
    text = content[: seal.start()] + b"\n}"
    if zlib.crc32(text) != int(seal[1], 16):
        raise ValueError("it has changed since it was written (its checksum says so)")
    return text
