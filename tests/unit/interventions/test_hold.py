"""Right answers that are alike are pushed apart: the push, the reference and the steering, by hand."""

import json
import math
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
from held import known as known_by
from round_tables import round_table

from rlmon.baseline import Baseline
from rlmon.interventions import fold, hold
from rlmon.interventions.hold import Hold, HoldState, Mean, Seen
from rlmon.interventions.intervention import Round, RuleState, RunSoFar
from rlmon.interventions.kernels import Facts, Floats
from rlmon.interventions.policy import Policy
from rlmon.interventions.setting import MetricFacts, Setting

A, B = 11, -(2**62)
BY_FORMAT = Hold(format=1.0, across=0.0, bound=10.0, of_gap=0.95, kappa=0.5, bounds=(0.0, 2.0), rate=0.5)


@dataclass(frozen=True, kw_only=True, slots=True)
class HoldAnswers(Hold):
    """Hold the variety of final answers."""

    name = "hold_answers"

    def alike(self, one: Facts, other: Facts) -> Floats:
        return (one["answer"][:, None] == other["answer"]) * 1.0


def known(settings=BY_FORMAT, **given):
    return known_by(settings, **given)


def pushed(table, *, settings=BY_FORMAT, state=None, kappa=1.0, scale=1.0):
    """What is added to each row of a round."""
    state = known(settings=settings) if state is None else state
    seen = hold.look(settings, state.pool, table)
    return hold.addition(settings, state, seen, table, kappa, scale)


def group(formats, rewards=None, *, advantage=None, group_size=None, **columns):
    rewards = [1.0] * len(formats) if rewards is None else rewards
    usual = np.where(np.asarray(rewards) > 0.5, 1.0, -1.0) if advantage is None else advantage
    return round_table(
        rewards, group_size=group_size or len(formats), modes={"format": formats}, advantage=usual, **columns
    )


class TestPush:
    def test_four_right_answers_of_two_wordings_by_hand(self):
        """A A A B: k of each to the three others is 2/3, 2/3, 2/3, 0; their mean 1/2; 4/(4 - 2) = 2.
        -2 * (2/3 - 1/2) * 2 = -2/3 for each A, and +2 for B."""
        assert pushed(group([A, A, A, B])) == pytest.approx([-2 / 3, -2 / 3, -2 / 3, 2.0])

    def test_two_and_two_and_all_alike_are_left_alone(self):
        assert not pushed(group([A, A, B, B])).any()
        assert not pushed(group([A, A, A, A])).any()

    def test_two_right_answers_say_nothing_within_a_prompt(self):
        assert not pushed(group([A, B, A, B], [1.0, 1.0, 0.0, 0.0])).any()

    def test_wrong_cut_and_unknown_ones_get_nothing_and_are_not_compared(self):
        """Rows 3 to 6 are wrong, cut, of no known format, not judged: A A B remain. k: 1/2, 1/2, 0; mean 1/3; 3/1 = 3.
        -2 * (1/2 - 1/3) * 3 = -1 for each A, +2 for B; the gap of 2 lets .95 of it through: all by 1.9/2."""
        table = group(
            [A, A, B, A, A, A, A], [1, 1, 1, 0, 1, 1, math.nan],
            truncated=[0, 0, 0, 0, 1, 0, 0], parsed=[1, 1, 1, 1, 1, 0, 1],
        )  # fmt: skip
        assert pushed(table) == pytest.approx([-0.95, -0.95, 1.9, 0, 0, 0, 0])

    def test_a_push_is_in_units_of_the_run_and_bounded(self):
        assert pushed(group([A, A, A, B]), kappa=0.25, scale=0.4) == pytest.approx([-1 / 15] * 3 + [0.2])
        settings = Hold(format=1.0, across=0.0, bound=0.5)
        assert pushed(group([A, A, A, B]), settings=settings, scale=0.4) == pytest.approx([-0.2 / 3] * 3 + [0.2])

    def test_no_wrong_answer_comes_to_lie_above_a_right_one(self):
        """Right ones have .3 to .5, the best wrong one .1: at most half of .2."""
        advantage = [0.5, 0.5, 0.5, 0.3, 0.1, -2.0]
        settings = Hold(format=1.0, across=0.0, bound=10.0, of_gap=0.5)
        added = pushed(group([B, A, A, A, A, A], [1, 1, 1, 1, 0, 0], advantage=advantage), settings=settings, kappa=9.0)
        assert np.abs(added).max() == pytest.approx(0.1)
        assert (advantage + added)[:4].min() > 0.1
        assert added.sum() == pytest.approx(0.0)

    @pytest.mark.parametrize("wrong", [0.9, math.nan])
    def test_where_a_wrong_answer_lies_above_a_right_one_already_nothing_is_added(self, wrong):
        table = group([A, A, A, B, A], [1, 1, 1, 1, 0], advantage=[1.0, 1.0, 1.0, 0.8, wrong])
        assert not pushed(table).any()

    def test_across_prompts_each_is_compared_with_the_right_answers_to_the_others(self):
        """Prompts 1: A B, 2: A A, 3: A and one wrong. Of the first, A is like 3 of 3 others, B like none: 1 and 0, mean
        .5, 2/1: -2 * .5 * 2 = -2 and +2. Those of the second are alike, the third has one."""
        settings = Hold(format=1.0, across=1.0, bound=10.0)
        table = group([A, B, A, A, A, A], [1, 1, 1, 1, 1, 0], group_size=2)
        assert pushed(table, settings=settings) == pytest.approx([-2.0, 2.0, 0, 0, 0, 0])

    def test_earlier_rounds_are_remembered_and_the_same_prompt_is_not_compared_with_itself(self):
        settings = Hold(format=1.0, across=1.0, bound=10.0)
        first = hold.look(settings, settings.fresh().pool, group([A, A, B, B], prompt=[1, 1, 2, 2], group_size=2))
        table = group([A, B], prompt=[1, 1])
        state = known(settings=settings, pool=first.pool)
        # Only prompt 2 is another: A is like 0 of 2, B like 2 of 2.
        assert pushed(table, settings=settings, state=state) == pytest.approx([2.0, -2.0])

    def test_groups_of_one_are_compared_with_the_round(self):
        """PPO's: A A B, each its own prompt. k across: 1/2, 1/2, 0; mean 1/3; 3/2: -2 * 1/6 * 3/2 = -1/2, and +1."""
        settings = Hold(format=1.0, across=1.0, bound=10.0)
        table = group([A, A, B, B], [1, 1, 1, 0], group_size=1)
        assert pushed(table, settings=settings) == pytest.approx([-0.5, -0.5, 1.0, 0.0])

    def test_in_groups_of_one_all_is_spent_across_prompts(self):
        """The same, before the base is known: nothing of the 1 that is always spent goes to what is within a prompt."""
        settings = Hold(format=1.0, across=0.5, bounds=(1.0, 2.0), bound=10.0)
        table = group([A, A, B, B], [1, 1, 1, 0], group_size=1)
        assert pushed(table, settings=settings, state=settings.fresh()) == pytest.approx([-0.5, -0.5, 1.0, 0.0])

    def test_a_lone_right_answer_may_be_compared_with_the_run(self):
        """Prompts 1 and 2 have a right A each, 3 a right B, and wrong ones beside them. Each is compared with two
        others: k is 1/2, 1/2, 0. The run's C is .3: -2 * (.5 - .3) = -.4, and +.6. Where all are right, nothing."""
        settings = Hold(format=1.0, across=1.0, bound=10.0, of_gap=0.95, centre="run")
        table = group([A, A, A, A, B, A], [1, 0, 1, 0, 1, 0], group_size=2)
        state = known(settings, now=0.3, best=0.01)
        for given, expected in ((settings, [-0.4, 0, -0.4, 0, 0.6, 0]), (replace(settings, centre="group"), [0] * 6)):
            now = Round(table=table, level=1.0, acting=True, dry_run=False, scale=1.0)
            _, change = given.on_round(state, now)
            # What the round shows counts for the next: .3 stays the middle of this one, and C is above its line.
            assert change.addition_N == pytest.approx(expected)
        right = group([A, A, A, A, B, B], group_size=2)
        _, change = settings.on_round(state, Round(table=right, level=1.0, acting=True, dry_run=False, scale=1.0))
        assert not change.addition_N.any()

    def test_several_kernels_are_one(self):
        rows = round_table([1.0] * 3, group_size=3, modes={"format": [A, A, B], "template": [1, 2, 2]})
        facts = hold.kernels.facts_of(rows, np.arange(3), ())
        mean = Hold(format=1.0, template=3.0).alike(facts, facts)
        assert mean[0].tolist() == [1.0, 0.25, 0.0]
        most = Hold(format=1.0, template=2.0, join="max").alike(facts, facts)
        assert most.tolist() == [[1.0, 0.5, 0.0], [0.5, 1.0, 1.0], [0.0, 1.0, 1.0]]
        assert dict(Hold().weights) == {"opening": 1.0, "sketch": 1.0}
        assert set(Hold(moves=1.0).reads) == {"openers"}
        assert not Hold(format=1.0).reads


class TestReference:
    def test_few_groups_claim_little(self):
        """Four groups without any pair alike: (0 + .5) / 4.5 = .111, so at most 9 kinds; one group: nothing."""
        assert Mean().plus(np.zeros(4), 1.0).at_most(1.0) == pytest.approx(1 / 9)
        assert Mean().plus(np.zeros(1), 1.0).at_most(1.0) is None

    def test_the_error_is_that_of_the_mean(self):
        """.2 and .4 four times each: mean .3, deviation .1, error .1 / sqrt(7); (2.4 + .5) / 8.5 + the error."""
        found = Mean().plus(np.array([0.2, 0.4] * 4), 1.0)
        assert found.at_most(1.0) == pytest.approx(2.9 / 8.5 + 0.1 / math.sqrt(7))

    def test_it_is_the_least_of_the_base_and_the_best_since(self):
        base = Seen(base=Mean(groups=16.0, total=8.0, square=4.0), now=Mean(groups=16.0, total=8.0, square=4.0))
        state = HoldState(baseline=Baseline(32.0, 256.0, 4.0), within=base, pool=BY_FORMAT.fresh().pool)
        assert hold.reference(BY_FORMAT, state, "within") == pytest.approx(8.5 / 16.5)
        assert hold.reference(BY_FORMAT, state, "across") is None
        assert hold.reference(BY_FORMAT, known(best=0.3), "within") == 0.3
        assert hold.reference(BY_FORMAT, known(best=0.01), "within") == 1 / 5, "more than 5 kinds are not asked for"
        young = HoldState(within=base, pool=state.pool)
        assert hold.reference(BY_FORMAT, young, "within") is None, "the base is not complete"

    def test_it_grows_with_what_the_run_shows_and_never_shrinks(self):
        state = BY_FORMAT.fresh()
        for r in range(60):
            # Alike at the base and at the end, wide between: A A A A, A B A B.
            wide = 20 <= r < 40
            rows = group(([A, B] if wide else [A, A]) * 16, group_size=4, prompt=np.arange(32) // 4 + 100 * r)
            state = hold.after(BY_FORMAT, state, hold.look(BY_FORMAT, state.pool, rows))
            if r == 19:
                assert hold.reference(BY_FORMAT, state, "within") is None, "nothing but one wording was shown"
            if r == 39:
                best = hold.reference(BY_FORMAT, state, "within")
                # Two of six pairs are alike: 1/3, and half a group in 8 / (1 - exp(-.5)) = 20.3 comes on top.
                assert best == pytest.approx((20.33 / 3 + 0.5) / 20.83, abs=5e-3)
        assert hold.reference(BY_FORMAT, state, "within") == best
        assert state.within.now.mean == pytest.approx(1.0, abs=1e-3)


class TestSteering:
    def test_below_its_line_nothing_is_spent(self):
        state = known(now=0.2 * 1.25 * 0.94, best=0.2)
        assert hold.control(BY_FORMAT, state, 0.0) is None or hold.control(BY_FORMAT, state, 0.0) == 0.0
        lowered = hold.control(BY_FORMAT, state, 1.0)
        assert lowered == pytest.approx(1.0 + 0.5 * math.log(0.94))
        assert hold.control(BY_FORMAT, state, 0.03) == 0.0, "and never less"
        far = known(now=0.1, best=0.2)
        assert not pushed(group([A, A, A, B]), state=far).any(), "whatever kappa still is"

    def test_above_it_kappa_begins_and_grows(self):
        state = known(now=0.3, best=0.2)
        assert hold.control(BY_FORMAT, state, 0.0) == 0.5
        for kappa in (1.0, 0.1):
            assert hold.control(BY_FORMAT, state, kappa) == pytest.approx(kappa + 0.5 * math.log(0.3 / 0.25))
        assert hold.control(BY_FORMAT, known(now=1.0, best=0.2), 1.0) == pytest.approx(1.35), "by .7 at most"
        assert hold.control(BY_FORMAT, known(now=1.0, best=0.2), 1.9) == 2.0

    def test_while_no_right_answer_shows_anything_kappa_stays(self):
        """C is above its line; ten rounds without a right answer say no more of it. Bounds count all the same."""
        state, wrong = known(now=0.5, best=0.2), group([A] * 4, [0.0] * 4)
        for seen, expected in ((group([A] * 4), 0.85), (wrong, None), (wrong, None)):
            state = hold.after(BY_FORMAT, state, hold.look(BY_FORMAT, state.pool, seen))
            steered = hold.control(BY_FORMAT, state, 0.5)
            assert steered == (None if expected is None else pytest.approx(expected))
            again = BY_FORMAT.load(json.loads(json.dumps(BY_FORMAT.save(state))))
            assert hold.control(BY_FORMAT, again, 0.5) == steered
        assert hold.control(BY_FORMAT, state, 3.0) == 2.0

    def test_near_the_line_it_stays(self):
        assert hold.control(BY_FORMAT, known(now=0.245, best=0.2), 1.0) is None

    def test_within_its_bounds_it_may_always_act(self):
        always = Hold(format=1.0, across=0.0, kappa=0.5, bounds=(0.1, 2.0), rate=0.5)
        assert hold.control(always, known(now=0.245, best=0.2), 0.0) == 0.1
        assert hold.control(always, known(now=0.1, best=0.2), 0.3) == 0.1
        assert hold.control(always, always.fresh(), 0.0) == 0.1, "and before it knows what to hold"
        table = group([A, A, A, B])
        for state in (always.fresh(), known(now=0.1, best=0.2)):
            assert pushed(table, settings=always, state=state, kappa=0.3) == pytest.approx([-0.2 / 3] * 3 + [0.2])

    def test_one_natural_wording_is_never_pushed(self):
        """Right answers were nine tenths alike from the start: the line lies at 1, and no C is above."""
        state = known(now=1.0, best=0.9)
        assert hold.control(BY_FORMAT, state, 0.0) in (None, 0.0)
        assert hold.control(BY_FORMAT, state, 1.0) < 1.0

    def test_a_part_below_its_line_is_not_pushed_and_the_other_has_all(self):
        settings = Hold(format=1.0, across=0.5, bound=10.0)
        narrow = known(settings=settings).within
        wide = Seen(now=Mean(groups=16.0, total=3.2, square=0.64), best=0.2)
        state = HoldState(baseline=Baseline(32.0, 256.0, 4.0), within=narrow, across=wide, pool=settings.fresh().pool)
        table = group([A, A, A, B] + [A] * 4, group_size=4)
        assert pushed(table, settings=settings, state=state) == pytest.approx([-2 / 3] * 3 + [2.0] + [0] * 4)
        # Both above: half of it within, and across A is like 4 of 4 others, B like none: away by 1/4 * 4/3 and -1.
        both = known(settings)
        assert pushed(table, settings=settings, state=both)[:4] == pytest.approx([-2 / 3] * 3 + [2.0])
        near = Seen(now=Mean(groups=16.0, total=16 * 0.2375, square=0.9025), best=0.2)
        faded = HoldState(baseline=both.baseline, within=near, across=wide, pool=both.pool)
        # .2375 is .95 of the line .25, whose logarithm is -.0513: .487 of it.
        assert pushed(table, settings=settings, state=faded)[3] == pytest.approx(2.0 * (1 + math.log(0.95) / 0.1))

    def test_it_says_why(self):
        both = Hold(format=1.0)
        said = hold.describe(both, known(both, now=0.5, best=0.2))
        assert said == (
            "how alike right answers are, 0 to 1: 0.5 to one prompt (line 0.25), 0.5 to different prompts (line 0.25)"
        )
        assert hold.describe(BY_FORMAT, known(now=0.5, best=0.2)).endswith("0.5 to one prompt (line 0.25)")
        begun = BY_FORMAT.fresh()
        assert hold.describe(BY_FORMAT, begun) == "the base is not complete yet"
        shown = replace(begun, baseline=Baseline(32.0, 256.0, 4.0))
        assert hold.describe(BY_FORMAT, shown) == "too few right answers yet"

    def test_the_rule_takes_its_level_from_it(self):
        at = RuleState(condition=None, met=True, level=0.0, inner=known(now=0.5, best=0.2))
        level, why = BY_FORMAT.next_level(at, None)
        assert level == 0.5
        assert why.startswith("how alike")
        assert BY_FORMAT.next_level(RuleState(condition=None, level=1.0, inner=at.inner), None) == (0.0, None)
        measured = BY_FORMAT.measures(at, 1, dry_run=False)
        assert measured == {"hold_kappa": 0.0, "hold_ratio": pytest.approx(0.4)}


class TestWordings:
    """Whether there is anything to hold below the formats is seen at the base."""

    DO: ClassVar = {
        "action": "hold",
        "opening": 1.0,
        "across": 0.0,
        "bounds": [1.0, 8.0],
        "kappa": 1.0,
        "wordings": 2.0,
    }

    def rule(self):
        return Policy.from_dict({"rules": {"words": {"when": "always", "do": self.DO}}})

    def round(self, openings, formats=None, prompts=3):
        """So many prompts whose answers, all right, open like that."""
        formats = [A] * len(openings) if formats is None else formats
        modes = {"format": formats * prompts, "opening": openings * prompts}
        return round_table([1.0] * len(openings) * prompts, group_size=len(openings), modes=modes)

    def seen(self, *given, **more):
        return self.alike(self.round(*given, **more))

    def alike(self, rows):
        settings = Hold(opening=1.0)
        return hold.opens_alike(hold.look(settings, settings.fresh().pool, rows).pool)

    def test_counted_among_answers_of_one_format(self):
        """Three prompts of four: of 16 pairs of each two, 2 x 2 open with 1 and 2 x 2 with 2: 48/24. Four of A A A B,
        six pairs of prompts: 9 pairs of A with 5 alike, and one of B, alike: 60/36."""
        assert self.seen([1, 1, 2, 2], prompts=3) == pytest.approx((24 / 48, 0.0))
        assert self.seen([1, 1, 2, 9], [A, A, A, B], prompts=4) == pytest.approx((36 / 60, 0.0))
        assert self.seen([1, 1, 2, 2], prompts=2) is None, "16 pairs are too few"

    def test_answers_to_one_prompt_alone_say_nothing_of_the_run(self):
        """Sixteen right answers to the one prompt that is solved take its words up: 120 pairs, none of two prompts."""
        assert self.seen([1] * 16, prompts=1) is None

    UNEQUAL: ClassVar = {"format": [A] * 12, "opening": [1] * 8 + [1, 2, 3, 4]}

    def test_the_error_of_how_often_they_open_alike(self):
        """Prompts of four answers that open 1111, 1111 and 1234. Of 16 pairs of the first and the second all are alike,
        of the first or the second and the third four: 24 of 48. Without the first or the second 4 of 16, without the
        third 16 of 16: mean 1/2, sum of squares 1/16 + 1/16 + 1/4 = 3/8, times (3 - 1)/3: a variance of 1/4."""
        assert self.alike(round_table([1.0] * 12, group_size=4, modes=self.UNEQUAL)) == pytest.approx((0.5, 0.5))
        assert self.seen([1] * 8, prompts=2) == (1.0, None), "of two prompts no error is known"
        assert self.seen([1, 2, 3, 4], prompts=2) is None
        assert self.seen([*range(8)], prompts=3) == pytest.approx((24 / 192, 0.0))

    def test_a_few_answers_that_happen_to_open_alike_do_not_decide_it(self):
        """Two of three prompts are answered in one way, the third in four: 2 ways, fewer than 3, but .5 +- .5 is not
        surely above 1/3: it rests, and goes on looking."""
        policy = Policy.from_dict({"rules": {"words": {"when": "always", "do": self.DO | {"wordings": 3.0}}}})
        action = policy.rules[0].action
        state = fold.start(policy, {})
        state = replace(state, rules={"words": replace(state.rules["words"], met=True, level=1.0)})
        rows = round_table([1.0] * 12, group_size=4, modes=self.UNEQUAL)
        while not state.rules["words"].inner.baseline.complete:
            state, *_ = fold.on_round(policy, state, rows, {})
        inner = state.rules["words"].inner
        assert action.rests(inner)
        assert not inner.settled
        for _ in range(20):
            state, *_ = fold.on_round(policy, state, self.round([1, 2, 3, 4, 5, 6, 7, 8]), {})
        assert state.rules["words"].inner.settled
        assert not action.rests(state.rules["words"].inner)

    def test_formats_that_each_open_in_one_way_are_left_to_another_rule(self):
        """From the first round on, so that the run is as without this rule; and the log says it."""
        policy, rests = self.rule(), [1] * 4 + [2] * 4
        state = fold.start(policy, {})
        state = replace(state, rules={"words": replace(state.rules["words"], met=True, level=1.0)})
        state, effect, _ = fold.on_round(policy, state, self.round(rests, [A] * 4 + [B] * 4), {})
        assert not effect.addition_n.any()
        at = state.rules["words"]
        assert at.inner.wordings == 1.0
        settings, run = policy.rules[0].action, RunSoFar(rest=0.0, given={})
        held, why = settings.suspends(at, run)
        assert held
        assert why == "right answers: at the base those of one format open in 1 ways, fewer than 2"
        suspended = replace(at, suspended=True)
        assert settings.suspends(suspended, run) == (True, None)
        assert settings.measures(suspended, 1, dry_run=False)["hold_kappa"] == 0.0
        kept = json.loads(json.dumps(fold.to_json(policy, state)))
        assert fold.from_json(policy, kept).rules["words"].inner.wordings == 1.0

    def test_what_falls_short_of_the_line_is_not_rounded_up_to_it(self):
        settings, run = replace(BY_FORMAT, wordings=4.0), RunSoFar(rest=0.0, given={})
        at = RuleState(condition=None, met=True, level=1.0, inner=replace(known(), wordings=3.999))
        assert (
            settings.suspends(at, run)[1]
            == "right answers: at the base those of one format open in 3.99 ways, fewer than 4"
        )

    def test_words_that_differ_are_held_and_the_base_decides_it_once(self):
        policy = self.rule()
        state = fold.start(policy, {})
        state = replace(state, rules={"words": replace(state.rules["words"], met=True, level=1.0)})
        state, effect, _ = fold.on_round(policy, state, self.round([1, 1, 1, 2, 3, 4, 5, 6]), {})
        assert effect.addition_n[0] < 0.0 < effect.addition_n[-1]
        while not state.rules["words"].inner.baseline.complete:
            state, *_ = fold.on_round(policy, state, self.round([1, 1, 1, 2, 3, 4, 5, 6]), {})
        wide = state.rules["words"].inner.wordings
        assert wide > 2.0
        for _ in range(20):
            state, effect, _ = fold.on_round(policy, state, self.round([1, 1, 1, 1, 1, 1, 1, 2]), {})
        assert state.rules["words"].inner.wordings == wide
        assert effect.addition_n.any()
        assert "those of one format open in" in hold.describe(policy.rules[0].action, state.rules["words"].inner)

    def test_where_the_base_was_rarely_right_its_first_right_answers_decide_it(self):
        """A baseline of 8 rounds without a pair; then 64 pairs, 7 x 7 and one of which open alike. What comes later
        changes nothing."""
        policy = self.rule()
        state = fold.start(policy, {})
        state = replace(state, rules={"words": replace(state.rules["words"], met=True, level=1.0)})
        wrong = round_table([0.0] * 8, group_size=8, modes={"format": [A] * 8, "opening": [1] * 8})
        for _ in range(8):
            state, *_ = fold.on_round(policy, state, wrong, {})
        assert state.rules["words"].inner.baseline.complete
        assert state.rules["words"].inner.wordings is None
        state, effect, _ = fold.on_round(policy, state, self.round([1] * 7 + [2]), {})
        assert state.rules["words"].inner.wordings == pytest.approx(64 / 50)
        assert not effect.addition_n.any()
        state, effect, _ = fold.on_round(policy, state, self.round([1, 2, 3, 4, 5, 6, 7, 7]), {})
        assert state.rules["words"].inner.wordings == pytest.approx(64 / 50)
        assert not effect.addition_n.any()
        assert not len(state.rules["words"].inner.pool), "what nothing is compared with is in no checkpoint"


class TestRule:
    def test_a_dry_run_and_a_rule_at_rest_look_and_add_nothing(self):
        table = group([A, A, A, B])
        for acting, dry_run in ((False, False), (True, True)):
            state, change = BY_FORMAT.on_round(
                known(), Round(table=table, level=1.0, acting=acting, dry_run=dry_run, scale=1.0)
            )
            assert change.addition_N is None
            assert len(state.pool) == 4

    @pytest.mark.parametrize("settings", [BY_FORMAT, Hold(moves=1.0, sketch=2.0)])
    def test_its_state_comes_back_as_it_is(self, settings):
        rng = np.random.default_rng(0)
        state = settings.fresh()
        for r in range(3):
            table = group(
                rng.integers(3, size=16), prompt=np.repeat(np.arange(4), 4) + r, group_size=4,
                sketch=np.sort(rng.integers(2**32, size=(16, 128), dtype=np.uint32)),
                openers=rng.integers(2**43, size=(16, 64)),
            )  # fmt: skip
            state = hold.after(settings, state, hold.look(settings, state.pool, table))
        again = settings.load(json.loads(json.dumps(settings.save(state), allow_nan=False)))
        assert again.pool.tobytes() == state.pool.tobytes()
        assert (again.within, again.across, again.baseline) == (state.within, state.across, state.baseline)
        assert again.pool.dtype == state.pool.dtype

    def test_what_is_remembered_is_bounded_and_whole_prompts_stay(self):
        settings = Hold(format=1.0, memory_completions=10)
        pool = settings.fresh().pool
        for r in range(5):
            prompts = np.repeat(np.arange(3), 4) + 10 * r
            pool = hold.look(settings, pool, group([A] * 12, prompt=prompts, group_size=4)).pool
            assert len(pool) == 8, "two prompts of four"
            assert set(np.unique(pool["prompt"], return_counts=True)[1]) == {4}
            assert (pool["prompt"] >= 10 * r).all()

    @pytest.mark.parametrize("other", [{"format": 2.0}, {"template": 0.0}, {"join": "max"}])
    def test_resumed_with_other_kernels_it_begins_anew(self, other):
        """What was alike by format is no base for what is alike by template; other bounds change nothing of it."""

        def policy(**given):
            do = {"action": "hold", "format": 1.0, "template": 1.0, **given}
            return Policy.from_dict({"rules": {"apart": {"when": "always", "do": do}}})

        before = fold.start(policy(), {})
        for r in range(3):
            before, *_ = fold.on_round(policy(), before, group([A, A, A, B], prompt=[r] * 4), {})
        kept = json.loads(json.dumps(fold.to_json(policy(), before)))
        assert len(fold.from_json(policy(**other), kept).rules["apart"].inner.pool) == 0
        again = fold.from_json(policy(at=2.0), kept).rules["apart"].inner
        assert again.within == before.rules["apart"].inner.within

    def test_two_rules_together_bring_no_wrong_answer_above_a_right_one(self):
        """Each may take .8 of the gap that is left, not of the one that was there."""
        do = {"action": "hold", "across": 1.0, "bound": 10.0, "bounds": [8.0, 8.0], "kappa": 8.0}
        names = ("format", "template")
        policy = Policy.from_dict({"rules": {name: {"when": "always", "do": do | {name: 1.0}} for name in names}})
        state = fold.start(policy, {})
        state = replace(state, rules={name: replace(state.rules[name], level=8.0) for name in names})
        table = round_table(
            [1, 1, 1, 0, 1, 1, 1, 1], group_size=4, advantage=[0.5, 0.5, 0.5, -1.5, 0, 0, 0, 0],
            modes={key: [A, B, 12, A, A, A, A, A] for key in names},
        )  # fmt: skip
        _, effect, _ = fold.on_round(policy, state, table, {})
        trained = effect.on(table.advantage_N)
        assert trained[1] == trained[2] > trained[0] > trained[3]
        assert trained[:3].sum() == pytest.approx(1.5)

    def test_two_by_different_kernels_are_two_knobs(self):
        rules = {name: {"when": "always", "do": {"action": "hold", name: 1.0}} for name in ("format", "sketch")}
        policy = Policy.from_dict({"rules": rules})
        assert [rule.action.knob for rule in policy.rules] == ["hold (format)", "hold (sketch)"]

    def test_a_kernel_of_ones_own_is_a_subclass(self):
        """Answers 1 1 1 2 in four formats: as A A A B above."""
        given = {
            "rules": {"answers": {"when": "always", "do": {"action": "hold_answers", "across": 0.0, "bound": 3.0}}}
        }
        (rule,) = Policy.from_dict(given, actions=[HoldAnswers]).rules
        assert (rule.action.knob, set(rule.action.reads)) == ("hold_answers", set())
        table = group([1, 2, 3, 4], answer=[1, 1, 1, 2])
        assert pushed(table, settings=rule.action) == pytest.approx([-2 / 3] * 3 + [2.0])
        both = HoldAnswers(sketch=1.0)
        assert (both.knob, set(both.reads)) == ("hold_answers (sketch)", {"sketch"})

    def test_what_cannot_work_is_said(self):
        known_moves = {"rlmon/moves/effective_within": MetricFacts(low=1.0, high=None, missing="no vocabulary")}
        setting = Setting(metrics=known_moves, detectors={}, modes=())
        assert Hold(bound=0.0).useless(setting) == "bound: 0 adds nothing to any advantage. Type bound: 2"
        assert "bounds" in Hold(bounds=(0.0, 0.0), kappa=0.0).useless(setting)
        assert Hold(moves=1.0).useless(setting) == "moves are not measured: no vocabulary"
        assert Hold().useless(setting) is None
        alone = Setting(metrics={}, detectors={}, modes=(), group_size=1)
        assert "Type across: 1" in Hold(across=0.0).useless(alone)
        assert Hold().useless(alone) is None
        few = Setting(metrics={}, detectors={}, modes=(), group_size=2)
        assert list(Hold().odd(few, always=True)) == [
            "within a prompt three right answers are needed, and num_generations is 2"
        ]
