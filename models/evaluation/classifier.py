"""A small convolutional classifier, trained in a minute: the judge of classes, and of real against drawn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.autoencoders.blocks import CONV
from models.data import to_float
from models.data.augment import NOISE, AugmentSettings, augment
from models.progress import progress_bar

PASSES = 30
AUGMENTATION = AugmentSettings(zoom=0.15, shift=0.08)


class ConvClassifier(nn.Module):
    """Four blocks of convolution, group norm and GELU, of which the first three to four halve the size.

    Floats ``[B, C, *S]`` with one to three sizes in S to logits ``[B, classes]``. A side of fewer than two
    pixels is not halved further.
    """

    def __init__(self, channels: int, classes: int, size: tuple[int, ...], width: int = 32) -> None:
        super().__init__()
        convolution, side = CONV[len(size)], min(size)
        layers: list[nn.Module] = []
        before = channels
        for block in range(4):
            stride = 2 if side >= 4 else 1
            after = width * min(4, 2**block)
            layers += [convolution(before, after, 3, stride, 1), nn.GroupNorm(8, after), nn.GELU()]
            before, side = after, -(-side // stride)
        self.features = nn.Sequential(*layers)
        self.head = nn.Sequential(nn.Dropout(0.3), nn.Linear(before, classes))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(x).flatten(2).mean(2))
        return logits


@dataclass(frozen=True)
class Examples:
    """Images to learn from or to judge: ``batch(rows)`` gives levels ``[B, C, *S]``; labels ``[N]`` int64."""

    batch: Callable[[Tensor], Tensor]
    labels: Tensor


def train_classifier(
    examples: Examples,
    classes: int,
    *,
    steps: int = 1500,
    batch_size: int = 64,
    lr: float = 2e-3,
    seed: int = 0,
    device: str = "cpu",
    progress: bool = False,
) -> ConvClassifier:
    """A classifier of ``examples`` in eval mode; equal seeds give equal ones on one processor.

    steps: at most; of few images fewer, in which each is seen ``PASSES`` times. Images of two axes are
    enlarged and shifted at random; AdamW with a cosine schedule. torch's generator is afterwards as it was.
    """
    batch_size = min(batch_size, len(examples.labels))
    steps = min(steps, -(-PASSES * len(examples.labels) // batch_size))
    first = examples.batch(torch.tensor([0]))
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        model = ConvClassifier(first.shape[1], classes, tuple(first.shape[2:])).to(device).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        rows = torch.empty(0, dtype=torch.int64)
        with progress_bar(steps, "classifier", "step", enabled=progress) as bar:
            for _ in range(steps):
                if len(rows) < batch_size:  # the next epoch
                    rows = torch.cat([rows, torch.randperm(len(examples.labels))])
                chosen, rows = rows[:batch_size], rows[batch_size:]
                x = to_float(examples.batch(chosen).to(device))
                if x.ndim == 4:
                    x = augment(x, torch.rand(len(x), NOISE, device=device), AUGMENTATION)
                loss = F.cross_entropy(model(x), examples.labels[chosen].to(device))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                bar.update(1)
    return model.eval()


@torch.no_grad()
def class_probabilities(model: ConvClassifier, images: Tensor, batch_size: int = 256) -> Tensor:
    """Of levels ``[N, C, *S]``, of images uint8: float32 ``[N, classes]`` on the CPU."""
    device = next(model.parameters()).device
    parts = [model(to_float(some.to(device))).float().softmax(1).cpu() for some in images.split(batch_size)]
    return torch.cat(parts)
