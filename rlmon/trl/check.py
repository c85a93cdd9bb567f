"""What a YAML file for TRL would have captured: ``rlmon check``.

Parses the file with TRL's own dataclasses, so that what it refuses is refused here too, before a GPU is booked.
"""

from __future__ import annotations

import dataclasses
import math
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import trl
import yaml
from trl import GRPOConfig, GRPOTrainer, ModelConfig, RLOOConfig, RLOOTrainer, TrlParser

from rlmon.baseline import Baseline
from rlmon.config import RLMonConfig
from rlmon.detectors import DETECTORS, GROUP_BASELINE
from rlmon.errors import AttachError, ConfigError
from rlmon.interventions.actions import Defer, KLPenalty, RollBack, Winsorise
from rlmon.interventions.policy import AllOf, AnyOf, Condition, OnFinding, OnMetric, Policy, Rule
from rlmon.interventions.show import row as rule_row
from rlmon.metrics.catalog import lookup
from rlmon.metrics.formats import ModeSet
from rlmon.steering import load_policy
from rlmon.trl import capabilities
from rlmon.trl.knobs import Knobs
from rlmon.trl.ppo.config import PPOConfig

PROBE = "rlmon.trl.probe"
CONFIGS: Mapping[str, type[Any]] = {"grpo": GRPOConfig, "rloo": RLOOConfig, "ppo": PPOConfig}


@dataclass(frozen=True, kw_only=True)
class CheckReport:
    """``rows`` of (what, status, reason), the first one the heading; ``notes`` on the file itself."""

    rows: list[tuple[str, str, str]]
    notes: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    """Why training with this file would raise before its first step, where a rule of the policy cannot work."""


def check_config(path: Path, trainer: str) -> CheckReport:
    """The plan for this file with the installed TRL on this machine. ``trainer`` is one of ``CONFIGS``.

    Raises ``ConfigError`` where the file cannot be read, or TRL or rlmon would refuse it.
    """
    settings = _load(path)
    environment = settings.pop("env", None) or {}
    if not isinstance(environment, Mapping):
        raise ConfigError(f"`env` in {path} must be a mapping of variable to value, got {type(environment).__name__}.")
    notes: list[str] = []
    args_type = CONFIGS[trainer]
    known = {f.name for kind in (args_type, ModelConfig, RLMonConfig) for f in dataclasses.fields(kind)}
    ours = {name: value for name, value in settings.items() if name.startswith("rlmon_")}
    # Our own parser names the nearest field; TRL's would only list the rest.
    config = RLMonConfig.from_mapping(ours)
    uses_probe = PROBE in _listed(settings.get("reward_funcs"))
    if uses_probe:
        variables = {**os.environ, **{name: str(value) for name, value in environment.items()}}
        config = RLMonConfig.from_env(variables)
        if ours:
            notes.append(f"{', '.join(ours)}: the probe reads RLMON_* variables only; move these to `env:`.")
        _check_probe_weight(settings)
    rest = sorted(set(settings) - known)
    of_ppo = [name for name in rest if name in {f.name for f in dataclasses.fields(PPOConfig)}]
    if of_ppo:
        notes.append(f"{', '.join(of_ppo)}: PPOConfig has these. Type: rlmon check --trainer ppo {path}")
        rest = [name for name in rest if name not in of_ppo]
    if rest:
        notes.append(f"Not checked, since neither {args_type.__name__} nor rlmon has them: {', '.join(rest)}.")
    args, model = _parse(
        args_type, {name: value for name, value in settings.items() if name in known - set(ours)}, notes
    )
    policy = None if config.rlmon_policy is None else load_policy(config.rlmon_policy)
    rows = _rows(args, config, f"{args_type.__name__[:-6]}Trainer", environment)
    refused: list[str] = []
    if policy is None:
        why = "rlmon_policy is not set: the run is watched only (rlmon_policy: observe says what could be done)"
        rows.append(("policy", "none", why))
    else:
        rows += _policy_rows(policy, args, model, config, dict(_never(rows)), _sharded(args, environment), refused)
    return CheckReport(rows=rows, notes=notes, refused=refused)


def _load(path: Path) -> dict[str, Any]:
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read as YAML: {error}") from error
    if not isinstance(settings, dict):
        raise ConfigError(f"{path} must hold a mapping of setting to value, got {type(settings).__name__}.")
    return settings


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _check_probe_weight(settings: Mapping[str, Any]) -> None:
    functions, weights = _listed(settings.get("reward_funcs")), settings.get("reward_weights")
    if weights is None:
        return
    if len(weights) != len(functions):
        raise ConfigError(
            f"reward_weights has {len(weights)} entries for {len(functions)} reward_funcs. Give {PROBE} the weight 0.0."
        )
    weight = weights[functions.index(PROBE)]
    if weight != 0:
        raise ConfigError(f"{PROBE} has the weight {weight!r} in reward_weights; it must be 0.0.")


def _parse(args_type: Any, settings: Mapping[str, Any], notes: list[str]) -> tuple[Any, Any]:
    for overrides in ({}, {"bf16": False, "fp16": False, "use_cpu": True}):
        parser = TrlParser((args_type, ModelConfig))
        parser.set_defaults_with_config(**{"output_dir": "out", **settings, **overrides})
        try:
            with warnings.catch_warnings():
                # Renamed settings inside TRL are not the reader's business.
                warnings.simplefilter("ignore", FutureWarning)
                parsed = parser.parse_args_into_dataclasses(args=[])
                return parsed[0], parsed[1]
        except SystemExit as error:
            raise ConfigError(
                f"TRL's parser refuses this file with {args_type.__name__}; its reason is above."
            ) from error
        except ConfigError:
            raise
        except Exception as error:
            # TrainingArguments looks at the machine: a file for a GPU can be checked on one without.
            if overrides or "bf16" not in str(error):
                raise ConfigError(f"TRL {trl.__version__} refuses this file: {error}") from error
            notes.append("This machine has no GPU: read as if with use_cpu: true and bf16: false.")
    raise AssertionError("unreachable")


def _sharded(args: Any, environment: Mapping[str, Any]) -> str | None:
    """``FSDP`` or ``DEEPSPEED`` where the file asks for one of them; a launcher's own settings are not seen."""
    asked = {**os.environ, **{name: str(value) for name, value in environment.items()}}
    if getattr(args, "fsdp", None) or asked.get("ACCELERATE_USE_FSDP", "").lower() == "true":
        return "FSDP"
    if getattr(args, "deepspeed", None) or asked.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true":
        return "DEEPSPEED"
    return None


def _rows(args: Any, config: RLMonConfig, trainer: str, environment: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    blocker = None
    if sharded := _sharded(args, environment):
        blocker = f"under {sharded} a forward of the base is a collective of its own"
    elif args.torch_compile:
        blocker = "torch_compile hides the hidden states that the measurement reads"
    if blocker is None or config.rlmon_base_kl == "off":
        plan = capabilities.plan(args, config, trainer=trainer)
    else:
        plan = capabilities.plan(args, config, trainer=trainer, base_kind="off", base_reason=blocker)
    rows = [("what", "status", f"why (TRL {trl.__version__}, {trainer})")]
    rows += [(row["signal"], row["status"], row["reason"]) for row in plan]
    skipped = {row["signal"]: row["reason"] for row in plan if row["status"] == "skip"}
    prompts = max(1, args.generation_batch_size // max(1, args.num_generations))
    rounds = Baseline.rounds_needed(prompts=prompts, completions=args.generation_batch_size)
    size = f"{rounds} rounds of {prompts} prompts x {args.num_generations} completions a process"
    too_short = None
    if args.max_steps > 0:
        per_step = args.gradient_accumulation_steps / (args.steps_per_generation * args.num_iterations)
        generations = math.ceil(args.max_steps * per_step)
        if generations <= rounds:
            too_short = f"max_steps: {args.max_steps} ends within the baseline ({generations} rounds)"
    rows.append(("baseline", "yes", f"the first {size}") if too_short is None else ("baseline", "skip", too_short))
    for detector in DETECTORS:
        families = {name.split("/")[1] for name in detector.metrics}
        reasons = [skipped[family] for family in families if family in skipped]
        if isinstance(args, PPOConfig) and set(detector.statistics) <= set(GROUP_BASELINE):
            rows.append((f"detector {detector.id}", "never", "a critic is the baseline, not the group"))
        elif len(reasons) == len(families):
            rows.append((f"detector {detector.id}", "never", reasons[0]))
        elif too_short is not None and detector.rule in ("effective", "ratio"):
            rows.append((f"detector {detector.id}", "never", "compares with the baseline"))
        else:
            rows.append((f"detector {detector.id}", "armed", detector.line))
    return rows


# -- the policy --------------------------------------------------------------------------------------------------------


def _never(rows: Sequence[tuple[str, str, str]]) -> Iterator[tuple[str, str]]:
    """Signals that are skipped and detectors that cannot fire, by the names of their rows, each with its reason."""
    return ((what, reason) for what, status, reason in rows if status in ("skip", "never"))


def _policy_rows(
    policy: Policy,
    args: Any,
    model: Any,
    config: RLMonConfig,
    never: Mapping[str, str],
    sharded: str | None,
    refused: list[str],
) -> list[tuple[str, str, str]]:
    """A row for each rule: ``acts``, ``dry run``, ``never`` with the reason, or ``refused`` as training would."""
    rows: list[tuple[str, str, str]] = []
    for rule in policy.rules:
        said = rule_row(rule)
        settings = f"; {said.settings}" if said.settings else ""
        does = f"{said.do} when {said.when}{settings}" if said.when != "always" else f"{said.do}, always{settings}"
        refusal = None if rule.dry_run else _refusal(rule, policy, args, model, config, sharded, never)
        reason = _never_fires(rule.when, args, config, never) or _never_works(rule, args)
        if refusal is not None:
            refused.append(f"rule {rule.name}: {refusal}")
            rows.append((f"rule {rule.name}", "refused", refusal))
        elif reason is not None:
            rows.append((f"rule {rule.name}", "never", f"{said.do}: {reason}"))
        else:
            rows.append((f"rule {rule.name}", "dry run" if rule.dry_run else "acts", does))
    statuses = [status for _, status, _ in rows]
    counted = {"acts": "acting", "dry run": "dry run", "never": "never", "refused": "refused"}
    text = ", ".join(f"{statuses.count(status)} {word}" for status, word in counted.items() if status in statuses)
    if not {"acts", "refused"} & set(statuses):
        text += ": nothing is changed, and the weights are those of a run without a policy"
    return [("policy", "yes", f"{len(rows)} rule{'s'[: len(rows) > 1]}: {text}"), *rows]


def _never_fires(when: Condition, args: Any, config: RLMonConfig, never: Mapping[str, str]) -> str | None:
    """Why the condition cannot hold with this file; ``None`` where it can."""
    if isinstance(when, AnyOf | AllOf):
        reasons = [_never_fires(part, args, config, never) for part in when.conditions]
        known = [reason for reason in reasons if reason is not None]
        if known and (isinstance(when, AllOf) or len(known) == len(reasons)):
            return known[0] if isinstance(when, AllOf) else "; ".join(dict.fromkeys(known))
        return None
    if isinstance(when, OnFinding):
        reason = never.get(f"detector {when.finding}")
        return None if reason is None else f"detector {when.finding} can never fire: {reason}"
    if isinstance(when, OnMetric):
        return _never_measured(when, args, config, never)
    return None


def _never_measured(when: OnMetric, args: Any, config: RLMonConfig, never: Mapping[str, str]) -> str | None:
    name, family = when.metric, when.metric.split("/")[1]
    if family in never:
        return f"{name} is never measured: {never[family]}"
    metric = lookup(name)
    if metric is not None and metric.name != name:  # one of a mode of the run
        modes, mode = ModeSet.build(config.modes).names, name.rsplit("/", 1)[1]
        if mode not in modes:
            return f"{name} is never measured: there is no format mode {mode!r}, only {', '.join(modes)}"
    if metric is not None and when.of == "value":
        if when.above is not None and metric.high is not None and when.above >= metric.high:
            return f"{name} is {metric.high:g} at most, and never above {when.above:g}"
        if when.below is not None and metric.low is not None and when.below <= metric.low:
            return f"{name} is {metric.low:g} at least, and never below {when.below:g}"
    every = config.rlmon_base_kl_every if family == "kl" else 1
    values = 0 if args.max_steps <= 0 else math.ceil(args.max_steps / every)
    needed = Baseline.rounds_needed(
        prompts=args.generation_batch_size / max(1, args.num_generations), completions=args.generation_batch_size
    )
    if when.of == "base" and 0 < values < needed:
        return f"{name} is measured {values} times in {args.max_steps} steps, and its base takes the first {needed}"
    return None


def _never_works(rule: Rule, args: Any) -> str | None:
    """Why the action would change nothing with these settings; ``None`` where it would."""
    action, group = rule.action, args.num_generations
    if isinstance(action, Winsorise) and getattr(args, "scale_rewards", None) in ("group", True):
        # Divided by the deviation of its group (ddof 1), no value of G is further out.
        most = (group - 1) / math.sqrt(group)
        if action.limit >= most:
            return (
                f"advantages of groups of {group} never pass {most:.3g} (scale_rewards: group); "
                f"limit is {action.limit:g}"
            )
    weight = "kl_coef" if isinstance(args, PPOConfig) else "beta"
    if isinstance(action, KLPenalty) and getattr(args, weight) >= action.bounds[1]:
        return f"{weight} is {getattr(args, weight):g} from the start, and bounds end at {action.bounds[1]:g}"
    if isinstance(action, Defer) and action.by == "prompt" and not action.guesses and args.max_steps <= 0:
        attempts = math.floor(args.num_train_epochs) * group
        if attempts < action.after_attempts:
            return (
                f"in {args.num_train_epochs:g} epochs a prompt has {attempts} attempts, and after_attempts is "
                f"{action.after_attempts}"
            )
    first = _first_checkpoint(args)
    if isinstance(action, RollBack) and first is not None:
        return f"the first checkpoint would come at step {first}, and the run has {args.max_steps}: lower save_steps"
    return None


def _first_checkpoint(args: Any) -> int | None:
    """The step of the first checkpoint where that is the run's last step or later; ``None`` where it comes in time."""
    if args.save_strategy != "steps" or args.max_steps <= 0 or args.save_steps < 1:
        return None
    return int(args.save_steps) if args.save_steps >= args.max_steps else None


def _refusal(
    rule: Rule,
    policy: Policy,
    args: Any,
    model: Any,
    config: RLMonConfig,
    sharded: str | None,
    never: Mapping[str, str],
) -> str | None:
    """What attaching would raise for this rule, by the very code that raises it."""
    if isinstance(rule.action, RollBack) and args.save_strategy == "no":
        return "roll_back needs checkpoints to return to, and save_strategy is no. Set save_strategy: steps."
    # As if built: the class and what `Knobs.refuse` asks of it. What only the model itself shows is left to attaching.
    trainer = object.__new__(RLOOTrainer if isinstance(args, RLOOConfig) else GRPOTrainer)
    weights = torch.nn.Linear(1, 1)
    if getattr(model, "use_peft", False):
        weights.peft_config = {}
    trainer.args, trainer.model, trainer.ref_model = args, weights, None
    trainer.accelerator = SimpleNamespace(distributed_type=sharded or "NO", unwrap_model=lambda model: model)
    reason = never.get("kl", "")
    knobs = _PlannedKnobs(trainer, SimpleNamespace(active=not reason, reason=reason))  # type: ignore[arg-type]
    # A reset is fine without a penalty of the file's own where another rule raises one.
    others = [r.action for r in policy.rules if not r.dry_run and isinstance(r.action, KLPenalty) and r is not rule]
    try:
        knobs.refuse([rule.action])
    except AttachError as error:
        if not others:
            return str(error)
        try:
            knobs.refuse([rule.action, *others])
        except AttachError:
            return str(error)
    return None


class _PlannedKnobs(Knobs):
    """The knobs of a trainer that is not built."""

    def _refuse_layout(self, what: str) -> None:
        return None

    def _initial_reference(self) -> Any:
        return None
