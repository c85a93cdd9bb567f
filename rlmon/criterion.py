"""The setting ``rlmon_success``: what a user says a success is, before any reward was seen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rlmon.errors import ConfigError
from rlmon.printable import nearest

HOW_TO_SAY = "Give a threshold on the total reward (0.5), a reward function's name, or both (accuracy_reward>0.9)."


@dataclass(frozen=True)
class Criterion:
    """A threshold on the total reward, the name of a reward function (its own top value), or both."""

    function: str | None
    """``None``: the total reward."""
    above: float | None
    """A success has more than this; ``None``: the function's top value, once that is known."""

    @classmethod
    def parse(cls, given: object) -> Criterion | None:
        """From ``0.5``, ``"0.5"``, ``"accuracy_reward"`` or ``"accuracy_reward>0.9"``; ``None`` where nothing is set.

        Raises ``ConfigError`` for what is none of these, and for a threshold that is not finite.
        """
        if given is None:
            return None
        if isinstance(given, bool) or not isinstance(given, int | float | str):
            raise ConfigError(f"rlmon_success is {given!r}. {HOW_TO_SAY}")
        text = str(given).strip()
        function, sign, number = text.rpartition(">")
        try:
            above: float | None = float(number)
        except ValueError:
            function, above = number.strip(), None
            if sign or not function:
                raise ConfigError(f"rlmon_success is {text!r}: {number!r} is no number. {HOW_TO_SAY}") from None
        if above is not None and not math.isfinite(above):
            raise ConfigError(f"rlmon_success is {text!r}: its threshold must be finite. {HOW_TO_SAY}")
        return cls(function.strip() or None, above)

    def refuse_unknown(self, functions: Sequence[str]) -> None:
        """Raises ``ConfigError`` where the named function is none of ``functions``."""
        if self.function is None or self.function in functions:
            return
        known = ", ".join(functions) if functions else "none"
        raise ConfigError(
            f"rlmon_success names the reward function {self.function!r}, which this run does not have."
            f"{nearest(self.function, functions)} Its functions: {known}. {HOW_TO_SAY}"
        )

    def __str__(self) -> str:
        if self.above is None:
            return self.function or ""
        return f"{self.function or ''}>{self.above!r}" if self.function else repr(self.above)
