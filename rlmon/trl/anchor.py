"""The base's own verified completions, and a supervised loss on those of dying modes.

::

    store = AnchorStore(settings)
    store.collect(output, success_n, mode_n)            # each training round, after TRL scored it
    extra = store.loss(trainer, dying, weight)          # in _compute_loss
    loss = loss if extra is None else loss + extra
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rlmon.baseline import ROUNDS, Baseline
from rlmon.errors import ConfigError
from rlmon.interventions.anchor import Anchor, picks

MAX_TOKENS = 1_000_000
"""Tokens that a rank stores: 4 MB in memory, about 6 MB in a checkpoint."""
MAX_MODES = 64
PICTURES = ("pixel_values", "image_sizes", "num_images")
"""Outputs of rounds whose prompts are more than their tokens."""


@dataclass(frozen=True, kw_only=True, eq=False)
class AnchorRow:
    """One verified completion."""

    prompt_ids: NDArray[np.int32]
    completion_ids: NDArray[np.int32]

    @property
    def tokens(self) -> int:
        return len(self.prompt_ids) + len(self.completion_ids)


class AnchorStore:
    """What one rank has stored. Ranks store different completions, and none depends on another's."""

    def __init__(self, settings: Anchor) -> None:
        self.settings = settings
        self._rows: dict[int, list[AnchorRow]] = {}
        self._tokens = 0
        self._baseline = Baseline()
        self._at: tuple[int, int] = (-1, 0)
        """The step of the newest loss, and how many losses of this step came before it."""

    def stored(self) -> dict[int, int]:
        """Completions stored, by mode."""
        return {mode: len(rows) for mode, rows in self._rows.items()}

    # -- what is stored --------------------------------------------------------------------------------------------

    def collect(
        self,
        output: Mapping[str, Any],
        success_n: NDArray[np.float64],
        mode_n: NDArray[np.int64],
        *,
        prompts: float,
        completions: float,
    ) -> int:
        """Store this rank's verified completions of one training round; how many were stored.

        Those of the baseline count as the base's own: once it is complete nothing is stored again.
        Left out: completions that are empty (cut off, where TRL masks those), of more than the model's own tokens
        (tools), or whose prompt holds pictures.

        Args:
            output: of TRL's ``_generate_and_score_completions``, before it is shuffled; prompts [n, P] padded left,
                completions [n, C] padded right.
            success_n: 1.0 for a success, which is what verified means here.
            mode_n: negative where unknown.
            prompts: of the round, over all ranks.
            completions: the same.
        """
        if self._baseline.complete:
            return 0
        self._baseline = self._baseline.with_round(prompts=prompts, completions=completions)
        if any(output.get(name) is not None for name in PICTURES):
            return 0
        wanted = [
            i for i in range(len(mode_n)) if mode_n[i] >= 0 and success_n[i] == 1.0 and self._has_room(int(mode_n[i]))
        ]
        if not wanted:
            return 0
        columns = {
            name: output[name][wanted].cpu().numpy()
            for name in ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "tool_mask")
            if output.get(name) is not None
        }
        own = columns.get("tool_mask", columns["completion_mask"])
        count = 0
        for at, i in enumerate(wanted):
            kept = columns["completion_mask"][at].astype(bool)
            if not bool(own[at][kept].all()):
                continue
            prompt = columns["prompt_ids"][at][columns["prompt_mask"][at].astype(bool)]
            count += self._put(int(mode_n[i]), prompt, columns["completion_ids"][at][kept])
        return count

    def add(self, mode: int, prompt_ids: Sequence[int], completion_ids: Sequence[int]) -> None:
        """Store a completion of the user's own, verified by whoever gives it.

        Raises ``ConfigError`` where it is empty or there is no room for it.
        """
        if mode < 0 or not len(completion_ids):
            raise ConfigError(f"a row to anchor on needs a mode of at least 0 and completion tokens, got mode {mode}.")
        if not self._put(mode, np.asarray(prompt_ids), np.asarray(completion_ids)):
            raise ConfigError(
                f"no room for another row of mode {mode}: {self.settings.per_mode} rows a mode (per_mode), {MAX_MODES} "
                f"modes and {MAX_TOKENS:,} tokens are stored at most."
            )

    def _has_room(self, mode: int) -> bool:
        rows = self._rows.get(mode)
        return len(self._rows) < MAX_MODES if rows is None else len(rows) < self.settings.per_mode

    def _put(self, mode: int, prompt_ids: NDArray[Any], completion_ids: NDArray[Any]) -> bool:
        row = AnchorRow(prompt_ids=prompt_ids.astype(np.int32), completion_ids=completion_ids.astype(np.int32))
        if not len(completion_ids) or not self._has_room(mode) or self._tokens + row.tokens > MAX_TOKENS:
            return False
        self._rows.setdefault(mode, []).append(row)
        self._tokens += row.tokens
        return True

    # -- the loss --------------------------------------------------------------------------------------------------

    def loss(self, trainer: Any, dying: Sequence[int], weight: float) -> torch.Tensor | None:
        """What to add to this micro-batch's loss; ``None`` where there is nothing to add.

        Over the micro-batches of one optimizer step the gradients sum up to that of ``weight`` times the mean
        cross-entropy (nats per completion token, temperature 1) of the step's picks, which are dealt out over the
        micro-batches. Call it once per ``_compute_loss`` with the model in training mode; evaluation adds nothing.

        The forward goes through the model without its DDP wrapper: a second forward through the wrapper would reset the
        state of its reducer, while the parameters' gradient hooks, which the reducer listens to, fire once for the sum
        of both losses. It runs in the trainer's mode, dropout and gradient checkpointing included: to switch dropout
        off only for the forward would give wrong gradients where checkpointing repeats it in backward. What it draws is
        drawn from a copy of the random state, so that the trainer's own numbers stay what they were.
        """
        model = trainer.model
        if not model.training:
            return None
        step = int(trainer.state.global_step)
        self._at = (step, self._at[1] + 1) if self._at[0] == step else (step, 0)
        taken = picks(self.settings, dying, self.stored(), step) if weight > 0.0 else ()
        parts = max(1, int(trainer.current_gradient_accumulation_steps))
        mine = taken[self._at[1] % parts :: parts]
        if not mine:
            return None
        rows = [self._rows[mode][index] for mode, index in mine]
        step_tokens = sum(len(self._rows[mode][index].completion_ids) for mode, index in taken)
        device = next(model.parameters()).device
        with _own_randomness(device), trainer.accelerator.autocast():
            nats = summed_cross_entropy(model, rows, device)
        added = weight * nats / step_tokens
        # Where the loss is not scaled yet, Trainer divides it by the number of micro-batches.
        return added if _is_scaled(trainer) else added * parts

    # -- checkpoints -----------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """What a resumed run needs of this rank, as JSON types."""
        return {
            "rows": [
                [mode, [[row.prompt_ids.tolist(), row.completion_ids.tolist()] for row in rows]]
                for mode, rows in self._rows.items()
            ],
            "baseline": self._baseline.to_json(),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Take up what ``state`` gave, in place of what is stored; as much as the settings have room for."""
        if "baseline" in state:
            baseline = Baseline.from_json(state["baseline"])
        else:  # a checkpoint of 0.1
            baseline = Baseline(rounds=ROUNDS if state["closed"] else float(state["rounds"]))
        read = [
            (int(mode), np.array(prompt_ids, dtype=np.int32), np.array(completion_ids, dtype=np.int32))
            for mode, rows in state["rows"]
            for prompt_ids, completion_ids in rows
        ]
        if any(ids.ndim != 1 for _, *both in read for ids in both):
            raise ValueError("a stored row is no list of token ids")
        self._rows, self._tokens, self._at = {}, 0, (-1, 0)
        self._baseline = baseline
        for mode, prompt_ids, completion_ids in read:
            self._put(mode, prompt_ids, completion_ids)


def summed_cross_entropy(model: Any, rows: Sequence[AnchorRow], device: torch.device) -> torch.Tensor:
    """Sum over the rows' completion tokens of -ln p(token | what precedes it), in nats, float32, with gradient.

    Padded right, so that positions are those of an unpadded row for every kind of position embedding. Without TRL's
    flag the forward is the model's own (its fused one has the sampling temperature built in).
    """
    longest = max(row.tokens for row in rows)
    ids = torch.zeros((len(rows), longest), dtype=torch.long)
    mask = torch.zeros((len(rows), longest), dtype=torch.long)
    labels = torch.full((len(rows), longest), -100, dtype=torch.long)
    for i, row in enumerate(rows):
        both = torch.from_numpy(np.concatenate([row.prompt_ids, row.completion_ids])).long()
        ids[i, : row.tokens], mask[i, : row.tokens] = both, 1
        labels[i, max(1, len(row.prompt_ids)) : row.tokens] = both[max(1, len(row.prompt_ids)) :]
    # Logits are wanted from the last prompt token on: the vocabulary is what makes this forward expensive.
    wanted = longest - max(0, min(len(row.prompt_ids) for row in rows) - 1)
    inputs = {"input_ids": ids.to(device), "attention_mask": mask.to(device), "use_cache": False}
    if _takes_logits_to_keep(model):
        inputs["logits_to_keep"] = wanted
    logits = model(**inputs).logits[:, -wanted:][:, :-1].float()
    targets = labels[:, -wanted:][:, 1:].to(logits.device)
    return torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="sum"
    )


def _takes_logits_to_keep(model: Any) -> bool:
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return "logits_to_keep" in inspect.signature(type(inner).forward).parameters


def _is_scaled(trainer: Any) -> bool:
    """Whether the loss is already divided by the micro-batches of a step, as TRL's GRPO does and its RLOO does not."""
    scaled = getattr(trainer, "loss_is_scaled_for_ga", None)
    # Before TRL 1.16 a stand-in loss function told Trainer so.
    return bool(scaled) if scaled is not None else getattr(trainer, "compute_loss_func", None) is not None


@contextlib.contextmanager
def _own_randomness(device: torch.device) -> Iterator[None]:
    devices = [] if device.type == "cpu" else [device]
    with torch.random.fork_rng(devices=devices, device_type="cuda" if device.type == "cpu" else device.type):
        yield
