"""The audit's page as a file: nothing of the run becomes markup, long runs are thinned honestly, and it stays small."""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path
from typing import Any

import make_audit
import pytest
from page_parts import DATA, Tags, data_of

from rlmon.audit.result import Event
from rlmon.errors import RLMonError
from rlmon.report import audit as report
from rlmon.report.audit import build_page, write_page
from rlmon.report.charts import thin
from rlmon.report.page import HERE


def test_hostile_text_adds_no_markup() -> None:
    steps = len(make_audit.hostile().steps)
    plain, hostile = Tags(build_page(make_audit.collapsed(steps))), Tags(build_page(make_audit.hostile()))
    assert hostile.tags == plain.tags
    # Without scripts formats are drawn in the colours of their names.
    drawn = ("style", "fill", "points")
    assert [a for a in hostile.attributes if a[0] not in drawn] == [a for a in plain.attributes if a[0] not in drawn]
    values = {value or "" for name, value in hostile.attributes if name in drawn}
    assert all(re.fullmatch(r"color:#[0-9a-f]{6}|#[0-9a-f]{6}|[\d., ]+", value) for value in values)
    assert not [name for name, _ in hostile.attributes if name.startswith("on")]


def test_the_check_can_fail() -> None:
    page = build_page(make_audit.collapsed())
    assert Tags(page.replace("</main>", make_audit.HOSTILE + "</main>")).tags != Tags(page).tags


def test_hostile_text_arrives_unchanged_as_data() -> None:
    data = data_of(build_page(make_audit.hostile()))
    assert data["headline"] == make_audit.HOSTILE
    sample = data["samples"][1]
    assert data["texts"][sample["completion"]] == [make_audit.HOSTILE, 0, ""]
    assert {story["mode"] for story in data["modes"]} == set(make_audit.HOSTILE_NAMES)
    # A mapping whose keys a run may have chosen is a list of pairs, never an object of the page.
    assert ["__proto__", make_audit.HOSTILE] in data["checks"][0]["evidence"]


def test_page_loads_nothing() -> None:
    page = build_page(make_audit.hostile())
    without_data = DATA.sub("", page)
    assert not [v for n, v in Tags(page).attributes if n in ("src", "srcset", "action")]
    assert {v for n, v in Tags(page).attributes if n == "href"} == {"#main"}
    assert not re.findall(r"(?:https?:)?//[a-z0-9-]+\.[a-z]", without_data.replace("https://evil.example", ""))
    assert "@import" not in without_data
    assert "url(" not in without_data
    page.encode("utf-8")


@pytest.mark.parametrize("name", ["page.js", "figure.js", "audit.js", "compare.js", "demo.js"])
def test_scripts_never_write_markup(name: str) -> None:
    script = (HERE / "assets" / name).read_text(encoding="utf-8")
    for way in (
        "innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function", "fetch(",
        "createContextualFragment", "DOMParser", "setHTML", "XMLHttpRequest",
    ):  # fmt: skip
        assert way not in script
    # A browser may forbid a file to remember anything.
    assert len(re.findall("localStorage", script)) == len(
        re.findall(r"try \{ (return )?localStorage[^}]+\} catch", script)
    )


@pytest.mark.parametrize("build", [make_audit.long_run, make_audit.hostile, make_audit.collapsed])
def test_page_stays_below_3_mb(build: Any) -> None:
    assert len(build_page(build()).encode("utf-8")) < 3_000_000


def test_texts_are_cut_to_their_budget() -> None:
    """500 prompts and completions of 4,000 characters each that take 6 bytes: 2 x 500 x 4,000 x 6 = 24 MB."""
    sample = make_audit.healthy().samples[0]
    samples = [
        dataclasses.replace(sample, prompt=f"{i}\x00" + "\x01" * 3_990, completion=f"{i}" + "\x02" * 3_990)
        for i in range(500)
    ]
    page = build_page(dataclasses.replace(make_audit.healthy(), samples=samples))
    data = data_of(page)
    assert len(page) < 3_000_000
    # 1,000 texts x 200 characters x 6 bytes = 1.2 MB fits into 1.5 MB; 350 characters would be 2.1 MB.
    assert data["text_cut"] == 200
    head, missing, tail = data["texts"][data["samples"][7]["completion"]]
    # Three tenths of what is kept are from the beginning.
    assert (head, tail) == ("7" + "\x02" * 59, "\x02" * 140)
    assert missing == 3_991 - 200


def test_each_text_is_kept_once() -> None:
    audit = make_audit.healthy()
    data = data_of(build_page(dataclasses.replace(audit, samples=[audit.samples[0]] * 50, modes=())))
    assert len({(sample["prompt"], sample["completion"]) for sample in data["samples"]}) == 1


def test_thin_keeps_every_extreme_of_a_long_curve() -> None:
    steps = list(range(1, 20_001))
    values: list[float | None] = [math.sin(step / 700) for step in steps]
    values[6_666] = 50.0
    values[12_345] = -50.0
    thin_steps, thin_values = thin(steps, values, 2_000)
    assert len(thin_steps) <= 2_002
    assert thin_steps == sorted(set(thin_steps))
    assert thin_values[thin_steps.index(6_667)] == 50.0
    assert thin_values[thin_steps.index(12_346)] == -50.0
    assert (thin_steps[0], thin_steps[-1]) == (1, 20_000)
    # Every point is one of the curve's own, at its own step.
    assert all(
        value == pytest.approx(values[step - 1], abs=1e-5) for step, value in zip(thin_steps, thin_values, strict=True)
    )


def test_thin_draws_through_regular_gaps_and_breaks_at_long_ones() -> None:
    # Measured every 5 steps; one pause of 35 > 4 x 5. The break is marked one step after the last value.
    steps = list(range(0, 101))
    values = [float(step) if step % 5 == 0 and not 30 < step < 65 else None for step in steps]
    thin_steps, thin_values = thin(steps, values, 2_000)
    assert thin_steps == [0, 5, 10, 15, 20, 25, 30, 31, 65, 70, 75, 80, 85, 90, 95, 100]
    assert [step for step, value in zip(thin_steps, thin_values, strict=True) if value is None] == [31]


@pytest.mark.parametrize(
    ("values", "expected"),
    [([None, None, None], ([], [])), ([None, 2.0, None], ([8], [2.0])), ([math.nan, 1.0, math.inf], ([8], [1.0]))],
)
def test_thin_of_nothing_and_of_one_value(values: list[float | None], expected: Any) -> None:
    assert thin([7, 8, 9], values, 10) == expected


def test_steps_are_differences_that_add_up() -> None:
    data = data_of(build_page(make_audit.collapsed()))
    kl = next(chart for chart in data["charts"] if chart["title"] == "KL to the base")["lines"][0]
    # Measured at 1, 6, 11, ..., 176 of 180 steps.
    assert kl["steps"] == [1] + [5] * 35
    assert sum(kl["steps"]) == 176
    assert kl["measured"] == len(kl["values"]) == 36


def test_important_curves_first_complained_ones_beside_them_and_the_rest_behind_a_disclosure() -> None:
    audit = make_audit.collapsed()
    check = dataclasses.replace(audit.checks[0], metric="trainer/grad_norm")
    data = data_of(build_page(dataclasses.replace(audit, checks=[check, *audit.checks[1:]])))
    titles = [chart["title"] for chart in data["charts"]]
    # First these two, then what a check fails, then what it warns of, then the rest in the order of CHARTS.
    assert titles[:6] == [
        "Formats in use",
        "Largest format",
        "trainer/grad norm",
        "Groups that teach nothing",
        "Reward",
        "Token entropy",
    ]
    assert [chart["title"] for chart in data["further"]] == [
        "format/effective",
        "format/effective correct",
        "text/repetition",
        "trainer/learning rate",
    ]
    assert data["never"] == ["rlmon/moves/effective_across"]
    drawn = [line["name"] for chart in data["charts"] + data["further"] for line in chart["lines"]]
    assert sorted(drawn + data["never"]) == sorted(audit.series)


def test_what_a_run_measures_of_its_own_is_drawn_before_the_many() -> None:
    found = make_audit.collapsed()
    values = [1.0] * len(found.steps)
    many = {f"rlmon/format/reward/mode-{at}": values for at in range(report.FURTHER_CHARTS)}
    data = data_of(build_page(dataclasses.replace(found, series={**many, "ours/volume": values})))
    assert data["further_total"] == report.FURTHER_CHARTS + 1
    assert data["further"][0]["lines"][0]["name"] == "ours/volume"


def test_shares_are_means_of_buckets_and_pool_the_small() -> None:
    audit = make_audit.healthy(4)
    names = [f"m{i:02d}" for i in range(12)]
    shares = {name: [1 / 12, None, 1 / 12, 1 / 12] for name in names}
    data = data_of(build_page(dataclasses.replace(audit, mode_shares=shares)))["shares"]
    # The step that was not measured is left out, not drawn as zero.
    assert data["steps"] == [1, 3, 4]
    assert [row["mode"] for row in data["rows"]] == [*names[:9], "3 more"]
    assert data["rows"][-1]["values"] == [0.25, 0.25, 0.25]
    long = data_of(build_page(make_audit.long_run(20_000, 4)))["shares"]
    assert len(long["steps"]) == report.SHARE_POINTS
    assert sum(row["values"][300] for row in long["rows"]) == pytest.approx(1, abs=2e-3)


def test_the_gravest_events_are_kept() -> None:
    audit = make_audit.healthy()
    info = [Event(step=step, kind="note", severity="info", check=None, text="x") for step in range(1, 1_001)]
    grave = Event(step=999, kind="finding", severity="fail", check="format-collapse", text="y")
    data = data_of(build_page(dataclasses.replace(audit, events=[*info, grave])))
    assert (len(data["events"]), data["events_total"]) == (report.EVENTS_SHOWN, 1_001)
    assert [event["text"] for event in data["events"] if event["severity"] == "fail"] == ["y"]


def test_non_finite_rewards_and_evidence_become_words() -> None:
    audit = make_audit.collapsed()
    samples = [
        dataclasses.replace(audit.samples[0], reward=math.nan),
        dataclasses.replace(audit.samples[1], reward=math.inf),
    ]
    check = dataclasses.replace(audit.checks[0], evidence={"worst": -math.inf, "many": list(range(1_000))})
    data = data_of(build_page(dataclasses.replace(audit, samples=samples, checks=[check])))
    assert [sample["reward"] for sample in data["samples"]] == ["nan", "inf"]
    assert data["checks"][0]["evidence"][0] == ["worst", "-inf"]
    assert data["checks"][0]["evidence"][1][1][-1] == "700 more"


@pytest.mark.parametrize("build", [make_audit.empty, make_audit.one_step])
def test_little_data_makes_a_page(build: Any) -> None:
    data = data_of(build_page(build()))
    assert data["verdict"] == "insufficient"


def test_same_audit_same_page() -> None:
    assert build_page(make_audit.collapsed()) == build_page(make_audit.collapsed())


def test_write_page(tmp_path: Path) -> None:
    path = write_page(make_audit.hostile(), tmp_path / "new" / "page.html")
    assert path == tmp_path / "new" / "page.html"
    assert path.read_text(encoding="utf-8") == build_page(make_audit.hostile())
    with pytest.raises(RLMonError, match=r"cannot write the page to .*: Is a directory; give a file name"):
        write_page(make_audit.empty(), tmp_path)


def test_acts_are_joined_and_those_on_rows_are_one_entry() -> None:
    data = data_of(build_page(make_audit.collapsed()))
    assert [(act["rule"], act["outcome"], act["effect"]) for act in data["acts"]] == [
        ("kl-budget", "applied", "helped"), ("anchor-dying", "failed", ""), ("stop-when-lost", "dry run", ""),
        ("quarantine-shortcuts", "applied", ""),
    ]  # fmt: skip
    rows = data["acts"][-1]
    assert (rows["first_step"], rows["count"]) == (1, len(range(1, data["acts"][0]["step"] - 1, 3)))
    assert data["acts_total"] == 4


def test_one_event_is_one_story_with_both_ends_of_a_long_answer() -> None:
    audit = make_audit.collapsed()
    long = dataclasses.replace(audit.samples[0], completion=f"{'a' * 3_000}</think> 7", label="now")
    checks = [
        dataclasses.replace(check, examples=[dataclasses.replace(long, label="base", step=1), long])
        for check in audit.checks
    ]
    data = data_of(build_page(dataclasses.replace(audit, checks=checks)))
    bad = {at for at, check in enumerate(audit.checks) if check.status in ("fail", "warn")}
    assert {at for one in data["incidents"] for at in one["checks"]} == bad
    assert len(data["incidents"]) < len(bad)
    first, now = data["incidents"][0]["pair"]
    assert (first["label"], now["label"]) == ("base", "now")
    assert data["texts"][now["completion"]][0].endswith("</think> 7")
    # And where scripts are blocked.
    still = build_page(dataclasses.replace(audit, checks=checks)).partition("</noscript>")[0]
    assert "… 1,810 characters left out …" in still
    assert "&lt;/think&gt; 7</pre>" in still
    assert all(check.id in still for check in audit.checks)
