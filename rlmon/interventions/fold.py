"""Rules in, actions out: a fold over training rounds and step records.

::

    state = start(policy, given={"beta": 0.0})
    state, effect, actions = on_round(policy, state, table, known)  # what happens to the rows of a round
    state, actions = on_step(policy, state, record, findings)  # what is turned

Everything here is a function of what all ranks share, so that every rank decides the same; ``state.digest`` folds in
whatever was decided, and ranks compare it before anything is applied that one rank alone must not do.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal

import numpy as np

from rlmon.interventions import answers, conditions, saved
from rlmon.interventions.base_mean import BaseMean
from rlmon.interventions.intervention import SILENT_VALUES, Level, Round, RowAct, RowChange, RuleState, RunSoFar
from rlmon.interventions.policy import Policy, Rule
from rlmon.interventions.row_effect import RowEffect
from rlmon.interventions.rows import RoundTable
from rlmon.records import Action, Finding, StepRecord
from rlmon.series import LEAST_INDEPENDENT, LEAST_VALUES, shift

SILENT_METRICS = ("rlmon/group/all_good", "rlmon/group/all_bad")
CRITIC_METRIC = "rlmon/value/loss"
"""In the records of trainers with a critic."""
PENDING_MOST = 256
"""Effects waited for at once; what comes on top is said to be not measured at the next step."""


@dataclass(frozen=True, kw_only=True)
class Pending:
    """An action whose effect is to be measured."""

    action: Action
    metric: str
    good: Literal["up", "down"]
    due_step: int


@dataclass(frozen=True, kw_only=True)
class RulesState:
    """Where all rules stand; the same on every rank."""

    rules: Mapping[str, RuleState]
    given: Mapping[str, float]
    """What the loop can turn, with the values when the run began: what a rule returns to."""
    history: Mapping[str, tuple[tuple[int, float], ...]] = field(default_factory=dict)
    """(step, value) of the metrics by which effects are measured."""
    silent: tuple[float, ...] = ()
    entropy_nats: BaseMean = field(default_factory=BaseMean)
    """Its mean is H0."""
    scale: float = 1.0
    """Root mean square of advantages in groups with reward variance (ddof=1): the unit of the additions."""
    pending: tuple[Pending, ...] = ()
    waiting: tuple[Action, ...] = ()
    """Decided, and applied as soon as all ranks are known to have decided the same."""
    digest: int = 0


def start(policy: Policy, given: Mapping[str, float]) -> RulesState:
    """Before the first round. ``given``: ``beta`` and ``entropy_coef`` as the trainer was given them."""
    return RulesState(rules={rule.name: _begun(rule, given) for rule in policy.rules}, given=dict(given))


def _begun(rule: Rule, given: Mapping[str, float]) -> RuleState:
    at = RuleState(condition=conditions.start(rule.when))
    try:
        level = answers.resting_level(rule.action, MappingProxyType(given))
        return replace(at, inner=rule.action.fresh(), level=level)
    except Exception as error:
        return _failed(at, error)


# -- rounds ------------------------------------------------------------------------------------------------------------


def on_round(
    policy: Policy, state: RulesState, table: RoundTable, known: Mapping[str, Any]
) -> tuple[RulesState, RowEffect, tuple[Action, ...]]:
    """Fold one training round. ``known``: by rule name what the ledger told its intervention (``ask``).

    An intervention that raises changes nothing, and its rule has failed.
    """
    effect = RowEffect(factor_n=np.ones(len(table)), limit=None, addition_n=np.zeros(len(table)))
    actions: list[Action] = []
    rules = dict(state.rules)
    state = replace(state, scale=_scale(state.scale, table))
    for rule in policy.rules:
        at = rules[rule.name]
        acting = at.level > 0.0 and at.failed is None
        round = Round(
            table=table,
            level=at.level,
            acting=acting,
            dry_run=rule.dry_run,
            scale=state.scale,
            left_N=effect.on(table.advantage_N),
            known=known.get(rule.name),
        )
        try:
            inner, change = answers.change_of_rows(rule.action.on_round(at.inner, round), len(table))
            after = _with(effect, change)
        except Exception as error:
            rules[rule.name] = _failed(at, error)
            continue
        rules[rule.name] = replace(at, inner=inner)
        if change.act is not None:
            actions.append(_row_action(rule, table, change.act))
        if acting and not rule.dry_run:
            effect = after
    # A neutralised group is out as a whole: a push on its modes would be a reward for nothing but them.
    effect = replace(effect, addition_n=effect.addition_n * effect.factor_n)
    rows = (effect.factor_n.tobytes(), effect.addition_n.tobytes(), repr(effect.limit).encode())
    state = replace(state, rules=rules, digest=_digest(state.digest, *rows, *map(_key, actions)))
    for action in actions:
        state = _await_effect(policy, state, action, action.step)
    return state, effect, tuple(actions)


def on_base(policy: Policy, state: RulesState, table: RoundTable) -> RulesState:
    """Fold a sample of the base, all of it as one round that nothing acts on: for interventions that compare the run
    with its base (``folds_base``). One that raises has failed, as in ``on_round``."""
    rules = dict(state.rules)
    for rule in policy.rules:
        if not rule.action.folds_base:
            continue
        at = rules[rule.name]
        round = Round(
            table=table,
            level=0.0,
            acting=False,
            dry_run=rule.dry_run,
            scale=state.scale,
            left_N=table.advantage_N,
            known=None,
        )
        try:
            inner, _ = answers.change_of_rows(rule.action.on_round(at.inner, round), len(table))
        except Exception as error:
            rules[rule.name] = _failed(at, error)
            continue
        rules[rule.name] = replace(at, inner=inner)
    return replace(state, rules=rules)


def _with(effect: RowEffect, change: RowChange) -> RowEffect:
    """The effect with one rule's change beside it. Raises ``ValueError`` where together they are out of all bounds."""
    factor_n, limit, addition_n = effect.factor_n, effect.limit, effect.addition_n
    if change.factor_N is not None:
        factor_n = factor_n * change.factor_N
    if change.addition_N is not None:
        addition_n = addition_n + change.addition_N
    if change.limit is not None:
        limit = change.limit if limit is None else min(limit, change.limit)
    if not all((np.abs(values) <= answers.LARGEST).all() for values in (factor_n, addition_n)):
        raise ValueError(f"with the rules before it, it multiplies or adds more than {answers.LARGEST:g}")
    return RowEffect(factor_n=factor_n, limit=limit, addition_n=addition_n)


def stopped(state: RulesState, name: str, error: Exception) -> RulesState:
    """The state in which a rule has failed, whose intervention raised outside of the fold."""
    return replace(state, rules={**state.rules, name: _failed(state.rules[name], error)})


def _failed(at: RuleState, error: Exception) -> RuleState:
    return at if at.failed is not None else replace(at, failed=f"{type(error).__name__}: {str(error)[:300]}")


def _row_action(rule: Rule, table: RoundTable, act: RowAct) -> Action:
    return _decided(rule, table.step, act.reason, knob=act.knob, new=f"{act.count}", mark=f"-r{table.round}")


def _decided(
    rule: Rule,
    step: int,
    reason: str,
    *,
    knob: str | None = None,
    old: Level = None,
    new: Level = None,
    finding_id: str | None = None,
    mark: str = "",
) -> Action:
    """The first phase of an act of the rule; ``mark`` tells several of one step apart."""
    return Action(
        action_id=f"{rule.name}-{step}{mark}",
        phase="decided",
        step=step,
        knob=rule.action.knob if knob is None else knob,
        old=old,
        new=new,
        reason=reason,
        finding_id=finding_id,
        rule=rule.name,
        dry_run=rule.dry_run,
    )


def _scale(before: float, table: RoundTable) -> float:
    """Root mean square of the advantages of groups with variance, with G/(G-1): 1 where the trainer normalises them
    by the group's standard deviation. A running mean, so that one odd round does not turn the pressure up."""
    G = max(1, table.group_size)
    groups = len(table) // G
    if G < 2 or not groups:
        return before
    advantage_PG = table.advantage_N[: groups * G].reshape(groups, G)
    finite = np.isfinite(advantage_PG).all(axis=1)
    varied = finite & (np.ptp(np.where(np.isfinite(advantage_PG), advantage_PG, 0.0), axis=1) > 1e-9)
    if not varied.any():
        return before
    now = math.sqrt(float((advantage_PG[varied] ** 2).mean()) * G / (G - 1))
    return 0.9 * before + 0.1 * now if before != 1.0 else now


def newly_failed(before: RulesState, after: RulesState) -> dict[str, str]:
    """Rules whose intervention raised between the two states, and why."""
    return {
        name: at.failed
        for name, at in after.rules.items()
        if at.failed is not None and before.rules[name].failed is None
    }


# -- steps -------------------------------------------------------------------------------------------------------------


def on_step(
    policy: Policy, state: RulesState, record: StepRecord, findings: Sequence[Finding]
) -> tuple[RulesState, tuple[Action, ...]]:
    """Fold one step's record and its findings; the actions decided (phase ``decided``) and effects now ``measured``."""
    state = _remember(policy, state, record)
    state, measured = _measure(state, record.step)
    decided: list[Action] = []
    shown = replace(record, metrics=MappingProxyType(record.metrics))
    for rule in policy.rules:
        at = state.rules[rule.name]
        condition, met, why, finding_id = conditions.step(rule.when, at.condition, record, findings, rule.hysteresis)
        at, action = replace(at, condition=condition, met=met), None
        try:
            stepped = replace(at, inner=rule.action.on_step(at.inner, shown))
            at, action = _judge(rule, stepped, state, record, why, finding_id)
        except Exception as error:
            at = _failed(at, error)
        state = replace(state, rules={**state.rules, rule.name: at})
        if action is None:
            continue
        decided.append(action)
        if at.suspended:
            # What moves while the rule is held at 0 is not of its doing.
            measured = (*measured, *unmeasured(state, record.step, "the rule was suspended meanwhile", {rule.name}))
            state = _awaiting_none_of(state, {rule.name})
        else:
            state = _await_effect(policy, state, action, record.step, findings)
    state = replace(
        state,
        digest=_digest(state.digest, *map(_key, decided)),
        waiting=(*state.waiting, *(action for action in decided if not action.dry_run)),
    )
    return state, (*measured, *decided)


def _judge(
    rule: Rule, at: RuleState, state: RulesState, record: StepRecord, why: str, finding_id: str | None
) -> tuple[RuleState, Action | None]:
    """What the rule does now: its new state, and an action where its knob moves."""
    if at.failed is not None:
        return at, None
    given = MappingProxyType(state.given)
    run = RunSoFar(
        rest=answers.resting_level(rule.action, given),
        given=given,
        silent=state.silent,
        base_entropy_nats=state.entropy_nats.mean,
    )
    suspended, switched = answers.suspension(rule.action, at, run)
    at = replace(at, suspended=suspended)
    if switched is not None:
        old, new = (at.level, 0.0) if suspended else (0.0, at.level)
        return replace(at, changed_step=record.step), _changed(rule, record, old, new, switched, finding_id)
    if suspended or (at.changed_step is not None and record.step - at.changed_step < rule.cool_off_steps):
        return at, None
    level, reason = answers.next_level(rule.action, at, run)
    if level is None or level == at.level:
        return at, None
    began = at.began_step
    if at.level == run.rest:
        began = record.step
    elif level == run.rest:
        began = None
    if reason is None:
        reason = why if at.met else f"released: {why}"
    action = _changed(rule, record, at.level, level, reason, finding_id)
    return replace(at, level=level, began_step=began, changed_step=record.step), action


def _changed(
    rule: Rule, record: StepRecord, old: float, new: float, reason: str, finding_id: str | None
) -> Action | None:
    said = answers.change_of_level(rule.action, old, new)
    if said is None:
        return None
    return _decided(rule, record.step, reason, old=said[0], new=said[1], finding_id=finding_id)


def take_waiting(state: RulesState) -> tuple[RulesState, tuple[Action, ...]]:
    """The actions to apply now."""
    return replace(state, waiting=()), state.waiting


def notice(rule: Rule, step: int, reason: str) -> Action:
    """An action of no decision of its own, for the log: something befell the rule."""
    return _decided(rule, step, reason, mark="-x")


def give_up(state: RulesState, names: Collection[str], reason: str) -> RulesState:
    """The named rules act no more, what they held is at rest, and nothing of theirs is waited for."""
    rules = {
        name: replace(at, failed=reason, level=0.0, began_step=None) if name in names else at
        for name, at in state.rules.items()
    }
    waiting = tuple(action for action in state.waiting if action.rule not in names)
    return replace(_awaiting_none_of(state, names), rules=rules, waiting=waiting)


def _awaiting_none_of(state: RulesState, names: Collection[str]) -> RulesState:
    """The state in which no effect of the named rules is waited for."""
    return replace(state, pending=tuple(pending for pending in state.pending if pending.action.rule not in names))


def compared_anew(state: RulesState) -> RulesState:
    """With a digest of where the rules stand that have not failed, in place of one of all that was ever decided."""
    stand = [(name, at.level, at.suspended, at.met) for name, at in state.rules.items() if at.failed is None]
    return replace(state, digest=_digest(0, repr((stand, state.scale)).encode(), *map(_key, state.waiting)))


# -- effects -----------------------------------------------------------------------------------------------------------


def measured_by(rule: Rule, finding: Finding | None = None) -> tuple[str, Literal["up", "down"]] | None:
    """The metric that the rule wants to move, and which way; ``None`` where nothing comes after it."""
    if rule.action.ends_training:
        return None
    named = conditions.metric_of(rule.when)
    if named is not None:
        return named
    if finding is not None and finding.value is not None and finding.baseline is not None:
        return finding.metric, ("up" if finding.value < finding.baseline else "down")
    return rule.action.measured_by


def _remember(policy: Policy, state: RulesState, record: StepRecord) -> RulesState:
    """Keep the values by which effects are measured, two windows of them, and the newest shares of silent groups."""
    wanted = {pending.metric for pending in state.pending}
    wanted |= {by[0] for rule in policy.rules if (by := measured_by(rule)) is not None}
    longest = 2 * max((rule.measure_after_steps for rule in policy.rules), default=0)
    history = {}
    for name in sorted(wanted | set(state.history)):
        values = state.history.get(name, ())
        value = record.metrics.get(name)
        if value is not None:
            values = (*values, (record.step, value))
        kept = tuple(entry for entry in values if entry[0] > record.step - longest)
        if kept or name in wanted:
            history[name] = kept
    silent = state.silent
    shares = [record.metrics.get(name) for name in SILENT_METRICS]
    # Where there is a critic, a group without variance teaches as much as any other.
    if CRITIC_METRIC not in record.metrics and all(share is not None for share in shares):
        silent = (*silent, sum(share for share in shares if share is not None))[-SILENT_VALUES:]
    entropy_nats = state.entropy_nats.after(record, record.metrics.get("rlmon/entropy/mean"))
    return replace(state, history=history, silent=silent, entropy_nats=entropy_nats)


def _await_effect(
    policy: Policy, state: RulesState, action: Action, step: int, findings: Sequence[Finding] = ()
) -> RulesState:
    if action.dry_run:
        return state
    rule = policy.rule(action.rule)
    finding = next((finding for finding in findings if finding.finding_id == action.finding_id), None)
    by = measured_by(rule, finding)
    if by is None:
        return state
    pending = Pending(action=action, metric=by[0], good=by[1], due_step=step + rule.measure_after_steps)
    return replace(state, pending=(*state.pending, pending))


def _measure(state: RulesState, step: int) -> tuple[RulesState, tuple[Action, ...]]:
    """Judge the actions that are due: the mean of the window after against the window before."""
    due = [pending for pending in state.pending if pending.due_step <= step]
    rest = tuple(pending for pending in state.pending if pending.due_step > step)
    rest, above = rest[:PENDING_MOST], rest[PENDING_MOST:]
    if not due and not above:
        return state, ()
    late = unmeasured(replace(state, pending=above), step, f"{PENDING_MOST} other effects were waited for")
    return replace(state, pending=rest), (*(_effect(pending, state) for pending in due), *late)


def _effect(pending: Pending, state: RulesState) -> Action:
    action, began = pending.action, pending.action.step
    span = pending.due_step - began
    values = state.history.get(pending.metric, ())
    before = np.array([value for step, value in values if began - span < step <= began])
    after = np.array([value for step, value in values if began < step <= pending.due_step])

    def judged(effect: Literal["helped", "no_effect", "harmed", "not_measured"], reason: str) -> Action:
        return replace(action, phase="measured", step=pending.due_step, effect=effect, effect_reason=reason)

    if min(len(before), len(after)) < LEAST_VALUES:
        return judged(
            "not_measured",
            f"{pending.metric} was measured {len(before)} times in the {span} steps before and {len(after)} times in "
            f"those after; {LEAST_VALUES} each are needed (measure_after_steps)",
        )
    moved = shift(before, after)
    said = f"{pending.metric} {before.mean():.4g} -> {after.mean():.4g} over {span} steps"
    alike = f"neighbours correlate by {float(moved.correlation):.2f}"
    if not moved.enough:
        return judged(
            "not_measured",
            f"{said}: too short to judge, for {alike}, so that {min(len(before), len(after))} values weigh as much as "
            f"{float(moved.independent):.1f} independent ones; {LEAST_INDEPENDENT:g} are needed "
            "(measure_after_steps)",
        )
    effect: Literal["helped", "no_effect", "harmed"] = "no_effect"
    if moved.distinct:
        effect = "helped" if (moved.change > 0) == (pending.good == "up") else "harmed"
    error = f"standard error {float(moved.error):.2g}, {alike}"
    return judged(effect, f"{said} ({error}; before and after, no control)")


def unmeasured(state: RulesState, step: int, reason: str, names: Collection[str] | None = None) -> tuple[Action, ...]:
    """What will not be measured any more, of the named rules or of all: said so."""
    return tuple(
        replace(p.action, phase="measured", step=step, effect="not_measured", effect_reason=reason)
        for p in state.pending
        if names is None or p.action.rule in names
    )


# -- state -------------------------------------------------------------------------------------------------------------


def to_json(policy: Policy, state: RulesState) -> dict[str, Any]:
    """The state as JSON types; floats survive exactly."""
    return kept(policy, state)[0]


def kept(policy: Policy, state: RulesState) -> tuple[dict[str, Any], dict[str, str]]:
    """The same, and of each rule whose own state would not come back as it is, and so is left out, why."""
    rules: dict[str, Any] = {}
    lost: dict[str, str] = {}
    for rule in policy.rules:
        at = state.rules[rule.name]
        inner, reason = _kept(rule, at)
        if reason is not None:
            lost[rule.name] = reason
        rules[rule.name] = {
            **saved.to_json(replace(at, inner=None)),
            "condition": conditions.to_json(at.condition),
            "inner": inner,
            **_kind(rule),
        }
    plain = {_KEYS.get(name, name): value for name, value in saved.to_json(replace(state, rules={})).items()}
    return {"version": 1, **plain, "rules": rules}, lost


_KEYS = {"given": "knobs"}
"""Where a field of ``RulesState`` has another name in checkpoints."""


def _kind(rule: Rule) -> dict[str, str]:
    """What a state of the rule is one of."""
    return {"action": type(rule.action).__name__, "remembers": rule.action.remembers}


def _kept(rule: Rule, at: RuleState) -> tuple[Any, str | None]:
    """The own state of a rule's intervention as JSON types. Where it would not come back as it is, ``None``, and why:
    the rest of a checkpoint must not be lost with it."""
    try:
        return answers.saved_state(rule.action, at.inner), None
    except Exception as error:
        said = f"{type(error).__name__}: {str(error)[:200]}"
        return None, f"its state cannot be kept ({said}); give it save and load"


def from_json(policy: Policy, found: Mapping[str, Any]) -> RulesState:
    """The state that ``to_json`` described. Rules that are new, or do something else now, begin anew."""
    given = found[_KEYS["given"]]
    rules = dict(start(policy, given).rules)
    for rule in policy.rules:
        was, kind = found["rules"].get(rule.name), _kind(rule)
        # What 0.1 wrote does not say what it remembers.
        if was is None or {name: was.get(name, kind[name]) for name in kind} != kind:
            continue
        condition, inner = conditions.from_json(rule.when, was["condition"]), rules[rule.name].inner
        if was["inner"] is not None:
            inner = rule.action.load(was["inner"])
        plain = {name: was[name] for name in was if name not in kind}
        rules[rule.name] = RuleState(**{**plain, "condition": condition, "inner": inner})
    known = {
        "rules": {},
        "given": given,
        "entropy_nats": saved.to_json(BaseMean.from_json(found["entropy_nats"])),
        "pending": [pending for pending in found["pending"] if pending["action"]["rule"] in rules],
        "waiting": [action for action in found["waiting"] if action["rule"] in rules],
    }
    return replace(saved.from_json(RulesState, {**found, **known}), rules=rules)


def _key(action: Action) -> bytes:
    return repr((action.action_id, action.knob, action.old, action.new, action.dry_run)).encode()


def _digest(before: int, *parts: bytes) -> int:
    """A running hash of all that was decided: equal on ranks that decided the same."""
    if not any(parts):
        return before
    made = hashlib.blake2b(before.to_bytes(8, "little"), digest_size=6)
    for part in parts:
        made.update(len(part).to_bytes(8, "little") + part)
    return int.from_bytes(made.digest(), "little")
