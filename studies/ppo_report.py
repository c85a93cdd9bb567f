"""The page of the study of PPO."""

from __future__ import annotations

import json
import statistics
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from studies.cells import PROMPTS, SAMPLES_PER_PROMPT
from studies.ppo_arms import (
    ARMS,
    CLAIMED,
    CURVE_EVERY_ROUNDS,
    CURVE_PROMPTS,
    CURVE_SAMPLES,
    MARGIN,
    ROUND_COMPLETIONS,
    VARIATIONS,
)
from studies.ppo_figures import draw
from studies.ppo_results import Study, along_the_way, by_seed, difference, lower_end
from studies.tables import Interval, compact, cpu_seconds, made_with, markdown

NOTES = "## What it says"
"""From this heading on the page is written by hand, and stays when the rest is written again."""


def write_report(study: Study, out: Path, command: str) -> str:
    """Writes ``study.md``, ``results.json`` and the figures under ``out``; returns the text of the page.

    What the page says from ``NOTES`` on stays as it was.
    """
    out.mkdir(parents=True, exist_ok=True)
    page = out / "study.md"
    old = page.read_text(encoding="utf-8") if page.exists() else ""
    notes = old[old.index(NOTES) :] if NOTES in old else ""
    figures = draw(study, out)
    shown = {name: f"![{text}]({name})" for name, text in figures.items()}
    parts = [
        _head(study, command),
        _claim_text(study),
        shown.get("curves.png", ""),
        "## Arms\n\n" + _arms_text(study),
        "## The collapse, as the monitor sees it\n\n" + _alarm_text(study),
        shown.get("collapse.png", ""),
        "## Learning rates\n\n" + _tuning_text(study),
        "## PPO's settings, on the tuning seeds\n\n" + _varied_text(study) if study.varied else "",
        shown.get("critic.png", ""),
        _made_with(study),
    ]
    text = "\n\n".join(_wrapped(part) for part in parts if part) + "\n"
    page.write_text(text + (f"\n{notes}" if notes else ""), encoding="utf-8")
    (out / "results.json").write_text(json.dumps(_kept(study), allow_nan=False) + "\n", encoding="utf-8")
    return text


def _wrapped(part: str) -> str:
    """Paragraphs filled to 120 columns; tables, lists, headings and figures as they are."""
    blocks = part.split("\n\n")
    return "\n\n".join(
        block if block[:1] in "|#-!" else textwrap.fill(block, 120, break_on_hyphens=False, break_long_words=False)
        for block in blocks
    )


def _head(study: Study, command: str) -> str:
    plan, base = study.plan, study.base["evaluation"]
    return f"""# PPO against GRPO at two completions a prompt

Written by `{command}`.

The lab's arithmetic task: a word problem, one integer, six formats to write it in, and a reward that looks at the
number only. A round is {ROUND_COMPLETIONS // 2} prompts x 2 completions; every arm trains on {plan.rounds} rounds,
{plan.rounds * ROUND_COMPLETIONS:,} completions, from the same base, which is right in {base["accuracy"]:.1%} of
held-out samples. `loss_type="bnpo"` and a constant learning rate for all; `beta` and `kl_coef` begin at 0 but in
`ppo-kl`. What is not named is the demo's setting, and for PPO the default of `PPOConfig`. The monitor watches all runs.

Held out, after training: {PROMPTS} prompts x {SAMPLES_PER_PROMPT} completions at temperature 1,
with one seed for all. Along the way: {CURVE_PROMPTS} prompts x {CURVE_SAMPLES} every {CURVE_EVERY_ROUNDS} rounds, drawn
from a random state of their own, so that training goes on as if no one had looked. Learning rates were chosen on seeds
{_list(plan.tuning_seeds)}, the comparison is over seeds {_list(plan.seeds)}. Differences are paired over seeds: mean
and 95 % interval (Student's t)."""


def _claim_text(study: Study) -> str:
    found, low = study.claim, lower_end(study.claim)
    ppo, grpo = by_seed(study.compared, "ppo"), by_seed(study.compared, "grpo")
    seeds = sorted(ppo.keys() & grpo.keys())
    rows = [["held-out accuracy", *(f"seed {seed}" for seed in seeds), "mean"]]
    for name, values in (("GRPO", grpo), ("PPO", ppo)):
        rows.append([name, *(f"{values[seed]:.4f}" for seed in seeds), f"{statistics.fmean(values.values()):.4f}"])
    rows.append(
        ["PPO - GRPO", *(f"{100 * (ppo[seed] - grpo[seed]):+.2f}" for seed in seeds), f"**{_points(found)} points**"]
    )
    if low is None:
        verdict = "One seed has no interval."
    else:
        holds = "holds" if low >= -MARGIN else "**does not hold**"
        verdict = (
            f"Lower end of the 95 % interval: {100 * low:+.2f} points. That it is at least {-100 * MARGIN:.0f} {holds}."
        )
    ways = {arm: {r["seed"]: along_the_way(r) for r in study.of(arm) if r["curve"][1:]} for arm in CLAIMED}
    way = difference(ways["ppo"], ways["grpo"]) if ways["ppo"].keys() & ways["grpo"].keys() else None
    speed = "" if way is None else f" Mean of the curve along the way, PPO less GRPO: {_points(way)} points."
    return f"## The claim\n\n{markdown(rows)}\n\n{verdict}{speed}"


def _points(found: Interval) -> str:
    return f"{100 * found.mean:+.2f}" + ("" if found.half is None else f" ± {100 * found.half:.2f}")


def _arms_text(study: Study) -> str:
    columns: tuple[tuple[str, Callable[[Mapping[str, Any]], float | None]], ...] = (
        ("accuracy", lambda r: r["evaluation"]["accuracy"]),
        ("along the way", lambda r: along_the_way(r) if r["curve"][1:] else None),
        ("effective", lambda r: r["evaluation"]["effective_formats"]),
        ("correct, within", lambda r: r["evaluation"]["effective_formats_correct_within"]),
        ("other", lambda r: r["evaluation"]["other_share"]),
        ("top share", lambda r: r["evaluation"]["top_share"]),
        ("entropy", lambda r: r["evaluation"]["entropy_nats"]),
        ("KL/seq", lambda r: r["evaluation"]["kl_seq_nats"]),
        ("silent groups", lambda r: _tail(r, "silent_share")),
        ("explained variance", lambda r: _tail(r, "explained_variance")),
        ("value loss", lambda r: _tail(r, "value_loss")),
        ("CPU s", lambda r: r["train_cpu_seconds"]),
    )

    def number(value: float | None, name: str) -> str:
        if value is None:
            return "-"
        return (
            f"{value:.4f}" if name in ("accuracy", "value loss") else f"{value:.3f}" if value < 10 else f"{value:.1f}"
        )

    rows = [["arm", "rate", "seeds", *(name for name, _ in columns), "accuracy - GRPO"]]
    base = {"evaluation": study.base["evaluation"], "curve": [], "trajectory": [], "train_cpu_seconds": None}
    rows.append(["*base*", "", "", *(number(read(base), name) for name, read in columns), ""])
    grpo = by_seed(study.compared, "grpo")
    for arm in study.arms:
        results = study.of(arm)
        row = [f"`{arm}`", f"{results[0]['learning_rate']:g}", str(len(results))]
        for name, read in columns:
            values = [value for result in results if (value := read(result)) is not None]
            row.append(number(statistics.fmean(values) if values else None, name))
        against = by_seed(study.compared, arm)
        row.append("" if arm == "grpo" or not grpo.keys() & against.keys() else _points(difference(against, grpo)))
        rows.append(row)
    about = "\n".join(f"- `{arm}`: {ARMS[arm].about}." for arm in study.arms)
    return (
        f"{about}\n\n{markdown(rows)}\n\n"
        "Means over seeds, held out after training; *silent groups*, *explained variance* and *value loss*: median of "
        f"the last {LAST_ROUNDS} rounds of training; *along the way*: mean of the curve; the last column in points. "
        "Arms of PPO have the learning rate that was chosen for `ppo`, unless another is named."
    )


LAST_ROUNDS = 20


def _tail(result: Mapping[str, Any], name: str) -> float | None:
    """Median: where hardly an answer is wrong, explained variance may be any negative number."""
    values = [row[name] for row in result["trajectory"][-LAST_ROUNDS:] if row[name] is not None]
    return statistics.median(values) if values else None


def _alarm_text(study: Study) -> str:
    rows = [["arm", "seed", "WARN", "FAIL", "format WARN", "format FAIL", "top share >= .9", "top share at the end"]]
    for arm in study.arms:
        for r in sorted(study.of(arm), key=lambda result: result["seed"]):
            rows.append(
                [
                    f"`{arm}`",
                    str(r["seed"]),
                    *(
                        _or_never(r[f"{name}_round"])
                        for name in ("warn", "fail", "format_warn", "format_fail", "top_share_over_0_9")
                    ),
                    f"{r['evaluation']['top_share']:.3f}",
                ]
            )
    return (
        f"{_seen_text(study)}\n\n{markdown(rows)}\n\n"
        "Rounds. *WARN* and *FAIL*: the first `format-collapse` or `entropy-collapse` finding; the next two of "
        "`format-collapse` alone; *>= .9*: the first of two rounds in a row in which one format has nine of ten "
        "completions."
    )


def _seen_text(study: Study) -> str:
    lines = []
    for arm in study.arms:
        collapsed = [r for r in study.of(arm) if r["top_share_over_0_9_round"] is not None]
        rest = [r for r in study.of(arm) if r["top_share_over_0_9_round"] is None]
        warned = [r for r in collapsed if r["warn_round"] is not None]
        leads = [r["top_share_over_0_9_round"] - r["warn_round"] for r in warned]
        lead = f", median lead {statistics.median(leads):.0f} rounds" if leads else ""
        lines.append(
            f"- `{arm}`: {len(collapsed)} of {len(study.of(arm))} seeds passed .9; the monitor warned in {len(warned)} "
            f"of them{lead}, failed {sum(r['fail_round'] is not None for r in collapsed)}. Of the others it warned in "
            f"{sum(r['warn_round'] is not None for r in rest)} of {len(rest)}."
        )
    return "\n".join(lines)


def _or_never(step: int | None) -> str:
    return "never" if step is None else str(step)


def _tuning_text(study: Study) -> str:
    rates = sorted({rate for found in study.tuning.values() for rate in found})
    rows = [["arm", *(f"{rate:g}" for rate in rates)]]
    for arm, found in study.tuning.items():
        cells = [arm]
        for rate in rates:
            if rate not in found:
                cells.append("-")
                continue
            text = f"{statistics.fmean(found[rate]):.4f} ({', '.join(f'{each:.3f}' for each in found[rate])})"
            cells.append(f"**{text}**" if rate == study.rates[arm] else text)
        rows.append(cells)
    return (
        f"{markdown(rows)}\n\nHeld-out accuracy after training, mean (and each) of seeds "
        f"{_list(study.plan.tuning_seeds)}; chosen: the highest mean. PPO's `value_learning_rate` stayed at its "
        "default."
    )


def _varied_text(study: Study) -> str:
    rows = [["setting", "rate", "seeds", "accuracy", "each", "along the way", "effective", "explained variance"]]
    plain = [result for result in study.tuned.values() if result["learning_rate"] >= study.rates["ppo"]]
    about = {"ppo": "as it is"} | {name: arm.about for name, arm in VARIATIONS.items()}
    groups: dict[tuple[str, float], list[Mapping[str, Any]]] = {}
    for result in [*plain, *study.varied.values()]:
        if result["arm"] in about:
            groups.setdefault((result["arm"], result["learning_rate"]), []).append(result)
    for (name, rate), results in sorted(
        groups.items(), key=lambda group: (list(about).index(group[0][0]), group[0][1])
    ):
        explained = [value for r in results if (value := _tail(r, "explained_variance")) is not None]
        rows.append(
            [
                about[name],
                f"{rate:g}",
                str(len(results)),
                f"{statistics.fmean(r['evaluation']['accuracy'] for r in results):.4f}",
                ", ".join(f"{r['evaluation']['accuracy']:.4f}" for r in results),
                f"{statistics.fmean(along_the_way(r) for r in results):.3f}" if results[0]["curve"][1:] else "-",
                f"{statistics.fmean(r['evaluation']['effective_formats'] for r in results):.2f}",
                f"{statistics.fmean(explained):.2f}" if explained else "-",
            ]
        )
    return (
        f"Critic `shared_detached`, seeds {_list(study.plan.tuning_seeds)}; the comparison above runs the "
        f"first row.\n\n{markdown(rows)}"
    )


def _made_with(study: Study) -> str:
    results = [*study.compared.values(), *study.tuned.values(), *study.varied.values()]
    faults = sum(r["faults"] for r in study.compared.values())
    sources = {r["ppo_sha256"] for r in results if r["arm"] != "grpo"}
    mixed = "" if len(sources) == 1 else f" The runs were made with {len(sources)} states of PPOTrainer's sources."
    return (
        f"{made_with(results)} {len(results)} runs, {cpu_seconds(results) / 60:.0f} CPU-minutes; {faults} faults "
        f"inside the monitor in the comparison.{mixed}"
    )


def _list(values: Sequence[object]) -> str:
    return ", ".join(map(str, values))


def _kept(study: Study) -> dict[str, Any]:
    def thinned(result: Mapping[str, Any]) -> dict[str, Any]:
        rows = result["trajectory"]
        kept = [row for row in rows[:-1] if row["round"] % 5 == 0] + rows[-1:]
        return {**result, "trajectory": kept, "settings": result["settings"]["training"]}

    whole: dict[str, Any] = compact(
        {
            "rates": dict(study.rates),
            "tuning": {
                arm: {f"{rate:g}": list(each) for rate, each in rates.items()} for arm, rates in study.tuning.items()
            },
            "claim": {"mean": study.claim.mean, "half": study.claim.half, "lower": lower_end(study.claim)},
            "base": study.base["evaluation"],
            "runs": [thinned(result) for result in study.compared.values()],
            "varied": [thinned(result) for result in study.varied.values()],
        }
    )
    return whole
