"""Rules in, actions out: a fold over training rounds and step records.

::

    state = start(policy, knobs={"beta": 0.0})
    state, effect = on_round(policy, state, table, views)     # what happens to the rows of a round
    state, actions = on_step(policy, state, record, findings) # what happens to the knobs

Everything here is a function of what all ranks share, so that every rank decides the same; ``state.digest`` folds in
whatever was decided, and ranks compare it before anything is applied that one rank alone must not do.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from rlmon import series
from rlmon.interventions import conditions, deferral, mode_marginal, quarantine, winsorise
from rlmon.interventions.actions import (
    Anchor,
    Defer,
    EntropyBonus,
    KLPenalty,
    ModeMarginal,
    Quarantine,
    ResetReference,
    RollBack,
    RoundTable,
    Stop,
    Winsorise,
)
from rlmon.interventions.base_mean import BaseMean
from rlmon.interventions.policy import Policy, Rule
from rlmon.records import Action, Finding, StepRecord

Level = float | str | None
SILENT_WINDOW = 3
"""Records whose share of silent groups is averaged before the KL penalty is suspended."""
SILENT_METRICS = ("rlmon/group/all_good", "rlmon/group/all_bad")
CRITIC_METRIC = "rlmon/value/loss"
"""In the records of trainers with a critic."""
PENDING_MOST = 256
"""Effects waited for at once; what comes on top is said to be not measured at the next step."""


@dataclass(frozen=True, kw_only=True)
class Effect:
    """What the rules do to the rows of one round; the identity where nothing acts."""

    factor_N: NDArray[np.float64]
    """0 for rows whose group is neutralised, else 1."""
    limit: float | None
    """Bound on the size of every advantage."""
    addition_N: NDArray[np.float64]
    actions: tuple[Action, ...] = ()
    """Decided here; they take effect with these rows."""

    def on(self, advantage_n: NDArray[np.float64], rows: slice = slice(None)) -> NDArray[np.float64]:
        """The advantages to train on, of these rows."""
        return steered(advantage_n, self.factor_N[rows], self.limit, self.addition_N[rows])

    @property
    def identity(self) -> bool:
        return self.limit is None and bool((self.factor_N == 1.0).all()) and not self.addition_N.any()


def steered(
    advantage: NDArray[np.float64],
    factor_n: NDArray[np.float64],
    limit: float | None,
    addition_n: NDArray[np.float64],
) -> NDArray[np.float64]:
    """``advantage`` [n] or [n, T] after the rules: neutralised, then bounded, then with the mode-marginal addition
    ([n], or [n, T] where ``mode_marginal.per_token`` spread it)."""
    shape = (-1,) + (1,) * (advantage.ndim - 1)
    kept = advantage * factor_n.reshape(shape)
    if limit is not None:
        kept = winsorise.winsorise(kept, limit)[0]
    addition = addition_n.reshape(shape) if addition_n.ndim == 1 else addition_n
    return np.asarray(kept + addition, dtype=np.float64)


@dataclass(frozen=True, kw_only=True)
class Pending:
    """An action whose effect is to be measured."""

    action: Action
    metric: str
    good: Literal["up", "down"]
    due_step: int


@dataclass(frozen=True, kw_only=True)
class RuleState:
    """Where one rule stands."""

    condition: Any
    met: bool = False
    level: float = 0.0
    """Value of the rule's knob; 1.0 and 0.0 where it is only on or off."""
    began_step: int | None = None
    changed_step: int | None = None
    suspended: bool = False
    """The KL penalty is held at 0, since rewards have no variance."""
    failed: str | None = None
    """Why the rule acts no more."""
    inner: Any = None
    """The fold of the action itself."""


@dataclass(frozen=True, kw_only=True)
class EngineState:
    """Where all rules stand; the same on every rank."""

    rules: Mapping[str, RuleState]
    knobs: Mapping[str, float]
    """Values when the run began: what a rule returns to."""
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


def start(policy: Policy, knobs: Mapping[str, float]) -> EngineState:
    """Before the first round. ``knobs``: ``beta`` and ``entropy_coef`` as the trainer was given them."""
    return EngineState(
        rules={
            rule.name: RuleState(
                condition=conditions.start(rule.when), inner=_inner_start(rule), level=_resting_level(rule, knobs)
            )
            for rule in policy.rules
        },
        knobs=dict(knobs),
    )


def _inner_start(rule: Rule) -> Any:
    action = rule.action
    if isinstance(action, ModeMarginal):
        return mode_marginal.start(action)
    if isinstance(action, Anchor):
        return mode_marginal.start(ModeMarginal(modes=action.modes))
    if isinstance(action, Quarantine):
        return quarantine.start(action)
    if isinstance(action, Defer):
        return deferral.start(action)
    return None


def _resting_level(rule: Rule, knobs: Mapping[str, float]) -> float:
    """The knob's value while the rule does not act."""
    if isinstance(rule.action, KLPenalty):
        return knobs.get("beta", 0.0)
    if isinstance(rule.action, EntropyBonus):
        return knobs.get("entropy_target", knobs.get("entropy_coef", 0.0))
    return 0.0


# -- rounds ------------------------------------------------------------------------------------------------------------


def on_round(
    policy: Policy, state: EngineState, table: RoundTable, views: Mapping[str, Any]
) -> tuple[EngineState, Effect]:
    """Fold one training round. ``views``: by rule name, what the ledger says of the table's prompts: for a quarantine
    which rows [N] are nearly impossible, for a deferral its ``deferral.LedgerView``."""
    rows = len(table)
    factor_N = np.ones(rows)
    addition_N = np.zeros(rows)
    limit: float | None = None
    actions: list[Action] = []
    rules = dict(state.rules)
    state = replace(state, scale=_scale(state.scale, table))
    for rule in policy.rules:
        at = rules[rule.name]
        settings, acting = rule.action, at.level > 0.0 and at.failed is None
        if isinstance(settings, Quarantine):
            judged, factor, found = quarantine.step(settings, at.inner, table, views[rule.name])
            at = replace(at, inner=judged)
            if acting and found:
                actions.append(_row_action(rule, table, "advantages", len(found), quarantine.describe(found)))
                factor_N = factor_N if rule.dry_run else factor_N * factor
        elif isinstance(settings, Winsorise):
            if acting and not rule.dry_run:
                limit = settings.limit if limit is None else min(limit, settings.limit)
        elif isinstance(settings, ModeMarginal | Anchor):
            kind = settings if isinstance(settings, ModeMarginal) else ModeMarginal(modes=settings.modes)
            at = replace(at, inner=mode_marginal.observe(kind, at.inner, table))
            if isinstance(settings, ModeMarginal) and acting and not rule.dry_run:
                addition_N = addition_N + state.scale * mode_marginal.addition(settings, at.inner, table, at.level)
        elif isinstance(settings, Defer):
            inner, changes = deferral.step(settings, at.inner, views[rule.name], table.round, acting=acting)
            at = replace(at, inner=inner)
            if changes:
                actions.append(_row_action(rule, table, "draws", changes.count, changes.describe()))
        rules[rule.name] = at
    # A neutralised group is out as a whole: a push on its modes would be a reward for nothing but them.
    addition_N = addition_N * factor_N
    digest = _digest(state.digest, factor_N.tobytes(), addition_N.tobytes(), repr(limit).encode(), *map(_key, actions))
    state = replace(state, rules=rules, digest=digest)
    for action in actions:
        state = _await_effect(policy, state, action, action.step)
    return state, Effect(factor_N=factor_N, limit=limit, addition_N=addition_N, actions=tuple(actions))


def _row_action(rule: Rule, table: RoundTable, knob: str, count: int, reason: str) -> Action:
    return _decided(rule, table.step, reason, knob=knob, new=f"{count}", mark=f"-r{table.round}")


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
        knob=knob_of(rule) if knob is None else knob,
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


# -- steps -------------------------------------------------------------------------------------------------------------


def on_step(
    policy: Policy, state: EngineState, record: StepRecord, findings: Sequence[Finding]
) -> tuple[EngineState, tuple[Action, ...]]:
    """Fold one step's record and its findings; the actions decided (phase ``decided``) and effects now ``measured``."""
    state = _remember(policy, state, record)
    state, measured = _measure(state, record.step)
    decided: list[Action] = []
    for rule in policy.rules:
        at = state.rules[rule.name]
        condition, met, why, finding_id = conditions.step(rule.when, at.condition, record, findings, rule.hysteresis)
        at, action = _judge(rule, replace(at, condition=condition, met=met), state, record, why, finding_id)
        state = replace(state, rules={**state.rules, rule.name: at})
        if action is not None:
            decided.append(action)
            state = _await_effect(policy, state, action, record.step, findings)
    state = replace(
        state,
        digest=_digest(state.digest, *map(_key, decided)),
        waiting=(*state.waiting, *(action for action in decided if not action.dry_run)),
    )
    return state, (*measured, *decided)


def _judge(
    rule: Rule, at: RuleState, state: EngineState, record: StepRecord, why: str, finding_id: str | None
) -> tuple[RuleState, Action | None]:
    """What the rule does now: its new state, and an action where its knob moves."""
    if at.failed is not None:
        return at, None
    rest = _resting_level(rule, state.knobs)
    if isinstance(rule.action, KLPenalty):
        at, switched = _suspend(rule.action, at, state, rest)
        if switched is not None:
            old = at.level if at.suspended else 0.0
            new = 0.0 if at.suspended else at.level
            return replace(at, changed_step=record.step), _action(rule, record, old, new, switched, finding_id)
        if at.suspended:
            return at, None
    if at.changed_step is not None and record.step - at.changed_step < rule.cool_off_steps:
        return at, None
    level, reason = _next_level(rule, at, state, rest, why)
    if level is None or level == at.level:
        return at, None
    began = at.began_step
    if at.level == rest:
        began = record.step
    elif level == rest:
        began = None
    action = _action(rule, record, at.level, level, reason, finding_id)
    return replace(at, level=level, began_step=began, changed_step=record.step), action


def _next_level(rule: Rule, at: RuleState, state: EngineState, rest: float, why: str) -> tuple[float | None, str]:
    settings, level = rule.action, at.level
    reason = why if at.met else f"released: {why}"
    if isinstance(settings, KLPenalty):
        low, high = max(settings.bounds[0], rest), max(settings.bounds[1], rest)
        if at.met:
            return min(high, max(settings.start, _tidy(level * settings.factor))), reason
        lower = _tidy(level / settings.factor)
        return (low if lower < max(settings.start, low) else lower), reason
    if isinstance(settings, EntropyBonus) and "entropy_target" in state.knobs:
        base_nats = state.entropy_nats.mean
        return (rest if base_nats is None or not at.met else round(settings.target * base_nats, 6)), reason
    if isinstance(settings, EntropyBonus):
        low, high = max(settings.bounds[0], rest), max(settings.bounds[1], rest)
        if at.met:
            return min(high, _tidy(level + settings.increment)), reason
        return max(low, _tidy(level - settings.increment)), reason
    if isinstance(settings, ModeMarginal):
        if not at.met:
            return 0.0, reason
        if level == 0.0:
            return settings.kappa, reason
        steered = mode_marginal.control(settings, at.inner, level)
        return None if steered is None else _tidy(steered), mode_marginal.describe(settings, at.inner)
    if isinstance(settings, Anchor):
        return (settings.weight if at.met else 0.0), reason
    if isinstance(settings, Winsorise | Quarantine | Defer):
        return (1.0 if at.met else 0.0), reason
    # Stop, roll back and reset happen once for each time that their condition becomes true.
    return (1.0 if at.met else 0.0), reason


def _tidy(level: float) -> float:
    """A level that was raised and lowered as often is where it began, and reads well."""
    return round(level, 9)


def _suspend(settings: KLPenalty, at: RuleState, state: EngineState, rest: float) -> tuple[RuleState, str | None]:
    """Hold the penalty at 0 while nearly no group has reward variance, and return to its level afterwards."""
    if len(state.silent) < SILENT_WINDOW or at.level <= rest:
        return replace(at, suspended=at.suspended and at.level > rest), None
    share = sum(state.silent) / len(state.silent)
    if not at.suspended and share >= settings.off_when_silent:
        return replace(at, suspended=True), f"{share:.0%} of groups have no reward variance: the penalty is suspended"
    if at.suspended and share < settings.off_when_silent - 0.05:
        return replace(at, suspended=False), f"{1 - share:.0%} of groups have reward variance again"
    return at, None


def knob_of(rule: Rule) -> str:
    """Name of what a rule turns, as actions call it."""
    settings = rule.action
    if isinstance(settings, KLPenalty):
        return "beta"
    if isinstance(settings, EntropyBonus):
        return "entropy bonus"
    if isinstance(settings, ModeMarginal):
        return f"kappa ({settings.modes})"
    if isinstance(settings, Winsorise):
        return "advantage_limit"
    if isinstance(settings, Quarantine):
        return "quarantine"
    if isinstance(settings, Defer):
        return "deferral"
    if isinstance(settings, Anchor):
        return "anchor_weight"
    return "reference" if isinstance(settings, ResetReference) else "training"


def _action(
    rule: Rule, record: StepRecord, old: Level, new: Level, reason: str, finding_id: str | None
) -> Action | None:
    settings = rule.action
    if isinstance(settings, ResetReference | Stop | RollBack):
        if new != 1.0:  # released: nothing to take back
            return None
        old = None
        new = {ResetReference: "the present policy", Stop: "stop", RollBack: "roll back"}[type(settings)]
    elif isinstance(settings, Winsorise):
        old, new = (None, settings.limit) if new else (settings.limit, None)
    elif isinstance(settings, Quarantine | Defer):
        old, new = ("off", "on") if new else ("on", "off")
    return _decided(rule, record.step, reason, old=old, new=new, finding_id=finding_id)


def take_waiting(state: EngineState) -> tuple[EngineState, tuple[Action, ...]]:
    """The actions to apply now."""
    return replace(state, waiting=()), state.waiting


def notice(rule: Rule, step: int, reason: str) -> Action:
    """An action of no decision of its own, for the log: something befell the rule."""
    return _decided(rule, step, reason, mark="-x")


def give_up(state: EngineState, names: Collection[str], reason: str) -> EngineState:
    """The named rules act no more, what they held is at rest, and nothing of theirs is waited for."""
    rules = {
        name: replace(at, failed=reason, level=0.0, began_step=None) if name in names else at
        for name, at in state.rules.items()
    }
    return replace(
        state,
        rules=rules,
        waiting=tuple(action for action in state.waiting if action.rule not in names),
        pending=tuple(pending for pending in state.pending if pending.action.rule not in names),
    )


# -- effects -----------------------------------------------------------------------------------------------------------

MEASURED_BY: Mapping[type[Any], tuple[str, Literal["up", "down"]]] = {
    KLPenalty: ("rlmon/kl/mean", "down"),
    EntropyBonus: ("rlmon/entropy/mean", "up"),
    ModeMarginal: ("rlmon/format/effective_correct", "up"),
    Anchor: ("rlmon/format/effective", "up"),
    Quarantine: ("rlmon/group/lone_success_weight", "down"),
    Winsorise: ("rlmon/group/lone_success_weight", "down"),
    Defer: ("rlmon/group/all_bad", "down"),
    ResetReference: ("rlmon/health/reward_mean", "up"),
}
"""By which metric an action is judged where its rule's condition names none, and which way is good."""


def measured_by(rule: Rule, finding: Finding | None = None) -> tuple[str, Literal["up", "down"]] | None:
    """The metric that the rule wants to move, and which way; ``None`` where nothing comes after it."""
    if isinstance(rule.action, Stop | RollBack):
        return None
    named = conditions.metric_of(rule.when)
    if named is not None:
        return named
    if finding is not None and finding.value is not None and finding.baseline is not None:
        return finding.metric, ("up" if finding.value < finding.baseline else "down")
    return MEASURED_BY[type(rule.action)]


def _remember(policy: Policy, state: EngineState, record: StepRecord) -> EngineState:
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
        silent = (*silent, sum(share for share in shares if share is not None))[-SILENT_WINDOW:]
    entropy_nats = state.entropy_nats.after(record, record.metrics.get("rlmon/entropy/mean"))
    return replace(state, history=history, silent=silent, entropy_nats=entropy_nats)


def _await_effect(
    policy: Policy, state: EngineState, action: Action, step: int, findings: Sequence[Finding] = ()
) -> EngineState:
    if action.dry_run:
        return state
    rule = policy.rule(action.rule)
    finding = next((finding for finding in findings if finding.finding_id == action.finding_id), None)
    by = measured_by(rule, finding)
    if by is None:
        return state
    pending = Pending(action=action, metric=by[0], good=by[1], due_step=step + rule.measure_after_steps)
    return replace(state, pending=(*state.pending, pending))


def _measure(state: EngineState, step: int) -> tuple[EngineState, tuple[Action, ...]]:
    """Judge the actions that are due: the mean of the window after against the window before."""
    due = [pending for pending in state.pending if pending.due_step <= step]
    rest = tuple(pending for pending in state.pending if pending.due_step > step)
    rest, above = rest[:PENDING_MOST], rest[PENDING_MOST:]
    if not due and not above:
        return state, ()
    late = unmeasured(replace(state, pending=above), step, f"{PENDING_MOST} other effects were waited for")
    return replace(state, pending=rest), (*(_effect(pending, state) for pending in due), *late)


def _effect(pending: Pending, state: EngineState) -> Action:
    action, began = pending.action, pending.action.step
    span = pending.due_step - began
    values = state.history.get(pending.metric, ())
    before = np.array([value for step, value in values if began - span < step <= began])
    after = np.array([value for step, value in values if began < step <= pending.due_step])

    def judged(effect: Literal["helped", "no_effect", "harmed", "not_measured"], reason: str) -> Action:
        return replace(action, phase="measured", step=pending.due_step, effect=effect, effect_reason=reason)

    if min(len(before), len(after)) < series.LEAST_VALUES:
        return judged(
            "not_measured",
            f"{pending.metric} was measured {len(before)} times in the {span} steps before and {len(after)} times in "
            f"those after; {series.LEAST_VALUES} each are needed (measure_after_steps)",
        )
    moved = series.shift(before, after)
    said = f"{pending.metric} {before.mean():.4g} -> {after.mean():.4g} over {span} steps"
    alike = f"neighbours correlate by {float(moved.correlation):.2f}"
    if not moved.enough:
        return judged(
            "not_measured",
            f"{said}: too short to judge, for {alike}, so that {min(len(before), len(after))} values weigh as much as "
            f"{float(moved.independent):.1f} independent ones; {series.LEAST_INDEPENDENT:g} are needed "
            "(measure_after_steps)",
        )
    effect: Literal["helped", "no_effect", "harmed"] = "no_effect"
    if moved.distinct:
        effect = "helped" if (moved.change > 0) == (pending.good == "up") else "harmed"
    error = f"standard error {float(moved.error):.2g}, {alike}"
    return judged(effect, f"{said} ({error}; before and after, no control)")


def unmeasured(state: EngineState, step: int, reason: str, names: Collection[str] | None = None) -> tuple[Action, ...]:
    """What will not be measured any more, of the named rules or of all: said so."""
    return tuple(
        replace(p.action, phase="measured", step=step, effect="not_measured", effect_reason=reason)
        for p in state.pending
        if names is None or p.action.rule in names
    )


# -- state -------------------------------------------------------------------------------------------------------------


def to_json(policy: Policy, state: EngineState) -> dict[str, Any]:
    """The state as JSON types; floats survive exactly."""
    rules = {}
    for rule in policy.rules:
        at = state.rules[rule.name]
        rules[rule.name] = {
            **{f.name: getattr(at, f.name) for f in dataclasses.fields(at)},
            "condition": conditions.to_json(at.condition),
            "inner": None if at.inner is None else at.inner.to_json(),
            "action": type(rule.action).__name__,
        }
    return {
        "version": 1,
        "rules": rules,
        "knobs": dict(state.knobs),
        "history": {name: [list(entry) for entry in values] for name, values in state.history.items()},
        "silent": list(state.silent),
        "entropy_nats": state.entropy_nats.to_json(),
        "scale": state.scale,
        "pending": [dataclasses.asdict(pending) for pending in state.pending],
        "waiting": [dataclasses.asdict(action) for action in state.waiting],
        "digest": state.digest,
    }


def from_json(policy: Policy, saved: Mapping[str, Any]) -> EngineState:
    """The state that ``to_json`` described. Rules that are new, or do something else now, begin anew."""
    fresh = start(policy, saved["knobs"])
    rules = dict(fresh.rules)
    for rule in policy.rules:
        was = saved["rules"].get(rule.name)
        if was is None or was["action"] != type(rule.action).__name__:
            continue
        plain = {k: v for k, v in was.items() if k not in ("condition", "inner", "action")}
        inner = None if was["inner"] is None else type(rules[rule.name].inner).from_json(was["inner"])
        rules[rule.name] = RuleState(condition=conditions.from_json(rule.when, was["condition"]), inner=inner, **plain)
    known = {rule.name for rule in policy.rules}
    return EngineState(
        rules=rules,
        knobs=dict(saved["knobs"]),
        history={name: tuple((int(s), float(v)) for s, v in values) for name, values in saved["history"].items()},
        silent=tuple(saved["silent"]),
        entropy_nats=BaseMean.from_json(saved["entropy_nats"]),
        scale=float(saved["scale"]),
        pending=tuple(
            Pending(**{**p, "action": Action(**p["action"])}) for p in saved["pending"] if p["action"]["rule"] in known
        ),
        waiting=tuple(Action(**action) for action in saved["waiting"] if action["rule"] in known),
        digest=int(saved["digest"]),
    )


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
