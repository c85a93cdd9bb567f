"""The end of a step: the ranks are added, the families finish, the detectors judge, and the record is told."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence

import numpy as np

import rlmon.detectors as detectors
from rlmon.detectors.catalog import HOLDING, where_held
from rlmon.exchange import Exchange
from rlmon.exchange import Step as OverRanks
from rlmon.metrics.family import Circumstances
from rlmon.metrics.rows import Rows
from rlmon.monitor.illustration import IN_WORDS, in_words
from rlmon.monitor.journal import Journal
from rlmon.monitor.observed import Observed, Share
from rlmon.monitor.setting import Ranks
from rlmon.monitor.state import State
from rlmon.records import BaseSample, Block, Finding, Histogram, StepRecord
from rlmon.runlog import as_stored

OpenerWords = Callable[[], Sequence[str | None]]


class Closing:
    """Closes steps and evaluations."""

    def __init__(self, state: State, observed: Observed, exchange: Exchange, journal: Journal, ranks: Ranks) -> None:
        self._state, self._observed, self._exchange = state, observed, exchange
        self._journal, self._faults, self._ranks = journal, journal.faults, ranks
        self.base_seconds = 0.0
        """Time spent in forwards of the base since the last step."""
        self.findings: list[Finding] = []
        """The newest 1,000 of this attempt."""
        self.base: BaseSample | None = None
        """A sample of the base, until the first record tells it."""
        self._base_names: dict[str, str] = {}

    def step(self, step: int, opener_words: OpenerWords) -> StepRecord:
        """Add the ranks, make the record of a step, judge it and log it."""
        state, faults = self._state, self._faults
        local = self._observed.share["train"]
        self._journal.reconcile()
        self._journal.write_passes(local)
        whole = self._over_ranks(local, self._observed.take_rows)
        faults.counts.clear()
        if whole.collided and self._ranks.rank == 0:
            faults.fault(
                "collective",
                f"several rows came with one round and global_row, {whole.collided} times; groups and blocks are "
                "without them: number the rows of a round over all ranks",
            )
        self._agree(whole)
        found: list[Block] = []
        with faults.guard("metrics.blocks"):
            found = state.judging.blocks(whole.rows, whole.sums, state.families, state.successes, faults.step + 1)
        metrics, missing = self._measured(whole)
        faults.step = step
        if state.controller is not None:
            with faults.guard("interventions"):
                held = state.controller.metrics(step)
                metrics |= held
                missing |= {name: "no rule of the policy holds it" for name, value in held.items() if value is None}
        base_seconds, self.base_seconds = self.base_seconds, 0.0
        record = StepRecord(
            attempt=self._journal.attempt,
            step=step,
            time_unix_seconds=time.time(),
            rounds=tuple(local.rounds),
            completions=int(whole.head["completions"]),
            prompts=int(whole.head["prompts"]),
            tokens=int(whole.head["tokens"]),
            metrics=metrics,
            missing=missing,
            blocks=tuple(found),
            sources=self._base_names | self._exchange.learn(whole.names),
            base=self.base,
            faults=whole.faults,
            shed_rows=int(whole.head["shed"]),
            overhead_seconds=faults.take_own_seconds(),
            base_forward_seconds=base_seconds or None,
        )
        self.base, self._base_names = None, {}
        record = as_stored(record)  # detectors see live what a replay will read
        self._judge(record, whole, opener_words)
        return record

    def base_round(self, local: Share) -> OverRanks:
        """What all ranks saw of one round of a sample of the base: a collective like that of a step."""
        whole = self._over_ranks(local, lambda: np.concatenate(local.rows))
        self._agree(whole)
        self._base_names |= self._exchange.learn(whole.names)
        return whole

    def evaluation(self, step: int, name: str) -> None:
        """Log what an evaluation showed, as an event of its own."""
        local = self._observed.begin("eval")
        self._journal.reconcile()
        self._journal.write_passes(local)
        whole = self._over_ranks(local, lambda: np.zeros(0, dtype=self._state.families.row))
        self._exchange.learn(whole.names)
        metrics, _ = self._state.families.finish(whole.sums, self._state.base.sums)
        self._journal.event(
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
        self._journal.drain()

    def _over_ranks(self, local: Share, take_rows: Callable[[], Rows]) -> OverRanks:
        """What all ranks saw: the collective of a step (``_agree`` adds a second where opinions differ).

        A rank whose own share cannot be made enters with zeros and its fault, so that no rank waits for it.
        """
        exchange, successes, controller = self._exchange, self._state.successes, self._state.controller
        share = exchange.empty()
        with self._faults.guard("collective"):
            filled = exchange.empty()
            exchange.fill(
                filled,
                sums=local.sums,
                head={
                    "completions": local.completions,
                    "prompts": local.prompts,
                    "tokens": local.tokens,
                    "rounds": len(local.rounds),
                    "shed": self._journal.writer.shed_rows,
                },
                rows=take_rows(),
                scorer=successes.scorer,
            )
            share = filled
        successes.no_opinion()
        if self._ranks.world_size > 1:
            with self._faults.guard("metrics.success"):
                share["opinions"][0, self._ranks.rank] = successes.opinion().entry
        for place, count in self._faults.counts.items():
            share["faults"][place] = count
        if controller is not None:
            share["votes"] = controller.vote()
        return exchange.read(self._ranks.sum(exchange.vector(share)))

    def _agree(self, whole: OverRanks) -> None:
        successes = self._state.successes
        successes.meet(whole.scorers)
        if self._ranks.reduce is not None:
            with self._faults.guard("metrics.success"):
                successes.agree(whole.opinions, self._ranks.rank, self._faults.step + 1, self._ranks.reduce)

    def _measured(self, whole: OverRanks) -> tuple[dict[str, float | None], dict[str, str]]:
        """The metrics of a step, and the reasons of those that are null; the baseline grows by it."""
        state, head = self._state, whole.head
        measured: tuple[dict[str, float | None], dict[str, str]] = {}, {}
        with self._faults.guard("metrics.finish"):
            state.base.grow(whole.sums, prompts=head["prompts"], completions=head["completions"])
            if head["completions"]:
                state.illustration.add(whole.sums)
            known = Circumstances(
                rounds=head["rounds"],
                failed=whole.faults,
                no_base=self._journal.no_base,
                no_success=state.successes.definition.reason,
                unseen=self._journal.unseen,
            )
            measured = state.families.finish(whole.sums, state.base.sums, known)
        return measured

    def _judge(self, record: StepRecord, whole: OverRanks, opener_words: OpenerWords) -> None:
        """Findings of the record, and the record itself, to the log, the rules and the sinks."""
        state, faults, journal = self._state, self._faults, self._journal
        findings: tuple[Finding, ...] = ()
        with faults.guard("detectors"):
            findings = state.judging.findings(record)
            if findings and state.controller is not None and state.controller.acts(HOLDING):
                # The replay of a log compares no advice.
                findings = tuple(dataclasses.replace(one, advice=where_held(one.advice)) for one in findings)
        self.findings = (self.findings + list(findings))[-1000:]
        with faults.guard("runlog.steps"):
            journal.writer.append_step(record)
        words: dict[str, str] = {}
        for finding in findings:
            journal.event("finding", dataclasses.asdict(finding))
            with faults.guard("metrics.finish"):
                shown = state.illustration.of(finding.finding_id, state.base.sums, opener_words)
                if shown is not None:
                    journal.event("examples", shown)
                if finding.detector in IN_WORDS:
                    words[finding.finding_id] = in_words(shown)
        if state.controller is not None:
            with faults.guard("interventions"):
                state.controller.step(record, findings, whole.votes)
        journal.drain()
        histograms: dict[str, Histogram] = {}
        if journal.sinks:
            with faults.guard("metrics.finish"):
                histograms = state.families.histograms(whole.sums)
        journal.record(
            record,
            findings,
            histograms,
            state.illustration.samples,
            words=words,
            judged=lambda: detectors.judged(state.judging.state),
        )
