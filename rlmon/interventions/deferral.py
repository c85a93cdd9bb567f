"""Which prompts (or sources) are not drawn for now, since they are credibly not solvable now.

They are put off, not deleted: every ``retry_after_rounds`` rounds a deferred one may be drawn again (a re-pilot), and
it is released when that shows that it can be solved. A prompt is judged by its posterior within its source, a source
by all of its recent completions.

A low solve rate alone does not tell a source that teaches guessing from one that is merely hard. With ``guesses`` a
source is judged by its *guessing rate* as well: that at which the answers to its other prompts would have solved the
prompt. It is all of the solve rate for a policy that does not look at the prompt, however often a favourite answer
happens to be right, and next to none of it where right answers are rare.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from rlmon.interventions.intervention import (
    NO_CHANGE,
    NOTHING,
    Blocked,
    Intervention,
    Ledger,
    Round,
    RowAct,
    RowChange,
    RuleState,
    setting,
)
from rlmon.interventions.rows import RoundTable
from rlmon.interventions.saved import from_json, to_json
from rlmon.interventions.setting import Setting
from rlmon.statistics import beta_cdf

MEMORY_ATTEMPTS = 2048.0
"""Attempts of a source that its tally remembers."""
NEWEST_ATTEMPTS = 512.0
"""Attempts of a source by which it is seen whether it has begun to learn."""
KEPT_ATTEMPTS = 256.0
"""Weight of a source's past once it is deferred, so that re-pilots can overrule it."""
GUESSES = 2.0
"""A source is guessed while it is solved less than this many times as often as by guessing: free answers, where a
guess is nearly never right, are not held against a source that is merely hard."""
LIKELY = 0.25
"""A deferred source is released when the probability that it is unsolvable falls below this. Not .5: it is looked at
every round, and a source at the bound would come and go."""
MOSTLY_SOLVED = 0.5
"""A source solved more often than this is not put off as guessed: it has little to teach, and does no harm."""
ANSWERS = 64
"""Answers of a source that are counted one by one."""
LEAST_PROMPTS = 8
"""Prompts without which a source's answers tell nothing about guessing: a prompt's own would be among them."""
UNITS = 100_000
"""Prompts deferred or released whose evidence is kept; when it is full nothing more is deferred."""
BYTES_PER_UNIT = 100
"""Bytes a deferred (or once released) prompt takes in a saved state, at most; other prompts take none."""

Why = Literal["", "unsolved", "guessed"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Defer(Intervention):
    """Draw no more of the prompts (or sources) that are credibly not solvable now; try them again later."""

    name = "defer"
    turns = "draws"
    knob_name = "deferral"
    needs_success = True
    asks = "after"
    measured_by = ("rlmon/group/all_bad", "down")
    holds: ClassVar[Mapping[str, float | None]] = {"deferred_share": 0.0}
    gone: ClassVar[Mapping[str, tuple[Any, str]]] = {
        "random": (
            False,
            "was a control arm of an experiment and is an action of its own now, random_defer of "
            "studies/random_deferral.py. Take random out, or give that class to RLMon(trainer, actions=[RandomDefer]).",
        )
    }
    moves_when_dry = True

    by: Literal["prompt", "source"] = setting("prompt", "what is deferred")
    solve_rate_below: float = setting(0.02, "deferred when the solve rate is credibly below this", low=0.0, high=1.0)
    credibility: float = setting(0.95, "posterior probability that counts as credible", low=0.5, high=1.0)
    after_attempts: int = setting(16, "least attempts at a prompt before it is deferred", low=1)
    source_after_attempts: int = setting(1024, "least attempts at a source before it is judged as a whole", low=1)
    guesses: bool = setting(
        False,
        "also defer sources that are solved no more often than by the answers to their other prompts (by a constant, "
        "for example); not for multiple choice, where learning begins at chance",
    )
    retry_after_rounds: int = setting(50, "rounds until a deferred prompt is drawn again", low=1)
    share: float = setting(0.5, "most of the known prompts that may be deferred at once", low=0.0, high=0.95)

    def fresh(self) -> DeferralState:
        return DeferralState(by=self.by)

    def save(self, state: DeferralState) -> Any:
        return state.to_json()

    def load(self, found: Any) -> DeferralState:
        return DeferralState.from_json(found)

    def ask(self, ledger: Ledger) -> LedgerView:
        counts_N2 = ledger.counts()
        return LedgerView(
            attempts_N=counts_N2[:, 0],
            successes_N=counts_N2[:, 1],
            credibly_below_N=ledger.credibly_below(self.solve_rate_below, self.credibility),
        )

    def on_round(self, state: DeferralState, round: Round) -> tuple[DeferralState, RowChange]:
        state, changes = step(self, state, round.table, round.known, acting=round.acting)
        if not changes:
            return state, NO_CHANGE
        return state, RowChange(act=RowAct(knob="draws", count=changes.count, reason=self.describe(changes)))

    def describe(self, changes: Changes) -> str:
        """What became of prompts or sources, in one line."""
        return changes.describe()

    @property
    def blocks_sources(self) -> bool:
        return self.by == "source"

    def blocked(self, state: DeferralState, round: int) -> Blocked:
        held = {key: unit.fraction for key, unit in state.units.items() if unit.deferred and round < unit.due_round}
        if not held:
            return NOTHING
        return Blocked(prompts=frozenset(held)) if state.by == "prompt" else Blocked(sources=held)

    def measures(self, at: RuleState, step: int, *, dry_run: bool) -> Mapping[str, float]:
        return {"deferred_share": at.inner.share}

    def useless(self, setting: Setting) -> str | None:
        if self.share == 0.0:
            return "share: 0 lets nothing be deferred. Type share: 0.5"
        if self.solve_rate_below == 0.0 and not (self.guesses and self.by == "source"):
            return "solve_rate_below: 0 is below every solve rate. Type solve_rate_below: 0.02"
        return None

    def too_late(self, setting: Setting) -> str | None:
        if self.by == "source":
            most, needed = setting.run_completions, self.source_after_attempts
            if most is not None and most < needed:
                return f"the run samples {most} completions, and source_after_attempts is {needed}. Lower that"
        elif not self.guesses:
            most, needed = setting.prompt_attempts or setting.run_completions, self.after_attempts
            if most is not None and most < needed:
                return f"a prompt has {most} attempts in this run, and after_attempts is {needed}. Lower after_attempts"
        return None

    def reach(self) -> Mapping[str, float]:
        return {"deferred_share": self.share}


@dataclass(frozen=True, kw_only=True)
class LedgerView:
    """What is known of the prompts of one round's rows, this round included.

    ``attempts_N`` and ``successes_N`` [N] are the whole run's counts of each row's prompt; ``credibly_below_N`` [N] is
    whether P(its solve rate < ``solve_rate_below``) is at least ``credibility``.
    """

    attempts_N: NDArray[np.int64]
    successes_N: NDArray[np.int64]
    credibly_below_N: NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Source:
    """Recent completions of one source; what is older than ``MEMORY_ATTEMPTS`` fades."""

    prompts: int = 0
    """Known prompts: never fades."""
    seen: int = 0
    """Attempts of the whole run: never fades."""
    attempts: float = 0.0
    successes: float = 0.0
    guessed: float = 0.0
    """Expected successes of a policy that gives each prompt the answers that other prompts get."""
    readable: float = 0.0
    """Attempts whose answer could be read."""
    newest: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Attempts, successes and expected guesses again, of the last ``NEWEST_ATTEMPTS``."""
    answers: Mapping[int, float] = field(default_factory=dict)
    why: Why = ""
    """Why it is unsolvable now; empty where it is not."""

    def below(self, bound: float) -> float:
        """P(solve rate < ``bound``) under a uniform prior."""
        return float(beta_cdf(bound, 1.0 + self.successes, 1.0 + self.attempts - self.successes))

    def guesses(self, *, newest: bool = False) -> float:
        """P(solve rate < ``GUESSES`` times the guessing rate), uniform prior, by all or by the newest attempts."""
        n, k, expected = self.newest if newest else (self.attempts, self.successes, self.guessed)
        return float(beta_cdf(min(1.0, GUESSES * expected / n), 1.0 + k, 1.0 + n - k)) if n > 0.0 else 0.0

    def weighing(self, attempts: float) -> Source:
        """The same rates with the weight of at most so many attempts."""
        keep = 1.0 if self.attempts <= attempts else attempts / self.attempts
        return replace(
            self,
            attempts=self.attempts * keep,
            successes=self.successes * keep,
            guessed=self.guessed * keep,
            readable=self.readable * keep,
        )


@dataclass(frozen=True, kw_only=True)
class Unit:
    """A prompt or source that is deferred, or was."""

    source: int
    deferred: bool
    due_round: int
    """While deferred: from this round on it may be drawn again."""
    why: Why
    attempts: int = 0
    """The ledger's count when it was released: what is judged afterwards is what came since."""
    successes: int = 0
    fraction: float = 1.0
    """Of a source: the share of its prompts that is not drawn."""


@dataclass(frozen=True, kw_only=True)
class DeferralState:
    """Where the fold stands."""

    by: Literal["prompt", "source"]
    units: Mapping[int, Unit] = field(default_factory=dict)
    sources: Mapping[int, Source] = field(default_factory=dict)
    deferrals: int = 0
    """Of the whole run, as the next two."""
    repilots: int = 0
    releases: int = 0

    @property
    def known(self) -> int:
        """Prompts seen."""
        return sum(source.prompts for source in self.sources.values())

    @property
    def share(self) -> float:
        """Share of the known prompts that is deferred."""
        return self.share_in(None)

    def share_in(self, round: int | None) -> float:
        """The same of those that are not to be drawn in that round; ``None``: of all."""
        deferred = math.fsum(
            1.0 if self.by == "prompt" else unit.fraction * self.sources[key].prompts
            for key, unit in self.units.items()
            if unit.deferred and (round is None or round < unit.due_round)
        )
        return deferred / self.known if self.known else 0.0

    def to_json(self) -> dict[str, Any]:
        """JSON types only; floats and keys survive exactly. There may be many units, so that values have no names."""
        return {
            "by": self.by,
            "units": _rows(self.units, SAVED_UNIT),
            "sources": _rows(self.sources, SAVED_SOURCE),
            "totals": [self.deferrals, self.repilots, self.releases],
        }

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> DeferralState:
        deferrals, repilots, releases = found["totals"]
        return cls(
            by=found["by"],
            units=_of_rows(Unit, found["units"], SAVED_UNIT),
            sources=_of_rows(Source, found["sources"], SAVED_SOURCE),
            deferrals=deferrals,
            repilots=repilots,
            releases=releases,
        )


SAVED_UNIT = ("source", "deferred", "due_round", "why", "attempts", "successes", "fraction")
SAVED_SOURCE = (
    "prompts", "attempts", "successes", "guessed", "readable", "answers", "why", "seen", "newest",
)  # fmt: skip
"""Fields in a saved state, by their place."""
Kept = TypeVar("Kept", Unit, Source)


def _rows(kept: Mapping[int, Unit] | Mapping[int, Source], fields: Sequence[str]) -> list[list[Any]]:
    plain = {key: to_json(one) for key, one in kept.items()}
    return [[key, *(one[field] for field in fields)] for key, one in plain.items()]


def _of_rows(kind: type[Kept], rows: Sequence[Sequence[Any]], fields: Sequence[str]) -> dict[int, Kept]:
    return {int(key): from_json(kind, dict(zip(fields, values, strict=True))) for key, *values in rows}


@dataclass(frozen=True, kw_only=True)
class Change:
    """What became of one prompt or source, and why."""

    key: int
    what: Literal["deferred", "re-piloted", "released"]
    reason: str


@dataclass(frozen=True, kw_only=True)
class Changes:
    """Of one round. True where something was deferred or released: a re-pilot that changed nothing is no action."""

    by: Literal["prompt", "source"] = "prompt"
    changes: tuple[Change, ...] = ()
    share: float = 0.0
    """Share of the known prompts that is deferred now."""

    def of(self, what: Literal["deferred", "re-piloted", "released"]) -> tuple[Change, ...]:
        return tuple(change for change in self.changes if change.what == what)

    def __bool__(self) -> bool:
        return bool(self.of("deferred") or self.of("released"))

    @property
    def count(self) -> int:
        """Prompts or sources deferred or released."""
        return len(self.of("deferred")) + len(self.of("released"))

    def describe(self) -> str:
        """One line: how many of each, with the first one's reason, and the share that is deferred now."""
        parts = []
        for what in ("deferred", "released", "re-piloted"):
            found = self.of(what)
            if found:
                parts.append(f"{len(found)} {self.by}{'s'[: len(found) > 1]} {what} ({found[0].reason})")
        return f"{'; '.join(parts)}; {self.share:.0%} of the known prompts are deferred"


def step(
    settings: Defer, state: DeferralState, table: RoundTable, known: LedgerView, *, acting: bool = True
) -> tuple[DeferralState, Changes]:
    """Fold one training round, with evidence from this round included.

    Where the rule is not ``acting`` everything deferred is released, and sources are counted on.
    """
    if state.by != settings.by:
        # A resumed run whose policy changed: what is deferred is of another kind.
        state = replace(state, units={})
    scored_N = np.isfinite(table.success_N)
    won_N = table.success_N == 1.0
    prompts = _Prompts.of(table, known, scored_N, won_N)
    sources = _count(settings, state.sources, table, prompts, scored_N, won_N)
    state = replace(state, by=settings.by, sources=sources)
    units = dict(state.units)
    changes: list[Change] = []
    if not acting:
        for key, unit in units.items():
            if unit.deferred:
                changes.append(Change(key=key, what="released", reason="the rule is at rest"))
        units = {}
    elif settings.by == "prompt":
        _judge_prompts(settings, state, prompts, table.round, units, changes)
    else:
        _judge_sources(settings, state, prompts, table.round, units, changes)
    total = {what: sum(change.what == what for change in changes) for what in ("deferred", "re-piloted", "released")}
    state = replace(
        state,
        units=units,
        deferrals=state.deferrals + total["deferred"],
        repilots=state.repilots + total["re-piloted"],
        releases=state.releases + total["released"],
    )
    return state, Changes(by=settings.by, changes=tuple(changes), share=state.share)


@dataclass(frozen=True, kw_only=True)
class _Prompts:
    """The distinct prompts of a round [P], by key."""

    key_P: NDArray[np.int64]
    source_P: NDArray[np.int64]
    drawn_P: NDArray[np.int64]
    """Scored completions in this round, and the successes among them."""
    solved_P: NDArray[np.int64]
    attempts_P: NDArray[np.int64]
    successes_P: NDArray[np.int64]
    below_P: NDArray[np.bool_]
    of_N: NDArray[np.int64]
    """Place of each row's prompt in these arrays."""

    @classmethod
    def of(
        cls, table: RoundTable, known: LedgerView, scored_N: NDArray[np.bool_], won_N: NDArray[np.bool_]
    ) -> _Prompts:
        key_P, first_P, of_N = np.unique(table.prompt_N, return_index=True, return_inverse=True)
        of_N = of_N.reshape(-1)
        P = len(key_P)
        return cls(
            key_P=key_P,
            source_P=table.source_N[first_P],
            drawn_P=np.bincount(of_N, weights=scored_N, minlength=P).astype(np.int64),
            solved_P=np.bincount(of_N, weights=won_N, minlength=P).astype(np.int64),
            attempts_P=np.asarray(known.attempts_N, dtype=np.int64)[first_P],
            successes_P=np.asarray(known.successes_N, dtype=np.int64)[first_P],
            below_P=np.asarray(known.credibly_below_N, dtype=np.bool_)[first_P],
            of_N=of_N,
        )


# -- sources -----------------------------------------------------------------------------------------------------------


def _count(
    settings: Defer,
    before: Mapping[int, Source],
    table: RoundTable,
    prompts: _Prompts,
    scored_N: NDArray[np.bool_],
    won_N: NDArray[np.bool_],
) -> dict[int, Source]:
    """The tallies with this round added, and whether each source is unsolvable now."""
    sources = dict(before)
    for key in np.unique(prompts.source_P).tolist():
        source = sources.get(key, Source())
        of_N = (prompts.source_P == key)[prompts.of_N] & scored_N
        rows = int(of_N.sum())
        mine_P = prompts.source_P == key
        # The ledger counts attempts of this round too: who has no others is new.
        new = int((mine_P & (prompts.drawn_P > 0) & (prompts.attempts_P <= prompts.drawn_P)).sum())
        if not rows:
            continue
        read_N = of_N & (table.answer_N != -1)
        answers = _answers(source.answers, table.answer_N[read_N])
        won = int(won_N[of_N].sum())
        guessed = _guessed(answers, table.answer_N, prompts.of_N, of_N, read_N, won_N)
        keep, fresh = (max(0.0, 1.0 - rows / memory) for memory in (MEMORY_ATTEMPTS, NEWEST_ATTEMPTS))
        n, k, expected = source.newest
        source = replace(
            source,
            prompts=source.prompts + new,
            seen=source.seen + rows,
            attempts=source.attempts * keep + rows,
            successes=source.successes * keep + won,
            guessed=source.guessed * keep + guessed,
            newest=(n * fresh + rows, k * fresh + won, expected * fresh + guessed),
            readable=source.readable * keep + int(read_N.sum()),
            answers=answers,
        )
        sources[key] = _flag(settings, source)
    return sources


def _flag(settings: Defer, source: Source) -> Source:
    """Whether the source is unsolvable, with hysteresis: credible to begin, unlikely to end."""
    bound = settings.solve_rate_below
    if source.why:
        still = source.guesses() if source.why == "guessed" else source.below(bound)
        return replace(source.weighing(0.0), why="") if still < LIKELY else source
    if source.seen < settings.source_after_attempts:
        return source
    if source.below(bound) >= settings.credibility:
        return replace(source.weighing(KEPT_ATTEMPTS), why="unsolved")
    tells = source.prompts >= LEAST_PROMPTS and 2.0 * source.readable >= source.attempts
    tells = tells and source.successes <= MOSTLY_SOLVED * source.attempts
    # A source that has just begun to learn is solved by guessing on the whole, and no longer by its newest attempts.
    if settings.guesses and tells and source.guesses() >= settings.credibility and source.guesses(newest=True) >= 0.5:
        return replace(source.weighing(KEPT_ATTEMPTS), why="guessed")
    return source


def _answers(before: Mapping[int, float], answer_n: NDArray[np.int64]) -> dict[int, float]:
    keys, counts = np.unique(answer_n, return_counts=True)
    keep = max(0.0, 1.0 - len(answer_n) / MEMORY_ATTEMPTS)
    after = {key: count * keep for key, count in before.items()}
    for key, count in zip(keys.tolist(), counts.tolist(), strict=True):
        after[key] = after.get(key, 0.0) + count
    return dict(sorted(after.items(), key=lambda entry: (-entry[1], entry[0]))[:ANSWERS])


def _guessed(
    answers: Mapping[int, float],
    answer_N: NDArray[np.int64],
    prompt_N: NDArray[np.int64],
    of_N: NDArray[np.bool_],
    read_N: NDArray[np.bool_],
    won_N: NDArray[np.bool_],
) -> float:
    """Expected successes among the rows ``of_N`` had each prompt been given the answers of the source's others.

    q(a) is the share of answer a among the source's completions, those of the prompt itself left out. A prompt with
    winners would be solved at the rate q(winners' answers). One without is known only not to have been solved in G
    attempts; its right answer is taken to be distributed as q, which makes its expected rate
    sum q^2 (1 - q)^G / sum q (1 - q)^G. With that the difference to the successes has mean 0 under guessing.
    """
    total = math.fsum(answers.values())
    if total <= 0.0:
        return 0.0
    q = np.fromiter(answers.values(), dtype=np.float64) / total
    expected = 0.0
    for prompt in np.unique(prompt_N[of_N]).tolist():
        own_N = of_N & (prompt_N == prompt)
        size = int(own_N.sum())
        right = np.unique(answer_N[own_N & won_N & read_N])
        if len(right):
            own = answer_N[own_N & read_N]
            others = total - len(own)
            mine = float(np.isin(own, right).sum())
            rate = max(0.0, sum(answers.get(int(a), 0.0) for a in right) - mine) / others if others >= 1.0 else 0.0
        else:
            unsolved = q * (1.0 - q) ** size
            rate = float((unsolved * q).sum() / unsolved.sum()) if unsolved.sum() > 0.0 else 0.0
        expected += size * min(1.0, rate)
    return expected


# -- judging -----------------------------------------------------------------------------------------------------------


def _judge_prompts(
    settings: Defer, state: DeferralState, prompts: _Prompts, round: int, units: dict[int, Unit], changes: list[Change]
) -> None:
    room = math.floor(settings.share * state.known + 1e-9) - sum(unit.deferred for unit in units.values())
    candidates: list[tuple[float, int, Unit, str]] = []
    for i, key in enumerate(prompts.key_P.tolist()):
        source = int(prompts.source_P[i])
        drawn, solved = int(prompts.drawn_P[i]), int(prompts.solved_P[i])
        attempts, successes = int(prompts.attempts_P[i]), int(prompts.successes_P[i])
        unit = units.get(key)
        guessed = settings.guesses and state.sources.get(source, Source()).why == "guessed"
        if not drawn:
            continue
        if unit is not None and unit.deferred:
            if round < unit.due_round:
                # Drawn before what was decided took effect, or by a run that only watches: not a re-pilot.
                continue
            hopeful = not guessed if unit.why == "guessed" else solved > 0 or not bool(prompts.below_P[i])
            reason = f"{solved} of {drawn} solved" + (", its source by guessing" if guessed else "")
            if hopeful:
                room += 1
                units[key] = replace(unit, deferred=False, attempts=attempts, successes=successes)
                changes.append(Change(key=key, what="released", reason=reason))
            else:
                units[key] = replace(unit, due_round=round + settings.retry_after_rounds)
                changes.append(Change(key=key, what="re-piloted", reason=reason))
            continue
        n, k = attempts, successes
        below = bool(prompts.below_P[i])
        if unit is not None:
            # The ledger may have forgotten the prompt since.
            n, k = (n - unit.attempts, k - unit.successes) if n >= unit.attempts else (n, k)
            below = bool(beta_cdf(settings.solve_rate_below, 1.0 + k, 1.0 + n - k) >= settings.credibility)
        if n < settings.after_attempts or not (guessed or (below and solved == 0)):
            continue
        why: Why = "guessed" if guessed else "unsolved"
        due = round + settings.retry_after_rounds
        deferred = Unit(source=source, deferred=True, due_round=due, why=why)
        reason = f"{k} of {n} solved" + (", its source no better than by guessing" if guessed else "")
        # Mean of the posterior under a uniform prior: the worst first.
        candidates.append(((1.0 + k) / (2.0 + n), key, deferred, reason))
    for _, key, deferred, reason in sorted(candidates, key=lambda entry: entry[:2]):
        if room < 1 or (key not in units and len(units) >= UNITS):
            break
        room -= 1
        units[key] = deferred
        changes.append(Change(key=key, what="deferred", reason=reason))


def _judge_sources(
    settings: Defer, state: DeferralState, prompts: _Prompts, round: int, units: dict[int, Unit], changes: list[Change]
) -> None:
    drawn = set(prompts.source_P[prompts.drawn_P > 0].tolist())
    worst = sorted(drawn, key=lambda key: (state.sources[key].successes / max(1.0, state.sources[key].attempts), key))
    for key in worst:
        source, unit = state.sources[key], units.get(key)
        if unit is not None:
            if not source.why:
                del units[key]
                changes.append(Change(key=key, what="released", reason=_rates(source)))
            elif round >= unit.due_round:
                units[key] = replace(unit, due_round=round + settings.retry_after_rounds)
                changes.append(Change(key=key, what="re-piloted", reason=_rates(source)))
            continue
        if not source.why:
            continue
        room = settings.share * state.known - math.fsum(u.fraction * state.sources[k].prompts for k, u in units.items())
        fraction = min(1.0, room / max(1, source.prompts))
        if fraction > 0.0:
            due = round + settings.retry_after_rounds
            units[key] = Unit(source=key, deferred=True, due_round=due, why=source.why, fraction=fraction)
            changes.append(Change(key=key, what="deferred", reason=f"{fraction:.0%} of its prompts: {_rates(source)}"))


def _rates(source: Source) -> str:
    if source.attempts < 1.0:
        return "solved more often than by guessing" if source.guessed else "solved again"
    rate, chance = source.successes / source.attempts, source.guessed / source.attempts
    return f"solved in {rate:.1%} of attempts" + (f", {chance:.1%} by guessing" if source.why == "guessed" else "")
