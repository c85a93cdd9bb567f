"""The monitor: calls metrics, detectors and the run log in order, and judges nothing itself.

One object per ``train()`` call and rank. A training loop hands over the rows of each generation (``observe``), the
token tensors of each loss (``observe_tokens``), sometimes a comparison with the base (``observe_kl``), and the end
of each optimizer step (``end_step``), where one fixed-shape sum over ranks makes the step's record.

Nothing raises into the loop after construction: every part runs in a ``guard`` that turns an exception into a
counted fault. ``rlmon_strict`` raises at the end of a step, on all ranks together.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import math
import secrets
import sys
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rlmon import console, detectors
from rlmon.baseline import Baseline
from rlmon.config import RLMonConfig
from rlmon.errors import RLMonError, RunLogError
from rlmon.exchange import Exchange, Opinion, Places, Step, agree
from rlmon.metrics import blocks, moves, rollouts, tokens, values
from rlmon.metrics.formats import ModeSet
from rlmon.metrics.groups import SolveLedger
from rlmon.metrics.rows import OF_ONE_STEP, ROW, Rows, rows_of
from rlmon.metrics.success import Deciding, RowSuccess, only_function, scorer
from rlmon.printable import one_line
from rlmon.records import Action, Block, Fault, Finding, RolloutBatch, RunHeader, Split, StepRecord
from rlmon.restored import NO_STATE, Restored, detector_state, mapping, policy_change
from rlmon.runlog import RunLogWriter, as_stored, next_attempt, peek

if TYPE_CHECKING:
    from torch import Tensor

    from rlmon.interventions.policy import Policy
    from rlmon.sinks import Sink
    from rlmon.steering import Levers, RowEffect, Steering

Vector = NDArray[np.float64]

ROUNDS_REMEMBERED = 8
"""Rounds whose rows can still be named by token statistics; a buffer never spans more."""
SAMPLE_ROWS = 32
EXAMPLE_CHARACTERS = 500
RECENT_STEPS = 8
"""Steps whose counts are pooled as "now" when a finding is illustrated."""
ILLUSTRATED = ("mode_count", "openers", "opener_tokens")
OF_BASE = (*ILLUSTRATED, "entropy")
"""Sums that are read of the baseline too."""
PLACES = (
    "capture.rollouts", "capture.tokens", "capture.vocabulary", "capture.logs", "base.tap", "base.forward",
    "metrics.features", "metrics.success", "metrics.rollouts", "metrics.blocks", "metrics.tokens", "metrics.kl",
    "metrics.values", "metrics.finish", "runlog.rollouts", "runlog.passes", "runlog.steps", "runlog.events",
    "runlog.directory", "runlog.compact", "detectors", "interventions", "sinks", "subscribers", "mirror", "checkpoint",
    "collective", "elsewhere",
)  # fmt: skip
"""Where a part of the monitor can fail: a fixed list, since the counts of all ranks are added in one vector."""

BLOCKS_A_STEP = 64


class StrictError(RLMonError):
    """``rlmon_strict`` is set and a part of the monitor failed on some rank."""


@dataclasses.dataclass
class _Round:
    """A round's rows, while tokens of them are still to be seen."""

    rows: Rows
    iterations: NDArray[np.int64]

    def __post_init__(self) -> None:
        self.mode = self.rows["mode"]
        self.global_row = self.rows["global_row"].astype(np.int64).tolist()


@dataclasses.dataclass
class _Accumulated:
    """This rank's share of what the current step (or evaluation) showed."""

    sums: dict[str, Vector]
    values: Vector
    """What the critic showed; of length 0 without one."""
    rows: list[Rows] = dataclasses.field(default_factory=list)
    """Rows of the rounds that were observed; token sums are added to them as they come."""
    rounds: list[int] = dataclasses.field(default_factory=list)
    completions: int = 0
    prompts: int = 0
    tokens: float = 0.0
    passes: dict[str, list[Any]] = dataclasses.field(default_factory=dict)


class Monitor:
    """Watches one training loop and keeps its log.

    Args:
        config: what to record; see ``RLMonConfig``.
        directory: the run directory.
        group_size: completions per prompt, G.
        total_steps: optimizer steps planned, if known: detectors divide their error rate over them.
        reduce: sum of a float64 vector over ranks; needed with ``world_size`` over 1.
        share: rank 0's value on every rank; needed with ``world_size`` over 1.
        resumed_from_step: ``global_step`` of the checkpoint that the run goes on from; ``None`` for a fresh run.
        state: what ``shared_state`` and ``rank_state`` gave at that checkpoint, under ``shared`` (the same on all
            ranks) and ``rank``. What of it cannot be used begins anew, and log and console say so.
        restored: what of the checkpoint was found to be unreadable before; alike on all ranks.
        continues: what the directory's log shows stays shown, as that of a resumed run does.
        policy: the rules to act by; ``None`` watches only.
        levers: what the rules can turn in this loop. Default: nothing but the advantages that ``steer`` returns.
        gather: an int64 matrix of every rank stacked in rank order; needed with a policy and ``world_size`` over 1.
        rows_per_round: completions of one generation over all ranks. Needed only where several ranks sample more than
            2,048 a step: then groups that are evenly spread over the round are compared, the same on every rank.
        rounds_per_step: generations whose rows one optimizer step can train on.
        critic: the loop trains a value function and hands it to ``observe_values``; every record then has
            ``rlmon/value/*``. The same on all ranks.

    Raises ``RunLogError``, ``SchemaError`` or ``ConfigError`` when the log cannot be opened or a mode is malformed.
    """

    def __init__(
        self,
        config: RLMonConfig | None = None,
        *,
        directory: str | Path,
        group_size: int,
        rank: int = 0,
        world_size: int = 1,
        total_steps: int | None = None,
        trainer: str = "manual",
        trainer_config: Mapping[str, Any] | None = None,
        capabilities: Sequence[Mapping[str, str]] = (),
        packages: Mapping[str, str] | None = None,
        git_commit: str | None = None,
        vocabulary: Sequence[str] | None = None,
        resumed_from_step: int | None = None,
        state: Mapping[str, Any] | None = None,
        restored: Restored | None = None,
        continues: bool = False,
        reduce: Callable[[Vector], Vector] | None = None,
        share: Callable[[Any], Any] | None = None,
        policy: Policy | None = None,
        levers: Levers | None = None,
        gather: Callable[[NDArray[np.int64]], NDArray[np.int64]] | None = None,
        critic: bool = False,
        rows_per_round: int | None = None,
        rounds_per_step: int = 1,
    ) -> None:
        self.config = config if config is not None else RLMonConfig()
        self.rank, self.world_size, self.group_size = rank, world_size, group_size
        self.log_dir = Path(directory)
        self.modes = ModeSet.build(self.config.modes)
        self.layout = rollouts.SumsLayout(self.modes.names)
        self.critic = critic
        self.kl_reason = "no base model was compared"
        self.findings: list[Finding] = []
        """The newest 1,000 findings of this attempt."""
        self.last_record: StepRecord | None = None
        self.on_record: list[Callable[[StepRecord, tuple[Finding, ...]], None]] = []
        """Called on rank 0 after each step is in the log."""
        self.sinks: list[Sink] = []

        self._reduce = reduce
        self._depth = 0
        self._expected = 0
        """Completions that were sampled and have still to be observed."""
        self._unseen: dict[str, str] = {}
        self._unseen_said = False
        self._overhead = 0.0
        self._base_seconds = 0.0
        self._faults = np.zeros(len(PLACES))
        self._fault_totals: dict[str, int] = {}
        self._last_error: BaseException | None = None
        self._non_finite: dict[str, float] = {}
        self._rounds: dict[Split, int] = {"train": 0, "eval": 0}
        self._remembered: dict[Split, dict[int, _Round]] = {"train": {}, "eval": {}}
        self._samples: list[dict[str, Any]] = []
        self._base_examples: dict[str, str] = {}
        self._now_examples: dict[str, str] = {}
        self._recent: deque[dict[str, Vector]] = deque(maxlen=RECENT_STEPS)
        self._base_sums: dict[str, Vector] | None = None
        self._baseline = Baseline()
        self._ledger = SolveLedger()
        self._deciding = Deciding.start(self.config.success)
        self._counts_anew = False
        self._folds = 0
        """Rounds that went into it on this rank."""
        self._scorer = ""
        """The function that this rank's rewards are of, where only exchanged rows decide."""
        self._scorers: Mapping[int, str] = {}
        """The same of all ranks, as the last step told it."""
        self._newest_late = -1
        self._told: Opinion | None = None
        """What this rank entered of it into the exchange last."""
        self._newest_success: tuple[int, Vector] = (-1, np.zeros(0))
        """Round and success of the rows observed last."""
        self._detectors = detectors.start(alpha=self.config.rlmon_alpha, total_steps=total_steps, group_size=group_size)
        self._keeps_text = self.config.rlmon_store_text == "full" and self.config.rlmon_text_sample_per_round != 0
        self._step = resumed_from_step or 0
        self._newest: tuple[RolloutBatch | None, rollouts.RowFeatures | None] = (None, None)
        """The rows observed last and their features: what the rules look at."""
        self.steering: Steering | None = None
        self._source_names: dict[str, str] = {}
        restored = Restored() if restored is None else restored
        share = share or (lambda value: value)
        if state is not None:
            self._load(state, restored, share)
            if "policy" in mapping(state["shared"]):
                change = policy_change(state["shared"]["policy"], None if policy is None else policy.to_dict())
                restored.changed += [] if change is None else [change]
        if policy is not None and policy.rules:
            from rlmon.steering import RowsOnly, take_up

            self.steering = take_up(
                policy,
                None if state is None else state["shared"].get("steering"),
                restored,
                levers=levers if levers is not None else RowsOnly(policy),
                write=self._acted,
                rank=rank,
                world_size=world_size,
                gather=gather,
            )
            if self._counts_anew:
                self.steering.count_anew()
        self._policy = None if policy is None else policy.to_dict()
        self._exchange = Exchange(
            Places(
                rank=rank,
                world_size=world_size,
                group_size=max(1, group_size),
                rows_per_round=rows_per_round,
                rounds_per_step=max(1, rounds_per_step),
            ),
            sums=self.layout.size,
            faults=len(PLACES),
            values=values.VALUE_SUMS if critic else 0,
            votes=0 if self.steering is None else self.steering.votes,
            names=self._source_names,
        )
        self._train = self._fresh()
        self._eval = self._fresh()

        header = RunHeader(
            run_id=secrets.token_hex(8),
            attempt=0,
            attempt_kind="fresh" if resumed_from_step is None else "resumed",
            created_unix_seconds=time.time(),
            trainer=trainer,
            group_size=group_size,
            world_size=world_size,
            total_steps=total_steps,
            config=self.config.to_dict(),
            trainer_config=dict(trainer_config or {}),
            detectors=detectors.describe(self._detectors),
            policy=self._policy,
            packages=dict(packages or {}),
            git_commit=git_commit,
            capabilities=tuple(dict(row) for row in capabilities),
        )
        self.writer = self._open_log(header, resumed_from_step, continues, share)
        self.attempt = self.writer.header.attempt
        self._featurizer = rollouts.Featurizer(
            self.modes, self.writer.secret, vocabulary, text_tokens=self.config.rlmon_text_tokens
        )
        if resumed_from_step is not None:
            self._say_what_begins_anew(restored, nothing=state is None)
        elif self.attempt and self.writer.header.attempt_kind == "fresh":
            self._say_what_lay_there()
        if self._deciding.decided:
            self._log_success(self._step)

    def _say_what_begins_anew(self, restored: Restored, *, nothing: bool) -> None:
        """One line on the console and a ``note`` in the log, where the checkpoint did not give back everything."""
        text = restored.text() or (NO_STATE if nothing else None)
        if text is None:
            return
        anew = sorted({*restored.lost, *(("detectors",) if nothing else ())})
        self._event("note", {"text": text, "begins_anew": anew})
        self._console(f"resumed at step {self._step}. {text}")

    def _say_what_lay_there(self) -> None:
        """One line on the console and a ``note`` in the log, where this run begins anew in the log of another."""
        text = (
            f"{self.log_dir} already held the log of another run: it is kept, and everything shows this run alone. "
            "Give each run an output_dir of its own to see both"
        )
        self._event("note", {"text": text})
        self._console(text)

    def _open_log(
        self, header: RunHeader, from_step: int | None, continues: bool, share: Callable[[Any], Any]
    ) -> RunLogWriter:
        """Rank 0 opens the log and the others join its attempt; a failure is raised on all ranks."""
        settings: dict[str, Any] = {
            "world_size": self.world_size,
            "store_text": self.config.rlmon_store_text,
            "text_sample": self.config.rlmon_text_sample_per_round,
            "fsync": self.config.rlmon_fsync,
            "resume": from_step is not None,
            "from_step": from_step,
        }
        writer: RunLogWriter | None = None
        news: tuple[RunHeader, bytes, bool, RLMonError | None] | None = None
        if self.rank == 0:
            try:
                resumed_into = (from_step is not None or continues) and peek(self.log_dir) is not None
                settings["resume"] = resumed_into
                header = dataclasses.replace(header, attempt=next_attempt(self.log_dir))
                writer = RunLogWriter.open(self.log_dir, header, rank=0, **settings)
                news = (writer.header, writer.secret, settings["resume"], None)
            except RLMonError as error:
                news = (header, b"", False, error)
            except Exception as error:  # whatever it is, the others wait for what rank 0 says
                failed = RunLogError(f"the log in {self.log_dir} could not be opened: {type(error).__name__}: {error}")
                news = (header, b"", False, failed)
        header, secret, settings["resume"], failure = share(news)
        if failure is not None:
            raise failure
        if writer is None:
            writer = RunLogWriter.open(self.log_dir, header, rank=self.rank, secret=secret, **settings)
        return writer

    @property
    def detector_state(self) -> detectors.DetectorState:
        """What the detectors know by now."""
        return self._detectors

    def use_vocabulary(self, vocabulary: Sequence[str]) -> None:
        """Decoded text of every token id: with it, moves are measured too."""
        self._featurizer = rollouts.Featurizer(
            self.modes, self.writer.secret, vocabulary, text_tokens=self.config.rlmon_text_tokens
        )

    def open_sinks(self) -> None:
        """Mirror to the terminal and to an open W&B run, as configured."""
        if self.config.rlmon_console:
            from rlmon.sinks.terminal import TerminalSink

            self.sinks.append(TerminalSink())
        if self.config.rlmon_wandb:
            from rlmon.sinks.wandb import WandbSink

            self.sinks.append(
                WandbSink(
                    table_every=self.config.rlmon_table_every,
                    store_text=self.config.rlmon_store_text,
                    about={"config": self.config.to_dict(), "run_id": self.writer.header.run_id},
                )
            )

    # -- faults ----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def guard(self, place: str) -> Iterator[None]:
        """Contain and count what fails inside; also the timer of the monitor's own cost."""
        began = time.thread_time() if self._depth == 0 else 0.0
        self._depth += 1
        try:
            yield
        except Exception as error:
            if self.config.rlmon_strict:
                self._last_error = error
            self.fault(place, error)
        finally:
            self._depth -= 1
            if self._depth == 0:
                self._overhead += time.thread_time() - began

    def fault(self, place: str, error: BaseException | str, count: int = 1) -> None:
        """Count a failure of ours, and say it once: in events.jsonl, and on stderr of the rank it happened on."""
        self._faults[PLACES.index(place) if place in PLACES else -1] += count
        total = self._fault_totals.get(place, 0) + count
        self._fault_totals[place] = total
        if total != count:
            return
        text = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
        fault = Fault(place=place, step=self._step, rank=self.rank, error=text[:500], count=total)
        written = False
        if self.rank == 0 and not place.startswith("runlog.events"):
            with contextlib.suppress(Exception):
                self.writer.append_event("fault", dataclasses.asdict(fault))
                written = True
        if self.config.rlmon_console or not written:
            with contextlib.suppress(Exception):
                print(f"rlmon FAULT {place} (rank {self.rank}): {one_line(text)}", file=sys.stderr, flush=True)

    def count_non_finite(self, what: str, count: float) -> None:
        """Add NaN or infinite values that the loop met outside of what is observed here."""
        self._non_finite[what] = self._non_finite.get(what, 0.0) + count

    def _event(self, kind: str, payload: Any) -> None:
        with self.guard("runlog.events"):
            self.writer.append_event(kind, payload)

    def _acted(self, action: Action) -> None:
        self._event("action", action)
        if self.rank == 0:
            for sink in self.sinks:
                with self.guard("sinks"):
                    sink.action(action)

    def _console(self, text: str) -> None:
        """One line on stderr of rank 0."""
        if self.rank == 0 and self.config.rlmon_console:
            console.say(one_line(text))

    def _drain_writer(self) -> None:
        for fault in self.writer.take_faults():
            self.fault(fault.place, fault.error, fault.count)

    # -- observing -------------------------------------------------------------------------------------------------

    def _fresh(self) -> _Accumulated:
        return _Accumulated(sums=self.layout.zeros(), values=np.zeros(values.VALUE_SUMS if self.critic else 0))

    def next_round(self, split: Split) -> int:
        """The number of a generation that begins now."""
        number = self._rounds[split]
        self._rounds[split] = number + 1
        return number

    def coming_round(self, split: Split) -> int:
        """The number that the next generation will get."""
        return self._rounds[split]

    def note(self, text: str) -> None:
        """Write a remark into the log."""
        self._event("note", {"text": text})

    def expect_rows(self, count: int) -> None:
        """So many completions were sampled, and are going to be observed; those that are not by the end of the step
        are counted as shed."""
        self._expected += count

    def observe(self, batch: RolloutBatch) -> None:
        """Take the rows of one generation on this rank: write them, measure them. Never raises."""
        self._expected = max(0, self._expected - len(batch))
        before = self.writer.rows_written + self.writer.shed_rows
        with self.guard("metrics.rollouts"):
            self._observe(batch)
        self._shed(len(batch) - (self.writer.rows_written + self.writer.shed_rows - before))

    def _shed(self, rows: int) -> None:
        """Count rows that were sampled and reached no log."""
        if rows > 0:
            self.writer.shed_rows += rows
            self.fault("runlog.rollouts", f"{rows} sampled completions did not reach the log")

    def _reconcile(self) -> None:
        """What was sampled is in the log by now, or counted as shed."""
        missing, self._expected = self._expected, 0
        self._shed(missing)

    def cannot_see(self, reasons: Mapping[str, str]) -> None:
        """This step's losses showed nothing of these signals (``entropy``, ``kl``), each with its reason; it stands
        beside every null of theirs. The first time the table of capabilities is revised, in the log and in words."""
        if reasons and not self._unseen_said:
            self._unseen_said = True
            rows = [
                {**row, "status": "skip", "reason": reasons[row["signal"]]} if row["signal"] in reasons else row
                for row in self.writer.header.capabilities
            ]
            text = f"{' and '.join(reasons)} cannot be measured: {next(iter(reasons.values()))}"
            self._console(text)
            self.note(text)
            with self.guard("runlog.directory"):
                self.writer.revise(capabilities=rows)
        self._unseen = dict(reasons)

    def _observe(self, batch: RolloutBatch) -> None:
        into = self._train if batch.split == "train" else self._eval
        into.rounds.append(batch.round)
        into.completions += len(batch)
        into.prompts += sum(row % max(1, batch.group_size) == 0 for row in batch.global_row)
        success = self._successes(batch)
        features = None
        with self.guard("metrics.features"):
            features = self._featurizer.features(batch)
        self._newest = (batch, features) if self.steering is not None else (None, None)
        columns = None
        with self.guard("runlog.rollouts"):
            columns = self._columns(batch, features)
            self.writer.write_rollouts(columns)
        self._drain_writer()
        rows: Rows | None = None
        if features is not None:
            with self.guard("metrics.rollouts"):
                groups = rollouts.default_group_stats(batch, None, success)
                rows = rows_of(batch, features, groups.success_B)
                # Of training the ranks see pairs and groups together, at the step's end; of an evaluation each its own.
                own = batch.split == "eval"
                counted = rollouts.round_sums(self.layout, batch, features, group_stats=groups, whole=own)
                into.sums = rollouts.add_sums(into.sums, counted)
                if batch.split == "train":
                    self._keep_samples(batch, features, columns)
        rows = rows_of(batch) if rows is None else rows
        rows["scorer"] = scorer(batch, self.world_size)
        if batch.split == "train":
            self._exchange.meet(batch.source)
            into.rows.append(rows)
        remembered = self._remembered[batch.split]  # by split: an evaluation in mid-buffer is longer than the buffer
        remembered[batch.round] = _Round(rows=rows, iterations=np.zeros(len(batch), dtype=np.int64))
        while len(remembered) > ROUNDS_REMEMBERED:
            remembered.pop(next(iter(remembered)))

    def _successes(self, batch: RolloutBatch) -> RowSuccess:
        """What is known of each row's success; what a success is is decided here, before the round is measured."""
        found = RowSuccess(np.full(len(batch), np.nan), None)
        with self.guard("metrics.success"):
            before = self._deciding
            self._deciding, found = before.observe(batch, self.world_size)
            if batch.split == "train":
                self._scorer = only_function(batch, self.world_size) or ""
                self._folds += self._deciding is not before
            if self._deciding.definition != before.definition:
                self._say_success(batch.step, again=before.decided)
        self._newest_success = batch.round, found.success_B
        return found

    def _decided_late(self, number: int, group_size: int, reward_N: Vector, scorer_N: NDArray[Any]) -> Vector | None:
        """Success of a round's rows of all ranks, which were not handed its rewards and decide here, once a round;
        ``None`` where each rank knew before. From what they exchanged alone: a rank may have no rows of its own."""
        before = self._deciding
        name = before.called(scorer_N, self._scorers)
        if name is None:
            return None
        rewards = {name: reward_N} if name else {}
        if number > self._newest_late:
            self._newest_late = number
            self._folds += 1
            self._deciding = before.with_round(reward_N, rewards, prompts=len(reward_N) / group_size)
            if self._deciding.definition != before.definition:
                self._say_success(self._step + 1, again=before.decided)
        return self._deciding.definition.of(reward_N, rewards)

    def _fill_successes(self, rows: Rows, sums: dict[str, Vector]) -> None:
        """What is known now of the rows of a round, and was not when each rank looked at its own."""
        number, group_size = int(rows["round"][0]), int(rows["group_size"][0])
        success = self._decided_late(number, group_size, rows["reward"], rows["scorer"])
        if success is None:
            return
        won = np.isnan(rows["success"]) & (success == 1.0) & (rows["mode"] >= 0)
        rows["success"] = success
        more = np.bincount(rows["mode"][won].astype(np.int64), minlength=len(self.modes.names))
        sums["mode_count_correct"] = sums["mode_count_correct"] + more

    def _opinion(self) -> Opinion:
        """What a success is to this rank, to be compared with the others'."""
        state = {"deciding": self._deciding.to_json(), "folds": self._folds, "newest_late": self._newest_late}
        definition = json.dumps(self._deciding.definition.to_json())
        return Opinion(json.dumps(state).encode(), definition.encode(), self._folds)

    def _agree_on_success(self, opinions: Any, own: Opinion | None) -> None:
        """All ranks go on with one definition, where one of them missed a round that others decided by."""
        if self._reduce is None:
            return
        told = agree(opinions, self.rank, b"" if own is None else own.state, self._reduce)
        if told is None:
            return
        before, state = self._deciding.definition, json.loads(told)
        self._deciding = Deciding.from_json(state["deciding"])
        self._folds, self._newest_late = state["folds"], state["newest_late"]
        if len(set(opinions["definition"][opinions["folds_plus_one"] > 0])) > 1:
            self._count_anew()
            if self._deciding.definition != before:
                self._say_success(self._step + 1, again=False)

    def _say_success(self, step: int, *, again: bool) -> None:
        """Into the log and onto the console: what counts as a success from now on."""
        definition = self._deciding.definition
        self._log_success(step)
        if again:
            self._count_anew()
        what = "a success is now" if again else "a success is"
        self._console(f"{what} {definition}" if definition.known else f"success is not known: {definition}")

    def _count_anew(self) -> None:
        """What the ledgers have counted were successes of another kind."""
        self._ledger = SolveLedger()
        self._counts_anew = True
        if self.steering is not None:
            self.steering.count_anew()

    def _log_success(self, step: int) -> None:
        self._event("success", {"step": step, **self._deciding.definition.to_json()})

    def _round_of(self, split: Split, number: int, row: int) -> _Round | None:
        return None if row < 0 else self._remembered[split].get(number)

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
            features, success_n = self._newest[1], self._newest_success[1]
            if batch is None or self._newest_success[0] != batch.round:
                success_n = np.full(rows, np.nan)
            elif batch is not self._newest[0]:  # the rows that are trained on, of those observed
                features = self._featurizer.features(batch)
                success_n = self._deciding.definition.of(batch.reward, batch.rewards, rows)
            if self._deciding.decided and not self._deciding.definition.known:
                self.steering.rest_without_success(str(self._deciding.definition))
            late = None
            if batch is not None and self.world_size > 1:
                late = functools.partial(self._decided_late, batch.round, batch.group_size)
            effect = self.steering.round(batch, rows, features, logp_base_n, success_n, late)
        return effect

    def _columns(self, batch: RolloutBatch, features: rollouts.RowFeatures | None) -> dict[str, Sequence[Any] | None]:
        rows = len(batch)
        columns: dict[str, Sequence[Any] | None] = {
            "attempt": [self.attempt] * rows,
            "round": [batch.round] * rows,
            "split": [batch.split] * rows,
            "global_row": list(batch.global_row),
            "group": [row // max(1, batch.group_size) for row in batch.global_row],
            "step": [batch.step] * rows,
            "prompt_id": self._stored_prompt_ids(batch.prompt_id),
            "source": list(batch.source),
            "prompt": list(batch.prompts),
            "completion": list(batch.completions),
            "prompt_tokens": None
            if batch.prompt_ids is None
            else [None if ids is None else len(ids) for ids in batch.prompt_ids],
            "completion_tokens": [len(ids) for ids in batch.completion_ids]
            if batch.completion_ids is not None
            else [len(text.split()) for text in batch.completions],
            "truncated": batch.truncated,
            "reward": batch.reward,
            "rewards": [{name: column[i] for name, column in batch.rewards.items()} for i in range(rows)],
            "advantage": batch.advantages,
            "turn": batch.turn,
            "policy_version": batch.policy_version,
            "staleness": batch.staleness,
            "trained": [True] * rows if batch.trained is None else list(batch.trained),
        }
        if features is not None:
            columns |= {
                "mode": features.mode,
                "reasoning_mode": features.reasoning_mode,
                "template_key": features.template_key.tolist(),
                "answer_key": features.answer_key,
                "opening_key": features.opening_key.tolist(),
                "openers": None if features.openers is None else [row.tolist() for row in features.openers],
                "opener_weights": None
                if features.opener_weights is None
                else [row.tolist() for row in features.opener_weights],
            }
        return columns

    def _stored_prompt_ids(self, prompt_id: Sequence[str]) -> list[str]:
        """As they are beside the text itself; keyed without it, since the hash of a short prompt can be inverted."""
        if self.config.rlmon_store_text == "full":
            return list(prompt_id)
        key = self.writer.secret
        return [hashlib.blake2b(name.encode(), digest_size=12, key=key).hexdigest() for name in prompt_id]

    def _keep_samples(
        self, batch: RolloutBatch, features: rollouts.RowFeatures, columns: Mapping[str, Sequence[Any] | None] | None
    ) -> None:
        """An even spread of the newest round for tables: bounded, and without a random draw."""
        if self.rank != 0 or columns is None:
            return
        kept = np.unique(np.linspace(0, len(batch) - 1, min(SAMPLE_ROWS, len(batch))).astype(int))
        self._samples = [
            {name: None if column is None else column[i] for name, column in columns.items()} for i in kept
        ]
        if self._keeps_text:
            newest = {
                mode: text[:EXAMPLE_CHARACTERS] for mode, text in zip(features.mode, batch.completions, strict=True)
            }
            self._now_examples |= newest
            if not self._baseline.complete:
                self._base_examples = newest | self._base_examples

    def sample_rows(self, count: int) -> list[dict[str, Any]]:
        """At most ``count`` rows of the newest round on rank 0, with the field names of ``records.Rollout``."""
        return self._samples[:count]

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
            into = self._train if split == "train" else self._eval
            sums = tokens.token_sums(entropies_BT, logps_BT, mask_BT, advantages_B)
            rounds = [self._round_of(split, number, row) for number, row in rows_B2]
            if any(known is None and row >= 0 for known, (_, row) in zip(rounds, rows_B2, strict=True)):
                self.fault("capture.tokens", "token statistics of a round that was not observed")
            modes_B = np.array(
                [-1 if known is None else known.mode[row] for known, (_, row) in zip(rounds, rows_B2, strict=True)],
                dtype=np.int64,
            )
            into.sums = rollouts.add_sums(into.sums, rollouts.token_sums_by_mode(self.layout, sums, modes_B))
            if loss is not None and not math.isfinite(float(loss)):
                self.count_non_finite("loss", 1)
            into.tokens += float(np.maximum(sums.tokens_B, sums.logp_tokens_B).sum())
            step = self._step + 1 if split == "train" else self._step
            for i, (remembered, (number, row)) in enumerate(zip(rounds, rows_B2, strict=True)):
                if remembered is None:
                    continue
                iteration = int(remembered.iterations[row])
                remembered.iterations[row] += 1
                if iteration == 0 and split == "train":
                    remembered.rows["trained_tokens"][row] += sums.tokens_B[i]
                    remembered.rows["entropy_nats"][row] += sums.entropy_sum_B[i]
                counted, logps = sums.tokens_B[i], sums.logp_tokens_B[i]
                for name, cell in (
                    ("attempt", self.attempt),
                    ("round", number),
                    ("split", split),
                    ("global_row", remembered.global_row[row]),
                    ("iteration", iteration),
                    ("step", step),
                    ("tokens", int(max(counted, logps))),
                    ("entropy_mean_nats", sums.entropy_sum_B[i] / counted if counted else None),
                    ("logp_mean_nats", sums.logp_sum_B[i] / logps if logps else None),
                    ("kl_mean_nats", None),
                ):
                    into.passes.setdefault(name, []).append(cell)

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
            self._overhead -= seconds
            row_T = np.repeat(np.arange(len(sampled_b)), np.asarray(sampled_b, dtype=np.int64))
            weight_B = np.ones(len(sampled_b)) if weight_b is None else np.asarray(weight_b, dtype=np.float64)
            known = [self._round_of("train", number, row) for number, row in rows_b2]
            prompts = [-1.0 if r is None else r.rows["prompt"][row] for r, (_, row) in zip(known, rows_b2, strict=True)]
            into = self._train
            into.sums = rollouts.add_sums(
                into.sums,
                rollouts.kl_sums(
                    self.layout,
                    kl_T=result.kl_pi_base_T,
                    reverse_T=result.kl_base_pi_T,
                    entropy_base_T=result.entropy_base_T,
                    row_T=row_T,
                    tokens_B=np.asarray(tokens_b, dtype=np.float64),
                    weight_T=weight_B[row_T],
                    mode_code_B=np.array(
                        [-1 if r is None else r.mode[row] for r, (_, row) in zip(known, rows_b2, strict=True)],
                        dtype=np.int64,
                    ),
                    prompt_B=rollouts.codes(prompts),
                    logp_pi_T=result.logp_pi_T,
                    logp_base_T=result.logp_base_T,
                ),
            )
            kl_b = np.bincount(row_T, weights=result.kl_pi_base_T, minlength=len(sampled_b))
            at = {
                place: index
                for index, place in enumerate(
                    zip(into.passes.get("round", ()), into.passes.get("global_row", ()), strict=True)
                )
            }
            for i, (r, (number, row)) in enumerate(zip(known, rows_b2, strict=True)):
                if r is None or not tokens_b[i] or not np.isfinite(kl_b[i]):
                    continue
                index = at.get((number, r.global_row[row])) if sampled_b[i] else None
                if index is not None:
                    into.passes["kl_mean_nats"][index] = float(kl_b[i] / sampled_b[i])
                r.rows["kl_nats"][row] += float(weight_B[i]) * kl_b[i]
                r.rows["kl_tokens"][row] += float(weight_B[i]) * sampled_b[i]
                r.rows["kl_completion_tokens"][row] = tokens_b[i]

    def identities(self, rows_B2: Sequence[Sequence[int]]) -> list[tuple[int, int]]:
        """(round, global row) of training rows given as (round, local row): the same whatever the number of ranks."""
        known = self._remembered["train"]
        return [(number, known[number].global_row[row] if number in known else row) for number, row in rows_B2]

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
            into = self._train if split == "train" else self._eval
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
        self._train = self._fresh()
        if self.config.rlmon_strict and record is not None and record.faults:
            raise StrictError(
                f"rlmon_strict: parts of the monitor failed by step {step}: {dict(record.faults)}."
            ) from self._last_error
        return record

    def _finish_step(self, step: int) -> StepRecord:
        local = self._train
        self._reconcile()
        with self.guard("runlog.passes"):
            if local.passes.get("round"):
                self.writer.write_passes(local.passes)
        self._drain_writer()
        whole = self._over_ranks(local)
        self._faults[:] = 0.0
        self._non_finite.clear()
        if whole.collided and self.rank == 0:
            self.fault(
                "collective",
                f"several rows came with one round and global_row, {whole.collided} times; groups and blocks are "
                "without them: number the rows of a round over all ranks",
            )
        head, sums = whole.head, self._sums(whole)
        sums["token_non_finite"] = sums["token_non_finite"] + head["non_finite"]
        self._scorers = whole.scorers or self._scorers
        with self.guard("metrics.success"):
            self._agree_on_success(whole.opinions, self._told)
        found: list[Block] = []
        with self.guard("metrics.blocks"):
            found = self._judge_rows(whole.rows, sums)
        metrics: dict[str, float | None] = {}
        missing: dict[str, str] = {}
        with self.guard("metrics.finish"):
            self._grow_baseline(sums, head["prompts"], head["completions"])
            if head["completions"]:
                self._recent.append({name: sums[name] for name in ILLUSTRATED})
            metrics, missing = rollouts.finish(self.layout, sums, self._base_sums, self._deciding.definition.reason)
            missing |= self._unmeasured(missing, sums, head, whole.faults)
            for family, reason in self._unseen.items():
                missing |= {name: reason for name in missing if name.startswith(f"rlmon/{family}/")}
        if self.critic:
            with self.guard("metrics.values"):
                valued, unvalued = values.finish(whole.values)
                metrics |= valued
                missing |= unvalued
        self._step = step
        if self.steering is not None:
            with self.guard("interventions"):
                held = self.steering.metrics(step)
                metrics |= held
                missing |= {name: "no rule of the policy holds it" for name, value in held.items() if value is None}
        overhead, self._overhead = self._overhead, 0.0
        base_seconds, self._base_seconds = self._base_seconds, 0.0
        record = StepRecord(
            attempt=self.attempt,
            step=step,
            time_unix_seconds=time.time(),
            rounds=tuple(local.rounds),
            completions=int(head["completions"]),
            prompts=int(head["prompts"]),
            tokens=int(head["tokens"]),
            metrics=metrics,
            missing=missing,
            blocks=tuple(found),
            sources=self._exchange.learn(whole.names),
            faults={place: int(count) for place, count in zip(PLACES, whole.faults, strict=True) if count},
            shed_rows=int(head["shed"]),
            overhead_seconds=max(0.0, overhead),
            base_forward_seconds=base_seconds or None,
        )
        record = as_stored(record)  # detectors see live what a replay will read
        findings: tuple[Finding, ...] = ()
        with self.guard("detectors"):
            self._detectors, findings = detectors.step(self._detectors, record)
        self.findings = (self.findings + list(findings))[-1000:]
        with self.guard("runlog.steps"):
            self.writer.append_step(record)
        for finding in findings:
            self._event("finding", dataclasses.asdict(finding))
            with self.guard("metrics.finish"):
                self._illustrate(finding)
        if self.steering is not None:
            with self.guard("interventions"):
                self.steering.step(record, findings, whole.votes)
        self._drain_writer()
        if self.rank == 0:
            for sink in self.sinks:
                with self.guard("sinks"):
                    sink.record(record, findings, self.sample_rows)
            for subscriber in self.on_record:
                with self.guard("subscribers"):
                    subscriber(record, findings)
        self.last_record = record
        return record

    def _over_ranks(self, local: _Accumulated) -> Step:
        """What all ranks saw: the collective of a step (``agree`` adds a second where these opinions differ).

        A rank whose own share cannot be made enters with zeros and its fault, so that no rank waits for it.
        """
        share = self._exchange.empty()
        with self.guard("collective"):
            share = self._local_vector(local)
        self._told = None
        if self.world_size > 1:
            with self.guard("metrics.success"):
                self._told = self._opinion()
                share["opinions"][0, self.rank] = self._told.entry
        share["faults"] = self._faults
        if self.steering is not None:
            share["votes"] = self.steering.vote()
        vector = self._exchange.vector(share)
        return self._exchange.read(vector if self._reduce is None else self._reduce(vector))

    def _local_vector(self, local: _Accumulated) -> Any:
        """This rank's share, whose shape depends on settings alone."""
        share = self._exchange.empty()
        self._exchange.fill(
            share,
            sums=self.layout.flatten(local.sums),
            head={
                "completions": local.completions,
                "prompts": local.prompts,
                "tokens": local.tokens,
                "rounds": len(local.rounds),
                "shed": self.writer.shed_rows,
                "non_finite": sum(self._non_finite.values()),
            },
            rows=self._take_rows() if local is self._train else np.zeros(0, dtype=ROW),
            values=local.values,
            scorer=self._scorer,
        )
        return share

    def _take_rows(self) -> Rows:
        """This rank's rows that the step sampled, trained on or compared with the base; the next step begins anew."""
        known = {id(rows): rows for rows in self._train.rows}
        known |= {id(one.rows): one.rows for one in self._remembered["train"].values()}
        taken = [np.zeros(0, dtype=ROW)]
        for rows in known.values():
            taken.append(rows[(rows["fresh"] > 0) | (rows["trained_tokens"] > 0) | (rows["kl_completion_tokens"] > 0)])
            for name in OF_ONE_STEP:
                rows[name] = 0.0
        return np.concatenate(taken)

    def _sums(self, whole: Step) -> dict[str, Vector]:
        sums = self.layout.unflatten(whole.sums)
        if self.critic:
            sums["token_non_finite"] = sums["token_non_finite"] + values.non_finite(whole.values)
        return sums

    def _judge_rows(self, rows: Rows, sums: dict[str, Vector]) -> list[Block]:
        """The step's blocks from the rows of all ranks; their pairs and groups go into ``sums``, their rewards into the
        ledger."""
        found: list[Block] = []
        for part in blocks.by_round(rows):
            prompts, sources = part["prompt"].astype(np.int64).tolist(), part["source"].astype(np.int64).tolist()
            self._fill_successes(part, sums)
            known = self._deciding.definition.known
            hard_B = self._ledger.credibly_below(prompts, sources) if known else None
            groups = blocks.groups_of(part, int(part["group_size"][0]), hard_B)
            for name, value in blocks.pair_and_group_sums(part, groups).items():
                sums[name] = sums[name] + value
            found += blocks.rollout_blocks(part, groups, self._detectors_want)
            scored = np.where(np.isfinite(part["reward"]), part["success"], np.nan)
            self._ledger.update(prompts, sources, scored, step=self._step + 1)
        found += blocks.token_blocks(rows)
        read = set(detectors.STATISTICS) - (set(detectors.GROUP_BASELINE) if self.critic else set())
        return [
            dataclasses.replace(block, stats={name: block.stats[name] for name in block.stats if name in read})
            for block in blocks.at_most(found, BLOCKS_A_STEP)
        ]

    def _unmeasured(
        self, missing: Mapping[str, str], sums: Mapping[str, Vector], head: Mapping[str, float], faults: Vector
    ) -> dict[str, str]:
        """Better reasons for what is ``missing`` because a whole part of the step was not measured: the comparison with
        the base, or the completions. The same on all ranks."""
        better: dict[str, str] = {}
        failed = {place for place, count in zip(PLACES, faults, strict=True) if count}
        if sums["kl"][0] <= 0:
            broken = sorted(failed & {"base.tap", "base.forward", "metrics.kl"})
            reason = f"the comparison with the base failed in this step ({', '.join(broken)})"
            better |= {name: reason if broken else self.kl_reason for name in missing if name.startswith("rlmon/kl/")}
        if sums["rows"][0] <= 0:
            reason = "no new generation was trained in this step"
            if head["rounds"]:
                reason = f"no completion of this step was measured ({', '.join(sorted(failed)) or 'none was observed'})"
            tokens_alone = ("rlmon/kl/", "rlmon/entropy/")
            better |= {name: reason for name in missing if not name.startswith(tokens_alone)}
        return better

    def _detectors_want(self, source: str) -> Collection[str]:
        return detectors.open_tallies(self._detectors, source)

    def _grow_baseline(self, sums: Mapping[str, Vector], prompts: float, completions: float) -> None:
        """Add the step to the baseline while that is still growing; round 0 *is* the base."""
        if self._baseline.complete or not completions:
            return
        before = self._base_sums
        self._base_sums = {name: sums[name] + (0.0 if before is None else before[name]) for name in OF_BASE}
        self._baseline = self._baseline.with_round(prompts=prompts, completions=completions)

    def _illustrate(self, finding: Finding) -> None:
        """Log what the finding looks like: the formats that lost and won most since the baseline, with an example,
        and the openers of sentences whose rate changed most.

        An event of its own, since a finding must come out the same from a replay, which has no texts.
        """
        if self._base_sums is None or not self._recent:
            return
        recent = {name: np.sum([step[name] for step in self._recent], axis=0) for name in ILLUSTRATED}
        base, now = self._base_sums["mode_count"], recent["mode_count"]
        if not base.sum() or not now.sum():
            return
        change = now / now.sum() - base / base.sum()
        order = np.argsort(change, kind="stable")

        def entry(index: int) -> dict[str, Any]:
            mode = self.modes.names[index]
            return {
                "mode": mode,
                "base_share": float(base[index] / base.sum()),
                "now_share": float(now[index] / now.sum()),
                "base_example": self._base_examples.get(mode),
                "now_example": self._now_examples.get(mode),
            }

        losers = [entry(int(i)) for i in order[:3] if change[i] < 0]
        gainers = [entry(int(i)) for i in order[::-1][:3] if change[i] > 0]
        openers: tuple[moves.OpenerChange, ...] = ()
        if self._keeps_text:
            openers = moves.changed_openers(
                recent["openers"],
                float(recent["opener_tokens"][0]),
                self._base_sums["openers"],
                float(self._base_sums["opener_tokens"][0]),
                self._featurizer.opener_words(),
            )
        self._event(
            "examples",
            {
                "finding_id": finding.finding_id,
                "losers": losers,
                "gainers": gainers,
                "openers": [dataclasses.asdict(opener) for opener in openers],
            },
        )

    def end_eval(self, step: int, name: str = "eval") -> None:
        """Log what an evaluation showed, as an event of its own: it never mixes with training. Never raises.

        ``name`` tells evaluations of one step apart: TRL's ``metric_key_prefix``, such as ``eval_hard``.
        """
        with self.guard("metrics.finish"):
            local, self._eval = self._eval, self._fresh()
            self._reconcile()
            if local.passes.get("round"):
                self.writer.write_passes(local.passes)
            whole = self._over_ranks(local)
            self._exchange.learn(whole.names)
            metrics, _ = rollouts.finish(self.layout, self._sums(whole), self._base_sums)
            if self.critic:
                metrics |= values.finish(whole.values)[0]
            self._event(
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
            self._drain_writer()

    def close(self) -> None:
        """Write what is left and close log and sinks. Never raises; safe to call twice."""
        self._reconcile()
        with self.guard("runlog.passes"):
            for local in (self._train, self._eval):
                if local.passes.get("round"):
                    self.writer.write_passes(local.passes)
                    local.passes = {}
        if self.steering is not None:
            with self.guard("interventions"):
                self.steering.close(self._step)
        for sink in self.sinks:
            with self.guard("sinks"):
                sink.close()
        self.sinks = []
        with self.guard("runlog.events"):
            self.writer.append_event("ended", {"step": self._step, "faults": self._fault_totals})
            self.writer.close()
        self._drain_writer()

    # -- checkpoints -----------------------------------------------------------------------------------------------

    def shared_state(self) -> dict[str, Any]:
        """What a resumed run needs and all ranks have in common, as JSON types."""
        return {
            "version": 2,
            "step": self._step,
            "rounds": dict(self._rounds),
            "detectors": detectors.state_to_json(self._detectors),
            "baseline": self._baseline.to_json(),
            "base_sums": None
            if self._base_sums is None
            else {name: value.tolist() for name, value in self._base_sums.items()},
            "modes": list(self.modes.names),
            "sources": self._exchange.names,
            "ledger": self._ledger.state(),
            "success": self._deciding.to_json(),
            "steering": None if self.steering is None else self.steering.state(),
            "policy": self._policy,
        }

    def rank_state(self) -> dict[str, Any]:
        """What this rank alone knows, as JSON types: examples of completions, of rank 0."""
        return {"version": 2, "base_examples": self._base_examples}

    def _load(self, state: Mapping[str, Any], restored: Restored, share: Callable[[Any], Any]) -> None:
        """Take up each part of ``state`` as a whole, or begin it anew."""
        shared, own = mapping(state["shared"]), mapping(state.get("rank") or {})
        with restored.part("examples"):
            # Of rank 0 alone, and with the shared state in version 1.
            saved = own.get("base_examples", shared.get("base_examples", {}))
            examples = {str(mode): str(text) for mode, text in mapping(saved).items()}
            self._base_examples = examples if self._keeps_text else {}
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
                self._detectors = detector_state(shared["detectors"])
            with restored.part("baseline"):
                self._baseline, self._base_sums = self._saved_baseline(shared)
        if self._detectors.alpha != self.config.rlmon_alpha:
            restored.changed.append(
                f"rlmon_alpha is {self.config.rlmon_alpha} now; the detectors go on with {self._detectors.alpha}, "
                "which they began with."
            )
        with restored.part("ledger of solve rates"):
            # Version 1 kept one on each rank: all ranks go on with that of rank 0.
            saved = shared["ledger"] if "ledger" in shared else share(own.get("ledger"))
            if saved is not None:
                ledger = SolveLedger.load(mapping(saved))
                ledger.credibly_below(["a prompt"], ["a source"])
                self._ledger = ledger
        with restored.part("what counts as a success"):
            self._deciding, changed = self._deciding.resumed(shared.get("success"))
            if changed is not None:
                restored.changed.append(changed)
                self._count_anew()

    def _saved_baseline(self, shared: Mapping[str, Any]) -> tuple[Baseline, dict[str, Vector] | None]:
        if "baseline" in shared:
            counts, sums = Baseline.from_json(mapping(shared["baseline"])), shared["base_sums"]
        else:  # version 1
            prompts, completions, rounds = (float(count) for count in shared["base_counts"])
            counts, sums = Baseline(prompts=prompts, completions=completions, rounds=rounds), shared["base_sums"]
            if sums is not None:  # sums that came later stand at the end of the layout
                kept = np.array(sums, dtype=np.float64)
                sums = self.layout.unflatten(np.pad(kept, (0, max(0, self.layout.size - kept.size))))
        if sums is None:
            return counts, None
        taken = {name: np.array(mapping(sums)[name], dtype=np.float64) for name in OF_BASE}
        for name, value in taken.items():
            if value.shape != self.layout.keys[name]:
                raise ValueError(f"{name} has shape {value.shape}, not {self.layout.keys[name]}")
        return counts, taken
