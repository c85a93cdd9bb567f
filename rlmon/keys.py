"""Keys of names and prompts: short numbers that every rank, process and resume makes alike from the text alone."""

from __future__ import annotations

import hashlib
import re

KEY_BITS = 48
"""A float64 holds every integer below 2^53, so that a key survives a sum of floats."""
KEY_MASK = (1 << KEY_BITS) - 1
_SOURCE_KEY = re.compile("[0-9a-f]{12}")


def content_key(text: str) -> int:
    """The 48-bit key of a text; lone surrogates are allowed."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") & KEY_MASK


def source_label(key: int) -> str:
    """A source's key as records hold it: 12 hexadecimal digits."""
    return f"{key:012x}"


def source_key(source: str) -> str:
    """The key of a source's name as records hold it, also of a name that looks like a key."""
    return source_label(content_key(source))


def recorded_source_key(source: str) -> str:
    """The key of what a record or a saved state has for a source: a key stays as it is, and a name, which those of
    schema 1 have, gets its own."""
    return source if _SOURCE_KEY.fullmatch(source) else source_key(source)
