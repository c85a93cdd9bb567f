"""Does what is rewarded mean that the task is solved?"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa

import rlmon.audit.aliases as aliases
from rlmon.audit.case import Case
from rlmon.audit.checks.question import Ends, Question, between, question, sizes
from rlmon.audit.features import Floats
from rlmon.audit.result import Check
from rlmon.audit.timeline import SMOOTHING_STEPS
from rlmon.metrics.ledger import CREDIBILITY, hard
from rlmon.records import Status
from rlmon.statistics import ByKey, beta_cdf, t_quantile, trailing_mean

MIN_VISITS = 4
MIN_PROMPTS = 20
SOLVED_LESS = 0.05
"""By so much pass@k fell where that is a FAIL."""


@question(
    "pass-at-k",
    "Can several tries still solve as much?",
    needs=("successes",),
    about="narrowing",
    warn="pass@k fell",
    fail="by .05",
)
def pass_at_k(ask: Question, ends: Ends) -> Check:
    assert ends.contrast is not None
    _, is_base, is_last = ends.case.ends()
    n, c = ends.groups["known"], ends.groups["successes"]
    tries = n[(is_base | is_last) & (n > 0)]
    least = int(np.quantile(tries, 0.1)) if tries.size else 0
    if least < 2:
        return ask.skip("there is one scored completion per prompt; pass@k needs several (num_generations)")
    k = most_tries(least)
    values = pass_at_k_of(n, c, k)
    found, single = ends.contrast.mean(values), ends.contrast.mean(pass_at_k_of(n, c, 1))
    if found is None or single is None:
        return ask.skip("an end of the run has fewer than two prompts with rewards")
    status: Status = "fail" if found.high < -SOLVED_LESS else "warn" if found.high < 0 else "pass"
    how = "the same prompts" if found.paired * 2 >= found.prompts_last else "other prompts at the end than at the base"
    return ask.says(
        status=status, metric=f"pass@{k}", unit="probability",
        value=found.last, baseline=found.base, threshold=found.base - (SOLVED_LESS if status == "fail" else 0.0),
        interval=(found.base + found.low, found.base + found.high),
        message=f"pass@{k} {between(found)}; pass@1 {between(single)}; {how}",
        evidence={"k": k, "pass_at_1_base": single.base, "pass_at_1_last": single.last, **sizes(found)},
        advice="The run trades breadth for the mean: stop earlier, raise beta, or train on "
        "prompts that are not solved yet.",
    )  # fmt: skip


def most_tries(least: int) -> int:
    """The k of pass@k for prompts with so many completions: the largest power of two among them."""
    return 1 << (least.bit_length() - 1)


def pass_at_k_of(n: Floats, c: Floats, k: int) -> Floats:
    """Chance that one of k completions drawn without replacement is a success, [G]; NaN where n < k.

    1 - C(n - c, k) / C(n, k) as a product (Chen et al. 2021, arXiv:2107.03374, eq. 1).
    """
    value = np.ones_like(n, dtype=np.float64)
    for i in range(k):
        value *= np.clip(n - c - i, 0.0, None) / np.maximum(n - i, 1.0)
    return np.where(n >= k, 1.0 - value, np.nan)


@question(
    "shortcut",
    "Do winners solve the task rather than share a trick?",
    needs=("completions", "successes"),
    about="narrowing",
    warn="one of: a single answer for .1 more of the prompts, winners a third as long, bare answers",
    fail="two of them",
)
def shortcut(ask: Question, ends: Ends) -> Check:
    assert ends.contrast is not None
    groups = ends.groups
    signs: list[str] = []
    evidence: dict[str, Any] = {}
    top = _top_answer(ends)
    if top is not None:
        base, last, low, prompts = top
        evidence |= {"top_answer_share_base": base, "top_answer_share_last": last, "top_answer_prompts": prompts}
        if low > 0.1:
            signs.append(f"one answer is given to {last:.2f} of all prompts (base {base:.2f})")
    short = ends.contrast.ratio(groups["characters_correct"], groups["successes"])
    if short is not None and short.base > 0:  # 0: the texts were not stored
        evidence |= {"winner_characters_base": short.base, "winner_characters_last": short.last}
        if short.high < -0.67 * short.base:
            signs.append(f"winners are {short.last / short.base:.2f} as long as at the base")
    bare = ends.case.modes.index("bare") if "bare" in ends.case.modes else None
    if bare is not None:
        right = groups["modes_correct"].astype(np.float64)
        found = ends.contrast.ratio(right[:, bare], right.sum(axis=1))
        if found is not None:
            evidence |= {"bare_winners_base": found.base, "bare_winners_last": found.last}
            if found.low > 0.3:
                signs.append(f"bare answers are {found.last:.2f} of the winners (base {found.base:.2f})")
    if not evidence:
        return ask.skip("too few rewarded completions at an end of the run")
    status: Status = "fail" if len(signs) >= 2 else "warn" if signs else "pass"
    return ask.says(
        status=status, metric="signs of a shortcut", unit="of 3",
        value=float(len(signs)), baseline=0.0, threshold=2.0 if status == "fail" else 1.0,
        message="; ".join(signs) if signs else "no answer, length or bare reply took over among winners",
        evidence=evidence,
        advice="Read winners with `rlmon show`; tighten the reward function, drop prompts "
        "whose answer can be guessed.",
    )  # fmt: skip


def _top_answer(ends: Ends) -> tuple[float, float, float, int] | None:
    """Share of the prompts that get the most common answer at both ends (of the sample), the lower end of the change's
    interval, and the prompts of the last window; ``None`` where fewer than 30 prompts have an answer."""
    table = ends.case.counted.samples
    if not table or ends.case.windows is None or ends.contrast is None:
        return None
    shares = []
    answers: Any = None
    for end, source in (("last", ends.case.counted), ("base", ends.case.base or ends.case.counted)):
        window = ends.case.windows.last if end == "last" else ends.case.windows.base
        rows = pa.concat_tables(source.samples)
        answer, prompt, step, rank = (rows[name].to_numpy() for name in ("answer_key", "prompt_key", "step", "rank"))
        mine = (answer >= 0) & (rank >= 0)
        if not (end == "base" and ends.case.base is not None):
            mine &= np.isin(step, window)
        if not ends.same_data and ends.strata is not None:
            mine &= np.isin(np.array(rows["source"].to_pylist(), dtype=object), list(ends.strata.names))
        answer, prompt = answer[mine], prompt[mine]
        prompts = np.unique(prompt)
        if prompts.size < 30:
            return None
        if end == "last":
            values, counts = np.unique(answer, return_counts=True)
            answers = values[counts.argmax()]
        code = np.searchsorted(prompts, prompt)
        per_prompt = np.bincount(code, weights=answer == answers) / np.bincount(code)
        shares.append((float(per_prompt.mean()), float(per_prompt.std(ddof=1) / math.sqrt(prompts.size)), prompts.size))
    (last, last_error, size), (base, base_error, _) = shares
    return base, last, last - base - ends.contrast.z * math.hypot(last_error, base_error), size


@question(
    "forgotten-prompts",
    "Does what was solved stay solved?",
    needs=("successes",),
    about="reward",
    warn=".02 of the prompts solved early are credibly below 1/4 later",
    fail=".1",
)
def forgotten_prompts(ask: Question, ends: Ends) -> Check:
    early_n, early_k, late_n, late_k = prompt_halves(ends.case)
    solved = (early_n >= MIN_VISITS) & (late_n >= MIN_VISITS) & (early_k >= 0.5 * early_n)
    if int(solved.sum()) < MIN_PROMPTS:
        return ask.skip(
            f"only {int(solved.sum())} prompts were solved early and sampled again in the later half "
            f"({MIN_PROMPTS} are needed): the run has hardly begun a second epoch",
        )  # fmt: skip
    now = beta_cdf(0.25, late_k[solved] + 1.0, late_n[solved] - late_k[solved] + 1.0)
    lost = int((now >= CREDIBILITY).sum())
    total = int(solved.sum())
    assert ends.contrast is not None
    low, high = wilson(lost, total, ends.contrast.z)
    status: Status = "fail" if low > 0.1 else "warn" if low > 0.02 else "pass"
    return ask.says(
        status=status, metric="share of solved prompts forgotten",
        unit="share", value=lost / total, baseline=0.0, threshold=0.1 if status == "fail" else 0.02,
        interval=(low, high),
        message=f"{lost} of {total} prompts that were solved in the first half are credibly below 1/4 in the second",
        evidence={"forgotten": lost, "solved_early": total},
        advice="Replay older prompts, raise beta, lower learning_rate.",
    )  # fmt: skip


def prompt_halves(case: Case) -> tuple[Floats, Floats, Floats, Floats]:
    """Attempts and successes per prompt, in the first and the second half of the steps; prompts in order of key."""
    groups = case.counted.groups
    train = ~groups["eval"]
    steps = np.unique(groups["step"][train])
    middle = steps[steps.size // 2]
    _, code = np.unique(groups["prompt"][train], return_inverse=True)
    late = groups["step"][train] >= middle
    n, k = groups["known"][train], groups["successes"][train]
    size = int(code.max()) + 1 if code.size else 0

    def total(values: Floats, mine: Any) -> Floats:
        return np.bincount(code[mine], weights=values[mine], minlength=size).astype(np.float64)

    return total(n, ~late), total(k, ~late), total(n, late), total(k, late)


def wilson(successes: int, trials: int, z: float) -> tuple[float, float]:
    """Wilson's interval of a share."""
    p = successes / trials
    middle = (p + z * z / (2 * trials)) / (1 + z * z / trials)
    reach = z / (1 + z * z / trials) * math.sqrt(p * (1 - p) / trials + z * z / (4 * trials * trials))
    return max(0.0, middle - reach), min(1.0, middle + reach)


@question(
    "impossible-prompts",
    "Are few prompts out of reach?",
    needs=("successes",),
    about="reward",
    warn=".3 of the prompts tried 16 times are credibly below 1/8",
)
def impossible_prompts(ask: Question, ends: Ends) -> Check:
    early_n, early_k, late_n, late_k = prompt_halves(ends.case)
    n, k = early_n + late_n, early_k + late_k
    tried = n >= 16
    if int(tried.sum()) < MIN_PROMPTS:
        return ask.skip(
            f"only {int(tried.sum())} prompts have 16 attempts ({MIN_PROMPTS} are needed): with "
            "fewer, a hard prompt cannot be told from an impossible one",
        )  # fmt: skip
    below = hard(k[tried] + 1.0, n[tried] - k[tried] + 1.0)
    count, total = int(below.sum()), int(tried.sum())
    assert ends.contrast is not None
    low, high = wilson(count, total, ends.contrast.z)
    status: Status = "warn" if low > 0.3 else "pass"
    return ask.says(
        status=status, metric="share of prompts credibly below 1/8",
        unit="share", value=count / total, threshold=0.3, interval=(low, high),
        message=f"{count} of {total} prompts with 16 attempts or more are credibly solved less than once in 8",
        evidence={"impossible": count, "tried": total},
        advice="Leave them out for now (return None as their reward) or ask the verifier "
        "whether it can be satisfied at all.",
    )  # fmt: skip


@question(
    "eval-gap",
    "Does evaluation follow training?",
    about="reward",
    warn="training reward leaves evaluation behind by .05",
    fail=".15, and evaluation falls",
)
def eval_gap(ask: Question, ends: Ends) -> Check:
    rewards = _eval_rewards(ends.case)
    train = ends.case.series("rlmon/health/reward_mean")
    if train is None or len(rewards) < 4:
        reason = ends.case.run.lacks.get("eval", f"there are {len(rewards)} evaluations; 4 are needed")
        return ask.skip(reason)
    steps = np.array([step for step, _ in rewards])
    values = np.array([value for _, value in rewards])
    known = np.isfinite(train)
    smooth = trailing_mean(train[known], SMOOTHING_STEPS)
    at = np.searchsorted(ends.case.line.steps[known], steps, side="right") - 1
    usable_ = at >= 0
    gap = smooth[at[usable_]] - values[usable_]
    values = values[usable_]
    if gap.size < 4:
        return ask.skip("fewer than 4 evaluations came after a training step")
    half = gap.size // 2
    first, second = gap[:half], gap[half:]
    growth = float(second.mean() - first.mean())
    noise = float(np.std(np.diff(gap), ddof=1)) / math.sqrt(2.0) if gap.size > 2 else 0.0
    quantile = t_quantile(1.0 - ends.alpha / 2.0, max(3, gap.size - 2))
    reach = quantile * noise * math.sqrt(1.0 / half + 1.0 / second.size)
    falling = values[half:].mean() < values[:half].mean()
    status: Status = "pass"
    if growth - reach > 0.15 and falling:
        status = "fail"
    elif growth - reach > 0.05:
        status = "warn"
    return ask.says(
        status=status, metric="train reward minus eval reward",
        unit="reward", value=float(second.mean()), baseline=float(first.mean()),
        threshold=float(first.mean()) + (0.15 if status == "fail" else 0.05),
        interval=(float(second.mean()) - reach, float(second.mean()) + reach),
        message=f"the gap went from {first.mean():+.3f} to {second.mean():+.3f} over {gap.size} evaluations; eval "
        f"reward {values[:half].mean():.3f} -> {values[half:].mean():.3f}",
        evidence={"evaluations": int(gap.size)},
        advice="The reward is being learned, not the task: look at what training rewards "
        "that evaluation does not.",
    )  # fmt: skip


def _eval_rewards(case: Case) -> list[tuple[int, float]]:
    logged = aliases.canonical(case.run.eval_scalars).get("rlmon/health/reward_mean")
    if logged:
        return [(step, value) for step, value in logged if math.isfinite(value)]
    groups = case.counted.groups
    if not groups or not groups["eval"].any():
        return []
    by_step = ByKey(groups["step"], groups["eval"])
    means = by_step.ratio(groups["reward"], groups["scored"]).tolist()
    return [(step, mean) for step, mean in zip(by_step.keys.tolist(), means, strict=True) if math.isfinite(mean)]
