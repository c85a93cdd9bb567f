"""A checkpoint that rlmon cannot read does not end a training: what is lost begins anew, and is said."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny

import rlmon
from rlmon.audit import engine
from rlmon.trl import RLMon, RLMonConfig

pytestmark = pytest.mark.trl

POLICY = {
    "rules": {
        "penalty": {"when": "always", "do": {"action": "kl_penalty", "start": 0.01}},
        "anchor": {"when": {"finding": "format-collapse"}, "do": {"action": "anchor"}},
    }
}
SETTINGS: dict[str, Any] = {
    "rlmon_base_kl": "snapshot", "rlmon_base_kl_every": 1, "rlmon_policy": POLICY, "rlmon_wandb": False,
    "rlmon_strict": True,
}  # fmt: skip


def trained(out: Path, steps: int = 3, **settings: Any) -> tuple[Any, RLMon]:
    made = tiny.trainer(
        out,
        lora=True,
        policy=tiny.model(),
        train=tiny.dataset(24),
        max_steps=steps,
        save_strategy="steps",
        save_steps=2,
    )
    return made, RLMon(made, RLMonConfig(**(SETTINGS | settings)))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    made, _ = trained(out, 2)
    made.train()
    assert sorted(p.name for p in (out / "checkpoint-2" / "rlmon").iterdir()) == [
        "base_snapshot.safetensors",
        "rank0.json",
        "state.json",
    ]
    return out


def edited(name: str, change: Callable[[Any], Any]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        value = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(change(value)))

    return damage


def without(*path: str) -> Callable[[Any], Any]:
    def change(value: Any) -> Any:
        at = value
        for key in path[:-1]:
            at = at[key]
        del at[path[-1]]
        return value

    return change


def with_value(new: Any, *path: str) -> Callable[[Any], Any]:
    def change(value: Any) -> Any:
        at = value
        for key in path[:-1]:
            at = at[key]
        at[path[-1]] = new
        return value

    return change


def bytes_of(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes())) and None


ALL = "all of rlmon's state"
OWN = "what rank 0 keeps for itself"
DAMAGES: dict[str, tuple[Callable[[Path], None], set[str]]] = {
    "torn rank file": (bytes_of("rank0.json", lambda data: data[: len(data) // 2]), {OWN}),
    "no rank file, as after another world size": (lambda folder: (folder / "rank0.json").unlink(), {OWN}),
    "binary rank file": (bytes_of("rank0.json", lambda data: b"\x80\xff\x00" * 40), {OWN}),
    "torn state": (bytes_of("state.json", lambda data: data[: len(data) // 2]), {ALL}),
    "empty state": (bytes_of("state.json", lambda data: b""), {ALL}),
    "state of another shape": (edited("state.json", lambda value: [value]), {ALL}),
    "null": (edited("state.json", lambda value: None), {ALL}),
    "no detectors": (edited("state.json", without("detectors")), {"detectors"}),
    "detectors of another version": (edited("state.json", with_value(99, "detectors", "version")), {"detectors"}),
    "detectors that do not fit together": (
        edited("state.json", with_value(["a", "b", "c"], "detectors", "sources")),
        {"detectors"},
    ),
    "wrong types": (
        edited(
            "state.json",
            lambda value: value | {"baseline": "abc", "rounds": 3, "sources": [1], "base_fingerprint": 7},
        ),
        {"baseline", "round numbers", "names of sources"},
    ),
    "sums of another length": (edited("state.json", with_value([1.0, 2.0], "base_sums")), {"baseline"}),
    "no modes": (edited("state.json", without("modes")), {"baseline", "detectors"}),
    "an engine without knobs": (edited("state.json", without("steering", "engine", "knobs")), {"interventions"}),
    "examples of another shape": (edited("rank0.json", with_value([1], "base_examples")), {"examples"}),
    "an engine of wrong types": (
        edited("state.json", with_value("high", "steering", "engine", "rules", "penalty", "level")),
        {"interventions"},
    ),
    "a torn mark of a roll back": (
        lambda folder: (folder / "rolled_back.json").write_text('{"rule": "pen') and None,
        {"what rolled the run back"},
    ),
    "an unreadable anchor": (edited("rank0.json", with_value({"rows": 3}, "anchor")), {"rows to anchor on"}),
    "a torn snapshot": (
        bytes_of("base_snapshot.safetensors", lambda data: data[: len(data) // 2]),
        {"snapshot of the base", "interventions"},  # the penalty's reference was that snapshot
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_what_cannot_be_read_begins_anew(
    run: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    damage, lost = DAMAGES[name]
    out = tmp_path / "run"
    shutil.copytree(run, out)
    damage(out / "checkpoint-2" / "rlmon")
    made, monitor = trained(out)
    made.train(resume_from_checkpoint=str(out / "checkpoint-2"))  # rlmon_strict: a fault of ours would raise

    log = rlmon.open_run(monitor.log_dir)
    assert [record.step for record in log.step_records()] == [1, 2, 3]
    (note,) = [event.payload for event in log.iter_events() if event.kind == "note"]
    assert set(note["begins_anew"]) - {"detectors"} == lost - {"detectors"}
    assert ("detectors" in note["begins_anew"]) == bool({"detectors", ALL} & lost)
    said = [line for line in capsys.readouterr().err.splitlines() if "begins anew" in line]
    assert len(said) == 1
    assert said[0].startswith("rlmon: resumed at step 2. ")
    assert all(part in said[0] for part in lost)
    # What is written now can be resumed from, and a replay folds as the run did.
    assert monitor.monitor is not None
    state = monitor.monitor.shared_state()
    assert state["detectors"]["records"] == (1 if {"detectors", ALL} & lost else 3)
    (replayed,) = (check for check in engine.audit(out / "rlmon").checks if check.id == "replay")
    assert replayed.status == "pass", replayed.message


def test_a_whole_checkpoint_says_nothing_and_changed_settings_are_said(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The twin of the damages; then other modes, another alpha and another policy in one go."""
    notes = []
    for name, settings in (
        ("same", {}),
        (
            "changed",
            {
                "rlmon_alpha": 0.05,
                "rlmon_modes": {"mine": "^so"},
                "rlmon_policy": {"rules": {"penalty": POLICY["rules"]["penalty"] | {"cool_off_steps": 9}}},
            },
        ),
    ):
        out = tmp_path / name
        shutil.copytree(run, out)
        made, monitor = trained(out, **settings)
        made.train(resume_from_checkpoint=str(out / "checkpoint-2"))
        notes.append([e.payload for e in rlmon.open_run(monitor.log_dir).iter_events() if e.kind == "note"])
    assert notes[0] == []
    ((changed,),) = notes[1:]
    assert set(changed["begins_anew"]) == {"detectors", "baseline"}
    for part in ("the format modes are others now", "rules removed anchor; changed penalty"):
        assert part in changed["text"]
    assert capsys.readouterr().err.count("rlmon: resumed at step 2. ") == 1


def test_another_alpha_is_said_and_the_detectors_keep_theirs(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(run, out)
    made, monitor = trained(out, rlmon_alpha=0.05)
    made.train(resume_from_checkpoint=str(out / "checkpoint-2"))
    (note,) = [e.payload for e in rlmon.open_run(monitor.log_dir).iter_events() if e.kind == "note"]
    assert "rlmon_alpha is 0.05 now; the detectors go on with 0.01" in note["text"]
    assert note["begins_anew"] == []
    assert rlmon.open_run(monitor.log_dir).header.detectors["alpha"] == 0.01
