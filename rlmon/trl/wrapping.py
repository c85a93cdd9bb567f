"""Methods wrapped on the instance: nothing of TRL's is patched, and what was there before comes back."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import Any

Original = Callable[..., Any]
Around = Callable[[Original, tuple[Any, ...], dict[str, Any]], Any]
"""What a call becomes: it is given the method as it was, and the call's arguments as they came."""


def wrap(owner: Any, name: str, around: Around) -> Callable[[], None]:
    """Let each call of ``owner.name`` become ``around(original, args, kwargs)``. Gives back what takes this off."""
    original, given, held = getattr(owner, name), vars(owner).get(name), weakref.ref(owner)

    @functools.wraps(original)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return around(original, args, kwargs)

    def undo() -> None:
        there = held()
        if there is not None and given is not None:
            setattr(there, name, given)
        elif there is not None:
            vars(there).pop(name, None)

    setattr(owner, name, wrapper)
    return undo
