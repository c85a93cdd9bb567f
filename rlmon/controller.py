"""Interventions in a live run: the policy's fold, the queue of its actions, and what is shared between ranks.

The monitor hands over the rows of each training round and each step's record. A round's rows are gathered once, as one
matrix whose shape depends on settings alone, so that every rank folds the same and decides the same. Each decision is
written (``decided``), applied on all ranks, and written again (``applied`` or ``failed``); with several ranks it is
applied one step later, once the step's sum over ranks has shown that all of them decided the same.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rlmon.detectors import DETECTORS
from rlmon.errors import AttachError, ConfigError
from rlmon.extensions import Extensions
from rlmon.interventions import answers, fold
from rlmon.interventions.intervention import NOTHING, Blocked, Intervention, Turns
from rlmon.interventions.policy import Policy, Rule, parse
from rlmon.interventions.row_effect import RowEffect
from rlmon.interventions.rows import OPENERS, ROW, ModeKind, RoundTable, as_rows, exchanged, row_key, row_type
from rlmon.metrics.catalog import METRICS, local_metrics
from rlmon.metrics.features import RowFeatures
from rlmon.metrics.groups import column
from rlmon.metrics.ledger import SolveLedger
from rlmon.metrics.success import scorer
from rlmon.records import Action, Finding, RolloutBatch, StepRecord
from rlmon.restored import Restored, UnreadableError, mapping

METRICS_OF_RULES = (
    "kappa", "mode_ratio", "hold_kappa", "hold_ratio", "anchor_weight", "neutralised_share", "deferred_share",
)  # fmt: skip
"""Null where no rule measures them."""
_NUMBER = re.compile(r"\d+")


class Actuators(Protocol):
    """What a rule can turn, in a training loop; nothing, where a method is not given."""

    def values(self) -> Mapping[str, float]:
        """``beta`` and ``entropy_coef`` as they are."""
        return {}

    def apply(self, action: Action, settings: Intervention) -> None:
        """Do what ``action`` says. Raises where that cannot be done; does the same on all ranks."""
        return None

    def rest(self, settings: Intervention) -> None:
        """Put back what a rule with these settings turned. Never raises."""
        return None

    def state(self) -> Mapping[str, Any]:
        """Values that a resumed run takes up, as JSON types."""
        return {}

    def load(self, state: Mapping[str, Any]) -> None:
        """Take up the values that ``state`` gave."""
        return None


class AdvantagesOnly(Actuators):
    """Those of a loop that only takes back advantages.

    Raises ``ConfigError`` for a policy that needs more.
    """

    def __init__(self, policy: Policy) -> None:
        for rule in policy.rules:
            if rule.action.turns != "advantages" and not rule.dry_run:
                raise ConfigError(
                    f"rule {rule.name!r} asks for {type(rule.action).__name__}, which this loop cannot do. Pass "
                    "actuators= to rlmon.Monitor, or use a TRL trainer with RLMon."
                )


def load_policy(source: Any, extensions: Extensions | None = None) -> Policy:
    """The policy of a preset, a YAML file or a mapping, which may name what ``extensions`` and installed packages add.
    Raises ``ConfigError`` saying where and what to type."""
    added = (extensions if extensions is not None else Extensions()).with_installed()
    own = [metric for family in added.metrics for metric in family.entries]
    return parse(
        source,
        known_findings=[spec.id for spec in (*DETECTORS, *added.detectors)],
        known_metrics=[metric.name for metric in (*METRICS, *own)],
        local_metrics=local_metrics() | {metric.name: metric.instead for metric in own if metric.kind == "local"},
        actions=added.actions,
    )


def take_up(
    policy: Policy,
    saved: Any,
    restored: Restored,
    *,
    actuators: Actuators,
    write: Callable[[Action], None],
    rank: int = 0,
    world_size: int = 1,
    gather: Callable[[NDArray[np.int64]], NDArray[np.int64]] | None = None,
) -> Controller:
    """The policy at work: from where ``Controller.state`` left it (``saved``), if every rank can read that; else at
    rest.

    Raises ``AttachError`` where it was read, and cannot go on with today's settings. Every rank calls this alike.
    """

    def made(state: Mapping[str, Any] | None) -> Controller:
        return Controller(
            policy, actuators=actuators, write=write, rank=rank, world_size=world_size, gather=gather, state=state
        )

    if saved is None:
        return made(None)
    controller: Controller | None = None
    with restored.part("interventions"):
        try:
            taken = made(mapping(saved))
            taken.try_out()
            controller = taken
        except AttachError as error:
            if not restored.lost and not isinstance(error, UnreadableError):
                raise  # a setting, and no consequence of damage
            raise RuntimeError(str(error)) from error
    everywhere = controller is not None
    if gather is not None:
        everywhere = bool(gather(np.full((1, 1), everywhere, dtype=np.int64)).all())
    if controller is not None and everywhere:
        return controller
    restored.lost.setdefault("interventions", "another rank cannot read them")
    for rule in policy.rules:
        actuators.rest(rule.action)
    return made(None)


class Controller:
    """The policy of one ``train()`` call on one rank.

    Args:
        policy: what to do when.
        actuators: what can be turned.
        write: takes each action for the log.
        gather: the rows of all ranks in rank order, from this rank's int64 matrix; ``None`` with one rank.
        state: what ``state`` gave at the checkpoint that the run resumes from.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        actuators: Actuators,
        write: Callable[[Action], None],
        rank: int = 0,
        world_size: int = 1,
        gather: Callable[[NDArray[np.int64]], NDArray[np.int64]] | None = None,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        self.policy = policy
        self.off: str | None = None
        """Why no rule acts any more, where something went wrong."""
        self._actuators = actuators
        self._write = write
        self._rank, self._world_size = rank, world_size
        self._gather = gather
        self._looks_at_rows = any(rule.action.looks_at_rows() for rule in policy.rules)
        self._row_type = row_type({wide for rule in policy.rules for wide in rule.action.reads})
        self._ledger = SolveLedger()
        self._unconfirmed: tuple[Action, ...] = ()
        """In effect on this rank, and not yet known to be so on all of them."""
        self._own = np.zeros(0, dtype=self._row_type)
        self.round_size = (0, 0)
        """Prompts and completions of the newest training round, over all ranks; zeros where it is not known."""
        self._rows_seen = (0, 0)
        """Rows of the rounds since the last step, and those neutralised of them, over all ranks."""
        self._failures: dict[str, str] = {}
        """Rules whose action failed on this rank since the last step, and why."""
        self._broken: str | None = None
        """What failed in the fold itself on this rank: its state is worth nothing any more."""
        self._rules = fold.start(policy, actuators.values())
        known = [] if state is None else [name for name, at in state["engine"]["rules"].items() if at["failed"]]
        if state is not None:
            self._rules = fold.from_json(policy, state["engine"])
            self._ledger = SolveLedger.load(state["ledger"])
            self._unconfirmed = tuple(Action(**action) for action in state["unconfirmed"])
            self.off = state["off"]
            actuators.load(state["levers"])
        self._failures = {
            name: at.failed for name, at in self._rules.rules.items() if at.failed is not None and name not in known
        }
        self._agreed = self._rules
        """The state that all ranks are known to share: what draws are decided by."""

    def try_out(self) -> None:
        """Fold one made-up record into a copy of the state: parts that do not fit together raise here, once."""
        step = max((at.began_step or 0 for at in self._rules.rules.values()), default=0)
        trial = StepRecord(
            attempt=0, step=step, time_unix_seconds=0.0, rounds=(), completions=0, prompts=0, tokens=0, metrics={}
        )
        after, _ = fold.on_step(self.policy, copy.deepcopy(self._rules), trial, ())
        fold.to_json(self.policy, after)
        if broken := fold.newly_failed(self._rules, after):
            raise ValueError("; ".join(f"rule {name}: {reason}" for name, reason in broken.items()))
        for name, fresh in fold.start(self.policy, self._rules.given).rules.items():
            for field in dataclasses.fields(fresh):
                usual, taken = getattr(fresh, field.name), getattr(self._rules.rules[name], field.name)
                if isinstance(usual, float | int) and not isinstance(taken, float | int):
                    raise TypeError(f"{field.name} of rule {name} is no number")

    @property
    def holds_state(self) -> bool:
        """Whether a checkpoint in the middle of a round would lose something: some rule is more than a dry run."""
        return self.off is None and any(not rule.dry_run for rule in self.policy.rules)

    def acts(self, names: Collection[str]) -> bool:
        """Whether a rule with one of these actions acts now, and is more than a dry run."""
        if self.off is not None:
            return False
        rules = [rule for rule in self.policy.rules if rule.action.name in names and not rule.dry_run]
        states = [self._rules.rules[rule.name] for rule in rules]
        return any(at.failed is None and at.began_step is not None and not at.suspended for at in states)

    def anchoring(self, step: int) -> tuple[tuple[int, ...], float]:
        """Modes that are dying, most lost first, and the weight of the supervised loss on them at this step."""
        for rule in self.policy.rules:
            at = self._rules.rules[rule.name]
            if rule.action.turns == "loss" and not rule.dry_run and at.level > 0.0:
                return rule.action.anchoring(at, step)
        return (), 0.0

    def own_rows(self, kind: ModeKind) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Mode key and success of this rank's rows of the newest round, as the rules saw them; empty where unknown."""
        return np.ascontiguousarray(self._own[kind]), np.ascontiguousarray(self._own["success"])

    def metrics(self, step: int) -> dict[str, float | None]:
        """``rlmon/intervention/*`` of the step that ends now; the same on every rank."""
        values, (rows, neutralised) = self._actuators.values(), self._rows_seen
        self._rows_seen = (0, 0)
        found: dict[str, list[float]] = {name: [] for name in METRICS_OF_RULES}
        for rule in self.policy.rules:
            at = self._rules.rules[rule.name]
            try:
                measured = answers.measures(rule.action, at, step, dry_run=rule.dry_run)
            except Exception as error:
                self._stop(rule, error)
                continue
            for name, value in measured.items():
                if value is not None:
                    found.setdefault(name, []).append(value)
        if self.off is not None:  # the fold of a rank that failed is not that of the others
            rows, found["mode_ratio"], found["hold_ratio"], found["deferred_share"] = 0, [], [], []
        if rows:
            found["neutralised_share"].append(neutralised / rows)
        return {
            **{f"rlmon/intervention/{name}": values.get(name) for name in ("beta", "entropy_coef")},
            **{
                f"rlmon/intervention/{name}": (min if name.endswith("_ratio") else max)(each, default=None)
                for name, each in found.items()
            },
        }

    # -- rounds ----------------------------------------------------------------------------------------------------

    def round(
        self,
        batch: RolloutBatch | None,
        rows: int,
        features: RowFeatures | None,
        logp_base_n: NDArray[np.float64] | None = None,
        success_n: NDArray[np.float64] | None = None,
        success_from: Callable[[NDArray[np.float64], NDArray[np.int64]], NDArray[np.float64] | None] | None = None,
    ) -> RowEffect | None:
        """What becomes of this rank's ``rows`` rows; ``None`` where they stay as they are. ``success_n``: as
        ``RoundTable.success_N``, of those rows; ``success_from``: of the rewards and the scorers of all ranks' rows,
        where only those say it.

        Every rank calls this once per training round, whatever failed on it before: it holds a collective.
        """
        if not self._looks_at_rows:
            return None
        own = np.zeros(rows, dtype=self._row_type)
        failure: Exception | None = None
        try:
            if batch is None or features is None:
                raise RuntimeError("the completions of this round could not be measured, so no rule looks at them")
            scored_by = scorer(batch, self._world_size)
            own = row_of_each(batch, features, logp_base_n, success_n, scored_by, self._row_type)
        except Exception as error:
            failure = error
        self._own = own[:0] if failure is not None else own
        self.round_size = (0, 0)
        gathered = self._of_all_ranks(own)
        if failure is not None:
            raise failure
        assert batch is not None
        # A rank without rows of its own is known to all by now, and so all leave this round alone.
        if self.off is not None or not bool(gathered["ok"].all()):
            return None
        self.round_size = (len(gathered) // max(1, batch.group_size), len(gathered))
        with self._intact():
            table = RoundTable.of(gathered, round=batch.round, step=batch.step, group_size=batch.group_size)
            mine = slice(batch.global_row[0], batch.global_row[0] + rows)
            late_N = None
            if success_from is not None:
                late_N = success_from(table.reward_N, np.ascontiguousarray(gathered["scorer"]))
            if late_N is not None:
                table = dataclasses.replace(table, success_N=late_N)
                own["success"] = late_N[mine]
            known = self._ask(table)
            rules, effect, actions = fold.on_round(self.policy, self._rules, table, known)
            self._take(rules)
            seen, neutralised = self._rows_seen
            self._rows_seen = (seen + len(table), neutralised + int((effect.factor_n == 0.0).sum()))
            for action in actions:
                self._write(action)
                if not action.dry_run:
                    self._unconfirmed = (*self._unconfirmed, action)
        return None if effect.identity else effect.of(mine)

    def base(self, rounds: Sequence[tuple[RolloutBatch, RowFeatures, NDArray[np.float64]]], rows: int) -> None:
        """Let the rules that compare the run with its base know a sample of it: rounds of ``rows`` rows of this rank,
        with features and success of each row.

        Every rank calls this with as many rounds: it holds a collective for each.
        """
        if not any(rule.action.folds_base for rule in self.policy.rules):
            return
        gathered = []
        for batch, features, success_n in rounds:
            own = np.zeros(rows, dtype=self._row_type)
            with contextlib.suppress(Exception):  # all ranks see that its rows are not there
                scored_by = scorer(batch, self._world_size)
                own = row_of_each(batch, features, None, success_n, scored_by, self._row_type)
            gathered.append(self._of_all_ranks(own))
        table_N = np.concatenate(gathered)
        if self.off is not None or not bool(table_N["ok"].all()):
            return
        with self._intact():
            table = RoundTable.of(table_N, round=-1, step=0, group_size=rounds[0][0].group_size)
            self._take(fold.on_base(self.policy, self._rules, table))

    def _of_all_ranks(self, own: NDArray[Any]) -> NDArray[Any]:
        """A collective where there are several."""
        return own if self._gather is None else as_rows(self._gather(exchanged(own)), self._row_type)

    @contextlib.contextmanager
    def _intact(self) -> Iterator[None]:
        """What fails inside leaves a fold that is worth nothing: all ranks are told at the step's end."""
        try:
            yield
        except Exception as error:
            self._broken = f"{type(error).__name__}: {str(error)[:300]}"
            raise

    def _take(self, rules: fold.RulesState) -> None:
        """Go on from there; rules whose intervention raised stop on all ranks with the next step's votes."""
        self._failures = {**fold.newly_failed(self._rules, rules), **self._failures}
        self._rules = rules

    def _ask(self, table: RoundTable) -> dict[str, Any]:
        """What the ledger says of the prompts to the rules that ask, before and after it has counted this round."""
        asking = [rule for rule in self.policy.rules if rule.action.asks is not None]
        if not asking:
            return {}
        ledger, known = _LedgerOf(self._ledger, table), {}
        for when in ("before", "after"):
            for rule in asking:
                if rule.action.asks != when:
                    continue
                try:
                    known[rule.name] = rule.action.ask(ledger)
                except Exception as error:
                    self._stop(rule, error)
            if when == "before":
                ledger.count(table)
        return known

    def _stop(self, rule: Rule, error: Exception) -> None:
        """A rule whose intervention raised outside of the fold: it acts no more here, and on no rank after the next
        step's votes."""
        self._take(fold.stopped(self._rules, rule.name, error))

    def blocked(self, number: int) -> Blocked:
        """What is not to be drawn in training round ``number``, as all ranks have agreed."""
        if self.off is None:
            for rule in self.policy.rules:
                at = self._agreed.rules[rule.name]
                if rule.action.turns == "draws" and not rule.dry_run and at.failed is None:
                    return rule.action.blocked(at.inner, number)
        return NOTHING

    # -- steps -----------------------------------------------------------------------------------------------------

    @property
    def votes(self) -> int:
        """Numbers that this contributes to the step's sum over ranks: one per rank, one per rule."""
        return self._world_size + len(self.policy.rules)

    def vote(self) -> NDArray[np.float64]:
        """This rank's share of them: its digest in its own place (-1: broken), and which rules failed here."""
        share = np.zeros(self.votes)
        share[self._rank] = -1.0 if self._broken is not None else float(self._rules.digest)
        for i, rule in enumerate(self.policy.rules):
            share[self._world_size + i] = float(rule.name in self._failures)
        return share

    def fail(self, turns: Turns, reason: str) -> None:
        """What turns this failed on this rank, after it was applied: the rules that do stop on all ranks."""
        for rule in self.policy.rules:
            if rule.action.turns == turns:
                self._failures.setdefault(rule.name, reason)

    def count_anew(self) -> None:
        """Another definition counts as a success from now on: solve rates begin anew."""
        self._ledger = SolveLedger()

    def rest_without_success(self, reason: str) -> None:
        """It is not known what counts as a success, on any rank: the rules that need it are put at rest."""
        for rule in self.policy.rules:
            if rule.action.needs_success and self._rules.rules[rule.name].failed is None:
                self._failures.setdefault(rule.name, f"it needs to know what counts as a success: {reason}")

    def settled(self, action: Action) -> bool:
        """Whether ``action`` took effect on all ranks: only then may a rank do what it cannot do alone."""
        return self.off is None and all(one.action_id != action.action_id for one in self._unconfirmed)

    def step(self, record: StepRecord, findings: Sequence[Finding], votes: NDArray[np.float64]) -> None:
        """Close one optimizer step, on every rank alike. ``votes``: the sum over ranks of ``vote``."""
        if self.off is not None:
            return
        digests, failed = votes[: self._world_size], votes[self._world_size :]
        alike = len(set(digests.tolist())) == 1
        failed_on_some = bool(((failed > 0) & (failed < self._world_size)).any())
        if bool((digests < 0).any()) or not (alike or failed_on_some):
            self._switch_off(record.step, self._broken or "the ranks no longer decide alike, or one of them failed")
            return
        given_up = {rule.name for rule, n in zip(self.policy.rules, failed, strict=True) if n}
        self._confirm(record.step, given_up)
        with self._intact():
            if alike:
                self._agreed = self._rules
            else:
                # A rule that failed on some ranks alone is why they differ. Whether the others are one is known at the
                # next step: until then nothing of theirs is applied.
                self._agreed = fold.give_up(self._agreed, given_up, "it failed")
                self._rules = fold.compared_anew(self._rules)
            if self._world_size > 1 and alike:
                self._apply_waiting(record.step)
            rules, actions = fold.on_step(self.policy, self._rules, record, findings)
            self._take(rules)
            for action in actions:
                self._write(action)
            if self._world_size == 1:
                self._apply_waiting(record.step)
                self._confirm(record.step, set(self._failures))
                self._agreed = self._rules

    def _apply_waiting(self, step: int) -> None:
        self._rules, waiting = fold.take_waiting(self._rules)
        for action in waiting:
            try:
                self._actuators.apply(action, self.policy.rule(action.rule).action)
            except Exception as error:
                self._failures.setdefault(action.rule, f"{type(error).__name__}: {str(error)[:300]}")
            self._unconfirmed = (*self._unconfirmed, dataclasses.replace(action, step=step))

    def _confirm(self, step: int, failed: set[str]) -> None:
        """Write what has become of the newest actions, and put at rest what failed on any rank."""
        for action in self._unconfirmed:
            if action.rule not in failed:
                self._write(dataclasses.replace(action, phase="applied"))
        for rule in self.policy.rules:
            if rule.name not in failed:
                continue
            self._write_failed(rule, step, self._failures.get(rule.name, "it failed on another rank"))
            self._actuators.rest(rule.action)
        if failed:
            for action in fold.unmeasured(self._rules, step, "its rule failed and was put at rest", failed):
                self._write(action)
            self._rules = fold.give_up(self._rules, failed, "it failed")
        self._unconfirmed = ()
        # One that failed since this step's votes were counted is voted on in the next.
        self._failures = {name: reason for name, reason in self._failures.items() if name not in failed}

    def _write_failed(self, rule: Rule, step: int, reason: str) -> None:
        """``failed`` for what the rule decided and is not known to have taken effect; a line of its own where that is
        nothing."""
        undone = [action for action in (*self._unconfirmed, *self._rules.waiting) if action.rule == rule.name]
        for action in undone or [fold.notice(rule, step, "at work")]:
            self._write(dataclasses.replace(action, phase="failed", step=step, reason=f"{action.reason}: {reason}"))

    def _switch_off(self, step: int, reason: str) -> None:
        """No rule acts any more on any rank: everything goes back to rest, and the log says why."""
        self.off = reason
        for rule in self.policy.rules:
            self._actuators.rest(rule.action)
            if not rule.dry_run:
                self._write_failed(rule, step, reason)
        for action in fold.unmeasured(self._rules, step, f"interventions were switched off: {reason}"):
            self._write(action)
        self._rules = fold.give_up(self._rules, [rule.name for rule in self.policy.rules], reason)
        self._agreed = self._rules
        self._unconfirmed = ()

    def close(self, step: int) -> None:
        """The run ends: say what became of everything that was still open."""
        self._confirm(step, set(self._failures))
        self._rules, waiting = fold.take_waiting(self._rules)
        for action in waiting:
            reason = f"{action.reason}: the run ended before it took effect"
            self._write(dataclasses.replace(action, phase="failed", step=step, reason=reason))
        for action in fold.unmeasured(self._rules, step, "the run ended first"):
            self._write(action)
        self._rules = dataclasses.replace(self._rules, pending=())

    # -- checkpoints -----------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """What a resumed run needs, as JSON types; the same on every rank. A rule whose own state would not come back
        as it is begins anew there, and stops here."""
        engine, lost = fold.kept(self.policy, self._rules)
        self._failures = {**lost, **self._failures}
        return {
            "engine": engine,
            "ledger": self._ledger.state(),
            "unconfirmed": [dataclasses.asdict(action) for action in self._unconfirmed],
            "off": self.off,
            "levers": dict(self._actuators.state()),
        }


class _LedgerOf:
    """The run's ledger as far as it concerns the rows of one round (``interventions.Ledger``)."""

    def __init__(self, ledger: SolveLedger, table: RoundTable) -> None:
        self._ledger = ledger
        self._prompts = [f"{key:x}" for key in table.prompt_N.tolist()]
        self._sources = [f"{key:x}" for key in table.source_N.tolist()]

    def count(self, table: RoundTable) -> None:
        self._ledger.update(self._prompts, self._sources, table.success_N, step=table.step)

    def credibly_below(self, rate: float, credibility: float) -> NDArray[np.bool_]:
        return self._ledger.credibly_below(self._prompts, self._sources, rate=rate, credibility=credibility)

    def counts(self) -> NDArray[np.int64]:
        return np.array([self._ledger.counts(prompt) for prompt in self._prompts], dtype=np.int64).reshape(-1, 2)


def row_of_each(
    batch: RolloutBatch,
    features: RowFeatures,
    logp_base_n: NDArray[np.float64] | None,
    success_n: NDArray[np.float64] | None,
    scored_by: int = 0,
    dtype: np.dtype[Any] = ROW,
) -> NDArray[np.void]:
    """This rank's rows, of a dtype of ``row_type``."""
    rows = len(batch)
    moves: Any = -1
    if features.openers is not None:
        moves = [int(row[0]) if len(row) else -1 for row in features.openers]
    tokens: Any = features.tokens
    if tokens is None:
        tokens = [len(text.split()) for text in batch.completions]
    columns: dict[str, Any] = {
        "ok": 1,
        "prompt": [row_key(name) for name in batch.prompt_id],
        "source": [row_key(name) for name in batch.source],
        "format": features.mode_code,
        "template": features.template_key,
        "opening": features.opening_key,
        "moves": moves,
        "answer": [-1 if key is None else key for key in features.answer_key],
        "tokens": tokens,
        "numbers": [len(_NUMBER.findall(text)) for text in batch.completions],
        "reward": column(batch.reward, rows),
        "advantage": column(batch.advantages, rows),
        "logp_base": np.nan if logp_base_n is None else logp_base_n,
        "success": np.nan if success_n is None else success_n,
        "scorer": scored_by,
        "truncated": 0 if batch.truncated is None else [bool(cut) for cut in batch.truncated],
        "parsed": [mode != "other" for mode in features.mode],
    }
    wide = set(dtype.names or ()) - set(columns)
    if "sketch" in wide:
        columns["sketch"] = features.sketch
    if "openers" in wide:
        columns["openers"] = _packed_openers(features, rows)
    made = np.zeros(rows, dtype=dtype)
    for name, values in columns.items():
        made[name] = values
    return made


def _packed_openers(features: RowFeatures, rows: int) -> NDArray[np.int64]:
    """``RoundTable.openers_NK`` of this rank's rows; zeros where moves are not measured."""
    packed = np.zeros((rows, OPENERS), dtype=np.int64)
    for row, (buckets, shares) in enumerate(zip(features.openers or (), features.opener_weights or (), strict=True)):
        share = np.rint(shares.astype(np.float64) * (1 << 31)).astype(np.int64)
        packed[row, : len(buckets)] = buckets.astype(np.int64) << 32 | share
    return packed
