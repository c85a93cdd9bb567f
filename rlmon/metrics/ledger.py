"""The ledger of prompts: attempts and successes of each, and which of them are credibly (nearly) impossible."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlmon.keys import KEY_MASK, content_key, recorded_source_key, source_key, source_label
from rlmon.metrics.groups import column
from rlmon.statistics import Bools, Floats, beta_cdf

HARD_SOLVE_RATE = 0.125
"""A prompt is (nearly) impossible when its solve rate is credibly below 1/8."""
CREDIBILITY = 0.95
PRIOR_ATTEMPTS = 2.0
"""Least strength of the source's prior in attempts."""
MAX_PRIOR_ATTEMPTS = 32.0
STATE_BYTES_PER_PROMPT = 22
"""Bytes a prompt takes in a saved ledger before base64 (8 key, 4 attempts, 4 successes, 4 last step, 2 source)."""


def hard(a: Floats, b: Floats) -> Bools:
    """Whether a solve rate with a Beta posterior of these parameters is credibly below ``HARD_SOLVE_RATE``."""
    return np.asarray(beta_cdf(HARD_SOLVE_RATE, a, b) >= CREDIBILITY)


class SolveLedger:
    """Attempts and successes of every prompt seen, in bounded memory.

    The posterior of a prompt's solve rate is Beta with a prior from its source: mean = the source's solve rate (with
    one success and one failure added), strength = a moment estimate of how much prompts of the source differ, between
    ``PRIOR_ATTEMPTS`` and ``MAX_PRIOR_ATTEMPTS`` attempts. The prompt itself is left out of its source's mean.
    When ``max_prompts`` are known the prompts seen longest ago are forgotten, an eighth at a time. Prompts and sources
    are given by name, or by the key of it (``rlmon.keys.content_key``).
    """

    def __init__(self, *, max_prompts: int = 200_000, max_sources: int = 64) -> None:
        """An empty ledger. Raises ``ValueError`` when a bound is below 8 prompts or 1 source."""
        if max_prompts < 8 or max_sources < 1:
            raise ValueError(f"max_prompts must be at least 8 and max_sources 1, got {max_prompts} and {max_sources}.")
        self.max_prompts = max_prompts
        self.max_sources = max_sources
        self._slot: dict[int, int] = {}
        self._sources: list[str] = []
        self._allocate(min(1024, max_prompts))

    def _allocate(self, capacity: int) -> None:
        self._key = np.zeros(capacity, dtype=np.uint64)
        self._attempts = np.zeros(capacity, dtype=np.int32)
        self._successes = np.zeros(capacity, dtype=np.int32)
        self._last_step = np.zeros(capacity, dtype=np.int32)
        self._source = np.zeros(capacity, dtype=np.int16)

    def __len__(self) -> int:
        """Prompts known."""
        return len(self._slot)

    def update(
        self,
        prompt_id: Sequence[str | int],
        source: Sequence[str | int],
        success: Sequence[Any] | NDArray[Any] | None,
        *,
        step: int,
    ) -> None:
        """Add one attempt per row: ``success`` is 1 (or true) for one, 0 for none; rows of which it is not known (NaN,
        ``None``) are no attempt."""
        successes = column(success, len(prompt_id)).tolist()
        counted: dict[tuple[str | int, str | int], list[int]] = {}
        for prompt, stratum, value in zip(prompt_id, source, successes, strict=True):
            if math.isfinite(value):
                counts = counted.setdefault((prompt, stratum), [0, 0])
                counts[0] += 1
                counts[1] += value == 1.0
        for (prompt, stratum), (attempts, wins) in counted.items():
            slot = self._slot_for(prompt, stratum)
            self._attempts[slot] += attempts
            self._successes[slot] += wins
            self._last_step[slot] = min(max(step, 0), 2**31 - 1)

    def _slot_for(self, prompt: str | int, stratum: str | int) -> int:
        key = _prompt_key(prompt)
        slot = self._slot.get(key)
        if slot is None:
            if len(self._slot) >= self.max_prompts:
                self._forget()
            slot = len(self._slot)
            if slot >= self._key.size:
                self._grow()
            self._slot[key] = slot
            self._key[slot] = key
            self._attempts[slot] = self._successes[slot] = 0
            self._source[slot] = self._source_code(stratum, add=True)
        return slot

    def _source_code(self, source: str | int, *, add: bool) -> int:
        stratum = source_key(source) if isinstance(source, str) else source_label(source)
        if stratum in self._sources:
            return self._sources.index(stratum)
        if add and len(self._sources) < self.max_sources:
            self._sources.append(stratum)
            return len(self._sources) - 1
        # What does not fit is pooled in the last code.
        return self.max_sources

    def _columns(self) -> tuple[str, ...]:
        return ("_key", "_attempts", "_successes", "_last_step", "_source")

    def _grow(self) -> None:
        size = min(self.max_prompts, max(16, 2 * self._key.size))
        for name in self._columns():
            old = getattr(self, name)
            new = np.zeros(size, dtype=old.dtype)
            new[: old.size] = old
            setattr(self, name, new)

    def _forget(self) -> None:
        known = len(self._slot)
        keep = np.sort(np.argsort(self._last_step[:known], kind="stable")[known // 8 + 1 :])
        for name in self._columns():
            values = getattr(self, name)
            values[: keep.size] = values[keep]
        self._slot = {int(key): slot for slot, key in enumerate(self._key[: keep.size])}

    def counts(self, prompt_id: str | int) -> tuple[int, int]:
        """Attempts and successes of one prompt; ``(0, 0)`` when it is unknown."""
        slot = self._slot.get(_prompt_key(prompt_id))
        return (0, 0) if slot is None else (int(self._attempts[slot]), int(self._successes[slot]))

    def posterior(
        self, prompt_id: Sequence[str | int], source: Sequence[str | int]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Parameters (a, b) of each prompt's Beta posterior, [N] each, both positive. A known prompt is of the source
        under which it was first met, ``source`` is that of an unknown one."""
        slots = np.array([self._slot.get(_prompt_key(prompt), -1) for prompt in prompt_id], dtype=np.int64)
        n = np.where(slots >= 0, self._attempts[slots], 0).astype(np.float64)
        k = np.where(slots >= 0, self._successes[slots], 0).astype(np.float64)
        asked = np.array([self._source_code(stratum, add=False) for stratum in source], dtype=np.int64)
        code = np.where(slots >= 0, self._source[slots], asked).astype(np.int64)
        known = len(self._slot)
        attempts = self._attempts[:known].astype(np.float64)
        successes = self._successes[:known].astype(np.float64)
        owner = self._source[:known].astype(np.int64)
        width = self.max_sources + 1
        total_n = np.bincount(owner, weights=attempts, minlength=width)
        total_k = np.bincount(owner, weights=successes, minlength=width)
        strength = self._strength(owner, attempts, successes, width)[code]
        mean = (total_k[code] - k + 1.0) / (total_n[code] - n + 2.0)
        return strength * mean + k, strength * (1.0 - mean) + n - k

    def _strength(
        self,
        owner: NDArray[np.int64],
        attempts: NDArray[np.float64],
        successes: NDArray[np.float64],
        width: int,
    ) -> NDArray[np.float64]:
        # Moments of the beta-binomial: with rates p_i of n_i attempts and source mean m,
        # E sum (p_i - m)^2 = m (1 - m) sum [1/n_i + (1 - 1/n_i) rho], rho = 1 / (strength + 1).
        seen = attempts > 0
        owner, attempts, successes = owner[seen], attempts[seen], successes[seen]
        total_n = np.bincount(owner, weights=attempts, minlength=width)
        total_k = np.bincount(owner, weights=successes, minlength=width)
        m = (total_k + 1.0) / (total_n + 2.0)
        spread = np.bincount(owner, weights=(successes / attempts - m[owner]) ** 2, minlength=width)
        noise = np.bincount(owner, weights=1.0 / attempts, minlength=width)
        room = np.bincount(owner, weights=1.0 - 1.0 / attempts, minlength=width)
        with np.errstate(divide="ignore", invalid="ignore"):
            rho = (spread / (m * (1.0 - m)) - noise) / room
            strength = 1.0 / rho - 1.0
        alike = np.where(room > 0.0, MAX_PRIOR_ATTEMPTS, 0.0)
        strength = np.where(np.isfinite(strength) & (rho > 0.0), strength, alike)
        return np.clip(strength, PRIOR_ATTEMPTS, MAX_PRIOR_ATTEMPTS)

    def credibly_below(
        self,
        prompt_id: Sequence[str | int],
        source: Sequence[str | int],
        *,
        rate: float = HARD_SOLVE_RATE,
        credibility: float = CREDIBILITY,
    ) -> NDArray[np.bool_]:
        """Whether P(solve rate < ``rate``) is at least ``credibility``, per row [N]; an unknown prompt is never."""
        if not len(prompt_id):
            return np.zeros(0, dtype=bool)
        distinct: dict[tuple[str | int, str | int], int] = {}
        where = np.array([distinct.setdefault(pair, len(distinct)) for pair in zip(prompt_id, source, strict=True)])
        prompts = [prompt for prompt, _ in distinct]
        a, b = self.posterior(prompts, [stratum for _, stratum in distinct])
        known = np.array([_prompt_key(prompt) in self._slot for prompt in prompts])
        return np.asarray((known & (beta_cdf(rate, a, b) >= credibility))[where], dtype=bool)

    def state(self) -> dict[str, Any]:
        """Everything, as JSON types, ``STATE_BYTES_PER_PROMPT`` x 4/3 bytes a prompt."""
        known = len(self._slot)
        packed = {
            name.lstrip("_"): base64.b64encode(getattr(self, name)[:known].tobytes()).decode("ascii")
            for name in self._columns()
        }
        return {
            "version": 1,
            "prompts": known,
            "max_prompts": self.max_prompts,
            "max_sources": self.max_sources,
            "sources": list(self._sources),
            **packed,
        }

    @classmethod
    def load(cls, state: Mapping[str, Any]) -> SolveLedger:
        """The ledger that :meth:`state` described. Raises ``ValueError`` for another version."""
        if state.get("version") != 1:
            raise ValueError(f"ledger version {state.get('version')!r}, this code reads 1")
        ledger = cls(max_prompts=int(state["max_prompts"]), max_sources=int(state["max_sources"]))
        known = int(state["prompts"])
        # Written before keys were of 48 bits: longer ones, and sources by name.
        ledger._sources = [recorded_source_key(str(name)) for name in state["sources"]]
        ledger._allocate(max(known, 16))
        for name in ledger._columns():
            values = getattr(ledger, name)
            values[:known] = np.frombuffer(base64.b64decode(state[name.lstrip("_")]), dtype=values.dtype)
        ledger._key &= np.uint64(KEY_MASK)
        ledger._slot = {int(key): slot for slot, key in enumerate(ledger._key[:known])}
        return ledger


def _prompt_key(prompt: str | int) -> int:
    return prompt if isinstance(prompt, int) else content_key(prompt)
