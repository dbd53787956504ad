"""Where images stand in a picture, and that a file holds the pixels it was given."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from models.evaluation.pictures import grid, save_image, side_by_side


def test_grids_are_filled_row_by_row_with_white_between() -> None:
    images = torch.arange(5, dtype=torch.uint8).view(5, 1, 1, 1).expand(-1, 3, 2, 4) * 10
    picture = grid(images, 3)
    assert picture.shape == (3, 5, 14)
    assert picture[0, ::3, ::5].tolist() == [[0, 10, 20], [30, 40, 255]]
    assert (picture[:, 2] == 255).all()
    assert (picture[:, :, [4, 9]] == 255).all()


def test_each_reconstruction_stands_right_of_its_original() -> None:
    x = torch.tensor([0.0, 0.2]).view(2, 1, 1, 1) - 0.5
    assert side_by_side(x, x + 0.4, columns=1)[0, ::2, ::2].tolist() == [[0, 102], [51, 153]]
    assert side_by_side(x, x + 0.4, columns=2)[0, ::2, ::2].tolist() == [[0, 102, 51, 153]]


def test_saved_pictures_keep_colours_and_are_enlarged_by_a_whole_factor(tmp_path: Path) -> None:
    image = torch.randint(256, (3, 4, 5), dtype=torch.uint8)
    path = save_image(image, tmp_path / "new" / "a.png", smallest=12)
    saved = torch.from_numpy(np.asarray(Image.open(path)).copy()).permute(2, 0, 1)
    assert torch.equal(saved, image.repeat_interleave(3, 1).repeat_interleave(3, 2))
