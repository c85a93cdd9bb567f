"""The detectors, which looked at every step: what they said, in the words of a check."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np

from rlmon.audit.case import Case
from rlmon.audit.checks.detectors import falls, named_unit, said, statistic_of
from rlmon.audit.checks.onset import Onset, onset
from rlmon.audit.checks.question import Ends, Question
from rlmon.audit.checks.second_look import is_looked_at_twice, second_look
from rlmon.audit.checks.signal import MOST_STEPS, nothing_ever_differed
from rlmon.audit.clauses import clause
from rlmon.audit.curves import LEAST_POINTS, Move, known
from rlmon.audit.result import Check, Core, Kind, Method
from rlmon.audit.run import Lack
from rlmon.detectors import DETECTORS, DetectorSpec
from rlmon.printable import one_line, several
from rlmon.records import SEVERITIES, Finding, Status

_SPECS: Mapping[str, DetectorSpec] = {spec.id: spec for spec in DETECTORS}
STAYED = 1.5
"""Times its first level: a distance below that has not moved away from where it began."""


def _detector(ask: Question, ends: Ends, spec: DetectorSpec, need: Lack | Literal["successes"] | None) -> Check:
    case = ends.case
    row = next(row for row in case.fold.status if row["id"] == spec.id)
    if spec.id == "silent-groups-good" and nothing_ever_differed(ends):
        return ask.skip(
            "rewards never differed inside any group, from the first step on: whether anything was learned cannot be "
            "told from that (reward-signal says more)"
        )
    if (stood := _stood_at_nothing(ask, ends, spec)) is not None:
        return stood
    mine = [finding for finding in case.fold.findings if finding.detector == spec.id]
    if mine:
        alarmed = _alarmed(ask, ends, spec, row, mine)
        again = second_look(ask, ends, spec, waiting=False) if alarmed.status == "warn" else None
        if again is None or again.status != "fail" or alarmed.evidence.get("recovered"):
            return alarmed
        # It was sure of the WARN line; the two ends are of the FAIL line.
        low, high = again.interval or (None, None)
        reach = f"line {said(again.threshold)}, interval {said(low)} to {said(high)}"
        return dataclasses.replace(
            alarmed, status="fail", value=again.value, threshold=again.threshold,
            message=f"{alarmed.message} FAIL by its first points against its last window ({reach}).",
        )  # fmt: skip
    if (found := second_look(ask, ends, spec, waiting=row["status"] == "waiting")) is not None:
        return found
    if row["status"] in ("waiting", "cannot"):
        return ask.skip(_why_silent(case, need, row), metric=spec.metrics[0], unit=spec.unit)
    if spec.rule == "immediate":
        return ask.says(
            status="pass", metric=spec.metrics[0], unit=spec.unit,
            value=0.0, threshold=0.0, message=f"no NaN or infinity in {case.fold.looks} steps",
        )  # fmt: skip
    worst = _nearest(spec, row)
    value, base, line = (_unit(spec, worst.get(key)) for key in ("now", "baseline", "warn_line"))
    facts: dict[str, Any] = {
        "metric": worst.get("metric", spec.metrics[0]),
        "unit": named_unit(case, spec),
        "value": value,
        "baseline": base,
        "threshold": line,
        "source": worst.get("source") if len(case.counted.sources) > 1 else None,
        "evidence": {"log_evidence_over_threshold": row["evidence"], "bets": row["bets"]},
    }
    # The detector's own level is that of a few blocks; a whole window that stands on the good side outweighs it.
    window = ends.move(facts["metric"], relative=True) if is_looked_at_twice(spec) and ends.same_data else None
    if not _past(spec, value, line):
        return ask.says(status="pass", message=_passed(value, base, line), **facts)
    if window is not None and not _past(spec, window.last, line):
        return ask.says(status="pass", message=_passed(window.last, base, line), **facts | {"value": window.last})
    others = [one for one in row["sources"] if one["metric"] != facts["metric"]]
    alone = spec.every and not all(_past(spec, one["now"], one["warn_line"]) for one in others)
    return ask.says(
        status="unsure",
        message=_passed(value, base, line),
        reason="one signal only" if alone else "it has not been there for long enough to be sure",
        # What can at most become a note leaves no core question open.
        core=None if spec.rungs == ("note",) else ask.core,
        **facts,
    )


_NOTHING: Mapping[str, Sequence[tuple[float, Status, str, str]]] = {
    "entropy-collapse": (
        (0.01, "warn", "token entropy is {now} nats from the first step on: every token is as good as certain",
         "Sampling gives the same completion again and again: raise temperature, begin from a less trained checkpoint, "
         "and look whether what is logged is the entropy per token in nats."),
    ),
    "length-collapse": (
        (0.5, "warn", "the mean length of completions in tokens is {now} from the first step on: they are empty",
         "Look at a few prompts and completions: a prompt that ends with the end token (chat template), a wrong "
         "eos_token or max_completion_length look like this."),
        (1.5, "note", "the mean length of completions in tokens is {now} from the first step on: where the end "
         "token is counted, they are empty",
         "Where one token is not the whole answer, look at the chat template and eos_token."),
    ),
}  # fmt: skip
"""Levels of curves below which there is nothing left to lose: the line, how bad it is, what it means, what to do."""


def _stood_at_nothing(ask: Question, ends: Ends, spec: DetectorSpec) -> Check | None:
    """What is said of a curve that lies at the bottom from the first step on: nothing can fall there, and that is no
    pass. ``None`` where it does not."""
    if spec.id not in _NOTHING or (ends.case.characters and spec.id == "length-collapse"):
        return None
    metric = spec.metrics[0]
    values = known(ends.case.series(metric))
    if values.size < LEAST_POINTS or values.min() < 0:
        return None
    for line, status, message, advice in _NOTHING[spec.id]:
        if values[0] < line and float((values < line).mean()) >= MOST_STEPS:
            level = float(values.mean())
            return ask.says(
                status=status, method="hindsight", metric=metric, unit=spec.unit, value=level, threshold=line,
                message=message.format(now=said(level)), advice=advice,
            )  # fmt: skip
    return None


def _past(spec: DetectorSpec, value: float | None, line: float | None) -> bool:
    """Whether a value in the unit of the metric is on the bad side of its line."""
    return value is not None and line is not None and (value < line if falls(spec) else value > line)


def _alarmed(ask: Question, ends: Ends, spec: DetectorSpec, row: Mapping[str, Any], mine: Sequence[Finding]) -> Check:
    case = ends.case
    status = max((finding.severity for finding in mine), key=SEVERITIES.index)
    first = next(finding for finding in mine if finding.severity == status)
    shown = next(finding for finding in reversed(mine) if finding.severity == status)
    now = next((r for r in row["sources"] if r["metric"] == shown.metric and shown.source in (None, r["source"])), None)
    value = shown.value if now is None or now["now"] is None else _unit(spec, now["now"])
    recovered = row["status"] == "ok" if spec.rule != "immediate" else only_at_the_start(case)
    if spec.id == "kl-drift" and (there := _began_there(ends, spec, shown)) is not None:
        return ask.says(
            status="note", metric=shown.metric, unit=named_unit(case, spec), value=there.last, baseline=there.base,
            message=f"the model was {said(there.base)} nats from its reference at the first steps already, and is "
            f"{said(there.last)} now: the run began at this distance and did not move away from there",
            advice="Where that is not meant: the reference is another model than the one that training began from (an "
            "adapter of an earlier stage that the reference lacks, or another checkpoint).",
        )  # fmt: skip
    began = Onset(first.step, at_latest=False) if spec.rule == "immediate" else onset(case, spec, shown)
    found = ask.says(
        status=status,
        metric=shown.metric,
        unit=named_unit(case, spec),
        value=value,
        baseline=shown.baseline,
        threshold=shown.threshold,
        first_step=None if began is None else began.step,
        at_latest=began is not None and began.at_latest,
        alarm_step=first.step,
        source=shown.source,
        message=shown.message.removeprefix(spec.id + ": "),
        evidence={
            "findings": [
                {"step": f.step, "severity": f.severity, "value": f.value, "threshold": f.threshold} for f in mine[:50]
            ],
            "benign_sharpening": shown.benign_sharpening,
            "baseline_kind": shown.baseline_kind,
            "baseline_prompts": shown.baseline_prompts,
            "recovered": recovered,
            **shown.evidence,
        },
        advice=spec.advice,
    )
    if spec.rule == "immediate":
        found = dataclasses.replace(found, message=not_numbers(case))
        if recovered:
            return dataclasses.replace(
                found, status="warn",
                message=f"{found.message}, the first ones, and the loss is finite there: it has recovered since",
                advice="A run in fp16 begins like that while it looks for its loss scale, and passes over these steps; "
                "bf16=True needs none. Without fp16, look at the first batches.",
            )  # fmt: skip
    return dataclasses.replace(found, message=" ".join(_told(found, spec, row, mine, case)))


def _told(
    found: Check, spec: DetectorSpec, row: Mapping[str, Any], mine: Sequence[Finding], case: Case
) -> Iterator[str]:
    """The message: what was seen, with the numbers of the check itself, when it was sure, and what to know beside."""
    line = (
        ""
        if spec.rule == "immediate" or found.threshold is None or found.evidence["recovered"]
        else f" (line {said(found.threshold)})"
    )
    yield f"{clause(found)}{line}."
    steps = ", ".join(f"{finding.severity.upper()} at step {finding.step}" for finding in mine[:4])
    yield f"Confirmed: {steps}{' and more' if len(mine) > 4 else ''}."
    if missing := found.evidence.get("missing_baseline_prompts"):
        yield f"The base is {missing} prompts too small for the usual line."
    if seconds := found.evidence.get("second_signals"):
        yield f"Second signal: {', '.join(seconds)}."
    if spec.agreement and found.status == "warn" and (row["evidence"].get("fail") or -1.0) >= 0.0:
        absent = ", and this source holds no completions to give one" if "completions" in case.run.lacks else ""
        yield f"The FAIL line is passed too; FAIL needs a second signal{absent}."
    if found.evidence["recovered"]:
        yield "It has recovered since."


def _began_there(ends: Ends, spec: DetectorSpec, shown: Finding) -> Move | None:
    """The ends of a distance that was past its WARN line from the first points on and did not grow since; ``None``
    where it drifted."""
    found = ends.move(shown.metric, relative=True)
    if found is None or spec.warn is None or found.base < spec.absolute_level(statistic_of(spec, shown), spec.warn):
        return None
    return found if found.last < STAYED * found.base or found.low < found.base else None


def _why_silent(case: Case, need: Lack | Literal["successes"] | None, row: Mapping[str, Any]) -> str:
    if need in ("successes", "advantages") and not case.success.known and "rewards" not in case.run.lacks:
        return f"it is not known what counts as a success: {case.success} (--success)."
    if need == "successes":
        need = "rewards"
    if need is not None and need in case.run.lacks and not row["sources"]:
        return case.run.lacks[need]
    return f"{row['reason']}."


def _nearest(spec: DetectorSpec, row: Mapping[str, Any]) -> Mapping[str, Any]:
    """The source and statistic that is nearest to its line."""

    def distance(entry: Mapping[str, Any]) -> float:
        now, line = entry["now"], entry["warn_line"] or entry["fail_line"]
        if now is None or not line:
            return -math.inf
        return float((now - line) / line if spec.direction == "up" else (line - now) / line)

    return max(row["sources"], key=distance, default={})


def _unit(spec: DetectorSpec, value: float | None) -> float | None:
    if spec.rule != "effective" or value is None:
        return value
    return 1.0 / value if value > 0 else None


def _passed(value: float | None, base: float | None, line: float | None) -> str:
    parts = [f"{said(base)} -> {said(value)}" if base is not None else f"now {said(value)}"]
    if line is not None:
        parts.append(f"line {said(line)}")
    return ", ".join(parts)


def _fold(
    spec: DetectorSpec,
    title: str,
    need: Lack | Literal["successes"] | None = None,
    core: Core | None = None,
    *,
    about: Kind = "other",
    doubt: Core | None = None,
    method: Method = "fold",
) -> Question:
    """``need``: what gives the reason where the detector saw nothing."""
    return Question(
        id=spec.id, title=title, core=core, doubt=doubt, method=method, about=about,
        told=dict(zip(spec.metrics, spec.told, strict=False)), judge=partial(_detector, spec=spec, need=need),
    )  # fmt: skip


FOLDS: tuple[Question, ...] = (
    _fold(_SPECS["format-collapse"], "Do answers keep their formats?", "completions", "formats", about="narrowing"),
    _fold(_SPECS["template-collapse"], "Do completions differ beyond numbers and names?", "completions", "formats",
          about="narrowing"),
    _fold(_SPECS["move-collapse"], "Does reasoning keep its moves?", "tokens", about="narrowing"),
    _fold(_SPECS["entropy-collapse"], "Does token entropy hold?", "entropy", "entropy", about="narrowing"),
    _fold(_SPECS["entropy-explosion"], "Does token entropy stay in bounds?", "entropy", about="drift", doubt="entropy"),
    _fold(_SPECS["kl-drift"], "Does the model stay near its base?", "kl", about="drift"),
    _fold(_SPECS["silent-groups-bad"], "Are few groups failing as a whole?", "successes", "groups", about="reward"),
    _fold(_SPECS["silent-groups-good"], "Is there still something to learn in most groups?", "successes", "groups",
          about="reward"),
    _fold(_SPECS["lone-success"], "Do lucky one-offs carry little weight?", "advantages", about="reward"),
    _fold(_SPECS["answer-concentration"], "Do different prompts get different answers?", "completions",
          about="narrowing"),
    _fold(_SPECS["length-collapse"], "Do completions keep their length?", "tokens", "length", about="length"),
    _fold(_SPECS["non-finite"], "Are all numbers finite?", "completions", "non-finite", about="numbers",
          method="exact"),
)  # fmt: skip


def own_folds(case: Case) -> tuple[Question, ...]:
    """The checks of a run's own detectors, which its log describes: nothing of theirs has to be installed here."""
    return tuple(
        _fold(spec, spec.question or f"Does {spec.metrics[0]} stay inside its line?") for spec in case.fold.own
    )


NAMED = 4
"""Numbers that are named in a message; of the others it says how many there are."""
FIRST_STEPS = 3
"""In which numbers may be infinite while a scale is still looked for (fp16 loss scaling)."""


def steps_without_numbers(case: Case) -> dict[str, set[int]]:
    """The steps at which curves of the trainer are NaN or infinite, of those that are anywhere."""
    bad = {
        key: {step for step, value in points if not math.isfinite(value)} for key, points in case.run.scalars.items()
    }
    return {key: steps for key, steps in bad.items() if steps}


def only_at_the_start(case: Case) -> bool:
    """Only the first few steps of the trainer's curves are not finite, the loss is at these too, and the run went on:
    a scale that was still looked for (of fp16 losses, whose steps are passed over), and no damage."""
    bad = set().union(*steps_without_numbers(case).values())
    told = {finding.step for finding in case.fold.findings if finding.detector == "non-finite"}
    loss, steps = case.series("loss"), case.line.steps
    if loss is None or not bad or not told <= bad or steps.size < FIRST_STEPS + LEAST_POINTS:
        return False
    rewards = case.series("rlmon/health/reward_non_finite")
    if rewards is not None and (rewards > 0).any():
        return False
    return bad <= set(steps[:FIRST_STEPS].tolist()) and bool(np.isfinite(loss[np.isin(steps, list(bad))]).all())


def not_numbers(case: Case) -> str:
    """Which numbers are NaN or infinite, and in how many steps."""
    bad = steps_without_numbers(case)
    rewards = case.series("rlmon/health/reward_non_finite")
    if rewards is not None and (rewards > 0).any():
        bad["rewards of completions"] = set(case.line.steps[rewards > 0].tolist())
    if not bad:
        counts = case.series("rlmon/health/non_finite")
        bad["numbers of the run"] = set() if counts is None else set(case.line.steps[counts > 0].tolist())
    named = [one_line(key, 60) for key in sorted(bad, key=lambda key: (-len(bad[key]), key))]
    steps = len(set().union(*bad.values()))
    where = f" in {steps} of {case.line.steps.size} steps" if steps else ""
    return f"{several(named, NAMED)}: NaN or infinite{where}"
