"""The verdicts of the study of the second act, and its page, from the numbers that are kept beside it."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from studies.control_page import notes_of
from studies.tables import compact, cpu_seconds, made_with, markdown

AS_FAST = 1.1
"""Two starts are as fast as one another where the steps of neither are more than so many times the other's."""
ABOUT: Mapping[str, str] = {
    "base": "the base, as it was",
    "protect": "trained with `protect`",
    "unprotected": "trained with beta 0 and no policy",
    "stopped": "the same, stopped at the first tenth step at which it is as right as `protect` is at its end",
    "marginal": "trained with `mode_marginal` alone: far from the base in KL, wide in formats",
    "suppressed": "`protect`, then trained on its own answers until JSON is as rare as after `unprotected`",
    "hot": "as `unprotected`; the second act samples at temperature 1.5",
    "winner": "as `unprotected`; the second act asks for the format that it writes already",
}
"""What each start is."""
KEPT = ("task", "start", "seed", "first_step", "wanted", "wanted_in_4096", "chance_of_json", "mixed_groups",
        "weights_moved", "steps_to_90", "train_cpu_seconds", "evaluate_cpu_seconds")  # fmt: skip
SEEN = ("accuracy", "effective_formats", "kl_seq_nats")


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """One thing that was to come out, and whether it did; ``None`` where the runs do not decide it."""

    asked: str
    holds: bool | None
    shown: str


def ratios(rows: Sequence[Mapping[str, Any]], start: str, other: str) -> list[float | None]:
    """Steps from ``start`` over steps from ``other``, for each task and seed with both.

    Never is more than any number of steps; ``None`` where neither learned it.
    """
    steps = {(row["task"], row["seed"], row["start"]): row["steps_to_90"] for row in rows}
    found: list[float | None] = []
    for task, seed, name in steps:
        if name != start or (task, seed, other) not in steps:
            continue
        mine, theirs = steps[task, seed, start], steps[task, seed, other]
        if mine is None and theirs is None:
            found.append(None)
        else:
            found.append(math.inf if mine is None else 0.0 if theirs is None else mine / theirs)
    return found


def verdicts(rows: Sequence[Mapping[str, Any]]) -> list[Verdict]:
    """What passes the claim and what would refute it, from all runs."""
    gone = [row for row in rows if row["wanted_in_4096"] == 0]
    stayed = sum(row["steps_to_90"] is None for row in gone)
    winners = [row["steps_to_90"] for row in rows if row["start"] == "winner"]
    learned = sum(step is not None for step in winners)
    return [
        Verdict(
            asked="every start with none in 4,096 samples stays below .9 to the end",
            holds=stayed == len(gone) if gone else None,
            shown=f"{stayed} of {len(gone)} starts",
        ),
        _median(
            rows, "protect", "base", f"`protect` needs at most {AS_FAST} times the base's steps", lambda r: r <= AS_FAST
        ),
        _median(
            rows, "stopped", "protect",
            f"stopping early is not as good: more than {AS_FAST} times the steps of `protect`",
            lambda r: r > AS_FAST,
        ),
        # Both never is as slow as one another.
        _median(
            rows, "marginal", "unprotected",
            "`marginal`, as far from the base in KL, is faster than `unprotected`: it is not KL",
            lambda r: r < 1 / AS_FAST, neither=1.0,
        ),
        _median(
            rows, "unprotected", "suppressed",
            f"`unprotected` needs at most {AS_FAST} times the steps of `suppressed`: it is not that it learns worse",
            lambda r: r <= AS_FAST,
        ),
        Verdict(
            asked="asked for what it writes already, `unprotected` learns it: the second act can teach it",
            holds=learned == len(winners) if winners else None,
            shown=f"{learned} of {len(winners)} runs",
        ),
    ]  # fmt: skip


def _median(
    rows: Sequence[Mapping[str, Any]],
    start: str,
    other: str,
    asked: str,
    holds: Callable[[float], bool],
    neither: float | None = None,
) -> Verdict:
    """Judged by the median over pairs; a pair of which neither learned it counts as ``neither``, or not at all."""
    pairs = ratios(rows, start, other)
    known = [neither if ratio is None else ratio for ratio in pairs]
    decided = [ratio for ratio in known if ratio is not None]
    both_never = sum(ratio is None for ratio in pairs)
    said = f"; neither learned it on {both_never} of {len(pairs)}" if both_never else ""
    if not decided:
        return Verdict(asked=asked, holds=None, shown=f"no pair decides{said}")
    median = statistics.median(decided)
    shown = "never" if math.isinf(median) else f"{median:.2f}"
    return Verdict(asked=asked, holds=holds(median), shown=f"median {shown}, pairs: {len(decided)}{said}")


def write_page(out: Path, firsts: Sequence[Mapping[str, Any]], seconds: Sequence[Mapping[str, Any]]) -> str:
    """Writes ``second-act.json`` and, from it, ``second-act.md`` under ``out``; returns the text of the page.

    What the page says from ``NOTES`` on stays as it was.
    """
    out.mkdir(parents=True, exist_ok=True)
    numbers = {
        "most_steps": seconds[0]["settings"]["continued"]["max_steps"],
        "seconds": [
            compact({**{name: run[name] for name in KEPT}, **{name: run["evaluation"][name] for name in SEEN}})
            for run in seconds
        ],
        "cpu_seconds": round(cpu_seconds([*firsts, *seconds])),
        "packages": seconds[0]["packages"],
        "machine": seconds[0]["machine"],
    }
    path, target = out / "second-act.json", out / "second-act.md"
    path.write_text(json.dumps(numbers, allow_nan=False) + "\n", encoding="utf-8")
    notes = notes_of(target.read_text(encoding="utf-8")) if target.exists() else ""
    text = page(json.loads(path.read_text(encoding="utf-8")), notes)
    target.write_text(text, encoding="utf-8")
    return text


def page(numbers: Mapping[str, Any], notes: str) -> str:
    """The page; ``numbers`` is what ``second-act.json`` has, ``notes`` what was written by hand."""
    rows = numbers["seconds"]
    found = verdicts(rows)
    parts = [_head(numbers), "## Verdicts", _summary(found), _verdicts(found)]
    for task in dict.fromkeys(row["task"] for row in rows):
        parts += [f"## {task}", _starts([row for row in rows if row["task"] == task])]
    parts.append(
        f"{made_with([numbers])} {len(rows)} second acts and the trainings before them, "
        f"{numbers['cpu_seconds']} CPU-seconds."
    )
    if notes:
        parts.append(notes.rstrip("\n"))
    return "\n\n".join(parts) + "\n"


def _head(numbers: Mapping[str, Any]) -> str:
    rows = numbers["seconds"]
    done: dict[str, set[int]] = {}
    for row in rows:
        done.setdefault(row["task"], set()).add(row["seed"])
    seeds = "; ".join(f"{task} {', '.join(map(str, sorted(of)))} ({len(of)} of 8)" for task, of in done.items())
    starts = "\n".join(f"- `{name}`: {about}." for name, about in ABOUT.items())
    return f"""# What narrowing costs once the requirement changes

Written by `python -m studies.second_act`, a part of `make experiments`. Seeds, by task: {seeds}.
The plan is seeds 10 to 17 of `arithmetic` and `seven`, chosen before any of them was run.

After training, an answer is rewarded only where it is right *and* JSON. Training goes on from each start with beta 0
and no policy, for {numbers["most_steps"]} steps or until the mean reward of 5 steps is .9.

{starts}

*Of it in 4,096*: held-out samples in the wanted format before the second act. *Chance of JSON*: the exact chance that
an answer is `{{"answer": n}}`, whatever n, mean over 128 prompts. *Groups*: those of 8 answers of which some were
rewarded and some were not, in the whole second act; GRPO learns from no others."""


def _summary(found: Sequence[Verdict]) -> str:
    broken, open_ = (sum(verdict.holds is state for verdict in found) for state in (False, None))
    if broken:
        return f"**Refuted as it was stated**: {broken} of {len(found)} do not hold."
    if open_:
        return f"Nothing refutes the claim; {open_} of {len(found)} are not decided by these runs."
    return f"All {len(found)} hold."


def _verdicts(found: Sequence[Verdict]) -> str:
    words = {True: "holds", False: "**does not hold**", None: "not decided"}
    return markdown([["asked", "measured", ""], *([v.asked, v.shown, words[v.holds]] for v in found)])


def _starts(rows: Sequence[Mapping[str, Any]]) -> str:
    table = [["start", "seed", "accuracy", "formats", "KL/seq", "from step", "asked for", "of it in 4,096",
              "chance of JSON", "groups", "learned at step"]]  # fmt: skip
    for name in ABOUT:
        for row in (row for row in rows if row["start"] == name):
            step, learned = row["first_step"], row["steps_to_90"]
            table.append([
                f"`{name}`", str(row["seed"]), f"{row['accuracy']:.3f}", f"{row['effective_formats']:.2f}",
                f"{row['kl_seq_nats']:.2f}", "-" if step is None else str(step), row["wanted"],
                str(row["wanted_in_4096"]), f"{row['chance_of_json']:.1e}", str(row["mixed_groups"]),
                "never" if learned is None else str(learned),
            ])  # fmt: skip
    return markdown(table)
