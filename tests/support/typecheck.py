"""The checker behind ``--jaxtyping-packages``: beartype, with an int accepted where a float is annotated (PEP 484)."""

from __future__ import annotations

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
