"""docs/demo.svg from a finished demo: ``rlmon demo && python scripts/demo_picture.py out/demo docs/demo.svg``.

All arms of the first seed side by side. docs/demo.png, which README.md shows, is what a browser makes of it at
twice its size.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rlmon.report.demo import caption_of, load, name_of, shares_of
from rlmon.report.figure import picture


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("demo", type=Path, help="folder of a finished demo")
    parser.add_argument("svg", type=Path, help="file to write")
    given = parser.parse_args()
    demo, series = load(given.demo)
    runs = [run for run in demo["runs"] if run["seed"] == demo["seeds"][0]]
    drawn = picture(
        [shares_of(run, series[name_of(run)]) for run in runs],
        [caption_of(demo["base"], run) for run in runs],
        "Nothing in the reward asks for a format. Unprotected, one of six eats the others.",
    )
    given.svg.write_text(drawn, encoding="utf-8")


if __name__ == "__main__":
    main()
