"""The rows of a round as the monitor takes them, from what TRL sampled, scored and trains on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from rlmon.metrics.prompts import prompt_identities, render_completion, render_prompt
from rlmon.records import RolloutBatch, Split
from rlmon.trl.facts import reward_names, terminal_ids
from rlmon.trl.prompts import SourceMap
from rlmon.trl.sampling import Drawn, Row, Scored, global_rows


@dataclass(frozen=True, kw_only=True)
class SeenRound:
    """What a round of this rank showed."""

    number: int
    split: Split
    calls: Sequence[Scored]
    rows: Sequence[Row]
    """Those of ``calls``, in their order."""
    drawn: Drawn | None
    """Which of them ``output`` holds; ``None`` where that is not known."""
    output: Mapping[str, Any]
    """What the round gave to train on."""


def rollout_batch(trainer: Any, sources: SourceMap, seen: SeenRound, complain: Callable[[str], None]) -> RolloutBatch:
    """The rows of a round. ``complain`` is told of rewards that fit no row."""
    split, calls, rows, drawn = seen.split, seen.calls, seen.rows, seen.drawn
    world_size, rank = trainer.accelerator.num_processes, trainer.accelerator.process_index
    group_size = max(1, trainer.num_generations if split != "eval" else trainer.num_generations_eval)
    prompts = [prompt for call in calls for prompt in call.prompts]
    prompt_id = prompt_identities(prompts)
    sizes, at = [len(call) for call in calls], 0
    uniform = []
    for call in calls:
        # An environment may have added another observation to each copy of a prompt.
        drawn_from = (prompt_id[at : at + len(call)], [row.get("prompt") for row in call.inputs])
        uniform.append(
            world_size > 1
            or _in_groups(drawn_from[0], group_size)
            or _in_groups(prompt_identities(drawn_from[1]), group_size)
        )
        at += len(call)
    own, every, end = global_rows(sizes, uniform, rank=rank, world_size=world_size, group_size=group_size)
    names = reward_names(trainer)
    round_NF = torch.full((end, len(names)), torch.nan, dtype=torch.float64)
    # A subclass may score only this rank's rows: then no rank has the rewards of the round.
    of_all = world_size == 1 or all(
        call.rewards_NF is not None and len(call.rewards_NF) == len(numbers)
        for call, numbers in zip(calls, every, strict=True)
    )
    for call, here, numbers in zip(calls, own, every, strict=True):
        if call.rewards_NF is None:
            continue
        rewards_NF = call.rewards_NF.detach().to("cpu", torch.float64)
        if rewards_NF.shape not in ((len(numbers), len(names)), (len(here), len(names))):
            complain(
                f"_calculate_rewards returned shape {tuple(rewards_NF.shape)} for {len(numbers)} completions and "
                f"{len(names)} reward functions: these rows are logged without rewards"
            )
            continue
        round_NF[numbers if len(rewards_NF) == len(numbers) else here] = rewards_NF
    global_row = [row for numbers in own for row in numbers]
    local_BF = round_NF[global_row]
    weights_F = trainer.reward_weights.to("cpu", torch.float64)
    totals_N = _weighted(round_NF, weights_F)
    ends = terminal_ids(trainer)
    step = trainer.state.global_step
    return RolloutBatch(
        round=seen.number,
        split=split,
        step=step + 1 if split == "train" else step,
        group_size=group_size,
        global_row=global_row,
        prompt_id=prompt_id,
        source=[sources.source_of(row) for call in calls for row in call.inputs],
        prompts=[render_prompt(prompt) for prompt in prompts],
        completions=_texts(trainer, [completion for call in calls for completion in call.completions], rows),
        prompt_ids=[row.prompt_ids for row in rows],
        # Arrays, not lists of integers: at thousands of tokens a row, boxing every id would cost more than the
        # metrics.
        completion_ids=[row.ids[row.own_T] for row in rows],
        rewards={name: or_none(local_BF[:, i]) for i, name in enumerate(names)},
        reward=[totals_N[row] for row in global_row],
        round_reward=totals_N if of_all else None,
        round_rewards={name: or_none(round_NF[:, i]) for i, name in enumerate(names)} if of_all else None,
        reward_weights=dict(zip(names, weights_F.tolist(), strict=True)),
        advantages=_advantages(seen.output, drawn, len(rows)),
        truncated=[not len(row.ids) or int(row.ids[-1]) not in ends for row in rows],
        policy_version=[step] * len(rows),
        trained=[True] * len(rows) if drawn is None else drawn.trained(len(rows)),
    )


def as_trained(batch: RolloutBatch, drawn: Drawn, first: int) -> RolloutBatch | None:
    """The rows of the generated batch as the rules see them: groups of ``group_size``, rank by rank, from global row
    ``first`` on. ``None`` where they are no such groups, or not all of them were sampled in the round."""
    if drawn.row_R == list(range(len(batch))):
        return batch
    if min(drawn.row_R, default=-1) < 0:
        return None
    taken = batch.take(drawn.row_R, global_row=range(first, first + len(drawn.row_R)))
    group: dict[int, str] = {}
    for row, prompt in zip(taken.global_row, taken.prompt_id, strict=True):
        if group.setdefault(row // batch.group_size, prompt) != prompt:
            return None
    return taken


def or_none(values: torch.Tensor) -> list[float | None]:
    """``values`` with ``None`` for NaN."""
    return [None if value != value else value for value in values.tolist()]


def _texts(trainer: Any, completions: Sequence[Any], rows: Sequence[Row]) -> list[str]:
    """What the model itself wrote: where an environment's text lies between its tokens, these decoded alone."""
    texts = [render_completion(completion) for completion in completions]
    mixed = [
        i
        for i, (completion, row) in enumerate(zip(completions, rows, strict=True))
        if not row.own_T.all() and (isinstance(completion, str) or len(completion) == 1)
    ]
    if mixed:
        own = [rows[i].ids[rows[i].own_T].tolist() for i in mixed]
        decoded = trainer._tokenizer.batch_decode(own, skip_special_tokens=True)
        for i, text in zip(mixed, decoded, strict=True):
            texts[i] = text
    return texts


def _advantages(output: Mapping[str, Any], drawn: Drawn | None, rows: int) -> list[float | None] | None:
    """Of each sampled row that is trained on, its advantage; of token-level ones the mean over its own tokens."""
    if drawn is None or output.get("advantages") is None or len(output["advantages"]) != len(drawn.row_R):
        return None
    advantages = output["advantages"].detach().to("cpu", torch.float64)
    if advantages.dim() > 1:
        mask_RT = output["completion_mask"].to("cpu", torch.float64)
        if output.get("tool_mask") is not None:
            mask_RT = mask_RT * output["tool_mask"].to("cpu", torch.float64)
        advantages = (advantages * mask_RT).sum(1) / mask_RT.sum(1).clamp(min=1)
    column: list[float | None] = [None] * rows
    for row, value in zip(drawn.row_R, or_none(advantages), strict=True):
        if row >= 0:
            column[row] = value
    return column


def _in_groups(prompt_id: Sequence[str], group_size: int) -> bool:
    """Whether the rows fall into blocks of ``group_size`` completions of one prompt."""
    return all(
        len(set(prompt_id[i : i + group_size])) == 1 and i + group_size <= len(prompt_id)
        for i in range(0, len(prompt_id), group_size)
    )


def _weighted(rewards_NF: torch.Tensor, weights_F: torch.Tensor) -> list[float | None]:
    """Weighted sum per row over the functions that scored it; ``None`` where none did."""
    unscored_N = torch.isnan(rewards_NF).all(dim=1)
    totals_N = (rewards_NF * weights_F).nansum(dim=1)
    return [None if bad else total for bad, total in zip(unscored_N.tolist(), totals_N.tolist(), strict=True)]
