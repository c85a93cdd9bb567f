"""One check is one object: the question that it asks of a run, what it needs for an answer, and who answers it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rlmon.audit.case import Case
from rlmon.audit.contrast import Contrast, Difference
from rlmon.audit.result import Check, Core, Method
from rlmon.audit.run import Lack
from rlmon.audit.wording import Wording

Need = Lack | Literal["successes", "keys"]
"""What a check cannot do without. ``successes``: rewards, and that it is known which of them are a success. ``keys``:
templates and answers of the completions."""

WIDEN = (
    "Raise beta (kl_coef in PPO; 0.05 to 0.1), or use_adaptive_entropy=True with entropy_target near the base "
    "entropy; a lower learning_rate buys time."
)


@dataclass(frozen=True, kw_only=True)
class Ends:
    """A run as checks see it: the case, and its two ends ready to be compared."""

    case: Case
    groups: Mapping[str, Any]
    contrast: Contrast | None
    wording: Wording | None
    alpha: float
    """Error rate of one interval of a hindsight check (two-sided)."""

    def absent(self, *needs: Need) -> str | None:
        """Why nothing can be said at all, ``None`` where the run has what is needed."""
        lacks = self.case.run.lacks
        for need in needs:
            lack: Lack = "rewards" if need == "successes" else "completions" if need == "keys" else need
            if lack in lacks:
                return lacks[lack]
            if not self.case.counted.groups:
                return lacks.get("completions", "there are no completions")
            if self.contrast is None:
                return "the run has fewer than two steps with completions"
            if need == "successes" and not self.groups["known"].any():
                return f"it is not known what counts as a success: {self.case.success} (--success)"
            live = self.case.fold.live
            if need == "keys" and live is not None and live.stored_text == "off":
                return "rlmon_store_text was off: templates and answers were not kept; set it to full or hash"
        return None


@dataclass(frozen=True, kw_only=True)
class Question:
    """A check."""

    id: str
    """Kebab-case, stable."""
    title: str
    """The question that PASS answers with yes."""
    core: Core | None = None
    """Which of the core questions an answer to this one answers."""
    needs: Sequence[Need] = ()
    """What must be there at both ends of the run, else the check is skipped with the reason."""
    method: Method = "hindsight"
    judge: Callable[[Question, Ends], Check]
    """The answer, where the run has what is needed."""

    def ask(self, ends: Ends) -> Check:
        """The answer; an ERROR where the check itself fails, which must not cost the others."""
        try:
            reason = ends.absent(*self.needs)
            return self.judge(self, ends) if reason is None else self.skip(reason)
        except Exception as error:
            return self.says(
                status="error",
                message="this check failed",
                reason=f"{type(error).__name__}: {str(error)[:300]!r}. This is a defect of rlmon; please report it.",
            )

    def says(self, **fields: Any) -> Check:
        """An answer: fields of ``Check``."""
        return Check(**{"id": self.id, "title": self.title, "method": self.method, "core": self.core} | fields)

    def skip(self, reason: str, **fields: Any) -> Check:
        """No answer, and why: what is missing and how to log it next time."""
        return self.says(status="skip", message="could not be judged", reason=reason, **fields)


def question(
    check_id: str,
    title: str,
    *,
    core: Core | None = None,
    needs: Sequence[Need] = (),
    method: Method = "hindsight",
) -> Callable[[Callable[[Question, Ends], Check]], Question]:
    """Makes a function the answer to a question."""

    def of(judge: Callable[[Question, Ends], Check]) -> Question:
        return Question(id=check_id, title=title, core=core, needs=needs, method=method, judge=judge)

    return of


def between(found: Difference, unit: str = "") -> str:
    """Both ends, the change and its interval in words."""
    paired = f", {found.paired} prompts at both ends" if found.paired else ""
    return (
        f"{found.base:.3g} -> {found.last:.3g}{unit} (change {found.change:+.3g}, interval {found.low:+.3g} to "
        f"{found.high:+.3g}{paired})"
    )


def sizes(found: Difference) -> dict[str, Any]:
    """The prompts that a difference rests on, as evidence."""
    return {"prompts_base": found.prompts_base, "prompts_last": found.prompts_last, "prompts_paired": found.paired}
