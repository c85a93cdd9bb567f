"""A check of the audit: completions that end in the middle of a sentence, at the end of the run and at its base."""

from rlmon.audit.checks import Ends, Question, question
from rlmon.audit.result import Check

WARN_SHARE = 0.2


@question(
    "whole-sentences",
    "Do completions end with a whole sentence?",
    needs=("completions",),
    told="{now} of the completions end in the middle of a sentence, at the base {base}",
    warn=f"{WARN_SHARE:.0%} of the last completions",
)
def whole_sentences(ask: Question, ends: Ends) -> Check:
    windows = ends.case.windows
    if windows is None:
        return ask.skip("the run is too short to have two ends")

    def broken(steps: list[int]) -> float:
        texts = [
            (row["ending"] or row["completion"] or "").rstrip()
            for part in ends.case.counted.samples
            for row in part.to_pylist()
            if row["split"] == "train" and row["step"] in steps
        ]
        return sum(not text.endswith((".", "!", "?", "}", "`")) for text in texts) / max(1, len(texts))

    base, now = broken(windows.base.tolist()), broken(windows.last.tolist())
    return ask.says(
        status="warn" if now > WARN_SHARE and now > 2 * base else "pass",
        metric="share of broken ends",
        unit="share",
        baseline=base,
        value=now,
        threshold=WARN_SHARE,
        message=f"{base:.0%} -> {now:.0%} of the completions end in the middle of a sentence",
        advice="Raise max_completion_length, or look at what the reward says of cut answers.",
    )
