"""Python's own parser on hostile text, in silence."""

from __future__ import annotations

import ast
import re
import warnings
from typing import Any

_NAME = "<text that rlmon looks at>"
_SILENT = ("ignore", None, Warning, re.compile(re.escape(_NAME) + r"\Z"), 0)
"""A filter for warnings of what is parsed under ``_NAME``, and so of nothing else in the process."""


def parse(text: str, mode: str = "exec") -> Any:
    """The syntax tree of ``text``, as ``ast.parse``, but no warning is shown or raised (``"\\d"``, ``1if x``).

    ``warnings.catch_warnings`` is not used: entering it makes Python forget which warnings were shown already, so that
    in a training loop every library's once-only warning would come again at each step; and it swaps the filters of all
    threads. The filter here is there while the parser runs, takes nothing but warnings of this text, and leaves the
    list, and all that Python remembers, as they were. Raises what ``ast.parse`` raises.
    """
    filters = _filters()
    filters.insert(0, _SILENT)
    try:
        return ast.parse(text, filename=_NAME, mode=mode)
    finally:
        # By identity: another thread may have put a filter before it.
        for at, entry in enumerate(filters):
            if entry is _SILENT:
                del filters[at]
                break


def _filters() -> list[Any]:
    """The list that Python reads now; since 3.14 a context may have one of its own."""
    in_context = getattr(warnings, "_get_filters", None)
    found: list[Any] = warnings.filters if in_context is None else in_context()  # type: ignore[assignment]
    return found
