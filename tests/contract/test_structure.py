"""The shape of the package: no circles of imports, no file and no class too long, no private names of another file."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MOST_FILE_LINES = 700
MOST_CLASS_LINES = 400


def modules(root: Path, packages: tuple[str, ...]) -> dict[str, Path]:
    """Dotted names of all modules below ``root`` in these packages."""
    found = {}
    for package in packages:
        for path in sorted((root / package).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(source: str, known: Mapping[str, Path]) -> set[str]:
    """The modules of ours that a source names in an import, wherever it stands: a lazy import, or one for a type
    checker, is one all the same."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names & known.keys()


def circles(edges: Mapping[str, set[str]]) -> list[list[str]]:
    """Sets of modules that reach each other, of two or more (Tarjan's strongly connected components)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(module: str) -> None:
        index[module] = low[module] = len(index)
        stack.append(module)
        for other in edges[module]:
            if other not in index:
                visit(other)
                low[module] = min(low[module], low[other])
            elif other in stack:
                low[module] = min(low[module], index[other])
        if low[module] == index[module]:
            at = stack.index(module)
            if len(stack) - at > 1:
                found.append(sorted(stack[at:]))
            del stack[at:]

    for module in edges:
        if module not in index:
            visit(module)
    return found


def edges_of(known: Mapping[str, Path]) -> dict[str, set[str]]:
    return {name: imported(path.read_text(encoding="utf-8"), known) - {name} for name, path in known.items()}


@pytest.mark.parametrize("package", ["rlmon", "studies"])
def test_no_modules_import_each_other_in_a_circle(package: str) -> None:
    assert not circles(edges_of(modules(ROOT, (package,))))


def test_a_circle_is_seen_through_lazy_imports_and_those_for_type_checkers() -> None:
    known = {name: Path() for name in ("p", "p.a", "p.b", "p.c", "p.d")}
    sources = {
        "p": "",
        "p.a": "from p.b import x",
        "p.b": "def f():\n    from p import c",
        "p.c": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import p.a",
        "p.d": "import p.a",
    }
    assert circles({name: imported(source, known) - {name} for name, source in sources.items()}) == [
        ["p.a", "p.b", "p.c"]
    ]


def classes(path: Path) -> Iterator[tuple[str, int]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef):
            yield node.name, (node.end_lineno or node.lineno) - node.lineno + 1


def test_no_file_and_no_class_is_longer_than_one_can_hold() -> None:
    long = {}
    for name, path in modules(ROOT, ("rlmon", "studies")).items():
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > MOST_FILE_LINES:
            long[name] = lines
        long |= {f"{name}.{cls}": count for cls, count in classes(path) if count > MOST_CLASS_LINES}
    assert not long


def test_no_file_reads_the_private_names_of_another() -> None:
    """But a package's own ``_``-modules, of which there are none, this is what would make two files one."""
    found = []
    known = modules(ROOT, ("rlmon", "studies"))
    for name, path in known.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module in known:
                found += [
                    f"{name}: {node.module}.{a.name}"
                    for a in node.names
                    if a.name.startswith("_") and "__" not in a.name
                ]
    assert not found


def test_the_page_of_the_architecture_names_what_is_there() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(?:[^`]*→ )?([a-z_]+/[a-z_]+)`", page))
    assert len(named) > 20
    below = ("", "rlmon", "rlmon/metrics", "rlmon/monitor", "rlmon/audit", "rlmon/trl", "tests", "tests/unit")
    gone = [
        name
        for name in named
        if not any((ROOT / at / name).exists() or (ROOT / at / f"{name}.py").exists() for at in below)
    ]
    assert not gone
    assert len(page.splitlines()) < 110
