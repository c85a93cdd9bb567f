"""What a checkpoint gives back to the monitor, part by part; what cannot be read begins anew, and says so.

A checkpoint that was torn, damaged or written by another version is no reason to end a training: each part is read on
its own, taken up as a whole or not at all, and what was not is said once.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from rlmon.detectors.fold import step
from rlmon.detectors.state import DetectorState, state_from_json, state_to_json
from rlmon.detectors.telling import status
from rlmon.errors import AttachError, RLMonError
from rlmon.records import Block, StepRecord

NO_STATE = "The checkpoint holds no state of rlmon: baselines begin anew, at a policy that was trained."


class UnreadableError(AttachError):
    """A part of the checkpoint is gone or damaged, so that what it held cannot go on."""


class Restored:
    """Collects what could not be read of one checkpoint, and which settings changed since it was written."""

    def __init__(self, lost: Mapping[str, str] | None = None) -> None:
        self.lost: dict[str, str] = dict(lost or {})
        """Part that begins anew to the reason."""
        self.changed: list[str] = []
        """Settings that are others now, and what becomes of them; a sentence each."""

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Reading of one part; what fails inside makes it begin anew. Take up nothing before all of it was read."""
        try:
            yield
        except Exception as error:
            self.lost[name] = describe(error)

    def text(self) -> str | None:
        """What a person should know, in one paragraph; ``None`` where everything was taken up as it was."""
        parts = []
        if self.lost:
            listing = "; ".join(f"{name} ({reason})" for name, reason in self.lost.items())
            parts.append(f"What cannot be read of the checkpoint begins anew, at a policy that was trained: {listing}.")
        return " ".join([*parts, *self.changed]) or None


def describe(error: BaseException) -> str:
    """The error in a few words; a ``KeyError`` alone is only the key, and our own errors speak for themselves."""
    if isinstance(error, KeyError):
        return f"{error} is missing"
    if isinstance(error, RLMonError):
        return str(error)[:200].removesuffix(".")
    return f"{type(error).__name__}: {str(error)[:200]}"


def mapping(value: Any) -> Mapping[str, Any]:
    """``value``, where it is a mapping. Raises ``TypeError``."""
    if not isinstance(value, Mapping):
        raise TypeError(f"a mapping was expected, got {type(value).__name__}")
    return value


def detector_state(saved: Any) -> DetectorState:
    """The detectors' state, proved by one fold of a made-up record: parts that do not fit together fail here, once,
    and not at every step of the run. Raises where it cannot be used."""
    state = state_from_json(mapping(saved))
    source = state.sources[0] if state.sources else "all"
    stats = dict.fromkeys(state.roster.statistics, 0.5)
    trial = StepRecord(
        attempt=0, step=0, time_unix_seconds=0.0, rounds=(0,), completions=2, prompts=2, tokens=2, metrics={},
        blocks=(Block(source=source, prompts=2, completions=2, stats=stats),),
    )  # fmt: skip
    after, _ = step(state, trial)
    status(after)
    json.dumps(state_to_json(after), allow_nan=True)
    if state.records < 0 or not all(isinstance(name, str) for name in state.sources):
        raise ValueError("the saved detector state holds impossible values")
    return state


def policy_change(before: Any, now: Mapping[str, Any] | None) -> str | None:
    """What changed in the rules since the checkpoint, as a sentence; ``None`` where nothing did.

    ``before`` and ``now`` are ``Policy.to_dict()`` or ``None``, ``before`` as it was read from the checkpoint.
    """
    was: Mapping[str, Any] = before if isinstance(before, Mapping) else {}
    is_now: Mapping[str, Any] = {} if now is None else json.loads(json.dumps(now))
    saved = was.get("rules")
    old: Mapping[str, Any] = saved if isinstance(saved, Mapping) else {}
    new: Mapping[str, Any] = is_now.get("rules", {})
    parts = [
        f"{word} {', '.join(sorted(names))}"
        for word, names in (
            ("added", set(new) - set(old)),
            ("removed", set(old) - set(new)),
            ("changed", {name for name in set(old) & set(new) if not _same_rule(old[name], new[name])}),
        )
        if names
    ]
    if not parts:
        same = was.get("dry_run") == is_now.get("dry_run") or not (old or new)
        return None if same else "The policy changed since the checkpoint (dry_run)."
    return f"The policy changed since the checkpoint: rules {'; '.join(parts)}. An added rule begins at rest."


def _same_rule(before: Any, now: Mapping[str, Any]) -> bool:
    """Whether a rule is what it was, but for settings that its action has no more."""
    if isinstance(before, Mapping) and isinstance(before.get("do"), Mapping):
        before = {**before, "do": {name: value for name, value in before["do"].items() if name in now["do"]}}
    return bool(before == now)
