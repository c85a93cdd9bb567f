"""Can what was read be trusted? These count; nothing is estimated."""

from __future__ import annotations

from rlmon.audit.checks.question import Ends, Question, question
from rlmon.audit.result import Check
from rlmon.printable import several

MAX_RESUMED = 4
"""Times that rows go back in steps because a run was resumed, at most."""


@question("rows-complete", "Were all rows read?", method="exact", about="record")
def rows_complete(ask: Question, ends: Ends) -> Check:
    case = ends.case
    counted = case.counted
    if not case.run.shards:
        return ask.says(
        status="skip", message="there are no rows",
            reason=case.run.lacks.get("completions", "the source holds no completions"),
        )  # fmt: skip
    shed = 0 if case.fold.live is None else case.fold.live.shed_rows
    torn = 0 if case.fold.live is None else case.fold.live.torn_lines
    wrong = counted.damaged + len(counted.unreadable) + shed + torn
    parts = [f"{counted.rows} rows read"]
    for count, what in (
        (counted.duplicates, "written again by the tool and passed over"),
        (counted.damaged - counted.blank, "damaged"),
        (len(counted.unreadable), "files unreadable"),
        (shed, "shed by the monitor"),
        (torn, "torn lines"),
    ):
        if count:
            parts.append(f"{count} {what}")
    advice = []
    if counted.blank:
        # Behind the last row that was read, or in between.
        since = counted.blank_from is not None and counted.blank_from > int(case.line.steps[-1])
        where = f"all rows from step {counted.blank_from} on" if since else f"the first at step {counted.blank_from}"
        parts.append(f"{counted.blank} have neither a completion nor a reward, {where}")
        advice.append(
            "Look at what wrote the rows without completion and reward: the steps they are of are not judged."
        )
    if wrong > counted.blank:
        advice.append("Copy the files again; a tool that writes without a rename leaves a torn file when it is killed.")
    # Many falls are rows of several workers as they came; a few are a run that was resumed.
    resumed = 0 < len(counted.went_back) <= MAX_RESUMED
    if resumed:
        told = [f"after step {last} the rows go back to step {first}" for last, first in counted.went_back]
        parts.append(f"{', '.join(told)}: what both attempts wrote of a step is counted together")
    return ask.says(
        status="warn" if wrong else "note" if resumed else "pass", metric="rows lost", unit="rows",
        value=float(counted.damaged + shed), baseline=0.0, threshold=0.0, message=", ".join(parts),
        evidence={"unreadable": {name[:200]: why[:300] for name, why in sorted(counted.unreadable.items())[:20]}},
        first_step=counted.blank_from, advice=" ".join(advice),
    )  # fmt: skip


@question("replay", "Does the log agree with itself?", method="exact", about="record")
def replay(ask: Question, ends: Ends) -> Check:
    case = ends.case
    live = case.fold.live
    assert live is not None
    if live.judged_anew is not None and not live.differences:
        said = several([f"{f.detector} {f.severity.upper()} at step {f.step}" for f in live.findings], 8)
        return ask.says(
        status="skip", message="judged anew, so not compared",
            reason="judged anew here, which cannot be compared with what the run said then "
            f"({said or 'nothing'}). {live.judged_anew}",
        )  # fmt: skip
    return ask.says(
        status="warn" if live.differences else "pass", metric="differences", unit="count",
        value=float(len(live.differences)), baseline=0.0, threshold=0.0,
        message="; ".join(live.differences[:3]) if live.differences else
        f"folding {case.fold.looks} records gives the {len(live.findings)} live findings, step for step",
        evidence={"differences": list(live.differences[:50])},
        advice="The log was changed after the run, or written by another version of rlmon." if live.differences else "",
    )  # fmt: skip


@question("monitor-faults", "Did the monitor itself work?", method="exact", about="record")
def monitor_faults(ask: Question, ends: Ends) -> Check:
    case = ends.case
    live = case.fold.live
    assert live is not None
    places = sorted({fault.place for fault in live.faults})
    return ask.says(
        status="warn" if places else "pass", metric="places that failed", unit="count",
        value=float(len(places)), baseline=0.0, threshold=0.0,
        message=f"failed in {', '.join(places)}" if places else "no fault was recorded",
        evidence={"places": places}, advice="See events.jsonl for the errors; metrics of those steps are null."
        if places else "",
    )  # fmt: skip
