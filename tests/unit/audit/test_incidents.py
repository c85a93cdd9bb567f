"""Checks that saw one event are told once: what belongs together, what leads, and the words."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import pytest
from as_asked import answer
from hypothesis import given
from hypothesis import strategies as st

import rlmon.report.phrases as phrases
from rlmon.audit.clauses import clause, effective, percent
from rlmon.audit.incidents import Incident, among, first_choice, listed
from rlmon.audit.result import Check, Example, MetricSummary, ModeStory
from rlmon.records import Status

Fate = Literal["extinct", "shrunk", "steady", "grown", "newborn"]


def found(check_id: str, status: Status = "fail", began: int | None = None, **fields: Any) -> Check:
    given: Mapping[str, Any] = {"title": f"{check_id}?", "method": "fold", "message": f"{check_id} was seen."}
    return answer(**{**given, "id": check_id, "status": status, "first_step": began, **fields})


FORMATS = found(
    "format-collapse", began=53, alarm_step=88, baseline=4.23, value=1.07, unit="formats in use",
    metric="rlmon/collision/mode_across_effective", advice="Raise beta (kl_coef in PPO; 0.05), or use another. Wait.",
)  # fmt: skip
COLLAPSE = [
    found("kl-drift", "warn", 48, metric="rlmon/kl/mean", unit="nats per token", value=0.37),
    found(
        "entropy-collapse", "fail", 75, metric="rlmon/entropy/mean", unit="nats per token", baseline=0.26, value=0.04
    ),
    found("near-duplicates", "warn", baseline=0.01, value=0.6, unit="share of pairs"),
    FORMATS,
    found("mode-extinction", "fail", 46),
    found("template-collapse", "fail", 51, alarm_step=70),
    found("length-collapse", "pass"),
]


def mode(name: str, fate: Fate, base: float, last: float) -> ModeStory:
    return ModeStory(
        mode=name, fate=fate, base_share=base, last_share=last, base_reward=None, last_reward=None, last_seen_step=None
    )  # fmt: skip


MODES = [
    mode("prose", "extinct", 0.3, 0.0),
    mode("boxed", "extinct", 0.2, 0.001),
    mode("json", "shrunk", 0.15, 0.03),
    mode("steps", "extinct", 0.1, 0.0),
    mode("xml", "extinct", 0.1, 0.0),
    mode("python", "grown", 0.15, 0.97),
]
REWARD = {
    "rlmon/health/reward_mean": MetricSummary(unit="", base=0.8696, first=0.9, last=0.9871, min=0.5, max=1.0),
}


def told(checks: list[Check], modes: list[ModeStory] = MODES, steps: int = 180) -> list[Incident]:
    return among(checks, modes, REWARD, (1, steps))


def test_a_collapse_is_told_once() -> None:
    (one,) = told(COLLAPSE)
    assert one.sentence == (
        "From step 46 python replaced prose, boxed, json and 2 more formats: answers used about 4.2 formats, "
        "now about 1; reward 0.87 to 0.987."
    )
    assert (one.kind, one.severity, one.began, one.confirmed) == ("narrowing", "fail", 46, 70)
    # What is about formats leads, what failed comes before what warned, and the distance to the base goes with it.
    assert [check.id for check in one.checks] == [
        "format-collapse", "template-collapse", "mode-extinction", "entropy-collapse", "near-duplicates", "kl-drift",
    ]  # fmt: skip
    assert one.setting == "Raise beta (kl_coef in PPO; 0.05)."


def test_what_may_have_begun_before_is_told_so() -> None:
    first = min(one.first_step for one in COLLAPSE if one.first_step is not None)
    late = [dataclasses.replace(one, at_latest=one.first_step == first) for one in COLLAPSE]
    (one,) = told(late)
    assert one.at_latest
    assert one.sentence.startswith("By step 46 python replaced prose")
    assert phrases.seen_by(one).startswith("began by step 46, confirmed at step 70")
    assert [check.began for check in late if check.first_step == first] == ["by 46"]
    # Where another one saw it in that step for certain, that is when it began.
    certain = found("move-collapse", "fail", first)
    (one,) = told([*late, certain])
    assert one.sentence.startswith("From step 46 ")


@given(st.permutations(COLLAPSE))
def test_the_order_of_the_checks_does_not_matter(checks: list[Check]) -> None:
    assert told(checks) == told(COLLAPSE)


def test_what_began_at_another_time_or_is_of_another_kind_is_another_event() -> None:
    late = found("move-collapse", "warn", 150)
    silent = found("silent-groups-bad", "warn", 50, metric="rlmon/group/all_bad")
    kinds = [(one.kind, one.began) for one in told([*COLLAPSE, late, silent])]
    assert kinds == [("narrowing", 46), ("narrowing", 150), ("reward", 50)]
    # A distance that was there long before is an event of its own.
    early = found("kl-drift", "warn", 2, metric="rlmon/kl/mean")
    assert [one.kind for one in told([FORMATS, early])] == ["narrowing", "drift"]
    assert [one.kind for one in told([FORMATS, early], steps=1_000)] == ["narrowing"]


def test_numbers_that_broke_lead_and_the_log_itself_comes_last() -> None:
    checks = [found("rows-complete"), FORMATS, found("non-finite", began=90, metric="rlmon/health/non_finite")]
    assert [one.kind for one in told(checks)] == ["numbers", "narrowing", "record"]
    # Never before what is graver.
    checks = [found("rows-complete", "fail"), found("non-finite", "warn", metric="rlmon/health/non_finite")]
    assert [one.severity for one in told(checks)] == ["fail", "warn"]


def test_what_no_parser_knows_is_no_format_of_that_name() -> None:
    modes = [mode("prose", "extinct", 0.6, 0.0), mode("boxed", "shrunk", 0.4, 0.1), mode("other", "newborn", 0.0, 0.9)]
    (one,) = told([FORMATS], modes)
    assert one.sentence.startswith("From step 53 text in no known format replaced prose and boxed: ")


def test_what_breaks_with_the_numbers_is_a_part_of_it() -> None:
    broken = found(
        "non-finite",
        began=40,
        metric="rlmon/health/non_finite",
        message="NaN in 41 of 80 steps. Confirmed: FAIL at step 40.",
    )
    (one,) = told([FORMATS, found("length-collapse", "warn", 44, metric="rlmon/health/length_mean"), broken])
    assert [check.id for check in one.checks] == ["non-finite", "format-collapse", "length-collapse"]
    assert one.sentence == (
        "From step 40: NaN in 41 of 80 steps; python replaced prose, boxed, json and 2 more formats: answers used "
        "about 4.2 formats, now about 1."
    )
    # What had begun before, or much later, is an event of its own.
    early = found("length-collapse", "warn", 10, metric="rlmon/health/length_mean")
    assert [one.kind for one in told([early, broken])] == ["numbers", "length"]
    assert [one.kind for one in told([FORMATS, found("non-finite", began=2, metric="rlmon/health/non_finite")])] == [
        "numbers", "narrowing",
    ]  # fmt: skip


def test_without_a_format_that_took_over_the_lead_tells_what_it_saw() -> None:
    template = found(
        "template-collapse", began=21, metric="rlmon/collision/template_within_effective", unit="templates in use",
        baseline=896.0, value=1.24,
    )  # fmt: skip
    (one,) = told([template], [mode("prose", "steady", 1.0, 1.0)])
    assert one.sentence.startswith(
        "From step 21: the completions of one prompt followed over 100 templates, now about 1.2; reward "
    )
    (unknown,) = told([found("a-new-check", "warn", metric="brand/new")])
    assert (unknown.kind, unknown.sentence, unknown.setting) == ("other", "A-new-check was seen.", "")
    assert told([found("length-collapse", "pass"), found("kl-drift", "skip"), found("x", "note")]) == []


def test_the_pair_is_of_the_base_and_of_now() -> None:
    def example(label: str, step: int) -> Example:
        return Example(
            step=step, split="train", prompt_id="p", prompt=None, completion="x", mode="prose", template="t",
            source="all", reward=None, advantage=None, label=label,
        )  # fmt: skip

    shown = found("format-collapse", examples=[example("now", 9), example("last", 5), example("base", 1)])
    (one,) = told([shown, FORMATS])
    assert [(e.label, e.step) for e in one.pair] == [("base", 1), ("now", 9)]


def test_words_for_numbers() -> None:
    assert [effective(v) for v in (1.0, 1.07, 1.81, 2.48, 4.05, 26.2, 99.4, 99.6, 896.0)] == [
        "about 1", "about 1", "about 1.8", "about 2.5", "about 4", "about 26", "about 99", "over 100", "over 100",
    ]  # fmt: skip
    assert [percent(v) for v in (0.0, 0.0004, 0.008, 0.031, 0.5, 1.0)] == [
        "0 %",
        "0.04 %",
        "0.8 %",
        "3 %",
        "50 %",
        "100 %",
    ]
    assert listed(["a"]) == "a"
    assert listed(["a", "b"]) == "a and b"
    assert listed(list("abcd")) == "a, b, c and d"
    assert listed(list("abcde")) == "a, b, c and 2 more"


@pytest.mark.parametrize(
    ("advice", "first"),
    [
        ("", ""),
        ("Lower learning_rate.", "Lower learning_rate."),
        ("Lower learning_rate; or wait.", "Lower learning_rate."),
        ("Raise beta (a. b; c, or d), or wait.", "Raise beta (a. b; c, or d)."),
    ],
)
def test_one_setting(advice: str, first: str) -> None:
    assert first_choice(advice) == first


def test_what_has_recovered_is_told_by_its_message() -> None:
    check = found(
        "format-collapse", metric="rlmon/collision/mode_across_effective", baseline=4.0, value=4.0,
        message="answers used 4.00 formats, now 1.2. It has recovered since.", evidence={"recovered": True},
    )  # fmt: skip
    assert clause(check) == "answers used 4.00 formats, now 1.2. It has recovered since"
    short = found("length-collapse", metric="rlmon/health/length_mean", baseline=3034.0, value=5.0, unit="characters")
    assert clause(short) == "completions were 3,034 characters long, now 5"
