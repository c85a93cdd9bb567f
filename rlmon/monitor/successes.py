"""What counts as a success, the same on all ranks: decided before a round is measured, or from what ranks exchanged."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlmon.criterion import Criterion
from rlmon.exchange import Opinion, agree
from rlmon.metrics.rows import Rows
from rlmon.metrics.success import Deciding, RowSuccess, Success, only_function
from rlmon.records import RolloutBatch
from rlmon.restored import Restored
from rlmon.statistics import Floats


class Successes:
    """The definition of a success as far as it is decided, and what this rank knows of rows by it.

    Args:
        criterion: what the user says a success is.
        world_size: number of ranks.
        changed: told the step and whether an earlier definition was in force, after each change of it.
        count_anew: called where what the ledgers counted were successes of another kind.
    """

    def __init__(
        self,
        criterion: Criterion | None,
        *,
        world_size: int,
        changed: Callable[[int, bool], None],
        count_anew: Callable[[], None],
    ) -> None:
        self.deciding = Deciding.start(criterion)
        self.scorer = ""
        """The function that this rank's rewards are of, where only exchanged rows decide."""
        self._world_size, self._changed, self._count_anew = world_size, changed, count_anew
        self._folds = 0
        """Rounds that went into the definition on this rank."""
        self._scorers: Mapping[int, str] = {}
        """The functions of all ranks, as the last step told them."""
        self._newest_late = -1
        self._told: Opinion | None = None
        """What this rank entered of the definition into the exchange last."""
        self._newest: tuple[int, Floats] = (-1, np.zeros(0))
        """Round and success of the rows observed last."""

    @property
    def definition(self) -> Success:
        return self.deciding.definition

    def load(self, saved: Mapping[str, Any] | None, restored: Restored) -> None:
        """Go on from a checkpoint. Raises where ``saved`` is nothing that ``Deciding.to_json`` gave."""
        self.deciding, changed = self.deciding.resumed(saved)
        if changed is not None:
            restored.changed.append(changed)
            self._count_anew()

    # -- before a round is measured ----------------------------------------------------------------------------------

    def observe(self, batch: RolloutBatch) -> RowSuccess:
        """Of the rows of a round; what a success is is decided here."""
        before = self.deciding
        self.deciding, found = before.observe(batch, self._world_size)
        self._newest = batch.round, found.success_B
        if batch.split != "eval":
            self.scorer = only_function(batch, self._world_size) or ""
            self._folds += self.deciding is not before
        if self.definition != before.definition:
            self._tell(batch.step, again=before.decided)
        return found

    def of_base(self, batch: RolloutBatch) -> RowSuccess:
        """Of the rows of a round of the base sample, once all of it was observed."""
        return self.deciding.of_batch(batch, self._world_size)

    def unknown(self, batch: RolloutBatch) -> RowSuccess:
        """Nothing is known of the rows of this round: what holds where ``observe`` fails."""
        unknown = RowSuccess(np.full(len(batch), np.nan), None)
        self._newest = batch.round, unknown.success_B
        return unknown

    def of_round(self, number: int) -> Floats | None:
        """Success of the rows observed last; ``None`` where those were of another round."""
        return self._newest[1] if self._newest[0] == number else None

    # -- from what the ranks exchanged -------------------------------------------------------------------------------

    def late(self, number: int, group_size: int, step: int, reward_N: Floats, scorer_N: NDArray[Any]) -> Floats | None:
        """Success of a round's rows of all ranks, which were not handed its rewards and decide here, once a round.

        ``None`` where each rank knew before. From what they exchanged alone: a rank may have no rows of its own.
        """
        before = self.deciding
        name = before.called(scorer_N, self._scorers)
        if name is None:
            return None
        rewards = {name: reward_N} if name else {}
        if number > self._newest_late:
            self._newest_late = number
            self._folds += 1
            self.deciding = before.with_round(reward_N, rewards, prompts=len(reward_N) / group_size)
            if self.definition != before.definition:
                self._tell(step, again=before.decided)
        return self.definition.of(reward_N, rewards)

    def fill(self, rows: Rows, step: int) -> NDArray[np.int64]:
        """Put what is known now of the rows of one round, and was not when each rank looked at its own, into ``rows``;
        the modes of the completions that are successes by it."""
        success = self.late(int(rows["round"][0]), int(rows["group_size"][0]), step, rows["reward"], rows["scorer"])
        if success is None:
            return np.zeros(0, dtype=np.int64)
        won = np.isnan(rows["success"]) & (success == 1.0) & (rows["mode"] >= 0)
        rows["success"] = success
        return np.asarray(rows["mode"][won], dtype=np.int64)

    def known(self, rows: Rows) -> Floats:
        """Success of rows of any round: where no rank knew it of its own, by what the ranks have decided since."""
        success: Floats = rows["success"].copy()
        late_N = np.isnan(success)
        reward, name = rows["reward"][late_N], self.deciding.called(rows["scorer"][late_N], self._scorers)
        if name is not None:
            success[late_N] = self.definition.of(reward, {name: reward} if name else {})
        return success

    def opinion(self) -> Opinion:
        """What a success is to this rank, to be compared with the others'."""
        state = {"deciding": self.deciding.to_json(), "folds": self._folds, "newest_late": self._newest_late}
        self._told = Opinion(json.dumps(state).encode(), json.dumps(self.definition.to_json()).encode(), self._folds)
        return self._told

    def no_opinion(self) -> None:
        """This rank enters none into the coming exchange."""
        self._told = None

    def meet(self, scorers: Mapping[int, str]) -> None:
        """The functions that the ranks' rewards are of, as a step told them."""
        self._scorers = scorers or self._scorers

    def agree(self, opinions: Any, rank: int, step: int, reduce: Callable[[Floats], Floats]) -> None:
        """All ranks go on with one definition, where one of them missed a round that others decided by."""
        told = agree(opinions, rank, b"" if self._told is None else self._told.state, reduce)
        if told is None:
            return
        before, state = self.definition, json.loads(told)
        self.deciding = Deciding.from_json(state["deciding"])
        self._folds, self._newest_late = state["folds"], state["newest_late"]
        if len(set(opinions["definition"][opinions["folds_plus_one"] > 0])) > 1:
            self._count_anew()
            if self.definition != before:
                self._tell(step, again=False)

    def _tell(self, step: int, *, again: bool) -> None:
        if again:
            self._count_anew()
        self._changed(step, again)
