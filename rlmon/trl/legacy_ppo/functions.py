"""Functions of a module, shown to whoever listens: each call runs the original once and passes its result on."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

Listener = Callable[[str, tuple[Any, ...], dict[str, Any], Any], None]
"""Is told a function's name, its arguments and its result, outside our own try. Must not raise."""


@dataclass
class _Patch:
    """The functions of one module, replaced while there are listeners."""

    listeners: list[Listener] = field(default_factory=list)
    replaced: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    """Name to the original and what stands in for it."""


PATCHES: dict[str, _Patch] = {}
_LOCK = threading.Lock()


def listen(module: Any, names: Iterable[str], listener: Listener) -> None:
    """From here on each call of these functions of ``module`` is shown to ``listener``."""
    with _LOCK:
        patch = PATCHES.get(module.__name__)
        if patch is None:
            patch = PATCHES[module.__name__] = _Patch()
            for name in names:
                original = getattr(module, name)
                stand_in = _stand_in(name, original, patch.listeners)
                patch.replaced[name] = (original, stand_in)
                setattr(module, name, stand_in)
        patch.listeners.append(listener)


def leave(module: Any, listener: Listener) -> None:
    """No longer; with the last listener the functions are what they were."""
    with _LOCK:
        patch = PATCHES.get(module.__name__)
        if patch is None or listener not in patch.listeners:
            return
        patch.listeners.remove(listener)
        if patch.listeners:
            return
        del PATCHES[module.__name__]
        for name, (original, stand_in) in patch.replaced.items():
            # What somebody else has put over ours since stays: below it ours only passes calls on.
            if getattr(module, name) is stand_in:
                setattr(module, name, original)


def _stand_in(name: str, original: Callable[..., Any], listeners: list[Listener]) -> Callable[..., Any]:
    @functools.wraps(original)
    def observed(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        for listener in tuple(listeners):
            listener(name, args, kwargs, result)
        return result

    return observed
