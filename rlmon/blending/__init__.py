"""Weights between a base and a checkpoint of it: base + A (checkpoint - base), for a full model or a LoRA adapter.

Works on safetensors files, with numpy alone: no model is made, no code of a model runs, nothing is unpickled. Only
:mod:`rlmon.blending.curve`, which samples from blends, needs torch and transformers.
"""

from rlmon.blending.making import Blended, blend

__all__ = ["Blended", "blend"]
