"""A comparison of runs in words and numbers, which all of its outputs share."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from itertools import takewhile
from json import dumps
from pathlib import Path

import rlmon.report.phrases as phrases
from rlmon.audit.compared import CheckDifference, Comparison, MetricDifference, ModeDifference, SideFacts
from rlmon.audit.comparison import family
from rlmon.audit.incidents import listed
from rlmon.audit.parting import OF_FUNCTIONS, TOTAL_REWARD, matters
from rlmon.printable import one_line
from rlmon.records import WORST_FIRST
from rlmon.report.as_json import plain
from rlmon.report.charts import ITEMS_SHOWN, metric_title

METRICS_SHOWN = 12
SETTINGS_SHOWN = 20
MODES_SHOWN = 8
RUNS_SHOWN = 6
LEAST_SHARE = 0.005
"""Formats that differ by less are shown on pages only."""
STATUSES: tuple[str, ...] = (*WORST_FIRST, "absent")
EFFECT_WORDS = "effect: the difference in units of one step's noise at the base"


def side_names(a: Sequence[Path], b: Sequence[Path]) -> tuple[str, str]:
    """Names of the sides from the last part of their paths that differs; ``("A", "B")`` where none is short and plain.

    Seeds of one arm share a name: ``kl-seed0`` and ``kl-seed1`` are ``kl``.
    """
    for left, right in zip(reversed(_parts_in_common(a)), reversed(_parts_in_common(b)), strict=False):
        if left == right:
            continue
        # Names go into labels like "kl 2": without spaces none can be taken for another.
        fine = all(re.fullmatch(r"[A-Za-z0-9][\w.+=-]{0,23}", name, re.ASCII) for name in (left, right))
        return (left, right) if fine and not {left, right} & {"A", "B"} else ("A", "B")
    return "A", "B"


def _parts_in_common(paths: Sequence[Path]) -> list[str]:
    """The parts that all paths begin with, and what the first differing ones begin with."""
    split = [path.absolute().parts for path in paths]
    common: list[str] = []
    for parts in zip(*split, strict=False):
        if len(set(parts)) > 1:
            start = "".join(
                letters[0] for letters in takewhile(lambda one: len(set(one)) == 1, zip(*parts, strict=False))
            )
            start = re.sub(r"[-_.]?(seed|run|s)?[-_.]?\d*$", "", start, flags=re.IGNORECASE)
            return [*common, start] if start else common
        common.append(parts[0])
    return common


def json(result: Comparison) -> str:
    """One object, everything but the curves; strict JSON in ASCII."""
    return dumps(plain(result.to_json()), allow_nan=False, indent=2) + "\n"


def result_word(result: Comparison) -> str:
    if not result.metrics:
        return "NOTHING IN COMMON"
    if result.same:
        return "EQUAL"
    return "DIFFERENT" if any(row.distinct for row in result.metrics) else "NO CLEAR DIFFERENCE"


def _short(name: str) -> str:
    return one_line(name.removeprefix("rlmon/"), 60)


def said(name: str) -> str:
    """The title of a metric, as charts have it."""
    return one_line(metric_title(name), 60)


def _signed(value: float) -> str:
    return f"{'+' if value > 0 else ''}{phrases.number(value)}"


def difference_words(row: MetricDifference) -> str:
    """``+3.20 ± 0.33``: two digits of the interval's reach; the difference alone where there is no interval."""
    if row.low is None or row.high is None:
        return _signed(row.difference)
    reach = (row.high - row.low) / 2.0
    if reach == 0.0:
        return f"{_signed(row.difference)} ± 0" if row.difference else "0"
    decimals = 1 - math.floor(math.log10(reach))
    if decimals > 6:
        return f"{row.difference:+.1e} ± {reach:.1e}"
    decimals = max(0, decimals)
    return f"{row.difference:+,.{decimals}f} ± {reach:,.{decimals}f}"


def share(value: float | None) -> str:
    """Per cent without decimals from 10 on: ``26 %``, ``3.1 %``."""
    if value is None:
        return phrases.NOT_MEASURED
    percent = 100.0 * value
    return f"{percent:.0f} %" if percent >= 9.95 or percent == 0.0 else f"{percent:.1f} %"


def each_of(values: Sequence[int]) -> str:
    """``180``, ``180 each`` or ``180, 175``."""
    if len(set(values)) == 1:
        return f"{values[0]:,}" + (" each" if len(values) > 1 else "")
    rest = f", {len(values) - RUNS_SHOWN} more" if len(values) > RUNS_SHOWN else ""
    return ", ".join(f"{value:,}" for value in values[:RUNS_SHOWN]) + rest


def _label(letter: str, side: SideFacts) -> str:
    return letter if side.name == letter else f"{letter} {one_line(side.name, 40)}"


def side_labels(result: Comparison) -> tuple[str, str]:
    return _label("A", result.a), _label("B", result.b)


def status_words(statuses: Sequence[str], onsets: Sequence[int | None]) -> list[tuple[str, str]]:
    """``[("fail", "2 FAIL by 53, 62"), ("pass", "1 PASS")]``, worst first; no counts for one run."""
    found = []
    for status in STATUSES:
        here = [at for at, one in enumerate(statuses) if one == status]
        if not here:
            continue
        known = sorted(step for at in here if (step := onsets[at]) is not None)
        words = f"{len(here)} {status.upper()}" if len(statuses) > 1 else status.upper()
        shown = ", ".join(str(step) for step in known[:RUNS_SHOWN]) + (", ..." if len(known) > RUNS_SHOWN else "")
        found.append((status, f"{words} by {shown}" if known else words))
    return found


def verdict_words(side: SideFacts) -> list[tuple[str, str]]:
    known = [verdict if verdict in WORST_FIRST else "skip" for verdict in side.verdicts]
    found = status_words(known, [None] * len(known))
    return [(status, text.replace("SKIP", "UNSURE")) for status, text in found]


def setting_values(values: Sequence[str], limit: int = 60) -> str:
    return " | ".join(one_line(value, limit) for value in values) if values else "not set"


def chosen_metrics(result: Comparison) -> tuple[list[MetricDifference], list[MetricDifference]]:
    """The metrics for the table, and the others: of each family the one that matters most, the important families
    first, then those that are distinct by their effect."""
    important = [row for row in result.metrics if matters(row.name)]
    others = [row for row in result.metrics if not matters(row.name)]
    others.sort(key=lambda row: (not row.distinct, -abs(row.effect or 0.0)))
    one_function = sum(row.name.startswith(OF_FUNCTIONS) for row in important) == 1
    total = any(row.name == TOTAL_REWARD for row in important)
    shown: dict[str, MetricDifference] = {}
    for row in [*important, *others]:
        # One function alone is the total under another name.
        alike = one_function and total and row.name.startswith(OF_FUNCTIONS)
        if not alike and (matters(row.name) or row.difference != 0.0):
            shown.setdefault(family(row.name), row)
    first = list(shown.values())[:METRICS_SHOWN]
    names = {row.name for row in first}
    return first, [row for row in [*important, *others] if row.name not in names]


def rest_words(rows: Sequence[MetricDifference]) -> list[tuple[str, str]]:
    """The metrics outside the table in words: of those that differ the strongest of each family."""
    distinct = [row for row in rows if row.distinct]
    equal = [row for row in rows if row.difference == 0.0 and not row.distinct]
    noise = [row for row in rows if row.difference != 0.0 and not row.distinct]
    said = []
    if distinct:
        kinds: dict[str, list[MetricDifference]] = {}
        for row in distinct:
            kinds.setdefault(family(row.name), []).append(row)
        alike = [f" and {len(found) - 1} like it" if len(found) > 1 else "" for found in kinds.values()]
        strongest = [max(found, key=lambda row: abs(row.effect or 0.0)) for found in kinds.values()]
        names = [f"{_named(row)}{more}" for row, more in zip(strongest, alike, strict=True)]
        said.append((f"Also distinct ({len(distinct)})", ", ".join(names[:ITEMS_SHOWN])))
    for title, part in (("Not distinct", noise), ("Same mean", equal)):
        if part:
            kinds_of = listed(list(dict.fromkeys(_short(family(row.name)) for row in part)), len(part))
            said.append((f"{title} ({len(part)})", f"metrics of {kinds_of}"))
    return said


def _named(row: MetricDifference) -> str:
    place = "" if row.departure_step is None else f" from step {row.departure_step}"
    return f"{said(row.name)} {phrases.number(row.last_a)} / {phrases.number(row.last_b)}{place}"


def agreeing(checks: Sequence[CheckDifference]) -> list[tuple[str, str]]:
    """``("PASS", "length-collapse, ...")``: what both sides say alike, by the status of the first run."""
    groups: dict[str, list[str]] = {}
    for check in checks:
        if not check.differs:
            status = next(status for status in STATUSES if status in check.a) if check.a else "absent"
            groups.setdefault(status, []).append(one_line(check.id, 60))
    return [(status.upper(), ", ".join(groups[status])) for status in STATUSES if status in groups]


def settings_words(result: Comparison) -> str:
    """What is said where no table of settings stands."""
    note = one_line(result.settings_note)
    none = not result.settings and note.endswith("compared")
    return f"{note}, none differs" if none else note


def other_settings(result: Comparison) -> str:
    names = ", ".join(one_line(row.key, 60) for row in result.other_settings[:SETTINGS_SHOWN])
    more = len(result.other_settings) - SETTINGS_SHOWN
    return f"{names}, {more} more" if more > 0 else names


def run_lines(side: SideFacts) -> list[str]:
    lines = [one_line(run, 200) for run in side.runs[:RUNS_SHOWN]]
    more = len(side.runs) - RUNS_SHOWN
    return [*lines, f"{more} more"] if more > 0 else lines


def moved_formats(result: Comparison) -> list[ModeDifference]:
    """Formats whose shares at the end differ enough to be shown."""
    return [row for row in result.modes if abs(row.last_b - row.last_a) >= LEAST_SHARE]


def at_the_end(row: MetricDifference) -> list[str]:
    """A metric's row in a table: both ends, the difference, its effect, and where the runs part."""
    return [
        phrases.number(row.last_a),
        phrases.number(row.last_b),
        difference_words(row),
        "" if row.effect is None else f"{row.effect:+.1f}",
        phrases.step(row.departure_step),
    ]
