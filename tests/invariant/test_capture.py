"""Every way in, and every kind of batch, on real trainers."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny
import trl
from packaging.version import Version
from transformers import TrainerCallback

import rlmon
from rlmon import detectors
from rlmon.records import Block
from rlmon.trl import MonitoredGRPOTrainer, RLMon, RLMonConfig, probe

pytestmark = pytest.mark.trl

QUIET = {"rlmon_console": False, "rlmon_strict": True}


def rows_of(run: Any) -> Counter[tuple[str, str]]:
    table = run.rollouts(all_attempts=True)
    return Counter(zip(table.column("prompt").to_pylist(), table.column("completion").to_pylist(), strict=True))


def truth_of(path: Path) -> Counter[tuple[str, str]]:
    return Counter(tuple(json.loads(line)[1:]) for line in path.read_text().splitlines())


def watch(trained: Any, **settings: Any) -> Any:
    monitor = RLMon(trained, RLMonConfig(**QUIET, **settings))
    trained.train()
    return rlmon.open_run(monitor.log_dir)


# -- ways in -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["constructor", "callbacks", "add_callback", "subclass"])
def test_every_way_in_sees_every_completion(tmp_path: Path, way: str) -> None:
    truth = tmp_path / "truth.jsonl"
    config = RLMonConfig(rlmon_dir=str(tmp_path / "log"), rlmon_base_kl_every=2, **QUIET)
    reward = tiny.counting_reward(truth)
    if way == "callbacks":
        trained = tiny.trainer(tmp_path / "run", reward=reward, callbacks=[RLMon(config=config)])
    elif way == "subclass":
        trained = tiny.trainer(tmp_path / "run", reward=reward, cls=MonitoredGRPOTrainer, extra={"rlmon": config})
    else:
        trained = tiny.trainer(tmp_path / "run", reward=reward)
        if way == "constructor":
            RLMon(trained, config)
        else:
            trained.add_callback(RLMon(config))
    trained.train()
    run = rlmon.open_run(tmp_path / "log")
    assert rows_of(run) == truth_of(truth)
    records = run.step_records()
    assert len(records) == 4
    assert records[2].metrics["rlmon/kl/mean"] is not None, "step 2 is due"
    assert all(0 < record.metrics["rlmon/entropy/mean"] < math.log(len(tiny.WORDS)) for record in records)
    # Law 5: what was not measured is null with a reason, and nothing is NaN.
    for record in records:
        assert {name for name, value in record.metrics.items() if value is None} == set(record.missing)
        assert all(record.missing.values())
        assert all(math.isfinite(value) for value in record.metrics.values() if value is not None)
    versions = run.rollouts().select(["step", "policy_version"]).to_pylist()
    assert all(row["policy_version"] == row["step"] - 1 for row in versions)


def test_the_probe_sees_every_completion_and_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(completions: Sequence[Any], **_: Any) -> list[None]:
        return [None] * len(completions)

    silent.__name__ = "probe"
    truth = tmp_path / "truth.jsonl"
    stock = tiny.trainer(tmp_path / "stock", reward=[tiny.has_digit, silent])
    stock.train()
    monkeypatch.setenv("RLMON_DIR", str(tmp_path / "log"))
    monkeypatch.setenv("RLMON_CONSOLE", "false")
    monkeypatch.setenv("RLMON_BASE_KL_EVERY", "1")
    watched = tiny.trainer(tmp_path / "watched", reward=[tiny.counting_reward(truth), probe])
    watched.train()
    assert tiny.same_weights(tiny.weights(stock), tiny.weights(watched))
    run = rlmon.open_run(tmp_path / "log")
    assert rows_of(run) == truth_of(truth)
    records = run.step_records()
    assert [record.step for record in records] == [1, 2, 3, 4]
    assert not any(record.faults for record in records)
    assert records[0].metrics["rlmon/kl/mean"] == pytest.approx(0.0, abs=1e-6)
    table = run.rollouts().to_pylist()
    assert all(row["reward"] == dict(row["rewards"])["counted"] for row in table), "also in round 0"
    assert all(dict(row["rewards"])["probe"] is None for row in table)
    history = [row for row in watched.state.log_history if "entropy" in row]
    for row in history:
        assert row["rlmon/entropy/mean"] == pytest.approx(row["entropy"], abs=1e-6)
    assert {row["entropy"] for row in history} == {r["entropy"] for r in stock.state.log_history if "entropy" in r}
    # Round 0 has its advantages too: those of a group add to nothing.
    first = [row["advantage"] for row in table if row["round"] == 0]
    assert any(first)
    assert sum(first) == pytest.approx(0.0, abs=1e-4)


def test_two_train_calls_are_two_attempts(tmp_path: Path) -> None:
    trained = tiny.trainer(tmp_path / "run")
    monitor = RLMon(trained, RLMonConfig(**QUIET))
    trained.train()
    trained.train()
    run = rlmon.open_run(monitor.log_dir)
    assert [header.attempt_kind for header in run.headers] == ["fresh", "fresh"]
    assert run.rollouts().num_rows == 32
    assert run.rollouts(all_attempts=True).num_rows == 64


# -- kinds of batches --------------------------------------------------------------------------------------------------


def test_conversations(tmp_path: Path) -> None:
    truth = tmp_path / "truth.jsonl"
    trained = tiny.trainer(
        tmp_path / "run", train=tiny.dataset(conversational=True), reward=tiny.counting_reward(truth)
    )
    run = watch(trained)
    logged = rows_of(run)
    assert {completion for _, completion in logged} == {completion for _, completion in truth_of(truth)}
    assert all(prompt.startswith("user: ") for prompt, _ in logged)
    plain = watch(tiny.trainer(tmp_path / "plain"))
    assert not set(run.rollouts().column("prompt_id").to_pylist()) & set(
        plain.rollouts().column("prompt_id").to_pylist()
    )


def test_an_iterable_dataset(tmp_path: Path) -> None:
    if Version(trl.__version__) < Version("1.12"):
        pytest.skip("TRL takes iterable datasets only since 1.12")
    truth = tmp_path / "truth.jsonl"
    trained = tiny.trainer(
        tmp_path / "run", train=tiny.dataset().to_iterable_dataset(), reward=tiny.counting_reward(truth)
    )
    run = watch(trained)
    assert rows_of(run) == truth_of(truth)
    assert set(run.rollouts().column("source").to_pylist()) == {"all"}


def test_several_rewards_with_weights_and_none(tmp_path: Path) -> None:
    def halves(completions: Sequence[Any], **_: Any) -> list[float | None]:
        return [0.5 if i % 2 else None for i in range(len(completions))]

    def nothing(completions: Sequence[Any], **_: Any) -> list[None]:
        return [None] * len(completions)

    run = watch(
        tiny.trainer(tmp_path / "run", reward=[tiny.has_digit, halves, nothing], reward_weights=[1.0, 2.0, 0.0])
    )
    rows = run.rollouts().to_pylist()
    for row in rows:
        parts = dict(row["rewards"])
        assert parts["nothing"] is None
        expected = parts["has_digit"] + (0.0 if parts["halves"] is None else 2.0 * parts["halves"])
        assert row["reward"] == pytest.approx(expected)
    assert {dict(row["rewards"])["halves"] for row in rows} == {None, 0.5}


def test_rows_that_no_function_scored_are_not_zero(tmp_path: Path) -> None:
    def some(completions: Sequence[Any], **_: Any) -> list[float | None]:
        return [None if i < 2 else 1.0 for i in range(len(completions))]

    run = watch(tiny.trainer(tmp_path / "run", reward=some))
    assert Counter(run.rollouts().column("reward").to_pylist()) == {None: 8, 1.0: 24}
    assert run.step_records()[0].metrics["rlmon/health/reward_missing"] == 2.0


def test_silent_groups_under_batch_scaling(tmp_path: Path) -> None:
    """TRL's own metric reads the standard deviation of the batch here, and says that no group is silent."""

    def by_prompt(prompts: Sequence[str], **_: Any) -> list[float]:
        return [float(prompt.startswith(("0", "1", "2"))) for prompt in prompts]

    trained = tiny.trainer(tmp_path / "run", reward=by_prompt, scale_rewards="batch", max_steps=6)
    run = watch(trained)
    for record in run.step_records():
        good, bad = record.metrics["rlmon/group/all_good"], record.metrics["rlmon/group/all_bad"]
        assert good + bad == pytest.approx(1.0)
        assert good in (0.0, 0.5, 1.0)
    mixed = [row["frac_reward_zero_std"] for row in trained.state.log_history if row.get("reward_std", 0) > 0]
    assert mixed
    assert max(mixed) == 0.0


def test_truncation_and_lengths(tmp_path: Path) -> None:
    trained = tiny.trainer(tmp_path / "run", max_completion_length=12, mask_truncated_completions=True, max_steps=8)
    run = watch(trained)
    rows = run.rollouts().to_pylist()
    assert {row["truncated"] for row in rows} == {True, False}
    for row in rows:
        assert row["truncated"] is False or row["completion_tokens"] == 12
    ratios = [row["completions/clipped_ratio"] for row in trained.state.log_history if "entropy" in row]
    ours = [record.metrics["rlmon/health/truncated"] for record in run.step_records()]
    assert ours == pytest.approx(ratios)


def test_tool_tokens_are_not_the_models_own(tmp_path: Path) -> None:
    if Version(trl.__version__) < Version("1.16"):
        pytest.skip("rollout_func's env_mask is tested on the newest TRL")

    def rollout(prompts: list[Any], trainer: Any) -> dict[str, Any]:
        n = len(prompts)
        digits = [3, 4, 5, 6, 1]
        return {
            "prompt_ids": [[20, 21]] * n,
            "completion_ids": [digits] * n,
            "logprobs": [[-1.0] * 5] * n,
            "env_mask": [[1, 1, 0, 0, 1]] * n,
        }

    trained = tiny.trainer(tmp_path / "run", extra={"rollout_func": rollout}, max_steps=2)
    run = watch(trained)
    assert set(run.rollouts().column("completion_tokens").to_pylist()) == {3}
    assert set(run.passes().column("tokens").to_pylist()) == {3}
    for record in run.step_records():
        assert record.tokens == 3 * 8


def test_eval_is_kept_apart(tmp_path: Path) -> None:
    trained = tiny.trainer(
        tmp_path / "run", eval_strategy="steps", eval_steps=2, num_generations_eval=2, per_device_eval_batch_size=4
    )
    run = watch(trained)
    table = run.rollouts().to_pylist()
    assert Counter(row["split"] for row in table) == {"train": 32, "eval": 16}
    assert all(record.completions == 8 for record in run.step_records())
    evals = [event for event in run.events if event.kind == "eval"]
    assert [event.payload["step"] for event in evals] == [2, 4]
    assert all(event.payload["completions"] == 8 for event in evals)
    assert max(row["group"] for row in table if row["split"] == "eval") == 1


def test_a_long_evaluation_in_mid_buffer_loses_no_pass(tmp_path: Path) -> None:
    trained = tiny.trainer(
        tmp_path / "run",
        num_iterations=4,
        max_steps=8,
        eval_strategy="steps",
        eval_steps=1,
        num_generations_eval=2,
        per_device_eval_batch_size=2,
        extra={"eval_dataset": tiny.dataset(12)},
    )
    passes = watch(trained).passes().to_pylist()
    seen = Counter((row["round"], row["global_row"]) for row in passes if row["split"] == "train")
    assert len(seen) == 16
    assert set(seen.values()) == {4}
    assert len([row for row in passes if row["split"] == "eval"]) == 8 * 12 * 2


def test_sources_come_from_the_column(tmp_path: Path) -> None:
    data = tiny.dataset(12).add_column("task", ["sums"] * 6 + ["products"] * 6)
    run = watch(tiny.trainer(tmp_path / "run", train=data, max_steps=6))
    assert set(run.rollouts().column("source").to_pylist()) == {"sums", "products"}
    records = run.step_records()
    names = {key: name for record in records for key, name in record.sources.items()}
    assert {names[block.source] for record in records for block in record.blocks} == {"sums", "products"}


def test_user_modes(tmp_path: Path) -> None:
    modes = {"numeric": r"^\s*\d", "shouting": str.isupper}
    run = watch(tiny.trainer(tmp_path / "run"), rlmon_modes=modes)
    rows = run.rollouts().to_pylist()
    assert all((row["mode"] == "numeric") == row["completion"].strip()[:1].isdigit() for row in rows)
    assert run.step_records()[0].metrics["rlmon/format/share/numeric"] is not None


def test_headline_scalars_reach_the_trainers_own_log(tmp_path: Path) -> None:
    trained = tiny.trainer(tmp_path / "run", logging_steps=2)
    watch(trained, rlmon_base_kl_every=1)
    ours = {key for row in trained.state.log_history for key in row if key.startswith("rlmon/")}
    assert {"rlmon/entropy/mean", "rlmon/kl/mean", "rlmon/format/effective", "rlmon/group/all_bad"} <= ours
    assert len(ours) <= 12


class StopAt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_training_stop = state.global_step >= self.step


# -- resume and replay -------------------------------------------------------------------------------------------------


def counted(block: Block) -> Block:
    counts = {name: [sorted(part.values()) for part in parts] for name, parts in block.tallies.items()}
    return dataclasses.replace(block, tallies=counts)  # type: ignore[arg-type]


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_a_resumed_run_goes_on_where_it_was(tmp_path: Path, lora: bool) -> None:
    """One epoch of 24 prompts, 2 a step: within it TRL resumes exactly, so every number must come out the same."""

    def run(name: str, stop: int, resume: str | None = None) -> Any:
        trained = tiny.trainer(
            tmp_path / name,
            policy=tiny.model(),
            lora=lora,
            train=tiny.dataset(24),
            max_steps=8,
            save_strategy="steps",
            save_steps=3,
            callbacks=[StopAt(stop)],
        )
        monitor = RLMon(trained, RLMonConfig(rlmon_base_kl_every=2, **QUIET))
        trained.train(resume_from_checkpoint=resume)
        return monitor

    whole = run("whole", 8)
    run("parts", 5)
    resumed = run("parts", 8, str(tmp_path / "parts" / "checkpoint-3"))
    expected = rlmon.open_run(whole.log_dir).step_records()
    log = rlmon.open_run(resumed.log_dir)
    got = log.step_records()
    assert [record.step for record in got] == [record.step for record in expected] == list(range(1, 9))
    assert [record.attempt for record in got] == [0] * 3 + [1] * 5
    for a, b in zip(expected, got, strict=True):
        same = {k: v for k, v in a.metrics.items() if not k.startswith("rlmon/moves/")}
        assert {k: b.metrics[k] for k in same} == pytest.approx(same, nan_ok=False, abs=1e-9)
        # The codes of tallied templates are hashed with a secret of the log, their counts are the same.
        assert [counted(block) for block in a.blocks] == [counted(block) for block in b.blocks]
    assert log.rollouts().num_rows == 64
    assert log.rollouts(all_attempts=True).num_rows == 64 + 2 * 8, "steps 4 and 5 of the first attempt are hidden"
    assert [header.attempt_kind for header in log.headers] == ["fresh", "resumed"]
    state = [json.dumps(m.monitor.shared_state()["detectors"], sort_keys=True) for m in (whole, resumed)]
    assert state[0] == state[1]


def test_resuming_without_our_state_says_so(tmp_path: Path) -> None:
    options: dict[str, Any] = {"save_strategy": "steps", "save_steps": 2}
    tiny.trainer(tmp_path / "run", **options).train()
    trained = tiny.trainer(tmp_path / "run", max_steps=6, **options)
    monitor = RLMon(trained, RLMonConfig(**QUIET))
    trained.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    run = rlmon.open_run(monitor.log_dir)
    assert [record.step for record in run.step_records()] == [3, 4, 5, 6]
    assert any("no state of rlmon" in event.payload.get("text", "") for event in run.events)


def test_no_text_means_none_anywhere(tmp_path: Path) -> None:
    """Not in the rows, not in the events, not in the checkpoint."""
    for name, settings in (("hash", {"rlmon_store_text": "hash"}), ("sample", {"rlmon_text_sample_per_round": 0})):
        trained = tiny.trainer(
            tmp_path / name,
            reward=lambda completions, **_: [float("=" in tiny.text(c)) for c in completions],
            max_steps=40,
            learning_rate=2e-2,
            per_device_train_batch_size=32,
            save_strategy="steps",
            save_steps=40,
        )
        monitor = RLMon(trained, RLMonConfig(**QUIET, **settings))
        trained.train()
        assert monitor.monitor.findings
        texts = {text for sample in monitor.monitor.samples if len(text := sample["completion"]) > 8}
        assert texts
        files = [*monitor.log_dir.glob("*.json*"), *(tmp_path / name).glob("checkpoint-40/rlmon/*")]
        assert len(files) >= 5
        for file in files:
            content = file.read_text()
            assert not [text for text in texts if text in content], file
        assert set(rlmon.open_run(monitor.log_dir).rollouts().column("completion").to_pylist()) == {None}


@pytest.mark.parametrize("store_text", ["full", "hash", "off"])
def test_replay_equals_live(tmp_path: Path, store_text: str) -> None:
    """A run that collapses, replayed through the stored records and the stored detector configuration."""

    def rigged(completions: Sequence[Any], **_: Any) -> list[float]:
        return [float(tiny.text(c).strip().startswith("(")) for c in completions]

    trained = tiny.trainer(
        tmp_path / "run", reward=rigged, max_steps=60, learning_rate=2e-2, per_device_train_batch_size=32
    )
    monitor = RLMon(trained, RLMonConfig(rlmon_store_text=store_text, rlmon_base_kl_every=5, **QUIET))
    trained.train()
    run = rlmon.open_run(monitor.log_dir)
    assert monitor.monitor.findings, "a model driven into one opening must be noticed"
    state = detectors.start_from(run.header.detectors)
    replayed = []
    for record in run.step_records():
        state, findings = detectors.step(state, record)
        replayed += findings
    assert replayed == monitor.monitor.findings == run.findings
    shown = [event.payload for event in run.events if event.kind == "examples"]
    assert [payload["finding_id"] for payload in shown] == [finding.finding_id for finding in run.findings]
    formats = next(p for p, f in zip(shown, run.findings, strict=True) if "collapse" in f.detector)
    assert formats["gainers"][0]["now_share"] > formats["gainers"][0]["base_share"]
    assert formats["losers"][0]["now_share"] < formats["losers"][0]["base_share"]
    assert (formats["gainers"][0]["now_example"] is not None) == (store_text == "full")
    assert bool(formats["openers"]) == (store_text == "full")
    for opener in formats["openers"]:
        assert opener["base_per_1000_tokens"] != opener["now_per_1000_tokens"]
    table = run.rollouts()
    texts = set(table.column("completion").to_pylist())
    assert (texts == {None}) == (store_text != "full")
    assert (set(table.column("template_key").to_pylist()) == {None}) == (store_text == "off")
