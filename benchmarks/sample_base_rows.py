"""Samples the demo's tiny base model and stores what the detectors would see of every completion.

``benchmarks/data/base_rows.npz`` was made with the defaults: 512 training prompts (shuffled with seed 0), 32
completions each at temperature 1 with at most 24 new tokens, torch seed 0, one thread. It holds no text.

    python benchmarks/sample_base_rows.py --out benchmarks/data/base_rows.npz
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import numpy as np

MAX_NEW_TOKENS = 24
OPENERS = 4
BREAKS = (".", "!", "?", "\n", ":", ";")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--prompts", type=int, default=512)
    parser.add_argument("--completions", type=int, default=32)
    args = parser.parse_args()

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import rlmon.lab
    from rlmon.lab.task import is_correct, split_questions
    from rlmon.metrics.formats import ModeSet, final_answer, mask_template, opening_tokens

    torch.set_num_threads(1)
    torch.manual_seed(0)
    path = Path(rlmon.lab.__file__).parent / "bases" / "arithmetic"
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(path).float().eval()
    questions = split_questions()[0]
    random.Random(0).shuffle(questions)
    questions = questions[: args.prompts]
    modes = ModeSet.build(None)
    rows: dict[str, list[object]] = {
        name: []
        for name in ("mode", "template", "answer", "opening", "tokens", "entropy_mean_nats", "correct", "openers")
    }
    decoded = [tokenizer.decode([i]) for i in range(len(tokenizer))]
    is_break = [any(mark in text for mark in BREAKS) for text in decoded]
    for question in questions:
        inputs = tokenizer([question.prompt] * args.completions, return_tensors="pt")
        with torch.no_grad():
            output_BS = model.generate(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                max_new_tokens=MAX_NEW_TOKENS,
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                pad_token_id=tokenizer.pad_token_id,
                eos_token_id=tokenizer.eos_token_id,
            )
            prompt_tokens = inputs["input_ids"].shape[1]
            logp_BTV = model(output_BS).logits[:, prompt_tokens - 1 : -1].log_softmax(-1)
        entropy_BT = -(logp_BTV.exp() * logp_BTV).sum(-1)
        for ids, entropy_T in zip(output_BS[:, prompt_tokens:].tolist(), entropy_BT, strict=True):
            own = ids.index(tokenizer.eos_token_id) + 1 if tokenizer.eos_token_id in ids else len(ids)
            text = tokenizer.decode(ids[:own], skip_special_tokens=True)
            starts = [0] + [i + 1 for i in range(own) if is_break[ids[i]]]
            openers = [hash(tuple(ids[i : i + 2])) % 4096 for i in starts if i + 1 < own][:OPENERS]
            rows["mode"].append(modes.parse(text))
            rows["template"].append(mask_template(text))
            rows["answer"].append(final_answer(text))
            rows["opening"].append(" ".join(opening_tokens(text)))
            rows["tokens"].append(own)
            rows["entropy_mean_nats"].append(float(entropy_T[:own].mean()))
            rows["correct"].append(is_correct(text, question.answer))
            rows["openers"].append(openers + [-1] * (OPENERS - len(openers)))
    shape = (len(questions), args.completions)
    arrays = {}
    for name in ("mode", "template", "answer", "opening"):
        numbers = {value: i for i, value in enumerate(sorted({str(v) for v in rows[name]}))}
        arrays[name] = np.array([numbers[str(v)] for v in rows[name]], dtype=np.uint16).reshape(shape)
        if name == "mode":
            arrays["mode_names"] = np.array(list(numbers))
    arrays["tokens"] = np.array(rows["tokens"], dtype=np.uint8).reshape(shape)
    arrays["entropy_mean_nats"] = np.array(rows["entropy_mean_nats"], dtype=np.float16).reshape(shape)
    arrays["correct"] = np.array(rows["correct"], dtype=np.bool_).reshape(shape)
    arrays["openers"] = np.array(rows["openers"], dtype=np.int16).reshape(*shape, OPENERS)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(args.out, **arrays)
    for name, array in arrays.items():
        print(f"{name}: {array.shape} {array.dtype} {len(np.unique(array))} values")


if __name__ == "__main__":
    main()
