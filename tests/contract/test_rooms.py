"""Who may import whom: ``ROOMS``, enforced on every import statement under ``rlmon/``."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "rlmon"

STDLIB_ONLY: frozenset[str] = frozenset()
LANGUAGE = {"records", "errors", "printable", "console", "acts", "baseline", "keys", "statistics", "series"} | {
    "criterion"
}
BELOW_MONITOR = LANGUAGE | {"config", "metrics", "detectors", "interventions", "runlog"}
TRAINING = {"torch", "trl", "transformers", "accelerate", "peft", "datasets", "numpy", "packaging", "yaml"} | {
    "safetensors",
    "psutil",
}


@dataclass(frozen=True)
class Room:
    """First-party rooms and third-party packages that a room may import, itself and the stdlib aside."""

    rooms: set[str] | frozenset[str]
    packages: set[str] | frozenset[str]


ROOMS = {
    "records": Room(set(), STDLIB_ONLY),
    "errors": Room(set(), STDLIB_ONLY),
    "printable": Room(set(), STDLIB_ONLY),
    "console": Room({"printable", "records"}, STDLIB_ONLY),
    "acts": Room(set(), STDLIB_ONLY),
    "baseline": Room(set(), STDLIB_ONLY),
    "statistics": Room(set(), {"numpy"}),
    "series": Room({"statistics"}, {"numpy"}),
    "keys": Room(set(), STDLIB_ONLY),
    "exchange": Room(LANGUAGE | {"metrics"}, {"numpy"}),
    "criterion": Room({"errors", "printable"}, STDLIB_ONLY),
    "config": Room(LANGUAGE, STDLIB_ONLY),
    "extensions": Room(LANGUAGE | {"metrics", "detectors", "interventions", "sinks"}, STDLIB_ONLY),
    "metrics": Room(LANGUAGE, {"numpy", "jaxtyping"}),
    "detectors": Room(LANGUAGE, {"numpy"}),
    "interventions": Room(LANGUAGE, {"numpy", "yaml"}),
    "runlog": Room(LANGUAGE, {"pyarrow"}),
    "restored": Room(LANGUAGE | {"detectors"}, STDLIB_ONLY),
    "controller": Room(BELOW_MONITOR | {"restored", "extensions"}, {"numpy"}),
    # sinks: opened here, lazily, so that a loop without TRL has them too. No sink imports the monitor, so no cycle.
    "monitor": Room(BELOW_MONITOR | {"exchange", "extensions", "restored", "controller", "sinks"}, {"numpy"}),
    # runlog, audit, report: the log of a run that goes on, and the artifact that W&B is given at its end.
    # dashboard: its live view, which is another process. config: names of variables that are no settings.
    "sinks": Room(LANGUAGE | {"config", "runlog", "audit", "report", "dashboard"}, {"wandb", "tensorboard"}),
    "trl": Room(BELOW_MONITOR | {"extensions", "monitor", "restored", "controller", "sinks"}, TRAINING),
    "audit": Room(LANGUAGE | {"asking", "extensions", "runlog", "metrics", "detectors"}, {"numpy", "pyarrow", "wandb"}),
    "report": Room(LANGUAGE | {"extensions", "runlog", "metrics", "detectors", "audit"}, {"numpy", "pyarrow", "rich"}),
    "serve": Room({"errors", "printable", "audit", "report", "version"}, {"starlette", "uvicorn"}),
    "asking": Room({"errors", "printable"}, STDLIB_ONLY),
    # lab: how completions are drawn. torch and what loads models: in `curve`, which samples, and only in functions.
    "blending": Room(LANGUAGE | {"metrics", "lab", "version"}, {"numpy", "torch", "transformers", "peft"}),
    # torch and what loads models: only in functions of `sampling`.
    "probing": Room(
        LANGUAGE | {"metrics", "detectors", "blending", "lab", "audit", "report"},
        {"numpy", "torch", "transformers", "peft", "rich"},
    ),
    "dashboard": Room({"errors", "printable", "asking"}, {"wandb", "wandb_workspaces"}),
    "lab": Room(
        BELOW_MONITOR | {"monitor", "controller", "sinks", "trl", "report"},
        TRAINING | {"rich", "reasoning_gym"},
    ),
    "cli": Room(
        BELOW_MONITOR
        | {"extensions", "monitor", "controller", "sinks", "trl", "audit", "report", "serve", "asking", "dashboard"}
        | {"blending", "lab", "probing", "version"},
        {"typer", "rich", "pyarrow"},
    ),
    # What tests of recipes call: an audit and its words. pytest itself is there wherever the plugin is asked for.
    "testing": Room({"errors", "printable", "audit", "report"}, STDLIB_ONLY),
    "pytest_plugin": Room({"audit", "testing"}, {"pytest"}),
    "__init__": Room({"audit", "blending", "config", "monitor", "runlog"}, STDLIB_ONLY),
}
LAZY_TORCH = ("metrics/tokens.py", "monitor/monitor.py")
"""The only files below ``trl`` that may name torch, and only when a function runs or a type checker reads."""


@dataclass(frozen=True)
class Import:
    """One imported module, where, and whether it waits for a call (or for a type checker)."""

    file: str
    line: int
    module: str
    lazy: bool


def imports(source: str, file: str, package: str) -> Iterator[Import]:
    """Every import in ``source``, relative ones made absolute."""

    def walk(node: ast.AST, lazy: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                for alias in child.names:
                    yield Import(file, child.lineno, alias.name, lazy)
            elif isinstance(child, ast.ImportFrom):
                base = child.module or ""
                if child.level:
                    parents = package.split(".")[: len(package.split(".")) - child.level + 1]
                    base = ".".join([*parents, *([child.module] if child.module else [])])
                # `from rlmon import x` may name a room.
                names = [f"rlmon.{alias.name}" for alias in child.names] if base == "rlmon" else [base]
                for name in names:
                    yield Import(file, child.lineno, name, lazy)
            else:
                inside = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
                typing_only = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
                yield from walk(child, lazy or inside or typing_only)

    yield from walk(ast.parse(source), lazy=False)


def room_of(file: str) -> str:
    return file.split("/")[0].removesuffix(".py")


def violations(found: Iterator[Import]) -> list[str]:
    """The imports that the table does not allow, in words."""
    wrong = []
    for item in found:
        room = ROOMS[room_of(item.file)]
        top, *rest = item.module.split(".")
        if top in sys.stdlib_module_names or top == "__future__":
            continue
        if top == "rlmon":
            target = rest[0] if rest else "__init__"
            allowed = target in room.rooms or target == room_of(item.file) or target == "__version__"
        elif item.file in LAZY_TORCH and top == "torch":
            allowed = item.lazy
        else:
            allowed = top in room.packages
        if not allowed:
            wrong.append(f"rlmon/{item.file}:{item.line} imports {item.module}")
    return wrong


def files() -> list[str]:
    return sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))


def test_every_file_belongs_to_a_room() -> None:
    strangers = [file for file in files() if room_of(file) not in ROOMS]
    assert not strangers, f"give these a room in ROOMS and in docs/architecture.md first: {strangers}"


@pytest.mark.parametrize("file", files())
def test_the_table_of_rooms(file: str) -> None:
    path = PACKAGE / file
    package = ".".join(["rlmon", *Path(file).parent.parts])
    assert not violations(imports(path.read_text(encoding="utf-8"), file, package))


@pytest.mark.parametrize(
    ("file", "source", "wrong"),
    [
        ("records.py", "import numpy", "rlmon/records.py:1 imports numpy"),
        ("metrics/text.py", "import torch", "rlmon/metrics/text.py:1 imports torch"),
        ("metrics/text.py", "def f():\n    import torch", "rlmon/metrics/text.py:2 imports torch"),
        ("metrics/tokens.py", "import torch", "rlmon/metrics/tokens.py:1 imports torch"),
        ("detectors/fold.py", "from rlmon.runlog import open_run", "rlmon/detectors/fold.py:1 imports rlmon.runlog"),
        ("detectors/fold.py", "from ..runlog import open_run", "rlmon/detectors/fold.py:1 imports rlmon.runlog"),
        ("detectors/fold.py", "from rlmon import runlog", "rlmon/detectors/fold.py:1 imports rlmon.runlog"),
        ("runlog/reader.py", "import pandas as pd", "rlmon/runlog/reader.py:1 imports pandas"),
        ("sinks/wandb.py", "from rlmon.trl import RLMon", "rlmon/sinks/wandb.py:1 imports rlmon.trl"),
        ("trl/base.py", "from rlmon.lab.task import x", "rlmon/trl/base.py:1 imports rlmon.lab.task"),
        ("report/page.py", "import transformers", "rlmon/report/page.py:1 imports transformers"),
        ("monitor.py", "try:\n    import trl\nexcept ImportError:\n    trl = None", "rlmon/monitor.py:2 imports trl"),
    ],
)
def test_the_check_can_fail(file: str, source: str, wrong: str) -> None:
    assert violations(imports(source, file, ".".join(["rlmon", *Path(file).parent.parts]))) == [wrong]


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("metrics/tokens.py", "def f():\n    import torch"),
        ("metrics/tokens.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from torch import Tensor"),
        ("metrics/text.py", "import zlib\nimport numpy as np\nfrom rlmon.metrics.formats import ModeSet"),
        ("trl/base.py", "import trl\nfrom rlmon.monitor import Monitor"),
    ],
)
def test_what_the_table_allows_passes(file: str, source: str) -> None:
    assert violations(imports(source, file, ".".join(["rlmon", *Path(file).parent.parts]))) == []
