"""Methods wrapped on the instance: nothing of TRL's is patched, and what was there before comes back."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

Original = Callable[..., Any]
Around = Callable[[Original, tuple[Any, ...], dict[str, Any]], Any]
"""What a call becomes: it is given the method as it was, and the call's arguments as they came."""


def wrap(owner: Any, name: str, around: Around) -> Callable[[], None]:
    """Let each call of ``owner.name`` become ``around(original, args, kwargs)``. Gives back what takes this off."""
    original, given = getattr(owner, name), vars(owner).get(name)

    @functools.wraps(original)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return around(original, args, kwargs)

    def undo() -> None:
        if given is None:
            vars(owner).pop(name, None)
        else:
            setattr(owner, name, given)

    setattr(owner, name, wrapper)
    return undo
