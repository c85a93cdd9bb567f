"""What the study of control works out, with the arithmetic shown; that its page is what its command writes."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest

from studies import control, control_page, control_results
from studies.arms import ARMS
from studies.control import PLAN, Plan
from studies.control_arms import TRIED
from studies.control_results import Single

ROOT = Path(__file__).resolve().parents[2]


def test_what_could_be_reached_weighs_the_formats_by_the_shares_of_the_run() -> None:
    best = {"prose": 0.98, "python": 1.0}
    # .75 * .98 + .25 * 1 = .985
    assert control_results.reachable({"prose": 0.75, "python": 0.25}, best) == pytest.approx(0.985)
    # What no single-format run was trained for counts as the best of them: .7 * .98 + .2 * 1 + .1 * 1 = .986
    assert control_results.reachable({"prose": 0.7, "python": 0.2, "other": 0.1}, best) == pytest.approx(0.986)


def test_upper_bound_is_one_sided_students_t() -> None:
    # mean 2, sd 1, n 3: 2 + 2.920 / sqrt(3) = 3.686
    assert control_results.upper_bound([1.0, 2.0, 3.0]) == pytest.approx(2.0 + 2.920 / math.sqrt(3), abs=1e-3)
    assert control_results.upper_bound([1.0]) is None


def curve(*accuracies: float, share: float = 1.0) -> list[dict[str, Any]]:
    return [
        {
            "step": 20 * (index + 1),
            "accuracy": accuracy,
            "format_shares": {"prose": share, "python": 1.0 - share},
            "accuracy_by_format": {"prose": accuracy},
        }
        for index, accuracy in enumerate(accuracies)
    ]


def test_the_line_is_reached_at_the_first_of_two_in_a_row() -> None:
    # Base .8 and reachable 1: the line is .8 + .9 * .2 = .98.
    line = control_results.line(0.8, 1.0)
    assert line == pytest.approx(0.98)
    # 40 is above it alone; 80 and 100 are in a row.
    assert control_results.steps_to(curve(0.9, 0.99, 0.97, 0.985, 0.98, 0.9), 0.98) == 80
    assert control_results.steps_to(curve(0.9, 0.97, 0.99), 0.98) is None
    assert control_results.steps_to([], 0.98) is None


def test_a_plateau_is_two_in_a_row_that_do_not_rise_above_the_best() -> None:
    assert not control_results.plateaued(curve(0.9, 0.95, 0.94), "prose")
    assert control_results.plateaued(curve(0.9, 0.95, 0.94, 0.95), "prose")
    assert not control_results.plateaued(curve(0.9, 0.95, 0.94, 0.96), "prose")
    # Before the format is nearly all that is written, nothing is judged.
    assert not control_results.plateaued([*curve(0.9, 0.8, share=0.5), *curve(0.7)], "prose")


def test_ratio_of_steps_is_a_geometric_mean_over_pairs() -> None:
    # sqrt(200/100 * 100/200) = 1; of 4 and 1 it is 2.
    whole = control_results.ratio_of_steps({1: 200, 2: 100}, {1: 100, 2: 200}, 360)
    assert (whole.mean, whole.pairs, whole.at_least) == (pytest.approx(1.0), 2, False)
    assert control_results.ratio_of_steps({1: 400, 2: 100}, {1: 100, 2: 100}, 400).mean == pytest.approx(2.0)
    # Not reached within 360 steps is 360 or more: sqrt(360/90 * 100/100) = 2 at least.
    cut = control_results.ratio_of_steps({1: None, 2: 100, 3: 5}, {1: 90, 2: 100, 3: None}, 360)
    assert (cut.mean, cut.pairs, cut.at_least) == (pytest.approx(2.0), 2, True)
    assert control_results.ratio_of_steps({1: 5}, {1: None}, 360).mean is None


def test_a_goal_that_cannot_be_decided_is_not_called_held_or_missed() -> None:
    def verdict(mean: float | None, pairs: int, at_least: bool) -> str:
        found = control_results.Ratio(mean=mean, pairs=pairs, at_least=at_least)
        return control_page.mark_of_ratio(found, seeds=2)

    assert verdict(1.4, 2, False) == "holds"
    assert verdict(1.6, 2, False) == "**does not hold**"
    assert verdict(1.6, 2, True) == "**does not hold**"
    # At least 1.4 may be more; a pair is missing; none is there.
    assert verdict(1.4, 2, True) == verdict(1.4, 1, False) == verdict(None, 0, False) == "not decided"


def test_what_a_format_can_reach_is_the_mean_over_its_runs() -> None:
    def single(mode: str, seed: int, best: float, end: float, share: float) -> Single:
        return Single(
            mode=mode, seed=seed, steps=240, plateaued=True, share=share, accuracy_at_the_end=end, best_step=160,
            accuracy_of_best=best,
        )  # fmt: skip

    singles = [
        single("prose", 300, 0.97, 0.95, 1.0),
        single("prose", 301, 0.98, 0.99, 0.9),
        single("xml", 300, 0.5, 0.5, 0.2),
    ]
    # The higher of each run, (.97 + .99) / 2 = .98; xml was hardly ever written, and what its run reached there says
    # nothing.
    assert control_results.best_of(singles) == {"prose": pytest.approx(0.98)}


def test_how_much_a_run_moves_at_its_end() -> None:
    # Of the last three, (.9, 1, .95): mean .95, squares .0025 + .0025 + 0, / 2 = .0025, root .05
    assert control_results.moves_by(curve(0.1, 0.9, 1.0, 0.95), 3) == pytest.approx(0.05)


def test_runs_of_one_format_and_compared_arms_share_no_seed() -> None:
    assert PLAN.seeds == tuple(range(200, 210))
    assert not set(PLAN.seeds) & set(PLAN.single_seeds)
    assert {run.seed for run in PLAN.compared()} == set(PLAN.seeds)
    assert {run.seed for run in PLAN.tried()} <= set(PLAN.seeds)
    assert {run.arm.name for run in PLAN.compared()[:2]} == {"unprotected", "protect"}
    names = [run.name for run in (*PLAN.singles(), *PLAN.compared(), *PLAN.tried())]
    assert len(set(names)) == len(names)


def test_a_run_is_done_only_with_the_same_settings() -> None:
    run = PLAN.compared()[0]
    reworded = dataclasses.replace(run, arm=dataclasses.replace(run.arm, about="in other words"))
    assert reworded.fingerprint() == run.fingerprint()
    others = [
        dataclasses.replace(run, seed=1),
        dataclasses.replace(run, only="prose"),
        dataclasses.replace(run, every=7),
        dataclasses.replace(run, prompts=7),
        dataclasses.replace(run, arm=ARMS["kl-0.1"]),
    ]
    assert len({run.fingerprint(), *(other.fingerprint() for other in others)}) == 1 + len(others)


def test_without_a_single_format_run_there_is_no_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert control.main(["--only-report", "--cells", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "no single-format run" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def seen_run(accuracy: float, python: float, along: float) -> dict[str, Any]:
    shares = {"prose": 1.0 - python, "python": python}
    return {
        "held_out": {"accuracy": accuracy, "format_shares": shares},
        "curve": [{"accuracy": along, "format_shares": shares}],
        "evaluation": {"effective_formats": 4.0 + python, "effective_formats_correct_within": 3.0},
    }


def test_what_was_tried_is_judged_by_paired_differences_of_its_gap() -> None:
    best = {"prose": 0.98, "python": 1.0}
    arms = {
        "protect": {1: seen_run(0.97, 0.5, 0.96), 2: seen_run(0.96, 0.5, 0.96), 3: seen_run(0.5, 0.5, 0.5)},
        "tilted": {1: seen_run(0.98, 0.75, 0.96), 2: seen_run(0.97, 0.75, 0.97)},
    }
    text = control_page.tried_text(arms, ["tilted"], best)
    # A*: .5 * .98 + .5 = .99 and .25 * .98 + .75 = .995. Gaps .02, .03 and .015, .025: both less by .005. Along the way
    # .03, .03 and .035, .025: 0 in the mean, sd .00707, t(.975, 1) = 12.706, half .00707 * 12.706 / sqrt(2) = .0635.
    assert (
        "| 2 | +0.0100 ± 0.0000 | -0.0050 ± 0.0000 | +0.0000 ± 0.0635 | +0.25 ± 0.00 | +0.00 ± 0.00 | narrower |"
        in text
    )
    arms["tilted"][2] = seen_run(0.9, 0.75, 0.97)
    assert text != (noisy := control_page.tried_text(arms, ["tilted"], best))
    assert "| not told apart |" in noisy
    # Gaps .12 and .13: more by .1 both times.
    arms["tilted"] = {1: seen_run(0.875, 0.75, 0.96), 2: seen_run(0.865, 0.75, 0.97)}
    assert "| +0.1000 ± 0.0000 |" in (worse := control_page.tried_text(arms, ["tilted"], best))
    assert "| wider |" in worse


def test_the_page_is_what_the_command_writes_from_what_is_kept() -> None:
    folder = ROOT / "docs" / "experiments"
    kept = json.loads((folder / "control.json").read_text(encoding="utf-8"))
    page = (folder / "control.md").read_text(encoding="utf-8")
    assert control_page.page(kept, control_page.notes_of(page)) == page, "run: python -m studies.control --only-report"
    assert control_page.page({**kept, "command": "another"}, control_page.notes_of(page)) != page


@pytest.mark.slow
def test_a_quick_study_runs_reports_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("studies.cells.PROMPTS", 16)
    quick = Plan(
        steps=4, single_steps=4, seeds=(0, 1), tried_seeds=(0,), single_seeds=(300,), formats=("prose",), prompts=16,
        along_the_way=1, at_the_end=2, every=2, single_every=2,
    )  # fmt: skip
    monkeypatch.setattr(control, "QUICK", quick)
    out = tmp_path / "out"
    options = ["--quick", "--cells", str(tmp_path), "--out", str(out)]
    assert control.main(options) == 0
    kept = json.loads((out / "control.json").read_text(encoding="utf-8"))
    for run in (*kept["singles"], *kept["compared"]):
        assert [point["step"] for point in run["curve"]] == [2, 4]
        assert run["held_out"]["completions"] == 32
        assert run["faults"] == 0
    assert {run["arm"] for run in kept["compared"] if run["seed"] == 0} == {*control.COMPARED, *TRIED}
    page = out / "control.md"
    page.write_text(page.read_text() + f"\n{control_page.NOTES}\n\nKept.\n")
    monkeypatch.setattr(control, "run_cell", lambda run, folder: pytest.fail(f"{run.name} ran twice"))
    assert control.main(options) == 0
    assert page.read_text().endswith(f"{control_page.NOTES}\n\nKept.\n")
