"""Quantizer layers and what belongs to them; the names of ``__all__`` are ``vq_kernels``' too."""

from .base import Quantizer, QuantizerOutput
from .checkpoints import convert_state_dict
from .codebook_state import set_process_group
from .metrics import perplexity as perplexity
from .metrics import usage as usage
from .vector import FusedVectorQuantizer

__all__ = ["FusedVectorQuantizer", "Quantizer", "QuantizerOutput", "convert_state_dict", "set_process_group"]
