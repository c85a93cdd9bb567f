"""What the study of the second act concludes, each verdict both ways; that its page is what its command writes."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest

from studies import second_act, second_act_page
from studies.second_act import PLAN, STARTS

ROOT = Path(__file__).resolve().parents[2]


def run(start: str, steps: int | None, wanted: int = 400, seed: int = 10) -> dict[str, Any]:
    return {"task": "arithmetic", "seed": seed, "start": start, "steps_to_90": steps, "wanted_in_4096": wanted}


def holds(*rows: dict[str, Any]) -> list[bool | None]:
    return [verdict.holds for verdict in second_act_page.verdicts(rows)]


AS_CLAIMED = (
    run("base", 40), run("protect", 44), run("stopped", 60), run("marginal", 40), run("unprotected", None, 0),
    run("suppressed", None, 0), run("hot", None, 0), run("winner", 5, 4000),
)  # fmt: skip


def but(*changed: dict[str, Any]) -> tuple[dict[str, Any], ...]:
    """The runs as claimed, but for those of these starts."""
    return tuple({row["start"]: row for row in (*AS_CLAIMED, *changed)}.values())


def test_what_is_claimed_holds_and_two_that_never_learned_do_not_say_which_learns_worse() -> None:
    # 44 / 40 = 1.1; 60 / 44 = 1.36 > 1.1; marginal 40 / never = 0; neither of unprotected and suppressed learned it.
    assert holds(*AS_CLAIMED) == [True, True, True, True, None, True]
    # Without a run there is nothing to judge.
    assert holds() == [None] * 6


def test_each_verdict_can_fail() -> None:
    # A start with none in 4,096 got there after all.
    assert holds(*but(run("hot", 239, 0)))[0] is False
    # 45 / 40 = 1.125
    assert holds(*but(run("protect", 45)))[1] is False
    # 48 / 44 = 1.09
    assert holds(*but(run("stopped", 48)))[2] is False
    # Neither marginal nor unprotected: as slow as one another. 92 / 100 = .92, above 1 / 1.1 = .909
    assert holds(*but(run("marginal", None)))[3] is False
    assert holds(*but(run("marginal", 92), run("unprotected", 100, 78)))[3] is False
    assert holds(*but(run("marginal", 90), run("unprotected", 100, 78)))[3] is True
    # As rare in both, and only the suppressed one learned it; 110 / 100 = 1.1 is not slower.
    assert holds(*but(run("suppressed", 200, 0)))[4] is False
    assert holds(*but(run("suppressed", 100, 78), run("unprotected", 110, 78)))[4] is True
    assert holds(*but(run("suppressed", 100, 78), run("unprotected", 111, 78)))[4] is False
    assert holds(*but(run("winner", None, 4000)))[5] is False


def test_ratios_are_of_the_same_seed_and_judged_by_their_median() -> None:
    rows = [run("base", 40, seed=10), run("base", 20, seed=11), run("base", 40, seed=12)]
    rows += [run("protect", 40, seed=10), run("protect", 40, seed=11), run("protect", None, seed=12)]
    rows += [run("protect", 5, seed=13), run("stopped", None, seed=12)]
    # 40/40, 40/20, never/40; seed 13 has no base. The median 2 is above 1.1.
    assert second_act_page.ratios(rows, "protect", "base") == [1.0, 2.0, math.inf]
    assert second_act_page.verdicts(rows)[1].holds is False
    assert second_act_page.ratios(rows, "base", "protect") == [1.0, 0.5, 0.0]
    assert second_act_page.ratios(rows, "stopped", "protect") == [None]


def test_a_run_is_done_only_with_the_same_settings() -> None:
    assert PLAN.seeds == tuple(range(10, 18))
    runs = [cell for task in PLAN.tasks for cell in PLAN.seconds(task, 10)]
    assert len({cell.name for cell in runs}) == len({cell.fingerprint() for cell in runs}) == 2 * len(STARTS)
    assert set(STARTS) == set(second_act_page.ABOUT)
    other = [dataclasses.replace(runs[1], seed=11), dataclasses.replace(runs[1], most_steps=7)]
    assert runs[1].fingerprint() not in {cell.fingerprint() for cell in other}


def test_the_page_is_what_the_command_writes_from_what_is_kept() -> None:
    folder = ROOT / "docs" / "experiments"
    kept = json.loads((folder / "second-act.json").read_text(encoding="utf-8"))
    page = (folder / "second-act.md").read_text(encoding="utf-8")
    assert second_act_page.page(kept, second_act_page.notes_of(page)) == page, "run: make experiments"
    assert second_act_page.page({**kept, "most_steps": 7}, second_act_page.notes_of(page)) != page


@pytest.mark.slow
def test_a_quick_study_runs_reports_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("studies.cells", "studies.second_act"):
        monkeypatch.setattr(f"{module}.PROMPTS", 16)
    task = dataclasses.replace(second_act.QUICK.tasks[0], steps=10)
    monkeypatch.setattr(second_act, "QUICK", dataclasses.replace(second_act.QUICK, tasks=(task,), most_steps=2))
    options = ["--quick", "--cells", str(tmp_path), "--out", str(tmp_path / "out")]
    assert second_act.main(options) == 0
    kept = json.loads((tmp_path / "out" / "second-act.json").read_text(encoding="utf-8"))
    runs = {row["start"]: row for row in kept["seconds"]}
    assert set(runs) == set(STARTS)
    # Two steps are too few for a mean of five.
    assert {row["steps_to_90"] for row in runs.values()} == {None}
    # As rare as in the 16 x 8 samples, but for the prompts that it is judged on.
    share = max(runs["unprotected"]["wanted_in_4096"] / 128, runs["unprotected"]["chance_of_json"])
    assert runs["suppressed"]["chance_of_json"] <= 1.2 * share
    monkeypatch.setattr(second_act, "train_first", lambda cell, folder: pytest.fail(f"{cell.name} ran twice"))
    monkeypatch.setattr(second_act, "train_second", lambda cell, folder: pytest.fail(f"{cell.name} ran twice"))
    assert second_act.main(options) == 0
