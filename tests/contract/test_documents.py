"""What the documents say about the repository is true: commands, file tree, links, versions, generated pages."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import rlmon
from rlmon.cli import app
from scripts.pages import PAGES

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(text: str) -> list[str]:
    return re.findall(r"```\w*\n(.*?)```", text, flags=re.DOTALL)


def make_targets(text: str) -> set[str]:
    """The targets of all ``make ...`` in code blocks and code spans."""
    code = "\n".join(blocks(text) + re.findall(r"`([^`\n]+)`", text))
    return set(re.findall(r"^make ([a-z0-9-]+)", code, flags=re.MULTILINE))


def commands(text: str) -> set[str]:
    """The subcommands of all ``rlmon ...`` in code blocks and code spans."""
    code = "\n".join(blocks(text) + re.findall(r"`([^`\n]+)`", text))
    return set(re.findall(r"(?:^|\| )rlmon ([a-z]+)", code, flags=re.MULTILINE))


def links(text: str) -> list[str]:
    return [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if not re.match(r"https?:|#", link)]


def tree(text: str) -> list[str]:
    """Paths of the annotated file tree: two spaces of indentation are one level."""
    (block,) = (block for block in blocks(text) if block.startswith("rlmon/\n"))
    parents: list[str] = []
    paths = []
    for line in block.splitlines():
        name = line.split()[0]
        level = (len(line) - len(line.lstrip())) // 2
        parents = [*parents[:level], name]
        paths.append("".join(parents))
    return paths


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_commands_and_links_exist(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert make_targets(text) <= targets
    known = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    known |= {str(group.name) for group in app.registered_groups}
    assert commands(text) <= known
    assert [link for link in links(text) if not (document.parent / link.split("#")[0]).exists()] == []


def test_the_readme_names_the_two_commands_every_file_of_ours_and_nothing_else() -> None:
    assert {"demo", "test"} <= make_targets(README)
    paths = tree(README)
    assert [path for path in paths if not (ROOT / path).exists()] == []
    for folder in ("rlmon", "trainers"):
        there = {
            f"{folder}/{path.name}{'/' if path.is_dir() else ''}"
            for path in (ROOT / folder).iterdir()
            if not path.name.startswith(("_", ".")) and path.suffix in ("", ".py")
        }
        assert there == {path for path in paths if re.fullmatch(rf"{folder}/[^/]+/?", path)}


def test_every_line_of_the_tree_has_at_most_six_words() -> None:
    (block,) = (block for block in blocks(README) if block.startswith("rlmon/\n"))
    assert [line for line in block.splitlines() if len(line.split()[1:]) > 6] == []


def test_the_changelog_is_of_this_version() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    released = re.findall(r"^## \[(\d+\.\d+\.\d+)\] - \d{4}-\d\d-\d\d$", text, flags=re.MULTILINE)
    assert released[0] == rlmon.__version__


@pytest.mark.parametrize("page", PAGES)
def test_generated_pages_are_up_to_date(page: str) -> None:
    assert (ROOT / "docs" / page).read_text(encoding="utf-8") == PAGES[page](), "run: python scripts/pages.py"


def test_constraints_put_torch_first_and_pin_what_pyproject_names() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"]
    assert lines[0] == "torch==2.13.0"
    pinned = {line.split("==")[0] for line in lines}
    named = requirements((ROOT / "pyproject.toml").read_text())
    assert {"numpy", "wandb", "wandb-workspaces", "starlette", "uvicorn", "pytest"} <= named
    assert named - {"rlmon"} <= pinned


def requirements(project: str) -> set[str]:
    """What the dependencies and all extras of a pyproject.toml name, lists on one line too."""
    lists = project[project.index("dependencies = [") : project.index("[project.scripts]")]
    return set(re.findall(r'"([a-z][a-z0-9-]*)(?=[>\[])', re.sub(r"^ *#.*", "", lists, flags=re.MULTILINE)))


def test_the_check_of_constraints_can_fail() -> None:
    text = 'dependencies = [\n    "numpy>=1",\n]\nserve = ["a-b>=1", "c[d]>=2,<3"]\n# "e>=1"\n[project.scripts]'
    assert requirements(text) == {"numpy", "a-b", "c"}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("```\nmake nope\n```", {"nope"}),
        ("run `make nope` now", {"nope"}),
        ("do not make nonsense", set()),
    ],
)
def test_the_check_of_targets_can_fail(text: str, found: set[str]) -> None:
    assert make_targets(text) == found


def test_the_checks_of_commands_links_and_tree_can_fail() -> None:
    assert commands("```\nrlmon fly | rlmon swim\n```\n`rlmon dig HOLE`") == {"fly", "swim", "dig"}
    assert links("[a](nope.md) [b](https://x.y) [c](#top) ![d](no.png)") == ["nope.md", "no.png"]
    assert tree("```\nrlmon/\n  a.py   words\n  b/     words\ntests/   words\n```") == [
        "rlmon/", "rlmon/a.py", "rlmon/b/", "tests/",
    ]  # fmt: skip


def test_the_page_on_audits_names_every_check_and_reader() -> None:
    from rlmon.audit import readers
    from rlmon.audit.checks import FOLDS, HINDSIGHT

    page = (ROOT / "docs" / "audit.md").read_text(encoding="utf-8")
    assert [asked.id for asked in FOLDS if f"`{asked.id}`" not in page] == []
    rows = [f"| `{asked.id}` | {asked.warn} | {asked.fail} |".replace("|  |", "| |") for asked in HINDSIGHT]
    assert [row for row in rows if f"{row}\n" not in page] == [], "copy these rows into docs/audit.md"
    assert [module.NAME for module in readers.READERS if f"`{module.NAME}`" not in page] == []
