"""Statements about two models, each with its interval and a line of the detectors or of an audit's checks.

A statement is a WARN or a FAIL where its whole interval lies past the line, a pass where all of it lies before the
line, and unsure else. All intervals hold together, as an audit's do: their error rate is shared out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from rlmon.audit.checks import HINDSIGHT_ALPHA
from rlmon.audit.checks.diversity import RIGHT_FAIL, RIGHT_WARN
from rlmon.audit.checks.length import CUT_FAIL, CUT_MORE, CUT_WARN, GREW
from rlmon.audit.checks.question import LEAST_PROMPTS
from rlmon.audit.checks.reward import LOST_FAIL, LOST_WARN
from rlmon.audit.checks.solving import SOLVED_LESS, most_tries, pass_at_k_of
from rlmon.audit.clauses import effective, percent, short
from rlmon.detectors import DETECTORS
from rlmon.probing.answers import Answers, Kind
from rlmon.probing.paired import Interval, Paired, mean_interval
from rlmon.records import Status
from rlmon.statistics import Floats, ratio

STATEMENTS = 15
ALPHA = HINDSIGHT_ALPHA / STATEMENTS
"""Error rate of one interval (two-sided)."""
_SPECS = {spec.id: spec for spec in DETECTORS}
_LINES = {spec.id: (spec.warn or 0.0, spec.fail or 0.0) for spec in DETECTORS}
HELD = ("fell", "held")
_ORDER: Sequence[Status] = ("pass", "unsure", "warn", "fail")


@dataclass(frozen=True, kw_only=True)
class Statement:
    """One thing that was compared; by default not measured yet."""

    id: str
    title: str
    unit: str
    words: tuple[str, str] = ("narrowed", "not narrowed")
    """What a WARN or FAIL means here, and what a pass."""
    narrowing: bool = True
    line: str = ""
    """From where on it is a WARN or a FAIL, and whose line that is; empty: it is told, and not judged."""
    status: Status | None = "skip"
    """``None``: told, not judged."""
    base: float | None = None
    """Mean over prompts; of effective numbers the inverse of that of the chance to be alike."""
    checkpoint: float | None = None
    change: Literal["difference", "kept"] = "difference"
    """What ``value`` and ``interval`` are: checkpoint minus base, or checkpoint over base."""
    value: float | None = None
    interval: tuple[float, float | None] | None = None
    """An upper end of ``None`` has no bound."""
    prompts: int = 0
    """Those that were compared."""
    told: str = ""
    """What was seen, as a clause."""
    reason: str | None = None
    """Why something is ``None``."""

    @property
    def word(self) -> str:
        """What came out."""
        if self.words == HELD and self.status == "pass" and self.interval is not None and self.interval[0] > 0:
            return "rose"
        if self.status in ("unsure", "skip", "note", None):
            return {"unsure": "too few to tell", "skip": "not measured", "note": "longer"}.get(self.status or "", "")
        return self.words[self.status == "pass"]

    def compared(
        self, paired: Paired, change: Literal["difference", "kept"], judge: Callable[[Interval], Status | None]
    ) -> Statement:
        """With the numbers of ``paired``, and what ``judge`` makes of the interval."""
        if paired.prompts < LEAST_PROMPTS:
            return self.lacking(f"{paired.prompts} prompts can be compared, {LEAST_PROMPTS} are needed")
        base, checkpoint, kept = paired.base, paired.checkpoint, change == "kept"
        interval = paired.ratio(ALPHA) if kept else paired.difference(ALPHA)
        value = checkpoint - base if not kept else checkpoint / base if base else None
        return replace(
            self, status=judge(interval), base=base, checkpoint=checkpoint, change=change, value=value,
            interval=bounded(interval), prompts=paired.prompts,
            told=self.told.format(base=short(base), now=short(checkpoint)),
        )  # fmt: skip

    def lacking(self, reason: str) -> Statement:
        return replace(self, reason=reason)


def bounded(interval: Interval) -> tuple[float, float | None]:
    """The interval, ``None`` for an end without bound."""
    return interval[0], interval[1] if math.isfinite(interval[1]) else None


def below(interval: Interval, warn: float, fail: float) -> Status:
    """For what is bad when low."""
    low, high = interval
    return "fail" if high < fail else "warn" if high < warn else "pass" if low >= warn else "unsure"


def above(interval: Interval, warn: float, fail: float) -> Status:
    """For what is bad when high."""
    return below((-interval[1], -interval[0]), -warn, -fail)


def _milder(*found: Status) -> Status:
    """Where every sign must be past its line."""
    return min(found, key=_ORDER.index)


def _below_words(lines: tuple[float, float], source: str, beyond: str = "") -> str:
    return f"WARN below {lines[0]:.0%} of the base's{beyond}, FAIL below {lines[1]:.0%} ({source})"


# -- how many ways ---------------------------------------------------------------------------------------------------

_WAYS: Mapping[Kind, tuple[str, str]] = {
    "format": ("format-collapse", "{} to one prompt used {} formats, now {}"),
    "template": ("template-collapse", "{} to one prompt followed {} templates, now {}"),
    "opening": ("move-collapse", "{} to one prompt opened in {} ways, now in {}"),
}
"""By whose lines they are judged, and what is said."""


def ways(base: Answers, checkpoint: Answers) -> list[Statement]:
    """Effective numbers of formats, templates and openings in a prompt, of all and of right answers."""
    return [_ways(base, checkpoint, kind, right=right) for kind in _WAYS for right in (False, True)]


def _ways(base: Answers, checkpoint: Answers, kind: Kind, *, right: bool) -> Statement:
    """1 / (chance that two are alike), the mean chance over prompts: as ``rlmon/collision/..._within_effective``."""
    source, told = _WAYS[kind]
    lines, floors = _LINES[source], (_SPECS[source].warn_floor, _SPECS[source].fail_floor)
    if right and kind == "template":
        source, lines, floors = "correct-diversity", (RIGHT_WARN, RIGHT_FAIL), (0.0, 0.0)
    beyond = f", if there are fewer than {1 / floors[0]:.3g}" if floors[0] else ""
    blank = Statement(
        id=f"{kind}s-right" if right else f"{kind}s",
        title=f"{kind}s a prompt{', right' if right else ''}",
        unit="in use", line=_below_words(lines, source, beyond),
    )  # fmt: skip
    alike = Paired(base.alike_P(kind, right=right), checkpoint.alike_P(kind, right=right))
    if alike.prompts < LEAST_PROMPTS:
        which = "right answers" if right else "answers"
        return blank.lacking(f"{alike.prompts} prompts have two {which} of both models, {LEAST_PROMPTS} are needed")
    # An effective number is an inverse, so that what is kept of it is the base's chance over the checkpoint's.
    kept = Paired(alike.checkpoint_P, alike.base_P).ratio(ALPHA)
    least, most = mean_interval(alike.checkpoint_P, ALPHA)
    status = below(kept, *lines)
    before, now = (1.0 / chance if chance else None for chance in (alike.base, alike.checkpoint))
    sides = (("base", before), ("checkpoint", now))
    reasons = [f"no two of the {name}'s are alike" for name, number in sides if number is None]
    if most <= floors[0]:
        status = "pass"
    elif status == "fail" and least <= floors[1]:
        status = "warn"
    if status == "warn" and least <= floors[0]:
        status = "unsure"
        reasons.append(f"there may be {1 / floors[0]:.3g} or more")
    said = told.format("the right answers" if right else "the answers", _many(before), _many(now))
    return replace(
        blank, status=status, base=before, checkpoint=now, change="kept", interval=bounded(kept), told=said,
        value=now / before if before and now else None, prompts=alike.prompts, reason="; ".join(reasons) or None,
    )  # fmt: skip


def _many(value: float | None) -> str:
    return "many" if value is None else effective(value)


# -- what is solved --------------------------------------------------------------------------------------------------


def chances_P(answers: Answers, k: int) -> Floats:
    """Of each prompt, that one of ``k`` completions is right."""
    known, right = np.isfinite(answers.right).sum(1), (answers.right == 1.0).sum(1)
    return pass_at_k_of(known.astype(np.float64), right.astype(np.float64), k)


def solved(base: Answers, checkpoint: Answers) -> list[Statement]:
    """pass@1, pass@k and the mean reward."""
    k = most_tries(base.right.shape[1])
    lost = (1.0 - LOST_WARN, 1.0 - LOST_FAIL)
    line = _below_words(lost, "reward-loss")
    first = Statement(id="pass-at-1", title="pass@1, accuracy", unit="probability", words=HELD, narrowing=False,
                      line=line, told="pass@1 was {base}, now {now}")  # fmt: skip
    several = Statement(id="pass-at-k", title=f"pass@{k}", unit="probability", words=HELD,
                        line=f"WARN where it fell, FAIL by more than {SOLVED_LESS:g} (pass-at-k)",
                        told=f"pass@{k} was {{base}}, now {{now}}")  # fmt: skip
    mean = Statement(id="reward", title="mean reward", unit="reward", words=HELD, narrowing=False, line=line,
                     told="the reward was {base}, now {now}")  # fmt: skip

    def fell(interval: Interval) -> Status:
        found = below(interval, 0.0, -SOLVED_LESS)
        return "pass" if found == "unsure" and interval[0] >= -SOLVED_LESS else found

    tries = [Paired(chances_P(base, n), chances_P(checkpoint, n), 1.0) for n in (1, k)]
    rewards = Paired(_of_known_P(base.reward), _of_known_P(checkpoint.reward))
    if not tries[0].prompts and not rewards.prompts:
        why = "nothing says which completions are right: add --reward that gives numbers, or a column answer"
        return [blank.lacking(why) for blank in (first, several, mean)]
    why = "these rewards are graded: what a success is cannot be told from them"
    unknown = None if tries[0].prompts else why

    def kept(paired: Paired) -> Callable[[Interval], Status]:
        # What did not fall is not lost, also where the base had nothing.
        return lambda difference: "pass" if difference[0] >= 0 else below(paired.ratio(ALPHA), *lost)

    single = first.lacking(unknown) if unknown else first.compared(tries[0], "difference", kept(tries[0]))
    # A model that solves less at one try too got worse: of that pass@k says nothing of how many ways are left.
    several = replace(several, narrowing=single.status not in ("warn", "fail"))
    same = (single.base, single.checkpoint) == (rewards.base, rewards.checkpoint) if rewards.prompts else False
    graded = (base.reward < 0).any() or (checkpoint.reward < 0).any()
    return [
        single,
        several.lacking(unknown) if unknown else several.compared(tries[1], "difference", fell),
        # Of rewards below zero there is no share; what pass@1 says is judged once.
        replace(mean, line="").compared(rewards, "difference", lambda _: None) if graded or same
        else mean.compared(rewards, "difference", kept(rewards)),
    ]  # fmt: skip


def _of_known_P(rewards: Floats) -> Floats:
    """Of each prompt, the mean of the rewards that were given."""
    known = np.isfinite(rewards)
    return ratio(np.where(known, rewards, 0.0).sum(1), known.sum(1))


# -- entropy, distance, length ---------------------------------------------------------------------------------------


def entropy(base: Answers, checkpoint: Answers, witness: bool) -> Statement:
    """Of the next token, where each model wrote itself; ``witness``: something else narrowed, without which a fall is
    no FAIL, and no narrowing."""
    falls, rises = _LINES["entropy-collapse"], _LINES["entropy-explosion"]
    floors = _SPECS["entropy-explosion"].warn_floor, _SPECS["entropy-explosion"].fail_floor
    paired = Paired(base.a_token_P(base.entropy_nats), checkpoint.a_token_P(checkpoint.entropy_nats))
    blank = Statement(
        id="entropy", title="entropy", unit="nats per token",
        told="token entropy was {base} nats per token, now {now}",
        line=f"{_below_words(falls, 'entropy-collapse; FAIL needs a second sign')}; WARN above {rises[0]:.0%}, FAIL "
        f"above {rises[1]:.0%} (entropy-explosion)",
    )  # fmt: skip
    if paired.prompts < LEAST_PROMPTS:
        return blank.compared(paired, "kept", lambda _: None)
    kept, own = paired.ratio(ALPHA), mean_interval(paired.checkpoint_P, ALPHA)
    fallen = below(kept, *falls)
    risen = _milder(above(kept, *rises), above(own, *floors))
    if fallen == "fail" and not witness:
        fallen = "warn"
    if fallen == "warn" and not witness:
        # Alone it may be that answers got surer, and no fewer.
        blank = replace(blank, words=("sharpened", ""), narrowing=False)
    if _ORDER.index(risen) >= _ORDER.index("warn"):
        blank = replace(blank, words=("rose far", ""), narrowing=False)
    worst = max(fallen, risen, key=_ORDER.index)
    return blank.compared(paired, "kept", lambda _: worst)


def distances(base: Answers, checkpoint: Answers) -> list[Statement]:
    """KL of each from the other, exact over the vocabulary, on what each wrote itself. Only the checkpoint's from the
    base has lines: both, a token and a completion, must be passed."""
    spec, lines = _SPECS["kl-drift"], _LINES["kl-drift"]
    sequence = [spec.absolute_level("kl_seq_nats", line) for line in lines]
    away = Statement(
        id="kl-checkpoint-base", title="KL(checkpoint || base)", unit="nats per token", narrowing=False,
        words=("far", "near"), told="the checkpoint is {now} nats per token away from its base",
        line=f"WARN above {lines[0]:g} and {sequence[0]:g} a completion, FAIL above {lines[1]:g} and {sequence[1]:g} "
        f"({spec.id})",
    )  # fmt: skip
    back = Statement(id="kl-base-checkpoint", title="KL(base || checkpoint)", unit="nats per token",
                     narrowing=False)  # fmt: skip
    if not np.isfinite(checkpoint.kl_nats).any():
        why = "the two do not have the same tokens, so that their distributions cannot be compared"
        return [away.lacking(why), back.lacking(why)]

    def far(interval: Interval) -> Status:
        sums_P = checkpoint.kl_nats.mean(1)
        a_completion = mean_interval(sums_P[np.isfinite(sums_P)], ALPHA)
        return _milder(above(interval, *lines), above(a_completion, sequence[0], sequence[1]))

    # From nothing, which is no number of the other side.
    zero_P = np.zeros(len(base.kl_nats))
    found = away.compared(Paired(zero_P, checkpoint.a_token_P(checkpoint.kl_nats)), "difference", far)
    other = back.compared(Paired(zero_P, base.a_token_P(base.kl_nats)), "difference", lambda _: None)
    return [replace(found, base=None), replace(other, base=other.checkpoint, checkpoint=None)]


def lengths(base: Answers, checkpoint: Answers) -> list[Statement]:
    """Tokens of a completion, and the share that the limit cuts off."""
    lines = _LINES["length-collapse"]
    cut = Paired(base.cut.mean(1), checkpoint.cut.mean(1), 1.0)

    def length(kept: Interval) -> Status:
        return "note" if kept[0] > GREW else below(kept, *lines)

    def more(difference: Interval) -> Status:
        share = above(mean_interval(cut.checkpoint_P, ALPHA), CUT_WARN, CUT_FAIL)
        return _milder(above(difference, CUT_MORE, CUT_MORE), share)

    return [
        Statement(
            id="length", title="length, tokens", unit="tokens", narrowing=False, words=("shorter", "held"),
            line=f"{_below_words(lines, 'length-collapse')}; NOTE above {GREW:g} times (length-growth)",
            told="completions were {base} tokens long, now {now}",
        ).compared(Paired(base.tokens.mean(1), checkpoint.tokens.mean(1)), "kept", length),
        Statement(
            id="truncated", title="cut off", unit="share", narrowing=False,
            words=("more", "no more"), line=f"WARN where {CUT_MORE:.0%} more are cut off and more than {CUT_WARN:.0%} "
            f"are, FAIL more than {CUT_FAIL:.0%} (truncation)",
            told=f"{percent(float(checkpoint.cut.mean()))} of the completions are cut off, of the base's "
            f"{percent(float(base.cut.mean()))}",
        ).compared(cut, "difference", more),
    ]  # fmt: skip
