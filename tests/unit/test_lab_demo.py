"""What the demo says about its runs: alarm steps, claims, the table and the screen."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path

import pytest

from rlmon.errors import ConfigError
from rlmon.lab import claims as verdict
from rlmon.lab import demo
from rlmon.lab.bases import BASE_DIR, WEIGHTS, sha256
from rlmon.lab.evaluate import Evaluation
from rlmon.lab.screen import Screen
from rlmon.records import Action, Finding, StepRecord
from studies.build_base import Recipe

BASE = Evaluation(
    completions=1024,
    accuracy=0.87,
    effective_formats=4.7,
    effective_formats_within=3.9,
    effective_formats_correct=4.7,
    other_share=0.0,
    top_format="prose",
    top_share=0.41,
    entropy_nats=0.24,
    kl_nats=0.0,
    kl_seq_nats=0.0,
    format_shares={"prose": 0.41},
    samples=[],
    effective_formats_correct_within=4.0,
)


def record(step: int, **metrics: float | None) -> StepRecord:
    named = {f"rlmon/format/{name}": value for name, value in metrics.items()}
    return StepRecord(
        attempt=0, step=step, time_unix_seconds=0.0, rounds=(step,), completions=64, prompts=8, tokens=1, metrics=named
    )


def result(arm: str, **changes: object) -> verdict.ArmResult:
    evaluation = {k: changes.pop(k) for k in list(changes) if k in {f.name for f in dataclasses.fields(Evaluation)}}
    return dataclasses.replace(
        verdict.ArmResult(
            arm=arm,
            policy=demo.ARMS[arm].policy,
            seed=0,
            evaluation=dataclasses.replace(BASE, **evaluation),  # type: ignore[arg-type]
            first_warn_step=None,
            first_fail_step=None,
            top_share_over_0_9_step=None,
            narrowed_step=None,
            cpu_seconds=1.0,
            monitor_seconds=None,
            faults=0,
            findings=[],
            log="x/rlmon",
        ),
        **changes,  # type: ignore[arg-type]
    )


def test_first_sustained_needs_two_rounds_in_a_row() -> None:
    shares = [0.5, 0.95, 0.8, 0.9, 0.9, 1.0]
    assert demo.first_sustained([record(i + 1, top_share=s) for i, s in enumerate(shares)], 0.9) == 4
    assert demo.first_sustained([record(1, top_share=0.95)], 0.9) is None
    # A step without a round of its own neither counts nor breaks the pair.
    with_gap = [record(1, top_share=0.9), record(2, top_share=None), record(3, top_share=0.9)]
    assert demo.first_sustained(with_gap, 0.9) == 1


def test_first_narrowed_is_a_mean_of_five() -> None:
    # 4, 4, 4, 4, 1: mean 3.4; then 4, 4, 4, 1, 1: 2.8
    numbers = [4.0, 4.0, 4.0, 4.0, 1.0, 1.0]
    records = [record(i + 1, effective=n) for i, n in enumerate(numbers)]
    assert demo.first_narrowed(records, 3.0) == 6
    assert demo.first_narrowed(records, 2.0) is None
    assert demo.first_narrowed(records[:4], 9.0) is None


def test_claims_hold_and_break() -> None:
    collapsed = {"top_share": 0.95, "effective_formats": 1.3, "accuracy": 0.98, "narrowed_step": 60}
    good = result("unprotected", first_fail_step=90, top_share_over_0_9_step=100, **collapsed)
    kept = result("kl", accuracy=0.96)
    assert all(claim["holds"] for claim in verdict.claims([good, kept], BASE))

    def broken(*results: verdict.ArmResult) -> set[str]:
        return {claim["id"] for claim in verdict.claims(results, BASE) if claim["holds"] is False}

    # 91 > 100 - 10
    late = dataclasses.replace(good, first_fail_step=91)
    assert broken(late) == {"warned-in-time"}
    assert broken(dataclasses.replace(good, first_fail_step=59)) == {"no-false-alarm"}
    assert broken(dataclasses.replace(good, first_fail_step=None)) == {"warned-in-time"}
    assert broken(result("unprotected", first_fail_step=9, narrowed_step=9)) == {"collapses"}
    assert broken(good, result("kl", accuracy=0.91)) == {"learns", "price"}
    assert broken(good, result("kl", accuracy=0.96, first_fail_step=5)) == {"kept"}
    # Without the other arm its price cannot be told.
    assert [claim["holds"] for claim in verdict.claims([kept], BASE) if claim["id"] == "price"] == [None]


def test_claims_of_protect_look_at_correct_answers_alone() -> None:
    unprotected = result(
        "unprotected", top_share=0.95, effective_formats=1.3, accuracy=0.98, narrowed_step=60, first_fail_step=90
    )
    # Of 4.7 formats among correct answers at least .85, 3.995; of 4.0 within prompts 3.4; other at most 0 + 2 points.
    good = {
        "accuracy": 0.96, "effective_formats": 1.0, "effective_formats_correct": 4.0,
        "effective_formats_correct_within": 3.41, "other_share": 0.019,
    }  # fmt: skip

    def broken(**changes: object) -> set[str]:
        checked = verdict.claims([unprotected, result("protect", **{**good, **changes})], BASE)
        assert [claim["id"] for claim in checked if claim["arm"] == "protect"] == [
            "kept", "kept-within", "learns", "price", "other",
        ]  # fmt: skip
        return {claim["id"] for claim in checked if claim["holds"] is False}

    assert broken() == set()
    assert broken(effective_formats_correct=3.99) == {"kept"}
    assert broken(effective_formats_correct=None) == {"kept"}
    assert broken(first_fail_step=170) == {"kept"}
    assert broken(effective_formats_correct_within=3.39) == {"kept-within"}
    assert broken(other_share=0.021) == {"other"}
    # 87 + 5 points are learning; 98 less the points of the price are the least accuracy.
    assert broken(accuracy=0.98 - verdict.PRICE_POINTS["protect"] / 100 - 0.001) >= {"price"}
    assert broken(accuracy=0.98 - verdict.PRICE_POINTS["protect"] / 100 + 0.001) == set()
    assert broken(accuracy=0.919) == {"learns", "price"}


def test_kept_is_a_ratio_to_the_base_and_price_a_difference_of_arms() -> None:
    run = result(
        "protect", accuracy=0.95, effective_formats=2.35, effective_formats_within=None, effective_formats_correct=5.17
    )
    # 2.35/4.7, 5.17/4.7, 4.0/4.0, .98 - .95
    kept = verdict.kept_of(run, BASE, result("unprotected", accuracy=0.98))
    assert kept == pytest.approx(
        {"across": 0.5, "within": None, "correct": 1.1, "correct_within": 1.0, "price": 0.03}, abs=1e-12
    )
    assert verdict.kept_of(run, BASE, None)["price"] is None


def act(name: str, phase: str, knob: str, **changes: object) -> Action:
    fields = {"step": 5, "old": 0.0, "new": 1.0, "reason": "always", "finding_id": None, "rule": "r", **changes}
    return Action(action_id=name, phase=phase, knob=knob, **fields)  # type: ignore[arg-type]


def test_acts_are_counted_by_what_they_turned() -> None:
    actions = [
        act("a", "decided", "beta"), act("a", "applied", "beta"),
        act("a", "measured", "beta", step=45, effect="no_effect", effect_reason="kl 1 -> 1"),
        act("b", "decided", "advantages", new="2"), act("b", "applied", "advantages", new="2"),
        act("c", "decided", "beta", step=25), act("c", "failed", "beta", step=25),
        act("c", "measured", "beta", step=65, effect="not_measured", effect_reason="it failed"),
        act("d", "decided", "beta", dry_run=True),
    ]  # fmt: skip
    acted = verdict.acted_of(result("protect", actions=actions, levels={"kappa": [0.0, 1.0, 0.5], "beta": []}))
    assert acted is not None
    assert acted["applied"] == {"beta": 1, "advantages": 1}
    assert acted["failed"] == 1
    assert (acted["last_kappa"], acted["last_beta"]) == (0.5, None)
    assert acted["effects"] == {"beta": {"no_effect": 1, "not_measured": 1}}
    assert [(a["step"], a["knob"], a["failed"], a["effect"]) for a in acted["actions"]] == [
        (5, "beta", False, "no_effect"), (5, "advantages", False, None), (25, "beta", True, "not_measured"),
    ]  # fmt: skip
    assert verdict.acted_of(result("kl")) is None


def test_levels_leave_out_what_was_not_measured() -> None:
    def with_kappa(step: int, kappa: float | None) -> StepRecord:
        return dataclasses.replace(record(step), metrics={"rlmon/intervention/kappa": kappa})

    assert demo.levels_of([with_kappa(1, 0.5), with_kappa(2, None), record(3), with_kappa(4, 0.25)]) == {
        "kappa": [0.5, 0.25],
        "beta": [],
    }


def test_table_says_what_a_policy_did() -> None:
    run = result(
        "protect", accuracy=0.95, actions=[act("a", "applied", "beta"), act("b", "failed", "advantages")],
        levels={"kappa": [1.0, 0.5], "beta": [0.02]},
    )  # fmt: skip
    results = [result("unprotected", accuracy=0.98), run]
    table = verdict.final_table(results, BASE, verdict.claims(results, BASE))
    # 4.7 of 4.7 formats; 98.0 - 95.0 points
    (line,) = [line for line in table.splitlines() if line.startswith("did ")]
    assert "protect-seed0: kept 100% of the base's formats, 100% among correct answers" in line
    assert "price 3.0 points" in line
    assert "beta 1 (kappa ends at 0.5, beta ends at 0.02), FAILED 1" in line


def test_rows_carry_the_fields_that_were_promised() -> None:
    row = verdict.run_row(result("protect"), BASE)
    promised = [
        "arm", "seed", "accuracy", "effective_formats", "effective_formats_within", "effective_formats_correct",
        "effective_formats_correct_within", "other_share",
        "top_format", "top_share", "entropy_nats", "kl_nats", "kl_seq_nats", "first_warn_step",
        "first_fail_step", "top_share_over_0_9_step", "cpu_seconds",
    ]  # fmt: skip
    assert list(row)[: len(promised)] == promised
    assert row["base"]["accuracy"] == BASE.accuracy
    nested = {f"{group}.{name}" for group in ("kept", "acted") for name in row[group]}
    assert {name for name in verdict.DEFINITIONS if not name.startswith("second_act.")} == (set(promised) | nested) - {
        "arm",
        "seed",
    }
    json.dumps(row, allow_nan=False)


def test_unknown_arm_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unprotected, kl, protect; got entropy"):
        demo.run(tmp_path / "out", (0,), ("entropy",), True)
    assert not (tmp_path / "out").exists()


def test_shipped_base_is_the_one_of_its_recipe() -> None:
    facts = json.loads((BASE_DIR / "recipe.json").read_text(encoding="utf-8"))
    assert sha256(BASE_DIR / WEIGHTS) == facts["sha256"]
    assert facts["recipe"] == json.loads(json.dumps(dataclasses.asdict(Recipe())))
    assert sum(file.stat().st_size for file in BASE_DIR.iterdir()) < 300_000


def test_plain_screen_shows_alarms_without_control_characters() -> None:
    stream = io.StringIO()
    finding = Finding(
        finding_id="1", detector="format-collapse", severity="fail", step=25, metric="m", value=1.0, baseline=2.0,
        threshold=1.5, source=None, advice="", baseline_kind="early_rounds",
        message="format-collapse: [red]\x1b[31mfell\x07",
        baseline_prompts=32, benign_sharpening=None,
    )  # fmt: skip
    with Screen(["kl-seed0"], 150, stream) as screen:
        screen.step("kl-seed0", record(25, top_share=0.5, effective=3.0, **{"share/prose": 0.5}), [finding])
        screen.done("kl-seed0", BASE)
    shown = stream.getvalue()
    assert "FAIL format-collapse" in shown
    assert "[red]" in shown
    assert "top prose 0.50" in shown
    assert "kappa" not in shown
    assert "\x1b" not in shown
    assert "\x07" not in shown


def test_screen_shows_what_a_policy_holds() -> None:
    stream = io.StringIO()
    held = {"rlmon/intervention/kappa": 0.75, "rlmon/intervention/beta": 0.02}
    with Screen(["protect-seed0"], 150, stream) as screen:
        screen.step("protect-seed0", dataclasses.replace(record(25), metrics=held), [])
    assert "kappa 0.75  beta 0.02" in stream.getvalue()
