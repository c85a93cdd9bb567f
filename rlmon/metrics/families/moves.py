"""How completions open their sentences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

import rlmon.metrics.moves as moves
from rlmon.metrics.collision import PAIRS, overlap_pairs
from rlmon.metrics.families.collision import LEINSTER, NEEDS_IDS
from rlmon.metrics.families.format import HILL
from rlmon.metrics.family import (
    Entries,
    Metric,
    MetricFamily,
    Numbers,
    RankRows,
    RoundRows,
    Shape,
    StepSums,
    Sums,
    add_to,
)

_entry = Entries(family="moves", needs="token ids, vocabulary", source=LEINSTER, kind="sketch")


def _entries() -> Iterator[Metric]:
    for side, pairs in (("across", "different prompts"), ("within", "one prompt")):
        formula = f"1 / mean over pairs of {pairs} of sum_b min(h(b), h'(b))"
        yield _entry(f"effective_{side}", "moves", 1, None, "down", formula)
        yield _entry(
            f"effective_{side}_correct", "moves", 1, None, "down", "the same over rewarded completions",
            needs="token ids, vocabulary, rewards", of_successes=True,
        )  # fmt: skip
        for tenth in range(1, moves.DECILES + 1):
            yield _entry(
                f"effective_{side}_decile_{tenth}", "moves", 1, None, "down",
                f"the same over openers in tenth {tenth} of each completion",
                kind="local", instead=f"moves/effective_{side}",
            )  # fmt: skip
    yield _entry(
        "effective_openers", "openers", 1, 4096, "down", "exp(-sum p ln p) over the 4,096 opener buckets", source=HILL
    )
    yield _entry(
        "openers_per_1000_tokens", "openers", 0, 1000, "both", "openers / completion tokens x 1,000",
        source="rlmon", kind="exact",
    )  # fmt: skip


class Moves(MetricFamily):
    name = "moves"
    about = (
        "How completions open their sentences, from token ids alone. Digits and tokens copied from the prompt are "
        "masked."
    )
    base = ("openers", "tokens")
    entries = tuple(_entries())

    def fields(self, modes: Sequence[str]) -> Mapping[str, Shape]:
        return {
            "deciles": np.dtype((PAIRS, (moves.DECILES,))),
            "openers": (moves.OPENER_BUCKETS,),
            "tokens": (),
            "correct": PAIRS,
        }

    def add_rows(self, sums: Sums, seen: RankRows) -> None:
        table = seen.features.moves
        if table is None:
            return
        decile = np.tile(np.arange(moves.DECILES), len(seen.batch))
        pairs = overlap_pairs(
            table.decile_cell_M,
            table.decile_bucket_M,
            table.decile_weight_M,
            np.repeat(seen.prompt_B, moves.DECILES) * moves.DECILES + decile,
            decile,
            moves.DECILES,
            moves.OPENER_BUCKETS,
        )
        add_to(sums["deciles"], pairs)
        sums["openers"] += table.counts
        if seen.features.tokens is not None:
            sums["tokens"] += seen.features.tokens.sum()

    def add_round(self, sums: Sums, seen: RoundRows) -> None:
        row_N, bucket_N, weight_N = seen.openers
        right_N = seen.rows["success"][row_N] > 0
        one = np.zeros(len(seen.rows), dtype=np.int64), 1
        pairs = overlap_pairs(
            row_N[right_N], bucket_N[right_N], weight_N[right_N], seen.prompt_B, *one, moves.OPENER_BUCKETS
        )
        add_to(sums["correct"], pairs)

    def finish(self, out: Numbers, sums: Sums, step: StepSums) -> None:
        tokens = float(sums["tokens"])
        for kind, where in (("across", "different prompts"), ("within", "one prompt")):
            tenths = sums["deciles"]
            for name, of in (
                (f"moves/effective_{kind}", step.sums["collision"]["moves"]),
                (f"moves/effective_{kind}_correct", sums["correct"]),
                *((f"moves/effective_{kind}_decile_{at + 1}", tenths[at]) for at in range(moves.DECILES)),
            ):
                total, pairs = of[f"{kind}_sum"], of[f"{kind}_pairs"]
                compared = "rewarded completions" if name.endswith("_correct") else "completions"
                none = "no pair shares an opener" if pairs > 0 else f"no pair of {compared} of {where} with openers"
                out.put(name, pairs / total if total > 0 else None, NEEDS_IDS if tokens <= 0 else none)
        no_opener = NEEDS_IDS if tokens <= 0 else "no completion has an opener"
        out.effective("moves/effective_openers", sums["openers"], no_opener)
        out.ratio("moves/openers_per_1000_tokens", 1000.0 * float(sums["openers"].sum()), tokens, NEEDS_IDS)
