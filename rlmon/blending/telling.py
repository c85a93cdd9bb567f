"""A curve in words, rows and JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict

from rlmon.blending.curve import FORMATS, KEPT, Curve, Point

_COLUMNS = {
    FORMATS: ("formats in use", 2),
    "rlmon/format/effective_within": ("within a prompt", 2),
    "rlmon/collision/template_within_effective": ("templates within a prompt", 2),
    "rlmon/entropy/mean": ("entropy, nats a token", 3),
}
"""Metrics that a table shows: title and digits."""
_TOLD = (FORMATS, "rlmon/collision/template_within_effective")
"""Those of which a sentence says which A keeps them."""


def rows(curve: Curve) -> list[list[str]]:
    """A title each, then a row for each A; what was not measured is a dash."""
    score = "accuracy" if any(point.accuracy is not None for point in curve.points) else "mean reward"
    found = [["A", score, *(title for title, _ in _COLUMNS.values()), "formats kept", "gain kept"]]
    for point in curve.points:
        metrics = [_number(point.metrics[name], digits) for name, (_, digits) in _COLUMNS.items()]
        shares = [_percent(kept(curve, point)), _percent(gain_kept(curve, point))]
        found.append([f"{point.alpha:g}", _number(point.score, 3), *metrics, *shares])
    return found


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"


def markdown(curve: Curve) -> Iterator[str]:
    titles, *points = rows(curve)
    yield f"| {' | '.join(titles)} |"
    yield "|" + "---|" * len(titles)
    for row in points:
        yield f"| {' | '.join(row)} |"


def as_json(curve: Curve) -> str:
    """All of it, with the shares that are kept and the sentences."""
    told = asdict(curve) | {"says": sentences(curve)}
    for row, point in zip(told["points"], curve.points, strict=True):
        row |= {"formats_kept": kept(curve, point), "gain_kept": gain_kept(curve, point)}
    return json.dumps(told, indent=2, allow_nan=False)


def kept(curve: Curve, point: Point, metric: str = FORMATS) -> float | None:
    """A metric as a share of the base's; ``None`` where one of the two was not measured."""
    base, here = _at(curve, 0.0).metrics[metric], point.metrics[metric]
    return here / base if base and here is not None else None


def gain_kept(curve: Curve, point: Point) -> float | None:
    """What accuracy (or reward) gained on the base, as a share of what the checkpoint gained; ``None`` where that
    gained nothing."""
    base, end, here = _at(curve, 0.0).score, _at(curve, 1.0).score, point.score
    if base is None or end is None or here is None or end <= base:
        return None
    return (here - base) / (end - base)


def sentences(curve: Curve) -> list[str]:
    """Which A keeps what."""
    base, end = _at(curve, 0.0), _at(curve, 1.0)
    said = [
        f"{curve.prompts} prompts x {curve.samples} completions of at most {curve.max_new_tokens} tokens at "
        f"temperature 1, seed {curve.seed}."
    ]
    if curve.success is not None:
        said.append(f"A success: {curve.success}.")
    elif base.reward is not None:
        said.append("These rewards are graded, and nothing in them divides right from wrong: their mean is shown.")
    else:
        said.append("Nothing says which completions are right: add --reward, or a column answer to the prompts.")
    said += [_largest(curve, metric) for metric in _TOLD if kept(curve, end, metric) is not None]
    for metric, (title, _) in _COLUMNS.items():
        reasons = {point.missing[metric]: point for point in reversed(curve.points) if metric in point.missing}
        said += [f"No {title} at A = {point.alpha:g}: {reason}." for reason, point in reasons.items()]
    return said


def _largest(curve: Curve, metric: str) -> str:
    """The largest A that keeps the line of a metric, in a sentence."""
    end, title = _at(curve, 1.0), _COLUMNS[metric][0]
    share = kept(curve, end, metric)
    there = f"{_number(_at(curve, 0.0).metrics[metric], 2)} at the base"
    if share is None or share >= KEPT:
        return (
            f"The checkpoint keeps {_percent(share)} of the base's {title} ({_number(end.metrics[metric], 2)}; "
            f"{there}): there is little to bring back."
        )
    inside = [point for point in curve.points if 0.0 < point.alpha < 1.0]
    holding = [point for point in inside if (kept(curve, point, metric) or 0.0) >= KEPT]
    if not holding:
        return f"No A between 0 and 1 that was sampled keeps {KEPT:.0%} of the base's {title} ({there})."
    best = max(holding, key=lambda point: point.alpha)
    gain = gain_kept(curve, best)
    score = "reward" if best.accuracy is None else "accuracy"
    gained = "" if gain is None else f", with {gain:.0%} of what the checkpoint gained in {score}"
    return (
        f"A = {best.alpha:g} is the largest that keeps {KEPT:.0%} of the base's {title} "
        f"({_number(best.metrics[metric], 2)}; {there}, {_number(end.metrics[metric], 2)} at the checkpoint){gained}."
    )


def _at(curve: Curve, alpha: float) -> Point:
    return next(point for point in curve.points if point.alpha == alpha)
