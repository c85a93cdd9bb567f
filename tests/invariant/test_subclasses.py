"""Trainers that people derive from TRL's: they sample again, in parts, or train on other rows; and losses of their own.

Whatever they do, training goes on as without the monitor, every completion that was scored is in the log once, and no
row has the advantage of another.
"""

from __future__ import annotations

import inspect
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from trl import GRPOTrainer

import rlmon
from rlmon.monitor import monitor as monitor_module
from rlmon.trl import RLMon, RLMonConfig, batches

pytestmark = pytest.mark.trl


def rows_of(output: Mapping[str, Any], rows: Any) -> dict[str, Any]:
    return {name: value[rows] if value.dim() else value for name, value in output.items()}


def put_together(*parts: Mapping[str, Any]) -> dict[str, Any]:
    """Generated batches one behind another: prompts padded left, completions right, all with 0."""
    joined: dict[str, Any] = {}
    for name, first in parts[0].items():
        if not first.dim():
            joined[name] = sum(part[name] for part in parts)
            continue
        width = max(part[name].shape[-1] for part in parts)

        def padded(value: torch.Tensor, width: int = width, left: bool = name.startswith("prompt")) -> torch.Tensor:
            missing = width - value.shape[-1]
            return value if value.dim() == 1 else torch.nn.functional.pad(value, (missing, 0) if left else (0, missing))

        joined[name] = torch.cat([padded(part[name]) for part in parts])
    return joined


class Kept(GRPOTrainer):
    """Keeps what it trains on, as the truth about advantages."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.kept: list[tuple[str, float]] = []

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        output = self.made(inputs)
        texts = self._tokenizer.batch_decode(self.whole(output), skip_special_tokens=True)
        self.kept += [(text, round(a, 5)) for text, a in zip(texts, output["advantages"].tolist(), strict=True)]
        return output

    def whole(self, output: Mapping[str, Any]) -> Any:
        return output["completion_ids"]

    def scored(self, inputs: Any) -> dict[str, Any]:
        output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        return output

    def made(self, inputs: Any) -> dict[str, Any]:
        return self.scored(inputs)


class More(Kept):
    """Trains twice on each row."""

    def made(self, inputs: Any) -> dict[str, Any]:
        output = self.scored(inputs)
        return put_together(output, output)


class Fewer(Kept):
    """Leaves out the first group."""

    def made(self, inputs: Any) -> dict[str, Any]:
        return rows_of(self.scored(inputs), slice(4, None))


class Split(Kept):
    """Samples each group apart."""

    def made(self, inputs: Any) -> dict[str, Any]:
        return put_together(*(self.scored(inputs[i : i + 4]) for i in range(0, len(inputs), 4)))


class Regenerated(Kept):
    """Samples twice and keeps one group of each, the second one first (dynamic sampling)."""

    def made(self, inputs: Any) -> dict[str, Any]:
        first, second = self.scored(inputs), self.scored(inputs)
        return put_together(rows_of(second, slice(4, 8)), rows_of(first, slice(0, 4)))


class ByKeyword(Kept):
    """Scores the same rows once more, with other names for them and by keyword."""

    def _generate(self, prompts: Any) -> Any:
        self.made_of = (prompts, super()._generate(prompts))
        return self.made_of[1]

    def _calculate_rewards(self, rows: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> Any:
        return super()._calculate_rewards(rows, prompts, completions, completion_ids_list)

    def made(self, inputs: Any) -> dict[str, Any]:
        output = self.scored(inputs)
        prompts, made = self.made_of
        self._calculate_rewards(rows=inputs, completion_ids_list=made[1], completions=made[3], prompts=prompts)
        return output


class Cut(Kept):
    """Trains on the first five tokens of each completion."""

    def made(self, inputs: Any) -> dict[str, Any]:
        output = self.scored(inputs)
        self.sampled = output["completion_ids"]
        return output | {name: output[name][:, :5] for name in ("completion_ids", "completion_mask")}

    def whole(self, output: Mapping[str, Any]) -> Any:
        return self.sampled


class Replayed(Kept):
    """Puts a group of the first round in the place of the second group of every later one."""

    def made(self, inputs: Any) -> dict[str, Any]:
        output = self.scored(inputs)
        if not hasattr(self, "old"):
            self.old = rows_of(output, slice(0, 4)) | {"num_items_in_batch": torch.tensor(0)}
            return output
        return put_together(rows_of(output, slice(0, 4)), self.old)


def run(folder: Path, kind: type, watched: bool, **overrides: Any) -> tuple[Any, Counter[tuple[str, str]]]:
    truth = folder / f"truth-{watched}.jsonl"
    trained = tiny.trainer(
        folder / f"watched-{watched}", cls=kind, reward=tiny.counting_reward(truth), **({"max_steps": 2} | overrides)
    )
    if watched:
        RLMon(trained, RLMonConfig(rlmon_console=False, rlmon_base_kl_every=1, rlmon_dir=str(folder / "log")))
    trained.train()
    return trained, Counter(tuple(json.loads(line)[1:]) for line in truth.read_text().splitlines())


@pytest.mark.parametrize(
    ("kind", "scored", "trained"),
    [
        (More, 8, 8),
        (Fewer, 8, 4),
        (Split, 8, 8),
        (Regenerated, 16, 8),
        (ByKeyword, 8, 8),
        (Replayed, 8, 6),
        (Cut, 8, 8),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_every_scored_row_is_logged_once_with_its_own_advantage(
    tmp_path: Path, kind: type, scored: int, trained: int
) -> None:
    """Per step of 2 prompts x 4: Replayed trains 8 of the first round's rows and 4 of the second's, 6 on average."""
    stock, _ = run(tmp_path, kind, watched=False)
    watched, truth = run(tmp_path, kind, watched=True)
    assert tiny.same_weights(tiny.weights(stock), tiny.weights(watched))
    log = rlmon.open_run(tmp_path / "log")
    table = log.rollouts().to_pylist()
    if kind is ByKeyword:
        truth = Counter({row: count // 2 for row, count in truth.items()})
    assert Counter((row["prompt"], row["completion"]) for row in table) == truth
    records = log.step_records()
    assert [record.completions for record in records] == [scored, scored]
    assert len({(row["round"], row["global_row"]) for row in table}) == len(table) == 2 * scored
    assert not any(record.faults or record.shed_rows for record in records)
    assert sum(row["trained"] for row in table) == 2 * trained
    assert all((row["advantage"] is not None) == row["trained"] for row in table)
    logged = Counter((row["completion"], round(row["advantage"], 5)) for row in table if row["trained"])
    assert not logged - Counter(watched.kept), "each has the advantage that it was trained with"
    # A group is one draw of one prompt, also where rounds are put together from parts.
    assert all(len({r["prompt_id"] for r in table if (r["round"], r["group"]) == at}) == 1
               for at in {(r["round"], r["group"]) for r in table})  # fmt: skip
    # Every row that was trained on has its pass, with all of its tokens.
    passes = {(row["round"], row["global_row"]): row["tokens"] for row in log.passes().to_pylist()}
    most = 5 if kind is Cut else 8
    assert passes == {(r["round"], r["global_row"]): min(most, r["completion_tokens"]) for r in table if r["trained"]}
    assert all(record.metrics["rlmon/entropy/mean"] is not None for record in records)


class Cached(GRPOTrainer):
    """Samples twice and keeps the second draw."""

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        super()._generate_and_score_completions(inputs)
        return super()._generate_and_score_completions(inputs)


def test_a_rollout_function_may_answer_with_the_same_lists_again(tmp_path: Path) -> None:
    """Two lists for all 2 prompts x 4 of each of two generations a step: 16 rows scored a step, 8 trained on."""
    if "rollout_func" not in inspect.signature(GRPOTrainer).parameters:
        pytest.skip("this TRL has no rollout_func")
    words, cached = tiny.tokenizer(), [[5, 6, 1], [7, 8, 1]]

    def rollout(prompts: Sequence[str], trainer: Any) -> dict[str, Any]:
        return {
            "prompt_ids": [words(prompt)["input_ids"] for prompt in prompts],
            "completion_ids": [cached[i % 2] for i in range(len(prompts))],
            "logprobs": [[-1.0] * 3 for _ in prompts],
        }

    watched = tiny.trainer(tmp_path / "out", cls=Cached, max_steps=2, extra={"rollout_func": rollout})
    RLMon(watched, RLMonConfig(rlmon_console=False, rlmon_strict=True))
    watched.train()
    log = rlmon.open_run(tmp_path / "out")
    table = log.rollouts().to_pylist()
    assert [record.completions for record in log.step_records()] == [16, 16]
    assert Counter((row["round"], row["trained"]) for row in table) == {
        (r, t): 8 for r in (0, 1) for t in (True, False)
    }
    assert all((row["advantage"] is not None) == row["trained"] for row in table)
    assert not any(record.shed_rows for record in log.step_records())


def test_the_replay_buffer_of_trl(tmp_path: Path) -> None:
    replay = pytest.importorskip("trl.experimental.grpo_with_replay_buffer", reason="in TRL 1.8 to 1.12")
    # One group a step, since TRL replaces rows only where no group of the batch has spread.
    settings = tiny.settings(tmp_path / "out", max_steps=16, per_device_train_batch_size=4).to_dict()
    del settings["generation_batch_size"]
    watched = replay.GRPOWithReplayBufferTrainer(
        args=replay.GRPOWithReplayBufferConfig(**settings, replay_buffer_size=4),
        model=tiny.saved_model(tmp_path),
        reward_funcs=_untied,
        train_dataset=tiny.dataset(),
        processing_class=tiny.tokenizer(),
    )
    RLMon(watched, RLMonConfig(rlmon_console=False, rlmon_dir=str(tmp_path / "log")))
    watched.train()
    log = rlmon.open_run(tmp_path / "log")
    table = log.rollouts().to_pylist()
    assert len(table) == 64
    assert not any(record.faults or record.shed_rows for record in log.step_records())
    assert 0 < sum(row["trained"] for row in table) < 64, "some groups were replaced"
    for row in table:
        assert row["trained"] or row["advantage"] is None
        group = [r["reward"] for r in table if (r["round"], r["group"]) == (row["round"], row["group"])]
        if row["trained"] and row["advantage"]:
            assert row["advantage"] == pytest.approx(_normalised(row["reward"], group), abs=1e-3)


def _untied(completions: Sequence[str], **_: Any) -> list[float]:
    """No two groups with spread weigh the same: TRL's buffer cannot order those that do."""
    return [
        digit and 1 + sum(map(ord, c)) / 1e4 for c, digit in zip(completions, tiny.has_digit(completions), strict=True)
    ]


def _normalised(reward: float, group: Sequence[float]) -> float:
    values = torch.tensor(group)
    return float((reward - values.mean()) / (values.std() + 1e-4))


def test_rows_that_the_log_never_got_are_counted_as_shed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of round 0 fail where they are rendered, of round 1 where they become columns: 8 + 8 of 24 are shed."""
    really_render, really_columns = batches.render_completion, monitor_module.rollout_columns

    def render(completion: Any) -> str:
        if watched.state.global_step == 0:
            raise RuntimeError("odd text")
        return really_render(completion)

    def columns(batch: Any, features: Any, **settings: Any) -> Any:
        if batch.round == 1:
            raise RuntimeError("odd columns")
        return really_columns(batch, features, **settings)

    monkeypatch.setattr(batches, "render_completion", render)
    monkeypatch.setattr(monitor_module, "rollout_columns", columns)
    watched = tiny.trainer(tmp_path / "out", max_steps=3)
    RLMon(watched, RLMonConfig(rlmon_console=False))
    watched.train()
    log = rlmon.open_run(tmp_path / "out")
    assert [record.shed_rows for record in log.step_records()] == [8, 16, 16]
    assert log.rollouts().num_rows == 24 - 16
    assert all(record.faults["runlog.rollouts"] for record in log.step_records()[:2])
    assert not log.step_records()[2].faults


# -- losses ------------------------------------------------------------------------------------------------------------


def own_loss(trainer: Any, model: Any, inputs: Mapping[str, Any]) -> torch.Tensor:
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
    mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
    length = inputs["completion_ids"].shape[1]
    logps = model(input_ids=ids, attention_mask=mask).logits[:, -length - 1 : -1].log_softmax(-1)
    chosen = logps.gather(-1, inputs["completion_ids"].unsqueeze(-1)).squeeze(-1)
    return -(chosen * inputs["completion_mask"] * inputs["advantages"].unsqueeze(1)).mean()


class OwnLoss(GRPOTrainer):
    def _compute_loss(self, model: Any, inputs: Any) -> Any:
        return own_loss(self, model, inputs)


class OwnWholeLoss(GRPOTrainer):
    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        return own_loss(self, model, inputs)


class WithoutEntropies(GRPOTrainer):
    def _compute_loss(self, policy: Any, batch: Any) -> Any:
        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
        mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
        length = batch["completion_ids"].shape[1]
        logps = self._get_per_token_logps_and_entropies(
            policy, input_ids=ids, attention_mask=mask, logits_to_keep=length
        )[0]
        return -(logps * batch["completion_mask"] * batch["advantages"].unsqueeze(1)).mean()

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        return self._compute_loss(policy=model, batch=inputs)


@pytest.mark.parametrize("kind", [OwnLoss, OwnWholeLoss, WithoutEntropies])
def test_a_loss_of_its_own_is_told_once_and_every_null_says_so(
    tmp_path: Path, kind: type, capsys: pytest.CaptureFixture[str]
) -> None:
    stock = tiny.trainer(tmp_path / "stock", cls=kind, max_steps=3)
    stock.train()
    watched = tiny.trainer(tmp_path / "watched", cls=kind, max_steps=3)
    capsys.readouterr()
    RLMon(watched, RLMonConfig(rlmon_base_kl_every=1))
    watched.train()
    assert tiny.same_weights(tiny.weights(stock), tiny.weights(watched))
    told = [line for line in capsys.readouterr().err.splitlines() if "cannot be measured" in line]
    assert len(told) == 1
    assert kind.__name__ in told[0]
    log = rlmon.open_run(tmp_path / "watched")
    table = {row["signal"]: row for row in log.header.capabilities}
    assert table["entropy"]["status"] == "skip"
    sees_logps = kind is WithoutEntropies
    assert table["kl"]["status"] == ("yes" if sees_logps else "skip")
    for record in log.step_records():
        assert not record.faults
        assert record.metrics["rlmon/entropy/mean"] is None
        assert (record.metrics["rlmon/kl/mean"] is not None) == sees_logps
        assert (record.metrics["rlmon/entropy/logp_mean"] is not None) == sees_logps
        unmeasured = [name for name in record.missing if name.startswith(("rlmon/entropy/", "rlmon/kl/mean"))]
        assert all(kind.__name__ in record.missing[name] for name in unmeasured)
        assert record.metrics["rlmon/format/effective"] is not None, "what is sampled is seen all the same"


def test_completions_that_the_loss_masks_are_measured_like_the_others(tmp_path: Path) -> None:
    """The first step of two runs that sample the same: masking what was cut off must change no number of it."""
    logs = {}
    for masks in (False, True):
        out = tmp_path / f"masks-{masks}"
        stock, watched = {}, {}
        for part, weights in (("stock", stock), ("watched", watched)):
            trained = tiny.trainer(out / part, max_steps=2, mask_truncated_completions=masks, max_completion_length=6)
            if part == "watched":
                RLMon(trained, RLMonConfig(rlmon_console=False, rlmon_base_kl_every=1, rlmon_strict=True))
            trained.train()
            weights |= tiny.weights(trained)
        assert tiny.same_weights(stock, watched)
        logs[masks] = rlmon.open_run(out / "watched")
    plain, masked = (logs[masks].step_records()[0] for masks in (False, True))
    rows = logs[True].rollouts().to_pylist()
    assert sum(bool(row["truncated"]) for row in rows) >= 8, "most of them are cut off"
    assert plain.tokens == masked.tokens == sum(row["completion_tokens"] for row in rows if row["round"] == 0)
    for name in ("entropy/mean", "entropy/p20", "entropy/first_5_tokens", "entropy/logp_mean", "health/length_mean"):
        assert masked.metrics[f"rlmon/{name}"] == pytest.approx(plain.metrics[f"rlmon/{name}"], rel=1e-5), name
    passes = logs[True].passes().to_pylist()
    tokens = {(row["round"], row["global_row"]): row["tokens"] for row in passes}
    assert tokens == {(row["round"], row["global_row"]): row["completion_tokens"] for row in rows}
    assert all(row["kl_mean_nats"] is not None for row in passes), "in the comparison with the base, too"
    assert masked.metrics["rlmon/kl/mean"] == pytest.approx(0.0, abs=1e-6)


# -- an environment's text ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("conversational", [False, True])
def test_an_environments_text_is_in_neither_the_count_nor_the_text(tmp_path: Path, conversational: bool) -> None:
    """Each completion: 2 tokens of the model, 3 of the environment, 2 of the model and the end."""
    words = tiny.tokenizer()

    def rollout(prompts: Sequence[Any], trainer: Any) -> dict[str, Any]:
        texts = [prompt if isinstance(prompt, str) else prompt[-1]["content"] for prompt in prompts]
        parts = [("add get", "yes no step", f"{5 + i % 4}", "total <eos>") for i in range(len(prompts))]
        ids = [[token for part in row for token in words(part)["input_ids"]] for row in parts]
        return {
            "prompt_ids": [words(text)["input_ids"] for text in texts],
            "completion_ids": ids,
            "logprobs": [[-1.0] * len(row) for row in ids],
            "env_mask": [[1, 1, 0, 0, 0, 1, 1, 1] for _ in ids],
        }

    watched = tiny.trainer(
        tmp_path / "out", max_steps=2, train=tiny.dataset(conversational=conversational),
        mask_truncated_completions=True, extra={"rollout_func": rollout},
    )  # fmt: skip
    RLMon(watched, RLMonConfig(rlmon_console=False, rlmon_strict=True, rlmon_base_kl_every=1))
    watched.train()
    log = rlmon.open_run(tmp_path / "out")
    table = log.rollouts().to_pylist()
    assert {row["completion"] for row in table} == {f"add get {5 + i} total" for i in range(4)}
    assert {row["completion_tokens"] for row in table} == {5}
    assert [record.tokens for record in log.step_records()] == [40, 40]
