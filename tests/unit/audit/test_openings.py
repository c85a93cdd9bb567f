"""Which ways to open an answer died out and which took over, in the words of the run."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable, Sequence
from typing import Any

import make_audit
import numpy as np
import pyarrow as pa
import pytest
from audit_rows import audited, draw
from rich.console import Console

import rlmon.audit.openings as openings
import rlmon.report.phrases as phrases
from rlmon.audit.contrast import Windows
from rlmon.audit.incidents import incidents
from rlmon.audit.result import OpeningStory
from rlmon.audit.sampled import SAMPLE_SCHEMA
from rlmon.report import markdown, terminal
from rlmon.report.audit import build_page

Write = Callable[[int], str]
ENDS = Windows(base=np.arange(1, 5), last=np.arange(16, 21))


def sums(form: str) -> Write:
    return lambda i: form.format(
        a=i % 9 + 1, b=i % 7 + 1, c=i % 9 + i % 7 + 2, name=("Ann", "Bob", "Cem", "Dora")[i % 4]
    )


def sample(base: Sequence[tuple[int, Write]], last: Sequence[tuple[int, Write]], **columns: Any) -> pa.Table:
    """So many completions of each kind at the two ends, over their steps and ten prompts."""
    rows = []
    for steps, kinds in ((ENDS.base, base), (ENDS.last, last)):
        texts = [write(i) for count, write in kinds for i in range(count)]
        for i, text in enumerate(texts):
            of = {"step": int(steps[i % steps.size]), "split": "train", "completion": text, "source": "all"}
            rows.append(dict.fromkeys(SAMPLE_SCHEMA.names) | of | {"prompt_key": i % 10} | columns)
    return pa.Table.from_pylist(rows, schema=SAMPLE_SCHEMA)


ANSWER_IS, SURE = sums("The answer is {c}."), sums("Sure, let's add {a} and {b}: {c}")
EQUATION, NAMED = sums("{a} + {b} = {c}"), sums("{name} has {c} figs, and no more.")


def said(found: Sequence[OpeningStory]) -> str:
    """What is printed of them where a run narrowed."""
    audit = dataclasses.replace(make_audit.collapsed(), openings=found)
    lines = {one.kind: phrases.openings(one, audit) for one in incidents(audit)}
    assert {kind for kind, line in lines.items() if line} == {"narrowing"}
    return lines["narrowing"]


def told(table: pa.Table | None) -> list[tuple[str, str]]:
    return [(story.opening, story.fate) for story in openings.stories(table, None, ENDS)]


def test_what_is_gone_and_what_took_over() -> None:
    found = openings.stories(
        sample([(60, ANSWER_IS), (30, SURE), (10, EQUATION)], [(16, ANSWER_IS), (184, EQUATION)]), None, ENDS
    )
    # 16 of 200 is more than a tenth of .6.
    assert list(found) == [
        OpeningStory(opening="Sure, let's add # and", fate="gone", base_share=0.3, last_share=0.0),
        OpeningStory(opening="# + # = #", fate="took over", base_share=0.1, last_share=0.92),
    ]
    assert said(found) == (
        "openings: `Sure, let's add # and` (30 % of the base's answers) is gone; `# + # = #` has 92 % (was 10 %)"
    )


def test_names_at_the_start_are_one_opening() -> None:
    assert told(sample([(50, NAMED), (50, EQUATION)], [(200, EQUATION)])) == [
        ("N has # figs, and no more", "gone"), ("# + # = #", "took over"),
    ]  # fmt: skip


def test_an_answer_of_one_word_is_an_opening_too() -> None:
    assert told(sample([(50, SURE), (50, EQUATION)], [(200, sums("{c}"))])) == [
        ("# + # = #", "gone"), ("Sure, let's add # and", "gone"), ("#", "took over"),
    ]  # fmt: skip


def test_few_completions_say_nothing() -> None:
    # 5 % of 20 at the end is one: that it is not there is chance.
    assert told(sample([(5, SURE), (95, EQUATION)], [(20, EQUATION)])) == []
    # A fifth of 8 at the base is one or two.
    assert told(sample([(8, SURE)], [(140, SURE), (60, EQUATION)])) == []
    # One prompt is asked in its own way.
    assert told(sample([(50, SURE), (50, EQUATION)], [(100, EQUATION)], prompt_key=1)) == []
    assert told(None) == []
    assert openings.stories(sample([(50, SURE)], [(50, EQUATION)]), None, None) == ()


def test_only_sources_at_both_ends_are_compared() -> None:
    table = sample([(50, SURE), (50, EQUATION)], [(200, EQUATION)])
    assert openings.stories(table, None, ENDS, frozenset()) == ()
    assert openings.stories(table, None, ENDS, frozenset({"all"})) == openings.stories(table, None, ENDS)


def test_another_run_may_be_the_base() -> None:
    other = sample([(50, SURE), (50, EQUATION)], []).set_column(0, "step", pa.array([90] * 100))
    found = openings.stories(sample([(100, EQUATION)], [(200, EQUATION)]), other, ENDS)
    assert [story.opening for story in found] == ["Sure, let's add # and", "# + # = #"]


def test_at_most_three_of_each_and_short() -> None:
    many = [(30, sums(f"{word} {'and so on ' * 40}{{a}}")) for word in ("alpha", "beta", "gamma", "delta", "eta")]
    found = openings.stories(sample(many, [(200, EQUATION)]), None, ENDS)
    assert [story.fate for story in found] == ["gone"] * 3 + ["took over"]
    assert all(len(story.opening) <= openings.OPENING_CHARACTERS for story in found)
    assert len(said(found)) <= 500


HOSTILE = "\x1b]0;own\x07<img src=x onerror=alert(1)> [red] `rm` | ::error:: \u202e {a}"


def test_hostile_openings_stay_one_printable_line() -> None:
    found = openings.stories(sample([(50, sums("{a} is one")), (50, SURE)], [(200, sums(HOSTILE))]), None, ENDS)
    line = said(found)
    assert line.isprintable()
    assert "\\x1b" in line
    # What it quotes does not end the quotation.
    assert line.count("`") == 2 * len(found)
    assert len(line) < 300


def narrowing(rng: np.random.Generator, t: float, prompt: int) -> str:
    kind = 0 if rng.random() < 3 * t - 0.6 else int(rng.integers(4))
    return (EQUATION, ANSWER_IS, SURE, sums("We take {a} figs and put {b} more to them, so it is {c}."))[kind](prompt)


def test_an_audit_says_it_in_every_output() -> None:
    found = audited(draw(0, steps=60, write=narrowing))
    assert found.verdict == "fail"
    gone = {story.opening for story in found.openings if story.fate == "gone"}
    assert {"The answer is #.", "Sure, let's add # and"} <= gone
    assert [story.opening for story in found.openings if story.fate == "took over"] == ["# + # = #"]
    console = Console(width=4_000, file=(stream := io.StringIO()))
    console.print(terminal.render(found, width=4_000))
    assert "; `# + # = #` has 100 % (was " in stream.getvalue()
    assert "`# + # = #` has 100 % (was " in markdown.render(found).replace("\\", "")
    page = build_page(found)
    assert page.count("# + # = #") >= 2, "for those without scripts, and as data"
    assert found.to_json()["openings"][-1]["fate"] == "took over"


def test_an_audit_of_a_run_that_did_not_narrow_says_nothing() -> None:
    assert audited(draw(0, steps=20)).openings == ()


@pytest.mark.parametrize("stored", [None, ""])
def test_texts_that_were_not_stored_are_not_told(stored: str | None) -> None:
    table = sample([(50, SURE), (50, EQUATION)], [(200, EQUATION)])
    without = table.set_column(
        table.schema.get_field_index("completion"), "completion", pa.array([stored] * table.num_rows, pa.string())
    )
    assert told(without) == []
