"""Autoregressive priors over code maps: PixelCNN, PixelSNAIL and a Transformer, with one interface."""

from models.priors.base import AutoregressivePrior
from models.priors.pixelcnn import PixelCNN
from models.priors.pixelsnail import PixelSNAIL
from models.priors.transformer import TransformerPrior

__all__ = ["AutoregressivePrior", "PixelCNN", "PixelSNAIL", "TransformerPrior"]
