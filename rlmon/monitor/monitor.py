"""The monitor: calls metrics, detectors and the run log in order, and judges nothing itself.

One object per ``train()`` call and rank. A training loop hands over the rows of each generation (``observe``), the
token tensors of each loss (``observe_tokens``), sometimes a comparison with the base (``observe_kl``), and the end
of each optimizer step (``end_step``), where one fixed-shape sum over ranks makes the step's record.

Nothing raises into the loop after construction: every part runs in a ``guard`` that turns an exception into a
counted fault. ``rlmon_strict`` raises at the end of a step, on all ranks together.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

import rlmon.detectors as detectors
import rlmon.monitor.base_sample as base_sample
from rlmon.config import RLMonConfig
from rlmon.errors import RLMonError
from rlmon.exchange import Exchange
from rlmon.extensions import Extensions
from rlmon.metrics.family import CriticTokens, RankRows, RoundRows, Sums
from rlmon.metrics.features import Featurizer, RowFeatures
from rlmon.metrics.groups import groups_of_batch
from rlmon.metrics.rows import Rows, rows_of
from rlmon.metrics.success import RowSuccess, scorer
from rlmon.metrics.tokens import ExactKL, token_sums
from rlmon.monitor.closing import Closing
from rlmon.monitor.columns import rollout_columns
from rlmon.monitor.faults import PLACES
from rlmon.monitor.journal import Journal
from rlmon.monitor.observed import Observed, Share
from rlmon.monitor.opening import open_log
from rlmon.monitor.setting import About, Ranks, Resume
from rlmon.monitor.state import State
from rlmon.monitor.watched import watched_alike
from rlmon.records import BaseSample, Finding, RolloutBatch, Split, StepRecord

if TYPE_CHECKING:
    from torch import Tensor

    from rlmon.controller import Actuators, Controller
    from rlmon.interventions.policy import Policy
    from rlmon.interventions.row_effect import RowEffect
    from rlmon.sinks import Sink


class StrictError(RLMonError):
    """``rlmon_strict`` is set and a part of the monitor failed on some rank."""


class Monitor:
    """Watches one training loop and keeps its log.

    Args:
        config: what to record; see ``RLMonConfig``.
        directory: the run directory.
        group_size: completions per prompt, G.
        about: the run: what the log says of it, and its size (alike on all ranks).
        ranks: this process among those that train together; by default it is alone.
        resume: the checkpoint that the run goes on from; by default it begins.
        policy: the rules to act by; ``None`` watches only.
        actuators: what the rules can turn in this loop. Default: nothing but the advantages that ``steer`` returns.
        extensions: what the user adds (docs/extending.md); what installed packages add comes by itself.

    Raises ``RunLogError``, ``SchemaError`` or ``ConfigError`` when the log cannot be opened or a mode is malformed.
    """

    def __init__(
        self,
        config: RLMonConfig | None = None,
        *,
        directory: str | Path,
        group_size: int,
        about: About | None = None,
        ranks: Ranks | None = None,
        resume: Resume | None = None,
        policy: Policy | None = None,
        actuators: Actuators | None = None,
        extensions: Extensions | None = None,
    ) -> None:
        self.config = config if config is not None else RLMonConfig()
        about = about if about is not None else About()
        resume = resume if resume is not None else Resume()
        self.ranks = ranks if ranks is not None else Ranks()
        self.group_size, self.critic, self.log_dir = group_size, about.critic, Path(directory)
        self.last_record: StepRecord | None = None
        self._closed = False
        self.journal = Journal(self.config, self.ranks)
        self.faults = self.journal.faults
        self.guard, self.fault = self.faults.guard, self.faults.fault
        self.sinks: list[Sink] = self.journal.sinks
        """Where records, findings and acts are mirrored on rank 0. One that is added here while the run goes on is not
        opened: give it as ``Extensions(sinks=[...])`` to be told of the run's header first."""
        self.on_record: list[Callable[[StepRecord, tuple[Finding, ...]], None]] = self.journal.subscribers
        """Called with record and findings on rank 0 after each step is in the log."""
        self.faults.step = resume.step or 0
        watched = watched_alike(self.config, about, self.ranks, group_size, policy, extensions, self.guard)
        self.extensions, self.modes, self.families = watched.extensions, watched.modes, watched.families
        self.journal.webhook = watched.webhook
        self.faults.places = (*PLACES, *self.families.places)
        self._observed = Observed(self.families)
        self._state = State(self.config, self.families, watched.judging, self.journal, self.ranks, policy)
        self._newest: tuple[RolloutBatch | None, RowFeatures | None] = (None, None)
        """The rows observed last and their features: what the rules look at."""
        if resume.state is not None:
            self._state.load(resume)
        if policy is not None and policy.rules:
            self._state.act_by(policy, actuators, resume)
        self._exchange = Exchange(
            about.places(self.ranks, group_size),
            sums=self.families.layout,
            row=self.families.row,
            faults=self.faults.places,
            votes=0 if self.controller is None else self.controller.votes,
            names=self._state.source_names,
        )
        self._closing = Closing(self._state, self._observed, self._exchange, self.journal, self.ranks)
        header = about.header(
            config=self.config.to_dict(),
            group_size=group_size,
            world_size=self.ranks.world_size,
            resumed=resume.step is not None,
            detectors=detectors.describe(watched.judging.state),
            policy=self._state.policy,
        )
        self.journal.writer = self.writer = open_log(self.log_dir, header, self.config, self.ranks, resume)
        self.attempt = self.writer.header.attempt
        self.use_vocabulary(about.vocabulary)
        if resume.step is not None:
            self._state.say_what_begins_anew(resume, self.faults.step)
        elif self.attempt and self.writer.header.attempt_kind == "fresh":
            self._say_what_lay_there()
        if self._state.successes.deciding.decided:
            self._state.log_success(self.faults.step)

    def _say_what_lay_there(self) -> None:
        """One line on the console and a ``note`` in the log, where this run begins anew in the log of another."""
        text = (
            f"{self.log_dir} already held the log of another run: it is kept, and everything shows this run alone. "
            "Give each run an output_dir of its own to see both"
        )
        self.journal.remark(text)

    @property
    def controller(self) -> Controller | None:
        """What acts by the policy."""
        return self._state.controller

    @property
    def detector_state(self) -> detectors.DetectorState:
        """What the detectors know by now."""
        return self._state.judging.state

    @property
    def findings(self) -> list[Finding]:
        """The newest 1,000 findings of this attempt."""
        return self._closing.findings

    def use_vocabulary(self, vocabulary: Sequence[str] | None) -> None:
        """Decoded text of every token id: with it, moves are measured too."""
        self._featurizer = Featurizer(
            self.modes, self.writer.secret, vocabulary, text_tokens=self.config.rlmon_text_tokens
        )

    def open_sinks(self, trackers: Sequence[Sink] = ()) -> None:
        """Mirror to the terminal and to the runs of W&B and trackio that are open, as configured, to the ``trackers``
        that the loop has open, and to the user's own sinks."""
        self.journal.open_sinks((*trackers, *self.extensions.sinks))

    # -- observing -------------------------------------------------------------------------------------------------

    def next_round(self, split: Split) -> int:
        """The number of a generation that begins now."""
        number = self.rounds[split]
        self.rounds[split] = number + 1
        return number

    @property
    def rounds(self) -> dict[Split, int]:
        """The number that the next generation will get."""
        return self._state.rounds

    def count_non_finite(self, count: float) -> None:
        """Add NaN or infinite values that the loop met outside of what is observed here."""
        self._observed.share["train"].sums["health"]["token_non_finite"] += count

    def observe(self, batch: RolloutBatch) -> None:
        """Take the rows of one generation on this rank: write them, measure them. Never raises."""
        before = self.journal.rows_come(len(batch))
        with self.guard("metrics.rollouts"):
            self._observe(batch)
        self.journal.rows_observed(len(batch), before)

    def _observe(self, batch: RolloutBatch) -> None:
        self._observed.add_batch(batch)
        success = self._state.successes.unknown(batch)
        with self.guard("metrics.success"):
            success = self._state.successes.observe(batch)
        features = None
        with self.guard("metrics.features"):
            features = self._featurizer.features(batch)
        self._newest = (batch, features) if self.controller is not None else (None, None)
        columns = None
        with self.guard("runlog.rollouts"):
            secret = None if self.config.rlmon_store_text == "full" else self.writer.secret
            columns = rollout_columns(batch, features, attempt=self.attempt, secret=secret)
            self.writer.write_rollouts(columns)
        self.journal.drain()
        rows: Rows | None = None
        if features is not None:
            with self.guard("metrics.rollouts"):
                rows = self._measure(batch, features, success, self._observed.share[batch.split].sums)
                if batch.split == "train" and self.ranks.rank == 0 and columns is not None:
                    base = self._state.base.sums if self._state.base.baseline.complete else None
                    self._state.illustration.keep(columns, features.mode, batch.completions, base=base)
        rows = rows_of(batch, dtype=self.families.row) if rows is None else rows
        rows["scorer"] = scorer(batch, self.ranks.world_size)
        if batch.split == "train":
            self._exchange.meet(batch.source)
        self._observed.remember(batch, rows)

    def _measure(self, batch: RolloutBatch, features: RowFeatures, success: RowSuccess, into: Sums) -> Rows:
        """The rows of the batch; its sums are added to ``into``."""
        groups = groups_of_batch(batch, success.success_B, success.round_N)
        rows = rows_of(batch, features, groups.success_B, self.families.row)
        self.families.measure(into, rows, batch)
        if len(batch):
            self.families.add_rows(into, RankRows(batch, features, groups, rows))
            # Of training the ranks see pairs and groups together, at the step's end; of an evaluation each its own.
            if batch.split == "eval":
                self.families.add_round(into, RoundRows(rows, groups))
        return rows

    def observe_base(self, batches: Sequence[RolloutBatch], *, rounds: int, rows: int) -> BaseSample | None:
        """Take a sample of the base, before the first step: ``rounds`` generations of ``rows`` rows on each rank, of
        split ``base``, which nothing is trained on. What they say of the base; ``None`` where it could not be
        measured, and the first rounds are the baseline. Never raises.

        Every rank calls this at most once, whatever failed on it before: it holds collectives.
        """
        sample = None
        with self.guard(base_sample.PLACE):
            measured: list[base_sample.Measured] = []
            with self.guard(base_sample.PLACE):
                measured = self._measured_of_base(batches, rounds, rows)
            sample = base_sample.fold(
                measured,
                rounds=rounds,
                rows=rows,
                state=self._state,
                closing=self._closing,
                journal=self.journal,
                ranks=self.ranks,
            )
        return sample

    def _measured_of_base(self, batches: Sequence[RolloutBatch], rounds: int, rows: int) -> list[base_sample.Measured]:
        if self.detector_state.records or self._closing.base is not None:
            raise ValueError("a sample of the base is taken once, before the first step")
        if others := {batch.split for batch in batches} - {"base"}:
            raise ValueError(f"batches of a sample of the base have the split 'base', not {sorted(others)}")
        if (sizes := [len(batch) for batch in batches]) != [rows] * rounds:
            raise ValueError(f"a sample of the base was to have {rounds} rounds of {rows} rows, and has {sizes}")
        for batch in batches:  # all of them decide what a success is, before any is told by it
            self._state.successes.observe(batch)
        measured = []
        for batch in batches:
            before = self.journal.rows_come(len(batch))
            try:
                success, share = self._state.successes.of_base(batch), Share(sums=self.families.zeros())
                features = self._featurizer.features(batch)
                secret = None if self.config.rlmon_store_text == "full" else self.writer.secret
                logged = base_sample.as_logged(batch)
                self.writer.write_rollouts(rollout_columns(logged, features, attempt=self.attempt, secret=secret))
                table = self._measure(batch, features, success, share.sums)
                table["scorer"] = scorer(batch, self.ranks.world_size)
                share.add_batch(batch, table)
                self._exchange.meet(batch.source)
            finally:
                self.journal.drain()
                self.journal.rows_observed(len(batch), before)
            measured.append(
                base_sample.Measured(batch=batch, features=features, share=share, success_B=success.success_B)
            )
        return measured

    def steer(
        self, batch: RolloutBatch | None, rows: int, logp_base_n: NDArray[np.float64] | None = None
    ) -> RowEffect | None:
        """What the rules do to the ``rows`` rows of a training round, ``batch``; ``None`` for nothing.

        With a policy every rank calls this once per training round, with ``batch=None`` where it could not be made:
        it holds a collective. Never raises.
        """
        if self.controller is None:
            return None
        effect: RowEffect | None = None
        with self.guard("interventions"):
            try:
                features, success_n = self._as_rules_see(batch, rows)
            except Exception:
                with contextlib.suppress(RuntimeError):  # the other ranks wait for this one, which has no rows
                    self.controller.round(None, rows, None)
                raise
            late = None
            if batch is not None and self.ranks.world_size > 1:
                late = functools.partial(
                    self._state.successes.late, batch.round, batch.group_size, self.faults.step + 1
                )
            effect = self.controller.round(batch, rows, features, logp_base_n, success_n, late)
        return effect

    def _as_rules_see(self, batch: RolloutBatch | None, rows: int) -> tuple[RowFeatures | None, NDArray[np.float64]]:
        """Features of the rows of a training round, and success of each [n]."""
        successes = self._state.successes
        features, success_n = self._newest[1], None if batch is None else successes.of_round(batch.round)
        if batch is None or success_n is None:
            success_n = np.full(rows, np.nan)
        elif batch is not self._newest[0]:  # the rows that are trained on, of those observed
            features = self._featurizer.features(batch)
            success_n = successes.definition.of(batch.reward, batch.rewards, rows)
        if self.controller is not None and successes.deciding.decided and not successes.definition.known:
            self.controller.rest_without_success(str(successes.definition))
        return features, success_n

    @property
    def samples(self) -> list[dict[str, Any]]:
        """Rows of the newest round on rank 0, as sinks are given them for a table."""
        return self._state.illustration.samples

    def observe_tokens(
        self,
        *,
        split: Split,
        rows_B2: Sequence[Sequence[int]],
        logps_BT: Tensor | None,
        entropies_BT: Tensor | None,
        mask_BT: Tensor,
        advantages_B: Tensor | None = None,
        loss: Tensor | None = None,
    ) -> None:
        """Take the token tensors of one micro-batch; ``rows_B2`` holds (round, local row) of each, a row of -1 for one
        that was not observed (replayed from an older round): its tokens count, for no format. Never raises."""
        with self.guard("metrics.tokens"):
            sums = token_sums(entropies_BT, logps_BT, mask_BT, advantages_B)
            step = self.faults.step + 1 if split == "train" else self.faults.step
            if not self._observed.add_tokens(split, rows_B2, sums, attempt=self.attempt, step=step):
                self.fault("capture.tokens", "token statistics of a round that was not observed")
            if loss is not None and not math.isfinite(float(loss)):
                self.count_non_finite(1)

    def observe_kl(
        self,
        *,
        rows_b2: Sequence[Sequence[int]],
        sampled_b: NDArray[Any],
        tokens_b: NDArray[Any],
        result: ExactKL,
        seconds: float,
        weight_b: NDArray[Any] | None = None,
    ) -> None:
        """Take a comparison with the base on rows of the micro-batch observed last. Never raises.

        ``rows_b2`` holds (round, local row) of every row that the comparison stands for, ``sampled_b`` how many of the
        ``tokens_b`` completion tokens of each were compared (0 for a row outside of the sample), ``weight_b`` how many
        tokens each of those stands for (``metrics.sampling``; default 1); ``result`` lists them row by row.
        """
        with self.guard("metrics.kl"):
            self._closing.base_seconds += seconds
            self.faults.not_ours(seconds)
            self._observed.add_kl(rows_b2, sampled_b, tokens_b, result, weight_b)

    def identities(self, rows_B2: Sequence[Sequence[int]]) -> list[tuple[int, int]]:
        """(round, global row) of training rows given as (round, local row): the same whatever the number of ranks."""
        return self._observed.identities(rows_B2)

    def observe_values(
        self,
        *,
        split: Split,
        values_BT: Tensor,
        returns_BT: Tensor,
        advantages_BT: Tensor,
        mask_BT: Tensor,
        loss: Tensor | float | None,
        clip_ratio: Tensor | float | None,
    ) -> None:
        """Take the critic's side of one micro-batch; needs ``About(critic=True)``. Never raises.

        ``values_BT`` at rollout and discounted rewards to go in units of reward, advantages as trained on, the mask
        non-zero where a token counts, all of shape (B, T); ``loss`` is the clipped value loss without its coefficient
        and ``clip_ratio`` the share of tokens whose clipped branch is the larger, both means over the mask's tokens.
        """
        with self.guard("metrics.values"):
            if not self.critic:
                raise ValueError("values were observed, but the monitor was made without About(critic=True)")
            seen = CriticTokens(
                values_BT=values_BT, returns_BT=returns_BT, advantages_BT=advantages_BT, mask_BT=mask_BT, loss=loss,
                clip_ratio=clip_ratio,
            )  # fmt: skip
            into = self._observed.share[split].sums
            self.families.add(into, lambda family, sums: family.add_values(sums, seen))

    # -- the end of a step -----------------------------------------------------------------------------------------

    def end_step(self, step: int) -> StepRecord | None:
        """Add the ranks, make the step's record, judge it and log it; the record, on every rank.

        Every rank calls this once per optimizer step, with the ``global_step`` after the update, whatever failed on
        it before. Raises only ``StrictError``, under ``rlmon_strict``, on all ranks together.
        """
        record = None
        with self.guard("metrics.finish"):
            record = self.last_record = self._closing.step(step, self._featurizer.opener_words)
        self._observed.begin("train")
        if self.config.rlmon_strict and record is not None and record.faults:
            raise StrictError(
                f"rlmon_strict: parts of the monitor failed by step {step}: {dict(record.faults)}."
            ) from self.faults.newest
        return record

    def end_eval(self, step: int, name: str = "eval") -> None:
        """Log what an evaluation showed, as an event of its own: it never mixes with training. Never raises.

        ``name`` tells evaluations of one step apart: TRL's ``metric_key_prefix``, such as ``eval_hard``.
        """
        with self.guard("metrics.finish"):
            self._closing.evaluation(step, name)

    def close(self) -> None:
        """Write what is left and close log and sinks. Never raises; safe to call twice."""
        self.journal.reconcile()
        for local in self._observed.share.values():
            self.journal.write_passes(local)
        if self.controller is not None:
            with self.guard("interventions"):
                self.controller.close(self.faults.step)
        with self.guard("detectors"):
            if not self._closed and (text := self._state.judging.never_measured()) is not None:
                self.journal.remark(text)
        self._closed = True
        self.journal.close()

    def shared_state(self) -> dict[str, Any]:
        """What a resumed run needs and all ranks have in common, as JSON types."""
        return self._state.shared(self.faults.step)

    def rank_state(self) -> dict[str, Any]:
        """What this rank alone knows, as JSON types: examples of completions, of rank 0."""
        return self._state.of_rank()
