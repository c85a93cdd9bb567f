"""The tiny base models that are shipped with the package; ``python -m studies.build_base`` built them."""

from __future__ import annotations

import hashlib
from pathlib import Path

from rlmon.errors import ConfigError

BASES_DIR = Path(__file__).parent / "bases"
BASE_DIR = BASES_DIR / "arithmetic"
"""The base of the demo."""

WEIGHTS = "model.safetensors"


def base_dir(name: str) -> Path:
    """Folder of a shipped base. Raises ``ConfigError`` for an unknown name."""
    names = sorted(folder.name for folder in BASES_DIR.iterdir())
    if name not in names:
        raise ConfigError(f"There is no base {name!r}; the bases are {', '.join(names)}.")
    return BASES_DIR / name


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
