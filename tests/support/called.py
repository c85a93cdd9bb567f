"""The command line, called in the process of the tests: see the fixture ``rlmon``."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Left(NamedTuple):
    """What a call left behind."""

    code: int
    out: str
    err: str


Rlmon = Callable[..., Left]
