"""What a shard of a run shows, as columns that can be put together: ``partial``, ``merge``, and no more state.

A group is the unit of sampling (some completions of one draw of one prompt), so most of what is kept is one row per
group: counts and sums. Pairs of completions of different prompts need the whole step, so sums of pairs are kept per
step, and per block of prompts for the detectors. Of the texts a sample is kept, chosen by hash, so that it is the
same however the shards were shared out. Merging puts columns one behind another: associative, and in the order of
the shards.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

import rlmon.audit.grouping as grouping
import rlmon.baseline as baseline
from rlmon.audit.aliases import LARGEST
from rlmon.audit.features import UNKNOWN, Bools, Features, Floats, Ints, Reader, codes, column, floats, key_of_each
from rlmon.audit.run import RowBatch, Shard
from rlmon.metrics.blocks import Dealt
from rlmon.metrics.families.collision import equal_pairs, put_pairs, put_tallies
from rlmon.metrics.families.group import put_silent
from rlmon.metrics.formats import ModeSet
from rlmon.metrics.groups import facts_of_groups
from rlmon.metrics.prompts import template_name
from rlmon.metrics.success import TOTAL, Success
from rlmon.statistics import codes_of, effective_number_of_each, hashed

PROMPT_CHARACTERS = 2_000
"""Of the prompt of a sampled completion."""
LISTED_PROMPT_CHARACTERS = 240
"""Of a prompt in the list of prompts, which may have many."""
COMPLETION_CHARACTERS = 8_192
"""Of a sampled completion from its beginning."""
ENDING_CHARACTERS = 4_096
"""Of a longer one from its end, where the answer is."""
WORKING_BYTES = 24 << 20
"""Rows are read until they take this much memory, then counted."""
STEP_BYTES = 96 << 20
"""A step is counted as a whole up to this size; of a larger one groups and pairs are lost where it is cut."""
FIRST_AND_LAST = 2
"""Completions of every mode kept from both ends of a shard."""
GROUPED = ("named", "inferred", "ambiguous")
"""How a group is known: the source names it; from the order of its rows; from that, and another reading is possible
(``rlmon.audit.grouping``). Indices of it are the column ``grouped`` of the groups."""
BLOCK_STATISTICS = np.dtype(
    [
        (name, "f8")
        for name in (
            *("mode_collision", "mode_collision_within", "mode_collision_correct", "template_collision"),
            *("template_collision_within", "answer_collision", "completion_tokens", "reward", "all_good", "all_bad"),
        )
    ]
)
"""What is kept of a block; NaN where it could not be computed."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a worker needs to know beside its shard."""

    modes: ModeSet
    templates: frozenset[str]
    """Prompt templates that are strata of their own; empty: all prompts are one stratum where no source is given."""
    group_size: int | None
    sample_rows: int
    """Rows of a shard whose text is kept."""
    success: Success
    """What counts as a success in this run."""


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


MAX_PROMPTS = 4_096


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
        whole.duplicates += part.duplicates
        whole.damaged += part.damaged
        _count_blank(whole, part)
        whole.went_back += part.went_back
        whole.unreadable |= part.unreadable
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
    result.samples = _spread(result.samples, settings.sample_rows)
    return result


def _count(facts: Partial, batch: RowBatch) -> None:
    facts.rows += batch.rows.num_rows
    facts.duplicates += batch.duplicates
    facts.damaged += batch.damaged
    _count_blank(facts, batch)
    facts.went_back += batch.went_back
    facts.unreadable |= batch.unreadable


def _count_blank(facts: Partial, more: Partial | RowBatch) -> None:
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


def _count_rows(rows: pa.Table, settings: Settings) -> Partial:
    read = Reader(settings.modes).features(rows)
    step = np.asarray(rows["step"].to_numpy(), dtype=np.int64)
    evaluation = np.asarray(pc.equal(rows["split"], "eval").to_numpy(), dtype=bool)
    prompt, prompt_names = _prompts(rows, step)
    source, sources = _sources(rows, settings)
    group, grouped = _groups(rows, step, evaluation, prompt, settings.group_size)
    reward, missing, non_finite = _rewards(rows)
    success = np.where(np.isfinite(reward), success_of(rows, settings.success), np.nan)
    part = Partial(sources=sources, prompts=prompt_names)
    modes = len(settings.modes.names)
    part.groups = _group_columns(
        rows, read, step, evaluation, prompt, source, group, grouped, reward, success, missing, non_finite, modes
    )
    part.functions = _function_columns(rows, step, ~evaluation)
    train = ~evaluation & (read.mode >= 0)
    if train.any():
        columns = {
            "mode": read.mode, "template": read.template, "answer": read.answer, "success": success, "prompt": prompt,
            "tokens": floats(rows, "completion_tokens"), "reward": reward, "group": group,
        }  # fmt: skip
        columns = {name: values[train] for name, values in columns.items()}
        part.steps = _step_columns(columns, read.text[train], step[train])
        part.blocks = _block_columns(columns, read.characters[train], step[train], source[train], part.groups)
    part.samples = [_samples(rows, read, step, evaluation, prompt, source, sources, settings)]
    return part


def _prompts(rows: pa.Table, step: Ints) -> tuple[Ints, dict[int, tuple[str, str | None]]]:
    """A key per row, equal for equal prompts, and identity and text by key."""
    names: dict[int, tuple[str, str | None]] = {}
    identity, text = column(rows, "prompt_id"), column(rows, "prompt")
    if identity is None and text is None:
        return _keys_without_prompts(rows, step), names
    given = text if identity is None else identity if text is None else pc.coalesce(identity, text)
    code, values = codes(given)
    key = key_of_each([str(value) for value in values])
    first = np.full(len(values), -1, dtype=np.int64)
    known = code >= 0
    first[code[known][::-1]] = np.flatnonzero(known)[::-1]
    smallest = np.argsort(key, kind="stable")[:MAX_PROMPTS]
    at = pa.array(np.maximum(first[smallest], 0))
    labels, shown = (
        [None] * smallest.size if found is None else found.take(at).to_pylist() for found in (identity, text)
    )
    for place, label, cut in zip(key[smallest].tolist(), labels, shown, strict=True):
        named = f"{place:016x}" if label is None else str(label)
        names[place] = named[:200], None if cut is None else cut[:LISTED_PROMPT_CHARACTERS]
    return np.append(key, UNKNOWN)[code], names


def _keys_without_prompts(rows: pa.Table, step: Ints) -> Ints:
    """Rows of one group of a step have a key in common; without groups every row has its own."""
    group = column(rows, "group")
    if group is None:
        order = np.argsort(step, kind="stable")
        _, start, count = np.unique(step[order], return_index=True, return_counts=True)
        own = np.empty(step.size, dtype=np.int64)
        own[order] = np.arange(step.size) - np.repeat(start, count)
    else:
        code, values = codes(group)
        own = np.append(key_of_each([str(value) for value in values]), UNKNOWN)[code]
    mixed = hashed(hashed(step.astype(np.uint64), 7) + own.astype(np.uint64), 8)
    return np.asarray(mixed >> np.uint64(1), dtype=np.int64)


def _sources(rows: pa.Table, settings: Settings) -> tuple[Ints, list[str]]:
    given = column(rows, "source")
    if given is not None:
        code, values = codes(pc.fill_null(given, "unnamed"))
        return code, [str(value)[:80] for value in values]
    text = column(rows, "prompt")
    if text is None or not settings.templates:
        return np.zeros(rows.num_rows, dtype=np.int64), ["all"]
    code, values = codes(text)
    names: dict[str, int] = {}
    of_value = []
    for value in values:
        name = template_name(value)
        of_value.append(names.setdefault(name if name in settings.templates else "other", len(names)))
    other = names.setdefault("other", len(names))
    return np.array([*of_value, other], dtype=np.int64)[code], list(names)


def _groups(rows: pa.Table, step: Ints, evaluation: Bools, prompt: Ints, group_size: int | None) -> tuple[Ints, Ints]:
    """A code from 0 per row, equal inside a group, and how it is known, by the indices of ``GROUPED``."""
    given = column(rows, "group")
    if given is not None:
        own, _ = codes(given)
        return grouping.named(step, evaluation, own, prompt), np.where(own >= 0, 0, 1)
    code, ambiguous = grouping.inferred(step, evaluation, prompt, group_size)
    return code, np.where(ambiguous, 2, 1)


def _rewards(rows: pa.Table) -> tuple[Floats, Bools, Floats]:
    """Reward (NaN where missing or not finite), whether it is missing, and how many values were not finite."""
    reward = floats(rows, "reward")
    found = column(rows, "reward")
    missing = np.ones(reward.size, dtype=bool) if found is None else np.asarray(pc.is_null(found).to_numpy())
    finite = np.abs(reward) <= LARGEST
    bad = (~finite & ~missing).astype(np.float64)
    parts = column(rows, "rewards")
    if parts is not None:
        array = parts.combine_chunks()
        array = array if isinstance(array, pa.MapArray) else array.chunk(0)
        items = np.asarray(pc.fill_null(array.items, 0.0).to_numpy(zero_copy_only=False), dtype=np.float64)
        offsets = np.asarray(array.offsets.to_numpy())
        wrong = np.concatenate([[0], np.cumsum(~(np.abs(items) <= LARGEST))])
        bad = np.maximum(bad, (wrong[offsets[1:]] - wrong[offsets[:-1]]).astype(np.float64))
    return np.where(finite, reward, np.nan), missing, bad


def success_of(rows: pa.Table, success: Success) -> Floats:
    """1.0 for a success, 0.0 for none, NaN where that is not known, per row."""
    parts = rewards_by_function(rows, [name for name in success.above if name != TOTAL])
    return success.of(floats(rows, "reward"), parts, rows.num_rows)


def rewards_by_function(rows: pa.Table, names: Sequence[str] | None = None) -> dict[str, Floats]:
    """The column ``rewards`` as a column per function, NaN where it did not score; all functions by default."""
    found = column(rows, "rewards")
    if found is None or not rows.num_rows:
        return {}
    array = found.combine_chunks()
    array = array if isinstance(array, pa.MapArray) else array.chunk(0)
    offsets = np.asarray(array.offsets.to_numpy())
    keys = array.keys.slice(offsets[0], offsets[-1] - offsets[0])
    items = array.items.slice(offsets[0], offsets[-1] - offsets[0])
    values = np.asarray(pc.cast(items, pa.float64()).to_numpy(zero_copy_only=False), dtype=np.float64)
    row = np.repeat(np.arange(rows.num_rows), np.diff(offsets))
    wanted = [name for name in pc.unique(keys).to_pylist() if name is not None] if names is None else names
    columns: dict[str, Floats] = {}
    for name in wanted:
        mine = np.asarray(pc.fill_null(pc.equal(keys, name), False).to_numpy(zero_copy_only=False), dtype=bool)
        columns[name] = np.full(rows.num_rows, np.nan)
        columns[name][row[mine]] = values[mine]
    return columns


def _function_columns(rows: pa.Table, step: Ints, train: Bools) -> dict[str, dict[str, NDArray[Any]]]:
    found = {}
    steps, at = np.unique(step[train], return_inverse=True)
    for name, column_ in rewards_by_function(rows).items():
        values = column_[train]
        scored = np.abs(values) <= LARGEST
        least, most = np.full(steps.size, np.inf), np.full(steps.size, -np.inf)
        np.minimum.at(least, at[scored], values[scored])
        np.maximum.at(most, at[scored], values[scored])
        found[str(name)[:80]] = {
            "step": steps,
            "rows": np.bincount(at, minlength=steps.size).astype(np.float64),
            "scored": np.bincount(at, weights=scored, minlength=steps.size).astype(np.float64),
            "sum": np.bincount(at[scored], weights=values[scored], minlength=steps.size).astype(np.float64),
            "min": least,
            "max": most,
        }
    return found


def _group_columns(
    rows: pa.Table,
    read: Features,
    step: Ints,
    evaluation: Bools,
    prompt: Ints,
    source: Ints,
    group: Ints,
    grouped: Ints,
    reward: Floats,
    outcome: Floats,
    missing: Bools,
    non_finite: Floats,
    modes: int,
) -> dict[str, NDArray[Any]]:
    count = int(group.max()) + 1 if group.size else 0
    first = np.zeros(count, dtype=np.int64)
    first[group[::-1]] = np.arange(group.size)[::-1]
    scored = np.isfinite(reward)
    success = outcome == 1.0

    def total(values: NDArray[Any], keep: Bools | None = None) -> Floats:
        if keep is None:
            return np.bincount(group, weights=values, minlength=count).astype(np.float64)
        return np.bincount(group[keep], weights=values[keep], minlength=count).astype(np.float64)

    facts = facts_of_groups(group, reward, outcome, count)
    # As live: what was only sampled tells of formats and solve rates; silent groups and lone successes are of what was
    # trained on, which is everything where a run does not say.
    taken = total(floats(rows, "trained") != 0.0) > 0
    judged, lone = taken & (facts.size >= 2), taken & facts.lone
    advantage = np.abs(floats(rows, "advantage"))
    weighed = advantage <= LARGEST
    known = read.mode >= 0
    by_mode = group[known] * modes + read.mode[known]
    right = known & success
    by_mode_right = group[right] * modes + read.mode[right]
    paid = known & scored
    by_mode_paid = group[paid] * modes + read.mode[paid]
    tokens, truncated = floats(rows, "completion_tokens"), floats(rows, "truncated")
    characters = read.characters
    return {
        "step": step[first],
        "eval": evaluation[first],
        "prompt": prompt[first],
        "source": source[first],
        "grouped": grouped[first],
        "prompts": np.bincount(np.unique(np.stack([group, prompt]), axis=1)[0], minlength=count),
        "rows": total(np.ones(group.size)),
        "scored": facts.size.astype(np.float64),
        "missing": total(missing),
        "non_finite": total(non_finite),
        "known": total(np.isfinite(outcome)),
        "successes": facts.successes.astype(np.float64),
        "reward": total(reward, scored),
        "reward_std": np.where(taken, facts.reward_std, np.nan),
        "judged": judged,
        "silent": taken & facts.silent,
        "classified": taken & facts.classified,
        "all_good": taken & facts.all_good,
        "all_bad": taken & facts.all_bad,
        "lone": lone,
        "weight": np.where(total(weighed) > 0, total(advantage, weighed), np.nan),
        "weight_lone": total(advantage, weighed & success & lone[group]),
        "modes": np.bincount(by_mode, minlength=count * modes).reshape(count, modes).astype(np.int32),
        "modes_correct": np.bincount(by_mode_right, minlength=count * modes).reshape(count, modes).astype(np.int32),
        "modes_scored": np.bincount(by_mode_paid, minlength=count * modes).reshape(count, modes).astype(np.int32),
        "modes_reward": np.bincount(by_mode_paid, weights=reward[paid], minlength=count * modes)
        .reshape(count, modes)
        .astype(np.float32),
        "answered": total(read.answer >= 0),
        "answers": _effective(read.answer, group, read.answer >= 0, count),
        "answers_correct": _effective(read.answer, group, (read.answer >= 0) & success, count),
        "templates": _effective(read.template, group, read.template >= 0, count),
        "templates_correct": _effective(read.template, group, (read.template >= 0) & success, count),
        "identical": _identical(read.text, group, count),
        "empty": total(read.empty == 1.0),
        "empty_known": total(np.isfinite(read.empty)),
        "characters": total(characters, np.isfinite(characters)),
        "characters_correct": total(characters, np.isfinite(characters) & success),
        "tokens": total(tokens, np.isfinite(tokens)),
        "tokens_known": total(np.isfinite(tokens)),
        "truncated": total(truncated, np.isfinite(truncated)),
        "truncated_known": total(np.isfinite(truncated)),
    }


def _identical(text: Ints, group: Ints, count: int) -> Floats:
    """1 where all completions of a group are one text, 0 where not, NaN where fewer than two are known, [G]."""
    known = text >= 0
    rows = np.bincount(group[known], minlength=count)
    distinct = np.unique(np.stack([group[known], text[known]]), axis=1)[0]
    kinds = np.bincount(distinct, minlength=count)
    return np.where(rows >= 2, (kinds == 1).astype(np.float64), np.nan)


def _effective(value: Ints, group: Ints, keep: Bools, count: int) -> Floats:
    return effective_number_of_each(value[keep], group[keep], count)


def _step_columns(columns: Mapping[str, NDArray[Any]], text: Ints, step: Ints) -> dict[str, NDArray[Any]]:
    """Pairs of the completions of each step, and how many texts there are; all of training rows."""
    steps, at = np.unique(step, return_inverse=True)
    found: dict[str, NDArray[Any]] = {"step": steps}
    pairs = equal_pairs(columns, codes_of(at, columns["prompt"]), at, steps.size)
    found |= {f"pairs_{name}": of_step for name, of_step in pairs.items()}
    stored = text >= 0
    distinct = np.unique(np.stack([at[stored], text[stored]]), axis=1)
    found["distinct_texts"] = np.bincount(distinct[0], minlength=steps.size).astype(np.float64)
    found["texts"] = np.bincount(at[stored], minlength=steps.size).astype(np.float64)
    return found


def _place_in_run(*keys: NDArray[Any], order_by: NDArray[Any] | None = None) -> Ints:
    """Place from 0 of each row among those with its keys, in the order of the rows or of ``order_by``."""
    order = np.lexsort(keys if order_by is None else (order_by, *keys))
    fresh = np.zeros(order.size, dtype=bool)
    fresh[:1] = True
    for key in keys:
        ordered = key[order]
        fresh[1:] |= ordered[1:] != ordered[:-1]
    start = np.maximum.accumulate(np.where(fresh, np.arange(order.size), 0))
    place = np.empty(order.size, dtype=np.int64)
    place[order] = np.arange(order.size) - start
    return place


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


SAMPLE_SCHEMA = pa.schema(
    [
        ("step", pa.int64()),
        ("split", pa.string()),
        ("prompt", pa.string()),
        ("completion", pa.string()),
        ("ending", pa.string()),
        ("characters", pa.int64()),
        ("prompt_key", pa.int64()),
        ("source", pa.string()),
        ("reward", pa.float64()),
        ("advantage", pa.float64()),
        ("truncated", pa.bool_()),
        ("mode", pa.int64()),
        ("template_key", pa.int64()),
        ("answer_key", pa.int64()),
        ("text_key", pa.int64()),
        ("rank", pa.int64()),
    ]
)
"""``ending``: of a completion that is longer than what is kept of its beginning.

``rank``: place of the row in the hash order of its step; the uniform sample of a step is its lowest ranks. Rows
kept only since they are among the first or last of their mode have -1."""


def _samples(
    rows: pa.Table,
    read: Features,
    step: Ints,
    evaluation: Bools,
    prompt: Ints,
    source: Ints,
    sources: Sequence[str],
    settings: Settings,
) -> pa.Table:
    count = rows.num_rows
    identity = read.text.astype(np.uint64) ^ hashed(prompt.astype(np.uint64), 1)
    # Equal rows are drawn one by one: the first, the second, ... of them in its step has a place of its own.
    again = _place_in_run(identity, step, evaluation)
    rank = _place_in_run(step, evaluation, order_by=hashed(identity + again.astype(np.uint64), 3))
    steps = max(1, np.unique(step).size)
    kept = rank < max(1, -(-settings.sample_rows // steps))
    ends = np.zeros(count, dtype=bool)
    for mode in range(len(settings.modes.names)):
        mine = np.flatnonzero(~evaluation & (read.mode == mode))
        ends[mine[:FIRST_AND_LAST]] = True
        ends[mine[max(0, mine.size - FIRST_AND_LAST) :]] = True
    at = np.flatnonzero(kept | ends)
    taken = rows.take(pa.array(at))

    def text(name: str, characters: int) -> Any:
        found = column(taken, name)
        return pa.nulls(at.size, pa.string()) if found is None else pc.utf8_slice_codeunits(found, 0, characters)

    truncated = column(taken, "truncated")
    whole = column(taken, "completion")
    characters = pa.nulls(at.size, pa.int64()) if whole is None else pc.cast(pc.utf8_length(whole), pa.int64())
    ending = pa.nulls(at.size, pa.string())
    if whole is not None:
        tail = pc.utf8_slice_codeunits(whole, -ENDING_CHARACTERS, None)
        ending = pc.if_else(pc.greater(characters, COMPLETION_CHARACTERS), tail, pa.scalar(None, pa.string()))
    return pa.table(
        {
            "step": step[at],
            "split": np.where(evaluation[at], "eval", "train"),
            "prompt": text("prompt", PROMPT_CHARACTERS),
            "completion": text("completion", COMPLETION_CHARACTERS),
            "ending": ending,
            "characters": characters,
            "prompt_key": prompt[at],
            "source": pa.array([sources[code] for code in source[at]], pa.string()),
            "reward": pc.cast(taken["reward"], pa.float64()) if "reward" in taken.column_names else pa.nulls(at.size),
            "advantage": floats(taken, "advantage"),
            "truncated": pa.nulls(at.size, pa.bool_()) if truncated is None else truncated,
            "mode": read.mode[at],
            "template_key": read.template[at],
            "answer_key": read.answer[at],
            "text_key": read.text[at],
            "rank": np.where(kept[at], rank[at], -1),
        }
    ).cast(SAMPLE_SCHEMA)


def _spread(samples: Sequence[pa.Table], budget: int) -> list[pa.Table]:
    """The samples of one shard cut to its budget: as many of each step, lowest ranks first."""
    if not samples:
        return []
    table = pa.concat_tables(samples)
    rank = table["rank"].to_numpy()
    steps = np.unique(table["step"].to_numpy()).size
    return [table.filter(pa.array(rank < max(1, -(-budget // max(1, steps)))))]
