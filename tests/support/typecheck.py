"""The checker behind ``--jaxtyping-packages``: beartype, with an int accepted where a float is annotated (PEP 484).

jaxtyping wraps every function to hold sizes of arrays against each other, at ten times the price of the check itself.
Where no annotation names an array there are none, and beartype alone checks the same.
"""

from __future__ import annotations

import inspect
import typing
from typing import Any

import jaxtyping
from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
_with_sizes = jaxtyping.jaxtyped


def _names_an_array(hint: Any) -> bool:
    if isinstance(hint, list):
        return any(map(_names_an_array, hint))
    if inspect.isclass(hint) and issubclass(hint, jaxtyping.AbstractArray):
        return True
    return any(map(_names_an_array, typing.get_args(hint)))


def _jaxtyped(function: Any = None, *, typechecker: Any) -> Any:
    if function is None:
        return lambda given: _jaxtyped(given, typechecker=typechecker)
    if inspect.isfunction(function):
        try:
            hints = typing.get_type_hints(function, include_extras=True)
        except NameError:
            return _with_sizes(function, typechecker=typechecker)
        if not any(map(_names_an_array, hints.values())):
            return checked(function)
    return _with_sizes(function, typechecker=typechecker)


jaxtyping.jaxtyped = _jaxtyped
