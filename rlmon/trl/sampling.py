"""The rows of one generation: everything that was sampled and scored in it, and which of it is trained on.

A trainer's subclass may sample and score several times within one ``_generate_and_score_completions`` (dynamic
sampling), in parts, or train on other rows than it scored (filters, replay). So rows are collected where they are
scored, and the rows of the batch that comes out are found among them by identity: their prompt's and their own token
ids, in order, each scored row once. A completion that was cut or continued after scoring is found by its beginning,
where only one can be meant. What is not found was not sampled here, and gets nobody's advantage.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Ids = NDArray[np.int32]

_SURE_TOKENS = 2
"""Tokens by which a cut or continued row is known in another place than its own."""


@dataclass
class Generated:
    """What ``_generate`` returned: the only place where a row's prompt ids and tool mask are seen before padding."""

    prompts: Sequence[Any]
    prompt_ids: Sequence[Sequence[int]]
    completion_ids: Sequence[Sequence[int]]
    completions: Sequence[Any]
    tool_masks: Sequence[Sequence[int]] | None

    @classmethod
    def of(cls, prompts: Sequence[Any], result: Sequence[Any]) -> Generated:
        """From GRPO's (prompt ids, completion ids, tool mask, completions, ...) or RLOO's three without the mask."""
        masks, completions = (result[2], result[3]) if len(result) > 3 else (None, result[2])
        return cls(prompts, result[0], result[1], completions, masks)


@dataclass
class Scored:
    """Arguments and result of one ``_calculate_rewards``: where texts and raw rewards meet. Rows of this rank."""

    inputs: Sequence[Mapping[str, Any]]
    prompts: Sequence[Any]
    completions: Sequence[Any]
    completion_ids: Sequence[Sequence[int]]
    rewards_NF: torch.Tensor | None
    """Of all ranks, gathered; ``None`` where no reward function was asked."""
    places: Sequence[tuple[Generated, int] | None] | None = None
    """Where ``_generate`` returned each row, ``None`` where it was not seen; ``Sampling`` finds them."""

    def __len__(self) -> int:
        return len(self.completion_ids)


@dataclass
class Row:
    """One completion as it was sampled."""

    ids: Ids
    """As generated, tool results included."""
    own_T: NDArray[np.bool_]
    """Which of ``ids`` the model wrote itself."""
    prompt_ids: Ids | None
    """``None`` where ``_generate`` was not seen."""


@dataclass
class Sampling:
    """What was seen within one ``_generate_and_score_completions``."""

    generated: list[Generated] = field(default_factory=list)
    scored: list[Scored] = field(default_factory=list)

    def add_scored(self, call: Scored) -> int:
        """Take one scoring call; the number of rows that had not been scored before.

        Scoring the very same rows again (the same lists of ids) replaces their rewards. A list that was generated
        several times (a ``rollout_func`` that repeats or caches its answers) is as many rows.
        """
        waiting = self._place(call)
        for i in reversed(range(0 if waiting else len(self.scored))):
            known = self.scored[i]
            same = len(known) == len(call) and all(
                a is b and isinstance(a, list) for a, b in zip(known.completion_ids, call.completion_ids, strict=True)
            )
            if same:
                call.places, self.scored[i] = known.places, call
                return 0
        self.scored.append(call)
        return len(call)

    def _place(self, call: Scored) -> bool:
        """Say where each row of ``call`` was generated; whether any of them had still to be scored.

        The newest generation of just these rows that was not scored yet, else row by row: the first of the same list
        that waits, and where none does, the last that there was.
        """
        taken = {(id(place[0]), place[1]) for known in self.scored for place in known.places or () if place is not None}
        for made in reversed(self.generated):
            if len(made.completion_ids) == len(call) and all(
                a is b and (id(made), i) not in taken
                for i, (a, b) in enumerate(zip(made.completion_ids, call.completion_ids, strict=True))
            ):
                call.places = [(made, i) for i in range(len(call))]
                return True
        last: dict[int, tuple[Generated, int]] = {}
        waiting: dict[int, deque[tuple[Generated, int]]] = {}
        for made in self.generated:
            for i, ids in enumerate(made.completion_ids):
                last[id(ids)] = (made, i)
                if (id(made), i) not in taken:
                    waiting.setdefault(id(ids), deque()).append((made, i))
        fresh = any(id(ids) in waiting for ids in call.completion_ids)
        call.places = [
            waiting[id(ids)].popleft() if waiting.get(id(ids)) else last.get(id(ids)) for ids in call.completion_ids
        ]
        return fresh

    def calls(self, inputs: Sequence[Mapping[str, Any]]) -> list[Scored]:
        """The scoring calls; where there was none (a trainer that scores in a way of its own), what was generated."""
        if self.scored:
            return [call for call in self.scored if len(call)]
        calls = []
        for made in self.generated:
            rows = inputs if len(inputs) == len(made.prompts) else [{"prompt": prompt} for prompt in made.prompts]
            places = [(made, i) for i in range(len(made.completion_ids))]
            calls.append(Scored(rows, made.prompts, made.completions, made.completion_ids, None, places))
        return calls

    def rows(self, call: Scored) -> list[Row]:
        """The rows of a scoring call with what ``_generate`` said of them."""
        if call.places is None:
            self._place(call)
        found = []
        for ids, place in zip(call.completion_ids, call.places or (), strict=True):
            made, at = place or (None, 0)
            own, prompt_ids = np.ones(len(ids), dtype=bool), None
            if made is not None:
                prompt_ids = np.asarray(made.prompt_ids[at], dtype=np.int32)
                if made.tool_masks is not None and len(made.tool_masks[at]) == len(ids):
                    own = np.asarray(made.tool_masks[at]).astype(bool)
            found.append(Row(np.asarray(ids, dtype=np.int32), own, prompt_ids))
        return found


def global_rows(
    sizes: Sequence[int], uniform: Sequence[bool], *, rank: int, world_size: int, group_size: int
) -> tuple[list[list[int]], list[list[int]], int]:
    """Row numbers over all ranks for scoring calls of ``sizes`` rows a rank, one call behind another.

    Returns this rank's numbers and those of all ranks (rank by rank) for each call, and the end of the numbers. A call
    whose rows do not fall into groups of ``group_size`` (not ``uniform``, or of another size) gets a number in a group
    of its own for each row, so that no statistic mixes prompts.
    """
    own, every, offset = [], [], 0
    for size, groups in zip(sizes, uniform, strict=True):
        total = size * world_size
        stride = 1 if groups and total % group_size == 0 else group_size
        numbers = [offset + i * stride for i in range(total)]
        every.append(numbers)
        own.append(numbers[rank * size : (rank + 1) * size])
        offset += -(-total * stride // group_size) * group_size
    return own, every, offset


class Finder:
    """Finds the rows of a padded batch among those that were sampled, each of these once."""

    def __init__(self, rows: Sequence[Row], pad_id: int | None) -> None:
        self._pad_id = pad_id
        self._rows = rows
        self._exact: dict[tuple[bytes, bytes | None], deque[int]] = {}
        self._trimmed: dict[tuple[bytes, bytes | None], deque[int]] = {}
        self._taken: set[int] = set()
        for i, row in enumerate(rows):
            prompt = None if row.prompt_ids is None else row.prompt_ids.tobytes()
            self._exact.setdefault((row.ids.tobytes(), prompt), deque()).append(i)
            self._trimmed.setdefault((self._trim(row.ids).tobytes(), prompt), deque()).append(i)

    def _trim(self, ids: Ids) -> Ids:
        kept = np.flatnonzero(ids != self._pad_id)
        return ids[: kept[-1] + 1 if kept.size else 0]

    def take(self, ids_T: Ids, mask_T: NDArray[np.bool_], prompt_ids: Ids) -> int | None:
        """The next free row with these ids after this prompt; ``None`` where there is none.

        By what the mask leaves, and where that is nothing that was sampled (a masked completion), by all but the
        padding. A sampled row whose prompt ids were not seen is found by its own ids alone.
        """
        prompt, left, trimmed = prompt_ids.tobytes(), self._left(ids_T, mask_T), self._trim(ids_T)
        for table, key in ((self._exact, left.tobytes()), (self._trimmed, trimmed.tobytes())):
            for waiting in (table.get((key, prompt)), table.get((key, None))):
                while waiting:
                    i = waiting.popleft()
                    if i not in self._taken:
                        self._taken.add(i)
                        return i
        return None

    def take_changed(
        self, waiting: Sequence[int], ids_RT: Ids, mask_RT: NDArray[np.bool_], prompts: Sequence[Ids]
    ) -> dict[int, int]:
        """Of the ``waiting`` rows of a batch, those of which a free row is the beginning, or which are the beginning of
        one: a row in its own place, else the only row that it can be, by two tokens at least: many begin with the
        same one."""
        free: dict[bytes | None, list[int]] = {}
        for i, row in enumerate(self._rows):
            if i not in self._taken and len(row.ids):
                free.setdefault(None if row.prompt_ids is None else row.prompt_ids.tobytes(), []).append(i)
        meant: dict[int, list[int]] = {}
        kept: dict[int, int] = {}
        for at in waiting:
            left = self._left(ids_RT[at], mask_RT[at])
            kept[at] = len(left)
            near = [i for key in (prompts[at].tobytes(), None) for i in free.get(key, ())]
            meant[at] = [i for i in near if left.size and _begins_alike(left, self._rows[i].ids)]
        found = {at: at for at, alike in meant.items() if at in alike}
        others = {
            at: [i for i in alike if i not in found and min(kept[at], len(self._rows[i].ids)) >= _SURE_TOKENS]
            for at, alike in meant.items()
            if at not in found
        }
        suitors = Counter(i for alike in others.values() for i in alike)
        found |= {at: alike[0] for at, alike in others.items() if len(alike) == 1 and suitors[alike[0]] == 1}
        self._taken.update(found.values())
        return found

    def _left(self, ids_T: Ids, mask_T: NDArray[np.bool_]) -> Ids:
        """What the mask leaves; all but the padding where it masks the completion as a whole."""
        left = ids_T[mask_T]
        return left if left.size else self._trim(ids_T)


def _begins_alike(one: Ids, other: Ids) -> bool:
    shorter = min(len(one), len(other))
    return np.array_equal(one[:shorter], other[:shorter])


@dataclass
class Drawn:
    """Which sampled rows a batch holds."""

    row_R: list[int]
    """Of each row of the batch the sampled row; -1 where it was not sampled here."""
    placed_R: list[bool]
    """Whether the sampled row's tokens begin at the batch row's first place, as TRL pads them."""

    def trained(self, rows: int) -> list[bool]:
        there = set(self.row_R)
        return [row in there for row in range(rows)]


def find_rows(batch: Mapping[str, Any], rows: Sequence[Row], finder: Finder) -> Drawn:
    """The rows of a generated batch among ``rows``, by ``completion_ids`` [R, T], ``prompt_ids`` and their masks."""
    ids_RT, mask_RT = _host(batch["completion_ids"]), _host(batch["completion_mask"]).astype(bool)
    prompt_RP, kept_RP = _host(batch["prompt_ids"]), _host(batch["prompt_mask"]).astype(bool)
    prompts = [prompt_P[kept_P] for prompt_P, kept_P in zip(prompt_RP, kept_RP, strict=True)]
    taken = [finder.take(*row) for row in zip(ids_RT, mask_RT, prompts, strict=True)]
    waiting = [at for at, row in enumerate(taken) if row is None]
    if waiting:
        changed = finder.take_changed(waiting, ids_RT, mask_RT, prompts)
        taken = [changed.get(at) if row is None else row for at, row in enumerate(taken)]
    placed = [
        row is not None and np.array_equal(ids_T[: len(rows[row].ids)], rows[row].ids)
        for ids_T, row in zip(ids_RT, taken, strict=True)
    ]
    return Drawn([-1 if row is None else row for row in taken], placed)


def _host(tensor: torch.Tensor) -> Ids:
    ids: Ids = tensor.detach().to("cpu", torch.int32).numpy()
    return ids
