"""Three rules on the server of W&B, which speak while nobody looks: by hand only, and through its public API."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from rlmon.asking import Place, asking
from rlmon.errors import TrackerError


@dataclass(frozen=True)
class Rule:
    """Speaks when the mean of the last values of a metric crosses a line."""

    name: str
    metric: str
    over: int
    """Values that are averaged."""
    side: Literal["above", "below"]
    line: float
    says: str
    is_grave: bool


RULES = (
    Rule("FAIL", "rlmon/detectors_failed", 1, "above", 0.0, "a detector of rlmon says FAIL", True),
    Rule(
        "formats below the line", "rlmon/format/effective_ratio_to_base", 5, "below", 0.6,
        "fewer than 60 % of the base's formats are in use (mean of 5 steps)", True,
    ),
    Rule("faults", "rlmon/faults", 1, "above", 0.0, "a part of the monitor failed; training goes on", False),
)  # fmt: skip


def make(place: Place) -> list[str]:
    """Make those of the rules that are not there: what was done, a line each.

    They go to the first Slack channel that the entity gave to W&B, else to its first webhook. Raises ``TrackerError``
    where there is neither, or where W&B cannot be asked or refuses, and ``MissingExtraError`` without its packages.
    """
    with asking(place):
        import wandb
        from wandb.automations import OnRunMetric

        api = wandb.Api(timeout=10)
        scope = api.project(name=place.project, entity=place.entity)
        if not scope.id:
            raise ValueError(f"project {place} not found")
        there = {automation.name for automation in api.automations(entity=place.entity)}
        slack = next(iter(api.slack_integrations(entity=place.entity)), None)
        webhook: Any = None if slack else next(iter(api.webhook_integrations(entity=place.entity)), None)
        if slack is None and webhook is None:
            raise TrackerError(
                f"W&B has nobody to tell: {place.entity} has no Slack channel and no webhook. Add one in its settings "
                f"(https://wandb.ai/{place.entity}/settings, Integrations), then type this again."
            )
        done = []
        for rule in RULES:
            name = f"rlmon v1: {rule.name} ({place.project})"
            if name in there:
                done.append(f"The rule {name!r} is there already, and left as it is.")
                continue
            event = OnRunMetric(scope=scope, filter=_condition(rule))
            api.create_automation(event >> _action(rule, place, slack, webhook), name=name, description=rule.says)
            to = f"#{slack.channel_name.lstrip('#')} in Slack" if slack else f"the webhook {webhook.name!r}"
            done.append(f"The rule {name!r} is made and tells {to}.")
        return done


def _condition(rule: Rule) -> Any:
    from wandb.automations import RunEvent

    value: Any = RunEvent.metric(rule.metric)
    if rule.over > 1:
        value = value.avg(rule.over)
    return value.gt(rule.line) if rule.side == "above" else value.lt(rule.line)


def _action(rule: Rule, place: Place, slack: Any, webhook: Any) -> Any:
    from wandb.automations import SendNotification, SendWebhook

    text = f"{place}: {rule.says}."
    if slack is not None:
        return SendNotification.from_integration(
            slack, title=f"rlmon: {rule.name}", text=text, level="ERROR" if rule.is_grave else "WARN"
        )
    return SendWebhook.from_integration(webhook, payload={"text": f"rlmon: {text}", "content": f"rlmon: {text}"})
