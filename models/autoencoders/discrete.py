"""What the autoencoders with codes share: what codes are, what they cost, and what they stand for."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from models.autoencoders.base import Autoencoder, AutoencoderOutput
from models.losses import at_least_float32, mean_or_zero

if TYPE_CHECKING:
    from vq_kernels.quantizers import Quantizer


class QuantizedLevel(NamedTuple):
    """What one level of a hierarchy did with its input; a position has Q codes."""

    z: Tensor  # [B, D, *S_level], what was quantized
    quantized: Tensor  # [B, D, *S_level]
    codes: Tensor  # [B, *S_level] int64, and a last axis [Q] where Q is above 1
    loss: Tensor  # []


class DiscreteAutoencoder(Autoencoder):
    """An autoencoder with code maps: one a level, ordered from the top (coarsest) to the bottom.

    A subclass says how it quantizes and decodes; what codes are and what they cost is written here. A level's
    codes are ``[B, *S_level]`` int64 where a position has one code (Q = 1), else ``[B, *S_level, Q]``.

    For example, with two levels of downscale 8 and 4 and one codebook of 512 codes each, images
    ``[8, 3, 256, 256]`` have the codes ``[8, 32, 32]`` and ``[8, 64, 64]``, and ``codebook_sizes`` is
    ``((512,), (512,))``.
    """

    # In training, share of the images for which the decoder sees zeros in place of each level's map, top
    # first; empty for none. A lower level that can carry the whole image otherwise leaves the upper ones
    # empty.
    level_dropout: tuple[float, ...] = ()
    level_downscales: tuple[int, ...]  # size of the data over that of each level's code map, top first

    @property
    @abstractmethod
    def level_quantizers(self) -> tuple[Quantizer, ...]: ...

    @abstractmethod
    def _quantize(self, x: Tensor, freeze: bool | None = None) -> list[QuantizedLevel]:
        """Every level of checked images, top first; ``freeze`` is the quantizers' ``freeze_codebook``."""

    @abstractmethod
    def _decode(self, quantized: Sequence[Tensor]) -> Tensor:
        """Parameters of p(x | codes), or features for ``pixels``, from all levels' maps, top first."""

    @property
    def codebook_sizes(self) -> tuple[tuple[int, ...], ...]:
        """For each level, top first, the number of values of each of its Q codes."""
        return tuple(quantizer.codebook_sizes for quantizer in self.level_quantizers)

    @property
    def total_downscale(self) -> int:
        """What must divide the size of the data."""
        return self.level_downscales[0]

    def forward(self, x: Tensor) -> AutoencoderOutput:
        """Reconstruction, loss and codes of images ``[B, C, *S]``.

        x: floats in -0.5..0.5, S divisible by all downscales together; TypeError or ValueError otherwise. The
        loss of an empty batch is 0.
        """
        self._check_images(x)
        levels = self._quantize(x)
        kept = self._drop_levels([level.quantized for level in levels])
        parameters = self._likelihood_parameters(self._decode(kept), x)
        reconstruction_loss = self.likelihood.loss(parameters, x)
        errors = [_squared_distance(level.z.detach(), level.quantized.detach()) for level in levels]
        terms = {"reconstruction": reconstruction_loss.detach(), "commitment": torch.stack(errors).sum()}
        loss = reconstruction_loss + torch.stack([level.loss for level in levels]).sum()
        codes = tuple(level.codes for level in levels)
        return AutoencoderOutput(self.likelihood.mean(parameters), loss, terms, codes)

    def encode(self, x: Tensor) -> tuple[Tensor, ...]:
        """The codes of ``x`` at every level, top first. Nothing is learnt, not in train mode either."""
        self._check_images(x)
        return tuple(level.codes for level in self._quantize(x, freeze=True))

    def look_up(self, codes: Sequence[Tensor]) -> list[Tensor]:
        """The quantized maps ``[B, D, *S_level]`` that ``codes``, of all levels, top first, stand for."""
        self._check_codes(codes)
        return [
            quantizer.get_output_from_indices(
                quantizer.unflatten_indices(level.unsqueeze(-1) if len(sizes) == 1 else level)
            )
            for quantizer, sizes, level in zip(self.level_quantizers, self.codebook_sizes, codes, strict=True)
        ]

    def decode_codes(self, codes: Sequence[Tensor]) -> Tensor:
        """The mean image ``[B, C, *S]`` of the code maps of all levels, top first.

        An autoregressive decoder gives each pixel's mean given those that it has given before.
        """
        return self._mean_image(self._decode(self.look_up(codes)))

    def reconstruct(self, x: Tensor) -> Tensor:
        """The mean image of the codes of ``x``: x's shape."""
        return self.decode_codes(self.encode(x))

    def likely_reconstruction(self, x: Tensor) -> Tensor:
        if self.pixels is None:
            return self.reconstruct(x)
        decoded = self._decode(self.look_up(self.encode(x)))
        return self.likelihood.mean(self._likelihood_parameters(decoded, x))

    def decoder_log_prob(self, x: Tensor, codes: Sequence[Tensor]) -> Tensor:
        """log p(x | codes) of every element in nats: x's shape."""
        self._check_images(x)
        decoded = self._decode(self.look_up(codes))
        if len(x) != len(decoded) or x.shape[2:] != decoded.shape[2:]:
            raise ValueError(
                f"codes is of {len(decoded)} images of size {tuple(decoded.shape[2:])}; accepted: the "
                f"codes of x, which holds {len(x)} of size {tuple(x.shape[2:])}"
            )
        return self.likelihood.log_prob(self._likelihood_parameters(decoded, x), x)

    def log_prob_of_maps(self, x: Tensor, codes: Sequence[Tensor]) -> Tensor:
        """log p(x | codes) in nats of every image ``[B, C, *S]`` under each of M code maps: ``[B, M]``.

        codes: ``[M, *S_level]`` of every level, top first. Each map is decoded once.
        """
        self._check_images(x)
        decoded = self._decode(self.look_up(codes))  # [M, ..., *S]
        rows = []
        for image in x.split(1):
            repeated = image.expand(len(decoded), *image.shape[1:])
            parameters = self._likelihood_parameters(decoded, repeated)
            rows.append(self.likelihood.log_prob(parameters, repeated))
        return torch.stack([row.flatten(1).sum(1) for row in rows])

    def nats(self, x: Tensor, output: AutoencoderOutput) -> dict[str, Tensor]:
        """``decoder``, -log p(x | codes), and ``codes_uniform``, -log p(codes) of equally likely codes."""
        nats_of_codes = 0.0
        for sizes, level in zip(self.codebook_sizes, output.codes, strict=True):
            positions = level[0].numel() // len(sizes)
            nats_of_codes += positions * sum(math.log(size) for size in sizes)
        return {
            "decoder": -self.decoder_log_prob(x, output.codes).flatten(1).sum(1),
            "codes_uniform": torch.full((len(x),), nats_of_codes),
        }

    def code_shapes(self, spatial: Sequence[int]) -> tuple[tuple[int, ...], ...]:
        """The shape of each level's codes of one image, top first, for data of size ``spatial``.

        ValueError unless ``spatial`` are as many sizes as the data has and all downscales together divide
        them.
        """
        if len(spatial) != self.ndim or any(size < 1 or size % self.total_downscale for size in spatial):
            raise ValueError(
                f"spatial is {tuple(spatial)}; accepted: {self.ndim} sizes that the model's downscale of "
                f"{self.total_downscale} divides"
            )
        return tuple(
            tuple(size // downscale for size in spatial) + ((len(sizes),) if len(sizes) > 1 else ())
            for downscale, sizes in zip(self.level_downscales, self.codebook_sizes, strict=True)
        )

    def accepted_size(self, size: Sequence[int]) -> str | None:
        if all(side % self.total_downscale == 0 for side in size):
            return None
        each = " in height and width" if len(size) == 2 else " along every axis" if len(size) > 2 else ""
        return f"a multiple of {self.total_downscale}{each}"

    def _drop_levels(self, quantized: list[Tensor]) -> list[Tensor]:
        """The maps with zeros where ``level_dropout`` says so; an image keeps one level at least."""
        if not (self.training and any(self.level_dropout)):
            return quantized
        like = quantized[0]
        shares = torch.tensor(self.level_dropout, device=like.device)
        is_kept = torch.rand(len(like), len(shares), device=like.device) >= shares  # [B, levels]
        is_kept |= ~is_kept.any(dim=1, keepdim=True)
        return [
            level * is_kept[:, number].view(-1, *[1] * (level.ndim - 1)).to(level.dtype)
            for number, level in enumerate(quantized)
        ]

    def _quantize_level(self, quantizer: Quantizer, z: Tensor, freeze: bool | None) -> QuantizedLevel:
        quantized, indices, loss = quantizer(z, freeze_codebook=freeze)
        codes = quantizer.flatten_indices(indices)  # [B, *S_level, Q]
        return QuantizedLevel(z, quantized, codes.squeeze(-1) if codes.shape[-1] == 1 else codes, loss)

    def _check_images(self, x: Tensor) -> None:
        if x.ndim != self.ndim + 2 or x.shape[1] != self.in_channels:
            raise ValueError(
                f"x is of shape {tuple(x.shape)}; accepted: [B, {self.in_channels}, *S] with {self.ndim} "
                f"sizes in S"
            )
        if any(size % self.total_downscale for size in x.shape[2:]):
            raise ValueError(
                f"x is of spatial size {tuple(x.shape[2:])}; accepted: sizes that the model's downscale of "
                f"{self.total_downscale} divides"
            )
        self._check_dtype(x)

    def _check_codes(self, codes: Sequence[Tensor]) -> None:
        """ValueError unless ``codes`` is one map a level, top first, whose sizes belong together."""
        if len(codes) != len(self.level_downscales):
            raise ValueError(
                f"codes is of {len(codes)} levels; accepted: {len(self.level_downscales)}, top first"
            )
        batch, *top = tuple(codes[0].shape[: self.ndim + 1])
        image = [size * self.total_downscale for size in top]
        shapes = [tuple(level.shape) for level in codes]
        if len(top) != self.ndim or shapes != [(batch, *shape) for shape in self.code_shapes(image)]:
            ratios = [f"1/{downscale}" for downscale in self.level_downscales]
            raise ValueError(
                f"codes is of the shapes {shapes}; accepted: equal batches of maps, top first, with "
                f"{self.ndim} sizes that are {', '.join(ratios)} of the image's"
            )


def _squared_distance(z: Tensor, quantized: Tensor) -> Tensor:
    """The mean over all elements, ``[]``, in float32 where they have 16 bits."""
    return mean_or_zero((at_least_float32(z) - at_least_float32(quantized)).square())


def require_codes(model: Autoencoder) -> DiscreteAutoencoder:
    """``model`` itself; ValueError for one without codes."""
    if not isinstance(model, DiscreteAutoencoder):
        raise ValueError(
            f"model is a {type(model).__name__}, which has no codes; accepted: a VQVAE or a VQVAE2"
        )
    return model
