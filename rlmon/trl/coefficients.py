"""What a rule may turn on a live TRL trainer: ``beta``, the entropy bonus, and the reference of the KL penalty.

TRL reads ``trainer.beta`` at each generation and, in GRPO, at each loss; but it builds a reference only where the
run began with a penalty, and a batch that was generated while ``beta`` was 0 carries no reference logprobs. So a
reference of our own becomes ``trainer.ref_model`` before ``beta`` leaves 0 (TRL then fills new batches and logs ``kl``
itself), and ``before_loss`` fills the batches that are already buffered.

Which model that is: TRL's own, untouched, where the run began with ``beta > 0``; else the initial base
(``rlmon.trl.references``); after a reset a copy of the policy (of its trainable tensors, where it has an adapter).

The penalty of RLOO and of ``PPOTrainer`` (whose ``kl_coef`` is what is called ``beta`` here) is part of the reward:
there a change acts from the next generation on. Every setter is attribute work
that depends on its arguments alone: no collective, no random number, no ``requires_grad``, no module mode.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import trl
from torch import nn
from trl import RLOOTrainer

from rlmon.errors import AttachError
from rlmon.interventions.intervention import Intervention
from rlmon.restored import UnreadableError
from rlmon.trl.base import BaseModel
from rlmon.trl.base_kinds import Snapshot, frozen_copy, memory_refusal
from rlmon.trl.checkpoint import whole
from rlmon.trl.facts import sharding
from rlmon.trl.models import trainable_tensors, tuner_layers
from rlmon.trl.ppo.config import PPOConfig
from rlmon.trl.references import (
    AdapterReference,
    CopyReference,
    Reference,
    add_fused_lm_head,
    describe,
    initial_reference,
    reference_logps,
)

REFERENCE_KEY = "ref_per_token_logps"
REFERENCE_FILE = "reference.safetensors"


class Coefficients:
    """The values that rules turn on one trainer.

    Args:
        trainer: a ``GRPOTrainer`` or ``RLOOTrainer``; held weakly.
        base: the initial base model, from which a reference is made where TRL has none.
    """

    def __init__(self, trainer: Any, base: BaseModel) -> None:
        self._trainer = weakref.ref(trainer)
        self._base = base
        self._rloo = isinstance(trainer, RLOOTrainer)
        self._ppo = isinstance(trainer.args, PPOConfig)
        self._weight = "kl_coef" if self._ppo else "beta"
        """The trainer's own name of the weight that is called ``beta`` here."""
        self._given_beta = float(getattr(trainer.args, self._weight))
        self._given_bonus = bool(getattr(trainer.args, "entropy_coef", 0.0)) or self.adaptive_entropy
        self._initial: Reference | None = None
        """The reference for a run that began without one."""
        self._adapter: AdapterReference | None = None
        """TRL's own reference of an adapter, as a model: TRL makes it by switching adapters inside its forward."""
        self._reset: Reference | None = None
        self._reset_step: int | None = None
        self._given_reference = trainer.ref_model
        self._rloo_entropy_coef = 0.0
        self._failure: str | None = None
        self._stand_in: tuple[dict[str, Any], float] | None = None
        """The batch whose reference logprobs are not the reference's, and ``beta`` to return to after its loss."""

    @property
    def trainer(self) -> Any:
        trainer = self._trainer()
        if trainer is None:
            raise RuntimeError("the trainer is gone")
        return trainer

    @property
    def adaptive_entropy(self) -> bool:
        """Whether TRL's own controller turns ``entropy_coef``: then a rule sets its target instead."""
        return bool(getattr(self.trainer.args, "use_adaptive_entropy", False))

    @property
    def _policy(self) -> nn.Module:
        policy: nn.Module = self.trainer.accelerator.unwrap_model(self.trainer.model)
        return policy

    # -- before the first step -------------------------------------------------------------------------------------

    def lacks(self) -> dict[str, str]:
        """By what an intervention turns why that cannot work with this trainer, and what to type."""
        found = {
            "beta": self._lacks_penalty(),
            "reference": self._lacks_reset(),
            "entropy_coef": self._lacks_bonus(),
            "loss": self._lacks_forward("anchor"),
        }
        return {name: reason for name, reason in found.items() if reason is not None}

    def prepare(self, actions: Iterable[Intervention]) -> None:
        """Make the reference for a penalty that starts from 0, alike on all ranks, so that raising ``beta`` later
        cannot fail on one of them."""
        if self._given_beta == 0.0 and any(action.turns == "beta" or action.reach().get("beta") for action in actions):
            self._initial = self._initial_reference()

    def _lacks_penalty(self) -> str | None:
        reason = self._lacks_loss("kl_penalty") or self._lacks_own_reference("kl_penalty")
        if reason is not None:
            return reason
        if self._ppo and self.trainer.args.kl_target is not None:
            return (
                "kl_penalty and kl_target both turn kl_coef, and would contradict each other. Take kl_target out, or "
                "leave the rule out."
            )
        kind = sharding(self.trainer)
        if kind is not None and (self._given_beta == 0.0 or hasattr(self._policy, "peft_config")):
            return (
                f"kl_penalty cannot make a reference under {kind}: each forward of it would be a collective of its "
                "own. Fine-tune the full model with beta above 0 in the trainer's config (1e-4 will do), so that TRL "
                "loads and shards a reference itself; or leave the rule out."
            )
        return self._lacks_from_zero() if self._given_beta == 0.0 else None

    def _lacks_from_zero(self) -> str | None:
        reason = self._lacks_layout("kl_penalty")
        if reason is None and not self._base.active:
            hint = "Set rlmon_base_kl: auto" if "rlmon_base_kl is off" in self._base.reason else "Help rlmon to one"
            return (
                f"kl_penalty needs a reference, and beta is 0, so TRL loads none; rlmon has none either: "
                f"{self._base.reason}. {hint}, or set beta above 0 in the trainer's config (1e-4 will do)."
            )
        return reason

    def _lacks_reset(self) -> str | None:
        name = "reset_reference"
        reason = (
            self._lacks_loss(name)
            or self._lacks_own_reference(name)
            or self._lacks_forward(name)
            or self._lacks_layout(name)
        )
        if reason is None and not hasattr(self._policy, "peft_config"):
            refusal = memory_refusal(self._policy)
            if refusal is not None:
                return (
                    f"reset_reference cannot work: {refusal}. Leave the rule out, or train an adapter "
                    "(peft_config), whose reference is small."
                )
        return reason

    def _lacks_bonus(self) -> str | None:
        reason = self._lacks_loss("entropy_bonus")
        if reason is None and self._rloo and not add_fused_lm_head:
            return (
                f"entropy_bonus cannot work with RLOOTrainer on TRL {trl.__version__}: its entropies carry no "
                "gradient before 1.15. Type: pip install -U 'trl>=1.16'"
            )
        if reason is None and not self._rloo and not hasattr(self.trainer.args, "entropy_coef"):
            return (
                f"entropy_bonus cannot work: GRPOConfig of TRL {trl.__version__} has no entropy_coef. Type: "
                "pip install -U 'trl>=1.16'"
            )
        return reason

    def _lacks_loss(self, what: str) -> str | None:
        if getattr(self.trainer.args, "use_liger_kernel", False) and not add_fused_lm_head:
            return (
                f"{what} cannot work with use_liger_kernel on TRL {trl.__version__}: its kernel fixes the loss when "
                "the trainer is built. Set use_liger_kernel: false, or type: pip install -U 'trl>=1.16'"
            )
        return None

    def _lacks_own_reference(self, what: str) -> str | None:
        if getattr(self.trainer.args, "sync_ref_model", False):
            return (
                f"{what} cannot work with sync_ref_model: TRL moves the reference every ref_model_sync_steps, and two "
                "hands on one reference contradict each other. Set sync_ref_model: false, or leave the rule out."
            )
        return None

    def _lacks_forward(self, what: str) -> str | None:
        kind = sharding(self.trainer)
        if kind is not None:
            return (
                f"{what} cannot work under {kind}, where every forward and every copy of weights is a collective. "
                "Train with DDP or on one device, or leave the rule out."
            )
        return None

    def _lacks_layout(self, what: str) -> str | None:
        policy = self._policy
        if hasattr(policy, "peft_config") and not tuner_layers(policy):
            return (
                f"{what} cannot work with this PEFT method: it has no adapter layers that could be switched off. Use "
                "LoRA, or leave the rule out."
            )
        places = getattr(policy, "hf_device_map", None)
        if places and len(set(places.values())) > 1 and not hasattr(policy, "peft_config"):
            return (
                f"{what} cannot copy a model that device_map spreads over devices. Load it on one device, train an "
                "adapter (peft_config), or leave the rule out."
            )
        return None

    # -- values ----------------------------------------------------------------------------------------------------

    def values(self) -> dict[str, float]:
        """``beta`` and ``entropy_coef`` as they are; ``entropy_target`` [nats] where TRL's controller is on."""
        trainer = self.trainer
        values = {"beta": float(getattr(trainer, self._weight, self._given_beta))}
        if self._rloo:
            values["entropy_coef"] = self._rloo_entropy_coef
        else:
            given = getattr(trainer.args, "entropy_coef", 0.0)
            values["entropy_coef"] = float(getattr(trainer, "entropy_coef", given))
        if self.adaptive_entropy:
            values["entropy_target"] = float(trainer.args.entropy_target)
        return values

    def set_beta(self, value: float) -> None:
        """From the next loss on (RLOO: the next generation), the penalty's weight; ``RuntimeError`` without a
        reference."""
        _require(math.isfinite(value) and value >= 0.0, f"beta must be a number from 0 on, got {value}")
        trainer = self.trainer
        if value != 0.0 and self._given_beta == 0.0 and trainer.ref_model is None:
            trainer.ref_model = self._initial = self._initial_reference()
        setattr(trainer, self._weight, float(value))

    def stand_in_reference(self, value: float) -> None:
        """Where ``set_beta`` failed: ``beta`` all the same, with the policy as its own reference (a KL of zero)."""
        trainer = self.trainer
        setattr(trainer, self._weight, float(value))
        # TRL has a reference of its own for every adapter.
        if value and trainer.ref_model is None and (self._ppo or not hasattr(self._policy, "peft_config")):
            trainer.ref_model = Reference(trainer, self._policy)

    def set_entropy_coef(self, value: float) -> None:
        """From the next loss on, the weight of the entropy bonus (per-token mean, in nats)."""
        _require(math.isfinite(value) and value >= 0.0, f"entropy_coef must be a number from 0 on, got {value}")
        if self._rloo:
            self._rloo_entropy_coef = float(value)
            return
        if self.adaptive_entropy:
            raise RuntimeError("use_adaptive_entropy is on: TRL turns entropy_coef itself, set its target instead")
        trainer = self.trainer
        trainer.entropy_coef = float(value)
        # TRL reads the flag, not the coefficient.
        trainer._entropy_bonus_enabled = value != 0.0 or self._given_bonus

    def set_entropy_target(self, value: float) -> None:
        """The entropy [nats] that TRL's controller holds (``use_adaptive_entropy``)."""
        _require(math.isfinite(value) and value >= 0.0, f"entropy_target must be a number from 0 on, got {value}")
        if not self.adaptive_entropy:
            raise RuntimeError("use_adaptive_entropy is off, so no controller has a target")
        self.trainer.args.entropy_target = float(value)

    def reset_reference(self) -> None:
        """Make the present policy the reference of the penalty; rlmon's KL to the initial base is measured on."""
        self._take_reference(None)
        self._reset_step = int(self.trainer.state.global_step)

    def forget_reset(self) -> None:
        """The reference that the trainer was given, before another ``train()`` of the same trainer."""
        self.trainer.ref_model, self._reset, self._reset_step = self._given_reference, None, None

    # -- the loss --------------------------------------------------------------------------------------------------

    def before_loss(self, inputs: dict[str, Any]) -> str | None:
        """Give ``inputs`` (TRL's buffered batch) the reference logprobs [B, T] that its loss needs and it lacks.

        Never raises. Returns why the reference failed, since the last call, and the penalty was held at zero instead;
        ``None`` where all is well. Must run before anything listens to the policy's forward: the reference of an
        adapter is a forward of the policy's own modules. ``after_loss`` ends what this began.
        """
        try:
            trainer = self.trainer
            if not self._rloo and trainer.beta != 0.0 and inputs.get(REFERENCE_KEY) is None:
                self._fill(trainer, inputs)
        except Exception as error:
            self._failure = describe(error)
        failure, self._failure = self._failed(), None
        return failure

    def after_loss(self) -> None:
        """Take back what stood in for a reference that failed."""
        if self._stand_in is not None:
            (inputs, beta), self._stand_in = self._stand_in, None
            inputs.pop(REFERENCE_KEY, None)
            self.trainer.beta = beta

    def extra_loss(
        self, inputs: Mapping[str, Any], logps_BT: torch.Tensor, entropies_BT: torch.Tensor | None
    ) -> torch.Tensor | None:
        """RLOO's entropy bonus, to be added to the loss: minus ``entropy_coef`` times the mean entropy [nats] of the
        completion tokens. ``None`` where there is none; GRPO has its own.

        Not divided by the accumulation steps: ``Trainer`` does that to RLOO's loss (GRPO's it leaves alone).
        Raises ``RuntimeError`` where the entropies carry no gradient.
        """
        if not self._rloo or self._rloo_entropy_coef == 0.0:
            return None
        if entropies_BT is None or (torch.is_grad_enabled() and not entropies_BT.requires_grad):
            raise RuntimeError("this TRL's entropies carry no gradient, so there can be no entropy bonus")
        mask_BT = inputs["completion_mask"]
        if inputs.get("tool_mask") is not None:
            mask_BT = mask_BT * inputs["tool_mask"]
        mean_nats = (entropies_BT * mask_BT).sum() / mask_BT.sum().clamp(min=1.0)
        return -self._rloo_entropy_coef * mean_nats

    # -- checkpoints -----------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """What a resumed run takes up, as JSON types."""
        return {**self.values(), "reset_step": self._reset_step}

    def save(self, folder: Path) -> None:
        """Keep the weights of a reference that was reset: nothing else could rebuild them."""
        if self._reset is not None:
            from safetensors.torch import save_file

            with whole(folder / REFERENCE_FILE) as temporary:
                save_file({name: tensor.contiguous() for name, tensor in self._reset.weights().items()}, temporary)

    def load(self, state: Mapping[str, Any], folder: Path | None = None) -> None:
        """Take up what ``state`` and ``save`` kept: values of the checkpoint win over the trainer's config.

        Call it after ``BaseModel.resume``. Raises ``AttachError`` where the run cannot go on as it was,
        ``UnreadableError`` where the checkpoint lacks it.
        """
        reset_step = state.get("reset_step")
        if reset_step is not None:
            file = None if folder is None else folder / REFERENCE_FILE
            if file is None or not file.exists():
                raise UnreadableError(
                    f"The reference was reset at step {reset_step}, and its weights are not in the checkpoint "
                    f"({REFERENCE_FILE} is missing)."
                )
            from safetensors.torch import load_file

            self._take_reference(load_file(file))
            self._reset_step = int(reset_step)
        beta = float(state["beta"])
        if beta != 0.0 and self._given_beta == 0.0 and self.trainer.ref_model is None and not self._base.active:
            raise AttachError(
                f"beta was {beta} at the checkpoint, and there is no reference to go on with: {self._base.reason}. "
                "Pass rlmon_base_model=<path or name of the base>, or start a fresh run."
            )
        self.set_beta(beta)
        if self.adaptive_entropy:
            # The coefficient is in TRL's own checkpoint.
            if state.get("entropy_target") is not None:
                self.set_entropy_target(float(state["entropy_target"]))
        elif self._rloo or float(state["entropy_coef"]) != self.values()["entropy_coef"]:
            self.set_entropy_coef(float(state["entropy_coef"]))

    # -- references ------------------------------------------------------------------------------------------------

    def _initial_reference(self) -> Reference:
        base, kept = self._base, self._initial
        # rlmon's self-test may have found at the first step that switching the adapter off is not the initial policy.
        own = base.own
        changed = isinstance(own, Snapshot) and isinstance(kept, AdapterReference) and kept.tensors is not own.tensors
        if kept is not None and not changed:
            return kept
        return initial_reference(self.trainer, self._policy, base)

    def _take_reference(self, tensors: Mapping[str, torch.Tensor] | None) -> None:
        """Make the policy, with ``tensors`` in place of its own where given, the trainer's reference."""
        trainer, policy = self.trainer, self._policy
        if hasattr(policy, "peft_config"):
            reference: Reference = AdapterReference(trainer, policy, trainable_tensors(policy))
        elif isinstance(self._reset, CopyReference):
            reference = self._reset
            reference.take(dict(policy.named_parameters()))
        else:
            reference = CopyReference(trainer, policy, frozen_copy(policy))
        if tensors is not None:
            reference.take(tensors)
        self._base.hold_reference()
        trainer.ref_model = self._reset = reference
        # Batches in the buffer go on against the new reference.
        for inputs in getattr(trainer, "_buffered_inputs", None) or ():
            inputs.pop(REFERENCE_KEY, None)

    def _reference(self) -> nn.Module:
        trainer = self.trainer
        if trainer.ref_model is not None:
            reference: nn.Module = trainer.ref_model
            return reference
        if self._adapter is None:
            policy = self._policy
            tensors = None
            if "ref" in policy.peft_config:
                by_name = dict(policy.named_parameters())
                renamed = {name: name.replace(".default.", ".ref.") for name in by_name if ".default." in name}
                tensors = {name: by_name[ref].detach() for name, ref in renamed.items() if ref in by_name}
            self._adapter = AdapterReference(trainer, policy, tensors)
        return self._adapter

    def _fill(self, trainer: Any, inputs: dict[str, Any]) -> None:
        try:
            inputs[REFERENCE_KEY] = reference_logps(trainer, self._reference(), inputs)
            failed = self._failed() is not None
        except Exception as error:
            self._failure = describe(error)
            failed = True
        if not failed:
            return
        self._stand_in = (inputs, trainer.beta)
        if inputs.get(REFERENCE_KEY) is not None:
            return
        # Zero KL with beta as it is: where beta differed between ranks, so would TRL's collectives.
        try:
            inputs[REFERENCE_KEY] = reference_logps(trainer, self._policy, inputs)
        except Exception:
            if inputs.get("old_per_token_logps") is not None:
                inputs[REFERENCE_KEY] = inputs["old_per_token_logps"]
            else:
                trainer.beta = 0.0

    def _failed(self) -> str | None:
        """Why a reference of ours failed since it was last asked, in our forward or in TRL's."""
        for reference in (self._initial, self._adapter, self._reset):
            if reference is not None and reference.failure is not None:
                self._failure, reference.failure = reference.failure, None
        return self._failure


def _require(holds: bool, text: str) -> None:
    if not holds:
        raise ValueError(text)
