"""``rlmon probe``: what can be said of models without the log of a run."""

from __future__ import annotations

import contextlib
import enum
import sys
from pathlib import Path
from typing import Annotated

import typer

from rlmon.cli.auditing import progress_bar
from rlmon.cli.audits import FailOn, exit_code
from rlmon.cli.blending import Base, Checkpoint, MaxNewTokens, Reward
from rlmon.cli.printing import draw, note, say, write

probe = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


class ProbeFormat(str, enum.Enum):
    """How a probe is printed."""

    text = "text"
    json = "json"
    markdown = "markdown"


@probe.callback()
def _kinds() -> None:
    """What can be said of models without the log of a run."""


@probe.command(short_help="What happened between two models: both are sampled and compared.")
def models(
    base: Base,
    checkpoint: Checkpoint,
    prompts: Annotated[
        Path,
        typer.Option(
            "--prompts",
            metavar="FILE",
            help="What both are asked. Text, a prompt a line, or JSON with prompt (text or messages), answer and other "
            "columns.",
        ),
    ],
    reward: Reward = None,
    samples: Annotated[int, typer.Option("--samples", min=2, help="Completions a prompt.")] = 16,
    max_new_tokens: MaxNewTokens = 256,
    batch: Annotated[
        int, typer.Option("--batch", min=1, help="Completions that are sampled together; those of one prompt at least.")
    ] = 64,
    seed: Annotated[int, typer.Option("--seed", help="Of the sampling, the same for both.")] = 0,
    temperature: Annotated[float, typer.Option("--temperature", min=0.01, help="Of the sampling, and of KL.")] = 1.0,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="DIR",
            help="Folder for the completions; one that is begun is gone on with. Default: in the working folder "
            "rlmon-probe/CHECKPOINT-CODE, another for other models, prompts or settings.",
        ),
    ] = None,
    form: Annotated[ProbeFormat, typer.Option("--format", help="How to print.")] = ProbeFormat.text,
    page: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Also write the page.")] = None,
    fail_on: Annotated[FailOn, typer.Option(help="From which verdict on the exit code is 1.")] = FailOn.fail,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 3 where the verdict is unsure.")] = False,
) -> None:
    """What happened between two models, where nobody kept a log: both answer the same prompts, and are compared.

    How many formats, templates and openings are left in a prompt, also among right answers; pass@1 and pass@k; entropy,
    KL in both directions, length; what vanished and what took over. Each with an interval over prompts. Needs
    pip install 'rlmon[trl]'. Stopped, it goes on where it was when it is called again.

    \b
    rlmon probe models base out/grpo --prompts held-out.jsonl
    rlmon probe models base out/grpo --prompts held-out.jsonl --reward my_rewards:right --html probe.html

    \b
    Exit codes: 0 nothing at or above --fail-on; 1 something was; 2 usage or unreadable;
    3 unsure: too few prompts to tell; only with --strict.
    """
    import rlmon.probing.page as pages
    import rlmon.probing.telling as telling
    from rlmon.blending.making import open_pair
    from rlmon.lab.prompts import read_prompts
    from rlmon.lab.rewards import reward_function
    from rlmon.probing.probe import probe as probed
    from rlmon.probing.sampling import Setting

    asked = read_prompts(prompts)
    pair = open_pair(base, checkpoint)
    for text in pair.notes:
        note(f"rlmon: {text}")
    setting = Setting(
        samples=samples, max_new_tokens=max_new_tokens, batch=batch, seed=seed, temperature=temperature
    )  # fmt: skip
    # Libraries, and what a reward function prints, greet on stdout; that is where the result goes.
    with contextlib.redirect_stdout(sys.stderr), progress_bar("prompts", of_bytes=False) as progress:
        function = None if reward is None else reward_function(reward)
        found = probed(pair, asked, function, setting, out, tell=lambda text: note(f"rlmon: {text}"), progress=progress)
    if page is not None:
        write(page, pages.html(found))
        note(f"rlmon: the page is {page}.")
    if form is ProbeFormat.text:
        for part in telling.screen(found):
            draw(part)
    else:
        say(telling.as_json(found) if form is ProbeFormat.json else telling.markdown(found), end="")
    raise typer.Exit(exit_code(found.judged.verdict, fail_on, strict))
