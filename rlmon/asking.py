"""Which project of W&B is meant, and why W&B does not do what it is asked, in plain words."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

from rlmon.errors import ConfigError, MissingExtraError, RLMonError, TrackerError
from rlmon.printable import one_line


@dataclass(frozen=True, slots=True)
class Place:
    """A project of W&B."""

    entity: str
    project: str

    @classmethod
    def parse(cls, text: str) -> Place:
        """Of ``ENTITY/PROJECT`` or of an address from a browser. Raises ``ConfigError``."""
        pasted = "://" in text
        parts = (urlsplit(text).path if pasted else text).strip("/").split("/")
        if len(parts) < 2 or not all(parts) or (len(parts) > 2 and not pasted):
            raise ConfigError(
                f"{text!r:.200} is no ENTITY/PROJECT. Both are in the address of the project, "
                "https://wandb.ai/ENTITY/PROJECT. Type, for example: rlmon dashboard wandb my-team/my-project"
            )
        return cls(parts[0], parts[1])

    def __str__(self) -> str:
        return f"{self.entity}/{self.project}"


@contextlib.contextmanager
def asking(place: Place | str, extra: str = "dashboard") -> Iterator[None]:
    """What W&B is asked in here and does not do is a ``TrackerError`` that says why and what to type.

    Where a package is not installed, ``MissingExtraError`` names the extra of rlmon that brings it.
    """
    try:
        yield
    except RLMonError:
        raise
    except ImportError as error:
        raise MissingExtraError(
            f"W&B cannot be asked without its package ({error}). Type: pip install 'rlmon[{extra}]'"
        ) from error
    except Exception as error:  # of a third party, and of the network
        raise TrackerError(_in_words(error, place)) from error


def _in_words(error: Exception, place: Place | str) -> str:
    said = one_line(str(error), 300)
    lower = said.lower()
    if any(words in lower for words in ("api key", "api_key", "not logged in", "no authentication")):
        return "W&B does not know who you are. Type: wandb login"
    if any(words in lower for words in ("permission denied", "unauthorized", "forbidden", "not authorized")):
        return f"W&B does not let you into {place} ({said}). With another key: wandb login --relogin"
    if run := re.search(r"ould not find run (?:<Run )?(\S+)", said):
        return f"W&B has no run {run[1]} that you can see. Its id is the last part of its address."
    if re.search(r"project \S+ not found", lower):
        return f"W&B has no project {place} that you can see. A project begins with its first run."
    return f"W&B did not do it ({type(error).__name__}: {said.rstrip('.')}). Nothing else is changed; try again later."
