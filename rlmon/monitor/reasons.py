"""Why a metric of a step is null, where a whole part of the step was not measured."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]


def of_missing_parts(
    missing: Collection[str],
    sums: Mapping[str, Vector],
    *,
    rounds: float,
    failed: Collection[str],
    kl_reason: str,
    unseen: Mapping[str, str],
) -> dict[str, str]:
    """Better reasons for what is ``missing``; the same on all ranks.

    Args:
        missing: names of metrics that are null.
        sums: of the step, over all ranks.
        rounds: generations that were observed in the step, over all ranks.
        failed: places that failed on some rank.
        kl_reason: why the base was not compared.
        unseen: families (``entropy``, ``kl``) that the losses of this trainer do not show, and why.
    """
    better: dict[str, str] = {}
    if sums["kl"][0] <= 0:
        broken = sorted(set(failed) & {"base.tap", "base.forward", "metrics.kl"})
        reason = f"the comparison with the base failed in this step ({', '.join(broken)})"
        better |= {name: reason if broken else kl_reason for name in missing if name.startswith("rlmon/kl/")}
    if sums["rows"][0] <= 0:
        reason = "no new generation was trained in this step"
        if rounds:
            reason = f"no completion of this step was measured ({', '.join(sorted(failed)) or 'none was observed'})"
        tokens_alone = ("rlmon/kl/", "rlmon/entropy/")
        better |= {name: reason for name in missing if not name.startswith(tokens_alone)}
    for family, reason in unseen.items():
        better |= {name: reason for name in missing if name.startswith(f"rlmon/{family}/")}
    return better
