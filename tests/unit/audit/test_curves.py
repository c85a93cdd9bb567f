"""What is said of runs that left curves only: dead ones, fast ones, and noise that is no news."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from audit_rows import audited, check, draw, opened, spoken

from rlmon.audit import curves
from rlmon.audit.clauses import short
from rlmon.audit.curves import move, since
from rlmon.audit.result import Audit

Rng = np.random.Generator
Values = np.ndarray[Any, np.dtype[np.float64]]


def noise(rng: Rng, points: int, phi: float, deviation: float) -> Values:
    """Autoregressive noise of order 1 with that standard deviation."""
    shocks = rng.standard_normal(points + 60) * deviation * np.sqrt(1.0 - phi * phi)
    values = np.zeros(points + 60)
    for at in range(1, values.size):
        values[at] = phi * values[at - 1] + shocks[at]
    return values[60:]


def of_curves(**named: Any) -> Audit:
    """An audit of curves, by TRL's names with ``_`` for ``/``."""
    names = {
        "length": "completions/mean_length",
        "clipped": "completions/clipped_ratio",
        "silent": "frac_reward_zero_std",
    }
    scalars: Mapping[str, list[tuple[int, float]]] = {
        names.get(name, name): [(at + 1, float(value)) for at, value in enumerate(values)]
        for name, values in named.items()
    }
    return audited(opened(scalars=scalars, lacks={"completions": "there are none"}))


def alive(rng: Rng, points: int, **other: Any) -> dict[str, Any]:
    """Curves of a run in which rewards differ and grow a little."""
    grown = 0.3 + 0.3 * np.arange(points) / points
    return {
        "reward": grown + noise(rng, points, 0.3, 0.03),
        "reward_std": 0.3 + noise(rng, points, 0.3, 0.02),
        "silent": np.clip(0.2 + noise(rng, points, 0.3, 0.05), 0.0, 1.0),
        "grad_norm": 0.3 * np.exp(noise(rng, points, 0.3, 0.2)),
    } | other


# --- what falls while the base is taken ---------------------------------------------------------------------------


@pytest.mark.parametrize("decay", [4, 20, 100])
@pytest.mark.parametrize("points", [100, 160, 300])
def test_entropy_and_length_that_decay_at_any_pace_are_told(decay: int, points: int) -> None:
    time = np.arange(points)
    for seed, deviation in ((1, 0.0), (2, 0.02)):
        course = (0.003 + 0.63 * np.exp(-time / decay)) * np.exp(
            noise(np.random.default_rng(seed), points, 0.3, deviation)
        )
        audit = of_curves(entropy=course, length=300.0 * course)
        assert check(audit, "entropy-collapse").status == "warn", "one signal is never a FAIL"
        assert check(audit, "length-collapse").status in ("warn", "fail")
        # Half of the first points: after 4 ln 2 = 3 steps, 14 or 69; the 5-step mean comes two later.
        onset = check(audit, "entropy-collapse").first_step
        assert onset is not None
        assert onset <= 12 + decay


def test_what_is_certain_to_pass_its_line_is_told_before_it_has_and_what_settles_is_not() -> None:
    # exp(-.6) = .55 of the base after 60 steps, exp(-.9) = .41 after 90.
    time = np.arange(60)
    falls = np.exp(-time / 100.0 + noise(np.random.default_rng(14), 60, 0.3, 0.01))
    found = check(of_curves(entropy=falls), "entropy-collapse")
    assert found.status == "warn"
    assert "still falls" in found.message
    settles = 0.6 + 0.4 * np.exp(-time / 8.0) + noise(np.random.default_rng(15), 60, 0.3, 0.01)
    assert check(of_curves(entropy=settles), "entropy-collapse").status == "pass"


def test_what_cannot_be_judged_is_not_said_to_be_without_blocks() -> None:
    # 12 points that fall twentyfold: nine come after the base, so "no block came after" was a lie.
    audit = of_curves(
        entropy=0.6 * np.exp(-np.arange(12) / 4.0) * np.exp(noise(np.random.default_rng(3), 12, 0.0, 0.4))
    )
    found = check(audit, "entropy-collapse")
    assert found.status in ("warn", "unsure", "skip")
    assert "no block came" not in (found.reason or "")


def test_entropy_that_explodes_inside_the_base_is_told() -> None:
    course = 0.35 + 1.6 * (1.0 - np.exp(-np.arange(120) / 6.0))
    assert check(of_curves(entropy=course), "entropy-explosion").status in ("warn", "fail")


def test_formats_that_die_inside_the_base_are_told() -> None:
    def write(rng: Rng, t: float, prompt: int) -> str:
        left = np.exp(-t * 60 / 4.0)
        if rng.random() > left:
            return f"<answer>{prompt % 97}</answer>"
        return [f"\\boxed{{{prompt % 97}}}", f"print({prompt % 97})", f'{{"answer": {prompt % 97}}}'][
            int(rng.integers(3))
        ]

    found = check(audited(draw(4, steps=60, write=write)), "format-collapse")
    assert found.status in ("warn", "fail")


# --- levels that stand from the first step -------------------------------------------------------------------------


def test_truncation_of_everything_is_told_though_nothing_changed() -> None:
    rng = np.random.default_rng(5)
    always = of_curves(clipped=np.clip(0.97 + noise(rng, 60, 0.0, 0.01), 0, 1))
    assert check(always, "truncation").status == "warn"
    half = of_curves(clipped=np.clip(0.5 + noise(rng, 60, 0.0, 0.02), 0, 1))
    assert check(half, "truncation").status == "note", "a level past its line is no pass"
    assert check(of_curves(clipped=np.full(60, 0.02)), "truncation").status == "pass"


def test_a_distance_that_was_there_from_the_start_is_a_note_and_a_drift_is_not() -> None:
    rng = np.random.default_rng(6)
    there = of_curves(kl=0.9 * np.exp(noise(rng, 120, 0.3, 0.1)))
    assert check(there, "kl-drift").status == "note"
    assert check(there, "kl-drift").first_step is None
    further = of_curves(kl=np.linspace(0.2, 2.0, 120) * np.exp(noise(rng, 120, 0.3, 0.1)))
    assert check(further, "kl-drift").status == "fail"
    drifted = of_curves(kl=np.linspace(0.001, 0.9, 120) * np.exp(noise(rng, 120, 0.3, 0.1)))
    assert check(drifted, "kl-drift").status == "fail"


def test_a_base_of_few_points_is_no_base() -> None:
    assert move(np.linspace(1.0, 0.1, 7), 0.001, relative=True) is None
    for points in (1, 2, 7):
        audit = of_curves(reward=np.linspace(1.0, 0.0, points), entropy=np.linspace(1.0, 0.01, points))
        assert spoken(audit) == {}
        assert audit.verdict == "insufficient"


@pytest.mark.parametrize("level", [0.0, 0.004])
def test_entropy_that_is_nothing_from_the_first_step_on_is_no_pass(level: float) -> None:
    rng = np.random.default_rng(21)
    audit = of_curves(**alive(rng, 60, entropy=np.full(60, level), length=np.full(60, 200.0)))
    found = check(audit, "entropy-collapse")
    assert (found.status, found.first_step) == ("warn", None)
    assert f"token entropy is {level:.3g} nats from the first step on" in audit.headline.lower()
    # What says that entropy does not rise does not say that it holds.
    assert check(audit, "entropy-explosion").core is None
    low = of_curves(**alive(rng, 60, entropy=0.05 * np.exp(noise(rng, 60, 0.3, 0.1))))
    assert check(low, "entropy-collapse").status == "pass"
    signed = of_curves(**alive(rng, 60, entropy=np.full(60, -0.5)))
    assert check(signed, "entropy-collapse").status != "warn", "an entropy with its sign turned is not 0"


@pytest.mark.parametrize(("tokens", "status"), [(0.0, "warn"), (1.0, "note"), (3.0, "pass")])
def test_completions_of_no_tokens_from_the_first_step_on_are_told(tokens: float, status: str) -> None:
    audit = of_curves(**alive(np.random.default_rng(22), 60, length=np.full(60, tokens)))
    assert check(audit, "length-collapse").status == status
    assert ("they are empty" in audit.headline) == (status != "pass") or audit.verdict == "insufficient"


# --- reward -------------------------------------------------------------------------------------------------------


def test_a_dead_run_is_told_by_each_of_its_signs_alone() -> None:
    zero = np.zeros(50)
    alone = (
        {"reward": zero},
        {"reward_std": zero},
        {"silent": zero + 1.0},
        {"grad_norm": zero},
        {"reward": zero + 3.0},
    )
    for curve in (*alone, {"reward": zero, "reward_std": zero, "grad_norm": zero, "kl": zero}):
        found = check(of_curves(**curve), "reward-signal")
        assert found.status == "fail", curve
        assert "nothing can be learned" in found.message
    # Not where a single step lives, and never for a reward that is solved or was.
    assert check(of_curves(reward=zero + 1.0), "reward-signal").status == "warn"
    lively = of_curves(**alive(np.random.default_rng(7), 50))
    assert check(lively, "reward-signal").status == "pass"


def test_a_constant_reward_is_not_called_learned() -> None:
    for level in (0.0, 1.0, 3.0):
        drawn = draw(8, steps=40, score=lambda rng, t, prompt, text, level=level: level)
        audit = audited(drawn)
        assert check(audit, "silent-groups-good").status == "skip"
        assert check(audit, "reward-signal").status == ("warn" if level == 1.0 else "fail")
        assert not [one for one in audit.checks if "learned and" in one.message or "it is learned" in one.message]


def test_a_run_that_solves_its_data_gets_a_note() -> None:
    time = np.arange(100)
    solved = 1.0 - np.exp(-time / 5.0)
    audit = of_curves(reward=solved, silent=solved, grad_norm=0.3 * np.exp(-time / 5.0))
    assert check(audit, "reward-signal").status == "note"
    assert check(audit, "reward-signal").first_step in range(8, 16)


def test_good_and_bad_groups_together_may_leave_nothing() -> None:
    # 55 % all good and 45 % all bad: each is under its own line, and no group is left.
    def score(rng: Rng, t: float, prompt: int, text: str) -> float:
        return float(prompt % 20 < 11) if t > 0.4 else float(rng.random() < 0.5)

    found = check(audited(draw(9, steps=60, score=score)), "reward-signal")
    assert found.status in ("warn", "fail")
    assert found.first_step is not None
    assert 24 <= found.first_step <= 28


def test_a_reward_that_falls_or_is_lost_again_is_told_and_a_flat_one_is_not() -> None:
    rng = np.random.default_rng(10)
    time = np.arange(200) / 200.0
    for course, status in (
        (0.6 - 0.55 * time, "fail"),
        (0.6 - 0.3 * time, "warn"),
        (0.3 + 0.5 * np.minimum(1.0, 3 * time) - 0.7 * np.clip(3 * time - 2, 0, 1), "fail"),
        (0.3 + 0.4 * np.minimum(1.0, 3 * time) - 0.4 * np.clip(3 * time - 2, 0, 1), "warn"),
        (0.3 + 0.4 * time, "pass"),
        (np.full(200, 0.9), "pass"),
        (np.full(200, -2.0), "pass"),
    ):
        audit = of_curves(**alive(rng, 200, reward=course + noise(rng, 200, 0.3, 0.02)))
        assert check(audit, "reward-loss").status == status, course[[0, 66, 133, 199]]


def test_a_gradient_that_vanishes_or_explodes_is_told() -> None:
    rng = np.random.default_rng(11)
    grown = 0.3 * np.exp(noise(rng, 100, 0.3, 0.3) + 4.0 * np.clip(np.arange(100) / 50.0 - 1.0, 0.0, 1.0))
    assert check(of_curves(**alive(rng, 100, grad_norm=np.zeros(100))), "gradient").status == "fail"
    assert (
        check(of_curves(**alive(rng, 100, grad_norm=np.where(np.arange(100) < 60, 0.3, 0.0))), "gradient").first_step
        == 61
    )
    assert check(of_curves(**alive(rng, 100, grad_norm=grown)), "gradient").status == "warn"
    assert check(of_curves(**alive(rng, 100)), "gradient").status == "pass"


def test_equal_rewards_in_float32_and_a_gradient_of_next_to_nothing_teach_nothing() -> None:
    rng = np.random.default_rng(23)
    ulp = 6e-8 * rng.integers(0, 2, 60)
    audit = of_curves(reward=0.7 + ulp, reward_std=ulp, grad_norm=np.full(60, 1e-9))
    for check_id in ("reward-signal", "gradient"):
        assert check(audit, check_id).status == "fail", check_id
    assert "exactly" not in audit.headline
    # Of rewards in the hundreds the spread of equal ones is larger.
    assert check(of_curves(reward=np.full(60, 300.0), reward_std=300 * ulp), "reward-signal").status == "fail"
    assert check(of_curves(reward=1.0 - ulp, reward_std=ulp), "reward-signal").status == "warn", "it is solved"
    small = alive(rng, 60, reward=0.01 + noise(rng, 60, 0.3, 1e-3), reward_std=np.full(60, 1e-3))
    assert check(of_curves(**small), "reward-signal").status == "pass"


@pytest.mark.parametrize("now", [1e4, 1e30])
def test_a_gradient_that_rises_by_any_factor_keeps_its_base(now: float) -> None:
    audit = of_curves(**alive(np.random.default_rng(24), 100, grad_norm=np.where(np.arange(100) < 50, 0.3, now)))
    found = check(audit, "gradient")
    assert found.status == "warn"
    assert found.baseline == pytest.approx(0.3)
    assert f"the gradient norm rose from 0.3 to {short(now)}" in audit.headline
    spike = np.where(np.arange(100) == 50, now, 0.3)
    assert check(of_curves(**alive(np.random.default_rng(24), 100, grad_norm=spike)), "gradient").status == "pass"


def test_numbers_too_long_to_read_are_powers_of_ten() -> None:
    assert [short(value) for value in (12.345, 1234.0, 2e8, 1e30)] == ["12.3", "1,234", "200,000,000", "1e+30"]


# --- numbers that are no numbers ----------------------------------------------------------------------------------


def test_what_turns_nan_leads_and_nothing_passes_on_what_was_before() -> None:
    rng = np.random.default_rng(13)
    gone = np.where(np.arange(100) < 39, 1.0, np.nan)
    length = np.where(np.arange(100) < 45, 200.0, 20.0)
    audit = of_curves(**alive(rng, 100, entropy=0.6 * gone, kl=0.01 * gone, loss=gone, length=length))
    first = audit.checks[0]
    assert (first.id, first.status, first.first_step) == ("non-finite", "fail", 40)
    assert audit.headline.startswith("From step 40: entropy, kl, loss: NaN or infinite in 61 of 100 steps")
    for check_id in ("entropy-collapse", "entropy-explosion", "kl-drift"):
        found = check(audit, check_id)
        assert found.status == "unsure", check_id
        assert "last measured at step 39" in (found.reason or "")
    assert check(audit, "reward-loss").status == "pass", "its values go on to the end"
    assert check(audit, "length-collapse").status == "fail"
    whole = of_curves(**alive(rng, 100, entropy=np.full(100, 0.6)))
    assert check(whole, "entropy-collapse").status == "pass"


@pytest.mark.parametrize("named", ["entropy", "reward", "grad_norm"])
def test_a_curve_that_ends_before_the_run_is_no_pass(named: str) -> None:
    rng = np.random.default_rng(25)
    whole = alive(rng, 100, entropy=0.6 + noise(rng, 100, 0.3, 0.02))
    answers = {"entropy": "entropy-collapse", "reward": "reward-loss", "grad_norm": "gradient"}

    def ends(at: int) -> Audit:
        names = {"silent": "frac_reward_zero_std"}
        return audited(opened(scalars={
            names.get(name, name): [(step + 1, float(value)) for step, value in enumerate(values)
                                    if name != named or step < at]
            for name, values in whole.items()
        }, lacks={"completions": "there are none"}))  # fmt: skip

    found = check(ends(40), answers[named])
    assert found.status == "unsure"
    assert "last measured at step 40, and the log goes on to step 100" in (found.reason or "")
    assert check(ends(95), answers[named]).status == "pass", "a few last steps are not missed"


def test_infinity_in_the_first_steps_alone_has_recovered() -> None:
    rng = np.random.default_rng(26)
    first = np.where(np.arange(100) < 2, np.inf, 0.3)
    logged = alive(rng, 100, grad_norm=first, loss=noise(rng, 100, 0.3, 0.01))
    found = check(of_curves(**logged), "non-finite")
    assert (found.status, found.first_step) == ("warn", 1)
    assert "has recovered" in found.message
    for other in (
        {"loss": first},
        {"grad_norm": np.where(np.arange(100) < 4, np.inf, 0.3)},
        {"grad_norm": np.where(np.isin(np.arange(100), (0, 60)), np.inf, 0.3)},
    ):
        assert check(of_curves(**logged | other), "non-finite").status == "fail", other


# --- false alarms -------------------------------------------------------------------------------------------------


def healthy(seed: int) -> Audit:
    """Curves of a run in which nothing goes wrong: warm-up, slow growth, entropy that settles, a schedule, noise."""
    rng = np.random.default_rng(seed)
    points = int(rng.choice([30, 60, 150, 300]))
    time = np.arange(points) / points
    phi, rough = float(rng.choice([0.0, 0.5, 0.9])), float(rng.choice([0.03, 0.08, 0.15]))
    settle = rng.uniform(0.7, 1.0)
    start, gain = rng.uniform(0.1, 0.9), rng.uniform(0.0, 0.5)
    growth = rng.choice([0.0, gain]) * (1.0 - start) * (1.0 - np.exp(-3 * time))
    return of_curves(
        entropy=rng.uniform(0.2, 2.0)
        * (settle + (1 - settle) * np.exp(-5 * time))
        * np.exp(noise(rng, points, phi, rough)),
        length=rng.uniform(50, 2_000) * (1 + 0.5 * rng.random() * time) * np.exp(noise(rng, points, phi, rough)),
        reward=start + growth + noise(rng, points, phi, rough * start),
        reward_std=0.3 * np.exp(noise(rng, points, phi, rough)),
        silent=np.clip(rng.uniform(0.0, 0.5) + noise(rng, points, phi, 0.1), 0.0, 1.0),
        grad_norm=0.3 * np.exp(noise(rng, points, phi, 2 * rough)) * (1 + time),
        kl=0.04 * time * np.exp(noise(rng, points, phi, rough)),
        clipped=np.clip(0.05 + noise(rng, points, phi, 0.03), 0.0, 1.0),
        learning_rate=1e-5 * np.minimum(1.0, 10 * time) * (1 - time),
    )


def test_healthy_curves_are_left_alone() -> None:
    said = {seed: {one for one in spoken(healthy(seed)).items() if one[1] != "unsure"} for seed in range(200)}
    assert not [one for one in said.values() for _, status in one if status == "fail"], said
    assert sum(any(status == "warn" for _, status in one) for one in said.values()) <= 4, said


@pytest.mark.parametrize(("phi", "wrong"), [(0.0, 0.08), (0.6, 0.13), (0.9, 0.35)])
def test_the_interval_of_a_curve_without_a_trend_is_as_wide_as_it_says(phi: float, wrong: float) -> None:
    # Level 5 %, two-sided: the interval of the end must hold the base in 95 of 100. Of a memory of ten steps (phi .9)
    # twelve points show little; there it is wrong more often, which lines at half of the base forgive.
    rng = np.random.default_rng(12)
    outside = 0
    for _ in range(400):
        found = move(noise(rng, 100, phi, 1.0), 0.05, relative=False)
        assert found is not None
        outside += not found.low <= found.base <= found.high
    assert outside / 400 <= wrong


def test_first_step_from_which_a_curve_stays_past_its_line() -> None:
    steps = np.arange(10, 20)
    assert since(steps, steps >= 15) == 15
    assert since(steps, steps == 15) is None, "it came back"
    assert since(steps, np.ones(10, dtype=bool)) == 10
    assert since(steps[:0], np.zeros(0, dtype=bool)) is None
    assert curves.smooth_since(steps, np.where(steps < 15, 1.0, 0.0), 0.5, upward=False) == 17
