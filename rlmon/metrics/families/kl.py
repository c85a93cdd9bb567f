"""KL between the policy and the initial base."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from rlmon.metrics.blocks import Dealt
from rlmon.metrics.family import (
    MODE,
    Drawn,
    Entries,
    Metric,
    MetricFamily,
    Numbers,
    Shape,
    StepSums,
    Sums,
    dtype_of,
    histogram,
)
from rlmon.metrics.tokens import KLSample, kl_terms
from rlmon.statistics import Floats

NO_KL = "KL to the base was not measured in this step"
ESTIMATOR = dtype_of(dict.fromkeys(("sum", "square", "cross"), ()))
"""Of an estimator, over clusters c of sampled tokens, all weighted: sum k, sum_c S_c^2, sum_c S_c n_c."""
_ESTIMATORS = {
    "k1": "weighted mean of x = log pi - log base on sampled tokens, x clamped to +-20",
    "k2": "weighted mean of x^2 / 2",
    "k3": "weighted mean of exp(-x) - 1 + x",
}
_EXACT, _TOKEN = "arXiv 2605.12484", "nats per token"
KL_EDGES_NATS: Floats = np.concatenate([[0.0], np.geomspace(1e-6, 1e2, 49)])
"""One bin below 1e-6, then six bins to a factor of ten."""
_entry = Entries(family="kl", needs="base model forward")


def _entries() -> Iterator[Metric]:
    yield _entry(
        "mean", _TOKEN, 0, None, "up",
        "sum_v pi (log pi - log base) over the full vocabulary, mean over the tokens of a bounded sample, each "
        "weighted by the tokens it stands for (Hajek); base: the initial one", source=_EXACT,
    )  # fmt: skip
    yield _entry("reverse", _TOKEN, 0, None, "up", "the same with policy and base exchanged", source=_EXACT)
    yield _entry(
        "seq", "nats per sequence", 0, None, "up",
        "mean exact KL per token x mean tokens of the completions that the sample stands for",
    )  # fmt: skip
    yield _entry("base_entropy", "nats", 0, None, "none", "entropy of the base on the same contexts")
    yield _entry(f"mode/{MODE}", _TOKEN, 0, None, "none", "mean exact KL over tokens of completions in this mode")
    for name, formula in _ESTIMATORS.items():
        least = None if name == "k1" else 0
        yield _entry(name, _TOKEN, least, None, "up", formula, source="Schulman 2020; arXiv 2512.21852")
        yield _entry(
            f"{name}_se", _TOKEN, 0, None, "none",
            f"standard error of {name} with prompts as clusters: "
            "sqrt(C/(C-1) sum_c (S_c - mean n_c)^2) / n, sums weighted; a prompt on two ranks is two clusters",
            source="ratio estimator over clusters", kind="local", instead=f"kl/{name}",
        )  # fmt: skip


class KL(MetricFamily):
    name = "kl"
    about = "KL between the policy and the initial base, exact over the full vocabulary on a bounded sample of tokens."
    entries = tuple(_entries())

    histograms = (Drawn("kl_per_token_nats", "histogram", KL_EDGES_NATS),)

    def fields(self, modes: Sequence[str]) -> Mapping[str, Shape]:
        exact = ("tokens", "forward", "reverse", "base_entropy", "of_sequences", "sequences")
        return {
            **dict.fromkeys(exact, ()),
            "histogram": (KL_EDGES_NATS.size - 1,),
            "mode_nats": (len(modes),),
            "mode_tokens": (len(modes),),
            # Tokens with finite log-probabilities under both models, the clusters that they are of, and sum_c n_c^2.
            **dict.fromkeys(("sampled", "clusters", "square_tokens"), ()),
            **dict.fromkeys(_ESTIMATORS, ESTIMATOR),
        }

    def add_kl(self, sums: Sums, sample: KLSample) -> None:
        """Means per token are weighted (Hajek), and the mean sequence KL is the mean per token times the mean length of
        all rows, which is known. Tokens with a non-finite value are left out."""
        finite, tokens_B = sample.finite_T, sample.tokens_B
        row, weight = sample.row_T[finite], sample.weight_T[finite]
        kl = weight * sample.kl_T[finite]
        stands_for = float(weight.sum())
        sums["tokens"] += stands_for
        sums["forward"] += kl.sum()
        sums["histogram"] += histogram(sample.kl_T[finite], KL_EDGES_NATS, weight)
        sums["reverse"] += weight @ sample.reverse_T[finite]
        sums["base_entropy"] += weight @ sample.entropy_base_T[finite]
        if stands_for > 0:
            sums["of_sequences"] += kl.sum() / stands_for * tokens_B.sum()
            sums["sequences"] += (tokens_B > 0).sum()
        code, modes = sample.mode_code_B[row], sums["mode_nats"].size
        known = code >= 0
        sums["mode_nats"] += np.bincount(code[known], weights=kl[known], minlength=modes)
        sums["mode_tokens"] += np.bincount(code[known], weights=weight[known], minlength=modes)
        if sample.logp_pi_T is not None and sample.logp_base_T is not None:
            terms = kl_terms(sample.logp_pi_T, sample.logp_base_T)
            finite = np.asarray(np.isfinite(terms).all(axis=0))
            cluster_T = sample.prompt_B[sample.row_T[finite]]
            weight = sample.weight_T[finite]
            clusters = int(cluster_T.max()) + 1 if cluster_T.size else 0
            count = np.bincount(cluster_T, weights=weight, minlength=clusters)
            sums["sampled"] += float(weight.sum())
            sums["clusters"] += float((count > 0).sum())
            sums["square_tokens"] += float((count**2).sum())
            for name, values in zip(_ESTIMATORS, weight * terms[:, finite], strict=True):
                total = np.bincount(cluster_T, weights=values, minlength=clusters)
                sums[name]["sum"] += float(values.sum())
                sums[name]["square"] += float(total @ total)
                sums[name]["cross"] += float(total @ count)

    def put_compared(self, into: Dealt, rows: Any) -> None:
        """``kl_nats`` (weighted mean exact KL per token) and ``kl_seq_nats`` (the same times the mean completion tokens
        of the block's rows)."""
        total, tokens = into.by_block(rows["kl_nats"]), into.by_block(rows["kl_tokens"])
        into.put("kl_nats", total, tokens)
        completion_tokens = into.by_block(rows["kl_completion_tokens"])
        into.put("kl_seq_nats", total * completion_tokens, tokens * np.bincount(into.block_B, minlength=into.count))

    def finish(self, out: Numbers, sums: Sums, step: StepSums) -> None:
        n = sums["tokens"]
        out.ratio("kl/mean", sums["forward"], n, NO_KL)
        out.ratio("kl/reverse", sums["reverse"], n, NO_KL)
        out.ratio("kl/base_entropy", sums["base_entropy"], n, NO_KL)
        out.ratio("kl/seq", sums["of_sequences"], sums["sequences"], NO_KL)
        reason = NO_KL if n <= 0 else "no completion of this mode was compared with the base"
        for m, mode in enumerate(step.modes):
            out.ratio(f"kl/mode/{mode}", sums["mode_nats"][m], sums["mode_tokens"][m], reason)
        sampled, clusters = sums["sampled"], sums["clusters"]
        reason = NO_KL if n <= 0 else "no sampled token has finite log-probabilities under both models"
        for name in _ESTIMATORS:
            of = sums[name]
            mean = out.ratio(f"kl/{name}", of["sum"], sampled, reason)
            error = None
            if mean is not None and clusters > 1:
                squares = float(of["square"] - 2.0 * mean * of["cross"] + mean * mean * sums["square_tokens"])
                error = math.sqrt(clusters / (clusters - 1.0) * max(0.0, squares)) / float(sampled)
            out.put(f"kl/{name}_se", error, reason if mean is None else "one prompt in the sample: no standard error")

    def unmeasured(self, sums: Sums, step: StepSums) -> str | None:
        """Why the base was not compared."""
        if sums["tokens"] > 0:
            return None
        broken = sorted({"base.tap", "base.forward", "metrics.kl"} & set(step.known.failed))
        return (
            f"the comparison with the base failed in this step ({', '.join(broken)})" if broken else step.known.no_base
        )
