"""What trainers print, as log calls: dicts of TRL, transformers and OpenRLHF, verl's lines of ``step:1 - key:value``,
what own loops print, as ``step 10 | loss: 0.5, reward=0.25``, and blocks of a number a line.

A console log holds much else: progress bars, colours, prefixes of workers, tables. Nothing of it is evaluated.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import rlmon.audit.aliases as aliases

LINE_CHARACTERS = 4_096
"""Of a line of an own loop, at most."""
BAR = "progress bar"
"""Key of the step that the progress bar before a dict stood at."""
_NUMBER = r"[-+]?(?:\d[\d_]*\.?\d*(?:[eE][-+]?\d+)?|\.\d+(?:[eE][-+]?\d+)?|inf(?:inity)?|nan)"
_WRAPPED = rf"(?:[A-Za-z_][\w.]*\()?\s*({_NUMBER})(?:/\d{{1,15}})?\s*\)?"
"""A number, also as ``np.float64(0.5)``, ``tensor(0.5`` or ``3/100``."""
_DICT = re.compile(r"\{\s*['\"][^{}]*\}")
_PAIR = re.compile(
    rf"(?:'([^']{{1,200}})'|\"([^\"]{{1,200}})\")\s*:\s*['\"]?{_WRAPPED}(?=\s*['\",}}\)])", re.IGNORECASE
)
_STEP_LINE = re.compile(r"\bstep:\s*(\d{1,15}) - (?=\S+:)")
_STEP_PAIR = re.compile(rf"(\S[^:]{{0,199}}(?::[^:]{{1,99}}){{0,3}}?):\s*{_WRAPPED}\s*", re.IGNORECASE)
_STEP_BEFORE = re.compile(r"\bstep\s*[:=#]?\s*(\d{1,15})\b[\s\])}|,;:>-]*\Z", re.IGNORECASE)
_STEP_WORD = re.compile(r"\b(?:global_|train_)?step\s*[:=#]?\s*(\d{1,15})\b", re.IGNORECASE)
_PLAIN_PAIR = re.compile(rf"(?<![\w/.])([A-Za-z_][\w/.@]{{0,99}})\s*[:=]\s*{_WRAPPED}(?![\w.])", re.IGNORECASE)
_COLOUR = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")
_BAR = re.compile(r"\s*\d{1,3}%\|[^|]{0,200}\|\s*(\d{1,12})/(\d{1,12})\s*\[")


def log_calls(lines: Iterable[str]) -> Iterator[dict[str, float]]:
    """Numbers by key of every dict or line of metrics, in their order.

    ``lines`` end at line feeds and carriage returns. A dict counts where one of its keys is one that trainers log.
    """
    total = None
    at = None
    blocks: Blocks | None = Blocks()
    for line in lines:
        if "\x1b" in line:
            line = _COLOUR.sub("", line)
        position = 0
        if "{" in line:
            for match in _DICT.finditer(line):
                before = line[position : match.start()]
                total, at = _bar(before, total, at)
                position = match.end()
                call = {one or two: _parsed(value) for one, two, value in _PAIR.findall(match[0])}
                if any(map(aliases.says_something, call)):
                    if "step" not in call and (named := _STEP_BEFORE.search(before[-80:])) is not None:
                        call["step"] = float(named[1])
                    blocks = None  # what is printed for people beside it says the same, rounded
                    yield call if at is None else {**call, BAR: float(at)}
        total, at = _bar(line[position:], total, at)
        if (start := _STEP_LINE.search(line)) is not None:
            pairs = (_STEP_PAIR.fullmatch(part) for part in line[start.end() :].strip().split(" - "))
            call = {pair[1]: _parsed(pair[2]) for pair in pairs if pair is not None}
            if call:
                blocks = None
                yield {"step": float(start[1]), **call}
        elif not position and (word := _STEP_WORD.search(line[:LINE_CHARACTERS])) is not None:
            call = {key: _parsed(value) for key, value in _PLAIN_PAIR.findall(line[:LINE_CHARACTERS])}
            if any(map(aliases.says_something, call)):
                blocks = None
                yield {**call, "step": float(word[1])}
        if blocks is not None:
            yield from blocks.take(line)
    if blocks is not None:
        yield from blocks.end()


def _bar(text: str, total: str | None, at: int | None) -> tuple[str | None, int | None]:
    """Total and step of the training's bar, which is the first that is seen: those of evaluations have other totals."""
    match = _BAR.match(text) if "%|" in text else None
    if match is not None and total in (None, match[2]):
        return match[2], int(match[1])
    return total, at


def _parsed(text: str) -> float:
    return float(text.replace("_", ""))


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
    """Lines of a console, gathered to one log call a step: a heading that names it, then a number a line.

    AReaL prints ``│ ppo_actor/task_reward/avg │ 5.0e-01 │`` below ``Step 3/100``, NeMo-RL ``• Avg Reward: 0.45``.
    """

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
