"""``rlmon demo`` and ``rlmon check``: the commands that need TRL."""

from __future__ import annotations

import contextlib
import enum
import sys
from pathlib import Path
from typing import Annotated

import typer

from rlmon.cli.printing import USAGE_OR_UNREADABLE, aligned, note, say
from rlmon.errors import ConfigError, MissingExtraError


class TrainerKind(str, enum.Enum):
    """Which trainer a YAML file is for."""

    grpo = "grpo"
    rloo = "rloo"
    ppo = "ppo"


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the run logs, demo.json and the page.")] = Path("out/demo"),
    quick: Annotated[bool, typer.Option("--quick", help="The first seed only, all arms, the same claims.")] = False,
    seeds: Annotated[str, typer.Option(help="Seeds, separated by commas.")] = "0,1,2",
    arms: Annotated[str | None, typer.Option(help="Only these arms, separated by commas. Default: all.")] = None,
) -> None:
    """Train a tiny model with real TRL GRPO until it knows one answer format only, and twice more: held, so that the
    formats stay, by a KL on every token (arm kl) and by rlmon's policy of that name (arm protect).

    Ends with a table, demo.json and one self-contained HTML page. Exit code 1 when a claim does not hold.
    """
    _need_trl("demo")
    from rlmon.lab.demo import ARMS, run

    try:
        numbers = tuple(int(seed) for seed in seeds.split(","))
    except ValueError:
        raise ConfigError(f"--seeds must be whole numbers separated by commas, got {seeds!r}.") from None
    names = tuple(arms.split(",")) if arms is not None else tuple(ARMS)
    raise typer.Exit(run(out, numbers, names, quick))


def check(
    config: Annotated[Path, typer.Argument(help="A YAML file for `trl grpo`, `trl rloo` or trainers/train_*.py.")],
    trainer: Annotated[TrainerKind, typer.Option(help="The trainer that it is for.")] = TrainerKind.grpo,
) -> None:
    """What will be captured with this TRL, this config and this machine; what cannot be, and why."""
    _need_trl("check")
    # Libraries greet on stdout when they are imported or configured; that is where the result goes.
    with contextlib.redirect_stdout(sys.stderr):
        from rlmon.trl.check import check_config

        report = check_config(config, trainer.value)
    for line in report.notes:
        print(line, file=sys.stderr)
    for line in aligned(report.rows):
        say(line)
    if report.refused:
        for refusal in report.refused:
            note(f"rlmon: training would be refused before its first step: {refusal}")
        raise typer.Exit(USAGE_OR_UNREADABLE)


def _need_trl(command: str) -> None:
    from importlib.util import find_spec

    for package in ("torch", "transformers", "trl"):
        if find_spec(package) is None:
            raise MissingExtraError(
                f"`rlmon {command}` needs {package}, which is not installed. Type: pip install 'rlmon[trl]'"
            )
