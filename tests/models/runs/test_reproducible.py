"""Equal seeds give equal runs on a GPU too: training asks for no operation without a deterministic kernel."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from models import PixelCNN, PixelSNAIL, TransformerPrior
from models.data import ImageData, load_data, to_float
from models.losses import log_softmax_at
from models.priors.transformer import _cell_means
from models.runs.build import build_model
from models.runs.config import TrainConfig
from models.runs.reproducible import deterministic_algorithms

# The operators behind the list of torch.use_deterministic_algorithms of what raises on a CUDA tensor.
RAISING = (
    *("avg_pool3d_backward", "_adaptive_avg_pool2d_backward", "_adaptive_avg_pool3d_backward"),
    *("adaptive_max_pool2d_backward", "fractional_max_pool2d_backward", "fractional_max_pool3d_backward"),
    *("max_unpool2d", "max_unpool3d", "upsample_linear1d_backward", "upsample_bilinear2d_backward"),
    *("upsample_bicubic2d_backward", "upsample_trilinear3d_backward", "reflection_pad1d_backward"),
    *("reflection_pad2d_backward", "reflection_pad3d_backward", "nll_loss2d_forward", "nll_loss2d_backward"),
    *("_ctc_loss_backward", "put_", "histc", "median", "grid_sampler_2d_backward"),
    *("grid_sampler_3d_backward", "scatter_reduce"),
)


class Recorder(TorchDispatchMode):
    """Notes every operator that torch would refuse."""

    def __init__(self) -> None:
        super().__init__()
        self.refused: set[str] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        floating = name == "cumsum" and args[0].dtype.is_floating_point
        if name in RAISING or floating or (name == "bincount" and len(args) > 1):
            self.refused.add(name)
        return function(*args, **(kwargs or {}))


def refused_in_training(model: nn.Module, *inputs: Any) -> set[str]:
    optimizer = torch.optim.Adam(model.parameters())
    with Recorder() as recorder:
        for _ in range(2):
            output = model.train()(*inputs)
            loss = -output.mean() if isinstance(output, torch.Tensor) else output.loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return recorder.refused


@pytest.fixture(scope="module")
def data() -> ImageData:
    return load_data(TrainConfig(data="digits", limit=150))


@pytest.mark.parametrize("likelihood", ["mse", "gaussian", "logistic", "categorical"])
@pytest.mark.parametrize(
    "settings",
    [
        {"model": "vae"},
        {"model": "vqvae", "downscale": 2},
        {"model": "vqvae", "downscale": 4, "codebook": "gradient"},
        {"model": "vqvae2", "downscales": (2, 2)},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
def test_autoencoders(settings: dict[str, Any], likelihood: str, data: ImageData) -> None:
    small = {"hidden": 8, "embedding_dim": 4, "codebook_size": 16, "channels_vae": (4, 4, 4, 4)}
    revival = {"kmeans_init": True, "dead_code_threshold": 1.0}
    model = build_model(TrainConfig(likelihood=likelihood, **small, **revival, **settings), data)
    assert refused_in_training(model, to_float(data.train.batch(range(20)))) == set()


@pytest.mark.parametrize("kind", ["transformer", "pixelcnn", "pixelsnail"])
def test_priors(kind: str) -> None:
    conditions = {"num_classes": 3, "upper_codebook_size": 9}
    priors: dict[str, nn.Module] = {
        "transformer": TransformerPrior(7, 8, shape=(6, 5), layers=1, heads=2, **conditions),
        "pixelcnn": PixelCNN(7, channels=4, layers=2, kernel_size=3, dropout=0.1, **conditions),
        "pixelsnail": PixelSNAIL(7, channels=4, kernel_size=3, blocks=1, heads=2, **conditions),
    }
    codes, labels = torch.randint(7, (2, 6, 5)), torch.randint(3, (2,))
    for upper in ((3, 5), (2, 2)):
        assert refused_in_training(priors[kind], codes, labels, torch.randint(9, (2, *upper))) == set()


def test_what_torch_refuses_is_noticed() -> None:
    class Pooled(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            pooled = F.adaptive_avg_pool1d(super().forward(x), 2)
            return -F.cross_entropy(pooled, torch.zeros(3, 2, dtype=torch.int64)) + pooled.cumsum(0).sum()

    refused = refused_in_training(Pooled(5, 7), torch.randn(3, 4, 5))
    assert refused == {
        *("_adaptive_avg_pool2d_backward", "nll_loss2d_forward", "nll_loss2d_backward", "cumsum"),
    }


@pytest.mark.parametrize(("size", "cells"), [(6, 3), (5, 2), (5, 5), (3, 7), (1, 1)])
def test_cell_means_are_adaptive_pooling(size: int, cells: int) -> None:
    axis = torch.randn(size, 4)
    torch.testing.assert_close(_cell_means(axis, cells), F.adaptive_avg_pool1d(axis.T, cells).T)


def test_log_softmax_at_is_cross_entropy_of_maps() -> None:
    logits, classes = torch.randn(2, 5, 3, 4), torch.randint(5, (2, 3, 4))
    want = -F.cross_entropy(logits, classes, reduction="none")
    torch.testing.assert_close(log_softmax_at(logits, classes), want)


def test_flags_are_as_before_afterwards() -> None:
    before = torch.utils.deterministic.fill_uninitialized_memory
    with deterministic_algorithms(False):
        assert not torch.are_deterministic_algorithms_enabled()

    def fail() -> None:
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.is_deterministic_algorithms_warn_only_enabled()
        assert not torch.utils.deterministic.fill_uninitialized_memory
        raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"), deterministic_algorithms(True):
        fail()
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.utils.deterministic.fill_uninitialized_memory == before
