"""A family of metrics: one object that says what it adds up over rows and ranks, and what its sums come to.

Everything a step shows is sums, so that micro-batches and ranks can be added: a family names its sums (``fields``),
adds to them what it sees (``add_...``), and reads the sums over all ranks (``finish``). What detectors look at are
statistics of blocks of prompts (``put_...``). The families of rlmon are in ``rlmon.metrics.families``; one of your own
is the same.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

import rlmon.metrics.moves as moves
from rlmon.metrics.blocks import Dealt
from rlmon.metrics.collision import sampled_pairs
from rlmon.metrics.features import RowFeatures
from rlmon.metrics.groups import GroupStats, column
from rlmon.metrics.rows import OpenerEntries, opener_entries
from rlmon.metrics.tokens import KLSample, TokenSums
from rlmon.records import RolloutBatch
from rlmon.statistics import Floats, codes_of, effective_number, histogram_quantile, ratio

Direction = Literal["up", "down", "both", "none"]
Kind = Literal["exact", "sketch", "local"]
Bound = float | int | None
MODE = "<mode>"


# --- what is said of a metric -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Metric:
    """One metric, or one per mode where the name ends in ``<mode>``."""

    name: str
    """``rlmon/<family>/<name>``; of a family of your own ``<family>/<name>``."""
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
    of_successes: bool = False
    """It is null where of no row it is known whether it is a success."""
    instead: str = ""
    """Where it is ``local``: the nearest metric that does not depend on how many ranks there are."""


@dataclass(frozen=True, kw_only=True)
class Entries:
    """Makes the entries of one family, which have much in common."""

    family: str
    needs: str
    source: str = "rlmon"
    kind: Kind = "exact"

    def __call__(
        self,
        name: str,
        unit: str,
        low: Bound,
        high: Bound,
        direction: Direction,
        formula: str,
        *,
        source: str | None = None,
        needs: str | None = None,
        kind: Kind | None = None,
        of_successes: bool = False,
        instead: str = "",
    ) -> Metric:
        """The entry of ``rlmon/<family>/<name>``."""
        return Metric(
            f"rlmon/{self.family}/{name}", unit, low, high, direction, source or self.source, formula,
            kind or self.kind, needs or self.needs, of_successes, instead and f"rlmon/{instead}",
        )  # fmt: skip


# --- sums -------------------------------------------------------------------------------------------------------------

Sums = Any
"""A structured array of shape (): a float64 of the field's shape by name, ``sums["mode_count"]``. Additive."""
Shape = tuple[int, ...] | np.dtype[Any]
"""Of a field: ``()`` for one number, ``(n,)`` for n of them, a structured type for several with names."""


def dtype_of(fields: Mapping[str, Shape]) -> np.dtype[Any]:
    """The structured type of such fields."""
    return np.dtype(
        [(name, "f8", shape) if isinstance(shape, tuple) else (name, shape) for name, shape in fields.items()]
    )


def add_to(into: Sums, more: Sums) -> None:
    """Add sums to others of the same fields."""
    into.reshape(-1).view(np.float64)[:] += more.reshape(-1).view(np.float64)


def histogram(values: Floats, edges: Floats, weights: Floats | None = None) -> Floats:
    """Counts (or sums of ``weights``) between fixed edges; what lies outside is in the first or the last bin."""
    bins = np.searchsorted(edges[1:-1], values, side="right")
    return np.bincount(bins, weights, minlength=edges.size - 1).astype(np.float64)


# --- what a family sees -----------------------------------------------------------------------------------------------

SKETCH_PAIRS = 500
"""Of each kind: across prompts and within."""


@dataclass(frozen=True, eq=False)
class RankRows:
    """The B rows of one generation on one rank."""

    batch: RolloutBatch
    features: RowFeatures
    groups: GroupStats
    rows: Any
    """As the table of the step holds them (``rlmon.metrics.rows.ROW``); ``measured`` has the families' ``columns``."""

    @cached_property
    def reward_B(self) -> Floats:
        """NaN where there is none, or none that is finite."""
        return column(self.batch.reward, len(self.batch))

    @cached_property
    def prompt_B(self) -> NDArray[np.int64]:
        """A code from 0 of each row's prompt."""
        return codes_of(np.array(self.batch.prompt_id, dtype=object))

    @cached_property
    def sketch_similarity(self) -> tuple[Floats, Floats]:
        """Jaccard similarity of 4-grams of at most ``SKETCH_PAIRS`` pairs of different prompts, and of one."""
        # Pairs are drawn by position, so rows are put in the order of their identity first.
        order = np.lexsort((self.features.row_key, np.asarray(self.batch.global_row, dtype=np.int64)))
        i, j, i_within, j_within = sampled_pairs(self.prompt_B[order], SKETCH_PAIRS)
        found = moves.jaccard(
            self.features.sketch, order[np.concatenate([i, i_within])], order[np.concatenate([j, j_within])]
        )
        across, within = found[: i.size], found[i.size :]
        return across[np.isfinite(across)], within[np.isfinite(within)]


@dataclass(frozen=True, eq=False)
class RoundRows:
    """The rows of one round of all ranks, as far as they enter the exchange."""

    rows: Any
    """Columns by name: of ``rlmon.metrics.rows.ROW``, or some of them."""
    groups: GroupStats

    @cached_property
    def prompt_B(self) -> NDArray[np.int64]:
        return codes_of(self.rows["prompt"].astype(np.int64))

    @cached_property
    def openers(self) -> OpenerEntries:
        """Unpacked once for all that compare them."""
        return opener_entries(self.rows)


@dataclass(frozen=True, kw_only=True)
class CriticTokens:
    """The critic's side of one micro-batch: all of shape (B, T), all tensors (of any float type, on any device: one
    transfer) or all arrays."""

    values_BT: Any
    """At rollout, in units of reward."""
    returns_BT: Any
    """Discounted rewards to go."""
    advantages_BT: Any
    """As trained on."""
    mask_BT: Any
    """Non-zero where a token counts."""
    loss: Any = None
    """Squared reward, mean over the tokens of the mask; ``None`` where there is none."""
    clip_ratio: Any = None
    """In [0, 1], likewise."""


# --- what a family says -----------------------------------------------------------------------------------------------

Number = Any
"""A float, or an array of shape ()."""
NO_ROUND = "no generation round belongs to this step"
NO_BASE = "no baseline yet"
NOT_FINITE = "the sums are not finite"


@dataclass
class Numbers:
    """Collects metrics by name; refuses NaN and infinity by turning them into ``None`` with a reason."""

    prefix: str = ""
    metrics: dict[str, float | None] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def put(self, name: str, value: Number | None, reason: str, known: Any = True) -> Number | None:
        """A metric, and why it is ``None`` where it is; the value comes back. ``known``: whether there is one."""
        name, number = self.prefix + name, None if value is None or not known else float(value)
        if number is not None and not math.isfinite(number):
            number, reason = None, NOT_FINITE
        self.metrics[name] = number
        if number is None:
            self.missing[name] = reason
        return number

    def ratio(self, name: str, top: Number | None, bottom: Number | None, reason: str) -> Number | None:
        """``top / bottom``."""
        if top is None or bottom is None or not bottom > 0:
            return self.put(name, None, reason)
        return self.put(name, float(top) / float(bottom), reason)

    def effective(self, name: str, counts: Floats, reason: str) -> Number | None:
        """The effective number of a histogram of counts."""
        return self.put(name, float(effective_number(counts)) if counts.sum() != 0 else None, reason)

    def quantile(
        self, name: str, counts: Floats, edges: Floats, percent: int, reason: str, *, whole: bool = False
    ) -> Number | None:
        """A quantile of a histogram; ``whole``: rounded down."""
        value = histogram_quantile(counts, edges, percent / 100)
        return self.put(name, value if value is None or not whole else math.floor(value), reason)


@dataclass
class Columns(Numbers):
    """The same of several steps at once, whose sums have a first axis of steps [S]: a column per metric, NaN where it
    was not measured. Why is not kept."""

    columns: dict[str, Floats] = field(default_factory=dict)

    def put(self, name: str, value: Number | None, reason: str, known: Any = True) -> Number | None:
        if value is None:
            return None
        column = np.where(known & np.isfinite(value), value, np.nan)
        self.columns[self.prefix + name] = column
        return column

    def ratio(self, name: str, top: Number | None, bottom: Number | None, reason: str) -> Number | None:
        return self.put(name, None if top is None or bottom is None else ratio(top, bottom), reason)

    def effective(self, name: str, counts: Floats, reason: str) -> Number | None:
        return self.put(name, effective_number(counts), reason)

    def quantile(
        self, name: str, counts: Floats, edges: Floats, percent: int, reason: str, *, whole: bool = False
    ) -> Number | None:
        found = [histogram_quantile(of_step, edges, percent / 100) for of_step in counts]
        values = np.array(found, dtype=np.float64)
        return self.put(name, np.floor(values) if whole else values, reason)


@dataclass(frozen=True, kw_only=True)
class Circumstances:
    """What is known of a step beside its sums: it tells why something was not measured."""

    rounds: float = 0.0
    """Generations that were observed in the step, over all ranks."""
    failed: Collection[str] = ()
    """Where the monitor failed in it, on some rank."""
    no_base: str = "no base model was compared"
    no_success: str | None = None
    """Why it is not known which completions are successes."""
    unseen: Mapping[str, str] = field(default_factory=dict)
    """Families that the losses of this trainer do not show, and why."""


@dataclass(frozen=True, kw_only=True)
class StepSums:
    """What the families of a step finish from: the sums over all ranks."""

    sums: Sums
    """Of all families, by family."""
    modes: Sequence[str]
    known: Circumstances
    base: Mapping[str, Floats] | None = None
    """Sums over the rounds of the baseline of this family's fields in ``base``; ``None`` before there are any."""
    why: bool = True
    """Whether it is told why something was not measured: of one step. Sums of several cannot be asked with ``if``."""

    @cached_property
    def rows(self) -> float:
        """Completions that were measured."""
        return float(self.sums["health"]["rows"])

    def of(self, family: str, name: str) -> Number:
        """A sum of another family, 0 where that is none of this run's."""
        return self.sums[family][name] if family in self.sums.dtype.names else 0.0

    def few(self, reason: str) -> str:
        """``reason``, where there were completions."""
        return NO_ROUND if self.rows <= 0 else reason


class Drawn(NamedTuple):
    """A histogram that dashboards show, as ``rlmon/histogram/<name>``; of a family of your own
    ``<family>/histogram/<name>``."""

    name: str
    """With its unit."""
    field: str
    """The K counts."""
    edges: Floats
    """K + 1 of them, ascending."""


class MetricFamily:
    """A family of metrics. Of the methods a family has those that it needs.

    ``sums`` is what ``fields`` names, at zero before and of this family alone: a method adds to it in place,
    ``sums["rows"] += 8``. Which fields there are, and of which shape, follows from settings alone, so that they are
    the same on all ranks.
    """

    name: str
    about: str = ""
    """In words, for the catalogue."""
    entries: Sequence[Metric] = ()
    """What is said of each metric."""
    base: Sequence[str] = ()
    """Fields whose sums over the baseline are read too."""
    histograms: Sequence[Drawn] = ()
    """What dashboards draw of the sums."""
    columns: Sequence[str] = ()
    """Statistics of blocks that are means of a number per completion (``row_values``)."""

    def fields(self, modes: Sequence[str]) -> Mapping[str, Shape]:
        """The sums by name; ``modes`` are the names of the format modes."""
        return {}

    def add_rows(self, sums: Sums, seen: RankRows) -> None:
        """From the rows of one rank."""

    def add_round(self, sums: Sums, seen: RoundRows) -> None:
        """From the rows of all ranks together: pairs and groups."""

    def add_trained(self, sums: Sums, rows: Any) -> None:
        """From the rows of all ranks that a step trained on for the first time: columns of ``rlmon.metrics.rows.ROW``,
        with ``trained_tokens`` and ``entropy_nats`` beside what is known of them since they were sampled, in this step
        or before."""

    def add_tokens(self, sums: Sums, tokens: TokenSums, mode_code_B: NDArray[np.int64]) -> None:
        """From the token sums of one micro-batch; ``mode_code_B`` is the mode of each row (-1: unknown)."""

    def add_kl(self, sums: Sums, sample: KLSample) -> None:
        """From a comparison with the base."""

    def add_values(self, sums: Sums, critic: CriticTokens) -> None:
        """From what the critic shows of a micro-batch."""

    def row_values(self, batch: RolloutBatch) -> Mapping[str, Any]:
        """``columns`` by name, a number per row; NaN or ``None`` where it is not known."""
        return {}

    def put_round(self, into: Dealt, seen: RoundRows) -> None:
        """Statistics of the blocks of one round; by default the means of ``columns``."""
        for name in self.columns:
            into.put_mean(name, seen.rows["measured"][name])

    def put_trained(self, into: Dealt, rows: Any) -> None:
        """Statistics of the blocks of rows that a step trained on."""

    def put_compared(self, into: Dealt, rows: Any) -> None:
        """Statistics of the blocks of rows that a comparison with the base stands for."""

    def finish(self, out: Numbers, sums: Sums, step: StepSums) -> None:
        """The metrics, from the sums over all ranks; rlmon's own also from those of several steps [S] at once."""

    def unmeasured(self, sums: Sums, step: StepSums) -> str | None:
        """Why nothing of the family was measured in this step, where that is so; it stands beside all of its nulls. By
        default that there were no new completions."""
        if step.rows > 0:
            return None
        if step.known.rounds:
            failed = ", ".join(sorted(step.known.failed))
            return f"no completion of this step was measured ({failed or 'none was observed'})"
        return "no new generation was trained in this step"
