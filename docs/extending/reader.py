"""A reader: runs of a trainer of one's own, which writes one prompt a line with all of its answers, to *.answers files:

{"iteration": 3, "question": "What is 2 + 3?", "answers": [{"text": "It is 5.", "score": 1.0}, ...]}
"""

import functools
import json
from pathlib import Path

import pyarrow as pa

from rlmon.audit.run import OpenedRun, Rows


def table_of(path: Path) -> pa.Table:
    """One completion a row: the columns of `rlmon.audit.run.ROWS`, of which only the step must be there."""
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines()):
        group = json.loads(line)
        for answer in group["answers"]:
            rows.append(
                {
                    "step": group["iteration"],
                    "prompt": group["question"],
                    "completion": answer["text"],
                    "reward": answer["score"],
                    "group": str(number),
                }
            )
    return pa.Table.from_pylist(rows)


class AnswersReader:
    """`rlmon audit run.answers`, and `--reader answers` for files of other names."""

    NAME = "answers"

    def recognises(self, path: Path) -> bool:
        return path.suffix == ".answers"

    def open_run(self, path: Path) -> OpenedRun:
        rows = Rows(read_table=functools.partial(table_of, path), bytes=path.stat().st_size)
        return OpenedRun(reader=self.NAME, run_id=path.stem, path=path, shards=[rows])


ANSWERS = AnswersReader()
