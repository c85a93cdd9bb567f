"""What the experiments compare: tasks, and arms that may differ from one another in one thing each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

WORTHLESS_MODE = "prose"
SURE_MODES = ("python", "fenced", "xml", "boxed")
"""For each of ``PROMPT_CLASSES`` the mode that the base ``by-prompt`` gets right there."""
REFUSED_SHARE = 0.3
"""With ``Task.flaky``: share of (prompt, mode) pairs outside ``SURE_MODES`` whose answers are never accepted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """What is trained on what."""

    name: str
    base: str
    """Name in ``studies.build_base.RECIPES``."""
    steps: int
    learning_rate: float
    prompts_per_round: int = 8
    group_size: int = 8
    worthless: bool = False
    """Answers in ``WORTHLESS_MODE`` are never right."""
    flaky: bool = False
    """The verifier refuses ``REFUSED_SHARE`` of what is not in the ``SURE_MODES`` of its class. The base's own noise is
    unlearned within 15 steps, in every mode at once; this cannot be, so which mode is best goes on to depend on the
    prompt."""
    pool: str | None = None
    """``random`` or ``gain``: trains on ``contaminated_pool`` with labels of that kind; unset: on all questions."""
    about: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Arm:
    """How it is trained: everything that may differ between the runs of one task."""

    name: str
    beta: float = 0.0
    entropy_target: float | None = None
    """TRL's adaptive entropy bonus, told to hold this share of the base's entropy."""
    rarity_weighted: bool = False
    """Advantages divided by the number of completions of the same mode in the group."""
    oracle: bool = False
    """Hard prompts get no reward: knows the labels that the other arms must do without."""
    policy: Mapping[str, Any] | str | None = None
    """``rlmon_policy``: a preset, a file or a mapping of rules."""
    tasks: tuple[str, ...] | None = None
    """The only tasks for which this arm makes sense; unset: all."""
    about: str


TASKS: Mapping[str, Task] = {
    task.name: task
    for task in (
        Task(name="arithmetic", base="arithmetic", steps=180, learning_rate=6.5e-4, about="the demo's task"),
        Task(
            name="seven", base="seven", steps=240, learning_rate=6.5e-4,
            about="one of seven modes is nearly always right",
        ),
        Task(
            name="by-prompt", base="by-prompt", steps=180, learning_rate=6.5e-4, flaky=True,
            about="which mode is always accepted depends on the prompt; three in ten answers in another are refused",
        ),
        Task(
            name="by-prompt-plain", base="by-prompt", steps=180, learning_rate=6.5e-4,
            about="which mode the base gets right depends on the prompt; every mode can be learned",
        ),
        Task(
            name="worthless", base="seven", steps=180, learning_rate=6.5e-4, worthless=True,
            about="as seven, and the largest mode is always wrong",
        ),
        Task(
            name="contamination", base="arithmetic", steps=100, learning_rate=5e-4, group_size=16, pool="random",
            about="7 of 8 prompts have labels that no one could predict",
        ),
        Task(
            name="contamination-seven", base="seven", steps=100, learning_rate=5e-4, group_size=16, pool="random",
            about="the same from a base that is right in two of three answers",
        ),
        Task(
            name="learnable", base="arithmetic", steps=100, learning_rate=5e-4, group_size=16, pool="gain",
            about="7 of 8 prompts are of a kind that the base solves in about 2 % of samples, and can be learned",
        ),
    )
}  # fmt: skip
"""Tasks by name."""

_MODES = ("arithmetic", "seven", "by-prompt")
_CONTAMINATED = ("contamination", "contamination-seven")


def _alone(name: str, do: Any, when: Any = "always") -> dict[str, Any]:
    """The policy of one rule."""
    return {"rules": {name: {"when": when, "do": do}}}


_MARGINAL = {"action": "mode_marginal", "kappa": 0.3, "bounds": [0.1, 1.0]}

ARMS: Mapping[str, Arm] = {
    arm.name: arm
    for arm in (
        Arm(name="unprotected", about="GRPO as it is, beta 0"),
        Arm(name="kl-0.03", beta=0.03, tasks=_MODES, about="beta 0.03"),
        Arm(name="kl-0.1", beta=0.1, tasks=(*_MODES, "by-prompt-plain"), about="beta 0.1"),
        Arm(name="kl-0.3", beta=0.3, tasks=_MODES, about="beta 0.3"),
        Arm(
            name="adaptive-entropy", entropy_target=0.75, tasks=_MODES,
            about="TRL's adaptive entropy bonus, target .75 of the base's entropy",
        ),
        Arm(
            name="rarity", rarity_weighted=True, tasks=_MODES,
            about="advantage / completions of the same mode in the group (arXiv 2601.08763, exponent 1)",
        ),
        Arm(
            name="marginal", policy=_alone("hold", _MARGINAL), tasks=("arithmetic", "by-prompt"),
            about="mode_marginal alone, beta 0",
        ),
        Arm(
            name="marginal-pooled", policy=_alone("hold", {**_MARGINAL, "within": 0.0}),
            tasks=("arithmetic", "by-prompt"), about="the same across prompts only (within 0)",
        ),
        Arm(
            name="kl-budget", tasks=("arithmetic",),
            policy=_alone("budget", "kl_penalty", {"metric": "rlmon/kl/mean", "above": 0.02, "smooth_steps": 2}),
            about="kl_penalty alone, raised while KL is above .02 nats a token",
        ),
        Arm(
            name="entropy-bonus", tasks=("arithmetic",),
            policy=_alone(
                "entropy", "entropy_bonus", {"metric": "rlmon/entropy/mean", "below": 0.75, "of": "base"}
            ),
            about="entropy_bonus alone, raised while entropy is below .75 of the base's",
        ),
        Arm(
            name="anchor", tasks=("arithmetic",),
            policy=_alone("anchor", "anchor", {"finding": "format-collapse", "severity": "warn"}),
            about="anchor alone, from the first format-collapse finding on",
        ),
        Arm(
            name="winsorise", policy=_alone("bound", {"action": "winsorise", "limit": 1.5}), tasks=("arithmetic",),
            about="winsorise alone, advantages within 1.5",
        ),
        Arm(name="oracle", oracle=True, tasks=_CONTAMINATED, about="no reward on hard prompts, by their label"),
        Arm(
            name="random-deferral", tasks=("contamination",),
            policy={
                "extends": "protect",
                "rules": {
                    "defer-guessed": {
                        "do": {
                            "action": "random_defer", "by": "source", "guesses": True, "share": 0.85,
                            "source_after_attempts": 4096,
                        }
                    }
                },
            },
            about="protect, and random prompts are deferred in place of those that it chose",
        ),
        Arm(name="protect", policy="protect", about="rlmon's preset protect"),
    )
}  # fmt: skip
"""Arms by name. More come from the command line: ``--policy NAME=FILE``."""
