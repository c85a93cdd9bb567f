"""The story that a dashboard tells, as data: sections, and in them panels over the keys that sinks log."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

AXIS = "train/global_step"


@dataclass(frozen=True)
class Lines:
    """Metrics over the steps."""

    title: str
    metrics: Sequence[str] = ()
    family: str = ""
    """Instead of ``metrics``: all whose names begin with this, one line per format."""


@dataclass(frozen=True)
class Value:
    """One metric as it stands, a bar per run."""

    title: str
    metric: str


@dataclass(frozen=True)
class Media:
    """Tables and histograms, by their keys."""

    title: str
    keys: Sequence[str]


@dataclass(frozen=True)
class Part:
    """One section."""

    title: str
    panels: Sequence[Lines | Value | Media]
    open: bool = True


_HISTOGRAM = "rlmon/histogram"
STORY: Sequence[Part] = (
    Part(
        "Verdict",
        (
            Lines("Reward", ("rlmon/health/reward_mean",)),
            Lines("Formats in use", ("rlmon/format/effective", "rlmon/format/effective_correct")),
            Lines("Entropy, of the base's", ("rlmon/entropy/ratio_to_base",)),
            Lines("Detectors that said FAIL so far", ("rlmon/detectors_failed",)),
            Value("Formats in use now", "rlmon/format/effective"),
            Media("What was found, and what to change", ("rlmon/findings",)),
        ),
    ),
    Part(
        "Formats",
        (
            Lines("Share of each format", family="rlmon/format/share/"),
            Lines("Share of the largest format", ("rlmon/format/top_share", "rlmon/format/other_share")),
            Lines("Formats within a prompt", ("rlmon/format/effective_within",)),
            Lines("Distance to the base", ("rlmon/format/js_to_base",)),
            Lines("Died out and new", ("rlmon/format/extinct", "rlmon/format/newborn")),
            Lines("Reward of each format", family="rlmon/format/reward/"),
        ),
    ),
    Part(
        "Entropy",
        (
            Lines("Token entropy, nats", ("rlmon/entropy/mean", "rlmon/entropy/first_5_tokens")),
            Lines("Quantiles over tokens, nats", tuple(f"rlmon/entropy/p{p}" for p in (20, 50, 80, 95))),
            Lines("Pull on entropy", ("rlmon/entropy/cov_logp_advantage",)),
            Media("Entropy of tokens, nats", (f"{_HISTOGRAM}/token_entropy_nats",)),
        ),
    ),
    Part(
        "KL",
        (
            Lines("KL to the base, nats per token", ("rlmon/kl/mean", "rlmon/kl/reverse")),
            Lines("KL to the base, nats per sequence", ("rlmon/kl/seq",)),
            Lines("KL by format, nats per token", family="rlmon/kl/mode/"),
            Media("KL per token, nats", (f"{_HISTOGRAM}/kl_per_token_nats",)),
        ),
    ),
    Part(
        "Hard samples",
        (
            Lines("Groups that teach nothing", ("rlmon/group/all_good", "rlmon/group/all_bad")),
            Lines("Weight of lucky one-offs", ("rlmon/group/lone_success_weight", "rlmon/group/lone_weight")),
            Lines("|advantage|", tuple(f"rlmon/group/advantage_abs_p{p}" for p in (50, 95, 99))),
            Media("|advantage| of completions", (f"{_HISTOGRAM}/abs_advantage",)),
        ),
    ),
    Part(
        "Interventions",
        (
            Lines("KL coefficient", ("rlmon/intervention/beta",)),
            Lines("Entropy coefficient", ("rlmon/intervention/entropy_coef",)),
            Lines(
                "Neutralised and put off", ("rlmon/intervention/neutralised_share", "rlmon/intervention/deferred_share")
            ),
            Media("What was done, and what came of it", ("rlmon/interventions",)),
        ),
    ),
    Part(
        "Text",
        (
            Lines("Distinct n-grams", tuple(f"rlmon/text/distinct_{n}" for n in (1, 2, 3))),
            Lines("Near-duplicates", ("rlmon/text/near_duplicate_across", "rlmon/text/near_duplicate_within")),
            Lines("Templates in use", ("rlmon/collision/template_across_effective",)),
            Lines("Ways to begin a sentence", ("rlmon/moves/effective_across",)),
            Lines(
                "Ways to word right answers to one prompt",
                ("rlmon/collision/opening_correct_within_effective", "rlmon/moves/effective_within_correct"),
            ),
            Media("Completions, new and dying formats first", ("rlmon/samples",)),
        ),
    ),
    Part(
        "Health",
        (
            Lines("Tokens of a completion", tuple(f"rlmon/health/length_{x}" for x in ("p5", "mean", "p95"))),
            Lines("Truncated", ("rlmon/health/truncated",)),
            Lines("Not finite", ("rlmon/health/non_finite",)),
            Lines("Parts of the monitor that failed", ("rlmon/faults", "rlmon/shed_rows")),
            Media("Tokens of completions", (f"{_HISTOGRAM}/length_tokens",)),
        ),
        open=False,
    ),
)
"""From what happened to why, and last what is only needed when something is odd."""
