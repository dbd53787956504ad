"""The public names of ``models``: each is imported when it is first used."""

from __future__ import annotations

from importlib import import_module

import pytest

import models


@pytest.mark.parametrize("name", models.__all__)
def test_every_public_name_is_that_of_its_module(name: str) -> None:
    assert getattr(models, name) is getattr(import_module(models._HOME[name]), name)


def test_public_names_are_complete() -> None:
    assert set(models.__all__) == set(models._HOME)
    assert {"encode", "evaluate", "load_pretrained", "train", "train_prior"} <= set(dir(models))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        models.nothing  # noqa: B018
