"""What trainers print as a block a step: a heading that names the step, then a table or a list with a number a line.

AReaL prints ``│ ppo_actor/task_reward/avg │ 5.0e-01 │`` below ``Step 3/100``, NeMo-RL ``• Avg Reward: 0.45``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import rlmon.audit.aliases as aliases

_EDGES = "│|┃║•"
_HEADING = re.compile(
    r"\b(?:step|iteration|update|round)\s*[:#]?\s*(\d{1,15})(?:\s*/\s*\d{1,15}\b|[\s=*#:-]*\Z)", re.IGNORECASE
)
_ROW = re.compile(
    rf"\s*[{_EDGES}]\s*([A-Za-z][^│|┃║:]{{0,199}}?)\s*[:│|┃║]\s*"
    rf"([-+]?(?:\d[\d_,]*\.?\d*(?:e[-+]?\d+)?|\.\d+|inf|nan))\s?[\w%/]{{0,12}}\s*[{_EDGES}]?\s*",
    re.IGNORECASE,
)
_HELD_OUT = re.compile(r"\b(?:validation|validating|evaluation|evaluating|eval)\b", re.IGNORECASE)
_TRAINING = re.compile(r"\btrain", re.IGNORECASE)


@dataclass(kw_only=True, slots=True)
class Blocks:
    """Lines of a console, gathered to one log call a step."""

    step: float | None = None
    """What the last heading named."""
    numbers: dict[str, float] = field(default_factory=dict)
    held_out: bool = False
    """Whether the lines are of an evaluation."""

    def take(self, line: str) -> Iterator[dict[str, float]]:
        """Takes one line; the call that it completes, if it does."""
        row = _ROW.fullmatch(line) if line.lstrip()[:1] in _EDGES and len(line) < 400 and line.strip() else None
        if row is not None:
            if self.held_out:
                return
            key = _known(row[1].strip())
            if key in self.numbers and self.step is None:
                # Nothing is said between two tables: the first of the next is what the one before began with.
                yield from self.end()
            self.numbers[key] = float(row[2].replace("_", "").replace(",", ""))
        elif (heading := _heading(line)) is not None:
            self.held_out = False
            if heading != self.step:
                yield from self.end()
                self.step = heading
        elif len(line) < 400 and _HELD_OUT.search(line):
            self.held_out = True
        elif self.held_out and len(line) < 400 and _TRAINING.search(line):
            self.held_out = False

    def end(self) -> Iterator[dict[str, float]]:
        """The call that was gathered, where it has something that trainers log."""
        numbers, self.numbers = self.numbers, {}
        if any(map(aliases.says_something, numbers)):
            yield numbers if self.step is None else {**numbers, "step": self.step}


def _heading(line: str) -> float | None:
    if len(line) >= 400 or not ("tep" in line or "TEP" in line or "tion" in line or "pdate" in line or "ound" in line):
        return None
    match = _HEADING.search(line)
    return None if match is None or _HELD_OUT.search(line) else float(match[1])


def _known(key: str) -> str:
    """The key as trainers log it: lists for people have it in words, ``Avg Reward``."""
    if aliases.says_something(key):
        return key
    written = re.sub(r"\s+", "_", key.lower())
    return written if aliases.says_something(written) or written in ("step", "global_step") else key
