"""The demo's page: one file, no network, and no text of a run ever becomes markup."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
from page_parts import Tags

from rlmon.lab.claims import DEFINITIONS
from rlmon.report.demo import build_page, lanes_of
from rlmon.report.figure import Lane, Shares, draw_order, panel, strip, strip_height
from rlmon.report.page import HERE, fill, json_for_html
from scripts.pictures import picture

HOSTILE = "</script><script>alert(1)</script><!-- <img src=x onerror=alert(2)> \x1b[31m \u2028 \ud800 {{style}} &lt;"


def demo_of(text: str) -> dict[str, Any]:
    values = {
        "accuracy": 0.9, "effective_formats": 1.2, "effective_formats_within": None, "effective_formats_correct": 1.1,
        "effective_formats_correct_within": 1.0,
        "other_share": 0.0, "top_format": text, "top_share": 0.95, "entropy_nats": 0.1, "kl_nats": 0.2,
        "kl_seq_nats": 2.0,
    }  # fmt: skip
    sample = {"prompt": text, "completion": text, "format": text, "correct": True}
    finding = {"detector": "format-collapse", "severity": "fail", "step": 2, "message": text, "advice": text}
    run = {
        **values, "arm": "unprotected", "seed": 0, "first_warn_step": 1, "first_fail_step": 2,
        "top_share_over_0_9_step": 3, "cpu_seconds": 1.0, "monitor_seconds": 0.1, "samples": [sample],
        "findings": [finding], "log": "x", "acted": None,
        "kept": {"across": 0.3, "within": None, "correct": 0.3, "correct_within": 0.3, "price": 0.0},
    }  # fmt: skip
    act = {"step": 1, "rule": text, "knob": text, "old": None, "new": text, "reason": text, "failed": False,
           "effect": "helped", "effect_reason": text}  # fmt: skip
    acted = {"applied": {text: 1}, "failed": 0, "last_kappa": 0.5, "last_beta": None, "effects": {text: {text: 1}},
             "actions": [act]}  # fmt: skip
    return {
        "tool": "rlmon demo", "created_unix_seconds": 0.0, "packages": {"rlmon": text}, "seeds": [0],
        "arms": {"unprotected": {"beta": 0.0, "policy": None}, "protect": {"beta": 0.0, "policy": text}},
        "definitions": dict(DEFINITIONS), "cpu_seconds": 3.0,
        "evaluation": {"completions": 8, "prompts": 1, "samples_per_prompt": 8, "temperature": 1.0, "held_out": text},
        "base": {**values, "weights_sha256": "0" * 64, "samples": [sample]},
        "runs": [run, {**run, "arm": "protect", "acted": acted}],
        "second_act": [
            {"arm": text, "seed": 0, "wanted": text, "wanted_in_4096": 0, "mixed_groups": 0, "weights_moved": 0.0,
             "steps_to_90": steps, "rewards": [0.0, 0.5]} for steps in (None, 2)
        ],
        "claims": [{"id": "c", "arm": "unprotected", "seed": 0, "text": text, "holds": True, "shown": text}],
    }  # fmt: skip


def page_of(text: str) -> str:
    curves = {name: [1.0, None, 0.5] for name in ("effective", "within", "top_share", "entropy", "kl", "reward")}
    series = {"steps": [1, 2, 3], "curves": curves, "shares": {text: [0.2, 0.4, 0.6]}}
    held = {"kappa": [None, 1.0, 0.5], "beta": [0.0, 0.0, 0.0], "neutralised": [0.0, 0.125, 0.0], "deferred": [0.0] * 3}
    return build_page(demo_of(text), {"unprotected-seed0": series, "protect-seed0": {**series, "held": held}})


def test_only_the_arm_with_a_policy_has_a_strip() -> None:
    page = page_of("python")
    assert page.count('class="stack"') == 2
    assert page.count('class="strip"') == 1
    assert page.count("Held by nothing: beta 0.") == 1
    # What never happened is said, not drawn.
    assert page.count('<p class="held">prompts put off: none</p>') == 1
    assert page.count('class="tick"') == 1


def test_lanes_say_how_each_level_moved() -> None:
    lanes = lanes_of({"kappa": [None, 1.0, 0.5], "beta": [0.0, 0.0, 0.0], "neutralised": [0.0, 0.125, 0.0]})
    assert [lane.label for lane in lanes] == [
        "hold on the formats: ends 0.50, most 1.00",
        "KL on every token, beta: 0 throughout",
        "taken out as shortcuts: at 1 step, most 12%",
    ]
    assert lanes_of({"kappa": [None, None], "deferred": [0.0]})[0].label == "prompts put off: none"


def test_strip_holds_a_level_until_the_next_value() -> None:
    level = Lane(label="<b>", values=[1.0, None, 0.5], kind="level", top=2.0)
    ticks = Lane(label="t", values=[0.0, 0.5, None], kind="ticks", top=0.5)
    drawn = strip([1, 2, 3], [level, ticks], width=138.0)
    # The plot is 138 - 38 - 10 = 90 wide: step 1 at 38, step 2 at 83, step 3 at 128. The first lane is 20 high and ends
    # at 15 + 20 = 35: 1 of 2 is at 25, .5 of 2 at 30.
    assert 'class="level" d="M38.0 25.0H128.0V30.0"' in drawn
    # The second lane is 42 lower, its floor at 77; one tick, as high as the lane.
    assert drawn.count('class="tick"') == 1
    assert '<line class="tick" x1="83.0" x2="83.0" y1="77.0" y2="57.0"/>' in drawn
    assert strip_height(2) == 84.0
    assert "&lt;b&gt;" in drawn
    assert "<b>" not in drawn
    assert strip([], [level]) == ""


def test_picture_has_a_panel_and_captions_for_each_run() -> None:
    runs = [Shares(title=f"run {i}", steps=[1, 2], shares={"prose": [1.0, 1.0]}) for i in range(3)]
    svg = picture(runs, [("a < b", "c")] * 3, "head & line")
    assert svg.count("<polygon") == 3
    assert svg.count("a &lt; b") == 3
    assert "head &amp; line" in svg
    assert 'width="1062"' in svg  # 3 * 350 + 12


def test_hostile_text_adds_no_markup() -> None:
    plain, hostile = Tags(page_of("python")), Tags(page_of(HOSTILE))
    assert hostile.tags == plain.tags
    assert not [name for name, _ in hostile.attributes if name.startswith("on")]
    assert "<script>alert" not in page_of(HOSTILE)


def test_the_check_can_fail() -> None:
    assert Tags(page_of("python").replace("</main>", HOSTILE + "</main>")).tags != Tags(page_of("python")).tags


def test_hostile_text_arrives_unchanged() -> None:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page_of(HOSTILE), re.DOTALL)
    assert found is not None
    data = json.loads(found.group(1))
    assert data["demo"]["base"]["samples"][0]["completion"] == HOSTILE
    assert found.group(1).isascii()


def test_page_loads_nothing() -> None:
    page = page_of("python")
    assert "Content-Security-Policy" in page
    # Scripts run by their hash alone, so that no inline handler ever does.
    script = page[page.rindex("<script>") + len("<script>") : page.rindex("</script>")]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}';" in page
    assert "default-src 'none'" in page
    assert not [v for n, v in Tags(page).attributes if n in ("src", "srcset") or (n == "href" and v != "#main")]
    assert not re.findall(r"(?:https?:)?//[a-z0-9-]+\.[a-z]", page)
    assert "@import" not in page
    assert "url(" not in page


def test_script_never_writes_markup() -> None:
    script = (HERE / "assets" / "demo.js").read_text(encoding="utf-8")
    for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function", "fetch("):
        assert way not in script


def test_chart_library_comes_with_its_licence() -> None:
    vendor = Path(HERE) / "vendor"
    assert "uPlot (v1.6.32)" in (vendor / "uPlot.iife.min.js").read_text(encoding="utf-8")
    licence = (vendor / "LICENSE.uPlot").read_text(encoding="utf-8")
    assert "MIT License" in licence
    assert licence in page_of("python")


def test_json_for_html_refuses_nan() -> None:
    assert json_for_html({"a": "</"}) == '{"a":"\\u003c/"}'
    with pytest.raises(ValueError, match="not JSON compliant"):
        json_for_html(float("nan"))


def test_fill_is_one_pass() -> None:
    assert fill("{{a}}-{{b}}", {"a": "{{b}}", "b": "x"}) == "{{b}}-x"


def test_panel_stacks_the_winner_first_and_escapes_names() -> None:
    run = Shares(
        title="a < b",
        steps=[1, 2],
        shares={"prose": [0.6, 0.1], "other": [0.1, 0.0], "<i>": [0.3, 0.9], "never": [0.0, 0.0]},
        marks=[("fail", 2)],
    )
    order = draw_order([run])
    assert order == ["<i>", "prose", "other"]
    svg = panel(run, order)
    assert svg.count("<polygon") == 3
    assert "a &lt; b" in svg
    assert "<i>" not in svg
    assert "FAIL 2" in svg
    # The last ceiling is the whole: .3 + .6 + .1 = 1 at the first step, drawn at the top edge of the plot.
    assert ",42.0" in svg
    assert draw_order([dataclasses.replace(run, shares={})]) == []
