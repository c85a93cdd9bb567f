"""The page of the study of control, from the numbers that are kept beside it."""

from __future__ import annotations

import json
import math
import statistics
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from studies.control_arms import TRIED
from studies.control_results import (
    NEARLY_ALL,
    OF_THE_WAY,
    Ratio,
    Single,
    best_of,
    line,
    moves_by,
    ratio_of_steps,
    reachable,
    steps_to,
    upper_bound,
)
from studies.tables import Interval, compact, cpu_seconds, interval, made_with, markdown

NOTES = "## What it says"
"""From this heading on the page is written by hand, and stays when the rest is written again."""
REFERENCE, JUDGED = "unprotected", "protect"
MOST_GAP = 0.005
MOST_RATIO = 1.5
HIGHER = (0.002, 0.005)
"""By so much a*(m) might be understated: each has few runs, and a plateau is seen through noise."""
LAST = 6
"""Evaluations at the end over which a run's accuracy moves."""
SHOWN_STEPS = 60
"""Steps between two columns of what was seen along the way."""
KEPT = ("arm", "seed", "only", "steps", "plateaued", "held_out", "best", "faults", "train_cpu_seconds",
        "evaluate_cpu_seconds")  # fmt: skip
SEEN = ("effective_formats", "effective_formats_correct_within", "kl_seq_nats", "completions")


def write_page(
    out: Path,
    command: str,
    base: Mapping[str, Any],
    singles: Sequence[Mapping[str, Any]],
    compared: Sequence[Mapping[str, Any]],
) -> str:
    """Writes ``control.json`` and, from what is in it, ``control.md`` under ``out``; returns the text of the page.

    What the page says from ``NOTES`` on stays as it was.
    """
    out.mkdir(parents=True, exist_ok=True)
    first = compared[0]
    numbers = {
        "command": command,
        "training": {name: first["settings"]["training"][name] for name in ("learning_rate", "max_steps")},
        "every": {"single": singles[0]["settings"]["evaluation"][-1], "compared": first["settings"]["evaluation"][-1]},
        "base": compact({**base, "evaluation": _seen(base)}),
        "singles": [_kept(run) for run in singles],
        "compared": [_kept(run) for run in compared],
        "packages": first["packages"],
        "machine": first["machine"],
    }
    (out / "control.json").write_text(json.dumps(numbers, allow_nan=False) + "\n", encoding="utf-8")
    target = out / "control.md"
    # Read back: what is kept has fewer digits, and the page is made from nothing else.
    kept = json.loads((out / "control.json").read_text(encoding="utf-8"))
    text = page(kept, notes_of(target.read_text(encoding="utf-8") if target.exists() else ""))
    target.write_text(text, encoding="utf-8")
    return text


def notes_of(text: str) -> str:
    return text[text.index(NOTES) :] if NOTES in text else ""


def _kept(run: Mapping[str, Any]) -> dict[str, Any]:
    curve = [
        {name: point[name] for name in ("step", "accuracy", "format_shares", "completions")} for point in run["curve"]
    ]
    kept: dict[str, Any] = compact({**{name: run[name] for name in KEPT}, "evaluation": _seen(run), "curve": curve})
    return kept


def _seen(run: Mapping[str, Any]) -> dict[str, Any]:
    return {name: run["evaluation"][name] for name in SEEN}


def page(numbers: Mapping[str, Any], notes: str) -> str:
    """The page; ``numbers`` is what ``control.json`` has, ``notes`` what was written by hand."""
    singles, arms, base = _singles(numbers["singles"]), _by_arm(numbers["compared"]), numbers["base"]
    best = best_of(singles)
    parts = [_head(numbers, arms), "## What each format can reach", _singles_text(singles)]
    if best:
        parts += [
            "## The goal",
            _goal(numbers, arms, singles),
            "## The arms",
            _arms(numbers, arms, best),
            "Seed by seed: accuracy, the gap, and steps to the run's line.",
            _seeds(numbers, arms, best),
            "Along the way: accuracy (and the gap, with the shares at that step), mean over seeds.",
            _along(arms, best),
            "Share (and accuracy) by format, mean over seeds:",
            _formats(arms, base, best),
        ]
        if tried := [arm for arm in TRIED if arms.get(arm, {}).keys() & arms.get(JUDGED, {}).keys()]:
            parts += ["## What was tried beside it", tried_text(arms, tried, best)]
    runs = [*numbers["singles"], *numbers["compared"]]
    faults = sum(run["faults"] for run in runs)
    described = [{"packages": numbers["packages"], "machine": numbers["machine"]}]
    cpu = f"{len(runs)} runs, {cpu_seconds(runs):.0f} CPU-seconds"
    parts.append(f"{made_with(described)} {cpu}; {faults} faults inside the monitor.")
    text = "\n\n".join(_wrapped(part) for part in parts) + "\n"
    return text + (f"\n{notes}" if notes else "")


def _wrapped(part: str) -> str:
    """Paragraphs filled to 120 columns; tables and headings as they are."""
    blocks = part.split("\n\n")
    return "\n\n".join(
        block if block[:1] in "|#" else textwrap.fill(block, 120, break_on_hyphens=False, break_long_words=False)
        for block in blocks
    )


def _head(numbers: Mapping[str, Any], arms: Mapping[str, Mapping[int, Any]]) -> str:
    training, every, base = numbers["training"], numbers["every"], numbers["base"]
    seeds = ", ".join(map(str, sorted({seed for runs in arms.values() for seed in runs})))
    single_seeds = ", ".join(map(str, sorted({run["seed"] for run in numbers["singles"]})))
    along = numbers["compared"][0]["curve"][0]["completions"]
    within = numbers["compared"][0]["evaluation"]["completions"]
    return f"""# What holding formats costs within them

Written by `{numbers["command"]}`. Compared over seeds {seeds}, on which nothing was chosen; the runs that are rewarded
in one format have other seeds ({single_seeds}).

The lab's task `arithmetic` (base `arithmetic`, 8 prompts x 8 completions a step, learning rate
{training["learning_rate"]:g}), {training["max_steps"]} steps. Arms that hold the formats learn each of them on a share
of the samples, and are less right than a run that came to write in its best format only. How much of that is a matter
of time, and how much of the formats themselves? **A\\*(p)** is the sum over formats m of p(m) a\\*(m): p are the
shares in which a run writes at its end, a\\*(m) the accuracy *in format m* of runs that are rewarded only where the
answer is right *and* in format m, trained until two evaluations in a row do not rise above the best before them. The
gap, A\\*(p) less A, is what a run could still learn without writing otherwise. Formats that no such run was trained for
(`other` above all) count as the best one, so that all that is lost in them is in the gap.

Held out: {base["completions"]:,} completions at temperature 1 at the end, the same prompts and draws for every run (the
base: {base["accuracy"]:.4f}). Along the way {along:,}, every {every["compared"]} steps, and every {every["single"]} in
the runs of one format. The **line** of a run is the base's accuracy + {OF_THE_WAY:g} (A\\*(p) less the base's); it
counts as reached at the first of two evaluations in a row that are not below it. *moves by*: standard deviation of a
run's last {LAST} evaluations along the way, of which {math.sqrt(0.99 * 0.01 / along):.4f} is sampling where it
is .99. *Effective* formats and KL are of {within:,} completions. Bounds are the upper ends of one-sided 95 % intervals
over seeds (Student's t) of the paired gaps; that a\\*(m) is itself measured is not in them."""


def _singles(runs: Sequence[Mapping[str, Any]]) -> list[Single]:
    return [
        Single(
            mode=run["only"],
            seed=run["seed"],
            steps=run["steps"],
            plateaued=run["plateaued"],
            share=run["held_out"]["format_shares"].get(run["only"], 0.0),
            accuracy_at_the_end=run["held_out"]["accuracy_by_format"].get(run["only"], 0.0),
            best_step=run["best"]["step"],
            accuracy_of_best=run["best"]["accuracy_by_format"].get(run["only"], 0.0),
        )
        for run in runs
    ]


def _by_arm(runs: Sequence[Mapping[str, Any]]) -> dict[str, dict[int, Any]]:
    arms: dict[str, dict[int, Any]] = {}
    for run in runs:
        arms.setdefault(run["arm"], {})[run["seed"]] = run
    return arms


def _singles_text(singles: Sequence[Single]) -> str:
    best = best_of(singles)
    rows = [["format", "a\\*", "seed: accuracy at step (best along the way, and end)"]]
    for mode in dict.fromkeys(single.mode for single in singles):
        runs = [
            f"{single.seed}: {single.accuracy_of_best:.4f} at {single.best_step}, {single.accuracy_at_the_end:.4f} at "
            f"{single.steps}" + ("" if single.plateaued else " (no plateau)")
            for single in singles
            if single.mode == mode
        ]
        rows.append([mode, f"{best[mode]:.4f}" if mode in best else "none", "; ".join(runs)])
    said = [
        "Accuracy in its format of each run that was rewarded in that format only, with the weights that were best "
        "along the way and with those at the end of its plateau; the higher counts."
    ]
    if unfinished := [single for single in singles if single.counts and not single.plateaued]:
        named = ", ".join(f"{single.mode} ({single.seed})" for single in unfinished)
        said.append(f"Without a plateau, so that a\\* may be higher and the gaps larger: {named}.")
    if missed := [single for single in singles if not single.counts]:
        named = ", ".join(f"{single.mode} ({single.seed})" for single in missed)
        said.append(f"Never came to write {NEARLY_ALL:.0%} in their format, and do not count: {named}.")
    return f"{' '.join(said)}\n\n{markdown(rows)}"


def _gaps(runs: Mapping[int, Any], best: Mapping[str, float]) -> dict[int, float]:
    """Seed to A*(p) - A."""
    return {seed: _gap(run["held_out"], best) for seed, run in runs.items()}


def _lines(numbers: Mapping[str, Any], runs: Mapping[int, Any], best: Mapping[str, float]) -> dict[int, float]:
    start = numbers["base"]["accuracy"]
    return {seed: line(start, reachable(run["held_out"]["format_shares"], best)) for seed, run in runs.items()}


def _steps(numbers: Mapping[str, Any], runs: Mapping[int, Any], best: Mapping[str, float]) -> dict[int, int | None]:
    lines = _lines(numbers, runs, best)
    return {seed: steps_to(run["curve"], lines[seed]) for seed, run in runs.items()}


def _goal(numbers: Mapping[str, Any], arms: Mapping[str, Mapping[int, Any]], singles: Sequence[Single]) -> str:
    best = best_of(singles)
    if JUDGED not in arms or REFERENCE not in arms:
        return f"It takes runs of `{JUDGED}` and of `{REFERENCE}`."
    bound, ratio = _judged(numbers, arms, best)
    mine = arms[JUDGED]
    pairs = len(mine.keys() & arms[REFERENCE].keys())
    rows = [["asked of `protect`", "line", "measured", "seeds", ""]]
    rows.append([
        "upper 95 % bound of the gap", f"<= {MOST_GAP:g}", "-" if bound is None else f"{bound:.4f}", str(len(mine)),
        "not decided" if bound is None else "holds" if bound <= MOST_GAP else "**does not hold**",
    ])  # fmt: skip
    rows.append([
        "its steps to its line / unprotected's to its own, geometric mean", f"<= {MOST_RATIO:g}", _ratio_shown(ratio),
        str(ratio.pairs), mark_of_ratio(ratio, pairs),
    ])  # fmt: skip
    said = []
    for more in HIGHER:
        higher = {mode: min(1.0, accuracy + more) for mode, accuracy in best.items()}
        bound, ratio = _judged(numbers, arms, higher)
        if bound is not None:
            said.append(f"Were every a\\* {more:g} higher, these were {bound:.4f} and {_ratio_shown(ratio)}.")
    steps = _steps(numbers, mine, best)
    if missed := sum(reached is None for reached in steps.values()):
        said.append(
            f"`{JUDGED}` did not reach its line on {missed} of {len(steps)} seeds; there the "
            f"{numbers['training']['max_steps']} steps that it trained stand for more."
        )
    return "\n\n".join([markdown(rows), *([" ".join(said)] if said else [])])


def _judged(
    numbers: Mapping[str, Any], arms: Mapping[str, Mapping[int, Any]], best: Mapping[str, float]
) -> tuple[float | None, Ratio]:
    """Bound of the gap of the judged arm, and its steps over the reference's."""
    steps, reference = (_steps(numbers, arms[arm], best) for arm in (JUDGED, REFERENCE))
    ratio = ratio_of_steps(steps, reference, numbers["training"]["max_steps"])
    return upper_bound(list(_gaps(arms[JUDGED], best).values())), ratio


def _ratio_shown(ratio: Ratio) -> str:
    return "-" if ratio.mean is None else f"{'at least ' if ratio.at_least else ''}{ratio.mean:.2f}"


def mark_of_ratio(found: Ratio, seeds: int) -> str:
    """Whether the steps are few enough; not decided where a pair is missing or the ratio may be larger."""
    if found.mean is None or found.pairs < seeds or (found.at_least and found.mean <= MOST_RATIO):
        return "not decided"
    return "holds" if found.mean <= MOST_RATIO else "**does not hold**"


def _arms(numbers: Mapping[str, Any], arms: Mapping[str, Mapping[int, Any]], best: Mapping[str, float]) -> str:
    rows = [["arm", "seeds", "A", "A\\*(p)", "gap", "95 % bound", "line", "steps to it", "reached", "moves by",
             "effective", "correct, within", "KL/seq", "CPU s"]]  # fmt: skip
    base = numbers["base"]
    effective = [f"{base['evaluation'][name]:.2f}" for name in SEEN[:3]]
    rows.append(["*base*", "", f"{base['accuracy']:.4f}", *[""] * 7, *effective, ""])
    for arm, runs in arms.items():
        gaps, steps = list(_gaps(runs, best).values()), _steps(numbers, runs, best)
        bound = upper_bound(gaps)
        reached = [step for step in steps.values() if step is not None]

        def mean(name: str, runs: Mapping[int, Any] = runs) -> float:
            return statistics.fmean(run["evaluation"][name] for run in runs.values())

        accuracies = [run["held_out"]["accuracy"] for run in runs.values()]
        whole = len(reached) == len(runs)
        rows.append([
            f"`{arm}`", str(len(runs)), _four(accuracies),
            f"{statistics.fmean(a + gap for a, gap in zip(accuracies, gaps, strict=True)):.4f}", _four(gaps),
            "-" if bound is None else f"{bound:.4f}",
            f"{statistics.fmean(_lines(numbers, runs, best).values()):.4f}",
            f"{statistics.geometric_mean(reached):.0f}" if whole else "-", f"{len(reached)} of {len(runs)}",
            f"{statistics.fmean(moves_by(run['curve'], LAST) for run in runs.values()):.4f}",
            f"{mean('effective_formats'):.2f}", f"{mean('effective_formats_correct_within'):.2f}",
            f"{mean('kl_seq_nats'):.2f}", f"{statistics.fmean(run['train_cpu_seconds'] for run in runs.values()):.0f}",
        ])  # fmt: skip
    return markdown(rows)


def _four(values: Sequence[float]) -> str:
    """Mean and half of the two-sided 95 % interval, four digits: half a point is what is asked."""
    found = interval(values)
    return f"{found.mean:.4f}" + ("" if found.half is None else f" ± {found.half:.4f}")


def _seeds(numbers: Mapping[str, Any], arms: Mapping[str, Mapping[int, Any]], best: Mapping[str, float]) -> str:
    seeds = sorted({seed for runs in arms.values() for seed in runs})
    rows = [["seed", *(f"{arm}: {what}" for arm in arms for what in ("A", "gap", "steps"))]]
    gaps = {arm: _gaps(runs, best) for arm, runs in arms.items()}
    steps = {arm: _steps(numbers, runs, best) for arm, runs in arms.items()}
    for seed in seeds:
        row = [str(seed)]
        for arm, runs in arms.items():
            if seed not in runs:
                row += ["-", "-", "-"]
                continue
            reached = steps[arm][seed]
            row += [
                f"{runs[seed]['held_out']['accuracy']:.4f}",
                f"{gaps[arm][seed]:+.4f}",
                "not reached" if reached is None else str(reached),
            ]
        rows.append(row)
    return markdown(rows)


def _along(arms: Mapping[str, Mapping[int, Any]], best: Mapping[str, float]) -> str:
    points = {point["step"] for runs in arms.values() for run in runs.values() for point in run["curve"]}
    shown = sorted(step for step in points if step % SHOWN_STEPS == 0) or sorted(points)
    rows = [["arm", *(f"step {step}" for step in shown)]]
    for arm, runs in arms.items():
        row = [f"`{arm}`"]
        for step in shown:
            there = [point for run in runs.values() for point in run["curve"] if point["step"] == step]
            accuracy = statistics.fmean(point["accuracy"] for point in there)
            could = statistics.fmean(reachable(point["format_shares"], best) for point in there)
            row.append(f"{accuracy:.4f} ({could - accuracy:+.4f})")
        rows.append(row)
    return markdown(rows)


def _formats(arms: Mapping[str, Mapping[int, Any]], base: Mapping[str, Any], best: Mapping[str, float]) -> str:
    modes = [mode for mode in base["format_shares"] if mode in best]
    rows = [["arm", *modes, "all others"], ["*a\\**", *(f"({best[mode]:.4f})" for mode in modes), ""]]
    for name, found in [("*base*", [base])] + [
        (f"`{arm}`", [run["held_out"] for run in runs.values()]) for arm, runs in arms.items()
    ]:
        row = [name]
        for mode in modes:
            share = statistics.fmean(each["format_shares"].get(mode, 0.0) for each in found)
            # Over all completions in it, not over seeds: a seed that hardly writes in it has hardly measured it.
            written = sum(each["format_shares"].get(mode, 0.0) for each in found)
            right = sum(
                each["format_shares"].get(mode, 0.0) * each["accuracy_by_format"].get(mode, 0.0) for each in found
            )
            row.append(f"{share:.3f}" + (f" ({right / written:.4f})" if written else ""))
        others = statistics.fmean(
            sum(share for mode, share in each["format_shares"].items() if mode not in modes) for each in found
        )
        rows.append([*row, f"{others:.4f}"])
    return markdown(rows)


def tried_text(arms: Mapping[str, Mapping[int, Any]], tried: Sequence[str], best: Mapping[str, float]) -> str:
    rows = [["arm", "seeds", "A", "gap", f"gap, last {LAST} evaluations", "effective", "correct, within", "the gap is"]]
    for arm in tried:

        def less(of: Callable[[Mapping[str, Any]], float], arm: str = arm) -> Interval:
            held = arms[JUDGED]
            return interval([of(run) - of(held[seed]) for seed, run in arms[arm].items() if seed in held])

        gap = less(lambda run: _gap(run["held_out"], best))
        rows.append([
            f"`{arm}`", str(gap.n), _signed(less(lambda run: run["held_out"]["accuracy"]), 4), _signed(gap, 4),
            _signed(less(lambda run: statistics.fmean(_gap(point, best) for point in run["curve"][-LAST:])), 4),
            _signed(less(lambda run: run["evaluation"]["effective_formats"]), 2),
            _signed(less(lambda run: run["evaluation"]["effective_formats_correct_within"]), 2), _verdict(gap),
        ])  # fmt: skip
    ideas = "\n\n".join(f"`{arm}`: {TRIED[arm].about}." for arm in tried)
    said = (
        f"Their settings were chosen with a look at seed 100. Differences to `{JUDGED}` on the same seeds, mean and "
        "two-sided 95 % interval (Student's t); above, each arm is on its own seeds. The gap of the last "
        f"{LAST} evaluations along the way is their mean: it depends less on where a run happens to be at its last "
        "step."
    )
    return f"{ideas}\n\n{said}\n\n{markdown(rows)}"


def _gap(seen: Mapping[str, Any], best: Mapping[str, float]) -> float:
    """A*(p) - A of one evaluation."""
    return reachable(seen["format_shares"], best) - float(seen["accuracy"])


def _signed(found: Interval, digits: int) -> str:
    return f"{found.mean:+.{digits}f}" + ("" if found.half is None else f" ± {found.half:.{digits}f}")


def _verdict(less: Interval) -> str:
    """Which way the gap differs, where its interval has zero outside."""
    if less.half is None or abs(less.mean) <= less.half:
        return "not told apart"
    return "narrower" if less.mean < 0.0 else "wider"
