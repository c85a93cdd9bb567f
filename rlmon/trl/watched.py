"""How a trainer is watched: what ``RLMon`` asks of the hooks on one, whatever its kind."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from rlmon.config import RLMonConfig
from rlmon.records import Split
from rlmon.trl.actuators import TrainerActuators
from rlmon.trl.base import BaseModel
from rlmon.trl.prompts import SourceMap
from rlmon.trl.wrapping import Around, wrap

if TYPE_CHECKING:
    from rlmon.monitor import Monitor


class Watched(ABC):
    """One trainer and the hooks on it.

    A kind of trainer whose loop shows itself in another way is another subclass (``rlmon.trl.kinds`` lists them).
    """

    recorded_settings: tuple[str, ...] = ()
    """Settings of the trainer for the run's header, beside those that all of them have."""
    critic: bool = False
    """Whether values of a critic are seen."""
    evaluates: ClassVar[bool] = True
    """Whether evaluations are seen."""

    def __init__(self, trainer: Any, config: RLMonConfig) -> None:
        self.trainer = trainer
        self.config = config
        self.monitor: Monitor | None = None
        """Who is told what the hooks see; ``None`` while nobody listens."""
        self.base: BaseModel | None = None
        self.sources = SourceMap(None, frozenset(), "all")
        self.actuators: TrainerActuators | None = None
        """What the rules turn in this trainer; ``None`` where it is only watched."""
        self._undo: list[Callable[[], None]] = []

    @property
    def policy(self) -> Any:
        return self.trainer.accelerator.unwrap_model(self.trainer.model)

    def split(self) -> Split:
        return "train" if self.trainer.model.training else "eval"

    def first_row(self, rows: int) -> int:
        """Number over all ranks of this rank's first of ``rows`` rows."""
        first: int = self.trainer.accelerator.process_index * rows
        return first

    # -- attaching -------------------------------------------------------------------------------------------------

    @staticmethod
    @abstractmethod
    def takes(trainer: Any) -> bool:
        """Whether this is how ``trainer`` is watched."""

    @staticmethod
    @abstractmethod
    def refuse(trainer: Any, config: RLMonConfig) -> None:
        """Raise ``AttachError`` where watching ``trainer`` would half-work, ``ConfigError`` where ``rlmon_success``
        names a reward function that it does not have."""

    @property
    @abstractmethod
    def group_size(self) -> int:
        """Completions a prompt."""

    @abstractmethod
    def choose_base(self) -> BaseModel: ...

    @abstractmethod
    def build_sources(self) -> SourceMap: ...

    @abstractmethod
    def plan(self) -> list[dict[str, str]]:
        """What is seen and what is not: rows of ``{"signal", "status", "reason"}``, once the base is chosen."""

    @abstractmethod
    def install(self) -> None:
        """Put the hooks in place (``hook``)."""

    def hook(self, name: str, around: Around) -> None:
        """Wrap this method of the trainer until ``uninstall``."""
        self._undo.append(wrap(self.trainer, name, around))

    def uninstall(self) -> None:
        while self._undo:
            self._undo.pop()()

    def sample_base(self, monitor: Monitor) -> None:
        """Sample and score the base, before the first update (``rlmon_base_sample``). Never raises."""
        return None

    # -- while it trains: nothing, where a loop shows no such moment -------------------------------------------------

    def step_begins(self, global_step: int) -> None:
        return None

    def step_ends(self) -> None:
        """Hand over what is still held of the step. Never raises."""
        return None

    def mirror(self, values: Mapping[str, float]) -> None:
        """Put these among the trainer's own metrics."""
        return None
