"""Samples that are chosen, told from real ones, and compared with what is nearest to them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hierarchy_support import hierarchy
from run_support import TINY

from models import VQVAE2
from models.codes.encode import encode
from models.data import DataConfig, load_data, to_float
from models.data.augment import AugmentSettings
from models.data.kinds import Images
from models.evaluation.drawn import decoded_codes, draw_neighbours
from models.evaluation.realism import nearest, two_sample
from models.evaluation.selection import Drawing, draw_stages

SHAPES = ((2, 2), (4, 4))


def _model() -> VQVAE2:
    torch.manual_seed(0)
    model = VQVAE2(1, downscales=(2, 2), kmeans_init=True, **TINY).train()
    model(to_float(load_data(DataConfig(data="digits", limit=64)).train.batch(range(64))))
    return model.eval()


def test_a_classifier_tells_what_differs_and_not_what_does_not() -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (160, 1, 8, 8), generator=generator).byte()
    lighter = noise[:60] // 2 + 128
    told = two_sample(noise[60:], lighter, steps=60)
    assert told.accuracy > 0.9
    assert float(told.realism.mean()) < 0.2
    assert 0.3 < two_sample(noise[60:], noise[:60], steps=60).accuracy < 0.7
    with pytest.raises(ValueError, match="samples is of 60 images, with 20 real ones; accepted: 4 or more"):
        two_sample(noise[:20], lighter)


def test_samples_are_kept_in_steps_and_for_their_class(monkeypatch: pytest.MonkeyPatch) -> None:
    model, priors = _model(), [prior.eval() for prior in hierarchy((2, 4))]
    labels, real = torch.tensor([1, 5, 8]), torch.zeros(30, 1, 8, 8, dtype=torch.uint8)

    def lightest(real: torch.Tensor, samples: torch.Tensor, **options: object):
        from models.evaluation.realism import TwoSample

        return TwoSample(0.5, samples.flatten(1).float().mean(1))

    monkeypatch.setattr("models.evaluation.selection.two_sample", lightest)

    def draw(**how: object):
        generator = torch.Generator().manual_seed(0)
        return draw_stages(model, priors, SHAPES, labels, Drawing(**how), real=real, generator=generator)

    assert list(draw()) == ["plain"]
    stages = draw(best_of=3, reject=4)
    assert list(stages) == ["plain", "ranked", "kept"]
    assert all(stage.images.shape == (3, 1, 8, 8) for stage in stages.values())
    assert [level.shape for level in stages["kept"].codes] == [(3, 2, 2), (3, 4, 4)]
    assert torch.equal(model.decode_codes(stages["kept"].codes).clamp(-0.5, 0.5), stages["kept"].images)
    assert [stage.told_apart for stage in stages.values()] == [None, None, 0.5]
    light = {name: float(stage.images.mean()) for name, stage in stages.items()}
    assert light["kept"] > max(light["ranked"], light["plain"])
    with pytest.raises(
        ValueError, match="reject is 40 for 3 samples; accepted: up to one sample for each of 30"
    ):
        draw(reject=40)
    with pytest.raises(ValueError, match="best_of is 0"):
        Drawing(best_of=0)


def test_the_nearest_image_is_found_with_its_error(tmp_path: Path) -> None:
    images = torch.randint(0, 256, (20, 3, 4, 4), generator=torch.Generator().manual_seed(0)).byte()
    rows, errors = nearest(images[[7, 3]], images, batch_size=1)
    assert rows.tolist() == [7, 3]
    assert errors.tolist() == pytest.approx([0, 0], abs=1e-6)
    many = images.repeat_interleave(3, 0)
    assert (nearest(many, images)[1] == 0).all(), "exactly, as copies are counted"
    _, (error,) = nearest(images[:1], images[1:2])
    assert float(error) == pytest.approx(
        float((images[0].float() - images[1].float()).div(255).square().mean())
    )
    figures = draw_neighbours(
        tmp_path / "near.png", to_float(images[:2]), images[1:], images[:4], Images((4, 4), 3), columns=2
    )
    assert (tmp_path / "near.png").is_file()
    assert figures["samples"]["least"] == pytest.approx(0, abs=1e-6)
    assert figures["samples"]["median"] >= 0


def test_decoded_codes_are_of_the_images_as_they_are(tmp_path: Path) -> None:
    data, model = load_data(DataConfig(data="digits", limit=40)), _model()
    store = encode(model, data, tmp_path, copies=2, augmentation=AugmentSettings(shift=0.2))
    decoded = decoded_codes(model, store, "train")
    assert decoded.shape == (len(data.train), 1, 8, 8)
    x = to_float(data.train.batch(range(len(data.train))))
    with torch.no_grad():
        expected = ((model.reconstruct(x).clamp(-0.5, 0.5) + 0.5) * 255).round().byte()
    assert torch.equal(decoded, expected)
    assert len(decoded_codes(model, store, "test", limit=5)) == 5
