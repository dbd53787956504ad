"""Quantizer layers and what belongs to them."""

from .checkpoints import convert_state_dict
from .metrics import perplexity, usage
from .vector import FusedVectorQuantizer, QuantizerOutput

__all__ = ["FusedVectorQuantizer", "QuantizerOutput", "convert_state_dict", "perplexity", "usage"]
