"""A reward function by its name."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

from rlmon.errors import ConfigError


def reward_function(name: str) -> Callable[..., Any]:
    """The function of this name in ``trl.rewards``, or at this dotted path (the working folder included; a colon may
    stand before the function). Importing it runs its code."""
    module_name, _, function_name = name.replace(":", ".").rpartition(".")
    if not module_name:
        module_name = "trl.rewards"
    elif os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        function: Callable[..., Any] = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"There is no reward function {name!r} ({error}). Give a name from trl.rewards or a dotted import path."
        ) from error
    return function
