"""A curve in words, rows and JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict

from rlmon.blending.curve import FORMATS, KEPT, Curve, Point

TITLES = (
    "A",
    "accuracy",
    "formats in use",
    "within a prompt",
    "templates within a prompt",
    "entropy, nats a token",
    "formats kept",
    "gain kept",
)
_METRICS = (
    FORMATS,
    "rlmon/format/effective_within",
    "rlmon/collision/template_within_effective",
    "rlmon/entropy/mean",
)
_TOLD = {FORMATS: "formats in use", "rlmon/collision/template_within_effective": "templates within a prompt"}
"""What a sentence says which A keeps it."""


def rows(curve: Curve) -> list[list[str]]:
    """A title each, then a row for each A; what was not measured is a dash."""
    by_reward = all(point.accuracy is None for point in curve.points)
    titles = [title if title != "accuracy" or not by_reward else "mean reward" for title in TITLES]
    return [titles, *(_row(curve, point) for point in curve.points)]


def _row(curve: Curve, point: Point) -> list[str]:
    numbers = [_number(point.metrics[name], 3 if "entropy" in name else 2) for name in _METRICS]
    return [
        f"{point.alpha:g}",
        _number(point.score, 3),
        *numbers,
        _percent(kept(curve, point)),
        _percent(gain_kept(curve, point)),
    ]


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
    for metric, title in _TOLD.items():
        if kept(curve, end, metric) is not None:
            said.append(_largest(curve, metric, title))
    for metric in _METRICS:
        reasons = {point.missing[metric]: point for point in reversed(curve.points) if metric in point.missing}
        title = TITLES[2 + _METRICS.index(metric)]
        said += [f"No {title} at A = {point.alpha:g}: {reason}." for reason, point in reasons.items()]
    return said


def _largest(curve: Curve, metric: str, title: str) -> str:
    """The largest A that keeps the line of a metric, in a sentence."""
    end = _at(curve, 1.0)
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
    gained = "" if gain is None else f", with {gain:.0%} of what the checkpoint gained in {_score(best)}"
    return (
        f"A = {best.alpha:g} is the largest that keeps {KEPT:.0%} of the base's {title} "
        f"({_number(best.metrics[metric], 2)}; {there}, {_number(end.metrics[metric], 2)} at the checkpoint){gained}."
    )


def _score(point: Point) -> str:
    return "reward" if point.accuracy is None else "accuracy"


def _at(curve: Curve, alpha: float) -> Point:
    return next(point for point in curve.points if point.alpha == alpha)
