"""A webhook's address and how something is posted there, from a thread of its own and in bounded memory.

The address is a secret, since whoever has it can write there: it comes from the environment alone, no text of an error
here is that of a library (some quote the address), and nothing that is made from it is logged.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar, cast
from urllib.parse import urlsplit

from rlmon.config import WEBHOOK_FORMAT, WEBHOOK_URL
from rlmon.errors import ConfigError

Message = TypeVar("Message")
Format = Literal["json", "slack", "discord"]
FORMATS: tuple[Format, ...] = ("json", "slack", "discord")
HOSTS: Mapping[str, Format] = {
    "hooks.slack.com": "slack",
    "hooks.slack-gov.com": "slack",
    "discord.com": "discord",
    "discordapp.com": "discord",
}
"""Whose format is known by the host; those below them are alike."""

ANSWER_SECONDS = 10.0
"""Longest that one try waits for the server, each time it has to."""
PAUSES_SECONDS = (1.0, 5.0)
"""Between tries; there is one more of these than there are pauses."""
MOST_PAUSE_SECONDS = 30.0
"""Of what a server asks for by ``Retry-After``."""
MOST_WAITING = 32
"""Messages that wait; then the oldest makes room."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Webhook:
    """Where alerts are posted, and in whose words."""

    url: str = field(repr=False)
    format: Format
    is_local: bool
    """On this machine: no proxy leads there."""


def webhook_of(environ: Mapping[str, str]) -> Webhook | None:
    """The webhook that these variables set; ``None``: none. Raises ``ConfigError``, which never shows a value."""
    asked = environ.get(WEBHOOK_FORMAT, "").strip().lower()
    if asked and asked not in FORMATS:
        raise ConfigError(f"{WEBHOOK_FORMAT} must be json, slack or discord.")
    url = environ.get(WEBHOOK_URL, "").strip()
    if not url:
        return None
    problem, host = _looked_at(url)
    if problem:
        raise ConfigError(
            f"{WEBHOOK_URL} {problem}. Give the address that Slack, Discord or your server shows for the webhook: "
            "https://..., or http://... to this machine alone. It is a secret, so it is not shown here."
        )
    known = next((kind for name, kind in HOSTS.items() if host == name or host.endswith(f".{name}")), "json")
    return Webhook(url=url, format=cast(Format, asked or known), is_local=_is_local(host))


def _looked_at(url: str) -> tuple[str, str]:
    """What is wrong with the address, or nothing; and its host. Not raised: urllib's own errors quote the address."""
    if not url.isascii() or any(character <= " " or character == "\x7f" for character in url):
        return "has characters in it that an address cannot have", ""
    try:
        parts = urlsplit(url)
        host, scheme, has_name, _ = parts.hostname or "", parts.scheme, "@" in parts.netloc, parts.port
    except ValueError:
        return "is no address of a server", ""
    if not host or scheme not in ("http", "https"):
        return "is no https address", host
    if has_name:
        return "has a name or a password before its host, which is not sent", host
    if scheme == "http" and not _is_local(host):
        return "is an http address of another machine, and everybody on the way could read it", host
    return "", host


def _is_local(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What became of one try."""

    why_not: str | None = None
    """Why the message was not taken, in words that have nothing of the address; ``None``: it was."""
    pause_seconds: float | None = None
    """What the server asked for, before another try."""
    try_again: bool = False


def poster(webhook: Webhook) -> Callable[[bytes], Answer]:
    """What posts JSON to the webhook once. It never raises, and follows no redirect: a message that is posted anew
    elsewhere would take the secret with it, or lose what it says."""
    import urllib.error
    import urllib.request

    class NoRedirects(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, *_: Any) -> None:
            return None

    handlers: list[Any] = [NoRedirects]
    if webhook.is_local:
        handlers.append(urllib.request.ProxyHandler({}))
    else:
        handlers.append(urllib.request.HTTPSHandler(context=ssl.create_default_context()))
    opener = urllib.request.build_opener(*handlers)
    headers = {"Content-Type": "application/json", "User-Agent": "rlmon"}

    def post(body: bytes) -> Answer:
        try:
            request = urllib.request.Request(webhook.url, data=body, headers=headers, method="POST")
            with opener.open(request, timeout=ANSWER_SECONDS):
                return Answer()
        except urllib.error.HTTPError as error:
            with contextlib.closing(error):
                return _refused(error.code, str(error.headers.get("Retry-After", "")))
        except Exception as error:
            cause = error.reason if isinstance(error, urllib.error.URLError) else error
            return Answer(why_not=_in_words(cause), try_again=isinstance(cause, OSError))

    return post


def _refused(status: int, retry_after: str) -> Answer:
    if 300 <= status < 400:
        return Answer(why_not=f"it answered {status}, a redirect, which is not followed")
    busy = status == 429 or status >= 500
    pause = min(float(retry_after), MOST_PAUSE_SECONDS) if busy and retry_after.isdecimal() else None
    return Answer(why_not=f"it answered {status}", pause_seconds=pause, try_again=busy)


def _in_words(cause: BaseException | str) -> str:
    for kind, words in (
        (TimeoutError, f"no answer within {ANSWER_SECONDS:.0f} s"),
        (socket.gaierror, "the name of its host is not known"),
        (ssl.SSLError, "no safe connection could be made"),
        (ConnectionRefusedError, "it refuses connections"),
        (ConnectionError, "it broke off the connection"),
    ):
        if isinstance(cause, kind):
            return words
    return f"it cannot be reached ({type(cause).__name__})"


class Outbox(Generic[Message]):
    """Posts messages one after the other from a daemon thread of this name, which begins with the first of them.

    Nobody waits for it but ``close``. ``post`` is what posts one, and must not raise.
    """

    def __init__(self, post: Callable[[Message], Answer], name: str = "rlmon-webhook") -> None:
        self._post, self._name = post, name
        self._waiting: deque[Message] = deque()
        self._news = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closing = False
        self._is_posting = False
        self.failed: str | None = None
        """Why the first of those that were tried in vain did not arrive; ``None``: none was."""
        self._is_crowded = False

    def put(self, message: Message) -> None:
        """Have the message posted. Of those that wait, the oldest is given up where there are too many."""
        with self._news:
            if len(self._waiting) == MOST_WAITING:
                self._waiting.popleft()
                self._is_crowded = True
            self._waiting.append(message)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name=self._name, daemon=True)
                self._thread.start()
            self._news.notify()

    def close(self, seconds: float) -> int:
        """How many are still on their way after so many seconds at most; the thread goes on with them while the process
        lives, and keeps it from nothing."""
        with self._news:
            self._closing = True
            self._news.notify()
        if self._thread is not None:
            self._thread.join(seconds)
        return self.left

    @property
    def why_not(self) -> str | None:
        """Why some did not arrive; ``None``: none was given up."""
        return self.failed or (f"more than {MOST_WAITING} were waiting" if self._is_crowded else None)

    @property
    def left(self) -> int:
        """How many are on their way."""
        with self._news:
            return len(self._waiting) + self._is_posting

    def _work(self) -> None:
        while True:
            with self._news:
                self._is_posting = False
                while not self._waiting:
                    if self._closing:
                        return
                    self._news.wait()
                message, self._is_posting = self._waiting.popleft(), True
            why_not = self._delivered(message)
            self.failed = self.failed or why_not

    def _delivered(self, message: Message) -> str | None:
        """Try until it is taken, or there is no sense in it; why it was not taken."""
        answer = self._post(message)
        for pause in PAUSES_SECONDS:
            if not answer.try_again:
                break
            time.sleep(pause if answer.pause_seconds is None else answer.pause_seconds)
            answer = self._post(message)
        return answer.why_not
