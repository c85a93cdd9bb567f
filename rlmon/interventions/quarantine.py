"""Neutralise the groups of nearly impossible prompts whose success looks like a shortcut.

A lone success has the largest advantage that there is, (G - 1) / sqrt(G), and on a nearly impossible prompt it is luck
or a shortcut more often than skill. Training on such prompts taught models to repeat answers and to skip computation
(arXiv:2605.28388). The group as a whole gets factor 0: without its winner alone, its losers would be pushed down by
advantages that sum to -(G - 1) / sqrt(G).

Two rules:

- *one success*: neutralised where the winner shows at least ``signs`` signs of a shortcut: an answer that is a habit of
  its source, too few numbers (no computation), too few tokens, or a text that the base holds improbable.
- *several successes*: neutralised where all winners give one answer and that answer is a habit of its source. Without
  this rule the filter fails: groups with two or more lucky hits carry the same bias as those with one, and push as
  hard. How many of a group win says nothing here, since a policy repeats itself within a prompt.

An answer is a *habit* when it has become frequent on all prompts alike (``answer_share`` and ``answer_growth``), or
when it is the one that wins: it took ``win_share`` of the source's wins, on several different prompts, and is frequent
enough that a group of this size holds it by chance more often than not.

A prompt is nearly impossible when the caller says so (``hard_N``, its own solve rate), or when its source is, leaving
out what habits won: a prompt that is drawn once has no solve rate of its own, and with the habit's wins a source would
pass as learnable just when the habit has spread. A source whose prompts are solved by more than one answer is not
nearly impossible, whatever its most frequent answer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import NormalDist
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from rlmon.interventions.intervention import (
    NO_CHANGE,
    Intervention,
    Ledger,
    Round,
    RowAct,
    RowChange,
    setting,
)
from rlmon.interventions.rows import RoundTable
from rlmon.interventions.setting import Setting

SOURCES = 64
"""Sources with a state of their own; later ones share one."""
POOLED = -1
ANSWERS = 128
"""Answers counted for each source. Space-saving (Metwally et al. 2005): a new one takes the place, and the count, of
the rarest, so that a count is too high by at most 1/128 of the total and never too low."""
MEMORY_COMPLETIONS = 1024.0
"""Completions of a source after which what was counted weighs 1/e."""
MEMORY_GROUPS = 128.0
FIRST_ANSWERS = 256.0
"""Answers that show what a source's answers were at first."""
LEAST_ANSWERS = 64.0
LEAST_CORRECT = 8.0
LEAST_GROUPS = 8.0
LEAST_OTHERS = 3
"""Other completions of the group without which it does not tell what is usual for the prompt."""
WINS = 64
LEAST_WINS = 12
LEAST_WIN_PROMPTS = 3
LEAST_USUAL_NUMBERS = 2.0
"""Where correct completions show fewer numbers, there is no computation that could be missing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Quarantine(Intervention):
    """Neutralise the groups of nearly impossible prompts whose success looks like a shortcut."""

    name = "quarantine"
    needs_success = True
    asks = "before"
    measured_by = ("rlmon/group/lone_success_weight", "down")
    holds: ClassVar[Mapping[str, float | None]] = {"neutralised_share": 0.0}

    solve_rate_below: float = setting(0.125, "the prompt's solve rate is credibly below this", low=0.0, high=1.0)
    credibility: float = setting(0.95, "posterior probability that counts as credible", low=0.5, high=1.0)
    signs: int = setting(1, "how many signs of a shortcut are needed", low=1, high=4)
    answer_share: float = setting(
        0.15, "sign: the winner's answer has at least this share of all answers in its source", low=0.0, high=1.0
    )
    answer_growth: float = setting(2.0, "and at least so many times the share that it had at first", low=0.0)
    win_share: float = setting(
        0.25, "or: the answer took this share of the source's wins, on several prompts", low=0.0, high=1.0
    )
    most_successes: float = setting(
        0.9, "groups with several successes are looked at up to this share of the group", low=0.0, high=1.0
    )
    shorter_than: float = setting(
        0.35, "sign: the winner is shorter than this share of its prompt's (or source's) usual length", low=0.0
    )
    fewer_numbers_than: float = setting(
        0.35, "sign: the winner shows fewer numbers than this share of the usual (missing computation)", low=0.0
    )
    base_improbable_nats: float = setting(
        3.0, "sign: the base's mean log-probability of the winner is so far below its group's, where known", low=0.0
    )

    def fresh(self) -> QuarantineState:
        return QuarantineState()

    def ask(self, ledger: Ledger) -> NDArray[np.bool_]:
        return ledger.credibly_below(self.solve_rate_below, self.credibility)

    def on_round(self, state: QuarantineState, round: Round) -> tuple[QuarantineState, RowChange]:
        state, factor_N, found = step(self, state, round.table, round.known)
        if not found or not round.acting:
            return state, NO_CHANGE
        return state, RowChange(
            factor_N=factor_N, act=RowAct(knob="advantages", count=len(found), reason=describe(found))
        )

    def possible_signs(self, setting: Setting) -> int:
        """How many signs of a shortcut a winner can show: that of the base needs TRL's reference."""
        return 1 + (self.shorter_than > 0.0) + (self.fewer_numbers_than > 0.0) + setting.penalised

    def useless(self, setting: Setting) -> str | None:
        if self.solve_rate_below == 0.0:
            return "solve_rate_below: 0 makes no prompt nearly impossible. Type solve_rate_below: 0.125"
        if setting.group_size < 2:
            return "groups of one have no lone success. Raise num_generations"
        several, possible = self.most_successes * setting.group_size >= 2.0, self.possible_signs(setting)
        if self.signs > possible and not several:
            return f"signs: {self.signs} are needed, and {possible} can be seen here. Type signs: 1"
        return None

    def odd(self, setting: Setting, *, always: bool) -> Iterator[str]:
        possible = self.possible_signs(setting)
        if self.signs > possible:
            yield f"signs: {self.signs} are needed of a lone success, and {possible} can be seen here"

    def reach(self) -> Mapping[str, float]:
        return {"neutralised_share": 1.0}


@dataclass(frozen=True, kw_only=True)
class SourceState:
    """What is usual in one source."""

    answers: Mapping[int, float] = field(default_factory=dict)
    """Count of each answer, forgetting."""
    answers_total: float = 0.0
    first: Mapping[int, float] = field(default_factory=dict)
    first_total: float = 0.0
    wins: tuple[tuple[int, int], ...] = ()
    """The last distinct pairs (answer, prompt) that won, quarantined or not."""
    groups: float = 0.0
    rate_sum: float = 0.0
    """Solve rates of the groups, 0 where a habit or a shortcut won."""
    rate_square: float = 0.0
    correct: float = 0.0
    """Successes, without those that were quarantined: a shortcut must not become what is usual."""
    log_tokens: float = 0.0
    numbers: float = 0.0

    def share(self, answer: int) -> float:
        """The answer's share of all answers of the source; 0 while too few are known."""
        return self.answers.get(answer, 0.0) / self.answers_total if self.answers_total >= LEAST_ANSWERS else 0.0

    def share_at_first(self, answer: int) -> float:
        return self.first.get(answer, 0.0) / self.first_total if self.first_total > 0.0 else 0.0

    @property
    def usual_tokens(self) -> float | None:
        """Geometric mean of the tokens of correct completions."""
        return math.expm1(self.log_tokens / self.correct) if self.correct >= LEAST_CORRECT else None

    @property
    def usual_numbers(self) -> float | None:
        return self.numbers / self.correct if self.correct >= LEAST_CORRECT else None

    def solve_rate_at_most(self, credibility: float) -> float:
        """Upper bound of the mean solve rate of the source's prompts, from the spread between groups; 1 where unknown.

        Half a solved group is added, so that a source without any success is bounded away from 0.
        """
        if self.groups < LEAST_GROUPS:
            return 1.0
        mean = (self.rate_sum + 0.5) / (self.groups + 1.0)
        variance = max(0.0, (self.rate_square + 0.25) / (self.groups + 1.0) - mean * mean)
        return mean + NormalDist().inv_cdf(min(credibility, 1.0 - 1e-12)) * math.sqrt(variance / self.groups)


@dataclass(frozen=True, kw_only=True)
class QuarantineState:
    """Where the fold stands: sources in the order in which they were first seen."""

    sources: Mapping[int, SourceState] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Quarantined:
    """A group that is neutralised."""

    group: int
    """Row // group_size."""
    prompt: int
    source: int
    winners: tuple[int, ...]
    """Rows of the table."""
    reasons: tuple[str, ...]


def step(
    settings: Quarantine, state: QuarantineState, table: RoundTable, hard_N: NDArray[np.bool_]
) -> tuple[QuarantineState, NDArray[np.float64], list[Quarantined]]:
    """Fold one training round: the new state, each row's factor [N] (0.0 in a neutralised group, else 1.0), and what
    was found.

    ``hard_N`` [N]: the row's prompt has, by the rounds before, a solve rate credibly below ``solve_rate_below``. Rows
    whose success is not known count for neither; groups with fewer than two that are known are left alone. A group is
    judged by what was usual before this round.
    """
    factor_N = np.ones(len(table))
    found: list[Quarantined] = []
    G = max(1, table.group_size)
    for group in range(len(table) // G):
        rows = slice(group * G, (group + 1) * G)
        judged = _judge(settings, _source(state, int(table.source_N[rows.start])), table, group, hard_N)
        if judged is not None:
            factor_N[rows] = 0.0
            found.append(judged)
    return _observe(settings, state, table, factor_N), factor_N, found


def describe(found: Sequence[Quarantined]) -> str:
    """The groups in one sentence, the first three with their reasons."""
    shown = "; ".join(
        f"group {one.group} ({len(one.winners)} {'success' if len(one.winners) == 1 else 'successes'}): "
        + ", ".join(one.reasons)
        for one in found[:3]
    )
    more = f"; and {len(found) - 3} more" if len(found) > 3 else ""
    return f"{len(found)} group{'' if len(found) == 1 else 's'} of nearly impossible prompts neutralised. {shown}{more}"


# -- judging -----------------------------------------------------------------------------------------------------------


def _judge(
    settings: Quarantine, source: SourceState, table: RoundTable, group: int, hard_N: NDArray[np.bool_]
) -> Quarantined | None:
    G = table.group_size
    rows_G = np.arange(group * G, (group + 1) * G)
    scored_G = np.isfinite(table.success_N[rows_G])
    winners = rows_G[table.success_N[rows_G] == 1.0]
    scored = int(scored_G.sum())
    if not 1 <= len(winners) < scored or not (bool(hard_N[rows_G[0]]) or _hard(settings, source)):
        return None
    if len(winners) == 1:
        reasons = _signs(settings, source, table, int(winners[0]), rows_G)
        if len(reasons) < settings.signs:
            return None
    else:
        reasons = _several(settings, source, table, winners, scored)
        if not reasons:
            return None
    return Quarantined(
        group=group,
        prompt=int(table.prompt_N[rows_G[0]]),
        source=int(table.source_N[rows_G[0]]),
        winners=tuple(winners.tolist()),
        reasons=tuple(reasons),
    )


def _hard(settings: Quarantine, source: SourceState) -> bool:
    return source.solve_rate_at_most(settings.credibility) < settings.solve_rate_below


def _signs(
    settings: Quarantine, source: SourceState, table: RoundTable, winner: int, rows_G: NDArray[np.int64]
) -> list[str]:
    signs = []
    others = rows_G[rows_G != winner]
    habit = _habit(settings, source, int(table.answer_N[winner]), len(rows_G))
    if habit is not None:
        signs.append(habit)
    numbers, usual = float(table.numbers_N[winner]), source.usual_numbers
    usual = _median(table.numbers_N[others]) if usual is None else usual
    if usual is not None and usual >= LEAST_USUAL_NUMBERS and numbers < settings.fewer_numbers_than * usual:
        signs.append(f"{numbers:.0f} numbers where {usual:.1f} are usual")
    tokens, usual = float(table.tokens_N[winner]), _median(table.tokens_N[others])
    usual = source.usual_tokens if usual is None else usual
    if usual is not None and tokens < settings.shorter_than * usual:
        signs.append(f"{tokens:.0f} tokens where {usual:.0f} are usual")
    logp, usual = float(table.logp_base_N[winner]), _median(table.logp_base_N[others])
    if usual is not None and logp < usual - settings.base_improbable_nats:
        signs.append(f"{usual - logp:.2f} nats per token less probable for the base than its group")
    return signs


def _several(
    settings: Quarantine, source: SourceState, table: RoundTable, winners: NDArray[np.int64], scored: int
) -> list[str]:
    """Why several winners count as one habit; empty where they do not."""
    answer = int(table.answer_N[winners[0]])
    if len(winners) > settings.most_successes * scored or bool((table.answer_N[winners] != answer).any()):
        return []
    habit = _habit(settings, source, answer, table.group_size)
    return [] if habit is None else [habit]


def _habit(settings: Quarantine, source: SourceState, answer: int, group_size: int) -> str | None:
    """How the answer is a habit of its source, in words; ``None`` where it is none."""
    share, first = source.share(answer), source.share_at_first(answer)
    if share == 0.0:
        return None
    if share >= settings.answer_share and share >= settings.answer_growth * first:
        return f"its answer is {share:.0%} of the source's ({first:.0%} at first)"
    won = sum(won_by == answer for won_by, _ in source.wins)
    if (
        len(source.wins) >= LEAST_WINS
        and won >= max(LEAST_WIN_PROMPTS, settings.win_share * len(source.wins))
        and 1.0 - (1.0 - share) ** group_size >= 0.5
    ):
        return f"its answer took {won} of the source's last {len(source.wins)} wins and is {share:.0%} of its answers"
    return None


def _median(values: NDArray[np.float64]) -> float | None:
    known = values[np.isfinite(values)]
    return float(np.median(known)) if len(known) >= LEAST_OTHERS else None


# -- what is usual -----------------------------------------------------------------------------------------------------


def _source(state: QuarantineState, key: int) -> SourceState:
    return state.sources.get(_place(state.sources, key), SourceState())


def _place(sources: Mapping[int, SourceState], key: int) -> int:
    return key if key in sources or len(sources) < SOURCES else POOLED


def _observe(
    settings: Quarantine,
    state: QuarantineState,
    table: RoundTable,
    factor_N: NDArray[np.float64],
) -> QuarantineState:
    sources = dict(state.sources)
    place_N = np.empty(len(table), dtype=np.int64)
    # In order of appearance, not of key: with more sources than places the first seen have their own.
    for key in dict.fromkeys(table.source_N.tolist()):
        place = _place(sources, key)
        sources.setdefault(place, SourceState())
        place_N[table.source_N == key] = place
    for place in dict.fromkeys(place_N.tolist()):
        sources[place] = _usual(settings, sources[place], table, place_N == place, factor_N)
    return replace(state, sources=sources)


def _usual(
    settings: Quarantine,
    source: SourceState,
    table: RoundTable,
    mine_N: NDArray[np.bool_],
    factor_N: NDArray[np.float64],
) -> SourceState:
    """The source after the rows ``mine_N`` of a round."""
    G = max(1, table.group_size)
    keep = math.exp(-float(mine_N.sum()) / MEMORY_COMPLETIONS)
    success_N = mine_N & (table.success_N == 1.0)
    honest_N = success_N & (factor_N > 0.0) & np.isfinite(table.tokens_N) & np.isfinite(table.numbers_N)

    answers, counts = np.unique(table.answer_N[mine_N & (table.answer_N >= 0)], return_counts=True)
    seen = dict(zip(answers.tolist(), counts.astype(float).tolist(), strict=True))
    total = float(counts.sum())
    first, first_total = source.first, source.first_total
    if first_total < FIRST_ANSWERS:
        first, first_total = _count(first, seen, 1.0), first_total + total

    mine_P = [group for group in range(len(table) // G) if mine_N[group * G]]
    rates, wins = [], dict.fromkeys(source.wins)
    for group in mine_P:
        rows = slice(group * G, (group + 1) * G)
        scored = np.isfinite(table.success_N[rows])
        if scored.sum() < 2:
            continue
        won_by = list(dict.fromkeys(table.answer_N[rows][success_N[rows]].tolist()))
        habit = len(won_by) == 1 and _habit(settings, source, won_by[0], G) is not None
        honest = factor_N[rows.start] > 0.0 and not habit
        rates.append(float(success_N[rows].sum() / scored.sum()) if honest else 0.0)
        for answer in won_by:
            if answer >= 0:
                pair = (answer, int(table.prompt_N[rows.start]))
                wins.pop(pair, None)
                wins[pair] = None
    keep_groups = math.exp(-len(rates) / MEMORY_GROUPS)
    return SourceState(
        answers=_count(source.answers, seen, keep),
        answers_total=source.answers_total * keep + total,
        first=first,
        first_total=first_total,
        wins=tuple(wins)[-WINS:],
        groups=source.groups * keep_groups + len(rates),
        rate_sum=source.rate_sum * keep_groups + math.fsum(rates),
        rate_square=source.rate_square * keep_groups + math.fsum(rate * rate for rate in rates),
        correct=source.correct * keep + float(honest_N.sum()),
        log_tokens=source.log_tokens * keep + math.fsum(np.log1p(table.tokens_N[honest_N]).tolist()),
        numbers=source.numbers * keep + math.fsum(table.numbers_N[honest_N].tolist()),
    )


def _count(before: Mapping[int, float], seen: Mapping[int, float], keep: float) -> dict[int, float]:
    """``keep`` times the counts before, and those seen, in at most ``ANSWERS`` places (space-saving)."""
    counts = {answer: count * keep for answer, count in before.items()}
    for answer, count in sorted(seen.items(), key=lambda item: (-item[1], item[0])):
        if answer not in counts and len(counts) >= ANSWERS:
            rarest = min(counts, key=lambda known: (counts[known], known))
            count += counts.pop(rarest)
        counts[answer] = counts.get(answer, 0.0) + count
    return counts
