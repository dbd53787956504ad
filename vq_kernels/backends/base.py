"""What a backend provides: the contract that every kernel is written and tested against.

A backend that gains from it can have ``prepare_codebook`` as well (:class:`PreparingBackend`).

All methods take tensors that have already been validated (``functional.py``) and brought into one
canonical form (``operators/``), so that a backend contains kernels and nothing else:

- ``x``, ``out`` and ``quantized`` are ``[B, M, D]`` views with arbitrary element strides; channel-last
  input is ``B = 1`` or two collapsed leading dimensions, channel-first input ``[B, D, *S]`` is the view
  with ``M = prod(S)`` and the stride of ``D`` equal to ``M``. A backend reads the strides and never
  copies to change layout. A row is ``(b, m)``, its number is ``b * M + m``.
- ``codebook`` is ``[K, D]`` and contiguous, float32 or x's dtype.
- ``indices`` are ``[B, M]`` int64 and contiguous; ``-1`` marks a row that the mask left out.
- every tensor lies on one device, which is current; CUDA work goes to the current stream.

The edge cases are part of the contract (``backends/reference`` is the definition):

- a row of x holding NaN or infinity gets index 0 and a NaN quantized row, makes the squared error
  NaN, and is left out of counts and sums;
- a code holding NaN or infinity is never chosen; if there is no other, index 0;
- ``precision="exact"``: the exact score decides and the lowest index wins a tie. The score to
  minimise is ``sum_d e_d^2 / 2 - sum_d x_d e_d`` (``"cosine"``: ``-sum_d x_d e_d``). Products of
  float32, bfloat16 and float16 values are exact in float64, so only the summation could round; it
  runs over the terms e_0^2/2, ..., e_{D-1}^2/2, -x_0 e_0, ..., -x_{D-1} e_{D-1} in this order with
  an error-free transformation (Knuth's TwoSum; Ogita, Rump and Oishi 2005, "Sum2"), in float64
  without fused multiply-add::

      hi = lo = 0
      for t in terms:
          s = hi + t;  b = s - hi;  lo += (hi - (s - b)) + (t - b);  hi = s
      v = hi + lo;  b = v - hi;  r = (hi - (v - b)) + (lo - b)      # score = v + r exactly

  and scores are compared as pairs (v, r), v first. That is the real-arithmetic order to 2^-100 of
  |x||e|, also under a large common offset, where a float64 ``(x - e)^2`` would not be. The partial
  sum over the e^2 terms depends on the code alone and may be kept. A fast first pass may discard
  only what a rigorous error bound rules out.
"""

from __future__ import annotations

from typing import Literal, Protocol

from torch import Tensor

from .reference.quantize import QuantizeOptions, QuantizeResult

__all__ = ["Backend", "Operation", "PreparingBackend", "QuantizeOptions", "QuantizeResult"]

Operation = Literal[
    "nearest_code",
    "gather_codes",
    "code_statistics",
    "ema_update_",
    "vector_quantize",
    "vector_quantize_backward",
]


# The fields of QuantizeOptions that every backend heeds.
COMMON_OPTIONS = frozenset(
    {
        *("metric", "precision", "channel_dim", "statistics", "keep_codes", "backend"),
        *("gradient", "commitment_weight", "codebook_weight", "sum_differences"),
    }
)


class Backend(Protocol):
    """One implementation of the operations. Implementations are modules or objects of this shape.

    ``reference`` has them all; one that another has not yet is left out of its module, and it is not chosen.
    """

    name: str
    # The fields of QuantizeOptions that its fused operation heeds: COMMON_OPTIONS, and what it has learnt
    # beyond them. It is not chosen for a call that sets another one to more than its default.
    quantize_options: frozenset[str]

    def unavailable_reason(self) -> str | None:
        """None if the backend works on this machine, else one sentence saying why not."""

    def unsupported_reason(
        self, operation: Operation, x: Tensor, codebook: Tensor | None = None
    ) -> str | None:
        """None if the backend has the operation for tensors of this device and dtype, else one sentence.

        ``x`` is the tensor that decides: the rows, or the codebook where an operation has none.
        """

    def nearest_code(self, x: Tensor, codebook: Tensor, metric: str, precision: str) -> Tensor:
        """Index of the nearest code of every row: ``[B, M]`` int64."""

    def gather_codes(self, codebook: Tensor, indices: Tensor, out: Tensor) -> None:
        """``out[b, m, :] = codebook[indices[b, m], :]``; indices are in range."""

    def code_statistics(
        self, x: Tensor, indices: Tensor, codebook_size: int, skip_nonfinite: bool
    ) -> tuple[Tensor, Tensor]:
        """Counts ``[K]`` int64 and sums ``[K, D]`` float32 (float64 for float64 x) of the rows of each code.

        Rows with index -1, or another that names no code, are left out, and with ``skip_nonfinite`` those
        that hold NaN or infinity.
        Bitwise reproducible: the order of summation depends on shapes alone, never on the number of
        threads or on timing.
        """

    def ema_update_(
        self,
        codebook: Tensor,
        cluster_size: Tensor,
        embed_avg: Tensor,
        counts: Tensor,
        sums: Tensor,
        decay: float,
        eps: float,
        normalize: bool,
    ) -> None:
        """In place, all float32 (counts int64 or float32)::

            cluster_size = decay * cluster_size + (1 - decay) * counts          # [K], as lerp
            embed_avg    = decay * embed_avg + (1 - decay) * sums               # [K, D], as lerp
            total        = cluster_size.sum()
            smoothed     = (cluster_size + eps) / (total + K * eps) * total     # [K]
            codebook     = embed_avg / smoothed[:, None]                        # [K, D]
            codebook     = embed_avg / |embed_avg|    if normalize (row by row, |embed_avg| in float64)

        With ``normalize`` a code whose average is shorter than 2^-100 stays as it is. Nothing changes if
        ``counts`` is all zero (an empty or fully masked batch).

        A code stays as it is, its size and average too, where these lines would bring NaN or infinity into
        its finite average or from that into its code: float32 cannot hold the sum of its rows. ``total``
        counts it all the same.
        """

    def vector_quantize(
        self,
        x: Tensor,
        codebook: Tensor,
        mask: Tensor | None,
        options: QuantizeOptions,
        quantized: Tensor,
        codebook_copy: Tensor | None,
    ) -> QuantizeResult:
        """Search, gather, weighted squared error and statistics; :class:`QuantizeResult` says what each is.

        The codes are written to ``quantized`` (``[B, M, D]`` of x's dtype) and, with
        ``options.keep_codes``, the codebook to ``codebook_copy`` (its shape and dtype; else None); the
        result holds these two tensors. ``mask`` is ``[B, M]`` bool and contiguous, True where a row
        counts. A masked row gets index -1 and a zero row, and adds nothing to the loss or to the
        statistics. With no valid row the loss is 0.

        With ``options.sum_differences`` the sums are those of x - e, formed row by row: where rows and
        codes share a large offset, ``sums - counts * e`` would be lost to rounding. An entry of e that is
        not finite counts as 0.
        """

    def vector_quantize_backward(
        self,
        grad_quantized: Tensor | None,
        grad_loss: Tensor | None,
        x: Tensor,
        codebook: Tensor,
        indices: Tensor,
        valid_rows: Tensor,
        scale: float,
        gradient: str,
        out: Tensor,
    ) -> None:
        """Gradient for x, written to ``out`` (x's dtype, ``[B, M, D]``), rows with index -1 zero::

            loss_grad = grad_loss * scale / valid_rows                  # scale = 2 commitment_weight / D
            out = estimator_grad(grad_quantized) + loss_grad * (x - e)          # e = codebook[indices]

        ``estimator_grad`` is the identity for ``"straight_through"``; for ``"rotation_trick"``
        (arXiv:2410.06424, section 4.2) with u = x/|x|, q = e/|e|, w = (u+q)/|u+q| and all norms
        clamped from below at 1e-6 it is ``|e|/|x| * (g - 2 (g.w) w + 2 (g.q) u)``.
        ``grad_quantized`` has x's shape and any strides; either gradient may be None (zero).
        ``indices`` may have been written to since the forward pass, unseen by the host: a row whose index
        names no code (below -1, or past the last) becomes NaN, and no code is read for it.
        Arithmetic is float32 (float64 for float64 x), whatever the dtypes.
        """


class PreparingBackend(Backend, Protocol):
    """A backend that packs a codebook once for many searches.

    Its ``nearest_code`` and ``vector_quantize`` take what it made of a codebook as ``prepared``, beside the
    codebook itself, and find the same codes as without.
    """

    def prepare_codebook(self, codebook: Tensor, metric: str) -> object:
        """What searches with this metric need of ``codebook``, which stays as it is and outlives it."""
