"""A causal language model as Transformers and PEFT build it: its parts, its modes, and running it without a trace.

Nothing here touches ``requires_grad``, ``.data`` or a global random state; modes are restored flag by flag.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

HALF = (torch.float16, torch.bfloat16)
PROBE_TOKENS = 16


@dataclass(frozen=True)
class View:
    """A model as it is, with its adapter switched off (``bare``), or with other values of some parameters."""

    model: Any
    tensors: Mapping[str, torch.Tensor] | None = None
    bare: bool = False

    def hidden(self, ids_bL: torch.Tensor, attention_bL: torch.Tensor) -> torch.Tensor:
        """Last hidden states [b, L, D] in evaluation mode; virtual tokens may stand before those of ``ids_bL``."""
        arguments: dict[str, Any] = {"input_ids": ids_bL, "attention_mask": attention_bL, "use_cache": False}
        backbone = backbone_of(self.model)
        with evaluation_mode(self.model), self._switched():
            if not is_peft(self.model):
                hidden: torch.Tensor = backbone(**arguments).last_hidden_state
                return hidden
            # Through the whole model: virtual tokens are put in front by its own forward.
            if "logits_to_keep" in inspect.signature(type(self.model.get_base_model()).forward).parameters:
                arguments["logits_to_keep"] = 1
            box: list[torch.Tensor] = []
            handle = backbone.register_forward_hook(lambda _, __, output: box.append(output.last_hidden_state))
            try:
                _called(self.model, self.tensors, arguments)
            finally:
                handle.remove()
            return box[-1]

    def logits(self, hidden_TD: torch.Tensor) -> torch.Tensor:
        """The head's output [T, V], fed in its own dtype: under autocast hidden states arrive in half precision."""
        head = head_of(self.model)
        own = None
        if self.tensors is not None:
            names = {id(parameter): name for name, parameter in self.model.named_parameters()}
            own = {
                name: self.tensors[names[id(parameter)]]
                for name, parameter in head.named_parameters()
                if names.get(id(parameter)) in self.tensors
            }
        with evaluation_mode(head), self._switched():
            logits: torch.Tensor = _called(head, own, hidden_TD.to(next(head.parameters()).dtype))
        return logits

    def _switched(self) -> contextlib.AbstractContextManager[None]:
        return adapters_off(self.model) if self.bare else contextlib.nullcontext()


def _called(module: nn.Module, tensors: Mapping[str, torch.Tensor] | None, given: Any) -> Any:
    args, kwargs = ((), given) if isinstance(given, dict) else ((given,), {})
    if not tensors:
        return module(*args, **kwargs)
    return torch.func.functional_call(module, dict(tensors), args, kwargs)


@torch.no_grad()
def probe_logits(view: View) -> torch.Tensor:
    """Logits of a few fixed tokens, in the precision of the weights."""
    weight = head_of(view.model).weight
    ids = torch.arange(PROBE_TOKENS, device=weight.device)[None] % weight.shape[0]
    return view.logits(view.hidden(ids, torch.ones_like(ids))).float()


def is_peft(model: nn.Module) -> bool:
    return hasattr(model, "peft_config")


def tuner_layers(model: nn.Module) -> list[Any]:
    try:
        from peft.tuners.tuners_utils import BaseTunerLayer
    except ImportError:
        return []
    return [module for module in model.modules() if isinstance(module, BaseTunerLayer)]


def backbone_of(model: Any) -> nn.Module:
    inner = model.get_base_model() if is_peft(model) else model
    backbone: nn.Module = inner.base_model
    return backbone


def head_of(model: Any) -> nn.Module:
    inner = model.get_base_model() if is_peft(model) else model
    head: nn.Module = inner.get_output_embeddings()
    return head


def trainable_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


@contextlib.contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """Switch adapters off by their flag alone: PEFT's own context would also flip ``requires_grad``."""
    tuners = tuner_layers(model)
    before = [tuner._disable_adapters for tuner in tuners]
    for tuner in tuners:
        tuner._disable_adapters = True
    try:
        yield
    finally:
        for tuner, flag in zip(tuners, before, strict=True):
            tuner._disable_adapters = flag


@contextlib.contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """``model.eval()`` for a while; every module's own flag is restored, not set to one value."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def in_full_precision(model: Any) -> bool:
    """Whether its forward can be run without rounding to half precision."""
    if "flash" in str(getattr(model.config, "_attn_implementation", "")):
        return False
    rounded = False
    if next(model.parameters()).device.type == "cuda":
        with contextlib.suppress(RuntimeError):  # both of PyTorch's ways to allow TF32 were used
            rounded = torch.get_float32_matmul_precision() != "highest"
    return not rounded and not any(parameter.dtype in HALF for parameter in model.parameters())


def random_states(model: nn.Module) -> list[torch.Tensor]:
    """Of the generators that a forward of the model draws from."""
    device = next(model.parameters()).device
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return states


def logit_transform(model: Any) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """What the model does to its logits before the softmax (Gemma, Cohere, Granite, ...); ``None`` for nothing."""
    config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    scale = next(
        (
            getattr(config, name)
            for name in ("logit_scale", "output_multiplier", "lm_head_multiplier")
            if getattr(config, name, None) is not None
        ),
        None,
    )
    if scale is None and getattr(config, "logits_scaling", None) is not None:
        scale = config.logits_scaling if config.model_type == "hyperclovax" else 1 / config.logits_scaling
    softcap = getattr(config, "final_logit_softcapping", None)
    if scale is None and softcap is None:
        return None

    def transform(logits: torch.Tensor) -> torch.Tensor:
        if scale is not None:
            logits = logits * scale
        return torch.tanh(logits / softcap) * softcap if softcap is not None else logits

    return transform
