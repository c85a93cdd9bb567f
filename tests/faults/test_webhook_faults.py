"""A webhook goes wrong while a run trains: no step waits, the end waits a little, and what failed is named once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from made_header import made_header
from made_records import made_finding, made_step
from webhook_server import Does, serving

from rlmon.sinks import posting
from rlmon.sinks.posting import MOST_WAITING, Answer, Outbox, Webhook, poster
from rlmon.sinks.webhook import CLOSE_SECONDS, WebhookSink

SCRIPT = Path(__file__).with_name("posting_and_ending.py")


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(posting, "PAUSES_SECONDS", (0.01, 0.01))


def posted(url: str) -> tuple[str | None, int]:
    """Why a message that is posted to this address does not arrive, and how many are left."""
    box = Outbox(poster(Webhook(url=url, format="json", is_local=True)))
    box.put(b"{}")
    left = box.close(120)
    return box.why_not, left


@pytest.mark.parametrize(
    ("answers", "requests", "why_not"),
    [
        ((200,), 1, None),
        ((204,), 1, None),
        ((500, 200), 2, None),
        ((503, "reset", 200), 3, None),
        ((429, 200), 2, None),
        (("reset", 200), 2, None),
        ((500, 502, 503), 3, "it answered 503"),
        (("reset", "reset", "reset"), 3, "it broke off the connection"),
        ((404,), 1, "it answered 404"),
        ((400, 200), 1, "it answered 400"),
    ],
)
def test_what_passes_is_tried_again(answers: tuple[Does, ...], requests: int, why_not: str | None) -> None:
    with serving(*answers) as server:
        assert posted(server.url) == (why_not, 0)
    assert len(server.got) == requests
    assert len({body for _, _, body in server.got}) == 1


@pytest.mark.parametrize(
    ("header", "pause"), [("2", 2.0), ("86400", 30.0), ("tomorrow", 0.01), ("-3", 0.01), ("nan", 0.01), ("", 0.01)]
)
def test_the_server_says_when_to_try_again_within_reason(
    monkeypatch: pytest.MonkeyPatch, header: str, pause: float
) -> None:
    slept: list[float] = []
    monkeypatch.setattr(posting.time, "sleep", slept.append)
    with serving(429, headers={"Retry-After": header}) as server:
        assert posted(server.url) == (None, 0)
    assert slept == [pause]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(status: int) -> None:
    with serving() as elsewhere, serving(status, headers={"Location": elsewhere.url}) as server:
        assert posted(server.url) == (f"it answered {status}, a redirect, which is not followed", 0)
    assert len(server.got) == 1
    assert elsewhere.got == []


def test_words_for_a_server_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving() as server:
        gone = server.url
    assert posted(gone) == ("it refuses connections", 0)
    assert posted("https://name-that-is.invalid/SECRET") == ("the name of its host is not known", 0)
    with serving() as plain:
        assert posted(plain.url.replace("http://", "https://")) == ("no safe connection could be made", 0)
    monkeypatch.setattr(posting, "ANSWER_SECONDS", 0.1)
    with serving("stall", "stall", "stall") as server:
        assert posted(server.url) == ("no answer within 0 s", 0)
        assert len(server.got) == 3
    # urllib's own words for this one quote the path.
    assert posted("http://127.0.0.1:9/SECRET\x01") == ("it cannot be reached (InvalidURL)", 0)


def test_nobody_waits_for_a_server_that_is_silent_and_the_oldest_make_room() -> None:
    remarks: list[str] = []
    with serving("stall") as server:
        sink = WebhookSink(Webhook(url=server.url, format="json", is_local=True), None, remarks.append)
        sink.open(made_header())
        sink.finding(made_finding(detector="d0"))
        server.wait_for(1)
        # The server answers nothing while all this returns.
        for number in range(1, MOST_WAITING + 6):
            sink.record(made_step(number), {})
            sink.finding(made_finding(detector=f"d{number}", step=number))
        assert len(server.got) == 1
        assert len(sink._outbox._waiting) == MOST_WAITING
        assert json.loads(sink._outbox._waiting[0])["detector"] == "d6"
        began = time.monotonic()
        sink.close()
        assert CLOSE_SECONDS - 0.1 < time.monotonic() - began < CLOSE_SECONDS + 5
    said = f"an alert did not reach the webhook (json): more than {MOST_WAITING} were waiting"
    assert remarks == [f"{said}. Training goes on; this is said once"]


def test_an_alert_that_is_late_is_named_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlmon.sinks.webhook.CLOSE_SECONDS", 0.2)
    remarks: list[str] = []
    with serving("stall") as server:
        sink = WebhookSink(Webhook(url=server.url, format="slack", is_local=True), None, remarks.append)
        sink.open(made_header())
        sink.record(made_step(1), {})
        sink.finding(made_finding())
        sink.close()
    assert remarks == [
        "an alert did not reach the webhook (slack): no answer 0 s after the end. Training goes on; this is said once"
    ]


def test_one_failure_is_named_while_training_and_later_alerts_are_still_posted() -> None:
    remarks: list[str] = []
    with serving(404, 403) as server:
        sink = WebhookSink(Webhook(url=server.url, format="discord", is_local=True), None, remarks.append)
        sink.open(made_header())
        for number in range(1, 5):
            sink.record(made_step(number), {})
            sink.finding(made_finding(detector=f"d{number}"))
            server.wait_for(number)
            deadline = time.monotonic() + 10
            while sink._outbox._is_posting and time.monotonic() < deadline:
                time.sleep(0.01)
        sink.close()
    assert len(server.got) == 5
    said = "an alert did not reach the webhook (discord): it answered 404"
    assert remarks == [f"{said}. Training goes on; this is said once"]


def test_what_posts_may_never_end_the_thread() -> None:
    """Twin of the above: an Outbox takes many, in their order, whatever became of those before."""
    tried: list[bytes] = []

    def post(body: bytes) -> Answer:
        tried.append(body)
        return Answer(why_not="no") if body == b"1" else Answer()

    box = Outbox(post)
    for number in range(4):
        box.put(str(number).encode())
    assert box.close(10) == 0
    assert tried == [b"0", b"1", b"2", b"3"]
    assert box.why_not == "no"
    assert not box._thread.is_alive()  # type: ignore[union-attr]


@pytest.mark.parametrize("how", ["ends", "interrupted", "forks"])
def test_a_process_ends_though_the_server_is_silent(how: str) -> None:
    with serving("stall") as server:
        process = subprocess.Popen(
            [sys.executable, str(SCRIPT), how],
            env={**os.environ, "RLMON_WEBHOOK_URL": server.url},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        server.wait_for(1, 60)
        if how == "interrupted":
            process.send_signal(2)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    waited, ended = map(float, out.split())
    assert waited < CLOSE_SECONDS + 2
    assert time.time() - ended < 5  # a thread that held it would have for 30 s
    assert err.count("an alert did not reach the webhook") == 1
    assert "SECRET" not in out + err
    assert "Traceback" not in err
