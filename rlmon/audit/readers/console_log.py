"""What trainers print, as log calls: dicts of TRL, transformers and OpenRLHF, verl's lines of ``step:1 - key:value``,
what own loops print, as ``step 10 | loss: 0.5, reward=0.25``, and blocks of a number a line.

A console log holds much else: progress bars, colours, prefixes of workers, tables. Nothing of it is evaluated.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

import rlmon.audit.aliases as aliases
from rlmon.audit.readers.console_tables import Blocks

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
