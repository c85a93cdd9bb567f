"""Which modes are dying, how much the base's own completions of them weigh, and which of those to take at a step.

Completions of the base that were verified as right are added to training as a small supervised loss. Real data is what
holds diversity where training on own samples loses it; verifying alone keeps quality, not modes (arXiv:2305.17493, and
the recursion runs of this project). Only modes that are dying are anchored, so that a healthy run is left alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from rlmon.interventions.intervention import (
    NO_CHANGE,
    Intervention,
    Round,
    RowChange,
    RuleState,
    default_of,
    setting,
)
from rlmon.interventions.mode_counts import ModeCounts, load, observe, shares
from rlmon.interventions.rows import ModeKind
from rlmon.interventions.setting import Setting

LEAST_BASE_SHARE = 0.005
"""Modes that were rarer at the base are noise."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Anchor(Intervention):
    """A small supervised loss on the base's own verified completions of modes that are dying."""

    name = "anchor"
    turns = "loss"
    knob_name = "anchor_weight"
    needs_success = True
    measured_by = ("rlmon/format/effective", "up")
    holds: ClassVar[Mapping[str, float | None]] = {"anchor_weight": 0.0}
    folds_base = True

    modes: ModeKind = setting("format", "what counts as a mode")
    weight: float = setting(0.05, "weight of the supervised loss when it begins", low=0.0, high=1.0)
    decay: float = setting(0.98, "the weight is multiplied by this every step after it began", low=0.0, high=1.0)
    below: float = setting(0.3, "a mode is dying below this share of its base share", low=0.0, high=1.0)
    per_mode: int = setting(16, "verified completions kept for each mode, on each rank", low=1, high=1024)
    batch: int = setting(8, "completions in one step's loss, on each rank", low=1, high=256)

    def fresh(self) -> ModeCounts:
        return ModeCounts()

    def load(self, found: Mapping[str, Any]) -> ModeCounts:
        return load(found)

    def on_round(self, state: ModeCounts, round: Round) -> tuple[ModeCounts, RowChange]:
        return observe(state, round.table, self.modes), NO_CHANGE

    def next_level(self, at: RuleState, run: Any) -> tuple[float, None]:
        return (self.weight if at.met else 0.0), None

    def anchoring(self, at: RuleState, step: int) -> tuple[tuple[int, ...], float]:
        found = shares(at.inner)
        base = {mode: before for mode, (before, _) in found.items()}
        now = {mode: share for mode, (_, share) in found.items()}
        return dying(self, base, now), weight(self, step, at.began_step)

    def measures(self, at: RuleState, step: int, *, dry_run: bool) -> Mapping[str, float]:
        return {"anchor_weight": weight(self, step, at.began_step) if at.level > 0.0 and not dry_run else 0.0}

    def useless(self, setting: Setting) -> str | None:
        for name, text in (
            ("weight", "makes a loss of nothing"),
            ("decay", "ends the loss before its first step"),
            ("below", "calls no mode dying"),
        ):
            if getattr(self, name) == 0.0:
                return f"{name}: 0 {text}. Type {name}: {default_of(self, name):g}"
        return None

    def reach(self) -> Mapping[str, float]:
        return {"anchor_weight": self.weight}


def dying(settings: Anchor, base_shares: Mapping[int, float], now_shares: Mapping[int, float]) -> tuple[int, ...]:
    """Modes whose share is now below ``settings.below`` of the base's, the most lost first.

    Negative keys (unknown, rest) are no modes. Without any share of now nothing is known to die.
    """
    if not now_shares:
        return ()
    lost = {
        mode: now_shares.get(mode, 0.0) / share
        for mode, share in base_shares.items()
        if mode >= 0 and share >= LEAST_BASE_SHARE
    }
    return tuple(sorted((mode for mode in lost if lost[mode] < settings.below), key=lambda mode: (lost[mode], mode)))


def weight(settings: Anchor, step: int, began_step: int | None) -> float:
    """Weight of the supervised loss at ``step``; 0 while the rule does not act (``began_step`` is ``None``)."""
    if began_step is None or step < began_step:
        return 0.0
    return settings.weight * settings.decay ** (step - began_step)


def picks(
    settings: Anchor, dying_modes: Sequence[int], stored: Mapping[int, int], step: int
) -> tuple[tuple[int, int], ...]:
    """Which stored completions a step takes, as (mode, index): at most ``settings.batch``, none twice.

    Spread evenly over the dying modes: each gets one in turn, in an order that changes with the step, until the batch
    is full or nothing is left. Within a mode the order is that of a hash of (step, mode, index). The same for the same
    arguments, in every process; no random numbers are drawn.

    Args:
        dying_modes: the modes to anchor.
        stored: completions stored, by mode.
        step: step of the run.
    """
    modes = [mode for mode in dict.fromkeys(dying_modes) if stored.get(mode, 0) > 0]
    modes.sort(key=lambda mode: _order(step, mode, -1))
    rows = {mode: sorted(range(stored[mode]), key=lambda i: _order(step, mode, i)) for mode in modes}
    taken: list[tuple[int, int]] = []
    turn = 0
    while len(taken) < settings.batch and any(turn < len(rows[mode]) for mode in modes):
        taken.extend((mode, rows[mode][turn]) for mode in modes if turn < len(rows[mode]))
        turn += 1
    return tuple(taken[: settings.batch])


def _order(step: int, mode: int, index: int) -> bytes:
    return hashlib.blake2b(f"{step} {mode} {index}".encode(), digest_size=8).digest()
