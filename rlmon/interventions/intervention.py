"""What an intervention is: its settings, what it needs, what it does to a round, and where it takes its level.

One class per word after ``do:``, a frozen dataclass whose fields are what a policy file may say::

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Halve(Intervention):
        \"\"\"Halve the advantages of long completions while the condition holds.\"\"\"

        name = "halve_long"
        tokens: float = setting(100.0, "completions longer than this are halved", low=0.0)

        def on_round(self, state: Any, round: Round) -> tuple[Any, RowChange]:
            return state, RowChange(factor_N=np.where(round.table.tokens_N > self.tokens, 0.5, 1.0))

The fold asks it questions, and knows none by its class. Everything here is a function of what all ranks share, so
that every rank decides the same.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from rlmon.interventions.rows import RoundTable, Wide
from rlmon.interventions.saved import from_json, to_json
from rlmon.interventions.setting import Setting
from rlmon.records import StepRecord
from rlmon.statistics import GOLDEN, splitmix64

Level = float | str | None
Turns = Literal["advantages", "beta", "entropy_coef", "reference", "draws", "loss", "stop", "roll_back"]
"""What of a training loop an intervention turns. Every loop has the advantages that it takes back; the rest is done by
what the loop says it can turn. An intervention of one's own turns

- ``advantages``: by ``on_round``;
- ``beta`` or ``entropy_coef``: to the value that its ``next_level`` returns;
- ``draws``: by ``blocked``;

and is derived from ``ResetReference``, ``Anchor``, ``Stop`` or ``RollBack`` to turn ``reference``, ``loss``, ``stop``
or ``roll_back``."""
SILENT_VALUES = 3
"""Shares of groups without reward variance that ``RunSoFar.silent`` holds, once there are so many."""


def setting(default: Any, help: str, *, low: float | None = None, high: float | None = None) -> Any:
    """A field of an intervention: default, meaning, and the closed range of its number (or of both bounds)."""
    return field(default=default, metadata={"help": help, "low": low, "high": high})


@dataclass(frozen=True, kw_only=True)
class RuleState:
    """Where one rule stands."""

    condition: Any
    met: bool = False
    level: float = 0.0
    """Value of what the rule turns; 1.0 and 0.0 where it is only on or off."""
    began_step: int | None = None
    changed_step: int | None = None
    suspended: bool = False
    """Held at 0 for the time being, whatever the level."""
    failed: str | None = None
    """Why the rule acts no more."""
    inner: Any = None
    """The state of the intervention itself."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunSoFar:
    """What of the run a level may depend on."""

    rest: float
    """The level at rest."""
    given: Mapping[str, float]
    """What the loop can turn, as it was when the run began: ``beta``, ``entropy_coef``, ``entropy_target``."""
    silent: tuple[float, ...] = ()
    """Share of groups without reward variance, at the newest ``SILENT_VALUES`` steps at which it was measured; never
    measured where there is a critic, to which such a group teaches as much as any other."""
    base_entropy_nats: float | None = None
    """Mean token entropy of the baseline; ``None`` until that is complete."""


class Ledger(Protocol):
    """The whole run's attempts at the prompts of a round's rows [N]."""

    def credibly_below(self, rate: float, credibility: float) -> NDArray[np.bool_]:
        """Whether P(solve rate of the row's prompt < ``rate``) is at least ``credibility`` [N]."""

    def counts(self) -> NDArray[np.int64]:
        """Attempts and successes of each row's prompt [N, 2]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Round:
    """One training round, as an intervention sees it."""

    table: RoundTable
    level: float
    """Of the rule; above 0 where it acts."""
    acting: bool
    """Whether the rule acts, or would in a dry run."""
    dry_run: bool
    scale: float
    """Root mean square of the advantages in groups with reward variance: the unit of an addition."""
    left_N: NDArray[np.float64] | None = None
    """The advantages as the rules before this one leave them; ``None``: as the trainer computed them."""
    known: Any = None
    """What ``Intervention.ask`` answered."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RowAct:
    """What was done to the rows of one round, for the record."""

    knob: Literal["advantages", "draws"]
    count: int
    """Groups, prompts or sources."""
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class RowChange:
    """What becomes of the advantages of a round: ``clip(A * factor, limit) + addition``. In a dry run, and where the
    rule does not act, nothing of it is done."""

    factor_N: NDArray[np.float64] | None = None
    limit: float | None = None
    """Bound on the size of every advantage."""
    addition_N: NDArray[np.float64] | None = None
    act: RowAct | None = None


@dataclass(frozen=True, kw_only=True)
class Blocked:
    """What is not to be drawn in one round. Keys are those of the ``RoundTable``."""

    prompts: frozenset[int] = frozenset()
    sources: Mapping[int, float] = field(default_factory=dict)
    """By source, the share of its prompts (chosen by hash)."""

    def __bool__(self) -> bool:
        return bool(self.prompts or self.sources)

    def holds(self, prompt: int, source: int | None = None) -> bool:
        """Whether this prompt, of this source, is not to be drawn."""
        if prompt in self.prompts:
            return True
        fraction = 0.0 if source is None else self.sources.get(source, 0.0)
        return fraction >= 1.0 or (fraction > 0.0 and unit_hash(prompt, 2) < fraction)


NOTHING = Blocked()
NO_CHANGE = RowChange()


@dataclass(frozen=True, kw_only=True, slots=True)
class Intervention:
    """What a rule does while its condition holds: the settings of one, and the answers to what is asked of it.

    A subclass is a frozen, keyword-only dataclass with a default for each field, made by ``setting``; the first line
    of its docstring is what the documentation says of it.
    """

    name: ClassVar[str]
    """The word after ``do:``."""
    turns: ClassVar[Turns] = "advantages"
    knob_name: ClassVar[str | None] = None
    """What acts call that; unset: its own name."""
    needs_success: ClassVar[bool] = False
    """It can do nothing where it is not known what counts as a success."""
    ends_training: ClassVar[bool] = False
    measured_by: ClassVar[tuple[str, Literal["up", "down"]] | None] = None
    """By which metric its effect is judged where the rule's condition names none, and which way is good."""
    asks: ClassVar[Literal["before", "after"] | None] = None
    """Whether ``ask`` is called each round, with the ledger as it is before or after the round is counted."""
    starts_at: ClassVar[str | None] = None
    """The setting that must lie within ``bounds``."""
    gone: ClassVar[Mapping[str, tuple[Any, str]]] = {}
    """Settings of earlier versions: the value that means nothing, and what to say of any other."""
    holds: ClassVar[Mapping[str, float | None]] = {}
    """Metrics ``rlmon/intervention/*`` that are null without a rule of this kind, and the most that each is while none
    acts; ``None``: unbounded."""
    folds_base: ClassVar[bool] = False
    """Whether a sample of the base (``rlmon_base_sample``) goes through ``on_round`` as well, once, before the first
    round and without acting: for one that compares the run with its base."""
    moves_when_dry: ClassVar[bool] = False
    """Whether a dry run moves its metrics too."""

    @property
    def knob(self) -> str:
        """What it turns, as acts call it."""
        return self.name if self.knob_name is None else self.knob_name

    @property
    def remembers(self) -> str:
        """What its state is of: a rule that goes on from a checkpoint with a state of something else begins anew."""
        return self.knob

    @property
    def reads(self) -> Collection[Wide]:
        """The wide columns of a ``RoundTable`` that it looks at: they are ``None`` where no rule does."""
        return ()

    # -- rounds ----------------------------------------------------------------------------------------------------

    @classmethod
    def looks_at_rows(cls) -> bool:
        """Whether the rows of a round are needed: some loops make them only then."""
        return cls.on_round is not Intervention.on_round

    def fresh(self) -> Any:
        """Its state before the first round: JSON types, or a frozen dataclass of them."""
        return None

    def ask(self, ledger: Ledger) -> Any:
        """What it wants to know of the prompts of a round (``Round.known``)."""
        return None

    def on_round(self, state: Any, round: Round) -> tuple[Any, RowChange]:
        """Fold one training round, whether the rule acts or not: the new state, and what becomes of the rows."""
        return state, NO_CHANGE

    def blocked(self, state: Any, round: int) -> Blocked:
        """What is not to be drawn in that round, of an intervention that turns ``draws``."""
        return NOTHING

    @property
    def blocks_sources(self) -> bool:
        """Whether ``blocked`` may name sources: that of each dataset row is then looked up."""
        return False

    def anchoring(self, at: RuleState, step: int) -> tuple[tuple[int, ...], float]:
        """Modes that are dying, most lost first, and the weight of the supervised loss on them, of an intervention
        that turns ``loss``."""
        return (), 0.0

    # -- steps -----------------------------------------------------------------------------------------------------

    def on_step(self, state: Any, record: StepRecord) -> Any:
        """Fold one step's record, whether the rule acts or not: the new state."""
        return state

    def resting_level(self, given: Mapping[str, float]) -> float:
        """Its level while the rule does not act; ``given``: what the loop can turn, as the run began."""
        return given.get(self.turns, 0.0)

    def suspends(self, at: RuleState, run: RunSoFar) -> tuple[bool, str | None]:
        """Whether it is held at 0 for the time being, and why, where that changes now."""
        return False, None

    def next_level(self, at: RuleState, run: RunSoFar) -> tuple[float | None, str | None]:
        """The level from now on (``None``: as it is), once the rule has cooled off; and why, where that is something
        else than the rule's condition. It begins to act when it leaves its rest, and no more acts when it is back."""
        return (1.0 if at.met else 0.0), None

    def change(self, old: float, new: float) -> tuple[Level, Level] | None:
        """What an act says of a change of level; ``None`` where there is nothing to say or do."""
        if type(self).next_level is Intervention.next_level:
            return ("off", "on") if new else ("on", "off")
        return old, new

    def measures(self, at: RuleState, step: int, *, dry_run: bool) -> Mapping[str, float | None]:
        """Its metrics at a step, without the prefix ``rlmon/intervention/``. Of several rules the greatest counts, and
        the smallest of a ratio."""
        return {}

    # -- validation ------------------------------------------------------------------------------------------------

    def lacks(self, setting: Setting) -> str | None:
        """Why the loop cannot do it, and what to change; ``None`` where it can."""
        return setting.lacks.get(self.turns)

    def useless(self, setting: Setting) -> str | None:
        """Why it would change nothing, or nothing but harm, in any step, and what to type; ``None`` where it would."""
        return None

    def too_late(self, setting: Setting) -> str | None:
        """Why the run ends before it can do anything; ``None`` where it does not."""
        return None

    def odd(self, setting: Setting, *, always: bool) -> Iterator[str]:
        """What is possible, and hardly meant. ``always``: the rule has no condition."""
        yield from ()

    def reach(self) -> Mapping[str, float]:
        """The most that each of its metrics can be while it acts."""
        return {self.turns: math.inf} if self.turns in ("beta", "entropy_coef") else {}

    # -- checkpoints -----------------------------------------------------------------------------------------------

    def save(self, state: Any) -> Any:
        """The state as JSON types; floats survive exactly."""
        return to_json(state)

    def load(self, found: Any) -> Any:
        """The state that ``save`` gave."""
        fresh = self.fresh()
        return from_json(type(fresh), found) if dataclasses.is_dataclass(fresh) else found


def default_of(intervention: Intervention, name: str) -> float:
    """What a setting is where a policy does not give it."""
    defaults: dict[str, Any] = {each.name: each.default for each in dataclasses.fields(intervention)}
    return float(defaults[name])


def tidy(level: float) -> float:
    """A level that was raised and lowered as often is where it began, and reads well."""
    return round(level, 9)


def unit_hash(key: int, salt: int) -> float:
    """In [0, 1), uniform over keys."""
    z = np.array([(key + salt * int(GOLDEN)) % 2**64], dtype=np.uint64)
    return int(splitmix64(z)[0] >> np.uint64(11)) / 2.0**53
