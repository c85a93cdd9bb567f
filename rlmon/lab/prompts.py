"""Prompts out of a file, as a user asks models with them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlmon.errors import ConfigError
from rlmon.printable import one_line


@dataclass(frozen=True)
class Prompts:
    """Prompts with their other columns, which reward functions read."""

    prompts: list[Any]
    """Text, or messages of a conversation."""
    columns: Mapping[str, list[Any]] = field(default_factory=dict)

    def distinct(self) -> Prompts:
        """Each of them once, with the columns of its first row."""
        first: dict[str, int] = {}
        for at, prompt in enumerate(self.prompts):
            first.setdefault(json.dumps(prompt), at)
        return Prompts(
            [self.prompts[at] for at in first.values()],
            {name: [values[at] for at in first.values()] for name, values in self.columns.items()},
        )

    def times(self, copies: int) -> Prompts:
        """Each of them so many times, one after the other."""

        def repeated(values: list[Any]) -> list[Any]:
            return [value for value in values for _ in range(copies)]

        return Prompts(repeated(self.prompts), {name: repeated(values) for name, values in self.columns.items()})


def read_prompts(file: Path) -> Prompts:
    """A text file with a prompt a line, or JSON (a list, or Lines) of objects with ``prompt`` and other columns. Raises
    ``ConfigError``."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the prompts {one_line(str(file))}: {error}.") from error
    lines = [line for line in text.split("\n") if line.strip()]
    if not lines:
        raise ConfigError(f"{one_line(str(file))} has no prompts: one a line is needed.")
    rows = _objects(text, lines)
    if rows is None:
        return Prompts([line.rstrip("\r") for line in lines])
    for number, row in enumerate(rows, start=1):
        prompt = row.get("prompt") if isinstance(row, dict) else None
        if not isinstance(prompt, str) and not _is_conversation(prompt):
            raise ConfigError(
                f'{one_line(str(file))}: row {number} is no JSON object with a "prompt" that is text or a list of '
                f"messages with role and content: {one_line(str(row), 80)}"
            )
    names = dict.fromkeys(name for row in rows for name in row if name != "prompt")
    return Prompts([row["prompt"] for row in rows], {name: [row.get(name) for row in rows] for name in names})


def _objects(text: str, lines: list[str]) -> list[Any] | None:
    """The rows of JSON, a line that is none as it is; ``None`` for text."""
    if not lines[0].lstrip().startswith("{"):
        listed = _json(text)
        return listed if isinstance(listed, list) and any(isinstance(row, dict) for row in listed) else None
    return [_json(line) for line in lines]


def _json(text: str) -> Any:
    """What it says; itself, where it is no JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _is_conversation(prompt: Any) -> bool:
    return (
        isinstance(prompt, list)
        and bool(prompt)
        and all(isinstance(message, dict) and {"role", "content"} <= message.keys() for message in prompt)
    )
