"""Watches TRL's own ``PPOTrainer`` (``trl.experimental.ppo``, TRL 1.8 to 1.12), as far as its loop lets itself be seen.

Its ``train()`` keeps everything in local variables and calls functions of its module by name, so those names are
replaced, from the start of ``train()`` of a watched trainer until it returns or raises. A replacement calls the
original exactly once, outside our own try, and then shows arguments and result to the watched trainers; each takes
only what comes from its own thread, models and tokens. Nothing here runs a forward: the policy's logits come from
generation, those of the base from TRL's forward of its reference.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from rlmon.config import RLMonConfig
from rlmon.errors import AttachError
from rlmon.metrics.prompts import prompt_identity
from rlmon.metrics.sampling import sample_tokens
from rlmon.records import RolloutBatch
from rlmon.trl.base import BaseModel
from rlmon.trl.base_kinds import AdapterOff, Base, TrainersReference
from rlmon.trl.batches import or_none
from rlmon.trl.facts import is_training
from rlmon.trl.legacy_ppo.functions import leave, listen
from rlmon.trl.legacy_ppo.rounds import Comparison, Round
from rlmon.trl.models import tuner_layers
from rlmon.trl.prompts import SourceMap, spread
from rlmon.trl.stored import stored_column
from rlmon.trl.watched import Watched
from rlmon.trl.wrapping import Original

if TYPE_CHECKING:
    from rlmon.monitor import Monitor

PLACE_OF = {
    "batch_generation": "capture.rollouts",
    "forward": "base.forward",
    "get_reward": "capture.rollouts",
    "masked_whiten": "capture.rollouts",
}
"""The module functions that are observed, and the part of the monitor that a failure there counts for."""


class LegacyPPOCapture(Watched):
    """The hooks on one ``trl.experimental.ppo.PPOTrainer``. Its critic lives in local variables.

    Raises ``AttachError`` in ``install`` where its loop already runs.
    """

    recorded_settings = (
        "batch_size", "cliprange", "cliprange_value", "gamma", "kl_coef", "kl_estimator", "lam",
        "local_rollout_forward_batch_size", "missing_eos_penalty", "num_mini_batches", "num_ppo_epochs",
        "response_length", "stop_token", "stop_token_id", "total_episodes", "vf_coef", "whiten_rewards",
    )  # fmt: skip
    evaluates = False
    group_size = 1

    def __init__(self, trainer: Any, config: RLMonConfig) -> None:
        super().__init__(trainer, config)
        self._module = sys.modules[next(filter(_is_trls, type(trainer).__mro__)).__module__]
        self._thread: int | None = None
        """The thread in which ``train()`` runs now."""
        self._sampling = False
        self._saw_generation = False
        self._round: Round | None = None

    @staticmethod
    def takes(trainer: Any) -> bool:
        return any(map(_is_trls, type(trainer).__mro__))

    @staticmethod
    def refuse(trainer: Any, config: RLMonConfig) -> None:
        if config.rlmon_policy is not None:
            raise AttachError(
                "rlmon_policy cannot work with TRL's own PPOTrainer: its loop has nothing that a rule could turn, and "
                "ignores should_training_stop. Use rlmon.trl.PPOTrainer or MonitoredPPOTrainer, or leave it out."
            )
        if config.rlmon_base_sample:
            raise AttachError(
                "rlmon_base_sample cannot work with TRL's own PPOTrainer: it samples in the middle of its loop, where "
                "nobody else can call it. Use rlmon.trl.PPOTrainer or MonitoredPPOTrainer, or leave it out."
            )
        if config.success is not None:
            config.success.refuse_unknown(["reward_model"])

    @property
    def policy(self) -> Any:
        return super().policy.policy

    def plan(self) -> list[dict[str, str]]:
        assert self.base is not None
        return plan(self.trainer.args, self.config, self.base)

    def choose_base(self) -> BaseModel:
        """TRL's reference, where it is the policy as it starts. Raises ``AttachError`` for a base asked for by name
        that this loop cannot show."""
        trainer, config, policy = self.trainer, self.config, self.policy
        own: Base = AdapterOff() if trainer.ref_model is None else TrainersReference.held_by(trainer)
        asked = config.rlmon_base_kl
        if config.rlmon_base_model is not None or asked not in ("auto", "off", own.kind):
            wanted = f"rlmon_base_kl={asked}" if config.rlmon_base_model is None else "rlmon_base_model"
            raise AttachError(
                f"{wanted} cannot work with TRL's PPOTrainer: its loop shows no base but its own reference "
                f"({own.kind}). Use rlmon_base_kl: auto."
            )
        refusal = "rlmon_base_kl is off" if asked == "off" else _reference_refusal(trainer, policy)
        if refusal is not None and asked == own.kind:
            raise AttachError(f"rlmon_base_kl={asked} cannot work here ({refusal}). Use rlmon_base_kl: auto.")
        seen = SimpleNamespace(accelerator=trainer.accelerator, model=policy, args=trainer.args)
        return BaseModel(seen, config, None if refusal is not None else own, refusal or "")

    def build_sources(self) -> SourceMap:
        """Strata by template of the decoded prompts: the loop shows token ids only. Raises ``AttachError`` where a
        column was asked for by name."""
        if self.config.rlmon_source_column is not None:
            raise AttachError(
                "rlmon_source_column cannot work with TRL's PPOTrainer: its loop shows token ids, not dataset rows. "
                "Leave it out, or use rlmon.trl.PPOTrainer."
            )
        trainer = self.trainer
        ids = stored_column(trainer.train_dataset, "input_ids")
        if ids is None:
            return SourceMap(None, frozenset(), "all")
        decode = trainer.processing_class.decode
        prompts = [decode(ids[i], skip_special_tokens=True) for i in spread(len(ids))]
        return SourceMap.of_prompts(prompts, int(trainer.args.batch_size))

    def install(self) -> None:
        trainer = self.trainer
        missing = [name for name in PLACE_OF if not callable(getattr(self._module, name, None))]
        if missing:
            raise AttachError(
                f"This PPOTrainer's module has no {', '.join(missing)}: it is not the loop of TRL 1.8 to 1.12 that "
                "rlmon knows. Use rlmon.trl.PPOTrainer."
            )
        if is_training(trainer):
            raise AttachError(
                "TRL's PPOTrainer is in train() already, and its loop can only be watched from its start. Type "
                "RLMon(trainer) after building it, in place of callbacks=[RLMon()]."
            )
        self.hook("train", self._around_train)
        self.hook("generate_completions", self._around_samples)
        if self.config.rlmon_console and trainer.accelerator.is_main_process:
            print(notice(), file=sys.stderr, flush=True)

    def uninstall(self) -> None:
        self._leave()
        super().uninstall()

    def step_ends(self) -> None:
        monitor = self.monitor
        if monitor is None:
            return
        self._finish(monitor)
        if not self._saw_generation:
            monitor.fault("capture.rollouts", "a step ended whose generation was not seen")
        self._saw_generation = False

    # -- train() and what it calls ---------------------------------------------------------------------------------

    def _around_train(self, original: Original, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._thread = threading.get_ident()
        listen(self._module, PLACE_OF, self.saw)
        try:
            return original(*args, **kwargs)
        finally:
            self._leave()

    def _leave(self) -> None:
        leave(self._module, self.saw)
        self._thread = None
        if self.monitor is not None:
            self._finish(self.monitor)

    def _around_samples(self, original: Original, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._sampling = True
        try:
            return original(*args, **kwargs)
        finally:
            self._sampling = False

    def saw(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        """Take one call of a module function, if it is one of our trainer's updates. Never raises."""
        monitor = self.monitor
        if monitor is None or self._sampling or self._thread != threading.get_ident():
            return
        with monitor.guard(PLACE_OF[name]), torch.no_grad():
            getattr(self, f"_{name}")(monitor, result, *args, **kwargs)

    def _batch_generation(
        self, monitor: Monitor, result: Any, model: Any, queries: torch.Tensor, *args: Any, **kwargs: Any
    ) -> None:
        if model is not self.policy:
            return
        self._finish(monitor)
        self._saw_generation = True
        trainer, base = self.trainer, self.base
        sequences_BL, logits_BTV = result
        monitor.journal.expect_rows(len(sequences_BL))
        round_ = self._round = Round.begin(
            monitor.next_round("train"),
            trainer.state.global_step,
            queries,
            sequences_BL,
            stop=trainer.stop_token_id,
            pad=trainer.processing_class.pad_token_id,
        )
        with monitor.guard("capture.tokens"):
            round_.measure(logits_BTV)
        if base is not None and base.active and round_.step % self.config.rlmon_base_kl_every == 0:
            with monitor.guard("base.forward"):
                first = self.first_row(len(round_))
                identity_B = [(round_.number, first + row) for row in range(len(round_))]
                chosen_BT, weight_B = sample_tokens(round_.own_BT.cpu().numpy(), identity_B, base.max_tokens)
                chosen = torch.as_tensor(chosen_BT, device=round_.own_BT.device)
                round_.comparison = Comparison(logits_BTV, weight_B, chosen)

    def _forward(
        self, monitor: Monitor, result: Any, model: Any, query_responses: torch.Tensor, *args: Any, **kwargs: Any
    ) -> None:
        round_, trainer = self._round, self.trainer
        if round_ is None or round_.comparison is None or round_.comparison.logits_BTV is None:
            return
        reference = self.policy if trainer.ref_model is None else trainer.ref_model
        if trainer.accelerator.unwrap_model(model) is trainer.accelerator.unwrap_model(reference):
            began = time.thread_time()
            temperature = float(trainer.args.temperature) + 1e-7
            round_.comparison.take(round_, query_responses, result.logits, temperature)
            round_.comparison.seconds += time.thread_time() - began

    def _get_reward(
        self, monitor: Monitor, result: Any, model: Any, query_responses: torch.Tensor, *args: Any, **kwargs: Any
    ) -> None:
        if self._round is not None and model is self.trainer.reward_model:
            self._round.take_scores(query_responses, result[1])

    def _masked_whiten(
        self, monitor: Monitor, result: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, shift_mean: bool = True
    ) -> None:
        round_ = self._round
        # Rewards are whitened in place, without the shift; advantages come last.
        if round_ is None or not shift_mean or not torch.equal(mask, round_.trained_BT):
            return
        round_.advantages_BT = torch.where(mask, result, torch.zeros_like(result))
        self._finish(monitor)

    # -- one round -------------------------------------------------------------------------------------------------

    def _finish(self, monitor: Monitor) -> None:
        round_, self._round = self._round, None
        if round_ is None:
            return
        with monitor.guard("capture.rollouts"):
            monitor.observe(self._batch(monitor, round_))
        rows_B2 = [[round_.number, row] for row in range(len(round_))]
        with monitor.guard("capture.tokens"):
            if round_.entropies_BT is not None:
                monitor.observe_tokens(
                    split="train",
                    rows_B2=rows_B2,
                    logps_BT=round_.logps_BT,
                    entropies_BT=round_.entropies_BT,
                    mask_BT=round_.own_BT,
                    advantages_B=round_.advantages_BT,
                )
        comparison = round_.comparison
        if comparison is None:
            return
        with monitor.guard("base.forward"):
            monitor.observe_kl(
                rows_b2=rows_B2,
                sampled_b=comparison.chosen_BT.sum(1).cpu().numpy(),
                tokens_b=round_.own_BT.sum(1).cpu().numpy(),
                weight_b=comparison.weight_B,
                result=comparison.result(),
                seconds=comparison.seconds,
            )

    def _batch(self, monitor: Monitor, round_: Round) -> RolloutBatch:
        trainer = self.trainer
        rows = len(round_)
        first = self.first_row(rows)
        processing = trainer.processing_class
        ids, lengths = round_.responses_BT.cpu().numpy().astype(np.int32), round_.own_BT.sum(1).tolist()
        completion_ids = [row[:length] for row, length in zip(ids, lengths, strict=True)]
        queries = round_.queries_BP.cpu().numpy().astype(np.int32)
        prompt_ids = [row[row != processing.pad_token_id] for row in queries]
        prompts = processing.batch_decode([row.tolist() for row in prompt_ids], skip_special_tokens=True)
        completions = processing.batch_decode([row.tolist() for row in completion_ids], skip_special_tokens=True)
        rewards: dict[str, Sequence[float | None]] = {}
        reward: list[float | None] = [None] * rows
        if round_.scored == rows:
            scores_B = torch.cat(round_.scores).double().cpu()
            rewards["reward_model"] = or_none(scores_B)
            penalty = trainer.args.missing_eos_penalty
            if penalty is not None:
                endless_B = ~(round_.scored_BT == processing.eos_token_id).any(1).cpu()
                penalties_B = torch.where(endless_B, -float(penalty), 0.0).double()
                rewards["missing_eos_penalty"] = or_none(penalties_B)
                scores_B = scores_B + penalties_B
            reward = or_none(scores_B)
        else:
            monitor.fault("capture.rollouts", "the reward model's scores of a round were not seen")
        truncated: list[bool | None] = [None] * rows
        if trainer.stop_token_id is not None:
            truncated = (~round_.stopped_B).tolist()
        return RolloutBatch(
            round=round_.number,
            split="train",
            step=round_.step + 1,
            group_size=1,
            global_row=list(range(first, first + rows)),
            prompt_id=[prompt_identity(prompt) for prompt in prompts],
            source=[self.sources.source_of({"prompt": prompt}) for prompt in prompts],
            prompts=prompts,
            completions=completions,
            prompt_ids=prompt_ids,
            completion_ids=completion_ids,
            rewards=rewards,
            reward=reward,
            advantages=round_.mean_advantages(),
            truncated=truncated,
            policy_version=[round_.step] * rows,
        )


def _is_trls(kind: type) -> bool:
    """Whether this is TRL's own class: its module holds the functions that ``train()`` calls."""
    return kind.__module__.startswith("trl.experimental.ppo.") and kind.__name__ == "PPOTrainer"


def _reference_refusal(trainer: Any, policy: Any) -> str | None:
    """Why TRL's reference would not be the policy as it starts."""
    if trainer.ref_adapter_name:
        return "ref_adapter_name makes another adapter the reference"
    tuners = tuner_layers(policy)
    if tuners:
        refusal = AdapterOff.refusal(policy, tuners, True)
        if refusal is not None or trainer.ref_model is None:
            return refusal
        policy = policy.get_base_model()
    own = {name.replace("base_layer.", ""): tensor for name, tensor in policy.named_parameters()}
    for name, tensor in trainer.ref_model.named_parameters():
        mine = own.get(name)
        if mine is None or mine.shape != tensor.shape:
            return f"ref_model is another model than the policy ({name})"
        if mine.numel() == 0:
            return "weights are sharded, so that ref_model cannot be compared with the policy"
        # A few values of every tensor: equal for equal models, cheap at any size.
        if not torch.equal(*(values.detach().reshape(-1)[:16].float().cpu() for values in (mine, tensor))):
            return f"ref_model is not the policy as it starts (weights differ: {name})"
    return None


SKIPS = (
    ("group", "one completion a prompt: a group of one has no spread"),
    ("within prompt", "one completion a prompt: what is compared lies across prompts"),
    ("passes", "a round is seen once, at generation, not in each of num_ppo_epochs"),
    ("critic", "values and their loss stay in local variables of TRL's loop"),
    ("interventions", "the loop calls nothing before a step and ignores should_training_stop"),
    ("resume", "train() of this trainer takes no checkpoint; each checkpoint holds rlmon's state all the same"),
    ("mirror", "TRL logs a step before it says that it ended: use rlmon_wandb for rlmon's own scalars"),
    ("source column", "the loop shows token ids, not dataset rows: sources are templates of the decoded prompts"),
    ("eval", "generate_completions samples at temperature 0.01 for the eye, and is left out"),
)


def notice() -> str:
    """One line for a person: what cannot be seen."""
    signals = ", ".join(signal for signal, _ in SKIPS)
    return f"rlmon: TRL's PPOTrainer is watched without {signals} (reasons: run.json). rlmon.trl.PPOTrainer has them."


def plan(args: Any, config: RLMonConfig, base: BaseModel) -> list[dict[str, str]]:
    """Rows of ``{"signal", "status", "reason"}`` for its ``PPOConfig`` and our own settings."""
    seen = [
        ("rollouts", "every sampled completion once, when its advantages are known"),
        ("format, text, moves", "from the completions of each update, one a prompt"),
        ("reward", "score of the reward model, less missing_eos_penalty where that is set"),
        ("entropy", "exact, full vocabulary, of the distribution that each token was drawn from"),
        ("advantages", "row means of the whitened token advantages"),
        ("several processes", "rows are local to a rank and added like those of other trainers"),
    ]
    skipped = list(SKIPS)
    if args.stop_token is None and args.stop_token_id is None:
        skipped.insert(0, ("truncated", "no stop_token: every completion has response_length tokens"))
    else:
        seen.append(("truncated", "completions without the stop token"))
    if not base.active:
        skipped.insert(0, ("kl", base.reason))
    else:
        bound = f"every {config.rlmon_base_kl_every} steps, at most {config.rlmon_base_kl_tokens} tokens"
        seen.append(("kl", f"{base.kind}, from the forward that TRL runs anyway; {bound}"))
    if config.rlmon_store_text != "full":
        skipped.append(("text in the log", f"rlmon_store_text is {config.rlmon_store_text}"))
    return [
        {"signal": signal, "status": status, "reason": reason}
        for status, rows in (("yes", seen), ("skip", skipped))
        for signal, reason in rows
    ]
