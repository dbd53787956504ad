"""A store of codes: its rows, resumed, refused for other settings, and found from anywhere."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import pytest
import torch
from data_support import load, write_images
from run_support import TINY, tiny_hierarchy

from models import VQVAE, VQVAE2
from models.codes.description import CodeDescription
from models.codes.encode import OtherCodesError, encode
from models.codes.store import CodeSplit, CodeStore, code_features
from models.data import DataConfig, load_data, to_float
from models.data.augment import AugmentSettings
from models.data.splits import SPLITS


@pytest.fixture(scope="module")
def data():
    return load_data(DataConfig(data="digits", limit=150))


@pytest.fixture(scope="module")
def model() -> VQVAE2:
    return tiny_hierarchy()


def test_code_store_round_trip(tmp_path: Path, data, model: VQVAE2) -> None:
    store = encode(model, data, tmp_path, batch_size=32, shard_size=64)
    assert [len(store.split(name)) for name in ("train", "validation", "test")] == [150, 150, 150]
    assert len(list((tmp_path / "train").glob("*.arrow"))) == 3
    rows = [3, 149, 70]
    codes = CodeStore(tmp_path).split("train").batch(rows)
    for got, truth in zip(codes, model.encode(to_float(data.train.batch(rows))), strict=True):
        assert torch.equal(got, truth)
    assert torch.equal(store.split("train").batch_labels(rows), data.train.labels[rows])


def test_codes_in_memory_are_those_on_disk(tmp_path: Path, data, model: VQVAE2) -> None:
    held = encode(model, data, tmp_path, batch_size=32, shard_size=64).train
    read = CodeSplit(held.dataset, held.shapes, in_memory=0)
    assert held.cached, "small codes are read once"
    assert not read.cached, "large ones batch by batch"
    rows = torch.tensor([149, 3, 70, 3])
    for one, other in zip(held.batch(rows), read.batch(rows), strict=True):
        assert one.dtype == other.dtype == torch.int64
        assert torch.equal(one, other)
    with pytest.raises(IndexError):
        held.batch([150])


def test_codes_of_a_selection_in_memory_are_its_own() -> None:
    columns = {"level0": [[row] * 4 for row in range(6)], "label": list(range(6))}
    dataset = datasets.Dataset.from_dict(columns, features=code_features([(2, 2)]))
    chosen = CodeSplit(dataset.select([5, 3, 1]), ((2, 2),))
    assert chosen.batch([0, 2])[0][:, 1, 1].tolist() == chosen.batch_labels([0, 2]).tolist() == [5, 1]


def test_encoding_goes_on_after_an_interruption(tmp_path: Path, data, model: VQVAE2, monkeypatch) -> None:
    calls = []
    original = VQVAE2.encode

    def counting(self: VQVAE2, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        calls.append(len(x))
        if len(calls) == 10:  # after the five of the sample that shows whether codes are in use
            raise KeyboardInterrupt
        return original(self, x)

    monkeypatch.setattr(VQVAE2, "encode", counting)
    with pytest.raises(KeyboardInterrupt):
        encode(model, data, tmp_path, batch_size=32, shard_size=64)
    assert max(calls) == 32, "one batch at a time"
    done = [path.stat().st_mtime_ns for path in sorted((tmp_path / "train").glob("*.arrow"))]
    assert len(done) == 2
    encode(model, data, tmp_path, batch_size=32, shard_size=64)
    again = [path.stat().st_mtime_ns for path in sorted((tmp_path / "train").glob("*.arrow"))]
    assert again[:2] == done
    other = VQVAE2(1, downscales=(2, 2), **{**TINY, "codebook_size": 8}).eval()
    with pytest.raises(ValueError, match="holds codes with codebook_size 16, now it is 8; give another"):
        encode(other, data, tmp_path, shard_size=64)


def test_codes_are_not_mixed_with_others(tmp_path: Path, model: VQVAE2) -> None:
    """Other images, shards or weights are refused by name; overwritten, no row of before is left."""

    def run(shard_size: int = 500, overwrite: bool = False, **settings: object) -> CodeStore:
        images = load_data(DataConfig(data="digits", **settings), stream=True)
        return encode(model, images, tmp_path, shard_size=shard_size, overwrite=overwrite)

    assert [len(split) for split in run(limit=100).splits.values()] == [100, 100, 100]
    for settings, message in (
        ({}, "holds codes with limit 100, now it is None; give another folder .*--overwrite"),
        ({"limit": 100, "split_seed": 1}, "with split_seed 0, now it is 1"),
        ({"limit": 100, "test": 0.1}, "with test 0.2, now it is 0.1"),
        ({"limit": 100, "size": "16"}, "with size '8x8', now it is '16x16'"),
        ({"limit": 100, "shard_size": 400}, "with shard_size 500, now it is 400"),
    ):
        with pytest.raises(ValueError, match=message):
            run(**settings)
    assert len(run(overwrite=True).split("train")) == 1250
    sorted((tmp_path / "train").glob("*.arrow"))[-1].unlink()
    with pytest.raises(ValueError, match=r"train/000001000-000001250.arrow is missing; finish it"):
        CodeStore(tmp_path)
    with pytest.raises(ValueError, match="with shard_size 500, now it is 400"):
        run(shard_size=400)
    assert len(run().split("train")) == 1250
    (tmp_path / "train" / "000000000-000000400.arrow").write_bytes(b"a stray file")
    assert len(CodeStore(tmp_path).split("train")) == 1250
    state = {name: values + 1 for name, values in model.state_dict().items()}
    other = VQVAE2(1, downscales=(2, 2), likelihood="logistic", **TINY).eval()
    other.load_state_dict(state)
    with pytest.raises(ValueError, match="holds codes with weights"):
        encode(other, load_data(DataConfig(data="digits")), tmp_path, shard_size=500)
    (tmp_path / "codes.json").unlink()
    with pytest.raises(ValueError, match=r"holds codes, but no codes.json says of what"):
        run()
    (tmp_path / "codes.json").write_text('{"shapes": [], "class_names": [], "model": ""}')
    with pytest.raises(ValueError, match=r"does not say the codebook_size of its codes; .*--overwrite"):
        run()


def test_damaged_shards_are_named_and_written_again(tmp_path: Path, data, model: VQVAE2) -> None:
    encode(model, data, tmp_path, shard_size=64)
    shard = tmp_path / "train" / "000000064-000000128.arrow"
    whole = shard.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"junk", b""):
        shard.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"train/000000064-000000128.arrow is damaged; finish it with"):
            CodeStore(tmp_path)
        encode(model, data, tmp_path, shard_size=64)
        assert shard.read_bytes() == whole


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("[]", r"codes.json holds a JSON list; accepted: an object; write them again with"),
        ("junk", r"codes.json is not valid JSON \(Expecting value"),
        ({"shapes": 3}, r"codes.json: shapes is 3; accepted: the size of each level's code map"),
        ({"codebook_size": "16"}, r"codebook_size is '16'; accepted: an integer of at least 1"),
        ({"class_names": None}, r"class_names is None; accepted: a list of names"),
        ({"model": 1}, r"model is 1; accepted: text"),
        ({"sizes": {"train": 1}}, r"sizes is \{'train': 1\}; accepted: the number of images of train, valid"),
        ({"shard_size": 0}, r"shard_size is 0; accepted:"),
        ({"codebook_sizes": [[16]]}, r"has both codebook_size and codebook_sizes; accepted: one"),
        ({"colour": 0}, r"has the unknown entry 'colour'"),
    ],
)
def test_descriptions_of_codes_are_checked(
    tmp_path: Path, data, model: VQVAE2, change: str | dict[str, object], message: str
) -> None:
    CodeDescription(
        model.code_shapes(data.size), model.codebook_sizes, (), "digits", "", "", {}, dict.fromkeys(SPLITS, 1)
    ).save(tmp_path)
    file = tmp_path / "codes.json"
    CodeDescription.load(tmp_path)
    file.write_text(change if isinstance(change, str) else json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        CodeDescription.load(tmp_path)


def test_collapsed_codes_are_said_before_time_is_spent_on_them(tmp_path: Path, data, capsys) -> None:
    from models import VQVAE, train_prior
    from models.runs.config import PriorConfig

    torch.manual_seed(0)
    model = VQVAE(1, downscale=2, hidden=8, residual_hidden=4, embedding_dim=4, codebook_size=64).eval()
    z = model.to_embedding(model.encoder(to_float(data.train.batch(range(16))))).detach()
    model.quantizer.codebook = z.movedim(1, -1).flatten(0, -2)[::4]  # [64, 4]
    encode(model, data, tmp_path / "used")
    assert "in use" not in capsys.readouterr().err
    model.quantizer.codebook = torch.cat([torch.zeros(1, 4), torch.full((63, 4), 1e3)])
    store = encode(model, data, tmp_path / "collapsed")
    said = "level 0: 1 of 64 codes in use in 150 images; the codebook has collapsed: train again with"
    assert said in capsys.readouterr().err
    train_prior(
        PriorConfig(
            runs=str(tmp_path), codes=str(store.folder), width=8, layers=1, heads=2, steps=1, progress=False
        ),
        store,
    )
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("training", [True, False])
def test_encoding_leaves_mode_and_generator(tmp_path: Path, data, training: bool) -> None:
    model = VQVAE2(1, downscales=(2, 2), **TINY).train(training)
    model.decoder.train(not training)
    torch.manual_seed(5)
    encode(model, data, tmp_path)
    assert (model.training, model.decoder.training) == (training, not training)
    assert torch.initial_seed() == 5


@pytest.mark.parametrize("argument", ["batch_size", "shard_size"])
def test_encode_checks_its_sizes(tmp_path: Path, data, model: VQVAE2, argument: str) -> None:
    with pytest.raises(ValueError, match=f"{argument} is 0; accepted: an integer of at least 1"):
        encode(model, data, tmp_path / "codes", **{argument: 0})
    assert not (tmp_path / "codes").exists()


def test_codes_name_their_model_from_anywhere(tmp_path: Path, data, model: VQVAE2, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    model.save_pretrained("runs/a/model")
    named = encode(model, data, "runs/a/codes", source="runs/a/model").description
    assert encode(model, data, "unnamed").description.weights == named.weights
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert CodeStore("../runs/a/codes").description.model == "../runs/a/model"
    assert CodeStore(tmp_path / "runs/a/codes").description.model == str(tmp_path / "runs/a/model")


def test_codes_of_changed_images_or_labels_are_not_kept(tmp_path: Path) -> None:
    """As many images as before, of which two have changed their places; stores of before have no digest."""
    for name in ("ant", "bee"):
        write_images(tmp_path / "set" / name, 12, size=(8, 8))
    torch.manual_seed(0)
    model = VQVAE(3, downscale=2, hidden=8, residual_hidden=4, embedding_dim=4, codebook_size=16)

    def encoded(**options: bool) -> CodeStore:
        data = load(tmp_path / "set", stream=True)
        return encode(model, data, tmp_path / "codes", **options)

    encoded()
    (tmp_path / "set" / "ant" / "00.png").rename(tmp_path / "set" / "bee" / "90.png")
    (tmp_path / "set" / "bee" / "00.png").rename(tmp_path / "set" / "ant" / "00.png")
    with pytest.raises(OtherCodesError, match=r"holds codes of other images or labels .*\(--overwrite\)"):
        encoded()
    encoded(overwrite=True)
    file = tmp_path / "codes" / "codes.json"
    values = json.loads(file.read_text())
    del values["settings"]["digest"]
    file.write_text(json.dumps(values))
    assert len(encoded().split("train")) == 17


def test_copies_of_the_training_images_are_augmented_and_always_alike(tmp_path: Path) -> None:
    data = load_data(DataConfig(data="digits", limit=70))
    torch.manual_seed(0)
    model = VQVAE(1, downscale=2, kmeans_init=True, **TINY).train()
    model(to_float(data.train.batch(range(70))))
    model.eval()
    changes = AugmentSettings(shift=0.3, mirror=True)
    plain = encode(model, data, tmp_path / "plain")
    copied = encode(model, data, tmp_path / "copied", copies=3, augmentation=changes, batch_size=32)
    shape = {"batch_size": 50, "shard_size": 99}
    other = encode(model, data, tmp_path / "other", copies=3, augmentation=changes, **shape)
    images = len(data.train)
    assert (len(copied.train), len(copied.validation)) == (3 * images, len(plain.validation))
    for level, (one, all_copies, others) in enumerate(
        zip(*(store.train.batch(range(len(store.train))) for store in (plain, copied, other)), strict=True)
    ):
        assert torch.equal(all_copies[:images], one), level
        assert torch.equal(all_copies, others), level
        assert not torch.equal(all_copies[images : 2 * images], one)
        assert not torch.equal(all_copies[images : 2 * images], all_copies[2 * images :])
    labels = copied.train.batch_labels(range(3 * images))
    assert torch.equal(labels, data.train.labels.repeat(3))
    assert copied.description.settings["copies"] == 3
    assert "copies" not in plain.description.settings
    with pytest.raises(OtherCodesError, match="holds codes with copies 3, now it is None"):
        encode(model, data, tmp_path / "copied")
    with pytest.raises(ValueError, match="copies is 2; accepted: 1 for images as they are"):
        encode(model, data, tmp_path / "refused", copies=2)
