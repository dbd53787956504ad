"""A decoder-only Transformer over the raster order of a code map (Vaswani et al., 2017; pre-norm)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers.dropout import Dropout
from models.pretrained import constructor_arguments
from models.priors.attention import KeyValueCache, attend, token_map, token_rows, upsample_to
from models.priors.base import AutoregressivePrior, Decoder, check_dropout
from vq_kernels.checks import check_integer


class Block(nn.Module):
    """x + Attention(LayerNorm(x)), then x + MLP(LayerNorm(x)), on ``[B, N, width]``."""

    def __init__(self, width: int, heads: int, dropout: float, causal: bool) -> None:
        super().__init__()
        self.heads = heads
        self.causal = causal
        self.attention_norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, 4 * width)
        self.contract = nn.Linear(4 * width, width)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.query_key_value(self.attention_norm(x)).chunk(3, dim=-1)
        dropout = self.dropout.probability if self.training else 0.0
        attended = attend(query, key, value, heads=self.heads, causal=self.causal, dropout=dropout)
        x = x + self.dropout(self.project(attended))
        return x + self.dropout(self.contract(F.gelu(self.expand(self.mlp_norm(x)))))

    def step(self, x: Tensor, cache: KeyValueCache) -> Tensor:
        """The same for the one next position, ``[B, width]``, without dropout.

        On the CPU a step of a narrow network is mostly the calls themselves: functions, no modules.
        """
        rows = _linear(self.query_key_value, _norm(self.attention_norm, x))
        query, key, value = rows.view(len(x), 3, self.heads, 1, x.shape[1] // self.heads).unbind(1)
        attended = F.scaled_dot_product_attention(query, *cache.append(key, value))
        x = x + _linear(self.project, attended.view(x.shape))
        return x + _linear(self.contract, F.gelu(_linear(self.expand, _norm(self.mlp_norm, x))))


def _linear(layer: nn.Linear, x: Tensor) -> Tensor:
    return F.linear(x, layer.weight, layer.bias)


def _norm(layer: nn.LayerNorm, x: Tensor) -> Tensor:
    return F.layer_norm(x, layer.normalized_shape, layer.weight, layer.bias, layer.eps)


class TransformerPrior(AutoregressivePrior):
    """Transformer prior for code maps with one, two or three axes.

    Step t reads the code before it (at the start: the start token of the class), the learnt position of the
    code to predict, and, with an upper level, what two-way attention over the whole upper map says about the
    cell above that position. A position is the sum of one learnt vector for each axis, so maps smaller than
    ``shape`` work with the same weights.

    Args:
        codebook_size: K, codes are in [0, K).
        width: of the residual stream; the hidden layer of an MLP is 4 times that.
        shape: the largest map, ``(L,)``, ``(H, W)`` or ``(T, H, W)``; it fixes the number of axes.
        layers, heads, dropout: of the decoder; ``heads`` divides ``width``. In training ``dropout`` zeroes
            features, and leaves positions out of a head's attention.
        num_classes: one start token for each class; None for no labels.
        upper_codebook_size: codes of the level above; None for no upper level.
        null_label: one label more, which says nothing of the class.
        upper_layers: Transformer blocks over the upper map.

    The output layer starts at zero, so an untrained prior is the uniform distribution.
    """

    def __init__(
        self,
        codebook_size: int,
        width: int = 512,
        *,
        shape: Sequence[int],
        layers: int = 8,
        heads: int = 8,
        dropout: float = 0.1,
        num_classes: int | None = None,
        upper_codebook_size: int | None = None,
        null_label: bool = False,
        upper_layers: int = 2,
    ) -> None:
        arguments = constructor_arguments(locals())
        super().__init__(codebook_size, num_classes, upper_codebook_size, null_label)
        check_integer(1, width=width, layers=layers, heads=heads, upper_layers=upper_layers)
        check_dropout(dropout)
        if width % heads:
            raise ValueError(f"heads is {heads}; accepted: a divisor of width = {width}")
        if not 1 <= len(shape) <= 3:
            raise ValueError(f"shape is {tuple(shape)}; accepted: the 1 to 3 sizes of the largest map")
        for axis, size in enumerate(shape):
            check_integer(1, **{f"shape[{axis}]": size})
        self.config = arguments
        self.shape = tuple(shape)
        self.map_axes = (len(shape),)

        self.code = nn.Embedding(codebook_size, width)
        self.start = nn.Embedding(self.num_labels or 1, width)
        self.positions = nn.ParameterList(nn.Parameter(torch.empty(size, width)) for size in shape)
        self.blocks = nn.ModuleList(Block(width, heads, dropout, causal=True) for _ in range(layers))
        if upper_codebook_size is not None:
            self.upper_code = nn.Embedding(upper_codebook_size, width)
            self.upper_blocks = nn.ModuleList(
                Block(width, heads, dropout, causal=False) for _ in range(upper_layers)
            )
            self.upper_norm = nn.LayerNorm(width)
            self.upper_out = nn.Linear(width, width)
        self.dropout = Dropout(dropout)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, codebook_size)
        self._initialise(layers, upper_layers)

    def _initialise(self, layers: int, upper_layers: int) -> None:
        """Variance 1 for embeddings, 1 / fan-in for matrices, and less the more residual branches there are.

        The standard deviation of 0.02 that GPT-2 uses is right at its width of 768; at the narrow widths of
        priors it learns in about twice as many steps.
        """
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                branches = 2 * (upper_layers if name.startswith("upper") else layers)
                on_residual = name.endswith(("project", "contract"))
                variance = 1 / (module.in_features * (branches if on_residual else 1))
                nn.init.normal_(module.weight, std=math.sqrt(variance))
                nn.init.zeros_(module.bias)
        for position in self.positions:
            nn.init.normal_(position)
        nn.init.zeros_(self.head.weight)

    def _logits(self, codes: Tensor, labels: Tensor | None, upper: Tensor | None) -> Tensor:
        context = self._context(tuple(codes.shape), upper)  # [B or 1, N, width]
        before = torch.cat(
            [self._start_token(len(codes), labels), self.code(codes.flatten(1)[:, :-1])], dim=1
        )
        x = self.dropout(before + context)
        for block in self.blocks:
            x = block(x)
        return token_map(self.head(self.norm(x)), codes.shape[1:])

    def _decoder(self, shape: tuple[int, ...], labels: Tensor | None, upper: Tensor | None) -> Decoder:
        context = self._context(shape, upper)
        start = self._start_token(shape[0], labels)[:, 0]
        steps = iter(context.unbind(1))
        layers = [(cast(Block, block).step, KeyValueCache(context.shape[1])) for block in self.blocks]

        def next_logits(previous: Tensor | None) -> Tensor:
            before = start if previous is None else F.embedding(previous, self.code.weight)
            x = before + next(steps)  # [B, width]
            for step, cache in layers:
                x = step(x, cache)
            return _linear(self.head, _norm(self.norm, x))

        return next_logits

    def _start_token(self, batch: int, labels: Tensor | None) -> Tensor:
        if labels is None:
            labels = torch.zeros(batch, dtype=torch.int64, device=self.device)
        token: Tensor = self.start(labels[:, None])  # [B, 1, width]
        return token

    def _context(self, shape: tuple[int, ...], upper: Tensor | None) -> Tensor:
        """What step t knows besides codes: its position, the upper level there. ``[B or 1, N, width]``."""
        sizes = shape[1:]
        if any(size > largest for size, largest in zip(sizes, self.shape, strict=True)):
            raise ValueError(
                f"the shape of the map is {sizes}; accepted: up to {self.shape}, that of the prior"
            )
        axes = [position[:size] for position, size in zip(self.positions, sizes, strict=True)]
        context = _grid_sum(axes)  # [1, width, *S]
        if upper is not None:
            # An upper cell stands at the mean of the positions that it covers.
            coarse = [_cell_means(axis, cells) for axis, cells in zip(axes, upper.shape[1:], strict=True)]
            x = self.upper_code(upper.flatten(1)) + token_rows(_grid_sum(coarse))
            for block in self.upper_blocks:
                x = block(x)
            x = token_map(self.upper_out(self.upper_norm(x)), upper.shape[1:])
            context = context + upsample_to(x, sizes)
        return token_rows(context)


def _cell_means(axis: Tensor, cells: int) -> Tensor:
    """Means of ``[S, width]`` over the positions that each of ``cells`` cells covers: ``[cells, width]``.

    What ``adaptive_avg_pool1d`` gives, whose backward pass is not deterministic on a GPU.
    """
    positions = torch.arange(len(axis), device=axis.device)
    edges = torch.arange(cells + 1, device=axis.device)[:, None] * len(axis)
    covered = (positions >= edges[:-1] // cells) & (positions * cells < edges[1:])
    return (covered / covered.sum(1, keepdim=True)).to(axis.dtype) @ axis


def _grid_sum(axes: list[Tensor]) -> Tensor:
    """Sum of one vector for each axis, ``[S_i, width]`` each, at every cell: ``[1, width, *S]``."""
    total = torch.zeros((), device=axes[0].device, dtype=axes[0].dtype)
    for index, axis in enumerate(axes):
        shape = [1] * len(axes)
        shape[index] = len(axis)
        total = total + axis.T.reshape(1, axis.shape[1], *shape)
    return total
