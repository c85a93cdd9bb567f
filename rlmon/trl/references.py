"""The reference of a KL penalty, as a model that TRL takes for its ``ref_model``.

=====================  =============================================================================================
base kind ``copy``     the frozen initial weights, under a handle of their own: rlmon's copy is not patched
base kind ``adapter``  the policy with its adapter switched off
base kind ``snapshot`` the policy with the initial tensors of its adapter
=====================  =============================================================================================
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
import trl.trainer.utils
from accelerate.utils import convert_to_fp32
from torch import nn

from rlmon.errors import AttachError
from rlmon.trl.base import BaseModel
from rlmon.trl.base_kinds import AdapterOff, FrozenCopy, Snapshot
from rlmon.trl.models import adapters_off, evaluation_mode

MULTIMODAL = (
    "pixel_values", "image_grid_thw", "num_images", "pixel_attention_mask", "spatial_shapes", "num_tiles",
    "image_sizes", "token_type_ids", "mm_token_type_ids", "image_position_ids",
)  # fmt: skip
"""What TRL puts into a batch for its per-token forward, beside the tokens."""

add_fused_lm_head: Any = getattr(trl.trainer.utils, "add_fused_lm_head", None)
"""Since TRL 1.15 a model must be patched with this before TRL can ask it for logprobs."""


def initial_reference(trainer: Any, policy: nn.Module, base: BaseModel) -> Reference:
    """The initial base as a reference. Raises ``RuntimeError`` where there is none."""
    if isinstance(base.own, FrozenCopy):
        return CopyReference(trainer, policy, base.own.model)
    if isinstance(base.own, AdapterOff | Snapshot):
        return AdapterReference(trainer, policy, base.own.tensors if isinstance(base.own, Snapshot) else None)
    raise RuntimeError(f"there is no reference for a KL penalty: {base.reason or base.kind}")


class Reference(nn.Module):
    """A model that TRL may ask for logits or logprobs; where it fails, the policy answers: a KL of zero.

    The policy is no child of it: its parameters belong to the trainer alone.
    """

    def __init__(self, trainer: Any, policy: nn.Module) -> None:
        super().__init__()
        self._accelerator = (trainer.accelerator,)
        self._policy = (policy,)
        self.failure: str | None = None

    @property
    def policy(self) -> nn.Module:
        return self._policy[0]

    @torch.no_grad()
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        accelerator = self._accelerator[0]
        with accelerator.autocast():
            try:
                output = self.answer(*args, **kwargs)
            except Exception as error:
                self.failure = describe(error)
                with evaluation_mode(self.policy):
                    output = self.policy(*args, **kwargs)
        # As accelerate does to the policy's own outputs.
        return convert_to_fp32(output) if accelerator.native_amp else output

    def answer(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError

    def weights(self) -> dict[str, torch.Tensor]:
        """The tensors that make it what it is, by their name in the policy."""
        raise NotImplementedError

    def take(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Take the values of ``tensors`` (the keys of ``weights``)."""
        own = self.weights()
        if own.keys() != tensors.keys():
            raise AttachError(
                f"the saved reference has {len(tensors)} tensors, the model {len(own)}, under other names: they are "
                "not of the same model. Resume with the model that the run was started with."
            )
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(tensors[name])


class CopyReference(Reference):
    """A frozen model under a handle of its own: TRL's patches of ``forward`` stay on the handle."""

    def __init__(self, trainer: Any, policy: nn.Module, frozen: nn.Module) -> None:
        super().__init__(trainer, policy)
        handle = copy.copy(frozen)
        # A copied policy brings the policy's patches along, which lead back to the policy.
        for patched in ("forward", "_original_forward"):
            handle.__dict__.pop(patched, None)
        if add_fused_lm_head is not None:
            add_fused_lm_head(
                handle,
                temperature=float(trainer.args.temperature),
                cast_lm_head_to_fp32=bool(getattr(trainer.args, "cast_lm_head_to_fp32", False)),
            )
        self._handle = (handle,)

    def answer(self, *args: Any, **kwargs: Any) -> Any:
        handle = self._handle[0]
        device = next(self.policy.parameters()).device
        if next(handle.parameters()).device != device:
            handle.to(device)
        return handle(*args, **kwargs)

    def weights(self) -> dict[str, torch.Tensor]:
        return {name: parameter.detach() for name, parameter in self._handle[0].named_parameters()}


class AdapterReference(Reference):
    """The policy with other tensors in its adapter, or (``tensors=None``) with the adapter switched off."""

    def __init__(self, trainer: Any, policy: nn.Module, tensors: dict[str, torch.Tensor] | None) -> None:
        super().__init__(trainer, policy)
        self.tensors = tensors

    def answer(self, *args: Any, **kwargs: Any) -> Any:
        with evaluation_mode(self.policy):
            if self.tensors is None:
                with adapters_off(self.policy):
                    return self.policy(*args, **kwargs)
            return torch.func.functional_call(self.policy, self.tensors, args, kwargs)

    def weights(self) -> dict[str, torch.Tensor]:
        return dict(self.tensors or {})


@torch.no_grad()
def reference_logps(
    trainer: Any, model: nn.Module, inputs: Mapping[str, Any], batch_size: int | None = None
) -> torch.Tensor:
    """Per-token logprobs [B, T] of the batch's completions under ``model``, computed as TRL computes its own."""
    input_ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
    attention_mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
    extras = {name: inputs[name] for name in MULTIMODAL if inputs.get(name) is not None}
    with evaluation_mode(model):
        result = trainer._get_per_token_logps_and_entropies(
            model, input_ids, attention_mask, inputs["completion_ids"].size(1), batch_size=batch_size, **extras
        )
    logps_BT: torch.Tensor = result[0]
    return logps_BT


def describe(error: BaseException) -> str:
    return f"the reference of the KL penalty failed ({type(error).__name__}: {str(error)[:200]})"
