"""Renders docs/detectors.md from the specs and the measured prices.

python -m rlmon.detectors.document            print it
python -m rlmon.detectors.document PATH       write it
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlmon.detectors.catalog import DETECTORS, VERSION, prices
from rlmon.detectors.fold import DEFAULTS

_INTRODUCTION = f"""# Detectors

Generated from `rlmon.detectors.DETECTORS` and `rlmon/detectors/prices.json` by `python -m rlmon.detectors.document \
docs/detectors.md`; do not edit. Version {VERSION} of the detectors.

## What is tested

RL always moves the policy, so "unchanged" is never the null hypothesis. Each detector tests *the statistic has not
passed its damage line*, looks at every step, and has a price: the chance of ever raising a false alarm over a whole
run.

* **Baseline.** Per source and statistic, from the first records in which that source appears: until 32 prompts or 256
  completions and 8 blocks, and on to 8 records where 6 standard errors still reach beyond the nominal line. The
  standard error is the jackknife over blocks, which share no prompt. A block is only ever compared with the baseline of
  its own source, so that neither a changed mixture nor a dataset sorted by task can look like collapse; blocks of a
  source without a finished baseline only feed it. Blocks are formed from the rows of all ranks together, min(8, P // 2)
  of the P prompts of a source in a round: the same on any number of ranks.
* **Line.** In the direction of damage, the farthest of the nominal line in the table and 6 standard errors from the
  base. Where the latter decides, the finding says how many prompts the baseline lacks. Some relative lines also have an
  absolute side: a base without any repeated template is not damaged by the first repetition. Where a line lies beyond
  what the statistic can reach (a base that already has one format), `status()` says `cannot`.
* **Evidence.** With Z the statistic of a block and z* the line, b = clip((Z - z*)/u, -1, 20), R(l) <- (R(l) + w)(1 +
  l b) for l in {{{", ".join(f"{size:g}" for size in DEFAULTS["lambdas"])}}}, M = mean of R over l + the weight not yet
  spent; alarm when M reaches 1/alpha of the detector *and* the smoothed statistic is past the line too. While
  undamaged, M is a nonnegative supermartingale that starts at 1, so P(ever alarm) <= alpha by Ville's inequality,
  whatever the autocorrelation and however often one looks. Each restart gets w = .9/T of the weight at each of the T
  planned steps (the last tenth is for runs that go on longer), or weights proportional to 1/(t log^2 t) where T is
  unknown. Blocks of a step are bets in order; a step spends its weight once.
* **Bet size.** Bad when high: u = z* - the narrowest block of the baseline (at most half the line is taken off; u = z*
  for absolute lines). Bad when low: u = z*.
* **Splitting alpha.** `rlmon_alpha` (.01) is the chance of any false FAIL in a run: format-collapse has 40 % of it, the
  ten others 6 % each, each rung again the same. A detector with two statistics gives each half; a detector per source
  gives source s (from 0, in order of appearance) the share 1/((s+1)(s+2)).
* **Not repeated.** A rung that has alarmed is silent until the smoothed statistic was inside the WARN line for 20
  records in a row; then its evidence starts from nothing.
* **Notes.** What costs compute and not capability is a NOTE: the milder rung under another name, with the same
  evidence. It is said once in a run, counts as no second signal, and is never part of a verdict.

Three caveats. The guarantee is conditional on the baseline: a base estimate that is off by more than 6 standard
errors, or a first few steps that already are the damage, move the line. It is exact for the clipped statistic: a block
narrower than every block of the baseline counts as the narrowest one (bad when high), a block above twice the line as
twice the line (bad when low). And it knows only the strata that it is told: a dataset sorted by something that neither
a source column nor the prompt's template shows is, to any detector, a change of the policy; set `rlmon_source_column`.

## Two agreeing signals

Low token entropy is neither necessary for collapse (templates) nor sufficient (benign sharpening), and it was a late
signal in the measured runs. So `entropy-collapse` reaches FAIL only when format-, template-, move-collapse or
answer-concentration has at least warned; until then it stays at WARN. The collision detectors need no second signal:
what they measure is the narrowness itself, each across prompts and within a prompt. `kl-drift` needs both its
statistics, per token and per sequence: distance is not damage, and per sequence alone it would grow with length.
`benign_sharpening` stands on every finding: reward up by 2 SE of its base and correct-only formats still at .8 of
theirs.

Sources: Shin, Ramdas and Rinaldo, *E-detectors*, arXiv:2203.03532 (there the run length is bounded, here the run's
false-alarm probability); Waudby-Smith and Ramdas, betting, arXiv:2010.09686.
"""


def _percent(cell: Mapping[str, Any] | None, *, rung: bool) -> str:
    if not rung:
        return "-"
    if not cell:
        return "not measured"
    return f"{100 * cell['rate']:.1f} % [{100 * cell['low']:.1f}, {100 * cell['high']:.1f}]"


def render() -> str:
    """The page as Markdown."""
    table = prices()
    out = [_INTRODUCTION, "## The detectors\n"]
    for spec in DETECTORS:
        out.append(f"### {spec.id}\n\n{spec.meaning}\n")
        out.append(f"* reads {', '.join(f'`{name}`' for name in spec.statistics)}; tells {', '.join(spec.metrics)}")
        out.append(f"* line: {spec.line}{' (a prior, not calibrated on your run)' if spec.prior else ''}")
        out.append(f"* method: {spec.method}")
        out.append(f"* advice: {spec.advice}\n")
    out.append("## The price of an alarm\n")
    total = table.get("total", {})
    if total:
        any_fail = total["fail"]
        out.append(
            f"`python benchmarks/alarm_price.py --out rlmon/detectors/prices.json`: {any_fail['runs']} simulated "
            f"healthy runs of {any_fail['looks']} looks, alpha {table['alpha']:g}; share of runs with at least one "
            "false alarm, 95 % Clopper-Pearson interval. Runs are bootstrapped by prompt group from real completions, "
            "with drift to .8 of the base's effective formats, prompt heterogeneity and, in half of them, a dataset "
            "sorted by task (see the command's help). Every WARN counts here, also those of the runs that end exactly "
            "on the WARN line.\n"
        )
    out.append("| detector | false FAIL | false WARN (NOTE) |\n|---|---|---|")
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
    for name, value in DEFAULTS.items():
        if name != "lines":
            out.append(f"* `{name}`: {value}")
    return "\n".join(out) + "\n"


if __name__ == "__main__":
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(render(), encoding="utf-8")
    else:
        sys.stdout.write(render())
