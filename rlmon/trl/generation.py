"""The hooks on what a trainer samples and scores, and whose row each row of a training batch is.

TRL shuffles rows after scoring, so each row's identity travels with the tensors: a ``(B, 2)`` tensor of
(round, sampled row) is added to the generated batch, which TRL shuffles and splits in unison with the rest. The row is
-1 where the batch holds a completion that was not sampled in this round (``rlmon.trl.sampling``).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate.utils import gather_object
from numpy.typing import NDArray

from rlmon.monitor.observed import ROUNDS_REMEMBERED
from rlmon.records import RolloutBatch, Split
from rlmon.trl.batches import SeenRound, as_trained, rollout_batch
from rlmon.trl.sampling import Drawn, Finder, Generated, Row, Sampling, Scored, find_rows
from rlmon.trl.watched import Watched
from rlmon.trl.wrapping import Around, Original, bound_arguments

if TYPE_CHECKING:
    from rlmon.monitor import Monitor

ROWS_KEY = "rlmon_rows"
SCORING = ("inputs", "prompts", "completions", "completion_ids_list")
"""TRL's names of the parameters of ``_calculate_rewards``."""


class Generation:
    """Sees each round of one trainer, and tells the rows of its batches apart afterwards."""

    def __init__(self, watched: Watched) -> None:
        self._watched = watched
        self._sampling: Sampling | None = None
        self._own: dict[Split, dict[int, list[NDArray[np.bool_] | None]]] = {"train": {}, "eval": {}}
        """Of the newest rounds, which tokens of each sampled row are the model's own; ``None`` where it is padded in
        another way than TRL does."""
        self._joined: _JoinedRound | None = None
        self.hooks: Mapping[str, Around] = {
            "_generate_and_score_completions": self._round,
            "_generate": self._sampled,
            "_calculate_rewards": self._rewards,
        }

    # -- the hooks -------------------------------------------------------------------------------------------------

    def _round(self, original: Original, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        watched = self._watched
        monitor, actuators = watched.monitor, watched.actuators
        if monitor is None or self._sampling is not None:  # within a round: one that samples in parts
            return original(*args, **kwargs)
        inputs: Sequence[Mapping[str, Any]] = ()
        with monitor.guard("capture.rollouts"):
            inputs = given = bound_arguments(original, args, kwargs, ("inputs",))["inputs"]
            if watched.split() == "train":
                self.learn_sources(monitor, inputs)
            if actuators is not None:
                inputs = actuators.draws(monitor, inputs)
            if inputs is not given:
                args = tuple(inputs if value is given else value for value in args)
                kwargs = {name: inputs if value is given else value for name, value in kwargs.items()}
        sampling = self._sampling = Sampling()
        try:
            output = original(*args, **kwargs)
        finally:
            self._sampling = None
        trained = None
        with monitor.guard("capture.rollouts"):
            trained = self._observe_rollouts(monitor, inputs, output, sampling)
        if actuators is not None:
            actuators.rollouts(monitor, trained, output, rows=len(inputs))
        return output

    def _sampled(self, original: Original, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = original(*args, **kwargs)
        monitor = self._watched.monitor
        if monitor is not None and self._sampling is not None:
            with monitor.guard("capture.rollouts"):
                prompts = bound_arguments(original, args, kwargs, ("prompts",))["prompts"]
                self._sampling.generated.append(Generated.of(prompts, result))
        return result

    def _rewards(self, original: Original, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        rewards_NF = original(*args, **kwargs)
        monitor = self._watched.monitor
        if monitor is not None and self._sampling is not None:
            with monitor.guard("capture.rollouts"):
                given = bound_arguments(original, args, kwargs, SCORING)
                inputs, prompts, completions, ids = (given[name] for name in SCORING)
                call = Scored(inputs, prompts, completions, ids, rewards_NF)
                monitor.journal.expect_rows(self._sampling.add_scored(call))
        return rewards_NF

    # -- a sample of the base --------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def sampling_base(self) -> Iterator[Sampling]:
        """What is sampled and scored inside is of the base: it is kept here, and handed to nobody."""
        self._sampling = Sampling()
        try:
            yield self._sampling
        finally:
            self._sampling = None

    # -- a round ---------------------------------------------------------------------------------------------------

    def learn_sources(self, monitor: Monitor, inputs: Sequence[Mapping[str, Any]]) -> None:
        """From the first round of all ranks, of training or of a sample of the base; each prompt once, wherever its
        group lies. Holds a collective, on all ranks or on none."""
        watched = self._watched
        if watched.sources.learning:
            with monitor.guard("capture.rollouts"):
                first = watched.first_row(len(inputs))
                rows = [row for i, row in enumerate(inputs) if (first + i) % watched.group_size == 0]
                watched.sources.learn(rows, gather_object)

    def _observe_rollouts(
        self, monitor: Monitor, inputs: Sequence[Mapping[str, Any]], output: Any, sampling: Sampling
    ) -> RolloutBatch | None:
        """Hand over the rows of a round; those that are trained on, in the order of ``output``, where that is known of
        each of them."""
        split = self._watched.split()
        number = monitor.next_round(split)
        identity_R2 = _add_identity(output, number)
        calls = sampling.calls(inputs)
        if not calls:
            raise RuntimeError("TRL returned a generation in which nothing was sampled or scored")
        if not sampling.scored:
            monitor.journal.expect_rows(sum(map(len, calls)))
        rows = [row for call in calls for row in sampling.rows(call)]
        drawn = None
        if identity_R2 is None:
            monitor.fault("capture.rollouts", "the generated batch has no rows that an identity could travel with")
        else:
            with monitor.guard("capture.rollouts"):
                drawn = find_rows(output, rows, self._finder(rows))
                identity_R2[:, 1] = torch.tensor(drawn.row_R, dtype=torch.int64)
        seen = SeenRound(number=number, split=split, calls=calls, rows=rows, drawn=drawn, output=output)
        batch = self._take(monitor, seen)
        return None if drawn is None else as_trained(batch, drawn, self._watched.first_row(len(drawn.row_R)))

    def _take(self, monitor: Monitor, seen: SeenRound) -> RolloutBatch:
        """Hand the monitor a round, and remember which of its tokens are the model's own."""
        rows, watched = seen.rows, self._watched

        def complain(what: str) -> None:
            monitor.fault("capture.rollouts", what)

        batch = rollout_batch(watched.trainer, watched.sources, seen, complain)
        own: list[NDArray[np.bool_] | None] = [None] * len(rows)
        if seen.drawn is not None:
            for row, placed in zip(seen.drawn.row_R, seen.drawn.placed_R, strict=True):
                if placed:
                    own[row] = rows[row].own_T
        remembered = self._own[seen.split]
        remembered[seen.number] = own
        while len(remembered) > ROUNDS_REMEMBERED:
            remembered.pop(next(iter(remembered)))
        monitor.observe(batch)
        return batch

    def _finder(self, rows: Sequence[Row]) -> Finder:
        return Finder(rows, self._watched.trainer._tokenizer.pad_token_id)

    # -- rows of a training batch ----------------------------------------------------------------------------------

    def rows_of(self, monitor: Monitor, inputs: Mapping[str, Any], count: int) -> list[list[int]]:
        """(round, sampled row) of each row of a batch; (-1, -1) where it carries none."""
        rows_B2 = inputs.get(ROWS_KEY)
        if rows_B2 is None and self._joined is not None:
            rows_B2 = self._rows_of_joined(monitor, self._joined, inputs)
        if rows_B2 is None or len(rows_B2) != count:
            monitor.fault("capture.tokens", "a training batch carries no row identity")
            return [[-1, -1]] * count
        listed: list[list[int]] = rows_B2.to("cpu").tolist()
        return listed

    def own_tokens(self, split: Split, number: int, row: int) -> NDArray[np.bool_] | None:
        """Which tokens of this sampled row are the model's own; ``None`` where that is not known."""
        own = self._own[split].get(number)
        return None if own is None or row < 0 else own[row]

    # -- a round that was joined while it was being scored -----------------------------------------------------------

    def join(
        self, prompts: Sequence[Any], completions: Sequence[Any], completion_ids: Any, rows: Sequence[Mapping[str, Any]]
    ) -> None:
        """Take a round whose generation began before the hooks were in place (see ``rlmon.trl.probe``)."""
        monitor = self._watched.monitor
        assert monitor is not None
        self.learn_sources(monitor, rows)
        scored = Scored(rows, prompts, completions, completion_ids, None)
        sampled = Sampling().rows(scored)
        self._joined = _JoinedRound(scored, sampled, self._finder(sampled))
        monitor.journal.expect_rows(len(completion_ids))

    def _rows_of_joined(self, monitor: Monitor, joined: _JoinedRound, inputs: Mapping[str, Any]) -> torch.Tensor | None:
        """Rows of a shuffled batch found again by their token ids."""
        if joined.round is None:
            with monitor.guard("capture.rollouts"):
                self._take_joined(monitor, joined)
        if joined.round is None:
            return None
        found = find_rows(inputs, joined.rows, joined.finder).row_R
        if min(found, default=0) < 0:  # all were found once: this is the next pass over them
            joined.finder = self._finder(joined.rows)
            found = find_rows(inputs, joined.rows, joined.finder).row_R
        return torch.tensor([[joined.round, row] for row in found])

    def _take_joined(self, monitor: Monitor, joined: _JoinedRound) -> None:
        joined.round = monitor.next_round("train")
        joined.scored.rewards_NF, advantages_B = self._logged(len(joined.rows))
        seen = SeenRound(
            number=joined.round,
            split="train",
            calls=[joined.scored],
            rows=joined.rows,
            drawn=Drawn(list(range(len(joined.rows))), [True] * len(joined.rows)),
            output={"advantages": advantages_B},
        )
        self._take(monitor, seen)

    def _logged(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Rewards [N, F] of all ranks and advantages [B] of this one, which TRL keeps for its table of completions:
        that holds exactly the joined round when its first loss is computed."""
        trainer = self._watched.trainer
        logs, first = trainer._logs, self._watched.first_row(count)
        rewards_FN = [list(logs["rewards"][name]) for name in trainer.reward_func_names]
        advantages_B = list(logs["advantages"])[first : first + count]
        return torch.tensor(rewards_FN, dtype=torch.float64).T, torch.tensor(advantages_B, dtype=torch.float64)


class _JoinedRound:
    """The first round of a run that the probe joined: rewards of the other functions and advantages were not known yet,
    and its rows carry no identity."""

    def __init__(self, scored: Scored, rows: Sequence[Row], finder: Finder) -> None:
        self.scored, self.rows, self.finder = scored, rows, finder
        self.round: int | None = None


def _add_identity(output: Any, number: int) -> torch.Tensor | None:
    """Let the rows of a generated batch carry (round, -1); ``None`` where that would not fit what is there."""
    if not isinstance(output, MutableMapping):
        return None
    sizes = {
        len(output[name])
        for name in ("completion_ids", "completion_mask", "prompt_ids", "prompt_mask", "advantages")
        if isinstance(output.get(name), torch.Tensor) and output[name].dim()
    }
    if len(sizes) != 1 or not isinstance(output.get("completion_ids"), torch.Tensor):
        return None
    identity_R2 = torch.full((sizes.pop(), 2), -1, dtype=torch.int64)
    identity_R2[:, 0] = number
    output[ROWS_KEY] = identity_R2.to(output["completion_ids"].device)
    placed: torch.Tensor = output[ROWS_KEY]
    return placed
