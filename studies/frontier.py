"""Compares the arms of the experiments: paired over seeds, with intervals, as tables, figures and raw results.

*Accuracy against drift.* Whoever lifts a policy's accuracy from a0 to a must move it: by the data-processing
inequality its sequence KL to the base, mean over prompts, is at least the binary KL(a || a0), since that is convex.
This is the *floor*. What a run pays beyond it is its *excess* sequence KL. Arms end at different accuracies, so two
arms are compared where both pass the highest accuracy that both reach.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from studies.arms import Task
from studies.tables import Interval, compact, cpu_seconds, interval, made_with, markdown, mean_of

SMOOTH_STEPS = 10
"""A point of a trajectory is the mean of what was measured at most this many steps before or after it."""
KEPT_EVERY = 20
"""Steps between two points of a trajectory in the files beside the report."""
REFERENCE = "unprotected"


@dataclass(frozen=True, kw_only=True, slots=True)
class Excess:
    """Excess sequence KL of an arm and a reference at the accuracies that both reach, over the same seeds."""

    arm: str
    reference: str
    accuracy: float
    """Mean over seeds of the compared accuracy."""
    floor_nats: float
    arm_nats: float
    reference_nats: float
    difference_nats: Interval
    """Arm less reference."""


def predicted_shares(
    p0_M: Sequence[float] | NDArray[np.float64], mean_reward_M: Sequence[float] | NDArray[np.float64], kappa: float
) -> NDArray[np.float64]:
    """Shares [M] at which reward and pressure balance, p0 exp(R / kappa) / Z.

    ``mean_reward_M``: mean of each mode in units of the advantage that ``kappa`` is added to, for the policy as it is
    then. ``kappa`` 0 is the best mode alone.
    """
    p0, reward = np.asarray(p0_M, dtype=np.float64), np.asarray(mean_reward_M, dtype=np.float64)
    if kappa <= 0.0:
        best = np.where((p0 > 0) & (reward == reward[p0 > 0].max()), p0, 0.0)
        return np.asarray(best / best.sum(), dtype=np.float64)
    exponent = np.where(p0 > 0, reward / kappa, -np.inf)
    weight = p0 * np.exp(exponent - exponent.max())
    return np.asarray(weight / weight.sum(), dtype=np.float64)


def binary_kl_nats(p: float, q: float) -> float:
    """KL of a coin that shows heads with probability ``p`` from one with ``q``; infinite where ``q`` rules it out."""
    total = 0.0
    for ours, theirs in ((p, q), (1.0 - p, 1.0 - q)):
        if ours > 0.0:
            total += ours * math.log(ours / theirs) if theirs > 0.0 else math.inf
    return max(0.0, total)


def path_of(trajectory: Sequence[Mapping[str, Any]]) -> list[tuple[float, float]]:
    """(accuracy, sequence KL in nats) at each step on which the KL was measured, both smoothed, in order of steps."""
    points: list[tuple[float, float]] = []
    for at in trajectory:
        if at["kl_seq_nats"] is None:
            continue
        near = [other for other in trajectory if abs(other["step"] - at["step"]) <= SMOOTH_STEPS]
        rewards = [other["reward"] for other in near if other["reward"] is not None]
        drifts = [other["kl_seq_nats"] for other in near if other["kl_seq_nats"] is not None]
        if rewards:
            points.append((statistics.fmean(rewards), statistics.fmean(drifts)))
    return points


def drift_at(path: Sequence[tuple[float, float]], accuracy: float) -> float | None:
    """Sequence KL where ``path`` first reaches ``accuracy``, linear between points; ``None`` where it never does."""
    before: tuple[float, float] | None = None
    for point in path:
        if point[0] >= accuracy:
            if before is None:
                return point[1]
            share = (accuracy - before[0]) / (point[0] - before[0])
            return before[1] + share * (point[1] - before[1])
        before = point
    return None


def excess(
    arm: str, reference: str, arm_runs: Mapping[int, Any], reference_runs: Mapping[int, Any], base_accuracy: float
) -> Excess | None:
    """``arm`` against ``reference`` over the seeds that both have; ``None`` where they share none.

    ``*_runs`` map seeds to trajectories.
    """
    rows: list[tuple[float, float, float, float]] = []
    for seed in sorted(arm_runs.keys() & reference_runs.keys()):
        ours, theirs = path_of(arm_runs[seed]), path_of(reference_runs[seed])
        if not ours or not theirs:
            continue
        accuracy = min(max(a for a, _ in ours), max(a for a, _ in theirs))
        floor = binary_kl_nats(accuracy, base_accuracy) if accuracy > base_accuracy else 0.0
        our_drift, their_drift = drift_at(ours, accuracy), drift_at(theirs, accuracy)
        assert our_drift is not None
        assert their_drift is not None
        rows.append((accuracy, floor, our_drift - floor, their_drift - floor))
    if not rows:
        return None
    return Excess(
        arm=arm,
        reference=reference,
        accuracy=statistics.fmean(row[0] for row in rows),
        floor_nats=statistics.fmean(row[1] for row in rows),
        arm_nats=statistics.fmean(row[2] for row in rows),
        reference_nats=statistics.fmean(row[3] for row in rows),
        difference_nats=interval([row[2] - row[3] for row in rows]),
    )


COLUMNS: tuple[tuple[str, str], ...] = (
    ("accuracy", "accuracy"),
    ("effective_formats", "effective"),
    ("effective_formats_correct", "correct"),
    ("effective_formats_correct_within", "correct, within"),
    ("other_share", "other"),
    ("top_share", "top share"),
    ("entropy_ratio", "entropy ratio"),
    ("js_distance", "JS"),
    ("kl_nats", "KL/token"),
    ("kl_seq_nats", "KL/seq"),
    ("worthless_share", "worthless share"),
    ("constant_share", "share of 12"),
    ("hard_accuracy", "hard accuracy"),
    ("actions_applied", "actions"),
    ("train_cpu_seconds", "CPU s"),
)
"""(name in a cell or its evaluation, heading). A column without a value is left out."""
PAIRED = (
    "accuracy", "effective_formats_correct", "effective_formats_correct_within", "kl_seq_nats", "worthless_share",
    "constant_share", "hard_accuracy",
)  # fmt: skip
KEPT, OTHER, PRICE, SAVED = 0.85, 0.02, 0.01, 0.7
"""What is asked of a protected run: share of the base's effective formats (correct only, across and within prompts),
most growth of ``other``, most accuracy under the unprotected run, least share of its excess KL saved."""


def value_of(result: Mapping[str, Any], name: str) -> float | None:
    """A number of a cell, from it or from its evaluation."""
    found = result.get(name, result["evaluation"].get(name))
    return None if found is None else float(found)


def by_arm(results: Sequence[Mapping[str, Any]]) -> dict[str, dict[int, Mapping[str, Any]]]:
    """Arm to seed to cell, in the order of ``results``."""
    arms: dict[str, dict[int, Mapping[str, Any]]] = {}
    for result in results:
        arms.setdefault(result["arm"], {})[result["seed"]] = result
    return arms


def paired(arm: Mapping[int, Any], reference: Mapping[int, Any], name: str) -> Interval | None:
    """``arm`` less ``reference`` over the seeds that both have; ``None`` where nothing can be compared."""
    differences = []
    for seed in sorted(arm.keys() & reference.keys()):
        ours, theirs = value_of(arm[seed], name), value_of(reference[seed], name)
        if ours is not None and theirs is not None:
            differences.append(ours - theirs)
    return interval(differences) if differences else None


def final_table(results: Sequence[Mapping[str, Any]], base: Mapping[str, Any]) -> str:
    """Means over seeds of every arm of one task after training, as Markdown; the base above them."""
    arms = by_arm(results)
    columns = [
        (name, title) for name, title in COLUMNS if any(value_of(result, name) is not None for result in results)
    ]
    rows = [["arm", "seeds", *(title for _, title in columns)]]
    rows.append(["*base*", "", *(_number(value_of(base, name)) for name, _ in columns)])
    for arm, cells in arms.items():
        row = [arm, str(len(cells))]
        for name, _ in columns:
            values = [value for cell in cells.values() if (value := value_of(cell, name)) is not None]
            row.append(_number(mean_of(values)))
        rows.append(row)
    return markdown(rows)


def paired_table(results: Sequence[Mapping[str, Any]], reference: str = REFERENCE) -> str | None:
    """Differences of every arm from ``reference`` over the same seeds, with 95 % intervals; ``None`` without it."""
    arms = by_arm(results)
    if reference not in arms or len(arms) < 2:
        return None
    titles = dict(COLUMNS)
    columns = [name for name in PAIRED if any(value_of(result, name) is not None for result in results)]
    rows = [[f"arm - {reference}", "seeds", *(titles[name] for name in columns)]]
    for arm, cells in arms.items():
        if arm == reference:
            continue
        found = [paired(cells, arms[reference], name) for name in columns]
        seeds = max((each.n for each in found if each is not None), default=0)
        rows.append([arm, str(seeds), *("-" if each is None else each.signed for each in found)])
    return markdown(rows)


def excesses(results: Sequence[Mapping[str, Any]], base: Mapping[str, Any]) -> list[Excess]:
    """Every arm against the unprotected one, and every arm that is no KL arm against each KL arm."""
    runs = {arm: {seed: cell["trajectory"] for seed, cell in cells.items()} for arm, cells in by_arm(results).items()}
    fixed = [arm for arm in runs if arm == REFERENCE or arm.startswith("kl-")]
    found = (
        excess(arm, reference, runs[arm], runs[reference], base["evaluation"]["accuracy"])
        for arm in runs
        for reference in fixed
        if arm != reference and (reference == REFERENCE or arm not in fixed)
    )
    return [each for each in found if each is not None]


def excess_table(found: Sequence[Excess]) -> str:
    head = ["arm", "against", "seeds", "at accuracy", "floor", "excess of arm", "of the other", "difference"]
    return markdown(
        [
            head,
            *(
                [
                    each.arm,
                    each.reference,
                    str(each.difference_nats.n),
                    f"{each.accuracy:.3f}",
                    f"{each.floor_nats:.3f}",
                    f"{each.arm_nats:.3f}",
                    f"{each.reference_nats:.3f}",
                    each.difference_nats.signed,
                ]
                for each in found
            ),
        ]
    )


def by_format_table(results: Sequence[Mapping[str, Any]], base: Mapping[str, Any]) -> str:
    """Share and accuracy of every format, mean over seeds, as Markdown: the base above the arms."""
    shares: Mapping[str, float] = base["evaluation"]["format_shares"]
    formats = [name for name, share in shares.items() if share >= 0.01]
    rows = [["arm", *formats], ["*base*", *(_share_and_accuracy([base], name) for name in formats)]]
    for arm, cells in by_arm(results).items():
        rows.append([arm, *(_share_and_accuracy(list(cells.values()), name) for name in formats)])
    return markdown(rows)


def _share_and_accuracy(cells: Sequence[Mapping[str, Any]], name: str) -> str:
    share = statistics.fmean(cell["evaluation"]["format_shares"].get(name, 0.0) for cell in cells)
    right = [accuracy for cell in cells if (accuracy := cell["evaluation"]["accuracy_by_format"].get(name)) is not None]
    return f"{share:.3f}" + (f" ({statistics.fmean(right):.2f})" if right else "")


def predicted_table(results: Sequence[Mapping[str, Any]], base: Mapping[str, Any], arm: str = "marginal") -> str | None:
    """The shares that the mode-marginal KL's optimum has, p0 exp(R / kappa) with the last kappa and the accuracies of
    the formats at the end, against those achieved; mean over seeds. ``None`` where the arm was not run."""
    cells = [cell for cell in results if cell["arm"] == arm]
    if not cells:
        return None
    names = [name for name, share in base["evaluation"]["format_shares"].items() if share >= 0.01]
    p0 = [base["evaluation"]["format_shares"][name] for name in names]
    predicted, achieved, kappas = [], [], []
    for cell in cells:
        now = cell["evaluation"]
        steered = [float(new) for _, _, _, knob, _, new in cell["actions"] if knob.startswith("kappa")]
        kappa = steered[-1] if steered else 0.0
        if kappa <= 0.0:
            continue
        spread = math.sqrt(max(1e-6, now["accuracy"] * (1.0 - now["accuracy"])))
        # A group-normalised advantage: the reward less the mean, over its standard deviation.
        reward = [(now["accuracy_by_format"].get(name, 0.0) - now["accuracy"]) / spread for name in names]
        predicted.append(predicted_shares(p0, reward, kappa).tolist())
        achieved.append([now["format_shares"].get(name, 0.0) for name in names])
        kappas.append(kappa)
    if not kappas:
        return None

    def mean(rows: Sequence[Sequence[float]]) -> list[str]:
        return [f"{statistics.fmean(column):.3f}" for column in zip(*rows, strict=True)]

    head = f"{arm}, kappa at the end {statistics.fmean(kappas):.2f}"
    rows = [[head, *names], ["*base*", *(f"{share:.3f}" for share in p0)]]
    return markdown([*rows, ["predicted", *mean(predicted)], ["achieved", *mean(achieved)]])


def asked_table(
    results: Sequence[Mapping[str, Any]], base: Mapping[str, Any], found: Sequence[Excess], arm: str = "protect"
) -> str | None:
    """What was asked of ``arm`` and what it did, a line each; ``None`` where it was not run."""
    arms = by_arm(results)
    if arm not in arms or REFERENCE not in arms:
        return None

    def mean(name: str) -> float:
        values = [value for cell in arms[arm].values() if (value := value_of(cell, name)) is not None]
        return statistics.fmean(values) if values else math.nan

    def of_base(name: str) -> float:
        whole = value_of(base, name)
        return math.nan if not whole else mean(name) / whole

    price = paired(arms[arm], arms[REFERENCE], "accuracy")
    other = mean("other_share") - (value_of(base, "other_share") or 0.0)
    rows = [["asked", "line", "measured", ""]]
    for what, name in (
        ("correct-only effective formats of the base's, across", "effective_formats_correct"),
        ("the same within prompts", "effective_formats_correct_within"),
    ):
        rows.append([what, f">= {KEPT:.0%}", f"{of_base(name):.0%}", _mark(of_base(name) >= KEPT)])
    rows.append(["growth of `other`", f"<= {OTHER:.0%}", f"{other:+.1%}", _mark(other <= OTHER)])
    if price is not None:
        rows.append(["accuracy less unprotected's", f">= -{PRICE:.2f}", price.signed, _mark(price.mean >= -PRICE)])
    for each in found:
        if each.arm == arm and each.reference == REFERENCE and each.reference_nats > 0.0:
            saved = 1.0 - each.arm_nats / each.reference_nats
            rows.append(["excess KL saved at equal accuracy", f">= {SAVED:.0%}", f"{saved:.0%}", _mark(saved >= SAVED)])
    return markdown(rows)


def _mark(holds: bool) -> str:
    return "holds" if holds else "**does not hold**"


def write_report(
    out: Path,
    tasks: Sequence[Task],
    about: Mapping[str, str],
    bases: Mapping[str, Mapping[str, Any]],
    results: Sequence[Mapping[str, Any]],
    command: str,
) -> str:
    """Writes ``README.md``, ``<task>.json`` and the figures under ``out``. Returns the text of ``README.md``."""
    out.mkdir(parents=True, exist_ok=True)
    parts = [_HEAD.format(command=command, seeds=", ".join(str(seed) for seed in sorted({r["seed"] for r in results})))]
    parts.append("\n".join(["## Arms", "", *(f"- `{arm}`: {text}." for arm, text in about.items())]))
    for task in tasks:
        mine = [result for result in results if result["task"] == task.name]
        base = bases[task.name]
        (out / f"{task.name}.json").write_text(
            json.dumps({"base": compact(base), "cells": [compact(_thinned(cell)) for cell in mine]}, allow_nan=False)
            + "\n",
            encoding="utf-8",
        )
        section = [
            f"## {task.name}",
            f"{task.about[0].upper()}{task.about[1:]}. Base `{task.base}`, {task.prompts_per_round} prompts x "
            f"{task.group_size} completions, {task.steps} steps, learning rate {task.learning_rate:g}.",
            final_table(mine, base),
        ]
        if (differences := paired_table(mine)) is not None:
            section.append(differences)
        if task.pool is None and (found := excesses(mine, base)):
            section.append(excess_table(found))
            section += [table for table in (asked_table(mine, base, found),) if table is not None]
        if task.pool is None:
            section.append("Share (and accuracy) by format:")
            section.append(by_format_table(mine, base))
            section += [table for table in (predicted_table(mine, base),) if table is not None]
        parts.append("\n\n".join(section))
    figures = _figures(out, tasks, bases, results)
    if figures:
        parts.append("\n".join(["## Figures", "", *(f"![{text}]({name})" for name, text in figures)]))
    faults = sum(result["faults"] for result in results)
    parts.append(
        f"{made_with(results)} {len(results)} cells, {cpu_seconds(results):.0f} CPU-seconds; {faults} faults inside "
        "the monitor."
    )
    text = "\n\n".join(parts) + "\n"
    (out / "README.md").write_text(text, encoding="utf-8")
    return text


_HEAD = """# Interventions, measured

Written by `{command}`; seeds {seeds}. Learning rates and numbers of steps were chosen on seeds from 100 on.

Held out, after training: 512 prompts x 8 completions at temperature 1 with one seed for all. *effective*: exp of the
entropy of the format shares; *correct*: over right completions only; *within*: 1 / chance that two right completions
of one prompt share their format. *KL*: exact, policy from base, in nats. Differences are paired over seeds: mean and
95 % interval (Student's t). *Excess*: sequence KL less the binary KL between the two accuracies (the *floor*, below
which no policy of that accuracy can be), from the run's own log (mean reward and `rlmon/kl/seq`, smoothed over 10
steps either way), where each run first reaches the highest accuracy that both reach. Nothing is corrected for the
number of comparisons."""


def _figures(
    out: Path, tasks: Sequence[Task], bases: Mapping[str, Mapping[str, Any]], results: Sequence[Mapping[str, Any]]
) -> list[tuple[str, str]]:
    try:
        import matplotlib
    except ImportError:
        return []
    matplotlib.use("svg")
    # Two writings of the same numbers are the same bytes.
    matplotlib.rcParams["svg.hashsalt"] = "rlmon"
    arms = list(dict.fromkeys(result["arm"] for result in results))
    colours = {arm: matplotlib.colormaps["tab20"](index % 20) for index, arm in enumerate(arms)}
    figures: list[tuple[str, str]] = []

    whole = [task for task in tasks if task.pool is None]
    if whole:
        figure, panels = _panels(len(whole))
        for axis, task in zip(panels, whole, strict=True):
            start = bases[task.name]["evaluation"]["accuracy"]
            for arm, cells in by_arm([result for result in results if result["task"] == task.name]).items():
                paths = [path_of(cell["trajectory"]) for cell in cells.values()]
                middle = [
                    (statistics.fmean(a for a, _ in points), statistics.fmean(k for _, k in points))
                    for points in zip(*paths, strict=False)
                ]
                axis.plot([a for a, _ in middle], [k for _, k in middle], color=colours[arm], label=arm, linewidth=1.5)
            grid = [start + (0.999 - start) * i / 100 for i in range(101)]
            axis.plot(grid, [binary_kl_nats(a, start) for a in grid], "k--", linewidth=1, label="floor")
            axis.set(title=task.name, xlabel="accuracy (training reward)", ylabel="sequence KL to base (nats)")
            axis.legend(fontsize=7)
        _save(figure, out / "frontier.svg")
        figures.append(("frontier.svg", "Accuracy against sequence KL during training, mean over seeds"))

    figure, panels = _panels(len(tasks))
    for axis, task in zip(panels, tasks, strict=True):
        for arm, cells in by_arm([result for result in results if result["task"] == task.name]).items():
            found = [
                (value_of(cell, "accuracy"), value_of(cell, "effective_formats_correct_within"))
                for cell in cells.values()
            ]
            dots = [(x, y) for x, y in found if x is not None and y is not None]
            axis.scatter([x for x, _ in dots], [y for _, y in dots], s=22, color=colours[arm], label=arm)
        axis.set(title=task.name, xlabel="held-out accuracy", ylabel="effective formats, correct, within a prompt")
        axis.legend(fontsize=7)
    _save(figure, out / "diversity.svg")
    figures.append(("diversity.svg", "Held-out accuracy and diversity of right answers, one dot a seed"))
    return figures


def _panels(count: int) -> tuple[Any, list[Any]]:
    """A figure with ``count`` panels, three in a row."""
    from matplotlib import pyplot

    columns = min(3, count)
    rows = -(-count // columns)
    figure, axes = pyplot.subplots(rows, columns, figsize=(4.8 * columns, 4.2 * rows), squeeze=False)
    panels = list(axes.flat)
    for axis in panels:
        axis.locator_params(axis="x", nbins=5)
    for unused in panels[count:]:
        unused.set_axis_off()
    return figure, panels[:count]


def _save(figure: Any, path: Path) -> None:
    from matplotlib import pyplot

    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def _thinned(cell: Mapping[str, Any]) -> dict[str, Any]:
    """The cell with every ``KEPT_EVERY``-th step of its trajectory and the last: a repository keeps it."""
    points = cell["trajectory"]
    kept = [point for point in points[:-1] if point["step"] % KEPT_EVERY == 0] + points[-1:]
    return {**cell, "trajectory": kept, "actions": cell["actions"][-20:]}


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.3f}"
