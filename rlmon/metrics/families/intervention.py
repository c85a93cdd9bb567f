"""What the rules of a policy hold: made where they act, named here."""

from __future__ import annotations

from rlmon.metrics.family import Entries, MetricFamily

_entry = Entries(family="intervention", needs="a policy")


class Intervention(MetricFamily):
    name = "intervention"
    about = "What the rules of a policy hold; only in runs with one."
    entries = (
        _entry("beta", "weight", 0, None, "none", "the trainer's beta at the end of the step"),
        _entry("entropy_coef", "weight", 0, None, "none", "the trainer's entropy_coef at the end of the step"),
        _entry(
            "kappa", "advantage", 0, None, "none",
            "strength of the mode-marginal KL, the largest where several rules act",
        ),
        _entry(
            "mode_ratio", "ratio", 0, None, "none",
            "effective modes of rewarded completions over the base's, the lower of across and within prompts, as the "
            "mode-marginal KL sees it",
        ),
        _entry(
            "hold_kappa", "advantage", 0, None, "none",
            "strength with which right answers that are alike are pushed apart, the largest where several rules act",
        ),
        _entry(
            "hold_ratio", "ratio", 0, None, "none",
            "effective number of right answers over the reference, the lower of across and within prompts, by the "
            "kernel of the rule",
        ),
        _entry("anchor_weight", "weight", 0, 1, "none", "weight of the supervised loss on dying modes"),
        _entry("neutralised_share", "share", 0, 1, "none", "completions in groups that a quarantine neutralised"),
        _entry("deferred_share", "share", 0, 1, "none", "prompts of those known that are deferred"),
    )  # fmt: skip
