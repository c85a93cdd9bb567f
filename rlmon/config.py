"""The one configuration of the monitor: a flat dataclass that TrlParser and HfArgumentParser take as it is."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from rlmon.criterion import Criterion
from rlmon.errors import ConfigError
from rlmon.printable import nearest, one_of

STORE_TEXT = ("full", "hash", "off")
WEBHOOK_URL, WEBHOOK_FORMAT = "RLMON_WEBHOOK_URL", "RLMON_WEBHOOK_FORMAT"
"""Variables of the environment that are no settings (``rlmon.sinks.posting``): settings are logged, and an address to
which everybody can write is a secret."""
T = TypeVar("T")
WANDB_ARTIFACTS = ("none", "page", "log")
BASE_KL = ("auto", "adapter", "snapshot", "reference", "copy", "off")


def option(default: Any, help: str, **more: Any) -> Any:
    """A field that TrlParser and HfArgumentParser read: its default, what they say of it, and ``choices``."""
    return field(default=default, metadata={"help": help, **more})


def _says_the_nearest(config: type[T]) -> type[T]:
    """The dataclass, which names the nearest setting where it is given one that it does not have."""
    plain = config.__init__

    @functools.wraps(plain)
    def init(self: T, *values: Any, **settings: Any) -> None:
        known = [f.name for f in dataclasses.fields(config)]  # type: ignore[arg-type]
        for name in settings:
            if name not in known:
                # Without the prefix too, as with_settings and RLMon(trainer, ...) take them.
                hint = nearest(f"rlmon_{name.removeprefix('rlmon_')}", known)
                raise ConfigError(f"Unknown rlmon setting {name!r}.{hint} The settings are {', '.join(known)}.")
        plain(self, *values, **settings)

    config.__init__ = init  # type: ignore[assignment]
    return config


@_says_the_nearest
@dataclass
class RLMonConfig:
    """Settings of the monitor. Every default is meant to be kept.

    Fields carry the prefix ``rlmon_`` so that they can stand beside TRL's own in one YAML file or one command
    line.
    """

    rlmon_dir: str | None = option(None, "Run directory of the log. Default: <output_dir>/rlmon.")
    rlmon_store_text: str = option(
        "full",
        "full: prompts and completions as text. hash: keyed sketches only, audits still work. "
        "off: neither text nor sketches.",
        choices=list(STORE_TEXT),
    )
    rlmon_text_sample_per_round: int | None = option(
        None, "Store the text of at most this many completions a round (all rows stay). Default: all."
    )
    rlmon_source_column: str | None = option(
        None,
        "Dataset column that names the stratum of a data mix. Default: the first present of task, "
        "data_source, dataset, source, language; else the prompt's template.",
    )
    rlmon_modes: dict[str, Any] | str | None = option(
        None,
        "Your own format modes, tried before the built-in ones: a mapping of name to regular expression "
        "(YAML, or JSON on the command line), or to a callable in Python.",
    )
    rlmon_success: float | str | None = option(
        None,
        "What counts as a success: a threshold on the total reward (0.5), a reward function's name (its "
        "top value), or both (accuracy_reward>0.9). Default: decided once from the first rewards, and said.",
    )
    rlmon_base_sample: int = option(
        0,
        "Sample this many completions of the base before the first update (256 is a good number; rounded up to whole "
        "rounds), score them, and compare the run with these. Default: 0, the first training rounds are the baseline.",
    )
    rlmon_base_kl: str = option(
        "auto",
        "Where the initial base model comes from for KL-to-base. auto picks the cheapest that passes its "
        "self-test; off measures no KL.",
        choices=list(BASE_KL),
    )
    rlmon_base_kl_every: int = option(10, "Measure KL to the base every this many optimizer steps.")
    rlmon_base_kl_tokens: int = option(2048, "At most this many completion tokens per rank and measurement.")
    rlmon_base_model: str | None = option(
        None, "Path or name of the initial base. Default: the model as it is at the first step."
    )
    rlmon_alpha: float = option(
        0.01, "Share of runs that may have a false FAIL, split over the detectors (docs/detectors.md)."
    )
    rlmon_text_tokens: int = option(20_000, "Word budget a round for distinct-n, compression and near-duplicates.")
    rlmon_policy: dict[str, Any] | str | None = option(
        None,
        "Interventions: observe, protect or strict, a YAML file, or a mapping of rules (JSON on the "
        "command line). Default: watch only.",
    )
    rlmon_mirror: bool = option(
        True, "Put at most 12 headline scalars among the trainer's own metrics (W&B, TensorBoard, ...)."
    )
    rlmon_wandb: bool = option(True, "With a W&B run open, log everything under rlmon/* to it.")
    rlmon_wandb_view: bool = option(
        True,
        "With an online W&B run open and wandb-workspaces installed, make the view of its project where "
        "there is none: once, beside the training, for at most 10 s.",
    )
    rlmon_wandb_artifacts: str = option(
        "none",
        "What W&B is given as an artifact when training ends, 50 MB at most. page: the page of rlmon "
        "report. log: the run log. Both hold prompts and completions where rlmon_store_text is full.",
        choices=list(WANDB_ARTIFACTS),
    )
    rlmon_tensorboard: bool = option(
        True, "With report_to: tensorboard, write everything under rlmon/* into its event file."
    )
    rlmon_trackio: bool = option(True, "With a trackio run open, log everything under rlmon/* to it.")
    rlmon_table_every: int = option(25, "Steps between two tables of samples in W&B and other trackers (0: none).")
    rlmon_console: bool = option(True, "Print findings and faults, one line each, to stderr.")
    rlmon_fsync: bool = option(False, "fsync every write: survives power loss, not only a killed process.")
    rlmon_strict: bool = option(
        False, "Raise, on all ranks together, when a part of the monitor fails. For tests of rlmon."
    )

    def __post_init__(self) -> None:
        if isinstance(self.rlmon_modes, str):
            try:
                self.rlmon_modes = json.loads(self.rlmon_modes)
            except json.JSONDecodeError as error:
                raise ConfigError(
                    f"rlmon_modes is not valid JSON ({error}). Give a mapping of name to regular expression, for "
                    'example --rlmon_modes \'{"tagged": "^<answer>"}\'.'
                ) from error
        if self.rlmon_modes is not None and not isinstance(self.rlmon_modes, Mapping):
            raise ConfigError(
                f"rlmon_modes must map names to regular expressions or callables, got "
                f"{type(self.rlmon_modes).__name__}."
            )
        Criterion.parse(self.rlmon_success)
        for setting in dataclasses.fields(self):
            value, allowed = getattr(self, setting.name), setting.metadata.get("choices")
            if allowed is not None and value not in allowed:
                raise ConfigError(
                    f"{setting.name} is {value!r}; it must be {one_of(allowed)}.{nearest(value, allowed)}"
                )
        for name, least in (
            ("rlmon_base_sample", 0),
            ("rlmon_base_kl_every", 1),
            ("rlmon_base_kl_tokens", 1),
            ("rlmon_table_every", 0),
            ("rlmon_text_tokens", 0),
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ConfigError(f"{name} must be an integer of at least {least}, got {value!r}.")
        if self.rlmon_text_sample_per_round is not None and self.rlmon_text_sample_per_round < 0:
            raise ConfigError(
                f"rlmon_text_sample_per_round must be 0 or more, got {self.rlmon_text_sample_per_round!r}."
            )
        if not 0.0 < self.rlmon_alpha < 1.0:
            raise ConfigError(f"rlmon_alpha is a probability between 0 and 1, got {self.rlmon_alpha!r}.")

    @classmethod
    def from_mapping(cls, settings: Mapping[str, Any]) -> RLMonConfig:
        """A config from ``{"rlmon_dir": ..., ...}``; the prefix may be left out.

        Raises ``ConfigError`` naming the nearest field where one is unknown.
        """
        return cls().with_settings(settings)

    def with_settings(self, settings: Mapping[str, Any]) -> RLMonConfig:
        """This config with other values for ``settings``, named with the prefix ``rlmon_`` or without.

        Raises ``ConfigError`` where a name is unknown (saying the nearest) or given twice.
        """
        known = [f.name.removeprefix("rlmon_") for f in dataclasses.fields(self)]
        resolved: dict[str, Any] = {}
        for key, value in settings.items():
            name = key.removeprefix("rlmon_")
            prefix = key[: len(key) - len(name)]
            if name not in known:
                listing = ", ".join(f"{prefix}{field}" for field in known)
                hint = nearest(name, known).replace("mean ", f"mean {prefix}")
                raise ConfigError(f"Unknown rlmon setting {key!r}.{hint} The settings are {listing}.")
            if f"rlmon_{name}" in resolved:
                raise ConfigError(f"{name} and rlmon_{name} are the same setting: give one of them.")
            resolved[f"rlmon_{name}"] = value
        return dataclasses.replace(self, **resolved)

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> RLMonConfig:
        """A config from ``RLMON_*`` variables, for those who can set nothing else (``env:`` in a TRL YAML file)."""
        environ = os.environ if environ is None else environ
        # Not Field.type: HfArgumentParser replaces it by the type itself, once it has parsed this class.
        types = {f.name: str(cls.__annotations__[f.name]) for f in dataclasses.fields(cls)}
        settings: dict[str, Any] = {}
        for key, text in environ.items():
            if not key.startswith("RLMON_") or key in (WEBHOOK_URL, WEBHOOK_FORMAT):
                continue
            name = key.lower()
            if name not in types:
                known = [*map(str.upper, types), WEBHOOK_URL, WEBHOOK_FORMAT]
                raise ConfigError(f"Unknown environment variable {key}.{nearest(key, known)}")
            settings[name] = _parse(key, text, types[name])
        return cls(**settings)

    @property
    def modes(self) -> Mapping[str, Any] | None:
        """``rlmon_modes`` as the mapping that it is after construction."""
        return self.rlmon_modes if isinstance(self.rlmon_modes, Mapping) else None

    @property
    def success(self) -> Criterion | None:
        """``rlmon_success`` read; ``None`` where the rewards are to decide."""
        return Criterion.parse(self.rlmon_success)

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON types; a callable mode becomes its qualified name."""
        settings = dataclasses.asdict(self)
        if self.modes is not None:
            settings["rlmon_modes"] = {name: _rule_text(rule) for name, rule in self.modes.items()}
        return settings


def _rule_text(rule: str | Callable[[str], bool] | Any) -> str:
    if isinstance(rule, str):
        return rule
    return f"{getattr(rule, '__module__', '?')}.{getattr(rule, '__qualname__', type(rule).__name__)}"


def _parse(key: str, text: str, annotation: str) -> Any:
    if annotation.startswith("bool"):
        if text.lower() in ("1", "true", "yes", "on"):
            return True
        if text.lower() in ("0", "false", "no", "off"):
            return False
        raise ConfigError(f"{key} must be true or false, got {text!r}.")
    for prefix, kind in (("int", int), ("float", float)):
        if annotation.startswith(prefix) and "str" not in annotation:
            try:
                return kind(text)
            except ValueError:
                raise ConfigError(f"{key} must be a number, got {text!r}.") from None
    return text
