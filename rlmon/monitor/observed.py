"""What one rank has seen of the current step, and of the evaluation that may go on meanwhile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlmon.metrics.family import Sums
from rlmon.metrics.rows import OF_ONE_STEP, Rows
from rlmon.metrics.step import Families
from rlmon.metrics.tokens import ExactKL, KLSample, TokenSums
from rlmon.records import RolloutBatch, Split
from rlmon.statistics import codes_of

ROUNDS_REMEMBERED = 8
"""Rounds whose rows can still be named by token statistics; a buffer never spans more."""


@dataclass
class Share:
    """This rank's share of what the current step (or evaluation) showed."""

    sums: Sums
    rows: list[Rows] = field(default_factory=list)
    """Rows of the rounds that were observed; token sums are added to them as they come."""
    rounds: list[int] = field(default_factory=list)
    completions: int = 0
    prompts: int = 0
    tokens: float = 0.0
    passes: dict[str, list[Any]] = field(default_factory=dict)

    def count(self, batch: RolloutBatch) -> None:
        """A round of this rank."""
        self.completions += len(batch)
        self.prompts += sum(row % max(1, batch.group_size) == 0 for row in batch.global_row)

    def add_batch(self, batch: RolloutBatch, rows: Rows) -> None:
        """A round of this rank and its rows."""
        self.count(batch)
        self.rows.append(rows)


@dataclass
class Round:
    """A round's rows, while tokens of them are still to be seen."""

    rows: Rows
    iterations: NDArray[np.int64]

    def __post_init__(self) -> None:
        self.mode = self.rows["mode"]
        self.global_row = self.rows["global_row"].astype(np.int64).tolist()


class Observed:
    """The shares of training and of evaluation, and the rounds whose tokens are still to come."""

    def __init__(self, families: Families) -> None:
        self._families = families
        self._rounds: dict[Split, dict[int, Round]] = {"train": {}, "eval": {}}
        self.share: dict[Split, Share] = {}
        for split in self._rounds:
            self.begin(split)

    def begin(self, split: Split) -> Share:
        """A share of nothing from here on; the one that it takes the place of."""
        before = self.share.get(split)
        empty = Share(sums=self._families.zeros())
        self.share[split] = empty
        return before if before is not None else empty

    def add_batch(self, batch: RolloutBatch) -> None:
        """Count a round of this rank."""
        into = self.share[batch.split]
        into.rounds.append(batch.round)
        into.count(batch)

    def remember(self, batch: RolloutBatch, rows: Rows) -> None:
        """Its rows, for the tokens that come later; by split: an evaluation in mid-buffer is longer than the buffer."""
        if batch.split == "train":
            self.share["train"].rows.append(rows)
        remembered = self._rounds[batch.split]
        remembered[batch.round] = Round(rows=rows, iterations=np.zeros(len(batch), dtype=np.int64))
        while len(remembered) > ROUNDS_REMEMBERED:
            remembered.pop(next(iter(remembered)))

    def round_of(self, split: Split, number: int, row: int) -> Round | None:
        """The round, where this row of it was observed."""
        return None if row < 0 else self._rounds[split].get(number)

    def identities(self, rows_B2: Sequence[Sequence[int]]) -> list[tuple[int, int]]:
        """(round, global row) of training rows given as (round, local row): the same whatever the number of ranks."""
        known = self._rounds["train"]
        return [(number, known[number].global_row[row] if number in known else row) for number, row in rows_B2]

    def take_rows(self) -> Rows:
        """This rank's rows that the step sampled, trained on or compared with the base; the next step begins anew."""
        known = {id(rows): rows for rows in self.share["train"].rows}
        known |= {id(one.rows): one.rows for one in self._rounds["train"].values()}
        taken = [np.zeros(0, dtype=self._families.row)]
        for rows in known.values():
            taken.append(rows[(rows["fresh"] > 0) | (rows["trained_tokens"] > 0) | (rows["kl_completion_tokens"] > 0)])
            for name in OF_ONE_STEP:
                rows[name] = 0.0
        return np.concatenate(taken)

    def add_tokens(
        self, split: Split, rows_B2: Sequence[Sequence[int]], sums: TokenSums, *, attempt: int, step: int
    ) -> bool:
        """Token sums of one micro-batch, whose rows are (round, local row); whether all of its rounds are known."""
        into = self.share[split]
        rounds = [self.round_of(split, number, row) for number, row in rows_B2]
        modes_B = np.array(
            [-1 if known is None else known.mode[row] for known, (_, row) in zip(rounds, rows_B2, strict=True)],
            dtype=np.int64,
        )
        self._families.add_tokens(into.sums, sums, modes_B)
        into.tokens += float(np.maximum(sums.tokens_B, sums.logp_tokens_B).sum())
        for i, (remembered, (number, row)) in enumerate(zip(rounds, rows_B2, strict=True)):
            if remembered is None:
                continue
            iteration = int(remembered.iterations[row])
            remembered.iterations[row] += 1
            if iteration == 0 and split == "train":
                remembered.rows["trained_tokens"][row] += sums.tokens_B[i]
                remembered.rows["entropy_nats"][row] += sums.entropy_sum_B[i]
            counted, logps = sums.tokens_B[i], sums.logp_tokens_B[i]
            for name, cell in (
                ("attempt", attempt),
                ("round", number),
                ("split", split),
                ("global_row", remembered.global_row[row]),
                ("iteration", iteration),
                ("step", step),
                ("tokens", int(max(counted, logps))),
                ("entropy_mean_nats", sums.entropy_sum_B[i] / counted if counted else None),
                ("logp_mean_nats", sums.logp_sum_B[i] / logps if logps else None),
                ("kl_mean_nats", None),
            ):
                into.passes.setdefault(name, []).append(cell)
        return all(known is not None or row < 0 for known, (_, row) in zip(rounds, rows_B2, strict=True))

    def add_kl(
        self,
        rows_b2: Sequence[Sequence[int]],
        sampled_b: NDArray[Any],
        tokens_b: NDArray[Any],
        result: ExactKL,
        weight_b: NDArray[Any] | None,
    ) -> None:
        """A comparison with the base on rows of the micro-batch observed last; arguments as in
        ``Monitor.observe_kl``."""
        row_T = np.repeat(np.arange(len(sampled_b)), np.asarray(sampled_b, dtype=np.int64))
        weight_B = np.ones(len(sampled_b)) if weight_b is None else np.asarray(weight_b, dtype=np.float64)
        known = [self.round_of("train", number, row) for number, row in rows_b2]
        prompts = [-1.0 if r is None else r.rows["prompt"][row] for r, (_, row) in zip(known, rows_b2, strict=True)]
        modes = [-1 if r is None else r.mode[row] for r, (_, row) in zip(known, rows_b2, strict=True)]
        into = self.share["train"]
        sample = KLSample(
            kl_T=result.kl_pi_base_T,
            reverse_T=result.kl_base_pi_T,
            entropy_base_T=result.entropy_base_T,
            logp_pi_T=result.logp_pi_T,
            logp_base_T=result.logp_base_T,
            row_T=row_T,
            weight_T=weight_B[row_T],
            tokens_B=np.asarray(tokens_b, dtype=np.float64),
            mode_code_B=np.array(modes, dtype=np.int64),
            prompt_B=codes_of(np.array(prompts)),
        )
        self._families.add(into.sums, lambda family, own: family.add_kl(own, sample))
        kl_b = np.bincount(row_T, weights=result.kl_pi_base_T, minlength=len(sampled_b))
        places = zip(into.passes.get("round", ()), into.passes.get("global_row", ()), strict=True)
        at = {place: index for index, place in enumerate(places)}
        for i, (r, (number, row)) in enumerate(zip(known, rows_b2, strict=True)):
            if r is None or not tokens_b[i] or not np.isfinite(kl_b[i]):
                continue
            index = at.get((number, r.global_row[row])) if sampled_b[i] else None
            if index is not None:
                into.passes["kl_mean_nats"][index] = float(kl_b[i] / sampled_b[i])
            r.rows["kl_nats"][row] += float(weight_B[i]) * kl_b[i]
            r.rows["kl_tokens"][row] += float(weight_B[i]) * sampled_b[i]
            r.rows["kl_completion_tokens"][row] = tokens_b[i]
