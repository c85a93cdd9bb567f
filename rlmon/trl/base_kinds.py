"""The ways to have the policy as it was before training, one object each; what each needs, and why it cannot be had."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import nn

from rlmon.errors import AttachError
from rlmon.trl.models import View, head_of, is_peft, probe_logits, trainable_tensors, tuner_layers

BaseKind = Literal["adapter", "snapshot", "reference", "copy"]
SAME_START_NATS = 1e-4
"""Largest difference of a logit between the policy as it starts and the policy with its adapter switched off."""


class Base(Protocol):
    """The initial policy, held in one way. ``of`` gives it, or in words why it cannot be had this way."""

    @property
    def kind(self) -> BaseKind: ...

    def view(self, policy: Any) -> View:
        """The base, as something that can be run."""


@dataclass(frozen=True)
class AdapterOff:
    """The policy with its adapter switched off, where that is the policy as it starts (LoRA, IA3, ...)."""

    kind: ClassVar[BaseKind] = "adapter"

    @classmethod
    def of(cls, trainer: Any, model: Any, *, initial_weights: bool) -> AdapterOff | str:
        return cls.refusal(model, tuner_layers(model), initial_weights) or cls()

    @staticmethod
    def refusal(model: Any, tuners: list[Any], initial_weights: bool) -> str | None:
        """Why switching the adapter off would not give the initial policy: found out on a few tokens."""
        if not tuners:
            return "the model has no adapter layers that could be switched off"
        for name, adapter in model.peft_config.items():
            if getattr(adapter, "bias", "none") != "none":
                return f"adapter {name!r} trains biases of the base (bias={adapter.bias!r})"
        logits = probe_logits(View(model, bare=True))
        moved = {name: 1.1 * tensor + 0.1 for name, tensor in trainable_tensors(model).items()}
        if not torch.equal(probe_logits(View(model, tensors=moved, bare=True)), logits):
            return "some of what is trained stays in use when the adapter is switched off (modules_to_save, ...)"
        if initial_weights and float((probe_logits(View(model)) - logits).abs().max()) > SAME_START_NATS:
            return (
                "the policy does not start at the bare base: the adapter was trained before, or changes it at its start"
            )
        return None

    def view(self, policy: Any) -> View:
        return View(policy, bare=True)


@dataclass(frozen=True)
class Snapshot:
    """The initial values of what is trained, put in the place of the values of now."""

    tensors: dict[str, torch.Tensor]
    kind: ClassVar[BaseKind] = "snapshot"

    @classmethod
    def of(cls, trainer: Any, model: Any, *, initial_weights: bool) -> Snapshot | str:
        if not is_peft(model):
            return "the model has no adapter"
        if not initial_weights:
            return _trained_already(trainer, "adapter")
        found = cls(trainable_tensors(model))
        probe_logits(found.view(model))  # raises where it cannot be run alone
        return found

    def view(self, policy: Any) -> View:
        return View(policy, tensors=self.tensors)


@dataclass(frozen=True)
class TrainersReference:
    """TRL's own reference model, when it stays the initial base."""

    get: Callable[[], Any]
    """The reference as the trainer has it."""
    kind: ClassVar[BaseKind] = "reference"

    @classmethod
    def of(cls, trainer: Any, model: Any, *, initial_weights: bool) -> TrainersReference | str:
        if float(getattr(trainer.args, "beta", 0.0) or 0.0) == 0.0:
            return "beta is 0, so TRL loads no reference model"
        if is_peft(model):
            return "TRL makes its reference of the policy's own modules and holds none"
        if getattr(trainer.args, "sync_ref_model", False):
            return "sync_ref_model moves TRL's reference away from the initial base"
        return cls.held_by(trainer)

    @classmethod
    def held_by(cls, trainer: Any) -> TrainersReference:
        def get() -> Any:
            model = getattr(trainer, "ref_model", None)
            return None if model is None else trainer.accelerator.unwrap_model(model)

        return cls(get)

    def view(self, policy: Any) -> View:
        return _beside(policy, self.get())


@dataclass(frozen=True)
class FrozenCopy:
    """A frozen model of its own: a copy of the initial weights, or one that was loaded."""

    model: nn.Module
    kind: ClassVar[BaseKind] = "copy"

    @classmethod
    def of(cls, trainer: Any, model: Any, *, initial_weights: bool) -> FrozenCopy | str:
        if not initial_weights:
            return _trained_already(trainer, "weights")
        return memory_refusal(model) or cls(frozen_copy(model))

    @classmethod
    def loaded(cls, name: str, like: nn.Module) -> FrozenCopy:
        """The model of this folder or name. Raises ``AttachError`` where there is none."""
        from transformers import AutoModelForCausalLM

        first = next(like.parameters())
        with torch.random.fork_rng(devices=[first.device] if first.device.type == "cuda" else []):
            try:
                model = AutoModelForCausalLM.from_pretrained(name, dtype=first.dtype)
            except (OSError, ValueError) as error:
                raise AttachError(
                    f"rlmon_base_model={name!r} cannot be loaded: {error}. Give a folder or name that "
                    "AutoModelForCausalLM.from_pretrained takes, or leave it out to copy the model as it starts."
                ) from error
        model.requires_grad_(False)
        return cls(model.to(first.device).eval())

    def view(self, policy: Any) -> View:
        return _beside(policy, self.model)


WAYS: dict[BaseKind, type[AdapterOff | Snapshot | TrainersReference | FrozenCopy]] = {
    each.kind: each for each in (AdapterOff, Snapshot, TrainersReference, FrozenCopy)
}


def instead_of(failed: Base, policy: Any) -> Base | str | None:
    """What takes the place of a base that is not the policy as it starts: made now, it is that policy itself. ``None``
    where nothing does; in words, why it cannot be made."""
    if isinstance(failed, AdapterOff):
        return Snapshot(trainable_tensors(policy))
    if isinstance(failed, TrainersReference):
        return memory_refusal(policy) or FrozenCopy(frozen_copy(policy))
    return None


def _beside(policy: Any, base: Any) -> View:
    """``base``, brought to where the policy is."""
    if base is None:
        raise RuntimeError("the reference model is gone")
    device = next(policy.parameters()).device
    if next(base.parameters()).device != device:
        base.to(device)
    return View(base)


def _trained_already(trainer: Any, what: str) -> str:
    return (
        f"rlmon was attached to a policy that was trained already (step {trainer.state.global_step}), so its initial "
        f"{what} cannot be kept"
    )


def memory_refusal(model: nn.Module) -> str | None:
    """Why there is no room for a frozen copy of ``model``."""
    tensors = list(model.parameters()) + list(model.buffers())
    copy_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    # Gradients and two Adam moments of what is trained come on top of what is allocated now.
    coming_bytes = sum(3 * 4 * tensor.numel() for tensor in model.parameters() if tensor.requires_grad)
    device = next(model.parameters()).device
    if device.type == "cuda":
        free_bytes, total_bytes = torch.cuda.mem_get_info(device)
    else:
        import psutil

        memory = psutil.virtual_memory()
        free_bytes, total_bytes = memory.available, memory.total
    left = (free_bytes - copy_bytes - coming_bytes) / total_bytes
    if left < 0.2:
        return (
            f"a frozen copy takes {copy_bytes / 2**30:.1f} GiB and would leave {max(left, 0):.0%} of memory free, "
            "20 % are kept"
        )
    return None


def frozen_copy(model: nn.Module) -> nn.Module:
    """``model`` as it is now, under a life of its own."""
    frozen = copy.deepcopy(model)
    for parameter in frozen.parameters():
        parameter.requires_grad_(False)
        parameter.grad = None
    head = head_of(frozen)
    if "forward" in vars(head):
        # TRL's cast_lm_head_to_fp32: its function leads back to the head that is being trained.
        vars(head)["forward"] = functools.partial(_project_in_float32, head)
    return frozen.eval()


def _project_in_float32(head: Any, hidden: torch.Tensor) -> torch.Tensor:
    bias = None if head.bias is None else head.bias.float()
    return nn.functional.linear(hidden.float(), head.weight.float(), bias)
