"""The initial base model, for KL-to-base whatever ``beta`` is.

Where it comes from, cheapest first (``rlmon_base_kl=auto`` takes the first that applies):

=========  ====================================================================================================
adapter    the policy with its adapter switched off, where that is the policy as it starts (LoRA, IA3, ...)
snapshot   any other PEFT method: the initial values of what is trained (virtual tokens, biases, whole modules,
           PiSSA, an adapter that was trained before)
reference  TRL's own reference model, when it stays the initial base
copy       a frozen copy of the initial weights, when at least 20 % of memory stays free
=========  ====================================================================================================

Self-test: at the first step of a fresh run policy and base are the same function, and must agree to rounding; where
they do not, adapter falls back to snapshot and reference to copy, and the others report no KL, with the reason. A
measurement never touches ``requires_grad``, ``.data``, module modes (they are restored flag by flag) or a global random
state.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import hashlib
import inspect
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import nn

from rlmon.config import RLMonConfig
from rlmon.errors import AttachError
from rlmon.metrics.sampling import sample_tokens
from rlmon.metrics.tokens import ExactKL, exact_kl
from rlmon.trl.checkpoint import whole
from rlmon.trl.facts import sharding

if TYPE_CHECKING:
    from rlmon.monitor import Monitor

Kind = Literal["adapter", "snapshot", "reference", "copy", "off"]
SELF_TEST_NATS = (1e-6, 1e-4)
"""Mean KL per token, and largest |Δlogp| of a token, allowed between base and policy before the first update. Two
forwards of one function differ by nothing, or by 1.3e-7 and 5e-6 where another kernel or another order of sums computes
them in fp32 (measured: docs/decisions/base-model.md)."""
SELF_TEST_HALF_NATS = (1e-3, 0.2)
"""The same at most, in half precision, where other kernels make up to 2.7e-4 and .07."""
HALF = (torch.float16, torch.bfloat16)
PROBE_TOKENS = 16
SAME_LOGITS_NATS = (1e-3, 0.1)
"""Largest difference of a token's logp between rlmon's logits and the trainer's, in fp32 and in half precision, where a
logit of 16 is rounded by up to .06. A transform of the logits that rlmon does not know makes more."""
INSTEAD: Mapping[Kind, Kind] = {"adapter": "snapshot", "reference": "copy"}
"""What takes the place of a base that fails its self-test: made at that moment, it is the initial policy itself."""
SNAPSHOT_FILE = "base_snapshot.safetensors"


class BaseModel:
    """Measures KL between the policy in training and its initial base on a bounded token sample."""

    def __init__(
        self,
        trainer: Any,
        config: RLMonConfig,
        *,
        kind: Kind,
        reason: str = "",
        frozen: nn.Module | None = None,
        snapshot: dict[str, torch.Tensor] | None = None,
    ) -> None:
        self._accelerator = trainer.accelerator
        self._policy: nn.Module = trainer.accelerator.unwrap_model(trainer.model)
        self._trainer_reference: Callable[[], Any] = lambda: getattr(trainer, "ref_model", None)
        self.temperature: float = float(trainer.args.temperature)
        self.max_tokens = config.rlmon_base_kl_tokens
        self._given = config.rlmon_base_model is not None
        self.kind: Kind = kind
        self.reason = reason
        self.frozen = frozen
        self.snapshot = snapshot
        self.fingerprint = None if kind == "off" else self._fingerprint()
        self.tested = False

    @property
    def active(self) -> bool:
        return self.kind != "off"

    def unmeasured(self, global_step: int, every: int) -> str:
        """Why the step that begins at ``global_step`` has no comparison, where it has none."""
        if not self.active:
            return self.reason
        if global_step % every:
            return f"measured every {every} steps"
        return "no completion token of this step came to be compared with the base"

    def give_up(self, reason: str) -> None:
        """Measure no further KL; the metric is null with this reason from now on."""
        self.kind, self.reason = "off", reason
        self.frozen = self.snapshot = None

    def hold_reference(self) -> None:
        """Measure against TRL's reference as it is now, whatever the trainer takes for its reference later."""
        if self.kind == "reference":
            held = self._trainer_reference()
            self._trainer_reference = lambda: held

    # -- choosing --------------------------------------------------------------------------------------------------

    @classmethod
    def choose(cls, trainer: Any, config: RLMonConfig, *, initial_weights: bool) -> BaseModel:
        """The base model for ``trainer`` as ``config`` asks; ``kind="off"`` with a reason where none can be had.

        ``initial_weights`` says whether the trainer's model still holds the weights it was built with: not after a
        checkpoint was loaded into it. Raises ``AttachError`` where one kind was asked for by name and cannot work.
        """
        asked = config.rlmon_base_kl
        if asked == "off":
            return cls(trainer, config, kind="off", reason="rlmon_base_kl is off")
        own = getattr(trainer, "base", None)
        if isinstance(own, cls) and own.active and asked in ("auto", own.kind) and config.rlmon_base_model is None:
            # PPOTrainer holds one for the KL in its reward: the same weights need no second copy.
            return cls(trainer, config, kind=own.kind, frozen=own.frozen, snapshot=own.snapshot)
        try:
            chosen = cls._first_that_works(trainer, config, initial_weights)
        except AttachError:
            raise
        except Exception as error:  # whatever a model of another make does
            chosen = f"{type(error).__name__}: {str(error)[:200]}"
        if isinstance(chosen, cls):
            return chosen
        if asked != "auto":
            raise AttachError(f"rlmon_base_kl={asked} cannot work here ({chosen}). Use rlmon_base_kl: auto.")
        return cls(trainer, config, kind="off", reason=f"{chosen}. Pass rlmon_base_model=<path or name of the base>")

    @classmethod
    def _first_that_works(cls, trainer: Any, config: RLMonConfig, initial_weights: bool) -> BaseModel | str:
        """The base, or why there is none."""
        asked = config.rlmon_base_kl
        blocker = _blocker(trainer)
        if blocker is not None:
            if asked != "auto":
                raise AttachError(f"rlmon_base_kl={asked} cannot work here: {blocker}. Use rlmon_base_kl: off.")
            return cls(trainer, config, kind="off", reason=blocker)
        model = trainer.accelerator.unwrap_model(trainer.model)
        if config.rlmon_base_model is not None:
            return cls(trainer, config, kind="copy", frozen=_load(config.rlmon_base_model, model))
        order: tuple[Kind, ...] = ("adapter", "snapshot") if _is_peft(model) else ("reference", "copy")
        if asked != "auto":
            order = (asked,)  # type: ignore[assignment]
        refusals = []
        for kind in order:
            try:
                refusal = _refusal(kind, trainer, model, initial_weights)
                if refusal is None:
                    return cls(trainer, config, kind=kind, **_held(kind, model))
            except Exception as error:  # quantised and compiled models do not all copy, or run on a few tokens
                refusal = f"{type(error).__name__}: {str(error)[:200]}"
            refusals.append(f"{kind}: {refusal}")
        return "; ".join(refusals)

    # -- checkpoints -----------------------------------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        """Keep what a resumed run cannot rebuild: the snapshot of an adapter."""
        if self.kind == "snapshot" and self.snapshot:
            from safetensors.torch import save_file

            with whole(folder / SNAPSHOT_FILE) as temporary:
                save_file({name: tensor.cpu().contiguous() for name, tensor in self.snapshot.items()}, temporary)

    def resume(self, folder: Path | None, fingerprint: str | None) -> None:
        """Check, in a resumed run, that the base is still the one that the run began with. Raises where the
        checkpoint's snapshot cannot be read."""
        self.tested = True  # policy and base differ now, so the self-test says nothing
        saved = None if folder is None else folder / SNAPSHOT_FILE
        if saved is not None and saved.exists():
            from safetensors.torch import load_file

            device = next(self._policy.parameters()).device
            read = {name: tensor.to(device) for name, tensor in load_file(saved).items()}
            now = {name: p.shape for name, p in self._policy.named_parameters() if p.requires_grad}
            if {name: tensor.shape for name, tensor in read.items()} != now:
                raise ValueError("its tensors are not those of the adapter")
            self.snapshot = read
            self.kind, self.frozen = "snapshot", None
        elif self.active and self.kind != "snapshot" and fingerprint is not None and fingerprint != self.fingerprint:
            self.give_up(
                "the model was not built from the base that this run began with (weights differ). Pass "
                "rlmon_base_model=<path or name of the base>"
            )

    def _fingerprint(self) -> str | None:
        """Hash of a few values of every base tensor: equal for equal bases, cheap at any size."""
        source = self.frozen if self.frozen is not None else self._policy
        adapter_only = self.kind in ("adapter", "snapshot")
        parts = [
            parameter.detach().reshape(-1)[:16].float()
            for _, parameter in source.named_parameters()
            if not (adapter_only and parameter.requires_grad)
        ]
        if not parts:
            return None
        values = torch.cat([part.to(parts[0].device) for part in parts]).cpu().numpy()
        return hashlib.blake2b(values.tobytes(), digest_size=8).hexdigest()

    # -- measuring -------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def tap_policy(self, box: list[torch.Tensor]) -> Iterator[None]:
        """Keep the policy's last hidden states while its loss is computed: no forward of our own is needed.

        Where that drew random numbers (dropout of any kind) they are noisy, and are dropped: `measure` runs its own.
        """

        def keep(module: nn.Module, arguments: Any, output: Any) -> None:
            # Inside the user's forward: what has no such field is left for `measure` to complain about.
            hidden = getattr(output, "last_hidden_state", None)
            if isinstance(hidden, torch.Tensor):
                box.append(hidden.detach())

        before = _random_states(self._policy)
        handle = _backbone(self._policy).register_forward_hook(keep)
        try:
            yield
        finally:
            handle.remove()
        if not all(map(torch.equal, before, _random_states(self._policy))):
            box.clear()

    @torch.no_grad()
    def measure(
        self,
        monitor: Monitor,
        policy_call: tuple[tuple[Any, ...], dict[str, Any]] | None,
        tapped: list[torch.Tensor],
        logps_BT: torch.Tensor,
        rows_B2: torch.Tensor,
        mask_BT: torch.Tensor,
    ) -> None:
        """One forward of the base on at most ``rlmon_base_kl_tokens`` completion tokens of this micro-batch."""
        began = time.thread_time()
        if policy_call is None:
            raise RuntimeError("the policy's forward was not seen")
        args, kwargs = policy_call
        input_ids, attention_mask, completion_length = args[0], args[1], args[2]
        if any(kwargs.get(name) is not None for name in ("pixel_values", "image_grid_thw", "num_images")):
            self.give_up("multimodal inputs")
            return
        rows = rows_B2.to("cpu").tolist()
        sample = sample_tokens(mask_BT.to("cpu").numpy(), monitor.identities(rows), self.max_tokens)
        chosen = torch.as_tensor(np.flatnonzero(sample.weight_B), device=mask_BT.device)
        if not len(chosen):
            return
        mask_bT = torch.as_tensor(sample.chosen_BT, device=mask_BT.device)[chosen]
        ids_bL, attention_bL = input_ids[chosen], attention_mask[chosen]
        tokens_T = ids_bL[:, -completion_length:][mask_bT]

        def completion_states(hidden_bLD: torch.Tensor) -> torch.Tensor:
            return hidden_bLD[:, :-1][:, -completion_length:][mask_bT]

        def states(view: _View) -> torch.Tensor:
            return completion_states(view.hidden(ids_bL, attention_bL))

        def compare(policy_TD: torch.Tensor, base: _View, base_TD: torch.Tensor) -> ExactKL:
            with torch.autocast(policy_TD.device.type, enabled=False):
                return exact_kl(
                    policy_TD,
                    policy.logits,
                    base_TD,
                    base.logits,
                    sampled_T=tokens_T,
                    temperature=self.temperature,
                    logit_transform=logit_transform(self._policy),
                )

        policy = _View(self._policy)
        tapped_TD = completion_states(torch.cat(tapped)[chosen]) if tapped else None
        proven = self.tested
        if not proven and not self._prove(policy, states, compare, tapped_TD):
            return
        # In the precision of the training forward, or the difference would be rounding rather than training.
        with self._accelerator.autocast():
            policy_TD = states(policy) if tapped_TD is None else tapped_TD
            base = self._view()
            base_TD = states(base)
        result = compare(policy_TD, base, base_TD)
        if not proven and tapped_TD is not None and result.logp_pi_T is not None:
            off = float(np.abs(result.logp_pi_T - logps_BT[chosen][mask_bT].double().cpu().numpy()).max())
            if off > SAME_LOGITS_NATS[self._rounds()]:
                self.give_up(
                    f"rlmon's logits differ from the trainer's by {off:.2g} nats: the model transforms its logits "
                    "in a way that rlmon does not know"
                )
                return
        self.tested = True
        monitor.observe_kl(
            rows_b2=rows,
            sampled_b=sample.chosen_BT.sum(1),
            tokens_b=(mask_BT != 0).sum(1).cpu().numpy(),
            weight_b=sample.weight_B,
            result=result,
            seconds=time.thread_time() - began,
        )

    def _prove(
        self,
        policy: _View,
        states: Callable[[_View], torch.Tensor],
        compare: Callable[[torch.Tensor, _View, torch.Tensor], ExactKL],
        tapped_TD: torch.Tensor | None,
    ) -> bool:
        """Whether policy and base agree before the first update, when they are the same function.

        Compared are two forwards of the same rows in evaluation mode, in fp32 where the weights are: those of one
        function agree to the last bit, or to what the policy's own forward differs by when it is run again (in half
        precision: from the training forward). A base that does not agree is replaced by one made now, or given up.
        """
        exact = _in_full_precision(self._policy)
        precision = contextlib.nullcontext if exact else self._accelerator.autocast
        with precision():
            policy_TD = states(policy)
            again_TD = states(policy) if exact or tapped_TD is None else tapped_TD
        noise = _apart(compare(policy_TD, policy, again_TD))
        allowed = [
            min(most, max(least, 10.0 * seen))
            for least, most, seen in zip(SELF_TEST_NATS, SELF_TEST_HALF_NATS, noise, strict=True)
        ]
        if self._given:  # its kernels may be others
            allowed = [10.0 * most for most in SELF_TEST_NATS] if exact else list(SELF_TEST_HALF_NATS)
        while self.active:
            base = self._view()
            with precision():
                apart = _apart(compare(policy_TD, base, states(base)))
            if all(found <= most for found, most in zip(apart, allowed, strict=True)):
                return True
            failure = (
                f"self-test: before the first update policy and base differ by {apart[0]:.2g} nats of KL per token, "
                f"{apart[1]:.2g} nats in one token"
            )
            instead = INSTEAD.get(self.kind)
            refusal = None if instead != "copy" else _copy_refusal(self._policy)
            if instead is None or refusal is not None:
                self.give_up(failure if refusal is None else f"{failure}; copy: {refusal}")
            else:
                self.kind = instead
                self.frozen, self.snapshot = (_held(instead, self._policy).get(of) for of in ("frozen", "snapshot"))
        return False

    def _rounds(self) -> bool:
        """Whether the training forward computes in half precision."""
        return str(self._accelerator.mixed_precision) != "no" or next(self._policy.parameters()).dtype in HALF

    def _view(self) -> _View:
        """The base, as something that can be run."""
        if self.kind == "adapter":
            return _View(self._policy, bare=True)
        if self.kind == "snapshot":
            return _View(self._policy, tensors=self.snapshot)
        base = self._trainer_reference() if self.kind == "reference" else self.frozen
        if base is None:
            raise RuntimeError("the reference model is gone")
        base = self._accelerator.unwrap_model(base)
        device = next(self._policy.parameters()).device
        if next(base.parameters()).device != device:
            base.to(device)
        return _View(base)


@dataclass(frozen=True)
class _View:
    """A model as it is, with its adapter switched off (``bare``), or with other values of some parameters."""

    model: Any
    tensors: Mapping[str, torch.Tensor] | None = None
    bare: bool = False

    def hidden(self, ids_bL: torch.Tensor, attention_bL: torch.Tensor) -> torch.Tensor:
        """Last hidden states [b, L, D] in evaluation mode; virtual tokens may stand before those of ``ids_bL``."""
        arguments: dict[str, Any] = {"input_ids": ids_bL, "attention_mask": attention_bL, "use_cache": False}
        backbone = _backbone(self.model)
        with _evaluation_mode(self.model), self._switched():
            if not _is_peft(self.model):
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
        head = _head(self.model)
        own = None
        if self.tensors is not None:
            names = {id(parameter): name for name, parameter in self.model.named_parameters()}
            own = {
                name: self.tensors[names[id(parameter)]]
                for name, parameter in head.named_parameters()
                if names.get(id(parameter)) in self.tensors
            }
        with _evaluation_mode(head), self._switched():
            logits: torch.Tensor = _called(head, own, hidden_TD.to(next(head.parameters()).dtype))
        return logits

    def _switched(self) -> contextlib.AbstractContextManager[None]:
        return _adapters_off(self.model) if self.bare else contextlib.nullcontext()


def _called(module: nn.Module, tensors: Mapping[str, torch.Tensor] | None, given: Any) -> Any:
    args, kwargs = ((), given) if isinstance(given, dict) else ((given,), {})
    if not tensors:
        return module(*args, **kwargs)
    return torch.func.functional_call(module, dict(tensors), args, kwargs)


def _apart(result: ExactKL) -> tuple[float, float]:
    """Mean KL per token, the larger of both ways, and the largest difference of a sampled token's logp."""
    assert result.logp_pi_T is not None
    assert result.logp_base_T is not None
    kl = max(float(result.kl_pi_base_T.mean()), float(result.kl_base_pi_T.mean()))
    return kl, float(np.abs(result.logp_pi_T - result.logp_base_T).max())


# -- pieces ------------------------------------------------------------------------------------------------------------


def blocked(engine: str | None, *, compiled: bool) -> str | None:
    """Why no base can be run under this engine that shards the model, or with ``torch_compile``."""
    if engine is not None:
        return f"under {engine} a forward of the base is a collective of its own"
    return "torch_compile hides the hidden states that the measurement reads" if compiled else None


def _blocker(trainer: Any) -> str | None:
    """Why no base forward can be run at all in this setting."""
    blocker = blocked(sharding(trainer), compiled=bool(getattr(trainer.args, "torch_compile", False)))
    if blocker is not None:
        return blocker
    if not hasattr(trainer.accelerator.unwrap_model(trainer.model), "get_output_embeddings"):
        return "the model is not a Transformers causal language model"
    return None


def _is_peft(model: nn.Module) -> bool:
    return hasattr(model, "peft_config")


def _refusal(kind: Kind, trainer: Any, model: Any, initial_weights: bool) -> str | None:
    """Why this kind of base cannot be had."""
    if kind == "adapter":
        return _adapter_refusal(model, _tuner_layers(model), initial_weights)
    if kind == "snapshot":
        if not _is_peft(model):
            return "the model has no adapter"
        if not initial_weights:
            return _trained_already(trainer, "adapter")
        _probe(_View(model, tensors=_trainable_tensors(model)))  # raises where it cannot be run alone
        return None
    if kind == "copy":
        return _copy_refusal(model) if initial_weights else _trained_already(trainer, "weights")
    if float(getattr(trainer.args, "beta", 0.0) or 0.0) == 0.0:
        return "beta is 0, so TRL loads no reference model"
    if _is_peft(model):
        return "TRL makes its reference of the policy's own modules and holds none"
    if getattr(trainer.args, "sync_ref_model", False):
        return "sync_ref_model moves TRL's reference away from the initial base"
    return None


def _held(kind: Kind, model: nn.Module) -> dict[str, Any]:
    """What a base of this kind keeps of the model as it is now."""
    if kind == "copy":
        return {"frozen": _frozen_copy(model)}
    return {"snapshot": _trainable_tensors(model)} if kind == "snapshot" else {}


def _tuner_layers(model: nn.Module) -> list[Any]:
    try:
        from peft.tuners.tuners_utils import BaseTunerLayer
    except ImportError:
        return []
    return [module for module in model.modules() if isinstance(module, BaseTunerLayer)]


def _adapter_refusal(model: Any, tuners: list[Any], initial_weights: bool) -> str | None:
    """Why switching the adapter off would not give the initial policy: found out on a few tokens."""
    if not tuners:
        return "the model has no adapter layers that could be switched off"
    for name, adapter in model.peft_config.items():
        if getattr(adapter, "bias", "none") != "none":
            return f"adapter {name!r} trains biases of the base (bias={adapter.bias!r})"
    bare = _View(model, bare=True)
    logits = _probe(bare)
    moved = {name: 1.1 * tensor + 0.1 for name, tensor in _trainable_tensors(model).items()}
    if not torch.equal(_probe(_View(model, tensors=moved, bare=True)), logits):
        return "some of what is trained stays in use when the adapter is switched off (modules_to_save, ...)"
    if initial_weights and float((_probe(_View(model)) - logits).abs().max()) > SELF_TEST_NATS[1]:
        return "the policy does not start at the bare base: the adapter was trained before, or changes it at its start"
    return None


@torch.no_grad()
def _probe(view: _View) -> torch.Tensor:
    """Logits of a few fixed tokens, in the precision of the weights."""
    weight = _head(view.model).weight
    ids = torch.arange(PROBE_TOKENS, device=weight.device)[None] % weight.shape[0]
    return view.logits(view.hidden(ids, torch.ones_like(ids))).float()


def _trained_already(trainer: Any, what: str) -> str:
    return (
        f"rlmon was attached to a policy that was trained already (step {trainer.state.global_step}), so its initial "
        f"{what} cannot be kept"
    )


def _copy_refusal(model: nn.Module) -> str | None:
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


def _frozen_copy(model: nn.Module) -> nn.Module:
    frozen = copy.deepcopy(model)
    for parameter in frozen.parameters():
        parameter.requires_grad_(False)
        parameter.grad = None
    head = _head(frozen)
    if "forward" in vars(head):
        # TRL's cast_lm_head_to_fp32: its function leads back to the head that is being trained.
        vars(head)["forward"] = functools.partial(_project_in_float32, head)
    return frozen.eval()


def _project_in_float32(head: Any, hidden: torch.Tensor) -> torch.Tensor:
    bias = None if head.bias is None else head.bias.float()
    return nn.functional.linear(hidden.float(), head.weight.float(), bias)


def _load(name: str, like: nn.Module) -> nn.Module:
    from transformers import AutoModelForCausalLM

    first = next(like.parameters())
    with torch.random.fork_rng(devices=[first.device] if first.device.type == "cuda" else []):
        try:
            loaded = AutoModelForCausalLM.from_pretrained(name, dtype=first.dtype)
        except (OSError, ValueError) as error:
            raise AttachError(
                f"rlmon_base_model={name!r} cannot be loaded: {error}. Give a folder or name that "
                "AutoModelForCausalLM.from_pretrained takes, or leave it out to copy the model as it starts."
            ) from error
    loaded.requires_grad_(False)
    moved: nn.Module = loaded.to(first.device)
    return moved.eval()


def _trainable_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


@contextlib.contextmanager
def _adapters_off(model: nn.Module) -> Iterator[None]:
    """Switch adapters off by their flag alone: PEFT's own context would also flip ``requires_grad``."""
    tuners = _tuner_layers(model)
    before = [tuner._disable_adapters for tuner in tuners]
    for tuner in tuners:
        tuner._disable_adapters = True
    try:
        yield
    finally:
        for tuner, flag in zip(tuners, before, strict=True):
            tuner._disable_adapters = flag


@contextlib.contextmanager
def _evaluation_mode(model: nn.Module) -> Iterator[None]:
    """``model.eval()`` for a while; every module's own flag is restored, not set to one value."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _in_full_precision(model: Any) -> bool:
    """Whether its forward can be run without rounding to half precision."""
    if "flash" in str(getattr(model.config, "_attn_implementation", "")):
        return False
    rounded = False
    if next(model.parameters()).device.type == "cuda":
        with contextlib.suppress(RuntimeError):  # both of PyTorch's ways to allow TF32 were used
            rounded = torch.get_float32_matmul_precision() != "highest"
    return not rounded and not any(parameter.dtype in HALF for parameter in model.parameters())


def _random_states(model: nn.Module) -> list[torch.Tensor]:
    """Of the generators that a forward of the model draws from."""
    device = next(model.parameters()).device
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return states


def _backbone(model: Any) -> nn.Module:
    inner = model.get_base_model() if _is_peft(model) else model
    backbone: nn.Module = inner.base_model
    return backbone


def _head(model: Any) -> nn.Module:
    inner = model.get_base_model() if _is_peft(model) else model
    head: nn.Module = inner.get_output_embeddings()
    return head


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
