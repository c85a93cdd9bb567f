"""The audit's page in a real browser: it draws, filters and obeys the keyboard, and nothing of the run is executed."""

from __future__ import annotations

import csv
import dataclasses
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import make_audit
import pytest
from page_parts import assert_sound, in_windows

from rlmon.audit.result import Audit
from rlmon.report.audit import write_page

BUILDERS: dict[str, Callable[[], Audit]] = {
    "healthy": make_audit.healthy,
    "solved": make_audit.solved,
    "collapsed": make_audit.collapsed,
    "hostile": make_audit.hostile,
    "empty": make_audit.empty,
    "one_step": make_audit.one_step,
    "long_run": make_audit.long_run,
}
INK = """(canvas) => {
  const pixels = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
  return new Set(new Uint32Array(pixels.data.buffer)).size;
}"""
"""How many colours a canvas holds: a blank one has one."""


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    return {name: write_page(build(), folder / f"{name}.html") for name, build in BUILDERS.items()}


def numbers(text: str) -> list[int]:
    return [int(found.replace(",", "")) for found in re.findall(r"\d[\d,]*", text)]


@in_windows
@pytest.mark.parametrize("name", BUILDERS)
def test_nothing_complains_and_nothing_is_wider_than_the_window(
    visit: Any, pages: dict[str, Path], name: str, width: int, scheme: str
) -> None:
    assert_sound(visit(pages[name], width=width, scheme=scheme))


def test_hostile_text_makes_no_element(visit: Any, pages: dict[str, Path]) -> None:
    page = visit(pages["hostile"]).page
    assert page.locator("script").count() == 2
    assert page.locator("img, iframe, object, embed, link, base, form[action]").count() == 0
    hrefs = page.evaluate("[...document.querySelectorAll('[href]')].map((a) => a.getAttribute('href'))")
    assert hrefs
    assert [href for href in hrefs if not re.fullmatch(r"#[a-z0-9-]+", href)] == []
    handlers = (
        "[...document.querySelectorAll('*')].filter((e) => [...e.attributes].some((a) => /^on/.test(a.name))).length"
    )
    assert page.evaluate(handlers) == 0
    shown = page.locator("#samples-list").inner_text()
    assert "<img src=x onerror=" in shown
    # Direction overrides, escapes, NUL and a lone surrogate are there as numbers, not as themselves.
    for escape in (r"\u202e", r"\x1b", r"\x00", r"\ud800"):
        assert escape in shown
    assert not re.search("[\u202a-\u202e\u2066-\u2069\x00\x1b]", page.locator("body").inner_text())


def test_names_that_every_object_has_are_ordinary_names(visit: Any, pages: dict[str, Path]) -> None:
    page = visit(pages["hostile"]).page
    choices = page.locator("select[name=mode] option").all_inner_texts()
    assert set(choices) == {"all", *(sample.mode for sample in make_audit.hostile().samples)}
    assert "__proto__" in choices
    rows = page.locator("#modes-table tbody th").all_inner_texts()
    assert sorted(rows) == sorted(make_audit.HOSTILE_NAMES)


def test_the_check_for_execution_can_fail(visit: Any, tmp_path: Path) -> None:
    page = (write_page(make_audit.empty(), tmp_path / "page.html")).read_text(encoding="utf-8")
    spoilt = tmp_path / "spoilt.html"
    markup = page.replace("</main>", make_audit.HOSTILE.replace("\ud800", "") + "</main>")
    # With its policy the page runs none of it even then: only scripts of known hash.
    spoilt.write_text(markup, encoding="utf-8")
    assert visit(spoilt, whole=False).page.evaluate("window.pwned") is None
    spoilt.write_text(re.sub(r"<meta http-equiv=[^>]*>", "", markup), encoding="utf-8")
    assert visit(spoilt, whole=False).page.evaluate("window.pwned") == 1


def test_verdict_comes_first(visit: Any, pages: dict[str, Path]) -> None:
    page = visit(pages["collapsed"]).page
    assert page.locator("#verdict-word").inner_text() == "FAIL"
    assert page.locator("h1").inner_text().replace("\u00a0", " ") == make_audit.collapsed().headline
    assert page.locator("#counts li").all_inner_texts() == ["2\nFAIL", "1\nWARN", "1\nERROR", "2\nPASS", "2\nSKIP"]
    assert page.locator("#incidents .check").count() == 3
    assert page.locator("#checks-bad .check").count() == 1, "the check that failed itself"
    facts = page.locator("#facts").inner_text()
    for said in ("11,520", "960 prompts, groups of 8", "1 to 180", "early rounds", "32 prompts", "trl"):
        assert said in facts
    tall = page.locator("#verdict").bounding_box()
    assert tall["y"] + tall["height"] < 900
    assert not page.locator("#checks-skip .skips").is_visible()
    page.locator("#checks-skip summary").click()
    skipped = page.locator("#checks-skip").inner_text()
    assert "log with RLMon(trainer) next time" in skipped


TONES = """(element) => ['background-color', 'border-left-color', 'border-top-color', 'color', 'fill', 'stroke']
  .map((name) => getComputedStyle(element).getPropertyValue(name))"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_note_is_calm_and_stands_apart(visit: Any, pages: dict[str, Path], scheme: str) -> None:
    page = visit(pages["solved"], scheme=scheme).page
    assert page.locator("#verdict-word").inner_text() == "PASS"
    assert page.locator("#counts li").first.inner_text() == "1\nNOTE"
    assert page.locator("#checks-bad .check").count() == 0
    assert page.locator("#checks-note .check").count() == 1
    assert "Move to harder prompts" in page.locator("#checks-note").inner_text()
    loud = page.evaluate("""['--bad', '--bad-bg', '--bad-line', '--warn', '--warn-bg', '--warn-line'].map((name) => {
      const probe = document.body.appendChild(document.createElement('i'));
      probe.style.color = `var(${name})`;
      return getComputedStyle(probe).color;
    })""")
    own = page.locator("#checks-note *, .chart .badge.note, #timeline *").all()
    assert len(own) > 20
    assert not [one for one in own if set(loud) & set(one.evaluate(TONES))]
    # The same look finds what is loud.
    bad = visit(pages["collapsed"], scheme=scheme).page.locator("#happened .badge.fail").first
    assert set(loud) & set(bad.evaluate(TONES))


@pytest.mark.parametrize("name", ["collapsed", "hostile", "one_step", "long_run"])
def test_every_figure_is_drawn(visit: Any, pages: dict[str, Path], name: str) -> None:
    page = visit(pages[name]).page
    page.locator("#further-summary").click()
    page.locator("#further-charts canvas").first.wait_for()
    figures = page.locator(".chart")
    assert figures.count() >= 15
    for index in range(figures.count()):
        canvas = figures.nth(index).locator("canvas")
        assert canvas.evaluate(INK) > 3
        plot = figures.nth(index).locator("[role=img]")
        assert plot.get_attribute("aria-label")
        assert figures.nth(index).locator("details").count() == 1
    assert page.locator("#heat-canvas").evaluate(INK) > 3
    drawn = ["#shares-drawing"] if name == "one_step" else ["#shares-drawing", "#timeline-drawing"]
    for figure in drawn:
        assert page.locator(f"{figure} svg > *").count() > 8
        assert page.locator(figure).get_attribute("aria-label")
    assert page.locator("[role=img]:not([aria-label]):visible, [role=img][aria-label='']:visible").count() == 0


def test_a_curve_follows_its_numbers(visit: Any, pages: dict[str, Path]) -> None:
    """Where the canvas has the curve's colour, it is as high as the number says: it ends low and begins high."""
    page = visit(pages["collapsed"]).page
    ends = page.locator("#charts .chart").first.locator("canvas").evaluate(
        """(canvas) => {
          const { width, height } = canvas, data = canvas.getContext('2d').getImageData(0, 0, width, height).data;
          const at = (x) => { for (let y = 0; y < height; y++) { const i = 4 * (y * width + x);
            if (data[i + 3] > 200 && data[i + 2] > 170 && data[i] < 90) return y / height; } return null; };
          return [at(Math.round(width * 0.25)), at(Math.round(width * 0.9))];
        }"""
    )  # fmt: skip
    assert ends[0] is not None
    assert ends[1] is not None
    assert ends[0] < 0.35 < 0.6 < ends[1]


def test_tables_behind_the_figures_hold_the_numbers(visit: Any, pages: dict[str, Path]) -> None:
    audit = make_audit.collapsed()
    page = visit(pages["collapsed"]).page
    page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    page.locator("#metrics-table tbody tr").first.wait_for()
    last = page.locator("#charts .chart").first.locator("tbody tr").last.all_inner_texts()[0].split("\t")
    assert numbers(last[0]) == [180]
    value = audit.series["rlmon/collision/mode_within_effective"][-1]
    assert value is not None
    assert float(last[1]) == pytest.approx(value, rel=5e-3)
    assert page.locator("#timeline-table tbody tr").count() == len(audit.events)
    heat = audit.heat
    assert heat is not None
    assert page.locator("#heat-table tbody tr").count() == len(heat.rows)
    shares = page.locator("#shares-table tbody tr").first.locator("td").all_inner_texts()
    assert sum(float(text.rstrip(" %")) for text in shares) == pytest.approx(100, abs=0.5)


def test_acts_of_the_policy_have_a_table_and_marks_on_the_timeline(visit: Any, pages: dict[str, Path]) -> None:
    page = visit(pages["collapsed"]).page
    rows = page.locator("#acts-table tbody tr").all_inner_texts()
    assert [re.findall("APPLIED|FAILED|WOULD", row) for row in rows] == [
        ["APPLIED"],
        ["FAILED"],
        ["WOULD"],
        ["APPLIED"],
    ]
    assert "beta 0\u00a0→\u00a00.05" in rows[0]
    assert "35 times" in rows[3]
    assert page.locator("#timeline-drawing .lane", has_text="rule kl-budget").count() == 1
    assert page.locator("#timeline-drawing path.mark-action").count() == 1
    assert visit(pages["healthy"]).page.locator("#acts").is_hidden()


def test_filters_and_pager(visit: Any, pages: dict[str, Path]) -> None:
    samples = make_audit.collapsed().samples
    page = visit(pages["collapsed"]).page
    said = page.locator("#samples-count")
    assert numbers(said.inner_text()) == [1, 8, 80]
    page.locator("#next").click()
    assert numbers(said.inner_text()) == [9, 16, 80]

    def total() -> int:
        found = numbers(said.inner_text())
        return 0 if said.inner_text().startswith("None") else found[2]

    page.locator("select[name=mode]").select_option(label="python")
    assert total() == sum(sample.mode == "python" for sample in samples)
    page.locator("input[name=step-to]").fill("90")
    assert total() == sum(sample.mode == "python" and sample.step <= 90 for sample in samples)
    page.get_by_role("button", name="Clear filters").click()
    page.get_by_text("1 to 8 of 80 completions", exact=True).wait_for()
    page.locator("input[name=reward-to]").fill("0.5")
    assert total() == sum(sample.reward is not None and sample.reward <= 0.5 for sample in samples)
    page.get_by_role("button", name="Clear filters").click()
    page.locator("select[name=source]").select_option(label="sums")
    assert total() == sum(sample.source == "sums" for sample in samples)
    page.get_by_role("button", name="Clear filters").click()
    page.locator("input[name=text]").fill("PRINT(")
    assert total() == sum("print(" in (sample.completion or "") for sample in samples)
    assert page.locator("#samples-list mark").first.inner_text() == "print("
    page.locator("input[name=prompt]").fill(samples[-1].prompt_id)
    assert total() >= 1
    page.locator("input[name=text]").fill("there is no such text")
    assert total() == 0
    assert "clear a filter" in said.inner_text()
    page.get_by_role("button", name="Clear filters").click()
    page.locator("select[name=order]").select_option(label="reward, highest first")
    assert "reward 1" in page.locator("#samples-list .meta").first.inner_text().replace("\n", " ")


def test_keyboard_moves_one_cursor_over_all_figures(visit: Any, pages: dict[str, Path]) -> None:
    page = visit(pages["collapsed"]).page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    assert page.locator("a.skip").bounding_box()["x"] >= 0
    page.locator("#charts [role=img]").first.focus()
    outline = "getComputedStyle(document.activeElement).outlineStyle"
    page.keyboard.press("Home")
    assert page.evaluate(outline) == "solid"
    page.keyboard.press("ArrowRight")
    now = page.locator("#charts .now").all_inner_texts()
    assert [numbers(text)[0] for text in now[:3]] == [2, 2, 2]
    assert "step 2" in page.locator("#readout").inner_text()
    assert all(text.endswith("%") for text in page.locator("#shares-legend output").all_inner_texts())
    assert page.locator("#timeline-drawing .cursor").evaluate("(e) => e.style.visibility") == "visible"
    page.keyboard.press("End")
    assert numbers(page.locator("#charts .now").first.inner_text())[0] == 180
    page.keyboard.press("ArrowLeft")
    assert numbers(page.locator("#charts .now").first.inner_text())[0] == 179
    page.keyboard.press("Escape")
    assert page.locator("#charts .now").first.inner_text().startswith("now")
    page.locator("#timeline-drawing").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    # The events' own steps: 1, then the onset.
    assert "step 81" in page.locator("#readout").inner_text()


def test_pointing_moves_all_cursors(visit: Any, pages: dict[str, Path]) -> None:
    page = visit(pages["collapsed"]).page
    page.locator("#charts .chart").nth(1).locator(".plot").hover()
    steps = {numbers(text)[0] for text in page.locator("#charts .now").all_inner_texts()}
    assert len(steps) == 1
    assert 60 < steps.pop() < 120


def test_range_of_steps(visit: Any, pages: dict[str, Path]) -> None:
    page = visit(pages["collapsed"]).page
    page.locator("#range-from").fill("60")
    page.locator("#range-to").fill("90")
    page.keyboard.press("Enter")
    page.locator("#charts [role=img]").first.focus()
    page.keyboard.press("Home")
    assert numbers(page.locator("#charts .now").first.inner_text())[0] == 60
    page.locator("#range-all").click()
    page.locator("#charts [role=img]").first.focus()
    page.keyboard.press("Home")
    assert numbers(page.locator("#charts .now").first.inner_text())[0] == 1


def test_heat_strip_has_the_colours_of_its_rates(visit: Any, pages: dict[str, Path]) -> None:
    heat = make_audit.collapsed().heat
    assert heat is not None
    zeros = sum(rate == 0.0 for row in heat.rows for rate in row.rates)
    ones = sum(rate == 1.0 for row in heat.rows for rate in row.rates)
    assert min(zeros, ones) > 50
    low, high, cell = visit(pages["collapsed"]).page.locator("#heat-canvas").evaluate(
        """(canvas) => {
          const data = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
          const count = (r, g, b) => { let n = 0; for (let i = 0; i < data.length; i += 4)
            if (data[i] === r && data[i + 1] === g && data[i + 2] === b) n++; return n; };
          return [count(200, 80, 47), count(42, 111, 176), canvas.width / 24 * 14];
        }"""
    )  # fmt: skip
    # Pixels of the colours of 0 and of 1 are as many as cells with these rates: 14 px high, the strip's part wide.
    assert 0.5 * zeros * cell < low < zeros * cell
    assert low / high == pytest.approx(zeros / ones, rel=0.05)


def test_heat_strip_reads_out_and_leads_to_completions(visit: Any, pages: dict[str, Path]) -> None:
    page = visit(pages["collapsed"]).page
    heat = make_audit.collapsed().heat
    assert heat is not None
    page.locator("#heat-canvas").focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    said = page.locator("#heat-readout").inner_text()
    assert (heat.rows[1].prompt or "") in said
    assert f"steps {heat.bins[0][0]} to {heat.bins[0][1]}" in said
    page.keyboard.press("Enter")
    assert page.locator("input[name=prompt]").input_value() == heat.rows[1].prompt_id
    page.locator("#heat-fate").select_option(index=1)
    assert "6 prompts" in (page.locator("#heat-canvas").get_attribute("aria-label") or "")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_both_schemes_and_the_button(visit: Any, pages: dict[str, Path], scheme: str) -> None:
    page = visit(pages["collapsed"], scheme=scheme).page
    paper = "getComputedStyle(document.body).backgroundColor"
    colours = {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 28)"}
    assert page.evaluate(paper) == colours[scheme]
    drawn = "document.querySelector('#charts canvas').toDataURL()"
    before = page.evaluate(drawn)
    for wanted in ("light", "dark"):
        page.locator("#theme").click()
        assert page.evaluate(paper) == colours[wanted]
    # The button ends on dark; lines on a canvas have to be drawn again to change their colour.
    assert (page.evaluate(drawn) == before) == (scheme == "dark")
    page.locator("#theme").click()
    assert page.evaluate(paper) == colours[scheme]
    assert page.evaluate(drawn) == before
    page.emulate_media(color_scheme="dark" if scheme == "light" else "light")
    page.wait_for_function(f"(before) => {drawn} !== before", arg=before, timeout=10_000)


def test_a_long_text_opens_and_closes(visit: Any, pages: dict[str, Path]) -> None:
    page = visit(pages["long_run"]).page
    more = page.locator("#samples-list .more:visible").first
    box = more.locator("xpath=preceding-sibling::pre[1]")
    closed = box.bounding_box()["height"]
    more.click()
    assert box.bounding_box()["height"] > closed + 40
    assert more.get_attribute("aria-expanded") == "true"


def test_prints_without_controls(visit: Any, pages: dict[str, Path]) -> None:
    page = visit(pages["collapsed"]).page
    page.emulate_media(media="print")
    assert not page.locator("nav").is_visible()
    assert not page.locator("#filters").is_visible()
    assert page.locator("#verdict").is_visible()


def test_without_scripts_the_verdict_is_still_there(chromium: Any, pages: dict[str, Path]) -> None:
    context = chromium.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(pages["collapsed"].as_uri())
    still = page.locator(".still")
    assert still.locator("h1").inner_text().startswith("FAIL: This run lost 4 of 6 answer formats")
    assert still.locator("svg polygon").count() >= 5
    assert still.locator("tbody tr").count() == len(make_audit.collapsed().checks)
    assert not page.locator("#main").is_visible()
    context.close()


def test_an_address_leads_to_a_check_or_a_step(visit: Any, pages: dict[str, Path]) -> None:
    page = visit(pages["collapsed"]).page
    folded = page.locator("#check-format-collapse")
    assert not folded.is_visible()
    page.evaluate("location.hash = '#check-format-collapse'")
    folded.wait_for(state="visible")
    passed = next(check.id for check in make_audit.collapsed().checks if check.status == "pass")
    page.evaluate(f"location.hash = '#check-{passed}'")
    page.locator(f"#check-{passed}").wait_for(state="visible")
    page.evaluate("location.hash = '#step-53'")
    now = page.locator("#charts .now").first
    page.wait_for_function("now => now.innerText.startsWith('step 53 ')", arg=now.element_handle(), timeout=10_000)
    # It stays while the pointer comes and goes, and a click keeps another.
    figure = page.locator("#shares-drawing")
    figure.hover()
    page.mouse.move(5, 5)
    assert now.inner_text().startswith("step 53 ")
    figure.click()
    kept = page.evaluate("location.hash")
    assert re.fullmatch(r"#step-\d+", kept)
    assert kept != "#step-53"
    assert now.inner_text().startswith(kept[1:].replace("-", " "))


def test_the_scheme_is_remembered_where_that_is_allowed(visit: Any, pages: dict[str, Path]) -> None:
    opened = visit(pages["healthy"])
    opened.page.locator("#theme").click()
    opened.page.locator("#theme").click()
    opened.page.reload()
    opened.page.locator("#nav a").last.wait_for()
    assert opened.page.evaluate("document.documentElement.dataset.theme") == "dark"
    opened.page.add_init_script("Object.defineProperty(window, 'localStorage', { get() { throw new Error('no'); } })")
    opened.page.reload()
    opened.page.locator("#nav a").last.wait_for()
    assert opened.page.evaluate("document.documentElement.dataset.theme") is None
    opened.page.locator("#theme").click()
    assert opened.page.evaluate("document.documentElement.dataset.theme") == "light"
    assert opened.complaints() == []


@pytest.mark.parametrize("name", ["collapsed", "hostile"])
def test_each_figure_can_be_saved_as_a_picture_and_as_numbers(visit: Any, pages: dict[str, Path], name: str) -> None:
    opened = visit(pages[name])
    page = opened.page
    for figure in ("#shares", "#timeline", "#charts .chart", "#heat"):
        buttons = page.locator(f"{figure} .save")
        with page.expect_download() as picture:
            buttons.nth(0).click()
        data = Path(picture.value.path()).read_bytes()
        assert data.startswith(b"\x89PNG")
        assert len(data) > 4_000, "not blank"
        with page.expect_download() as numbers_of:
            buttons.nth(1).click()
        assert re.fullmatch(r"rlmon-[a-z0-9-]+\.csv", numbers_of.value.suggested_filename)
        rows = list(csv.reader(io.StringIO(Path(numbers_of.value.path()).read_text(encoding="utf-8"))))
        assert len(rows) > 3
        assert len({len(row) for row in rows}) == 1
        # What a spreadsheet would run is text.
        assert not [cell for row in rows for cell in row if re.match(r"[=+@\t\r]|-[^\d]", cell)]
        if figure == "#shares":
            shares = BUILDERS[name]().mode_shares.values()
            assert len(rows) - 1 == sum(any(at is not None for at in step) for step in zip(*shares, strict=True))
            assert all(sum(map(float, row[1:])) == pytest.approx(1, abs=0.01) for row in rows[1:])
    assert opened.complaints() == []


def test_the_end_of_a_long_answer_is_on_the_page(visit: Any, tmp_path: Path) -> None:
    audit = make_audit.collapsed()
    lines = "\n".join(f"line {i} of the reasoning, which goes on and on" for i in range(80))
    text = f"<think>{lines}</think>\n\\boxed{{42}}"
    sample = dataclasses.replace(audit.samples[0], completion=text)
    page = visit(write_page(dataclasses.replace(audit, samples=[sample]), tmp_path / "long.html")).page
    shown = page.locator("#samples-list .text").last
    assert "<think>line 0" in shown.inner_text()
    assert shown.inner_text().endswith("\\boxed{42}")
    assert re.search(r"… [\d,]+ characters left out …", shown.inner_text())
    box = shown.bounding_box()
    assert box["height"] < 420
    page.locator("#samples-list .more").click()
    assert page.locator("#samples-list .text").last.inner_text().replace("\u00a0", " ") == text
