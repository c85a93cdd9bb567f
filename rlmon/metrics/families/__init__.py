"""The families of metrics that every run has: one file each."""

from rlmon.metrics.families.collision import Collision
from rlmon.metrics.families.entropy import Entropy
from rlmon.metrics.families.format import Format
from rlmon.metrics.families.group import Group
from rlmon.metrics.families.health import Health
from rlmon.metrics.families.intervention import Intervention
from rlmon.metrics.families.kl import KL
from rlmon.metrics.families.moves import Moves
from rlmon.metrics.families.text import Text
from rlmon.metrics.families.value import Value
from rlmon.metrics.family import MetricFamily

WATCHING: tuple[MetricFamily, ...] = (
    Entropy(), Collision(), Format(), Moves(), KL(), Group(), Text(), Health(),
)  # fmt: skip
"""What every step has."""
OF_ROWS: tuple[MetricFamily, ...] = (Collision(), Format(), Group(), Text(), Health())
"""Those that the rows of a run say something of when it is over."""
CRITIC = Value()
"""What the steps of a run with a critic have too."""
FAMILIES: tuple[MetricFamily, ...] = (*WATCHING, CRITIC, Intervention())
"""All of them, in the order of the catalogue."""

__all__ = ["CRITIC", "FAMILIES", "OF_ROWS", "WATCHING"]
