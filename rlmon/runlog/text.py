"""Text that is not valid Unicode, stored without loss.

Arrow and strict JSON hold UTF-8 only, but a Python string may carry lone surrogates (half of a pair: a tokenizer
that decodes byte by byte makes them). Such a string is stored as U+10FFFD (a private-use mark), then the text with
every backslash doubled and every lone surrogate written as ``\\udXXX``. A string that itself begins with the mark is
stored the same way, so that the mapping is one to one: ``restore_text(stored_text(s)) == s`` for every string.
All other strings, control characters and NUL included, are stored as they are.
"""

from __future__ import annotations

import re

MARK = "\U0010fffd"

_ESCAPE = re.compile(r"\\(\\|u[0-9a-f]{4})")


def stored_text(text: str) -> str:
    """``text`` in the form in which it is stored: valid UTF-8, and the same string wherever it already was."""
    if text[:1] != MARK:
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            pass
        else:
            return text
    return MARK + text.replace("\\", "\\\\").encode("utf-8", "backslashreplace").decode("utf-8")


def restore_text(stored: str) -> str:
    """The original string, lone surrogates included, of one that was read from a run log."""
    if stored[:1] != MARK:
        return stored
    return _ESCAPE.sub(lambda m: "\\" if m[1] == "\\" else chr(int(m[1][1:], 16)), stored[1:])
