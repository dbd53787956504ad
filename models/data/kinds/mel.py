"""Log-mel spectrograms of sounds, and the distance between two of them, from their definitions."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

FLOOR = -80.0  # dB below full scale: what is quieter counts as silence
BANDS = 40
WINDOW = 0.032  # seconds


def log_mel(x: Tensor, rate: int) -> Tensor:
    """The level of each mel band of sounds ``[B, C, T]``, in dB: ``[B, C, BANDS, frames]``.

    0 dB is a sine of full scale. A frame is a Hann window of about 32 ms, the power of two of samples that is
    nearest, moved by a quarter of it; the sound is continued by silence at both ends. Its power spectrum is
    weighted by the triangles of :func:`mel_filters` and limited to ``FLOOR``.

    x: in -0.5..0.5, ``rate`` samples a second.
    """
    length = window_length(rate)
    window = torch.hann_window(length, device=x.device)
    flat = x.float().flatten(0, 1)  # [B * C, T]
    spectrum = torch.stft(
        flat, length, hop_length=length // 4, window=window, pad_mode="constant", return_complex=True
    )
    # A sine of full scale has the amplitude 0.5 and the peak 0.5 * sum(window) / 2.
    power = (spectrum.abs() * (4 / window.sum())).square()  # [B * C, length / 2 + 1, frames]
    bands = mel_filters(rate, length // 2 + 1, BANDS).to(x.device) @ power
    return (10 * bands.clamp_min(1e-12).log10()).clamp_min(FLOOR).unflatten(0, x.shape[:2])


def log_mel_distance(x: Tensor, y: Tensor, rate: int) -> Tensor:
    """How far two sounds ``[B, C, T]`` are apart in dB: ``[B]``.

    Of each frame the root of the mean over the bands of the squared difference of their levels; then the mean
    over frames and channels.
    """
    difference = log_mel(x, rate) - log_mel(y, rate)  # [B, C, BANDS, frames]
    return difference.square().mean(2).sqrt().flatten(1).mean(1)


def window_length(rate: int) -> int:
    """Samples in a window: 256 at 8 kHz, 512 at 16 kHz, 1024 at 44.1 kHz."""
    return int(2 ** max(4, round(math.log2(WINDOW * rate))))


@lru_cache(maxsize=8)
def mel_filters(rate: int, bins: int, bands: int) -> Tensor:
    """Weights ``[bands, bins]`` of the bins of a power spectrum, from 0 Hz to half the rate, in each band.

    Triangles whose corners are evenly spaced in mel, ``2595 log10(1 + f / 700)`` of a frequency f in Hz: each
    rises from the centre of the band below to its own, where it is 1, and falls to the centre of the next.
    """
    highest = 2595 * math.log10(1 + rate / 2 / 700)
    mels = torch.linspace(0, highest, bands + 2, dtype=torch.float64)
    corners = 700 * (10 ** (mels / 2595) - 1)  # [bands + 2], Hz
    frequencies = torch.linspace(0, rate / 2, bins, dtype=torch.float64)
    rising = (frequencies - corners[:-2, None]) / (corners[1:-1] - corners[:-2])[:, None]
    falling = (corners[2:, None] - frequencies) / (corners[2:] - corners[1:-1])[:, None]
    return torch.minimum(rising, falling).clamp_min(0).float()
