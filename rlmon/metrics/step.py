"""The sums of one step over all its families: their layout, how they grow, and the metrics that they come to."""

from __future__ import annotations

import contextlib
import numbers
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlmon.errors import ConfigError
from rlmon.metrics.blocks import Dealt, SourceBlocks, no_tallies
from rlmon.metrics.families import FAMILIES
from rlmon.metrics.family import (
    Circumstances,
    Columns,
    Metric,
    MetricFamily,
    Numbers,
    RankRows,
    RoundRows,
    StepSums,
    Sums,
    add_to,
    dtype_of,
)
from rlmon.metrics.formats import BUILT_IN_MODES
from rlmon.metrics.groups import column
from rlmon.metrics.rows import ROW
from rlmon.metrics.tokens import TokenSums
from rlmon.records import Block, Histogram, RolloutBatch
from rlmon.statistics import Floats

FAILED = "rlmon_failed"
"""A field of every user's family: how often it failed while its sums grew, over all ranks."""
NO_SUCCESS = "it is not known which completions are successes"
STAGES = ("features", "success", "rollouts", "blocks", "tokens", "kl", "values", "finish")
"""Parts of the measuring that are no family and can fail: no family has their names, since each fails at its own."""
_OF_TRAINING = ("add_trained", "add_tokens", "add_kl", "add_values")
"""Methods of a family that are called of what only training shows."""
Guard = Callable[[str], AbstractContextManager[None]]
"""Contains what fails inside of it, and counts it at the place of that name."""


MOST_BINS = 64
"""Of a histogram that is drawn: a tracker stores it at every step."""


def unguarded(place: str) -> AbstractContextManager[None]:
    """A guard that lets everything through."""
    return contextlib.nullcontext()


class Families:
    """The families of a run: rlmon's own, and those that a user adds. The same on all ranks.

    What fails in one of rlmon's own is the caller's to contain; what fails in a user's is contained by ``guard`` at the
    place of its name, and leaves the others as they are.

    Raises ``ConfigError`` where an added one has the name of another.
    """

    def __init__(
        self,
        own: Sequence[MetricFamily],
        modes: Sequence[str],
        *,
        added: Sequence[MetricFamily] = (),
        guard: Guard = unguarded,
    ) -> None:
        refuse(added)
        self.modes, self._added, self._guard = tuple(modes), frozenset(family.name for family in added), guard
        self._families = (*own, *added)
        self.layout = np.dtype(
            [
                (family.name, [*_fields(family, self.modes).descr, *([(FAILED, "f8")] if family in added else [])])
                for family in self._families
            ]
        )
        """One field per family, with its fields: all float64, so that the sums of ranks can be added."""
        self.columns = tuple(name for family in added for name in family.columns)
        """Numbers per row, whose means are statistics of blocks."""
        self.row = (
            np.dtype([*ROW.descr, ("measured", [(name, "f8") for name in self.columns])]) if self.columns else ROW
        )
        """What the table of a step's rows holds of each."""

    @property
    def told(self) -> str:
        """Those that were added, with what their sums and numbers per row are: alike on all ranks, or none begins."""
        added = [family for family in self._families if family.name in self._added]
        names = ", ".join(family.name for family in added)
        shapes = [f"{self.layout[family.name]} {list(family.columns)}" for family in added]
        return f"{names} ({'; '.join(shapes)})" if added else ""

    @property
    def places(self) -> tuple[str, ...]:
        """Where those that were added can fail."""
        return tuple(_place(family) for family in self._families if family.name in self._added)

    def is_added(self, name: str) -> bool:
        """Whether a sum, by its name in ``of_base``, is of a user's family."""
        return name.rpartition("/")[0] in self._added

    def zeros(self) -> Sums:
        """All sums at zero: what a rank without data, or one that failed, contributes."""
        return np.zeros((), dtype=self.layout)

    # -- growing -----------------------------------------------------------------------------------------------------

    def add(self, into: Sums, do: Callable[[MetricFamily, Sums], None]) -> None:
        """Let every family add to its sums: ``do(family, sums)``. Where one of rlmon's own fails, nothing is added."""
        fresh = self.zeros()
        for family in self._families:
            own = fresh[family.name]
            with self._failing_into(own, family):
                do(family, own)
        add_to(into, fresh)

    @contextlib.contextmanager
    def _failing_into(self, own: Sums, family: MetricFamily) -> Iterator[None]:
        """Where a user's family fails, its sums say so: what it added elsewhere is not of all rows then."""
        done = False
        with self._guarded(family):
            yield
            done = True
        if not done:
            own[FAILED] += 1

    def add_rows(self, into: Sums, seen: RankRows) -> None:
        """From the rows of one rank."""
        self.add(into, lambda family, sums: family.add_rows(sums, seen))

    def add_round(self, into: Sums, seen: RoundRows) -> None:
        """From the rows of a round of all ranks."""
        self.add(into, lambda family, sums: family.add_round(sums, seen))

    def add_trained(self, into: Sums, rows: NDArray[Any]) -> None:
        """From the rows of all ranks that a step trained on for the first time."""
        self.add(into, lambda family, sums: family.add_trained(sums, rows))

    def add_tokens(self, into: Sums, tokens: TokenSums, mode_code_B: NDArray[np.int64]) -> None:
        """From the token sums of one micro-batch; the mode of each of its rows [B], -1 where that is not known."""
        self.add(into, lambda family, sums: family.add_tokens(sums, tokens, mode_code_B))

    def measure(self, into: Sums, rows: NDArray[Any], batch: RolloutBatch) -> None:
        """Put the numbers per row of the families that have some into the rows of ``batch``; NaN where one fails, which
        its sums say."""
        for name in self.columns:
            rows["measured"][name] = np.nan
        for family in self._families:
            with self._failing_into(into[family.name], family):
                for name, values in family.row_values(batch).items():
                    if name not in family.columns:
                        raise ValueError(f"row_values has {name!r}, which is none of columns: {list(family.columns)}")
                    value_B = column(values, len(batch))
                    rows["measured"][name] = np.where(np.isfinite(value_B), value_B, np.nan)

    # -- blocks ------------------------------------------------------------------------------------------------------

    def blocks_of_round(self, seen: RoundRows, tallied: Callable[[str], Collection[str]] = no_tallies) -> list[Block]:
        """The rows of one round as prompt-disjoint blocks inside one source each, with every statistic that can be
        computed; one that cannot is absent. Row order does not matter. ``tallied``: the statistics of a source, by its
        key, whose baseline still takes tallies."""
        if not len(seen.rows):
            return []
        into = SourceBlocks(seen.rows, tallied)
        self._put(into.dealt, lambda family: family.put_round(into.dealt, seen))
        return into.blocks()

    def blocks_of_tokens(self, rows: NDArray[Any]) -> list[Block]:
        """Blocks of the rows that a step trained on, and of those that a comparison with the base stands for."""
        found: list[Block] = []
        trained, compared = rows[rows["trained_tokens"] > 0], rows[rows["kl_completion_tokens"] > 0]
        if len(trained):
            into = SourceBlocks(trained)
            self._put(into.dealt, lambda family: family.put_trained(into.dealt, trained))
            found += into.blocks()
        if len(compared):
            among = SourceBlocks(compared)
            self._put(among.dealt, lambda family: family.put_compared(among.dealt, compared))
            found += among.blocks(compared["kl_tokens"] > 0)  # counted are the rows that were looked at
        return [block for block in found if block.stats]

    def _put(self, into: Dealt, do: Callable[[MetricFamily], None]) -> None:
        """Let every family put its statistics; what one before it has put stays as it is, and nothing is put by an
        added one whose statistics cannot be used."""
        for family in self._families:
            before, tallies = dict(into.stats), dict(into.tallies)
            found: dict[str, Floats] = {}
            with self._guarded(family):
                do(family)
                new = {name: values for name, values in into.stats.items() if name not in before}
                added = family.name in self._added
                found = {name: _of_blocks(name, new[name], into.count) for name in new} if added else new
            into.stats = before | found
            if family.name in self._added:
                into.tallies = tallies  # those of rlmon's own statistics alone are counted

    def _guarded(self, family: MetricFamily) -> AbstractContextManager[None]:
        return self._guard(_place(family)) if family.name in self._added else contextlib.nullcontext()

    # -- finishing ---------------------------------------------------------------------------------------------------

    def of_base(self, sums: Sums) -> Iterator[tuple[str, NDArray[np.float64]]]:
        """The sums that are read of the baseline too, as ``family/field``."""
        for family in self._families:
            if self._broke(family, sums):
                continue
            for name in family.base:
                yield f"{family.name}/{name}", np.array(sums[family.name][name])

    def of_completions(self) -> frozenset[str]:
        """Of the names in ``of_base`` those of families that look at completions alone, and at nothing that only
        training shows: a sample of the base measures all of them, whatever it finds."""
        return frozenset(
            f"{family.name}/{name}"
            for family in self._families
            if all(getattr(type(family), hook) is getattr(MetricFamily, hook) for hook in _OF_TRAINING)
            for name in family.base
        )

    def finish(
        self,
        sums: Sums,
        base: Mapping[str, NDArray[np.float64]] | None = None,
        known: Circumstances | None = None,
    ) -> tuple[dict[str, float | None], dict[str, str]]:
        """All metrics from sums over micro-batches and ranks, and the reason for each that is ``None``. None is NaN or
        infinite.

        ``base`` holds the summed sums of the baseline rounds as ``of_base`` names them, ``None`` before there are any.
        """
        known = Circumstances() if known is None else known
        metrics: dict[str, float | None] = {}
        missing: dict[str, str] = {}
        for family in self._families:
            out = self._finished(family, sums, base, known)
            for name in metrics.keys() & out.metrics.keys():  # of two of a user's the first
                del out.metrics[name]
                out.missing.pop(name, None)
            metrics |= out.metrics
            missing |= out.missing
        measured = sums["health"]["rows"] > 0 and sums["health"]["rewarded"] > 0
        if measured and sums["group"]["known_rows"] <= 0:
            reason = known.no_success or NO_SUCCESS
            missing |= {name: reason for name in OF_SUCCESSES if name in missing}
        return metrics, missing

    def finish_steps(self, sums: Sums, base: Mapping[str, NDArray[np.float64]]) -> dict[str, Floats]:
        """The metrics of several steps at once from the sums of each [S], a column each with NaN where it was not
        measured. A sum that nobody took is NaN."""
        out = Columns("rlmon/")
        for family in self._families:
            of_base = {name: base[f"{family.name}/{name}"] for name in family.base}
            step = StepSums(sums=sums, modes=self.modes, known=Circumstances(), base=of_base, why=False)
            family.finish(out, sums[family.name], step)
        return out.columns

    def histograms(self, sums: Sums) -> dict[str, Histogram]:
        """What dashboards draw, of those that have a count in them, by name."""
        drawn: dict[str, Histogram] = {}
        for family in self._families:
            if self._broke(family, sums):
                continue
            prefix = family.name if family.name in self._added else "rlmon"
            with self._guarded(family):
                for name, field, edges in family.histograms:
                    counts = np.asarray(sums[family.name][field])
                    if counts.sum() > 0:
                        drawn[f"{prefix}/histogram/{name}"] = _in_few_bins(edges, counts)
        return drawn

    def _broke(self, family: MetricFamily, sums: Sums) -> bool:
        """Whether a user's family failed on some rank while these sums grew: what is in them is not of all rows."""
        return family.name in self._added and float(sums[family.name][FAILED]) > 0

    def _finished(
        self,
        family: MetricFamily,
        sums: Sums,
        base: Mapping[str, NDArray[np.float64]] | None,
        known: Circumstances,
    ) -> Numbers:
        """The metrics of one family; of a user's also those that it did not give, where it failed."""
        added, own = family.name in self._added, sums[family.name]
        out = Numbers("" if added else "rlmon/")
        places = {name: f"{family.name}/{name}" for name in family.base}
        of_base = None
        if base is not None and all(place in base for place in places.values()):  # else it was added after the baseline
            of_base = {name: base[place] for name, place in places.items()}
        broken: str | None = f"{_place(family)} failed in this step"
        with self._guarded(family):
            step = StepSums(sums=sums, modes=self.modes, known=known, base=of_base)
            if added:
                self._finish_added(family, out, own, step)
            else:
                family.finish(out, own, step)
            reason = known.unseen.get(family.name) or family.unmeasured(own, step)
            out.missing.update(dict.fromkeys(out.missing, str(reason)) if reason else {})
            broken = broken if self._broke(family, sums) else None
        for entry in family.entries if added else ():
            if entry.name not in out.metrics:
                out.put(entry.name, None, f"{family.name} gave no value")
        if added and broken:
            lost = out.metrics if self._broke(family, sums) else out.missing
            for name in list(lost):
                out.put(name[len(out.prefix) :], None, broken)
        return out

    def _finish_added(self, family: MetricFamily, out: Numbers, own: Sums, step: StepSums) -> None:
        """Only numbers and words get into ``out``, whatever the family wrote; a value that is neither is a fault of its
        own and leaves the others."""
        given = Numbers()
        try:
            family.finish(given, own, step)
        finally:
            for name, value in given.metrics.items():
                with self._guarded(family):
                    if not isinstance(name, str) or "/" not in name or name.startswith("rlmon/"):
                        raise ValueError(f"a metric is called {name!r}: call it <family>/<name>")
                    reason = str(given.missing.get(name, "no reason was given"))
                    out.put(name, _number(name, value), reason)


OF_SUCCESSES = tuple(metric.name for family in FAMILIES for metric in family.entries if metric.of_successes)


def _place(family: MetricFamily) -> str:
    return f"metrics.{family.name}"


def _number(name: str, value: Any) -> float | None:
    """A metric that a user's family gave."""
    if value is not None and not isinstance(value, numbers.Real | np.ndarray):
        raise TypeError(f"{name} is {value!r:.80}, and no number")
    return None if value is None else float(value)


def _of_blocks(name: str, values: Any, count: int) -> Floats:
    """A statistic that a user's family put, as a number per block."""
    if not isinstance(name, str) or "/" not in name:
        raise ValueError(f"a statistic of blocks is called {name!r}: call it <family>/{name}")
    found = np.asarray(values, dtype=np.float64)
    if found.shape != (count,):
        raise ValueError(f"the statistic {name!r} has shape {found.shape}, and there are {count} blocks")
    return found


def _fields(family: MetricFamily, modes: Sequence[str]) -> np.dtype[Any]:
    """The type of a family's sums. Raises ``ConfigError`` where it says none that can be added."""
    try:
        found = dtype_of(family.fields(modes))
        np.zeros((), dtype=found).reshape(-1).view(np.float64)
        if strange := [name for name in found.names or () if not _is_of_floats(found[name])]:
            raise TypeError(f"{', '.join(strange)} is not of float64")
        if unknown := [name for name in family.base if found.fields is None or name not in found.fields]:
            raise ValueError(f"base names {', '.join(map(repr, unknown))}, which is none of its fields")
        if nested := [name for name in family.base if found[name].names is not None]:
            raise ValueError(f"base names {', '.join(nested)}, which is several numbers with names")
    except Exception as error:
        raise ConfigError(
            f"the family {family.name!r} does not say its sums ({type(error).__name__}: {error}): fields(modes) "
            "returns a shape by name, such as {'total': (), 'by_mode': (len(modes),)}, and base has some of the names."
        ) from error
    return found


def _is_of_floats(dtype: np.dtype[Any]) -> bool:
    inner = dtype.base
    return all(_is_of_floats(inner[name]) for name in inner.names) if inner.names else inner == np.float64


def refuse(added: Sequence[MetricFamily]) -> None:
    """Raise ``ConfigError`` where one of these is none that can be used, or it or what is in it has the name of
    another."""
    names = [family.name for family in FAMILIES] + list(STAGES)
    metrics, columns = {metric.name for family in FAMILIES for metric in family.entries}, set[str]()
    for family in added:
        name = getattr(family, "name", None)
        if not isinstance(name, str) or not name:
            raise ConfigError(
                f"the family {type(family).__name__} has no name: give it one of its own, "
                f"such as name = 'my_{type(family).__name__.lower()}'."
            )
        if name in STAGES:
            raise ConfigError(
                f"the family {name!r} is called like a part of rlmon: give yours a name of its own, such as "
                f"name = 'my_{name}'."
            )
        if name in names:
            raise ConfigError(
                f"two families of metrics are called {name!r}: give yours a name of its own, "
                f"such as name = 'my_{name}'."
            )
        names.append(name)
        for given, of, word in (
            ("entries", Metric, "Metric(...)"), ("columns", str, "'...'"), ("base", str, "'...'"),
        ):  # fmt: skip
            some = getattr(family, given)
            if isinstance(some, str) or not isinstance(some, Sequence) or not all(isinstance(one, of) for one in some):
                raise ConfigError(
                    f"the family {name!r} has {given} = {some!r:.80}. Type: {given} = ({word},), or leave it out."
                )
        for column_ in family.columns:
            if "/" not in column_:  # as no statistic of rlmon's own has
                raise ConfigError(f"a number per completion is called {column_!r}: call it <family>/{column_}.")
            if column_ in columns:
                raise ConfigError(
                    f"two families have a number per completion {column_!r}: give yours a name of its own."
                )
            columns.add(column_)
        for entry in family.entries:
            if not isinstance(entry.name, str) or "/" not in entry.name:
                raise ConfigError(
                    f"the family {name!r} has a metric {entry.name!r}: call it {name}/{entry.name}, since a name has "
                    "a family and a slash."
                )
            if entry.name in metrics or entry.name.startswith("rlmon/"):
                raise ConfigError(
                    f"the family {name!r} has a metric {entry.name!r}, a name that rlmon keeps for itself or "
                    f"that another family has: call it {name}/{entry.name.rsplit('/', 1)[-1]}."
                )
            metrics.add(entry.name)
        _fields(family, BUILT_IN_MODES)


def _in_few_bins(edges: Floats, counts: Floats) -> Histogram:
    """The stretch that has counts, with neighbours put together until there are at most ``MOST_BINS`` bins.

    Raises ``ValueError`` where edges and counts do not belong together.
    """
    if edges.size != counts.size + 1:
        raise ValueError(f"a histogram of {counts.size} counts needs {counts.size + 1} edges, got {edges.size}")
    full = np.flatnonzero(counts)
    first, last = int(full[0]), int(full[-1]) + 1
    starts = np.arange(first, last, -(-(last - first) // MOST_BINS))
    return Histogram([*edges[starts].tolist(), float(edges[last])], np.add.reduceat(counts[:last], starts).tolist())
