"""What the runs of ``rlmon demo`` came to: what each kept and paid, the claims checked, the table.

``DEFINITIONS`` says what every number is.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlmon.lab.evaluate import Evaluation
from rlmon.lab.second_act import BASE, MOST_STEPS, PROMPTS, SAMPLES_PER_PROMPT, SecondAct
from rlmon.records import Action

TOP_SHARE_LINE = 0.9
LEAD_STEPS = 10
KEPT_LINE = 0.85
"""Least share of the base's formats in use that ``protect`` is to keep among correct answers."""
PRICE_POINTS = {"kl": 5, "protect": 3}
"""Most points of accuracy that an arm may end under the unprotected one."""
OTHER_POINTS = 2
"""Most points by which completions in no known format may grow under ``protect``."""
SUPPORT_SHARE = 0.01
"""Least share of the wanted format in what is sampled with which it is to be learned about as fast as from the base."""
SLOWER_AT_MOST = 1.5
"""Most steps that this may take, in those of the base."""
ACTIONS_SHOWN = 200
"""Most actions of a run that ``demo.json`` lists; it counts all of them, and the run log has them."""

EVALUATED = (
    "accuracy",
    "effective_formats",
    "effective_formats_within",
    "effective_formats_correct",
    "effective_formats_correct_within",
    "other_share",
    "top_format",
    "top_share",
    "entropy_nats",
    "kl_nats",
    "kl_seq_nats",
)
"""Fields of ``Evaluation`` that ``demo.json`` carries for the base and for each run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ArmResult:
    """What one arm did on one seed."""

    arm: str
    policy: str | None = None
    """Name of the policy that acted; ``None`` where the run was only watched."""
    seed: int
    evaluation: Evaluation
    """Held out, after training."""
    first_warn_step: int | None
    """Step of the first collapse finding at WARN or FAIL."""
    first_fail_step: int | None
    """Step of the first collapse finding at FAIL."""
    top_share_over_0_9_step: int | None
    """First of two consecutive training rounds whose largest format has .9 of the completions or more."""
    narrowed_step: int | None
    """First step at which the mean formats in use of the last 5 rounds are below .9 of the base's."""
    cpu_seconds: float
    """Training, monitoring and evaluation; process time over all threads."""
    monitor_seconds: float | None
    """The monitor's part of it, by its own timers."""
    faults: int
    """Failures inside the monitor that training did not notice; 0 is expected."""
    findings: list[dict[str, Any]]
    log: str
    """Run directory, relative to ``demo.json``."""
    actions: list[Action] = field(default_factory=list)
    """What the arm's policy did, every phase of it, as in the log; empty without a policy."""
    levels: dict[str, list[float]] = field(default_factory=dict)
    """``kappa`` and ``beta`` at the end of each step, where measured; empty without a policy."""


def unprotected_of(results: Sequence[ArmResult], seed: int) -> ArmResult | None:
    """The unprotected run of this seed, where there is one."""
    return next((r for r in results if r.arm == "unprotected" and r.seed == seed), None)


def kept_of(result: ArmResult, base: Evaluation, unprotected: ArmResult | None) -> dict[str, float | None]:
    """What the run kept of the base's formats, as ratios, and its price in accuracy: see ``DEFINITIONS``."""
    now = result.evaluation

    def ratio(name: str) -> float | None:
        after, before = getattr(now, name), getattr(base, name)
        return None if after is None or not before else float(after / before)

    return {
        "across": ratio("effective_formats"),
        "within": ratio("effective_formats_within"),
        "correct": ratio("effective_formats_correct"),
        "correct_within": ratio("effective_formats_correct_within"),
        "price": None if unprotected is None else unprotected.evaluation.accuracy - now.accuracy,
    }


def acted_of(result: ArmResult) -> dict[str, Any] | None:
    """What the run's policy did, see ``DEFINITIONS``; ``None`` for an arm without one."""
    if result.policy is None:
        return None
    real = [action for action in result.actions if not action.dry_run]
    decided = {action.action_id: action for action in real if action.phase == "decided"}
    failed = {action.action_id for action in real if action.phase == "failed"}
    measured = {action.action_id: action for action in real if action.phase == "measured"}
    effects: dict[str, Counter[str]] = {}
    for action in measured.values():
        effects.setdefault(action.knob, Counter())[str(action.effect)] += 1
    kappa, beta = result.levels.get("kappa"), result.levels.get("beta")
    return {
        "applied": dict(Counter(action.knob for action in real if action.phase == "applied")),
        "failed": len(failed),
        "last_kappa": kappa[-1] if kappa else None,
        "last_beta": beta[-1] if beta else None,
        "effects": {knob: dict(counts) for knob, counts in effects.items()},
        "actions": [
            {
                "step": action.step,
                "rule": action.rule,
                "knob": action.knob,
                "old": action.old,
                "new": action.new,
                "reason": action.reason,
                "failed": name in failed,
                "effect": measured[name].effect if name in measured else None,
                "effect_reason": measured[name].effect_reason if name in measured else None,
            }
            for name, action in list(decided.items())[:ACTIONS_SHOWN]
        ],
    }


def claims(results: Sequence[ArmResult], base: Evaluation) -> list[dict[str, Any]]:
    """What the demo says about itself, checked: ``{"id", "arm", "seed", "text", "holds", "shown"}``.

    ``holds`` is ``None`` where an arm that the claim needs was not run.
    """
    rows: list[dict[str, Any]] = []

    def claim(result: ArmResult, id: str, text: str, holds: bool | None, shown: str) -> None:
        rows.append({"id": id, "arm": result.arm, "seed": result.seed, "text": text, "holds": holds, "shown": shown})

    for r in results:
        now, fail, over = r.evaluation, r.first_fail_step, r.top_share_over_0_9_step
        other = unprotected_of(results, r.seed)
        if r.arm == "unprotected":
            claim(
                r,
                "collapses",
                "ends on one format: above .9 of completions, under 1.5 formats in use",
                now.top_share > TOP_SHARE_LINE and now.effective_formats < 1.5,
                f"{now.top_format} {now.top_share:.3f}, {now.effective_formats:.2f} formats in use",
            )
            claim(
                r,
                "warned-in-time",
                f"FAIL at least {LEAD_STEPS} steps before the top share passes .9",
                fail is not None and (over is None or fail <= over - LEAD_STEPS),
                f"FAIL {_at(fail)}, .9 passed {_at(over)}",
            )
            claim(
                r,
                "no-false-alarm",
                "no FAIL before the 5-round mean of formats in use is below .9 of the base",
                fail is None or (r.narrowed_step is not None and r.narrowed_step <= fail),
                f"FAIL {_at(fail)}, below .9 of base {_at(r.narrowed_step)}",
            )
            continue
        if r.arm == "kl":
            claim(
                r,
                "kept",
                "no collapse FAIL with KL, and at least .8 of the base's formats in use",
                fail is None and now.effective_formats >= 0.8 * base.effective_formats,
                f"FAIL {_at(fail)}, {now.effective_formats:.2f} of {base.effective_formats:.2f}",
            )
        else:
            kept = kept_of(r, base, other)
            claim(
                r,
                "kept",
                f"no collapse FAIL, and {_point(KEPT_LINE)} or more of the base's formats in use in correct answers",
                fail is None and _reaches(kept["correct"], KEPT_LINE),
                f"FAIL {_at(fail)}, {_two(now.effective_formats_correct)} of {_two(base.effective_formats_correct)}",
            )
            claim(
                r,
                "kept-within",
                f"within prompts too, {_point(KEPT_LINE)} or more of the base's in correct answers",
                _reaches(kept["correct_within"], KEPT_LINE),
                f"{_two(now.effective_formats_correct_within)} of {_two(base.effective_formats_correct_within)}",
            )
        claim(
            r,
            "learns",
            "accuracy at least 5 points above the base",
            now.accuracy >= base.accuracy + 0.05,
            f"{now.accuracy:.3f} against {base.accuracy:.3f}",
        )
        points = PRICE_POINTS[r.arm]
        claim(
            r,
            "price",
            f"accuracy at most {points} points under the unprotected arm",
            None if other is None else now.accuracy >= other.evaluation.accuracy - points / 100,
            "not run" if other is None else f"{now.accuracy:.3f} against {other.evaluation.accuracy:.3f}",
        )
        if r.arm == "protect":
            claim(
                r,
                "other",
                f"answers in no known format at most {OTHER_POINTS} points above the base's",
                now.other_share <= base.other_share + OTHER_POINTS / 100,
                f"{now.other_share:.1%} against {base.other_share:.1%}",
            )
    return rows


def second_act_claims(acts: Sequence[SecondAct]) -> list[dict[str, Any]]:
    """The same form as ``claims`` for what came after the requirement had changed, one claim for each end of an arm.

    ``holds`` is ``None`` where chance decides: something was sampled, and less than ``SUPPORT_SHARE``.
    """
    samples = PROMPTS * SAMPLES_PER_PROMPT
    enough = math.ceil(SUPPORT_SHARE * samples)
    of_base = {act.seed: act.continued.steps_to_90 for act in acts if act.arm == BASE}
    rows: list[dict[str, Any]] = []
    for act in acts:
        if act.arm == BASE:
            continue
        steps, base = act.continued.steps_to_90, of_base[act.seed]
        holds = None
        if act.wanted_in_4096 == 0:
            holds = steps is None
        elif act.wanted_in_4096 >= enough and base is not None:
            holds = steps is not None and steps <= SLOWER_AT_MOST * base
        rows.append(
            {
                "id": "second-act",
                "arm": act.arm,
                "seed": act.seed,
                "text": f"then asked for {act.wanted.upper()}: not learned in {MOST_STEPS} steps where none of "
                f"{samples:,} samples has it, in at most {SLOWER_AT_MOST:g} times the base's steps where "
                f"{enough} have it",
                "holds": holds,
                "shown": f"{act.wanted_in_4096:,} samples, learned {_at(steps)}; base {_at(base)}",
            }
        )
    return rows


def _reaches(share: float | None, line: float) -> bool:
    return share is not None and share >= line


def _point(share: float) -> str:
    return f"{share:.2f}".lstrip("0")


def _two(number: float | None) -> str:
    return "-" if number is None else f"{number:.2f}"


def final_table(results: Sequence[ArmResult], base: Evaluation, checked: Sequence[Mapping[str, Any]]) -> str:
    """The result as plain text, one line per run, and the claims below it."""
    head = (
        "run", "accuracy", "effective", "within", "correct", "c.within", "other", "top format", "top", "entropy",
        "KL/token", "KL/seq", "WARN", "FAIL", ">=.9", "CPU s",
    )  # fmt: skip
    lines = [
        head,
        _table_line("base", base, "", "", "", ""),
        *(
            _table_line(
                f"{r.arm}-seed{r.seed}",
                r.evaluation,
                _or_never(r.first_warn_step),
                _or_never(r.first_fail_step),
                _or_never(r.top_share_over_0_9_step),
                f"{r.cpu_seconds:.1f}",
            )
            for r in results
        ),
    ]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    left = {head.index("run"), head.index("top format")}
    text = "\n".join(
        "  ".join(cell.ljust(widths[i]) if i in left else cell.rjust(widths[i]) for i, cell in enumerate(line)).rstrip()
        for line in lines
    )
    marks = {True: "holds ", False: "FAILS ", None: "skip  "}
    verdicts = "\n".join(f"{marks[c['holds']]} {c['arm']}-seed{c['seed']}: {c['text']} ({c['shown']})" for c in checked)
    did = "".join(f"{_did(r, base, unprotected_of(results, r.seed))}\n" for r in results if r.policy)
    return f"\n{text}\n\n{did}{verdicts}\n"


def _did(result: ArmResult, base: Evaluation, unprotected: ArmResult | None) -> str:
    """One line on a run with a policy: what it kept, what it paid, what was done."""
    kept, acted = kept_of(result, base, unprotected), acted_of(result)
    assert acted is not None

    def share(name: str) -> str:
        return "-" if kept[name] is None else f"{kept[name]:.0%}"

    done = ", ".join(f"{knob} {count}" for knob, count in acted["applied"].items()) or "none"
    levels = ", ".join(f"{name} ends at {acted[f'last_{name}']:.3g}" for name in ("kappa", "beta")
                       if acted[f"last_{name}"] is not None)  # fmt: skip
    price = "" if kept["price"] is None else f", price {100 * kept['price']:.1f} points of accuracy"
    return (
        f"did    {result.arm}-seed{result.seed}: kept {share('across')} of the base's formats, {share('correct')} among"
        f" correct answers, {share('correct_within')} within prompts{price}; actions: {done}"
        f"{f' ({levels})' if levels else ''}{', FAILED ' + str(acted['failed']) if acted['failed'] else ''}"
    )


def _table_line(name: str, e: Evaluation, warn: str, fail: str, over: str, cpu: str) -> tuple[str, ...]:
    return (
        name,
        f"{e.accuracy:.3f}",
        f"{e.effective_formats:.2f}",
        _two(e.effective_formats_within),
        _two(e.effective_formats_correct),
        _two(e.effective_formats_correct_within),
        f"{e.other_share:.3f}",
        e.top_format,
        f"{e.top_share:.3f}",
        f"{e.entropy_nats:.3f}",
        f"{e.kl_nats:.3f}",
        f"{e.kl_seq_nats:.2f}",
        warn,
        fail,
        over,
        cpu,
    )


def _or_never(step: int | None) -> str:
    return "never" if step is None else str(step)


def _at(step: int | None) -> str:
    return "never" if step is None else f"at step {step}"


def evaluated(evaluation: Evaluation) -> dict[str, Any]:
    return {name: _finite(getattr(evaluation, name)) for name in EVALUATED}


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def run_row(result: ArmResult, base: Evaluation, unprotected: ArmResult | None = None) -> dict[str, Any]:
    return {
        "arm": result.arm,
        "seed": result.seed,
        **evaluated(result.evaluation),
        "first_warn_step": result.first_warn_step,
        "first_fail_step": result.first_fail_step,
        "top_share_over_0_9_step": result.top_share_over_0_9_step,
        "cpu_seconds": round(result.cpu_seconds, 2),
        "base": evaluated(base),
        "kept": kept_of(result, base, unprotected),
        "acted": acted_of(result),
        "narrowed_step": result.narrowed_step,
        "monitor_seconds": None if result.monitor_seconds is None else round(result.monitor_seconds, 2),
        "faults": result.faults,
        "format_shares": result.evaluation.format_shares,
        "samples": result.evaluation.samples,
        "findings": result.findings,
        "log": result.log,
    }


DEFINITIONS: Mapping[str, str] = {
    "accuracy": "share of held-out completions whose stated answer the verifier accepts",
    "effective_formats": "exp(-sum p ln p) over the pooled format shares, 'other' counted as one format",
    "effective_formats_within": "1 / mean over prompts of the unbiased chance that two completions of one prompt "
    "share a format (Hill number of order 2, so below effective_formats even without any narrowing)",
    "effective_formats_correct": "effective_formats over the correct completions",
    "effective_formats_correct_within": "effective_formats_within over the correct completions of prompts that have "
    "two or more",
    "other_share": "share of completions in no known format",
    "top_format": "the most frequent format",
    "top_share": "its share of the held-out completions",
    "entropy_nats": "mean entropy of the next-token distribution over completion tokens, temperature 1",
    "kl_nats": "exact full-vocabulary KL(policy || base), mean over completion tokens",
    "kl_seq_nats": "the same summed over each completion, mean over completions",
    "first_warn_step": "first format-collapse or entropy-collapse finding, WARN or FAIL",
    "first_fail_step": "first format-collapse or entropy-collapse finding at FAIL",
    "top_share_over_0_9_step": "first of two consecutive training rounds whose top format has .9 or more",
    "cpu_seconds": "process time of training, monitoring and evaluating this run",
    "kept.across": "effective_formats over the base's; above 1 where the run is more even than the base was",
    "kept.within": "effective_formats_within over the base's",
    "kept.correct": "effective_formats_correct over the base's: garbage and wrong answers count for nothing",
    "kept.correct_within": "effective_formats_correct_within over the base's",
    "kept.price": "accuracy of the unprotected run of this seed less this run's; null where that was not run",
    "acted.applied": "actions in effect, by what they turned: advantages are groups that a quarantine took out, "
    "draws are prompts that were put off; null for an arm without a policy",
    "acted.failed": "actions that did not work; 0 is expected",
    "acted.last_kappa": "strength of the pull towards the base's distribution over formats, at the last step",
    "acted.last_beta": "weight of the KL penalty at the last step, as the policy left it",
    "acted.effects": "measured effects of the actions, by what they turned: before and after, without a control",
    "acted.actions": "what was decided and what came of it, the first 200",
    "second_act.wanted": "the format that is asked for after training; rewarded is what is right and in it",
    "second_act.wanted_in_4096": "held-out samples in it before training went on, right or not, of 4,096",
    "second_act.mixed_groups": "groups of 8 answers, some rewarded and some not: what GRPO learns from",
    "second_act.weights_moved": "length of the change of all weights over their length",
    "second_act.steps_to_90": f"first step whose mean reward of 5 steps is .9 or more; null: not in {MOST_STEPS}",
    "second_act.rewards": "mean reward of each step; it ends there or at the last step",
}
