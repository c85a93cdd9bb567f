"""Is it known which completions belong together? Groups of 1 are never silent."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlmon.audit.engine import audit
from rlmon.audit.result import Check

STEPS, PROMPTS, SIZE = 8, 4, 4


def rows(**more: Any) -> list[dict[str, Any]]:
    return [
        {"step": s, "prompt": f"p{s} {p}", "completion": f"\\boxed{{{p + d % 2}}}", "reward": float(d % 2)} | more
        for s in range(STEPS)
        for p in range(PROMPTS)
        for d in range(SIZE)
    ]


def answer(folder: Path, records: Sequence[dict[str, Any]], settings: dict[str, Any] | None = None) -> Check:
    (folder / "rows.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    if settings is not None:
        (folder / "args.json").write_text(json.dumps(settings))
    return next(check for check in audit(folder).checks if check.id == "groups-known")


@pytest.mark.parametrize("order", ["neighbours", "in turn"])
def test_groups_that_are_known(tmp_path: Path, order: str) -> None:
    records = rows()
    if order == "in turn":
        records = [row for s in range(STEPS) for d in range(SIZE) for row in records[s * 16 + d : s * 16 + 16 : SIZE]]
    found = answer(tmp_path, records)
    assert (found.status, found.message) == ("pass", "groups of 4")


def test_an_id_for_each_row(tmp_path: Path) -> None:
    records = [row | {"uid": f"u{number}"} for number, row in enumerate(rows())]
    found = answer(tmp_path, records)
    assert found.status == "warn"
    assert found.message.startswith("each of the 4 completions of a prompt carries a group id of its own")
    assert "(without group)" in found.advice
    # Half of the prompts with an id of their own is no accident either; a single one is.
    assert (
        answer(tmp_path, [row | {"uid": row["prompt"]} for row in records[:-SIZE]] + records[-SIZE:]).status == "pass"
    )


def test_a_name_that_several_prompts_share(tmp_path: Path) -> None:
    found = answer(tmp_path, rows(group="algebra"))
    assert (found.status, found.message[:47]) == ("note", "most groups hold several prompts (4 is usual): ")


def test_one_completion_a_prompt(tmp_path: Path) -> None:
    alone = rows()[::SIZE]
    found = answer(tmp_path, alone)
    assert (found.status, "groups of 1" in found.message) == ("note", True)
    found = answer(tmp_path, alone, {"num_generations": SIZE})
    assert found.status == "warn"
    assert found.message.startswith("the settings say 4 completions a prompt")


def test_a_prompt_that_may_have_been_drawn_twice(tmp_path: Path) -> None:
    """In no order, with eight rows of one prompt and four of two others."""
    rng = np.random.default_rng(0)
    records = []
    for s in range(STEPS):
        here = [row | {"prompt": f"p{s} {int(row['prompt'][-1]) % 3}"} for row in rows()[s * 16 : s * 16 + 16]]
        records += [here[at] for at in rng.permutation(16)]
    found = answer(tmp_path, records)
    assert found.status == "unsure"
    assert found.reason is not None
    assert "--map group=" in found.reason


def test_without_rows(tmp_path: Path) -> None:
    history = [{"step": step, "entropy": 1.0, "reward": 0.5} for step in range(20)]
    (tmp_path / "trainer_state.json").write_text(json.dumps({"global_step": 19, "log_history": history}))
    found = next(check for check in audit(tmp_path).checks if check.id == "groups-known")
    assert found.status == "skip"
