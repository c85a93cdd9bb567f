"""What is wrong at attach is said before the first step: what came, what was needed, what to type."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import tiny
import trl
from transformers import Trainer, TrainingArguments

import rlmon
from rlmon.detectors import DETECTORS
from rlmon.errors import AttachError, ConfigError, RunLogError, SchemaError
from rlmon.interventions.once import Stop
from rlmon.metrics import MetricFamily
from rlmon.sinks import Sink
from rlmon.trl import MonitoredGRPOTrainer, RLMon, RLMonConfig, callback, capabilities, probe

pytestmark = pytest.mark.trl


def before_the_first_step(trained: Any, error: type[Exception], match: str) -> None:
    start = tiny.weights(trained)
    with pytest.raises(error, match=match):
        trained.train()
    assert trained.state.global_step == 0
    assert tiny.same_weights(start, tiny.weights(trained))


def test_an_unknown_setting_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"rlmon_base_kl_evry.*Did you mean rlmon_base_kl_every\?"):
        RLMonConfig.from_mapping({"rlmon_base_kl_evry": 3})
    with pytest.raises(ConfigError, match=r"RLMON_STORETEXT.*RLMON_STORE_TEXT"):
        RLMonConfig.from_env({"RLMON_STORETEXT": "off"})
    with pytest.raises(ConfigError, match=r"rlmon_store_text is 'hashed'.*full, hash or off.*Did you mean hash"):
        RLMonConfig(rlmon_store_text="hashed")


class Answers(MetricFamily):
    name = "answers"


class Pause(Stop):
    name = "pause"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"sinks": Sink()}, r"sinks is a list, got an object of Sink\. Type: sinks=\[\.\.\.\]"),
        ({"metrics": [Answers]}, r"metrics takes objects, got the class Answers\. Type: metrics=\[Answers\(\)\]"),
        ({"actions": [Pause()]}, r"actions takes classes, got an object of Pause\. Type: actions=\[Pause\]"),
        ({"metrics": [Sink()]}, r"metrics takes objects of rlmon\.metrics\.MetricFamily, got an object of Sink"),
        ({"actions": [Sink]}, r"actions takes classes derived from .*Intervention, got the class Sink"),
        ({"metrics": [Answers(), Answers()]}, r"metrics has two that are called 'answers': give one of them another"),
        ({"detectors": [DETECTORS[0]]}, rf"There is a detector '{DETECTORS[0].id}' already"),
    ],
)
def test_what_is_wrong_with_an_extension_is_said_at_once(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        RLMon(**given)


def test_settings_by_keyword(tmp_path: Path) -> None:
    """With the prefix or without, over a config's fields; a wrong one suggests the right one, as it came in."""
    trained = tiny.trainer(tmp_path / "run")
    monitor = RLMon(trained, RLMonConfig(rlmon_alpha=0.05, rlmon_table_every=3), policy="protect", rlmon_alpha=0.02)
    assert (monitor.config.rlmon_policy, monitor.config.rlmon_alpha) == ("protect", 0.02)
    assert monitor.config.rlmon_table_every == 3
    assert monitor.attached
    assert RLMon(RLMonConfig(rlmon_alpha=0.05), base_kl="off").config.rlmon_alpha == 0.05
    for wrong, match in (
        ({"polcy": "protect"}, r"setting 'polcy'\. Did you mean policy\?"),
        ({"rlmon_polcy": "protect"}, r"setting 'rlmon_polcy'\. Did you mean rlmon_policy\?"),
        ({"alpha": 0.1, "rlmon_alpha": 0.2}, r"alpha and rlmon_alpha are the same setting"),
        ({"base_kl": "offf"}, r"Did you mean off\?"),
    ):
        with pytest.raises(ConfigError, match=match):
            RLMon(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"got dict.*by keyword"):
        RLMon(None, {"policy": "protect"})  # type: ignore[arg-type]
    own = tiny.trainer(
        tmp_path / "own",
        cls=MonitoredGRPOTrainer,
        extra={"rlmon": RLMonConfig(rlmon_alpha=0.05), "rlmon_policy": "observe"},
    )
    assert (own.rlmon.config.rlmon_policy, own.rlmon.config.rlmon_alpha) == ("observe", 0.05)
    with pytest.raises(ConfigError, match=r"Did you mean rlmon_policy\?"):
        tiny.trainer(tmp_path / "own", cls=MonitoredGRPOTrainer, extra={"rlmon_polcy": "observe"})
    given = RLMon(alpha=0.02, sinks=[sink := Sink()])
    own = tiny.trainer(tmp_path / "given", cls=MonitoredGRPOTrainer, extra={"rlmon": given})
    assert own.rlmon is given
    assert given.attached
    assert given.extensions.sinks == [sink]
    with pytest.raises(ConfigError, match=r"rlmon_alpha came beside.*rlmon=RLMon\(rlmon_alpha=\.\.\.\)"):
        tiny.trainer(tmp_path, cls=MonitoredGRPOTrainer, extra={"rlmon": RLMon(), "rlmon_alpha": 0.1})


def test_the_wrong_trl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = tiny.trainer(tmp_path / "run")
    monkeypatch.setattr(trl, "__version__", "1.7.2")
    with pytest.raises(AttachError, match=r"TRL 1\.7\.2 is installed.*1\.8 or later.*pip install -U"):
        RLMon(trained)


def test_liger_on_an_old_trl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = tiny.trainer(tmp_path / "run")
    trained.args.use_liger_kernel = True
    monkeypatch.setattr(trl, "__version__", "1.13.0")
    with pytest.raises(AttachError, match=r"shows no entropies.*use_liger_kernel: false"):
        RLMon(trained)


def test_another_kind_of_trainer(tmp_path: Path) -> None:
    other = Trainer(tiny.model(), TrainingArguments(str(tmp_path), use_cpu=True, report_to=[]))
    with pytest.raises(AttachError, match=r"GRPOTrainer and RLOOTrainer.*got Trainer.*rlmon\.Monitor"):
        RLMon(other)


def test_asynchronous_grpo_says_what_it_cannot_see(tmp_path: Path) -> None:
    trained = tiny.trainer(tmp_path / "run")
    trained.__class__ = type("AsyncGRPOTrainer", (type(trained),), {"__module__": "trl.experimental.async_grpo.x"})
    with pytest.raises(AttachError, match=r"rewards and advantages: SKIP \(they are computed in that child process"):
        RLMon(trained)


def test_a_second_monitor(tmp_path: Path) -> None:
    trained = tiny.trainer(tmp_path / "run")
    monitor = RLMon(trained)
    with pytest.raises(AttachError, match="already has a monitor"):
        RLMon(trained)
    monitor.detach()
    RLMon(trained)


def test_no_write_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = tiny.trainer(tmp_path / "run")
    RLMon(trained)
    real = os.open

    def refused(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        if "rlmon" in str(path) and flags & (os.O_WRONLY | os.O_RDWR):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return real(path, flags, *args, **kwargs)

    monkeypatch.setattr(os, "open", refused)
    before_the_first_step(trained, RunLogError, "rlmon_dir")


def test_a_directory_of_another_schema(tmp_path: Path) -> None:
    trained = tiny.trainer(tmp_path / "run", max_steps=1)
    monitor = RLMon(trained)
    trained.train()
    header = monitor.log_dir / "run.json"

    def newer(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: 99 if k == "schema_version" else newer(v) for k, v in value.items()}
        return [newer(v) for v in value] if isinstance(value, list) else value

    header.write_text(json.dumps(newer(json.loads(header.read_text()))))
    again = tiny.trainer(tmp_path / "run")
    RLMon(again)
    before_the_first_step(again, SchemaError, "99")


def test_a_directory_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "thesis.tex").write_text("x")
    trained = tiny.trainer(tmp_path / "run")
    RLMon(trained, RLMonConfig(rlmon_dir=str(tmp_path / "log")))
    before_the_first_step(trained, RunLogError, "thesis.tex")


@pytest.mark.parametrize(
    ("modes", "match"),
    [({"broken": "("}, "broken"), ({"prose": "x"}, "prose"), ({"wrong": 3}, "wrong")],
)
def test_malformed_modes(tmp_path: Path, modes: dict[str, Any], match: str) -> None:
    trained = tiny.trainer(tmp_path / "run")
    RLMon(trained, RLMonConfig(rlmon_modes=modes))
    before_the_first_step(trained, ConfigError, match)


def test_an_unknown_source_column(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"rlmon_source_column is 'tsk'.*prompt, target"):
        RLMon(tiny.trainer(tmp_path / "run"), RLMonConfig(rlmon_source_column="tsk"))


@pytest.mark.parametrize("kind", ["adapter", "snapshot", "reference"])
def test_a_base_that_cannot_be_had(tmp_path: Path, kind: str) -> None:
    with pytest.raises(AttachError, match=rf"rlmon_base_kl={kind} cannot work here .*rlmon_base_kl: auto"):
        RLMon(tiny.trainer(tmp_path / "run"), RLMonConfig(rlmon_base_kl=kind))
    with pytest.raises(AttachError, match=r"cannot be loaded.*leave it out"):
        RLMon(tiny.trainer(tmp_path / "run"), RLMonConfig(rlmon_base_model=str(tmp_path / "nowhere")))


def test_too_little_memory_for_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import psutil

    class Full:
        available = 10
        total = 10**12

    monkeypatch.setattr(psutil, "virtual_memory", Full)
    trained = tiny.trainer(tmp_path / "run")
    monitor = RLMon(trained)
    assert monitor._capture is not None
    base = monitor._capture.base
    assert base is not None
    assert base.kind == "off"
    assert "rlmon_base_model" in base.reason
    rows = capabilities.plan(
        trained.args, RLMonConfig(), trainer="GRPOTrainer", base_kind="off", base_reason=base.reason
    )
    assert [row["reason"] for row in rows if row["signal"] == "kl"] == [base.reason]


def test_a_model_that_cannot_be_copied_is_watched_without_kl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*_: Any) -> Any:
        raise TypeError("cannot pickle this")

    trained = tiny.trainer(tmp_path / "run", policy=tiny.model())
    monkeypatch.setattr(type(trained.model), "__deepcopy__", refuses, raising=False)
    monitor = RLMon(trained, RLMonConfig(rlmon_console=False, rlmon_strict=True))
    trained.train()
    assert "copy: TypeError: cannot pickle this" in monitor.monitor.last_record.missing["rlmon/kl/mean"]
    with pytest.raises(AttachError, match="cannot pickle this"):
        RLMon(tiny.trainer(tmp_path / "other", policy=tiny.model()), RLMonConfig(rlmon_base_kl="copy"))


def test_added_by_hand_it_finds_the_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Attached when training begins, after the checkpoint was loaded; where it cannot be found, that is said."""
    RLMon(first := tiny.trainer(tmp_path, max_steps=1, save_strategy="steps", save_steps=1))
    first.train()
    with pytest.raises(AttachError, match=r"a policy that was trained already \(step 1\), so its initial weights"):
        RLMon(base_kl="copy").attach(_detached(first))

    def notes(monitor: RLMon) -> list[str]:
        again = tiny.trainer(tmp_path, max_steps=2, save_strategy="no")
        again.add_callback(monitor)
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
        log = rlmon.open_run(monitor.log_dir)
        assert [record.step for record in log.step_records()] == [1, 2]
        return [event.payload["text"] for event in log.iter_events() if event.kind == "note"]

    monitor = RLMon()
    assert notes(monitor) == []
    assert monitor.monitor is not None
    assert monitor.monitor.shared_state()["detectors"]["records"] == 2
    monkeypatch.setattr(callback, "resumed_from", lambda _: None)
    assert "attached too late to see which checkpoint was loaded" in " ".join(notes(RLMon()))


def _detached(trained: Any) -> Any:
    for each in [each for each in trained.callback_handler.callbacks if isinstance(each, RLMon)]:
        each.detach()
    return trained


def test_a_callback_that_cannot_find_its_trainer() -> None:
    with pytest.raises(AttachError, match=r"RLMon\(trainer\)"):
        RLMon().on_train_begin(None, None, None)  # type: ignore[arg-type]


def test_the_probe_outside_of_a_trainer() -> None:
    with pytest.raises(AttachError, match="reward_funcs"):
        probe(["a"], ["b"], [[1]])


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("rlmon.trl.base._blocker", ""),
        ("rlmon.trl.prompts.SourceMap.build", r"could not read the sources.*broken on purpose.*rlmon_source_column"),
        ("rlmon.trl.capture.Capture.install", r"could not put its hooks in place.*broken on purpose.*train without"),
        (
            "rlmon.trl.actuators.Coefficients",
            r"could not make ready for the rules.*broken on purpose.*rlmon_policy",
        ),
        ("rlmon.trl.kinds.Version", r"could not tell whether.*broken on purpose"),
    ],
)
def test_a_failure_of_ours_is_said_in_words_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, said: str
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise AttributeError("broken on purpose")

    trained = tiny.trainer(tmp_path / "run", policy=tiny.model())
    attributes, callbacks = dict(vars(trained)), list(trained.callback_handler.callbacks)
    monkeypatch.setattr(where, broken)
    if "base" in where:  # no base is no reason not to watch
        monitor = RLMon(trained, RLMonConfig())
        assert monitor._capture is not None
        assert monitor._capture.base.kind == "off"
        assert "broken on purpose" in monitor._capture.base.reason
        return
    with pytest.raises(AttachError, match=said):
        RLMon(trained, RLMonConfig(rlmon_policy="protect"))
    assert vars(trained) == attributes
    assert trained.callback_handler.callbacks == callbacks
