"""Policy files as plain data that remembers its lines: presets, YAML files, YAML or JSON text."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlmon.errors import ConfigError, MissingExtraError
from rlmon.printable import nearest, one_line, one_of

MOST_BYTES = 1_000_000
MOST_NODES = 20_000
"""Values in one file with aliases written out: a few lines of them can stand for billions."""
MOST_DEPTH = 32
PRESETS = Path(__file__).parent / "presets"

Where = tuple[Any, ...]
"""Keys and list indices from the top of a document to a value."""


@dataclass(frozen=True, kw_only=True)
class Document:
    """Plain data, and where each value of it stands."""

    name: str
    """What messages call it: a path as it was given, ``preset protect``, ``policy``."""
    data: Any
    places: Mapping[Where, str] = field(default_factory=dict)
    """``policy.yaml:7`` for each key and list item; empty where the data came as a mapping."""

    def error(self, where: Where, problem: str) -> ConfigError:
        """``policy.yaml:7: rules.hold-formats.do.kapa: problem``."""
        parts = [self.place(where), dotted(where), problem]
        return ConfigError(": ".join(part for part in parts if part))

    def place(self, where: Where) -> str:
        """File and line of a value, or of the nearest thing around it that has a line."""
        for length in range(len(where), -1, -1):
            if where[:length] in self.places:
                return self.places[where[:length]]
        return self.name


def dotted(where: Where) -> str:
    """``rules.hold-formats.when.any[0].metric``."""
    text = ""
    for part in where:
        if isinstance(part, int) and not isinstance(part, bool):
            text += f"[{part}]"
        else:
            text += ("." if text else "") + one_line(str(part), 80)
    return text


def preset_names() -> tuple[str, ...]:
    """Names of the policies that ship with rlmon."""
    return tuple(sorted(path.stem for path in PRESETS.glob("*.yaml")))


def read(source: str | Path) -> Document:
    """The document that ``source`` means: a preset's name, YAML or JSON text, else the path of a file.

    Raises ``ConfigError`` saying what came and what to type.
    """
    if isinstance(source, Path):
        return read_file(source)
    text = source.strip()
    if not text:
        raise ConfigError(f"policy: is empty; give {one_of(preset_names())}, a YAML file, or a mapping of rules.")
    if text in preset_names():
        return read_preset(text)
    if "\n" in text or re.match(r"[{\[]|[a-z_]+:(\s|$)", text):
        return read_text(source, "policy text")
    return read_file(Path(text), as_given=text)


def read_preset(name: str) -> Document:
    """A policy that ships with rlmon."""
    return read_text((PRESETS / f"{name}.yaml").read_text(encoding="utf-8"), f"preset {name}")


def read_file(path: Path, as_given: str | None = None) -> Document:
    """A YAML (or JSON) file."""
    shown = one_line(as_given if as_given is not None else str(path))
    try:
        if path.is_dir():
            raise ConfigError(f"{shown}: is a folder; a policy is one YAML file.")
        if not path.exists():
            near = _neighbour(path)
            raise ConfigError(
                f"{shown}: is neither a file nor a preset.{near} The presets are {', '.join(preset_names())}."
            )
        with path.open("rb") as file:
            raw = file.read(MOST_BYTES + 1)
    except (OSError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{shown}: cannot be read: {one_line(str(error))}.") from error
    try:
        return read_text(raw.decode("utf-8-sig") if len(raw) <= MOST_BYTES else raw, shown)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{shown}: is not UTF-8 text ({one_line(str(error))}).") from error


def _neighbour(path: Path) -> str:
    """The preset, or the file beside it, of nearly this name."""
    if not path.parent.is_dir():
        return f" There is no folder {one_line(str(path.parent))}."
    presets = preset_names() if len(path.parts) == 1 else ()
    return nearest(path.name, [*presets, *sorted(other.name for other in path.parent.iterdir())[:1000]])


def read_text(text: str | bytes, name: str) -> Document:
    """YAML, or JSON (which is nearly always YAML too)."""
    size = len(text) if isinstance(text, bytes) else len(text.encode("utf-8", "surrogatepass"))
    if size > MOST_BYTES:
        raise ConfigError(f"{name}: is larger than {MOST_BYTES:,} bytes; a policy is a page of rules.")
    assert isinstance(text, str)
    try:
        import yaml
    except ImportError:
        found = _json(text, name)
        if found is None:
            raise MissingExtraError(
                f"{name}: YAML is read with PyYAML, which is not installed: pip install pyyaml. JSON text and Python "
                "mappings are read without it."
            ) from None
        return found
    try:
        node = yaml.compose(text, _loader())
        if node is None:
            raise ConfigError(f"{name}: is empty; a policy has rules:, or extends: {one_of(preset_names())}.")
        return _Reader(name).document(node)
    except yaml.MarkedYAMLError as error:
        # Tabs between the values of JSON are no YAML.
        found = _json(text, name)
        if found is not None:
            return found
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark is not None else ""
        problem = one_line(" ".join(part for part in (error.context, error.problem) if part))
        raise ConfigError(f"{name}{line}: is not YAML: {problem}.") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{name}: is not YAML: {one_line(str(error))}.") from error
    except RecursionError:
        raise ConfigError(f"{name}: is nested too deep; {MOST_DEPTH} levels are allowed.") from None


def _json(text: str, name: str) -> Document | None:
    """JSON text; ``None`` where it is none. Its values have no lines."""

    def pairs(entries: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in entries:
            if key in found:
                raise ConfigError(f"{name}: {one_line(key, 80)}: is given twice.")
            found[key] = value
        return found

    try:
        return Document(name=name, data=json.loads(text, object_pairs_hook=pairs))
    except ConfigError:
        raise
    except (ValueError, RecursionError):
        return None


@functools.cache
def _loader() -> Any:
    import yaml

    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        """Reads 1e-3 as a number too: without a point, PyYAML takes it for text."""

    Loader.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
    )
    return Loader


class _Reader:
    """Walks the nodes of one file: duplicate keys are refused, and lines are kept."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._places: dict[Where, str] = {}
        self._scalars = _loader()("")
        self._nodes = 0

    def document(self, node: Any) -> Document:
        data = self._value(node, (), ())
        return Document(name=self._name, data=data, places=self._places)

    def _error(self, node: Any, where: Where, problem: str) -> ConfigError:
        parts = [f"{self._name}:{node.start_mark.line + 1}", dotted(where), problem]
        return ConfigError(": ".join(part for part in parts if part))

    def _count(self, node: Any, where: Where) -> None:
        self._nodes += 1
        if self._nodes > MOST_NODES:
            raise self._error(node, where, f"more than {MOST_NODES:,} values, aliases written out.")

    def _value(self, node: Any, where: Where, above: tuple[int, ...]) -> Any:
        import yaml

        self._count(node, where)
        if id(node) in above:
            raise self._error(node, where, "an alias stands inside what it names.")
        if len(above) > MOST_DEPTH:
            raise self._error(node, (), f"nested too deep; {MOST_DEPTH} levels are allowed.")
        inside = (*above, id(node))
        if isinstance(node, yaml.MappingNode) and node.tag == "tag:yaml.org,2002:map":
            return {key: self._value(value, (*where, key), inside) for key, value in self._entries(node, where, inside)}
        if isinstance(node, yaml.SequenceNode) and node.tag == "tag:yaml.org,2002:seq":
            found = []
            for i, item in enumerate(node.value):
                at = (*where, i)
                self._places[at] = f"{self._name}:{item.start_mark.line + 1}"
                found.append(self._value(item, at, inside))
            return found
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, where)
        raise self._error(node, where, f"the tag {one_line(str(node.tag), 80)} has no meaning here.")

    def _entries(self, node: Any, where: Where, above: tuple[int, ...]) -> Iterator[tuple[Any, Any]]:
        """Keys and value nodes of a mapping; what ``<<`` merges in comes last, where the mapping lacks it."""
        import yaml

        given: dict[Any, int] = {}
        merged: list[Any] = []
        for key_node, value in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                merged += value.value if isinstance(value, yaml.SequenceNode) else [value]
                continue
            if not isinstance(key_node, yaml.ScalarNode):
                raise self._error(key_node, where, "a key must be a plain name.")
            key, line = self._scalar(key_node, where), key_node.start_mark.line + 1
            at = (*where, key)
            if key in given:
                raise self._error(key_node, at, f"is given twice, the first time in line {given[key]}.")
            given[key] = line
            self._places[at] = f"{self._name}:{line}"
            yield key, value
        for other in merged:
            self._count(other, where)
            if not isinstance(other, yaml.MappingNode) or id(other) in above:
                raise self._error(other, where, "<< takes an alias of a mapping, or a list of them.")
            places = {place: text for place, text in self._places.items() if place[:-1] == where}
            for key, value in self._entries(other, where, (*above, id(other))):
                if key in given:
                    at = (*where, key)
                    self._places[at] = places[at]
                    continue
                given[key] = value.start_mark.line + 1
                yield key, value

    def _scalar(self, node: Any, where: Where) -> Any:
        import yaml

        try:
            return self._scalars.construct_object(node, deep=True)
        except (yaml.YAMLError, ValueError, OverflowError):
            shown = one_line(node.value, 80)
            raise self._error(node, where, f"{shown!r} cannot be read as {node.tag.rsplit(':', 1)[-1]}.") from None
