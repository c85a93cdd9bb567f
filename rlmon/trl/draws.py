"""Which rows a TRL trainer generates from: those of deferred prompts are replaced just before generation.

TRL hands over raw dataset rows, G consecutive copies of each prompt, rank after rank; groups may straddle ranks. What
replaces a group is a function of (seed, round, place of the group in the whole round) and of what is blocked, never of
what else a rank sees, so that all copies of a prompt are replaced alike on all ranks. TRL's own sampler is left as it
is: while nothing is blocked the order of prompts is TRL's, to the bit.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rlmon.errors import AttachError
from rlmon.interventions.intervention import Blocked, Intervention
from rlmon.interventions.rows import row_key
from rlmon.metrics.prompts import prompt_identity
from rlmon.statistics import GOLDEN, splitmix64
from rlmon.trl.stored import stored_column

SORTED_ROWS = 8_192
"""Datasets of at most so many rows are permuted as a whole each round; in larger ones rows are drawn by hash."""
REMEMBERED_KEYS = 200_000
"""Keys of dataset rows kept, so that a row is read and hashed once."""
RESERVOIR_ROWS = 256
"""Distinct prompts of a stream kept as replacements."""
MULTIMODAL_COLUMNS = ("image", "images")


class Draws:
    """Replaces the rows of blocked prompts in a trainer's rounds.

    Args:
        trainer: a GRPO or RLOO trainer.
        action: what says which prompts are not to be drawn.
        source_of: name of a dataset row's source; needed where sources are deferred.

    Raises ``AttachError`` where a replacement cannot be the same on all ranks, or where the trainer's prompts are not
    those of its dataset.
    """

    def __init__(
        self, trainer: Any, action: Intervention, source_of: Callable[[Mapping[str, Any]], str] | None = None
    ) -> None:
        self._by_source = action.blocks_sources
        if self._by_source and source_of is None:
            raise AttachError("defer with by: source needs to know the source of a dataset row, and nothing tells it.")
        self._source_of = source_of
        self._G = int(trainer.num_generations)
        self._rank = int(trainer.accelerator.process_index)
        self._seed = int(trainer.args.seed)
        dataset = trainer.train_dataset
        lack = lacks(trainer)
        if lack is not None:
            raise AttachError(lack)
        self._rows = dataset if hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__") else None
        self._prompts = stored_column(dataset, "prompt")
        self._keys: dict[int, tuple[int, int | None]] = {}
        self._reservoir: dict[int, Mapping[str, Any]] = {}
        self.kept = 0
        """Blocked groups of this rank that were generated from all the same, for want of a replacement."""

    # -- one round -------------------------------------------------------------------------------------------------

    def swap(self, inputs: Sequence[Mapping[str, Any]], blocked: Blocked, number: int) -> Sequence[Mapping[str, Any]]:
        """The rows to generate from in training round ``number``: ``inputs`` itself where none is blocked."""
        if self._rows is None:
            self._remember(inputs)
        if not blocked:
            return inputs
        first = self._rank * len(inputs)
        keys: dict[int, tuple[int, int | None]] = {}
        for i, row in enumerate(inputs):
            group = (first + i) // self._G
            if group not in keys:
                keys[group] = self._key(row)
        held = [group for group, key in keys.items() if blocked.holds(*key)]
        if not held:
            return inputs
        found = self._replacements(held, blocked, number)
        self.kept += sum(group not in found for group in held)
        # A copy each, as TRL's own rows are: an environment or a reward function may write into one.
        return [
            dict(found[group]) if (group := (first + i) // self._G) in found else row for i, row in enumerate(inputs)
        ]

    def _replacements(self, groups: Sequence[int], blocked: Blocked, number: int) -> dict[int, Mapping[str, Any]]:
        """The row for each of ``groups``: group g takes the g-th row that is not blocked in the round's own order."""
        wanted = max(groups) + 1
        rows: list[Mapping[str, Any]] = []
        for row in self._in_order(blocked, number, wanted):
            rows.append(row)
            if len(rows) == wanted:
                break
        # Fewer rows than groups: a row replaces several of them.
        return {group: rows[group % len(rows)] for group in groups} if rows else {}

    def _in_order(self, blocked: Blocked, number: int, wanted: int) -> Iterator[Mapping[str, Any]]:
        """Rows that are not blocked, each once, in an order that seed and round decide: each is equally likely at
        each place."""
        if self._rows is None:
            rows = list(self._reservoir.items())
            for place in np.argsort(self._hashes(number, len(rows)), kind="stable").tolist():
                key, row = rows[place]
                if not blocked.holds(key, self._key(row)[1] if self._by_source else None):
                    yield row
            return
        size = len(self._rows)
        if size <= SORTED_ROWS:
            order = np.argsort(self._hashes(number, size), kind="stable").tolist()
        else:
            # As good as a permutation: what comes twice is passed over, and the rows that a round needs are few.
            order = (self._hashes(number, max(SORTED_ROWS, 64 * wanted)) % np.uint64(size)).tolist()
        seen: set[int] = set()
        for index in order:
            if index in seen:
                continue
            seen.add(index)
            if not blocked.holds(*self._key_at(index)):
                yield self._rows[index]

    def _hashes(self, number: int, count: int) -> NDArray[np.uint64]:
        """[count] of 64 bits each, by seed and round."""
        digest = hashlib.blake2b(f"{self._seed}/{number}".encode(), digest_size=8).digest()
        with np.errstate(over="ignore"):
            places = np.arange(count, dtype=np.uint64) * GOLDEN + np.uint64(int.from_bytes(digest, "little"))
        return splitmix64(places)

    def _key(self, row: Mapping[str, Any]) -> tuple[int, int | None]:
        """Keys of the row's prompt and, where sources are deferred, of its source."""
        source = row_key(self._source_of(row)) if self._by_source and self._source_of is not None else None
        return row_key(prompt_identity(row["prompt"])), source

    def _key_at(self, index: int) -> tuple[int, int | None]:
        key = self._keys.get(index)
        if key is None:
            if len(self._keys) >= REMEMBERED_KEYS:
                self._keys.clear()
            assert self._rows is not None
            # As it is stored, where that will do: a row that is passed over is then not made.
            row = self._rows[index] if self._prompts is None or self._by_source else {"prompt": self._prompts[index]}
            key = self._keys[index] = self._key(row)
        return key

    # -- streams ---------------------------------------------------------------------------------------------------

    def _remember(self, inputs: Sequence[Mapping[str, Any]]) -> None:
        """Keep the newest distinct prompts of a stream. Those that JSON would change are left out: a resumed run could
        not take them up."""
        for i in range(0, len(inputs), self._G):
            row = inputs[i]
            key = row_key(prompt_identity(row["prompt"]))
            if key in self._reservoir or not _survives_json(row):
                continue
            self._reservoir[key] = dict(row)
            if len(self._reservoir) > RESERVOIR_ROWS:
                del self._reservoir[next(iter(self._reservoir))]

    def state(self, *, text: bool = True) -> dict[str, Any]:
        """What this rank's part of a checkpoint needs, as JSON types: the rows kept of a stream.

        Where no ``text`` may be stored there are none, and a resumed run replaces rows by others than an uninterrupted
        one would have.
        """
        return {"reservoir": [[key, dict(row)] for key, row in self._reservoir.items()] if text else []}

    def load(self, state: Mapping[str, Any]) -> None:
        """Take up what ``state`` gave."""
        read: dict[int, Mapping[str, Any]] = {int(key): dict(row) for key, row in state["reservoir"]}
        if not all("prompt" in row for row in read.values()):
            raise ValueError("a kept row has no prompt")
        self._reservoir = read


def lacks(trainer: Any) -> str | None:
    """Why rows cannot be replaced in this trainer, and what to change; ``None`` where they can."""
    dataset = trainer.train_dataset
    if dataset is None:
        return "defer replaces rows of the training dataset, and this trainer has none."
    if getattr(trainer, "environment_factories", None) or getattr(trainer, "environments", None):
        return (
            "defer cannot tell which dataset row leads to which prompt where an environment makes the prompts. Take "
            "the rule out, or build the trainer without environment_factory."
        )
    columns = set(getattr(dataset, "column_names", None) or ())
    if columns & set(MULTIMODAL_COLUMNS):
        return (
            "defer knows prompts by their text, and this dataset has images, which TRL puts into them. Take the rule "
            "out."
        )
    streamed = not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__"))
    rows = trainer.args.per_device_train_batch_size * trainer.args.steps_per_generation
    if streamed and trainer.accelerator.num_processes > 1 and rows % trainer.num_generations:
        return (
            "with a streamed dataset each rank sees only its own rows, and here groups of "
            f"{trainer.num_generations} lie across ranks of {rows} rows each, so defer could not replace both parts "
            "alike. Make per_device_train_batch_size * steps_per_generation a multiple of num_generations, or use a "
            "map-style dataset."
        )
    return None


def continue_order(trainer: Any) -> int:
    """Let a resumed run's next epochs have the order of prompts that they would have had; returns the epochs skipped.

    TRL's sampler shuffles with a generator of its own, which begins anew in every process, so that a run resumed in
    epoch e would see epoch 0's order again. Call it once when a resumed training begins, before its first batch.
    """
    loader = trainer.callback_handler.train_dataloader
    sampler = _sampler(loader)
    generator = getattr(sampler, "generator", None)
    if not isinstance(generator, torch.Generator) or not getattr(sampler, "shuffle", False):
        return 0
    updates = max(1, -(-len(loader) // int(trainer.args.gradient_accumulation_steps)))
    epochs = int(trainer.state.global_step) // updates
    for _ in range(epochs):
        torch.randperm(int(sampler.num_samples), generator=generator)
    return epochs


def _sampler(loader: Any) -> Any:
    """TRL's own sampler under the batch samplers of torch and accelerate; ``None`` for a stream."""
    at = getattr(loader, "batch_sampler", None)
    for _ in range(8):
        if at is None or (hasattr(at, "mini_repeat_count") and hasattr(at, "num_samples")):
            return at
        inner = getattr(at, "batch_sampler", None)
        at = inner if inner is not None else getattr(at, "sampler", None)
    return None


def _survives_json(row: Mapping[str, Any]) -> bool:
    try:
        return bool(json.loads(json.dumps(dict(row))) == dict(row))
    except (TypeError, ValueError, OverflowError, RecursionError):
        return False
