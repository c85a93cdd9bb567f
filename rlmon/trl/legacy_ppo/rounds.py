"""One round of TRL's ``PPOTrainer``: what its loop showed of it, until its advantages are known."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from rlmon.metrics.tokens import ExactKL, exact_kl
from rlmon.trl.batches import or_none

CHUNK_TOKENS = 128


@dataclass
class Comparison:
    """The policy against TRL's reference on some tokens of a round."""

    logits_BTV: torch.Tensor | None
    """Of generation, divided by the temperature. TRL holds them as long; a copy would double its largest tensor."""
    weight_B: NDArray[np.float64]
    """Tokens that each sampled one stands for (``metrics.sampling``)."""
    chosen_BT: torch.Tensor
    parts: list[ExactKL] = field(default_factory=list)
    rows: int = 0
    """Rows that the reference has been run on."""
    seconds: float = 0.0

    def take(self, round_: Round, sequences_bL: torch.Tensor, logits_bLV: torch.Tensor, temperature: float) -> None:
        """One forward of the reference, on rows that continue those taken before."""
        begin, end = self.rows, self.rows + len(sequences_bL)
        if self.logits_BTV is None or not torch.equal(sequences_bL, round_.sequences_BL[begin:end]):
            return
        self.rows = end
        base_bTV = logits_bLV[:, round_.queries_BP.shape[1] - 1 : -1]
        places_N2 = self.chosen_BT.nonzero()
        places_N2 = places_N2[(places_N2[:, 0] >= begin) & (places_N2[:, 0] < end)]
        for place_n2 in places_N2.split(CHUNK_TOKENS):
            row_n, at_n = place_n2.unbind(1)
            self.parts.append(
                exact_kl(
                    self.logits_BTV[row_n, at_n],
                    lambda logits_nV: logits_nV,
                    base_bTV[row_n - begin, at_n],
                    lambda logits_nV: logits_nV.float() / temperature,
                    sampled_T=round_.responses_BT[row_n, at_n],
                )
            )
        if end >= len(self.logits_BTV):
            self.logits_BTV = None

    def result(self) -> ExactKL:
        if self.logits_BTV is not None:
            raise RuntimeError("TRL's forward of its reference was not seen on all rows of a round")
        columns = zip(*self.parts, strict=True)
        return ExactKL(*(np.concatenate(column) for column in columns)) if self.parts else ExactKL(*[np.zeros(0)] * 5)


@dataclass
class Round:
    """What one update showed until its advantages were known."""

    number: int
    step: int
    """``global_step`` before the update."""
    queries_BP: torch.Tensor
    sequences_BL: torch.Tensor
    scored_BT: torch.Tensor
    """Responses as the reward model reads them: padding after the stop token."""
    trained_BT: torch.Tensor
    """True where TRL's loss counts a token: before the first padding token."""
    own_BT: torch.Tensor
    """The same and the stop token, which TRL leaves out where it is the padding token."""
    stopped_B: torch.Tensor
    entropies_BT: torch.Tensor | None = None
    logps_BT: torch.Tensor | None = None
    comparison: Comparison | None = None
    scores: list[torch.Tensor] = field(default_factory=list)
    scored: int = 0
    advantages_BT: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.queries_BP)

    @property
    def responses_BT(self) -> torch.Tensor:
        return self.sequences_BL[:, self.queries_BP.shape[1] :]

    @classmethod
    def begin(
        cls, number: int, step: int, queries: torch.Tensor, sequences: torch.Tensor, *, stop: int | None, pad: int
    ) -> Round:
        responses = sequences[:, queries.shape[1] :]
        is_stop = torch.zeros_like(responses, dtype=torch.bool) if stop is None else responses == stop
        stops_before = is_stop.cumsum(1) - is_stop.long()
        scored = torch.where(stops_before > 0, pad, responses)
        trained = (scored == pad).cumsum(1) == 0
        # The first token after those that are trained may be the stop token itself, where it doubles as padding.
        first_after = ~trained & ((~trained).cumsum(1) == 1)
        own = trained | (first_after & is_stop & (stops_before == 0))
        stopped = (own & is_stop).any(1)
        return cls(number, step, queries, sequences, scored, trained, own, stopped)

    def measure(self, logits_BTV: torch.Tensor) -> None:
        """Entropy and log-probability of each own token, in nats, of the distribution that it was drawn from."""
        entropies = torch.zeros(self.own_BT.shape, dtype=torch.float32, device=logits_BTV.device)
        logps = torch.zeros_like(entropies)
        for place_n2 in self.own_BT.nonzero().split(CHUNK_TOKENS):
            row_n, at_n = place_n2.unbind(1)
            logp_nV = logits_BTV[row_n, at_n].float().log_softmax(-1)
            p_nV = logp_nV.exp()
            # A token that sampling had ruled out has log-probability -inf and adds nothing.
            entropies[row_n, at_n] = -torch.where(p_nV > 0, p_nV * logp_nV, torch.zeros_like(p_nV)).sum(-1)
            logps[row_n, at_n] = logp_nV.gather(1, self.responses_BT[row_n, at_n, None])[:, 0]
        self.entropies_BT, self.logps_BT = entropies, logps

    def take_scores(self, sequences_bL: torch.Tensor, scores_b: torch.Tensor) -> None:
        """Scores of rows that continue those taken before."""
        end = self.scored + len(sequences_bL)
        expected_bL = torch.cat([self.queries_BP[self.scored : end], self.scored_BT[self.scored : end]], 1)
        if torch.equal(sequences_bL, expected_bL):
            self.scored = end
            self.scores.append(scores_b.detach().clone())

    def mean_advantages(self) -> list[float | None] | None:
        """Mean whitened advantage per row over the tokens that TRL trains; ``None`` where it trains none."""
        if self.advantages_BT is None:
            return None
        counts_B = self.trained_BT.sum(1)
        means_B = self.advantages_BT.double().sum(1) / counts_B
        return or_none(means_B)
