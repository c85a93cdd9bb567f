"""What a shard of a run shows, as columns that can be put together: ``partial``, ``merge``, and no more state.

A group is the unit of sampling (some completions of one draw of one prompt), so most of what is kept is one row per
group: counts and sums. Pairs of completions of different prompts need the whole step, so sums of pairs are kept per
step, and per block of prompts for the detectors. Of the texts a sample is kept, chosen by hash, so that it is the
same however the shards were shared out. Merging puts columns one behind another: associative, and in the order of
the shards.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

import rlmon.baseline as baseline
from rlmon.audit.aliases import LARGEST
from rlmon.audit.features import Bools, Floats, Ints, floats
from rlmon.audit.rows import MAX_PROMPTS, Rows, Settings, rewards_by_function
from rlmon.audit.run import RowBatch, Shard
from rlmon.audit.sampled import sample, spread
from rlmon.metrics.blocks import Dealt
from rlmon.metrics.families.collision import equal_pairs, put_pairs, put_tallies
from rlmon.metrics.families.group import put_silent
from rlmon.metrics.groups import facts_of_groups
from rlmon.statistics import ByKey, codes_of, distinct_of_each, effective_number_of_each

WORKING_BYTES = 24 << 20
"""Rows are read until they take this much memory, then counted."""
STEP_BYTES = 96 << 20
"""A step is counted as a whole up to this size; of a larger one groups and pairs are lost where it is cut."""
BLOCK_STATISTICS = np.dtype(
    [
        (name, "f8")
        for name in (
            *("mode_collision", "mode_collision_within", "mode_collision_correct", "template_collision"),
            *("template_collision_within", "template_collision_correct_within", "answer_collision"),
            *("completion_tokens", "reward", "all_good", "all_bad"),
        )
    ]
)
"""What is kept of a block; NaN where it could not be computed."""


PAIRS_OF = "pairs_"
"""Before the name of a kernel: its pairs in the columns of steps."""


@dataclass
class Partial:
    """Counts of some rows. Columns of ``groups`` have one entry per group, of ``steps`` per step of a shard, of
    ``blocks`` per block; ``samples`` are rows."""

    groups: dict[str, NDArray[Any]] = field(default_factory=dict)
    steps: dict[str, NDArray[Any]] = field(default_factory=dict)
    blocks: dict[str, NDArray[Any]] = field(default_factory=dict)
    sources: list[str] = field(default_factory=list)
    functions: dict[str, dict[str, NDArray[Any]]] = field(default_factory=dict)
    """By reward function, of training rows: per step of a shard its ``step``, ``rows``, ``scored`` (finite values),
    and their ``sum``, ``min`` and ``max``."""
    prompts: dict[int, tuple[str, str | None]] = field(default_factory=dict)
    """Key to identity and text of the prompts, those with the smallest keys."""
    samples: list[pa.Table] = field(default_factory=list)
    rows: int = 0
    duplicates: int = 0
    damaged: int = 0
    blank: int = 0
    """Of the damaged: rows of a step that have neither a completion nor a reward, the first of them at
    ``blank_from``."""
    blank_from: int | None = None
    went_back: list[tuple[int, int]] = field(default_factory=list)
    """Where the steps of a file's training rows go back: (step before, step at which they go on)."""
    unreadable: dict[str, str] = field(default_factory=dict)


def merge(parts: Iterable[Partial]) -> Partial:
    """The parts as one, in their order."""
    parts = list(parts)
    sources: dict[str, int] = {}
    whole = Partial()
    functions: dict[str, list[dict[str, NDArray[Any]]]] = {}
    columns: dict[str, dict[str, list[NDArray[Any]]]] = {"groups": {}, "steps": {}, "blocks": {}}
    for part in parts:
        new = np.array([sources.setdefault(name, len(sources)) for name in part.sources], dtype=np.int64)
        for kind, into in columns.items():
            for name, values in getattr(part, kind).items():
                into.setdefault(name, []).append(new[values] if name == "source" else values)
        for name, found in part.functions.items():
            functions.setdefault(name, []).append(found)
        whole.prompts |= part.prompts
        whole.samples += part.samples
        whole.rows += part.rows
        _count(whole, part)
    for kind, into in columns.items():
        getattr(whole, kind).update({name: np.concatenate(values) for name, values in into.items()})
    if "tallies" in whole.blocks:
        # Each part kept those of its own first steps: only the first of all can be of the base.
        late = ~_early(whole.blocks["step"], whole.blocks["source"])
        whole.blocks["tallies"][late] = [{} for _ in range(int(late.sum()))]
    whole.functions = {
        name: {key: np.concatenate([one[key] for one in found]) for key in found[0]}
        for name, found in functions.items()
    }
    whole.sources = list(sources)
    whole.prompts = dict(sorted(whole.prompts.items())[:MAX_PROMPTS])
    return whole


def partial(shard: Shard, settings: Settings) -> Partial:
    """What one shard shows. Texts are read piece by piece; pieces end where a step ends wherever that is possible."""
    parts: list[Partial] = []
    waiting: list[pa.Table] = []
    facts = Partial()
    for batch in shard.read():
        facts.rows += batch.rows.num_rows
        _count(facts, batch)
        if batch.rows.num_rows:
            waiting.append(batch.rows)
        if sum(rows.nbytes for rows in waiting) > WORKING_BYTES:
            whole, waiting = _up_to_the_last_step(pa.concat_tables(waiting, promote_options="default"))
            if whole.num_rows:
                parts.append(_count_rows(whole, settings))
    if waiting:
        parts.append(_count_rows(pa.concat_tables(waiting, promote_options="default"), settings))
    result = merge([facts, *parts])
    result.samples = spread(result.samples, settings.sample_rows)
    return result


def _count(facts: Partial, more: Partial | RowBatch) -> None:
    facts.duplicates += more.duplicates
    facts.damaged += more.damaged
    facts.went_back += more.went_back
    facts.unreadable |= more.unreadable
    facts.blank += more.blank
    facts.blank_from = min((step for step in (facts.blank_from, more.blank_from) if step is not None), default=None)


def _up_to_the_last_step(rows: pa.Table) -> tuple[pa.Table, list[pa.Table]]:
    """The rows before the last step, and that step, which may go on; all of them where it is one that is too large."""
    steps = rows["step"].to_numpy()
    changes = np.flatnonzero(steps[1:] != steps[:-1])
    if not changes.size:
        return (rows, []) if rows.nbytes > STEP_BYTES else (rows.slice(0, 0), [rows])
    cut = int(changes[-1]) + 1
    return rows.slice(0, cut), [rows.slice(cut)]


def _count_rows(table: pa.Table, settings: Settings) -> Partial:
    rows = Rows.of(table, settings)
    part = Partial(sources=list(rows.sources), prompts=dict(rows.prompts))
    part.groups = _group_columns(rows, len(settings.modes.names))
    part.functions = _function_columns(table, rows.step, ~rows.evaluation)
    train = ~rows.evaluation & (rows.read.mode >= 0)
    if train.any():
        columns = {
            "mode": rows.read.mode, "template": rows.read.template, "answer": rows.read.answer,
            "success": rows.success, "prompt": rows.prompt, "tokens": floats(table, "completion_tokens"),
            "reward": rows.reward, "group": rows.group,
        }  # fmt: skip
        columns = {name: values[train] for name, values in columns.items()}
        step, source = rows.step[train], rows.source[train]
        part.steps = _step_columns(columns, rows.read.text[train], step)
        part.blocks = _block_columns(columns, rows.read.characters[train], step, source, part.groups)
    part.samples = [sample(rows, settings)]
    return part


def _function_columns(rows: pa.Table, step: Ints, train: Bools) -> dict[str, dict[str, NDArray[Any]]]:
    found = {}
    by_step = ByKey(step, train)
    for name, values in rewards_by_function(rows).items():
        scored = np.abs(values) <= LARGEST
        least, most = np.full(by_step.keys.size, np.inf), np.full(by_step.keys.size, -np.inf)
        np.minimum.at(least, by_step.at[scored[train]], values[train & scored])
        np.maximum.at(most, by_step.at[scored[train]], values[train & scored])
        found[str(name)[:80]] = {
            "step": by_step.keys,
            "rows": by_step.total(train),
            "scored": by_step.total(scored),
            "sum": by_step.total(np.where(scored, values, 0.0)),
            "min": least,
            "max": most,
        }
    return found


def _group_columns(rows: Rows, modes: int) -> dict[str, NDArray[Any]]:
    read, group, reward, outcome = rows.read, rows.group, rows.reward, rows.success
    count = int(group.max()) + 1 if group.size else 0
    first = np.zeros(count, dtype=np.int64)
    first[group[::-1]] = np.arange(group.size)[::-1]
    scored = np.isfinite(reward)
    success = outcome == 1.0

    def total(values: NDArray[Any], keep: Bools | slice = slice(None)) -> Floats:
        return np.bincount(group[keep], weights=values[keep], minlength=count).astype(np.float64)

    def by_mode(keep: Bools, weights: Floats | None = None) -> NDArray[Any]:
        code, weights = group[keep] * modes + read.mode[keep], None if weights is None else weights[keep]
        return np.bincount(code, weights=weights, minlength=count * modes).reshape(count, modes)

    def effective(value: Ints, keep: Bools) -> Floats:
        return effective_number_of_each(value[keep], group[keep], count)

    facts = facts_of_groups(group, reward, outcome, count)
    # As live: what was only sampled tells of formats and solve rates; silent groups and lone successes are of what was
    # trained on, which is everything where a run does not say.
    taken = total(floats(rows.table, "trained") != 0.0) > 0
    judged, lone = taken & (facts.size_P >= 2), taken & facts.lone_P
    advantage = np.abs(floats(rows.table, "advantage"))
    weighed = advantage <= LARGEST
    known = read.mode >= 0
    answered, parsed, stored = read.answer >= 0, read.template >= 0, read.text >= 0
    texts = distinct_of_each(read.text[stored], group[stored], count)
    tokens, truncated = floats(rows.table, "completion_tokens"), floats(rows.table, "truncated")
    characters = read.characters
    return {
        "step": rows.step[first],
        "eval": rows.evaluation[first],
        "prompt": rows.prompt[first],
        "source": rows.source[first],
        "grouped": rows.grouped[first],
        "prompts": distinct_of_each(rows.prompt, group, count),
        "rows": total(np.ones(group.size)),
        "scored": facts.size_P.astype(np.float64),
        "missing": total(rows.missing),
        "non_finite": total(rows.non_finite),
        "known": total(np.isfinite(outcome)),
        "successes": facts.successes_P.astype(np.float64),
        "reward": total(reward, scored),
        "reward_std": np.where(taken, facts.reward_std_P, np.nan),
        "judged": judged,
        "silent": taken & facts.silent_P,
        "classified": taken & facts.classified_P,
        "all_good": taken & facts.all_good_P,
        "all_bad": taken & facts.all_bad_P,
        "lone": lone,
        "weight": np.where(total(weighed) > 0, total(advantage, weighed), np.nan),
        "weight_lone": total(advantage, weighed & success & lone[group]),
        "modes": by_mode(known).astype(np.int32),
        "modes_correct": by_mode(known & success).astype(np.int32),
        "modes_scored": by_mode(known & scored).astype(np.int32),
        "modes_reward": by_mode(known & scored, reward).astype(np.float32),
        "answered": total(answered),
        "answers": effective(read.answer, answered),
        "answers_correct": effective(read.answer, answered & success),
        "templates": effective(read.template, parsed),
        "templates_correct": effective(read.template, parsed & success),
        "identical": np.where(total(stored) >= 2, texts == 1, np.nan),
        "empty": total(read.empty == 1.0),
        "empty_known": total(np.isfinite(read.empty)),
        "characters": total(characters, np.isfinite(characters)),
        "characters_correct": total(characters, np.isfinite(characters) & success),
        "tokens": total(tokens, np.isfinite(tokens)),
        "tokens_known": total(np.isfinite(tokens)),
        "truncated": total(truncated, np.isfinite(truncated)),
        "truncated_known": total(np.isfinite(truncated)),
    }


def _step_columns(columns: Mapping[str, NDArray[Any]], text: Ints, step: Ints) -> dict[str, NDArray[Any]]:
    """Pairs of the completions of each step, and how many texts there are; all of training rows."""
    by_step, stored = ByKey(step), text >= 0
    pairs = equal_pairs(columns, codes_of(step, columns["prompt"]), by_step.at, by_step.keys.size)
    return {
        "step": by_step.keys,
        "distinct_texts": distinct_of_each(text[stored], by_step.at[stored], by_step.keys.size).astype(np.float64),
        "texts": by_step.total(stored),
    } | {PAIRS_OF + name: of_step for name, of_step in pairs.items()}


def _block_columns(
    columns: Mapping[str, NDArray[Any]],
    characters: Floats,
    step: Ints,
    source: Ints,
    groups: Mapping[str, NDArray[Any]],
) -> dict[str, NDArray[Any]]:
    """The blocks of training rows, as live ones, over all steps at once: a stratum is a source of a step."""

    def wants_tallies(name: str) -> Bools:
        return _early(step[first], source[first])

    dealt = Dealt(codes_of(step, source), columns["prompt"], wants_tallies)
    first = dealt.first_row
    for kernel, pairs in equal_pairs(columns, dealt.prompt_B, dealt.block_B, dealt.count).items():
        put_pairs(dealt, kernel, pairs)
    dealt.put_mean("completion_tokens", columns["tokens"])
    dealt.put_mean("reward", columns["reward"])
    put_silent(dealt, columns["group"], groups["classified"], groups["all_good"], groups["all_bad"])
    put_tallies(dealt, columns)
    dealt.put_mean("characters", characters)
    prompts, completions = dealt.prompts_and_rows()
    stats = np.zeros(dealt.count, dtype=BLOCK_STATISTICS)
    for name in BLOCK_STATISTICS.names or ():
        stats[name] = dealt.stats[name]
    tallies: NDArray[Any] = np.array([{} for _ in range(dealt.count)], dtype=object)
    for name, of_block in dealt.tallies.items():
        for b, tally in enumerate(of_block):
            if tally:
                tallies[b][name] = tally
    return {
        "step": step[first],
        "source": source[first],
        "tallies": tallies,
        "prompts": prompts.astype(np.int64),
        "completions": completions.astype(np.int64),
        "characters": dealt.stats["characters"],
        "stats": stats,
    }


def _early(step_of_block: Ints, source_of_block: Ints) -> Bools:
    """Blocks of the first steps of their source here, as many as a baseline may have rounds."""
    pair = codes_of(source_of_block, step_of_block)
    first = np.unique(pair, return_index=True)[1]
    ordered = source_of_block[first]
    place = np.arange(first.size) - np.searchsorted(ordered, ordered)
    return np.asarray((place < baseline.ROUNDS)[pair])
