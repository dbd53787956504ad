"""Which model, which classes and which images a prior belongs to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from models.codes.description import CodeDescription
from models.data.columns import JOINED
from models.pretrained import WEIGHTS_FILE, weights_hash
from models.runs.export import usable_model

if TYPE_CHECKING:
    from models.codes.store import CodeStore
    from models.data import ImageData
    from models.priors.base import AutoregressivePrior


def check_prior_of(prior: str | Path, model: str | Path) -> None:
    """ValueError unless the prior in folder ``prior`` was trained on codes of the weights in ``model``."""
    description = CodeDescription.load(Path(prior))
    folder = usable_model(model)
    if not (folder / WEIGHTS_FILE).is_file():
        raise FileNotFoundError(
            f"{folder / WEIGHTS_FILE} does not exist; give the run of the model whose codes the prior in "
            f"{prior} was trained on (for `sample`: --model RUN)"
        )
    if not description.weights or description.weights == weights_hash(folder):
        return
    if description.model and folder.resolve() == Path(description.model).resolve():
        raise ValueError(
            f"the weights in {folder} have changed since the prior in {prior} was trained on their codes; "
            "encode again (--overwrite) and train the prior on the new codes"
        )
    raise ValueError(
        f"the prior in {prior} was trained on codes of {description.model}, not of {model}; give that "
        "model, or encode with this one and train a prior on its codes"
    )


def check_codes_of(codes: CodeStore) -> None:
    """ValueError where the model that ``codes`` were made with is where they say, with other weights by now.

    Codes that do not say, and those of a model that lies elsewhere now, are taken as they are.
    """
    description = codes.description
    folder = Path(description.model)
    if not (description.model and description.weights and (folder / WEIGHTS_FILE).is_file()):
        return
    if description.weights != weights_hash(folder):
        raise ValueError(
            f"the weights in {folder} have changed since the codes in {codes.folder} were made; encode "
            f"again (--overwrite) and train the prior on the new codes"
        )


def check_classes(
    prior: str | Path, priors: Sequence[AutoregressivePrior], data: str, class_names: Sequence[str]
) -> None:
    """ValueError unless the classes of ``data`` are, in order, those that a conditional prior knows."""
    trained = CodeDescription.load(Path(prior)).class_names
    if priors[0].num_classes is not None and tuple(class_names) != trained:
        raise ValueError(
            f"the prior in {prior} was trained with the classes {_listed(trained)}, but {data} has "
            f"{_listed(class_names)}; give data with the same labels (--label-column), or train another prior"
        )


def class_rows(
    names: str | None, class_names: Sequence[str], num_classes: int | None
) -> list[tuple[str, list[int]]]:
    """What to draw samples of: names and the labels of each, see :func:`class_labels`.

    Where classes combine the labels of several columns (``female+noble``), a part of their names stands for
    all classes that have it, in equal numbers.
    """
    parts: dict[str, list[int]] = {}
    for number, name in enumerate(class_names):
        for part in name.split(JOINED):
            parts.setdefault(part, []).append(number)
    chosen = [name.strip() for name in (names or "").split(",")]
    if num_classes is not None and names and any(name in parts for name in chosen):
        groups = {name: [number] for number, name in enumerate(class_names)} | parts
        for name in chosen:
            if name not in groups:
                raise ValueError(f"unknown class {name!r}; accepted: {', '.join(groups)}")
        return [(name, groups[name]) for name in chosen]
    labels = class_labels(names, class_names, num_classes)
    return [(class_names[label] if class_names and num_classes else "", [label]) for label in labels]


def mixed_labels(members: Sequence[int], count: int, frequencies: Tensor | None = None) -> Tensor:
    """``count`` labels of the classes ``members``, those of each spread over all: ``[count]`` int64.

    frequencies: of every class, ``[classes]``, in whose proportions ``members`` come, rounded by the largest
    remainder; without it, and of members that are not among the data, in equal ones.
    """
    known = None if frequencies is None else frequencies[list(members)].double()
    if known is None or not known.sum():
        return torch.tensor(members)[torch.arange(count) % len(members)]
    exact = known / known.sum() * count
    numbers = exact.floor()
    remainders = (exact - numbers).argsort(descending=True, stable=True)
    numbers[remainders[: count - int(numbers.sum())]] += 1
    labels = torch.tensor(members).repeat_interleave(numbers.long())
    places = torch.cat([(torch.arange(int(number)) + 0.5) / number for number in numbers if number])
    return labels[places.argsort(stable=True)]


def class_labels(names: str | None, class_names: Sequence[str], num_classes: int | None) -> list[int]:
    """The labels to draw samples of: those of ``names``, separated by commas, or of all classes.

    class_names: of the codes that the prior was trained on. num_classes: of the prior; None for one without
    labels, of which the one label is 0. Raises ValueError for a name that is not among ``class_names``.
    """
    if num_classes is None:
        if names:
            raise ValueError(
                f"classes is {names!r}; accepted: none, as this prior was trained without labels "
                f"(--conditional)"
            )
        return [0]
    if not names:
        return list(range(num_classes))
    if names in class_names:  # one class, whose name may hold a comma
        return [class_names.index(names)]
    chosen = [name.strip() for name in names.split(",")]
    for name in chosen:
        if name not in class_names:
            raise ValueError(f"unknown class {name!r}; accepted: {', '.join(class_names)}")
    return [class_names.index(name) for name in chosen]


def judge_data(
    source: str, prior: str | Path, priors: Sequence[AutoregressivePrior], description: CodeDescription
) -> ImageData:
    """Images of ``source`` in the size and channels of the encoded ones, to train a judge of samples on.

    Of the data that were encoded, it reads the same columns and splits, all images of them. ValueError
    unless the classes are those of the priors, in the same order.
    """
    from models.data import DataConfig, load_data
    from models.data.kinds import kind_of_settings
    from models.data.sources import location

    if not priors[0].num_classes:
        raise ValueError("--judge needs samples of classes; this prior was trained without labels")
    names: tuple[str, ...] = ("kind", *kind_of_settings(description.settings).own_settings)
    if location(source) == description.data:
        names += ("image_column", "label_column", "validation", "test", "split_seed", "split_by")
    # Codes of before there was a choice do not say how the images were split.
    described = {"split_by": "number"} | description.settings
    shared = {name: described[name] for name in names if name in described}
    data = load_data(DataConfig(data=source, **shared), stream=True)
    check_classes(prior, priors, f"the judge's data {data.name}", data.class_names)
    return data


def _listed(names: Sequence[str], most: int = 12) -> str:
    more = f", ... ({len(names)} in all)" if len(names) > most else ""
    return ", ".join(names[:most]) + more if names else "no labels"
