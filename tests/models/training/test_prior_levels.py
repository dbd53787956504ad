"""Priors of one level alone, above and below each other, and labels that are dropped in training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from run_support import tiny_hierarchy

from models.codes.encode import encode
from models.codes.store import CodeStore
from models.data import BatchLoader, DataConfig, load_data
from models.evaluation.evaluate import evaluate
from models.pretrained import weights_hash
from models.runs.build import build_priors
from models.runs.config import PriorConfig
from models.runs.open import open_priors, prior_levels
from models.training.modules import PriorModule
from models.training.prior import train_prior
from models.training.signals import TrainingStopped


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> CodeStore:
    data = load_data(DataConfig(data="digits", limit=64))
    return encode(tiny_hierarchy(), data, tmp_path_factory.mktemp("codes"))


def _settings(folder: Path, name: str, **changes: object) -> PriorConfig:
    quick = {"width": 8, "layers": 1, "heads": 2, "epochs": 1, "batch_size": 16, "progress": False}
    return PriorConfig(**{"runs": str(folder), "name": name, **quick, **changes})


def test_each_level_may_have_settings_of_its_own(tmp_path: Path, store: CodeStore) -> None:
    top = _settings(tmp_path, "top", level=0, width=16, codes=str(store.folder))
    below = _settings(
        tmp_path, "below", level=1, batch_size=32, above=str(top.folder), codes=str(store.folder)
    )
    with pytest.raises(ValueError, match="top holds no codes"):
        train_prior(below)
    (prior,) = train_prior(top)
    assert prior.upper_codebook_size is None
    with pytest.raises(FileNotFoundError, match=r"holds no prior of level 1; train it \(--level 1\)"):
        open_priors(top.folder)
    train_prior(below)
    levels = prior_levels(below.folder)
    assert [level.name for level in levels] == ["level0", "level1"]
    assert weights_hash(levels[0]) == weights_hash(top.layout.level(0))
    opened = open_priors(below.folder)
    assert [one.config["width"] for one in opened] == [16, 8]
    assert opened[1].upper_codebook_size == 16
    nats = json.loads(below.layout.nats.read_text())
    assert set(nats) == {"training", "held out"}
    assert set(nats["held out"]) == {"nats_per_code_bottom"}
    data = load_data(DataConfig(data="digits", limit=64))
    figures = evaluate(tiny_hierarchy(), data, split="validation", priors=opened)
    assert figures["nats_per_code_bottom"] == pytest.approx(
        nats["held out"]["nats_per_code_bottom"], rel=1e-5
    )
    bits = 4 * figures["nats_per_code_top"] + 16 * figures["nats_per_code_bottom"]
    assert figures["bits_codes_prior"] == pytest.approx(
        bits / 64 / torch.log(torch.tensor(2.0)).item(), rel=1e-5
    )


def test_the_best_checkpoint_of_an_unfinished_level_stands_below_the_others(
    tmp_path: Path, store: CodeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    codes = str(store.folder)
    train_prior(top := _settings(tmp_path, "top", level=0, codes=codes))
    below = _settings(tmp_path, "below", level=1, above=str(top.folder), codes=codes)

    def stop(*arguments: object) -> None:
        raise TrainingStopped(2)

    monkeypatch.setattr("models.training.prior.load_best", stop)
    with pytest.raises(TrainingStopped):
        train_prior(below)
    assert [level.parent.name for level in prior_levels(below.folder)] == ["below", "best"]
    assert len(open_priors(below.folder)) == 2


def test_levels_that_do_not_fit_are_refused(tmp_path: Path, store: CodeStore) -> None:
    codes = str(store.folder)
    with pytest.raises(ValueError, match=r"level is 2; accepted: 0 \(top\) to 1"):
        train_prior(_settings(tmp_path, "run", level=2, codes=codes))
    with pytest.raises(ValueError, match="above is x; accepted: none, without a level below the top"):
        _settings(tmp_path, "run", above="x")
    train_prior(low := _settings(tmp_path, "low", level=1, codes=codes))
    with pytest.raises(FileNotFoundError, match=r"above is .*low, which has no prior of level 0; train it"):
        train_prior(_settings(tmp_path, "lower", level=1, above=str(low.folder), codes=codes))


def test_labels_are_dropped_in_training_alone(tmp_path: Path, store: CodeStore) -> None:
    config = _settings(tmp_path, "run", label_dropout=0.5)
    torch.manual_seed(0)
    priors = build_priors(config, store.description)
    assert [prior.null_label for prior in priors] == [10, 10]
    seen: list[torch.Tensor] = []
    for prior in priors:
        prior.register_forward_pre_hook(lambda module, given: seen.append(given[1]))
    module = PriorModule(priors, config, BatchLoader(store.train, 16))
    batch = (store.train.batch(range(64)), store.train.batch_labels(range(64)))
    module.losses(batch)
    assert all(torch.equal(labels, batch[1]) for labels in seen)
    seen.clear()
    module.losses(batch, config.label_dropout)
    for labels in seen:
        is_dropped = labels == 10
        assert 16 < int(is_dropped.sum()) < 48
        assert torch.equal(labels[~is_dropped], batch[1][~is_dropped])
    assert not torch.equal(*seen)
    train_prior(config.replace(name="whole", codes=str(store.folder)))
    nats = json.loads((tmp_path / "whole" / "nats.json").read_text())
    assert set(nats) == {"training", "held out", "held out, without labels"}
    assert nats["held out"] != nats["held out, without labels"]
    unlabelled = {"conditional": False, "codes": str(store.folder), "name": "without"}
    with pytest.raises(
        ValueError, match=r"label_dropout is 0.5; accepted: 0, as the prior is not conditional"
    ):
        train_prior(config.replace(**unlabelled))
