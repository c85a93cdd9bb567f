"""A TRL trainer, or a YAML file for one, as the ``Setting`` that a policy is validated against."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import trl

from rlmon.config import RLMonConfig
from rlmon.detectors import DETECTORS, GROUP_BASELINE, DetectorSpec
from rlmon.errors import AttachError
from rlmon.extensions import Extensions
from rlmon.interventions.policy import Policy
from rlmon.interventions.setting import DetectorFacts, MetricFacts, Setting
from rlmon.interventions.validate import Problem, problems, said
from rlmon.metrics.catalog import METRICS
from rlmon.metrics.families import FAMILIES
from rlmon.metrics.family import MetricFamily
from rlmon.metrics.formats import ModeSet
from rlmon.trl.base import BaseModel
from rlmon.trl.capabilities import plan_of_trainer
from rlmon.trl.draws import lacks as draws_lack
from rlmon.trl.facts import is_training
from rlmon.trl.ppo.config import PPOConfig

_OF_TRAINING = {
    family.name
    for family in FAMILIES
    if any(getattr(type(family), put) is not getattr(MetricFamily, put) for put in ("put_trained", "put_compared"))
}
"""Families whose statistics are of what training alone shows."""


def setting_of(
    args: Any,
    config: RLMonConfig,
    extensions: Extensions,
    plan: Sequence[Mapping[str, str]],
    lacks: Mapping[str, str],
    *,
    stock: bool = True,
) -> Setting:
    """The setting of a trainer with these arguments.

    Args:
        extensions: what is added to the built-in metrics and detectors.
        plan: rows of ``capabilities.plan``.
        lacks: by what an intervention turns why this trainer cannot.
        stock: whether advantages are TRL's own; a subclass may make others.
    """
    added = extensions.with_installed()
    ppo, group = isinstance(args, PPOConfig), int(args.num_generations)
    steps = int(args.max_steps) if args.max_steps > 0 else None
    size, beta_name = int(args.generation_batch_size), "kl_coef" if ppo else "beta"
    reuse = int(args.steps_per_generation) * int(args.num_iterations)
    rounds = None if steps is None else math.ceil(steps * int(args.gradient_accumulation_steps) / reuse)
    moved = {"entropy_coef"} if getattr(args, "use_adaptive_entropy", False) else set()
    if ppo and args.kl_target is not None:
        moved.add("beta")
    return Setting(
        metrics=_metrics(args, config, plan) | _own_metrics(added),
        detectors=_detectors((*DETECTORS, *added.detectors), plan, ppo=ppo),
        modes=ModeSet.build(config.modes).names,
        beta=float(getattr(args, beta_name)),
        beta_name=beta_name,
        entropy_coef=float(getattr(args, "entropy_coef", 0.0)),
        moved=frozenset(moved),
        critic=ppo,
        group_size=group,
        base_sample=config.rlmon_base_sample,
        round_completions=size,
        steps=steps,
        rounds=rounds,
        prompt_attempts=math.ceil(args.num_train_epochs) * group if steps is None else None,
        most_advantage=_most_advantage(args) if stock else None,
        first_checkpoint=_first_checkpoint(args),
        lacks=lacks,
    )


def setting_of_trainer(
    trainer: Any, base: BaseModel, config: RLMonConfig, extensions: Extensions, lacks: Mapping[str, str]
) -> Setting:
    """The setting of a trainer that is built. ``lacks``: what its coefficients lack."""
    late = None
    if is_training(trainer):
        late = (
            "roll_back goes on by a second train(), and rlmon was attached while the first one runs. Attach it before: "
            "RLMon(trainer, config), then trainer.train()"
        )
    more = {"roll_back": lacks_checkpoints(trainer.args) or late, "draws": draws_lack(trainer)}
    lacks = {**lacks, **{name: reason for name, reason in more.items() if reason is not None}}
    plan = plan_of_trainer(trainer, base, config)
    return setting_of(trainer.args, config, extensions, plan, lacks, stock=_is_stock(trainer))


def refuse(policy: Policy, setting: Setting) -> tuple[Problem, ...]:
    """The notes on ``policy``. Raises ``AttachError`` with all that is wrong, where something is."""
    found = problems(policy, setting)
    errors = [said(problem) for problem in found if problem.error]
    if len(errors) == 1:
        raise AttachError(f"rlmon_policy cannot do what it asks for: {errors[0]}")
    if errors:
        listed = "\n".join(f"  {number}. {text}" for number, text in enumerate(errors, start=1))
        raise AttachError(f"rlmon_policy cannot do what it asks for, in {len(errors)} places:\n{listed}")
    return tuple(problem for problem in found if not problem.error)


def _is_stock(trainer: Any) -> bool:
    """Whether the trainer's advantages are made by TRL's own code."""
    name = "_generate_and_score_completions"
    return any(getattr(type(trainer), name) is getattr(kind, name) for kind in (trl.GRPOTrainer, trl.RLOOTrainer))


def lacks_checkpoints(args: Any) -> str | None:
    """Why a run cannot be rolled back; ``None`` where it can."""
    given = args.save_strategy
    if str(getattr(given, "value", given)) == "no":
        return "roll_back needs checkpoints to return to, and save_strategy is no. Set save_strategy: steps"
    return None


def _skipped(plan: Sequence[Mapping[str, str]]) -> dict[str, str]:
    return {row["signal"]: row["reason"] for row in plan if row["status"] == "skip"}


def _metrics(args: Any, config: RLMonConfig, plan: Sequence[Mapping[str, str]]) -> dict[str, MetricFacts]:
    skipped = _skipped(plan)
    if config.rlmon_base_kl == "off" and "kl" in skipped:
        skipped["kl"] += " (set rlmon_base_kl: auto)"
    found = {}
    for metric in METRICS:
        family = metric.name.split("/")[1]
        missing = skipped.get(family)
        if missing is None and args.num_generations < 2 and "within" in metric.name:
            missing = "num_generations is 1: nothing lies within a prompt"
        every = config.rlmon_base_kl_every if family == "kl" else 1
        found[metric.name] = MetricFacts(low=metric.low, high=metric.high, missing=missing, every_steps=every)
    return found


def _own_metrics(added: Extensions) -> dict[str, MetricFacts]:
    return {
        metric.name: MetricFacts(low=metric.low, high=metric.high)
        for family in added.metrics
        for metric in family.entries
    }


def _detectors(
    specs: Sequence[DetectorSpec], plan: Sequence[Mapping[str, str]], *, ppo: bool
) -> dict[str, DetectorFacts]:
    skipped = _skipped(plan)
    found = {}
    for detector in specs:
        families = {name.removeprefix("rlmon/").split("/")[0] for name in detector.metrics}
        reasons = [skipped[family] for family in families if family in skipped]
        silent = None
        if ppo and set(detector.statistics) <= set(GROUP_BASELINE):
            silent = "a critic is the baseline, not the group"
        elif len(reasons) == len(families):
            silent = reasons[0]
        found[detector.id] = DetectorFacts(
            severities=detector.rungs,
            silent=silent,
            compares=detector.rule in ("effective", "ratio"),
            of_training=families <= _OF_TRAINING,
        )
    return found


def _most_advantage(args: Any) -> float | None:
    """Divided by the deviation of its group (ddof 1), no value of G is further out than (G - 1) / sqrt(G)."""
    group = int(args.num_generations)
    summed_first = getattr(args, "multi_objective_aggregation", "sum_then_normalize") == "sum_then_normalize"
    if getattr(args, "scale_rewards", None) not in ("group", True) or not summed_first:
        return None
    return (group - 1) / math.sqrt(group)


def _first_checkpoint(args: Any) -> int | None:
    given = args.save_strategy
    if str(getattr(given, "value", given)) != "steps" or args.save_steps < 1:
        return None
    return int(args.save_steps)
