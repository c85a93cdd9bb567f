"""What people add that is wrong: said before the first step where that can be, and costing itself alone elsewhere."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from simulated_ranks import Collectives

import rlmon
from rlmon.audit.readers import with_foreign
from rlmon.detectors import DetectorSpec
from rlmon.errors import ConfigError
from rlmon.extensions import Extensions, installed
from rlmon.interventions import Intervention
from rlmon.metrics import CompletionMetric, MetricFamily
from rlmon.monitor import Ranks
from rlmon.records import RolloutBatch, RunHeader
from rlmon.sinks import Sink

SOURCE = """
from rlmon.detectors import DETECTORS, DetectorSpec
from rlmon.interventions import Intervention
from rlmon.metrics import CompletionMetric, MetricFamily
from rlmon.sinks import Sink
import dataclasses

GOOD = CompletionMetric("good/share", len)
AGAIN = CompletionMetric("good/share", len)
HEALTH = CompletionMetric("health", len)

class Nameless(MetricFamily):
    pass

class Sumless(MetricFamily):
    name = "sumless"
    def fields(self, modes):
        return 7

NAMELESS, SUMLESS = Nameless(), Sumless()
KL = dataclasses.replace(DETECTORS[0], id="kl-drift")

class NotFrozen(Intervention):
    name = "not_frozen"

class Mirror(Sink):
    pass

MIRROR = Mirror()

class Reader:
    def __init__(self):
        raise OSError("no such thing")
"""
BROUGHT = {
    "metrics": {"a": "GOOD", "b": "AGAIN", "c": "HEALTH", "d": "NAMELESS", "e": "SUMLESS", "f": "MISSING"},
    "detectors": {"kl": "KL"},
    "actions": {"bad": "NotFrozen"},
    "sinks": {"class": "Mirror", "object": "MIRROR"},
    "readers": {"reader": "Reader"},
}


@pytest.fixture
def _installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    about = tmp_path / "site" / "clumsy-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: clumsy\nVersion: 1.0\n", encoding="utf-8")
    lines = [
        "\n".join([f"[rlmon.{group}]", *(f"{name} = clumsy_package:{what}" for name, what in of.items())])
        for group, of in BROUGHT.items()
    ]
    (about / "entry_points.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (tmp_path / "site" / "clumsy_package.py").write_text(SOURCE, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path / "site")
    installed.cache_clear()
    yield
    installed.cache_clear()


@pytest.mark.usefixtures("_installed")
def test_what_cannot_be_used_is_left_out_by_name_and_the_run_is_watched(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        monitor = rlmon.Monitor(rlmon.RLMonConfig(rlmon_console=False), directory=tmp_path / "log", group_size=4)
        monitor.close()
    added = monitor.extensions
    assert [family.name for family in added.metrics] == ["good/share"]
    assert (added.detectors, added.actions, [one.__name__ for one in added.sinks]) == ((), (), ["Mirror"])
    said = capsys.readouterr().err
    assert said.count("was left out") == 8
    for name in ("b", "c", "d", "e", "f", "kl", "bad", "object"):
        assert said.count(f" {name!r} of clumsy was left out") == 1
    assert 'object = "clumsy_package:Mirror"' in said
    assert "has no name" in said
    with_foreign(())
    assert "The reader Reader cannot be made: OSError" in capsys.readouterr().err


@pytest.mark.usefixtures("_installed")
def test_what_is_given_wins_over_what_is_installed(capsys: pytest.CaptureFixture[str]) -> None:
    mine = CompletionMetric("good/share", len)
    assert Extensions(metrics=[mine]).with_installed().metrics == [mine]

    class Takes(MetricFamily):
        name, columns = "takes", ("good/share",)

    capsys.readouterr()
    given = Extensions(metrics=[Takes()])
    assert given.with_installed().metrics == given.with_installed().metrics == given.metrics
    assert capsys.readouterr().err.count("left out beside what was given") == 1


def test_what_is_given_is_compared_by_name_and_not_by_what_it_makes_of_equality() -> None:
    class Odd(Sink):
        name = np.zeros(3)

        def __eq__(self, other: object) -> Any:
            return np.zeros(3)

        __hash__ = None  # type: ignore[assignment]

    assert len(Extensions(sinks=[Odd(), Odd()]).with_installed().sinks) == 2


def test_an_action_that_no_policy_can_name_is_refused_where_it_is_given() -> None:
    class NotFrozen(Intervention):
        name = "not_frozen"

    with pytest.raises(ConfigError, match="no frozen dataclass"):
        Extensions(actions=[NotFrozen])


def begun(folder: Path, *given: Extensions) -> list[Any]:
    """What becomes of a monitor on as many ranks, which wait for each other."""
    collectives = Collectives(len(given))

    def one(rank: int) -> Any:
        ranks = Ranks(rank=rank, world_size=len(given), **collectives.of(rank))
        config = rlmon.RLMonConfig(rlmon_console=False)
        try:
            monitor = rlmon.Monitor(config, directory=folder, group_size=4, ranks=ranks, extensions=given[rank])
        except ConfigError as error:
            return str(error)
        monitor.close()
        return None

    with ThreadPoolExecutor(len(given)) as pool:
        return list(pool.map(one, range(len(given))))


DIGITS = CompletionMetric("digits/share", len)
SHOUTING = DetectorSpec(
    id="shouting", statistics=("digits/share",), metrics=("digits/share",), unit="", direction="up", rule="absolute",
    warn=0.1, fail=0.2, meaning="", advice="",
)  # fmt: skip


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        (Extensions(metrics=[DIGITS]), Extensions(), ("metrics", "digits/share", "Rank 1: none", "same packages")),
        (Extensions(), Extensions(metrics=[DIGITS]), ("metrics", "digits/share", "Rank 0: none")),
        (
            Extensions(metrics=[DIGITS, CompletionMetric("a/b", len)]),
            Extensions(metrics=[CompletionMetric("a/b", len), DIGITS]),
            ("digits/share, a/b", "a/b, digits/share"),
        ),
        (Extensions(detectors=[SHOUTING]), Extensions(), ("detectors", "shouting")),
        (
            Extensions(detectors=[SHOUTING, dataclasses.replace(SHOUTING, id="a" * 900)]),
            Extensions(detectors=[SHOUTING, dataclasses.replace(SHOUTING, id="a" * 900 + "b")]),
            ("detectors", "Rank 0: ... aaa", "aab"),
        ),
        (
            Extensions(detectors=[SHOUTING]),
            Extensions(detectors=[dataclasses.replace(SHOUTING, fail=0.3)]),
            ("detectors", "'fail': 0.2", "'fail': 0.3"),
        ),
    ],
)
def test_ranks_that_would_watch_different_things_are_refused_alike_before_the_first_step(
    tmp_path: Path, first: Extensions, second: Extensions, said: tuple[str, ...]
) -> None:
    one, two = begun(tmp_path, first, second)
    assert one == two
    assert all(words in one for words in said), one


def test_ranks_that_watch_the_same_begin_and_one_that_cannot_is_told_to_the_others(tmp_path: Path) -> None:
    same = Extensions(metrics=[DIGITS], detectors=[SHOUTING])
    assert begun(tmp_path / "same", same, same, same) == [None] * 3

    class Sometimes(MetricFamily):
        name = "sometimes"
        asked = 0

        def fields(self, modes: Any) -> Any:
            self.asked += 1
            return {} if self.asked == 1 else 7

    zero, one = begun(tmp_path / "one", Extensions(), Extensions(metrics=[Sometimes()]))
    assert "differ in their failure. Rank 0: none. Rank 1: ConfigError: the family 'sometimes'" in zero
    assert one.startswith("the family 'sometimes' does not say its sums")
    assert not (tmp_path / "one").exists()


def test_a_webhook_that_cannot_be_is_refused_by_rank_0_which_posts_and_told_to_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RLMON_WEBHOOK_URL", "http://chat.example/SECRET")
    zero, one = begun(tmp_path / "run", Extensions(), Extensions())
    assert zero.startswith("RLMON_WEBHOOK_URL is an http address of another machine")
    assert "differ in their failure. Rank 0: ConfigError: RLMON_WEBHOOK_URL is an http address" in one
    assert "SECRET" not in zero + one
    assert not (tmp_path / "run").exists()


def test_each_broken_sink_is_named_once_and_counted(tmp_path: Path) -> None:
    class First(Sink):
        def open(self, header: RunHeader) -> None:
            raise OSError("full")

    class Second(Sink):
        def record(self, *_: Any) -> None:
            raise ValueError("down")

    given = Extensions(sinks=[First, Second()])
    monitor = rlmon.Monitor(
        rlmon.RLMonConfig(rlmon_console=False, rlmon_wandb=False), directory=tmp_path, group_size=4, extensions=given
    )
    monitor.open_sinks()
    counted = [record.faults for step in (1, 2, 3) if (record := monitor.end_step(step)) is not None]
    # What failed at open, and after step 1, where the second was switched off: each once.
    assert counted == [{"sinks": 1}, {"sinks": 1}, {}]
    monitor.close()
    faults = [event.payload["place"] for event in rlmon.open_run(tmp_path).events if event.kind == "fault"]
    assert faults == ["sinks:First", "sinks:Second"]


def test_of_two_sinks_that_are_equal_the_broken_one_is_switched_off(tmp_path: Path) -> None:
    @dataclasses.dataclass
    class Named(Sink):
        name: str = "mine"
        broken: bool = dataclasses.field(default=False, compare=False)

        def record(self, *_: Any) -> None:
            if self.broken:
                raise ValueError("down")

    whole, broken = Named(), Named(broken=True)
    monitor = rlmon.Monitor(
        rlmon.RLMonConfig(rlmon_console=False, rlmon_wandb=False, rlmon_trackio=False), directory=tmp_path,
        group_size=4, extensions=Extensions(sinks=[whole, broken]),
    )  # fmt: skip
    monitor.open_sinks()
    monitor.end_step(1)
    assert [one is whole for one in monitor.sinks] == [True]
    monitor.close()


def test_a_statistic_that_no_block_ever_had_is_said_once_at_the_end(tmp_path: Path) -> None:
    for folder, metrics in (("without", []), ("with", [DIGITS])):
        monitor = rlmon.Monitor(
            rlmon.RLMonConfig(rlmon_console=False), directory=tmp_path / folder, group_size=2,
            extensions=Extensions(metrics=metrics, detectors=[SHOUTING]),
        )  # fmt: skip
        monitor.observe(round_of_two(monitor.next_round("train")))
        monitor.end_step(1)
        monitor.close()
        monitor.close()
    said = [
        [event.payload["text"] for event in rlmon.open_run(tmp_path / name).events if event.kind == "note"]
        for name in ("without", "with")
    ]
    assert said == [
        ["no block of this run had the statistic 'digits/share' (shouting), so that it was never looked at"], []
    ]  # fmt: skip


def round_of_two(number: int) -> RolloutBatch:
    return RolloutBatch(
        round=number, split="train", step=1, group_size=2, global_row=range(4), prompt_id=["a", "a", "b", "b"],
        source=["s"] * 4, prompts=["?"] * 4, completions=["1", "2", "3", "4"], reward=[0.0, 1.0, 0.0, 1.0],
    )  # fmt: skip
