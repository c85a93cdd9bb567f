"""Audits as an engine would return them, for tests of what renders them: ``healthy``, ``collapsed``, ``hostile``, ...

Numbers are smooth curves with a little seeded noise; the same call gives the same object.
"""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

from as_asked import answer

from rlmon.audit.result import (
    Audit,
    Check,
    Coverage,
    Event,
    Example,
    Heat,
    HeatRow,
    MetricSummary,
    ModeStory,
    OpeningStory,
    RunFacts,
    Verdict,
)
from rlmon.detectors.catalog import WIDEN
from rlmon.records import Status

HOSTILE = (
    '</script><script>window.pwned=1</script><!--<img src=x onerror="window.pwned=2"> {{style}} &lt;b&gt; ]]>\n'
    "\x1b[31mred\x1b[0m \x1b]8;;https://evil.example\x07link\x1b]8;;\x07 \x9b2J [bold red]markup[/] [link=x]y[/link]\n"
    "# heading **bold** ![i](https://evil.example/i.png) [a](javascript:alert(1)) | cell | `code` ```fence\n"
    "::error file=x::injected\n<failure>&#0;</failure>\r"
    "\u202egnp.exe\u202c \u2066hidden\u2069 \x00 \ud800 \u2028 \ufeff"
)
"""A text that tries to be markup in HTML, a terminal, rich, Markdown, a workflow log and XML, all at once."""
HOSTILE_NAMES = (
    "__proto__",
    "constructor",
    "toString",
    "hasOwnProperty",
    "javascript:window.pwned=3",
    "<svg onload=window.pwned=4>",
)
"""Names that a page keyed by plain objects, or a link made of an id, would fall for."""

MODES = ("python", "prose", "boxed", "steps", "xml", "other")
_TEXT = {
    "python": "x = {a} + {b}\nprint(x)",
    "prose": "Adding {a} and {b} gives {c}, so the answer is {c}.",
    "boxed": "We have ${a} + {b} = {c}$, hence \\boxed{{{c}}}.",
    "steps": "1. Take {a}.\n2. Add {b}.\n3. That makes {c}.\nAnswer: {c}",
    "xml": "<answer>{c}</answer>",
    "other": "{c} {c} {c}",
}
_LEVEL_REASON = (
    "needs the policy's token distribution, which {reader} logs do not hold; log with RLMon(trainer) next time"
)


def healthy(steps: int = 120) -> Audit:
    """A run whose formats keep their number: PASS and SKIP only."""
    return _run(steps, collapse=False)


def solved(steps: int = 120) -> Audit:
    """The healthy run once its prompts are solved: PASS with a note."""
    audit = healthy(steps)
    note = Check(
        id="silent-groups-good",
        title="Is there still something to learn in most groups?",
        status="note",
        method="fold",
        message="in 91% of the groups every completion is right. NOTE at step 74.",
        metric="rlmon/group/all_good",
        unit="share of groups",
        value=0.93,
        threshold=0.6,
        first_step=71,
        alarm_step=74,
        advice="Move to harder prompts, or stop.",
    )
    finding = {
        **_findings(70, 90)[0],
        "detector": "silent-groups-good",
        "severity": "note",
        "step": 74,
        "metric": "rlmon/group/all_good",
        "baseline": None,
        "baseline_kind": "none",
    }
    events = [
        Event(step=71, kind="onset", severity="note", check=note.id, text="silent-groups-good begins"),
        Event(step=74, kind="finding", severity="note", check=note.id, text=note.message),
    ]
    return dataclasses.replace(
        audit,
        checks=[note, *audit.checks],
        findings=[finding],
        events=events,
        headline=f"{audit.headline} A note on compute: silent-groups-good since step 71.",
    )


def collapsed(steps: int = 180) -> Audit:
    """A run that lost five of six formats: checks of all statuses but the note, findings, an action, a heat strip."""
    return _run(steps, collapse=True)


def empty() -> Audit:
    """A path that a reader took but that holds no step: nothing could be judged."""
    run = RunFacts(
        id="empty-run",
        source="out/empty",
        reader="trl",
        steps=0,
        first_step=None,
        last_step=None,
        completions=0,
        prompts=0,
        eval_completions=0,
        group_size=None,
        coverage={"rows": 0, "unreadable": {}},
        baseline={"kind": "none", "prompts": 0, "completions": 0, "steps": 0},
        notes=("No completions were logged.",),
    )
    reason = "no completions in this run: set log_completions=True and save the trainer's output next time"
    checks = [
        Check(id=name, title=title, status="skip", method="hindsight", message="not computed", reason=reason)
        for name, title in (
            ("format-collapse", "answer formats keep their number"),
            ("silent-groups", "groups carry a signal"),
        )
    ]
    return Audit(
        run=run,
        verdict="insufficient",
        coverage=Coverage(judged=0, checks=2, outputs=False, missing={"entropy": reason, "groups": reason}),
        headline="Too little was logged to judge this run: 0 steps.",
        checks=checks,
        actions=(),
        findings=(),
        metrics={},
        correction="Nothing was tested.",
        steps=(),
        series={},
        mode_shares={},
        modes=(),
        heat=None,
        samples=(),
        events=(),
        timing_seconds={"wall": 0.01, "cpu": 0.01},
    )


def one_step() -> Audit:
    """A run of a single step with single-point series, one of them not measured."""
    base = healthy(1)
    return dataclasses.replace(
        base,
        verdict="insufficient",
        coverage=dataclasses.replace(base.coverage, missing={"entropy": "one step is no baseline"}),
        headline="One step is too little to judge this run.",
    )


def long_run(steps: int = 20_000, samples: int = 500) -> Audit:
    """A long run with one sharp spike in ``rlmon/health/length_mean`` and as many samples as a result may have."""
    audit = _run(steps, collapse=True)
    series = {name: list(values) for name, values in audit.series.items()}
    series["rlmon/health/length_mean"][steps // 3] = 9_999.0
    rng = random.Random(3)
    texts = [
        _example(
            1 + (steps - 1) * i // max(1, samples - 1),
            rng.choice(MODES),
            rng,
            completion_pad="word " * rng.randint(20, 400),
        )
        for i in range(samples)
    ]
    return dataclasses.replace(audit, series=series, samples=texts)


def hostile() -> Audit:
    """``collapsed`` with ``HOSTILE`` in every text and ``HOSTILE_NAMES`` as names of modes, sources, metrics, ids."""
    audit = collapsed(60)
    names = dict(zip(MODES, HOSTILE_NAMES, strict=True))
    huge = (HOSTILE * 60)[:4_000]

    def spoil(example: Example, index: int) -> Example:
        return dataclasses.replace(
            example,
            prompt=HOSTILE,
            completion=huge if index % 3 == 0 else HOSTILE,
            mode=names[example.mode],
            prompt_id=HOSTILE_NAMES[index % 6],
            source=HOSTILE_NAMES[(index + 1) % 6],
            template=HOSTILE,
            label=example.label,
        )

    def spoil_all(examples: Sequence[Example]) -> list[Example]:
        return [spoil(example, index) for index, example in enumerate(examples)]

    checks = [
        dataclasses.replace(
            check,
            message=repr(HOSTILE),
            title=HOSTILE,
            advice=HOSTILE,
            reason=check.reason and HOSTILE,
            source=HOSTILE,
            metric=HOSTILE if check.metric else None,
            unit=HOSTILE,
            examples=spoil_all(check.examples),
            evidence={**dict.fromkeys(HOSTILE_NAMES, HOSTILE), HOSTILE: [HOSTILE, {"__proto__": 1.5}]},
        )
        for check in audit.checks
    ]
    assert audit.heat is not None
    heat_rows = [
        dataclasses.replace(row, prompt=HOSTILE, prompt_id=HOSTILE_NAMES[i % 6], source=HOSTILE)
        for i, row in enumerate(audit.heat.rows)
    ]
    facts = dataclasses.replace(
        audit.run,
        id=HOSTILE,
        source=HOSTILE,
        reader=HOSTILE,
        coverage={"__proto__": HOSTILE, HOSTILE: {HOSTILE: HOSTILE}},
        baseline={"kind": HOSTILE, "__proto__": 3},
        config={"__proto__": {"polluted": True}, HOSTILE: HOSTILE},
        notes=(HOSTILE,),
    )
    spoilt_names = [*HOSTILE_NAMES, HOSTILE]
    series = dict(audit.series)
    series |= {name: list(audit.series["rlmon/format/effective"]) for name in spoilt_names}
    return dataclasses.replace(
        audit,
        run=facts,
        headline=HOSTILE,
        checks=checks,
        actions=[
            {**action, "rule": HOSTILE, "knob": HOSTILE, "reason": HOSTILE, "__proto__": HOSTILE}
            for action in audit.actions
        ],
        findings=[{**finding, "message": HOSTILE, "advice": HOSTILE, "source": HOSTILE} for finding in audit.findings],
        metrics={
            **audit.metrics,
            **{
                name: MetricSummary(unit=HOSTILE, base=1.0, first=1.0, last=1.0, min=1.0, max=1.0)
                for name in spoilt_names
            },
        },
        correction=HOSTILE,
        series=series,
        mode_shares={names[mode]: values for mode, values in audit.mode_shares.items()},
        modes=[
            dataclasses.replace(story, mode=names[story.mode], examples=spoil_all(story.examples))
            for story in audit.modes
        ],
        heat=dataclasses.replace(audit.heat, rows=heat_rows, note=HOSTILE),
        openings=[dataclasses.replace(story, opening=HOSTILE[:60]) for story in audit.openings],
        samples=spoil_all(audit.samples),
        events=[dataclasses.replace(event, text=HOSTILE, check=event.check and HOSTILE) for event in audit.events],
        timing_seconds={"__proto__": 1.0, HOSTILE: 2.0, "wall": 3.0},
    )


# ---- how a run is made up


def _run(steps: int, *, collapse: bool) -> Audit:
    rng = random.Random(7)
    numbers = list(range(1, steps + 1))
    onset = max(1, round(steps * 0.45))
    alarm = max(1, round(steps * 0.58))
    shares = _shares(numbers, rng, collapse)
    series = _series(numbers, shares, rng, collapse)
    checks = _checks(series, onset, alarm, steps, rng, collapse)
    findings = _findings(onset, alarm) if collapse else []
    actions = _actions(alarm) if collapse else []
    verdict: Verdict = "fail" if collapse else "pass"
    return Audit(
        run=RunFacts(
            id="grpo-arith-7f3a",
            source="out/grpo-arith",
            reader="trl",
            steps=steps,
            first_step=1,
            last_step=steps,
            completions=steps * 64,
            prompts=min(steps * 8, 960),
            eval_completions=128,
            group_size=8,
            coverage={
                "rows": steps * 64,
                "rewritten": 32 if collapse else 0,
                "damaged": 1 if collapse else 0,
                "unreadable": {"completions/completions_00031.parquet": "not a Parquet file"} if collapse else {},
                "steps_without_rows": 2 if collapse else 0,
                "text_budget_words": 2048,
            },
            baseline={"kind": "early_rounds", "prompts": 32, "completions": 256, "steps": min(4, steps)},
            config={"beta": 0.0, "learning_rate": 1e-4, "num_generations": 8, "temperature": 1.0, "loss_type": "dapo"},
            notes=("Batches that were logged twice on resume were passed over.",) if collapse else (),
        ),
        verdict=verdict,
        coverage=Coverage(
            judged=sum(check.status not in ("skip", "error") for check in checks),
            checks=len(checks),
            outputs=True,
            missing={},
        ),
        headline=(
            "This run lost 4 of 6 answer formats: python wrote 97 % at the end, 41 % at the start; "
            f"it began near step {onset}."
            if collapse
            else f"No damage found in {steps} steps: answer formats, entropy and groups held."
        ),
        checks=checks,
        actions=actions,
        findings=findings,
        metrics={name: _summary(name, values) for name, values in series.items()},
        correction=(
            "alpha 0.01 is split over the detectors of a run, which look at every step (anytime-valid, Ville). "
            "Hindsight checks look once; their p-values are corrected together (Holm, 9 checks)."
        ),
        steps=numbers,
        series=series,
        mode_shares=shares,
        openings=[
            OpeningStory(opening="Let us see", fate="gone", base_share=0.12, last_share=0.0),
            OpeningStory(opening="total = #", fate="took over", base_share=0.03, last_share=0.94),
        ]
        if collapse
        else [],
        modes=_modes(shares, onset, steps, rng, collapse),
        heat=_heat(steps, rng, collapse),
        samples=[
            _example(1 + (steps - 1) * i // 79, _mode_at(shares, 1 + (steps - 1) * i // 79, rng), rng)
            for i in range(80)
        ],
        events=_events(onset, alarm) if collapse else [],
        timing_seconds={"wall": 4.21, "cpu": 7.9, "reading": 1.3, "checks": 2.1},
    )


def _shares(numbers: Sequence[int], rng: random.Random, collapse: bool) -> dict[str, Sequence[float | None]]:
    start = dict(zip(MODES, (0.41, 0.22, 0.15, 0.12, 0.08, 0.02), strict=True))
    shares: dict[str, list[float | None]] = {mode: [] for mode in MODES}
    for number in numbers:
        gone = 1 / (1 + math.exp(-12 * (number / len(numbers) - 0.6))) if collapse else 0.0
        if len(numbers) > 20 and number % 37 == 0:
            for mode in MODES:
                shares[mode].append(None)
            continue
        weights = {
            mode: max(
                0.0,
                share * (1 + 0.18 * rng.uniform(-1, 1)) * (1.0 if mode == "python" else 1 - gone)
                + (gone if mode == "python" else 0),
            )
            for mode, share in start.items()
        }
        total = sum(weights.values())
        for mode in MODES:
            share = round(weights[mode] / total, 4)
            shares[mode].append(0.0 if collapse and mode != "python" and gone > 0.985 else share)
    return {mode: tuple(values) for mode, values in shares.items()}


def _series(
    numbers: Sequence[int], shares: Mapping[str, Sequence[float | None]], rng: random.Random, collapse: bool
) -> dict[str, Sequence[float | None]]:
    count = len(numbers)

    def curve(start: float, end: float, noise: float, every: int = 1) -> list[float | None]:
        values: list[float | None] = []
        for number in numbers:
            along = number / count
            grown = 1 / (1 + math.exp(-10 * (along - 0.55))) if collapse else along
            value = start + (end - start) * grown + noise * rng.uniform(-1, 1)
            values.append(round(value, 5) if (number - 1) % every == 0 else None)
        return values

    effective: list[float | None] = []
    top: list[float | None] = []
    for index in range(count):
        here = [values[index] for values in shares.values()]
        known = [share for share in here if share is not None]
        effective.append(round(math.exp(-sum(p * math.log(p) for p in known if p > 0)), 4) if known else None)
        top.append(max(known) if known else None)
    return {
        "rlmon/format/effective": effective,
        "rlmon/format/effective_correct": [value and round(value * 0.93, 4) for value in effective],
        "rlmon/format/top_share": top,
        "rlmon/entropy/mean": curve(0.62, 0.09 if collapse else 0.51, 0.03),
        "rlmon/kl/mean": curve(0.001, 0.31 if collapse else 0.03, 0.004, every=5),
        "rlmon/health/reward_mean": curve(0.71, 0.97, 0.03),
        "rlmon/group/silent": curve(0.25, 0.88 if collapse else 0.4, 0.06),
        "rlmon/group/all_good": curve(0.2, 0.8 if collapse else 0.3, 0.05),
        "rlmon/group/lone_success_weight": curve(0.05, 0.02, 0.02),
        "rlmon/health/length_mean": curve(44, 17 if collapse else 46, 2),
        "rlmon/health/truncated": [0.0] * count,
        "rlmon/text/distinct_2": curve(0.81, 0.24 if collapse else 0.79, 0.02),
        "rlmon/text/distinct_3": curve(0.93, 0.31 if collapse else 0.92, 0.02),
        "rlmon/text/near_duplicate_within": curve(0.04, 0.71 if collapse else 0.05, 0.02),
        "rlmon/text/repetition": curve(0.02, 0.03, 0.01),
        "rlmon/collision/template_across_effective": curve(9.2, 1.6 if collapse else 9.0, 0.3),
        "rlmon/collision/mode_within_effective": curve(3.1, 1.1 if collapse else 3.0, 0.1),
        "trainer/grad_norm": curve(0.8, 0.3, 0.2),
        "trainer/learning_rate": [1e-4 * (1 - number / (count + 1)) for number in numbers],
        "rlmon/moves/effective_across": [None] * count,
    }


def _summary(name: str, values: Sequence[float | None]) -> MetricSummary:
    known = [value for value in values if value is not None]
    unit = {"rlmon/entropy/mean": "nats", "rlmon/kl/mean": "nats per token", "rlmon/format/effective": "modes"}
    if not known:
        return MetricSummary(unit="moves", base=None, first=None, last=None, min=None, max=None)
    head, tail = known[:4], known[-max(5, len(known) // 10) :]
    return MetricSummary(
        unit=unit.get(name, "share" if "share" in name or "text" in name or "group" in name else "units"),
        base=sum(head) / len(head),
        first=known[0],
        last=sum(tail) / len(tail),
        min=min(known),
        max=max(known),
    )


def _example(
    step: int, mode: str, rng: random.Random, *, label: str = "", split: str = "train", completion_pad: str = ""
) -> Example:
    a, b = rng.randint(2, 60), rng.randint(2, 60)
    right = rng.random() < 0.8
    text = _TEXT[mode].format(a=a, b=b, c=a + b if right else a + b + 1)
    return Example(
        step=step,
        split=split,
        prompt_id=f"p{a:02d}{b:02d}",
        prompt=f"What is {a} + {b}?",
        completion=(text + ("\n" + completion_pad if completion_pad else ""))[:4_000],
        mode=mode,
        template=f"{mode}-1",
        source="addition" if a % 2 else "sums",
        reward=1.0 if right else 0.0,
        advantage=round(0.35 if right else -1.4, 3),
        truncated=False,
        label=label,
    )


def _mode_at(shares: Mapping[str, Sequence[float | None]], step: int, rng: random.Random) -> str:
    weights = [values[step - 1] or 0.0 for values in shares.values()]
    return rng.choices(list(shares), weights)[0] if any(weights) else "python"


def _checks(
    series: Mapping[str, Sequence[float | None]], onset: int, alarm: int, steps: int, rng: random.Random, collapse: bool
) -> list[Check]:
    effective = series["rlmon/format/effective"]
    last = effective[-1]
    shown = [_example(1, "prose", rng, label="base"), _example(steps, "python", rng, label="last")]

    def check(id: str, title: str, status: Status, message: str, **more: Any) -> Check:
        more.setdefault("method", "hindsight")
        return answer(id=id, title=title, status=status, message=message, **more)

    passes = [
        check(
            "length-collapse",
            "completions keep their length",
            "pass",
            "mean length 44.1 at the start, 45.9 at the end",
            method="fold",
            metric="rlmon/health/length_mean",
            unit="tokens",
            value=45.9,
            baseline=44.1,
            threshold=22.0,
        ),
        check(
            "non-finite",
            "no NaN or infinity in rewards",
            "pass",
            f"0 of {steps * 64} rewards",
            method="exact",
            metric="rlmon/health/reward_non_finite",
            unit="values",
            value=0.0,
            threshold=0.0,
        ),
    ]
    skips = [
        check(
            "kl-drift",
            "the policy stays near its base",
            "skip",
            "not computed",
            method="fold",
            metric="rlmon/kl/mean",
            reason=_LEVEL_REASON.format(reader="trl"),
        ),
        check(
            "move-collapse",
            "sentences begin in several ways",
            "skip",
            "not computed",
            method="fold",
            metric="rlmon/moves/effective_across",
            reason=_LEVEL_REASON.format(reader="trl"),
        ),
    ]
    if not collapse:
        good = check(
            "format-collapse",
            "answer formats keep their number",
            "pass",
            "4.4 effective formats at the start, 4.5 at the end",
            method="fold",
            metric="rlmon/format/effective",
            unit="modes",
            value=last,
            baseline=4.43,
            threshold=3.5,
        )
        return [good, *passes, *skips]
    return [
        check(
            "format-collapse",
            "answer formats keep their number",
            "fail",
            f"effective formats fell from 4.43 to 1.08; evidence sufficed at step {alarm}",
            method="fold",
            metric="rlmon/format/effective",
            unit="modes",
            value=1.08,
            baseline=4.43,
            threshold=2.66,
            interval=(1.02, 1.19),
            first_step=onset,
            alarm_step=alarm,
            source="addition",
            evidence={
                "losers": {"prose": 0.22, "boxed": 0.15},
                "gainers": {"python": 0.56},
                "e_value": 312.4,
                "prompts": 32,
            },
            examples=shown,
            advice=WIDEN,
        ),
        check(
            "mode-extinction",
            "no format dies out",
            "fail",
            "4 formats of the baseline were not seen in the last tenth",
            metric="extinct formats",
            unit="modes",
            value=4.0,
            baseline=0.0,
            threshold=1.0,
            first_step=alarm,
            evidence={"extinct": ["prose", "boxed", "steps", "xml"], "p_value": 1.2e-7},
            examples=shown[:1],
            advice=WIDEN,
        ),
        check(
            "silent-groups",
            "groups carry a signal",
            "warn",
            "88 % of groups had equal rewards in the last tenth",
            metric="rlmon/group/silent",
            unit="share",
            value=0.88,
            baseline=0.25,
            threshold=0.5,
            interval=(0.84, 0.91),
            first_step=onset + 4,
            evidence={"all_good": 0.8, "all_bad": 0.08},
            advice="Drop solved prompts (dynamic sampling) or raise num_generations.",
        ),
        check(
            "lone-success",
            "lucky one-offs do not steer",
            "error",
            "could not be computed",
            reason="ValueError: advantages of step 31 have 7 values for a group of 8",
        ),
        *passes[1:],
        check(
            "reward-rise",
            "reward did not fall",
            "pass",
            "mean reward rose from 0.71 to 0.97",
            metric="rlmon/health/reward_mean",
            unit="reward",
            value=0.97,
            baseline=0.71,
            threshold=0.6,
        ),
        *skips,
    ]


def _findings(onset: int, alarm: int) -> list[dict[str, Any]]:
    common = {
        "source": "addition",
        "baseline_kind": "early_rounds",
        "baseline_prompts": 32,
        "benign_sharpening": False,
        "advice": WIDEN,
        "evidence": {},
    }
    return [
        {
            "finding_id": f"f{index}",
            "detector": "format-collapse",
            "severity": severity,
            "step": step,
            "metric": "rlmon/format/effective",
            "value": value,
            "baseline": 4.43,
            "threshold": line,
            "message": f"effective formats {value} of 4.43",
            **common,
        }
        for index, (severity, step, value, line) in enumerate(
            (("warn", onset + 2, 3.4, 3.54), ("fail", alarm, 2.5, 2.66))
        )
    ]


def _actions(alarm: int) -> list[dict[str, Any]]:
    common = {
        "action_id": "a0",
        "step": alarm + 1,
        "knob": "beta",
        "old": 0.0,
        "new": 0.05,
        "finding_id": "f1",
        "rule": "kl-budget",
        "dry_run": False,
    }
    quarantine = {
        **common, "rule": "quarantine-shortcuts", "knob": "advantages", "old": None, "new": "1", "finding_id": None,
        "reason": "1 group of nearly impossible prompts neutralised", "effect": None, "effect_reason": None,
    }  # fmt: skip
    waiting = {**common, "reason": "format-collapse FAIL", "effect": None, "effect_reason": None}
    stop = {**waiting, "action_id": "d0", "rule": "stop-when-lost", "knob": "training", "old": None, "new": "stop"}
    anchor = {**waiting, "action_id": "f0", "rule": "anchor-dying", "knob": "anchor_weight"}
    return [
        *(
            {**quarantine, "action_id": f"q{step}", "step": step, "phase": phase}
            for step in range(1, alarm, 3)
            for phase in ("decided", "applied")
        ),
        {**stop, "dry_run": True, "phase": "decided"},
        {**anchor, "phase": "decided"},
        {**anchor, "phase": "failed", "reason": "format-collapse FAIL: RuntimeError: odd"},
        {**common, "phase": "decided", "reason": "format-collapse FAIL", "effect": None, "effect_reason": None},
        {**common, "phase": "applied", "reason": "format-collapse FAIL", "effect": None, "effect_reason": None},
        {**common, "phase": "measured", "reason": "", "effect": "helped", "effect_reason": "KL 0.4 -> 0.2"},
    ]


def _events(onset: int, alarm: int) -> list[Event]:
    return [
        Event(
            step=onset,
            kind="onset",
            severity="fail",
            check="format-collapse",
            text="effective formats stay below their line",
        ),
        Event(
            step=onset + 2,
            kind="finding",
            severity="warn",
            check="format-collapse",
            text="effective formats 3.4 of 4.43",
        ),
        Event(
            step=onset + 4, kind="onset", severity="warn", check="silent-groups", text="silent groups stay above 50 %"
        ),
        Event(
            step=alarm, kind="finding", severity="fail", check="format-collapse", text="effective formats 2.5 of 4.43"
        ),
        Event(step=alarm + 1, kind="action", severity="info", check="kl-budget", text="kl-budget: beta 0 -> 0.05"),
        Event(
            step=alarm + 3, kind="fault", severity="info", check=None, text="rollouts could not be written, 8 rows shed"
        ),
        Event(step=1, kind="note", severity="info", check=None, text="attempt 0 began"),
    ]


def _modes(
    shares: Mapping[str, Sequence[float | None]], onset: int, steps: int, rng: random.Random, collapse: bool
) -> list[ModeStory]:
    stories = []
    for mode, values in shares.items():
        known = [value for value in values if value is not None]
        first, last = (
            sum(part) / len(part) for part in (known[:4] or [0.0], known[-max(5, len(known) // 10) :] or [0.0])
        )
        gone = collapse and mode != "python"
        vanished = gone and mode not in ("other", "xml")
        stories.append(
            ModeStory(
                mode=mode,
                fate="extinct" if vanished else "shrunk" if gone else "grown" if collapse else "steady",
                base_share=round(first, 4),
                last_share=0.0 if vanished else round(last, 4),
                base_reward=0.7,
                last_reward=None if vanished else 0.96,
                last_seen_step=round(steps * 0.95) if vanished else steps,
                examples=[
                    _example(1, mode, rng, label="base"),
                    _example(onset + 3, "python" if gone else mode, rng, label="first"),
                    _example(steps, "python" if gone else mode, rng, label="last"),
                ],
            )
        )
    return stories


def _heat(steps: int, rng: random.Random, collapse: bool) -> Heat:
    bins = min(24, steps)
    edges = [(1 + steps * i // bins, max(1, steps * (i + 1) // bins)) for i in range(bins)]
    rows = []
    fates = ("impossible", "forgotten", "lucky", "solved", "learned", "mixed")
    for index in range(36):
        fate = fates[index * len(fates) // 36] if collapse else fates[3 + index % 3]
        rates: list[float | None] = []
        for at in range(bins):
            along = at / max(1, bins - 1)
            level = {
                "impossible": 0.0,
                "forgotten": 1.0 - along,
                "lucky": 0.0,
                "solved": 1.0,
                "learned": along,
                "mixed": 0.5,
            }[fate]
            if fate == "lucky" and at == bins // 2:
                level = 0.125
            noisy = level if fate in ("impossible", "lucky") else min(1.0, max(0.0, level + 0.15 * rng.uniform(-1, 1)))
            rates.append(round(noisy * 8) / 8 if fate != "lucky" else level)
            if rng.random() < 0.3:
                rates[-1] = None
        rows.append(
            HeatRow(
                prompt_id=f"p{index:04d}",
                prompt=f"What is {index + 3} + {2 * index + 1}?",
                source="addition",
                rates=rates,
                attempts=8 * sum(rate is not None for rate in rates),
                fate=fate,  # type: ignore[arg-type]
            )
        )
    return Heat(bins=edges, rows=rows, prompts=412, note="36 of 412 prompts: the worst first.")


def seeded(audit: Audit, number: int) -> Audit:
    """The same run with a little other noise, as another seed would have it, and a path of its own."""
    rng = random.Random(number)
    series = {
        name: [value if value is None else value * (1 + 0.01 * rng.uniform(-1, 1)) for value in values]
        for name, values in audit.series.items()
    }
    facts = dataclasses.replace(audit.run, source=f"{audit.run.source}-seed{number}")
    return dataclasses.replace(audit, run=facts, series=series)
