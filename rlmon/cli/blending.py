"""``rlmon blend``: weights between a base and a checkpoint of it."""

from __future__ import annotations

import contextlib
import enum
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rlmon.cli.auditing import progress_bar
from rlmon.cli.printing import aligned, note, say
from rlmon.errors import ConfigError

if TYPE_CHECKING:
    from rlmon.blending.curve import Curve


Base = Annotated[Path, typer.Argument(metavar="BASE", help="Folder of the model that training began with.")]
Checkpoint = Annotated[
    Path, typer.Argument(metavar="CHECKPOINT", help="Folder of the trained model, or of a LoRA adapter.")
]
Reward = Annotated[
    str | None,
    typer.Option(
        "--reward",
        metavar="MOD:FN",
        help="TRL reward function that scores the completions, or the name of one in trl.rewards; its module is "
        "imported, which runs its code. Default: the final answer against the column answer.",
    ),
]
MaxNewTokens = Annotated[int, typer.Option("--max-new-tokens", min=1, help="Of a completion.")]


class CurveFormat(str, enum.Enum):
    """How a curve is printed."""

    text = "text"
    json = "json"
    markdown = "markdown"


def blend(
    base: Base,
    checkpoint: Checkpoint,
    alpha: Annotated[
        float | None, typer.Option("--alpha", metavar="A", help="0 is the base, 1 the checkpoint; beyond is allowed.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Folder to write: new, empty, or an earlier blend.")
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            "--prompts",
            metavar="FILE",
            help="Sample from several A and print the curve. Text, a prompt a line, or JSON with prompt (text or "
            "messages), answer and other columns.",
        ),
    ] = None,
    reward: Reward = None,
    alphas: Annotated[
        str, typer.Option("--alphas", metavar="A,...", help="Of the curve; 0 and 1 are always there.")
    ] = "0,.2,.4,.6,.8,1",
    samples: Annotated[int, typer.Option("--samples", min=1, help="Completions a prompt.")] = 8,
    max_new_tokens: MaxNewTokens = 256,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Completions that are sampled together.")] = 64,
    seed: Annotated[int, typer.Option("--seed", help="Of the sampling, the same for every A.")] = 0,
    form: Annotated[CurveFormat, typer.Option("--format", help="How to print the curve.")] = CurveFormat.text,
) -> None:
    """Weights between a base and what RL made of it, base + A (checkpoint - base): a dial between the base's diversity
    and the checkpoint's accuracy, after the fact.

    Reads and writes safetensors, a stretch at a time: less than 100 MB of memory, no GPU, nothing executed. Of a LoRA
    adapter an adapter is written, whose update is A times what it was. With --prompts (needs pip install 'rlmon[trl]')
    the blends are sampled too, and a table says which A keeps what.

    \b
    rlmon blend base out/grpo --alpha .3 --out out/grpo-.3
    rlmon blend base out/grpo --prompts held-out.jsonl --reward my_rewards:right
    """
    if prompts is None and (alpha is None or out is None):
        raise ConfigError(
            "rlmon blend writes a model with --alpha A and --out DIR, or prints a curve with --prompts FILE."
        )
    if (alpha is None) != (out is None):
        raise ConfigError("--alpha and --out go together: --alpha says which blend is written, --out where.")
    if prompts is None and reward is not None:
        raise ConfigError("--reward scores completions of prompts: add --prompts FILE.")
    import rlmon.blending.curve as curve
    import rlmon.blending.making as making
    from rlmon.lab.prompts import read_prompts
    from rlmon.lab.rewards import reward_function

    # What is wrong with the curve is said before a model is written.
    asked = None if prompts is None else read_prompts(prompts)
    points = _numbers(alphas)
    number = None if alpha is None else making.checked(alpha)
    pair = making.open_pair(base, checkpoint)
    with contextlib.redirect_stdout(sys.stderr):
        function = None if reward is None else reward_function(reward)
    with _stopped_in_order():
        if number is not None and out is not None:
            with progress_bar(str(out)) as progress:
                done = making.write(pair, number, out, progress)
            for text in done.notes:
                note(f"rlmon: {text}")
            size = f"{done.tensors} tensors, {done.bytes / 1e6:.1f} MB"
            note(f"rlmon: {done.out} is the {done.kind} at A = {number:g}: {size}, with blend.json.")
        if asked is not None:
            if number is None:
                for text in pair.notes:
                    note(f"rlmon: {text}")
            how: dict[str, Any] = {"max_new_tokens": max_new_tokens, "at_once": batch, "seed": seed, "tell": note}
            # Libraries greet on stdout when they are imported; that is where the result goes.
            with contextlib.redirect_stdout(sys.stderr), progress_bar("prompts", of_bytes=False) as progress:
                how |= {"samples": samples, "progress": progress}
                found = curve.curve(pair, asked, function, alphas=points, **how)
            _print(found, form)


def _numbers(text: str) -> list[float]:
    from rlmon.blending.making import checked

    try:
        return [checked(float(number)) for number in text.split(",")]
    except ValueError:
        raise ConfigError(f"--alphas has to be numbers separated by commas, as in 0,.2,.4,1, got {text!r}.") from None


def _print(found: Curve, form: CurveFormat) -> None:
    import rlmon.blending.telling as telling

    if form is CurveFormat.json:
        say(telling.as_json(found))
        return
    lines = telling.markdown(found) if form is CurveFormat.markdown else aligned(telling.rows(found))
    for line in lines:
        say(line)
    say()
    for line in telling.sentences(found):
        say(line)


@contextlib.contextmanager
def _stopped_in_order() -> Iterator[None]:
    """Who ends the process (a scheduler, ``kill``) leaves nothing half-written behind either."""
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
