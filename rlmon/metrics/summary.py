"""From additive sums to the numbers of the catalogue; what cannot be computed is ``None`` with a reason."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from rlmon.metrics.layout import ADVANTAGE_EDGES, GROUP_FIELDS, LENGTH_EDGES_TOKENS, TEXT_FIELDS, SumsLayout
from rlmon.metrics.moves import DECILES
from rlmon.metrics.tokens import ENTROPY_EDGES_NATS
from rlmon.statistics import effective_number, histogram_quantile, js_distance

SURE = 0.01
"""A mode is extinct (newborn) only when its share at the other time would have shown it with probability 1 - SURE."""

_NO_ROUND = "no generation round belongs to this step"
_NO_BASE = "no baseline yet"
_NO_TOKENS = "no token entropies were captured in this step"
_NO_KL = "KL to the base was not measured in this step"
_NO_SUCCESS = "it is not known which completions are successes"


OF_SUCCESSES = (
    "format/effective_correct", "collision/mode_correct_across", "collision/mode_correct_across_effective",
    "collision/mode_correct_within", "collision/mode_correct_within_effective",
    "text/effective_templates_within_correct", "group/all_good", "group/all_bad", "group/lone_success",
    "group/lone_weight", "group/lone_success_weight", "group/hard_share", "group/lone_length_ratio",
    "group/lone_repetition_excess",
)  # fmt: skip
"""Metrics that are null where no row is known to be a success or none."""


class _Numbers:
    """Collects metrics; refuses NaN and infinity by turning them into ``None`` with a reason."""

    def __init__(self) -> None:
        self.metrics: dict[str, float | None] = {}
        self.missing: dict[str, str] = {}

    def put(self, name: str, value: float | None, reason: str) -> None:
        name = f"rlmon/{name}"
        if value is not None and not math.isfinite(value):
            value, reason = None, "the sums are not finite"
        self.metrics[name] = None if value is None else float(value)
        if value is None:
            self.missing[name] = reason

    def effective(self, name: str, counts: NDArray[np.float64], reason: str) -> float | None:
        value = float(effective_number(counts)) if counts.sum() != 0 else None
        self.put(name, value, reason)
        return value

    def ratio(self, name: str, top: float, bottom: float, reason: str) -> float | None:
        value = top / bottom if bottom > 0 else None
        self.put(name, value, reason)
        return value


def finish(
    layout: SumsLayout,
    sums: Mapping[str, NDArray[np.float64]],
    base: Mapping[str, NDArray[np.float64]] | None,
    no_success: str | None = None,
) -> tuple[dict[str, float | None], dict[str, str]]:
    """All metrics of the catalogue from sums over micro-batches and ranks.

    ``base`` holds the summed sums of the baseline rounds, ``None`` before there are any; ``no_success`` is the reason
    where it is not known which rows are successes. Returns
    ``(metrics, missing)``: every name of the catalogue, and the reason for each that is ``None``. No value is NaN or
    infinite.
    """
    out = _Numbers()
    _format(out, layout, sums, base)
    _collision(out, sums)
    _moves(out, sums)
    _group(out, sums)
    _text(out, sums)
    _health(out, sums)
    _entropy(out, layout, sums, base)
    _kl(out, layout, sums)
    if sums["rows"][0] > 0 and sums["reward"][1] > 0 and sums["success"][0] <= 0:
        unknown = {f"rlmon/{name}" for name in OF_SUCCESSES} & out.missing.keys()
        out.missing.update(dict.fromkeys(unknown, no_success or _NO_SUCCESS))
    return out.metrics, out.missing


def _format(
    out: _Numbers,
    layout: SumsLayout,
    sums: Mapping[str, NDArray[np.float64]],
    base: Mapping[str, NDArray[np.float64]] | None,
) -> None:
    counts = sums["mode_count"]
    correct = sums["mode_count_correct"]
    rows = float(counts.sum())
    effective = out.effective("format/effective", counts, _NO_ROUND)
    no_reward = _NO_ROUND if rows <= 0 else "no completion of this step was rewarded"
    out.effective("format/effective_correct", correct, no_reward)
    within = sums["mode_within"]
    out.ratio("format/effective_within", within[0], within[1], _few(rows, "no prompt has two completions"))
    out.ratio("format/top_share", float(counts.max()), rows, _NO_ROUND)
    out.ratio("format/other_share", counts[-1], rows, _NO_ROUND)
    reward = sums["mode_reward"]
    for m, mode in enumerate(layout.mode_names):
        out.ratio(f"format/share/{mode}", counts[m], rows, _NO_ROUND)
        absent = _NO_ROUND if rows <= 0 else ("no completion in this mode" if counts[m] <= 0 else "no finite reward")
        out.ratio(f"format/reward/{mode}", reward[m, 0], reward[m, 1], absent)
    rewarded = reward[:, 1] > 0
    top = int(counts.argmax())
    gap = None
    if rewarded[top]:
        gap = float(np.max(reward[rewarded, 0] / reward[rewarded, 1]) - reward[top, 0] / reward[top, 1])
    out.put("format/top_reward_gap", gap, _few(rows, "no finite reward in the largest mode"))
    reasoning = sums["reasoning_count"]
    out.ratio("format/reasoning_share", float(reasoning.sum()), rows, _NO_ROUND)
    unreasoned = _few(rows, "no completion has a reasoning block")
    out.effective("format/reasoning_effective", reasoning, unreasoned)

    base_counts = None if base is None else base["mode_count"]
    base_rows = 0.0 if base_counts is None else float(base_counts.sum())
    distance = extinct = newborn = ratio = None
    if base_counts is not None and base_rows > 0 and rows > 0:
        distance = js_distance(counts, base_counts)
        gone = (counts == 0) & ((1.0 - base_counts / base_rows) ** rows <= SURE)
        new = (base_counts == 0) & ((1.0 - counts / rows) ** base_rows <= SURE)
        extinct, newborn = float(gone.sum()), float(new.sum())
        if effective is not None:
            ratio = effective / float(effective_number(base_counts))
    reason = _NO_ROUND if rows <= 0 else _NO_BASE
    out.put("format/js_to_base", distance, reason)
    out.put("format/extinct", extinct, reason)
    out.put("format/newborn", newborn, reason)
    out.put("format/effective_ratio_to_base", ratio, reason)


def _few(rows: float, reason: str) -> str:
    return _NO_ROUND if rows <= 0 else reason


_COMPARED = {
    "mode_correct": "rewarded completions",
    "answer": "completions with an answer",
    "similarity": "completions with 4-grams",
}
"""Which completions a kernel compares, where that is not all of them."""


def _collision(out: _Numbers, sums: Mapping[str, NDArray[np.float64]]) -> None:
    rows = float(sums["rows"][0])
    for kernel in ("mode", "mode_correct", "template", "answer", "opening", "moves", "similarity"):
        pairs = sums[f"pairs_{kernel}"]
        for at, kind in ((0, "across"), (2, "within")):
            where = "different prompts" if kind == "across" else "one prompt"
            reason = _few(rows, f"no pair of {_COMPARED.get(kernel, 'completions')} of {where} to compare")
            if kernel == "moves" and rows > 0 and sums["opener_tokens"][0] <= 0:
                reason = "moves need token ids and a vocabulary"
            value = out.ratio(f"collision/{kernel}_{kind}", pairs[at], pairs[at + 1], reason)
            if value is not None and value <= 0.0:
                reason = "no pair agreed: the effective number is beyond what this many completions show"
            out.put(f"collision/{kernel}_{kind}_effective", 1.0 / value if value else None, reason)


def _moves(out: _Numbers, sums: Mapping[str, NDArray[np.float64]]) -> None:
    rows = float(sums["rows"][0])
    tokens = float(sums["opener_tokens"][0])
    unmeasured = _few(rows, "moves need token ids and a vocabulary")

    def put(name: str, kind: str, total: float, pairs: float) -> None:
        where = "different prompts" if kind == "across" else "one prompt"
        none = "no pair shares an opener" if pairs > 0 else f"no pair of completions of {where} with openers"
        out.put(f"moves/{name}", pairs / total if total > 0 else None, unmeasured if tokens <= 0 else none)

    for at, kind in ((0, "across"), (2, "within")):
        put(f"effective_{kind}", kind, *sums["pairs_moves"][at : at + 2])
        for decile in range(DECILES):
            put(f"effective_{kind}_decile_{decile + 1}", kind, *sums["pairs_moves_decile"][decile, at : at + 2])
    no_opener = unmeasured if tokens <= 0 else "no completion has an opener"
    out.effective("moves/effective_openers", sums["openers"], no_opener)
    out.ratio("moves/openers_per_1000_tokens", 1000.0 * float(sums["openers"].sum()), tokens, unmeasured)


def _group(out: _Numbers, sums: Mapping[str, NDArray[np.float64]]) -> None:
    rows = float(sums["rows"][0])
    field = dict(zip(GROUP_FIELDS, sums["group"].tolist(), strict=True))
    judged = field["judged"]
    _, classified, silent = sums["success"].tolist()
    reason = _few(rows, "no whole group has two finite rewards")
    unclassified = reason if judged <= 0 else "of no group is the success of every completion known"
    out.ratio("group/all_good", field["all_good"], classified, unclassified)
    out.ratio("group/all_bad", field["all_bad"], classified, unclassified)
    out.ratio("group/silent", silent, judged, reason)
    out.ratio("group/lone_success", field["lone"], classified, unclassified)
    out.ratio("group/reward_std", field["std_sum"], field["std_groups"], reason)
    out.ratio("group/coverage", field["whole"], sums["groups"][0], _NO_ROUND)
    weightless = _few(rows, "no advantages were captured, or all of them are 0") if judged > 0 else reason
    out.ratio("group/lone_weight", field["weight_lone"], field["weight"], weightless)
    unknown = weightless if field["ledger_rows"] > 0 or rows <= 0 else "no ledger of earlier rounds"
    out.ratio("group/lone_success_weight", field["weight_lone_hard"], field["weight_known"], unknown)
    out.ratio("group/hard_share", field["hard_rows"], field["ledger_rows"], _few(rows, "no ledger of earlier rounds"))
    no_lone = _few(rows, "no group with a single success")
    winner = field["lone_winner_tokens"] / field["lone_winner_rows"] if field["lone_winner_rows"] > 0 else 0.0
    other = field["lone_other_tokens"] / field["lone_other_rows"] if field["lone_other_rows"] > 0 else 0.0
    lengthless = "completion lengths were not captured, or the other completions are empty"
    no_length = no_lone if field["lone_winner_rows"] <= 0 else lengthless
    out.ratio("group/lone_length_ratio", winner, other, no_length)
    excess = None
    if field["lone_winner_rows"] > 0 and field["lone_other_rows"] > 0:
        excess = (
            field["lone_winner_repetition"] / field["lone_winner_rows"]
            - field["lone_other_repetition"] / field["lone_other_rows"]
        )
    out.put("group/lone_repetition_excess", excess, no_lone)
    for percent in (50, 95, 99):
        value = histogram_quantile(sums["advantage_hist"], ADVANTAGE_EDGES, percent / 100)
        out.put(f"group/advantage_abs_p{percent}", value, _few(rows, "no finite advantages were captured"))


def _text(out: _Numbers, sums: Mapping[str, NDArray[np.float64]]) -> None:
    rows = float(sums["rows"][0])
    field = dict(zip(TEXT_FIELDS, sums["text"].tolist(), strict=True))
    small = _few(rows, "fewer than 256 words in the round")
    for n in (1, 2, 3):
        out.ratio(f"text/distinct_{n}", field[f"distinct_{n}"], field[f"total_{n}"], small)
    out.ratio("text/compression_ratio", field["raw_bytes"], field["compressed_bytes"], small)
    out.ratio("text/budget_words", field["words"], field["ranks"], small)
    short = _few(rows, "no completion has 4 tokens")
    out.ratio("text/repetition", field["repetition"], field["repetition_rows"], short)
    near = sums["pairs_near_duplicate"]
    out.ratio("text/near_duplicate_across", near[0], near[1], _few(rows, "no pair of different prompts with 4-grams"))
    out.ratio("text/near_duplicate_within", near[2], near[3], _few(rows, "no pair of one prompt with 4-grams"))
    similar = sums["pairs_similarity"]
    out.ratio("text/similarity_within", similar[2], similar[3], _few(rows, "no pair of one prompt with 4-grams"))
    for name, key, lacking in (
        ("text/effective_answers_within", "answers_within", "no prompt has two completions with an answer"),
        ("text/effective_templates_within", "templates_within", "no prompt has two completions"),
        (
            "text/effective_templates_within_correct",
            "templates_within_correct",
            "no prompt has two rewarded completions",
        ),
    ):
        out.ratio(name, sums[key][0], sums[key][1], _few(rows, lacking))
    out.ratio("text/answer_share", sums["answer_known"][0], rows, _NO_ROUND)


def _health(out: _Numbers, sums: Mapping[str, NDArray[np.float64]]) -> None:
    rows = float(sums["rows"][0])
    tokens = float(sums["entropy"][1] + sums["logp"][1] + sums["kl"][0])
    no_ids = _few(rows, "completion token ids were not captured")
    out.ratio("health/length_mean", sums["length"][0], sums["length"][1], no_ids)
    for percent in (5, 95):
        value = histogram_quantile(sums["length_hist"], LENGTH_EDGES_TOKENS, percent / 100)
        # The bin [n, n + 1) below 32 holds only n.
        out.put(f"health/length_p{percent}", None if value is None else float(math.floor(value)), no_ids)
    out.ratio("health/truncated", sums["truncated"][0], sums["truncated"][1], _few(rows, "truncation was not captured"))
    out.ratio("health/reward_mean", sums["reward"][0], sums["reward"][1], _few(rows, "no finite reward"))
    out.put("health/reward_missing", sums["reward_missing"][0] if rows > 0 else None, _NO_ROUND)
    out.put("health/reward_non_finite", sums["reward_non_finite"][0] if rows > 0 else None, _NO_ROUND)
    bad = float(sums["reward_non_finite"][0] + sums["token_non_finite"][0])
    seen = rows > 0 or tokens > 0 or bad > 0
    out.put("health/non_finite", bad if seen else None, "nothing was captured in this step")


def _entropy(
    out: _Numbers,
    layout: SumsLayout,
    sums: Mapping[str, NDArray[np.float64]],
    base: Mapping[str, NDArray[np.float64]] | None,
) -> None:
    mean = out.ratio("entropy/mean", sums["entropy"][0], sums["entropy"][1], _NO_TOKENS)
    for percent in (20, 50, 80, 95):
        value = histogram_quantile(sums["entropy_hist"], ENTROPY_EDGES_NATS, percent / 100)
        out.put(f"entropy/p{percent}", value, _NO_TOKENS)
    out.ratio("entropy/first_5_tokens", sums["entropy_first"][0], sums["entropy_first"][1], _NO_TOKENS)
    base_nats, base_tokens = (0.0, 0.0) if base is None else base["entropy"].tolist()
    ratio = mean / (base_nats / base_tokens) if mean is not None and base_nats > 0 and base_tokens > 0 else None
    baseless = _NO_BASE if base is None else "no token entropies were captured in the baseline"
    if base_tokens > 0:
        baseless = "the entropy of the baseline is 0"
    out.put("entropy/ratio_to_base", ratio, _NO_TOKENS if mean is None else baseless)
    formats_known = sums["entropy_mode"][:, 1].sum() > sums["entropy"][1] - 0.5
    for m, mode in enumerate(layout.mode_names):
        reason = "no token of this mode was trained in this step"
        if not formats_known:
            reason = "formats of the trained completions are not known"
        reason = _NO_TOKENS if mean is None else reason
        out.ratio(f"entropy/mode/{mode}", sums["entropy_mode"][m, 0], sums["entropy_mode"][m, 1], reason)
    n, logp, advantage, product = sums["cov"]
    covariance = product / n - (logp / n) * (advantage / n) if n > 0 else None
    out.put("entropy/cov_logp_advantage", covariance, "no log-probabilities with advantages in this step")
    out.ratio("entropy/logp_mean", sums["logp"][0], sums["logp"][1], "no log-probabilities were captured in this step")


def _kl(out: _Numbers, layout: SumsLayout, sums: Mapping[str, NDArray[np.float64]]) -> None:
    n, forward, backward, base_entropy = sums["kl"]
    out.ratio("kl/mean", forward, n, _NO_KL)
    out.ratio("kl/reverse", backward, n, _NO_KL)
    out.ratio("kl/base_entropy", base_entropy, n, _NO_KL)
    out.ratio("kl/seq", sums["kl_rows"][0], sums["kl_rows"][1], _NO_KL)
    for m, mode in enumerate(layout.mode_names):
        reason = _NO_KL if n <= 0 else "no completion of this mode was compared with the base"
        out.ratio(f"kl/mode/{mode}", sums["kl_mode"][m, 0], sums["kl_mode"][m, 1], reason)
    sampled, clusters, square_n = sums["kl_estimators"][:3]
    for at, name in enumerate(("k1", "k2", "k3")):
        total, square, cross = sums["kl_estimators"][3 + 3 * at : 6 + 3 * at]
        reason = _NO_KL if n <= 0 else "no sampled token has finite log-probabilities under both models"
        mean = out.ratio(f"kl/{name}", total, sampled, reason)
        error = None
        if mean is not None and clusters > 1:
            residual = max(0.0, float(square - 2.0 * mean * cross + mean * mean * square_n))
            error = math.sqrt(clusters / (clusters - 1.0) * residual) / float(sampled)
        out.put(f"kl/{name}_se", error, reason if mean is None else "one prompt in the sample: no standard error")
