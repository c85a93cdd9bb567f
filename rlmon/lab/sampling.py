"""Completions drawn from a model, batch by batch, and how sure it was of each token: what evaluations are made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """One batch of prompts with their completions."""

    ids_BS: torch.Tensor
    mask_BS: torch.Tensor
    """False on padding and behind the end of a completion."""
    temperature: float
    own_BT: torch.Tensor
    """The completion tokens that are the model's own: up to and including the first end token."""
    texts: list[str]
    ended_B: torch.Tensor
    """Whether a completion has its end token."""

    @property
    def prompt_tokens(self) -> int:
        """With the padding on the left."""
        return int(self.ids_BS.shape[1] - self.own_BT.shape[1])

    def rows(self, part: slice) -> Drawn:
        """Some of its completions."""
        taken = {name: getattr(self, name)[part] for name in ("ids_BS", "mask_BS", "own_BT", "texts", "ended_B")}
        return replace(self, **taken)


def draws(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    sequences_per_batch: int,
    seed: int,
    copies: int = 1,
    temperature: float = 1.0,
    end_tokens: Sequence[int] = (),
) -> Iterator[Drawn]:
    """``copies`` completions of each of ``prompts``, those of one prompt next to each other; ``end_tokens`` end one
    beside the tokenizer's own.

    They depend on ``sequences_per_batch`` and ``seed``. A prompt is read once for all its copies. Leaves the global
    random state as it was when it is exhausted. The model should be in evaluation mode; what comes back is on its
    device.
    """
    import torch

    ends = sorted({tokenizer.eos_token_id, *end_tokens})
    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        torch.manual_seed(seed)
        at_once = max(1, sequences_per_batch // max(1, copies))
        for start in range(0, len(prompts), at_once):
            batch = list(prompts[start : start + at_once])
            inputs = dict(tokenizer(batch, return_tensors="pt", padding=True, padding_side="left").to(model.device))
            with torch.no_grad():
                read = {}
                if copies > 1 and inputs["input_ids"].shape[1] > 1:
                    read = {"past_key_values": _read(model, inputs, copies)}
                if copies > 1:
                    inputs = {name: tensor.repeat_interleave(copies, dim=0) for name, tensor in inputs.items()}
                ids_BS = model.generate(
                    input_ids=inputs["input_ids"],
                    attention_mask=inputs["attention_mask"],
                    **read,
                    max_new_tokens=max_new_tokens,
                    do_sample=True,
                    temperature=temperature,
                    top_k=0,
                    top_p=1.0,
                    pad_token_id=tokenizer.pad_token_id,
                    eos_token_id=ends,
                )
            assert isinstance(ids_BS, torch.Tensor)
            completion_BT = ids_BS[:, inputs["input_ids"].shape[1] :]
            ended_BT = torch.isin(completion_BT, torch.tensor(ends, device=completion_BT.device)).cumsum(1)
            ended_before_BT = ended_BT.roll(1, dims=1)
            ended_before_BT[:, 0] = 0
            own_BT = ended_before_BT == 0
            yield Drawn(
                ids_BS=ids_BS,
                mask_BS=torch.cat([inputs["attention_mask"], own_BT.long()], dim=1),
                temperature=temperature,
                own_BT=own_BT,
                texts=tokenizer.batch_decode(completion_BT, skip_special_tokens=True),
                ended_B=ended_BT[:, -1] > 0,
            )


def entropies(model: Callable[..., Any], drawn: Drawn, logits_at_once: int = 2**26) -> torch.Tensor:
    """Entropy of the next-token distribution at each completion token [B, T] at the temperature of the draws, nats. As
    many rows are read at once as have that many logits."""
    import torch

    found: list[torch.Tensor] = []
    rows, at_once = len(drawn.texts), 1
    with torch.no_grad():
        while (start := sum(len(part) for part in found)) < rows:
            logp = _log_probabilities(model, drawn.rows(slice(start, start + at_once)))
            at_once = max(1, logits_at_once // (drawn.ids_BS.shape[1] * logp.shape[-1]))
            # Of a token that cannot come, p is 0 and log p may be -inf.
            found.append(-torch.where(logp > -torch.inf, logp.exp() * logp, 0.0).sum(-1))
    return torch.cat(found)


def entropy_and_kl(
    model: Callable[..., Any], base: Callable[..., Any], drawn: Drawn
) -> tuple[torch.Tensor, torch.Tensor]:
    """Entropy of the next-token distribution and exact KL(model || base) at the temperature of the draws, nats, summed
    over the own tokens of each completion [B]."""
    import torch

    with torch.no_grad():
        logp = _log_probabilities(model, drawn)
        p = logp.exp()
        # Of a token that cannot come, p is 0 and log p may be -inf.
        entropy_BT = -torch.where(p > 0, p * logp, 0.0).sum(-1)
        kl_BT = torch.where(p > 0, p * (logp - _log_probabilities(base, drawn)), 0.0).sum(-1)
    # Not multiplied by the mask: behind the end there may be inf.
    return entropy_BT.masked_fill(~drawn.own_BT, 0.0).sum(1), kl_BT.masked_fill(~drawn.own_BT, 0.0).sum(1)


def _read(model: PreTrainedModel, inputs: dict[str, torch.Tensor], copies: int) -> Any:
    """The keys and values of all prompt tokens but the last, ``copies`` times."""
    from transformers import DynamicCache

    mask = inputs["attention_mask"][:, :-1]
    cache = DynamicCache(config=model.config)
    model(
        input_ids=inputs["input_ids"][:, :-1],
        attention_mask=mask,
        position_ids=(mask.cumsum(1) - 1).clamp(min=0),
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    cache.batch_repeat_interleave(copies)
    return cache


def _log_probabilities(model: Callable[..., Any], drawn: Drawn) -> torch.Tensor:
    """Log-probabilities [B, T, V] that predict each completion token, in float32."""
    position_BS = (drawn.mask_BS.cumsum(1) - 1).clamp(min=0)
    # Of a long prompt the logits are the most memory, and none is asked for but the last.
    logits = model(
        input_ids=drawn.ids_BS, attention_mask=drawn.mask_BS, position_ids=position_BS,
        logits_to_keep=drawn.own_BT.shape[1] + 1,
    ).logits  # fmt: skip
    result: torch.Tensor = (logits[:, :-1].float() / drawn.temperature).log_softmax(-1)
    return result
