"""The detectors' side of a step: blocks of prompts from the rows of all ranks, and what the detectors make of them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

import rlmon.detectors as detectors
from rlmon.detectors.evidence import COUNT
from rlmon.metrics.blocks import at_most, by_round
from rlmon.metrics.families.format import Format
from rlmon.metrics.family import RoundRows, Sums
from rlmon.metrics.groups import groups_of_round
from rlmon.metrics.ledger import SolveLedger
from rlmon.metrics.rows import Rows
from rlmon.metrics.step import Families
from rlmon.monitor.successes import Successes
from rlmon.records import Block, Finding, StepRecord

BLOCKS_A_STEP = 64


class Judging:
    """The state of the detectors and the ledger of solve rates, the same on all ranks.

    ``own``: detectors of the user. ``critic``: advantages come from a value function, so that statistics of groups mean
    nothing to detectors.
    """

    def __init__(
        self,
        *,
        alpha: float,
        total_steps: int | None,
        group_size: int,
        critic: bool,
        own: Sequence[detectors.DetectorSpec] = (),
    ) -> None:
        self.own = tuple(own)
        self.state = detectors.start(alpha=alpha, total_steps=total_steps, group_size=group_size, own=own)
        self.ledger = SolveLedger()
        ignored = set(detectors.GROUP_BASELINE) if critic else set()
        self._read = set(self.state.roster.statistics) - ignored

    def blocks(self, rows: Rows, sums: Sums, families: Families, successes: Successes, step: int) -> list[Block]:
        """The blocks of a step from the rows of all ranks; their pairs and groups go into ``sums``, their rewards into
        the ledger."""
        found: list[Block] = []
        want = functools.partial(detectors.open_tallies, self.state)
        for part in by_round(rows):
            prompts, sources = part["prompt"].astype(np.int64).tolist(), part["source"].astype(np.int64).tolist()
            Format.add_successes(sums["format"], successes.fill(part, step))
            hard_B = self.ledger.credibly_below(prompts, sources) if successes.definition.known else None
            seen = RoundRows(part, groups_of_round(part, int(part["group_size"][0]), hard_B))
            families.add_round(sums, seen)
            found += families.blocks_of_round(seen, want)
            scored = np.where(np.isfinite(part["reward"]), part["success"], np.nan)
            self.ledger.update(prompts, sources, scored, step=step)
        trained = rows[rows["trained_tokens"] > 0]
        trained["success"] = successes.known(trained)
        families.add_trained(sums, trained)
        found += families.blocks_of_tokens(rows)
        return self._as_read(at_most(found, BLOCKS_A_STEP), families)

    def base_blocks(self, rows: Rows, sums: Sums, families: Families, successes: Successes) -> list[Block]:
        """The blocks of a sample of the base from the rows of all ranks, which are those of one round; its pairs and
        groups go into ``sums``. The ledger counts training alone."""
        successes.fill(rows, 0)
        seen = RoundRows(rows, groups_of_round(rows, int(rows["group_size"][0]), None))
        families.add_round(sums, seen)
        want = functools.partial(detectors.open_tallies, self.state)
        return self._as_read(families.blocks_of_round(seen, want), families)

    def _as_read(self, blocks: Sequence[Block], families: Families) -> list[Block]:
        """The blocks with the statistics that detectors look at, and those of the user's families."""
        read = self._read | set(families.columns)
        return [
            dataclasses.replace(block, stats={name: block.stats[name] for name in block.stats if name in read})
            for block in blocks
        ]

    def never_measured(self) -> str | None:
        """What detectors of the user read and no block of the run has had, in words; nothing before the first step."""
        arrays, at = self.state.arrays, self.state.roster.at
        seen = np.isfinite(arrays.smooth[0]).any(axis=0) | (arrays.sums[0, ..., COUNT] > 0).any(axis=0)
        lacking = [f"{name!r} ({spec.id})" for spec in self.own for name in spec.statistics if not seen[at[name]]]
        if not lacking or not self.state.records:
            return None
        return f"no block of this run had the statistic {', '.join(lacking)}, so that it was never looked at"

    def findings(self, record: StepRecord) -> tuple[Finding, ...]:
        """What the detectors say of a record."""
        self.state, found = detectors.step(self.state, record)
        return found
