"""A round on one rank, from its texts to sums, metrics and blocks, without a monitor."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from rlmon.keys import source_key
from rlmon.metrics.families import WATCHING
from rlmon.metrics.family import RankRows, RoundRows
from rlmon.metrics.features import RowFeatures
from rlmon.metrics.formats import ModeSet
from rlmon.metrics.groups import GroupStats, groups_of_batch
from rlmon.metrics.rows import rows_of
from rlmon.metrics.step import Families
from rlmon.metrics.success import Deciding
from rlmon.records import Block, RolloutBatch

MODES = ModeSet.build(None)
FAMILIES = Families(WATCHING, MODES.names)


def groups(batch: RolloutBatch, hard_B: Any = None, success_B: Any = None) -> GroupStats:
    """By default a success is what the rewards of the batch decide."""
    if success_B is None:
        success_B = Deciding().observe(batch, 1)[1].success_B
    return groups_of_batch(batch, success_B, None, hard_B)


def sums(batch: RolloutBatch, features: RowFeatures, hard_B: Any = None) -> Any:
    """The sums of a round that is whole on this rank."""
    stats, into = groups(batch, hard_B), FAMILIES.zeros()
    rows = rows_of(batch, features, stats.success_B)
    if len(batch):
        FAMILIES.add_rows(into, RankRows(batch, features, stats, rows))
        FAMILIES.add_round(into, RoundRows(rows, stats))
    return into


def finished(of: Any, base: Any = None) -> tuple[dict[str, float | None], dict[str, str]]:
    """The metrics of sums, against those of the baseline."""
    return FAMILIES.finish(of, None if base is None else dict(FAMILIES.of_base(base)))


def blocks(batch: RolloutBatch, features: RowFeatures, hard_B: Any = None, success_B: Any = None) -> list[Block]:
    """The blocks of the round, with sources by name and in their order."""
    stats = groups(batch, hard_B, success_B)
    names = {source_key(name): name for name in batch.source}
    found = FAMILIES.blocks_of_round(RoundRows(rows_of(batch, features, stats.success_B), stats))
    return sorted((dataclasses.replace(one, source=names[one.source]) for one in found), key=lambda one: one.source)


def tokens(token_sums: Any, mode_code_B: Any) -> Any:
    """The sums of a micro-batch."""
    into = FAMILIES.zeros()
    FAMILIES.add(into, lambda family, own: family.add_tokens(own, token_sums, np.asarray(mode_code_B)))
    return into


def trained(rows: Any) -> Any:
    """The sums of rows that a step trained on, with as many tokens as they say."""
    into = FAMILIES.zeros()
    into["entropy"]["tokens"] = rows["trained_tokens"].sum()
    into["entropy"]["nats"] = rows["entropy_nats"].sum()
    FAMILIES.add_trained(into, rows)
    return into


def flat(of: Any) -> Mapping[str, Any]:
    """Sums by their path, ``format/mode_count`` or ``collision/mode/across_sum``."""
    names = of.dtype.names
    if names is None:
        return {"": np.array(of)}
    return {f"{name}/{path}".rstrip("/"): value for name in names for path, value in flat(of[name]).items()}
