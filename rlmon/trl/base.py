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
from rlmon.metrics.tokens import ExactKL, exact_kl
from rlmon.trl.base_kinds import (
    WAYS,
    AdapterOff,
    Base,
    BaseKind,
    FrozenCopy,
    Snapshot,
    TrainersReference,
    instead_of,
)
from rlmon.trl.checkpoint import whole
from rlmon.trl.facts import sharding
from rlmon.trl.models import (
    HALF,
    View,
    backbone_of,
    in_full_precision,
    is_peft,
    logit_transform,
    random_states,
)

if TYPE_CHECKING:
    from rlmon.monitor import Monitor

SELF_TEST_NATS = (1e-6, 1e-4)
"""Mean KL per token, and largest |Δlogp| of a token, allowed between base and policy before the first update. Two
forwards of one function differ by nothing, or by 1.3e-7 and 5e-6 where another kernel or another order of sums computes
them in fp32 (measured: docs/decisions/base-model.md)."""
SELF_TEST_HALF_NATS = (1e-3, 0.2)
"""The same at most, in half precision, where other kernels make up to 2.7e-4 and .07."""
SAME_LOGITS_NATS = (1e-3, 0.1)
"""Largest difference of a token's logp between rlmon's logits and the trainer's, in fp32 and in half precision, where a
logit of 16 is rounded by up to .06. A transform of the logits that rlmon does not know makes more."""
SNAPSHOT_FILE = "base_snapshot.safetensors"


class BaseModel:
    """Measures KL between the policy in training and its initial base on a bounded token sample."""

    def __init__(self, trainer: Any, config: RLMonConfig, own: Base | None, reason: str = "") -> None:
        self._accelerator = trainer.accelerator
        self._policy: nn.Module = trainer.accelerator.unwrap_model(trainer.model)
        self.temperature: float = float(trainer.args.temperature)
        self.max_tokens = config.rlmon_base_kl_tokens
        self._given = config.rlmon_base_model is not None
        self.own = own
        """The base; ``None`` where there is none, for this ``reason``."""
        self.reason = reason
        self.fingerprint = None if own is None else self._fingerprint()
        self.tested = False

    @property
    def kind(self) -> BaseKind | Literal["off"]:
        return "off" if self.own is None else self.own.kind

    @property
    def active(self) -> bool:
        return self.own is not None

    def unmeasured(self, global_step: int, every: int) -> str:
        """Why the step that begins at ``global_step`` has no comparison, where it has none."""
        if not self.active:
            return self.reason
        if global_step % every:
            return f"measured every {every} steps"
        return "no completion token of this step came to be compared with the base"

    def give_up(self, reason: str) -> None:
        """Measure no further KL; the metric is null with this reason from now on."""
        self.own, self.reason = None, reason

    def hold_reference(self) -> None:
        """Measure against TRL's reference as it is now, whatever the trainer takes for its reference later."""
        if isinstance(self.own, TrainersReference):
            held = self.own.get()
            self.own = TrainersReference(lambda: held)

    # -- choosing --------------------------------------------------------------------------------------------------

    @classmethod
    def choose(cls, trainer: Any, config: RLMonConfig, *, initial_weights: bool) -> BaseModel:
        """The base model for ``trainer`` as ``config`` asks; ``kind="off"`` with a reason where none can be had.

        ``initial_weights`` says whether the trainer's model still holds the weights it was built with: not after a
        checkpoint was loaded into it. Raises ``AttachError`` where one kind was asked for by name and cannot work.
        """
        asked = config.rlmon_base_kl
        if asked == "off":
            return cls(trainer, config, None, "rlmon_base_kl is off")
        own = getattr(trainer, "base", None)
        if isinstance(own, cls) and own.active and asked in ("auto", own.kind) and config.rlmon_base_model is None:
            # PPOTrainer holds one for the KL in its reward: the same weights need no second copy.
            return cls(trainer, config, own.own)
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
        return cls(trainer, config, None, f"{chosen}. Pass rlmon_base_model=<path or name of the base>")

    @classmethod
    def _first_that_works(cls, trainer: Any, config: RLMonConfig, initial_weights: bool) -> BaseModel | str:
        """The base, or why there is none."""
        asked = config.rlmon_base_kl
        blocker = _blocker(trainer)
        if blocker is not None:
            if asked != "auto":
                raise AttachError(f"rlmon_base_kl={asked} cannot work here: {blocker}. Use rlmon_base_kl: off.")
            return cls(trainer, config, None, blocker)
        model = trainer.accelerator.unwrap_model(trainer.model)
        if config.rlmon_base_model is not None:
            return cls(trainer, config, FrozenCopy.loaded(config.rlmon_base_model, model))
        order: tuple[BaseKind, ...] = ("adapter", "snapshot") if is_peft(model) else ("reference", "copy")
        if asked != "auto":
            order = (asked,)  # type: ignore[assignment]
        refusals = []
        for kind in order:
            try:
                found = WAYS[kind].of(trainer, model, initial_weights=initial_weights)
                if not isinstance(found, str):
                    return cls(trainer, config, found)
            except Exception as error:  # quantised and compiled models do not all copy, or run on a few tokens
                found = f"{type(error).__name__}: {str(error)[:200]}"
            refusals.append(f"{kind}: {found}")
        return "; ".join(refusals)

    # -- checkpoints -----------------------------------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        """Keep what a resumed run cannot rebuild: the snapshot of an adapter."""
        if isinstance(self.own, Snapshot) and self.own.tensors:
            from safetensors.torch import save_file

            with whole(folder / SNAPSHOT_FILE) as temporary:
                save_file({name: tensor.cpu().contiguous() for name, tensor in self.own.tensors.items()}, temporary)

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
            self.own = Snapshot(read)
        elif (
            self.active
            and not isinstance(self.own, Snapshot)
            and fingerprint is not None
            and fingerprint != self.fingerprint
        ):
            self.give_up(
                "the model was not built from the base that this run began with (weights differ). Pass "
                "rlmon_base_model=<path or name of the base>"
            )

    def _fingerprint(self) -> str | None:
        """Hash of a few values of every base tensor: equal for equal bases, cheap at any size."""
        source = self.own.model if isinstance(self.own, FrozenCopy) else self._policy
        adapter_only = isinstance(self.own, AdapterOff | Snapshot)
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

        before = random_states(self._policy)
        handle = backbone_of(self._policy).register_forward_hook(keep)
        try:
            yield
        finally:
            handle.remove()
        if not all(map(torch.equal, before, random_states(self._policy))):
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

        def states(view: View) -> torch.Tensor:
            return completion_states(view.hidden(ids_bL, attention_bL))

        def compare(policy_TD: torch.Tensor, base: View, base_TD: torch.Tensor) -> ExactKL:
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

        policy = View(self._policy)
        tapped_TD = completion_states(torch.cat(tapped)[chosen]) if tapped else None
        proven = self.tested
        if not proven and not self._prove(policy, states, compare, tapped_TD):
            return
        # In the precision of the training forward, or the difference would be rounding rather than training.
        with self._accelerator.autocast():
            policy_TD = states(policy) if tapped_TD is None else tapped_TD
            assert self.own is not None
            base = self.own.view(self._policy)
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
        policy: View,
        states: Callable[[View], torch.Tensor],
        compare: Callable[[torch.Tensor, View, torch.Tensor], ExactKL],
        tapped_TD: torch.Tensor | None,
    ) -> bool:
        """Whether policy and base agree before the first update, when they are the same function.

        Compared are two forwards of the same rows in evaluation mode, in fp32 where the weights are: those of one
        function agree to the last bit, or to what the policy's own forward differs by when it is run again (in half
        precision: from the training forward). A base that does not agree is replaced by one made now, or given up.
        """
        exact = in_full_precision(self._policy)
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
        while self.own is not None:
            base = self.own.view(self._policy)
            with precision():
                apart = _apart(compare(policy_TD, base, states(base)))
            if all(found <= most for found, most in zip(apart, allowed, strict=True)):
                return True
            failure = (
                f"self-test: before the first update policy and base differ by {apart[0]:.2g} nats of KL per token, "
                f"{apart[1]:.2g} nats in one token"
            )
            instead = instead_of(self.own, self._policy)
            if instead is None or isinstance(instead, str):
                self.give_up(failure if instead is None else f"{failure}; copy: {instead}")
            else:
                self.own = instead
        return False

    def _rounds(self) -> bool:
        return str(self._accelerator.mixed_precision) != "no" or next(self._policy.parameters()).dtype in HALF


def _apart(result: ExactKL) -> tuple[float, float]:
    """Mean KL per token, the larger of both ways, and the largest difference of a sampled token's logp."""
    assert result.logp_pi_T is not None
    assert result.logp_base_T is not None
    kl = max(float(result.kl_pi_base_T.mean()), float(result.kl_base_pi_T.mean()))
    return kl, float(np.abs(result.logp_pi_T - result.logp_base_T).max())


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
