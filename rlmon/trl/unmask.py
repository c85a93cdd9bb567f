"""Completions that a trainer masks out of its loss, measured all the same.

``mask_truncated_completions`` takes a completion that was cut off out of the loss *and* out of the attention mask, so
that TRL's own forward says nothing of its tokens (TRL from 1.15 on returns zeros there, before it numbers without their
context). They are as much the policy's output as the others, and leaving them out shows a policy that always ends.
So their rows, and no others, are read once more, without gradients.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rlmon.errors import RLMonError
from rlmon.trl.base import BaseModel
from rlmon.trl.models import evaluation_mode
from rlmon.trl.wrapping import bound_arguments

LOGPS = ("model", "input_ids", "attention_mask", "logits_to_keep")
"""TRL's names of the leading parameters of ``_get_per_token_logps_and_entropies``."""
PICTURES = ("pixel_values", "image_grid_thw", "num_images")


class CannotReadError(RLMonError):
    """The rows that a trainer masks cannot be read once more in this setting."""


@dataclass
class PolicyCall:
    """One call of ``_get_per_token_logps_and_entropies`` on the policy, and what it showed (without gradients)."""

    original: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    logps_BT: torch.Tensor
    entropies_BT: torch.Tensor | None
    tapped: list[torch.Tensor]
    """Last hidden states [B, L, D], where a comparison with the base asked for them."""

    def given(self) -> dict[str, Any]:
        return bound_arguments(self.original, self.args, self.kwargs, LOGPS)

    def behind_the_model(self, attention_BL: torch.Tensor | None) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Input ids, attention mask and length of the completions, then all other arguments by name; with another
        attention mask [B, L] where one is given."""
        given = self.given()
        seen_BL = given["attention_mask"] if attention_BL is None else attention_BL
        rest = {name: value for name, value in given.items() if name not in LOGPS}
        return (given["input_ids"], seen_BL, given["logits_to_keep"]), rest


def masked_rows(own_B: Sequence[NDArray[np.bool_] | None], mask_BT: torch.Tensor) -> dict[int, NDArray[np.bool_]]:
    """Rows of a batch in which the trainer's mask leaves out tokens of the model's own, with which those are."""
    counts_B = mask_BT.sum(1).tolist()
    return {
        i: own
        for i, (own, count) in enumerate(zip(own_B, counts_B, strict=True))
        if own is not None and len(own) <= mask_BT.shape[1] and int(own.sum()) > int(count)
    }


def unmask(
    call: PolicyCall,
    rows: Mapping[int, NDArray[np.bool_]],
    mask_BT: torch.Tensor,
    *,
    policy: Any,
    base: BaseModel | None,
    blocked: str | None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """``mask_BT`` with the own tokens of ``rows`` counted, and the attention mask [B, L] that they were read with
    (``None``: that of the trainer). Puts what was read into ``call``.

    Raises ``CannotReadError`` where another forward is needed and cannot be run.
    """
    given = call.given()
    attention_BL, length = given["attention_mask"], mask_BT.shape[1]
    full_BT = mask_BT.clone()
    seen_BL = attention_BL.clone()
    for i, own in rows.items():
        full_BT[i] = 0
        full_BT[i, : len(own)] = torch.from_numpy(own).to(full_BT)
        seen_BL[i, attention_BL.shape[1] - length :][: len(own)] = 1
    unread = [i for i in rows if not torch.equal(seen_BL[i], attention_BL[i])]
    if not unread:  # the trainer masks its loss alone
        return full_BT, None
    if any(given.get(name) is not None for name in PICTURES):
        blocked = "the prompts hold images"
    if blocked is not None:
        raise CannotReadError(
            f"Completions that the trainer masks out of its loss are in no entropy, log-probability or KL: {blocked}."
        )
    box: list[torch.Tensor] = []
    with torch.no_grad(), evaluation_mode(policy), contextlib.ExitStack() as stack:
        if call.tapped and base is not None:
            stack.enter_context(base.tap_policy(box))
        result = call.original(
            policy, given["input_ids"][unread], seen_BL[unread], given["logits_to_keep"], compute_entropy=True
        )
    call.logps_BT = _with_rows(call.logps_BT, unread, result[0])
    if call.entropies_BT is not None:
        call.entropies_BT = _with_rows(call.entropies_BT, unread, result[1])
    if box:
        call.tapped = [_with_rows(torch.cat(call.tapped), unread, torch.cat(box))]
    return full_BT, seen_BL


def _with_rows(values: torch.Tensor, rows: list[int], replacement: torch.Tensor) -> torch.Tensor:
    changed = values.clone()
    changed[rows] = replacement.detach().to(values)
    return changed
