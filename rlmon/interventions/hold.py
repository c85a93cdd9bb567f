"""Keep right answers as different from one another as they were, by the statistic that the detectors measure.

With k(y, y') in [0, 1] how alike two completions are, C = mean k over pairs of *right* answers is their collision, and
1/C their effective number (Leinster and Cobbold, order 2). To the advantage of each right answer y, in units of a
group-normalised one, comes

    -2 kappa * (mean k(y, y') - its mean over the right answers of the prompt)

which is the policy gradient of -kappa C: y is one of the two of a pair. The mean over y' has two parts, each with its
own C: *within*, over the other right answers to the prompt, and *across*, over right answers to other prompts, of this
round and the last ones. A sample's own share in the mean that is taken off is put right by n/(n - 2) within and
n/(n - 1) across, so that the gradient is unbiased.

What is wrong, was cut at the token limit or has no known format gets nothing, and nothing is added in sum. What is
added to one completion is at most ``bound``, and at most ``of_gap`` of the least distance from a right answer of the
prompt to a wrong one: no wrong answer comes to lie above a right one. Where all answers are right the reward is silent
and this is the only signal, in the same units. A prompt with one right answer gets nothing: there is nothing to choose
from. So while few are right there is little that it can do, and what wins is decided then; ``centre: run`` compares
such answers with those of the run.

Where right answers of one format all open alike there is nothing below the formats to hold: with ``wordings`` the rule
rests unless the base's right answers of one format open in so many ways, and says in the log which of the two it is.

Kappa is 0 while C is below its line, ``at`` times the reference; it grows while C is above, and shrinks again below.
The reference is the smallest C that right answers have credibly shown: at the base, where they may be few, or later in
the run. So a base that babbles is no target, only what of it was right. More than ``enough`` effective kinds are never
asked for.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from rlmon.baseline import Baseline
from rlmon.interventions import kernels, saved
from rlmon.interventions.intervention import (
    NO_CHANGE,
    Intervention,
    Round,
    RowChange,
    RuleState,
    RunSoFar,
    setting,
    tidy,
    unit_hash,
)
from rlmon.interventions.kernels import Facts, Floats, Kernel
from rlmon.interventions.rows import RoundTable, Wide
from rlmon.interventions.setting import Setting

Part = Literal["within", "across"]
PARTS: tuple[Part, ...] = ("within", "across")
KERNELS: tuple[Kernel, ...] = ("format", "template", "opening", "moves", "sketch")
USUAL: Mapping[Kernel, float] = {"opening": 1.0, "sketch": 1.0}
"""Weights where a policy gives none."""
MEMORY_GROUPS = 16.0
"""Groups after which what was measured of them weighs 1/e."""
LEAST_PAIRS = 24
"""Pairs of right answers of one format, to different prompts, without which it is not known in how many ways they
open."""
LEAST_PROMPTS = 3
"""Prompts without which the error of that is not known."""
LEAST_GROUPS = 4.0
"""Groups without which it is not known how alike right answers are now."""
BEST_GROUPS = 8.0
"""And without which they are no reference."""
BASE_SE, BEST_SE = 1.0, 2.0
"""Standard errors by which a reference lies above what was measured; the best of many is chosen for its luck."""
HALF = 0.5
"""Groups of one wording that are added to a reference: a few groups without an alike pair show little."""
FADE = 0.1
"""Below its line by this share, a part is pushed no more."""
DEAD_BAND = 0.05
MOST_LOG = 0.7
"""Of how far C is from its line, as a logarithm, that one change of kappa follows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Hold(Intervention):
    """Push right answers that are alike apart, as far as they are more alike than right answers were: the policy
    gradient of minus kappa times their collision."""

    name = "hold"
    needs_success = True
    measured_by = ("rlmon/intervention/hold_ratio", "up")
    starts_at = "kappa"
    holds: ClassVar[Mapping[str, float | None]] = {"hold_kappa": 0.0, "hold_ratio": None}
    folds_base = True
    moves_when_dry = True

    format: float = setting(
        0.0, "weight of: the same parsed format (with none of these five: opening 1, sketch 1)", low=0.0
    )
    template: float = setting(0.0, "weight of: the same text, after masking numbers, names and quotes", low=0.0)
    opening: float = setting(0.0, "weight of: the same first 8 tokens, masked alike", low=0.0)
    moves: float = setting(0.0, "weight of: the overlap of how sentences begin", low=0.0)
    sketch: float = setting(0.0, "weight of: the share of 4-grams in common", low=0.0)
    join: Literal["mean", "max"] = setting("mean", "how several are one: their weighted mean, or the largest")
    at: float = setting(1.25, "right answers may be this many times as alike as the reference", low=1.0)
    enough: float = setting(5.0, "more effective kinds of right answers than this are not asked for", low=1.0)
    kappa: float = setting(1.0, "strength when it begins to act, in units of normalised advantage", low=0.0)
    bounds: tuple[float, float] = setting((0.0, 8.0), "least and most kappa; the least is always spent", low=0.0)
    rate: float = setting(
        2.0, "kappa changes by this times the logarithm of C over its line, at most .7 of it", low=0.0
    )
    across: float = setting(
        0.5,
        "share of the push that compares with right answers to other prompts, the rest with those to the same; where "
        "one of the two is below its line, the other has all of it",
        low=0.0, high=1.0,
    )  # fmt: skip
    centre: Literal["group", "run"] = setting(
        "group",
        "with what the likeness of a right answer to those of other prompts is compared: with the right ones in its "
        "group, or, where some in its group are wrong, with the run, which also reaches the one or two that are right "
        "while few are, and then sums to zero over the run alone",
    )
    bound: float = setting(2.0, "most that is added to one completion, in units of normalised advantage", low=0.0)
    of_gap: float = setting(
        0.5, "and most as a share of the least distance between a right and a wrong answer to its prompt",
        low=0.0, high=0.95,
    )  # fmt: skip
    wordings: float = setting(
        1.0,
        "rests unless the base's right answers of one format open in at least this many ways, as an effective number: "
        "where the format says it all, another rule holds formats",
        low=1.0,
    )
    memory_completions: int = setting(
        128, "right answers, of this round and the last ones, that those to other prompts are compared with",
        low=8, high=1024,
    )  # fmt: skip

    # -- the kernel ------------------------------------------------------------------------------------------------

    @property
    def weights(self) -> Mapping[Kernel, float]:
        """Of the kernels that are joined; none where a subclass says what is alike, and no policy gives any."""
        given: dict[Kernel, float] = {name: getattr(self, name) for name in KERNELS if getattr(self, name) > 0.0}
        return given if given or type(self).alike is not Hold.alike else USUAL

    @property
    def reads(self) -> Collection[Wide]:
        return {kernels.READS[name] for name in self.weights if name in kernels.READS}

    def alike(self, one: Facts, other: Facts) -> Floats:
        """k in [0, 1] of each pair [n, m]; k(y, y') = k(y', y).

        A subclass may say what else makes answers alike, and by ``reads`` that it looks at ``openers`` or ``sketch``.
        """
        weights = self.weights
        each = {name: weight * kernels.alike(name, one, other) for name, weight in weights.items()}
        joined: Floats = np.max([*each.values()], axis=0) if self.join == "max" else np.sum([*each.values()], axis=0)
        return joined / (max(weights.values()) if self.join == "max" else math.fsum(weights.values()))

    # -- rounds and steps ------------------------------------------------------------------------------------------

    @property
    def parts(self) -> Mapping[Part, float]:
        """Those that are held, and their shares of the push."""
        shares: dict[Part, float] = {"within": 1.0 - self.across, "across": self.across}
        return {part: share for part, share in shares.items() if share > 0.0}

    @property
    def knob(self) -> str:
        return f"{self.name} ({'+'.join(self.weights)})" if self.weights else self.name

    @property
    def remembers(self) -> str:
        return f"{self.join} of {dict(self.weights)}"

    def fresh(self) -> HoldState:
        return HoldState(pool=np.zeros(0, dtype=kernels.facts_type(self.reads)))

    def on_round(self, state: HoldState, round: Round) -> tuple[HoldState, RowChange]:
        if self.rests(state) and state.settled:
            return replace(state, pool=state.pool[:0]), NO_CHANGE
        now = state.across.now
        usual = now.mean if self.centre == "run" and now.groups >= LEAST_GROUPS else None
        seen = look(self, state.pool, round.table, usual)
        state = after(self, state, seen)
        if not round.acting or round.dry_run or self.rests(state):
            return state, NO_CHANGE
        left = round.table if round.left_N is None else replace(round.table, advantage_N=round.left_N)
        return state, RowChange(addition_N=addition(self, state, seen, left, round.level, round.scale))

    def rests(self, state: HoldState) -> bool:
        """Whether the base's right answers have their variety in their formats alone."""
        return state.wordings is not None and state.wordings < self.wordings

    def suspends(self, at: RuleState, run: RunSoFar) -> tuple[bool, str | None]:
        rests = self.rests(at.inner)
        if rests == at.suspended or at.level == run.rest:
            return rests and at.level > run.rest, None
        return rests, f"right answers: {_opening(at.inner)}, {'fewer than' if rests else 'at least'} {self.wordings:g}"

    def next_level(self, at: RuleState, run: RunSoFar) -> tuple[float | None, str | None]:
        if not at.met:
            return 0.0, None
        steered = control(self, at.inner, at.level)
        return None if steered is None else tidy(steered), describe(self, at.inner)

    def measures(self, at: RuleState, step: int, *, dry_run: bool) -> Mapping[str, float | None]:
        if at.suspended:
            return {"hold_kappa": 0.0, "hold_ratio": None}
        found = [found for part in self.parts if (found := ratio(self, at.inner, part)) is not None]
        return {"hold_kappa": at.level, "hold_ratio": min(found, default=None)}

    # -- validation ------------------------------------------------------------------------------------------------

    def useless(self, setting: Setting) -> str | None:
        if self.bound == 0.0:
            return "bound: 0 adds nothing to any advantage. Type bound: 2"
        if self.bounds[1] == 0.0:
            return "bounds: [0, 0] adds nothing to any advantage. Type bounds: [0, 8]"
        if setting.group_size < 2 and self.across == 0.0:
            return "num_generations is 1: nothing lies within a prompt. Type across: 1"
        moves = setting.metrics.get("rlmon/moves/effective_within")
        if "moves" in self.weights and moves is not None and moves.missing is not None and setting.group_size > 1:
            return f"moves are not measured: {moves.missing}"
        return None

    def odd(self, setting: Setting, *, always: bool) -> Iterator[str]:
        if 1 < setting.group_size < 4 and self.across < 1.0:
            yield f"within a prompt three right answers are needed, and num_generations is {setting.group_size}"

    def reach(self) -> Mapping[str, float]:
        return {"hold_kappa": self.bounds[1]}

    # -- checkpoints -----------------------------------------------------------------------------------------------

    def save(self, state: HoldState) -> Any:
        names = ("baseline", "within", "across", "shown", "wordings", "settled")
        plain = {name: saved.to_json(getattr(state, name)) for name in names}
        return {**plain, "pool": base64.b64encode(state.pool.tobytes()).decode("ascii")}

    def load(self, found: Mapping[str, Any]) -> HoldState:
        pool = np.frombuffer(base64.b64decode(found["pool"]), dtype=kernels.facts_type(self.reads)).copy()
        within, across = (saved.from_json(Seen, found[name]) for name in PARTS)
        return HoldState(
            baseline=saved.from_json(Baseline, found["baseline"]),
            within=within,
            across=across,
            pool=pool,
            shown=bool(found.get("shown", True)),
            wordings=found.get("wordings"),
            settled=bool(found.get("settled", found.get("wordings") is not None)),
        )


# -- what is remembered ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Mean:
    """The mean of some groups' C, and its error."""

    groups: float = 0.0
    total: float = 0.0
    square: float = 0.0

    def plus(self, value_n: Floats, keep: float) -> Mean:
        """``keep`` times this, and some more groups."""
        return Mean(
            groups=self.groups * keep + len(value_n),
            total=self.total * keep + math.fsum(value_n.tolist()),
            square=self.square * keep + math.fsum((value_n**2).tolist()),
        )

    @property
    def mean(self) -> float:
        return self.total / self.groups

    def at_most(self, errors: float) -> float | None:
        """What C credibly is at most, ``HALF`` a group of one wording added; ``None`` for fewer than two groups."""
        if self.groups < 2.0:
            return None
        variance = max(0.0, self.square / self.groups - self.mean**2) / (self.groups - 1.0)
        return min(1.0, (self.total + HALF) / (self.groups + HALF) + errors * math.sqrt(variance))


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """How alike right answers were: C of one part."""

    base: Mean = field(default_factory=Mean)
    now: Mean = field(default_factory=Mean)
    """Running, forgetting with ``MEMORY_GROUPS``."""
    best: float = 1.0
    """The least that it credibly was, since the base was complete."""


@dataclass(frozen=True, kw_only=True, eq=False)
class HoldState:
    """Where the fold stands."""

    baseline: Baseline = field(default_factory=Baseline)
    within: Seen = field(default_factory=Seen)
    across: Seen = field(default_factory=Seen)
    pool: Facts
    """The newest right answers, this round's first."""
    shown: bool = True
    """Whether the newest round showed how alike some are."""
    wordings: float | None = None
    """In how many ways right answers of one format open at the base, an effective number; ``None``: not yet known."""
    settled: bool = False
    """Whether that is known well enough to stay as it is."""

    def of(self, part: Part) -> Seen:
        return self.within if part == "within" else self.across


@dataclass(frozen=True, kw_only=True)
class Looked:
    """What one round shows."""

    row_n: NDArray[np.int64]
    """Right answers that are held: rows of the table, in its order."""
    centre_n: NDArray[np.int64]
    """Among which each is compared: its group, or the round where groups are of one."""
    away: Mapping[Part, Floats]
    """By part, by how much more each is like the others than the right answers of its group are [n], unbiased; 0 where
    there are too few to tell."""
    collisions: Mapping[Part, Floats]
    """By part, C of each group that has one."""
    pool: Facts
    groups: int
    completions: int


def look(settings: Hold, pool: Facts, table: RoundTable, usual: float | None = None) -> Looked:
    """Compare the right answers of a round with one another and with those remembered. ``usual``: how alike those to
    different prompts are, where that is what those of a group that has a wrong one are compared with."""
    G = max(1, table.group_size)
    row_n = np.flatnonzero((table.success_N == 1.0) & (table.truncated_N == 0) & (table.parsed_N == 1))
    facts = kernels.facts_of(table, row_n, settings.reads)
    pool = _pooled(facts, pool, settings.memory_completions)
    group_n = row_n // G
    centre_n = np.zeros_like(group_n) if G == 1 else group_n
    within_n, across_n, centres = np.zeros(len(row_n)), np.zeros(len(row_n)), np.unique(centre_n)
    within, across = [], []
    mean_n = _mean_across(settings, facts, pool)
    for centre in centres:
        of = np.flatnonzero(centre_n == centre)
        n = len(of)
        if G > 1 and n > 1:
            k_nn = settings.alike(facts[of], facts[of])
            mean = (k_nn.sum(axis=1) - np.diagonal(k_nn)) / (n - 1)
            within.append(float(mean.mean()))
            if n > 2:
                within_n[of] = (mean - mean.mean()) * n / (n - 2)
        known = of[np.isfinite(mean_n[of])]
        if len(known) and G > 1:
            across.append(float(mean_n[known].mean()))
        elif G == 1:
            across += mean_n[known].tolist()
        wrong = table.success_N[int(centre) * G : (int(centre) + 1) * G] != 1.0
        if usual is not None and G > 1 and wrong.any():
            across_n[known] = mean_n[known] - usual
        elif len(known) > 1:
            across_n[known] = (mean_n[known] - mean_n[known].mean()) * len(known) / (len(known) - 1)
    scored = np.isfinite(table.success_N)
    return Looked(
        row_n=row_n,
        centre_n=centre_n,
        away={"within": within_n, "across": across_n},
        collisions={"within": np.array(within), "across": np.array(across)},
        pool=pool,
        groups=len(table) // G,
        completions=len(table) if scored.any() else 0,
    )


def _pooled(facts: Facts, pool: Facts, most: int) -> Facts:
    """The newest right answers, this round's first. A prompt's stay or go together, so that which of them stay does not
    depend on their order."""
    place = np.array([unit_hash(prompt, 3) for prompt in facts["prompt"].tolist()])
    joined = np.concatenate([facts[np.argsort(place, kind="stable")], pool])
    prompt = joined["prompt"]
    end = min(most, len(joined))
    while 0 < end < len(joined) and prompt[end] == prompt[end - 1]:
        end -= 1
    return joined[:end] if end else joined[:most]


def _mean_across(settings: Hold, facts: Facts, pool: Facts) -> Floats:
    """How alike each right answer is to those remembered of other prompts [n]; NaN where there are none."""
    if not len(facts) or not len(pool):
        return np.full(len(facts), np.nan)
    other_nm = facts["prompt"][:, None] != pool["prompt"][None, :]
    count_n = other_nm.sum(axis=1)
    total_n = np.where(other_nm, settings.alike(facts, pool), 0.0).sum(axis=1)
    return np.where(count_n > 0, total_n / np.maximum(count_n, 1), np.nan)


def after(settings: Hold, state: HoldState, seen: Looked) -> HoldState:
    """The state with one more round."""
    in_base = not state.baseline.complete
    baseline = state.baseline.with_round(prompts=seen.groups, completions=seen.completions)
    parts = {}
    for part in PARTS:
        value_n, before = seen.collisions[part], state.of(part)
        now = before.now.plus(value_n, math.exp(-len(value_n) / MEMORY_GROUPS))
        best = before.best
        if not in_base and now.groups >= BEST_GROUPS:
            best = min(best, now.at_most(BEST_SE) or best)
        parts[part] = replace(
            before, base=before.base.plus(value_n, 1.0) if in_base else before.base, now=now, best=best
        )
    shown = any(len(value_n) for value_n in seen.collisions.values())
    wordings, settled = state.wordings, state.settled
    if not settled and (found := opens_alike(seen.pool)) is not None:
        chance, error = found
        wordings = 1.0 / chance
        # A base that was rarely right shows it later, by the first right answers there are.
        settled = baseline.complete and error is not None and abs(chance - 1.0 / settings.wordings) > BASE_SE * error
    return replace(state, baseline=baseline, pool=seen.pool, shown=shown, wordings=wordings, settled=settled, **parts)


def opens_alike(pool: Facts) -> tuple[float, float | None] | None:
    """The chance that two answers of one format, to different prompts, open alike, and its standard error (jackknife
    over prompts), ``None`` for fewer than ``LEAST_PROMPTS``; ``None`` for fewer than ``LEAST_PAIRS`` pairs.

    Answers to one prompt take its words up, and at first there may be one that is solved.
    """
    apart_nn = pool["prompt"][:, None] != pool["prompt"][None, :]
    both_nn = apart_nn * kernels.alike("format", pool, pool)
    alike_nn = both_nn * kernels.alike("opening", pool, pool)
    pairs, alike = float(both_nn.sum()) / 2.0, float(alike_nn.sum()) / 2.0
    if pairs < LEAST_PAIRS:
        return None
    prompt_n = np.unique(pool["prompt"], return_inverse=True)[1]
    pairs_P = pairs - np.bincount(prompt_n, both_nn.sum(axis=1))
    without_P = (alike - np.bincount(prompt_n, alike_nn.sum(axis=1)))[pairs_P > 0.0] / pairs_P[pairs_P > 0.0]
    # Of pairs none of which is alike no more is known than that they are so many.
    chance = max(alike, 1.0) / pairs
    if len(without_P) < LEAST_PROMPTS:
        return chance, None
    return chance, math.sqrt((len(without_P) - 1) * float(without_P.var()))


# -- steering ----------------------------------------------------------------------------------------------------------


def reference(settings: Hold, state: HoldState, part: Part) -> float | None:
    """The least C that right answers have credibly shown, and at least 1 / ``enough``; ``None`` while the base is
    incomplete, or nothing was shown."""
    seen = state.of(part)
    shown = [value for value in (seen.base.at_most(BASE_SE), seen.best) if value is not None and value < 1.0]
    if not state.baseline.complete or not shown:
        return None
    return max(1.0 / settings.enough, min(shown))


def ratio(settings: Hold, state: HoldState, part: Part) -> float | None:
    """Effective number of right answers now over the reference's; ``None`` where either is not known."""
    lowest, now = reference(settings, state, part), state.of(part).now
    if lowest is None or now.groups < LEAST_GROUPS:
        return None
    return lowest / max(now.mean, 1e-9)


def excess(settings: Hold, state: HoldState, part: Part) -> float | None:
    """log of C over its line."""
    found = ratio(settings, state, part)
    return None if found is None else -math.log(found * settings.at)


def control(settings: Hold, state: HoldState, kappa: float) -> float | None:
    """The next kappa, ``None`` where it stays. It follows the worse of the two parts: up by ``rate`` times the log of C
    over its line, down by the same once C is below, and stays where the round shows no C; always within ``bounds``,
    whatever is known."""
    parts = settings.parts if state.shown else ()
    known = [found for part in parts if (found := excess(settings, state, part)) is not None]
    over, new = max(known, default=0.0), kappa
    if not -DEAD_BAND <= over <= 0.0:
        new += settings.rate * min(max(over, -MOST_LOG), MOST_LOG)
    if over > 0.0 and kappa == 0.0:
        new = max(new, settings.kappa)
    new = min(max(new, settings.bounds[0]), settings.bounds[1])
    return None if new == kappa else new


def describe(settings: Hold, state: HoldState) -> str:
    """Why kappa is what it is, in a line."""
    said = []
    for part in settings.parts:
        lowest, found = reference(settings, state, part), ratio(settings, state, part)
        if lowest is not None and found is not None:
            to = "one prompt" if part == "within" else "different prompts"
            said.append(f"{lowest / found:.3g} to {to} (line {min(1.0, lowest * settings.at):.3g})")
    unknown = "too few right answers yet" if state.baseline.complete else "the base is not complete yet"
    alike = f"how alike right answers are, 0 to 1: {', '.join(said)}" if said else unknown
    return f"{alike}; {_opening(state)}" if settings.wordings > 1.0 and state.wordings is not None else alike


def _opening(state: HoldState) -> str:
    # Down, so that what falls short of the line does not read as if it reached it.
    shown = "?" if state.wordings is None else f"{math.floor(100.0 * state.wordings) / 100.0:.3g}"
    return f"at the base those of one format open in {shown} ways"


def addition(settings: Hold, state: HoldState, seen: Looked, table: RoundTable, kappa: float, scale: float) -> Floats:
    """What comes to each row's advantage [N]. ``state`` is that after this round."""
    result_N = np.zeros(len(table))
    push_n = np.zeros(len(seen.row_n))
    for part, spent in _spent(settings, state, kappa, table.group_size).items():
        push_n -= 2.0 * spent * seen.away[part]
    for centre in np.unique(seen.centre_n):
        of = seen.centre_n == centre
        largest = float(np.abs(push_n[of]).max())
        if largest > 0.0:
            most = _most(settings, table, int(centre), scale)
            result_N[seen.row_n[of]] = push_n[of] * min(scale, most / largest)
    return result_N


def _spent(settings: Hold, state: HoldState, kappa: float, group_size: int) -> Mapping[Part, float]:
    """By part, what of kappa goes to it: one that is ``FADE`` below its line needs none, and the other has all then.
    The least of ``bounds`` is spent in any case, and in groups of one all of it across prompts."""
    parts: Mapping[Part, float] = settings.parts if group_size > 1 else {"across": 1.0}
    over = {part: excess(settings, state, part) for part in parts}
    needed = {part: 0.0 if e is None else min(1.0, max(0.0, 1.0 + e / FADE)) for part, e in over.items()}
    asked = {part: share * needed[part] for part, share in parts.items()}
    if not any(asked.values()):
        asked = dict(parts)
    spent = max(kappa * max(needed.values()), min(kappa, settings.bounds[0]))
    return {part: spent * share / math.fsum(asked.values()) for part, share in asked.items()}


def _most(settings: Hold, table: RoundTable, group: int, scale: float) -> float:
    """The most that may be added to one completion of a group."""
    most, G = settings.bound * scale, table.group_size
    if G < 2:
        return most
    rows = slice(group * G, (group + 1) * G)
    right_G, advantage_G = table.success_N[rows] == 1.0, table.advantage_N[rows]
    if right_G.all():
        return most
    # NaN, as of an advantage that is not known, leaves nothing.
    gap = float(advantage_G[right_G].min() - advantage_G[~right_G].max())
    return min(most, settings.of_gap * gap) if gap > 0.0 else 0.0
