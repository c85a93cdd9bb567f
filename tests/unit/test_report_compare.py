"""A comparison in each form: what is said and in which order, and that no text of a run is ever obeyed."""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import make_audit
import pytest
from make_audit import seeded
from markdown_it import MarkdownIt
from markdown_it.token import Token
from page_parts import DATA, Tags, data_of
from rich.cells import cell_len
from rich.console import Console

from rlmon.audit.compared import Comparison, MetricDifference
from rlmon.audit.comparison import compare as compared
from rlmon.audit.comparison import family
from rlmon.audit.result import Audit
from rlmon.report import charts, compare_markdown, compare_page, compare_terminal, compare_words


@functools.cache
def one_each() -> Comparison:
    return compared([make_audit.collapsed()], [make_audit.healthy(180)])


@functools.cache
def seeds() -> Comparison:
    a = [seeded(make_audit.collapsed(), number) for number in range(3)]
    b = [seeded(with_config(make_audit.healthy(180), beta=0.1), number) for number in range(3, 6)]
    return compared(a, b, names=("plain", "kl"))


def with_config(audit: Audit, **settings: Any) -> Audit:
    return dataclasses.replace(audit, run=dataclasses.replace(audit.run, config={**audit.run.config, **settings}))


@functools.cache
def hostile() -> Comparison:
    spoilt = make_audit.hostile()
    other = with_config(seeded(spoilt, 1), **{make_audit.HOSTILE: 1, "__proto__": {"polluted": 1}, "constructor": 2})
    found = compared([spoilt, seeded(spoilt, 2)], [other, seeded(make_audit.hostile(), 3)], base=spoilt)
    return dataclasses.replace(
        found,
        headline=make_audit.HOSTILE,
        notes=[make_audit.HOSTILE],
        base=make_audit.HOSTILE,
        correction=make_audit.HOSTILE,
    )


@functools.cache
def equal() -> Comparison:
    return compared([make_audit.healthy()], [make_audit.healthy()])


@functools.cache
def nothing() -> Comparison:
    return compared([make_audit.empty()], [make_audit.healthy()])


@functools.cache
def noted() -> Comparison:
    return compared([make_audit.solved()], [make_audit.healthy()])


MAKERS = [one_each, seeds, hostile, equal, nothing, noted]
Maker = Callable[[], Comparison]


def screen(result: Comparison, width: int, *, colour: bool = False) -> str:
    stream = io.StringIO()
    system: Any = "truecolor" if colour else None
    console = Console(file=stream, width=width, force_terminal=colour, color_system=system, highlight=False)
    console.print(compare_terminal.render(result, width=width))
    return stream.getvalue()


def row(**changes: Any) -> MetricDifference:
    return dataclasses.replace(one_each().metrics[0], **changes)


# ---- words and numbers


@pytest.mark.parametrize(
    ("difference", "low", "high", "shown"),
    [
        (3.2037, 2.8749, 3.5325, "+3.20 ± 0.33"),
        (-0.01534, -0.02425, -0.00643, "-0.0153 ± 0.0089"),
        (1234.6, 1000.2, 1469.0, "+1,235 ± 234"),
        (2.0, None, None, "+2"),
        (2.0, 2.0, 2.0, "+2 ± 0"),
        (0.0, 0.0, 0.0, "0"),
        (1e-9, 0.0, 2e-9, "+1.0e-09 ± 1.0e-09"),
    ],
)
def test_a_difference_has_the_digits_that_its_interval_allows(
    difference: float, low: float | None, high: float | None, shown: str
) -> None:
    assert compare_words.difference_words(row(difference=difference, low=low, high=high)) == shown


def test_statuses_are_counted_worst_first_with_their_onsets() -> None:
    found = compare_words.status_words(["pass", "fail", "warn", "fail"], [None, 62, None, 53])
    assert found == [("fail", "2 FAIL by 53, 62"), ("warn", "1 WARN"), ("pass", "1 PASS")]
    assert compare_words.status_words(["fail"], [7]) == [("fail", "FAIL by 7")]
    assert compare_words.status_words(["absent"], [None]) == [("absent", "ABSENT")]


@pytest.mark.parametrize(
    ("a", "b", "names"),
    [
        (["out/plain"], ["out/kl"], ("plain", "kl")),
        (["s/plain-seed0", "s/plain-seed1"], ["s/kl-seed0", "s/kl-seed1"], ("plain", "kl")),
        (["s/plain-0", "s/plain-1"], ["s/kl-0"], ("plain", "kl-0")),
        (["plain/seed0", "plain/seed1"], ["kl/seed0", "kl/seed1"], ("plain", "kl")),
        (["plain/grpo"], ["kl/grpo"], ("plain", "kl")),
        (["x/seed12", "x/seed13"], ["x/seed22", "x/seed23"], ("A", "B")),
        (["same"], ["same"], ("A", "B")),
        (["x y"], ["z"], ("A", "B")),
        (["B"], ["A"], ("A", "B")),
        (["<b>"], ["z"], ("A", "B")),
        (["q" * 25], ["z"], ("A", "B")),
        (["\u202eabc"], ["z"], ("A", "B")),
    ],
)
def test_sides_are_named_by_what_tells_their_paths_apart(a: list[str], b: list[str], names: tuple[str, str]) -> None:
    assert compare_words.side_names([Path(path) for path in a], [Path(path) for path in b]) == names


# ---- terminal


@pytest.mark.parametrize("width", [60, 80, 100, 120, 200])
@pytest.mark.parametrize("make", MAKERS)
def test_the_screen_fits_and_holds_nothing_that_steers_a_terminal(make: Maker, width: int) -> None:
    for line in screen(make(), width).split("\n"):
        assert cell_len(line) <= width
        assert line.isprintable()


@pytest.mark.parametrize("width", [80, 120])
def test_the_result_comes_first_and_everything_that_differs_is_there(width: int) -> None:
    result = seeds()
    text = screen(result, width)
    flat = " ".join(text.split())
    assert text.startswith(" DIFFERENT   ")
    assert " ".join(result.headline.split()) in flat
    places = [flat.index(part) for part in ("A plain", "Settings that differ", "At the end", "Formats at the end",
                                            "Checks that differ", "Alike", "Correction")]  # fmt: skip
    assert places == sorted(places)
    assert "beta 0.0 0.1" in flat
    assert result.correction.split(":")[0] in flat
    # A line for each family of metrics; the others are folded into what they are about.
    chosen, rest = compare_words.chosen_metrics(result)
    for metric in chosen:
        assert re.split("[ /]", charts.metric_title(metric.name))[0] in flat
    assert len(chosen) == len({family(metric.name) for metric in chosen})
    assert sum(int(found) for found in re.findall(r"(?:Also distinct|Not distinct|Same mean) \((\d+)\)", flat)) == len(
        rest
    )
    for check in result.checks:
        assert check.id in flat


def test_a_metrics_line_holds_both_ends_the_difference_and_where_they_part() -> None:
    result = one_each()
    found = result.metrics[0]
    assert found.distinct
    [line] = [line for line in screen(result, 120).split("\n") if line.startswith("* Formats in use  ")]
    cells = line.removeprefix("* Formats in use").split()
    cells.insert(0, "")
    assert cells[1:3] == [f"{found.last_a:.3g}", f"{found.last_b:.3g}"]
    assert " ".join(cells[3:6]) == compare_words.difference_words(found)
    assert cells[6:] == [f"{found.effect:+.1f}", str(found.departure_step)]


def test_a_long_name_goes_on_below_and_no_number_is_cut() -> None:
    assert compare_terminal._broken("text/effective_templates", 16) == ["text/effective_", "templates"]
    assert compare_terminal._broken("x" * 7, 3) == ["xxx", "xxx", "x"]
    assert compare_terminal._broken("abc", 10) == ["abc"]
    assert "…" not in screen(seeds(), 80)


def test_a_note_on_one_side_stands_between_what_went_wrong_and_what_passed() -> None:
    row = next(check for check in noted().checks if check.id == "silent-groups-good")
    assert (row.a, row.b) == (["note"], ["absent"])
    assert noted().checks[0] is row
    assert "NOTE by 71" in screen(noted(), 120)
    assert "🔵 NOTE by 71" in compare_markdown.render(noted())
    # Of three seeds a side: worst first, the note after the error.
    assert compare_words.status_words(["pass", "note", "error", "fail"], [None, 71, None, 5]) == [
        ("fail", "1 FAIL by 5"), ("error", "1 ERROR"), ("note", "1 NOTE by 71"), ("pass", "1 PASS"),
    ]  # fmt: skip


def test_equal_runs_have_no_table_of_metrics() -> None:
    text = screen(equal(), 80)
    assert text.startswith(" EQUAL ")
    assert "At the end" not in text
    assert "Checks that differ" not in text
    assert screen(nothing(), 80).startswith(" NOTHING IN COMMON ")


def test_colour_is_the_only_difference_that_colour_makes() -> None:
    plain, coloured = (screen(seeds(), 100, colour=colour) for colour in (False, True))
    assert "\x1b[" in coloured
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured) == plain


def test_names_are_no_markup() -> None:
    result = dataclasses.replace(seeds(), headline="[red]x[/red]", notes=["[bold]note[/bold]"])
    text = screen(result, 120)
    assert "[red]x[/red]" in text
    assert "[bold]note[/bold]" in text


# ---- Markdown


def tokens(text: str) -> list[Token]:
    flat = []
    for token in MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).parse(text):
        flat += [token, *(token.children or [])]
    return flat


OURS = re.compile(r"(<details><summary>[^<>]*</summary>|</details>|<br>)\n*")


@pytest.mark.parametrize("make", MAKERS)
def test_markdown_holds_no_markup_but_ours(make: Maker) -> None:
    result = make()
    text = compare_markdown.render(result)
    found = tokens(text)
    assert not {t.type for t in found} & {"link_open", "image", "code_inline", "code_block", "s_open"}
    assert all(OURS.fullmatch(t.content) for t in found if t.type in ("html_block", "html_inline"))
    assert sum(t.type == "heading_open" for t in found) == 1
    assert all(line.isprintable() or line.replace("\u200b", "").isprintable() for line in text.split("\n"))
    assert not re.search(r"@\w|#\d|://|\bwww\.|GH-\d", text)


def test_markdown_tables_have_a_row_for_everything() -> None:
    result = seeds()
    rows = sum(t.type == "tr_open" for t in tokens(compare_markdown.render(result)))
    modes = sum(abs(mode.last_a - mode.last_b) >= 0.005 for mode in result.modes)
    differing = sum(check.differs for check in result.checks)
    # Six facts of the sides, then a head for each of the six tables.
    assert rows == 6 + len(result.settings) + len(result.metrics) + min(modes, 8) + differing + 6


def test_a_comment_is_never_too_long_and_says_what_is_missing() -> None:
    result = seeds()
    many = [row(name=f"{number} {'x' * 90}") for number in range(900)]
    text = compare_markdown.render(dataclasses.replace(result, metrics=many))
    assert len(text) <= 65_536
    wide = [dataclasses.replace(result.checks[0], id=f"{number}", a=["fail"] * 40, b=["pass"] * 40,
                                onsets_a=list(range(40)), onsets_b=[None] * 40) for number in range(2_000)]  # fmt: skip
    text = compare_markdown.render(dataclasses.replace(result, checks=wide))
    assert len(text) <= 65_536
    assert "details are left out" in text
    assert "<details>" not in text


# ---- JSON


@pytest.mark.parametrize("make", MAKERS)
def test_json_is_strict_and_whole(make: Maker) -> None:
    result = make()
    text = compare_words.json(result)
    assert text.isascii()

    def refuse(value: str) -> None:
        raise AssertionError(value)

    values = json.loads(text, parse_constant=refuse)
    assert (values["tool"], values["same"]) == ("rlmon", result.same)
    assert len(values["metrics"]) == len(result.metrics)
    assert values["settings"] == [
        {"key": one.key.replace("\ud800", "\ufffd"), "a": list(one.a), "b": list(one.b)} for one in result.settings
    ]
    assert "curves" not in values


# ---- page


def test_hostile_text_adds_no_markup() -> None:
    named = dataclasses.replace(hostile(), a=dataclasses.replace(hostile().a, name=make_audit.HOSTILE))
    plain, spoilt = Tags(compare_page.html(seeds())), Tags(compare_page.html(named))
    assert spoilt.tags == plain.tags
    assert spoilt.attributes == plain.attributes
    assert Tags(compare_page.html(named).replace("</main>", make_audit.HOSTILE + "</main>")).tags != plain.tags


def test_the_page_needs_nothing_else() -> None:
    page = compare_page.html(seeds())
    assert "://" not in DATA.sub("", page)
    assert "default-src 'none'; script-src 'sha256-" in page
    assert [value for name, value in Tags(page).attributes if name in ("src", "srcset", "action")] == []


def test_the_page_holds_the_curves() -> None:
    result = seeds()
    data = data_of(compare_page.html(result))
    chart = data["charts"][0]
    assert chart["name"] == result.metrics[0].name == "rlmon/format/effective"
    assert [(line["side"], line["mean"]) for line in chart["lines"]] == [
        *[(0, False)] * 3, *[(1, False)] * 3, (0, True), (1, True),
    ]  # fmt: skip
    assert chart["departure"] == result.metrics[0].departure_step
    # The mean line is the mean of the three runs where all three were measured.
    steps: list[int] = []
    for difference in chart["lines"][6]["steps"]:
        steps.append(difference + (steps[-1] if steps else 0))
    means = dict(zip(steps, chart["lines"][6]["values"], strict=True))
    curves = result.curves
    for step in (1, 90, 180):
        runs = [curves.series[chart["name"]][label][step - 1] for label in ("plain", "plain 2", "plain 3")]
        assert None not in runs
        assert means[step] == pytest.approx(sum(value for value in runs if value is not None) / 3, rel=1e-5)
    assert len(data["charts"]) + data["further_total"] == len(result.metrics)
    assert [run["label"] for run in data["shares"]["runs"]] == [
        f"grpo-arith-seed{number}" for number in range(6)
    ]  # fmt: skip
    for run in data["shares"]["runs"]:
        for column in zip(*run["values"], strict=True):
            assert sum(column) == pytest.approx(1.0, abs=0.01)


def test_the_mean_line_has_the_steps_that_every_run_of_the_side_has() -> None:
    name = "rlmon/format/effective"
    first = make_audit.healthy(30)
    values: list[float | None] = [None if at in (3, 7) else 2.0 for at in range(30)]
    second = dataclasses.replace(first, steps=range(11, 41), series={name: values})
    first = dataclasses.replace(first, series={name: [1.0] * 30})
    steps, means = compare_page._mean(compared([first, second], [first]), name, 0)
    # 11 to 30 are common; the second run has nothing at 14 and 18.
    assert steps == [step for step in range(11, 31) if step not in (14, 18)]
    assert means == [1.5] * 18


def test_the_scaled_interval_is_the_interval_in_units_of_the_effect() -> None:
    found = compare_page._metric(row(difference=4.0, low=3.0, high=5.0, effect=8.0))
    assert found["scaled"] == [8.0, 6.0, 10.0]
    assert compare_page._metric(row(difference=-4.0, low=-5.0, high=-3.0, effect=-8.0))["scaled"] == [-8.0, -10.0, -6.0]
    for change in ({"effect": None}, {"low": None, "high": None}, {"difference": 0.0, "effect": 0.0}):
        assert compare_page._metric(row(**change))["scaled"] is None


def test_three_seeds_a_side_of_two_thousand_steps_stay_below_three_megabytes() -> None:
    a = [seeded(make_audit.collapsed(2_000), number) for number in range(3)]
    b = [seeded(make_audit.healthy(2_000), number) for number in range(3, 6)]
    extra = {f"trainer/metric {number}": a[0].series["rlmon/entropy/mean"] for number in range(60)}
    a = [dataclasses.replace(run, series={**run.series, **extra}) for run in a]
    b = [dataclasses.replace(run, series={**run.series, **extra}) for run in b]
    page = compare_page.html(compared(a, b))
    assert 500_000 < len(page.encode()) < 3_000_000


def test_of_many_runs_some_are_drawn_and_all_are_averaged() -> None:
    a = [seeded(make_audit.collapsed(60), number) for number in range(12)]
    result = compared(a, [make_audit.healthy(60)])
    data = data_of(compare_page.html(result))
    lines = data["charts"][0]["lines"]
    assert sum(line["side"] == 0 and not line["mean"] for line in lines) == 8
    assert data["runs_left_out"] == 4
    name = data["charts"][0]["name"]
    wanted = [run.series[name][0] for run in a]
    mean = next(line for line in lines if line["side"] == 0 and line["mean"])["values"][0]
    assert mean == pytest.approx(sum(value for value in wanted if value is not None) / 12, rel=1e-5)


def test_a_mode_beyond_the_drawn_ones_is_pooled() -> None:
    audit = make_audit.healthy(30)
    shares = {f"mode {number}": [1 / 12] * 30 for number in range(12)}
    audit = dataclasses.replace(audit, mode_shares=shares)
    found = data_of(compare_page.html(compared([audit], [audit])))["shares"]
    assert [mode for mode, _ in found["modes"]][-1] == "3 more"
    assert found["runs"][0]["values"][-1] == pytest.approx([0.25] * 30, abs=1e-3)
