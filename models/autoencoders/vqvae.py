"""VQ-VAE (van den Oord et al. 2017, arXiv:1711.00937)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from models.autoencoders.base import AutoencoderOutput
from models.autoencoders.blocks import CONV, Decoder, Encoder, check_convolutions, check_input
from models.autoencoders.likelihoods import make_likelihood, mean_or_zero
from models.checks import check_at_least, check_divides, check_dtype, check_same_images, check_weight
from models.pretrained import Pretrained, constructor_arguments
from vq_kernels.quantizers import FusedVectorQuantizer


class VQVAE(Pretrained):
    """Encoder, one codebook, decoder; minimises (equation 3 of the paper)

        -log p(x | q) + alpha |sg[z] - q|^2 + beta |z - sg[q]|^2,      q = nearest code to z = encoder(x)

    Each term is a mean over elements. With ``codebook="ema"`` moving averages move the codes instead of
    the alpha term (appendix A.1); with ``codebook="gradient"`` the alpha term does.

    Shapes, for the defaults and 32 x 32 images: x ``[B, 3, 32, 32]``, z ``[B, 64, 8, 8]``, codes
    ``[B, 8, 8]``. ``ndim`` 1 or 3 takes ``[B, C, T]`` or ``[B, C, T, H, W]``.

    Args:
        in_channels: channels of the data.
        hidden, residual_layers, residual_hidden: width of the convolutions, number and width of the
            residual blocks on either side.
        embedding_dim, codebook_size: D and K.
        downscale: 2, 4, 8, ...: data size over code map size, for each dimension.
        alpha, beta: weights of codebook loss and commitment loss.
        decay, eps: of the moving averages.
        kmeans_init: start from k-means of the first batch. dead_code_threshold: codes whose averaged
            count falls below it restart at random vectors of the batch.
        manual_ema_update: the averages move when :func:`update_ema` is called, not in forward; for
            gradients accumulated over several batches.
        likelihood, variance: see :mod:`models.autoencoders.likelihoods`.
        relu_skip: for converted checkpoints, see :class:`models.autoencoders.blocks.ResidualBlock`.
    """

    def __init__(
        self,
        in_channels: int = 3,
        *,
        hidden: int = 128,
        residual_layers: int = 2,
        residual_hidden: int = 32,
        embedding_dim: int = 64,
        codebook_size: int = 512,
        downscale: int = 4,
        ndim: int = 2,
        codebook: str = "ema",
        alpha: float = 1.0,
        beta: float = 0.25,
        decay: float = 0.99,
        eps: float = 1e-5,
        kmeans_init: bool = False,
        dead_code_threshold: float = 0.0,
        manual_ema_update: bool = False,
        likelihood: str = "mse",
        variance: float = 1.0,
        relu_skip: bool = False,
    ) -> None:
        config = constructor_arguments(locals())
        super().__init__()
        self.config = config
        check_convolutions(
            in_channels=in_channels,
            hidden=hidden,
            residual_layers=residual_layers,
            residual_hidden=residual_hidden,
            ndim=ndim,
        )
        self.in_channels, self.ndim = in_channels, ndim
        self.downscale, self.codebook_size = downscale, codebook_size
        self.total_downscale = downscale
        self.likelihood = make_likelihood(likelihood, in_channels, variance)
        self.encoder = Encoder(
            in_channels, hidden, residual_layers, residual_hidden, downscale, ndim, relu_skip
        )
        self.to_embedding = CONV[ndim](hidden, embedding_dim, 1)
        self.quantizer = make_quantizer(
            embedding_dim,
            codebook_size,
            codebook=codebook,
            alpha=alpha,
            beta=beta,
            decay=decay,
            eps=eps,
            kmeans_init=kmeans_init,
            dead_code_threshold=dead_code_threshold,
            manual_ema_update=manual_ema_update,
        )
        self.decoder = Decoder(
            embedding_dim,
            in_channels * self.likelihood.parameters_per_channel,
            hidden,
            residual_layers,
            residual_hidden,
            downscale,
            ndim,
            relu_skip,
        )

    def forward(self, x: Tensor) -> AutoencoderOutput:
        """x: ``[B, C, *S]`` float in -0.5..0.5, S divisible by ``downscale``; ValueError otherwise.

        The loss of an empty batch is 0.
        """
        z = self._embed(x)  # [B, D, *S / downscale]
        quantized, indices, latent_loss = self.quantizer(z)
        parameters = self.decoder(quantized)
        reconstruction_loss = self.likelihood.loss(parameters, x)
        loss = reconstruction_loss + latent_loss
        terms = {
            "reconstruction": reconstruction_loss.detach(),
            "commitment": mean_or_zero((z.detach() - quantized.detach()).square()),
        }
        return AutoencoderOutput(self.likelihood.mean(parameters), loss, terms, (indices,))

    def encode(self, x: Tensor) -> tuple[Tensor]:
        """Codes of ``x``: one ``[B, *S / downscale]`` int64 map. Nothing is learnt, even in train mode."""
        return (self.quantizer(self._embed(x), freeze_codebook=True).indices,)

    def decode_codes(self, codes: Sequence[Tensor]) -> Tensor:
        """Mean image ``[B, C, *S]`` of one code map ``[B, *S / downscale]`` in a sequence of length one."""
        return self.likelihood.mean(self._decode(codes))

    def reconstruct(self, x: Tensor) -> Tensor:
        """Mean image of the codes of ``x``."""
        return self.decode_codes(self.encode(x))

    def decoder_log_prob(self, x: Tensor, codes: Sequence[Tensor]) -> Tensor:
        """log p(x | codes) of every element in nats: x's shape."""
        check_input(x, self.in_channels, self.ndim, self.downscale)
        parameters = self._decode(codes)
        check_same_images(x, parameters)
        return self.likelihood.log_prob(parameters, x)

    def code_shapes(self, spatial: Sequence[int]) -> tuple[tuple[int, ...], ...]:
        """Size of the code map for data of size ``spatial``; ValueError unless ``downscale`` divides it."""
        check_divides(spatial, self.ndim, self.downscale)
        return (tuple(size // self.downscale for size in spatial),)

    def _embed(self, x: Tensor) -> Tensor:
        check_input(x, self.in_channels, self.ndim, self.downscale)
        check_dtype(x, self)
        z: Tensor = self.to_embedding(self.encoder(x))
        return z

    def _decode(self, codes: Sequence[Tensor]) -> Tensor:
        if len(codes) != 1:
            raise ValueError(f"codes must hold one level, got {len(codes)}")
        parameters: Tensor = self.decoder(self.quantizer.get_output_from_indices(codes[0]))
        return parameters


def make_quantizer(
    dim: int,
    codebook_size: int,
    *,
    codebook: str,
    alpha: float,
    beta: float,
    decay: float,
    eps: float,
    kmeans_init: bool,
    dead_code_threshold: float,
    manual_ema_update: bool,
) -> FusedVectorQuantizer:
    """A channel-first ``FusedVectorQuantizer`` with the papers' two ways to learn the codebook."""
    check_at_least(1, embedding_dim=dim, codebook_size=codebook_size)
    check_weight(alpha=alpha, beta=beta, dead_code_threshold=dead_code_threshold)
    if codebook not in ("ema", "gradient"):
        raise ValueError(f"codebook must be 'ema' or 'gradient', got {codebook!r}")
    learnt = codebook == "gradient"
    return FusedVectorQuantizer(
        dim,
        codebook_size,
        decay=decay,
        eps=eps,
        commitment_weight=beta,
        codebook_weight=alpha if learnt else None,
        learnable_codebook=learnt,
        manual_ema_update=manual_ema_update and not learnt,
        kmeans_init=kmeans_init,
        threshold_ema_dead_code=dead_code_threshold,
        rotation_trick=False,
        channel_last=False,
    )


def quantizers(model: nn.Module) -> list[FusedVectorQuantizer]:
    """The quantizers of a model, top level first; empty for a VAE."""
    found = [part for part in model.modules() if isinstance(part, FusedVectorQuantizer)]
    return found[::-1]


def update_ema(model: Pretrained) -> None:
    """Apply what the batches since the last call gathered, if ``model`` has ``manual_ema_update``."""
    if model.config.get("manual_ema_update") and model.config["codebook"] == "ema":
        for quantizer in quantizers(model):
            quantizer.update_ema()
