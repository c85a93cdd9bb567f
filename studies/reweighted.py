"""A baseline of the experiments: advantages weighted by the rarity of their completion's format in its group."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from trl import GRPOTrainer

from studies.rewards import parse


def rarity_weights(modes: Sequence[str], group_size: int) -> list[float]:
    """1 / (completions of the same mode in the group) for each of N completions in consecutive groups."""
    weights: list[float] = []
    for start in range(0, len(modes), group_size):
        group = modes[start : start + group_size]
        counts = Counter(group)
        weights += [1.0 / counts[mode] for mode in group]
    return weights


class RarityWeightedGRPOTrainer(GRPOTrainer):
    """GRPO whose advantages are divided by the number of completions of the same mode in the group.

    As in arXiv 2601.08763 with exponent 1, the clusters being format modes rather than judged strategies. The result
    is rescaled so that the mean of |advantage| stays what it was: otherwise this were a smaller learning rate too. One
    process, whole groups.
    """

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        output = super()._generate_and_score_completions(inputs)
        if self.model.training:
            texts = self.processing_class.batch_decode(output["completion_ids"], skip_special_tokens=True)
            advantages_N = output["advantages"]
            weights = rarity_weights([parse(text) for text in texts], self.num_generations)
            weighted_N = advantages_N * torch.tensor(weights, dtype=advantages_N.dtype, device=advantages_N.device)
            scale = advantages_N.abs().sum() / weighted_N.abs().sum().clamp(min=1e-12)
            output["advantages"] = weighted_N * scale
        return output
