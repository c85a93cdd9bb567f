"""Completions that show what happened: of the base, of now, and of formats that died out."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from rlmon.audit.case import Case
from rlmon.audit.features import Bools, Ints
from rlmon.audit.result import EXAMPLE_CHARACTERS, EXAMPLE_HEAD, Check, Example, ModeStory
from rlmon.audit.sampled import COMPLETION_CHARACTERS

MAX_SAMPLES = 500


class Samples:
    """The kept completions as examples."""

    def __init__(self, case: Case) -> None:
        self._case = case
        self._table = pa.concat_tables(case.counted.samples) if case.counted.samples else None
        if self._table is None:
            return
        table = self._table.sort_by([("step", "ascending"), ("rank", "ascending"), ("text_key", "ascending")])
        self._table = table
        self.step = table["step"].to_numpy()
        self.mode = table["mode"].to_numpy()
        self.template = table["template_key"].to_numpy()
        self.train = np.array([split == "train" for split in table["split"].to_pylist()], dtype=bool)
        self.reward = np.nan_to_num(table["reward"].to_numpy(), nan=-math.inf)
        self.prompt = table["prompt_key"].to_numpy()
        self.cut = np.array([bool(cut) for cut in table["truncated"].to_pylist()], dtype=bool)

    def example(self, row: int, label: str = "") -> Example:
        """One row of the sample."""
        assert self._table is not None
        values = {name: column[0].as_py() for name, column in
                  zip(self._table.column_names, self._table.slice(row, 1).columns, strict=True)}  # fmt: skip
        key = values["prompt_key"]
        identity, text = self._case.counted.prompts.get(key, (f"{key:016x}", None))
        code = values["mode"]
        completion, left_out = _abridged(values)
        return Example(
            step=values["step"],
            split=values["split"],
            prompt_id=identity,
            prompt=values["prompt"] if values["prompt"] is not None else text,
            completion=completion,
            mode=self._case.modes[code] if 0 <= code < len(self._case.modes) else "not known",
            template=f"{values['template_key'] & 0xFFFFFFFF:08x}",
            source=values["source"],
            reward=_finite(values["reward"]),
            advantage=_finite(values["advantage"]),
            truncated=values["truncated"],
            label=label,
            left_out=left_out,
        )

    def browser(self) -> list[Example]:
        """At most 500 completions spread over time."""
        if self._table is None:
            return []
        kept = np.unique(np.linspace(0, self._table.num_rows - 1, min(MAX_SAMPLES, self._table.num_rows)).astype(int))
        return [self.example(int(row)) for row in kept]

    def of_mode(self, code: int) -> Ints:
        """Rows of a mode, in order of step."""
        if self._table is None:
            return np.zeros(0, dtype=np.int64)
        return np.flatnonzero(self.train & (self.mode == code))

    def of_lost(self, code: int, winner: int, since: int) -> list[Example]:
        """How a format looked at the base, what the winner writes once it is gone, and its last sighting."""
        own = self.of_mode(code)
        if not own.size:
            return []
        best = self._best(self._early(own))
        found = [self.example(best, "base")]
        if code != winner:
            after = self.of_mode(winner)
            after = after[self.step[after] >= since]
            if after.size:
                found.append(self.example(self._same_prompt(after, best), "first"))
        if own[-1] != best:
            found.append(self.example(int(own[-1]), "last"))
        return found

    def shown(self, checks: Sequence[Check], modes: Sequence[ModeStory]) -> list[Check]:
        """The checks that failed or warned of what the model writes with two completions: of the base and of now."""
        pairs: dict[bool, list[Example]] = {}
        told = []
        for check in checks:
            if check.status in ("fail", "warn") and check.about != "record" and not check.examples:
                cut = check.id == "truncation"
                if cut not in pairs:
                    pairs[cut] = self._pair(modes, cut)
                check = dataclasses.replace(check, examples=pairs[cut])
            told.append(check)
        return told

    def _pair(self, modes: Sequence[ModeStory], cut: bool) -> list[Example]:
        """A completion of the base, in the largest format that was lost, and to the same prompt where possible one of
        the end: of the format that won, and there of the most common template (``cut``: one that was cut off)."""
        windows = self._case.windows
        if self._table is None or windows is None:
            return []
        base = np.flatnonzero(self.train & np.isin(self.step, windows.base))
        now = np.flatnonzero(self.train & np.isin(self.step, windows.last))
        if not base.size or not now.size:
            return []
        codes = {name: code for code, name in enumerate(self._case.modes)}
        lost = max((m for m in modes if m.fate in ("extinct", "shrunk")), key=lambda m: m.base_share, default=None)
        won = max(modes, key=lambda m: m.last_share, default=None)
        if lost is not None:
            base = _where(base, self.mode[base] == codes[lost.mode])
        if won is not None:
            now = _where(now, self.mode[now] == codes[won.mode])
        if cut:
            now = _where(now, self.cut[now])
        values, counts = np.unique(self.template[now], return_counts=True)
        now = now[self.template[now] == values[counts.argmax()]]
        shared = _where(base, np.isin(self.prompt[base], self.prompt[now]))
        before = self._best(shared)
        return [self.example(before, "base"), self.example(self._same_prompt(now, before), "now")]

    def _early(self, rows: Ints) -> Ints:
        """Those of the base where there are any, else the first."""
        windows = self._case.windows
        return rows[:1] if windows is None else _where(rows, np.isin(self.step[rows], windows.base), rows[:1])

    def _best(self, rows: Ints) -> int:
        return int(rows[np.argmax(self.reward[rows])])

    def _same_prompt(self, rows: Ints, other: int) -> int:
        return int(_where(rows, self.prompt[rows] == self.prompt[other])[0])


def _where(rows: Ints, wanted: Bools, otherwise: Ints | None = None) -> Ints:
    """The wanted rows, where none is wanted all of them (or ``otherwise``)."""
    return rows[wanted] if wanted.any() else rows if otherwise is None else otherwise


def _abridged(values: dict[str, Any]) -> tuple[str | None, int]:
    """The beginning and the end of a completion, and how many characters are left out between them."""
    text, characters = values["completion"], values["characters"]
    if text is None or characters is None or characters <= EXAMPLE_CHARACTERS:
        return text, 0
    end = values["ending"] if characters > COMPLETION_CHARACTERS else text
    return text[:EXAMPLE_HEAD] + end[EXAMPLE_HEAD - EXAMPLE_CHARACTERS :], characters - EXAMPLE_CHARACTERS


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
