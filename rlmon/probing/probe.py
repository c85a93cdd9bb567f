"""``rlmon probe models``: two folders and prompts in, what happened between the two models out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlmon.blending.making import Pair
from rlmon.lab.prompts import Prompts
from rlmon.lab.rewards import named, one_success, rewards_of
from rlmon.metrics.prompts import render_prompt
from rlmon.probing.answers import Answers
from rlmon.probing.judging import Judged, judge
from rlmon.probing.sampling import Progress, Setting, Tell, sample


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What was asked of which models, and what came out."""

    base: str
    checkpoint: str
    kind: str
    """``model`` or ``adapter``."""
    prompts: int
    setting: Setting
    samples: str
    """The folder that holds the completions."""
    success: str | None
    """What counts as a success, in words; ``None`` where that is not known."""
    judged: Judged


def probe(
    pair: Pair, asked: Prompts, reward: Callable[..., Any] | None = None, setting: Setting | None = None,
    out: Path | None = None, *, tell: Tell = lambda text: None, progress: Progress | None = None,
) -> Probe:  # fmt: skip
    """What happened between the models of ``pair``, by what both answer to the prompts ``asked``: see ``sample``.

    Raises ``ConfigError`` where ``reward`` raises; what was sampled is kept.
    """
    setting = setting or Setting()
    # The prompt is the unit: one that comes again would count as news.
    given, asked = asked, asked.distinct()
    if again := len(given.prompts) - len(asked.prompts):
        tell(f"{again} of {len(given.prompts)} rows ask what one before them asks, and are left out.")
    *sides, folder = sample(pair, asked.prompts, setting, out, tell=tell, progress=progress)
    each = asked.times(setting.samples)
    rewards = [rewards_of(side.texts, side.ids, each, reward) for side in sides]
    success, said = one_success([one for one in rewards if one is not None], reward, len(asked.prompts))
    answers = [
        Answers.of(
            side, success.of(one, {} if one is None else {named(reward): one}, len(side.texts)), one, setting.samples
        )
        for side, one in zip(sides, rewards, strict=True)
    ]
    return Probe(
        base=str(pair.base.path),
        checkpoint=str(pair.checkpoint.path),
        kind=pair.kind,
        prompts=len(asked.prompts),
        setting=setting,
        samples=str(folder),
        success=said,
        judged=judge(answers[0], answers[1], [render_prompt(prompt) for prompt in asked.prompts]),
    )
