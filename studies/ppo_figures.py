"""The figures of the study of PPO."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlmon.lab.claims import TOP_SHARE_LINE
from studies.drawing import DIM, FAIL, INK, STYLE, WARN, Lines, band, percent, save, trailing
from studies.ppo_arms import CLAIMED, CURVE_EVERY_ROUNDS, MARGIN
from studies.ppo_results import Study, by_seed

COLOURS: Mapping[str, str] = {
    "grpo": "#4f83cc",
    "ppo": "#e4572e",
    "ppo-shared": "#e6a532",
    "ppo-separate": "#3fa796",
    "ppo-kl": "#8e7cc3",
    "ppo-epochs": "#c76da2",
    "ppo-protect": "#7a8b3c",
}
LABELS: Mapping[str, str] = {"grpo": "GRPO", "ppo": "PPO"}
SMOOTH_ROUNDS = 10


def draw(study: Study, out: Path) -> dict[str, str]:
    """Draws what there is matplotlib and data for; file name to what it shows."""
    try:
        import matplotlib
    except ImportError:
        return {}
    if not all(study.of(arm) for arm in CLAIMED):
        return {}
    matplotlib.use("agg")
    with matplotlib.rc_context(STYLE):
        _draw_curves(study, out / "curves.png")
        _draw_collapse(study, out / "collapse.png")
        critic = _draw_critic(study, out / "critic.png")
    rounds = f"trailing mean over {SMOOTH_ROUNDS} rounds"
    return {
        "curves.png": f"Training reward ({rounds}), held-out accuracy along the way, and the final difference by seed. "
        "Lines: mean over seeds; bands: lowest to highest seed",
        "collapse.png": "Effective formats and top share of every seed, with the monitor's first WARN and FAIL",
        **(
            {"critic.png": "The critic: explained variance (trailing median) and value loss (trailing mean)"}
            if critic
            else {}
        ),
    }


def _series(
    results: Sequence[Mapping[str, Any]], name: str, middle: Callable[[Sequence[float]], float] = statistics.fmean
) -> Lines:
    """``middle`` of what was measured of ``name`` in the ``SMOOTH_ROUNDS`` up to each round, for each run."""
    lines: Lines = []
    for result in results:
        measured = {row["round"]: row[name] for row in result["trajectory"] if row[name] is not None}
        line = trailing(measured, [row["round"] for row in result["trajectory"]], SMOOTH_ROUNDS, middle)
        if line[0]:
            lines.append(line)
    return lines


_rounds = functools.partial(band, most_apart=CURVE_EVERY_ROUNDS)


def _draw_curves(study: Study, path: Path) -> None:
    from matplotlib import pyplot

    figure, (reward, held_out, paired) = pyplot.subplots(
        1, 3, figsize=(13.2, 4.1), width_ratios=(1, 1, 0.62), layout="constrained"
    )
    base = study.base["evaluation"]["accuracy"]
    for arm in CLAIMED:
        _rounds(reward, _series(study.of(arm), "reward"), COLOURS[arm], LABELS[arm])
        points: Lines = [
            ([p["round"] for p in r["curve"]], [p["accuracy"] for p in r["curve"]]) for r in study.of(arm) if r["curve"]
        ]
        _rounds(held_out, points, COLOURS[arm], LABELS[arm], marker="o", markersize=4.2)
    for axis, title in ((reward, "Training reward"), (held_out, "Held-out accuracy")):
        axis.set(title=title, xlabel="round of 64 completions", xlim=(0, study.plan.rounds))
        axis.margins(x=0)
        percent(axis)
    held_out.legend(loc="lower right", bbox_to_anchor=(1.0, 0.04))
    reward.axhline(base, color=DIM, linewidth=1, linestyle=(0, (4, 3)))
    reward.annotate("base, held out", (1.0, base), (0, -4), xycoords=("axes fraction", "data"), ha="right", va="top",
                    textcoords="offset points", color=DIM, fontsize=9.5)  # fmt: skip
    low = min(held_out.get_ylim()[0], reward.get_ylim()[0])
    for axis in (reward, held_out):
        axis.set_ylim(low, 1.003)

    ppo, grpo = by_seed(study.compared, "ppo"), by_seed(study.compared, "grpo")
    seeds = sorted(ppo.keys() & grpo.keys())
    found = study.claim
    paired.axhline(0.0, color=DIM, linewidth=1)
    paired.axhline(-100 * MARGIN, color=FAIL, linewidth=1.2, linestyle=(0, (4, 3)))
    paired.annotate(f"{-100 * MARGIN:.0f} point", (0.02, -100 * MARGIN), (0, 4), textcoords="offset points",
                    xycoords=("axes fraction", "data"), color=FAIL, fontsize=9.5)  # fmt: skip
    paired.scatter(range(len(seeds)), [100 * (ppo[s] - grpo[s]) for s in seeds], s=46, color=COLOURS["ppo"],
                   edgecolor="white", linewidth=1, zorder=3)  # fmt: skip
    paired.errorbar([len(seeds) + 0.4], [100 * found.mean], yerr=None if found.half is None else [100 * found.half],
                    fmt="D", markersize=7, color=INK, elinewidth=2, capsize=5, capthick=2, zorder=4)  # fmt: skip
    paired.set(title="PPO - GRPO, at the end", ylabel="points of held-out accuracy", xlim=(-0.6, len(seeds) + 1.0))
    paired.set_xticks([*range(len(seeds)), len(seeds) + 0.4], [*map(str, seeds), "mean,\n95 %"])
    paired.set_xlabel("seed", x=0.4)
    bottom, top = paired.get_ylim()
    paired.set_ylim(min(bottom, -100 * MARGIN - 0.4), max(top, 0.4))
    save(figure, path)


def _draw_collapse(study: Study, path: Path) -> None:
    from matplotlib import pyplot
    from matplotlib.lines import Line2D

    from rlmon.report.figure import SMOOTHING_ROUNDS
    from rlmon.statistics import trailing_mean

    figure, axes = pyplot.subplots(2, 2, figsize=(11.4, 6.6), sharex=True, sharey="row")
    figure.set_layout_engine("constrained", wspace=0.05)
    marks = (("warn_round", WARN, "o", 11.5, "first WARN"), ("fail_round", FAIL, "X", 8.5, "first FAIL"))
    for column, arm in enumerate(CLAIMED):
        for row, (name, label) in enumerate((("effective_formats", "effective formats"), ("top_share", "top share"))):
            axis = axes[row][column]
            for result in study.of(arm):
                rows = [each for each in result["trajectory"] if each[name] is not None]
                rounds = [each["round"] for each in rows]
                values = trailing_mean([each[name] for each in rows], SMOOTHING_ROUNDS).tolist()
                axis.plot(rounds, values, color=COLOURS[arm], alpha=0.75, linewidth=1.5)
                for mark, colour, shape, size, _ in marks:
                    if result[mark] in rounds:
                        at = rounds.index(result[mark])
                        above = 4 if mark == "warn_round" else 5
                        axis.plot(rounds[at], values[at], shape, color=colour, markersize=size, zorder=above,
                                  markeredgecolor="white", markeredgewidth=1.1)  # fmt: skip
            axis.margins(x=0)
            if column == 0:
                axis.set_ylabel(label)
            if row == 0:
                axis.set_title(f"{LABELS[arm]}, one line a seed")
                axis.axhline(study.base["evaluation"][name], color=DIM, linewidth=1, linestyle=(0, (4, 3)))
                axis.annotate("base", (1.0, study.base["evaluation"][name]), (0, 3), textcoords="offset points",
                              xycoords=("axes fraction", "data"), ha="right", color=DIM, fontsize=9.5)  # fmt: skip
                axis.set_ylim(0.9, 6.0)
            else:
                axis.axhline(TOP_SHARE_LINE, color=DIM, linewidth=1, linestyle=(0, (4, 3)))
                axis.set(xlabel="round of 64 completions", ylim=(0.2, 1.03), xlim=(0, study.plan.rounds))
                percent(axis)
    handles = [
        Line2D([], [], marker=shape, color=colour, linestyle="", markersize=size, markeredgecolor="white", label=label)
        for _, colour, shape, size, label in marks
    ]
    axes[0][1].legend(handles=handles, loc="lower right", bbox_to_anchor=(1.02, 1.0), ncols=2)
    save(figure, path)


def _draw_critic(study: Study, path: Path) -> bool:
    from matplotlib import pyplot

    arms = [arm for arm in study.arms if _series(study.of(arm), "explained_variance")]
    if not arms:
        return False
    figure, (explained, loss) = pyplot.subplots(1, 2, figsize=(11.4, 4.2), layout="constrained")
    for arm in arms:
        label = LABELS.get(arm, arm)
        lines = _series(study.of(arm), "explained_variance", statistics.median)
        _rounds(explained, lines, COLOURS[arm], label, statistics.median)
        _rounds(loss, _series(study.of(arm), "value_loss"), COLOURS[arm], label)
    explained.axhline(0.0, color=DIM, linewidth=1)
    explained.set(title="Explained variance of the returns", ylim=(-0.2, 0.4))
    loss.set(title="Value loss, half a squared error")
    loss.set_yscale("log")
    loss.set_yticks([0.3, 0.1, 0.03, 0.01, 0.003], ["0.3", "0.1", "0.03", "0.01", "0.003"])
    for axis in (explained, loss):
        axis.minorticks_off()
        axis.set(xlabel="round of 64 completions", xlim=(0, study.plan.rounds))
    loss.legend(loc="lower left", fontsize=9.5)
    save(figure, path)
    return True
