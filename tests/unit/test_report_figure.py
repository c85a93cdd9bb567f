"""One colour for a format, told apart by people who do not see red or green."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

import pytest

from rlmon.metrics.formats import ModeSet
from rlmon.report.figure import COLOURS, OTHER_COLOUR, colours

Triple = tuple[float, float, float]
SIGHT: dict[str, Sequence[Triple]] = {
    "normal": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    # Machado, Oliveira and Fernandes (2009), severity 1, on linear RGB.
    "protanopia": (
        (0.152286, 1.052583, -0.204868),
        (0.114503, 0.786281, 0.099216),
        (-0.003882, -0.048116, 1.051998),
    ),
    "deuteranopia": (
        (0.367322, 0.860646, -0.227968),
        (0.280085, 0.672501, 0.047413),
        (-0.011820, 0.042940, 0.968881),
    ),
}
TO_XYZ: Sequence[Triple] = (
    (0.4124564, 0.3575761, 0.1804375),
    (0.2126729, 0.7151522, 0.0721750),
    (0.0193339, 0.1191920, 0.9503041),
)


def times(matrix: Sequence[Triple], vector: Sequence[float]) -> list[float]:
    return [sum(a * b for a, b in zip(row, vector, strict=True)) for row in matrix]


def lab(colour: str, sight: str) -> list[float]:
    """CIE L*a*b* (D65) of ``#rrggbb`` as it is seen."""
    encoded = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in encoded]
    seen = [min(1.0, max(0.0, c)) for c in times(SIGHT[sight], linear)]
    scaled = [v / white for v, white in zip(times(TO_XYZ, seen), (0.95047, 1.0, 1.08883), strict=True)]
    x, y, z = (v ** (1 / 3) if v > (6 / 29) ** 3 else v / (3 * (6 / 29) ** 2) + 4 / 29 for v in scaled)
    return [116 * y - 16, 500 * (x - y), 200 * (y - z)]


def distance(one: Sequence[float], other: Sequence[float]) -> float:
    """CIEDE2000 (Sharma, Wu and Dalal 2005)."""
    (l1, a1, b1), (l2, a2, b2) = one, other
    mean = (math.hypot(a1, b1) + math.hypot(a2, b2)) / 2
    stretch = 1.5 - 0.5 * math.sqrt(mean**7 / (mean**7 + 25**7))
    c1, c2 = math.hypot(stretch * a1, b1), math.hypot(stretch * a2, b2)
    h1, h2 = (math.degrees(math.atan2(b, stretch * a)) % 360 for a, b in ((a1, b1), (a2, b2)))
    turn = (h2 - h1 + 180) % 360 - 180
    chroma, light = (c1 + c2) / 2, (l1 + l2) / 2
    hue = h1 + turn / 2
    waves = ((1, -0.17, -30), (2, 0.24, 0), (3, 0.32, 6), (4, -0.2, -63))
    t = 1 + sum(size * math.cos(math.radians(n * hue + shift)) for n, size, shift in waves)
    d_light = (l2 - l1) / (1 + 0.015 * (light - 50) ** 2 / math.sqrt(20 + (light - 50) ** 2))
    d_chroma = (c2 - c1) / (1 + 0.045 * chroma)
    d_hue = 2 * math.sqrt(c1 * c2) * math.sin(math.radians(turn / 2)) / (1 + 0.015 * chroma * t)
    around = 60 * math.exp(-(((hue % 360 - 275) / 25) ** 2))
    rotation = -2 * math.sqrt(chroma**7 / (chroma**7 + 25**7)) * math.sin(math.radians(around))
    return math.sqrt(d_light**2 + d_chroma**2 + d_hue**2 + rotation * d_chroma * d_hue)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ((50, 2.6772, -79.7751), (50, 0, -82.7485), 2.0425),
        ((50, 2.5, 0), (73, 25, -18), 27.1492),
        ((60.2574, -34.0099, 36.2677), (60.4626, -34.1751, 39.4387), 1.2644),
        ((22.7233, 20.0904, -46.6940), (23.0331, 14.9730, -42.5619), 2.0373),
    ],
)
def test_the_distance_is_that_of_its_published_table(one: Triple, other: Triple, expected: float) -> None:
    assert distance(one, other) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("sight", SIGHT)
def test_any_two_formats_are_told_apart(sight: str) -> None:
    seen = {name: lab(colour, sight) for name, colour in {**COLOURS, "other": OTHER_COLOUR}.items()}
    nearest, pair = min((distance(seen[a], seen[b]), (a, b)) for a, b in combinations(seen, 2))
    print(f"{sight}: smallest distance {nearest:.1f}, {pair[0]} and {pair[1]}")
    assert nearest > 16


def test_a_format_has_one_colour_whatever_else_is_drawn() -> None:
    assert set(COLOURS) | {"other"} == set(ModeSet.build(None).names)
    assert colours(["prose", "python", "other"])["python"] == colours(["python"])["python"] == COLOURS["python"]
    mine = colours(["prose", "my own", "python", "another"])
    assert len({mine[mode] for mode in ("prose", "my own", "python", "another", "other")}) == 5
    many = colours([f"m{i}" for i in range(30)])
    assert many["m0"] == many["m9"] != many["m1"]
