"""What a run is watched by: made on each rank, and the same on all of them.

What differs would change the shape of the step's exchange, so that ranks wait for each other for ever, or add what is
not the same.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from rlmon.config import RLMonConfig
from rlmon.errors import ConfigError
from rlmon.extensions import Extensions
from rlmon.keys import content_key
from rlmon.metrics.families import CRITIC, WATCHING
from rlmon.metrics.formats import ModeSet
from rlmon.metrics.step import Families, Guard
from rlmon.monitor.judging import Judging
from rlmon.monitor.setting import About, Ranks
from rlmon.printable import one_line
from rlmon.sinks.posting import Webhook, webhook_of

if TYPE_CHECKING:
    from rlmon.interventions.policy import Policy


@dataclass(frozen=True)
class Watched:
    """The parts that follow from settings, extensions and, of the webhook, the environment alone."""

    extensions: Extensions
    """Those given and those of installed packages."""
    modes: ModeSet
    families: Families
    judging: Judging
    webhook: Webhook | None
    """Of rank 0, which posts."""


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
        webhook = webhook_of(os.environ) if ranks.rank == 0 else None
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
    return Watched(added, modes, families, judging, webhook)


_PARTS = ("failure", "settings", "metrics", "detectors", "policy")
"""What is compared, the gravest first."""
_HOW = {
    "failure": "Where it cannot begin on all ranks, it begins on none.",
    "settings": "Give all ranks the same settings.",
    "policy": "Give all ranks the same policy.",
}
_INSTALL = "Install the same packages on all ranks, and give all the same {part}=[...]: pip list on each shows them."
_TEXT_BYTES = 2_000
_SHOWN = 300
"""Characters of what differs that are shown of each."""


@contextlib.contextmanager
def alike(ranks: Ranks) -> Iterator[dict[str, str]]:
    """What is made inside and differs between ranks is refused on all of them. Holds a collective, of a shape that
    follows from their number alone, also on a rank where something is raised inside.

    Yields the mapping into which each part is told in words. Raises ``ConfigError``.
    """
    told: dict[str, str] = {}
    failure: Exception | None = None
    try:
        yield told
    except Exception as error:
        if ranks.world_size == 1:
            raise
        failure, told = error, {"failure": f"{type(error).__name__}: {error}"}
    different = None if ranks.world_size == 1 else _difference(ranks, told)
    if failure is not None:
        raise failure
    if different is not None:
        raise ConfigError(different)


def _difference(ranks: Ranks, told: dict[str, str]) -> str | None:
    """What differs, in the same words on all ranks."""
    share = np.zeros((ranks.world_size, len(_PARTS)))
    share[ranks.rank] = [content_key(told.get(part, "")) + 1.0 for part in _PARTS]
    found = ranks.sum(share.reshape(-1)).reshape(share.shape)
    differs = (found != found[0]) & (found > 0) & (found[0] > 0)
    if not differs.any():
        return None
    part = _PARTS[int(np.flatnonzero(differs.any(axis=0))[0])]
    other = int(np.flatnonzero(differs[:, _PARTS.index(part)])[0])
    # All ranks know by now that they differ, so that all enter this sum too.
    words = np.zeros((ranks.world_size, _TEXT_BYTES))
    said = told.get(part, "").encode("utf-8", "replace")[:_TEXT_BYTES]
    words[ranks.rank, : len(said)] = list(said)
    every = ranks.sum(words.reshape(-1)).reshape(words.shape)
    first, second = (
        bytes(every[rank].astype(np.uint8)).rstrip(b"\0").decode("utf-8", "ignore") or "none" for rank in (0, other)
    )
    pairs = enumerate(zip(first, second, strict=False))
    same = next((at for at, (one, two) in pairs if one != two), min(len(first), len(second)))
    if max(len(first), len(second)) > _SHOWN and same > _SHOWN // 2:
        first, second = (f"... {text[same - _SHOWN // 2 :]}" for text in (first, second))
    first, second = (one_line(text, _SHOWN) for text in (first, second))
    how = _HOW.get(part, _INSTALL.format(part=part))
    return f"the ranks differ in their {part}. Rank 0: {first}. Rank {other}: {second}. {how}"
