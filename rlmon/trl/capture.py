"""Reads what TRL's GRPO and RLOO trainers compute anyway, without changing it.

The trainer's bound methods are wrapped on the *instance*: nothing in TRL is patched, and ``detach`` restores the
trainer by deleting instance attributes. Every wrapper calls the original exactly once, outside its own try: the
user's exceptions pass through untouched, and a failure of ours is a counted fault while the value that TRL computed
is returned.

TRL shuffles rows after scoring, so each row's identity travels with the tensors: a ``(B, 2)`` tensor of
(round, local row) is added to the generated batch, which TRL shuffles and splits in unison with the rest.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate.utils import gather_object

from rlmon.config import RLMonConfig
from rlmon.metrics.prompts import prompt_identity, render_completion, render_prompt
from rlmon.records import RolloutBatch, Split
from rlmon.trl import mirror
from rlmon.trl.base import BaseModel
from rlmon.trl.ppo.config import PPO_SETTINGS
from rlmon.trl.prompts import SourceMap

if TYPE_CHECKING:
    from rlmon.monitor import Monitor
    from rlmon.trl.helm import Helm

ROWS_KEY = "rlmon_rows"
WRAPPED = (
    "_generate_and_score_completions",
    "_calculate_rewards",
    "_get_per_token_logps_and_entropies",
    "_compute_loss",
)
CRITIC = "_compute_value_loss"
"""Wrapped too where the trainer has a critic."""


@dataclass
class _Scored:
    """Arguments and result of ``_calculate_rewards``: the only place where texts and raw rewards meet."""

    prompts: Sequence[Any]
    completions: Sequence[Any]
    completion_ids: Sequence[Sequence[int]]
    rewards_NF: torch.Tensor | None = None


@dataclass
class _Loss:
    """What one call of ``_compute_loss`` showed."""

    inputs: Mapping[str, Any]
    policy_call: tuple[tuple[Any, ...], dict[str, Any]] | None = None
    result: Any = None
    """What ``_get_per_token_logps_and_entropies`` returned: a tuple of two before TRL 1.8, of three since."""
    tapped: list[torch.Tensor] = field(default_factory=list)
    """Last hidden states of the policy, where a base measurement asked for them."""


class Capture:
    """The hooks on one trainer; holds no strong reference to it."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = weakref.ref(trainer)
        self.monitor: Monitor | None = None
        self.base: BaseModel | None = None
        self.sources = SourceMap(None, frozenset(), "all")
        self._scored: _Scored | None = None
        self._loss: _Loss | None = None
        self._unidentified: _Unidentified | None = None
        self._base_due = False
        self.helm: Helm | None = None
        """What the rules turn in this trainer; ``None`` where it is only watched."""

    @property
    def trainer(self) -> Any:
        trainer = self._trainer()
        if trainer is None:
            raise RuntimeError("the monitored trainer is gone")
        return trainer

    def install(self) -> None:
        trainer = self.trainer
        trainer._generate_and_score_completions = self._wrap("_generate_and_score_completions", self._generate)
        trainer._calculate_rewards = self._wrap("_calculate_rewards", self._rewards)
        trainer._get_per_token_logps_and_entropies = self._wrap("_get_per_token_logps_and_entropies", self._logps)
        trainer._compute_loss = self._wrap("_compute_loss", self._compute_loss)
        if hasattr(trainer, CRITIC):
            setattr(trainer, CRITIC, self._wrap(CRITIC, self._compute_value_loss))

    def uninstall(self) -> None:
        trainer = self._trainer()
        if trainer is not None:
            for name in (*WRAPPED, CRITIC):
                trainer.__dict__.pop(name, None)

    def _wrap(self, name: str, around: Callable[..., Any]) -> Callable[..., Any]:
        original = getattr(self.trainer, name)

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            return around(original, *args, **kwargs)

        wrapper.__name__ = wrapper.__qualname__ = name
        wrapper.__doc__ = original.__doc__
        wrapper.rlmon_wraps = original  # type: ignore[attr-defined]
        return wrapper

    # -- what differs from other loops -----------------------------------------------------------------------------

    @property
    def critic(self) -> bool:
        """Whether the trainer has a critic, whose values are seen here."""
        return hasattr(self.trainer, CRITIC)

    @property
    def group_size(self) -> int:
        size: int = self.trainer.num_generations
        return size

    @property
    def recorded_settings(self) -> tuple[str, ...]:
        """Settings of the trainer for the run's header, beside those that all of them have."""
        return PPO_SETTINGS if self.critic else ()

    def choose_base(self, config: RLMonConfig) -> BaseModel:
        return BaseModel.choose(self.trainer, config, initial_weights=self.trainer.state.global_step == 0)

    def build_sources(self, config: RLMonConfig) -> SourceMap:
        args = self.trainer.args
        prompts = (args.generation_batch_size or 1) // max(1, args.num_generations)
        return SourceMap.build(getattr(self.trainer, "train_dataset", None), config.rlmon_source_column, prompts)

    def _learn_sources(self, inputs: Sequence[Mapping[str, Any]]) -> None:
        """From the first training round of all ranks; each prompt once, wherever its group lies."""
        first = self.trainer.accelerator.process_index * len(inputs)
        rows = [row for i, row in enumerate(inputs) if (first + i) % self.group_size == 0]
        self.sources.learn(rows, gather_object)

    def step_ends(self) -> None:
        """Nothing: each round is handed over where it is scored."""

    def mirror(self, values: Mapping[str, float]) -> None:
        """Put these among the trainer's own metrics."""
        mirror.add(self.trainer._metrics["train"], values)

    # -- generation ------------------------------------------------------------------------------------------------

    def _generate(
        self, original: Callable[..., Any], inputs: Sequence[Mapping[str, Any]], *args: Any, **kw: Any
    ) -> Any:
        self._scored = None
        monitor, helm = self.monitor, self.helm
        if monitor is not None and self.sources.learning and self.split() == "train":
            with monitor.guard("capture.rollouts"):
                self._learn_sources(inputs)
        if monitor is not None and helm is not None:
            inputs = helm.draws(monitor, inputs)
        try:
            output = original(inputs, *args, **kw)
        finally:
            scored, self._scored = self._scored, None
        if monitor is not None:
            batch = None
            with monitor.guard("capture.rollouts"):
                batch = self._observe_rollouts(monitor, inputs, output, scored)
            if helm is not None:
                helm.rollouts(monitor, batch, output)
        return output

    def _rewards(
        self, original: Callable[..., Any], inputs: Any, prompts: Any, completions: Any, completion_ids: Any,
        *args: Any, **kw: Any,
    ) -> Any:  # fmt: skip
        rewards_NF = original(inputs, prompts, completions, completion_ids, *args, **kw)
        if self.monitor is not None:
            self._scored = _Scored(prompts, completions, completion_ids, rewards_NF)
        return rewards_NF

    def split(self) -> Split:
        return "train" if self.trainer.model.training else "eval"

    def _observe_rollouts(
        self, monitor: Monitor, inputs: Sequence[Mapping[str, Any]], output: dict[str, Any], scored: _Scored | None
    ) -> RolloutBatch:
        split = self.split()
        number = monitor.next_round(split)
        rows = len(inputs)
        # Identity first: even if the rest fails, token statistics of this round must not land on another one.
        advantages = output["advantages"]
        identity = torch.stack(
            [torch.full((rows,), number, dtype=torch.int64), torch.arange(rows, dtype=torch.int64)], dim=1
        )
        output[ROWS_KEY] = identity.to(advantages.device)
        if scored is None:
            raise RuntimeError("TRL returned a generation without calling _calculate_rewards")
        batch = self._batch(split, number, inputs, output, scored)
        monitor.observe(batch)
        return batch

    def _batch(
        self, split: Split, number: int, inputs: Sequence[Mapping[str, Any]], output: Mapping[str, Any], scored: _Scored
    ) -> RolloutBatch:
        trainer = self.trainer
        rows = len(inputs)
        first = trainer.accelerator.process_index * rows
        group_size = trainer.num_generations if split == "train" else trainer.num_generations_eval
        assert scored.rewards_NF is not None
        rewards_NF = scored.rewards_NF.to("cpu", torch.float64)
        weights_F = trainer.reward_weights.to("cpu", torch.float64)
        local_BF = rewards_NF[first : first + rows]
        # Arrays, not lists of integers: at thousands of tokens a row, boxing every id would cost more than the metrics.
        completion_ids = [np.asarray(ids, dtype=np.int32) for ids in scored.completion_ids]
        own_ids = completion_ids
        if output.get("tool_mask") is not None:
            kept_BT = output["tool_mask"].to("cpu").bool().numpy()
            own_ids = [ids[kept[: len(ids)]] for ids, kept in zip(completion_ids, kept_BT, strict=True)]
        prompt_mask_BT = output["prompt_mask"].to("cpu").bool().numpy()
        prompt_ids_BT = output["prompt_ids"].to("cpu", torch.int32).numpy()
        prompt_ids = [ids[mask] for ids, mask in zip(prompt_ids_BT, prompt_mask_BT, strict=True)]
        advantages = output["advantages"].detach().to("cpu", torch.float64)
        if advantages.dim() > 1:  # token-level advantages: a row is represented by the mean over its own tokens
            mask_BT = output["completion_mask"].to("cpu", torch.float64)
            if output.get("tool_mask") is not None:
                mask_BT = mask_BT * output["tool_mask"].to("cpu", torch.float64)
            advantages = (advantages * mask_BT).sum(1) / mask_BT.sum(1).clamp(min=1)
        ends = terminal_ids(trainer)
        step = trainer.state.global_step
        names = unique_names(trainer.reward_func_names)
        totals_N = _weighted(rewards_NF, weights_F)
        return RolloutBatch(
            round=number,
            split=split,
            step=step + 1 if split == "train" else step,
            group_size=group_size,
            global_row=list(range(first, first + rows)),
            prompt_id=[prompt_identity(prompt) for prompt in scored.prompts],
            source=[self.sources.source_of(row) for row in inputs],
            prompts=[render_prompt(prompt) for prompt in scored.prompts],
            completions=[render_completion(completion) for completion in scored.completions],
            prompt_ids=prompt_ids,
            completion_ids=own_ids,
            rewards={name: _or_none(local_BF[:, i]) for i, name in enumerate(names)},
            reward=totals_N[first : first + rows],
            round_reward=totals_N,
            round_rewards={name: _or_none(rewards_NF[:, i]) for i, name in enumerate(names)},
            reward_weights=dict(zip(names, weights_F.tolist(), strict=True)),
            advantages=_or_none(advantages),
            truncated=[not len(ids) or int(ids[-1]) not in ends for ids in completion_ids],
            policy_version=[step] * rows,
        )

    # -- loss ------------------------------------------------------------------------------------------------------

    def _compute_loss(self, original: Callable[..., Any], model: Any, inputs: Any, *args: Any, **kw: Any) -> Any:
        monitor = self.monitor
        if monitor is None:
            return original(model, inputs, *args, **kw)
        with contextlib.ExitStack() as stack:
            if self.helm is not None:
                # Before anything listens: the reference of an adapter is a forward of the policy's own modules.
                stack.enter_context(self.helm.loss(monitor, inputs))
            loss = self._loss = _Loss(inputs)
            stack.callback(setattr, self, "_loss", None)
            if self._base_due and self.base is not None and self.split() == "train":
                with monitor.guard("base.tap"):
                    stack.enter_context(self.base.tap_policy(loss.tapped))
            value = original(model, inputs, *args, **kw)
        with monitor.guard("capture.tokens"):
            self._observe_tokens(monitor, loss, value)
        if self.helm is not None:
            value = self.helm.add_to_loss(monitor, value, inputs, loss.result)
        return value

    def _logps(self, original: Callable[..., Any], model: Any, *args: Any, **kw: Any) -> Any:
        result = original(model, *args, **kw)
        loss = self._loss
        if loss is not None and loss.policy_call is None and kw.get("compute_entropy"):
            loss.policy_call = (args, kw)
            loss.result = result
        return result

    def _compute_value_loss(
        self, original: Callable[..., Any], values_BT: torch.Tensor, inputs: Mapping[str, Any]
    ) -> Any:
        result = original(values_BT, inputs)
        monitor = self.monitor
        if monitor is not None:
            with monitor.guard("metrics.values"):
                monitor.observe_values(
                    split=self.split(),
                    values_BT=inputs["values"],
                    returns_BT=inputs["rewards_to_go"],
                    advantages_BT=inputs["advantages"],
                    mask_BT=inputs["value_mask"],
                    loss=result[0].detach(),
                    clip_ratio=result[1].detach(),
                )
        return result

    def _observe_tokens(self, monitor: Monitor, loss: _Loss, value: torch.Tensor) -> None:
        split = self.split()
        inputs = loss.inputs
        if loss.result is None or loss.result[1] is None:
            raise RuntimeError("TRL computed a loss without per-token entropies")
        logps_BT, entropies_BT = loss.result[0].detach(), loss.result[1].detach()
        rows_B2 = inputs.get(ROWS_KEY)
        if rows_B2 is None and self._unidentified is not None:
            with monitor.guard("capture.rollouts"):
                self._unidentified.complete(self, monitor)
            rows_B2 = self._unidentified.identify(inputs)
        if rows_B2 is None:
            raise RuntimeError("a training batch carries no row identity")
        mask_BT = inputs["completion_mask"]
        if inputs.get("tool_mask") is not None:
            mask_BT = mask_BT * inputs["tool_mask"]
        monitor.observe_tokens(
            split=split,
            rows_B2=rows_B2.to("cpu").tolist(),
            logps_BT=logps_BT,
            entropies_BT=entropies_BT,
            mask_BT=mask_BT,
            advantages_B=inputs["advantages"],
            loss=value.detach(),
        )
        if self._base_due and split == "train" and self.base is not None:
            self._base_due = False
            with monitor.guard("base.forward"):
                self.base.measure(monitor, loss.policy_call, loss.tapped, logps_BT, rows_B2, mask_BT)

    # -- base model ------------------------------------------------------------------------------------------------

    def step_begins(self, global_step: int, every: int) -> None:
        """Decide, from the step number alone and so alike on all ranks, whether this step measures the base."""
        self._base_due = self.base is not None and self.base.active and global_step % every == 0

    def expect_unidentified_round(
        self, prompts: Sequence[Any], completions: Sequence[Any], completion_ids: Any, rows: Sequence[Mapping[str, Any]]
    ) -> None:
        """Take a round whose generation began before the hooks were in place (see ``rlmon.trl.probe``)."""
        if self.sources.learning and self.monitor is not None:
            with self.monitor.guard("capture.rollouts"):
                self._learn_sources(rows)
        self._unidentified = _Unidentified(_Scored(prompts, completions, completion_ids), rows)


class _Unidentified:
    """The first round of a run that the probe joined while it was being scored.

    Rewards of the other functions and advantages were not known yet; TRL keeps them for its completions table, and
    that table holds exactly this one generation when its first loss is computed.
    """

    def __init__(self, scored: _Scored, rows: Sequence[Mapping[str, Any]]) -> None:
        self.scored = scored
        self.rows = rows
        self.round: int | None = None

    def complete(self, capture: Capture, monitor: Monitor) -> None:
        if self.round is not None:
            return
        trainer = capture.trainer
        self.round = monitor.next_round("train")
        logs = trainer._logs
        rewards_NF = torch.tensor(
            [list(logs["rewards"][name]) for name in trainer.reward_func_names], dtype=torch.float64
        ).T
        n = len(self.rows)
        first = trainer.accelerator.process_index * n
        advantages = torch.tensor(list(logs["advantages"])[first : first + n], dtype=torch.float64)
        self.scored.rewards_NF = rewards_NF
        prompt_ids = [[0]] * n
        output = {
            "advantages": advantages,
            "prompt_ids": torch.tensor(prompt_ids),
            "prompt_mask": torch.ones((n, 1)),
        }
        monitor.observe(capture._batch("train", self.round, self.rows, output, self.scored))

    def identify(self, inputs: Mapping[str, Any]) -> torch.Tensor | None:
        """Rows of a shuffled batch found again by their token ids."""
        if self.round is None:
            return None
        unused: dict[tuple[int, ...], list[int]] = {}
        for row, ids in enumerate(self.scored.completion_ids):
            unused.setdefault(tuple(ids), []).append(row)
        found = []
        for ids, mask in zip(
            inputs["completion_ids"].to("cpu"), inputs["completion_mask"].to("cpu").bool(), strict=True
        ):
            rows = unused.get(tuple(ids[mask].tolist()))
            if not rows:
                return None
            found.append([self.round, rows.pop(0) if len(rows) > 1 else rows[0]])
        return torch.tensor(found)


def terminal_ids(trainer: Any) -> frozenset[int]:
    """Token ids after which TRL counts a completion as finished; TRL 1.15 made a list of the single end."""
    ends = getattr(trainer, "eos_token_ids", None)
    if ends is None:
        ends = [getattr(trainer, "eos_token_id", trainer._tokenizer.eos_token_id)]
    return frozenset(end for end in [*ends, trainer._tokenizer.pad_token_id] if end is not None)


def unique_names(names: Sequence[str]) -> list[str]:
    """Reward function names, numbered where two functions share one."""
    seen: dict[str, int] = {}
    unique = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        unique.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
    return unique


def _or_none(values: torch.Tensor) -> list[float | None]:
    return [None if value != value else value for value in values.tolist()]


def _weighted(rewards_NF: torch.Tensor, weights_F: torch.Tensor) -> list[float | None]:
    """Weighted sum per row over the functions that scored it; ``None`` where none did."""
    unscored_N = torch.isnan(rewards_NF).all(dim=1)
    totals_N = (rewards_NF * weights_F).nansum(dim=1)
    return [None if bad else total for bad, total in zip(unscored_N.tolist(), totals_N.tolist(), strict=True)]
