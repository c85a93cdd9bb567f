"""Text of a run, made safe to print.

Text from a run is hostile: a completion may hold escape sequences that retitle a window or repaint a line above.
`one_line` is the only way such text reaches a terminal, a report in text form or a line of CI output.
"""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Collection, Iterable, Sequence

MAX_LINE_CHARACTERS = 600


def one_line(text: str, limit: int = MAX_LINE_CHARACTERS) -> str:
    """The text as one line of at most ``limit`` printable characters.

    Control characters, escape sequences, direction overrides, line separators and lone surrogates come out as
    backslash escapes; exotic spaces as spaces. What was cut is marked by an ellipsis.
    """
    cut = len(text) > limit
    shown = "".join(_visible(character) for character in text[:limit])
    if cut or len(shown) > limit:
        shown = shown[: max(limit - 1, 0)] + "…"
    return shown


def quoted(text: str, characters: int) -> str:
    """One line of somebody's text between backticks, which stand for nothing inside it."""
    shown = one_line(text, characters).replace("`", "'")
    return f"`{shown}`"


def several(items: Sequence[str], most: int, between: str = ", ") -> str:
    """``a, b and 3 more``: the first of some items, and how many more there are."""
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return between.join(items[:most]) + more


def one_of(known: Collection[str]) -> str:
    """``a, b or c``."""
    *most, last = known
    return f"{', '.join(most)} or {last}" if most else last


def nearest(name: object, known: Iterable[str], cutoff: float = 0.5) -> str:
    """`` Did you mean kappa?``, or nothing. ``cutoff``: how near it has to be, up to 1."""
    close = difflib.get_close_matches(str(name)[:200], list(known), n=1, cutoff=cutoff)
    return f" Did you mean {close[0]}?" if close else ""


def _visible(character: str) -> str:
    if character.isprintable():
        return character
    if unicodedata.category(character) == "Zs":
        return " "
    return character.encode("unicode_escape", "backslashreplace").decode("ascii")
