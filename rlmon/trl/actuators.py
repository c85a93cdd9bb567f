"""What a policy turns in a TRL trainer: its coefficients, the rows that it draws, its advantages, its loss, its end.

The rules decide in ``rlmon.controller``; here their actions meet the trainer. Nothing raises into the loop: a part that
fails is reported to the controller, which puts its rule at rest on all ranks.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import TrainerControl, TrainerState

from rlmon.config import RLMonConfig
from rlmon.extensions import Extensions
from rlmon.interventions.anchor import Anchor
from rlmon.interventions.intervention import Intervention, Turns
from rlmon.interventions.policy import Policy
from rlmon.records import Action, RolloutBatch
from rlmon.restored import Restored
from rlmon.trl.anchor import AnchorStore
from rlmon.trl.checkpoint import STATE_FOLDER, read_json, write_json
from rlmon.trl.coefficients import Coefficients
from rlmon.trl.draws import Draws, continue_order
from rlmon.trl.ppo.config import PPOConfig
from rlmon.trl.prompts import SourceMap
from rlmon.trl.ranks import of_rank_0
from rlmon.trl.setting import refuse, setting_of_trainer

if TYPE_CHECKING:
    from rlmon.interventions.row_effect import RowEffect
    from rlmon.monitor import Monitor
    from rlmon.trl.base import BaseModel


ROLLED_BACK = "rolled_back.json"
"""In a checkpoint's rlmon folder: a run came back to it, which happens once."""


class TrainerActuators:
    """The ``Actuators`` (``rlmon.controller.Actuators``) of one TRL trainer.

    Raises ``AttachError``, before the first step, where a rule asks for what cannot work with this trainer.
    """

    def __init__(
        self,
        trainer: Any,
        base: BaseModel,
        policy: Policy,
        sources: SourceMap,
        config: RLMonConfig,
        extensions: Extensions,
    ) -> None:
        self.policy = policy
        acting = [rule.action for rule in policy.rules if not rule.dry_run]
        self._coefficients = Coefficients(trainer, base)
        self.notes = refuse(policy, setting_of_trainer(trainer, base, config, extensions, self._coefficients.lacks()))
        """What is odd about the policy here, and possible."""
        self._coefficients.prepare(acting)
        self._draws = next(
            (Draws(trainer, action, sources.source_of) for action in acting if action.turns == "draws"), None
        )
        self.may_roll_back = any(action.turns == "roll_back" for action in acting)
        self._keeps_text = config.rlmon_store_text == "full"
        self._anchor = next((AnchorStore(action) for action in acting if isinstance(action, Anchor)), None)
        self._ends: Action | None = None
        """The action that ends training: ``stop`` or ``roll back``."""
        self._save_waits = False
        self._returned = False
        self._begun = False
        self._folder: Path | None = None
        self._marked: tuple[str, str, float | None] | None = None
        """Rule, reason and new ``beta`` of a roll back to the checkpoint that the run resumes from."""
        self._given = dict(self._coefficients.values())

    @property
    def trainer(self) -> Any:
        """The trainer; the coefficients hold it, weakly."""
        return self._coefficients.trainer

    @property
    def capabilities(self) -> list[dict[str, str]]:
        """Rows for the run's table of capabilities: the rules that have nothing to do here, and what is odd."""
        return [
            {"signal": f"rule {note.rule}", "status": "skip" if note.idle else "yes", "reason": note.text}
            for note in self.notes
        ]

    @contextlib.contextmanager
    def _part(self, monitor: Monitor, turns: Turns) -> Iterator[None]:
        """Turning this: what fails inside puts the rules that do at rest on all ranks, and is a counted fault."""
        with monitor.guard("interventions"):
            try:
                yield
            except Exception as error:
                if monitor.controller is not None:
                    monitor.controller.fail(turns, f"{type(error).__name__}: {error}")
                raise

    @property
    def _in_mid_round(self) -> bool:
        """Whether TRL has rows buffered that it has still to train on."""
        trainer = self.trainer
        reuse = int(trainer.args.steps_per_generation) * int(trainer.num_iterations)
        return int(trainer._step) % reuse != 0

    @property
    def _training(self) -> bool:
        return bool(self.trainer.model.training)

    # -- what is turned -----------------------------------------------------------------------------------------------

    def values(self) -> Mapping[str, float]:
        return self._coefficients.values()

    def apply(self, action: Action, settings: Intervention) -> None:
        # What turns advantages, draws or the loss acts by the level of its rule.
        if settings.turns == "beta":
            self._turn_beta(float(action.new or 0.0))
        elif settings.turns == "entropy_coef":
            value = float(action.new or 0.0)
            if self._coefficients.adaptive_entropy:
                self._coefficients.set_entropy_target(value)
            else:
                self._turn_entropy_coef(value)
        elif settings.turns == "reference":
            self._coefficients.reset_reference()
        elif settings.turns == "stop":
            self._ends = action
        elif settings.turns == "roll_back":
            if self._returned:
                raise RuntimeError("the run was rolled back before, and a second time would only repeat the third")
            if self._checkpoint_before(action.step) is None:
                raise RuntimeError(f"there is no checkpoint from before step {action.step} (save_steps)")
            self._ends = action

    def _turn_beta(self, value: float) -> None:
        """Where it cannot be turned, the policy stands in for the reference (a KL of zero) until all ranks know: TRL's
        collectives depend on ``beta``, so that ranks on which it differs would wait for each other for ever."""
        try:
            self._coefficients.set_beta(value)
        except Exception:
            self._coefficients.stand_in_reference(value)
            raise

    def _turn_entropy_coef(self, value: float) -> None:
        """As with ``beta``: whether there is a bonus decides over a collective of TRL's loss."""
        try:
            self._coefficients.set_entropy_coef(value)
        except Exception:
            self.trainer._entropy_bonus_enabled = value != 0.0 or self._given["entropy_coef"] != 0.0
            raise

    def rest(self, settings: Intervention) -> None:
        if settings.ends_training:
            self._ends = None
        with contextlib.suppress(Exception):
            if settings.turns == "beta":
                self._coefficients.set_beta(self._given["beta"])
            elif settings.turns == "entropy_coef" and self._coefficients.adaptive_entropy:
                self._coefficients.set_entropy_target(self._given["entropy_target"])
            elif settings.turns == "entropy_coef":
                self._coefficients.set_entropy_coef(self._given["entropy_coef"])

    def state(self) -> Mapping[str, Any]:
        return {**self._coefficients.state(), "returned": self._returned}

    def load(self, state: Mapping[str, Any]) -> None:
        self._returned = self._returned or bool(state.get("returned"))
        try:
            self._coefficients.load(state, self._folder)
        except Exception:
            self._coefficients.forget_reset()
            raise

    # -- one train() call ------------------------------------------------------------------------------------------

    def prepare(self, folder: Path | None, own: Mapping[str, Any] | None, restored: Restored) -> None:
        """Before the monitor is made: ``folder`` is rlmon's part of the checkpoint that the run resumes from, ``own``
        what ``rank_state`` gave there."""
        if self._begun:
            # What an earlier train() of this trainer left turned is not how this one begins.
            for rule in self.policy.rules:
                if not rule.dry_run:
                    self.rest(rule.action)
            self._coefficients.forget_reset()
        self._begun = True
        self._ends, self._save_waits = None, False
        self._folder = folder
        self._returned, self._marked = False, None
        if folder is not None:
            # Rank 0 reads it for all: a `beta` that differs between ranks makes TRL's collectives wait for ever.
            if self.trainer.accelerator.is_main_process:
                with restored.part("what rolled the run back"):
                    self._returned = (folder / ROLLED_BACK).exists()
                    self._marked = _read_mark(folder / ROLLED_BACK) if self._returned else None
            self._returned, self._marked = of_rank_0((self._returned, self._marked), self.trainer)
        if self._anchor is not None and own is not None and own.get("anchor") is not None:
            with restored.part("rows to anchor on"):
                self._anchor.load(own["anchor"])
        if self._draws is not None and own is not None and own.get("draws") is not None:
            with restored.part("rows of the stream"):
                self._draws.load(own["draws"])
        if self._draws is not None and folder is not None:
            continue_order(self.trainer)

    def begin(self, monitor: Monitor) -> None:
        """After it was made: a run that came back to this checkpoint takes up the ``beta`` of the rule that sent it."""
        if self._marked is None:
            return
        rule, reason, beta = self._marked
        if beta is not None:
            self._coefficients.set_beta(beta)
        monitor.journal.note(f"Rolled back by {rule} ({reason}); beta is {self._coefficients.values()['beta']}.")

    def act_on_loop(self, monitor: Monitor, state: TrainerState, control: TrainerControl) -> Path | None:
        """At the end of a step: end training where a rule said so, and let checkpoints wait for the end of a round:
        what TRL has buffered of it is in no checkpoint, so a run resumed in the middle would act on other rows.

        The checkpoint to go on from, where the run is rolled back. The same on all ranks.
        """
        last = 0 < state.max_steps <= state.global_step
        if monitor.controller is not None and monitor.controller.holds_state and self._in_mid_round and not last:
            self._save_waits = self._save_waits or control.should_save
            control.should_save = False
            return None
        if self._save_waits:
            self._save_waits, control.should_save = False, True
        if self._ends is None or monitor.controller is None or not monitor.controller.settled(self._ends):
            return None
        if self.policy.rule(self._ends.rule).action.turns == "stop":
            control.should_training_stop = control.should_save = True
            return None
        checkpoint = self._mark_return(self._ends)
        if checkpoint is None:  # rotated away since (save_total_limit), or on a disk that is full
            monitor.controller.fail("roll_back", "the checkpoint to return to is gone or cannot be written to")
            self._ends = None
            return None
        control.should_training_stop, control.should_save = True, False
        return checkpoint

    def _mark_return(self, ends: Action) -> Path | None:
        """The checkpoint to go on from, marked so that the run comes back to it once only, the same on all ranks.

        ``None`` where there is none any more, or it cannot be written to.
        """
        checkpoint: Path | None = None
        # Rank 0 looks and marks for all: a rank that saw other folders would train on while the others stop.
        if self.trainer.accelerator.is_main_process and (found := self._checkpoint_before(ends.step)) is not None:
            settings = self.policy.rule(ends.rule).action
            marked = {"rule": ends.rule, "reason": ends.reason, "beta": getattr(settings, "beta", None)}
            with contextlib.suppress(OSError):
                folder = found / STATE_FOLDER
                folder.mkdir(exist_ok=True)
                write_json(folder / ROLLED_BACK, marked)
                checkpoint = found
        found_by_all: Path | None = of_rank_0(checkpoint, self.trainer)
        return found_by_all

    def _checkpoint_before(self, step: int) -> Path | None:
        """The last checkpoint from before ``step``, as this process sees the folders."""
        run_dir = Path(self.trainer._get_output_dir(trial=None))
        steps = [
            int(path.name.rpartition("-")[2])
            for path in run_dir.glob("checkpoint-*")
            if path.is_dir() and path.name.rpartition("-")[2].isdigit()
        ]
        before = [number for number in steps if number < step]
        return run_dir / f"checkpoint-{max(before)}" if before else None

    # -- rounds ----------------------------------------------------------------------------------------------------

    def draws(self, monitor: Monitor, inputs: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
        """The raw rows to generate from: those of deferred prompts are replaced, the same on all ranks."""
        if self._draws is None or monitor.controller is None or not self._training:
            return inputs
        drawn = inputs
        with self._part(monitor, "draws"):
            number = monitor.rounds["train"]
            drawn = self._draws.swap(inputs, monitor.controller.blocked(number), number)
        return drawn

    def rollouts(self, monitor: Monitor, batch: RolloutBatch | None, output: Any, *, rows: int) -> None:
        """Let the rules look at a round that was scored, and change its advantages where they say so.

        ``batch`` holds the rows of ``output`` in its order, and is ``None`` where some of them are not known: then no
        rule looks at the round. ``rows`` is what the trainer's settings make of a round on every rank.
        """
        if not self._training:
            return
        logp_base_n = None
        with monitor.guard("interventions"):
            logp_base_n = None if batch is None else _mean_reference(output)
        if batch is not None and len(batch) != rows and monitor.ranks.world_size > 1:
            batch = None  # the ranks exchange tables of one size
        effect = monitor.steer(batch, rows if batch is None else len(batch), logp_base_n)
        if monitor.controller is None:
            return
        if self._anchor is not None:
            with self._part(monitor, "loss"):
                mode_n, success_n = monitor.controller.own_rows(self._anchor.settings.modes)
                prompts, completions = monitor.controller.round_size
                self._anchor.collect(output, success_n, mode_n, prompts=prompts, completions=completions)
        if effect is not None:
            with self._part(monitor, "advantages"):
                output["advantages"] = advantages_after(effect, output, self.trainer.args)

    # -- the loss --------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def loss(self, monitor: Monitor, inputs: dict[str, Any]) -> Iterator[None]:
        """Around TRL's loss: what a changed ``beta`` needs is in the batch, and what stood in for it goes again."""
        failure: str | None = None
        if self._training:
            with monitor.guard("interventions"):
                failure = self._coefficients.before_loss(inputs)
        if failure is not None and monitor.controller is not None:
            monitor.controller.fail("beta", failure)
        try:
            yield
        finally:
            if self._training:
                with monitor.guard("interventions"):
                    self._coefficients.after_loss()

    def add_to_loss(
        self, monitor: Monitor, value: torch.Tensor, inputs: Mapping[str, Any], result: Any
    ) -> torch.Tensor:
        """TRL's loss, with the entropy bonus of RLOO and the anchor where they act."""
        if not self._training or monitor.controller is None:
            return value
        if result is not None:
            with self._part(monitor, "entropy_coef"):
                bonus = self._coefficients.extra_loss(inputs, result[0], result[1])
                value = value if bonus is None else value + bonus
        if self._anchor is not None:
            with self._part(monitor, "loss"):
                dying, weight = monitor.controller.anchoring(self.trainer.state.global_step + 1)
                anchored = self._anchor.loss(self.trainer, dying, weight)
                value = value if anchored is None else value + anchored
        return value

    def rank_state(self) -> dict[str, Any]:
        """What this rank alone keeps: its anchors, and the rows it has seen of a stream."""
        return {
            "anchor": None if self._anchor is None else self._anchor.state(),
            "draws": None if self._draws is None else self._draws.state(text=self._keeps_text),
        }

    def save(self, folder: Path) -> None:
        """Weights that a resumed run could not rebuild: a reference that was reset."""
        self._coefficients.save(folder)


def _read_mark(path: Path) -> tuple[str, str, float | None]:
    """What ``TrainerActuators._mark_return`` wrote: rule, reason and new ``beta``. Raises where it cannot be read."""
    marked = read_json(path)
    return str(marked["rule"]), str(marked["reason"]), None if marked["beta"] is None else float(marked["beta"])


def advantages_after(effect: RowEffect, output: Mapping[str, Any], args: Any) -> torch.Tensor:
    """The advantages [n] or [n, T] of a generation after the rules, in their own dtype and on their device."""
    advantages = output["advantages"]
    values = advantages.double().cpu().numpy()
    if isinstance(args, PPOConfig):
        own_nT = output["value_mask"].bool().cpu().numpy()
        return torch.from_numpy(effect.on_tokens(values, own_nT, args.gamma, args.lam)).to(advantages)
    return torch.from_numpy(effect.on(values)).to(advantages)


def _mean_reference(output: Mapping[str, Any]) -> np.ndarray | None:
    """Mean log-probability per token [n] under TRL's reference, where this generation has one."""
    logps_BT = output.get("ref_per_token_logps")
    if logps_BT is None:
        return None
    mask_BT = output["completion_mask"].double()
    means: np.ndarray = ((logps_BT.double() * mask_BT).sum(1) / mask_BT.sum(1).clamp(min=1)).cpu().numpy()
    return means
