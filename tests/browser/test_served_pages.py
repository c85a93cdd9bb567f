"""The served pages in a real browser, from a real server: they follow a growing log and keep the reader's place."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import make_runlog
import pytest
from growing import GrowingLog


@pytest.mark.parametrize(("width", "scheme"), [(400, "dark"), pytest.param(1400, "light", marks=pytest.mark.slow)])
def test_the_list_follows_and_leads_to_pages(serving: Any, look: Any, tmp_path: Path, width: int, scheme: str) -> None:
    log = GrowingLog(tmp_path / "first")
    log.grow(4)
    page = look(serving(tmp_path), width, scheme)
    page.get_by_text("step 4 / 100").wait_for()
    page.locator(".badge", has_text="UNSURE").wait_for()
    page.locator(".run a").focus()
    log.grow(2)
    page.get_by_text("step 6 / 100").wait_for()
    assert page.evaluate("document.activeElement.textContent") == "first", "the row stays the same element"
    GrowingLog(tmp_path / "second").grow(1)
    log.writer.append_event("finding", make_runlog.finding(6, severity="fail", message="formats went away"))
    page.locator(".run.fail .said", has_text="formats went away").wait_for()
    assert page.locator("#news").inner_text() == "first: FAIL"
    assert page.title().startswith("1 FAIL")
    page.locator(".run").nth(1).wait_for()
    page.locator("#counts button", has_text="FAIL").click()
    assert page.locator(".run:visible").count() == 1
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.locator(".run:visible a").click()
    page.locator("#nav a").last.wait_for()
    assert re.search(r"/run/[0-9a-f]{16}$", page.url)
    page.get_by_role("link", name="All runs").click()
    page.locator(".run").nth(1).wait_for()
    assert page.complaints == []


@pytest.mark.parametrize(("width", "scheme"), [(1400, "dark"), pytest.param(400, "light", marks=pytest.mark.slow)])
def test_a_page_updates_by_itself_and_the_reader_stays_where_he_was(
    serving: Any, look: Any, tmp_path: Path, width: int, scheme: str
) -> None:
    log = GrowingLog(tmp_path / "run")
    log.grow(8)
    page = look(serving(tmp_path), width, scheme)
    page.locator(".run a").click()
    page.locator("#nav a").last.wait_for()
    assert "1 to 8" in page.locator("#facts").inner_text()
    page.locator("#checks-skip summary").first.click()
    page.locator("#curves details summary", has_text="Every metric").click()
    # By a script: whoever has just typed is not interrupted for a while.
    type_answer = "(one) => { one.value = 'answer'; one.dispatchEvent(new Event('input', { bubbles: true })); }"
    page.locator("#filters [name=text]").evaluate(type_answer)
    page.locator("#range-all").evaluate("(one) => one.focus({preventScroll: true})")
    page.locator("#curves").evaluate("(one) => scrollTo({top: one.offsetTop + 150, behavior: 'instant'})")
    before = page.locator("#curves").bounding_box()["y"]
    page.evaluate("window.old = true")
    log.grow(3)
    page.wait_for_selector("#facts :text('1 to 11')", state="attached", timeout=120_000)
    assert page.evaluate("window.old") is None, "it is the new page"
    assert page.locator("#checks-skip").evaluate("(one) => one.open")
    assert page.locator("#curves details", has_text="Every metric").evaluate("(one) => one.open")
    assert page.locator("#filters [name=text]").input_value() == "answer"
    assert page.evaluate("document.activeElement.id") == "range-all"
    page.wait_for_timeout(1500)
    assert page.locator("#curves").bounding_box()["y"] == pytest.approx(before, abs=3)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.complaints == []


def test_whoever_pauses_keeps_what_he_sees(serving: Any, look: Any, tmp_path: Path) -> None:
    log = GrowingLog(tmp_path / "run")
    log.grow(4)
    page = look(serving(tmp_path))
    page.locator(".run a").click()
    page.locator("#nav a").last.wait_for()
    pause = page.get_by_role("button", name="Pause")
    pause.click()
    assert pause.get_attribute("aria-pressed") == "true"
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    log.grow(1)
    page.wait_for_timeout(3000)
    assert asked == []
    pause.click()
    page.wait_for_selector("#facts :text('1 to 5')", state="attached", timeout=120_000)
