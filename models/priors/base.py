"""What every prior over code maps shares: the checks, the log-likelihood and the sampling loop.

A prior factorises the probability of a map of codes in raster order (van den Oord et al., 2016),

    p(codes | label, upper) = prod_t p(codes_t | codes_<t, label, upper),

where ``upper`` is the code map of the level above in a hierarchical VQ-VAE.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.utils import parametrize

from models.losses import log_softmax_at
from models.pretrained import Pretrained, evaluating
from models.priors.filters import check_filters, draw, filter_logits, fine_generator
from vq_kernels.checks import check_flag, check_integer, check_number, check_share

Decoder = Callable[[Tensor | None], Tensor]
"""The logits ``[B, K]`` of the next code, given the code just drawn: int64 ``[B]``, None at the start."""


class AutoregressivePrior(Pretrained, ABC):
    """Base of the priors. A subclass gives ``_logits`` (all positions at once) and ``_decoder`` (one by one).

    For example, codes ``[8, 16, 16]`` of 512 values have logits ``[8, 512, 16, 16]`` and log-probabilities
    ``[8]``; ``sample((8, 16, 16))`` draws codes of that shape.

    Codes are int64 maps ``[B, *S]``. With ``num_classes`` every call needs ``labels``, int64 ``[B]``; with
    ``upper_codebook_size`` it needs ``upper``, an int64 map ``[B, *U]`` with as many axes as the codes.

    With ``null_label`` there is one label more, ``num_classes``, that says nothing of the class: training
    puts it in place of some labels, calls may leave labels out, and :meth:`sample` can be guided (Ho and
    Salimans, 2022, arXiv:2207.12598).
    """

    map_axes: tuple[int, ...] = (1, 2)

    def __init__(
        self,
        codebook_size: int,
        num_classes: int | None,
        upper_codebook_size: int | None,
        null_label: bool = False,
    ) -> None:
        super().__init__()
        check_integer(1, codebook_size=codebook_size)
        for name, value in (("num_classes", num_classes), ("upper_codebook_size", upper_codebook_size)):
            if value is not None:
                check_integer(1, **{name: value})
        self.codebook_size = codebook_size
        self.num_classes = num_classes
        self.upper_codebook_size = upper_codebook_size
        check_flag(null_label=null_label)
        if null_label and num_classes is None:
            raise ValueError("null_label is True; accepted without num_classes: False")
        self.null_label = num_classes if null_label else None

    @property
    def num_labels(self) -> int | None:
        """How many labels there are, the one that says nothing included; None without labels."""
        return self.num_classes if self.null_label is None else self.null_label + 1

    @abstractmethod
    def _logits(self, codes: Tensor, labels: Tensor | None, upper: Tensor | None) -> Tensor:
        """Logits ``[B, K, *S]`` of checked codes ``[B, *S]``."""

    @abstractmethod
    def _decoder(self, shape: tuple[int, ...], labels: Tensor | None, upper: Tensor | None) -> Decoder:
        """A decoder with empty caches for maps of ``shape`` = (B, *S)."""

    def logits(self, codes: Tensor, labels: Tensor | None = None, upper: Tensor | None = None) -> Tensor:
        """Logits ``[B, K, *S]``: those at a position depend on earlier codes only, in raster order."""
        self._check_codes("codes", codes, self.codebook_size)
        labels = self._or_null(labels, len(codes))
        self._check_conditions(tuple(codes.shape), labels, upper)
        return self._logits(codes, labels, upper)

    def log_prob(self, codes: Tensor, labels: Tensor | None = None, upper: Tensor | None = None) -> Tensor:
        """log p(codes | labels, upper) in nats, summed over the positions: float32 ``[B]``."""
        logits = self.logits(codes, labels, upper).float()
        return log_softmax_at(logits, codes).flatten(1).sum(dim=1)

    def forward(self, codes: Tensor, labels: Tensor | None = None, upper: Tensor | None = None) -> Tensor:
        """:meth:`log_prob`, so that wrappers that hook ``forward`` (DDP, ``torch.compile``) train a prior."""
        return self.log_prob(codes, labels, upper)

    def sample(
        self,
        shape: Sequence[int],
        labels: Tensor | None = None,
        upper: Tensor | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        guidance: float = 1.0,
        generator: torch.Generator | None = None,
        on_drawn: Callable[[int], object] | None = None,
    ) -> Tensor:
        """Draws codes of ``shape`` = (B, *S), int64, one position after the other.

        Caches hold what earlier positions computed, so a position costs the network once at that position
        and not over the map. Dropout is off; the training flags are as before afterwards. ``generator`` lives
        on the model's device; the same one gives the same codes. ``on_drawn`` is called with B after every
        position.

        guidance: s of the logits ``without + s (with - without)`` the label, which a prior with
        ``null_label`` has; 1 is none, above 1 the class counts for more.
        """
        shape = self._check_shape(shape)
        labels = self._or_null(labels, shape[0])
        self._check_conditions(shape, labels, upper)
        check_filters(temperature, top_k, top_p)
        check_number(guidance=guidance)
        if guidance != 1 and (labels is None or self.null_label is None):
            raise ValueError(
                f"guidance is {guidance}; accepted: 1, as the prior was not trained without labels too "
                f"(--label-dropout)"
            )
        device = self.device
        if generator is not None and generator.device.type != device.type:
            raise ValueError(f"generator is on {generator.device}; accepted: the model's device {device}")
        fine = fine_generator(generator, device)
        codes = torch.empty(math.prod(shape[1:]), shape[0], dtype=torch.int64, device=device)
        copies = 1
        if guidance != 1 and labels is not None and self.null_label is not None:
            copies = 2  # with the label, then without
            labels = torch.cat([labels, torch.full_like(labels, self.null_label)])
            upper = None if upper is None else torch.cat([upper, upper])
        with evaluating(self), torch.inference_mode(), parametrize.cached():
            next_logits = self._decoder((copies * shape[0], *shape[1:]), labels, upper)
            previous = None
            for position in range(len(codes)):
                logits = next_logits(previous)
                if copies == 2:
                    conditional, unconditional = logits.float().chunk(2)
                    logits = unconditional + guidance * (conditional - unconditional)
                logits = filter_logits(logits, temperature, top_k, top_p)
                previous = codes[position].copy_(draw(logits, generator, fine)).repeat(copies)
                if on_drawn is not None:
                    on_drawn(shape[0])
        return codes.T.reshape(shape)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    def _or_null(self, labels: Tensor | None, batch: int) -> Tensor | None:
        """Labels that were left out of a prior that knows what that means, in its own way."""
        if labels is not None or self.null_label is None:
            return labels
        return torch.full((batch,), self.null_label, device=self.device)

    def _check_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        sizes = tuple(shape)
        if any(isinstance(size, bool) or not isinstance(size, int) for size in sizes):
            raise TypeError(f"shape is {shape!r}; accepted: integers (B, *S)")
        if len(sizes) - 1 not in self.map_axes or min(sizes[1:]) < 1 or sizes[0] < 0:
            raise ValueError(f"shape is {sizes}; accepted: (B, *S) with {self._axes()} sizes above 0 in S")
        return sizes

    def _check_codes(self, name: str, codes: Tensor, codebook_size: int) -> None:
        if not isinstance(codes, Tensor) or codes.dtype != torch.int64:
            raise TypeError(f"{name} is {_describe(codes)}; accepted: an int64 tensor")
        if codes.ndim - 1 not in self.map_axes or 0 in codes.shape[1:]:
            raise ValueError(
                f"{name} is of shape {tuple(codes.shape)}; accepted: [B, *S] with {self._axes()} axes in S, "
                f"none empty"
            )
        self._check_values(name, codes, codebook_size)

    def _check_conditions(self, shape: tuple[int, ...], labels: Tensor | None, upper: Tensor | None) -> None:
        if (labels is None) != (self.num_classes is None):
            accepted = "None" if labels is not None else f"the class of each map, of {self.num_classes}"
            raise ValueError(
                f"labels is {_describe(labels)}; accepted: {accepted}, as the prior was built with "
                f"num_classes={self.num_classes}"
            )
        if (upper is None) != (self.upper_codebook_size is None):
            accepted = "None" if upper is not None else "the codes of the level above"
            raise ValueError(
                f"upper is {_describe(upper)}; accepted: {accepted}, as the prior was built with "
                f"upper_codebook_size={self.upper_codebook_size}"
            )
        if labels is not None and self.num_labels is not None:
            if not isinstance(labels, Tensor) or labels.dtype != torch.int64:
                raise TypeError(f"labels is {_describe(labels)}; accepted: an int64 tensor")
            if labels.shape != shape[:1]:
                raise ValueError(
                    f"labels is of shape {tuple(labels.shape)}; accepted: [{shape[0]}], one for each map"
                )
            self._check_values("labels", labels, self.num_labels)
        if upper is not None and self.upper_codebook_size is not None:
            self._check_codes("upper", upper, self.upper_codebook_size)
            if upper.ndim != len(shape) or upper.shape[0] != shape[0]:
                raise ValueError(
                    f"upper is of shape {tuple(upper.shape)}; accepted: [{shape[0]}, *U] with "
                    f"{len(shape) - 1} axes in U, like the codes"
                )

    def _check_values(self, name: str, values: Tensor, count: int) -> None:
        if values.device != self.device:
            raise ValueError(f"{name} is on {values.device}; accepted: the prior's device {self.device}")
        # Reading a value back from a GPU would make the host wait; there the embedding kernel asserts.
        if values.device.type == "cpu" and not torch.compiler.is_compiling() and values.numel():
            low, high = (int(bound) for bound in values.aminmax())
            if low < 0 or high >= count:
                raise ValueError(f"{name} holds values from {low} to {high}; accepted: 0 to {count - 1}")

    def _axes(self) -> str:
        return " or ".join(str(axes) for axes in self.map_axes)


def check_dropout(dropout: float) -> None:
    """Raise TypeError or ValueError unless ``dropout`` is a number from 0 to below 1."""
    check_share(dropout=dropout)


def _describe(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of {value.dtype}"
    return "None" if value is None else f"a {type(value).__name__}"
