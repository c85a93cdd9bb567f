"""The tables of docs/real-runs.md, from what the runs left in their small files."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from rlmon.errors import ConfigError
from rlmon.report.markup import escape
from studies.cells import Result
from studies.real_figures import draw
from studies.real_measures import KINDS, scores, with_two_right
from studies.tables import markdown, mean_of

BEGIN, END = "<!-- tables: make real-run ARGS=--tables -->", "<!-- end of tables -->"
WINDOW_STEPS = 5
WINDOWS_FROM = (1, 17, 22, 27, 32, 56, 86)
BASELINE = "unprotected"
LONGER = 1.5
"""Times as many steps, at which an arm that learns more slowly is compared too."""
JUDGED = {
    "accuracy": "accuracy",
    "pass_at_8": "pass@8",
    "templates_within": "templates",
    "openings_within": "openings",
    "formats_within": "formats",
    "entropy_nats_right": "entropy, right",
    "entropy_nats": "entropy, all",
    "kl_nats": "KL",
    "tokens": "tokens",
    "other": "other",
}
WATCHED = {
    "reward": "reward",
    "entropy_nats": "entropy",
    "templates": "templates of a group",
    "top_format": "largest format",
}
"""Of ``TRAJECTORY``, what the table of windows shows."""


def write_tables(page: Path, results: Path, seeds: Sequence[int]) -> None:
    """Put the tables between the two marks of ``page``. Raises ``ConfigError`` where it has none."""
    text = page.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ConfigError(f"{page} needs the lines {BEGIN} and {END}, once each.")
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    read = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(results.glob("*.json"))]
    pictures = {}
    for task in dict.fromkeys(cell["task"] for cell in read if cell.get("seed") in seeds):
        picture = results / f"{task}.png"
        shows = draw([cell for cell in read if cell["task"] == task and cell.get("seed") in seeds], picture)
        if shows is not None:
            pictures[task] = f"![{shows}]({quote(os.path.relpath(picture, page.parent))})\n\n{shows}."
    parts = [BEGIN, *sections(read, seeds, pictures), END]
    page.write_text(before + "\n\n".join(parts) + after, encoding="utf-8")


def sections(read: Sequence[Result], seeds: Sequence[int], pictures: Mapping[str, str] = {}) -> list[str]:
    """Markdown, a part at a time; ``pictures`` by task. Seeds that are not in ``seeds`` only show what training was
    like."""
    cells = [result for result in read if "arm" in result]
    parts = []
    for task in dict.fromkeys(result["task"] for result in read):
        mine = [cell for cell in cells if cell["task"] == task]
        bases = [result["evaluation"] for result in read if result["task"] == task and "evaluation" in result]
        parts.append(f"## The task {task}")
        parts += [pictures[task]] if task in pictures else []
        reported = [cell for cell in mine if cell["seed"] in seeds]
        if any(cell["evaluations"] for cell in reported):
            parts += judged(reported, bases)
        else:
            parts.append("No run of a seed that is reported has been judged yet.")
        if mine:
            parts += ["While training:", windows(mine, seeds)]
        parts += examples(reported, bases)
    return parts


def judged(cells: Sequence[Result], bases: Sequence[Mapping[str, Any]]) -> list[str]:
    """Held-out numbers of each run, and of each arm beside unprotected on the same seeds: at equal steps, and at
    ``LONGER`` times as many."""
    runs = sorted(
        (
            (int(step), cell["arm"], cell["seed"], found)
            for cell in cells
            for step, found in cell["evaluations"].items()
        ),
        key=lambda run: run[:3],
    )
    rows = [["arm", "steps", "seed", *JUDGED.values()]]
    rows += [["base", "0", "-", *(told(base[key]) for key in JUDGED)] for base in bases]
    rows += [[arm, str(steps), str(seed), *(told(found[key]) for key in JUDGED)] for steps, arm, seed, found in runs]
    parts = ["Held out:", markdown(rows)]
    by_arm: dict[tuple[str, int], dict[int, Mapping[str, Any]]] = {}
    for steps, arm, seed, found in runs:
        by_arm.setdefault((arm, steps), {})[seed] = found
    columns = ["accuracy", "pass@8", *(f"{kind}s, ratio" for kind in KINDS), "entropy, right, ratio"]
    beside = [["arm", "at step", f"{BASELINE} at", "seeds", *columns]]
    for (name, steps), found in by_arm.items():
        for (other, before), plain in by_arm.items():
            shared = sorted(plain.keys() & found.keys())
            if name != BASELINE and other == BASELINE and shared and steps in (before, LONGER * before):
                pairs = [(found[seed], plain[seed]) for seed in shared]
                beside.append([name, str(steps), str(before), ", ".join(map(str, shared)), *compared(pairs)])
    if len(beside) > 1:
        parts.append(
            f"Beside {BASELINE}: the mean (seed by seed), for ratios the geometric one; ways on the prompts to which "
            "both have two right answers:"
        )
        parts.append(markdown(beside))
    return parts


def compared(pairs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> list[str]:
    """Differences of accuracy and pass@8, ratios of ways and of entropy: this arm against the other, paired by seed."""
    ways: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for arm, plain in pairs:
        prompts = with_two_right([arm["by_prompt"], plain["by_prompt"]])
        ours, theirs = (scores(each["by_prompt"], prompts) for each in (arm, plain))
        for kind in KINDS:
            mine, other = ours[f"{kind}s_within"], theirs[f"{kind}s_within"]
            if mine is not None and other is not None:
                ways[kind].append(mine / other)
    entropies = [
        arm["entropy_nats_right"] / plain["entropy_nats_right"]
        for arm, plain in pairs
        if arm["entropy_nats_right"] is not None and plain["entropy_nats_right"]
    ]
    differences = ([arm[key] - plain[key] for arm, plain in pairs] for key in ("accuracy", "pass_at_8"))
    return [
        *(each_of(statistics.fmean(values), values, "+.3f") for values in differences),
        *(each_of(statistics.geometric_mean(ratios), ratios, ".2f") if ratios else "-"
          for ratios in (*ways.values(), entropies)),
    ]  # fmt: skip


def each_of(middle: float, values: Sequence[float], form: str) -> str:
    """``-0.106 (-0.121, -0.091)``; one value alone."""
    return format(middle, form) + (f" ({', '.join(format(one, form) for one in values)})" if len(values) > 1 else "")


def told(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def windows(cells: Sequence[Result], seeds: Sequence[int]) -> str:
    """What training showed in windows of five steps, a row a run, and its first FAIL."""
    most = max(cell["steps"] for cell in cells)
    starts = [start for start in WINDOWS_FROM if start + WINDOW_STEPS - 1 <= most]
    heads = [f"{start}-{start + WINDOW_STEPS - 1}" for start in starts]
    rows = [["arm", "seed", "steps", *heads, "first FAIL"]]
    for cell in sorted(cells, key=lambda cell: (cell["seed"], cell["arm"])):
        told = [_window(cell, start) for start in starts]
        fails = [f"{step}, {detector}" for step, severity, detector in cell["findings"] if severity == "fail"]
        seed = f"{cell['seed']}" + ("" if cell["seed"] in seeds else " (tuning)")
        rows.append([cell["arm"], seed, str(cell["steps"]), *told, fails[0] if fails else "none"])
    return f"{' / '.join(WATCHED.values())}, means of five steps.\n\n{markdown(rows)}"


def _window(cell: Result, start: int) -> str:
    end = start + WINDOW_STEPS - 1
    if end > cell["steps"]:
        return ""
    found = [[value for value in cell["trajectory"][name][start - 1 : end] if value is not None] for name in WATCHED]
    return " / ".join(_short(mean_of(values)) for values in found)


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def examples(cells: Sequence[Result], bases: Sequence[Mapping[str, Any]]) -> list[str]:
    """Answers to the same prompts, side by side: of the base, and of the first seed of each arm at its last step."""
    columns: dict[str, Mapping[str, Any]] = {}
    for base in bases:
        columns["base"] = base
    for cell in cells:
        if evaluations := cell["evaluations"]:
            columns.setdefault(cell["arm"], evaluations[max(evaluations, key=int)])
    if len(columns) < 2:
        return []
    shown = zip(*(evaluation["examples"] for evaluation in columns.values()), strict=True)
    rows = [["prompt", *columns]]
    rows += [[escape(each[0]["prompt"]), *("<br>".join(map(escape, one["answers"])) for one in each)] for each in shown]
    return ["Answers to the same held-out prompts:", markdown(rows)]
