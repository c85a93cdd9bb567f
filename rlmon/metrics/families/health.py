"""Lengths, truncation, rewards, values that are not finite."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from rlmon.metrics.blocks import Dealt
from rlmon.metrics.family import (
    NO_ROUND,
    Drawn,
    Entries,
    MetricFamily,
    Numbers,
    RankRows,
    RoundRows,
    Shape,
    StepSums,
    Sums,
    histogram,
)
from rlmon.metrics.groups import column
from rlmon.metrics.tokens import KLSample, TokenSums

LENGTH_EDGES_TOKENS: NDArray[np.float64] = np.concatenate([np.arange(0.0, 32.0), np.geomspace(32.0, 2.0**20, 181)])
"""Exact to 32 tokens, then bins of 5.9 % up to 1M tokens."""
_BINS = "exact to 32 tokens, then within 5.9 %"
_entry = Entries(family="health", needs="rewards")
_of_ids = Entries(family="health", needs="token ids")


class Health(MetricFamily):
    name = "health"
    about = "Lengths, truncation, rewards, non-finite values."
    entries = (
        _of_ids("length_mean", "tokens", 0, None, "both", "mean completion tokens (the model's own)"),
        _of_ids("length_p5", "tokens", 0, None, "down", f"5 % quantile, {_BINS}", kind="sketch"),
        _of_ids("length_p95", "tokens", 0, None, "up", f"95 % quantile, {_BINS}", kind="sketch"),
        _entry("truncated", "share", 0, 1, "up", "completions cut off by the token limit", needs="truncation flags"),
        _entry("reward_mean", "reward", None, None, "down", "mean finite reward"),
        _entry("reward_missing", "completions", 0, None, "none", "completions for which no function gave a reward"),
        _entry(
            "reward_non_finite", "values", 0, None, "up", "NaN or infinite rewards, each function's included",
        ),
        _entry(
            "non_finite", "values", 0, None, "up",
            "NaN or infinite rewards, entropies, log-probabilities, advantages and KL values", needs="any",
        ),
    )  # fmt: skip

    histograms = (Drawn("length_tokens", "lengths", LENGTH_EDGES_TOKENS),)

    def fields(self, modes: Sequence[str]) -> Mapping[str, Shape]:
        names = (
            *("rows", "length", "length_rows", "truncated", "truncation_known", "reward", "rewarded"),
            *("reward_missing", "reward_non_finite", "token_non_finite"),
        )
        return {**dict.fromkeys(names, ()), "lengths": (LENGTH_EDGES_TOKENS.size - 1,)}

    def add_rows(self, sums: Sums, seen: RankRows) -> None:
        batch, tokens_B, rows = seen.batch, seen.features.tokens, len(seen.batch)
        sums["rows"] += rows
        if tokens_B is not None:
            sums["length"] += tokens_B.sum()
            sums["length_rows"] += rows
            sums["lengths"] += histogram(tokens_B, LENGTH_EDGES_TOKENS)
        if batch.truncated is not None:
            known = [flag for flag in batch.truncated if flag is not None]
            sums["truncated"] += sum(map(bool, known))
            sums["truncation_known"] += len(known)
        finite = np.isfinite(seen.reward_B)
        sums["reward"] += seen.reward_B[finite].sum()
        sums["rewarded"] += finite.sum()
        if batch.reward is not None:
            missing = sum(value is None for value in batch.reward)
            sums["reward_missing"] += missing
            sums["reward_non_finite"] += (~finite).sum() - missing
        for values in batch.rewards.values():
            given = sum(value is not None for value in values)
            sums["reward_non_finite"] += given - np.isfinite(column(values, len(values))).sum()

    def add_tokens(self, sums: Sums, tokens: TokenSums, mode_code_B: NDArray[np.int64]) -> None:
        sums["token_non_finite"] += tokens.non_finite

    def add_kl(self, sums: Sums, sample: KLSample) -> None:
        sums["token_non_finite"] += (~sample.finite_T).sum()

    def put_round(self, into: Dealt, seen: RoundRows) -> None:
        """``completion_tokens`` and ``reward``, means."""
        into.put_mean("completion_tokens", seen.rows["tokens"])
        into.put_mean("reward", seen.rows["reward"])

    def finish(self, out: Numbers, sums: Sums, step: StepSums) -> None:
        rows, no_ids = sums["rows"], "completion token ids were not captured"
        tokens = step.of("entropy", "tokens") + step.of("entropy", "logp_tokens") + step.of("kl", "tokens")
        out.ratio("health/length_mean", sums["length"], sums["length_rows"], no_ids)
        for percent in (5, 95):
            # The bin [n, n + 1) below 32 holds only n.
            out.quantile(f"health/length_p{percent}", sums["lengths"], LENGTH_EDGES_TOKENS, percent, no_ids, whole=True)
        out.ratio("health/truncated", sums["truncated"], sums["truncation_known"], "truncation was not captured")
        out.ratio("health/reward_mean", sums["reward"], sums["rewarded"], "no finite reward")
        for name in ("reward_missing", "reward_non_finite"):
            out.put(f"health/{name}", sums[name], NO_ROUND, known=rows > 0)
        bad = sums["reward_non_finite"] + sums["token_non_finite"] + step.of("value", "non_finite")
        seen = (rows > 0) | (tokens > 0) | (bad > 0)
        out.put("health/non_finite", bad, "nothing was captured in this step", known=seen)
