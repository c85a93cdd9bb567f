"""What a YAML file for TRL would have captured: ``rlmon check``.

Parses the file with TRL's own dataclasses, so that what it refuses is refused here too, before a GPU is booked.
"""

from __future__ import annotations

import dataclasses
import difflib
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

from rlmon.config import WEBHOOK_FORMAT, WEBHOOK_URL, RLMonConfig
from rlmon.controller import load_policy
from rlmon.detectors import DETECTORS
from rlmon.errors import ConfigError
from rlmon.extensions import Extensions
from rlmon.interventions.policy import Policy
from rlmon.interventions.setting import Setting
from rlmon.interventions.show import row as rule_row
from rlmon.interventions.validate import Problem, problems, said
from rlmon.sinks.posting import webhook_of
from rlmon.trl.base import blocked
from rlmon.trl.base_sample import TOO_LATE, cannot_sample, unsampled_spread
from rlmon.trl.capabilities import plan as plan_of
from rlmon.trl.capabilities import unsampled
from rlmon.trl.coefficients import Coefficients
from rlmon.trl.ppo.config import PPOConfig
from rlmon.trl.setting import lacks_checkpoints, setting_of

PROBE = "rlmon.trl.probe"
OF_TRL = ("reward_funcs", "reward_model_name_or_path", "dataset_name", "datasets")
"""What only a script of its own reads, as that of ``trl grpo``: a file with one of them is meant for a command."""
_OF_ALL_RUNS = (WEBHOOK_URL, WEBHOOK_FORMAT)
"""Variables that are read however rlmon is attached."""
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
    if "rules" in settings or "extends" in settings:
        raise ConfigError(
            f"{path} is a policy, not the file of a trainer. `rlmon policy {path}` shows what its rules do; to use it "
            f"put `rlmon_policy: {path}` (for the probe `RLMON_POLICY: {path}` under `env:`) into the trainer's file "
            "and check that one."
        )
    environment = settings.pop("env", None) or {}
    if not isinstance(environment, Mapping):
        raise ConfigError(f"`env` in {path} must be a mapping of variable to value, got {type(environment).__name__}.")
    notes: list[str] = []
    _check_names(settings, environment)
    args_type = CONFIGS[trainer]
    known = {f.name for kind in (args_type, ModelConfig, RLMonConfig) for f in dataclasses.fields(kind)}
    ours = {name: value for name, value in settings.items() if name.startswith("rlmon_")}
    # Our own parser names the nearest field; TRL's would only list the rest.
    config = RLMonConfig.from_mapping(ours)
    variables = {**os.environ, **{name: str(value) for name, value in environment.items()}}
    webhook = webhook_of(variables)
    uses_probe = PROBE in _listed(settings.get("reward_funcs"))
    if uses_probe:
        config = RLMonConfig.from_env(variables)
        if ours:
            notes.append(f"{', '.join(ours)}: the probe reads RLMON_* variables only; move these to `env:`.")
        _check_probe_weight(settings)
    else:
        notes += _unattached(path, settings, environment, trainer)
    functions = [str(name).rsplit(".", 1)[-1] for name in _listed(settings.get("reward_funcs")) if name is not None]
    if config.success is not None and functions:
        config.success.refuse_unknown(functions)
    rest = sorted(set(settings) - known)
    of_ppo = [name for name in rest if name in {f.name for f in dataclasses.fields(PPOConfig)}]
    if of_ppo:
        notes.append(f"{', '.join(of_ppo)}: PPOConfig has these. Type: rlmon check --trainer ppo {path}")
        rest = [name for name in rest if name not in of_ppo]
    if rest:
        meant = {name: difflib.get_close_matches(name, known, n=1, cutoff=0.85) for name in rest}
        hints = "".join(f" Did you mean {close[0]} by {name}?" for name, close in meant.items() if close)
        notes.append(f"Not checked, since neither {args_type.__name__} nor rlmon has them: {', '.join(rest)}.{hints}")
    args, model = _parse(
        args_type, {name: value for name, value in settings.items() if name in known - set(ours)}, notes
    )
    config = _with_sample(config, args, _sharded(args, environment), uses_probe, notes)
    policy = None if config.rlmon_policy is None else load_policy(config.rlmon_policy)
    kind = f"{args_type.__name__[:-6]}Trainer"
    plan = _plan(args, config, kind, _sharded(args, environment))
    setting = setting_of(args, config, Extensions(), plan, _lacks(args, model, plan, _sharded(args, environment)))
    rows = _rows(setting, plan, kind)
    if webhook is None:
        rows.append(("webhook", "none", f"{WEBHOOK_URL} is not set: alerts go to the console and to open trackers"))
    else:
        rows.append(("webhook", "yes", f"a webhook is set ({webhook.format}); rlmon alerts --test tries it"))
    refused: list[str] = []
    if policy is None:
        why = "rlmon_policy is not set: the run is watched only (rlmon_policy: observe says what could be done)"
        rows.append(("policy", "none", why))
    else:
        found = problems(policy, setting)
        rows += _policy_rows(policy, found)
        refused += [said(problem) for problem in found if problem.error]
        notes += [said(problem) for problem in found if not problem.error]
    return CheckReport(rows=rows, notes=notes, refused=refused)


def _check_names(settings: Mapping[str, Any], environment: Mapping[str, Any]) -> None:
    """Raises ``ConfigError`` for a name that is meant for rlmon and that nothing would read."""
    for name in map(str, settings):
        if name.upper().startswith("RLMON") and not name.startswith("rlmon_"):
            raise ConfigError(
                f"Nothing reads {name!r} here. A setting beside the trainer's own is written rlmon_dir, rlmon_policy, "
                "...; for the probe it is a variable under `env:`, RLMON_DIR, RLMON_POLICY, ..."
            )
    ours = {str(name) for name in environment if str(name).upper().startswith("RLMON")}
    for name in sorted(ours):
        if not name.startswith("RLMON_"):
            raise ConfigError(
                f"Nothing reads {name!r} under `env:`: variables are in capitals, RLMON_DIR for rlmon_dir."
            )
    # Names only: a value that does not fit is said when it is read.
    known = {*_OF_ALL_RUNS} | {f.name.upper() for f in dataclasses.fields(RLMonConfig)}
    for name in sorted(ours | {name for name in os.environ if name.startswith("RLMON_")}):
        if name not in known:
            RLMonConfig.from_env({name: ""})


def _unattached(path: Path, settings: Mapping[str, Any], environment: Mapping[str, Any], trainer: str) -> Iterator[str]:
    """What to know of a file without the probe. Raises ``ConfigError`` where it is one for ``trl``'s own command, which
    attaches nothing (and refuses settings of ours): such a run is watched by nobody."""
    unread = sorted(name for name in map(str, environment) if name.startswith("RLMON_") and name not in _OF_ALL_RUNS)
    lost = f"Nobody reads {', '.join(unread)} without the probe." if unread else ""
    script = f"trainers/train_{trainer}.py"
    if "workload" in settings or any(str(name).startswith("rlmon_") for name in settings):
        yield from [lost] * bool(lost)
        return
    if unread or any(settings.get(name) is not None for name in OF_TRL):
        functions = [str(name) for name in _listed(settings.get("reward_funcs")) if name is not None]
        misspelt = difflib.get_close_matches(PROBE, functions, n=1, cutoff=0.85)
        functions = [name for name in functions if name not in misspelt]
        hint = f" Did you mean {PROBE} by {misspelt[0]}?" if misspelt else ""
        weights = "" if settings.get("reward_weights") is None else " and one more weight, 0.0, to reward_weights"
        told = " ".join(part for part in (f"{path} does not attach rlmon.{hint}", lost) if part)
        raise ConfigError(
            f"Nothing would be captured by `trl {trainer}`: {told} Add the probe: `reward_funcs: "
            f"[{', '.join([*functions, PROBE])}]`{weights}. Or train with a script that attaches rlmon "
            f"(RLMon(trainer), {script}), and say so by a setting of rlmon's in the file (rlmon_dir: runs/x)."
        )
    yield (
        f"Nothing in this file attaches rlmon: that is left to your script (RLMon(trainer)) or to {script}. For "
        f"`trl {trainer}` add {PROBE} to reward_funcs."
    )


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


def _with_sample(
    config: RLMonConfig, args: Any, sharded: str | None, uses_probe: bool, notes: list[str]
) -> RLMonConfig:
    """The settings, without a sample of the base where the probe comes too late for it. Raises ``ConfigError`` where
    the trainer would be refused with it."""
    if not config.rlmon_base_sample:
        return config
    if (reason := unsampled(args) or unsampled_spread(sharded)) is not None:
        raise ConfigError(cannot_sample(reason))
    if not uses_probe:
        return config
    notes.append(f"{TOO_LATE}.")
    return dataclasses.replace(config, rlmon_base_sample=0)


def _plan(args: Any, config: RLMonConfig, trainer: str, sharded: str | None) -> list[dict[str, str]]:
    blocker = blocked(sharded, compiled=args.torch_compile)
    if blocker is None or config.rlmon_base_kl == "off":
        return plan_of(args, config, trainer=trainer)
    return plan_of(args, config, trainer=trainer, base_kind="off", base_reason=blocker)


def _rows(setting: Setting, plan: Sequence[Mapping[str, str]], trainer: str) -> list[tuple[str, str, str]]:
    rows = [("what", "status", f"why (TRL {trl.__version__}, {trainer})")]
    rows += [(row["signal"], row["status"], row["reason"]) for row in plan]
    prompts = max(1, setting.round_completions // max(1, setting.group_size))
    size = f"{setting.baseline_records} rounds of {prompts} prompts x {setting.group_size} completions a process"
    first = setting.first_rounds(of_training=False)
    if setting.within_baseline(of_training=False):
        short = f"max_steps: {setting.steps} ends within the baseline ({setting.rounds} rounds)"
        rows.append(("baseline", "skip", short))
    elif first == 0:
        sampled = f"{setting.base_sample} completions of the base, sampled before the first update"
        short = f" (max_steps: {setting.steps} ends within these)" if setting.within_baseline(of_training=True) else ""
        rows.append(("baseline", "yes", f"{sampled}; of what only training shows, the first {size}{short}"))
    elif setting.base_sample:
        few = f"{setting.base_sample} completions of the base are too few for a baseline"
        text = f"{few}: it is these and the first {first} rounds; of what only training shows, the first {size}"
        rows.append(("baseline", "yes", text))
    else:
        rows.append(("baseline", "yes", f"the first {size}"))
    for detector in (*DETECTORS, *Extensions().with_installed().detectors):
        facts = setting.detectors[detector.id]
        never_compared = facts.compares and setting.within_baseline(of_training=facts.of_training)
        silent = facts.silent or ("compares with the baseline" if never_compared else None)
        armed = ("armed", detector.line) if silent is None else ("never", silent)
        rows.append((f"detector {detector.id}", *armed))
    return rows


# -- the policy --------------------------------------------------------------------------------------------------------


def _policy_rows(policy: Policy, found: Sequence[Problem]) -> list[tuple[str, str, str]]:
    """A row for each rule: ``acts``, ``dry run``, ``never`` (it has nothing to do here), or ``refused``."""
    rows: list[tuple[str, str, str]] = []
    for rule in policy.rules:
        described = rule_row(rule)
        settings = f"; {described.settings}" if described.settings else ""
        when = ", always" if described.when == "always" else f" when {described.when}"
        mine = [problem for problem in found if problem.rule == rule.name]
        errors = [problem.text for problem in mine if problem.error]
        idle = [problem.text for problem in mine if problem.idle]
        if errors:
            rows.append((f"rule {rule.name}", "refused", "; ".join(errors)))
        elif idle:
            rows.append((f"rule {rule.name}", "never", f"{described.do}: {'; '.join(idle)}"))
        else:
            status = "dry run" if rule.dry_run else "acts"
            rows.append((f"rule {rule.name}", status, f"{described.do}{when}{settings}"))
    statuses = [status for _, status, _ in rows]
    counted = {"acts": "acting", "dry run": "dry run", "never": "never", "refused": "refused"}
    text = ", ".join(f"{statuses.count(status)} {word}" for status, word in counted.items() if status in statuses)
    if not {"acts", "refused"} & set(statuses):
        text += ": nothing is changed, and the weights are those of a run without a policy"
    return [("policy", "yes", f"{len(rows)} rule{'s'[: len(rows) > 1]}: {text}"), *rows]


def _lacks(args: Any, model: Any, plan: Sequence[Mapping[str, str]], sharded: str | None) -> dict[str, str]:
    """By action why this trainer could not do it, by the very code that attaching asks. What only the model itself
    shows is left to that."""
    # As if built: the class and what `Coefficients.lacks` asks of it.
    trainer = object.__new__(RLOOTrainer if isinstance(args, RLOOConfig) else GRPOTrainer)
    weights = torch.nn.Linear(1, 1)
    if getattr(model, "use_peft", False):
        weights.peft_config = {}
    trainer.args, trainer.model, trainer.ref_model = args, weights, None
    trainer.accelerator = SimpleNamespace(distributed_type=sharded or "NO", unwrap_model=lambda model: model)
    reason = next((row["reason"] for row in plan if row["signal"] == "kl" and row["status"] == "skip"), "")
    base = SimpleNamespace(active=not reason, reason=reason)
    lacks = _PlannedCoefficients(trainer, base).lacks()  # type: ignore[arg-type]
    checkpoints = lacks_checkpoints(args)
    return lacks if checkpoints is None else {**lacks, "roll_back": checkpoints}


class _PlannedCoefficients(Coefficients):
    """Those of a trainer that is not built."""

    def _lacks_layout(self, what: str) -> str | None:
        return None
