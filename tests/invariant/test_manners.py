"""How rlmon behaves beside the user's own output: once-only warnings, the console, trackers, evaluations."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny
from transformers import TrainerCallback

import rlmon
from rlmon.trl import RLMon, RLMonConfig
from rlmon.trl import mirror as mirrored

pytestmark = pytest.mark.trl
ROOT = Path(__file__).parents[2]

QUIET: dict[str, Any] = {"rlmon_wandb": False, "rlmon_console": False, "rlmon_strict": True, "rlmon_base_kl": "off"}


def rlmon_lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What rlmon said, without the line on what counts as a success, which is of its own."""
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("rlmon")]
    return [line for line in said if not line.startswith("rlmon: a success is ")]


def events(monitor: RLMon, kind: str, **options: Any) -> list[Any]:
    return [event.payload for event in rlmon.open_run(monitor.log_dir).iter_events(**options) if event.kind == kind]


_WARNS = """
import sys, warnings
from pathlib import Path
import tiny
from rlmon.trl import RLMon

def noisy(completions, **_):
    warnings.warn("a library says this once", FutureWarning, stacklevel=1)
    return tiny.has_digit(completions)

made = tiny.trainer(Path(sys.argv[1]), reward=noisy, max_steps=4)
RLMon(made, base_kl_every=2)
forgotten, forget = [], warnings._filters_mutated
warnings._filters_mutated = lambda: forgotten.append(1) or forget()
before = list(warnings.filters), warnings.filters
made.train()
assert before[0] == warnings.filters and before[1] is warnings.filters
print("forgot", len(forgotten), "times")
"""


def test_a_warning_of_another_library_is_printed_once(tmp_path: Path) -> None:
    """In a process of its own: the type checker of the test run makes Python forget what it has shown."""
    support = Path(__file__).parents[1] / "support"
    done = subprocess.run(
        [sys.executable, "-c", _WARNS, str(tmp_path / "run")],
        capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": f"{support}:{ROOT}"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("FutureWarning: a library says this once") == 1
    assert "forgot 0 times" in done.stdout


def test_mirrored_faults_are_a_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two faults at step 2 of 4, logged every 4 steps: 2, where the mean of 0, 2, 0, 0 is .5. Others stay means."""
    made = tiny.trainer(tmp_path / "run", max_steps=8, logging_steps=4)
    monitor = RLMon(made, RLMonConfig(**(QUIET | {"rlmon_strict": False})))

    class Fail(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 1:
                assert monitor.monitor is not None
                monitor.monitor.fault("elsewhere", "on purpose", 2)

    made.add_callback(Fail())
    made.train()
    logged = [entry for entry in made.state.log_history if "rlmon/faults" in entry]
    assert [entry["rlmon/faults"] for entry in logged] == [2.0, 0.0]
    records = rlmon.open_run(monitor.log_dir).step_records()
    entropies = [record.metrics["rlmon/entropy/mean"] for record in records[:4]]
    assert logged[0]["rlmon/entropy/mean"] == pytest.approx(sum(e for e in entropies if e is not None) / 4)


def test_two_evaluation_sets_are_told_apart(tmp_path: Path) -> None:
    made = tiny.trainer(
        tmp_path / "run",
        max_steps=2,
        eval_strategy="steps",
        eval_steps=2,
        num_generations_eval=2,
        per_device_eval_batch_size=4,
        extra={"eval_dataset": {"easy": tiny.dataset(4), "hard": tiny.dataset(6)}},
    )
    monitor = RLMon(made, RLMonConfig(**QUIET))
    made.train()
    told = events(monitor, "eval")
    assert [(e["name"], e["step"], e["completions"]) for e in told] == [("eval_easy", 2, 8), ("eval_hard", 2, 12)]
    # The rounds of an event say which rows are its own.
    rows = rlmon.open_run(monitor.log_dir).rollouts(columns=["split", "round"]).to_pylist()
    for event in told:
        mine = [row for row in rows if row["split"] == "eval" and row["round"] in event["rounds"]]
        assert len(mine) == event["completions"]


def test_evaluations_outside_of_training_are_logged(tmp_path: Path) -> None:
    """Before the first train(): the log begins there, and training goes on with it. After: the same attempt."""
    options: dict[str, Any] = {"num_generations_eval": 2, "per_device_eval_batch_size": 4, "max_steps": 2}
    made = tiny.trainer(tmp_path / "run", extra={"eval_dataset": tiny.dataset(4)}, **options)
    monitor = RLMon(made, RLMonConfig(**QUIET))
    made.evaluate()
    made.train()
    made.evaluate({"late": tiny.dataset(6), "again": tiny.dataset(4)})
    made.predict(tiny.dataset(4))
    told = events(monitor, "eval")
    assert [(e["name"], e["step"], e["completions"]) for e in told] == [
        ("eval", 0, 8), ("eval_late", 2, 12), ("eval_again", 2, 8), ("test", 2, 8),
    ]  # fmt: skip
    log = rlmon.open_run(monitor.log_dir)
    assert [record.step for record in log.step_records()] == [1, 2]
    rows = log.rollouts(columns=["split"]).to_pylist()
    assert len(rows) == 16 + 8 + 12 + 8 + 8
    assert not log.faults
    assert monitor.monitor is not None
    assert monitor.monitor.shared_state()["detectors"]["records"] == 2

    # In a directory that has a log, an evaluation hides none of it, and a fresh train() is a run of its own.
    other = tiny.trainer(tmp_path / "run", extra={"eval_dataset": tiny.dataset(4)}, **options)
    again = RLMon(other, RLMonConfig(**QUIET))
    other.evaluate()
    assert len(events(again, "eval")) == 5
    assert [record.step for record in rlmon.open_run(again.log_dir).step_records()] == [1, 2]
    other.train()
    assert events(again, "eval") == []
    assert len(events(again, "eval", all_attempts=True)) == 5


EVALUATES: dict[str, Any] = {"num_generations_eval": 2, "per_device_eval_batch_size": 4, "max_steps": 2}


def test_an_evaluation_before_training_with_rules_is_logged(tmp_path: Path) -> None:
    """Rules are attached at the first use, whichever it is; ``detach()`` before that leaves nothing behind."""
    monitor = RLMon(RLMonConfig(**QUIET), policy="observe")
    made = tiny.trainer(tmp_path / "run", callbacks=[monitor], extra={"eval_dataset": tiny.dataset(4)}, **EVALUATES)
    assert not monitor.attached
    monitor.detach()
    assert not {"train", "evaluation_loop"} & vars(made).keys()
    assert monitor not in made.callback_handler.callbacks

    monitor = RLMon(RLMonConfig(**QUIET), policy="observe")
    made = tiny.trainer(tmp_path / "run", callbacks=[monitor], extra={"eval_dataset": tiny.dataset(4)}, **EVALUATES)
    made.evaluate()
    assert monitor.attached
    made.train()
    assert [(e["name"], e["step"], e["completions"]) for e in events(monitor, "eval")] == [("eval", 0, 8)]
    assert [record.step for record in rlmon.open_run(monitor.log_dir).step_records()] == [1, 2]
    assert not rlmon.open_run(monitor.log_dir).faults


def test_another_trainer_has_a_log_of_its_own(tmp_path: Path) -> None:
    first, second = (
        tiny.trainer(tmp_path / name, extra={"eval_dataset": tiny.dataset(4)}, **EVALUATES) for name in ("1", "2")
    )
    monitor = RLMon(first, RLMonConfig(**QUIET))
    first.evaluate()
    monitor.detach()
    monitor.attach(first)
    first.evaluate()
    assert len(events(monitor, "eval")) == 2
    monitor.detach()
    monitor.attach(second)
    second.evaluate()
    assert len(events(monitor, "eval")) == 1
    assert monitor.log_dir == tmp_path / "2" / "rlmon"


def test_an_evaluation_that_cannot_be_logged_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = tiny.trainer(tmp_path / "run", num_generations_eval=2, per_device_eval_batch_size=4,
                        extra={"eval_dataset": tiny.dataset(4)})  # fmt: skip
    (tmp_path / "file").write_text("")
    RLMon(made, RLMonConfig(rlmon_dir=str(tmp_path / "file" / "below"), rlmon_base_kl="off"))
    assert "eval_loss" in made.evaluate()
    lines = rlmon_lines(capsys)
    assert len(lines) == 2
    assert lines[1].startswith("rlmon: this evaluation is not logged: cannot write the run log in ")


class Interrupt(TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 2:
            raise KeyboardInterrupt


def test_hello_and_goodbye(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line each: at attach, at the end, and at an end by Ctrl-C; none where the console is off."""
    where = tmp_path / "run" / "rlmon"
    made = tiny.trainer(tmp_path / "run", max_steps=3)
    monitor = RLMon(made, base_kl="off")
    assert rlmon_lines(capsys) == [f"rlmon: watching, log in {where} · rlmon watch {where}"]
    made.train()
    (goodbye,) = rlmon_lines(capsys)
    assert goodbye == (
        f"rlmon: not judged, ended at step 3: too short to compare anything with its base · rlmon report {where}"
    )
    made.add_callback(Interrupt())
    with pytest.raises(KeyboardInterrupt):
        made.train()
    anew, goodbye = rlmon_lines(capsys)
    assert "already held the log of another run" in anew
    assert "interrupted at step 2" in goodbye
    assert [event["step"] for event in events(monitor, "ended")] == [2]
    monitor.detach()
    assert not {"train", "evaluation_loop", "_load_optimizer_and_scheduler"} & set(vars(made))
    quiet = tiny.trainer(tmp_path / "quiet", max_steps=1)
    RLMon(quiet, base_kl="off", console=False)
    quiet.train()
    assert rlmon_lines(capsys) == []


def test_findings_name_their_detector_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def silent(completions: Sequence[Any], **_: Any) -> list[float]:
        return [0.0] * len(completions)

    made = tiny.trainer(tmp_path / "run", reward=silent, max_steps=8, per_device_train_batch_size=32)
    monitor = RLMon(made, base_kl="off", wandb=False)
    made.train()
    assert monitor.monitor is not None
    findings = monitor.monitor.findings
    assert findings
    lines = rlmon_lines(capsys)[1:]
    assert len(lines) == len(findings) + 1
    for line, finding in zip(lines, findings, strict=False):
        assert line.startswith(f"rlmon {finding.severity.upper()} step {finding.step} {finding.detector}: ")
        assert line.count(finding.detector) == 1
        assert ". " not in line.split(" -> ")[0].removeprefix("rlmon")
    worst = "FAIL" if any(f.severity == "fail" for f in findings) else "WARN"
    assert lines[-1].startswith(f"rlmon: {worst} since step ")
    assert lines[-1].endswith(f"rlmon report {tmp_path / 'run' / 'rlmon'}")


def test_the_headlines_stay_out_of_what_the_trainer_sends_to_wandb() -> None:
    sent: list[Any] = []

    def on_log(*args: Any, **kwargs: Any) -> None:
        mirrored._without_ours(lambda *args, **kwargs: sent.append((args, kwargs)), args, kwargs)

    logs = {"loss": 1.0, "rlmon/faults": 2.0}
    on_log(1, 2, logs=logs, model=3)
    on_log(1, logs=None)
    assert sent == [((1, 2), {"logs": {"loss": 1.0}, "model": 3}), ((1,), {"logs": None})]
    assert json.dumps(logs) == '{"loss": 1.0, "rlmon/faults": 2.0}', "other trackers get the same mapping"
