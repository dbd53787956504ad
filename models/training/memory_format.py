"""Images and weights with the channels of a position beside each other, as convolutions compute fastest.

No value changes, and no shape: only strides. A quantizer reads such features in place, as the rows that it
searches are contiguous then.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}  # by dimensions; sequences have none


def channels_last(x: Tensor) -> Tensor:
    """``x``, ``[B, C, *S]``, with the strides of ``[B, *S, C]``; sequences ``[B, C, T]`` stay as they are."""
    return x.contiguous(memory_format=_FORMATS.get(x.ndim, torch.contiguous_format))


def weights_channels_last_(model: nn.Module) -> None:
    """Lay out the weights of the model's convolutions in place as :func:`channels_last` does."""
    for parameter in model.parameters():
        parameter.data = channels_last(parameter.data)


def weights_contiguous_(model: nn.Module) -> None:
    """Lay out all weights of the model in place as they are built, and as files hold them."""
    for parameter in model.parameters():
        parameter.data = parameter.data.contiguous()
