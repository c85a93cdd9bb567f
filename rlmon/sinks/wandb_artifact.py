"""The run log, or its page, as an artifact of the W&B run: at the end, and only if ``rlmon_wandb_artifacts`` asks."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlmon.printable import one_line
from rlmon.runlog import open_run
from rlmon.runlog.layout import EVENTS_FILE, MANIFEST_FILE, RUN_FILE, STEPS_FILE
from rlmon.runlog.schema import TABLES

TYPE = "rlmon-run-log"
MAX_BYTES = 50_000_000


def log_artifact(wandb: Any, run: Any, log: Path, what: str) -> str | None:
    """Hand over what is asked for, ``page`` or ``log``; gives why not, in a sentence, where it is left out.

    Raises what W&B, the disk or the audit raises.
    """
    kept = {str(header.config.get("rlmon_store_text")) for header in open_run(log).headers}
    if len(kept) > 1 and "full" in kept:
        return (
            f"no artifact was sent to W&B: {one_line(str(log))} also holds text of an earlier attempt with "
            "rlmon_store_text: full; give the run an output_dir of its own"
        )
    artifact = wandb.Artifact(f"rlmon-{what}-{run.id}", type=TYPE)
    with tempfile.TemporaryDirectory(prefix="rlmon-") as made:
        files = dict(_files(log)) if what == "log" else {"report.html": _page(log, Path(made))}
        size = sum(file.stat().st_size for file in files.values())
        if size > MAX_BYTES:
            return (
                f"no artifact was sent to W&B: the {what} has {size / 1e6:,.0f} MB, and at most "
                f"{MAX_BYTES / 1e6:.0f} MB are sent; it stays in {one_line(str(log))}"
            )
        for name, file in files.items():
            artifact.add_file(str(file), name=name)
        run.log_artifact(artifact)
    return None


def _page(log: Path, folder: Path) -> Path:
    import rlmon.audit.engine as engine
    from rlmon.report.audit import write_page

    # No other processes: this one may hold an accelerator.
    return write_page(engine.audit(log, processes=1), folder / "report.html")


def _files(log: Path) -> Iterator[tuple[str, Path]]:
    """What ``open_run`` reads; not the key of the hashes, which never leaves the machine."""
    for name in (RUN_FILE, STEPS_FILE, EVENTS_FILE, MANIFEST_FILE):
        if (log / name).is_file():
            yield name, log / name
    for folder in TABLES:
        for file in sorted((log / folder).glob("*.parquet")):
            yield f"{folder}/{file.name}", file
