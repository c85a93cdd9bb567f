"""Python's parser on hostile text: silent, and nothing that the process remembers of warnings changes."""

from __future__ import annotations

import ast
import threading
import time
import warnings

import pytest

from rlmon.metrics import syntax
from rlmon.metrics.features import Featurizer
from rlmon.metrics.formats import ModeSet
from rlmon.records import RolloutBatch

NOISY = ("x = '\\d'", "x = b'\\u1234'", "x = '\\777'", "y = 1if x else 2", "f = f'\\q{x}'", "z = 0x1for x in y")
"""Each of them warns at least in one of Python 3.10 to 3.14."""


def batch(texts: tuple[str, ...]) -> RolloutBatch:
    rows = len(texts)
    return RolloutBatch(
        round=0, split="train", step=1, group_size=1, global_row=list(range(rows)), prompt_id=["p"] * rows,
        source=["s"] * rows, prompts=["p"] * rows, completions=list(texts), reward=[0.0] * rows,
    )  # fmt: skip


def warn_from_one_place() -> None:
    warnings.warn("a library says this once", FutureWarning, stacklevel=1)


def test_a_warning_that_was_shown_is_not_shown_again() -> None:
    """Python shows a warning once a place; rlmon's parsing between two calls must not make it forget the first."""
    featurizer = Featurizer(ModeSet.build(None), b"s")
    with warnings.catch_warnings(record=True) as shown:
        warnings.resetwarnings()
        warnings.simplefilter("default")
        for step in range(5):
            warn_from_one_place()
            featurizer.features(batch(tuple(f"{text}  # {step}" for text in NOISY)))
            ModeSet.build(None).parse(f"print({step} + 1)\nx = '\\d'")
    assert [str(one.message) for one in shown] == ["a library says this once"]


@pytest.mark.parametrize("action", ["always", "error", "default"])
def test_it_is_silent_and_parses_alike_under_every_filter(action: str) -> None:
    trees = []
    for chosen in ("ignore", action):
        with warnings.catch_warnings(record=True) as shown:
            warnings.resetwarnings()
            warnings.simplefilter(chosen)  # type: ignore[arg-type]
            before, filters = list(warnings.filters), warnings.filters
            for text in NOISY:
                try:
                    trees.append(ast.dump(syntax.parse(text)))
                except SyntaxError:
                    trees.append("no Python")
            assert warnings.filters == before
            assert warnings.filters is filters
        assert shown == []
    assert trees[: len(NOISY)] == trees[len(NOISY) :]
    assert trees.count("no Python") < len(NOISY)


def test_the_twin_shows_that_these_texts_do_warn() -> None:
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        for text in NOISY[:2]:
            ast.parse(text)
    assert len(shown) == 2


def test_other_threads_keep_their_warnings() -> None:
    """While one thread parses, a warning of another is recorded, and its own filters come back as they were."""
    stop = threading.Event()

    def parse_on() -> None:
        while not stop.is_set():
            syntax.parse("x = '\\d'\n" * 50)

    outside = list(warnings.filters)
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        thread = threading.Thread(target=parse_on)
        thread.start()
        until = time.monotonic() + 0.3
        count = 0
        while time.monotonic() < until:
            warn_from_one_place()
            count += 1
        stop.set()
        thread.join()
    assert len(shown) == count
    assert warnings.filters == outside
