"""Layers saved by release 0.1.0 load into this one and give what they gave then."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from vq_kernels.quantizers import FusedVectorQuantizer

# Per name: settings, state_dict, x, and the quantized, indices and loss that eval gave.
SAVED: dict[str, dict[str, Any]] = torch.load(Path(__file__).parent / "data" / "layer-0.1.0.pt")


@pytest.mark.parametrize("name", SAVED)
def test_a_saved_layer_gives_the_same_outputs(name: str) -> None:
    saved = SAVED[name]
    layer = FusedVectorQuantizer(**saved["settings"]).eval()
    layer.load_state_dict(saved["state_dict"])
    assert list(layer.state_dict()) == list(saved["state_dict"])
    out = layer(saved["x"])
    assert torch.equal(out.indices, saved["indices"])
    torch.testing.assert_close(out.quantized, saved["quantized"], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(out.loss, saved["loss"], rtol=1e-6, atol=0)
