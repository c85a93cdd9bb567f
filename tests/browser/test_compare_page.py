"""The page of a comparison in a real browser: it draws, obeys the keyboard, and nothing of a run is executed."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import make_audit
import pytest
from make_audit import seeded
from page_parts import assert_sound, in_windows

from rlmon.audit.compared import Comparison
from rlmon.audit.comparison import compare
from rlmon.report.compare_page import html


def seeds() -> Comparison:
    a = [seeded(make_audit.collapsed(), number) for number in range(3)]
    return compare(a, [seeded(make_audit.healthy(180), number) for number in range(3, 6)], names=("plain", "kl"))


def one_each() -> Comparison:
    return compare([make_audit.collapsed()], [make_audit.healthy(180)])


def hostile() -> Comparison:
    spoilt = make_audit.hostile()
    config = {make_audit.HOSTILE: 1, "__proto__": {"polluted": 1}, "constructor": 2}
    other = dataclasses.replace(spoilt, run=dataclasses.replace(spoilt.run, config=config))
    found = compare([spoilt, seeded(spoilt, 1)], [seeded(other, 2), seeded(other, 3)], base=spoilt)
    return dataclasses.replace(found, headline=make_audit.HOSTILE)


def equal() -> Comparison:
    return compare([make_audit.healthy()], [make_audit.healthy()])


def nothing() -> Comparison:
    return compare([make_audit.empty()], [make_audit.healthy()])


def one_step() -> Comparison:
    return compare([make_audit.one_step()], [make_audit.one_step()])


BUILDERS: dict[str, Callable[[], Comparison]] = {
    builder.__name__: builder for builder in (seeds, one_each, hostile, equal, nothing, one_step)
}
INK = """(canvas) => {
  const pixels = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
  return new Set(new Uint32Array(pixels.data.buffer)).size;
}"""
"""How many colours a canvas holds: a blank one has one."""


@pytest.fixture(scope="module")
def results() -> dict[str, Comparison]:
    return {name: build() for name, build in BUILDERS.items()}


@pytest.fixture(scope="module")
def pages(results: dict[str, Comparison], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    for name, result in results.items():
        (folder / f"{name}.html").write_text(html(result), encoding="utf-8")
    return {name: folder / f"{name}.html" for name in results}


def number(text: str) -> int:
    found = re.search(r"step ([\d,]+)", text)
    assert found is not None, text
    return int(found[1].replace(",", ""))


@in_windows
@pytest.mark.parametrize("name", BUILDERS)
def test_nothing_complains_and_nothing_is_wider_than_the_window(
    visit: Any, pages: dict[str, Path], name: str, width: int, scheme: str
) -> None:
    assert_sound(visit(pages[name], width=width, scheme=scheme))


def test_hostile_text_makes_no_element(visit: Any, pages: dict[str, Path]) -> None:
    page = visit(pages["hostile"]).page
    page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    assert page.locator("script").count() == 2
    assert page.locator("img, iframe, object, embed, link, base, form").count() == 0
    hrefs = page.evaluate("[...document.querySelectorAll('[href]')].map((a) => a.getAttribute('href'))")
    assert hrefs
    assert [href for href in hrefs if not re.fullmatch(r"#[a-z0-9-]+", href)] == []
    handlers = (
        "[...document.querySelectorAll('*')].filter((e) => [...e.attributes].some((a) => /^on/.test(a.name))).length"
    )
    assert page.evaluate(handlers) == 0
    body = page.locator("body").inner_text()
    assert "<img src=x onerror=" in body
    assert r"\u202e" in body
    assert not re.search("[\u202a-\u202e\u2066-\u2069\x00\x1b]", body)
    rows = page.locator("#formats-table tbody th").all_inner_texts()
    assert set(rows) == set(make_audit.HOSTILE_NAMES)


def test_the_result_and_both_sides_come_first(
    visit: Any, pages: dict[str, Path], results: dict[str, Comparison]
) -> None:
    page = visit(pages["seeds"]).page
    assert page.locator("#verdict-word").inner_text() == "DIFFERENT"
    assert page.locator("h1").inner_text() == results["seeds"].headline
    cards = page.locator(".side-card").all_inner_texts()
    assert ["plain" in cards[0], "kl" in cards[1]] == [True, True]
    assert "3 FAIL" in cards[0]
    assert "3 PASS" in cards[1]
    for card, side in zip(cards, (results["seeds"].a, results["seeds"].b), strict=True):
        assert side.kept_formats is not None
        assert f"{100 * side.kept_formats:.0f} %" in card
        assert all(run in card for run in side.runs)
    box = page.locator("#verdict").bounding_box()
    assert box["y"] + box["height"] < 900
    assert visit(pages["equal"]).page.locator("#verdict-word").inner_text() == "EQUAL"


@pytest.mark.parametrize("name", ["seeds", "one_each", "hostile"])
def test_every_figure_is_drawn(visit: Any, pages: dict[str, Path], results: dict[str, Comparison], name: str) -> None:
    page = visit(pages[name]).page
    page.locator("#further-summary").click()
    page.locator("#further-charts canvas").first.wait_for()
    figures = page.locator(".chart")
    assert figures.count() == len(results[name].metrics)
    for index in range(figures.count()):
        assert figures.nth(index).locator("canvas").evaluate(INK) > 3
        assert figures.nth(index).locator("[role=img]").get_attribute("aria-label")
        assert figures.nth(index).locator("details").count() == 1
    stacks = page.locator("#formats-runs .drawing")
    assert stacks.count() == len(results[name].a.runs) + len(results[name].b.runs)
    for index in range(stacks.count()):
        assert stacks.nth(index).locator("polygon").count() == 6
        assert stacks.nth(index).get_attribute("aria-label")


def test_the_lines_have_the_colours_of_their_sides_and_end_where_the_numbers_say(
    visit: Any, pages: dict[str, Path]
) -> None:
    """Effective formats: A, orange, ends at the bottom of the canvas and B, blue, near the top."""
    a, b = visit(pages["one_each"]).page.locator("#charts .chart canvas").first.evaluate(
        """(canvas) => {
          const { width, height } = canvas, data = canvas.getContext('2d').getImageData(0, 0, width, height).data;
          const x = Math.round(width * 0.9);
          const at = (red) => { for (let y = 0; y < height; y++) { const i = 4 * (y * width + x);
            if (data[i + 3] > 200 && (red ? data[i] > 160 && data[i + 2] < 90 : data[i + 2] > 170 && data[i] < 90))
              return y / height; } return null; };
          return [at(true), at(false)];
        }"""
    )  # fmt: skip
    assert a is not None
    assert b is not None
    assert b < 0.4 < 0.6 < a


def test_tables_hold_the_numbers(visit: Any, pages: dict[str, Path], results: dict[str, Comparison]) -> None:
    result = results["seeds"]
    page = visit(pages["seeds"]).page
    page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    page.locator("#checks-rest tbody tr").first.wait_for()
    first = page.locator("#metrics-table tbody tr").first.locator("td").all_inner_texts()
    metric = result.metrics[0]
    assert [float(text) for text in first[:2]] == pytest.approx([metric.last_a, metric.last_b], rel=5e-3)
    assert float(first[2].split(" ± ")[0]) == pytest.approx(metric.difference, abs=0.01)
    assert first[-1] == str(metric.departure_step)
    rows = page.locator("#metrics-table tbody tr").count() + page.locator("#metrics-more tbody tr").count()
    assert rows == len(result.metrics)
    stars = page.locator("#metrics .star").count()
    assert stars == sum(row.distinct for row in result.metrics)
    checks = page.locator("#checks-table tbody tr").count(), page.locator("#checks-rest tbody tr").count()
    assert checks[0] == sum(check.differs for check in result.checks)
    assert sum(checks) == len(result.checks)
    chart = page.locator("#charts .chart").first
    last = chart.locator("tbody tr").last.locator("th, td").all_inner_texts()
    assert chart.locator("thead th").all_inner_texts() == [
        "step", "A 1", "A 2", "A 3", "B 1", "B 2", "B 3", "A mean", "B mean",
    ]  # fmt: skip
    assert last[0] == "180"
    label = next(iter(result.curves.steps))
    value = result.curves.series[metric.name][label][-1]
    assert value is not None
    assert float(last[1]) == pytest.approx(value, rel=5e-3)
    shares = page.locator("#formats-runs tbody tr").first.locator("td").all_inner_texts()
    assert sum(float(text.rstrip(" %")) for text in shares) == pytest.approx(100, abs=1)


def test_keyboard_moves_one_cursor_over_all_figures(visit: Any, pages: dict[str, Path]) -> None:
    page = visit(pages["seeds"]).page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.locator("#charts [role=img]").first.focus()
    page.keyboard.press("Home")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("ArrowRight")
    assert [number(text) for text in page.locator("#charts .now").all_inner_texts()[:3]] == [2, 2, 2]
    assert "step 2: A (plain) " in page.locator("#readout").inner_text()
    assert [number(text) for text in page.locator("#formats-runs .tag").all_inner_texts()] == [2] * 6
    rules = page.locator("#formats-runs .cursor")
    assert rules.first.evaluate("(e) => e.style.visibility") == "visible"
    page.keyboard.press("End")
    assert number(page.locator("#charts .now").first.inner_text()) == 180
    page.keyboard.press("Escape")
    assert page.locator("#charts .now").first.inner_text().startswith("end")
    page.locator("#formats-runs .drawing").last.focus()
    page.keyboard.press("PageDown")
    page.keyboard.press("PageDown")
    assert 30 < number(page.locator("#charts .now").first.inner_text()) < 40


def test_pointing_moves_all_cursors(visit: Any, pages: dict[str, Path]) -> None:
    page = visit(pages["seeds"]).page
    page.locator("#charts .chart").nth(1).locator(".plot").hover()
    steps = {number(text) for text in page.locator("#charts .now").all_inner_texts()}
    assert len(steps) == 1
    assert 60 < steps.pop() < 120


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_both_schemes_and_the_button(visit: Any, pages: dict[str, Path], scheme: str) -> None:
    page = visit(pages["seeds"], scheme=scheme).page
    paper = "getComputedStyle(document.body).backgroundColor"
    colours = {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 28)"}
    assert page.evaluate(paper) == colours[scheme]
    drawn = "document.querySelector('#charts canvas').toDataURL()"
    before = page.evaluate(drawn)
    for wanted in ("light", "dark"):
        page.locator("#theme").click()
        assert page.evaluate(paper) == colours[wanted]
    assert (page.evaluate(drawn) == before) == (scheme == "dark")


def test_without_scripts_the_result_is_still_there(chromium: Any, pages: dict[str, Path]) -> None:
    context = chromium.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(pages["seeds"].as_uri())
    assert "DIFFERENT: kl ends with" in page.locator("noscript").inner_text()
    context.close()


def test_the_check_for_execution_can_fail(visit: Any, pages: dict[str, Path], tmp_path: Path) -> None:
    page = pages["equal"].read_text(encoding="utf-8")
    spoilt = tmp_path / "spoilt.html"
    spoilt.write_text(page.replace("</main>", make_audit.HOSTILE.replace("\ud800", "") + "</main>"), encoding="utf-8")
    opened = visit(spoilt, whole=False)
    # The page's policy stops it: it is seen as a violation, and nothing runs.
    assert opened.complaints() != []


def test_no_column_is_lost_in_a_narrow_window(visit: Any, pages: dict[str, Path]) -> None:
    page = visit(pages["seeds"], width=400).page
    page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    page.locator("#metrics-more tbody tr").first.wait_for()
    for table in page.locator("table.stack").all():
        for cell in [*table.locator("tbody td").all()[:40], *table.locator("tbody th").all()[:8]]:
            box = cell.bounding_box()
            assert box is not None
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= 400
    said = (
        page.locator("#metrics-table tbody tr")
        .first.locator("td")
        .evaluate_all("(cells) => cells.map((cell) => getComputedStyle(cell, '::before').content)")
    )
    assert len(said) == 7
    assert all(len(one) > 2 for one in said), "each value has its head beside it"
