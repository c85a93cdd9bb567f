"""What a run is watched by: made on each rank, and the same on all of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rlmon.config import RLMonConfig
from rlmon.extensions import Extensions
from rlmon.metrics.families import CRITIC, WATCHING
from rlmon.metrics.formats import ModeSet
from rlmon.metrics.step import Families, Guard
from rlmon.monitor.alike import alike
from rlmon.monitor.judging import Judging
from rlmon.monitor.setting import About, Ranks

if TYPE_CHECKING:
    from rlmon.interventions.policy import Policy


@dataclass(frozen=True)
class Watched:
    """The parts that follow from settings and extensions alone."""

    extensions: Extensions
    """Those given and those of installed packages."""
    modes: ModeSet
    families: Families
    judging: Judging


def watched_alike(
    config: RLMonConfig,
    about: About,
    ranks: Ranks,
    group_size: int,
    policy: Policy | None,
    extensions: Extensions | None,
    guard: Guard,
) -> Watched:
    """What this rank watches by. Holds a collective; raises ``ConfigError`` on all ranks where one differs."""
    with alike(ranks) as told:
        added = (extensions if extensions is not None else Extensions()).with_installed()
        modes = ModeSet.build(config.modes)
        own = (*WATCHING, CRITIC) if about.critic else WATCHING
        families = Families(own, modes.names, added=added.metrics, guard=guard)
        judging = Judging(
            alpha=config.rlmon_alpha,
            total_steps=about.total_steps,
            group_size=group_size,
            critic=about.critic,
            own=added.detectors,
        )
        told["settings"] = (
            f"group_size {group_size}, rows_per_round {about.rows_per_round}, rounds_per_step "
            f"{about.rounds_per_step}, critic {about.critic}, formats {', '.join(modes.names)}"
        )
        told["metrics"] = families.told
        told["detectors"] = "; ".join(f"{spec.id} {spec.to_json()}" for spec in added.detectors)
        told["policy"] = "" if policy is None else str(policy.to_dict())
    return Watched(added, modes, families, judging)
