"""Comparing arms: floors, excess KL and paired intervals, with the arithmetic shown."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from studies import frontier
from studies.arms import TASKS
from studies.tables import interval


def points(*rows: tuple[int, float, float | None]) -> list[dict[str, Any]]:
    return [{"step": step, "reward": reward, "kl_seq_nats": drift} for step, reward, drift in rows]


def test_interval_is_students_t() -> None:
    # mean 2, sd 1, n 3: half width 4.303 / sqrt(3) = 2.484
    found = interval([1.0, 2.0, 3.0])
    assert (found.mean, found.n) == (2.0, 3)
    assert found.half == pytest.approx(4.303 / math.sqrt(3), abs=1e-3)
    assert interval([0.5]).half is None
    with pytest.raises(ValueError, match="at least one"):
        interval([])


def test_binary_kl() -> None:
    # .9 ln(.9/.5) + .1 ln(.1/.5) = .5290 - .1609 = .3681
    assert frontier.binary_kl_nats(0.9, 0.5) == pytest.approx(0.3681, abs=1e-4)
    assert frontier.binary_kl_nats(0.7, 0.7) == 0.0
    assert frontier.binary_kl_nats(1.0, 0.5) == pytest.approx(math.log(2))
    assert frontier.binary_kl_nats(0.5, 1.0) == math.inf


def test_path_is_smoothed_within_ten_steps_and_only_where_the_kl_was_measured() -> None:
    trajectory = points((1, 0.5, None), (5, 0.7, 1.0), (10, 0.9, 3.0), (30, 1.0, 9.0), (31, 0.0, None))
    # step 5 sees steps 1, 5, 10: reward (.5 + .7 + .9) / 3 = .7, KL (1 + 3) / 2 = 2; step 10 the same;
    # step 30 sees 30 and 31: reward .5, KL 9
    assert frontier.path_of(trajectory) == [
        (pytest.approx(0.7), 2.0), (pytest.approx(0.7), 2.0), (0.5, 9.0),
    ]  # fmt: skip


def test_drift_at_interpolates_the_first_crossing() -> None:
    path = [(0.5, 0.0), (0.6, 1.0), (0.55, 5.0), (0.8, 2.0)]
    assert frontier.drift_at(path, 0.55) == pytest.approx(0.5)
    # From (.55, 5) to (.8, 2): .7 is 60 % of the way, 5 - .6 * 3 = 3.2
    assert frontier.drift_at(path, 0.7) == pytest.approx(3.2)
    assert frontier.drift_at(path, 0.5) == 0.0
    assert frontier.drift_at(path, 0.81) is None


def test_excess_compares_at_the_highest_accuracy_that_both_reach() -> None:
    far = points((0, 0.5, 0.0), (100, 0.9, 4.0))
    near = points((0, 0.5, 0.0), (100, 0.7, 0.5))
    found = frontier.excess("near", "far", {0: near, 1: near}, {0: far, 1: far, 2: far}, 0.5)
    assert found is not None
    # At .7 the far run is half way from 0 to 4 nats: 2.0. Floor: .7 ln 1.4 + .3 ln .6 = .0823.
    floor = 0.7 * math.log(1.4) + 0.3 * math.log(0.6)
    assert found.accuracy == pytest.approx(0.7)
    assert found.floor_nats == pytest.approx(floor)
    assert found.arm_nats == pytest.approx(0.5 - floor)
    assert found.reference_nats == pytest.approx(2.0 - floor)
    assert found.difference_nats.mean == pytest.approx(-1.5)
    assert found.difference_nats.n == 2
    assert frontier.excess("a", "b", {0: near}, {1: far}, 0.5) is None


def cell(arm: str, seed: int, accuracy: float, drift: float) -> dict[str, Any]:
    return {
        "task": "seven",
        "arm": arm,
        "seed": seed,
        "evaluation": {
            "accuracy": accuracy, "effective_formats": 2.0, "effective_formats_correct": 1.5,
            "effective_formats_correct_within": None, "kl_seq_nats": drift, "other_share": 0.01,
            "format_shares": {"prose": 0.75, "json": 0.25}, "accuracy_by_format": {"prose": accuracy},
        },
        "actions": [[10, "applied", "hold", "kappa (format)", 1.0, 0.5]],
        "worthless_share": None,
        "trajectory": points((0, 0.5, 0.0), (100, accuracy, drift)),
        "train_cpu_seconds": 10.0, "evaluate_cpu_seconds": 3.0, "faults": 0,
        "packages": {"python": "3", "absent": None}, "machine": {"system": "test"},
    }  # fmt: skip


RESULTS = [
    cell(arm, seed, accuracy - seed / 100, drift)
    for arm, accuracy, drift in (("unprotected", 0.95, 2.0), ("kl-0.1", 0.9, 0.5), ("mine", 0.94, 0.6))
    for seed in (0, 1)
]
BASE = {
    "task": "seven",
    "evaluation": {
        "accuracy": 0.5, "effective_formats_correct": 2.0, "other_share": 0.0,
        "format_shares": {"prose": 0.5, "json": 0.5, "rare": 0.001}, "accuracy_by_format": {"prose": 0.5, "json": 0.5},
    },
}  # fmt: skip


def test_differences_are_paired_over_seeds() -> None:
    arms = frontier.by_arm(RESULTS)
    found = frontier.paired(arms["mine"], arms["unprotected"], "accuracy")
    assert found is not None
    # .94 - .95 and .93 - .94: the seeds differ, the differences do not.
    assert found.mean == pytest.approx(-0.01)
    assert found.half == pytest.approx(0.0, abs=1e-9)
    assert frontier.paired(arms["mine"], {}, "accuracy") is None
    assert frontier.paired(arms["mine"], arms["unprotected"], "worthless_share") is None


def test_every_arm_meets_the_unprotected_one_and_other_arms_meet_each_kl_arm() -> None:
    assert [(found.arm, found.reference) for found in frontier.excesses(RESULTS, BASE)] == [
        ("kl-0.1", "unprotected"),
        ("mine", "unprotected"),
        ("mine", "kl-0.1"),
    ]


def test_what_was_asked_is_marked_line_by_line() -> None:
    found = frontier.excesses(RESULTS, BASE)
    table = frontier.asked_table(RESULTS, BASE, found, arm="mine")
    assert table is not None
    lines = {line.split(" | ")[0].lstrip("| "): line for line in table.splitlines()[2:]}
    # 1.5 of 2.0 is under 85 %; other grew by 1 point; accuracy is 1 point under, to the last bit.
    assert "75% | **does not hold**" in lines["correct-only effective formats of the base's, across"]
    assert "+1.0% | holds" in lines["growth of `other`"]
    assert "nan% | **does not hold**" in lines["the same within prompts"], "not measured is not held"
    assert "excess KL saved at equal accuracy" in lines
    assert frontier.asked_table(RESULTS, BASE, found) is None, "protect was not run"


def test_shares_and_accuracies_by_format() -> None:
    table = frontier.by_format_table(RESULTS, BASE).splitlines()
    assert table[0] == "| arm | prose | json |", "what the base hardly has is left out"
    assert table[2] == "| *base* | 0.500 (0.50) | 0.500 (0.50) |"
    # accuracies of the two seeds: .95 and .94
    assert table[3] == "| unprotected | 0.750 (0.94) | 0.250 |" or table[3] == "| unprotected | 0.750 (0.95) | 0.250 |"


def test_predicted_shares_are_those_of_the_last_kappa() -> None:
    results = [cell("marginal", 0, 0.8, 1.0)]
    results[0]["evaluation"]["accuracy_by_format"] = {"prose": 0.9, "json": 0.5}
    table = frontier.predicted_table(results, BASE)
    assert table is not None
    # kappa .5, spread sqrt(.8 .2) = .4: R = (.1, -.3) / .4 = (.25, -.75); exp(R / .5) = (1.649, .223), equal p0.
    assert "| predicted | 0.881 | 0.119 |" in table
    assert "| achieved | 0.750 | 0.250 |" in table
    assert frontier.predicted_table(RESULTS, BASE) is None


def test_report_is_the_same_bytes_twice(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    about = {"unprotected": "beta 0", "kl-0.1": "beta 0.1", "mine": "a policy"}
    written = []
    for name in ("first", "second"):
        text = frontier.write_report(tmp_path / name, [TASKS["seven"]], about, {"seven": BASE}, RESULTS, "command")
        written.append({path.name: path.read_bytes() for path in sorted((tmp_path / name).iterdir())})
    assert written[0] == written[1]
    assert set(written[0]) == {"README.md", "seven.json", "frontier.svg", "diversity.svg"}
    assert "| mine | 2 | 0.935 |" in text
    assert "-0.010 ± 0.000" in text
    assert "worthless" not in text.split("## seven")[1].split("## Figures")[0]
    stored = json.loads((tmp_path / "first" / "seven.json").read_text(encoding="utf-8"))
    assert [found["seed"] for found in stored["cells"]] == [0, 1, 0, 1, 0, 1]


def test_the_predicted_tilt_by_hand() -> None:
    # exp(0) .5 : exp(ln 3) .5 = 1 : 3
    assert frontier.predicted_shares([0.5, 0.5], [0.0, 2 * math.log(3)], 2.0) == pytest.approx([0.25, 0.75])
    # What the base never does stays so; without pressure the best of the base alone is left.
    assert frontier.predicted_shares([0.5, 0.5, 0.0], [0.0, 0.0, 1e6], 0.01).tolist() == [0.5, 0.5, 0.0]
    assert frontier.predicted_shares([0.25, 0.75, 0.0], [1.0, 0.0, 2.0], 0.0).tolist() == [1.0, 0.0, 0.0]
