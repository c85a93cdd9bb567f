"""docs/alerts.md shows what is really posted, and says what really happens."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, get_args

from made_header import made_header
from made_records import made_finding

from rlmon.detectors import DETECTORS, Roster
from rlmon.sinks import posting, webhook
from rlmon.sinks.alerts import Alerts

PAGE = (Path(__file__).parents[2] / "docs" / "alerts.md").read_text(encoding="utf-8")
RUN = {"id": "4f3c2a1b", "name": "seed-3", "attempt": 0}


def posted(format: Any) -> dict[str, Any]:
    (drift,) = (spec for spec in DETECTORS if spec.id == "kl-drift")
    told = drift.sentence(drift.statistics[0], base="0", now="0.684")
    alerts = Alerts()
    alerts.open(made_header())
    finding = made_finding(
        detector="kl-drift", step=15, message=f"kl-drift: {told} (line 0.3, a prior).", advice=drift.advice
    )
    alert = alerts.take(finding)
    assert alert is not None
    fields: dict[str, Any] = json.loads(webhook.message(format, "finding", alert, "4f3c2a1b-0-1", RUN, alerts.verdict))
    return fields


def test_the_example_is_what_is_posted() -> None:
    (shown,) = re.findall(r"```json\n(.*?)```", PAGE, flags=re.DOTALL)
    assert shown == json.dumps(posted("json"), indent=2) + "\n", "copy this into docs/alerts.md"
    lines = posted("slack")["text"]
    assert f"```\n{lines}\n```" in PAGE


def test_the_page_says_what_holds() -> None:
    for kind in get_args(webhook.Kind):
        assert f"`{kind}`" in PAGE
    for format in posting.FORMATS:
        assert f"`{format}`" in PAGE
    first, second = posting.PAUSES_SECONDS
    text = " ".join(PAGE.split())
    for said in (
        f"A try waits {posting.ANSWER_SECONDS:.0f} s for the server",
        f"two more, after {first:.0f} and {second:.0f} s or when the server says ({posting.MOST_PAUSE_SECONDS:.0f} s",
        f"At most {posting.MOST_WAITING} alerts wait",
        f"{webhook.CLOSE_SECONDS:.0f} s are waited",
        f"armed again after {Roster().defaults['rearm_records']} steps in a row",
    ):
        assert said in text, said
