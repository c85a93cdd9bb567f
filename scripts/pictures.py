"""The pictures of the docs, from a finished demo: ``make pictures``.

    rlmon demo --quick && python scripts/pictures.py out/demo docs/pictures

Pages and terminals are what the commands in ``COMMANDS`` make of the demo's runs, in a folder called ``runs``, so that
no path of this machine is seen. TensorBoard shows the event file of the run in ``tensorboard`` beside them, which is
trained by ``make pictures``. A headless Chromium without a network looks at them.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from html import escape
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from rlmon.report.demo import build_page, caption_of, load, name_of, shares_of
from rlmon.report.figure import (
    FIGURE_STYLE,
    LEFT,
    PANEL_HEIGHT,
    PANEL_WIDTH,
    Shares,
    colours,
    draw_order,
    panel,
    text_at,
)

COLOURS = 256
CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "chrome")
ARGUMENTS = (
    "--no-sandbox",  # as root it refuses to run with one; the pages are our own
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)


@dataclass(frozen=True, kw_only=True)
class Shot:
    """One picture: what the browser looks at and through which window, in CSS pixels."""

    of: str
    """A file that ``made`` makes, or a name in ``SERVED``."""
    width: int
    height: int
    """At most; less where the page ends before."""
    top: int = 0
    """What lies above is cut off: the list's head names a folder of this machine."""
    scheme: Literal["light", "dark"] = "light"
    scale: float = 1
    tab: str = ""
    """What of it: the part of the address behind ``#``."""
    shown: str = ""
    """It is complete when this text is there."""


PICTURES = {
    "demo.png": Shot(of="arms.html", width=1128, height=900, scale=1.5),
    "demo-page.png": Shot(of="demo.html", width=1400, height=1100),
    "audit-page.png": Shot(of="audit.html", width=1400, height=1100),
    "audit-page-narrow.png": Shot(of="audit.html", width=400, height=1290, scheme="dark"),
    "audit-terminal.png": Shot(of="audit-terminal.html", width=1000, height=1200),
    "watch-terminal.png": Shot(of="watch-terminal.html", width=1000, height=1200),
    "compare-page.png": Shot(of="compare.html", width=1400, height=1100),
    "ci-summary.png": Shot(of="summary.html", width=900, height=1000),
    "live-list.png": Shot(of="list", width=1400, height=900, top=52),
    "trackio.png": Shot(of="trackio", width=1400, height=1010),
    "tensorboard-charts.png": Shot(
        of="tensorboard", tab="custom_scalars", shown="Matches (10)", width=1240, height=950
    ),
    "tensorboard-text.png": Shot(
        of="tensorboard",
        tab="text&tagFilter=findings%2Fformat%7Csamples%7Cverdict",
        shown="advantage",
        width=1240,
        height=950,
    ),
    "tensorboard-histograms.png": Shot(
        of="tensorboard", tab="histograms", shown="token_entropy_nats", width=1240, height=700
    ),
}
"""Every picture in docs/pictures."""

RUN, OTHER = "runs/unprotected-seed0", "runs/kl-seed0"
COMMANDS: dict[str, tuple[str, ...]] = {
    "audit.html": ("report", RUN, "--out", "audit.html"),
    "compare.html": ("compare", RUN, OTHER, "--html", "compare.html"),
    "audit-terminal.html": ("audit", RUN),
    "watch-terminal.html": ("watch", RUN, "--once"),
    "summary.html": ("audit", RUN, "--format", "markdown"),
}
"""What is typed for a file: a page is written by the command, the others show what it prints."""

EVENT_FILE = "tensorboard/runs/*/events.out.tfevents.*"
"""Below the demo's folder: what the trainer and rlmon wrote for TensorBoard."""
TERMINAL_COLUMNS = 110
# No font from elsewhere: the file is looked at without a network.
TERMINAL = """<svg class="rich-terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{font-family: "DejaVu Sans Mono", Menlo, Consolas, monospace; font-size: {char_height}px;
    line-height: {line_height}px}}
.{unique_id}-title {{display: none}}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}"/></clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">{matrix}</g>
</g>
</svg>
"""
DRAWING = '<!doctype html><meta charset="utf-8"><title>drawing</title><body style="margin: 4px 8px">{svg}'
# Much as GitHub shows Markdown.
SUMMARY = """<!doctype html><meta charset="utf-8"><title>summary</title><style>
body {{margin: 24px 32px; font: 14px/1.5 "Liberation Sans", Arial, sans-serif; color: #1f2328; background: #fff}}
h1, h2 {{border-bottom: 1px solid #d1d9e0; padding-bottom: .3em; font-weight: 600}} h1 {{font-size: 1.8em}}
table {{border-collapse: collapse; margin: 12px 0}} th, td {{border: 1px solid #d1d9e0; padding: 5px 12px}}
tr:nth-child(2n) {{background: #f6f8fa}} a {{color: #0969da}}
code, pre {{font: 12px "DejaVu Sans Mono", monospace; background: #f0f1f3; border-radius: 6px}}
code {{padding: 2px 5px}}
pre {{padding: 12px; overflow: hidden}} pre code {{padding: 0}}
blockquote {{margin: 0; padding: 0 1em; border-left: 4px solid #d1d9e0; color: #59636e}}
.sign {{display: inline-block; width: .8em; height: .8em; border-radius: 50%}}
</style>{body}
"""
# Signs of the summary that only a font of emoji has, drawn.
SIGNS = {"🔴": "#d1242f", "🟡": "#e3b341", "🟢": "#2da44e", "🔵": "#218bff", "⚪": "#d8dee4"}

DRAWN = """signs => {
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), found = []
  while (texts.nextNode()) found.push(texts.currentNode)
  for (const text of found) for (const [sign, colour] of Object.entries(signs)) if (text.data.includes(sign)) {
    const drawn = document.createElement('span')
    drawn.style = `display:inline-block;width:.7em;height:.7em;border-radius:50%;background:${colour}`
    text.before(drawn)
    text.data = text.data.replace(sign, '')
  }
}"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("demo", type=Path, help="folder of a finished demo")
    parser.add_argument("out", type=Path, help="folder to write to")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"only these (of {', '.join(PICTURES)})")
    given = parser.parse_args()
    if not (given.demo / "demo.json").is_file():
        parser.error(f"{given.demo} holds no finished demo; type: rlmon demo --quick --out {given.demo}")
    if unknown := sorted(set(given.names) - set(PICTURES)):
        parser.error(f"no picture is called {', '.join(unknown)}; they are {', '.join(PICTURES)}")
    shots = {name: PICTURES[name] for name in given.names or PICTURES}
    if any(shot.of == "tensorboard" for shot in shots.values()) and not list(given.demo.glob(EVENT_FILE)):
        parser.error(f"{given.demo} holds no run that TensorBoard can show; type: make pictures")
    out = given.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        work = Path(folder)
        runs_of(given.demo, work)
        wanted = {shot.of for shot in shots.values()}
        addresses = {name: (made(name, given.demo, work)).as_uri() for name in sorted(wanted - set(SERVED))}
        addresses |= {name: stack.enter_context(served(work)) for name, served in SERVED.items() if name in wanted}
        browser = stack.enter_context(chromium())
        for name, shot in shots.items():
            seen = photograph(browser, addresses[shot.of], shot)
            (out / name).write_bytes(small(seen))
            print(f"{out / name}: {(out / name).stat().st_size / 1000:.0f} kB")


def runs_of(demo: Path, work: Path) -> None:
    """The demo's runs, in a folder with a name that may be seen."""
    for log in sorted(demo.glob("*-seed0/rlmon")):
        shutil.copytree(log, work / "runs" / log.parent.name / "rlmon")
    for events in sorted(demo.glob(EVENT_FILE)):
        (work / "curves" / "run").mkdir(parents=True, exist_ok=True)
        shutil.copy(events, work / "curves" / "run")


def made(name: str, demo: Path, work: Path) -> Path:
    """The file ``name`` in ``work``. Raises ``SystemExit`` with what the command said where it could not be made."""
    file = work / name
    if name == "demo.html":
        file.write_text(build_page(*load(demo)), encoding="utf-8")
    elif name == "arms.html":
        file.write_text(DRAWING.format(svg=of_all_arms(demo)), encoding="utf-8")
    else:
        said = typed(COMMANDS[name], work)
        if name == "summary.html":
            file.write_text(SUMMARY.format(body=rendered(said)), encoding="utf-8")
        elif name.endswith("-terminal.html"):
            svg = terminal(f"$ rlmon {' '.join(COMMANDS[name])}\n{said}")
            file.write_text(DRAWING.format(svg=svg), encoding="utf-8")
    return file


def typed(command: tuple[str, ...], work: Path) -> str:
    """What ``rlmon`` prints in ``work``, with the colours of a terminal."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).resolve().parents[1]),
        "COLUMNS": str(TERMINAL_COLUMNS),
        "FORCE_COLOR": "1",
        "TERM": "xterm-256color",
    }
    run = subprocess.run(
        [sys.executable, "-m", "rlmon.cli", *command],
        cwd=work,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    # 1 is a run with a FAIL, which is what the pictures are of.
    if run.returncode not in (0, 1):
        raise SystemExit(f"rlmon {' '.join(command)} ended with {run.returncode}:\n{run.stderr}")
    return run.stdout


def terminal(text: str) -> str:
    """The text, with its escape sequences, as a picture of a terminal."""
    from rich.console import Console
    from rich.text import Text

    console = Console(record=True, width=TERMINAL_COLUMNS, file=io.StringIO(), highlight=False)
    console.print(Text.from_ansi(text.rstrip("\n")), soft_wrap=True)
    return console.export_svg(title="", code_format=TERMINAL)


def rendered(text: str) -> str:
    """Markdown as HTML."""
    from markdown_it import MarkdownIt

    html = str(MarkdownIt("commonmark").enable("table").render(text))
    for sign, colour in SIGNS.items():
        html = html.replace(sign, f'<span class="sign" style="background: {colour}"></span>')
    return html


def of_all_arms(demo: Path) -> str:
    """The format shares of all arms of the first seed, side by side."""
    facts, series = load(demo)
    runs = [run for run in facts["runs"] if run["seed"] == facts["seeds"][0]]
    return picture(
        [shares_of(run, series[name_of(run)]) for run in runs],
        [caption_of(facts["base"], run) for run in runs],
        "Nothing in the reward asks for a format. Unprotected, one of six eats the others.",
    )


@contextlib.contextmanager
def serving(command: tuple[str, ...], work: Path) -> Iterator[str]:
    """The address that a server says, which ends with the context."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    started = [sys.executable, "-m", *command]
    with subprocess.Popen(
        started, cwd=work, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as server:
        try:
            assert server.stdout is not None
            address = next((found for line in server.stdout if (found := re.search(r"http://127\S+", line))), None)
            if address is None:
                raise SystemExit(f"{' '.join(command)} said no address")
            yield address[0]
        finally:
            server.terminate()


@contextlib.contextmanager
def trackio_of(work: Path) -> Iterator[str]:
    """The address of trackio's own dashboard over the runs, as the sink shows them; it ends with the context."""
    os.environ["TRACKIO_DIR"] = str(work / "trackio")  # read when trackio is imported
    import trackio

    import rlmon
    from rlmon.sinks.trackio import TrackioSink

    with contextlib.redirect_stdout(io.StringIO()):
        for folder in sorted((work / "runs").iterdir()):
            run = rlmon.open_run(folder / "rlmon")
            trackio.init(project="demo", name=folder.name, embed=False, auto_log_cpu=False, auto_log_gpu=False)
            sink = TrackioSink()
            sink.open(run.header)
            for record in run.step_records():
                sink.record(record, {})
                for finding in run.findings:
                    if finding.step == record.step:
                        sink.finding(finding)
            sink.close()
            trackio.finish()
        dashboard, address, *_ = trackio.show(open_browser=False, block_thread=False, share=False)
    wanted = "rlmon/(format/(effective|top_share|js_to_base)|entropy/(mean|p80|ratio_to_base)|kl/mean)$"
    yield f"{address}?project=demo&smoothing=0&hide_empty_tabs=true&metric_filter={quote(wanted)}"
    dashboard.close()


SERVED: dict[str, Callable[[Path], contextlib.AbstractContextManager[str]]] = {
    "list": partial(serving, ("rlmon.cli", "serve", "runs", "--port", "0")),
    # Its fast way to load is a program of its own, which a stopped TensorBoard leaves behind.
    "tensorboard": partial(
        serving,
        ("tensorboard.main", "--logdir", "curves", "--host", "127.0.0.1", "--port", "0", "--load_fast=false"),
    ),
    "trackio": trackio_of,
}
"""Pages that a program serves while it is looked at."""


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """A headless Chromium. Raises ``SystemExit`` with what to install where there is none."""
    path = next((found for name in CHROMIUM if (found := shutil.which(name))), None)
    if path is None:
        raise SystemExit("no Chromium here: apt-get install chromium")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        raise SystemExit("no playwright here: pip install playwright") from None
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(ARGUMENTS))
        yield browser
        browser.close()


def photograph(browser: Any, address: str, shot: Shot) -> bytes:
    """The page as a PNG, once it is complete."""
    context = browser.new_context(
        color_scheme=shot.scheme,
        viewport={"width": shot.width, "height": shot.height},
        device_scale_factor=shot.scale,
        reduced_motion="reduce",
    )
    page = context.new_page()
    page.goto(f"{address}#{shot.tab}" if shot.tab else address)
    if shot.shown:
        page.get_by_text(shot.shown).first.wait_for(timeout=120_000)
        page.wait_for_timeout(3_000)  # charts come one after the other
    if shot.of == "list":
        # Every run has a verdict, and that of the one that fails is an audit's: its detectors speak before.
        page.locator(".run .badge:not(:text-is('READING'))").nth(2).wait_for(timeout=60_000)
        page.locator(".run", has_text="From step").wait_for(timeout=60_000)
    if shot.of == "trackio":
        page.locator("canvas").nth(5).wait_for(timeout=60_000)
        page.wait_for_timeout(3_000)
        page.evaluate(DRAWN, SIGNS)
    page.wait_for_timeout(500)
    end = int(page.evaluate("document.documentElement.getBoundingClientRect().bottom + scrollY"))
    seen: bytes = page.screenshot(
        clip={"x": 0, "y": shot.top, "width": shot.width, "height": min(end, shot.height) - shot.top},
        timeout=120_000,
    )
    context.close()
    return seen


def small(png: bytes) -> bytes:
    """The PNG with ``COLOURS`` colours."""
    import numpy as np
    from PIL import Image

    with Image.open(io.BytesIO(png)) as opened:
        image = np.asarray(opened.convert("RGB")).astype(np.int64)
    packed = image @ np.array([65_536, 256, 1])
    found, which, counts = np.unique(packed, return_inverse=True, return_counts=True)
    parts = np.stack([found >> 16, found >> 8 & 255, found & 255], axis=1)
    # The most frequent ones as they are, since an average tints the areas that nearly everything is; the others become
    # the nearest of them.
    palette = parts[np.argsort(-counts, kind="stable")[:COLOURS]]
    nearest = np.array([np.square(palette - one).sum(axis=1).argmin() for one in parts], dtype=np.uint8)
    few = Image.fromarray(nearest[which].reshape(packed.shape))
    few.putpalette(palette.astype(np.uint8).tobytes())
    out = io.BytesIO()
    few.save(out, "PNG", optimize=True)
    return out.getvalue()


def picture(runs: Sequence[Shares], captions: Sequence[Sequence[str]], headline: str) -> str:
    """A stand-alone SVG of runs side by side, for light and dark pages. ``captions``: the lines below each run."""
    order = draw_order(runs)
    palette = colours(order)
    below = 44 + PANEL_HEIGHT + 17
    legend = below + 17 * max((len(lines) for lines in captions), default=0) + 4
    width, height = PANEL_WIDTH * len(runs) + 12, legend + 26
    keys: list[str] = []
    at = LEFT
    for mode in order:
        keys.append(
            f'<rect x="{at:.0f}" y="{legend:.0f}" width="11" height="11" rx="2" fill="{palette[mode]}"/>'
            f'<text class="axis" x="{at + 16:.0f}" y="{legend + 10:.0f}">{escape(mode)}</text>'
        )
        at += 16 + 7.2 * len(mode) + 20
    panels: list[str] = []
    for number, (run, lines) in enumerate(zip(runs, captions, strict=True)):
        left = PANEL_WIDTH * number
        panels.append(f'<g transform="translate({left:.0f} 44)">{panel(run, order)}</g>')
        panels += [
            text_at(left + LEFT, below + 17 * i, "caption", "start", line) for i, line in enumerate(lines)
        ]  # fmt: skip
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
        f'height="{height:.0f}" font-family="system-ui,-apple-system,Segoe UI,Roboto,sans-serif" '
        f'role="img" aria-label="{escape(headline, quote=True)}">'
        "<style>:root{--ink:#1b1f24;--dim:#5b6470;--paper:#fff;--warn:#9a6a00;--bad:#c0271a}"
        "@media(prefers-color-scheme:dark){:root{--ink:#eceff3;--dim:#a3acb8;--paper:#14171c;--warn:#f0bd4f;--bad:#ff8272}}"
        f".head{{font-size:17px;font-weight:650;fill:var(--ink)}}.caption{{font-size:12.5px;fill:var(--dim)}}{FIGURE_STYLE}"
        "svg{background:var(--paper)}</style>"
        f'<rect width="{width:.0f}" height="{height:.0f}" rx="8" style="fill:var(--paper)"/>'
        f'<text class="head" x="{LEFT:.0f}" y="28">{escape(headline)}</text>'
        f"{''.join(panels)}{''.join(keys)}</svg>\n"
    )


if __name__ == "__main__":
    main()
