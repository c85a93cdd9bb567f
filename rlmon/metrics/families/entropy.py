"""Token entropy of the policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlmon.metrics.blocks import Dealt
from rlmon.metrics.family import MODE, NO_BASE, Drawn, Entries, MetricFamily, Numbers, Shape, StepSums, Sums
from rlmon.metrics.tokens import ENTROPY_BINS, ENTROPY_EDGES_NATS, TokenSums

NO_TOKENS = "no token entropies were captured in this step"
PERCENTS = (20, 50, 80, 95)
_ECHO, _SHIFT, _FORKS = "arXiv 2505.22617", "arXiv 2608.00220", "arXiv 2506.01939"
_entry = Entries(family="entropy", needs="token entropies")


class Entropy(MetricFamily):
    name = "entropy"
    about = (
        "Token entropy of the policy: softmax(logits / T) over the model's own completion tokens, in nats, "
        "token-weighted over the whole step and all ranks, those of completions included that the trainer masks out of "
        "its loss (mask_truncated_completions)."
    )
    base = ("nats", "tokens")
    entries = (
        _entry(
            "mean", "nats", 0, None, "both",
            "entropy of softmax(logits / T), mean over all completion tokens of the step and all ranks", source=_ECHO,
        ),
        _entry(
            "mean_correct", "nats", 0, None, "both",
            "the same over rewarded completions, in the step that first trains on each",
            source=_ECHO, needs="token entropies, rewards", of_successes=True,
        ),
        *(
            _entry(
                f"p{percent}", "nats", 0, 16, "both",
                f"{percent} % quantile over tokens from 256 fixed bins (4.8 % wide)", source=_FORKS, kind="sketch",
            )
            for percent in PERCENTS
        ),
        _entry("first_5_tokens", "nats", 0, None, "both", "mean over each completion's first 5 tokens", source=_SHIFT),
        _entry("ratio_to_base", "ratio", 0, None, "both", "mean / mean of the baseline", source=_ECHO),
        _entry(f"mode/{MODE}", "nats", 0, None, "none", "mean over tokens of completions in this mode"),
        _entry(
            "cov_logp_advantage", "nats x advantage", None, None, "none",
            "mean(log p A) - mean(log p) mean(A) over tokens; entropy falls in proportion to it",
            source=_ECHO, needs="log-probabilities, advantages",
        ),
        _entry(
            "logp_mean", "nats", None, 0, "none", "mean log-probability of the sampled tokens",
            needs="log-probabilities",
        ),
    )  # fmt: skip

    histograms = (Drawn("token_entropy_nats", "histogram", ENTROPY_EDGES_NATS),)

    def fields(self, modes: Sequence[str]) -> Mapping[str, Shape]:
        names = (
            "nats",
            "tokens",
            "nats_correct",
            "tokens_correct",
            "first_nats",
            "first_tokens",
            "logp",
            "logp_tokens",
        )
        return {
            **dict.fromkeys(names, ()),
            "histogram": (ENTROPY_BINS,),
            "mode_nats": (len(modes),),
            "mode_tokens": (len(modes),),
            **dict.fromkeys(("cov_tokens", "cov_logp", "cov_advantage", "cov_product"), ()),
        }

    def add_tokens(self, sums: Sums, tokens: TokenSums, mode_code_B: NDArray[np.int64]) -> None:
        for name, values in (
            ("nats", tokens.entropy_sum_B),
            ("tokens", tokens.tokens_B),
            ("first_nats", tokens.first5_entropy_sum_B),
            ("first_tokens", tokens.first5_tokens_B),
            ("logp", tokens.logp_sum_B),
            ("logp_tokens", tokens.logp_tokens_B),
        ):
            sums[name] += values.sum()
        sums["histogram"] += tokens.entropy_hist
        for name, total in zip(
            ("cov_tokens", "cov_logp", "cov_advantage", "cov_product"), tokens.cov_sums, strict=True
        ):
            sums[name] += total
        known = mode_code_B >= 0
        code, modes = mode_code_B[known], sums["mode_nats"].size
        sums["mode_nats"] += np.bincount(code, weights=tokens.entropy_sum_B[known], minlength=modes)
        sums["mode_tokens"] += np.bincount(code, weights=tokens.tokens_B[known], minlength=modes)

    def add_trained(self, sums: Sums, rows: Any) -> None:
        # Ranks may decide only together which completions are right, after the tokens of all of them were seen.
        right = rows["success"] > 0
        sums["nats_correct"] += rows["entropy_nats"][right].sum()
        sums["tokens_correct"] += rows["trained_tokens"][right].sum()

    def put_trained(self, into: Dealt, rows: Any) -> None:
        """``entropy_nats``, token-weighted."""
        into.put("entropy_nats", into.by_block(rows["entropy_nats"]), into.by_block(rows["trained_tokens"]))

    def finish(self, out: Numbers, sums: Sums, step: StepSums) -> None:
        mean = out.ratio("entropy/mean", sums["nats"], sums["tokens"], NO_TOKENS)
        none_right = NO_TOKENS if mean is None else "no rewarded completion was trained on for the first time"
        out.ratio("entropy/mean_correct", sums["nats_correct"], sums["tokens_correct"], none_right)
        for percent in PERCENTS:
            out.quantile(f"entropy/p{percent}", sums["histogram"], ENTROPY_EDGES_NATS, percent, NO_TOKENS)
        out.ratio("entropy/first_5_tokens", sums["first_nats"], sums["first_tokens"], NO_TOKENS)
        base_nats, base_tokens = 0.0, 0.0
        if step.base is not None:
            base_nats, base_tokens = float(step.base["nats"]), float(step.base["tokens"])
        ratio = mean / (base_nats / base_tokens) if mean is not None and base_nats > 0 and base_tokens > 0 else None
        baseless = NO_BASE if step.base is None else "no token entropies were captured in the baseline"
        if base_tokens > 0:
            baseless = "the entropy of the baseline is 0"
        out.put("entropy/ratio_to_base", ratio, NO_TOKENS if mean is None else baseless)
        formats_known = sums["mode_tokens"].sum() > sums["tokens"] - 0.5
        reason = "no token of this mode was trained in this step"
        if not formats_known:
            reason = "formats of the trained completions are not known"
        reason = NO_TOKENS if mean is None else reason
        for m, mode in enumerate(step.modes):
            out.ratio(f"entropy/mode/{mode}", sums["mode_nats"][m], sums["mode_tokens"][m], reason)
        n, logp, advantage = sums["cov_tokens"], sums["cov_logp"], sums["cov_advantage"]
        covariance = sums["cov_product"] / n - (logp / n) * (advantage / n) if n > 0 else None
        out.put("entropy/cov_logp_advantage", covariance, "no log-probabilities with advantages in this step")
        out.ratio(
            "entropy/logp_mean", sums["logp"], sums["logp_tokens"], "no log-probabilities were captured in this step"
        )

    def unmeasured(self, sums: Sums, step: StepSums) -> str | None:
        """Each metric says it for itself."""
        return None
