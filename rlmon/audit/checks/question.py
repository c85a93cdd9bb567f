"""One check is one object: the question that it asks of a run, what it needs for an answer, and who answers it."""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from types import FunctionType, NoneType
from typing import Any, Literal

import numpy as np

from rlmon.audit.case import Case
from rlmon.audit.contrast import Contrast, Difference
from rlmon.audit.curves import Move, heading, known, move
from rlmon.audit.features import Floats, Ints
from rlmon.audit.result import Check, Core, Kind, Method
from rlmon.audit.run import Lack
from rlmon.audit.strata import Strata
from rlmon.audit.wording import Wording
from rlmon.errors import ConfigError
from rlmon.records import WORST_FIRST
from rlmon.statistics import ByKey

Need = Lack | Literal["successes", "keys"]
"""What a check cannot do without. ``successes``: rewards, and that it is known which of them are a success. ``keys``:
templates and answers of the completions."""

LEAST_PROMPTS = 4
"""Fewer are drawn again and again as they are: their spread says nothing of the next ones."""
STALE_STRIDES = 3
"""Times the usual distance of two values: without one for longer, a metric has ended before the run."""
STALE_SHARE, STALE_STEPS = 0.1, 5
"""Of the run's steps, and steps: so much of a run without a value is a part of it that nobody saw, whatever the usual
distance."""


@dataclass(frozen=True, kw_only=True)
class Ends:
    """A run as checks see it: the case, and its two ends ready to be compared."""

    case: Case
    groups: Mapping[str, Any]
    contrast: Contrast | None
    wording: Wording | None
    strata: Strata | None
    """What of the data is at both ends; ``None`` without completions."""
    alpha: float
    """Error rate of one interval of a hindsight check (two-sided)."""

    @property
    def same_data(self) -> bool:
        """The data did not change on the way, as far as its sources tell: curves of the whole run can be compared."""
        return self.strata is None or not self.strata.moved

    def went_stale(self, metric: str | None) -> str | None:
        """Since when a metric was not finite, or not measured, though the run went on, in words; ``None`` where it has
        values up to the end."""
        values = None if metric is None else self.case.series(metric)
        if values is None:
            return None
        every = self.case.line.steps
        steps = every[np.isfinite(values)]
        if steps.size < 2:
            return None
        last, end = int(steps[-1]), int(every[-1])
        stride = max(1.0, float(np.median(np.diff(steps))))
        if end - last <= STALE_STRIDES * stride:
            return None
        if any(f.detector == "non-finite" and f.step <= end for f in self.case.fold.findings):
            return f"it was last measured at step {last}, and numbers of the run are NaN or infinite since"
        if int((every > last).sum()) <= max(STALE_STEPS, STALE_SHARE * every.size):
            return None
        return f"it was last measured at step {last}, and the log goes on to step {end}"

    def move(self, name: str, *, relative: bool) -> Move | None:
        """The ends of a curve; ``None`` where it was not logged or has too few points."""
        given = self.case.base_line
        base = None if given is None else known(given.series.get(name))
        return move(known(self.case.series(name)), self.alpha, relative=relative, base=base)

    def heading(self, name: str, ahead: int) -> float | None:
        """The most that a curve can be so many points after its end if it goes on as in its second half."""
        found = heading(known(self.case.series(name)), self.alpha, ahead)
        return None if found is None else found[0]

    def over_steps(self, top_G: Floats, bottom_G: Floats) -> tuple[Ints, Floats]:
        """The steps of training with groups [S], and the ratio of two sums over the groups of each [S]."""
        train = ~self.case.counted.groups["eval"]
        # Groups of another run that is the base come first.
        top, bottom = (values[-train.size :] for values in (top_G, bottom_G))
        by_step = ByKey(self.case.counted.groups["step"], train)
        return by_step.keys, by_step.ratio(top, bottom)

    def move_of(self, values: Floats, *, relative: bool, looks: int = 1) -> Move | None:
        """The ends of these values, whose error is shared out over so many looks."""
        return move(values, self.alpha / looks, relative=relative)

    def honest(self, found: Check) -> Check:
        """The answer, with what was left out of it: sources that are not at both ends.

        A value past its line is no pass: where the evidence does not suffice for more, nobody knows. (A detector's own
        value is that of a few blocks: it looks at its line itself.)
        """
        if found.status == "pass" and found.method != "fold" and past_line(found):
            return dataclasses.replace(
                found,
                status="unsure",
                reason=f"past its line of {found.threshold:.3g}, but the run holds too little to be sure that this is "
                "not chance",
            )
        if found.status in ("pass", "note") and (since := self.went_stale(found.metric)) is not None:
            return dataclasses.replace(
                found, status="unsure", advice="", reason=f"{since}: what came after is not known"
            )
        if self.same_data or self.strata is None or found.method != "hindsight" or found.status in ("skip", "error"):
            return found
        compared = f"{self.strata.said}: only those at both ends are compared"
        return dataclasses.replace(found, message=f"{found.message}; {compared}")

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
                return f"an end of the run has fewer than {LEAST_PROMPTS} prompts, too few to compare it with the other"
            if self.strata is not None and not self.strata.names:
                return f"{self.strata.said}: no source is at both ends of the run, so nothing there can be compared"
            if need == "successes" and not self.groups["known"].any():
                return f"it is not known what counts as a success: {self.case.success} (--success)"
            live = self.case.fold.live
            if need == "keys" and live is not None and live.stored_text == "off":
                return "rlmon_store_text was off: templates and answers were not kept; set it to full or hash"
        return None


@dataclass(frozen=True, kw_only=True)
class Question:
    """A check. Raises ``ConfigError`` where its words are none that an audit can use."""

    id: str
    """Kebab-case, stable."""
    title: str
    """The question that PASS answers with yes."""
    core: Core | None = None
    """Which of the core questions an answer to this one answers."""
    doubt: Core | None = None
    """The core question that stays open while this one is unsure, though its answer would not answer that."""
    needs: Sequence[Need] = ()
    """What must be there at both ends of the run, else the check is skipped with the reason."""
    method: Method = "hindsight"
    about: Kind = "other"
    told: str | Mapping[str, str] = ""
    """What was seen as a clause of a story, with ``{base}`` and ``{now}`` in it, or one for each metric that it may be
    about. Without one the message tells it."""
    warn: str = ""
    """From where on it is a WARN, in words (docs/audit.md); so is what is a NOTE."""
    fail: str = ""
    judge: Callable[[Question, Ends], Check]
    """The answer, where the run has what is needed."""

    def __post_init__(self) -> None:
        if re.fullmatch("[a-z0-9]+(-[a-z0-9]+)*", self.id) is None:
            raise ConfigError(f"The id of a check is small letters and dashes, as my-check; got {self.id!r}.")
        for name, given, words in (
            ("about", [self.about], typing.get_args(Kind)),
            ("core", [self.core, self.doubt], (None, *typing.get_args(Core))),
            ("method", [self.method], typing.get_args(Method)),
            ("needs", self.needs, (*typing.get_args(Lack), "successes", "keys")),
        ):
            if strange := [word for word in given if word not in words]:
                raise ConfigError(f"{self.id}: {name} knows {', '.join(map(str, words))}; got {strange[0]!r}.")
        for told in [self.told] if isinstance(self.told, str) else self.told.values():
            try:
                told.format(base="", now="")
            except (LookupError, ValueError):
                raise ConfigError(f"{self.id}: told has {{base}} and {{now}} to fill in; got {told!r}.") from None

    def ask(self, ends: Ends) -> Check:
        """The answer; an ERROR where the check itself fails, which must not cost the others."""
        try:
            reason = ends.absent(*self.needs)
            found = self.skip(reason) if reason is not None else self.judge(self, ends)
            if type(found) is not Check or found.id != self.id:
                raise TypeError(f"the answer was {found!r:.100}, and not what ask.says(...) or ask.skip(...) gives")
            _refuse_other_types(found)
            found = ends.honest(found)
            return dataclasses.replace(found, core=self.doubt) if self.doubt and is_doubt(found) else found
        except Exception as error:
            return self.says(
                status="error",
                message="this check failed",
                reason=f"{type(error).__name__}: {str(error)[:300]!r}. This is a defect of {self.home}; please report "
                "it.",
            )

    @property
    def home(self) -> str:
        """Who answers: rlmon, or the module of somebody else."""
        module = self.judge.__module__ if isinstance(self.judge, FunctionType) else __name__
        return "rlmon" if module.startswith("rlmon.") else module

    def says(self, **fields: Any) -> Check:
        """An answer: fields of ``Check``. What passes needs no advice."""
        if fields["status"] == "pass":
            fields["advice"] = ""
        told = self.told if isinstance(self.told, str) else self.told.get(fields.get("metric") or "", "")
        own = {"id": self.id, "title": self.title, "method": self.method, "core": self.core, "about": self.about}
        return Check(**own | {"told": told} | fields)

    def skip(self, reason: str, **fields: Any) -> Check:
        """No answer, and why: what is missing and how to log it next time."""
        return self.says(status="skip", message="could not be judged", reason=reason, **fields)


def _refuse_other_types(found: Check) -> None:
    """Raises ``TypeError`` for an answer that no output could show."""
    for names, kinds in (
        (("message", "advice", "told"), (str,)),
        (("metric", "unit", "reason", "source"), (str, NoneType)),
        (("value", "baseline", "threshold"), (Real, NoneType)),
        (("first_step", "alarm_step"), (Integral, NoneType)),
        (("at_latest",), (bool,)),
        (("evidence",), (Mapping,)),
    ):
        for name in names:
            if not isinstance(value := getattr(found, name), kinds):
                raise TypeError(f"{name} is {value!r:.100}")
    if found.status not in WORST_FIRST:
        raise ValueError(f"status is {found.status!r}; it must be one of {', '.join(WORST_FIRST)}")


def question(check_id: str, title: str, **fields: Any) -> Callable[[Callable[[Question, Ends], Check]], Question]:
    """Makes a function the answer to a question; ``fields``: those of ``Question``."""
    return lambda judge: Question(id=check_id, title=title, judge=judge, **fields)


def is_doubt(found: Check) -> bool:
    """Whether an unsure check saw a change for certain, though not that it is past the line: chance alone lifts a
    value past its line and leaves the base inside of the interval."""
    if found.status != "unsure" or found.interval is None or found.baseline is None:
        return found.status == "unsure"
    return not found.interval[0] <= found.baseline <= found.interval[1]


def past_line(found: Check) -> bool:
    """Whether the value lies past the line, which lies on the bad side of the base; never where the line is the base
    itself."""
    if found.value is None or found.threshold is None or found.threshold == found.baseline:
        return False
    if found.baseline is not None and found.threshold < found.baseline:
        return found.value < found.threshold
    return found.value > found.threshold


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
