"""Detectors as a pure fold: ``step(state, record) -> (state, findings)``.

The state is plain data of bounded size: per source and statistic a handful of sums, per process a few logarithms of
wealth. Nothing in it is random and no clock is read, so that folding stored records gives the findings of the run.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np

from rlmon.detectors import evidence as ev
from rlmon.detectors.catalog import DETECTORS, GROUP_BASELINE, VERSION, DetectorSpec
from rlmon.errors import ConfigError
from rlmon.keys import recorded_source_key
from rlmon.records import Block, Finding, Severity, StepRecord

MAX_SOURCES = 65
"""64 strata and one pool for the rest."""
POOL = "(other sources)"
MAX_NAMES = 1_024
MAX_TALLIES = 64
"""Parts of the baseline of one source and statistic that are kept apart until it closes; further ones are added to
those of their record, so that a part is then the completions of several prompts."""
IMPLAUSIBLE = 1e9
"""No share, length, reward or number of nats is this large: such a value is passed over like a missing one."""

BETTING: tuple[DetectorSpec, ...] = tuple(spec for spec in DETECTORS if spec.rule != "immediate")
NOTES: tuple[int, ...] = tuple(index for index, spec in enumerate(BETTING) if spec.milder == "note")
IMMEDIATE: tuple[DetectorSpec, ...] = tuple(spec for spec in DETECTORS if spec.rule == "immediate")
STATISTICS: tuple[str, ...] = tuple(
    dict.fromkeys([name for spec in BETTING for name in spec.statistics] + ["reward", "mode_collision_correct"])
)
TALLIED = frozenset({"mode_collision", "template_collision", "answer_collision"})
"""Statistics that are the mean of "the same code" over pairs of completions of different prompts."""
_Q = {name: index for index, name in enumerate(STATISTICS)}

DEFAULTS: Mapping[str, Any] = MappingProxyType(
    {
        "lambdas": [0.2, 0.5, 0.8, 0.95],
        "clip": 20.0,
        "smoothing": 0.25,
        "rearm_records": 20,
        "baseline_kind": "early_rounds",
        "lines": {
            spec.id: {
                "warn": spec.warn,
                "fail": spec.fail,
                "warn_floor": spec.warn_floor,
                "fail_floor": spec.fail_floor,
            }
            for spec in BETTING
        },
    }
)
_KINDS = ("early_rounds", "base_sample", "first_logged", "given", "none")


Part = tuple[int, Mapping[str, int]]
"""The record that a tally came with, and how many completions have which code."""


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
    tallies: Mapping[str, Mapping[str, tuple[Part, ...] | None]]
    """By source and statistic, while that baseline is open: the tallies of its blocks, 64 at most; ``None`` where a
    block came without."""
    arrays: ev.Arrays
    immediate_calm: tuple[int, ...]
    """Per immediate detector: -1 armed, else clean records since it last fired."""
    fired: int
    """Findings so far."""
    plan: ev.Plan = field(repr=False, compare=False)
    """The lines and bets as arrays, derived from ``alpha`` and ``parameters``; never stored."""


def start(
    *, alpha: float, total_steps: int | None, group_size: int, parameters: Mapping[str, Any] | None = None
) -> DetectorState:
    """The state before the first record.

    ``alpha``: share of runs that may have a false FAIL, split over the betting detectors.
    ``total_steps``: optimizer steps planned; ``None`` costs a few nats of evidence. ``parameters``: any of
    ``DEFAULTS`` (what ``describe`` returns is fine). Raises ``ConfigError`` for unknown names and impossible values.
    """
    if not 0.0 < alpha < 1.0:
        raise ConfigError(f"alpha is a probability between 0 and 1, got {alpha!r}.")
    resolved = _resolve(parameters or {})
    plan = _plan(alpha, resolved)
    return DetectorState(
        alpha=float(alpha),
        total_steps=None if total_steps is None or total_steps < 1 else int(total_steps),
        group_size=int(group_size),
        parameters=resolved,
        records=0,
        sources=(),
        names={},
        tallies={},
        arrays=ev.empty(plan, 1, 1, len(STATISTICS)),
        immediate_calm=(-1,) * len(IMMEDIATE),
        fired=0,
        plan=plan,
    )


def start_from(description: Mapping[str, Any]) -> DetectorState:
    """The state before the first record, from what ``describe`` returned (``RunHeader.detectors``).

    Raises ``ConfigError`` where it was written by another version of the detectors.
    """
    version = description.get("version")
    if version != VERSION:
        raise ConfigError(
            f"The log was judged by version {version!r} of the detectors and this is version {VERSION}. Install the "
            "rlmon that the header names under packages to replay it exactly, or judge it anew with start()."
        )
    return start(
        alpha=description["alpha"],
        total_steps=description["total_steps"],
        group_size=description["group_size"],
        parameters=description["parameters"],
    )


def describe(state_or_parameters: DetectorState | Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Version and parameters as JSON types, for ``RunHeader.detectors``.

    Of a state: everything ``start_from`` needs. Of parameters: the same with no alpha or length.
    """
    if isinstance(state_or_parameters, DetectorState):
        state = state_or_parameters
        return {
            "version": VERSION,
            "alpha": state.alpha,
            "total_steps": state.total_steps,
            "group_size": state.group_size,
            "detectors": [spec.id for spec in DETECTORS],
            "parameters": _plain(state.parameters),
        }
    return {
        "version": VERSION,
        "detectors": [spec.id for spec in DETECTORS],
        "parameters": _plain(_resolve(state_or_parameters or {})),
    }


def step(state: DetectorState, record: StepRecord) -> tuple[DetectorState, tuple[Finding, ...]]:
    """Fold one record: the next state and what there is to say now (usually nothing).

    Missing and non-finite statistics are passed over; the step number is only quoted, so that repeated or negative
    steps do no harm. Cost: O(blocks x detectors), independent of the length of the run.
    """
    plan = state.plan
    state, blocks = _columns(_named(state, record.sources), record.blocks)
    records = state.records + 1
    fire = np.zeros((1, len(BETTING), 2), dtype=np.bool_)
    arrays = state.arrays
    if blocks:
        weight = ev.restart_weight(records, state.total_steps)
        arrays, fire = ev.observe(plan, arrays, blocks, weight, pairs=_pairs(state))
        # A note is said once: re-arming does not take back that it was.
        arrays.raised[:, NOTES, ev.WARN] |= state.arrays.raised[:, NOTES, ev.WARN]
    state = dataclasses.replace(state, arrays=arrays, records=records)
    state = dataclasses.replace(state, tallies=_still_open(state))
    findings: list[Finding] = []
    for detector, rung in np.argwhere(fire[0]):
        findings.append(_finding(state, plan, record, int(detector), int(rung)))
    calm = []
    for spec, quiet in zip(IMMEDIATE, state.immediate_calm, strict=True):
        value = record.metrics.get(spec.statistics[0])
        bad = value is not None and not value <= (spec.fail or 0.0)
        if bad and quiet < 0:
            findings.append(_immediate_finding(state, record, spec, value))
        quiet = 0 if bad else quiet if quiet < 0 else quiet + 1
        calm.append(-1 if quiet >= state.parameters["rearm_records"] else quiet)
    return dataclasses.replace(state, immediate_calm=tuple(calm), fired=state.fired + len(findings)), tuple(findings)


def seed_baseline(state: DetectorState, blocks: tuple[Block, ...]) -> DetectorState:
    """The state after feeding blocks of the base to the baselines only; for ``base_sample`` and ``given``.

    Nothing is bet and no look is spent. Call it before the first ``step``. The blocks are the whole baseline of what
    they measure, where there are four or more.
    """
    plan = state.plan
    state, columns = _columns(dataclasses.replace(state, records=-1), blocks)
    state = dataclasses.replace(state, records=0)
    if not columns:
        return state
    arrays, _ = ev.observe(plan, state.arrays, columns, 0.0, pairs=_pairs(state), only_baseline=True)
    state = dataclasses.replace(state, arrays=arrays)
    return dataclasses.replace(state, tallies=_still_open(state))


def open_tallies(state: DetectorState, source: str) -> frozenset[str]:
    """Statistics of a source whose baseline still takes ``Block.tallies``; of all others they need not be recorded."""
    name = _slot(state.sources, recorded_source_key(source))
    if name not in state.sources:
        return TALLIED
    done = state.arrays.done[0, state.sources.index(name)]
    return frozenset(statistic for statistic in TALLIED if not done[_Q[statistic]])


def status(state: DetectorState) -> list[dict[str, Any]]:
    """What every detector knows now, one dict each: for audits and live screens.

    ``id``; ``status``: ``ok | note | warn | fail | waiting | cannot``; ``reason`` for the last two; ``bets``;
    ``evidence``: per rung log evidence over its threshold, in nats (0 alarms); ``sources``: per source and statistic
    baseline, its standard error and prompts, value now, lines.
    """
    plan = state.plan
    margin, _, has_bet = ev.detector_evidence(plan, state.arrays)
    rows: list[dict[str, Any]] = []
    for d, spec in enumerate(BETTING):
        sources = _source_rows(state, plan, spec, d)
        reachable = [row for row in sources if row["reachable"]]
        raised = state.arrays.raised[0, d]
        # What was noted stays raised; it is over where it would have been re-armed.
        noted = spec.milder == "note" and raised[ev.WARN]
        over = noted and state.arrays.calm[0, d] >= plan.rearm_records
        word: str = "fail" if raised[ev.FAIL] else spec.milder if raised[ev.WARN] and not over else "ok"
        reason = None
        if word == "ok" and not has_bet[0, d].any():
            word = "waiting"
            reason = "no block had " + " or ".join(spec.statistics) if not sources else "the baseline is not complete"
            if not sources and set(spec.statistics) <= set(GROUP_BASELINE):
                reason += ": no groups, or a critic in the place of their mean"
            if sources and all(row["baseline_done"] for row in sources):
                reason = "no block came after the baseline"
                if not reachable:
                    reason = "the values moved too far while the baseline was taken: no line can be drawn from it"
        elif word == "ok" and not reachable:
            word = "cannot"
            reason = "the lines lie beyond what the statistic can reach: the base is too narrow or its sample too small"
        rows.append(
            {
                "id": spec.id,
                "status": word,
                "reason": reason,
                "bets": int(state.arrays.bets[0][:, plan.detector_K == d].max(initial=0)),
                "evidence": {
                    name: round(float(margin[0, d, rung]), 6) if has_bet[0, d, rung] else None
                    for rung, name in ((ev.WARN, spec.milder), (ev.FAIL, "fail"))
                    if name in spec.rungs
                },
                "sources": sources,
            }
        )
    for spec, quiet in zip(IMMEDIATE, state.immediate_calm, strict=True):
        rows.append(
            {
                "id": spec.id,
                "status": "ok" if quiet < 0 else "fail",
                "reason": None,
                "bets": state.records,
                "evidence": {},
                "sources": [],
            }
        )
    return rows


def state_to_json(state: DetectorState) -> dict[str, Any]:
    """The state as JSON types; floats are exact (shortest repr), missing ones null."""
    return {
        **describe(state),
        "records": state.records,
        "sources": list(state.sources),
        "names": dict(state.names),
        "tallies": _plain(state.tallies),
        "arrays": {f.name: _encode(getattr(state.arrays, f.name)) for f in dataclasses.fields(ev.Arrays)},
        "immediate_calm": list(state.immediate_calm),
        "fired": state.fired,
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
    try:
        for f in dataclasses.fields(ev.Arrays):
            like: np.ndarray[Any, Any] = getattr(fresh.arrays, f.name)
            arrays[f.name] = np.array(_decode(data["arrays"][f.name]), dtype=like.dtype)
            if arrays[f.name].shape[2:] != like.shape[2:]:
                raise ConfigError(f"The saved detector state does not fit these detectors: {f.name} has another shape.")
        return dataclasses.replace(
            fresh,
            records=int(data["records"]),
            sources=tuple(known[source] for source in data["sources"]),
            names={**by_name, **data.get("names", {})},
            tallies=_tallies(data["tallies"], [known[source] for source in data["sources"]]),
            arrays=ev.Arrays(**arrays),
            immediate_calm=tuple(int(v) for v in data["immediate_calm"]),
            fired=int(data["fired"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"The saved detector state is incomplete: {error}.") from error


def catalogue() -> list[dict[str, Any]]:
    """One dict per detector: id, metric, line, method, parameters, meaning, advice and price with its interval."""
    rows = []
    for spec in DETECTORS:
        rows.append(
            {
                "id": spec.id,
                "metric": ", ".join(spec.metrics),
                "direction": spec.direction,
                "unit": spec.unit,
                "line": spec.line,
                "rungs": list(spec.rungs),
                "method": spec.method,
                "parameters": {
                    "rule": spec.rule,
                    "warn": spec.warn,
                    "fail": spec.fail,
                    "warn_floor": spec.warn_floor,
                    "fail_floor": spec.fail_floor,
                    "combine": "every statistic" if spec.every else "any statistic",
                    "per_source": spec.per_source,
                    "second_signal_for_fail": spec.agreement,
                    "prior": spec.prior,
                },
                "meaning": spec.meaning,
                "advice": spec.advice,
                "false_fail": None if spec.false_fail is None else dict(spec.false_fail),
                "false_warn": None if spec.false_warn is None else dict(spec.false_warn),
            }
        )
    return rows


# --- parameters -------------------------------------------------------------------------------------------------


def _resolve(given: Mapping[str, Any]) -> dict[str, Any]:
    if "parameters" in given and isinstance(given["parameters"], Mapping):
        given = given["parameters"]
    resolved: dict[str, Any] = _plain(DEFAULTS)
    for name, value in given.items():
        if name not in resolved:
            raise ConfigError(f"Unknown detector parameter {name!r}; there are {', '.join(sorted(resolved))}.")
        if name == "lines":
            for detector, levels in value.items():
                if detector not in resolved["lines"]:
                    raise ConfigError(f"Unknown detector {detector!r}; there are {', '.join(resolved['lines'])}.")
                for key, level in levels.items():
                    if key not in resolved["lines"][detector]:
                        raise ConfigError(f"Unknown line {key!r} of {detector}; use warn, fail or their _floor.")
                    resolved["lines"][detector][key] = None if level is None else float(level)
        else:
            resolved[name] = _plain(value)
    lambdas = resolved["lambdas"]
    if not lambdas or not all(0.0 < size < 1.0 for size in lambdas):
        raise ConfigError(f"lambdas are bet sizes between 0 and 1, got {lambdas!r}.")
    if resolved["baseline_kind"] not in _KINDS:
        raise ConfigError(f"baseline_kind is {resolved['baseline_kind']!r}; it must be one of {', '.join(_KINDS)}.")
    return resolved


def _plan(alpha: float, parameters: Mapping[str, Any]) -> ev.Plan:
    stat, detector, rung, direction, factor, level, per_source = [], [], [], [], [], [], []
    for d, spec in enumerate(BETTING):
        levels = parameters["lines"][spec.id]
        for r, name in ((ev.WARN, "warn"), (ev.FAIL, "fail")):
            if levels[name] is None:
                continue
            own = {"no": (False,), "only": (True,), "too": (False, True)}[spec.per_source]
            for statistic, alone in itertools.product(spec.statistics, own):
                stat.append(_Q[statistic])
                detector.append(d)
                rung.append(r)
                direction.append(1.0 if spec.direction == "up" else -1.0)
                per_source.append(alone)
                if spec.rule == "absolute":
                    factor.append(math.nan)
                    level.append(spec.absolute_level(statistic, levels[name]))
                else:
                    factor.append(1.0 / levels[name] if spec.rule == "effective" else levels[name])
                    level.append(levels[f"{name}_floor"])
    return ev.Plan(
        stat_K=np.array(stat, dtype=np.int64),
        detector_K=np.array(detector, dtype=np.int64),
        rung_K=np.array(rung, dtype=np.int64),
        direction_K=np.array(direction),
        factor_K=np.array(factor),
        level_K=np.array(level),
        per_source_K=np.array(per_source, dtype=np.bool_),
        all_of_D=np.array([spec.every for spec in BETTING]),
        agreement_D=np.array([spec.agreement for spec in BETTING]),
        witness_D=np.array([spec.witness for spec in BETTING]),
        lambdas_L=np.array(parameters["lambdas"], dtype=np.float64),
        clip=float(parameters["clip"]),
        log_threshold_D=np.array([-math.log(alpha * spec.alpha_share) for spec in BETTING]),
        smoothing=float(parameters["smoothing"]),
        rearm_records=int(parameters["rearm_records"]),
        base_confidence=1.0 - alpha,
    )


# --- records to columns -----------------------------------------------------------------------------------------


def _named(state: DetectorState, names: Mapping[str, str]) -> DetectorState:
    """The state that knows these names too, ``MAX_NAMES`` at most."""
    new = {key: name for key, name in names.items() if key not in state.names}
    if not new or len(state.names) + len(new) > MAX_NAMES:
        return state
    return dataclasses.replace(state, names={**state.names, **new})


def _columns(state: DetectorState, blocks: Any) -> tuple[DetectorState, list[tuple[int, ev.Floats, float, float]]]:
    """The blocks as columns, and the state with their sources and with what they bring to open baselines."""
    columns = []
    keys = {block.source: recorded_source_key(block.source) for block in blocks}
    state = _named(state, {key: source for source, key in keys.items() if key != source})
    sources, arrays = list(state.sources), state.arrays
    tallies = {source: dict(of_source) for source, of_source in state.tallies.items()}
    for block in blocks:
        z = np.full((1, len(STATISTICS)), np.nan)
        for name, value in block.stats.items():
            if name in _Q and isinstance(value, (int, float)) and abs(value) < IMPLAUSIBLE:
                z[0, _Q[name]] = float(value)
        name = _slot(sources, keys[block.source])
        if name not in sources:
            sources.append(name)
            if len(sources) > arrays.spent.shape[1]:
                arrays = ev.with_source(arrays)
        source = sources.index(name)
        for statistic in TALLIED & block.stats.keys():
            if not arrays.done[0, source, _Q[statistic]] and math.isfinite(z[0, _Q[statistic]]):
                kept = tallies.setdefault(name, {})
                kept[statistic] = _with_tallies(kept.get(statistic, ()), block.tallies.get(statistic), state.records)
        columns.append((source, z, float(max(block.prompts, 0)), float(max(block.completions, 0))))
    return dataclasses.replace(state, sources=tuple(sources), arrays=arrays, tallies=tallies), columns


def _slot(sources: Sequence[str], source: str) -> str:
    """The name under which a source is folded: its own, or that of the pool once there are too many."""
    return POOL if source not in sources and len(sources) >= MAX_SOURCES - 1 else source


def _with_tallies(
    kept: tuple[Part, ...] | None, more: Sequence[Mapping[str, int]] | None, record: int
) -> tuple[Part, ...] | None:
    """With the tallies of a block. Beyond ``MAX_TALLIES`` they are dealt out to parts of their own record; where that
    has none, the baseline is wide enough without them."""
    if kept is None or not more:
        return None
    parts = [(number, Counter(part)) for number, part in kept]
    for tally in more:
        counts = Counter({code: int(count) for code, count in tally.items()})
        if len(parts) < MAX_TALLIES:
            parts.append((record, counts))
            continue
        own = [part for number, part in parts if number == record]
        if own:
            min(own, key=Counter.total).update(counts)
    return tuple((number, dict(part)) for number, part in parts)


def _pairs(state: DetectorState) -> ev.Pairs:
    """What the tallies of a closing baseline say over all their pairs."""

    def of(source: int, statistic: int) -> tuple[ev.Floats, ev.Floats, ev.Floats] | None:
        kept = state.tallies.get(state.sources[source], {}).get(STATISTICS[statistic])
        parts = [(number, part) for number, part in kept or () if part]
        if len(parts) < 3:
            return None
        codes = {code: at for at, code in enumerate(sorted({code for _, part in parts for code in part}))}
        counts = np.zeros((len(parts), len(codes)))
        for row, (_, part) in zip(counts, parts, strict=True):
            row[[codes[code] for code in part]] = list(part.values())
        record = np.array([number for number, _ in parts])
        mean, se = ev.pairs_mean_se((counts @ counts.T)[None], counts.sum(axis=1)[None], record)
        return None if math.isnan(se[0]) else (mean, se, np.array([float(len(parts))]))

    return of


def _still_open(state: DetectorState) -> dict[str, dict[str, tuple[Part, ...] | None]]:
    kept = {
        source: {
            statistic: parts
            for statistic, parts in of_source.items()
            if not state.arrays.done[0, state.sources.index(source), _Q[statistic]]
        }
        for source, of_source in state.tallies.items()
    }
    return {source: of_source for source, of_source in kept.items() if of_source}


# --- findings ---------------------------------------------------------------------------------------------------


def _source_rows(state: DetectorState, plan: ev.Plan, spec: DetectorSpec, d: int) -> list[dict[str, Any]]:
    """Per source and statistic that was ever seen: baseline, now, lines, and how far past them."""
    rows = []
    for s, source in enumerate(state.sources):
        line_K = ev.source_lines(plan, state.arrays, s)[0][0]
        for statistic, metric in zip(spec.statistics, spec.metrics, strict=True):
            q = _Q[statistic]
            now = float(state.arrays.smooth[0, s, q])
            sums = state.arrays.sums[0, s, q]
            if math.isnan(now) and sums[ev.COUNT] == 0:
                continue
            mine = (plan.detector_K == d) & (plan.stat_K == q)
            line = {int(plan.rung_K[k]): float(line_K[k]) for k in np.flatnonzero(mine)}
            ceiling = 1.0 if spec.rule == "effective" or spec.unit.startswith("share") else math.inf
            ok = [v for v in line.values() if not math.isnan(v) and v < ceiling]
            absolute = spec.rule == "absolute"
            rows.append(
                {
                    "key": source,
                    "source": state.names.get(source, source),
                    "statistic": statistic,
                    "metric": metric,
                    "baseline": None if absolute else _value(state.arrays.base[0, s, q]),
                    "baseline_se": None if absolute else _value(state.arrays.se[0, s, q]),
                    "baseline_done": absolute or bool(state.arrays.done[0, s, q]),
                    "baseline_prompts": 0 if absolute else int(sums[ev.PROMPTS]),
                    "now": _value(now),
                    "warn_line": _value(line.get(ev.WARN, math.nan)),
                    "fail_line": _value(line.get(ev.FAIL, math.nan)),
                    "reachable": bool(ok),
                }
            )
    return rows


def _finding(state: DetectorState, plan: ev.Plan, record: StepRecord, d: int, rung: int) -> Finding:
    spec = BETTING[d]
    slot = "fail" if rung == ev.FAIL else "warn"
    severity: Severity = "fail" if rung == ev.FAIL else spec.milder
    margin, _, _ = ev.detector_evidence(plan, state.arrays)
    rows = _source_rows(state, plan, spec, d)
    worst = max(rows, key=lambda row: _distance(row, slot, spec.direction))
    now, base, line = (_in_metric_unit(spec, worst[key]) for key in ("now", "baseline", f"{slot}_line"))
    missing = _missing_prompts(state, plan, spec, worst, rung)
    source = worst["source"] if len(state.sources) > 1 else None
    message = _sentence(spec, slot, worst, source)
    if missing:
        message += (
            f" The baseline of {worst['baseline_prompts']} prompts is too small for the nominal line: "
            f"{missing} more prompts are missing, until then the line stands where the base's error reaches."
        )
    if spec.agreement:
        seconds = [other.id for i, other in enumerate(BETTING) if other.witness and state.arrays.raised[0, i, ev.WARN]]
        if severity == "fail":
            message += f" Second signal: {', '.join(seconds)}."
    else:
        seconds = []
    found: dict[str, Any] = {
        "log_evidence_over_threshold": round(float(margin[0, d, rung]), 6),
        "alpha": state.alpha * spec.alpha_share,
        "baseline_se": worst["baseline_se"],
        "missing_baseline_prompts": missing,
        "statistic": worst["statistic"],
        "sources": [
            {key: row[key] for key in ("source", "statistic", "baseline", "now", f"{slot}_line")}
            for row in sorted(rows, key=lambda row: -_distance(row, slot, spec.direction))[:8]
        ],
    }
    if seconds:
        found["second_signals"] = seconds
    return Finding(
        finding_id=f"{spec.id}-{severity}-{record.attempt}-{record.step}-{state.records}",
        detector=spec.id,
        severity=severity,
        step=record.step,
        metric=worst["metric"],
        value=now,
        baseline=base,
        threshold=line,
        source=source,
        message=message,
        advice=spec.advice,
        baseline_kind="none" if spec.rule == "absolute" else state.parameters["baseline_kind"],
        baseline_prompts=worst["baseline_prompts"],
        benign_sharpening=_benign(state, worst["key"]),
        evidence=found,
    )


def _in_metric_unit(spec: DetectorSpec, value: float | None) -> float | None:
    """Collisions are judged as they are and told as effective numbers, 1/C."""
    if spec.rule != "effective" or value is None:
        return value
    return 1.0 / value if value > 0 else None


def _distance(row: Mapping[str, Any], slot: str, direction: str) -> float:
    now, line = row["now"], row[f"{slot}_line"]
    if now is None or not line:
        return -math.inf
    return float((now - line) / line if direction == "up" else (line - now) / line)


def _sentence(spec: DetectorSpec, slot: str, row: Mapping[str, Any], source: str | None) -> str:
    def short(value: float | None) -> str:
        if value is None:
            return "an unknown number of"
        if spec.unit.startswith("share"):
            return f"{value:.0%}"
        return f"{value:.2f}" if spec.rule == "effective" else f"{value:.3g}"

    base, now, line = (short(_in_metric_unit(spec, row[key])) for key in ("baseline", "now", f"{slot}_line"))
    told = spec.told[spec.statistics.index(row["statistic"])].format(base=base, now=now)
    stands = f"line {line}{', a prior' if spec.prior else ''}"
    # Sources come from the data: repr keeps control characters out of terminals and logs.
    where = f" in source {source[:60]!r}" if source else ""
    return f"{spec.id}: {told} ({stands}){where}."


def _missing_prompts(state: DetectorState, plan: ev.Plan, spec: DetectorSpec, row: Mapping[str, Any], rung: int) -> int:
    """Prompts by which the baseline is short: its reach shrinks with their square root, until the base's confidence
    limit leaves the line where it would be if the base were known."""
    s, q = state.sources.index(row["key"]), _Q[row["statistic"]]
    base, reach = float(state.arrays.base[0, s, q]), float(state.arrays.reach[0, s, q])
    levels = state.parameters["lines"][spec.id]
    name = "fail" if rung == ev.FAIL else "warn"
    if spec.rule == "absolute" or not (base > 0 and reach > 0):
        return 0
    factor = 1.0 / levels[name] if spec.rule == "effective" else levels[name]
    nominal = max(base * factor, levels[f"{name}_floor"]) if spec.direction == "up" else base * factor
    room = abs(math.log(nominal / base)) + math.log(ev.TOLERATED[rung])
    if room <= 0 or reach <= room:
        return 0
    prompts = int(row["baseline_prompts"])
    return max(1, math.ceil(prompts * (reach / room) ** 2) - prompts)


def _benign(state: DetectorState, source: str) -> bool | None:
    """Reward up by 2 SE of its base, and correct-only formats still at .8 of their base; None when not measured."""
    s = state.sources.index(source)
    arrays, reward, correct = state.arrays, _Q["reward"], _Q["mode_collision_correct"]
    values = [
        float(array[0, s, q])
        for array, q in (
            (arrays.base, reward),
            (arrays.se, reward),
            (arrays.smooth, reward),
            (arrays.base, correct),
            (arrays.smooth, correct),
        )
    ]
    if not all(math.isfinite(v) for v in values):
        return None
    reward_base, reward_se, reward_now, correct_base, correct_now = values
    return bool(reward_now > reward_base + 2.0 * reward_se and correct_now <= correct_base / 0.8)


def _immediate_finding(state: DetectorState, record: StepRecord, spec: DetectorSpec, value: float | None) -> Finding:
    shown = value if value is not None and math.isfinite(value) else None
    amount = "values were" if shown is None else "1 value was" if shown == 1 else f"{shown:g} values were"
    return Finding(
        finding_id=f"{spec.id}-fail-{record.attempt}-{record.step}-{state.records}",
        detector=spec.id,
        severity="fail",
        step=record.step,
        metric=spec.metrics[0],
        value=shown,
        baseline=0.0,
        threshold=0.0,
        source=None,
        message=f"{spec.id}: {amount} NaN or infinite.",
        advice=spec.advice,
        baseline_kind="none",
        baseline_prompts=0,
        benign_sharpening=False,
        evidence={},
    )


# --- JSON -------------------------------------------------------------------------------------------------------


def _value(number: Any) -> float | None:
    return float(number) if math.isfinite(number) else None


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


def _tallies(data: Mapping[str, Any], sources: Collection[str]) -> dict[str, dict[str, tuple[Part, ...] | None]]:
    if not data.keys() <= set(sources) or not all(set(of_source) <= TALLIED for of_source in data.values()):
        raise ValueError("its tallies are of sources or statistics that it does not have")
    return {
        str(source): {
            str(statistic): None
            if parts is None
            else tuple((int(number), {str(c): int(n) for c, n in part.items()}) for number, part in parts)
            for statistic, parts in of_source.items()
        }
        for source, of_source in data.items()
    }


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value
