"""The checks: each fires on a run in which one thing goes wrong and is silent on its healthy twin."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import scipy.stats
from audit_rows import MODES, WORDS, audited, chance, check, draw, in_mode, mixed, opened, prose, spoken, table, told
from hypothesis import given
from hypothesis import strategies as st

from rlmon.audit import checks, engine
from rlmon.audit.checks.solving import pass_at_k_of, prompt_halves, wilson
from rlmon.audit.result import Audit
from rlmon.audit.run import ROWS
from rlmon.metrics.formats import ModeSet

STEPS = 40
Rng = np.random.Generator


def ramp(t: float, begin: float = 0.3, end: float = 0.6) -> float:
    return min(1.0, max(0.0, (t - begin) / (end - begin)))


# --- what goes wrong ----------------------------------------------------------------------------------------------


def only_prose(t: float) -> tuple[float, ...]:
    """Five formats at the start, one at the end."""
    left = 1.0 - ramp(t)
    return 1.0 - 0.6 * left, 0.2 * left, 0.2 * left, 0.1 * left, 0.1 * left


def no_python(t: float) -> tuple[float, ...]:
    """A fifth of the base moves from python to prose."""
    return 0.4 + 0.2 * ramp(t), 0.2, 0.2 * (1.0 - ramp(t)), 0.1, 0.1


def prose_is_worse(rng: Rng, t: float, prompt: int, text: str) -> float:
    return float(rng.random() < (0.3 if "The answer is" in text else 0.7))


def prose_is_better(rng: Rng, t: float, prompt: int, text: str) -> float:
    return float(rng.random() < (0.7 if "The answer is" in text else 0.3))


def one_text(rng: Rng, t: float, prompt: int) -> str:
    if rng.random() < ramp(t):
        return (
            f"look at the quiet lamp, carry one stone over a bridge, then wait for songs. The answer is {prompt % 97}."
        )
    return prose(rng, prompt % 97)


def all_prose(rng: Rng, t: float, prompt: int) -> str:
    return prose(rng, prompt % 97)


def solvable_or_not(rng: Rng, t: float, prompt: int, text: str) -> float:
    """Every prompt at .35 at the start; at the end three in five at 1 and the others at 0."""
    end = 1.0 if prompt * 2_654_435_761 % 100 < 60 else 0.0
    return float(rng.random() < 0.35 * (1.0 - ramp(t)) + ramp(t) * end)


def odd_ones_forgotten(rng: Rng, t: float, prompt: int, text: str) -> float:
    return float(rng.random() < (0.9 if t < 0.5 or prompt % 2 == 0 else 0.02))


def two_of_three_impossible(rng: Rng, t: float, prompt: int, text: str) -> float:
    return float(prompt % 3 == 0 and rng.random() < 0.7)


def cut_off(rng: Rng, t: float, prompt: int, text: str) -> dict[str, Any]:
    return {"truncated": bool(rng.random() < 0.02 + 0.7 * ramp(t))}


def seldom_cut_off(rng: Rng, t: float, prompt: int, text: str) -> dict[str, Any]:
    return {"truncated": bool(rng.random() < 0.02)}


def four_times_as_long(rng: Rng, t: float, prompt: int) -> str:
    return prose(rng, prompt % 97, words=int(10 * (1.0 + 3.0 * ramp(t))))


def one_answer(rng: Rng, t: float, prompt: int) -> str:
    mode = MODES[int(rng.integers(len(MODES)))]
    return in_mode(mode, 7 if rng.random() < ramp(t) else prompt % 97, rng)


def bare_answer(rng: Rng, t: float, prompt: int) -> str:
    return str(prompt % 97) if rng.random() < ramp(t) else prose(rng, prompt % 97)


def surer(rng: Rng, t: float, prompt: int) -> str:
    """Six answers to a prompt at the start, one at the end."""
    spread = 0 if rng.random() < ramp(t) else int(rng.integers(6))
    return in_mode(MODES[int(rng.integers(len(MODES)))], 10 * prompt + spread, rng)


def right_when_first(rng: Rng, t: float, prompt: int, text: str) -> float:
    return float(f"{10 * prompt}" in text.replace("}", " ").replace(".", " ").replace("<", " ").split())


def sometimes_nan(rng: Rng, t: float, prompt: int, text: str) -> float:
    return math.nan if t > 0.5 and rng.random() < 0.01 else float(rng.random() < 0.5)


def lost_reward(rng: Rng, t: float, prompt: int, text: str) -> float:
    return float(rng.random() < 0.7 - 0.6 * ramp(t))


def no_spread_at_last(rng: Rng, t: float, prompt: int, text: str) -> float:
    """Half of the completions right; from the middle on every prompt is right or wrong as a whole."""
    return float(prompt % 2) if t >= 0.5 else float(rng.random() < 0.5)


def with_holes(rng: Rng, t: float, prompt: int, text: str) -> float | None:
    return None if t >= 0.3 and rng.random() < 0.25 else float(rng.random() < 0.5)


def left_out(rng: Rng, t: float, prompt: int, text: str) -> float | None:
    """A third of the prompts is left out as a whole: that is a choice, not a hole."""
    return None if prompt % 3 == 0 else float(rng.random() < 0.5)


def functions(second: Callable[[Rng], float]) -> Any:
    return lambda rng, t, prompt, text: {"rewards": {"right": float(rng.random() < 0.5), "form": second(rng)}}


def empty_in_its_tags(rng: Rng, t: float, prompt: int) -> str:
    answer = "" if rng.random() < ramp(t) else str(prompt % 97)
    return f"<think>{prose(rng, prompt % 97)}</think><answer>{answer}</answer>"


def without_chance(rng: Rng, t: float, prompt: int) -> str:
    return prose(np.random.default_rng(prompt), prompt % 97)


def one_answer_each(rng: Rng, t: float, prompt: int) -> str:
    """Other words each time; from the middle on one answer to a prompt, before that any of six."""
    return prose(rng, 10 * prompt + (0 if t >= 0.5 else int(rng.integers(6))))


def with_evaluations(falling: bool) -> pa.Table:
    """Training reward from .3 to .8; twelve evaluations that follow it, or fall to .05."""

    def trained(rng: Rng, t: float, prompt: int, text: str) -> float:
        return float(rng.random() < 0.3 + 0.5 * t)

    def evaluated(rng: Rng, t: float, prompt: int, text: str) -> float:
        return float(rng.random() < (0.3 - 0.25 * ramp(t, 0.0, 0.9) if falling else 0.3 + 0.5 * t))

    train, evaluation = draw(1, score=trained, steps=48), draw(2, score=evaluated, steps=12, prompts=32)
    step = pc.multiply(evaluation["step"], 4)
    split = pa.array(["eval"] * evaluation.num_rows)
    return pa.concat_tables([train, evaluation.set_column(0, "step", step).set_column(1, "split", split).cast(ROWS)])


def run(steps: int = STEPS, **how: Any) -> Callable[[], pa.Table]:
    return lambda: draw(1, steps=steps, **how)


RUNS: dict[str, Callable[[], pa.Table]] = {
    "healthy": run(),
    "all prose": run(write=all_prose),
    "one format lives": run(write=mixed(only_prose)),
    "no python": run(write=mixed(no_python)),
    "prose wins, worse": run(write=mixed(only_prose), score=prose_is_worse),
    "prose wins, better": run(write=mixed(only_prose), score=prose_is_better),
    "one text": run(write=one_text),
    "bare answers": run(write=bare_answer),
    "solvable or not": run(score=solvable_or_not, prompts=16),
    "two in five solved": run(score=chance(0.4)),
    "half forgotten": run(60, score=odd_ones_forgotten, pool=60),
    "two epochs": run(60, score=chance(0.9), pool=60),
    "two thirds impossible": run(score=two_of_three_impossible, pool=60),
    "three in ten solved": run(score=chance(0.3), pool=60),
    "cut off": run(columns=cut_off),
    "seldom cut off": run(columns=seldom_cut_off),
    "four times as long": run(write=four_times_as_long),
    "one answer": run(write=one_answer),
    "surer": run(write=surer),
    "surer and better": run(write=surer, score=right_when_first),
    "evaluation falls": lambda: with_evaluations(falling=True),
    "evaluation follows": lambda: with_evaluations(falling=False),
    "NaN rewards": run(score=sometimes_nan),
    "reward lost": run(score=lost_reward),
    "no spread": run(score=no_spread_at_last),
    "holes": run(score=with_holes),
    "left out": run(score=left_out),
    "dead function": run(columns=functions(lambda rng: 0.0)),
    "constant function": run(columns=functions(lambda rng: 1.0)),
    "two functions": run(columns=functions(lambda rng: float(rng.random() < 0.3))),
    "empty answers": run(write=empty_in_its_tags),
    "without chance": run(write=without_chance),
    "one answer each": run(write=one_answer_each, score=lambda rng, t, prompt, text: None),
    "nothing solved": run(score=chance(0.005)),
    "all solved": run(score=chance(0.995)),
}


@functools.cache
def rows(name: str) -> pa.Table:
    return RUNS[name]()


@functools.cache
def audit_of(name: str) -> Audit:
    return audited(rows(name))


@pytest.mark.parametrize(
    ("check_id", "status", "damaged", "twin"),
    [
        ("mode-extinction", "fail", "one format lives", "healthy"),
        ("mode-extinction", "warn", "no python", "healthy"),
        ("format-collapse", "fail", "one format lives", "healthy"),
        ("format-winner", "warn", "prose wins, worse", "prose wins, better"),
        ("near-duplicates", "fail", "one text", "all prose"),
        ("word-diversity", "fail", "one text", "all prose"),
        ("template-collapse", "fail", "one text", "all prose"),
        ("correct-diversity", "warn", "one text", "all prose"),
        ("sentence-openings", "fail", "bare answers", "all prose"),
        ("length-collapse", "fail", "bare answers", "all prose"),
        ("shortcut", "fail", "bare answers", "all prose"),
        ("shortcut", "warn", "one answer", "healthy"),
        ("answer-concentration", "fail", "one answer", "healthy"),
        ("pass-at-k", "fail", "solvable or not", "two in five solved"),
        ("forgotten-prompts", "fail", "half forgotten", "two epochs"),
        ("impossible-prompts", "warn", "two thirds impossible", "three in ten solved"),
        ("truncation", "fail", "cut off", "seldom cut off"),
        ("length-growth", "note", "four times as long", "all prose"),
        ("answer-diversity", "warn", "surer", "surer and better"),
        ("eval-gap", "fail", "evaluation falls", "evaluation follows"),
        ("non-finite", "fail", "NaN rewards", "healthy"),
        ("silent-groups-bad", "fail", "nothing solved", "healthy"),
        ("silent-groups-good", "note", "all solved", "healthy"),
        ("reward-loss", "fail", "reward lost", "healthy"),
        ("reward-signal", "fail", "no spread", "healthy"),
        ("reward-missing", "warn", "holes", "left out"),
        ("reward-functions", "warn", "dead function", "two functions"),
        ("reward-functions", "note", "constant function", "two functions"),
        ("empty-answers", "fail", "empty answers", "all prose"),
        ("identical-completions", "fail", "without chance", "all prose"),
        ("identical-completions", "warn", "one answer each", "healthy"),
    ],
)
def test_what_goes_wrong_is_told_and_the_twin_passes(check_id: str, status: str, damaged: str, twin: str) -> None:
    found, other = check(audit_of(damaged), check_id), check(audit_of(twin), check_id)
    assert found.status == status, found.message
    assert found.advice
    assert found.value is not None
    assert other.status == "pass", other.message
    assert not other.advice


def test_every_check_of_rows_is_shown_to_fire() -> None:
    fired = {check_id for name in RUNS for check_id in spoken(audit_of(name))}
    assert {asked.id for asked in checks.HINDSIGHT} - {"gradient"} <= fired


def test_a_healthy_run_passes_and_skips_say_why() -> None:
    audit = audit_of("healthy")
    assert spoken(audit) == {}
    assert set(audit.coverage.missing) == {"entropy"}
    assert audit.verdict == "insufficient"
    for one in audit.checks:
        assert (one.status == "skip") == (one.reason is not None)
    # Nothing in rows says these; the other hindsight checks and the detectors of rows can speak.
    silent = {one.id for one in audit.checks if one.status == "skip"}
    assert silent == {
        "move-collapse", "entropy-collapse", "entropy-explosion", "kl-drift", "lone-success",
        "forgotten-prompts", "impossible-prompts", "truncation", "eval-gap", "reward-functions", "gradient",
    }  # fmt: skip


def test_a_reader_that_lacks_something_gives_the_reason() -> None:
    # No rows at all, 40 steps of logged entropy: checks of completions repeat the reader's own words.
    lacks = {"completions": "set log_completions=True", "rewards": "log the rewards", "eval": "set eval_strategy"}
    entropy = [(step, 1.0) for step in range(1, 41)]
    audit = audited(opened(scalars={"entropy": entropy}, lacks=lacks))
    assert check(audit, "mode-extinction").reason == "set log_completions=True"
    assert check(audit, "format-collapse").reason == "set log_completions=True"
    assert check(audit, "pass-at-k").reason == "log the rewards"
    assert check(audit, "silent-groups-bad").reason == "log the rewards"
    assert check(audit, "rows-complete").status == "skip"
    assert check(audit, "entropy-collapse").status == "pass"
    assert audit.verdict == "insufficient"
    assert audit.coverage.missing["groups"] == "log the rewards"


def test_logged_entropy_that_falls_warns_and_fails_only_with_a_second_signal() -> None:
    falls = [(step, 1.0 if step < 15 else 0.1) for step in range(1, 2 * STEPS + 1)]
    alone = audited(opened(rows("healthy"), scalars={"entropy": falls}))
    said = spoken(alone)
    assert said.pop("entropy-collapse") == "warn"
    assert set(said.values()) == {"unsure"}, "the rows end in the middle of the log: nobody saw the rest"
    assert check(alone, "entropy-collapse").baseline == pytest.approx(1.0)
    # What is missing for FAIL is said, and whether this source could have given it.
    assert "FAIL needs a second signal." in check(alone, "entropy-collapse").message
    blind = audited(opened(scalars={"entropy": falls}, lacks={"completions": "there are none"}))
    assert check(blind, "entropy-collapse").status == "warn"
    assert "this source holds no completions to give one" in check(blind, "entropy-collapse").message
    both = audited(opened(rows("one format lives"), scalars={"entropy": falls}))
    assert check(both, "entropy-collapse").status == "fail"


def test_a_check_that_raises_is_an_error_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(ask: Any, ends: Any) -> Any:
        raise ZeroDivisionError("<b>on purpose</b>")

    replaced = tuple(
        dataclasses.replace(asked, judge=broken) if asked.id == "shortcut" else asked for asked in checks.HINDSIGHT
    )
    before = audit_of("healthy")
    monkeypatch.setattr(checks, "HINDSIGHT", replaced)
    after = audited(rows("healthy"))
    failed = check(after, "shortcut")
    assert failed.status == "error"
    assert failed.reason is not None
    assert "ZeroDivisionError: '<b>on purpose</b>'" in failed.reason
    others = {one.id: one for one in after.checks if one.id != "shortcut"}
    assert others == {one.id: one for one in before.checks if one.id != "shortcut"}
    assert after.verdict != "fail"


def test_checks_come_worst_first() -> None:
    statuses = [one.status for one in audit_of("one format lives").checks]
    order = ["fail", "warn", "error", "unsure", "note", "pass", "skip"]
    assert statuses == sorted(statuses, key=order.index)
    assert statuses[0] == "fail"


def test_the_error_rate_is_shared_out_over_the_checks() -> None:
    # Bonferroni: .01 over the hindsight checks and the second looks, two-sided; the sentence names that level. Looked
    # at twice are entropy (down and up) and length, and formats, templates and moves across and within prompts: 3 + 6.
    alpha = 0.01 / (len(checks.HINDSIGHT) + 9)
    assert f"{1 - alpha:.3%}" in audit_of("healthy").correction


def test_messages_hold_no_text_of_the_run() -> None:
    hostile = "\x1b[31m<script>alert(1)</script>[bold]"

    def write(rng: Rng, t: float, prompt: int) -> str:
        return f"{hostile} {mixed(only_prose)(rng, t, prompt)}"

    drawn = draw(1, steps=STEPS, write=write)
    prompts = pa.array([hostile + prompt for prompt in drawn["prompt"].to_pylist()])
    audit = audited(drawn.set_column(2, "prompt", prompts))
    for one in audit.checks:
        assert "\x1b" not in one.message + one.title + one.advice + (one.reason or "")
        assert "<script>" not in str(one.evidence) + one.message + (one.reason or "")


# --- false alarms -------------------------------------------------------------------------------------------------


def unchanging(seed: int) -> pa.Table:
    """60 steps in which nothing changes: shares of formats, ease of 400 prompts, sizes and epochs drawn by the seed."""
    rng = np.random.default_rng(1_000 + seed)
    shares, ease = rng.dirichlet([2] * len(MODES)), rng.beta(1.5, 1.5, size=400)
    return draw(
        seed,
        steps=60,
        prompts=int(rng.integers(4, 12)),
        group=int(rng.choice([4, 8])),
        pool=[None, 60, 200][seed % 3],
        write=mixed(lambda t: shares),
        score=lambda rng, t, prompt, text: float(rng.random() < ease[prompt % 400]),
        columns=lambda rng, t, prompt, text: {"truncated": bool(rng.random() < 0.05)},
    )


@pytest.mark.slow
def test_runs_in_which_nothing_changes_are_left_alone() -> None:
    # Detectors and hindsight checks are each allowed one false run in a hundred; of 60 runs, two such are 1 in 8.
    audits = {seed: audited(unchanging(seed)) for seed in range(60)}
    said = {seed: {one for one in spoken(audit).items() if one[1] != "unsure"} for seed, audit in audits.items()}
    assert sum(bool(one) for one in said.values()) <= 2, said
    assert not any(status == "fail" for one in said.values() for _, status in one), said
    # A core question is left open by few of them.
    doubts = {seed: [c.id for c in audit.checks if c.core and c.status == "unsure"] for seed, audit in audits.items()}
    assert sum(bool(one) for one in doubts.values()) <= 2, doubts


# --- onset --------------------------------------------------------------------------------------------------------


def slow_collision(drawn: pa.Table, *, within: bool) -> tuple[list[int], list[float]]:
    """Chance that two completions have one format, of one prompt or of two, at every step: by counting all pairs."""
    parse, rows = ModeSet.build(None).parse, defaultdict(list)
    columns = (drawn[name].to_pylist() for name in ("step", "group", "completion"))
    for step, group, text in zip(*columns, strict=True):
        rows[step].append((group, parse(text)))
    chances = []
    for step in sorted(rows):
        pairs = [a[1] == b[1] for a, b in itertools.combinations(rows[step], 2) if (a[0] == b[0]) is within]
        chances.append(sum(pairs) / len(pairs))
    return sorted(rows), chances


@pytest.mark.parametrize("seed", range(3))
def test_onset_is_the_first_step_from_which_the_mean_stays_past_the_line(seed: int) -> None:
    drawn = draw(seed, steps=60, write=mixed(only_prose))
    audit = audited(drawn)
    found = check(audit, "format-collapse")
    # Base: 8 prompts a step, so 8 steps until 64 prompts and 256 completions. WARN at .8 of the number that is told.
    assert audit.run.baseline["steps"] == list(range(1, 9))
    assert found.baseline is not None
    steps, chances = slow_collision(drawn, within="within" in (found.metric or ""))
    line = 1 / found.baseline / 0.8
    first = chances[:8]
    apart = [b - a for a, b in itertools.pairwise(first)]
    line = max(line, 1 / found.baseline + 3 * float(np.std(apart)) / math.sqrt(2 * 5))
    expected = None
    for at in reversed(range(len(steps))):
        window = chances[max(0, at - 4) : at + 1]
        if sum(window) / len(window) <= line:
            break
        expected = steps[at]
    assert found.first_step == expected
    assert expected is not None
    assert 18 <= expected <= 36, "formats begin to die at step 19 and are gone at 37"
    assert found.alarm_step is not None
    assert found.alarm_step < 40


@pytest.mark.parametrize("seed", range(4))
def test_what_very_diverse_outputs_do_by_chance_is_no_onset(seed: int) -> None:
    """Hardly two completions of the base are alike, so that their effective number is noise; they narrow from 21 on."""

    def narrowing(rng: Rng, t: float, prompt: int) -> str:
        kind = int(rng.integers(max(1, round(190 * (1.0 - ramp(t, 0.5, 0.8))))))
        return f"{WORDS[kind % 50]} {WORDS[kind // 50]} and so on"

    found = check(audited(draw(seed, steps=42, write=narrowing)), "template-collapse")
    assert found.status in ("warn", "fail")
    assert found.baseline is None or found.baseline > 50
    assert found.first_step is not None
    assert 20 <= found.first_step <= 33


def test_a_finding_says_one_number_for_one_thing() -> None:
    audit = audited(draw(0, steps=60, write=mixed(only_prose)))
    found = check(audit, "format-collapse")
    assert found.value is not None
    # At the end there is one format; what was seen when the alarm was sure is in the evidence.
    assert found.value == pytest.approx(1.0, abs=0.05)
    assert "formats, now about 1 " in found.message
    assert max(row["value"] for row in found.evidence["findings"]) > 1.2
    assert "formats, now about 1;" in audit.headline


def test_a_run_that_recovers_keeps_the_onset_of_its_alarm() -> None:
    def dip(t: float) -> tuple[float, ...]:
        left = 0.0 if 0.3 <= t < 0.6 else 1.0
        return 1.0 - 0.6 * left, 0.2 * left, 0.2 * left, 0.1 * left, 0.1 * left

    found = check(audited(draw(1, steps=120, write=mixed(dip))), "format-collapse")
    assert found.status == "fail"
    assert "recovered" in found.message
    # Steps 37 to 72 are all prose; the mean of five crosses .8 of the base two steps in or so.
    assert found.first_step is not None
    assert 37 <= found.first_step <= 40


# --- formulas -----------------------------------------------------------------------------------------------------


@given(st.integers(1, 30), st.data())
def test_pass_at_k_is_the_share_of_subsets_with_a_success(n: int, data: st.DataObject) -> None:
    c, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    # C(n - c, k) of the C(n, k) subsets hold no success.
    expected = 1.0 - math.comb(n - c, k) / math.comb(n, k)
    found = pass_at_k_of(np.array([float(n)]), np.array([float(c)]), k)
    assert found[0] == pytest.approx(expected, abs=1e-12)
    assert math.isnan(pass_at_k_of(np.array([float(n)]), np.array([float(c)]), n + 1)[0])


@given(st.integers(1, 500), st.data())
def test_wilson_is_that_of_scipy(trials: int, data: st.DataObject) -> None:
    successes = data.draw(st.integers(0, trials))
    z = scipy.stats.norm.ppf(1 - 0.001 / 2)
    expected = scipy.stats.binomtest(successes, trials).proportion_ci(confidence_level=0.999, method="wilson")
    assert wilson(successes, trials, z) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_halves_of_a_run_by_hand() -> None:
    # Steps 1..4, so the second half begins at step 3. Prompt of two visits: 1 of 2, then 2 of 2.
    drawn = [
        {"step": step, "prompt": "a", "completion": "7", "group": str(step), "reward": reward}
        for step, rewards in ((1, (1, 0)), (2, ()), (3, (1, 1)), (4, ()))
        for reward in rewards
    ] + [{"step": step, "prompt": "b", "completion": "8", "group": "b", "reward": 0.0} for step in (2, 4)]
    case = engine._case(opened(table(drawn)), None, 1, None)
    keys = sorted(case.counted.prompts, key=lambda key: case.counted.prompts[key][1] or "")
    order = np.argsort(keys)  # prompts come in the order of their keys
    early_n, early_k, late_n, late_k = (half[np.argsort(order)] for half in prompt_halves(case))
    assert early_n.tolist() == [2.0, 1.0]
    assert early_k.tolist() == [1.0, 0.0]
    assert late_n.tolist() == [2.0, 1.0]
    assert late_k.tolist() == [2.0, 0.0]


def test_json_holds_no_nan() -> None:
    tiny = audited(draw(1, steps=2, prompts=1, group=1))
    for audit in (audit_of("healthy"), audit_of("NaN rewards"), tiny):
        json.dumps(told(audit), allow_nan=False)
