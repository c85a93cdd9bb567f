"""What a YAML file for TRL would have captured: ``rlmon check``.

Parses the file with TRL's own dataclasses, so that what it refuses is refused here too, before a GPU is booked.
"""

from __future__ import annotations

import dataclasses
import math
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trl
import yaml
from trl import GRPOConfig, ModelConfig, RLOOConfig, TrlParser

from rlmon.config import RLMonConfig
from rlmon.detectors import DETECTORS
from rlmon.errors import ConfigError
from rlmon.monitor import BASELINE_COMPLETIONS, BASELINE_PROMPTS, BASELINE_ROUNDS
from rlmon.trl import capabilities

PROBE = "rlmon.trl.probe"


@dataclass(frozen=True, kw_only=True)
class CheckReport:
    """``rows`` of (what, status, reason), the first one the heading; ``notes`` on the file itself."""

    rows: list[tuple[str, str, str]]
    notes: list[str] = field(default_factory=list)


def check_config(path: Path, trainer: str) -> CheckReport:
    """The plan for this file with the installed TRL on this machine. ``trainer`` is ``grpo`` or ``rloo``.

    Raises ``ConfigError`` where the file cannot be read, or TRL or rlmon would refuse it.
    """
    settings = _load(path)
    environment = settings.pop("env", None) or {}
    if not isinstance(environment, Mapping):
        raise ConfigError(f"`env` in {path} must be a mapping of variable to value, got {type(environment).__name__}.")
    notes: list[str] = []
    args_type = RLOOConfig if trainer == "rloo" else GRPOConfig
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
    if rest:
        notes.append(f"Not checked, since neither TRL's {args_type.__name__} nor rlmon has them: {', '.join(rest)}.")
    args = _parse(args_type, {name: value for name, value in settings.items() if name in known - set(ours)}, notes)
    return CheckReport(rows=_rows(args, config, f"{args_type.__name__[:-6]}Trainer"), notes=notes)


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


def _parse(args_type: Any, settings: Mapping[str, Any], notes: list[str]) -> Any:
    for overrides in ({}, {"bf16": False, "fp16": False, "use_cpu": True}):
        parser = TrlParser((args_type, ModelConfig))
        parser.set_defaults_with_config(**{"output_dir": "out", **settings, **overrides})
        try:
            with warnings.catch_warnings():
                # Renamed settings inside TRL are not the reader's business.
                warnings.simplefilter("ignore", FutureWarning)
                return parser.parse_args_into_dataclasses(args=[])[0]
        except SystemExit as error:
            raise ConfigError(
                f"TRL's parser refuses this file with {args_type.__name__}; its reason is above."
            ) from error
        except Exception as error:
            # TrainingArguments looks at the machine: a file for a GPU can be checked on one without.
            if overrides or "bf16" not in str(error):
                raise ConfigError(f"TRL {trl.__version__} refuses this file: {error}") from error
            notes.append("This machine has no GPU: read as if with use_cpu: true and bf16: false.")
    raise AssertionError("unreachable")


def _rows(args: Any, config: RLMonConfig, trainer: str) -> list[tuple[str, str, str]]:
    plan = capabilities.plan(args, config, trainer=trainer)
    rows = [("what", "status", f"why (TRL {trl.__version__}, {trainer})")]
    rows += [(row["signal"], row["status"], row["reason"]) for row in plan]
    skipped = {row["signal"]: row["reason"] for row in plan if row["status"] == "skip"}
    prompts = max(1, args.generation_batch_size // max(1, args.num_generations))
    rounds = min(
        BASELINE_ROUNDS,
        math.ceil(BASELINE_PROMPTS / prompts),
        math.ceil(BASELINE_COMPLETIONS / max(1, args.generation_batch_size)),
    )
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
        if len(reasons) == len(families):
            rows.append((f"detector {detector.id}", "never", reasons[0]))
        elif too_short is not None and detector.rule in ("effective", "ratio"):
            rows.append((f"detector {detector.id}", "never", "compares with the baseline"))
        else:
            rows.append((f"detector {detector.id}", "armed", detector.line))
    return rows
