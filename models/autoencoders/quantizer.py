"""How a model gets its quantizer from settings: the one place that knows.

A new kind of quantizer is added here: its settings as fields of :class:`QuantizerSettings`, which those of
`train` inherit and the models' constructors take by name, and how it is built in :func:`make_quantizer`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Self

from models.settings import setting
from vq_kernels.checks import check_choice, check_flag, check_integer, check_number
from vq_kernels.quantizers import FusedVectorQuantizer, Quantizer

WITH_CODES = ("vqvae", "vqvae2")  # models, as the setting of that name has them


@dataclass(frozen=True, kw_only=True)
class QuantizerSettings:
    """The settings of a run that its quantizer is made from; each level of a hierarchy gets the same."""

    settings_title: ClassVar[str] = "codebook"

    embedding_dim: int = setting(64, "D, the dimension of a code", model=WITH_CODES)
    codebook_size: int = setting(512, "K, the number of codes", model=WITH_CODES)
    heads: int = setting(1, "codes at every position, of one codebook", model=WITH_CODES)
    codebook: str = setting("ema", "how codes are learnt: ema or gradient", model=WITH_CODES)
    alpha: float = setting(
        1.0, "weight of the codebook loss (gradient codebooks)", model=WITH_CODES, codebook=("gradient",)
    )
    decay: float = setting(0.99, "decay of the codes' moving averages", model=WITH_CODES, codebook=("ema",))
    kmeans_init: bool = setting(False, "start the codebook from k-means of the first batch", model=WITH_CODES)
    dead_code_threshold: float = setting(
        0.0, "restart codes whose averaged count falls below this", model=WITH_CODES
    )

    def check_quantizer(self) -> None:
        """TypeError or ValueError for the first setting with which no quantizer can be built."""
        check_integer(1, embedding_dim=self.embedding_dim, codebook_size=self.codebook_size)
        check_integer(1, heads=self.heads)
        check_choice(("ema", "gradient"), codebook=self.codebook)
        check_number(alpha=self.alpha, dead_code_threshold=self.dead_code_threshold)
        check_number(0, 1, decay=self.decay)
        check_flag(kmeans_init=self.kmeans_init)

    def quantizer_settings(self) -> dict[str, Any]:
        """The settings of this class by name, without those of a class that inherits it."""
        return {field.name: getattr(self, field.name) for field in fields(QuantizerSettings)}


@dataclass(frozen=True, kw_only=True)
class QuantizerArguments(QuantizerSettings):
    """What the constructors of models take for their quantizers: the settings, and what follows from others.

    beta: weight of the commitment loss. eps: of the Laplace smoothing of the moving averages.
    manual_ema_update: the averages move when ``update_codebooks`` is called, not in forward; for gradients
    accumulated over several batches.
    """

    beta: float = 0.25
    eps: float = 1e-5
    manual_ema_update: bool = False

    def __post_init__(self) -> None:
        self.check_quantizer()
        check_number(beta=self.beta)

    @property
    def features(self) -> int:
        """Channels that are quantized, and that come out: those of all heads together."""
        return self.heads * self.embedding_dim

    @classmethod
    def of(cls, model: str, arguments: Mapping[str, Any]) -> Self:
        """The arguments by name that a constructor of ``model`` was given; TypeError for an unknown one."""
        names = [field.name for field in fields(cls)]
        for name in arguments:
            if name not in names:
                raise TypeError(
                    f"{model} got an unexpected keyword argument {name!r}; accepted beside its own: "
                    f"{', '.join(names)}"
                )
        return cls(**arguments)

    def as_dict(self) -> dict[str, Any]:
        """Every argument by name, for ``config.json``."""
        return asdict(self)


def make_quantizer(arguments: QuantizerArguments) -> Quantizer:
    """A channel-first quantizer of features ``[B, heads * embedding_dim, *S]``.

    ``codebook`` chooses among the two ways of van den Oord et al. 2017 (arXiv:1711.00937) to learn the codes:
    moving averages (appendix A.1) or the gradient of the codebook loss (equation 3).
    """
    learnt_by_gradient = arguments.codebook == "gradient"
    return FusedVectorQuantizer(
        arguments.features,
        arguments.codebook_size,
        codebook_dim=arguments.embedding_dim,
        heads=arguments.heads,
        decay=arguments.decay,
        eps=arguments.eps,
        commitment_weight=arguments.beta,
        codebook_weight=arguments.alpha if learnt_by_gradient else None,
        learnable_codebook=learnt_by_gradient,
        manual_ema_update=arguments.manual_ema_update and not learnt_by_gradient,
        kmeans_init=arguments.kmeans_init,
        threshold_ema_dead_code=arguments.dead_code_threshold,
        rotation_trick=False,
        channel_last=False,
    )
