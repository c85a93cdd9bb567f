"""Writes the pages of docs/ that the package itself states: metrics, detectors, actions and presets.

python scripts/pages.py
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from rlmon.detectors.catalog import DETECTORS, VERSION, prices
from rlmon.detectors.roster import Roster
from rlmon.interventions import policy_file
from rlmon.interventions.actions import ACTIONS
from rlmon.interventions.policy import OnFinding, OnMetric, Policy, Rule, condition_to_dict
from rlmon.metrics.catalog import render_markdown as metrics

_OF_DETECTORS = f"""# Detectors

Generated from `rlmon.detectors.DETECTORS` and `rlmon/detectors/prices.json` by `python scripts/pages.py`; do not edit.
Version {VERSION} of the detectors.

## What is tested

RL always moves the policy, so "unchanged" is never the null hypothesis. Each detector tests *the statistic has not
passed its damage line*, looks at every step, and has a price: the chance of ever raising a false alarm over a whole
run.

* **Baseline.** Per source and statistic, the first records in which it was measured: 32 prompts or 256
  completions, 8 records at most (`rlmon.baseline`, the run's one rule), and 8 blocks at least, since fewer say
  nothing about an error. For formats, templates and answers it is the mean over *all pairs* of prompts of
  one record, a U-statistic; its standard error is the delete-one jackknife over prompts. Prompts of different records
  are not compared, since no later block compares them: in an ordered dataset they resemble one another less. The
  counts travel in the records until the baseline closes (64 at most are kept), then three numbers are left. For
  everything else, and for logs that hold no counts, it is the mean over blocks with their jackknife. A block is only
  ever compared with the baseline of its own source, so that neither a changed mixture nor a dataset sorted by task
  can look like collapse; blocks of a source without a finished baseline only feed it. Blocks are formed from the
  rows of all ranks together, min(8, P // 2) of the P prompts of a source in a round: the same on any number of
  ranks. With `rlmon_base_sample` a sample of the base is the first record of the baseline, and all of it where it
  is large enough; what it cannot measure (token entropies, KL) has the first records of training.
* **Line.** What is tolerated and where damage begins are two values. FAIL tolerates .8 of the base, WARN the
  base itself; since only an estimate of the base is known, the limit h of what is tolerated is taken from the
  far end of its confidence interval: C+ = base x exp(t SE / base), with Student's t at 1 - `rlmon_alpha` and
  one degree of freedom fewer than prompts or blocks. For what is bad when high, FAIL stands at max(nominal
  line, C+/.8), WARN at max(nominal line, C+); for what is bad when low the same below: min(nominal line, .8
  C-), min(nominal line, C-). Where the interval holds a line back, the finding says how many prompts the
  baseline lacks. Some relative lines also have an absolute side: a base without any repeated template is not
  damaged by the first repetition. Where a line lies beyond what the statistic can reach (a base that already
  has one format), `status()` says `cannot`.
* **Evidence.** With Z the statistic of a block and z* the line, b = clip((Z - z*)/u, -1, 20), R(l) <- (R(l) +
  w)(1 + l b) for l in {{{", ".join(f"{size:g}" for size in Roster().defaults["lambdas"])}}}, M = mean of R over l + the
  weight not yet spent; alarm when M reaches 1/alpha of the detector *and* the smoothed statistic is past the line
  too. While E[b] <= 0, M is a nonnegative supermartingale that starts at 1, so P(ever alarm) <= alpha by Ville's
  inequality, whatever the autocorrelation and however often one looks. Each restart gets w = .9/T of the weight at
  each of the T planned steps (the last tenth is for runs that go on longer), or weights proportional to
  1/(t log^2 t) where T is unknown. Blocks of a step are bets in order; a step spends its weight once. A detector
  with several statistics or sources averages their M.
* **Bet size.** Bad when high: u = h, and at least .75 z*. A block below z* - u counts as that much, and
  E[max(Z, z* - u)] <= E[Z] + z* - h <= z* while E[Z] <= h, for *any* spread of Z >= 0; u = z* for absolute
  lines. Bad when low: a block counts for at most c = min(2, 2 (z*/h) exp(t SE / base)) bases, and u = c - z*.
* **Splitting alpha.** Of `rlmon_alpha` (.01), format-collapse has 40 %, the ten others 6 % each, each rung
  again the same. A detector with two statistics gives each half. answer-concentration has a process of its own for
  each source, and source s (from 0, in order of appearance) the share 1/((s+1)(s+2)); the three collapses give half to
  one process over all sources and half to such processes: all narrowing together is seen soonest by the one, one
  source of many by its own.
* **Not repeated.** A rung that has alarmed is silent until the smoothed statistic was inside the WARN line for 20
  records in a row; then its evidence starts from nothing.
* **Notes.** What costs compute and not capability is a NOTE: the milder rung under another name, with the same
  evidence. It is said once in a run, counts as no second signal, and is never part of a verdict.

## What is promised

At most 1 % of runs with a false FAIL, while the true effective number stays at .8 of its base or above, with 32 prompts
of base, over 2,000 looks. This is *measured* (below), not proved: Ville's bound holds given the base, and C+ is an
approximation of what the base may be. Nothing is promised on the FAIL line itself: with 32 prompts the base's error
alone puts many an estimate of .6 on either side. Nor is anything promised of a WARN between .8 and 1 of the base.

Two caveats. A first few steps that already are the damage move the line. And a detector knows only the strata that it
is told: a dataset sorted by something that neither a source column nor the prompt's template shows is, to any detector,
a change of the policy; set `rlmon_source_column`.

## Two agreeing signals

Low token entropy is neither necessary for collapse (templates) nor sufficient (benign sharpening), and it was a late
signal in the measured runs. So `entropy-collapse` reaches FAIL only when format-, template-, move-collapse or
answer-concentration has at least warned; until then it stays at WARN. The collision detectors need no second signal:
what they measure is the narrowness itself, each across prompts and within a prompt. `kl-drift` needs both its
statistics, per token and per sequence: distance is not damage, and per sequence alone it would grow with length.
`benign_sharpening` stands on every finding: reward up by 2 SE of its base, and right answers still in as many formats
as .8 of the base's, and to one prompt in as many openings and templates. Of these two each that was measured is asked,
and 20 of either are enough: a base of one format keeps it while its wording dies.

Sources: Shin, Ramdas and Rinaldo, *E-detectors*, arXiv:2203.03532 (there the run length is bounded, here the run's
false-alarm probability); Waudby-Smith and Ramdas, betting, arXiv:2010.09686.
"""


def _percent(cell: Mapping[str, Any] | None, *, rung: bool) -> str:
    if not rung:
        return "-"
    if not cell:
        return "not measured"
    return f"{100 * cell['rate']:.1f} % [{100 * cell['low']:.1f}, {100 * cell['high']:.1f}]"


def _promise(measured: Mapping[str, Any]) -> list[str]:
    """Both tables of what ``benchmarks/alarm_promise.py`` measured."""
    if not measured:
        return []
    rows, collapses = measured["rows"], measured["collapses"]
    out = [
        f"## The promise, measured\n\nRuns that draw their own base and from the next look on stand exactly at "
        f"{measured['tolerated']:g} of it (`benchmarks/alarm_promise.py`, run by `alarm_price.py`): {rows[0]['runs']} "
        f"runs of {rows[0]['looks']} looks for each line; false FAILs and the upper end of the 95 % interval of their "
        "rate. The spread of later blocks is that of the base, or four times as wide.\n\n"
        "| statistic | base | spread as it was | spread x 4 |\n|---|---|---|---|"
    ]
    for row in rows[::2]:
        pair = [r for r in rows if (r["family"], r["name"]) == (row["family"], row["name"])]
        cells = [f"{r['events']}, at most {100 * r['high']:.2f} %" for r in sorted(pair, key=lambda r: r["spread"])]
        out.append(f"| {row['family']} | {row['name']} | {' | '.join(cells)} |")
    out.append(
        f"\nCollapses that stop at {measured['stop']:g} of the base, most of the way in 30 looks:\n\n"
        "| base | found | looks after it began, median | 95 % |\n|---|---|---|---|"
    )
    for row in collapses:
        out.append(
            f"| {row['name']} | {100 * row['found'] / row['collapses']:.1f} % of {row['collapses']} | "
            f"{row['looks_after_it_began_p50']} | {row['looks_after_it_began_p95']} |"
        )
    return [*out, ""]


def detectors() -> str:
    """``docs/detectors.md``."""
    table = prices()
    out = [_OF_DETECTORS, "## The detectors\n"]
    for spec in DETECTORS:
        out.append(f"### {spec.id}\n\n{spec.meaning}\n")
        out.append(f"* reads {', '.join(f'`{name}`' for name in spec.statistics)}; tells {', '.join(spec.metrics)}")
        out.append(f"* line: {spec.line}{' (a prior, not calibrated on your run)' if spec.prior else ''}")
        out.append(f"* method: {spec.method}")
        out.append(f"* advice: {spec.advice}\n")
    out += _promise(table.get("promise", {}))
    out.append("## The price of an alarm\n")
    total = table.get("total", {})
    if total:
        any_fail = total["fail"]
        out.append(
            f"`python benchmarks/alarm_price.py --out rlmon/detectors/prices.json`: {any_fail['runs']} simulated "
            f"healthy runs of {any_fail['looks']} looks, alpha {table['alpha']:g}; share of runs with at least one "
            "alarm, 95 % Clopper-Pearson interval. Runs are bootstrapped by prompt group from real completions, "
            "with drift to .8 of the base's effective formats, prompt heterogeneity and, in half of them, a dataset "
            "sorted by task (see the command's help). Half of the runs end exactly on the WARN line of formats, so "
            "that many of these WARNs are no mistakes.\n"
        )
    out.append("| detector | false FAIL | WARN (NOTE) |\n|---|---|---|")
    for spec in DETECTORS:
        if spec.rule == "immediate":
            out.append(f"| {spec.id} | exact | - |")
            continue
        cells = (
            _percent(spec.false_fail, rung="fail" in spec.rungs),
            _percent(spec.false_warn, rung=spec.warn is not None),
        )
        out.append(f"| {spec.id} | {cells[0]} | {cells[1]} |")
    if total:
        out.append(f"| **any** | {_percent(total['fail'], rung=True)} | {_percent(total['warn'], rung=True)} |")
    power: Mapping[str, Any] = table.get("power", {})
    if power:
        out.append(
            "\n## How early\n\nSimulated collapses: the share of one format rises logistically from .13 to .98, onset "
            "at step 30 to 50, 8 prompts x 8 completions a step. Steps are counted to the first of two rounds in a "
            "row in which one format has .9 or more.\n\n"
            "| planned steps | collapses | FAIL of format-collapse | before .9 | at least 10 steps before | "
            "steps before, 5 % / median / 95 % | FAIL at step, median | .9 at step, median | effective formats over "
            "base at FAIL, highest |\n|---|---|---|---|---|---|---|---|---|"
        )
        for row in power.values():
            quantiles = row["steps_before_min_p5_p50_p95"][1:]
            out.append(
                f"| {row['planned_steps']} | {row['collapses']} | {row['failed']} | {row['failed_before']} | "
                f"{row['at_least_10_steps_before']} | {' / '.join(str(q) for q in quantiles)} | "
                f"{row['fail_step_p50']} | {row['step_over_0_9_p50']} | "
                f"{row['effective_over_base_at_fail_max']:.2f} |"
            )
    out.append("\n## Parameters\n")
    for name, value in Roster().defaults.items():
        if name != "lines":
            out.append(f"* `{name}`: {value}")
    return "\n".join(out) + "\n"


_OF_INTERVENTIONS = """# Interventions: reference

Generated from `rlmon/interventions/` by `python scripts/pages.py`; do not edit. What the actions are
for, and how to write a policy: [interventions.md](interventions.md).
"""


def interventions() -> str:
    """``docs/interventions-reference.md``."""
    out = [_OF_INTERVENTIONS, "## Actions"]
    for name, kind in ACTIONS.items():
        out.append(f"### {name}\n\n{_first_line(kind)}")
        out.append(_table(kind) if dataclasses.fields(kind) else "It has no settings.")
    out.append("## Rules\n\nBeside `when` and `do`:")
    out.append(_table(Rule, leave_out=("name", "when", "action")))
    out.append("## Conditions")
    for key, condition in (("finding", OnFinding), ("metric", OnMetric)):
        out.append(f"### {key}\n\n{_first_line(condition)}")
        out.append(_table(condition))
    out.append("`always` holds from the first step to the last; `any: [...]` and `all: [...]` join conditions.")
    out.append("## Presets\n\nAs resolved, rule by rule; the files say why each is there.")
    for name in policy_file.preset_names():
        out.append(f"### {name}\n\n{_preset(name)}")
    return "\n\n".join(part.strip() for part in out) + "\n"


def _first_line(kind: type[Any]) -> str:
    return (kind.__doc__ or "").strip().split("\n\n")[0].replace("\n    ", " ")


def _table(kind: type[Any], leave_out: tuple[str, ...] = ()) -> str:
    hints = get_type_hints(kind)
    rows = ["| field | takes | default | meaning |", "|---|---|---|---|"]
    for field in dataclasses.fields(kind):
        if field.name in leave_out:
            continue
        cells = (
            f"`{field.name}`",
            _takes(hints[field.name], field.metadata),
            "needed" if field.default is dataclasses.MISSING else _shown(field.default),
            field.metadata["help"],
        )
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows)


def _takes(hint: Any, metadata: Any) -> str:
    """A field's type and range, in words."""
    inside = get_args(hint)
    if get_origin(hint) in (Union, types.UnionType):
        return _takes(next(arg for arg in inside if arg is not type(None)), metadata)
    if get_origin(hint) is Literal:
        return ", ".join(f"`{word}`" for word in inside)
    if hint is bool:
        return "`true`, `false`"
    if hint is str:
        return "name"
    low, high = metadata.get("low"), metadata.get("high")
    number = "whole number" if hint is int else "number"
    limits = "" if low is None and high is None else f" >= {low:g}" if high is None else f" in [{low:g}, {high:g}]"
    return f"two: [least, most],{limits}" if get_origin(hint) is tuple else number + limits


def _shown(value: Any) -> str:
    if value is None:
        return "unset"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{', '.join(f'{part:g}' for part in value)}]"
    return str(value)


def _preset(name: str) -> str:
    policy = Policy.from_dict({"extends": name})
    rows = ["| rule | when | does | dry run |", "|---|---|---|---|"]
    for rule in policy.rules:
        when = _words(condition_to_dict(rule.when))
        rows.append(f"| `{rule.name}` | {when} | [{rule.action.name}](#{rule.action.name}) | "
                    f"{'yes' if rule.dry_run else 'no'} |")  # fmt: skip
    return "\n".join(rows)


def _words(when: Any) -> str:
    """A condition as one line of YAML."""
    if isinstance(when, str):
        return f"`{when}`"
    return "`{" + ", ".join(f"{key}: {value}" for key, value in when.items()) + "}`"


PAGES = {"metrics.md": metrics, "detectors.md": detectors, "interventions-reference.md": interventions}
"""By file name, what renders it."""

if __name__ == "__main__":
    for name, render in PAGES.items():
        (Path(__file__).parents[1] / "docs" / name).write_text(render(), encoding="utf-8")
