"""Settings of what training minimises beside a model's own loss, and of the levels of a hierarchy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from models.settings import format_value, setting
from vq_kernels.checks import check_integer, check_number


@dataclass(frozen=True, kw_only=True)
class TermSettings:
    """``TermSettings(l1=1, level_dropout=(0, 0.3))`` adds the absolute error and drops a lower level."""

    settings_title: ClassVar[str] = "terms of the loss, levels"

    l1: float = setting(0.0, "weight of the absolute error of the reconstruction, added to the loss")
    gradient_l1: float = setting(
        0.0, "weight of the absolute error of the differences between neighbouring pixels, added to the loss"
    )
    level_dropout: tuple[float, ...] = setting(
        (0.0,),
        "vqvae2: share of the images that are decoded without the codes of a level in training, so that the "
        "others carry the image; one for all levels, or one for each, top first",
        model=("vqvae2",),
    )
    level_codebook_sizes: tuple[int, ...] = setting(
        (0,), "vqvae2: number of codes of each level, top first; 0 for codebook_size", model=("vqvae2",)
    )

    def check_terms(self, levels: int) -> None:
        """TypeError or ValueError for the first setting that is out of range, or not of so many levels."""
        check_number(l1=self.l1, gradient_l1=self.gradient_l1)
        if self.level_codebook_sizes != (0,):
            for size in self.level_codebook_sizes:
                check_integer(1, level_codebook_sizes=size)
        self.shares_of_levels(levels)
        for share in self.level_dropout:
            check_number(0, 1, level_dropout=share)

    def shares_of_levels(self, levels: int) -> Sequence[float]:
        """``level_dropout`` of each level, top first; ValueError for another number of them."""
        shares = self.level_dropout
        if len(shares) not in (1, levels):
            raise ValueError(
                f"level_dropout is {format_value(shares)}; accepted: one value, or one for each of "
                f"{levels} levels"
            )
        return shares * levels if len(shares) == 1 else shares
