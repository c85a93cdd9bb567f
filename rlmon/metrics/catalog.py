"""The catalogue of metrics: one entry per name, from which ``docs/metrics.md`` is generated.

``python -m rlmon.metrics.catalog docs/metrics.md`` writes the page.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rlmon.metrics.moves import DECILES
from rlmon.metrics.values import PERCENTS

Direction = Literal["up", "down", "both", "none"]
Kind = Literal["exact", "sketch", "local"]
Bound = float | int | None
MODE = "<mode>"


@dataclass(frozen=True)
class Metric:
    """One metric, or one per mode where the name ends in ``<mode>``."""

    name: str
    """``rlmon/<family>/<name>``."""
    unit: str
    low: Bound
    """Least possible value; ``None``: unbounded."""
    high: Bound
    direction: Direction
    """Which way is bad: ``both`` ways, or ``none`` (context for other numbers)."""
    source: str
    """Paper or definition."""
    formula: str
    kind: Kind
    """``exact``: from sums over all ranks, or from the rows of all ranks together. ``sketch``: approximate, with the
    error stated. ``local``: from what one rank has, added over ranks, so that it depends on how many there are: no rule
    can read it."""
    needs: str
    """What must be captured; without it the metric is null."""


_TEXTS = "completions"
_REWARDS = "rewards"
_IDS = "token ids"
_MOVES = "token ids, vocabulary"
_ENTROPY = "token entropies"
_BASE = "base model forward"
_HILL = "Hill 1973, order 1; Echo Chamber, arXiv 2504.07912"
_LEINSTER = "Leinster and Cobbold 2012, order 2"
_RLMON = "rlmon"


def _format() -> list[Metric]:
    def entry(
        name: str, unit: str, low: Bound, high: Bound, direction: Direction, source: str, formula: str,
        needs: str = _TEXTS, kind: Kind = "exact",
    ) -> Metric:  # fmt: skip
        return Metric(f"rlmon/format/{name}", unit, low, high, direction, source, formula, kind, needs)

    return [
        entry("effective", "modes", 1, None, "down", _HILL, "exp(-sum p ln p) over format modes; `other` is one mode"),
        entry("effective_correct", "modes", 1, None, "down", _HILL, "the same over rewarded completions", _REWARDS),
        entry(
            "effective_within", "modes", 1, None, "down", _HILL,
            "mean over prompts with 2 or more completions of exp(-sum p ln p) among its completions",
        ),
        entry("effective_ratio_to_base", "ratio", 0, None, "down", _RLMON, "effective / effective of the baseline"),
        entry("top_share", "share", 0, 1, "up", "arXiv 2504.07912", "share of the largest mode"),
        entry("other_share", "share", 0, 1, "up", _RLMON, "share of completions that no parser claims"),
        entry(f"share/{MODE}", "share", 0, 1, "none", "arXiv 2504.07912", "share of completions in this mode"),
        entry(
            f"reward/{MODE}", "reward", None, None, "none", _RLMON, "mean reward of completions in this mode", _REWARDS,
        ),
        entry(
            "top_reward_gap", "reward", 0, None, "up", "arXiv 2504.07912 (the winner need not be the best)",
            "mean reward of the best mode - mean reward of the largest mode", _REWARDS,
        ),
        entry("reasoning_share", "share", 0, 1, "none", _RLMON, "share of completions with a reasoning block"),
        entry(
            "reasoning_effective", "modes", 1, None, "down", _HILL,
            "exp(-sum p ln p) over the format modes inside reasoning blocks",
        ),
        entry(
            "js_to_base", "distance", 0, 1, "up", "Endres and Schindelin 2003",
            "sqrt of the Jensen-Shannon divergence in bits between mode shares and the baseline's",
        ),
        entry(
            "extinct", "modes", 0, None, "up", _RLMON,
            "modes without a completion whose baseline share s gives (1 - s)^N <= 0.01",
        ),
        entry(
            "newborn", "modes", 0, None, "none", _RLMON,
            "modes absent from the baseline whose share s gives (1 - s)^N_base <= 0.01",
        ),
    ]  # fmt: skip


_KERNELS = {
    "mode": ("same parsed mode", _TEXTS),
    "mode_correct": ("same parsed mode, among rewarded completions", _REWARDS),
    "template": ("same text after masking numbers, names and quotes", _TEXTS),
    "answer": ("same final answer, among completions with one", _TEXTS),
    "opening": ("same first 8 masked tokens", _TEXTS),
    "moves": ("sum_b min(h(b), h'(b)) of opener histograms, the 64 heaviest of each completion", _MOVES),
    "similarity": ("Jaccard similarity of 4-grams by bottom-128 sketches, at most 1,000 pairs a rank", _TEXTS),
}


_PAIR_KINDS: dict[str, Kind] = {"moves": "sketch", "similarity": "local"}


def _collision() -> list[Metric]:
    metrics = []
    for kernel, (meaning, needs) in _KERNELS.items():
        kind: Kind = _PAIR_KINDS.get(kernel, "exact")
        for side, pairs in (("across", "different prompts"), ("within", "one prompt")):
            name = f"rlmon/collision/{kernel}_{side}"
            formula = f"mean of k over pairs of completions of {pairs}; k: {meaning}"
            metrics.append(Metric(name, "share", 0, 1, "up", _LEINSTER, formula, kind, needs))
            metrics.append(
                Metric(f"{name}_effective", "in use", 1, None, "down", _LEINSTER, "1 / the above", kind, needs)
            )
    return metrics


def _moves() -> list[Metric]:
    metrics = []
    for side, pairs in (("across", "different prompts"), ("within", "one prompt")):
        formula = f"1 / mean over pairs of {pairs} of sum_b min(h(b), h'(b))"
        name = f"rlmon/moves/effective_{side}"
        metrics.append(Metric(name, "moves", 1, None, "down", _LEINSTER, formula, "sketch", _MOVES))
        metrics += [
            Metric(
                f"{name}_decile_{decile + 1}", "moves", 1, None, "down", _LEINSTER,
                f"the same over openers in tenth {decile + 1} of each completion", "local", _MOVES,
            )
            for decile in range(DECILES)
        ]  # fmt: skip
    metrics += [
        Metric(
            "rlmon/moves/effective_openers", "openers", 1, 4096, "down", _HILL,
            "exp(-sum p ln p) over the 4,096 opener buckets", "sketch", _MOVES,
        ),
        Metric(
            "rlmon/moves/openers_per_1000_tokens", "openers", 0, 1000, "both", _RLMON,
            "openers / completion tokens x 1,000", "exact", _MOVES,
        ),
    ]  # fmt: skip
    return metrics


def _group() -> list[Metric]:
    def entry(
        name: str, unit: str, low: Bound, high: Bound, direction: Direction, source: str, formula: str,
        needs: str = _REWARDS, kind: Kind = "exact",
    ) -> Metric:  # fmt: skip
        return Metric(f"rlmon/group/{name}", unit, low, high, direction, source, formula, kind, needs)

    knapsack = "Knapsack RL, arXiv 2509.25849"
    hard = "arXiv 2605.28388"
    metrics = [
        entry("all_good", "share", 0, 1, "up", knapsack, "groups without reward spread, all completions rewarded"),
        entry("all_bad", "share", 0, 1, "up", knapsack, "groups without reward spread, no completion rewarded"),
        entry("silent", "share", 0, 1, "up", knapsack, "groups without reward spread: they give no gradient"),
        entry("lone_success", "share", 0, 1, "up", hard, "groups with exactly one rewarded completion"),
        entry(
            "lone_weight", "share", 0, 1, "up", hard, "sum |advantage| of lone successes / sum |advantage|",
            "rewards, advantages",
        ),
        entry(
            "lone_success_weight", "share", 0, 1, "up", hard,
            "the same, only on prompts whose solve rate before this round was below 1/8 with posterior probability .95",
            "rewards, advantages, ledger",
        ),
        entry("hard_share", "share", 0, 1, "up", _RLMON, "completions of such prompts", "ledger"),
        entry(
            "lone_length_ratio", "ratio", 0, None, "both", hard,
            "mean tokens of lone successes / mean tokens of the other completions of their groups",
            "rewards, token ids",
        ),
        entry(
            "lone_repetition_excess", "share", -1, 1, "up", hard,
            "mean 4-gram repetition of lone successes - that of the other completions of their groups",
        ),
        entry("reward_std", "reward", 0, None, "down", "RAGEN-2, arXiv 2604.06268", "mean over groups of sd (ddof=1)"),
        entry("coverage", "share", 0, 1, "none", _RLMON, "groups that were judged, of all of the step", "completions"),
    ]  # fmt: skip
    metrics += [
        entry(
            f"advantage_abs_p{percent}", "advantage", 0, 100, "none", _RLMON,
            f"{percent} % quantile of |advantage| from 162 fixed bins; a lone success reaches (G - 1) / sqrt(G)",
            "advantages", "sketch",
        )
        for percent in (50, 95, 99)
    ]  # fmt: skip
    return metrics


def _text() -> list[Metric]:
    budget = "at a budget of 64 words a completion, cut to a power of two"
    near = "pairs with sketch Jaccard of 4-grams at or above .8, at most 1,000 pairs a rank"

    def entry(
        name: str, unit: str, low: Bound, high: Bound, direction: Direction, source: str, formula: str,
        needs: str = _TEXTS, kind: Kind = "local",
    ) -> Metric:  # fmt: skip
        return Metric(f"rlmon/text/{name}", unit, low, high, direction, source, formula, kind, needs)

    return [
        *(
            entry(f"distinct_{n}", "share", 0, 1, "down", "Li et al. 2016", f"distinct / all word {n}-grams {budget}")
            for n in (1, 2, 3)
        ),
        entry("compression_ratio", "ratio", 0, None, "up", "arXiv 2403.00553", f"bytes / zlib level 1 bytes {budget}"),
        entry("budget_words", "words", 256, None, "none", _RLMON, "words that these were measured on, per rank"),
        entry(
            "repetition", "share", 0, 1, "up", "TRL #6058 (with 3-grams)",
            "mean over completions of 1 - distinct / all 4-grams (token ids, else words)", _TEXTS, "exact",
        ),
        entry(
            "near_duplicate_across", "share", 0, 1, "up", "Broder 1997", near + ", different prompts", _TEXTS,
        ),
        entry("near_duplicate_within", "share", 0, 1, "up", "Broder 1997", near + ", one prompt", _TEXTS),
        entry(
            "similarity_within", "share", 0, 1, "up", "Broder 1997",
            "mean sketch Jaccard of 4-grams over pairs of one prompt",
        ),
        entry(
            "effective_answers_within", "answers", 1, None, "down", "NoveltyBench, arXiv 2504.05228",
            "mean over prompts of exp(-sum p ln p) over final answers", kind="exact",
        ),
        entry(
            "effective_templates_within", "templates", 1, None, "down", _HILL,
            "mean over prompts of exp(-sum p ln p) over templates", kind="exact",
        ),
        entry(
            "effective_templates_within_correct", "templates", 1, None, "down", _HILL,
            "the same over rewarded completions of prompts with 2 or more of them", _REWARDS, "exact",
        ),
        entry(
            "answer_share",
            "share", 0, 1, "down", _RLMON, "completions whose final answer can be read", _TEXTS, "exact",
        ),
    ]  # fmt: skip


def _health() -> list[Metric]:
    def entry(
        name: str, unit: str, low: Bound, high: Bound, direction: Direction, formula: str, needs: str,
        kind: Kind = "exact",
    ) -> Metric:  # fmt: skip
        return Metric(f"rlmon/health/{name}", unit, low, high, direction, _RLMON, formula, kind, needs)

    return [
        entry("length_mean", "tokens", 0, None, "both", "mean completion tokens (the model's own)", _IDS),
        entry(
            "length_p5", "tokens", 0, None, "down",
            "5 % quantile, exact to 32 tokens, then within 5.9 %", _IDS, "sketch",
        ),
        entry(
            "length_p95", "tokens", 0, None, "up",
            "95 % quantile, exact to 32 tokens, then within 5.9 %", _IDS, "sketch",
        ),
        entry("truncated", "share", 0, 1, "up", "completions cut off by the token limit", "truncation flags"),
        entry("reward_mean", "reward", None, None, "down", "mean finite reward", _REWARDS),
        entry(
            "reward_missing", "completions", 0, None, "none",
            "completions for which no function gave a reward", _REWARDS,
        ),
        entry(
            "reward_non_finite", "values", 0, None, "up", "NaN or infinite rewards, each function's included", _REWARDS,
        ),
        entry(
            "non_finite", "values", 0, None, "up",
            "NaN or infinite rewards, entropies, log-probabilities, advantages and KL values", "any",
        ),
    ]  # fmt: skip


def _entropy() -> list[Metric]:
    def entry(
        name: str, unit: str, low: Bound, high: Bound, direction: Direction, source: str, formula: str,
        needs: str = _ENTROPY, kind: Kind = "exact",
    ) -> Metric:  # fmt: skip
        return Metric(f"rlmon/entropy/{name}", unit, low, high, direction, source, formula, kind, needs)

    tokens = "arXiv 2506.01939"
    return [
        entry(
            "mean", "nats", 0, None, "both", "arXiv 2505.22617",
            "entropy of softmax(logits / T), mean over all completion tokens of the step and all ranks",
        ),
        *(
            entry(
                f"p{percent}", "nats", 0, 16, "both", tokens,
                f"{percent} % quantile over tokens from 256 fixed bins (4.8 % wide)", kind="sketch",
            )
            for percent in (20, 50, 80, 95)
        ),
        entry(
            "first_5_tokens", "nats", 0, None, "both", "arXiv 2608.00220", "mean over each completion's first 5 tokens",
        ),
        entry("ratio_to_base", "ratio", 0, None, "both", "arXiv 2505.22617", "mean / mean of the baseline"),
        entry(f"mode/{MODE}", "nats", 0, None, "none", _RLMON, "mean over tokens of completions in this mode"),
        entry(
            "cov_logp_advantage", "nats x advantage", None, None, "none", "arXiv 2505.22617",
            "mean(log p A) - mean(log p) mean(A) over tokens; entropy falls in proportion to it",
            "log-probabilities, advantages",
        ),
        entry(
            "logp_mean", "nats", None, 0, "none", _RLMON, "mean log-probability of the sampled tokens",
            "log-probabilities",
        ),
    ]  # fmt: skip


def _kl() -> list[Metric]:
    def entry(
        name: str, unit: str, low: Bound, direction: Direction, source: str, formula: str,
        needs: str = _BASE, kind: Kind = "exact",
    ) -> Metric:  # fmt: skip
        return Metric(f"rlmon/kl/{name}", unit, low, None, direction, source, formula, kind, needs)

    schulman = "Schulman 2020; arXiv 2512.21852"
    metrics = [
        entry(
            "mean", "nats per token", 0, "up", "arXiv 2605.12484",
            "sum_v pi (log pi - log base) over the full vocabulary, mean over the tokens of a bounded sample, each "
            "weighted by the tokens it stands for (Hajek); base: the initial one",
        ),
        entry("reverse", "nats per token", 0, "up", "arXiv 2605.12484", "the same with policy and base exchanged"),
        entry(
            "seq", "nats per sequence", 0, "up", _RLMON,
            "mean exact KL per token x mean tokens of the completions that the sample stands for",
        ),
        entry("base_entropy", "nats", 0, "none", _RLMON, "entropy of the base on the same contexts"),
        entry(
            f"mode/{MODE}",
            "nats per token", 0, "none", _RLMON, "mean exact KL over tokens of completions in this mode",
        ),
    ]  # fmt: skip
    formulas = {
        "k1": "weighted mean of x = log pi - log base on sampled tokens, x clamped to +-20",
        "k2": "weighted mean of x^2 / 2",
        "k3": "weighted mean of exp(-x) - 1 + x",
    }
    for name, formula in formulas.items():
        metrics.append(entry(name, "nats per token", None if name == "k1" else 0, "up", schulman, formula))
        metrics.append(
            entry(
                f"{name}_se", "nats per token", 0, "none", "ratio estimator over clusters",
                f"standard error of {name} with prompts as clusters: "
                "sqrt(C/(C-1) sum_c (S_c - mean n_c)^2) / n, sums weighted; a prompt on two ranks is two clusters",
                kind="local",
            )
        )  # fmt: skip
    return metrics


_POLICY = "a policy"


def _intervention() -> list[Metric]:
    def entry(name: str, unit: str, low: Bound, high: Bound, formula: str) -> Metric:
        return Metric(f"rlmon/intervention/{name}", unit, low, high, "none", _RLMON, formula, "exact", _POLICY)

    return [
        entry("beta", "weight", 0, None, "the trainer's beta at the end of the step"),
        entry("entropy_coef", "weight", 0, None, "the trainer's entropy_coef at the end of the step"),
        entry("kappa", "advantage", 0, None, "strength of the mode-marginal KL, the largest where several rules act"),
        entry("mode_ratio", "ratio", 0, None, "effective modes of rewarded completions over the base's, the lower of "
              "across and within prompts, as the mode-marginal KL sees it"),
        entry("anchor_weight", "weight", 0, 1, "weight of the supervised loss on dying modes"),
        entry("neutralised_share", "share", 0, 1, "completions in groups that a quarantine neutralised"),
        entry("deferred_share", "share", 0, 1, "prompts of those known that are deferred"),
    ]  # fmt: skip


_CRITIC = "a critic"


def _value() -> list[Metric]:
    def entry(
        name: str, unit: str, low: Bound, high: Bound, direction: Direction, source: str, formula: str,
        kind: Kind = "exact",
    ) -> Metric:  # fmt: skip
        return Metric(f"rlmon/value/{name}", unit, low, high, direction, source, formula, kind, _CRITIC)

    ppo, gae = "arXiv 2005.12729", "arXiv 1506.02438"
    sketch = "over tokens from 1,921 fixed bins: within 2.5 % for sizes of 1e-4 to 1e6, 0 below"
    return [
        entry(
            "explained_variance", "share", None, 1, "down", "OpenAI Baselines",
            "1 - Var(R - V) / Var(R) over completion tokens: V the values at rollout, R the discounted rewards to go; "
            "a constant offset between them does not count; null where Var(R) <= 1e-8 max(1, mean R^2)",
        ),
        entry(
            "loss", "reward^2", 0, None, "up", ppo,
            "mean over tokens of max((V_now - R)^2, (V_clipped - R)^2) / 2, without its coefficient",
        ),
        entry(
            "clip_ratio", "share", 0, 1, "none", ppo,
            "share of tokens where the clipped branch of the loss is the larger",
        ),
        entry("mean", "reward", None, None, "none", _RLMON, "mean over tokens of V"),
        entry("return_mean", "reward", None, None, "none", gae, "mean over tokens of R"),
        *(
            entry(
                f"{name}_p{percent:02}", unit, None, None, "none", gae, f"{percent} % quantile of {what} {sketch}",
                "sketch",
            )
            for name, unit, what in (
                ("return", "reward", "R"),
                ("advantage", "advantage", "the signed advantage as trained on, after whitening and rules,"),
            )
            for percent in PERCENTS
        ),
    ]  # fmt: skip


METRICS: tuple[Metric, ...] = (
    *_entropy(),
    *_collision(),
    *_format(),
    *_moves(),
    *_kl(),
    *_group(),
    *_text(),
    *_health(),
    *_value(),
    *_intervention(),
)
"""Every metric of a StepRecord, by family: what :func:`rlmon.metrics.rollouts.finish` can return, in a run with a
critic what :func:`rlmon.metrics.values.finish` can, and in a run with a policy what the rules hold."""

_BY_NAME = {metric.name: metric for metric in METRICS}


def lookup(name: str) -> Metric | None:
    """The entry of a metric name as it occurs in a StepRecord; ``None`` when the catalogue has none."""
    found = _BY_NAME.get(name)
    if found is None and "/" in name:
        found = _BY_NAME.get(f"{name.rsplit('/', 1)[0]}/{MODE}")
    return found


def local_metrics() -> dict[str, str]:
    """The metrics that depend on how many ranks there are, and beside each the nearest one that does not."""
    return {metric.name: _nearest_exact(metric.name) for metric in METRICS if metric.kind == "local"}


def _nearest_exact(name: str) -> str:
    family, short = name.removeprefix("rlmon/").split("/", 1)
    if family == "moves":
        return name.split("_decile_")[0]
    if family == "collision":
        return name.replace("similarity", "template")
    if family == "kl":
        return name.removesuffix("_se")
    if short == "budget_words":
        return "rlmon/health/length_mean"
    return f"rlmon/collision/template_{'within' if short.endswith('within') else 'across'}"


_FAMILIES = {
    "entropy": "Token entropy of the policy: softmax(logits / T) over the model's own completion tokens, in nats, "
    "token-weighted over the whole step and all ranks, those of completions included that the trainer masks out of its "
    "loss (mask_truncated_completions).",
    "collision": "C = mean k(y, y') over pairs of completions, across prompts and within one; 1/C is an effective "
    "number. Unbiased; over pairs of all ranks' completions.",
    "format": "Parsed format modes of the part after the reasoning block.",
    "moves": "How completions open their sentences, from token ids alone. Digits and tokens copied from the prompt are "
    "masked.",
    "kl": "KL between the policy and the initial base, exact over the full vocabulary on a bounded sample of tokens.",
    "group": "Groups of completions of one draw of one prompt that are trained on, from raw rewards. Rewarded means a "
    "success as `rlmon_success` defines it; unset, it is decided once from the rewards of the baseline.",
    "text": "Diversity of words at a fixed budget, near-duplicates, repetition.",
    "health": "Lengths, truncation, rewards, non-finite values.",
    "value": "The critic of PPO, over the completion tokens of the step and all ranks; only in runs with one.",
    "intervention": "What the rules of a policy hold; only in runs with one.",
}
_DIRECTIONS = {"up": "rising", "down": "falling", "both": "both ways", "none": "-"}


def render_markdown() -> str:
    """The page ``docs/metrics.md``."""
    lines = [
        "# Metrics",
        "",
        "Generated from `rlmon/metrics/catalog.py` by `python -m rlmon.metrics.catalog docs/metrics.md`; do not edit.",
        "",
        "A metric that was not measured is null with a reason beside it, never 0. *exact*: from sums over all ranks, "
        "or, for pairs and groups, from the rows of all ranks together (2,048 a step; of more, whole groups evenly "
        "spread over the round). *sketch*: approximate, within the stated error. *local*: what one rank has, added "
        "over ranks, so that it depends on how many there are: no rule can read it. "
        "*Bad* is the direction that means damage.",
    ]
    for family, about in _FAMILIES.items():
        lines += ["", f"## {family}", "", about, "", "| name | unit | range | bad | kind | needs | formula | source |"]
        lines.append("|---|---|---|---|---|---|---|---|")
        for metric in METRICS:
            if metric.name.startswith(f"rlmon/{family}/"):
                cells = (
                    f"`{metric.name}`",
                    metric.unit,
                    f"{_bound(metric.low, '-inf')} .. {_bound(metric.high, 'inf')}",
                    _DIRECTIONS[metric.direction],
                    metric.kind,
                    metric.needs,
                    metric.formula,
                    metric.source,
                )
                lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _bound(value: Bound, unbounded: str) -> str:
    return unbounded if value is None else f"{value:g}"


def main(arguments: list[str]) -> int:
    """Write the page to the path given, or print it."""
    page = render_markdown()
    if arguments:
        Path(arguments[0]).write_text(page, encoding="utf-8")
    else:
        sys.stdout.write(page)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
