"""The mode-marginal pressure, by hand."""

import json
import math

import numpy as np
import pytest
from round_tables import round_table

from rlmon.interventions import mode_counts
from rlmon.interventions import mode_marginal as mm
from rlmon.interventions.mode_marginal import ModeMarginal
from rlmon.interventions.row_effect import per_token
from rlmon.statistics import beta_cdf

A, B, C, NEW = 11, -(2**62), 2**62 + 1, 77
"""Keys are opaque: beyond what a double can hold, and negative."""


def observe(settings, state, rows):
    return mode_counts.observe(state, rows, settings.modes, settings.memory_completions)


def table(modes, rewards, *, round=0, group_size=4, sources=None, prompts=None):
    chosen = {"prompt": prompts, "source": sources}
    return round_table(
        rewards, round=round, group_size=group_size, modes={"format": modes},
        **{name: values for name, values in chosen.items() if values is not None},
    )  # fmt: skip


def based(counts, rewarded=None, *, group_size=4, settings=None, order=None):
    """A state whose base is one round with ``counts`` completions by mode, of which ``rewarded`` earn a reward.

    The modes are dealt in turn, so that every prompt has about the run's shares.
    """
    settings = settings or ModeMarginal()
    modes, rewards = [], []
    left = dict(counts)
    good = dict(counts if rewarded is None else rewarded)
    total = sum(counts.values())
    dealt = dict.fromkeys(counts, 0)
    for i in range(total):
        mode = max(left, key=lambda m: counts[m] * (i + 1) / total - dealt[m] if left[m] else -math.inf)
        dealt[mode] += 1
        left[mode] -= 1
        modes.append(mode)
        rewards.append(1.0 if good[mode] > 0 else 0.0)
        good[mode] -= 1
    state = observe(settings, settings.fresh(), table(modes, rewards, group_size=group_size))
    assert state.complete
    return state


class TestBase:
    @pytest.mark.parametrize(
        ("rows", "prompts", "rounds"),
        [
            (64, 8, 4),  # 4 x 64 completions = 256, and 4 x 8 prompts = 32
            (16, 1, 8),  # 128 completions, 8 prompts: the eighth round ends it
            (256, 2, 1),  # 256 completions at once
            (16, 16, 2),  # 32 prompts with one completion each
        ],
    )
    def test_it_is_complete_by_completions_prompts_or_rounds(self, rows, prompts, rounds):
        settings, state = ModeMarginal(), ModeMarginal().fresh()
        for r in range(rounds):
            assert not state.complete
            now = table([A, B] * (rows // 2), [1.0, 0.0] * (rows // 2), round=r, group_size=rows // prompts)
            state = observe(settings, state, now)
        assert state.complete
        assert state.base.rows == {B: rows * rounds / 2, A: rows * rounds / 2}

    def test_before_it_nothing_is_added_or_steered(self):
        settings = ModeMarginal()
        now = table([A] * 7 + [B], [1.0] * 8)
        state = observe(settings, settings.fresh(), now)
        assert not state.complete
        assert not mm.addition(settings, state, now, 2.0).any()
        assert mm.control(settings, state, 1.0) is None
        assert set(mm.ratios(state).values()) == {None}
        assert mode_counts.shares(state) == {}
        assert mm.undeserving(state) == frozenset()
        assert "not known" in mm.describe(settings, state)

    def test_rows_without_mode_or_reward_do_not_count(self):
        settings = ModeMarginal()
        now = table([A, A, -1, B], [1.0, math.nan, 1.0, 0.0])
        state = observe(settings, settings.fresh(), now)
        assert state.base.rows == {A: 1.0, B: 1.0}
        assert state.base.rewarded == {A: 1.0}

    def test_rounds_in_which_nothing_is_known_are_no_base(self):
        settings, state = ModeMarginal(), ModeMarginal().fresh()
        for r in range(20):
            state = observe(settings, state, table([A, B], [math.nan, math.nan], round=r))
        assert not state.complete

    def test_the_64_most_frequent_are_kept_and_the_others_are_one(self):
        # 70 modes with 5 completions each but the first six, which have 4: those six are pooled, 24 completions.
        counts = {m: 4 if m < 6 else 5 for m in range(70)}
        state = based(counts)
        assert len(state.base.rows) == 65
        assert state.base.rows[mode_counts.REST] == 24.0
        assert state.base.total == 6 * 4 + 64 * 5


class TestAcross:
    def test_the_log_ratio_by_hand(self, monkeypatch):
        """Base 128 : 128. A round of 256 with 192 : 64 after it, remembered with exp(-256/320) = .4493."""
        monkeypatch.setattr(mm, "NOISE_SE", 0.0)
        settings = ModeMarginal(within=0.0)
        state = based({A: 128, B: 128})
        now = table(([A] * 3 + [B]) * 64, [1.0] * 256, round=1)
        state = observe(settings, state, now)
        keep = math.exp(-0.8)
        a, b = 128 * keep + 192, 128 * keep + 64
        # Half a completion for what the base did not show does not touch the held modes' ratio: both are 1/2.
        # The row itself is left out, and 16 completions of the base are added.
        seen = a + b - 1 + 16
        ratio_a = math.log(0.5) - math.log((a - 1 + 8) / seen)
        ratio_b = math.log(0.5) - math.log((b - 1 + 8) / seen)
        centre = (192 * ratio_a + 64 * ratio_b) / 256
        added = mm.addition(settings, state, now, 1.5)
        assert added[0] == pytest.approx(1.5 * (ratio_a - centre), rel=1e-12)
        assert added[3] == pytest.approx(1.5 * (ratio_b - centre), rel=1e-12)
        assert added[3] > 0 > added[0]

    def test_what_is_within_noise_is_left_alone(self):
        """Base 200 : 56; the same shares again but for 3 completions: log ratios of .01, errors of .03 and more."""
        settings = ModeMarginal(within=0.0)
        state = based({A: 200, B: 56})
        now = table([A] * 203 + [B] * 53, [1.0] * 256, round=1)
        state = observe(settings, state, now)
        assert not mm.addition(settings, state, now, 1.0).any()

    def test_a_vanished_mode_is_rewarded_within_the_bound(self):
        settings = ModeMarginal(within=0.0, bound=0.5)
        state = based({A: 128, B: 128})
        for r in range(1, 12):
            state = observe(settings, state, table([A] * 256, [1.0] * 256, round=r))
        now = table([A] * 255 + [B], [1.0] * 256, round=12)
        state = observe(settings, state, now)
        added = mm.addition(settings, state, now, 1.0)
        # Both ratios are at the bound: -.5 (log .5 = -.69) for 255 rows, +.5 for one; their mean is -.49609375.
        centre = (-255 * 0.5 + 0.5) / 256
        assert added[-1] == pytest.approx(0.5 - centre)
        assert added[0] == pytest.approx(-0.5 - centre)

    def test_a_source_that_is_drawn_more_is_no_collapse(self):
        """Source 1 is all A, source 2 all B. Later only source 1 is drawn: its shares are what they were."""
        settings = ModeMarginal(within=0.0)
        first = table([A] * 512 + [B] * 512, [1.0] * 1024, sources=[1] * 512 + [2] * 512)
        state = observe(settings, settings.fresh(), first)
        # Shrunk to the pooled shares by 64 completions, source 1 is expected to have 32 of 576 in B, .0556: 14 of 256.
        now = table([A] * 242 + [B] * 14, [1.0] * 256, round=1, sources=[1] * 256)
        for _ in range(20):
            state = observe(settings, state, now)
        assert not mm.addition(settings, state, now, 1.0).any()
        pooled = observe(settings, settings.fresh(), table([A] * 512 + [B] * 512, [1.0] * 1024))
        for _ in range(20):
            pooled = observe(settings, pooled, now)
        assert mm.addition(settings, pooled, now, 1.0)[-1] > 1.5


class TestWithin:
    def test_the_expectation_is_that_of_the_prompts_of_the_base(self):
        """Without correlation the others of a group of 3 are binomial: E[log q] over n = 0, 1, 2 with pi = 1/4."""
        surprise = mm._surprise(0.25, 2, 1e-9)
        log_q = [math.log((n + 4 * 0.25) / 6) for n in range(3)]
        expected = 9 / 16 * log_q[0] + 6 / 16 * log_q[1] + 1 / 16 * log_q[2]
        assert surprise == pytest.approx([expected - value for value in log_q], abs=1e-6)

    def test_with_correlation_it_is_beta_binomial_given_the_row_itself(self):
        """Correlation 1/2: s = 1, so given a draw of the mode Beta(1/4 + 1, 3/4): the other is equal with 1.25 / 2."""
        surprise = mm._surprise(0.25, 1, 0.5)
        none, one = math.log(1 / 5), math.log(2 / 5)
        expected = 0.375 * none + 0.625 * one
        assert surprise == pytest.approx([expected - none, expected - one], abs=1e-9)

    def collapsed(self, settings):
        """Each prompt has one mode, the run still has both: the marginal shows nothing."""
        state = based({A: 128, B: 128})
        now = table(([A] * 4 + [B] * 4) * 32, [1.0] * 256, round=1)
        for _ in range(6):
            state = observe(settings, state, now)
        return state

    def test_prompts_that_collapse_one_by_one_are_seen(self):
        settings = ModeMarginal(within=0.5)
        state = self.collapsed(settings)
        now = table([A, A, A, B, B, B, B, A], [1.0] * 8, round=9)
        added = mm.addition(settings, state, now, 1.0)
        assert min(added[3], added[7]) > 0 > max(added[0], added[4])
        # The marginal alone is at the base's.
        assert not mm.addition(ModeMarginal(within=0.0), state, now, 1.0).any()

    def test_the_sum_by_hand_in_a_group_with_an_unscored_row(self):
        settings = ModeMarginal(within=0.5)
        state = self.collapsed(settings)
        now = table([A, A, B, B], [1.0, 1.0, 1.0, math.nan], round=9)
        # Half a completion of what the base did not show: A's share of the base is 128 of 256.5. The run is at A : B of
        # 1 : 1, and shrunk to the base by 16 completions.
        seen, p0 = state.now.total, 128 / 256.5
        pi = (seen / 2 + 16 * p0) / (seen + 16)
        # Three are scored, so each has two others: one equal for A, none for B. Prompts of the base do not differ.
        surprise = mm._surprise(pi / (2 * pi + 16 * (0.5 / 256.5) / (seen + 16)), 2, 0.001)
        pressure = 0.5 * np.array([surprise[1], surprise[1], surprise[0]])
        added = mm.addition(settings, state, now, 2.0)
        assert added[:3] == pytest.approx(2.0 * (pressure - pressure.mean()), rel=1e-9)
        assert added[3] == 0.0

    def test_a_source_with_one_mode_is_not_taken_for_narrow(self):
        """Source 1 writes A and B, source 2 only B, from the base on. Prompts of source 1 collapse one by one."""
        settings = ModeMarginal(within=1.0)
        first = table([A, B] * 128 + [B] * 256, [1.0] * 512, sources=[1] * 256 + [2] * 256)
        state = observe(settings, settings.fresh(), first)
        modes = ([A] * 4 + [B] * 4) * 32 + [B] * 256
        now = table(modes, [1.0] * 512, round=1, sources=[1] * 256 + [2] * 256)
        for _ in range(6):
            state = observe(settings, state, now)
        added = mm.addition(settings, state, now, 1.0)
        # All of these fill their groups; in source 2 that is what is expected, in source 1 it is not.
        assert added[4] < added[300] - 0.1
        assert added[0] < added[300] - 0.1

    def test_prompts_as_wide_as_the_base_are_left_alone(self):
        settings = ModeMarginal(within=1.0)
        state = based({A: 128, B: 128})
        now = table([A, A, A, B] * 32 + [B, B, B, A] * 32, [1.0] * 256, round=1)
        # One such group is what chance makes of halves.
        assert not mm.addition(settings, state, now, 1.0).any()

    def test_the_base_own_dependence_on_the_prompt_is_no_collapse(self):
        """A base in which each prompt has its own mode (code for code): nothing to widen."""
        settings = ModeMarginal(within=1.0)
        now = table(([A] * 4 + [B] * 4) * 32, [1.0] * 256)
        state = observe(settings, settings.fresh(), now)
        for _ in range(4):
            state = observe(settings, state, now)
        assert np.abs(mm.addition(settings, state, now, 1.0)).max() < 1e-9

    def test_groups_of_one_have_no_within(self):
        settings = ModeMarginal(within=1.0)
        state = self.collapsed(settings)
        now = table([A] * 6 + [B] * 6, [1.0] * 12, group_size=1)
        assert not mm.addition(settings, state, now, 1.0).any()


class TestModesThatEarnNothing:
    def test_an_always_wrong_mode_is_neither_held_nor_pushed(self):
        # 77 of 256 are of a mode that never earns; the others earn always: rate .699, line .175, P(0 of 77) < 1e-6.
        settings = ModeMarginal(within=0.0)
        state = based({A: 100, B: 79, C: 77}, {A: 100, B: 79, C: 0})
        assert mm.undeserving(state) == {C}
        # It dies and A takes all: the others are held to each other's proportion, C stays where reward puts it.
        now = table([A] * 200 + [B] * 40 + [C] * 16, [1.0] * 240 + [0.0] * 16, round=1)
        state = observe(settings, state, now)
        added = mm.addition(settings, state, now, 1.0)
        assert not added[-16:].any()
        assert added[200] > 0 > added[0]
        # C gone altogether, A : B as in the base: nothing to do.
        state = based({A: 100, B: 79, C: 77}, {A: 100, B: 79, C: 0})
        now = table([A] * 143 + [B] * 113, [1.0] * 256, round=1)
        for _ in range(10):
            state = observe(settings, state, now)
        assert not mm.addition(settings, state, now, 1.0).any()

    def test_a_dead_mode_is_not_forgotten_and_so_not_revived(self):
        settings = ModeMarginal()
        state = based({A: 100, B: 79, C: 77}, {A: 100, B: 79, C: 0})
        for r in range(1, 100):
            state = observe(settings, state, table([A, B] * 128, [1.0] * 256, round=r))
        assert state.now.rows[C] < 1e-20
        assert mm.undeserving(state) == {C}

    def test_what_is_remembered_of_a_mode_is_counted_in_its_own_completions(self):
        settings = ModeMarginal()
        state = based({A: 100, B: 79, C: 77}, {A: 100, B: 79, C: 0})
        for r in range(1, 40):
            # One failure a round: all that the run's memory of 320 would keep of C is 1.8 of them.
            now = table([A, B] * 127 + [A, C], [1.0] * 255 + [0.0], round=r)
            state = observe(settings, state, now)
        # 77 shrink by 1/256 with each new one: 77 (255/256)^39 + sum of (255/256)^k for k < 39 = 66.1 + 36.2.
        assert state.trials[mode_counts.POOLED][C] == pytest.approx(102.3, abs=0.1)
        assert mm.undeserving(state) == {C}

    def test_a_mode_that_learns_is_protected_again(self):
        settings = ModeMarginal()
        state = based({A: 100, B: 79, C: 77}, {A: 100, B: 79, C: 0})
        # 256 of its own trials are remembered: after 64 rewarded ones the rate is 64/141 = .45, far above .25.
        state = observe(settings, state, table([C] * 64 + [A] * 64, [1.0] * 128, round=1))
        assert mm.undeserving(state) == frozenset()

    def test_a_few_failures_are_no_proof(self):
        # Rate .98, line .245, prior Beta(1.96, .04): 3 failures give Beta(1.96, 3.04), P(below .245) = .24.
        state = based({A: 253, B: 3}, {A: 253, B: 0})
        assert mm.undeserving(state) == frozenset()
        # 20 at rate .924 and line .231 give Beta(1.85, 20.15): P = .977.
        assert beta_cdf(0.231, 1.85, 20.15) == pytest.approx(0.977, abs=5e-4)
        assert mm.undeserving(based({A: 244, B: 20}, {A: 244, B: 0})) == {B}

    def test_without_successes_all_deserve(self):
        assert mm.undeserving(based({A: 128, B: 128}, {A: 7, B: 0})) == frozenset()

    def test_a_mode_that_the_base_did_not_show_is_never_rewarded(self):
        settings = ModeMarginal()
        state = based({A: 128, B: 128})
        now = table([A] * 8 + [B] * 200 + [NEW] * 48, [1.0] * 256, round=1)
        state = observe(settings, state, now)
        added = mm.addition(settings, state, now, 1.0)
        assert (added[-48:] < -1.0).all()
        assert added.sum() == pytest.approx(0.0, abs=1e-9)
        assert state.now.rows[mode_counts.REST] / state.now.total == pytest.approx(48 / (256 * math.exp(-0.8) + 256))

    def test_the_first_new_one_is_not_rewarded_either(self):
        settings = ModeMarginal(within=0.0)
        state = based({A: 128, B: 128})
        now = table([A] * 200 + [B] * 55 + [NEW], [1.0] * 256, round=1)
        state = observe(settings, state, now)
        added = mm.addition(settings, state, now, 1.0)
        assert added[-1] <= 0.0 < added[-2]


class TestControl:
    def run_to(self, modes, settings, group_size=4):
        state = based({A: 128, B: 128}, group_size=group_size)
        for r in range(1, 30):
            state = observe(settings, state, table(modes, [1.0] * len(modes), round=r, group_size=group_size))
        return state

    def test_it_rises_by_what_is_missing_and_stays_in_bounds(self):
        settings = ModeMarginal()
        # 3 : 1, one completion a prompt: exp(H(.75)) = 1.7547 over 2 = .8774, .0226 less than .9; twice that.
        state = self.run_to([A, A, A, B] * 64, settings, group_size=1)
        entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
        lack = 0.9 - math.exp(entropy) / 2
        assert mm.control(settings, state, 1.0) == pytest.approx(1.0 + 2 * lack, abs=2e-3)
        assert mm.control(settings, state, 1.49) == 1.5
        assert mm.control(settings, state, 1.5) is None
        assert "below the floor of 0.9" in mm.describe(settings, state)

    def test_it_falls_by_a_tenth_when_nothing_is_lost(self):
        settings = ModeMarginal()
        state = self.run_to([A, A, B, B] * 64, settings)
        assert mm.control(settings, state, 1.0) == pytest.approx(0.9)
        assert mm.control(settings, state, 0.26) == 0.25
        assert mm.control(settings, state, 0.25) is None

    def test_one_step_is_at_most_a_quarter(self):
        settings = ModeMarginal()
        state = self.run_to([A] * 256, settings)
        assert mm.control(settings, state, 1.0) == 1.25

    def test_it_looks_inside_prompts_too(self):
        settings = ModeMarginal()
        state = self.run_to(([A] * 4 + [B] * 4) * 32, settings)
        found = mm.ratios(state)
        assert found["across"] == pytest.approx(1.0)
        # Base: A, B, A, B in each prompt, wider than chance: that counts as chance. Now two of the run are equal with
        # .5 (A : B is 1 : 1), two of a prompt with 1.
        assert found["within"] == pytest.approx(0.5, rel=0.01)
        assert mm.control(settings, state, 1.0) == 1.25

    def test_what_is_rewarded_is_measured_for_itself(self):
        """A prompt rewards one mode only, another prompt the other: both modes are written in each, one is right."""
        settings = ModeMarginal()
        state = based({A: 128, B: 128})
        for r in range(1, 30):
            now = table([A, A, B, B, B, B, A, A] * 32, [1.0, 1.0, 0.0, 0.0] * 64, round=r)
            state = observe(settings, state, now)
        found = mm.ratios(state)
        assert found["correct_across"] == pytest.approx(1.0)
        # The two rewarded ones of a prompt are equal always, two of the run half the time.
        assert found["correct_within"] == pytest.approx(0.5, rel=0.01)
        # Of all four, 4 of 12 ordered pairs are equal: .5 / (1/3), wider than chance.
        assert found["within"] == pytest.approx(1.5, rel=0.01)
        assert mm.control(settings, state, 1.0) == 1.25


class TestState:
    def test_resume_is_exact(self):
        settings = ModeMarginal()
        rng = np.random.default_rng(3)
        state = settings.fresh()
        for r in range(12):
            state = settings.load(json.loads(json.dumps(settings.save(state))))
            modes = rng.choice([A, B, C, NEW], size=64, p=[0.5, 0.3, 0.15, 0.05] if r > 4 else [0.4, 0.3, 0.3, 0])
            state = observe(settings, state, table(modes, rng.integers(2, size=64), round=r, sources=modes % 3))
            assert settings.load(json.loads(json.dumps(settings.save(state)))) == state
        assert {A, B, C} <= set(state.base.rows)


class TestPerToken:
    def test_a_terminal_reward_through_gae(self):
        mask = np.array([[1, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]], dtype=bool)
        found = per_token(np.array([2.0, -1.0, 5.0]), mask, gamma=0.8, lam=0.5)
        assert found == pytest.approx(np.array([[2 * 0.16, 2 * 0.4, 2.0, 0.0], [-1.0, 0, 0, 0], [0, 0, 0, 0]]))

    def test_it_is_what_gae_computes(self):
        """delta_t = r_t with values of 0, A_t = delta_t + gamma lam A_{t+1}."""
        rewards, running, expected = [0.0, 0.0, 0.0, 0.0, 1.5], 0.0, []
        for reward in reversed(rewards):
            running = reward + 0.99 * 0.95 * running
            expected.insert(0, running)
        found = per_token(np.array([1.5]), np.ones((1, 5), dtype=bool), gamma=0.99, lam=0.95)
        assert found[0] == pytest.approx(expected)


class TestSources:
    def test_a_kind_of_prompt_that_is_solved_in_one_mode_alone_is_left_to_it(self):
        """Two sources, modes A and B half and half in both. In source 1 both are always right; in source 2 only A is,
        and the policy goes to it. The other source's A is over-represented in the run as a whole, not in source 1: no
        push there. In source 2 B earns nothing, so that A has nothing to be held against."""
        settings = ModeMarginal(within=2.0)
        base = table([A, B] * 128, [1.0] * 256, sources=[1] * 128 + [2] * 128)
        state = observe(settings, settings.fresh(), base)
        assert state.complete
        now = table(
            [A, B] * 64 + [A, A, A, B] * 32,
            [1.0] * 128 + [1.0, 1.0, 1.0, 0.0] * 32,
            round=1,
            sources=[1] * 128 + [2] * 128,
        )
        for _ in range(1, 12):
            state = observe(settings, state, now)
        assert mm.undeserving(state, 2) == {B}
        assert mm.undeserving(state, 1) == frozenset()
        pushed = mm.addition(settings, state, now, 1.0)
        assert not pushed.any()
        # By the run's pooled shares alone (5/8 A) both sources would be pushed away from A.
        one = table(now.modes_N["format"], now.reward_N, round=1)
        pooled = observe(settings, settings.fresh(), table([A, B] * 128, [1.0] * 256))
        for _ in range(12):
            pooled = observe(settings, pooled, one)
        assert mm.addition(settings, pooled, one, 1.0)[0] < 0.0

    def test_sources_survive_json(self):
        settings = ModeMarginal()
        state = observe(settings, settings.fresh(), table([A, B] * 128, [1.0] * 256, sources=[1, 2] * 128))
        state = observe(settings, state, table([A, B] * 4, [1.0] * 8, round=1, sources=[1, 2] * 4))
        assert settings.load(json.loads(json.dumps(settings.save(state)))) == state
        assert set(state.now_by_source) == {1, 2}
