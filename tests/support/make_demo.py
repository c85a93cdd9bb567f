"""A finished demo as ``rlmon demo`` leaves it, small: two arms and a policy, of which one collapses."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import make_runlog

STEPS = 30
MODES = ("python", "prose", "boxed")
ARMS = {
    "unprotected": {"beta": 0.0, "policy": None},
    "kl": {"beta": 0.1, "policy": None},
    "protect": {"beta": 0.0, "policy": "protect"},
}
EVALUATED = {
    "accuracy": 0.95,
    "effective_formats": 3.2,
    "effective_formats_within": 2.9,
    "effective_formats_correct": 3.1,
    "effective_formats_correct_within": 2.8,
    "other_share": 0.0,
    "top_format": "prose",
    "top_share": 0.45,
    "entropy_nats": 0.24,
    "kl_nats": 0.02,
    "kl_seq_nats": 0.2,
}
SAMPLES = [
    {
        "prompt": f"Eva has {i} figs and gets 2 more. How many?\n",
        "completion": text,
        "format": "prose",
        "correct": right,
    }
    for i, (text, right) in enumerate([("print(0+2)", True), ("", False)])
]


def demo() -> dict[str, Any]:
    """What ``demo.json`` holds."""
    claim = {"seed": 0, "text": "ends on one format", "shown": "python 0.980"}
    return {
        "tool": "rlmon demo",
        "created_unix_seconds": 1_700_000_000.0,
        "packages": {"rlmon": "0.1.0"},
        "seeds": [0],
        "arms": ARMS,
        "evaluation": {
            "prompts": 128, "samples_per_prompt": 8, "completions": 1024, "temperature": 1.0, "held_out": "one in 8"
        },
        "definitions": {"accuracy": "share of held-out completions that are right"},
        "base": {**EVALUATED, "weights_sha256": "0" * 64, "samples": SAMPLES},
        "runs": [_run(arm) for arm in ARMS],
        "second_act": [_second_act(arm) for arm in ("base", *ARMS)],
        "claims": [
            {**claim, "id": word, "arm": arm, "holds": holds}
            for arm, word, holds in (("unprotected", "a", True), ("kl", "b", False), ("protect", "c", None))
        ],
        "cpu_seconds": 130.0,
    }  # fmt: skip


def series() -> dict[str, dict[str, Any]]:
    """What the page draws, by the name of a run."""
    return {f"{arm}-seed0": _series(arm) for arm in ARMS}


def _second_act(arm: str) -> dict[str, Any]:
    lost = arm == "unprotected"
    return {
        "arm": arm, "seed": 0, "wanted": "json", "wanted_in_4096": 0 if lost else 458,
        "mixed_groups": 0 if lost else 250, "weights_moved": 0.0 if lost else 0.07, "steps_to_90": None if lost else 40,
        "rewards": [0.0] * 80 if lost else [step / 40 for step in range(1, 41)],
    }  # fmt: skip


def _run(arm: str) -> dict[str, Any]:
    lost, policy = arm == "unprotected", ARMS[arm]["policy"]
    acts = [
        {"step": step, "rule": "hold", "knob": knob, "old": 0.0, "new": 0.3, "reason": "always", "failed": failed,
         "effect": effect, "effect_reason": "too few steps"}
        for step, knob, failed, effect in (
            (1, "beta", False, "helped"), (2, "draws", True, None), (3, "kappa (format)", False, "harmed"),
            (4, "advantages", False, "not_measured"),
        )
    ]  # fmt: skip
    severities = ("note", "warn", "fail") if lost else ()
    findings = [
        asdict(make_runlog.finding(10 * at, severity=severity)) for at, severity in enumerate(severities, start=1)
    ]
    ended = {"top_format": "python", "top_share": 0.98, "effective_formats": 1.1} if lost else {}
    return {
        **EVALUATED,
        **ended,
        "arm": arm,
        "seed": 0,
        "samples": SAMPLES,
        "findings": findings,
        "first_warn_step": 20 if lost else None,
        "first_fail_step": 30 if lost else None,
        "top_share_over_0_9_step": 30 if lost else None,
        "cpu_seconds": 40.0,
        "monitor_seconds": 7.0,
        "kept": {
            "across": 0.9, "within": 0.9, "correct": 0.9, "correct_within": 0.9, "price": None if lost else 0.02
        },
        "acted": policy and {
            "applied": {"beta": 7}, "failed": 1, "last_kappa": 0.1, "last_beta": 0.1,
            "effects": {"beta": {"not_measured": 7}}, "actions": acts,
        },
    }  # fmt: skip


def _series(arm: str) -> dict[str, Any]:
    steps = list(range(1, STEPS + 1))
    top = [0.3 + (0.6 * step / STEPS if arm == "unprotected" else 0.0) for step in steps]
    curve: list[float | None] = [1 - step / 100 for step in steps]
    held: dict[str, list[float | None]] = {
        "kappa": curve, "beta": [0.1 for _ in steps], "neutralised": [0.0 for _ in steps],
        "deferred": [0.1 if step % 9 == 0 else 0.0 for step in steps],
    }  # fmt: skip
    return {
        "steps": steps,
        "curves": dict.fromkeys(("effective", "within", "top_share", "entropy", "kl", "reward"), curve),
        "held": held if ARMS[arm]["policy"] else {},
        "shares": dict(zip(MODES, (top, *([(1 - one) / 2 for one in top] for _ in "ab")), strict=True)),
    }
