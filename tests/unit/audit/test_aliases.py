"""The alias table: every canonical name is the catalogue's or a word of TRL, and no key means two things."""

from __future__ import annotations

import math
from collections import Counter

import pytest

from rlmon.audit import aliases
from rlmon.metrics.catalog import lookup

TRL_WORDS = {"reward_std", "loss", "grad_norm", "learning_rate", "clip_ratio", "policy_kl", "sampler_mismatch"} | {
    "rlmon/kl/seq",
    "reward_range",
}
UNITS = {name: group[0].unit for name, group in aliases.table().items()}


def test_names_and_units_are_the_catalogues() -> None:
    for name, unit in UNITS.items():
        if name not in TRL_WORDS:
            assert lookup(name).unit == unit


def test_no_key_stands_for_two_quantities() -> None:
    keys = Counter(alias.key for group in aliases.table().values() for alias in group)
    assert [key for key, count in keys.items() if count > 1] == []


def test_every_trainer_of_the_list_is_there() -> None:
    tools = {alias.tool for group in aliases.table().values() for alias in group}
    assert tools == {
        "rlmon",
        "trl",
        "trl-ppo",
        "verl",
        "openrlhf",
        "tinker-cookbook",
        "nemo-rl",
        "skyrl",
        "prime-rl",
        "slime",
        "areal",
        "by hand",
    }


@pytest.mark.parametrize(
    ("logged", "name", "points"),
    [
        ({"entropy": [(1, 0.5)]}, "rlmon/entropy/mean", [(1, 0.5)]),
        ({"train/entropy": [(1, 0.5)]}, "rlmon/entropy/mean", [(1, 0.5)]),
        ({"actor/entropy": [(1, 0.25), (2, 0.125)]}, "rlmon/entropy/mean", [(1, 0.25), (2, 0.125)]),
        ({"frac_reward_zero_std": [(3, 0.75)]}, "rlmon/group/silent", [(3, 0.75)]),
        # Mixed groups are those that are not silent: 1 - .75 = .25.
        ({"env/all/by_group/frac_mixed": [(3, 0.75)]}, "rlmon/group/silent", [(3, 0.25)]),
        ({"env/all/by_group/frac_all_bad": [(3, 0.5)]}, "rlmon/group/all_bad", [(3, 0.5)]),
        ({"train/agg/effective/solver/reward/mean": [(1, 2.0)]}, "rlmon/health/reward_mean", [(1, 2.0)]),
        ({"agg/effective/solver/reward/mean": [(1, 2.0)]}, "rlmon/health/reward_mean", [(1, 2.0)]),
        # verl logs the ends of the batch's rewards and no deviation: .75 - .25 = .5.
        ({"critic/score/max": [(1, 0.75), (2, 1.0)], "critic/score/min": [(1, 0.25)]}, "reward_range", [(1, 0.5)]),
        # PPO of TRL sums over the tokens of a completion: another quantity than the mean per token.
        ({"objective/kl": [(1, 20.0)]}, "rlmon/kl/seq", [(1, 20.0)]),
        ({"objective/scores": [(1, 0.5)]}, "rlmon/health/reward_mean", [(1, 0.5)]),
        ({"policy/entropy_avg": [(1, 0.5)]}, "rlmon/entropy/mean", [(1, 0.5)]),
        ({"rewards/correct/mean": [(1, 0.5)]}, "rewards/correct", [(1, 0.5)]),
        ({"rewards/correct": [(1, 0.5)]}, "rewards/correct", [(1, 0.5)]),
        ({"train/rewards/my.module.f/std": [(1, 0.5)]}, "rewards/my.module.f/std", [(1, 0.5)]),
        # The function gave nothing for any row of the first step.
        ({"rewards/rare/mean": [(1, math.nan), (2, 0.5)]}, "rewards/rare", [(2, 0.5)]),
        ({"train/rlmon/format/effective": [(1, 3.0)]}, "rlmon/format/effective", [(1, 3.0)]),
    ],
)
def test_what_a_trainer_logged_by_canonical_name(
    logged: dict[str, list[tuple[int, float]]], name: str, points: list[tuple[int, float]]
) -> None:
    assert aliases.canonical(logged) == {name: points}


def test_the_first_key_that_has_points_is_taken() -> None:
    logged = {"rlmon/entropy/mean": [], "entropy": [(1, 0.5)], "actor/entropy": [(1, 9.0)]}
    assert aliases.canonical(logged)["rlmon/entropy/mean"] == [(1, 0.5)]
    alias, key = aliases.chosen(logged)["rlmon/entropy/mean"]
    assert (alias.tool, key) == ("trl", "entropy")
    assert "micro-batches" in alias.note
    measured = {"rlmon/entropy/mean": [(1, 0.25)], "entropy": [(1, 0.5)]}
    assert aliases.canonical(measured)["rlmon/entropy/mean"] == [(1, 0.25)]


def test_two_agents_are_not_one_number() -> None:
    logged = {f"agg/effective/{agent}/reward/mean": [(1, 1.0)] for agent in ("a", "b")}
    assert aliases.canonical(logged) == {}


def test_what_is_no_curve_of_a_known_kind_has_no_canonical_name() -> None:
    # A sum over the sequence is no entropy per token; min and max of a function are not its mean; a counter.
    assert aliases.canonical({"critic/score/max": [(1, 1.0)]}) == {}
    both = {"critic/score/max": [(1, 1.0)], "train/critic/score/min": [(1, 0.0)]}
    assert aliases.taken(both) == dict.fromkeys(both, "reward_range")
    for key in ("objective/entropy", "rewards/f/min", "rewards/mean", "rlmon/faults", "timing_s/step"):
        assert aliases.canonical({key: [(1, 1.0)]}) == {}
        assert not aliases.says_something(key)
    for key in ("eval_reward", "train/rewards/f/mean", "actor/entropy", "agg/effective/a/reward/mean", "rlmon/kl/mean"):
        assert aliases.says_something(key)
    assert not aliases.says_something("learning_rate")


def test_a_key_of_a_run_is_no_pattern() -> None:
    assert aliases.canonical({"*": [(1, 1.0)], "entrop[y]": [(1, 1.0)]}) == {}
