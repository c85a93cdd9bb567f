"""Which detectors judge a run: the built-in ones, and behind them those that the user adds."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

import rlmon.detectors.evidence as ev
from rlmon.detectors.catalog import DETECTORS, DetectorSpec
from rlmon.errors import ConfigError

_TUNED: Mapping[str, Any] = {
    "lambdas": [0.2, 0.5, 0.8, 0.95],
    "clip": 20.0,
    "smoothing": 0.25,
    "rearm_records": 20,
    "baseline_kind": "early_rounds",
}
MOST_OWN = 100
"""Detectors of the user's own: they share one alpha, and a log's header may name any number of them."""
MOST_LAMBDAS = 100
_KINDS = ("early_rounds", "base_sample", "first_logged", "given", "none")
_BETTING = tuple(spec for spec in DETECTORS if spec.rule != "immediate")
WORDING = ("opening_collision_correct_within", "template_collision_correct_within")
"""How alike right answers to one prompt are worded: each tells where the other cannot, since the base may have one
opening, or texts that are never the same."""
_OF_MESSAGES = ("reward", "mode_collision_correct", *WORDING)
"""Statistics that no detector judges, and that say whether an alarm may be benign."""


@dataclass(frozen=True)
class Roster:
    """The detectors of one run. Raises ``ConfigError`` where one of the user's own takes a name that is taken."""

    own: tuple[DetectorSpec, ...] = ()

    def __post_init__(self) -> None:
        if len(self.own) > MOST_OWN:
            raise ConfigError(f"There are at most {MOST_OWN} detectors of your own, got {len(self.own)}.")
        seen = {spec.id for spec in DETECTORS}
        for spec in self.own:
            if not isinstance(spec, DetectorSpec):
                raise ConfigError(f"A detector is a rlmon.detectors.DetectorSpec, got {spec!r}.")
            if spec.rule == "immediate":
                raise ConfigError(f"{spec.id}: a detector of your own bets on blocks: effective, ratio or absolute.")
            if spec.id in seen:
                raise ConfigError(f"There is a detector {spec.id!r} already: give yours another id.")
            seen.add(spec.id)

    @cached_property
    def specs(self) -> tuple[DetectorSpec, ...]:
        return DETECTORS + self.own

    @cached_property
    def betting(self) -> tuple[DetectorSpec, ...]:
        """Those that bet on blocks, as ``D`` of the arrays counts them."""
        return _BETTING + self.own

    @cached_property
    def immediate(self) -> tuple[DetectorSpec, ...]:
        """Those that read a metric of the record, all built in."""
        return tuple(spec for spec in DETECTORS if spec.rule == "immediate")

    @cached_property
    def notes(self) -> tuple[int, ...]:
        """Places in ``betting`` of those whose milder rung is a note."""
        return tuple(index for index, spec in enumerate(self.betting) if spec.milder == "note")

    @cached_property
    def statistics(self) -> tuple[str, ...]:
        """The statistics of blocks that are read, as ``Q`` of the arrays counts them: those of own detectors last."""
        return self._statistics(_OF_MESSAGES)

    @property
    def statistics_without_wording(self) -> tuple[str, ...]:
        """Those of a checkpoint that does not name its own: it was written before wording was read."""
        return self._statistics([name for name in _OF_MESSAGES if name not in WORDING])

    def _statistics(self, of_messages: Sequence[str]) -> tuple[str, ...]:
        built_in, own = ([name for spec in specs for name in spec.statistics] for specs in (_BETTING, self.own))
        return tuple(dict.fromkeys([*built_in, *of_messages, *own]))

    @cached_property
    def at(self) -> Mapping[str, int]:
        """Place of each statistic in ``statistics``."""
        return {name: index for index, name in enumerate(self.statistics)}

    def processes(self, parameters: Mapping[str, Any]) -> list[tuple[DetectorSpec, int, str, bool]]:
        """What is bet on, as ``K`` of the arrays counts it: detector, rung, statistic, and whether for one source
        alone."""
        alone = {"no": (False,), "only": (True,), "too": (False, True)}
        return [
            (spec, rung, statistic, one)
            for spec in self.betting
            for rung, name in ((ev.WARN, "warn"), (ev.FAIL, "fail"))
            if parameters["lines"][spec.id][name] is not None
            for statistic, one in itertools.product(spec.statistics, alone[spec.per_source])
        ]

    def alpha(self, spec: DetectorSpec, alpha: float) -> float:
        """A detector's share of the run's alpha, for each of its rungs: those of the user take from all alike."""
        return alpha * (spec.alpha_share / (1.0 + sum(own.alpha_share for own in self.own)))

    @property
    def defaults(self) -> dict[str, Any]:
        """Every parameter, as JSON types."""
        lines = {
            spec.id: {name: getattr(spec, name) for name in ("warn", "fail", "warn_floor", "fail_floor")}
            for spec in self.betting
        }
        return {**plain(_TUNED), "lines": lines}

    def resolved(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The defaults with what is given laid over them. Raises ``ConfigError`` for what there is not."""
        if "parameters" in given and isinstance(given["parameters"], Mapping):
            given = given["parameters"]
        resolved = self.defaults
        for name, value in given.items():
            if name not in resolved:
                raise ConfigError(f"Unknown detector parameter {name!r}; there are {', '.join(sorted(resolved))}.")
            if name == "lines":
                for detector, levels in value.items():
                    if detector not in resolved["lines"]:
                        raise ConfigError(f"Unknown detector {detector!r}; there are {', '.join(resolved['lines'])}.")
                    for key, level in levels.items():
                        if key not in resolved["lines"][detector]:
                            raise ConfigError(f"Unknown line {key!r} of {detector}; use warn, fail or their _floor.")
                        resolved["lines"][detector][key] = None if level is None else float(level)
            else:
                resolved[name] = plain(value)
        lambdas = resolved["lambdas"]
        if not 0 < len(lambdas) <= MOST_LAMBDAS or not all(0.0 < size < 1.0 for size in lambdas):
            raise ConfigError(f"lambdas are 1 to {MOST_LAMBDAS} bet sizes between 0 and 1, got {lambdas!r:.200}.")
        if resolved["baseline_kind"] not in _KINDS:
            raise ConfigError(f"baseline_kind is {resolved['baseline_kind']!r}; it must be one of {', '.join(_KINDS)}.")
        return resolved

    def plan(self, alpha: float, parameters: Mapping[str, Any]) -> ev.Plan:
        """What is tested, as arrays."""
        processes = self.processes(parameters)
        factor, level = [], []
        for spec, rung, statistic, _ in processes:
            lines, name = parameters["lines"][spec.id], ("warn", "fail")[rung]
            if spec.rule == "absolute":
                factor.append(math.nan)
                level.append(spec.absolute_level(statistic, lines[name]))
            else:
                factor.append(1.0 / lines[name] if spec.rule == "effective" else lines[name])
                level.append(lines[f"{name}_floor"])
        return ev.Plan(
            stat_K=np.array([self.at[statistic] for _, _, statistic, _ in processes], dtype=np.int64),
            detector_K=np.array([self.betting.index(spec) for spec, _, _, _ in processes], dtype=np.int64),
            rung_K=np.array([rung for _, rung, _, _ in processes], dtype=np.int64),
            direction_K=np.array([1.0 if spec.direction == "up" else -1.0 for spec, _, _, _ in processes]),
            factor_K=np.array(factor),
            level_K=np.array(level),
            per_source_K=np.array([alone for _, _, _, alone in processes], dtype=np.bool_),
            all_of_D=np.array([spec.every for spec in self.betting]),
            agreement_D=np.array([spec.agreement for spec in self.betting]),
            witness_D=np.array([spec.witness for spec in self.betting]),
            lambdas_L=np.array(parameters["lambdas"], dtype=np.float64),
            clip=float(parameters["clip"]),
            log_threshold_D=np.array([-math.log(self.alpha(spec, alpha)) for spec in self.betting]),
            smoothing=float(parameters["smoothing"]),
            rearm_records=int(parameters["rearm_records"]),
            base_confidence=1.0 - alpha,
        )


def plain(value: Any) -> Any:
    """``value`` in JSON types."""
    if isinstance(value, Mapping):
        return {str(key): plain(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return value
