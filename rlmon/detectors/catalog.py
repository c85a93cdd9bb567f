"""What the detectors are: lines, meaning, advice and the measured price of each alarm."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from rlmon.errors import ConfigError
from rlmon.records import Severity

VERSION = 2
"""Raised whenever the same records and parameters could give other findings."""

Rule = Literal["effective", "ratio", "absolute", "immediate"]
_WORDS: Mapping[str, tuple[str, ...]] = {
    "rule": get_args(Rule),
    "direction": ("up", "down"),
    "milder": ("warn", "note"),
    "per_source": ("no", "too", "only"),
}
"""Fields of a detector that are one of some words."""

SEQUENCE_LINE_FACTOR = 10.0
"""The per-sequence KL line is this many per-token lines: below ten tokens a sequence cannot move far anyway."""

HEALTHY_SHARE = 0.8
"""Of its base's effective number: a run that stays here is promised no FAIL, and narrowing *began* where it left it.
The WARN line lies below: a run that a KL penalty holds here would cross a line at .8 half of the time by noise."""

METHOD = (
    "weighted-restart betting e-process, one per rung and statistic, a bet per block of prompts; alarm at evidence "
    "1/alpha (Ville)"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class DetectorSpec:
    """One detector: what it reads, where its lines are, what an alarm means and what to do about it."""

    id: str
    """Kebab-case check id."""
    statistics: tuple[str, ...]
    """Keys of ``Block.stats`` (for ``non-finite`` a metric of the record)."""
    metrics: tuple[str, ...]
    """Catalogue name of each statistic."""
    unit: str
    direction: Literal["up", "down"]
    """Which way is damage."""
    rule: Rule
    """effective: effective number 1/C at ``warn``/``fail`` of its base (the collision line is base / level).
    ratio: statistic at ``warn``/``fail`` times its base. absolute: at that value. immediate: at the first sight."""
    warn: float | None
    fail: float | None
    """Levels of the milder and the graver rung; ``None``: the detector has no such rung."""
    milder: Severity = "warn"
    """What an alarm of the milder rung is called. ``note``: what it tells costs compute and not capability, so that it
    is said once in a run and is no witness."""
    warn_floor: float = 0.0
    fail_floor: float = 0.0
    """Least value of a relative line, in the unit of the statistic: narrower than the base is no damage while the
    outputs are still this wide."""
    every: bool = False
    """True: every measured statistic must pass its line; False: one is enough."""
    agreement: bool = False
    """True: FAIL needs a second detector that has at least warned."""
    witness: bool = False
    """True: counts as that second signal."""
    per_source: Literal["no", "too", "only"] = "no"
    """no: one process takes the bets of all sources in order. only: one process per source. too: both, since damage to
    all sources is seen soonest by the one, and to one source of many by its own."""
    alpha_share: float = 0.06
    """Share of the run's alpha that each rung of this detector may use; over the betting detectors they sum to 1."""
    prior: bool = False
    """True: the lines are priors from practice, not measured on this run's own base."""
    method: str = METHOD
    told: tuple[str, ...] = ()
    """What it sees in plain words, for each statistic in turn, with ``{base}`` and ``{now}`` in the unit of its metric
    (shares in per cent). Default: the metric was {base}, now {now}."""
    meaning: str
    advice: str
    question: str = ""
    """What an audit asks of a run with it; the built-in ones' stand with their checks."""

    def __post_init__(self) -> None:
        self._refuse_types()
        if re.fullmatch("[a-z0-9]+(-[a-z0-9]+)*", self.id) is None:
            raise ConfigError(f"The id of a detector is small letters and dashes, as my-detector; got {self.id!r:.80}.")
        if self.milder == "note" and self.witness:
            raise ConfigError(f"{self.id}: a note is about compute, so it is no second signal of damage.")
        if not self.statistics or len(self.statistics) != len(self.metrics):
            raise ConfigError(
                f"{self.id}: statistics are what it reads and metrics how people know them, one for each; got "
                f"{self.statistics} and {self.metrics}."
            )
        if self.told and len(self.told) != len(self.statistics):
            raise ConfigError(f"{self.id}: told has a sentence for each statistic, got {self.told}.")
        for sentence in self.told:
            if set("{}") & set(_filled(sentence, base="", now="")):
                raise ConfigError(f"{self.id}: told has {{base}} and {{now}} to fill in, got {sentence!r:.200}.")
        if not self.rungs:
            raise ConfigError(f"{self.id} has no line: give it warn, fail or both.")
        if self.direction == "down" and (self.rule == "effective" or self.warn_floor or self.fail_floor):
            raise ConfigError(f"{self.id}: effective numbers and floors are for statistics that are bad when high.")
        if not 0.0 < self.alpha_share <= 1.0:
            raise ConfigError(f"{self.id}: alpha_share is a share of the run's alpha, got {self.alpha_share}.")
        self._refuse_lines()

    def _refuse_types(self) -> None:
        """Of what is data from anywhere: a log's header, a package."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            words = _WORDS.get(field.name)
            if words is not None:
                good, needed = isinstance(value, str) and value in words, f"one of {', '.join(words)}"
            elif field.name in ("statistics", "metrics", "told"):
                good, needed = isinstance(value, tuple | list) and all(isinstance(one, str) for one in value), "texts"
                if good:
                    object.__setattr__(self, field.name, tuple(value))
            elif field.name in ("every", "agreement", "witness", "prior"):
                good, needed = isinstance(value, bool), "True or False"
            elif field.name in ("warn", "fail"):
                good, needed = value is None or _is_number(value), "a number or None"
            elif field.name in ("warn_floor", "fail_floor", "alpha_share"):
                good, needed = _is_number(value), "a number"
            else:
                good, needed = isinstance(value, str), "text"
            if not good:
                raise ConfigError(f"A detector's {field.name} is {needed}, got {value!r:.80}.")

    def _refuse_lines(self) -> None:
        if self.rule == "immediate":
            return
        if self.rule == "absolute" and self.direction == "down":
            raise ConfigError(
                f"{self.id}: an absolute line is a value that must not be risen above. Take rule='ratio', or a "
                "statistic that rises with the damage."
            )
        levels = [level for level in (self.warn, self.fail) if level is not None]
        if min(levels) <= 0.0:
            raise ConfigError(f"{self.id}: warn and fail are above 0, got warn={self.warn} and fail={self.fail}.")
        falls = self.rule == "effective" or self.direction == "down"
        if levels != sorted(levels, reverse=falls):
            raise ConfigError(
                f"{self.id}: warn={self.warn} is graver than fail={self.fail}, since damage is "
                f"{'below' if falls else 'above'} them: warn is {'above' if falls else 'below'} fail."
            )

    def to_json(self) -> dict[str, Any]:
        """As JSON types."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in dataclasses.asdict(self).items()}

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> DetectorSpec:
        """What ``to_json`` gave. Raises ``ConfigError`` where that is no detector."""
        try:
            fields: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in saved.items()}
            return cls(**fields)
        except (TypeError, AttributeError) as error:
            raise ConfigError(f"This is no detector of this version: {error}.") from error

    def sentence(self, statistic: str, *, base: str, now: str) -> str:
        """What is seen, in plain words."""
        at = self.statistics.index(statistic)
        if not self.told:
            return f"{self.metrics[at]} was {base}, now {now}"
        return _filled(self.told[at], base=base, now=now)

    @property
    def line(self) -> str:
        """Both lines in words."""
        parts = []
        for name, level, floor in ((self.milder, self.warn, self.warn_floor), ("fail", self.fail, self.fail_floor)):
            if level is not None:
                parts.append(f"{name.upper()} {self._rung(level, floor)}")
        return "; ".join(parts)

    @staticmethod
    def absolute_level(statistic: str, level: float) -> float:
        """An absolute line in the unit of one statistic."""
        return level * (SEQUENCE_LINE_FACTOR if statistic == "kl_seq_nats" else 1.0)

    def _rung(self, level: float, floor: float) -> str:
        if self.rule == "immediate":
            return "at any non-finite value"
        if self.rule == "absolute":
            parts = [f"{name} above {self.absolute_level(name, level):g}" for name in self.statistics]
            return (" and " if self.every else " or ").join(parts)
        if self.rule == "effective":
            capped = f", and below {1 / floor:.3g}" if floor else ""
            return f"number in use, 1/C, below {level:g} of base{capped}"
        sign = "above" if self.direction == "up" else "below"
        return f"{sign} {level:g} x base{f', and at least {floor:g}' if floor else ''}"

    @property
    def began(self) -> float | None:
        """Level past which damage is said to have begun: the milder line, and for effective numbers the end of what
        counts as healthy."""
        if self.rule == "effective":
            return HEALTHY_SHARE
        return self.warn if self.warn is not None else self.fail

    @property
    def rungs(self) -> tuple[Severity, ...]:
        """Severities this detector can reach, mildest first."""
        levels: tuple[tuple[Severity, float | None], ...] = ((self.milder, self.warn), ("fail", self.fail))
        return tuple(name for name, level in levels if level is not None)

    @property
    def false_fail(self) -> Mapping[str, Any] | None:
        """Measured share of healthy runs with a false FAIL: ``rate``, ``low``, ``high``, ``events``, ``runs``,
        ``looks``."""
        return _price(self.id, "fail")

    @property
    def false_warn(self) -> Mapping[str, Any] | None:
        """The same for the milder rung, also where a run ends exactly on its line."""
        return _price(self.id, "warn")


def _filled(sentence: str, *, base: str, now: str) -> str:
    """Both are put in as they are: a sentence may come from a log, and names nothing else that could be looked up."""
    return sentence.replace("{base}", base).replace("{now}", now)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def prices() -> Mapping[str, Any]:
    """The table that ``benchmarks/alarm_price.py --out`` wrote; empty when it was never run."""
    path = Path(__file__).with_name("prices.json")
    if not path.exists():
        return {}
    table: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return table


def _price(detector: str, rung: str) -> Mapping[str, Any] | None:
    found: Mapping[str, Any] | None = prices().get("detectors", {}).get(detector, {}).get(rung)
    return found


HOLD = (
    'Train again with rlmon_policy="protect" (in TRL; elsewhere with beta or kl_coef at 0.1 and temperature at 1), '
    "from the start or from a checkpoint before this began: only what is still there can be held."
)
_SLOW = "A beta of 0.1 alone (kl_coef in PPO) slows the narrowing and may not stop it"
WIDEN = f"{HOLD} {_SLOW}; a lower learning_rate buys time."
"""Against every kind of narrowing, what was measured to hold first (docs/interventions.md): the first sentence is all
that a console or the headline of a page says of it."""
HOLDING = ("mode_marginal", "hold")
"""Actions that are to keep outputs from narrowing."""
GAVE_WAY = (
    "Train again with a larger kappa (in a policy file that says extends: protect), from the start or from a "
    "checkpoint before this began: the policy of this run acted and did not hold it."
)


def where_held(advice: str) -> str:
    """The advice in a run in which one of ``HOLDING`` acted: not to begin with one."""
    return GAVE_WAY + advice.removeprefix(HOLD) if advice.startswith(HOLD) else advice


GROUP_BASELINE = ("all_bad", "all_good", "lone_success_weight")
"""Statistics that mean damage only where the group's mean is the baseline of advantages: under a critic a group without
spread teaches as much as any other, and a lone success has no larger advantage."""

DETECTORS: tuple[DetectorSpec, ...] = (
    DetectorSpec(
        id="format-collapse",
        statistics=("mode_collision", "mode_collision_within"),
        metrics=("rlmon/collision/mode_across_effective", "rlmon/collision/mode_within_effective"),
        unit="formats in use",
        direction="up",
        rule="effective",
        warn=0.75,
        fail=0.6,
        warn_floor=0.05,
        fail_floor=0.08,
        witness=True,
        per_source="too",
        alpha_share=0.4,
        told=(
            "the answers used {base} formats, now {now}",
            "the answers to one prompt used {base} formats, now {now}",
        ),
        meaning="The answers converge on fewer parsed formats, across prompts or inside each prompt.",
        advice=WIDEN,
    ),
    DetectorSpec(
        id="template-collapse",
        statistics=("template_collision", "template_collision_within"),
        metrics=("rlmon/collision/template_across_effective", "rlmon/collision/template_within_effective"),
        unit="templates in use",
        direction="up",
        rule="effective",
        warn=0.75,
        fail=0.6,
        warn_floor=0.3,
        fail_floor=0.4,
        witness=True,
        per_source="too",
        told=(
            "the completions followed {base} templates, now {now}",
            "the completions of one prompt followed {base} templates, now {now}",
        ),
        meaning="Completions become equal once numbers, names and quoted spans are masked, whatever the prompt is.",
        advice=WIDEN + " Act while rewards still vary inside groups.",
    ),
    DetectorSpec(
        id="move-collapse",
        statistics=("move_collision", "move_collision_within"),
        metrics=("rlmon/moves/effective_across", "rlmon/moves/effective_within"),
        unit="ways in use",
        direction="up",
        rule="effective",
        warn=0.75,
        fail=0.6,
        warn_floor=0.3,
        fail_floor=0.4,
        witness=True,
        per_source="too",
        told=(
            "sentences began in {base} ways, now in {now}",
            "sentences about one prompt began in {base} ways, now in {now}",
        ),
        meaning="The sentences of the reasoning start in fewer ways: the chains make the same moves.",
        advice=WIDEN + " For long chains also look at epsilon_high (0.28) and top_entropy_quantile (0.2).",
    ),
    DetectorSpec(
        id="entropy-collapse",
        statistics=("entropy_nats",),
        metrics=("rlmon/entropy/mean",),
        unit="nats per token",
        direction="down",
        rule="ratio",
        warn=0.5,
        fail=0.3,
        agreement=True,
        told=("token entropy was {base} nats per token, now {now}",),
        meaning="Token entropy is far below the base. Alone it may be benign sharpening, so FAIL needs a second "
        "signal: format-, template-, move-collapse or answer-concentration has at least warned.",
        advice=WIDEN + " use_adaptive_entropy and entropy_coef did not hold it where they were measured.",
    ),
    DetectorSpec(
        id="entropy-explosion",
        statistics=("entropy_nats",),
        metrics=("rlmon/entropy/mean",),
        unit="nats per token",
        direction="up",
        rule="ratio",
        warn=1.5,
        fail=2.0,
        warn_floor=0.1,
        fail_floor=0.2,
        told=("token entropy was {base} nats per token, now {now}",),
        meaning="Token entropy is far above the base: the model dissolves instead of narrowing.",
        advice="Lower entropy_coef (or entropy_target), epsilon_high or learning_rate; a beta above 0 holds it too.",
    ),
    DetectorSpec(
        id="kl-drift",
        statistics=("kl_nats", "kl_seq_nats"),
        metrics=("rlmon/kl/mean", "rlmon/kl/seq"),
        unit="nats per token; nats per sequence",
        direction="up",
        rule="absolute",
        warn=0.1,
        fail=0.3,
        every=True,
        prior=True,
        told=(
            "the model is {now} nats per token away from its base",
            "the model is {now} nats per completion away from its base",
        ),
        meaning="The model is far from its initial base, per token and per sequence (ten times the per-token line: "
        "1 and 3 nats). Distance is not damage, it says how much of the base is left to lose.",
        advice="Raise beta (kl_coef in PPO; 0.05 to 0.1 holds small models near 0.025 nats per token), lower "
        "learning_rate or num_iterations; sync_ref_model=True moves the reference and hides this drift.",
    ),
    DetectorSpec(
        id="silent-groups-bad",
        statistics=("all_bad",),
        metrics=("rlmon/group/all_bad",),
        unit="share of groups",
        direction="up",
        rule="absolute",
        warn=0.5,
        fail=0.8,
        prior=True,
        told=("in {now} of the groups every completion failed, so that they teach nothing",),
        meaning="Groups in which every completion failed: they teach nothing and cost as much as the others.",
        advice="Raise num_generations, or drop or defer prompts that were never solved; look at reward_funcs (a parser "
        "that rejects everything looks the same) and at max_completion_length (truncated answers cannot be right).",
    ),
    DetectorSpec(
        id="silent-groups-good",
        statistics=("all_good",),
        metrics=("rlmon/group/all_good",),
        unit="share of groups",
        direction="up",
        rule="absolute",
        warn=0.6,
        fail=None,
        milder="note",
        prior=True,
        told=("in {now} of the groups every completion is right: compute that teaches nothing",),
        meaning="Groups in which every completion succeeded: the data is learned and most of the compute is idle. It "
        "costs compute and not capability, so it is a note: said once, never in the verdict.",
        advice="Move to harder prompts, drop solved ones, or stop: going on sharpens without learning. A smaller "
        "num_generations saves compute.",
    ),
    DetectorSpec(
        id="lone-success",
        statistics=("lone_success_weight",),
        metrics=("rlmon/group/lone_success_weight",),
        unit="share of sum |advantage|",
        direction="up",
        rule="absolute",
        warn=0.1,
        fail=0.3,
        prior=True,
        told=("lucky one-offs on hardly solvable prompts carry {now} of the gradient",),
        meaning="Share of the gradient weight that single lucky completions carry on prompts which the model almost "
        "never solves; each gets the largest advantage there is, (G-1)/sqrt(G).",
        advice="Leave those prompts out (return None as their reward, or drop their source), raise num_generations to "
        'see whether they are solvable, or set scale_rewards="none" so that one success is not amplified.',
    ),
    DetectorSpec(
        id="answer-concentration",
        statistics=("answer_collision",),
        metrics=("rlmon/collision/answer_across_effective",),
        unit="answers in use",
        direction="up",
        rule="effective",
        warn=0.75,
        fail=0.6,
        warn_floor=0.05,
        fail_floor=0.08,
        witness=True,
        per_source="only",
        told=("different prompts got {base} different answers, now {now}",),
        meaning="Different prompts of one source get the same final answer more often: the trace of a shortcut.",
        advice=f"{HOLD} {_SLOW}. Look at that source's prompts with `rlmon show`: drop them, or fix their verifier "
        "(return None as their reward).",
    ),
    DetectorSpec(
        id="length-collapse",
        statistics=("completion_tokens",),
        metrics=("rlmon/health/length_mean",),
        unit="tokens",
        direction="down",
        rule="ratio",
        warn=0.5,
        fail=0.33,
        told=("completions were {base} tokens long, now {now}",),
        meaning="Completions are much shorter than the base's: computation is skipped, often before accuracy falls.",
        advice='Check the verifier for bare answers that it should not accept; loss_type="dr_grpo" removes the '
        "length bias; raise beta; look at max_completion_length and mask_truncated_completions.",
    ),
    DetectorSpec(
        id="non-finite",
        statistics=("rlmon/health/non_finite",),
        metrics=("rlmon/health/non_finite",),
        unit="count",
        direction="up",
        rule="immediate",
        warn=None,
        fail=0.0,
        method="immediate: the first record with a count above 0; exact",
        meaning="NaN or infinity among log-probabilities, entropies or rewards.",
        advice="Lower learning_rate, set max_grad_norm, check the reward functions for NaN, and use bf16 instead of "
        "fp16.",
    ),
)


def catalogue(specs: Sequence[DetectorSpec] = DETECTORS) -> list[dict[str, Any]]:
    """One dict per detector: id, metric, line, method, parameters, meaning, advice and price with its interval."""
    rows = []
    for spec in specs:
        rows.append(
            {
                "id": spec.id,
                "metric": ", ".join(spec.metrics),
                "direction": spec.direction,
                "unit": spec.unit,
                "line": spec.line,
                "rungs": list(spec.rungs),
                "method": spec.method,
                "parameters": {
                    "rule": spec.rule,
                    "warn": spec.warn,
                    "fail": spec.fail,
                    "warn_floor": spec.warn_floor,
                    "fail_floor": spec.fail_floor,
                    "combine": "every statistic" if spec.every else "any statistic",
                    "per_source": spec.per_source,
                    "second_signal_for_fail": spec.agreement,
                    "prior": spec.prior,
                },
                "meaning": spec.meaning,
                "advice": spec.advice,
                "false_fail": None if spec.false_fail is None else dict(spec.false_fail),
                "false_warn": None if spec.false_warn is None else dict(spec.false_warn),
            }
        )
    return rows
