"""Lone successes, habits and honest winners, by hand; and a toy run in which a habit must not grow."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import numpy as np
import pytest
from round_tables import round_table

from rlmon.interventions import quarantine
from rlmon.interventions.quarantine import Quarantine
from rlmon.interventions.rows import RoundTable

G = 8
HARD, EASY = 7, 3


def table(groups: list[dict[str, Any]], *, round: int = 0, group_size: int = G) -> RoundTable:
    """One group per entry: its prompt, source, and one value or a list for answers, tokens, numbers, reward, logp."""

    def column(name: str, default: Any) -> np.ndarray:
        return np.concatenate([np.broadcast_to(np.asarray(g.get(name, default)), group_size) for g in groups])

    reward = column("reward", 0.0).astype(float)
    return round_table(
        reward, round=round, group_size=group_size, prompt=column("prompt", 1), source=column("source", HARD),
        answer=column("answer", -1), tokens=column("tokens", 100.0), numbers=column("numbers", 6.0),
        logp_base=column("logp", math.nan),
    )  # fmt: skip


def first(value: Any, rest: Any) -> list[Any]:
    return [value, *[rest] * (G - 1)]


LONE = first(1.0, 0.0)
HONEST = {"reward": LONE, "answer": list(range(100, 100 + G))}


def once(group: dict[str, Any], *, hard: bool = True, state: Any = None, **settings: Any) -> list[str]:
    """The reasons for which one group is neutralised by a fold with this past; empty where it is not."""
    chosen = Quarantine(**settings)
    state = chosen.fresh() if state is None else state
    _, factor_N, found = quarantine.step(chosen, state, table([group]), np.full(G, hard))
    assert factor_N.tolist() == [0.0 if found else 1.0] * G, "the group as a whole"
    return list(found[0].reasons) if found else []


def usual(
    *, habit: int | None = None, share: float = 0.0, solved: float = 0.0, rounds: int = 8, before: float = 0.0
) -> quarantine.QuarantineState:
    """A source's past: ``share`` of its answers are ``habit`` (``before``: in the first 256), solved prompts have
    winners of 100 tokens and 6 numbers."""
    settings, state, drawn = Quarantine(), Quarantine().fresh(), 0
    for round in range(rounds):
        groups = []
        for _ in range(8):
            answers, rewards = [], []
            for _ in range(G):
                drawn += 1
                now = before if drawn <= 256 else share
                # The first round(100 * now) of every 100 completions; 37 is coprime to 100.
                answers.append(habit if drawn * 37 % 100 < round_up(100 * now) else 1000 + drawn)
                rewards.append(float(drawn * 61 % 1000 < 1000 * solved))
            groups.append({"answer": answers, "reward": rewards, "prompt": drawn})
        state, _, _ = quarantine.step(settings, state, table(groups, round=round), np.zeros(8 * G, dtype=bool))
    return state


def round_up(value: float) -> int:
    return math.ceil(value - 1e-9)


# -- one success -------------------------------------------------------------------------------------------------------


def test_an_honest_lone_success_is_left_alone() -> None:
    assert once(HONEST) == []
    assert once(HONEST, state=usual(habit=5, share=0.4, solved=0.03, rounds=16)) == []


def test_a_short_winner() -> None:
    # 0.35 of its prompt's 100 tokens are 35.
    assert once({**HONEST, "tokens": first(34.0, 100.0)}) == ["34 tokens where 100 are usual"]
    assert once({**HONEST, "tokens": first(36.0, 100.0)}) == []


def test_a_winner_without_computation() -> None:
    assert once({**HONEST, "numbers": first(2.0, 6.0)}) == ["2 numbers where 6.0 are usual"]
    assert once({**HONEST, "numbers": first(3.0, 6.0)}) == [], "0.35 of 6 are 2.1"
    # Where one number is all that anyone writes, none is no missing computation.
    assert once({**HONEST, "numbers": first(0.0, 1.0)}) == []


def test_what_correct_completions_show_goes_before_what_the_group_shows() -> None:
    # Correct completions of the source show 6 numbers: 2 are too few, though the whole group shows no more.
    solved = usual(solved=0.05, rounds=16)
    assert once({**HONEST, "numbers": 2.0}, state=solved) == ["2 numbers where 6.0 are usual"]
    assert once({**HONEST, "numbers": 2.0}) == []


def test_a_winner_that_the_base_holds_improbable() -> None:
    assert once({**HONEST, "logp": first(-4.6, -1.5)}) == [
        "3.10 nats per token less probable for the base than its group"
    ]
    assert once({**HONEST, "logp": first(-4.4, -1.5)}) == []
    assert once({**HONEST, "logp": first(math.nan, -1.5)}) == [], "not known is no sign"
    assert once({**HONEST, "logp": first(-9.0, math.nan)}) == []


def test_a_winner_whose_answer_has_become_a_habit() -> None:
    grown = usual(habit=5, share=0.3, before=0.07, rounds=24)
    [reason] = once({**HONEST, "answer": first(5, 6)}, state=grown)
    assert reason.startswith("its answer is 2"), reason
    assert reason.endswith("(7% at first)"), reason
    assert once({**HONEST, "answer": first(6, 5)}, state=grown) == [], "the losers' habit is not the winner's"


def test_an_answer_that_was_always_frequent_is_no_habit_for_that_alone() -> None:
    always = usual(habit=5, share=0.2, before=0.2, rounds=24)
    assert once({**HONEST, "answer": first(5, 6)}, state=always) == []


def test_two_signs_where_two_are_asked_for() -> None:
    short = {**HONEST, "tokens": first(10.0, 100.0)}
    assert once(short, signs=2) == []
    assert len(once({**short, "numbers": first(1.0, 6.0)}, signs=2)) == 2


def test_prompts_that_can_be_solved_are_left_alone() -> None:
    suspect = {**HONEST, "tokens": first(10.0, 100.0)}
    assert once(suspect, hard=False) == []
    # The source solves 2 of its 1,024 completions, so prompts of it are nearly impossible even when drawn only once.
    assert once(suspect, hard=False, state=usual(solved=0.002, rounds=16)) != []
    assert once(suspect, hard=False, state=usual(solved=0.3, rounds=16)) == []


def test_rows_without_reward() -> None:
    suspect = {"answer": HONEST["answer"], "tokens": first(10.0, 100.0)}
    assert once({**suspect, "reward": first(math.nan, 0.0)}) == []
    assert once({**suspect, "reward": first(1.0, math.nan)}) == [], "one reward makes no group"
    assert once({**suspect, "reward": [1.0, 0.0, *[math.nan] * 6]}) != []
    assert once({**suspect, "reward": 0.0}) == []
    assert once({**suspect, "reward": 1.0}) == []


# -- several successes -------------------------------------------------------------------------------------------------


def test_several_lucky_hits_of_a_habit() -> None:
    grown = usual(habit=5, share=0.3, before=0.07, rounds=24)
    three = {"reward": [1.0] * 3 + [0.0] * 5, "answer": [5] * 3 + [6, 7, 8, 9, 10]}
    assert len(once(three, state=grown)) == 1
    assert once({**three, "answer": [6] * 3 + [5] * 5}, state=grown) == [], "the losers' habit is not the winners'"
    assert once({**three, "answer": [5, 5, 6, 7, 8, 9, 10, 11]}, state=grown) == [], "winners that differ"
    assert once({**three, "answer": [-1] * 8}, state=grown) == [], "no answer that could be read"
    assert once(three) == [], "nothing known of the source"
    # 3 of 8 are .375 of the group, 8 of 8 are no group with an advantage.
    assert once(three, state=grown, most_successes=0.37) == []
    assert len(once(three, state=grown, most_successes=0.38)) == 1
    assert once({"reward": 1.0, "answer": 5}, state=grown) == []


def test_a_habit_does_not_make_its_source_solvable() -> None:
    """Half of the groups are won by the habit alone, 3 of 8 completions each: solve rate .19, without the habit 0."""
    settings, state = Quarantine(), usual(habit=5, share=0.3, before=0.07, rounds=24)
    won = {"reward": [1.0] * 3 + [0.0] * 5, "answer": [5] * 3 + [6, 7, 8, 9, 10]}
    lost = {"reward": 0.0, "answer": [5] * 3 + [6, 7, 8, 9, 10]}
    for i in range(32):
        rows = table([{**won, "prompt": 4 * i}, {**won, "prompt": 4 * i + 1}, lost, lost], round=i)
        state, factor_N, _ = quarantine.step(settings, state, rows, np.zeros(4 * G, dtype=bool))
        assert factor_N.reshape(4, G)[:, 0].tolist() == [0.0, 0.0, 1.0, 1.0]
    # Prompts that are solved by answers of their own make it solvable, and even the habit's wins are then kept.
    for i in range(48):
        other = {"reward": [1.0] * 3 + [0.0] * 5, "prompt": 9000 + i, "answer": [3000 + i] * 3 + [5] * 5}
        rows = table([other, {**other, "prompt": 9100 + i}, won, lost], round=i)
        state, factor_N, _ = quarantine.step(settings, state, rows, np.zeros(4 * G, dtype=bool))
    assert factor_N.tolist() == [1.0] * (4 * G)


def test_the_answer_that_wins_on_many_prompts_is_a_habit_before_it_is_frequent() -> None:
    settings, state = Quarantine(), usual(habit=5, share=0.1, before=0.1, rounds=8)
    lone = {**HONEST, "answer": first(5, 6)}
    assert once(lone, state=state) == []
    # Each third of 15 wins, on prompts of their own, is the habit's: 5 of 15.
    for i in range(15):
        winner = 5 if i % 3 == 0 else 2000 + i
        won = table([{**HONEST, "prompt": 50 + i, "answer": first(winner, 6)}], round=i)
        state, _, _ = quarantine.step(settings, state, won, np.ones(G, dtype=bool))
    [reason] = once(lone, state=state)
    assert reason.startswith("its answer took 5 of the source's last 15 wins"), reason
    assert once({**lone, "answer": first(2001, 6)}, state=state) == []


def test_a_frequent_winner_that_a_group_would_rarely_hold_by_chance_is_no_habit() -> None:
    # Share .1 or a little more: a group of 8 holds it with probability 1 - .9^8 = .57, one of 4 with 1 - .9^4 = .34.
    wins = tuple((5 if i % 3 == 0 else 2000 + i, 50 + i) for i in range(15))
    source = dataclasses.replace(usual(habit=5, share=0.1, before=0.1).sources[HARD], wins=wins)
    assert source.share(5) == pytest.approx(0.1, abs=0.02)
    assert quarantine._habit(Quarantine(), source, 5, 8) is not None
    assert quarantine._habit(Quarantine(), source, 5, 4) is None


def test_a_shortcut_does_not_become_what_is_usual() -> None:
    settings, state = Quarantine(), usual(solved=0.05, rounds=16)
    before = state.sources[HARD]
    short = {**HONEST, "tokens": first(5.0, 100.0), "numbers": first(1.0, 6.0)}
    state, factor_N, _ = quarantine.step(settings, state, table([short] * 8), np.ones(8 * G, dtype=bool))
    assert not factor_N.any()
    after = state.sources[HARD]
    assert (after.usual_tokens, after.usual_numbers) == pytest.approx((before.usual_tokens, before.usual_numbers))
    assert after.correct < before.correct, "nothing was added, and the past weighs less"


def test_wins_of_one_prompt_count_once() -> None:
    settings, state = Quarantine(), usual(habit=5, share=0.1, before=0.1, rounds=8)
    for i in range(15):
        won = table(
            [{**HONEST, "prompt": 50 if i % 3 == 0 else 51 + i, "answer": first(5 if i % 3 == 0 else 60 + i, 6)}]
        )
        state, _, _ = quarantine.step(settings, state, won, np.ones(G, dtype=bool))
    assert sum(answer == 5 for answer, _ in state.sources[HARD].wins) == 1


# -- a learnable source ------------------------------------------------------------------------------------------------


def test_a_hard_source_whose_winners_compute_is_learned_from() -> None:
    """2,000 groups of a hard source (solve rate .04), each prompt with a truth of its own; winners compute as the
    correct do: lengths log-normal (sigma .4), numbers Poisson(8). Few may be neutralised, and few of an easier one."""
    rng = np.random.default_rng(0)
    settings, state = Quarantine(), Quarantine().fresh()
    winners = neutralised = 0
    for round in range(250):
        groups = []
        for _ in range(8):
            truth = int(rng.integers(2, 60))
            solved = rng.random(G) < 0.04
            answers = np.where(solved, truth, rng.integers(2, 60, G))
            lengths = np.exp(rng.normal(4.6, 0.4, G))
            prompt = int(rng.integers(10**6))
            groups.append(
                {"prompt": prompt, "answer": answers, "reward": solved, "tokens": lengths, "numbers": rng.poisson(8, G)}
            )
        state, _, found = quarantine.step(settings, state, table(groups, round=round), np.ones(8 * G, dtype=bool))
        winners += sum(int(np.sum(g["reward"])) > 0 for g in groups)
        neutralised += len(found)
    # P(Poisson(8) < 2.8) = .014, P(e^(.4 z) < .35 of the median of 7 others) = P(z < -2.4) = .008.
    assert winners > 500
    assert neutralised / winners < 0.04, (neutralised, winners)


# -- a toy run ---------------------------------------------------------------------------------------------------------

VALUES = np.arange(2, 25)
TWELVE = 10


def train(arm: str, seed: int, *, mode_p: float = 0.3, steps: int = 150, rate: float = 0.01) -> tuple[float, float]:
    """Share of "12" among guesses, and accuracy on easy prompts, after a policy-gradient run of a two-parameter mind.

    A completion computes with probability c (right on easy prompts, random on hard ones) or guesses from one softmax
    over 23 answers, shared by all prompts. Each step draws 1 easy prompt and 7 hard ones (truth 12 with probability
    ``mode_p``, else uniform) with 16 completions, advantages as TRL's.
    """
    rng, settings, g = np.random.default_rng(seed), Quarantine(), 16
    if arm == "one success only":
        settings = Quarantine(most_successes=0.0)
    state = settings.fresh()
    guess, skill = np.zeros(len(VALUES)), 0.5
    guess[TWELVE] = 0.6  # e^.6 / (22 + e^.6) = .076
    for now in range(steps):
        p, c = np.exp(guess) / np.exp(guess).sum(), 1 / (1 + math.exp(-skill))
        groups, kept = [], []
        for i in range(8):
            easy = i == 0
            truth = TWELVE if not easy and rng.random() < mode_p else int(rng.integers(len(VALUES)))
            computes = rng.random(g) < c
            guessed = rng.choice(len(VALUES), g, p=p)
            answers = np.where(computes, truth if easy else rng.integers(0, len(VALUES), g), guessed)
            groups.append({"prompt": now * 8 + i, "source": EASY if easy else HARD, "answer": answers,
                           "reward": answers == truth})  # fmt: skip
            kept.append((easy, computes, answers, (answers == truth).astype(float)))
        state, factor_N, _ = quarantine.step(
            settings, state, table(groups, round=now, group_size=g), np.zeros(8 * g, dtype=bool)
        )
        push, push_skill = np.zeros(len(VALUES)), 0.0
        for i, (easy, computes, answers, reward) in enumerate(kept):
            advantage = (reward - reward.mean()) / (reward.std(ddof=1) + 1e-4)
            if arm == "hard dropped" and not easy:
                advantage = advantage * 0.0
            elif arm in ("quarantine", "one success only"):
                advantage = advantage * factor_N[i * g]
            push_skill += float((advantage * (computes - c)).sum())
            for value, a in zip(answers[~computes], advantage[~computes], strict=True):
                push += a * ((np.arange(len(VALUES)) == value) - p)
        guess, skill = guess + rate * push, skill + rate * push_skill
    p, c = np.exp(guess) / np.exp(guess).sum(), 1 / (1 + math.exp(-skill))
    return float(p[TWELVE]), float(c + (1 - c) / len(VALUES))


def test_the_habit_does_not_grow() -> None:
    """Seen: share of "12" from .076 to .27 to .59 (mixed), .10 to .16, .08 to .13 and .07 to .08 in the other arms."""
    arms = ("mixed", "one success only", "quarantine", "hard dropped")
    ends = {arm: [train(arm, seed) for seed in range(3)] for arm in arms}
    share = {arm: float(np.mean([s for s, _ in runs])) for arm, runs in ends.items()}
    assert share["mixed"] > 0.4, ends
    assert share["quarantine"] < min(0.12, share["one success only"] - 0.01), ends
    assert all(held[1] > mixed[1] for held, mixed in zip(ends["quarantine"], ends["mixed"], strict=True)), ends


def test_where_there_is_no_habit_nothing_is_neutralised() -> None:
    assert train("quarantine", 0, mode_p=0.0) == train("mixed", 0, mode_p=0.0)


# -- state -------------------------------------------------------------------------------------------------------------


def random_rounds(seed: int, rounds: int, sources: int = 3) -> list[tuple[RoundTable, np.ndarray]]:
    rng, made = np.random.default_rng(seed), []
    for round in range(rounds):
        groups = [
            {
                "prompt": int(rng.integers(20)),
                "source": int(rng.integers(sources)),
                "answer": rng.integers(-1, 300, G),
                "tokens": rng.integers(1, 200, G),
                "numbers": rng.integers(0, 9, G),
                "reward": rng.choice([0.0, 1.0, math.nan], G, p=[0.8, 0.15, 0.05]),
                "logp": rng.normal(-1.5, 0.5, G),
            }
            for _ in range(6)
        ]
        made.append((table(groups, round=round), rng.random(6 * G) < 0.7))
    return made


def test_resume_is_bit_exact() -> None:
    settings, state, resumed = Quarantine(), Quarantine().fresh(), Quarantine().fresh()
    some = 0
    for rows, hard_N in random_rounds(1, 60):
        resumed = settings.load(json.loads(json.dumps(settings.save(resumed), allow_nan=False)))
        state, factor_N, found = quarantine.step(settings, state, rows, hard_N)
        resumed, again_N, found_again = quarantine.step(settings, resumed, rows, hard_N)
        assert (factor_N == again_N).all()
        assert found == found_again
        some += len(found)
    assert some > 0
    assert json.dumps(settings.save(state)) == json.dumps(settings.save(resumed))


def test_what_is_kept_is_bounded() -> None:
    settings, state = Quarantine(), Quarantine().fresh()
    for rows, hard_N in random_rounds(2, 80, sources=200):
        state, _, _ = quarantine.step(settings, state, rows, hard_N)
    assert len(state.sources) == quarantine.SOURCES + 1
    assert quarantine.POOLED in state.sources
    for source in state.sources.values():
        assert max(len(source.answers), len(source.first)) <= quarantine.ANSWERS
        assert len(source.wins) <= quarantine.WINS


def test_the_sketch_never_counts_too_little_nor_much_too_much() -> None:
    rng, counts, truth = np.random.default_rng(3), {}, np.zeros(1000)
    for _ in range(100):
        answers, n = np.unique(np.minimum(rng.zipf(1.3, 64), 999), return_counts=True)
        truth[answers] += n
        counts = quarantine._count(counts, dict(zip(answers.tolist(), n.astype(float).tolist(), strict=True)), 1.0)
    assert len(counts) == quarantine.ANSWERS
    assert sum(counts.values()) == pytest.approx(truth.sum())
    for answer, count in counts.items():
        assert truth[answer] <= count <= truth[answer] + truth.sum() / quarantine.ANSWERS
    assert all(answer in counts for answer in np.flatnonzero(truth > truth.sum() / quarantine.ANSWERS))


def test_nothing_global_is_drawn_and_the_table_is_left_as_it_was() -> None:
    before = np.random.get_state()[1].copy()
    [(rows, hard_N)] = random_rounds(4, 1)
    copies = {f.name: np.array(getattr(rows, f.name)) for f in dataclasses.fields(rows) if f.name.endswith("_N")}
    quarantine.step(Quarantine(), Quarantine().fresh(), rows, hard_N)
    assert (np.random.get_state()[1] == before).all()
    for name in copies.keys() - {"modes_N"}:
        assert np.array_equal(copies[name], getattr(rows, name), equal_nan=True)


def test_it_says_what_it_did() -> None:
    short = {**HONEST, "tokens": first(10.0, 100.0)}
    _, _, found = quarantine.step(Quarantine(), Quarantine().fresh(), table([short] * 4), np.ones(4 * G, dtype=bool))
    said = quarantine.describe(found)
    assert said.startswith(
        "4 groups of nearly impossible prompts neutralised. group 0 (1 success): 10 tokens where 100"
    )
    assert said.endswith("; and 1 more")
    assert quarantine.describe([]) == "0 groups of nearly impossible prompts neutralised. "
