"""What was tried beside ``protect`` in the study of control, of which rlmon adopted nothing: two arms.

Their settings were chosen with a look at seed 100, which the study does not compare.
"""

from __future__ import annotations

from collections.abc import Mapping

from studies.arms import Arm

TRIED: Mapping[str, Arm] = {
    arm.name: arm
    for arm in (
        Arm(
            name="virtual",
            policy={
                "extends": "protect",
                "rules": {"teach-on": {"when": "always", "do": {"action": "virtual_wrong", "samples": 1.0}}},
            },
            about=(
                "beside `protect`, where all answers of a prompt are right they get the advantage that one wrong one "
                "among them would give, 1/3 in a group of 8 (the virtual rewards of arXiv 2605.21125)"
            ),
        ),
        Arm(
            name="tilted",
            policy={
                "extends": "protect",
                "rules": {
                    "hold-formats": {
                        "do": {"action": "tilted_marginal", "kappa": 0.3, "bounds": [0.1, 1.0], "keeps": 0.9}
                    }
                },
            },
            about=(
                "`protect`, with formats held in proportion to p0(m) exp(s(m) / tau) where it has the base's shares "
                "p0(m): s(m) is how often format m is right now, tau the least that keeps .9 of the base's effective "
                "number, and no less than .02"
            ),
        ),
    )
}
"""Arms by name."""
