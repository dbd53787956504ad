"""Settings of which level a prior is trained for, and of the labels that it sees."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from models.settings import setting
from vq_kernels.checks import check_integer, check_share


@dataclass(frozen=True, kw_only=True)
class LevelSettings:
    """``LevelSettings(level=1, above="runs/top")`` trains the second level below the first of another run."""

    settings_title: ClassVar[str] = "levels and labels"

    level: int | None = setting(None, "train the prior of this level alone, 0 the top one; by default of all")
    above: str | None = setting(None, "train-prior run whose upper levels the run takes over, with level")
    label_dropout: float = setting(
        0.0, "share of the images whose label the prior does not see in training, for guidance (`sample`)"
    )

    def check_levels(self) -> None:
        """TypeError or ValueError for the first setting that is out of range or lacks another."""
        if self.level is not None:
            check_integer(0, level=self.level)
        if self.above is not None and not self.level:
            raise ValueError(
                f"above is {self.above}; accepted: none, without a level below the top (--level 1)"
            )
        check_share(label_dropout=self.label_dropout)
