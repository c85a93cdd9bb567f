"""Whoever cannot see a page well, or has no mouse, can use it: axe finds nothing on any of them.

axe knows the rules of WCAG and good practice and looks at what the browser drew: contrasts, names, keyboard, landmarks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import make_audit
import make_demo
import make_runlog
import pytest
from growing import GrowingLog
from make_audit import seeded

import rlmon
from rlmon.audit.comparison import compare
from rlmon.report import compare_page, demo
from rlmon.report.audit import build_page

in_windows = pytest.mark.parametrize(
    "windows",
    [
        [(1400, "light"), (400, "dark")],
        pytest.param([(1400, "dark"), (400, "light")], marks=pytest.mark.slow),
    ],
)
OPENED_WITHOUT_REPETITION = """async () => {
  const thin = (parent) => {
    const seen = new Set();
    let shape = `<${parent.tagName}${parent.id} ${parent.getAttribute('class')} ${parent.getAttribute('role')}>`;
    for (const one of [...parent.children]) {
      const its = thin(one);
      if (seen.has(its)) one.remove(); else shape += its;
      seen.add(its);
    }
    return shape;
  };
  document.querySelectorAll('details').forEach((one) => { one.open = true; });
  await new Promise((done) => setTimeout(done, 100));
  thin(document.body);
}"""
"""Opens all details and keeps one of the neighbours that are built alike: axe takes half a minute for a whole page."""


def acted(folder: Path) -> Path:
    """A run log with findings of each severity and with acts."""
    log = GrowingLog(folder)
    log.grow(12)
    for step, severity in ((3, "note"), (5, "warn"), (9, "fail")):
        log.writer.append_event("finding", make_runlog.finding(step, severity=severity))
    for phase in ("decided", "applied"):
        log.writer.append_event("action", make_runlog.action(6, phase))
    for phase in ("decided", "failed"):
        log.writer.append_event("action", make_runlog.action(8, phase))
    log.end()
    return folder


def compared(*, hostile: bool) -> str:
    if hostile:
        one = make_audit.hostile()
        return compare_page.html(compare([one, seeded(one, 1)], [seeded(one, 2), seeded(one, 3)], base=one))
    a = [seeded(make_audit.collapsed(30), number) for number in range(2)]
    b = [seeded(make_audit.healthy(30), number) for number in range(2, 4)]
    return compare_page.html(compare(a, b, names=("plain", "kl")))


BUILDERS: Mapping[str, Callable[[Path], str]] = {
    "audit": lambda folder: build_page(make_audit.collapsed(30)),
    "audit_with_a_note": lambda folder: build_page(make_audit.solved(30)),
    "audit_of_hostile_text": lambda folder: build_page(make_audit.hostile()),
    "audit_of_nothing": lambda folder: build_page(make_audit.empty()),
    "report_of_a_log": lambda folder: build_page(rlmon.audit(acted(folder / "log"))),
    "comparison": lambda folder: compared(hostile=False),
    "comparison_of_hostile_text": lambda folder: compared(hostile=True),
    "demo": lambda folder: demo.build_page(make_demo.demo(), make_demo.series()),
}


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    for name, build in BUILDERS.items():
        (folder / f"{name}.html").write_text(build(folder), encoding="utf-8")
    return {name: folder / f"{name}.html" for name in BUILDERS}


def found_by_axe(page: Any, windows: Sequence[tuple[int, str]]) -> list[str]:
    """What is wrong with the page in each window, one line for each element."""
    from axe_playwright_python.base import AXE_SCRIPT

    page.evaluate(OPENED_WITHOUT_REPETITION)
    page.evaluate(AXE_SCRIPT)
    said = []
    for width, scheme in windows:
        page.set_viewport_size({"width": width, "height": 900})
        page.emulate_media(color_scheme=scheme)
        page.wait_for_timeout(100)
        for one in page.evaluate("axe.run({resultTypes: ['violations']})")["violations"]:
            said += [f"{width} {scheme} {one['impact']} {one['id']} {node['html']}" for node in one["nodes"]]
    return said


@in_windows
@pytest.mark.parametrize(
    "name",
    [
        "audit",
        "comparison",
        "demo",
        *(pytest.param(name, marks=pytest.mark.slow) for name in BUILDERS if "_" in name),
    ],
)
def test_axe_finds_nothing(visit: Any, pages: dict[str, Path], name: str, windows: Any) -> None:
    assert found_by_axe(visit(pages[name], whole=name != "demo").page, windows) == []


@in_windows
def test_axe_finds_nothing_on_served_pages(serving: Any, look: Any, tmp_path: Path, windows: Any) -> None:
    acted(tmp_path / "acted")
    GrowingLog(tmp_path / "young").grow(1)
    page = look(serving(tmp_path))
    page.locator(".run.fail .badge", has_text="FAIL").wait_for()
    page.locator(".run", has_text="young").locator(".badge:not(:text-is('READING'))").wait_for()
    assert found_by_axe(page, windows) == []
    page.goto(page.url)
    page.locator(".run.fail a").click()
    page.locator("#nav a").last.wait_for()
    assert found_by_axe(page, windows) == []


@pytest.mark.parametrize(
    ("spoil", "rule"),
    [
        ("document.documentElement.style.setProperty('--dim', 'light-dark(#a0a8b0, #14171c)')", "color-contrast"),
        ("document.documentElement.style.setProperty('--dim', 'light-dark(#5b6470, #555b60)')", "color-contrast"),
        ("document.getElementById('main').innerHTML += '<input>'", "label"),
        ("document.documentElement.removeAttribute('lang')", "html-has-lang"),
    ],
)
def test_the_check_can_fail(visit: Any, pages: dict[str, Path], spoil: str, rule: str) -> None:
    page = visit(pages["audit_of_nothing"]).page
    page.evaluate(spoil)
    said = found_by_axe(page, [(1400, "light"), (400, "dark")])
    assert {one.split()[3] for one in said} == {rule}
