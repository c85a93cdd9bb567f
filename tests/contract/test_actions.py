"""An intervention is one object: nobody asks of which class it is."""

from __future__ import annotations

import ast
import dataclasses
from pathlib import Path

import pytest

import rlmon
from rlmon.errors import ConfigError
from rlmon.interventions import Intervention, setting
from rlmon.interventions.actions import ACTIONS, known_actions

PACKAGE = Path(rlmon.__file__).parent
MOST_LINES = 15
CLASSES = {kind.__name__ for kind in ACTIONS.values()} | {"Intervention", "Once"}


def asking(source: str) -> list[int]:
    """Lines on which ``isinstance`` or ``issubclass`` is asked about an intervention."""
    return [
        node.lineno
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in ("isinstance", "issubclass")
        and {name.id for name in ast.walk(node.args[1]) if isinstance(name, ast.Name)} & CLASSES
    ]


def test_few_lines_ask_of_which_class_an_intervention_is() -> None:
    found = [
        f"{path.relative_to(PACKAGE)}:{line}" for path in PACKAGE.rglob("*.py") for line in asking(path.read_text())
    ]
    assert len(found) <= MOST_LINES, found


def test_the_contract_can_fail() -> None:
    assert asking("if isinstance(rule.action, Stop | RollBack):\n    pass\nisinstance(x, int)") == [1]


@pytest.mark.parametrize("name", sorted(ACTIONS))
def test_each_says_what_it_is(name: str) -> None:
    kind = ACTIONS[name]
    assert kind.name == name
    assert known_actions([kind]) == ACTIONS
    made = kind()
    assert made.knob
    assert made.ends_training or made.measured_by is not None
    saved = made.save(made.fresh())
    assert made.save(made.load(saved)) == saved
    assert kind.asks is None or kind.looks_at_rows()


def dressed(**body: object) -> type[Intervention]:
    """A frozen dataclass with this body."""
    return dataclasses.dataclass(frozen=True, kw_only=True)(type("Own", (Intervention,), body))


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (int, "int cannot be one: it is no subclass"),
        (3, "3 cannot be one: it is no subclass"),
        (dressed(), "it needs a name in small letters"),
        (dressed(name="My Own"), "it needs a name in small letters"),
        (type("Own", (Intervention,), {"name": "own"}), "it is no frozen dataclass"),
        (dressed(name="stop"), "there is another action of the name stop"),
        (dressed(name="own", turns="wheel"), "it turns 'wheel'; an intervention turns one of advantages, beta,"),
        (dressed(name="own", turns="loss"), "what turns loss is a subclass of Anchor. Write class Own(Anchor), from"),
        (dressed(name="own", turns="reference"), "what turns reference is a subclass of ResetReference"),
        (dressed(name="own", turns="stop"), "what turns stop is a subclass of Stop. Write class Own(Stop), from rlmon"),
        (dressed(name="own", turns="roll_back"), "what turns roll_back is a subclass of RollBack"),
        (dressed(name="own", turns="beta"), "it turns beta, and does not say to which value. Give it next_level"),
        (dressed(name="own", turns="entropy_coef"), "it turns entropy_coef, and does not say to which value"),
        (dressed(name="own", turns="draws"), "it turns draws, and does not say what is not to be drawn"),
        (dressed(name="own", __annotations__={"a": "Nowhere"}, a=setting(1, "a")), "the types of its fields cannot be"),
        (dressed(name="own", asks="now"), "it asks 'now'. Write asks = \"before\""),
        (dressed(name="own", knob_name=3), "its knob_name is 3, and no text"),
        (dressed(name="own", measured_by="rlmon/kl/mean"), "it is measured_by 'rlmon/kl/mean'. Write measured_by = ("),
        (dressed(name="own", starts_at="begin"), "starts_at names 'begin', and it has no fields begin and bounds"),
        (dressed(name="own", __annotations__={"size": float}, size=1.0), "its field size says neither its default"),
    ],
)
def test_what_is_no_intervention_is_refused(kind: type[Intervention], words: str) -> None:
    with pytest.raises(ConfigError, match=r"^actions: ") as refused:
        known_actions([kind])
    assert words in str(refused.value)
    fine = dressed(name="own", __annotations__={"size": float}, size=setting(1.0, "its size"))
    assert known_actions([fine])["own"] is fine
