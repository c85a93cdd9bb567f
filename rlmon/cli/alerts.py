"""``rlmon alerts``: whether alerts are posted to a webhook, and whether it takes them."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from rlmon.cli.printing import USAGE_OR_UNREADABLE, note, say
from rlmon.config import WEBHOOK_URL
from rlmon.errors import ConfigError


def alerts(
    test: Annotated[bool, typer.Option("--test", help="Post a test alert to it, once.")] = False,
) -> None:
    """Say whether the environment sets a webhook for alerts, and in whose format; with --test post one there.

    The address is read from RLMON_WEBHOOK_URL alone and never shown. RLMON_WEBHOOK_FORMAT is json, slack or discord,
    where the host does not tell. Exit code 2 where the test alert is not taken.

    \b
    export RLMON_WEBHOOK_URL=https://hooks.slack.com/services/...
    rlmon alerts --test
    """
    from rlmon.sinks.posting import webhook_of
    from rlmon.sinks.webhook import post_test

    webhook = webhook_of(os.environ)
    if webhook is None:
        how = f"Type: export {WEBHOOK_URL}=https://..."
        if test:
            raise ConfigError(f"No webhook is set, so there is nothing to try. {how}")
        say(f"No webhook is set. {how}")
        return
    if not test:
        say(f"A webhook is set ({webhook.format}). To try it: rlmon alerts --test")
        return
    why_not = post_test(webhook).why_not
    if why_not is not None:
        note(f"rlmon: The webhook ({webhook.format}) in {WEBHOOK_URL} did not take the test alert: {why_not}.")
        raise typer.Exit(USAGE_OR_UNREADABLE)
    say(f"The webhook ({webhook.format}) took a test alert. Look for it there.")
