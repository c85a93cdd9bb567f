"""What rlmon says on the console when it begins to watch a run, and when the run ends: one line each.

Text from a run is hostile: `rlmon.printable.one_line` is the only way it reaches a terminal.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlmon.printable import one_line
from rlmon.records import Finding

MAX_CAUSE_CHARACTERS = 240
_RANK = {"pass": 0, "ok": 0, "warn": 1, "fail": 2}


def say(text: str) -> None:
    """``rlmon: text`` on stderr; a progress bar steps aside. A console that is gone is no error."""
    try:
        encoding = sys.stderr.encoding or "utf-8"
        line = f"rlmon: {text}".encode(encoding, "backslashreplace").decode(encoding)
        tqdm = sys.modules.get("tqdm")
        if tqdm is not None:
            tqdm.tqdm.write(line, file=sys.stderr)
        else:
            print(line, file=sys.stderr, flush=True)
    except Exception:
        return


def hello(directory: Path) -> str:
    """What is said at attach: where the log is, and how to look at it live."""
    return f"watching, log in {one_line(str(directory))} · {_command('watch', directory)}"


def goodbye(
    directory: Path,
    findings: Sequence[Finding],
    status: Sequence[Mapping[str, Any]],
    *,
    compared: bool,
    step: int,
    interrupted: bool = False,
) -> str:
    """What is said at the end: verdict, cause, the one thing to change, and how to see more.

    ``findings`` of this ``train()`` call; ``status`` is ``detectors.status`` at its end, which knows alarms from
    before a resume as well. ``compared``: one that compares the run with its base has spoken (``detectors.judged``),
    without which there is no pass. Notes are no part of the verdict; a pass names them.
    """
    judged = [row for row in status if row["status"] not in ("waiting", "cannot")]
    told = [finding for finding in findings if finding.severity in ("warn", "fail")]
    words = [str(finding.severity) for finding in told] + [str(row["status"]) for row in judged]
    verdict = max(words, key=lambda word: _RANK.get(word, 0), default="ok")
    until = f"{'interrupted' if interrupted else 'ended'} at step {step}"
    parts: list[str]
    if _RANK.get(verdict, 0):
        cause = next((finding for finding in told if finding.severity == verdict), None)
        if cause is None:
            earlier = ", ".join(str(row["id"]) for row in judged if row["status"] == verdict)
            parts = [f"{verdict.upper()}, {until}", f"raised before this train(): {earlier}"]
        else:
            more = len({finding.detector for finding in told} - {cause.detector})
            also = f" (and {more} more)" if more else ""
            parts = [
                f"{verdict.upper()} since step {cause.step}, {until}",
                sentence(cause) + also,
                one_thing(cause.advice),
            ]
    elif not compared:
        parts = [f"not judged, {until}: too short to compare anything with its base"]
    else:
        unsure = len(status) - len(judged)
        noted = {f.detector: f"{f.detector} ({one_thing(f.advice)})" for f in findings if f.severity == "note"}
        parts = [
            f"PASS, {until}",
            f"{len(judged)} of {len(status)} detectors judged" if unsure else "",
            f"a note on compute: {', '.join(noted.values())}" if noted else "",
        ]
    return " · ".join([*(part for part in parts if part), _command("report", directory)])


def sentence(finding: Finding) -> str:
    """The finding as one sentence that names its detector once."""
    return f"{finding.detector}: {what_happened(finding)}"


def what_happened(finding: Finding) -> str:
    """The same without the name of the detector, for where that stands beside it."""
    return first(finding.message.removeprefix(f"{finding.detector}: "))


def first(text: str) -> str:
    """The first sentence of ``text`` as one line without its full stop."""
    shown = one_line(text.split(". ", 1)[0], MAX_CAUSE_CHARACTERS)
    return shown.removesuffix(".")


def one_thing(advice: str) -> str:
    """The first of the things that ``advice`` names, without what it has in parentheses."""
    depth = 0
    for at, character in enumerate(advice):
        depth += {"(": 1, ")": -1}.get(character, 0)
        if depth == 0 and (character in ",;" or advice.startswith(". ", at)):
            advice = advice[:at]
            break
    return first(re.sub(r"\s*\([^()]*\)", "", advice))


def _command(name: str, directory: Path) -> str:
    return one_line(f"rlmon {name} {shlex.quote(str(directory))}")
