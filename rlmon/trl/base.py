"""The initial base model, for KL-to-base whatever ``beta`` is.

Where it comes from, cheapest first (``rlmon_base_kl=auto`` takes the first that applies and passes the self-test):

=========  ====================================================================================================
adapter    LoRA that starts as the identity: the same weights with the adapter switched off
snapshot   any other adapter (PiSSA, trained biases, an adapter that was trained before): its initial tensors
reference  TRL's own reference model, when it stays the initial base
copy       a frozen copy of the initial weights, when at least 20 % of memory stays free
=========  ====================================================================================================

Self-test: at the first step of a fresh run policy and base are the same function, so their logprobs must agree;
where they do not, adapter falls back to snapshot and the others report no KL, with the reason. A measurement never
touches ``requires_grad``, ``.data``, module modes (they are restored flag by flag) or a global random state.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import hashlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import nn

from rlmon.config import RLMonConfig
from rlmon.errors import AttachError
from rlmon.metrics.sampling import sample_tokens
from rlmon.metrics.tokens import exact_kl
from rlmon.trl.checkpoint import whole

if TYPE_CHECKING:
    from rlmon.monitor import Monitor

Kind = Literal["adapter", "snapshot", "reference", "copy", "off"]
SELF_TEST_TOLERANCE_NATS = {torch.float32: 1e-3, torch.float64: 1e-6}
"""Per-token |Δlogp| allowed between base and policy before the first update, by dtype; 0.1 for half precision."""
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
        self.kind: Kind = kind
        self.reason = reason
        self.frozen = frozen
        self.snapshot = snapshot
        self.fingerprint = None if kind == "off" else self._fingerprint()
        self.tested = False

    @property
    def active(self) -> bool:
        return self.kind != "off"

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
        blocker = _blocker(trainer)
        model = trainer.accelerator.unwrap_model(trainer.model)
        tuners = _tuner_layers(model)
        if blocker is not None:
            if asked != "auto":
                raise AttachError(f"rlmon_base_kl={asked} cannot work here: {blocker}. Use rlmon_base_kl: off.")
            return cls(trainer, config, kind="off", reason=blocker)
        if config.rlmon_base_model is not None:
            return cls(trainer, config, kind="copy", frozen=_load(config.rlmon_base_model, model))
        beta = float(getattr(trainer.args, "beta", 0.0) or 0.0)
        synced = bool(getattr(trainer.args, "sync_ref_model", False))
        order: tuple[Kind, ...] = ("adapter", "snapshot") if tuners else ("reference", "copy")
        if asked != "auto":
            order = (asked,)  # type: ignore[assignment]
        refusals = []
        for kind in order:
            if kind == "adapter":
                refusal = _adapter_refusal(model, tuners, initial_weights)
            elif kind == "snapshot":
                refusal = "the model has no adapter" if not tuners else None
                if refusal is None and not initial_weights:
                    refusal = "a checkpoint was loaded before rlmon was attached, so the initial adapter is gone"
            elif kind == "reference":
                refusal = None
                if beta == 0.0:
                    refusal = "beta is 0, so TRL loads no reference model"
                elif synced:
                    refusal = "sync_ref_model moves TRL's reference away from the initial base"
            else:
                refusal = _copy_refusal(model, initial_weights)
            if refusal is None:
                try:
                    return cls(
                        trainer,
                        config,
                        kind=kind,
                        frozen=_frozen_copy(model) if kind == "copy" else None,
                        snapshot=_trainable_tensors(model) if kind == "snapshot" else None,
                    )
                except Exception as error:  # quantised and compiled models do not all copy
                    refusal = f"{type(error).__name__}: {str(error)[:200]}"
            refusals.append(f"{kind}: {refusal}")
        text = "; ".join(refusals)
        if asked != "auto":
            raise AttachError(f"rlmon_base_kl={asked} cannot work here ({text}). Use rlmon_base_kl: auto.")
        return cls(trainer, config, kind="off", reason=f"{text}. Pass rlmon_base_model=<path or name of the base>")

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
        """Keep the policy's last hidden states while its loss is computed: no forward of our own is needed."""
        if _has_dropout(self._policy):
            yield  # the training forward is noisy: `measure` runs its own
            return

        def keep(module: nn.Module, arguments: Any, output: Any) -> None:
            # Inside the user's forward: what has no such field is left for `measure` to complain about.
            hidden = getattr(output, "last_hidden_state", None)
            if isinstance(hidden, torch.Tensor):
                box.append(hidden.detach())

        handle = _backbone(self._policy).register_forward_hook(keep)
        try:
            yield
        finally:
            handle.remove()

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
        policy_head = _head(self._policy)

        def completion_states(hidden_bLD: torch.Tensor) -> torch.Tensor:
            return hidden_bLD[:, :-1][:, -completion_length:][mask_bT]

        if tapped:
            policy_TD = completion_states(torch.cat(tapped)[chosen])
            logps_T = logps_BT[chosen][mask_bT]
        else:
            with _evaluation_mode(self._policy), self._accelerator.autocast():
                policy_TD = completion_states(_hidden(self._policy, ids_bL, attention_bL))
            logps_T = None
        tokens_T = ids_bL[:, -completion_length:][mask_bT]
        for _ in range(2):
            # In the precision of the training forward, or the difference would be rounding rather than training.
            with self._accelerator.autocast():
                base_TD, base_head = self._base_states(ids_bL, attention_bL, completion_states)
            with torch.autocast(policy_TD.device.type, enabled=False):
                result = exact_kl(
                    policy_TD,
                    _in_dtype(policy_head),
                    base_TD,
                    _in_dtype(base_head),
                    sampled_T=tokens_T,
                    temperature=self.temperature,
                    logit_transform=logit_transform(self._policy),
                )
            if self.tested:
                break
            assert result.logp_pi_T is not None
            assert result.logp_base_T is not None
            # Fresh run, before the first update: both models are the same function, or this is not the base.
            exact = str(self._accelerator.mixed_precision) == "no"
            tolerance = SELF_TEST_TOLERANCE_NATS.get(next(self._policy.parameters()).dtype, 0.1) if exact else 0.1
            if logps_T is not None:
                off = float(np.abs(result.logp_pi_T - logps_T.double().cpu().numpy()).max())
                if off > max(tolerance, 1e-3):
                    self.give_up(
                        f"rlmon's logits differ from the trainer's by {off:.2g} nats: the model transforms its logits "
                        "in a way that rlmon does not know"
                    )
                    return
            gap = float(np.abs(result.logp_pi_T - result.logp_base_T).max())
            if gap <= tolerance:
                self.tested = True
                break
            if self.kind != "adapter":
                self.give_up(f"self-test: before the first update policy and base differ by {gap:.2g} nats")
                return
            self.kind, self.snapshot = "snapshot", _trainable_tensors(self._policy)
        monitor.observe_kl(
            rows_b2=rows,
            sampled_b=sample.chosen_BT.sum(1),
            tokens_b=(mask_BT != 0).sum(1).cpu().numpy(),
            weight_b=sample.weight_B,
            result=result,
            seconds=time.thread_time() - began,
        )

    def _base_states(
        self,
        ids_bL: torch.Tensor,
        attention_bL: torch.Tensor,
        completion_states: Callable[[torch.Tensor], torch.Tensor],
    ) -> tuple[torch.Tensor, nn.Module]:
        if self.kind == "adapter":
            with _evaluation_mode(self._policy), _adapters_off(self._policy):
                return completion_states(_hidden(self._policy, ids_bL, attention_bL)), _head(self._policy)
        if self.kind == "snapshot":
            assert self.snapshot is not None
            backbone = _backbone(self._policy)
            names = {id(parameter): name for name, parameter in self._policy.named_parameters()}
            swapped = {
                name: self.snapshot[names[id(parameter)]]
                for name, parameter in backbone.named_parameters()
                if names.get(id(parameter)) in self.snapshot
            }
            with _evaluation_mode(self._policy):
                output = torch.func.functional_call(
                    backbone,
                    swapped,
                    (),
                    {"input_ids": ids_bL, "attention_mask": attention_bL, "use_cache": False},
                )
            return completion_states(output.last_hidden_state), _head(self._policy)
        base = self._trainer_reference() if self.kind == "reference" else self.frozen
        if base is None:
            raise RuntimeError("the reference model is gone")
        base = self._accelerator.unwrap_model(base)
        device = ids_bL.device
        if next(base.parameters()).device != device:
            base.to(device)
        with _evaluation_mode(base):
            return completion_states(_hidden(base, ids_bL, attention_bL)), _head(base)


# -- pieces ------------------------------------------------------------------------------------------------------------


def _blocker(trainer: Any) -> str | None:
    """Why no base forward can be run at all in this setting."""
    distributed = str(getattr(trainer.accelerator, "distributed_type", "NO")).rsplit(".", 1)[-1]
    if distributed in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):
        return f"under {distributed} a forward of the base is a collective of its own"
    if getattr(trainer.args, "torch_compile", False):
        return "torch_compile hides the hidden states that the measurement reads"
    if not hasattr(trainer.accelerator.unwrap_model(trainer.model), "get_output_embeddings"):
        return "the model is not a Transformers causal language model"
    return None


def _tuner_layers(model: nn.Module) -> list[Any]:
    try:
        from peft.tuners.tuners_utils import BaseTunerLayer
    except ImportError:
        return []
    return [module for module in model.modules() if isinstance(module, BaseTunerLayer)]


def _adapter_refusal(model: Any, tuners: list[Any], initial_weights: bool) -> str | None:
    """Why switching the adapter off would not give the initial policy."""
    if not tuners:
        return "the model has no adapter"
    for name, adapter in model.peft_config.items():
        if getattr(adapter, "bias", "none") != "none":
            return f"adapter {name!r} trains biases of the base (bias={adapter.bias!r})"
        if getattr(adapter, "modules_to_save", None):
            return f"adapter {name!r} trains whole modules of the base (modules_to_save)"
        if isinstance(getattr(adapter, "init_lora_weights", True), str) and adapter.init_lora_weights not in (
            "gaussian",
            "eva",
        ):
            return f"adapter {name!r} changes the base at its start (init_lora_weights={adapter.init_lora_weights!r})"
    if initial_weights:
        for tuner in tuners:
            for weight in getattr(tuner, "lora_B", {}).values():
                if bool(weight.weight.detach().any()):
                    return "the adapter was trained before, so the policy does not start at the bare base"
    return None


def _copy_refusal(model: nn.Module, initial_weights: bool) -> str | None:
    if not initial_weights:
        return "a checkpoint was loaded before rlmon was attached, so the initial weights are gone"
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


def _in_dtype(head: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    """The head, fed in its own dtype: under autocast hidden states arrive in half precision."""
    dtype = next(head.parameters()).dtype
    return lambda hidden: head(hidden.to(dtype))


def _has_dropout(model: nn.Module) -> bool:
    if any(isinstance(module, nn.Dropout) and module.p > 0 and module.training for module in model.modules()):
        return True
    config = getattr(model, "config", None)
    return any(bool(getattr(config, name, 0)) for name in ("attention_dropout", "attn_pdrop", "resid_pdrop"))


def _backbone(model: Any) -> nn.Module:
    inner = model.get_base_model() if hasattr(model, "peft_config") else model
    backbone: nn.Module = inner.base_model
    return backbone


def _head(model: Any) -> nn.Module:
    inner = model.get_base_model() if hasattr(model, "peft_config") else model
    head: nn.Module = inner.get_output_embeddings()
    return head


def _hidden(model: nn.Module, ids_bL: torch.Tensor, attention_bL: torch.Tensor) -> torch.Tensor:
    output = _backbone(model)(input_ids=ids_bL, attention_mask=attention_bL, use_cache=False)
    hidden: torch.Tensor = output.last_hidden_state
    return hidden


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
