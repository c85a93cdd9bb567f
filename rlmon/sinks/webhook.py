"""Alerts to a webhook: Slack, Discord, or JSON for a server of one's own.

What a run says is hostile there too: nothing of it is markup, mentions nobody and unfolds no link.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from rlmon.console import say
from rlmon.printable import one_line, several
from rlmon.records import Finding, Histogram, RunHeader, StepRecord
from rlmon.sinks import Sink
from rlmon.sinks.alerts import Alert, Alerts
from rlmon.sinks.posting import Answer, Format, Outbox, Webhook, poster

MESSAGE_VERSION = 1
"""Of the fields of a message in JSON."""
CLOSE_SECONDS = 3.0
"""Longest that the end of training waits for what is on its way."""
MAX_NAME_CHARACTERS = 80

Kind = Literal["finding", "ended", "fault", "test"]


class WebhookSink(Sink):
    """Posts what is new in what detectors say; that a part of the monitor failed, once; and what a run with a warning
    or a failure came to.

    ``log``: the run directory, where a run that goes on finds what was told before, and whose name stands in messages.
    ``remark`` is told once that an alert did not arrive.
    """

    _outbox: Outbox[bytes]

    def __init__(self, webhook: Webhook, log: Path | None = None, remark: Callable[[str], None] = say) -> None:
        self._webhook, self._log, self._remark = webhook, log, remark
        self._alerts = Alerts(log)
        self._run: dict[str, Any] = {}
        self._step = self._posted = 0
        self._fault_posted = self._remarked = False

    def open(self, header: RunHeader) -> None:
        """Take which run it is, and of one that goes on what was told before."""
        self._alerts.open(header)
        self._outbox = Outbox(poster(self._webhook))
        self._run = {"id": header.run_id, "name": run_name(self._log, header.run_id), "attempt": header.attempt}

    def record(self, step: StepRecord, histograms: Mapping[str, Histogram]) -> None:
        """Post the first fault of the monitor itself, and remark the first alert that did not arrive."""
        self._step = step.step
        failed = sorted(place for place, count in step.faults.items() if count)
        if failed and not self._fault_posted:
            self._fault_posted = True
            text = f"Step {step.step}: a part of rlmon failed ({one_line(several(failed, 5))}). Training goes on."
            title = "rlmon FAULT: a part of rlmon failed"
            self._put("fault", Alert(severity="warn", detector=None, step=step.step, title=title, text=text))
        self._remark_once(self._outbox.why_not)

    def judged(self) -> None:
        self._alerts.judged = True

    def finding(self, finding: Finding) -> None:
        """Post it where it says something new."""
        alert = self._alerts.take(finding)
        if alert is not None:
            self._put("finding", alert)

    def close(self) -> None:
        """Post what the run came to, where there was a warning or a failure, and wait a little for what is on its
        way."""
        ended = self._alerts.ended(self._step) if self._step else None
        if ended is not None:
            self._put("ended", ended)
        left = self._outbox.close(CLOSE_SECONDS)
        late = f"no answer {CLOSE_SECONDS:.0f} s after the end" if left else None
        self._remark_once(self._outbox.why_not or late)

    def _put(self, kind: Kind, alert: Alert) -> None:
        self._posted += 1
        number = f"{self._run.get('id')}-{self._run.get('attempt')}-{self._posted}"
        self._outbox.put(message(self._webhook.format, kind, alert, number, self._run, self._alerts.verdict))

    def _remark_once(self, why_not: str | None) -> None:
        if why_not is not None and not self._remarked:
            self._remarked = True
            where = f"the webhook ({self._webhook.format})"
            self._remark(f"an alert did not reach {where}: {why_not}. Training goes on; this is said once")


def post_test(webhook: Webhook) -> Answer:
    """What becomes of a test alert, tried once."""
    test = Alert(
        severity="note",
        detector=None,
        step=0,
        title="rlmon: a test",
        text="Alerts of runs will look like this. Nothing happened to a run.",
    )
    run = {"id": "test", "name": "test", "attempt": 0}
    return poster(webhook)(message(webhook.format, "test", test, "test", run, "pass"))


def run_name(log: Path | None, run_id: str) -> str:
    """What people call the run: the name of its folder, of which ``rlmon`` is only the part for the log."""
    if log is None:
        return run_id
    folder = log.resolve()
    return one_line((folder.parent if folder.name == "rlmon" else folder).name or run_id, MAX_NAME_CHARACTERS)


def message(format: Format, kind: Kind, alert: Alert, number: str, run: Mapping[str, Any], verdict: str) -> bytes:
    """The alert as what is posted. ``number`` is its own, and the same in each try; ``verdict``: of the run so far."""
    name = f"Run {run['name']}"
    fields: dict[str, Any]
    if format == "slack":
        # Text there is plain, nothing in it is linked or unfolded, and there is no @ that a name follows.
        text = _slack("\n".join((alert.title, alert.text, name)))
        fields = {"text": text, "mrkdwn": False, "link_names": False, "unfurl_links": False, "unfurl_media": False}
    elif format == "discord":
        text = f"**{_discord(alert.title)}**\n{_discord(alert.text)}\n{_discord(name)}"
        fields = {"content": text, "allowed_mentions": {"parse": []}, "flags": 4}  # 4: no previews of links
    else:
        fields = {
            "schema_version": MESSAGE_VERSION,
            "tool": "rlmon",
            "id": number,
            "kind": kind,
            "severity": alert.severity,
            "detector": alert.detector,
            "step": alert.step,
            "title": alert.title,
            "text": alert.text,
            "verdict": verdict,
            "run": dict(run),
        }
    return json.dumps(fields).encode("ascii")


def _slack(text: str) -> str:
    for what, instead in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("@", "@\u200b"), ("://", ":\u200b//")):
        text = text.replace(what, instead)
    return text


def _discord(text: str) -> str:
    """Every mark with a backslash before it: none of them means anything then."""
    return "".join(one if one.isalnum() or one.isspace() else f"\\{one}" for one in text)
