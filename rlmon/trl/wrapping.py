"""Methods wrapped on the instance: nothing of TRL's is patched, and what was there before comes back."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
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


def bound_arguments(
    original: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], names: Sequence[str]
) -> dict[str, Any]:
    """The arguments of ``original(*args, **kwargs)`` by TRL's names for them; absent where none was given.

    ``names`` are TRL's own names of the leading parameters, in their order, without ``self``: what an override calls
    otherwise (``ids`` for ``completion_ids_list``) or takes as ``*args`` is found by its place. All other parameters
    have the names of ``original``'s signature, ``**kwargs`` flattened; defaults are filled in.
    Raises ``TypeError`` where ``original`` cannot be called like this.
    """
    signature = inspect.signature(original)
    bound = signature.bind(*args, **kwargs)
    bound.apply_defaults()
    found: dict[str, Any] = {}
    for place, (name, value) in enumerate(bound.arguments.items()):
        kind = signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_POSITIONAL:
            found.update(zip(names[place:], value, strict=False))
        elif kind is inspect.Parameter.VAR_KEYWORD:
            found.update(value)
        elif name in names or kind is inspect.Parameter.KEYWORD_ONLY or place >= len(names):
            found[name] = value
        else:
            found[names[place]] = value
    return found
