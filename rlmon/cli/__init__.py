"""The ``rlmon`` command.

Results go to stdout, progress and notes to stderr. Exit codes: 0 fine, 1 a finding at or above the level asked
for, 2 usage or unreadable input, 3 unsure (only with ``--strict``), 130 interrupted. Every command
imports what it needs when it runs, so that ``rlmon --help`` stays quick.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from rlmon import __version__
from rlmon.cli.alerts import alerts
from rlmon.cli.audits import ReadsRuns, audit, report
from rlmon.cli.blending import blend
from rlmon.cli.catalogues import detectors, metrics, policy
from rlmon.cli.comparing import compare
from rlmon.cli.dashboards import dashboard
from rlmon.cli.looking import serve, show, watch
from rlmon.cli.printing import USAGE_OR_UNREADABLE, note, reader_may_leave
from rlmon.cli.probing import probe
from rlmon.cli.training import check, demo
from rlmon.errors import RLMonError, TrackerError

__all__ = ["app", "main"]

TRACEBACK = "TRACEBACK"
"""Environment variable: an unforeseen error shows its traceback."""

app = typer.Typer(
    help="See which outputs your RL run is killing, while there is still time to stop it.",
    no_args_is_help=True,
    add_completion=False,
    # Plain help: the same in a pipe as on a terminal, and half the start-up time.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False,
) -> None:
    if version:
        print(f"rlmon {__version__}")
        raise typer.Exit


app.command(short_help="Collapse a tiny model on purpose and watch it happen.")(demo)
app.command(short_help="What a YAML file would have captured, and what not.")(check)
app.command(short_help="What a policy would do.")(policy)
app.command(short_help="What happened to a run: verdict, checks, advice.", cls=ReadsRuns)(audit)
app.command(short_help="The same as one HTML page, with charts and completions.")(report)
app.command(short_help="Whether two runs, or two sets of seeds, differ.")(compare)
app.command(short_help="Weights between a base and what RL made of it.")(blend)
app.add_typer(probe, name="probe", short_help="Models without a log: what happened between two of them.")
app.command(short_help="A run as it trains, on one screen.")(watch)
app.command(short_help="All runs below a folder in the browser, as they train.")(serve)
app.add_typer(dashboard, name="dashboard", short_help="Views of runs where people already look: W&B.")
app.command(short_help="Whether alerts go to a webhook, and a test of it.")(alerts)
app.command(short_help="Look at completions.")(show)
app.command(short_help="The catalogue of metrics, or one of them explained.")(metrics)
app.command(short_help="The catalogue of detectors, or one of them explained.")(detectors)


def main() -> None:
    """Run the command line; what rlmon itself refuses becomes one line and exit code 2."""
    _never_fail_on_odd_characters()
    try:
        app(prog_name="rlmon")
    except TrackerError as error:
        note(f"rlmon: {error}")
        with reader_may_leave():
            sys.stdout.flush()
        # At the end of a process W&B's client waits for its server, for minutes where that is down or silent.
        os._exit(USAGE_OR_UNREADABLE)
    except RLMonError as error:
        note(f"rlmon: {error}")
        sys.exit(USAGE_OR_UNREADABLE)
    except Exception as error:
        if TRACEBACK in os.environ:
            raise
        # A verdict is 0 or 1: a mistake of ours must not look like one.
        said = f"{type(error).__name__}: {error} ({TRACEBACK}=1 shows where)"
        note(f"rlmon: a mistake of rlmon's own, please report it: {said}")
        sys.exit(USAGE_OR_UNREADABLE)
    finally:
        with reader_may_leave():
            sys.stdout.flush()


def _never_fail_on_odd_characters() -> None:
    """A terminal or pipe in another encoding gets backslash escapes instead of an error."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
