"""What the detectors remember of a run: how it begins, and how it is kept in headers and checkpoints."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import rlmon.detectors.evidence as ev
from rlmon.detectors.catalog import VERSION, DetectorSpec
from rlmon.detectors.roster import Roster, plain
from rlmon.detectors.tallies import Tallies, tallies_from_json
from rlmon.errors import ConfigError
from rlmon.keys import recorded_source_key

POOL = "(other sources)"
_BY_STATISTIC = ("sums", "done", "base", "se", "reach", "smooth")
"""Arrays whose third axis is the statistic."""


@dataclass(frozen=True)
class DetectorState:
    """Everything the detectors remember. Make one with ``start``, move it with ``step``; save it with
    ``state_to_json``."""

    alpha: float
    total_steps: int | None
    group_size: int
    parameters: Mapping[str, Any]
    """Resolved parameters: the defaults with what was given laid over them."""
    records: int
    """Records folded so far; the clock of the restart schedule."""
    sources: tuple[str, ...]
    """Keys of the sources (``rlmon.keys``) in the order in which they were first seen, and the pool of the rest."""
    names: Mapping[str, str]
    """What to call them, by key, as far as it is known: for messages alone."""
    tallies: Mapping[str, Tallies]
    """By source, of its open baselines."""
    arrays: ev.Arrays
    immediate_calm: tuple[int, ...]
    """Per immediate detector: -1 armed, else clean records since it last fired."""
    fired: int
    """Findings so far."""
    roster: Roster
    """The detectors."""
    plan: ev.Plan = field(repr=False, compare=False)
    """The lines and bets as arrays, derived from ``alpha``, ``parameters`` and ``roster``; never stored."""
    base_completions: int = 0
    """Completions of the sample of the base that baselines were taken from; 0: there was none."""
    sampled: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """By source, the statistics whose baseline is that sample; all others have early rounds in it."""

    def baseline_kind(self, source: str, statistic: str) -> str:
        """Where the baseline of a statistic of a source is from."""
        kind: str = self.parameters["baseline_kind"]
        return "base_sample" if statistic in self.sampled.get(source, ()) else kind


def start(
    *,
    alpha: float,
    total_steps: int | None,
    group_size: int,
    parameters: Mapping[str, Any] | None = None,
    own: Sequence[DetectorSpec] = (),
) -> DetectorState:
    """The state before the first record.

    ``alpha``: share of runs that may have a false FAIL, split over the betting detectors.
    ``total_steps``: optimizer steps planned; ``None`` costs a few nats of evidence. ``parameters``: any of
    ``Roster.defaults`` (what ``describe`` returns is fine). ``own``: detectors beside the built-in ones. Raises
    ``ConfigError`` for unknown names and impossible values.
    """
    if not 0.0 < alpha < 1.0:
        raise ConfigError(f"alpha is a probability between 0 and 1, got {alpha!r}.")
    roster = Roster(tuple(own))
    resolved = roster.resolved(parameters or {})
    plan = roster.plan(alpha, resolved)
    return DetectorState(
        alpha=float(alpha),
        total_steps=None if total_steps is None or total_steps < 1 else int(total_steps),
        group_size=int(group_size),
        parameters=resolved,
        records=0,
        sources=(),
        names={},
        tallies={},
        arrays=ev.empty(plan, 1, 1, len(roster.statistics)),
        immediate_calm=(-1,) * len(roster.immediate),
        fired=0,
        roster=roster,
        plan=plan,
    )


def start_from(description: Mapping[str, Any]) -> DetectorState:
    """The state before the first record, from what ``describe`` returned (``RunHeader.detectors``).

    Raises ``ConfigError`` where it was written by another version of the detectors, or is nothing that was.
    """
    if not isinstance(description, Mapping):
        raise ConfigError(f"What the log says of its detectors cannot be read: {description!r:.80}.")
    version = description.get("version")
    if version != VERSION:
        raise ConfigError(
            f"The log was judged by version {version!r} of the detectors and this is version {VERSION}. Install the "
            "rlmon that the header names under packages to replay it exactly, or judge it anew with start()."
        )
    try:
        return start(
            alpha=description["alpha"],
            total_steps=description["total_steps"],
            group_size=description["group_size"],
            parameters=description["parameters"],
            own=[DetectorSpec.from_json(spec) for spec in description.get("own", ())],
        )
    except ConfigError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise ConfigError(f"What the log says of its detectors cannot be read: {error!r:.200}.") from error


def describe(state_or_parameters: DetectorState | Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Version and parameters as JSON types, for ``RunHeader.detectors``.

    Of a state: everything ``start_from`` needs. Of parameters: the same with no alpha or length.
    """
    if not isinstance(state_or_parameters, DetectorState):
        roster = Roster()
        return _described(roster, roster.resolved(state_or_parameters or {}))
    state = state_or_parameters
    return {
        **_described(state.roster, state.parameters),
        "alpha": state.alpha,
        "total_steps": state.total_steps,
        "group_size": state.group_size,
    }


def _described(roster: Roster, parameters: Mapping[str, Any]) -> dict[str, Any]:
    own = {"own": [spec.to_json() for spec in roster.own]} if roster.own else {}
    ids = [spec.id for spec in roster.specs]
    return {"version": VERSION, "detectors": ids, **own, "parameters": plain(parameters)}


def state_to_json(state: DetectorState) -> dict[str, Any]:
    """The state as JSON types; floats are exact (shortest repr), missing ones null."""
    return {
        **describe(state),
        "records": state.records,
        "sources": list(state.sources),
        "names": dict(state.names),
        "tallies": plain(state.tallies),
        "statistics": list(state.roster.statistics),
        "arrays": {f.name: _encode(getattr(state.arrays, f.name)) for f in dataclasses.fields(ev.Arrays)},
        "immediate_calm": list(state.immediate_calm),
        "fired": state.fired,
        **(
            {"base_sample": {"completions": state.base_completions, "statistics": plain(state.sampled)}}
            if state.base_completions
            else {}
        ),
    }


def state_from_json(data: Mapping[str, Any]) -> DetectorState:
    """The state that ``state_to_json`` wrote; later findings are the same as without the round trip.

    Raises ``ConfigError`` where another version wrote it or a part is missing.
    """
    if data.get("version") != VERSION:
        raise ConfigError(
            f"The saved state is of version {data.get('version')!r} of the detectors and this is version {VERSION}, "
            "whose baselines and lines are others: the detectors begin anew, with a baseline of their own."
        )
    fresh = start_from(data)
    arrays = {}
    # Before sources were kept by key, they were kept by name.
    known = {source: source if source == POOL else recorded_source_key(source) for source in data.get("sources", ())}
    by_name = {key: source for source, key in known.items() if key != source}
    told = data.get("statistics", fresh.roster.statistics_without_wording)
    sampled = data.get("base_sample", {"completions": 0, "statistics": {}})
    try:
        for f in dataclasses.fields(ev.Arrays):
            like: np.ndarray[Any, Any] = getattr(fresh.arrays, f.name)
            arrays[f.name] = np.array(_decode(data["arrays"][f.name]), dtype=like.dtype)
            if f.name in _BY_STATISTIC and arrays[f.name].shape[2:3] == (len(told),):
                arrays[f.name] = _placed(arrays[f.name], told, like, fresh.roster.statistics)
            if arrays[f.name].shape[2:] != like.shape[2:]:
                raise ConfigError(f"The saved detector state does not fit these detectors: {f.name} has another shape.")
        return dataclasses.replace(
            fresh,
            records=int(data["records"]),
            sources=tuple(known[source] for source in data["sources"]),
            names={**by_name, **data.get("names", {})},
            tallies=tallies_from_json(data["tallies"], [known[source] for source in data["sources"]]),
            arrays=ev.Arrays(**arrays),
            immediate_calm=tuple(int(v) for v in data["immediate_calm"]),
            fired=int(data["fired"]),
            base_completions=int(sampled["completions"]),
            sampled={str(source): tuple(names) for source, names in sampled["statistics"].items()},
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"The saved detector state is incomplete: {error}.") from error


def _placed(array: Any, told: Sequence[str], like: Any, statistics: Sequence[str]) -> Any:
    """The array of a checkpoint whose statistics are ``told``, with those that are read now in their places. What was
    not read then has a base of its own from here on, as in a replay of the log, which knows of no checkpoint."""
    placed = np.repeat(like[:, :1], array.shape[1], axis=1)
    for place, name in enumerate(statistics):
        if name in told:
            placed[:, :, place] = array[:, :, told.index(name)]
    return placed


def with_own(state: DetectorState, own: Sequence[DetectorSpec]) -> DetectorState:
    """The state with these detectors beside the built-in ones; what was there before goes on."""
    if tuple(own) == state.roster.own:
        return state
    lines = {name: value for name, value in state.parameters.items() if name != "lines"}
    built_in = {spec.id for spec in Roster().betting}
    lines["lines"] = {id: levels for id, levels in state.parameters["lines"].items() if id in built_in}
    fresh = start(
        alpha=state.alpha, total_steps=state.total_steps, group_size=state.group_size, parameters=lines, own=own
    )
    empty = ev.empty(fresh.plan, 1, state.arrays.spent.shape[1], len(fresh.roster.statistics))

    def moved(names: Sequence[str], before: Sequence[Any], now: Sequence[Any], axis: int) -> dict[str, Any]:
        pairs = [(before.index(one), place) for place, one in enumerate(now) if one in before]
        taken, put = (list(places) for places in zip(*pairs, strict=True))
        arrays: dict[str, Any] = {}
        for name in names:
            arrays[name] = np.moveaxis(getattr(empty, name).copy(), axis, 0)
            arrays[name][put] = np.moveaxis(getattr(state.arrays, name), axis, 0)[taken]
            arrays[name] = np.moveaxis(arrays[name], 0, axis)
        return arrays

    old, new = state.roster, fresh.roster
    processes = old.processes(state.parameters), new.processes(fresh.parameters)
    arrays = ev.Arrays(
        **moved(_BY_STATISTIC, old.statistics, new.statistics, axis=2),
        **moved(("wealth", "spent", "excess", "bets"), *processes, axis=2),
        **moved(("raised", "calm"), old.betting, new.betting, axis=1),
    )
    return dataclasses.replace(
        state,
        parameters=fresh.parameters,
        arrays=arrays,
        roster=new,
        plan=fresh.plan,
    )


def _encode(array: Any) -> Any:
    def walk(value: Any) -> Any:
        if isinstance(value, list):
            return [walk(v) for v in value]
        return None if isinstance(value, float) and math.isnan(value) else value

    return walk(array.tolist())


def _decode(value: Any) -> Any:
    if isinstance(value, list):
        return [_decode(v) for v in value]
    return math.nan if value is None else value
