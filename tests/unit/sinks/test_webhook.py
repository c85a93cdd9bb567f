"""Where alerts are posted, what is posted there, and that nobody learns the address."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from webhook_server import serving

import rlmon
from rlmon.config import RLMonConfig
from rlmon.errors import ConfigError
from rlmon.monitor.journal import Journal
from rlmon.monitor.setting import Ranks
from rlmon.records import Finding, RunHeader, StepRecord
from rlmon.sinks.alerts import Alert
from rlmon.sinks.posting import Webhook, webhook_of
from rlmon.sinks.webhook import WebhookSink, message, post_test, run_name

SLACK = "https://hooks.slack.com/services/T0/B0/SECRET"
HOSTILE = "<!channel> <@U1> @everyone **b** `c` [x](https://evil.example) www.evil.example & _i_ <#C1>"


def hook(url: str, format: Any = "json") -> Webhook:
    return Webhook(url=url, format=format, is_local=True)


@pytest.mark.parametrize(
    ("url", "asked", "format"),
    [
        (SLACK, "", "slack"),
        ("https://discord.com/api/webhooks/1/SECRET", "", "discord"),
        ("https://canary.discord.com/api/webhooks/1/SECRET", "", "discord"),
        ("https://discordapp.com/api/webhooks/1/SECRET", "", "discord"),
        ("https://notdiscord.com/SECRET", "", "json"),
        ("https://discord.com.evil.example/SECRET", "", "json"),
        ("https://chat.example/hooks/SECRET", "Slack", "slack"),
        (SLACK, "json", "json"),
        ("http://127.0.0.1:8000/x", "", "json"),
        ("http://[::1]:8000/x", "", "json"),
        (f"  {SLACK}\n", "", "slack"),  # as a file of secrets has it
    ],
)
def test_the_format_is_asked_for_or_known_by_the_host(url: str, asked: str, format: str) -> None:
    webhook = webhook_of({"RLMON_WEBHOOK_URL": url, "RLMON_WEBHOOK_FORMAT": asked})
    assert webhook is not None
    assert webhook.format == format
    assert webhook.url == url.strip()
    assert webhook.is_local == ("127.0.0.1" in url or "::1" in url)
    assert "SECRET" not in f"{webhook!r} {webhook}"


@pytest.mark.parametrize("environ", [{}, {"RLMON_WEBHOOK_URL": " "}, {"RLMON_WEBHOOK_FORMAT": "slack"}])
def test_no_address_is_no_webhook(environ: dict[str, str]) -> None:
    assert webhook_of(environ) is None


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://chat.example/SECRET", "http address of another machine"),
        ("http://127.0.0.1.evil.example/SECRET", "http address of another machine"),
        ("http://localhost.evil.example/SECRET", "http address of another machine"),
        ("ftp://chat.example/SECRET", "no https address"),
        ("file:///SECRET", "no https address"),
        ("SECRET", "no https address"),
        ("https:///SECRET", "no https address"),
        ("https://me:SECRET@chat.example/x", "a name or a password"),
        ("https://chat.example:port/SECRET", "no address of a server"),
        ("https://[::1/SECRET", "no address of a server"),
        ("https://chat.example/SECRET\r\nX: y", "characters"),
        ("https://chat.example/SEC RET/SECRET", "characters"),
        ("https://chät.example/SECRET", "characters"),
    ],
)
def test_what_is_no_address_is_refused_without_showing_it(url: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as refused:
        webhook_of({"RLMON_WEBHOOK_URL": url})
    error: BaseException | None = refused.value
    assert "RLMON_WEBHOOK_URL" in str(error)
    while error is not None:  # nor by what came before it, which a traceback shows
        assert "SECRET" not in repr(error)
        error = error.__cause__ or error.__context__


def test_a_format_that_is_an_address_by_mistake_is_not_shown_either() -> None:
    with pytest.raises(ConfigError, match="must be json, slack or discord") as refused:
        webhook_of({"RLMON_WEBHOOK_URL": SLACK, "RLMON_WEBHOOK_FORMAT": SLACK})
    assert "SECRET" not in str(refused.value)


def test_the_variables_are_no_settings_and_others_of_ours_are_still_refused() -> None:
    config = RLMonConfig.from_env({"RLMON_WEBHOOK_URL": SLACK, "RLMON_WEBHOOK_FORMAT": "slack", "RLMON_ALPHA": ".5"})
    assert config.rlmon_alpha == 0.5
    assert "SECRET" not in json.dumps(config.to_dict())
    with pytest.raises(ConfigError, match=r"RLMON_WEBHOOK_UR\. Did you mean RLMON_WEBHOOK_URL\?") as refused:
        RLMonConfig.from_env({"RLMON_WEBHOOK_UR": SLACK})
    assert "SECRET" not in str(refused.value)


def alert(text: str = "Step 47: effective formats fell.", title: str = "rlmon FAIL: format-collapse") -> Alert:
    return Alert(severity="fail", detector="format-collapse", step=47, title=title, text=text)


RUN = {"id": "a-run", "name": "a-run", "attempt": 0}


def test_slack_shows_text_as_it_is() -> None:
    sent = json.loads(message("slack", "finding", alert(HOSTILE, HOSTILE), "n", {**RUN, "name": HOSTILE}, "fail"))
    assert not re.search("[<>]", sent["text"])
    assert not re.search(r"@\w|://", sent["text"])
    assert sent["text"].count("&lt;!channel&gt;") == 3
    assert {sent[name] for name in ("mrkdwn", "link_names", "unfurl_links", "unfurl_media")} == {False}
    # What Slack shows is what was meant, but for characters of no width.
    shown = sent["text"].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&").replace("\u200b", "")
    assert shown == f"{HOSTILE}\n{HOSTILE}\nRun {HOSTILE}"


def test_discord_shows_text_as_it_is_and_mentions_nobody() -> None:
    sent = json.loads(message("discord", "finding", alert(HOSTILE, HOSTILE), "n", {**RUN, "name": HOSTILE}, "fail"))
    assert sent["allowed_mentions"] == {"parse": []}
    assert sent["flags"] == 4
    title, text, run = sent["content"].split("\n")
    for line, meant in ((title[2:-2], HOSTILE), (text, HOSTILE), (run, f"Run {HOSTILE}")):
        assert not re.search(r"(?<!\\)[^\w\s\\]|(?<!\\)_", line)  # no mark without its backslash
        assert re.sub(r"\\(.)", r"\1", line) == meant


@pytest.mark.parametrize("mark", ["\x1b", "*", "x"])
def test_the_longest_message_fits_into_discord(
    finding: Callable[..., Finding], header: Callable[..., RunHeader], mark: str
) -> None:
    sink = WebhookSink(hook("http://127.0.0.1:9/x", "discord"), Path("/" + mark * 200))
    posted: list[bytes] = []
    sink.open(dataclasses.replace(header(), detectors={"parameters": {"rearm_records": 1}}))
    sink._outbox.put = posted.append  # type: ignore[method-assign]
    for step in (1, 2_000_000):
        sink.finding(finding(step=step, message=mark * 900, advice=mark * 900, detector=mark * 900))
    assert [len(json.loads(body)["content"]) <= 2_000 for body in posted] == [True, True]


def test_the_name_of_a_run_is_that_of_its_folder(tmp_path: Path) -> None:
    assert run_name(tmp_path / "seed-3" / "rlmon", "id") == "seed-3"
    assert run_name(tmp_path / "seed-4", "id") == "seed-4"
    assert run_name(None, "id") == "id"
    assert run_name(tmp_path / "a\x1b[2J" / "rlmon", "id") == "a\\x1b[2J"


def test_what_is_new_is_posted_and_the_end_of_a_run_that_alarmed(
    tmp_path: Path,
    finding: Callable[..., Finding],
    header: Callable[..., RunHeader],
    step: Callable[..., StepRecord],
) -> None:
    remarks: list[str] = []
    with serving() as server:
        sink = WebhookSink(hook(server.url), tmp_path / "seed-3" / "rlmon", remarks.append)
        sink.open(header())
        for number in range(1, 6):
            faults = {"runlog.rows": 2, "sinks": 0} if number > 3 else {"sinks": 0}
            sink.record(step(number, faults=faults), {})
            if number in (2, 3):
                sink.finding(finding(step=number, severity="warn"))
            if number == 5:
                sink.finding(finding(step=number, severity="fail"))
        sink.close()
    posted = [json.loads(body) for _, _, body in server.got]
    assert [(one["kind"], one["severity"], one["detector"], one["step"]) for one in posted] == [
        ("finding", "warn", "format-collapse", 2),
        ("fault", "warn", None, 4),
        ("finding", "fail", "format-collapse", 5),
        ("ended", "fail", None, 5),
    ]
    assert [one["verdict"] for one in posted] == ["warn", "warn", "fail", "fail"]
    assert [one["id"] for one in posted] == ["a-run-0-1", "a-run-0-2", "a-run-0-3", "a-run-0-4"]
    assert {json.dumps(one["run"]) for one in posted} == {json.dumps({**RUN, "name": "seed-3"})}
    assert posted[1]["text"] == "Step 4: a part of rlmon failed (runlog.rows). Training goes on."
    assert posted[3]["title"] == "rlmon FAIL: training ended"
    assert posted[3]["text"] == "Training ended at step 5. Since step 2: FAIL format-collapse."
    assert {headers["Content-Type"] for _, headers, _ in server.got} == {"application/json"}
    assert {headers["User-Agent"] for _, headers, _ in server.got} == {"rlmon"}  # Discord refuses that of urllib
    assert remarks == []


def test_a_healthy_run_posts_nothing_and_has_no_thread(
    finding: Callable[..., Finding], header: Callable[..., RunHeader], step: Callable[..., StepRecord]
) -> None:
    with serving() as server:
        sink = WebhookSink(hook(server.url))
        sink.open(header())
        sink.record(step(1), {})
        sink.close()
        assert sink._outbox._thread is None
    assert server.got == []


def test_a_run_that_took_no_step_does_not_end_in_an_alert(
    finding: Callable[..., Finding], header: Callable[..., RunHeader]
) -> None:
    with serving() as server:
        sink = WebhookSink(hook(server.url))
        sink.open(header())
        sink._alerts._count(finding())  # from before a resume
        sink.close()
    assert server.got == []


@pytest.mark.parametrize("format", ["json", "slack", "discord"])
def test_a_webhook_can_be_tried(format: Any) -> None:
    with serving(200, 404) as server:
        assert post_test(hook(server.url, format)).why_not is None
        assert post_test(hook(server.url, format)).why_not == "it answered 404"
    assert b"a test" in server.got[0][2]


def test_rank_0_alone_posts(tmp_path: Path, header: Callable[..., RunHeader], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLMON_WEBHOOK_URL", SLACK)
    config = RLMonConfig(rlmon_wandb=False, rlmon_trackio=False, rlmon_console=False)
    monitor = rlmon.Monitor(config, directory=tmp_path / "log", group_size=4)
    journal = Journal(config, Ranks(rank=1, world_size=2))
    journal.writer, journal.webhook = SimpleNamespace(path=tmp_path, header=header()), monitor.journal.webhook
    opened = []
    for one in (monitor.journal, journal):
        one.open_sinks()
        opened.append([type(sink) for sink in one.sinks])
    monitor.close()
    assert opened == [[WebhookSink], []]
