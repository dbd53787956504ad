"""Priors of every level of a small hierarchy, with random weights, so that every condition shows."""

from __future__ import annotations

from collections.abc import Sequence

from priors_support import randomise

from models import TransformerPrior

CODES, CLASSES = 16, 10


def hierarchy(sizes: Sequence[int]) -> list[TransformerPrior]:
    """In train mode; square maps of these sizes, top first."""
    return [
        randomise(
            TransformerPrior(
                CODES,
                8,
                shape=(size, size),
                layers=1,
                heads=2,
                dropout=0.5,
                num_classes=CLASSES,
                upper_codebook_size=CODES if level else None,
            )
        )
        for level, size in enumerate(sizes)
    ]
