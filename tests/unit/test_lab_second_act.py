"""The demo's second act: when a requirement counts as learned, what is claimed, what is shown, and a run of it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import make_demo
import pytest
from rich.console import Console

from rlmon.lab.claims import DEFINITIONS, second_act_claims
from rlmon.lab.screen import second_act_block
from rlmon.lab.second_act import Continued, SecondAct, first_at_line


def act(arm: str, wanted: int, steps: int | None, seed: int = 0) -> SecondAct:
    rewards = [0.5] * 80 if steps is None else [1.0] * steps
    continued = Continued(mixed_groups=7, weights_moved=0.1, steps_to_90=steps, rewards=rewards)
    return SecondAct(arm=arm, seed=seed, wanted="json", wanted_in_4096=wanted, continued=continued)


def test_a_requirement_is_learned_at_a_mean_of_five_steps() -> None:
    # (.5 + 1 + 1 + 1 + 1) / 5 = .9 at step 6; (.5 + .5 + 3) / 5 = .8 at step 5
    assert first_at_line([0.5, 0.5, 1.0, 1.0, 1.0, 1.0]) == 6
    assert first_at_line([1.0] * 4) is None
    assert first_at_line([0.89] * 80) is None


def test_what_is_claimed_of_a_start_depends_on_what_it_samples() -> None:
    def holds(wanted: int, steps: int | None, of_base: int | None = 40) -> bool | None:
        (claim,) = second_act_claims([act("base", 458, of_base), act("unprotected", wanted, steps)])
        assert (claim["arm"], claim["seed"], claim["id"]) == ("unprotected", 0, "second-act")
        return claim["holds"]  # type: ignore[no-any-return]

    assert holds(0, None) is True
    assert holds(0, 79) is False
    # 1 % of 4,096 is 40.96. One and a half times the base's 40 steps is 60.
    assert holds(41, 60) is True
    assert holds(41, 61) is False
    assert holds(41, None) is False
    # In between anything may come: chance decides when the first one is sampled.
    assert [holds(40, None), holds(1, 20)] == [None, None]
    # The base itself did not get there: nothing to compare with.
    assert holds(41, 60, of_base=None) is None


def test_each_seed_is_held_against_the_base_of_its_own() -> None:
    acts = [act("base", 458, 40, seed=0), act("kl", 400, 62, seed=0)]
    acts += [act("base", 458, 44, seed=1), act("kl", 400, 62, seed=1)]
    # 1.5 * 40 = 60 and 1.5 * 44 = 66
    assert [(claim["seed"], claim["holds"]) for claim in second_act_claims(acts)] == [(0, False), (1, True)]


def test_the_block_shows_who_found_it_again_and_who_did_not() -> None:
    stream = io.StringIO()
    acts = [act("base", 458, 40), act("unprotected", 0, None), act("protect", 400, 35)]
    Console(file=stream, width=80).print(second_act_block(acts))
    lines = [line.rstrip() for line in stream.getvalue().splitlines()]
    assert len({line.index("▕") for line in lines if "▕" in line}) == 1
    (base,) = [line for line in lines if line.startswith("base")]
    (lost,) = [line for line in lines if line.startswith("unprotected")]
    # One block for two steps: 40 steps at 1 are 20 full blocks, 80 at .5 are 40 in the middle.
    assert base.split() == ["base", "0", "458", "▕" + "█" * 20, "step", "40"]
    assert lost.split() == ["unprotected", "0", "0", "▕" + "▅" * 40, "never"]


def test_rows_have_what_is_defined_and_nothing_else() -> None:
    row = act("base", 458, 40).row()
    defined = {name.removeprefix("second_act.") for name in DEFINITIONS if name.startswith("second_act.")}
    assert set(row) == defined | {"arm", "seed"}
    assert set(make_demo.demo()["second_act"][0]) == set(row)


@pytest.mark.trl
def test_training_goes_on_from_a_fresh_model_and_stops_at_the_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked for the format of every answer there is, and for one that no answer has."""
    import torch
    from datasets import Dataset
    from transformers import AutoTokenizer

    from rlmon.lab import second_act
    from rlmon.lab.bases import BASE_DIR
    from rlmon.lab.demo import TRAINING, load_base
    from rlmon.lab.libraries import quiet_libraries

    rows = {"prompt": ["Ann has 7 figs and gets 9 more. How many?\n"] * 8, "answer": [16] * 8}

    def go_on(model: Any, wanted: str) -> Continued:
        return second_act.go_on(
            model, AutoTokenizer.from_pretrained(BASE_DIR), Dataset.from_dict(rows), lambda text: "any", wanted,
            out=tmp_path, seed=0, settings={**TRAINING, "max_steps": 6},
        )  # fmt: skip

    monkeypatch.setattr(second_act, "LINE", 0.5)
    with quiet_libraries():
        learned = go_on(load_base(), "any")
        model = load_base()
        before = second_act.weights_of(model)
        never = go_on(model, "another")
    # The base is right in 87 % of its answers, so the mean of the first five steps is above a half.
    assert (learned.steps_to_90, len(learned.rewards)) == (5, 5)
    assert learned.mixed_groups > 0
    assert 0.0 < learned.weights_moved < 1.0
    # Nothing rewarded: no group is mixed, and AdamW without decay leaves every weight where it is.
    assert never == Continued(mixed_groups=0, weights_moved=0.0, steps_to_90=None, rewards=[0.0] * 6)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
