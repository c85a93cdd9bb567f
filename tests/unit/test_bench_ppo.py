"""What the benchmark against TRL's former PPOTrainer makes of its runs: the parts that need neither TRL nor torch."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

PATH = Path(__file__).resolve().parents[2] / "benchmarks" / "bench_ppo.py"


@pytest.fixture(scope="module")
def bench() -> Any:
    spec = importlib.util.spec_from_file_location("bench_ppo_under_test", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Its dataclasses look up their module by name.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def a_run(bench: Any, **changes: Any) -> Any:
    """20 rounds with rewards .00, .05, ..., .95, scored half a CPU-second apart: 1.0, 1.5, ..., 10.5."""
    run = bench.Run(
        arm="trl",
        learning_rate=4e-4,
        seed=0,
        rewards=[at / 20 for at in range(20)],
        scored_at_cpu_seconds=[1.0 + at / 2 for at in range(20)],
        cpu_seconds=11.0,
        accuracy=0.5,
        updates=20,
    )
    return dataclasses.replace(run, **changes)


def test_reward_at_equal_cpu_is_that_of_the_last_ten_rounds_scored_in_time(bench: Any) -> None:
    run = a_run(bench)
    # Scored by 7.5 s: rounds 0 to 13, the last at 1 + 13/2 exactly. Of them the last ten are 4 to 13, mean 8.5 / 20.
    assert run.reward_within(7.5) == pytest.approx(0.425)
    # A moment earlier round 13 is not there yet: rounds 3 to 12, mean 7.5 / 20.
    assert run.reward_within(7.49) == pytest.approx(0.375)
    # All of them: rounds 10 to 19, mean 14.5 / 20, as at the end.
    assert run.reward_within(1e9) == pytest.approx(0.725) == run.last_reward


def test_fewer_than_ten_rounds_in_time_are_not_measured(bench: Any) -> None:
    # The tenth round is scored at 1 + 9/2 = 5.5 s.
    assert a_run(bench).reward_within(5.49) is None
    assert a_run(bench).reward_within(5.5) == pytest.approx(4.5 / 20)


def test_what_a_reward_took(bench: Any) -> None:
    # The mean of rounds e-9 to e is (e - 4.5) / 20: .5 from e = 14.5 on, so with 16 rounds (0 to 15) at 1 + 15/2 s.
    assert a_run(bench).reached(0.5) == (16 * 64, 8.5)
    # Met exactly: e = 14 has 9.5 / 20 = .475.
    assert a_run(bench).reached(0.475) == (15 * 64, 8.0)
    assert a_run(bench).reached(0.95) is None


def test_equal_cpu_time_is_the_fastest_whole_runs(bench: Any) -> None:
    runs = [a_run(bench), a_run(bench, cpu_seconds=10.9), a_run(bench, cpu_seconds=12.0)]
    assert bench.equal_cpu_seconds(runs) == 10.9
    with pytest.raises(ValueError, match="empty"):
        bench.equal_cpu_seconds([])


def test_the_learning_rate_is_the_most_accurate_and_of_equals_the_smallest(bench: Any) -> None:
    tuning = [
        a_run(bench, learning_rate=1e-3, accuracy=0.9),
        a_run(bench, learning_rate=6.5e-4, accuracy=0.9),
        a_run(bench, learning_rate=4e-4, accuracy=0.8),
    ]
    assert bench.chosen_rate(tuning) == 6.5e-4


def rows_of(table: str) -> list[list[str]]:
    lines = table.splitlines()
    assert set(lines[1]) <= set("|-")
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in (lines[0], *lines[2:])]


def compared(bench: Any) -> list[Any]:
    fast = {"arm": "ours", "cpu_seconds": 5.5, "scored_at_cpu_seconds": [0.5 + at / 4 for at in range(20)]}
    return [
        a_run(bench, accuracy=0.50),
        a_run(bench, accuracy=0.60, seed=1, cpu_seconds=13.0),
        a_run(bench, accuracy=0.60, **fast),
        a_run(bench, accuracy=0.80, seed=1, **{**fast, "rewards": [0.96] * 20}),
        # Faster still, but with another schedule: it must not set the others' time.
        a_run(bench, arm="trl-4x4", cpu_seconds=1.0),
    ]


def test_table(bench: Any) -> None:
    head, theirs, ours, other = rows_of(bench.table(compared(bench), list(bench.ARMS.values())))
    assert {len(head), len(theirs), len(ours), len(other)} == {9}
    assert theirs[1:3] == ["1 x 1", "0.0004"]
    # (.5 + .6) / 2; the last ten rounds; (11 + 13) / 2.
    assert theirs[3:6] == ["0.550 (0.500, 0.600)", "0.725", "12.0"]
    # Of the 5.5 s of the fastest 1 x 1 run, TRL's have just their first ten rounds, 4.5 / 20; they never reach .95.
    assert theirs[6:] == ["0.225", "-", "-"]
    # (.725 + .96) / 2, at the end and at 5.5 s, when all is done; one of two reaches .95, with its first ten rounds,
    # at .5 + 9/4 s.
    assert ours[4:] == ["0.843", "5.5", "0.843", "640 (1 of 2)", "2.8 (1 of 2)"]
    # In 1 s it had one round.
    assert other[1] == "4 x 4"
    assert other[6] == "-"


def test_differences_are_paired_by_seed(bench: Any) -> None:
    head, ours = rows_of(bench.differences(compared(bench), list(bench.ARMS.values())))
    assert len(head) == len(ours) == 5
    # .1 and .2: mean .15, sd .0707, half-width 12.706 x .0707 / sqrt 2 = .635.
    assert ours[2] == "+0.150 ± 0.635"
    # At 5.5 s: .725 - .225 = .5 and .96 - .225 = .735: mean .6175, sd .1662, half-width 12.706 x .1662 / sqrt 2.
    assert ours[3] == "+0.617 ± 1.493"
    # (5.5 / 11 + 5.5 / 13) / 2 = .4615.
    assert ours[4] == "x 0.46"


def test_tuning_table_shows_the_choice_in_bold(bench: Any) -> None:
    tuning = [
        a_run(bench, accuracy=0.8),
        a_run(bench, accuracy=0.9, learning_rate=1e-3),
        a_run(bench, accuracy=0.7, learning_rate=1e-4, arm="trl-4x4"),
    ]
    head, first, second = rows_of(bench.tuning_table(tuning, list(bench.ARMS.values())))
    assert head[2:] == ["0.0001", "0.0004", "0.001"]
    assert first[2:] == ["-", "0.800", "**0.900**"]
    assert second[2:] == ["**0.700**", "-", "-"]


def test_both_trainers_get_the_same_settings(bench: Any) -> None:
    for name, arm in bench.ARMS.items():
        found = bench.settings(arm, 4e-4, 0, rounds=60)
        for setting, value in bench.SHARED.items():
            assert found[setting] == value, name
        if arm.critic is None:
            sampled = found["per_device_train_batch_size"]
            assert found["total_episodes"] == 60 * sampled
            assert sampled % found["num_mini_batches"] == 0
            assert found["cliprange"] == 0.2
            assert (found["num_ppo_epochs"], found["num_mini_batches"]) == (arm.epochs, arm.minibatches)
        else:
            sampled = found["per_device_train_batch_size"] * found["steps_per_generation"]
            assert found["epsilon"] == 0.2
            assert found["num_iterations"] * found["steps_per_generation"] * 60 == found["max_steps"]
        assert sampled == bench.ROUND_COMPLETIONS


def test_rounds_note_the_mean_of_what_the_verifier_gives(bench: Any) -> None:
    rounds = bench.Rounds()
    given = rounds(["p", "p"], ["<answer>3</answer>", "<answer>4</answer>"], answer=[3, 5])
    assert given == [1.0, 0.0]
    assert rounds.rewards == [0.5]
    assert len(rounds.cpu_seconds) == 1
    assert rounds.cpu_seconds[0] >= 0.0


def test_the_reward_model_gives_what_the_reward_function_gives(bench: Any) -> None:
    import torch
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(bench.BASE_DIR)
    short, long = bench.Question("Ann", "figs", 1, 2), bench.Question("Ben", "cups", 11, 12)
    # Right, wrong, the right answer of the other question, and right in two lines, where a prompt ends with one.
    texts = ["<answer>3</answer>", "<answer>4</answer>", "print(1+2)", "1. 11+12\n2. 23"]
    asked = [short, short, long, long]
    expected = bench.Rounds()([q.prompt for q in asked], texts, [q.answer for q in asked])
    assert expected == [1.0, 0.0, 0.0, 1.0]
    prompts = tokenizer([q.prompt for q in asked], padding=True)["input_ids"]
    completions = [[*tokenizer(text)["input_ids"], tokenizer.eos_token_id] for text in texts]
    width = max(map(len, completions))
    pad = tokenizer.pad_token_id
    ids_BS = torch.tensor([p + c + [pad] * (width - len(c)) for p, c in zip(prompts, completions, strict=True)])
    verifier = bench.Rounds()
    model = bench.reward_model(verifier, tokenizer, [short, long])
    found = getattr(model, model.base_model_prefix)(input_ids=ids_BS, attention_mask=ids_BS != pad)
    rewards_BS1 = model.score(found.hidden_states[-1])
    assert rewards_BS1.shape == (*ids_BS.shape, 1)
    # The same at every position, whichever it is read at.
    assert rewards_BS1[:, 0, 0].tolist() == rewards_BS1[:, -1, 0].tolist() == expected
    assert verifier.rewards == [0.5]


def test_what_is_written_by_hand_starts_with_its_heading(bench: Any) -> None:
    page = PATH.parents[1] / bench.PAGE
    assert page.read_text(encoding="utf-8").count(f"\n{bench.NOTES}\n") == 1
