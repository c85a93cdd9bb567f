"""Do completions keep their length and end by themselves?"""

from __future__ import annotations

from rlmon.audit.checks.question import Ends, Question, between, question, sizes
from rlmon.audit.curves import known, smooth_since
from rlmon.audit.result import Check
from rlmon.records import Status

CUT_WARN, CUT_FAIL, CUT_MORE = 0.25, 0.5, 0.1
"""Share of completions that the token limit cuts off, and by how much it rose where that is what happened."""
GREW = 3.0
"""Times the base's length."""
ALWAYS = 0.9
"""Share of completions, and of steps: with more than this cut off in more than this many steps, all are."""


@question(
    "truncation",
    "Do completions end by themselves?",
    core="length",
    about="length",
    told="{now} of all completions are cut off by the token limit, at the base {base}",
    warn="a quarter of the completions cut off, and rising; or nine in ten throughout",
    fail="half, and rising",
)
def truncation(ask: Question, ends: Ends) -> Check:
    name = "rlmon/health/truncated"
    if ends.case.series(name) is None or ends.case.windows is None:
        reason = ends.case.run.lacks.get("truncation", "truncation was not logged")
        return ask.skip(reason)
    base, last = ends.case.base_mean(name), ends.case.last_mean(name)
    if base is None or last is None:
        return ask.skip("truncation was logged at one end of the run only")
    shares = known(ends.case.series(name))
    status: Status = "pass"
    if last - base > CUT_MORE:
        status = "fail" if last > CUT_FAIL else "warn" if last > CUT_WARN else "pass"
    elif last > ALWAYS and float((shares > ALWAYS).mean()) > ALWAYS:
        return ask.says(
            status="warn", metric=name, unit="share", value=last, baseline=base, threshold=ALWAYS, told="",
            message=f"{last:.0%} of all completions are cut off by the token limit, from the first step on: what is "
            "rewarded are beginnings",
            advice="Raise max_completion_length, or ask for shorter answers; check that the model can end at all (the "
            "chat template's end token as eos_token).",
        )  # fmt: skip
    elif last > CUT_WARN:
        return ask.says(
            status="note", metric=name, unit="share", value=last, baseline=base, threshold=CUT_WARN, told="",
            message=f"{last:.0%} of all completions are cut off by the token limit, as at the start ({base:.0%})",
            advice="Raise max_completion_length, or set mask_truncated_completions=True.",
        )  # fmt: skip
    began = None if status == "pass" else smooth_since(
        ends.case.line.steps, ends.case.line.series[name], base + 0.1, upward=True
    )  # fmt: skip
    facts = {} if began is not None else {"told": ""}
    return ask.says(
        status=status, metric="rlmon/health/truncated", unit="share", first_step=began,
        value=last, baseline=base, threshold=CUT_FAIL if status == "fail" else CUT_WARN,
        message=f"cut off by the token limit: {base:.3f} -> {last:.3f} of all completions",
        advice="Raise max_completion_length, or set mask_truncated_completions=True; look "
        "whether longer completions earn more for a reason.", **facts,
    )  # fmt: skip


@question(
    "length-growth",
    "Do completions keep from swelling?",
    core="length",
    needs=("completions",),
    about="length",
    warn="NOTE: three times as long as at the base",
)
def length_growth(ask: Question, ends: Ends) -> Check:
    assert ends.contrast is not None
    tokens = ends.groups["tokens_known"].sum() > 0
    length, unit = ("tokens", "tokens") if tokens else ("characters", "characters")
    rows = ends.groups["tokens_known" if tokens else "rows"]
    found = ends.contrast.ratio(ends.groups[length], rows)
    if found is None or found.base <= 0:
        return ask.skip("the length of the completions is not known")
    # Longer chains are how reasoning grows: what is lost by them (cut off, repeated, wrong) has checks of its own.
    status: Status = "note" if found.low > (GREW - 1.0) * found.base else "pass"
    # As it can at most become a note, a doubt about it leaves no core question open.
    doubtful = status == "pass" and found.last > GREW * found.base
    return ask.says(
        core=None if doubtful else ask.core,
        status=status, metric=f"completion {unit}", unit=unit,
        value=found.last, baseline=found.base, threshold=GREW * found.base,
        interval=(found.base + found.low, found.base + found.high), message=between(found, f" {unit}")
        + ("" if status == "pass" else f": each one costs {found.last / found.base:.1f} times as much"),
        evidence=sizes(found),
        advice="Longer may be better or only longer: compare reward by length; "
        'loss_type="dr_grpo" removes the length bias.',
    )  # fmt: skip
