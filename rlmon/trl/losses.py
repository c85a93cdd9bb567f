"""The hooks on a trainer's loss: what it shows of the policy's tokens, its hidden states and its critic."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from rlmon.trl.facts import sharding
from rlmon.trl.generation import Generation
from rlmon.trl.unmask import LOGPS, CannotReadError, PolicyCall, masked_rows, unmask
from rlmon.trl.watched import Watched
from rlmon.trl.wrapping import Around, Original, bound_arguments

if TYPE_CHECKING:
    from rlmon.monitor import Monitor

CRITIC = "_compute_value_loss"
"""Wrapped too where the trainer has a critic."""


@dataclass
class _Loss:
    """What one call of the loss showed."""

    inputs: Any
    tapped: list[torch.Tensor]
    """Last hidden states of the policy, where a base measurement asked for them."""
    call: tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]] | None = None
    """The policy's ``_get_per_token_logps_and_entropies`` and its arguments."""
    result: Any = None
    """What it returned: a tuple of two before TRL 1.8, of three since."""
    inner: bool = False
    """Another loss was computed within this one, and is what counts."""

    @property
    def has_entropies(self) -> bool:
        return _has_entropies(self.result)


@dataclass
class LossView:
    """What the losses of one step have shown of the policy's tokens."""

    method: str | None = None
    """The method that computed the last of them."""
    logps: bool = False
    entropies: bool = False

    def saw(self, method: str, *, logps: bool, entropies: bool) -> None:
        """Take note of one loss, computed by ``method``."""
        self.method = method
        self.logps = self.logps or logps
        self.entropies = self.entropies or entropies

    def unseen(self, trainer: type) -> dict[str, str]:
        """Signals that this trainer's loss does not show, with the reason."""
        if self.entropies:
            return {}
        if self.method is None:
            loss = f"{trainer.__name__} computes its loss without TRL's compute_loss and"
        else:
            owner = next(kind for kind in trainer.__mro__ if self.method in vars(kind))
            loss = f"{owner.__name__}.{self.method} computes a loss of its own and"
        if self.logps:
            return {"entropy": f"{loss} asks for log-probabilities without entropies (compute_entropy=True gives them)"}
        reason = f"{loss} does not call _get_per_token_logps_and_entropies, where rlmon reads the policy's tokens"
        return {"entropy": reason, "kl": reason}


class Losses:
    """Sees each loss of one trainer; ``generation`` knows whose tokens those of a batch are."""

    def __init__(self, watched: Watched, generation: Generation) -> None:
        self._watched = watched
        self._generation = generation
        self._loss: _Loss | None = None
        self._shown = LossView()
        self._blocked = _forward_blocker(watched.trainer)
        """Why no forward of our own can be run in the middle of training."""
        self._blocked_said = False
        self._base_due = False
        self.hooks: Mapping[str, Around] = {
            "_get_per_token_logps_and_entropies": self._logps,
            "_compute_loss": self._compute_loss,
            "compute_loss": self._whole_loss,
            CRITIC: self._compute_value_loss,
        }

    def step_begins(self, *, measures_base: bool) -> None:
        """``measures_base``: the first loss of the step compares the policy with its base; alike on all ranks."""
        base = self._watched.base
        self._base_due = measures_base and base is not None and base.active

    def step_ends(self) -> None:
        """Tell the monitor what the step's losses could not show; the first time, for people and for the log."""
        watched, shown = self._watched, self._shown
        self._shown = LossView()
        if watched.monitor is not None:
            with watched.monitor.guard("capture.tokens"):
                unseen = shown.unseen(type(watched.trainer))
                if watched.base is None or not watched.base.active:  # there is no KL for another reason
                    unseen.pop("kl", None)
                watched.monitor.journal.cannot_see(unseen)

    # -- the hooks -------------------------------------------------------------------------------------------------

    def _whole_loss(self, original: Original, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Around ``compute_loss``: what counts where a trainer computes its loss there, without ``_compute_loss``."""
        monitor = self._watched.monitor
        if monitor is None or self._loss is not None:
            return original(*args, **kwargs)
        with self._listening(monitor, self._inputs(monitor, original, args, kwargs)) as loss:
            value = original(*args, **kwargs)
        if not loss.inner:
            with monitor.guard("capture.tokens"):
                self._observe_tokens(monitor, loss, value[0] if isinstance(value, tuple) else value, "compute_loss")
        return value

    def _compute_loss(self, original: Original, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        monitor, actuators = self._watched.monitor, self._watched.actuators
        if monitor is None or (self._loss is not None and self._loss.inner):
            return original(*args, **kwargs)
        if self._loss is not None:
            self._loss.inner = True
        with contextlib.ExitStack() as stack:
            inputs = self._inputs(monitor, original, args, kwargs)
            if actuators is not None:
                # Before anything listens: the reference of an adapter is a forward of the policy's own modules.
                stack.enter_context(actuators.loss(monitor, inputs))
            loss = stack.enter_context(self._listening(monitor, inputs))
            loss.inner = True
            value = original(*args, **kwargs)
        with monitor.guard("capture.tokens"):
            self._observe_tokens(monitor, loss, value, "_compute_loss")
        if actuators is not None:
            value = actuators.add_to_loss(monitor, value, inputs, loss.result)
        return value

    def _inputs(self, monitor: Monitor, original: Original, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        inputs: Any = {}
        with monitor.guard("capture.tokens"):
            inputs = bound_arguments(original, args, kwargs, ("model", "inputs"))["inputs"]
        return inputs

    @contextlib.contextmanager
    def _listening(self, monitor: Monitor, inputs: Any) -> Iterator[_Loss]:
        """While the loss is computed, the policy's calls are taken note of; with them, where due, its hidden states."""
        before, base = self._loss, self._watched.base
        loss = _Loss(inputs, [] if before is None else before.tapped)
        with contextlib.ExitStack() as stack:
            if before is None and self._base_due and base is not None and self._watched.split() == "train":
                with monitor.guard("base.tap"):
                    stack.enter_context(base.tap_policy(loss.tapped))
            self._loss = loss
            stack.callback(setattr, self, "_loss", before)
            yield loss

    def _logps(self, original: Original, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = original(*args, **kwargs)
        monitor, loss = self._watched.monitor, self._loss
        if monitor is not None and loss is not None and not loss.has_entropies:
            with monitor.guard("capture.tokens"):
                self._take_policy_call(loss, original, args, kwargs, result)
        return result

    def _take_policy_call(
        self, loss: _Loss, original: Original, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
    ) -> None:
        """Remember the policy's call: the first of the model in training, better one with entropies than one without.

        A loss may ask for logprobs of a reference as well, which is another model or the same without gradients.
        """
        watched = self._watched
        model = bound_arguments(original, args, kwargs, LOGPS)["model"]
        called = watched.trainer.accelerator.unwrap_model(model)
        ours = getattr(called, "_orig_mod", called) is watched.policy  # torch.compile wraps the module that it is given
        if not ours or (watched.split() == "train" and not torch.is_grad_enabled()):
            return
        if loss.result is None or _has_entropies(result):
            loss.call, loss.result = (original, args, kwargs), result

    def _compute_value_loss(self, original: Original, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = original(*args, **kwargs)
        monitor = self._watched.monitor
        if monitor is not None:
            with monitor.guard("metrics.values"):
                inputs = bound_arguments(original, args, kwargs, ("values_BT", "inputs"))["inputs"]
                monitor.observe_values(
                    split=self._watched.split(),
                    values_BT=inputs["values"],
                    returns_BT=inputs["rewards_to_go"],
                    advantages_BT=inputs["advantages"],
                    mask_BT=inputs["value_mask"],
                    loss=result[0].detach(),
                    clip_ratio=result[1].detach(),
                )
        return result

    # -- one loss --------------------------------------------------------------------------------------------------

    def _observe_tokens(self, monitor: Monitor, loss: _Loss, value: torch.Tensor, method: str) -> None:
        watched, inputs, split = self._watched, loss.inputs, self._watched.split()
        self._shown.saw(method, logps=loss.result is not None, entropies=loss.has_entropies)
        if loss.call is None:
            return
        logps_BT = loss.result[0].detach()
        entropies_BT = loss.result[1].detach() if loss.has_entropies else None
        call = PolicyCall(*loss.call, logps_BT, entropies_BT, loss.tapped)
        rows_B2 = self._generation.rows_of(monitor, inputs, len(logps_BT))
        mask_BT = inputs["completion_mask"]
        if inputs.get("tool_mask") is not None:
            mask_BT = mask_BT * inputs["tool_mask"]
        attention_BL = None
        masked = masked_rows([self._generation.own_tokens(split, *row) for row in rows_B2], mask_BT)
        if masked:
            with monitor.guard("capture.tokens"):
                try:
                    mask_BT, attention_BL = unmask(
                        call, masked, mask_BT, policy=watched.policy, base=watched.base, blocked=self._blocked
                    )
                except CannotReadError as error:
                    if not self._blocked_said:
                        self._blocked_said = True
                        monitor.journal.note(str(error))
        monitor.observe_tokens(
            split=split,
            rows_B2=rows_B2,
            logps_BT=call.logps_BT,
            entropies_BT=call.entropies_BT,
            mask_BT=mask_BT,
            advantages_B=inputs.get("advantages"),
            loss=value.detach(),
        )
        if self._base_due and split == "train" and watched.base is not None:
            self._base_due = False
            with monitor.guard("base.forward"):
                rows = torch.tensor(rows_B2, device=mask_BT.device)
                # What the policy did not sample in this round says nothing of its divergence.
                mask_BT = mask_BT * (rows[:, 1:] >= 0)
                arguments = call.behind_the_model(attention_BL)
                watched.base.measure(monitor, arguments, call.tapped, call.logps_BT, rows, mask_BT)


def _has_entropies(result: Any) -> bool:
    return result is not None and result[1] is not None


def _forward_blocker(trainer: Any) -> str | None:
    """Why no forward of our own can be run in the middle of training; ``None`` where it can."""
    engine = sharding(trainer)
    if engine is not None:
        return f"under {engine} a forward of the policy is a collective of its own"
    return "torch_compile would compile another forward" if getattr(trainer.args, "torch_compile", False) else None
