"""What the result tells: verdict, formats, prompts, completions and events, from runs that are known."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from typing import Any

import numpy as np
import pytest
from audit_rows import audited, chance, check, draw, in_mode, mixed, opened, table, told
from page_parts import data_of

from rlmon.audit import events, examples, heat, incidents, story
from rlmon.audit import mode_stories as modes
from rlmon.audit.result import Audit
from rlmon.report import phrases
from rlmon.report.audit import build_page


def dying(t: float) -> tuple[float, ...]:
    """prose, boxed, python, json, xml: json is extinct, xml newborn, python shrinks and prose grows."""
    if t < 0.5:
        return 0.2, 0.2, 0.4, 0.2, 0.0
    return 0.45, 0.2, 0.15, 0.0, 0.2


def narrowing(t: float) -> tuple[float, ...]:
    """All of them until the middle, prose alone after it."""
    return (0.4, 0.2, 0.2, 0.1, 0.1) if t < 0.5 else (1.0, 0.0, 0.0, 0.0, 0.0)


@pytest.fixture(scope="module")
def changed() -> Audit:
    return audited(draw(2, steps=40, write=mixed(dying), prompts=16))


# --- headline -----------------------------------------------------------------------------------------------------


def test_the_headline_tells_what_happened_and_since_when(changed: Audit) -> None:
    worst = changed.checks[0]
    (what, *_) = incidents.incidents(changed)
    assert worst in what.checks
    assert changed.headline.startswith(f"From step {what.began}: this format is no longer written: json (was ")
    narrowed = audited(
        draw(2, steps=40, write=mixed(narrowing), prompts=16, score=lambda rng, t, prompt, text: float(t > 0.5))
    )
    assert re.match(
        r"From step 2\d prose replaced boxed, python, (json and xml|xml and json): answers used about \S+ formats, now "
        r"about 1; reward ", narrowed.headline,
    )  # fmt: skip
    healthy = audited(draw(1, steps=12))
    assert "12 steps and 768 completions" in healthy.headline


# --- formats ------------------------------------------------------------------------------------------------------


def test_fates_of_formats(changed: Audit) -> None:
    fates = {one.mode: one.fate for one in changed.modes}
    assert fates == {"json": "extinct", "python": "shrunk", "xml": "newborn", "prose": "grown", "boxed": "steady"}
    assert [one.fate for one in changed.modes] == ["extinct", "shrunk", "newborn", "grown", "steady"]
    json_ = changed.modes[0]
    assert json_.base_share == pytest.approx(0.2, abs=0.06)
    assert json_.last_share == 0.0
    # Formats change at t = .5, which is step 21: the last of json is at 20.
    assert json_.last_seen_step == 20
    assert changed.modes[2].last_reward == pytest.approx(0.5, abs=0.2)
    assert changed.modes[2].base_reward is None, "never written at the base"


def test_examples_show_before_and_after(changed: Audit) -> None:
    json_ = changed.modes[0]
    labels = {example.label: example for example in json_.examples}
    assert set(labels) == {"base", "first", "last"}
    assert labels["base"].mode == labels["last"].mode == "json"
    assert labels["base"].step < labels["last"].step <= 20
    assert labels["first"].mode == "prose", "what the winner writes instead"
    assert not changed.modes[-1].examples, "nothing to show where nothing changed"
    # Of the largest loser, and of what won: to the same prompt where one was drawn at both ends.
    failing = check(changed, "mode-extinction")
    assert failing.status in ("warn", "fail")
    assert [(example.label, example.mode) for example in failing.examples] == [("base", "python"), ("now", "prose")]
    assert failing.examples[0].step <= 4
    assert failing.examples[1].step >= 36


@pytest.mark.parametrize(
    ("base", "last", "fate"),
    [
        (0.2, 0.01, "extinct"),
        (0.01, 0.0, "steady"),
        (0.2, 0.1, "shrunk"),
        (0.2, 0.15, "steady"),
        (0.0, 0.06, "newborn"),
        (0.2, 0.4, "grown"),
        (0.9, 1.0, "steady"),
    ],
)
def test_fate(base: float, last: float, fate: str) -> None:
    assert modes._fate(base, last) == fate


# --- prompts ------------------------------------------------------------------------------------------------------


def fated(rng: np.random.Generator, t: float, prompt: int, text: str) -> float:
    early = t < 0.5
    return float(
        {
            0: False,  # impossible
            1: early,  # forgotten
            2: True,  # solved
            3: not early,  # learned
            4: rng.random() < 0.5,  # mixed
        }[prompt % 5]
    )


def test_the_heat_of_prompts() -> None:
    # Ten prompts, all of them at every step, 8 tries each; 20 steps.
    audit = audited(draw(1, steps=20, prompts=10, pool=10, score=fated))
    heat = audit.heat
    assert heat is not None
    assert heat.prompts == 10
    assert heat.bins == [(step, step) for step in range(1, 21)]
    assert [row.fate for row in heat.rows] == [
        fate for fate in ("forgotten", "impossible", "mixed", "learned", "solved") for _ in range(2)
    ]
    forgotten = heat.rows[0]
    assert forgotten.rates == [1.0] * 10 + [0.0] * 10
    assert forgotten.attempts == 160
    assert forgotten.prompt is not None
    assert int(forgotten.prompt.split()[3]) % 5 == 1


def test_a_prompt_of_one_success_in_many_is_lucky() -> None:
    rows = [
        {"step": step, "prompt": "hard", "completion": "7", "group": "g", "reward": float(step == 5 and i == 0)}
        for step in range(1, 11)
        for i in range(8)
    ]
    heat = audited(table(rows)).heat
    assert heat is not None
    (row,) = heat.rows
    # Beta(2, 80): below 1/8 with near certainty.
    assert row.fate == "lucky"
    assert row.rates[4] == 0.125


def test_prompts_that_come_once_have_no_heat() -> None:
    assert audited(draw(1, steps=10)).heat is None
    assert audited(draw(1, steps=10, pool=8, score=lambda rng, t, prompt, text: None)).heat is None


def test_the_heat_is_bounded() -> None:
    audit = audited(draw(1, steps=80, prompts=16, group=2, pool=300))
    assert audit.heat is not None
    assert len(audit.heat.rows) == heat.HEAT_ROWS
    assert len(audit.heat.bins) == heat.HEAT_BINS
    assert (audit.heat.bins[0][0], audit.heat.bins[-1][1]) == (1, 80)
    assert all(len(row.rates) == heat.HEAT_BINS for row in audit.heat.rows)
    for (_, end), (begin, _) in zip(audit.heat.bins[:-1], audit.heat.bins[1:], strict=True):
        assert begin == end + 1


# --- completions and numbers --------------------------------------------------------------------------------------


def test_samples_are_spread_over_time(changed: Audit) -> None:
    assert len(changed.samples) == examples.MAX_SAMPLES
    steps = [sample.step for sample in changed.samples]
    assert steps == sorted(steps)
    assert set(steps) == set(range(1, 41))


@pytest.mark.parametrize("characters", [3_900, 5_000, 8_193, 40_000])
def test_the_end_of_a_long_completion_is_kept(characters: int) -> None:
    text = ("<think> " + "word " * 10_000)[: characters - 24] + " </think> \\boxed{0123456}"
    audit = audited(table([{"step": step, "prompt": "p", "completion": text} for step in (1, 2)]))
    for sample in audit.samples:
        assert len(sample.completion or "") == min(len(text), 4_000)
        assert sample.left_out == len(text) - len(sample.completion or "")
        for first, last in ((1_200, 2_800), (300, 600), (80, 80)):
            head, left_out, tail = sample.ends(first, last)
            assert len(head) + len(tail) == min(first + last, len(text))
            assert len(head) + left_out + len(tail) == len(text)
            assert text.startswith(head)
            assert text.endswith(tail)
            assert (head + tail).endswith("</think> \\boxed{0123456}")


def test_summaries_are_means_over_the_windows(changed: Audit) -> None:
    summary = changed.metrics["rlmon/format/effective"]
    values = [value for value in changed.series["rlmon/format/effective"] if value is not None]
    base = changed.run.baseline["steps"]
    assert base == [1, 2, 3, 4], "16 prompts a step: 64 after four"
    assert summary.base == pytest.approx(sum(values[:4]) / 4)
    assert summary.last == pytest.approx(sum(values[-5:]) / 5)
    assert (summary.first, summary.min, summary.max) == (values[0], min(values), max(values))


def test_what_is_not_measured_is_none_never_nan(changed: Audit) -> None:
    json.dumps(told(changed), allow_nan=False)
    for audit in (changed, audited(opened(scalars={"entropy": [(1, 1.0), (2, math.nan), (3, 1.0)]}))):
        for values in [*audit.series.values(), *audit.mode_shares.values()]:
            assert len(values) == len(audit.steps)
            assert all(value is None or math.isfinite(value) for value in values)
        for row in audit.heat.rows if audit.heat else ():
            assert all(rate is None or math.isfinite(rate) for rate in row.rates)


def test_facts_of_the_run() -> None:
    rows = draw(1, steps=12, prompts=4, group=4, score=chance(0.5))
    evaluation = [{"step": 6, "split": "eval", "prompt": "e", "completion": "7", "reward": 1.0}] * 3
    run = opened(
        rows, table(evaluation), config={"beta": 0.1}, notes=["read by hand"], scalars={"entropy": [(20, 1.0)]}
    )
    found = audited(run)
    facts = found.run
    assert (facts.steps, facts.first_step, facts.last_step) == (13, 1, 20)
    assert (facts.completions, facts.eval_completions, facts.prompts, facts.group_size) == (195, 3, 49, 4)
    assert facts.coverage["rows"] == 195
    assert facts.coverage["steps_without_rows"] == 1
    assert facts.coverage["text_budget"]["rows"] == 192
    read = phrases.coverage_line(found)
    assert read.startswith("rows 195, steps without rows 1, ")
    assert read.endswith(", words compared on 192 of them")
    assert dict(data_of(build_page(found))["run"]["read"])["words compared on"] == "192 of them"
    assert facts.config == {"beta": 0.1}
    assert facts.notes == ["read by hand"]


def test_events_are_in_order_and_name_their_checks(changed: Audit) -> None:
    steps = [event.step for event in changed.events]
    assert steps == sorted(steps)
    kinds = {(event.kind, event.check) for event in changed.events}
    assert ("onset", "mode-extinction") in kinds
    assert {event.check for event in changed.events if event.kind == "finding"} == {
        finding["detector"] for finding in changed.findings
    }


def test_an_example_of_a_row_with_nothing_but_a_completion() -> None:
    rows = [{"step": step, "completion": in_mode("json", step, np.random.default_rng(step))} for step in (1, 2, 3)]
    audit = audited(table(rows))
    sample = audit.samples[0]
    assert (sample.prompt, sample.reward, sample.advantage, sample.truncated) == (None, None, None, None)
    assert sample.mode == "json"
    assert all(isinstance(value, str) for value in (sample.prompt_id, sample.template, sample.source))
    json.dumps([dataclasses.asdict(one) for one in audit.samples], allow_nan=False)


def test_secrets_of_the_settings_are_hidden() -> None:
    config = {
        "hub_token": "hf_abc", "api_key": "k", "nested": {"WANDB_API_KEY": "w", "beta": 0.1}, "password": "p",
        "pad_token": "<pad>", "eos_token_id": 2, "max_tokens": 5, "token": None, "use_auth_token": False,
    }  # fmt: skip
    assert story.without_secrets(config) == {
        "hub_token": "(hidden)", "api_key": "(hidden)", "nested": {"WANDB_API_KEY": "(hidden)", "beta": 0.1},
        "password": "(hidden)", "pad_token": "<pad>", "eos_token_id": 2, "max_tokens": 5, "token": None,
        "use_auth_token": False,
    }  # fmt: skip


def test_what_was_changed_is_marked_and_what_would_have_been_is_not() -> None:
    def lines(rule: str, step: int, last: str, **changes: Any) -> list[dict[str, Any]]:
        common = {"action_id": f"{rule}-{step}", "rule": rule, "step": step, "knob": "beta", "old": 0.0, "new": 0.05,
                  "reason": "KL rose", **changes}  # fmt: skip
        return [{**common, "phase": phase} for phase in ("decided", last)]

    rows = {"knob": "advantages", "old": None, "new": "1", "reason": "1 group out"}
    actions = [
        *lines("kl-budget", 7, "applied"),
        *lines("stop", 8, "decided", dry_run=True),
        *lines("anchor", 9, "failed"),
        *(line for step in range(1, 401) for line in lines("quarantine", step, "applied", **rows)),
    ]
    marks = events._acts(actions)
    assert {event.kind for event in marks} == {"action"}
    assert [(e.step, e.check, e.text) for e in marks[:2]] == [
        (7, "kl-budget", "kl-budget: beta 0 -> 0.05 (KL rose)"),
        (9, "anchor", "anchor failed: beta 0 -> 0.05 (KL rose)"),
    ]
    # 400 steps in 40 stretches of 10: 1 to 9, 10 to 19, ..., 400.
    marks = [event for event in marks if event.check == "quarantine"]
    assert len(marks) == 41
    assert marks[1].text == "quarantine: 10 times by step 19, 1 group out"
