"""``rlmon_base_sample``: the base is sampled before the first update, and the run is the one without."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch

import rlmon
from rlmon.audit import engine
from rlmon.audit.replay import as_stored_finding
from rlmon.detectors import status
from rlmon.errors import ConfigError
from rlmon.report import phrases
from rlmon.trl import MonitoredGRPOTrainer, RLMon, RLMonConfig, base_sample, probe

pytestmark = pytest.mark.trl

SAMPLE = 64
CONFIG = RLMonConfig(rlmon_base_sample=SAMPLE, rlmon_console=False, rlmon_strict=True, rlmon_mirror=False)
OF_TIME = ("time", "runtime", "per_second")


def told(trainer: Any) -> list[dict[str, Any]]:
    """What TRL logged, without how long it took."""
    kept = ({name: v for name, v in row.items() if not any(word in name for word in OF_TIME)}
            for row in trainer.state.log_history)  # fmt: skip
    return json.loads(json.dumps(list(kept)))


def log_of(folder: Path) -> rlmon.Run:
    return rlmon.open_run(folder / "rlmon")


# -- watching changes nothing ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "overrides"),
    [
        ({}, {}),
        ({"rloo": True}, {"beta": 0.1}),
        ({"ppo": True}, {}),
        ({"lora": True}, {"num_iterations": 2, "gradient_accumulation_steps": 2, "steps_per_generation": 4}),
        ({"cls": MonitoredGRPOTrainer}, {}),
    ],
    ids=["grpo", "rloo", "ppo", "lora-reuse", "subclass"],
)
def test_the_run_is_the_one_without(tmp_path: Path, kind: dict[str, Any], overrides: dict[str, Any]) -> None:
    stock = tiny.trainer(tmp_path / "stock", **({} if "cls" in kind else kind), **overrides)
    stock.train()
    if "cls" in kind:
        watched = tiny.trainer(tmp_path / "watched", **kind, extra={"rlmon": CONFIG}, **overrides)
    else:
        watched = tiny.trainer(tmp_path / "watched", **kind, **overrides)
        RLMon(watched, CONFIG)
    watched.train()
    assert tiny.same_weights(tiny.weights(stock), tiny.weights(watched))
    assert told(stock) == told(watched)
    assert stock.state.num_input_tokens_seen == watched.state.num_input_tokens_seen
    assert stock._step == watched._step
    for split in ("train", "eval"):
        assert dict(stock._metrics[split]) == dict(watched._metrics[split])
    for name in ("prompt", "completion", "advantages"):
        assert list(stock._logs[name]) == list(watched._logs[name]), name
    first = log_of(tmp_path / "watched").step_records()[0]
    assert first.base is not None
    assert first.base.completions >= SAMPLE


def test_dropout_is_off_and_every_mode_comes_back(tmp_path: Path) -> None:
    def run(name: str, watch: bool) -> tuple[Any, list[bool]]:
        trained = tiny.trainer(tmp_path / name, policy=tiny.model(dropout=0.2), gradient_checkpointing=True)
        seen: list[bool] = []
        trained.model.model.layers[0].self_attn.register_forward_hook(lambda module, *_: seen.append(module.training))
        if watch:
            RLMon(trained, CONFIG, base_kl="off")
        trained.train()
        return tiny.weights(trained), seen

    stock, without = run("stock", False)
    watched, seen = run("watched", True)
    assert tiny.same_weights(stock, watched)
    extra = len(seen) - len(without)
    assert extra > 0
    assert not any(seen[:extra]), "the base is sampled in evaluation mode"


def test_a_reward_function_draws_what_it_drew_without(tmp_path: Path) -> None:
    """Of Python's own state, and of all others around each hook: ``photograph_hooks.py``."""
    drawn: list[float] = []

    def draws(completions: Any, **_: Any) -> list[float]:
        drawn.append(float(np.random.rand() + torch.rand(1)))
        return tiny.has_digit(completions)

    def run(name: str, watch: bool) -> list[float]:
        drawn.clear()
        trained = tiny.trainer(tmp_path / name, reward=draws)
        if watch:
            RLMon(trained, CONFIG)
        trained.train()
        return list(drawn)

    without, watched = run("stock", False), run("watched", True)
    assert watched[-len(without) :] == without
    assert len(set(watched)) == len(watched) == len(without) + SAMPLE // 8, "each round of the sample draws anew"


def test_reward_functions_log_nothing_of_it(tmp_path: Path) -> None:
    def logs(completions: Any, log_metric: Any = None, log_extra: Any = None, **_: Any) -> list[float]:
        if log_metric is not None:
            log_metric("length", float(len(completions[0])))
            log_extra("first", [text[:1] for text in completions])
        return tiny.has_digit(completions)

    def run(name: str, watch: bool) -> Any:
        trained = tiny.trainer(tmp_path / name, reward=logs)
        if watch:
            RLMon(trained, CONFIG)
        trained.train()
        return told(trained), list(trained._logs["extra"]["first"])

    assert run("stock", False) == run("watched", True)


def test_conversations_and_columns_that_nobody_uses(tmp_path: Path) -> None:
    def run(name: str, watch: bool) -> Any:
        trained = tiny.trainer(tmp_path / name, train=tiny.dataset(conversational=True), remove_unused_columns=True)
        if watch:
            RLMon(trained, CONFIG)
        trained.train()
        return tiny.weights(trained)

    assert tiny.same_weights(run("stock", False), run("watched", True))
    assert log_of(tmp_path / "watched").step_records()[0].base is not None


# -- what it is for ----------------------------------------------------------------------------------------------------


def test_all_that_was_sampled_is_in_the_log_once(tmp_path: Path) -> None:
    trained = tiny.trainer(tmp_path / "run", reward=tiny.counting_reward(tmp_path / "truth"))
    RLMon(trained, CONFIG)
    trained.train()
    truth = Counter(tuple(json.loads(line)[1:]) for line in (tmp_path / "truth").read_text().splitlines())
    rows = log_of(tmp_path / "run").rollouts()
    assert Counter(zip(rows["prompt"].to_pylist(), rows["completion"].to_pylist(), strict=True)) == truth
    base = rows.to_pylist()
    base = [row for row in base if row["split"] == "base"]
    assert len(base) == SAMPLE
    assert {(row["step"], row["trained"], row["advantage"]) for row in base} == {(0, False, None)}
    groups = Counter((row["round"], row["group"], row["prompt_id"]) for row in base)
    assert set(groups.values()) == {4}, "whole groups of one prompt"
    assert len({row["prompt_id"] for row in base[:48]}) == 12, "no prompt comes again before all have come"
    assert log_of(tmp_path / "run").step_records()[-1].shed_rows == 0


def test_detectors_and_metrics_compare_with_it_from_the_first_step(tmp_path: Path) -> None:
    trained = tiny.trainer(tmp_path / "run", max_steps=2, train=tiny.dataset(64))
    watcher = RLMon(trained, RLMonConfig(rlmon_base_sample=256, rlmon_console=False, rlmon_strict=True))
    trained.train()
    monitor = watcher.monitor
    assert monitor is not None
    rows = {row["id"]: row for row in status(monitor.detector_state)}
    formats = rows["format-collapse"]
    assert formats["bets"] > 0, "in two steps"
    assert {one["baseline_kind"] for one in formats["sources"]} == {"base_sample"}
    entropy = rows["entropy-collapse"]
    assert {one["baseline_kind"] for one in entropy["sources"]} == {"early_rounds"}
    assert not any(one["baseline_done"] for one in entropy["sources"])
    first = log_of(tmp_path / "run").step_records()[0]
    assert first.metrics["rlmon/format/js_to_base"] is not None
    assert first.metrics["rlmon/entropy/ratio_to_base"] == pytest.approx(1.0), "of the first round, as without a sample"


def test_an_audit_of_the_log_says_the_same(tmp_path: Path) -> None:
    def collapses(completions: Any, **_: Any) -> list[float]:
        return [float(text.split()[:1] == ["7"]) + 0.01 * text.split().count("7") for text in completions]

    said: list[Any] = []
    trained = tiny.trainer(
        tmp_path / "run", reward=collapses, max_steps=60, per_device_train_batch_size=32, train=tiny.dataset(64)
    )
    watcher = RLMon(trained, RLMonConfig(rlmon_base_sample=256, rlmon_console=False, rlmon_strict=True))
    trained.add_callback(tiny.AtStep(lambda: watcher.monitor.on_record.append(lambda _, found: said.extend(found))))
    trained.train()
    assert said, "this run collapses"
    audit = engine.audit(tmp_path / "run" / "rlmon")
    replayed = [json.loads(json.dumps(dict(finding))) for finding in audit.findings]
    assert replayed == [as_stored_finding(finding) for finding in said]
    assert next(one for one in audit.checks if one.id == "replay").status == "pass"
    of_rows = [one for one in said if one.baseline_kind == "base_sample"]
    assert of_rows
    assert all("Its base is a sample of 256 completions." in one.message for one in of_rows)
    assert audit.run.baseline["kind"] == "base_sample"
    assert audit.run.baseline["completions"] == 256
    assert phrases.baseline_line(audit).startswith("base sample: ")
    assert audit.run.completions == 60 * 32
    assert not [one.id for one in audit.checks if one.status == "error"]


def test_rules_know_the_base_before_the_first_round(tmp_path: Path) -> None:
    apart = {"when": "always", "do": {"action": "hold", "opening": 1.0}}
    policy = {"rules": {"apart": apart, "formats": {"when": "always", "do": "mode_marginal"}}}
    trained = tiny.trainer(tmp_path / "run", max_steps=1)
    watcher = RLMon(trained, RLMonConfig(rlmon_base_sample=256, rlmon_console=False, rlmon_policy=policy))
    trained.train()
    rules = watcher.monitor.controller._rules.rules
    hold, formats = rules["apart"].inner, rules["formats"].inner
    assert hold.baseline.completions == 256
    assert hold.within.base.groups > 0
    assert formats.base.total == 256
    assert formats.complete
    assert formats.now.total > 256, "the first round came on top"
    actions = [action for action in log_of(tmp_path / "run").actions if action.step == 0]
    assert not actions, "nothing is decided by a sample"


# -- resuming ----------------------------------------------------------------------------------------------------------


def test_a_resumed_run_samples_nothing_and_goes_on_with_it(tmp_path: Path) -> None:
    def run(steps: int, **more: Any) -> RLMon:
        trained = tiny.trainer(tmp_path / "run", max_steps=steps, save_strategy="steps", save_steps=2,
                               reward=tiny.counting_reward(tmp_path / "truth"))  # fmt: skip
        watcher = RLMon(trained, CONFIG)
        trained.train(**more)
        return watcher

    run(2)
    assert len((tmp_path / "truth").read_text().splitlines()) == SAMPLE + 16
    watcher = run(4, resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    assert len((tmp_path / "truth").read_text().splitlines()) == SAMPLE + 32
    assert watcher.monitor is not None
    assert watcher.monitor.detector_state.base_completions == SAMPLE
    records = log_of(tmp_path / "run").step_records()
    assert [record.base is not None for record in records] == [True, False, False, False]
    audit = engine.audit(tmp_path / "run" / "rlmon")
    assert next(one for one in audit.checks if one.id == "replay").status == "pass"
    assert audit.run.baseline["completions"] == SAMPLE


def test_a_checkpoint_without_a_sample_is_said(tmp_path: Path) -> None:
    kept: dict[str, Any] = {"save_strategy": "steps", "save_steps": 2}
    first = tiny.trainer(tmp_path / "run", max_steps=2, **kept)
    RLMon(first, rlmon_console=False)
    first.train()
    second = tiny.trainer(tmp_path / "run", max_steps=3, **kept)
    RLMon(second, CONFIG)
    second.train(resume_from_checkpoint=True)
    notes = [event.payload["text"] for event in log_of(tmp_path / "run").iter_events() if event.kind == "note"]
    assert base_sample.NONE_IN_CHECKPOINT in notes


# -- what fails --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [1, 3])
def test_a_reward_function_that_fails_leaves_the_first_rounds(
    tmp_path: Path, at: int, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[int] = []

    def fails_once(completions: Any, **_: Any) -> list[float]:
        calls.append(1)
        if len(calls) == at:
            raise ValueError("broken on purpose")
        return tiny.has_digit(completions)

    stock = tiny.trainer(tmp_path / "stock")
    stock.train()
    watched = tiny.trainer(tmp_path / "watched", reward=fails_once)
    watcher = RLMon(watched, RLMonConfig(rlmon_base_sample=SAMPLE, rlmon_mirror=False))
    watched.train()
    assert tiny.same_weights(tiny.weights(stock), tiny.weights(watched))
    assert watcher.monitor is not None
    assert watcher.monitor.faults.totals["base.sample"] == 1
    assert "the base was not sampled, and the first rounds are the baseline: ValueError" in capsys.readouterr().err
    log = log_of(tmp_path / "watched")
    assert log.step_records()[0].base is None
    assert log.faults[0].place == "base.sample"
    assert watcher.monitor.detector_state.base_completions == 0
    # What had been scored until then was sampled, and did not reach the log.
    assert log.step_records()[-1].shed_rows == 8 * (at - 1)


def test_a_metric_that_fails_leaves_the_first_rounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rlmon.monitor import Monitor

    def broken(self: Any, *args: Any) -> Any:
        raise ValueError("broken on purpose")

    stock = tiny.trainer(tmp_path / "stock")
    stock.train()
    watched = tiny.trainer(tmp_path / "watched")
    watcher = RLMon(watched, RLMonConfig(rlmon_base_sample=SAMPLE, rlmon_console=False))
    monkeypatch.setattr(Monitor, "_measured_of_base", broken)
    watched.train()
    assert tiny.same_weights(tiny.weights(stock), tiny.weights(watched))
    assert watcher.monitor is not None
    assert watcher.monitor.faults.totals["base.sample"] == 1
    assert log_of(tmp_path / "watched").step_records()[0].base is None


def test_attached_while_the_first_round_is_scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLMON_BASE_SAMPLE", "64")
    monkeypatch.setenv("RLMON_CONSOLE", "false")
    watched = tiny.trainer(tmp_path / "watched", reward=[tiny.has_digit, probe], reward_weights=[1.0, 0.0])
    watched.train()
    log = log_of(tmp_path / "watched")
    assert log.step_records()[0].base is None
    assert base_sample.TOO_LATE in [event.payload["text"] for event in log.iter_events() if event.kind == "note"]


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_what_cannot_be_sampled_is_refused_before_the_first_step(tmp_path: Path) -> None:
    streamed = tiny.trainer(tmp_path / "stream")
    streamed.train_dataset = tiny.dataset().to_iterable_dataset()  # which older trainers do not take
    with pytest.raises(ConfigError, match=r"rlmon_base_sample .*stream.*Leave rlmon_base_sample out"):
        RLMon(streamed, CONFIG)
    pictures = tiny.dataset().add_column("image", [None] * 12)
    with pytest.raises(ConfigError, match="images"):
        RLMon(tiny.trainer(tmp_path / "pictures", train=pictures), CONFIG)
    made = tiny.trainer(tmp_path / "vllm")
    made.args.use_vllm = True
    with pytest.raises(ConfigError, match="vLLM"):
        RLMon(made, CONFIG)
    with pytest.raises(ConfigError, match="at least 0"):
        RLMonConfig(rlmon_base_sample=-1)


# -- what is left as it was -------------------------------------------------------------------------------------------


def test_random_states_are_forked() -> None:
    def states() -> tuple[Any, ...]:
        return np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()

    before, drawn = states(), []
    for seed in (1, 1, 2):
        with base_sample.forked_randomness(seed, "cpu"):
            drawn.append((float(np.random.rand()), float(torch.rand(1))))
        assert states() == before
    assert drawn[0] == drawn[1] != drawn[2]
    with pytest.raises(RuntimeError), base_sample.forked_randomness(3, "cpu"):
        torch.rand(-1)
    assert states() == before


# -- what is drawn -----------------------------------------------------------------------------------------------------


def test_which_rows_are_drawn() -> None:
    chosen = base_sample.drawn(5, 12, seed=3)
    assert sorted(chosen[:5].tolist()) == sorted(chosen[5:10].tolist()) == list(range(5))
    assert len(set(chosen[10:].tolist())) == 2
    assert chosen.tolist() == base_sample.drawn(5, 12, seed=3).tolist()
    assert chosen.tolist() != base_sample.drawn(5, 12, seed=4).tolist()
    with pytest.raises(ValueError, match="no rows"):
        base_sample.drawn(0, 4, seed=0)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_ranks_share_a_round_out_in_whole_groups(world_size: int) -> None:
    rows, group_size = 6, 4
    both = [
        base_sample.places(number, rank, rows, world_size, group_size).tolist()
        for number in range(2)
        for rank in range(world_size)
    ]
    joined = [place for part in both for place in part]
    assert joined == [i // group_size for i in range(2 * rows * world_size)]
    assert base_sample.rounds_of(256, 24) == 11
