"""The monitor: calls metrics, detectors and the run log in order, and judges nothing itself.

One object per ``train()`` call and rank. A training loop hands over the rows of each generation (``observe``), the
token tensors of each loss (``observe_tokens``), sometimes a comparison with the base (``observe_kl``), and the end
of each optimizer step (``end_step``), where one fixed-shape sum over ranks makes the step's record.

Nothing raises into the loop after construction: every part runs in a ``guard`` that turns an exception into a
counted fault. ``rlmon_strict`` raises at the end of a step, on all ranks together.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rlmon import detectors
from rlmon.config import RLMonConfig
from rlmon.errors import RLMonError
from rlmon.exchange import Exchange, Places, Step
from rlmon.extensions import Extensions
from rlmon.metrics import rollouts, tokens, values
from rlmon.metrics.formats import ModeSet
from rlmon.metrics.groups import SolveLedger
from rlmon.metrics.rows import ROW, Rows, rows_of
from rlmon.metrics.success import scorer
from rlmon.monitor.base import BaseSums
from rlmon.monitor.columns import rollout_columns
from rlmon.monitor.faults import PLACES, by_place
from rlmon.monitor.illustration import Illustration
from rlmon.monitor.journal import Journal
from rlmon.monitor.judging import Judging
from rlmon.monitor.observed import Observed, Share
from rlmon.monitor.opening import open_log
from rlmon.monitor.reasons import of_missing_parts
from rlmon.monitor.setting import About, Ranks, Resume
from rlmon.monitor.successes import Successes
from rlmon.records import Block, Finding, RolloutBatch, RunHeader, Split, StepRecord
from rlmon.restored import NO_STATE, detector_state, mapping, policy_change
from rlmon.runlog import as_stored

if TYPE_CHECKING:
    from torch import Tensor

    from rlmon.interventions.policy import Policy
    from rlmon.interventions.row_effect import RowEffect
    from rlmon.sinks import Sink
    from rlmon.steering import Levers, Steering

Vector = NDArray[np.float64]


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
        levers: what the rules can turn in this loop. Default: nothing but the advantages that ``steer`` returns.
        critic: the loop trains a value function and hands it to ``observe_values``; every record then has
            ``rlmon/value/*``. The same on all ranks.
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
        levers: Levers | None = None,
        critic: bool = False,
        extensions: Extensions | None = None,
    ) -> None:
        self.config = config if config is not None else RLMonConfig()
        self.ranks = ranks if ranks is not None else Ranks()
        self.group_size, self.critic = group_size, critic
        self.extensions = (extensions if extensions is not None else Extensions()).with_installed()
        self.log_dir = Path(directory)
        self.modes = ModeSet.build(self.config.modes)
        self.layout = rollouts.SumsLayout(self.modes.names)
        self.kl_reason = "no base model was compared"
        self.findings: list[Finding] = []
        """The newest 1,000 findings of this attempt."""
        self.last_record: StepRecord | None = None
        self.journal = Journal(self.config, self.ranks.rank)
        self.faults = self.journal.faults

        about = about if about is not None else About()
        resume = resume if resume is not None else Resume()
        self._base_seconds = 0.0
        self._non_finite = 0.0
        self._rounds: dict[Split, int] = {"train": 0, "eval": 0}
        self._observed = Observed(self.layout, values.VALUE_SUMS if critic else 0)
        self._illustration = Illustration(
            self.modes.names,
            keeps_text=self.config.rlmon_store_text == "full" and self.config.rlmon_text_sample_per_round != 0,
        )
        self._base = BaseSums()
        self._counts_anew = False
        self._successes = Successes(
            self.config.success,
            world_size=self.ranks.world_size,
            changed=self._say_success,
            count_anew=self._count_anew,
        )
        self._judging = Judging(
            alpha=self.config.rlmon_alpha,
            total_steps=about.total_steps,
            group_size=group_size,
            critic=critic,
            own=self.extensions.detectors,
        )
        self.faults.step = resume.step or 0
        self._newest: tuple[RolloutBatch | None, rollouts.RowFeatures | None] = (None, None)
        """The rows observed last and their features: what the rules look at."""
        self.steering: Steering | None = None
        self._source_names: dict[str, str] = {}
        self._policy = None if policy is None else policy.to_dict()
        if resume.state is not None:
            self._load(resume.state, resume)
        if policy is not None and policy.rules:
            self._take_up(policy, levers, resume)
        self._exchange = Exchange(
            Places(
                rank=self.ranks.rank,
                world_size=self.ranks.world_size,
                group_size=max(1, group_size),
                rows_per_round=about.rows_per_round,
                rounds_per_step=max(1, about.rounds_per_step),
            ),
            sums=self.layout.size,
            faults=len(PLACES),
            values=values.VALUE_SUMS if critic else 0,
            votes=0 if self.steering is None else self.steering.votes,
            names=self._source_names,
        )
        header = RunHeader(
            run_id=secrets.token_hex(8),
            attempt=0,
            attempt_kind="fresh" if resume.step is None else "resumed",
            created_unix_seconds=time.time(),
            trainer=about.trainer,
            group_size=group_size,
            world_size=self.ranks.world_size,
            total_steps=about.total_steps,
            config=self.config.to_dict(),
            trainer_config=dict(about.trainer_config),
            detectors=detectors.describe(self._judging.state),
            policy=self._policy,
            packages=dict(about.packages),
            git_commit=about.git_commit,
            capabilities=tuple(dict(row) for row in about.capabilities),
        )
        self.journal.writer = self.writer = open_log(self.log_dir, header, self.config, self.ranks, resume)
        self.attempt = self.writer.header.attempt
        self.use_vocabulary(about.vocabulary)
        if resume.step is not None:
            self._say_what_begins_anew(resume)
        elif self.attempt and self.writer.header.attempt_kind == "fresh":
            self._say_what_lay_there()
        if self._successes.deciding.decided:
            self._log_success(self._step)

    def _take_up(self, policy: Policy, levers: Levers | None, resume: Resume) -> None:
        from rlmon.steering import RowsOnly, take_up

        self.steering = take_up(
            policy,
            None if resume.state is None else resume.state["shared"].get("steering"),
            resume.restored,
            levers=levers if levers is not None else RowsOnly(policy),
            write=self.journal.action,
            rank=self.ranks.rank,
            world_size=self.ranks.world_size,
            gather=self.ranks.gather,
        )
        if self._counts_anew:
            self.steering.count_anew()

    def _say_what_begins_anew(self, resume: Resume) -> None:
        """One line on the console and a ``note`` in the log, where the checkpoint did not give back everything."""
        nothing = resume.state is None
        text = resume.restored.text() or (NO_STATE if nothing else None)
        if text is None:
            return
        anew = sorted({*resume.restored.lost, *(("detectors",) if nothing else ())})
        self.journal.event("note", {"text": text, "begins_anew": anew})
        self.journal.say(f"resumed at step {self._step}. {text}")

    def _say_what_lay_there(self) -> None:
        """One line on the console and a ``note`` in the log, where this run begins anew in the log of another."""
        text = (
            f"{self.log_dir} already held the log of another run: it is kept, and everything shows this run alone. "
            "Give each run an output_dir of its own to see both"
        )
        self.note(text)
        self.journal.say(text)

    @property
    def _step(self) -> int:
        """The last step that ended."""
        return self.faults.step

    @property
    def detector_state(self) -> detectors.DetectorState:
        """What the detectors know by now."""
        return self._judging.state

    def use_vocabulary(self, vocabulary: Sequence[str] | None) -> None:
        """Decoded text of every token id: with it, moves are measured too."""
        self._featurizer = rollouts.Featurizer(
            self.modes, self.writer.secret, vocabulary, text_tokens=self.config.rlmon_text_tokens
        )

    @property
    def sinks(self) -> list[Sink]:
        """Where records, findings and acts are mirrored on rank 0; a user's own can be added."""
        return self.journal.sinks

    @sinks.setter
    def sinks(self, sinks: list[Sink]) -> None:
        self.journal.sinks = sinks

    @property
    def on_record(self) -> list[Callable[[StepRecord, tuple[Finding, ...]], None]]:
        """Called with record and findings on rank 0 after each step is in the log."""
        return self.journal.subscribers

    def guard(self, place: str) -> AbstractContextManager[None]:
        """Contain and count what fails inside; also the timer of the monitor's own cost."""
        return self.faults.guard(place)

    def fault(self, place: str, error: BaseException | str, count: int = 1) -> None:
        """Count a failure of ours, and say it once."""
        self.faults.fault(place, error, count)

    def note(self, text: str) -> None:
        """Write a remark into the log."""
        self.journal.note(text)

    def cannot_see(self, reasons: Mapping[str, str]) -> None:
        """This step's losses showed nothing of these signals (``entropy``, ``kl``), each with its reason."""
        self.journal.cannot_see(reasons)

    def expect_rows(self, count: int) -> None:
        """So many completions were sampled, and are going to be observed; what is not by the end of the step was lost
        on the way, and is counted as shed."""
        self.journal.expect_rows(count)

    def open_sinks(self) -> None:
        """Mirror to the terminal and to an open W&B run, as configured, and to the user's own sinks."""
        self.journal.open_sinks(self.extensions.sinks)

    # -- success -----------------------------------------------------------------------------------------------------

    def _log_success(self, step: int) -> None:
        self.journal.event("success", {"step": step, **self._successes.definition.to_json()})

    def _say_success(self, step: int, again: bool) -> None:
        """Into the log and onto the console: what counts as a success from now on."""
        self._log_success(step)
        definition = self._successes.definition
        what = "a success is now" if again else "a success is"
        self.journal.say(f"{what} {definition}" if definition.known else f"success is not known: {definition}")

    def _count_anew(self) -> None:
        """What the ledgers have counted were successes of another kind."""
        self._judging.ledger = SolveLedger()
        self._counts_anew = True
        if self.steering is not None:
            self.steering.count_anew()

    # -- observing -------------------------------------------------------------------------------------------------

    def next_round(self, split: Split) -> int:
        """The number of a generation that begins now."""
        number = self._rounds[split]
        self._rounds[split] = number + 1
        return number

    def coming_round(self, split: Split) -> int:
        """The number that the next generation will get."""
        return self._rounds[split]

    def count_non_finite(self, count: float) -> None:
        """Add NaN or infinite values that the loop met outside of what is observed here."""
        self._non_finite += count

    def observe(self, batch: RolloutBatch) -> None:
        """Take the rows of one generation on this rank: write them, measure them. Never raises."""
        before = self.journal.rows_come(len(batch))
        with self.guard("metrics.rollouts"):
            self._observe(batch)
        self.journal.rows_observed(len(batch), before)

    def _observe(self, batch: RolloutBatch) -> None:
        into = self._observed.add_batch(batch)
        success = self._successes.unknown(batch)
        with self.guard("metrics.success"):
            success = self._successes.observe(batch)
        features = None
        with self.guard("metrics.features"):
            features = self._featurizer.features(batch)
        self._newest = (batch, features) if self.steering is not None else (None, None)
        columns = None
        with self.guard("runlog.rollouts"):
            secret = None if self.config.rlmon_store_text == "full" else self.writer.secret
            columns = rollout_columns(batch, features, attempt=self.attempt, secret=secret)
            self.writer.write_rollouts(columns)
        self.journal.drain()
        rows: Rows | None = None
        if features is not None:
            with self.guard("metrics.rollouts"):
                groups = rollouts.default_group_stats(batch, None, success)
                rows = rows_of(batch, features, groups.success_B)
                # Of training the ranks see pairs and groups together, at the step's end; of an evaluation each its own.
                own = batch.split == "eval"
                counted = rollouts.round_sums(self.layout, batch, features, group_stats=groups, whole=own)
                into.sums = rollouts.add_sums(into.sums, counted)
                if batch.split == "train" and self.ranks.rank == 0 and columns is not None:
                    base = not self._base.baseline.complete
                    self._illustration.keep(columns, features.mode, batch.completions, base=base)
        rows = rows_of(batch) if rows is None else rows
        rows["scorer"] = scorer(batch, self.ranks.world_size)
        if batch.split == "train":
            self._exchange.meet(batch.source)
        self._observed.remember(batch, rows)

    def steer(
        self, batch: RolloutBatch | None, rows: int, logp_base_n: NDArray[np.float64] | None = None
    ) -> RowEffect | None:
        """What the rules do to the ``rows`` rows of a training round, ``batch``; ``None`` for nothing.

        With a policy every rank calls this once per training round, with ``batch=None`` where it could not be made:
        it holds a collective. Never raises.
        """
        if self.steering is None:
            return None
        effect: RowEffect | None = None
        with self.guard("interventions"):
            successes = self._successes
            features, success_n = self._newest[1], None if batch is None else successes.of_round(batch.round)
            if batch is None or success_n is None:
                success_n = np.full(rows, np.nan)
            elif batch is not self._newest[0]:  # the rows that are trained on, of those observed
                features = self._featurizer.features(batch)
                success_n = successes.definition.of(batch.reward, batch.rewards, rows)
            if successes.deciding.decided and not successes.definition.known:
                self.steering.rest_without_success(str(successes.definition))
            late = None
            if batch is not None and self.ranks.world_size > 1:
                late = functools.partial(successes.late, batch.round, batch.group_size, self._step + 1)
            effect = self.steering.round(batch, rows, features, logp_base_n, success_n, late)
        return effect

    def sample_rows(self, count: int) -> list[dict[str, Any]]:
        """At most ``count`` rows of the newest round on rank 0, with the field names of ``records.Rollout``."""
        return self._illustration.samples[:count]

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
            sums = tokens.token_sums(entropies_BT, logps_BT, mask_BT, advantages_B)
            step = self._step + 1 if split == "train" else self._step
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
        result: tokens.ExactKL,
        seconds: float,
        weight_b: NDArray[Any] | None = None,
    ) -> None:
        """Take a comparison with the base on rows of the micro-batch observed last. Never raises.

        ``rows_b2`` holds (round, local row) of every row that the comparison stands for, ``sampled_b`` how many of the
        ``tokens_b`` completion tokens of each were compared (0 for a row outside of the sample), ``weight_b`` how many
        tokens each of those stands for (``metrics.sampling``; default 1); ``result`` lists them row by row.
        """
        with self.guard("metrics.kl"):
            self._base_seconds += seconds
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
        """Take the critic's side of one micro-batch; needs ``critic=True``. Never raises.

        ``values_BT`` at rollout and discounted rewards to go in units of reward, advantages as trained on, the mask
        non-zero where a token counts, all of shape (B, T); ``loss`` is the clipped value loss without its coefficient
        and ``clip_ratio`` the share of tokens whose clipped branch is the larger, both means over the mask's tokens.
        """
        with self.guard("metrics.values"):
            if not self.critic:
                raise ValueError("values were observed, but the monitor was made without critic=True")
            into = self._observed.share[split]
            into.values = into.values + values.value_sums(
                values_BT, returns_BT, advantages_BT, mask_BT, loss, clip_ratio
            )

    # -- the end of a step -----------------------------------------------------------------------------------------

    def end_step(self, step: int) -> StepRecord | None:
        """Add the ranks, make the step's record, judge it and log it; the record, on every rank.

        Every rank calls this once per optimizer step, with the ``global_step`` after the update, whatever failed on
        it before. Raises only ``StrictError``, under ``rlmon_strict``, on all ranks together.
        """
        record = None
        with self.guard("metrics.finish"):
            record = self._finish_step(step)
        self._observed.begin("train")
        if self.config.rlmon_strict and record is not None and record.faults:
            raise StrictError(
                f"rlmon_strict: parts of the monitor failed by step {step}: {dict(record.faults)}."
            ) from self.faults.newest
        return record

    def _finish_step(self, step: int) -> StepRecord:
        local = self._observed.share["train"]
        self.journal.reconcile()
        self.journal.write_passes(local)
        whole = self._over_ranks(local, self._observed.take_rows)
        self.faults.counts[:] = 0.0
        self._non_finite = 0.0
        if whole.collided and self.ranks.rank == 0:
            self.fault(
                "collective",
                f"several rows came with one round and global_row, {whole.collided} times; groups and blocks are "
                "without them: number the rows of a round over all ranks",
            )
        sums = self._sums(whole)
        sums["token_non_finite"] = sums["token_non_finite"] + whole.head["non_finite"]
        self._successes.meet(whole.scorers)
        if self.ranks.reduce is not None:
            with self.guard("metrics.success"):
                self._successes.agree(whole.opinions, self.ranks.rank, self._step + 1, self.ranks.reduce)
        found: list[Block] = []
        with self.guard("metrics.blocks"):
            found = self._judging.blocks(whole.rows, sums, self._successes, self._step + 1)
        metrics, missing = self._measured(whole, sums)
        self.faults.step = step
        if self.steering is not None:
            with self.guard("interventions"):
                held = self.steering.metrics(step)
                metrics |= held
                missing |= {name: "no rule of the policy holds it" for name, value in held.items() if value is None}
        base_seconds, self._base_seconds = self._base_seconds, 0.0
        record = StepRecord(
            attempt=self.attempt,
            step=step,
            time_unix_seconds=time.time(),
            rounds=tuple(local.rounds),
            completions=int(whole.head["completions"]),
            prompts=int(whole.head["prompts"]),
            tokens=int(whole.head["tokens"]),
            metrics=metrics,
            missing=missing,
            blocks=tuple(found),
            sources=self._exchange.learn(whole.names),
            faults=by_place(whole.faults),
            shed_rows=int(whole.head["shed"]),
            overhead_seconds=self.faults.take_own_seconds(),
            base_forward_seconds=base_seconds or None,
        )
        record = as_stored(record)  # detectors see live what a replay will read
        self._judge(record, whole)
        self.last_record = record
        return record

    def _judge(self, record: StepRecord, whole: Step) -> None:
        """Findings of the record, and the record itself, to the log, the rules and the sinks."""
        findings: tuple[Finding, ...] = ()
        with self.guard("detectors"):
            findings = self._judging.findings(record)
        self.findings = (self.findings + list(findings))[-1000:]
        with self.guard("runlog.steps"):
            self.writer.append_step(record)
        for finding in findings:
            self.journal.event("finding", dataclasses.asdict(finding))
            with self.guard("metrics.finish"):
                shown = self._illustration.of(finding.finding_id, self._base.sums, self._featurizer.opener_words)
                if shown is not None:
                    self.journal.event("examples", shown)
        if self.steering is not None:
            with self.guard("interventions"):
                self.steering.step(record, findings, whole.votes)
        self.journal.drain()
        self.journal.record(record, findings, self.sample_rows)

    def _over_ranks(self, local: Share, take_rows: Callable[[], Rows]) -> Step:
        """What all ranks saw: the collective of a step (``agree`` adds a second where these opinions differ).

        A rank whose own share cannot be made enters with zeros and its fault, so that no rank waits for it.
        """
        share = self._exchange.empty()
        with self.guard("collective"):
            filled = self._exchange.empty()
            self._exchange.fill(
                filled,
                sums=self.layout.flatten(local.sums),
                head={
                    "completions": local.completions,
                    "prompts": local.prompts,
                    "tokens": local.tokens,
                    "rounds": len(local.rounds),
                    "shed": self.writer.shed_rows,
                    "non_finite": self._non_finite,
                },
                rows=take_rows(),
                values=local.values,
                scorer=self._successes.scorer,
            )
            share = filled
        self._successes.no_opinion()
        if self.ranks.world_size > 1:
            with self.guard("metrics.success"):
                share["opinions"][0, self.ranks.rank] = self._successes.opinion().entry
        share["faults"] = self.faults.counts
        if self.steering is not None:
            share["votes"] = self.steering.vote()
        return self._exchange.read(self.ranks.sum(self._exchange.vector(share)))

    def _sums(self, whole: Step) -> dict[str, Vector]:
        sums = self.layout.unflatten(whole.sums)
        if self.critic:
            sums["token_non_finite"] = sums["token_non_finite"] + values.non_finite(whole.values)
        return sums

    def _measured(self, whole: Step, sums: dict[str, Vector]) -> tuple[dict[str, float | None], dict[str, str]]:
        """The metrics of a step, and the reasons of those that are null; the baseline grows by it."""
        metrics: dict[str, float | None] = {}
        missing: dict[str, str] = {}
        head = whole.head
        with self.guard("metrics.finish"):
            self._base.grow(sums, prompts=head["prompts"], completions=head["completions"])
            if head["completions"]:
                self._illustration.add(sums)
            reason = self._successes.definition.reason
            metrics, missing = rollouts.finish(self.layout, sums, self._base.sums, reason)
            missing |= of_missing_parts(
                missing,
                sums,
                rounds=head["rounds"],
                failed=by_place(whole.faults),
                kl_reason=self.kl_reason,
                unseen=self.journal.unseen,
            )
        if self.critic:
            with self.guard("metrics.values"):
                valued, unvalued = values.finish(whole.values)
                metrics |= valued
                missing |= unvalued
        return metrics, missing

    def end_eval(self, step: int, name: str = "eval") -> None:
        """Log what an evaluation showed, as an event of its own: it never mixes with training. Never raises.

        ``name`` tells evaluations of one step apart: TRL's ``metric_key_prefix``, such as ``eval_hard``.
        """
        with self.guard("metrics.finish"):
            local = self._observed.begin("eval")
            self.journal.reconcile()
            self.journal.write_passes(local)
            whole = self._over_ranks(local, lambda: np.zeros(0, dtype=ROW))
            self._exchange.learn(whole.names)
            metrics, _ = rollouts.finish(self.layout, self._sums(whole), self._base.sums)
            if self.critic:
                metrics |= values.finish(whole.values)[0]
            self.journal.event(
                "eval",
                {
                    "step": step,
                    "name": name,
                    "rounds": list(local.rounds),
                    "completions": int(whole.head["completions"]),
                    "prompts": int(whole.head["prompts"]),
                    "metrics": {name: value for name, value in metrics.items() if value is not None},
                },
            )
            self.journal.drain()

    def close(self) -> None:
        """Write what is left and close log and sinks. Never raises; safe to call twice."""
        self.journal.reconcile()
        for local in self._observed.share.values():
            self.journal.write_passes(local)
        if self.steering is not None:
            with self.guard("interventions"):
                self.steering.close(self._step)
        self.journal.close()

    # -- checkpoints -----------------------------------------------------------------------------------------------

    def shared_state(self) -> dict[str, Any]:
        """What a resumed run needs and all ranks have in common, as JSON types."""
        return {
            "version": 2,
            "step": self._step,
            "rounds": dict(self._rounds),
            "detectors": detectors.state_to_json(self._judging.state),
            **self._base.state(),
            "modes": list(self.modes.names),
            "sources": self._exchange.names,
            "ledger": self._judging.ledger.state(),
            "success": self._successes.deciding.to_json(),
            "steering": None if self.steering is None else self.steering.state(),
            "policy": self._policy,
        }

    def rank_state(self) -> dict[str, Any]:
        """What this rank alone knows, as JSON types: examples of completions, of rank 0."""
        return {"version": 2, "base_examples": self._illustration.base_examples}

    def _load(self, state: Mapping[str, Any], resume: Resume) -> None:
        """Take up each part of ``state`` as a whole, or begin it anew."""
        shared, own = mapping(state["shared"]), mapping(state.get("rank") or {})
        restored = resume.restored
        with restored.part("examples"):
            # Of rank 0 alone, and with the shared state in version 1.
            self._illustration.load(own.get("base_examples", shared.get("base_examples", {})))
        with restored.part("round numbers"):
            self._rounds = {split: max(0, int(shared["rounds"][split])) for split in self._rounds}
        with restored.part("names of sources"):
            self._source_names = {str(key): str(name) for key, name in mapping(shared.get("sources", {})).items()}
        if shared.get("modes") != list(self.modes.names):
            # The statistics of other modes are other statistics.
            reason = "the format modes are others now" if "modes" in shared else "'modes' is missing"
            restored.lost |= {"detectors": reason, "baseline": reason}
        else:
            with restored.part("detectors"):
                self._judging.state = detectors.with_own(detector_state(shared["detectors"]), self._judging.own)
            with restored.part("baseline"):
                self._base.load(shared, self.layout)
        if self._judging.state.alpha != self.config.rlmon_alpha:
            restored.changed.append(
                f"rlmon_alpha is {self.config.rlmon_alpha} now; the detectors go on with {self._judging.state.alpha}, "
                "which they began with."
            )
        with restored.part("ledger of solve rates"):
            # Version 1 kept one on each rank: all ranks go on with that of rank 0.
            saved = shared["ledger"] if "ledger" in shared else self.ranks.of_rank_0(own.get("ledger"))
            if saved is not None:
                ledger = SolveLedger.load(mapping(saved))
                ledger.credibly_below(["a prompt"], ["a source"])
                self._judging.ledger = ledger
        with restored.part("what counts as a success"):
            self._successes.load(shared.get("success"), restored)
        if "policy" in shared and (change := policy_change(shared["policy"], self._policy)) is not None:
            restored.changed.append(change)
