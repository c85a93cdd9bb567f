"""What is asked of a run. Each check is a function of the case; together they share one error rate.

Two families. *Folds* are the detectors: they looked at every step and bring their own false-alarm rate. *Hindsight*
checks look once, at the two ends of the run, with intervals whose error is shared out evenly over all of them
(Bonferroni). Both test "not damaged" rather than "unchanged": a check speaks only where the whole interval lies past
its line.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from rlmon import student
from rlmon.audit import aliases
from rlmon.audit.case import Case
from rlmon.audit.contrast import Contrast, Difference
from rlmon.audit.features import Floats
from rlmon.audit.result import Check
from rlmon.audit.run import Lack
from rlmon.audit.timeline import ratio
from rlmon.audit.wording import Wording, usable, wording
from rlmon.detectors import DETECTORS, DetectorSpec
from rlmon.metrics.groups import CREDIBILITY, HARD_SOLVE_RATE, beta_cdf
from rlmon.records import SEVERITIES, WORST_FIRST, Finding, Status

HINDSIGHT_ALPHA = 0.01
"""Chance of any false FAIL or WARN among all hindsight checks."""
SMOOTHING_STEPS = 5

_WIDEN = (
    "Raise beta (kl_coef in PPO; 0.05 to 0.1), or use_adaptive_entropy=True with entropy_target near the base "
    "entropy; a lower learning_rate buys time."
)
_NEEDS: Mapping[str, Lack] = {
    "format-collapse": "completions",
    "template-collapse": "completions",
    "answer-concentration": "completions",
    "move-collapse": "tokens",
    "entropy-collapse": "entropy",
    "entropy-explosion": "entropy",
    "kl-drift": "kl",
    "silent-groups-bad": "rewards",
    "silent-groups-good": "rewards",
    "lone-success": "advantages",
    "length-collapse": "tokens",
}
_TITLES: Mapping[str, str] = {
    "format-collapse": "Do answers keep their formats?",
    "template-collapse": "Do completions differ beyond numbers and names?",
    "move-collapse": "Does reasoning keep its moves?",
    "entropy-collapse": "Does token entropy hold?",
    "entropy-explosion": "Does token entropy stay in bounds?",
    "kl-drift": "Does the policy stay near its base?",
    "silent-groups-bad": "Are few groups failing as a whole?",
    "silent-groups-good": "Is there still something to learn in most groups?",
    "lone-success": "Do lucky one-offs carry little weight?",
    "answer-concentration": "Do different prompts get different answers?",
    "length-collapse": "Do completions keep their length?",
    "non-finite": "Are all numbers finite?",
}
_OF_SUCCESSES = frozenset({"silent-groups-bad", "silent-groups-good", "lone-success"})
_ONSET_SERIES: Mapping[str, str] = {"format-collapse": "rlmon/format/effective"}
"""Series that tells when it began, where it is not the detector's own metric: effective formats by Hill's order 1 are
what people plot, and less noisy than the collision of one step."""


@dataclass(frozen=True, kw_only=True)
class Judged:
    """The checks and what they were computed from."""

    checks: Sequence[Check]
    wording: Wording | None
    correction: str


@dataclass(frozen=True, kw_only=True)
class _Ends:
    """What hindsight checks share."""

    case: Case
    groups: Mapping[str, Any]
    contrast: Contrast | None
    wording: Wording | None
    alpha: float

    def absent(self, *needs: Lack) -> str | None:
        """Why nothing can be said at all, ``None`` where the run has what is needed."""
        lacks = self.case.run.lacks
        for need in needs:
            if need in lacks:
                return lacks[need]
            if not self.case.counted.groups:
                return lacks.get("completions", "there are no completions")
            if self.contrast is None:
                return "the run has fewer than two steps with completions"
        return None

    def no_successes(self) -> str | None:
        """Why nothing can be said of successes, ``None`` where they are known."""
        reason = self.absent("rewards")
        if reason is None and not self.groups["known"].any():
            return f"it is not known what counts as a success: {self.case.success} (--success)"
        return reason


def judge(case: Case) -> Judged:
    """Every check of the run, worst first. A check that fails itself is an ERROR and the others go on."""
    alpha = HINDSIGHT_ALPHA / len(HINDSIGHT)
    groups, is_base, is_last = case.ends()
    contrast = Contrast(groups["prompt"], is_base, is_last, alpha) if is_base.any() and is_last.any() else None
    texts = usable(case.counted.samples)
    words = None
    if texts is not None:
        base = usable(case.base.samples) if case.base is not None else None
        words = wording(texts, base, case.line.steps, case.windows, alpha)
    ends = _Ends(case=case, groups=groups, contrast=contrast, wording=words, alpha=alpha)
    found = _folded(case)
    for check_id, title, check in HINDSIGHT:
        found.append(_contained(check_id, title, partial(check, check_id, title, ends)))
    for check_id, title, of_log in ABOUT_ROWS if case.fold.live is None else (*ABOUT_ROWS, *ABOUT_THE_MONITOR):
        found.append(_contained(check_id, title, partial(of_log, check_id, title, case)))
    found.sort(key=lambda check: WORST_FIRST.index(check.status))
    return Judged(checks=found, wording=words, correction=_correction(case, alpha))


def _correction(case: Case, alpha: float) -> str:
    return (
        f"Detectors looked at {case.fold.looks} steps each; theirs is a betting e-process at level "
        f"{case.fold.alpha:g} over all looks, split over the detectors: measured, not proved, at most that share of "
        "runs has a false FAIL while it stays at .8 of its base or above. "
        f"The {len(HINDSIGHT)} hindsight checks look once; their intervals have level "
        f"{1 - alpha:.3%} each, so that the chance of any false FAIL, WARN or NOTE among them is at most "
        f"{HINDSIGHT_ALPHA:g} (Bonferroni), as far as a bootstrap over prompts holds its level."
    )


def _contained(check_id: str, title: str, run: Callable[[], Check]) -> Check:
    try:
        return run()
    except Exception as error:  # one check that fails must not cost the others
        return Check(
            id=check_id,
            title=title,
            status="error",
            method="hindsight",
            message="this check failed",
            reason=f"{type(error).__name__}: {str(error)[:300]!r}. This is a defect of rlmon; please report it.",
        )


# --- detectors ----------------------------------------------------------------------------------------------------


def _folded(case: Case) -> list[Check]:
    rows = {row["id"]: row for row in case.fold.status}
    return [_contained(spec.id, _TITLES[spec.id], partial(_detector, case, spec, rows[spec.id])) for spec in DETECTORS]


def _detector(case: Case, spec: DetectorSpec, row: Mapping[str, Any]) -> Check:
    title = _TITLES[spec.id]
    mine = [finding for finding in case.fold.findings if finding.detector == spec.id]
    if mine:
        return _alarmed(case, spec, row, mine)
    if row["status"] in ("waiting", "cannot"):
        return Check(
            id=spec.id, title=title, status="skip", method="fold", message="could not be judged",
            metric=spec.metrics[0], unit=spec.unit, reason=_why_silent(case, spec, row),
        )  # fmt: skip
    if spec.rule == "immediate":
        return Check(
            id=spec.id, title=title, status="pass", method="exact", metric=spec.metrics[0], unit=spec.unit,
            value=0.0, threshold=0.0, message=f"no NaN or infinity in {case.fold.looks} steps",
        )  # fmt: skip
    worst = _nearest(spec, row)
    value, base, line = (_unit(spec, worst.get(key)) for key in ("now", "baseline", "warn_line"))
    return Check(
        id=spec.id,
        title=title,
        status="pass",
        method="fold",
        metric=worst.get("metric", spec.metrics[0]),
        unit=_named_unit(case, spec),
        value=value,
        baseline=base,
        threshold=line,
        source=worst.get("source") if len(case.counted.sources) > 1 else None,
        message=_passed(spec, value, base, line),
        evidence={"log_evidence_over_threshold": row["evidence"], "bets": row["bets"]},
    )


def _alarmed(case: Case, spec: DetectorSpec, row: Mapping[str, Any], mine: Sequence[Finding]) -> Check:
    status = max((finding.severity for finding in mine), key=SEVERITIES.index)
    first = next(finding for finding in mine if finding.severity == status)
    shown = next(finding for finding in reversed(mine) if finding.severity == status)
    now = next((r for r in row["sources"] if r["metric"] == shown.metric and shown.source in (None, r["source"])), None)
    value = shown.value if now is None or now["now"] is None else _unit(spec, now["now"])
    recovered = row["status"] == "ok" and spec.rule != "immediate"
    steps = ", ".join(f"{finding.severity.upper()} at step {finding.step}" for finding in mine[:4])
    message = f"{shown.message.removeprefix(spec.id + ': ')} {steps}{' and more' if len(mine) > 4 else ''}."
    if spec.agreement and status == "warn" and (row["evidence"].get("fail") or -1.0) >= 0.0:
        absent = ", and this source holds no completions to give one" if "completions" in case.run.lacks else ""
        message += f" The FAIL line is passed too; FAIL needs a second signal{absent}."
    return Check(
        id=spec.id,
        title=_TITLES[spec.id],
        status=status,
        method="exact" if spec.rule == "immediate" else "fold",
        metric=shown.metric,
        unit=_named_unit(case, spec),
        value=value,
        baseline=shown.baseline,
        threshold=shown.threshold,
        first_step=first.step if spec.rule == "immediate" else onset(case, spec, shown),
        alarm_step=first.step,
        source=shown.source,
        message=message + (" It has recovered since." if recovered else ""),
        evidence={
            "findings": [
                {"step": f.step, "severity": f.severity, "value": f.value, "threshold": f.threshold} for f in mine[:50]
            ],
            "benign_sharpening": shown.benign_sharpening,
            "baseline_kind": shown.baseline_kind,
            "baseline_prompts": shown.baseline_prompts,
            **shown.evidence,
        },
        advice=spec.advice,
    )


def onset(case: Case, spec: DetectorSpec, finding: Finding) -> int | None:
    """First step from which the 5-step mean of the metric stays past its WARN line; where it comes back in the end,
    the start of the stay that the alarm fell in. ``None`` where the run has no such series."""
    name = _ONSET_SERIES.get(spec.id, finding.metric)
    values = case.series(name)
    if values is None:
        return None
    known = np.flatnonzero(np.isfinite(values))
    if not known.size:
        return None
    smooth = trailing_mean(values[known], SMOOTHING_STEPS)
    steps = case.line.steps[known]
    upward = spec.direction == "up" and spec.rule != "effective"
    line = _warn_line(case, spec, finding, values[known], name)
    if line is None:
        return None
    past = smooth > line if upward else smooth < line
    if not past.any():
        return None
    # The last run of steps past the line that began before the alarm (or the first one after it).
    starts = np.flatnonzero(past & ~np.concatenate([[False], past[:-1]]))
    before = starts[steps[starts] <= finding.step]
    start = int(before[-1]) if before.size else int(starts[0])
    stays = bool(past[start:].all())
    if not stays:
        # Noise may lift single steps over the line: the stay began where most of the steps since are past it.
        for candidate in before.tolist():
            if past[candidate:].mean() >= 0.9:
                start = candidate
                break
        else:
            last_back = np.flatnonzero(~past)[-1]
            if last_back + 1 < past.size:
                start = int(last_back) + 1
    return int(steps[start])


def _warn_line(case: Case, spec: DetectorSpec, finding: Finding, values: Floats, name: str) -> float | None:
    """WARN line in the unit of the series: a share of the base where the series is not the detector's own metric."""
    if spec.rule == "absolute":
        return finding.threshold if spec.warn is None else spec.absolute_level(_statistic(spec, finding), spec.warn)
    base = finding.baseline
    if name != finding.metric or base is None:
        base = case.base_mean(name)
        if base is None:
            base = float(values[0])
    level = spec.warn if spec.warn is not None else spec.fail
    return None if level is None else base * level


def _statistic(spec: DetectorSpec, finding: Finding) -> str:
    return dict(zip(spec.metrics, spec.statistics, strict=True)).get(finding.metric, spec.statistics[0])


def trailing_mean(values: Floats, window: int) -> Floats:
    """Mean of each value and the ``window - 1`` before it (fewer at the start)."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, values.size + 1)
    begins = np.maximum(0, ends - window)
    return np.asarray((sums[ends] - sums[begins]) / (ends - begins), dtype=np.float64)


def _why_silent(case: Case, spec: DetectorSpec, row: Mapping[str, Any]) -> str:
    need = _NEEDS.get(spec.id)
    if spec.id in _OF_SUCCESSES and not case.success.known and "rewards" not in case.run.lacks:
        return f"it is not known what counts as a success: {case.success} (--success)."
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


def _named_unit(case: Case, spec: DetectorSpec) -> str:
    return "characters" if spec.id == "length-collapse" and case.characters else spec.unit


def _passed(spec: DetectorSpec, value: float | None, base: float | None, line: float | None) -> str:
    parts = [f"{_said(base)} -> {_said(value)}" if base is not None else f"now {_said(value)}"]
    if line is not None:
        parts.append(f"line {_said(line)}")
    return ", ".join(parts)


def _said(value: float | None) -> str:
    return "not known" if value is None else f"{value:.3g}"


# --- hindsight ----------------------------------------------------------------------------------------------------


def _skip(check_id: str, title: str, reason: str) -> Check:
    return Check(
        id=check_id, title=title, status="skip", method="hindsight", message="could not be judged", reason=reason
    )


def _between(found: Difference, unit: str = "") -> str:
    paired = f", {found.paired} prompts at both ends" if found.paired else ""
    return (
        f"{found.base:.3g} -> {found.last:.3g}{unit} (change {found.change:+.3g}, interval {found.low:+.3g} to "
        f"{found.high:+.3g}{paired})"
    )


def _fallen(found: Difference, warn: float, fail: float | None) -> Status:
    """FAIL or WARN where the whole interval lies below that share of the base."""
    if fail is not None and found.high < -(1.0 - fail) * found.base:
        return "fail"
    return "warn" if found.high < -(1.0 - warn) * found.base else "pass"


def _narrowing(
    check_id: str, title: str, metric: str, unit: str, found: Difference, warn: float, fail: float | None, advice: str,
    evidence: Mapping[str, Any] | None = None,
) -> Check:  # fmt: skip
    status = _fallen(found, warn, fail)
    return Check(
        id=check_id,
        title=title,
        status=status,
        method="hindsight",
        metric=metric,
        unit=unit,
        value=found.last,
        baseline=found.base,
        threshold=found.base * (fail if status == "fail" and fail is not None else warn),
        interval=(max(0.0, found.last + found.low - found.change), found.last + found.high - found.change),
        message=_between(found),
        evidence=dict(evidence or {}) | _sizes(found),
        advice="" if status == "pass" else advice,
    )


def _sizes(found: Difference) -> dict[str, Any]:
    return {"prompts_base": found.prompts_base, "prompts_last": found.prompts_last, "prompts_paired": found.paired}


EXTINCT_SHARE = 0.1
EXTINCT_BASE_SHARE = 0.02


def _mode_extinction(check_id: str, title: str, ends: _Ends) -> Check:
    if (reason := ends.absent("completions")) is not None:
        return _skip(check_id, title, reason)
    contrast = ends.contrast
    assert contrast is not None
    counts = ends.groups["modes"].astype(np.float64)
    rows = counts.sum(axis=1)
    gone: dict[str, dict[str, float]] = {}
    known = 0
    for code, mode in enumerate(ends.case.modes):
        found = contrast.ratio(counts[:, code], rows)
        if found is None:
            continue
        known += 1
        if (
            found.base >= EXTINCT_BASE_SHARE
            and found.last < EXTINCT_SHARE * found.base
            and found.high < -found.base / 2
        ):
            gone[mode] = {"base_share": found.base, "last_share": found.last}
    if not known:
        return _skip(check_id, title, "an end of the run has fewer than two prompts")
    lost = sum(entry["base_share"] for entry in gone.values())
    status: Status = "fail" if lost >= 0.4 else "warn" if lost >= 0.05 else "pass"
    said = ", ".join(f"{mode} {entry['base_share']:.2f} -> {entry['last_share']:.3f}" for mode, entry in gone.items())
    return Check(
        id=check_id,
        title=title,
        status=status,
        method="hindsight",
        metric="share of the base in formats that died out",
        unit="share",
        value=lost,
        baseline=0.0,
        threshold=0.4 if status == "fail" else 0.05,
        first_step=_died(ends.case, gone) if gone else None,
        message=f"{len(gone)} died out: {said}" if gone else "every format of the base is still written",
        evidence={"modes": gone},
        advice="" if status == "pass" else _WIDEN,
    )


def _died(case: Case, gone: Mapping[str, Any]) -> int | None:
    """First step from which one of the modes stays below a tenth of its base share."""
    steps = []
    for mode, entry in gone.items():
        values = case.line.mode_shares.get(mode)
        if values is None:
            continue
        known = np.flatnonzero(np.isfinite(values))
        over = np.flatnonzero(trailing_mean(values[known], SMOOTHING_STEPS) >= EXTINCT_SHARE * entry["base_share"])
        if not over.size or over[-1] + 1 < known.size:
            steps.append(int(case.line.steps[known[over[-1] + 1 if over.size else 0]]))
    return min(steps, default=None)


def _format_winner(check_id: str, title: str, ends: _Ends) -> Check:
    if (reason := ends.absent("completions", "rewards")) is not None:
        return _skip(check_id, title, reason)
    contrast = ends.contrast
    assert contrast is not None
    counts = ends.groups["modes"].astype(np.float64)
    rows = counts.sum(axis=1)
    shares = [contrast.ratio(counts[:, code], rows) for code in range(counts.shape[1])]
    known = [(code, share) for code, share in enumerate(shares) if share is not None]
    if not known:
        return _skip(check_id, title, "an end of the run has fewer than two prompts")
    winner, share = max(known, key=lambda pair: pair[1].last)
    name = ends.case.modes[winner]
    table = _rewards_by_mode(ends)
    if share.low < 0.15:
        return Check(
            id=check_id, title=title, status="pass", method="hindsight", metric=f"share of {name}", unit="share",
            value=share.last, baseline=share.base, message=f"no format took over; the largest is {name}, "
            + _between(share), evidence={"reward_by_mode": table},
        )  # fmt: skip
    rewards = np.stack([ends.groups["modes_reward"], ends.groups["modes_scored"]], axis=2)
    gaps: dict[str, tuple[float, float]] = {}
    for code, other in known:
        scored = table.get(ends.case.modes[code], {}).get("base_scored") or 0.0
        if code == winner or other.base < EXTINCT_BASE_SHARE or scored < 20:
            continue
        columns = np.concatenate([rewards[:, code], rewards[:, winner]], axis=1)
        lead = contrast.at_base(columns, lambda s: s[..., 0] / s[..., 1] - s[..., 2] / s[..., 3])
        if lead is not None:
            gaps[ends.case.modes[code]] = lead
    if not gaps:
        return _skip(check_id, title, "the base has too few rewarded completions of other formats to compare")
    best, (gap, error) = max(gaps.items(), key=lambda item: item[1][0])
    low, high = gap - contrast.z * error, gap + contrast.z * error
    status: Status = "warn" if low > 0.05 else "pass"
    return Check(
        id=check_id,
        title=title,
        status=status,
        method="hindsight",
        metric="base reward of the best other format minus the winner's",
        unit="reward",
        value=gap,
        baseline=0.0,
        threshold=0.05,
        interval=(low, high),
        message=f"{name} grew from {share.base:.2f} to {share.last:.2f}; at the base {best} earned {gap:+.3f} against "
        f"it (interval {low:+.3f} to {high:+.3f})",
        evidence={"winner": name, "reward_by_mode": table},
        advice="" if status == "pass" else "The loop amplified a worse format. " + _WIDEN,
    )


def _rewards_by_mode(ends: _Ends) -> dict[str, dict[str, float | None]]:
    _, is_base, is_last = ends.case.ends()
    table: dict[str, dict[str, float | None]] = {}
    for code, mode in enumerate(ends.case.modes):
        entry: dict[str, float | None] = {}
        for label, mine in (("base", is_base), ("last", is_last)):
            scored = float(ends.groups["modes_scored"][mine, code].sum())
            total = float(ends.groups["modes_reward"][mine, code].sum())
            entry |= {f"{label}_scored": scored, f"{label}_reward": total / scored if scored else None}
        if entry["base_scored"] or entry["last_scored"]:
            table[mode] = entry
    return table


def _near_duplicates(check_id: str, title: str, ends: _Ends) -> Check:
    name = "rlmon/text/near_duplicate_across"
    if (reason := _no_words(ends, name)) is not None:
        return _skip(check_id, title, reason)
    assert ends.wording is not None
    found = ends.wording.ends[name]
    status: Status = "fail" if found.low > 0.5 else "warn" if found.low > 0.2 else "pass"
    evidence = _sizes(found)
    if ends.case.series("exact duplicate share") is not None:
        evidence |= {"exact_duplicate_share_base": ends.case.base_mean("exact duplicate share"),
                     "exact_duplicate_share_last": ends.case.last_mean("exact duplicate share")}  # fmt: skip
    return Check(
        id=check_id, title=title, status=status, method="hindsight", metric=name, unit="share of pairs",
        value=found.last, baseline=found.base, threshold=found.base + (0.5 if status == "fail" else 0.2),
        interval=(found.base + found.low, found.base + found.high), message=_between(found), evidence=evidence,
        advice="" if status == "pass" else _WIDEN,
    )  # fmt: skip


def _no_words(ends: _Ends, name: str) -> str | None:
    if (reason := ends.absent("completions")) is not None:
        return reason
    if ends.wording is None:
        return "the text of the completions was not stored; store it (rlmon_store_text: full) to have this check"
    if name not in ends.wording.ends:
        return "the ends of the run hold too few words to compare (at least 8 prompts with 256 words in each part)"
    return None


def _word_diversity(check_id: str, title: str, ends: _Ends) -> Check:
    name = "rlmon/text/distinct_2"
    if (reason := _no_words(ends, name)) is not None:
        return _skip(check_id, title, reason)
    assert ends.wording is not None
    packed = ends.wording.ends.get("rlmon/text/compression_ratio")
    evidence = {} if packed is None else {"compression_ratio_base": packed.base, "compression_ratio_last": packed.last}
    return _narrowing(
        check_id, title, name, "distinct word pairs of all", ends.wording.ends[name], 0.6, 0.3, _WIDEN, evidence
    )


def _sentence_openings(check_id: str, title: str, ends: _Ends) -> Check:
    if (reason := _no_words(ends, "sentence openings")) is not None:
        return _skip(check_id, title, reason)
    assert ends.wording is not None
    return _narrowing(
        check_id, title, "effective number of sentence openings", "effective number",
        ends.wording.ends["sentence openings"], 0.6, 0.3, _WIDEN,
    )  # fmt: skip


def _correct_diversity(check_id: str, title: str, ends: _Ends) -> Check:
    if (reason := ends.absent("completions") or ends.no_successes()) is not None:
        return _skip(check_id, title, reason)
    if (reason := _no_keys(ends)) is not None:
        return _skip(check_id, title, reason)
    assert ends.contrast is not None
    found = ends.contrast.mean(ends.groups["templates_correct"])
    if found is None:
        return _skip(check_id, title, "too few prompts have two rewarded completions at both ends of the run")
    return _narrowing(
        check_id, title, "rlmon/text/effective_templates_within_correct", "templates", found, 0.6, 0.4,
        "Diversity among correct completions is what later training can still choose from. " + _WIDEN,
    )  # fmt: skip


def _no_keys(ends: _Ends) -> str | None:
    live = ends.case.fold.live
    if live is not None and live.stored_text == "off":
        return "rlmon_store_text was off: templates and answers were not kept; set it to full or hash"
    return None


def _answer_diversity(check_id: str, title: str, ends: _Ends) -> Check:
    if (reason := ends.absent("completions") or _no_keys(ends)) is not None:
        return _skip(check_id, title, reason)
    assert ends.contrast is not None
    found = ends.contrast.mean(ends.groups["answers"])
    if found is None:
        return _skip(check_id, title, "too few prompts have two completions with an answer at both ends of the run")
    reward = ends.contrast.ratio(ends.groups["reward"], ends.groups["scored"])
    right = ends.contrast.mean(ends.groups["answers_correct"])
    check = _narrowing(
        check_id, title, "rlmon/text/effective_answers_within", "answers", found, 0.6, None,
        "The policy agrees with itself without being right more often: look at `rlmon show`, raise beta or "
        "temperature.",
        {"reward_change": None if reward is None else reward.change,
         "correct_only_base": None if right is None else right.base,
         "correct_only_last": None if right is None else right.last},
    )  # fmt: skip
    if check.status == "warn" and reward is not None and reward.low > 0:
        return _as_pass(check, f"{check.message}; reward rose by {reward.change:.3g}, so this is learning")
    return check


def _as_pass(check: Check, message: str) -> Check:
    return dataclasses.replace(check, status="pass", message=message, advice="")


def _pass_at_k(check_id: str, title: str, ends: _Ends) -> Check:
    if (reason := ends.no_successes()) is not None:
        return _skip(check_id, title, reason)
    assert ends.contrast is not None
    _, is_base, is_last = ends.case.ends()
    n, c = ends.groups["known"], ends.groups["successes"]
    sizes = n[(is_base | is_last) & (n > 0)]
    least = int(np.quantile(sizes, 0.1)) if sizes.size else 0
    if least < 2:
        return _skip(
            check_id, title, "there is one scored completion per prompt; pass@k needs several (num_generations)"
        )
    k = 1 << (least.bit_length() - 1)
    values = pass_at_k(n, c, k)
    found, single = ends.contrast.mean(values), ends.contrast.mean(pass_at_k(n, c, 1))
    if found is None or single is None:
        return _skip(check_id, title, "an end of the run has fewer than two prompts with rewards")
    status: Status = "fail" if found.high < -0.05 else "warn" if found.high < 0 else "pass"
    how = "the same prompts" if found.paired * 2 >= found.prompts_last else "other prompts at the end than at the base"
    return Check(
        id=check_id, title=title, status=status, method="hindsight", metric=f"pass@{k}", unit="probability",
        value=found.last, baseline=found.base, threshold=found.base - (0.05 if status == "fail" else 0.0),
        interval=(found.base + found.low, found.base + found.high),
        message=f"pass@{k} {_between(found)}; pass@1 {_between(single)}; {how}",
        evidence={"k": k, "pass_at_1_base": single.base, "pass_at_1_last": single.last, **_sizes(found)},
        advice="" if status == "pass" else "The run trades breadth for the mean: stop earlier, raise beta, or train on "
        "prompts that are not solved yet.",
    )  # fmt: skip


def pass_at_k(n: Floats, c: Floats, k: int) -> Floats:
    """Chance that one of k completions drawn without replacement is a success, [G]; NaN where n < k.

    1 - C(n - c, k) / C(n, k) as a product (Chen et al. 2021, arXiv:2107.03374, eq. 1).
    """
    value = np.ones_like(n, dtype=np.float64)
    for i in range(k):
        value *= np.clip(n - c - i, 0.0, None) / np.maximum(n - i, 1.0)
    return np.where(n >= k, 1.0 - value, np.nan)


def _truncation(check_id: str, title: str, ends: _Ends) -> Check:
    name = "rlmon/health/truncated"
    if ends.case.series(name) is None or ends.case.windows is None:
        reason = ends.case.run.lacks.get("truncation", "truncation was not logged")
        return _skip(check_id, title, reason)
    base, last = ends.case.base_mean(name), ends.case.last_mean(name)
    if base is None or last is None:
        return _skip(check_id, title, "truncation was logged at one end of the run only")
    status: Status = "pass"
    if last - base > 0.1:
        status = "fail" if last > 0.5 else "warn" if last > 0.25 else "pass"
    return Check(
        id=check_id, title=title, status=status, method="hindsight", metric="rlmon/health/truncated", unit="share",
        value=last, baseline=base, threshold=0.5 if status == "fail" else 0.25,
        message=f"cut off by the token limit: {base:.3f} -> {last:.3f} of all completions",
        advice="" if status == "pass" else "Raise max_completion_length, or set mask_truncated_completions=True; look "
        "whether longer completions earn more for a reason.",
    )  # fmt: skip


def _length_growth(check_id: str, title: str, ends: _Ends) -> Check:
    if (reason := ends.absent("completions")) is not None:
        return _skip(check_id, title, reason)
    assert ends.contrast is not None
    tokens = ends.groups["tokens_known"].sum() > 0
    length, unit = ("tokens", "tokens") if tokens else ("characters", "characters")
    rows = ends.groups["tokens_known" if tokens else "rows"]
    found = ends.contrast.ratio(ends.groups[length], rows)
    if found is None or found.base <= 0:
        return _skip(check_id, title, "the length of the completions is not known")
    # Longer chains are how reasoning grows: what is lost by them (cut off, repeated, wrong) has checks of its own.
    status: Status = "note" if found.low > 2.0 * found.base else "pass"
    return Check(
        id=check_id, title=title, status=status, method="hindsight", metric=f"completion {unit}", unit=unit,
        value=found.last, baseline=found.base, threshold=3.0 * found.base,
        interval=(found.base + found.low, found.base + found.high), message=_between(found, f" {unit}")
        + ("" if status == "pass" else f": each one costs {found.last / found.base:.1f} times as much"),
        evidence=_sizes(found),
        advice="" if status == "pass" else "Longer may be better or only longer: compare reward by length; "
        'loss_type="dr_grpo" removes the length bias.',
    )  # fmt: skip


def _shortcut(check_id: str, title: str, ends: _Ends) -> Check:
    if (reason := ends.absent("completions") or ends.no_successes()) is not None:
        return _skip(check_id, title, reason)
    assert ends.contrast is not None
    groups = ends.groups
    signs: list[str] = []
    evidence: dict[str, Any] = {}
    top = _top_answer(ends)
    if top is not None:
        base, last, low, prompts = top
        evidence |= {"top_answer_share_base": base, "top_answer_share_last": last, "top_answer_prompts": prompts}
        if low > 0.1:
            signs.append(f"one answer is given to {last:.2f} of all prompts (base {base:.2f})")
    short = ends.contrast.ratio(groups["characters_correct"], groups["successes"])
    if short is not None and short.base > 0:  # 0: the texts were not stored
        evidence |= {"winner_characters_base": short.base, "winner_characters_last": short.last}
        if short.high < -0.67 * short.base:
            signs.append(f"winners are {short.last / short.base:.2f} as long as at the base")
    bare = ends.case.modes.index("bare") if "bare" in ends.case.modes else None
    if bare is not None:
        right = groups["modes_correct"].astype(np.float64)
        found = ends.contrast.ratio(right[:, bare], right.sum(axis=1))
        if found is not None:
            evidence |= {"bare_winners_base": found.base, "bare_winners_last": found.last}
            if found.low > 0.3:
                signs.append(f"bare answers are {found.last:.2f} of the winners (base {found.base:.2f})")
    if not evidence:
        return _skip(check_id, title, "too few rewarded completions at an end of the run")
    status: Status = "fail" if len(signs) >= 2 else "warn" if signs else "pass"
    return Check(
        id=check_id, title=title, status=status, method="hindsight", metric="signs of a shortcut", unit="of 3",
        value=float(len(signs)), baseline=0.0, threshold=2.0 if status == "fail" else 1.0,
        message="; ".join(signs) if signs else "no answer, length or bare reply took over among winners",
        evidence=evidence,
        advice="" if status == "pass" else "Read winners with `rlmon show`; tighten the reward function, drop prompts "
        "whose answer can be guessed.",
    )  # fmt: skip


def _top_answer(ends: _Ends) -> tuple[float, float, float, int] | None:
    """Share of the prompts that get the most common answer at both ends (of the sample), the lower end of the change's
    interval, and the prompts of the last window; ``None`` where fewer than 30 prompts have an answer."""
    table = ends.case.counted.samples
    if not table or ends.case.windows is None or ends.contrast is None:
        return None
    shares = []
    answers: Any = None
    for end, source in (("last", ends.case.counted), ("base", ends.case.base or ends.case.counted)):
        window = ends.case.windows.last if end == "last" else ends.case.windows.base
        answer = np.concatenate([part["answer_key"].to_numpy() for part in source.samples])
        prompt = np.concatenate([part["prompt_key"].to_numpy() for part in source.samples])
        step = np.concatenate([part["step"].to_numpy() for part in source.samples])
        rank = np.concatenate([part["rank"].to_numpy() for part in source.samples])
        mine = (answer >= 0) & (rank >= 0)
        if not (end == "base" and ends.case.base is not None):
            mine &= np.isin(step, window)
        answer, prompt = answer[mine], prompt[mine]
        prompts = np.unique(prompt)
        if prompts.size < 30:
            return None
        if end == "last":
            values, counts = np.unique(answer, return_counts=True)
            answers = values[counts.argmax()]
        code = np.searchsorted(prompts, prompt)
        per_prompt = np.bincount(code, weights=answer == answers) / np.bincount(code)
        shares.append((float(per_prompt.mean()), float(per_prompt.std(ddof=1) / math.sqrt(prompts.size)), prompts.size))
    (last, last_error, size), (base, base_error, _) = shares
    return base, last, last - base - ends.contrast.z * math.hypot(last_error, base_error), size


MIN_VISITS = 4
MIN_PROMPTS = 20


def _forgotten(check_id: str, title: str, ends: _Ends) -> Check:
    if (reason := ends.no_successes()) is not None:
        return _skip(check_id, title, reason)
    early_n, early_k, late_n, late_k = prompt_halves(ends.case)
    solved = (early_n >= MIN_VISITS) & (late_n >= MIN_VISITS) & (early_k >= 0.5 * early_n)
    if int(solved.sum()) < MIN_PROMPTS:
        return _skip(
            check_id, title, f"only {int(solved.sum())} prompts were solved early and sampled again in the later half "
            f"({MIN_PROMPTS} are needed): the run has hardly begun a second epoch",
        )  # fmt: skip
    now = beta_cdf(0.25, late_k[solved] + 1.0, late_n[solved] - late_k[solved] + 1.0)
    lost = int((now >= CREDIBILITY).sum())
    total = int(solved.sum())
    assert ends.contrast is not None
    low, high = wilson(lost, total, ends.contrast.z)
    status: Status = "fail" if low > 0.1 else "warn" if low > 0.02 else "pass"
    return Check(
        id=check_id, title=title, status=status, method="hindsight", metric="share of solved prompts forgotten",
        unit="share", value=lost / total, baseline=0.0, threshold=0.1 if status == "fail" else 0.02,
        interval=(low, high),
        message=f"{lost} of {total} prompts that were solved in the first half are credibly below 1/4 in the second",
        evidence={"forgotten": lost, "solved_early": total},
        advice="" if status == "pass" else "Replay older prompts, raise beta, lower learning_rate.",
    )  # fmt: skip


def prompt_halves(case: Case) -> tuple[Floats, Floats, Floats, Floats]:
    """Attempts and successes per prompt, in the first and the second half of the steps; prompts in order of key."""
    groups = case.counted.groups
    train = ~groups["eval"]
    steps = np.unique(groups["step"][train])
    middle = steps[steps.size // 2]
    _, code = np.unique(groups["prompt"][train], return_inverse=True)
    late = groups["step"][train] >= middle
    n, k = groups["known"][train], groups["successes"][train]
    size = int(code.max()) + 1 if code.size else 0

    def total(values: Floats, mine: Any) -> Floats:
        return np.bincount(code[mine], weights=values[mine], minlength=size).astype(np.float64)

    return total(n, ~late), total(k, ~late), total(n, late), total(k, late)


def wilson(successes: int, trials: int, z: float) -> tuple[float, float]:
    """Wilson's interval of a share."""
    p = successes / trials
    middle = (p + z * z / (2 * trials)) / (1 + z * z / trials)
    reach = z / (1 + z * z / trials) * math.sqrt(p * (1 - p) / trials + z * z / (4 * trials * trials))
    return max(0.0, middle - reach), min(1.0, middle + reach)


def _impossible(check_id: str, title: str, ends: _Ends) -> Check:
    if (reason := ends.no_successes()) is not None:
        return _skip(check_id, title, reason)
    early_n, early_k, late_n, late_k = prompt_halves(ends.case)
    n, k = early_n + late_n, early_k + late_k
    tried = n >= 16
    if int(tried.sum()) < MIN_PROMPTS:
        return _skip(
            check_id, title, f"only {int(tried.sum())} prompts have 16 attempts ({MIN_PROMPTS} are needed): with "
            "fewer, a hard prompt cannot be told from an impossible one",
        )  # fmt: skip
    below = beta_cdf(HARD_SOLVE_RATE, k[tried] + 1.0, n[tried] - k[tried] + 1.0) >= CREDIBILITY
    count, total = int(below.sum()), int(tried.sum())
    assert ends.contrast is not None
    low, high = wilson(count, total, ends.contrast.z)
    status: Status = "warn" if low > 0.3 else "pass"
    return Check(
        id=check_id, title=title, status=status, method="hindsight", metric="share of prompts credibly below 1/8",
        unit="share", value=count / total, threshold=0.3, interval=(low, high),
        message=f"{count} of {total} prompts with 16 attempts or more are credibly solved less than once in 8",
        evidence={"impossible": count, "tried": total},
        advice="" if status == "pass" else "Leave them out for now (return None as their reward) or ask the verifier "
        "whether it can be satisfied at all.",
    )  # fmt: skip


def _eval_gap(check_id: str, title: str, ends: _Ends) -> Check:
    rewards = _eval_rewards(ends.case)
    train = ends.case.series("rlmon/health/reward_mean")
    if train is None or len(rewards) < 4:
        reason = ends.case.run.lacks.get("eval", f"there are {len(rewards)} evaluations; 4 are needed")
        return _skip(check_id, title, reason)
    steps = np.array([step for step, _ in rewards])
    values = np.array([value for _, value in rewards])
    known = np.isfinite(train)
    smooth = trailing_mean(train[known], SMOOTHING_STEPS)
    at = np.searchsorted(ends.case.line.steps[known], steps, side="right") - 1
    usable_ = at >= 0
    gap = smooth[at[usable_]] - values[usable_]
    values = values[usable_]
    if gap.size < 4:
        return _skip(check_id, title, "fewer than 4 evaluations came after a training step")
    half = gap.size // 2
    first, second = gap[:half], gap[half:]
    growth = float(second.mean() - first.mean())
    noise = float(np.std(np.diff(gap), ddof=1)) / math.sqrt(2.0) if gap.size > 2 else 0.0
    quantile = student.quantile(1.0 - ends.alpha / 2.0, max(3, gap.size - 2))
    reach = quantile * noise * math.sqrt(1.0 / half + 1.0 / second.size)
    falling = values[half:].mean() < values[:half].mean()
    status: Status = "pass"
    if growth - reach > 0.15 and falling:
        status = "fail"
    elif growth - reach > 0.05:
        status = "warn"
    return Check(
        id=check_id, title=title, status=status, method="hindsight", metric="train reward minus eval reward",
        unit="reward", value=float(second.mean()), baseline=float(first.mean()),
        threshold=float(first.mean()) + (0.15 if status == "fail" else 0.05),
        interval=(float(second.mean()) - reach, float(second.mean()) + reach),
        message=f"the gap went from {first.mean():+.3f} to {second.mean():+.3f} over {gap.size} evaluations; eval "
        f"reward {values[:half].mean():.3f} -> {values[half:].mean():.3f}",
        evidence={"evaluations": int(gap.size)},
        advice="" if status == "pass" else "The reward is being learned, not the task: look at what training rewards "
        "that evaluation does not.",
    )  # fmt: skip


def _eval_rewards(case: Case) -> list[tuple[int, float]]:
    logged = aliases.canonical(case.run.eval_scalars).get("rlmon/health/reward_mean")
    if logged:
        return [(step, value) for step, value in logged if math.isfinite(value)]
    groups = case.counted.groups
    if not groups or not groups["eval"].any():
        return []
    mine = groups["eval"]
    steps, at = np.unique(groups["step"][mine], return_inverse=True)
    means = ratio(
        np.bincount(at, weights=groups["reward"][mine], minlength=steps.size).astype(np.float64),
        np.bincount(at, weights=groups["scored"][mine], minlength=steps.size).astype(np.float64),
    )
    return [(int(s), float(v)) for s, v in zip(steps, means, strict=True) if math.isfinite(v)]


# --- about the log itself -----------------------------------------------------------------------------------------


def _rows_complete(check_id: str, title: str, case: Case) -> Check:
    counted = case.counted
    if not case.run.shards:
        return Check(
            id=check_id, title=title, status="skip", method="exact", message="there are no rows",
            reason=case.run.lacks.get("completions", "the source holds no completions"),
        )  # fmt: skip
    shed = 0 if case.fold.live is None else case.fold.live.shed_rows
    torn = 0 if case.fold.live is None else case.fold.live.torn_lines
    wrong = counted.damaged + len(counted.unreadable) + shed + torn
    parts = [f"{counted.rows} rows read"]
    for count, what in (
        (counted.duplicates, "written again by the tool and passed over"),
        (counted.damaged, "damaged"),
        (len(counted.unreadable), "files unreadable"),
        (shed, "shed by the monitor"),
        (torn, "torn lines"),
    ):
        if count:
            parts.append(f"{count} {what}")
    return Check(
        id=check_id, title=title, status="warn" if wrong else "pass", method="exact", metric="rows lost", unit="rows",
        value=float(counted.damaged + shed), baseline=0.0, threshold=0.0, message=", ".join(parts),
        evidence={"unreadable": {name[:200]: why[:300] for name, why in sorted(counted.unreadable.items())[:20]}},
        advice="Copy the files again; a tool that writes without a rename leaves a torn file when it is killed."
        if wrong else "",
    )  # fmt: skip


def _replay(check_id: str, title: str, case: Case) -> Check:
    live = case.fold.live
    assert live is not None
    if live.judged_anew is not None and not live.differences:
        said = ", ".join(f"{f.detector} {f.severity.upper()} at step {f.step}" for f in live.findings[:8])
        more = f" and {len(live.findings) - 8} more" if len(live.findings) > 8 else ""
        return Check(
            id=check_id, title=title, status="skip", method="exact", message="judged anew, so not compared",
            reason="judged anew here, which cannot be compared with what the run said then "
            f"({said or 'nothing'}{more}). {live.judged_anew}",
        )  # fmt: skip
    return Check(
        id=check_id, title=title, status="warn" if live.differences else "pass",
        method="exact", metric="differences", unit="count", value=float(len(live.differences)), baseline=0.0,
        threshold=0.0,
        message="; ".join(live.differences[:3]) if live.differences else
        f"folding {case.fold.looks} records gives the {len(live.findings)} live findings, step for step",
        evidence={"differences": list(live.differences[:50])},
        advice="The log was changed after the run, or written by another version of rlmon." if live.differences else "",
    )  # fmt: skip


def _faults(check_id: str, title: str, case: Case) -> Check:
    live = case.fold.live
    assert live is not None
    places = sorted({fault.place for fault in live.faults})
    return Check(
        id=check_id, title=title, status="warn" if places else "pass",
        method="exact", metric="places that failed", unit="count", value=float(len(places)), baseline=0.0,
        threshold=0.0,
        message=f"failed in {', '.join(places)}" if places else "no fault was recorded",
        evidence={"places": places}, advice="See events.jsonl for the errors; metrics of those steps are null."
        if places else "",
    )  # fmt: skip


HINDSIGHT: tuple[tuple[str, str, Callable[[str, str, _Ends], Check]], ...] = (
    ("mode-extinction", "Is every answer format of the base still written?", _mode_extinction),
    ("format-winner", "Did the best format win?", _format_winner),
    ("correct-diversity", "Are there still several ways to be right?", _correct_diversity),
    ("answer-diversity", "Do answers narrow only by getting right?", _answer_diversity),
    ("near-duplicates", "Do completions to different prompts differ?", _near_duplicates),
    ("word-diversity", "Does the wording keep its variety?", _word_diversity),
    ("sentence-openings", "Do sentences still begin in many ways?", _sentence_openings),
    ("pass-at-k", "Can several tries still solve as much?", _pass_at_k),
    ("shortcut", "Do winners solve the task rather than share a trick?", _shortcut),
    ("forgotten-prompts", "Does what was solved stay solved?", _forgotten),
    ("impossible-prompts", "Are few prompts out of reach?", _impossible),
    ("truncation", "Do completions end by themselves?", _truncation),
    ("length-growth", "Do completions keep from swelling?", _length_growth),
    ("eval-gap", "Does evaluation follow training?", _eval_gap),
)
"""Id, title and function of every hindsight check; their number shares out the error rate."""
ABOUT_ROWS: tuple[tuple[str, str, Callable[[str, str, Case], Check]], ...] = (
    ("rows-complete", "Were all rows read?", _rows_complete),
)
ABOUT_THE_MONITOR: tuple[tuple[str, str, Callable[[str, str, Case], Check]], ...] = (
    ("replay", "Does the log agree with itself?", _replay),
    ("monitor-faults", "Did the monitor itself work?", _faults),
)
"""The same of checks of the rows, and of those that only an rlmon log allows."""
