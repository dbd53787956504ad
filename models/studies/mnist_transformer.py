"""VQ-VAE with a Transformer prior over codebook sizes, code dimensions and sequence lengths.

Settings as published for MNIST, Fashion-MNIST and CelebA: downscale 4, K=128, D=8, 12 epochs, learning rate
3e-3; prior of width 64, 3 layers, dropout 0.1, learning rate 1.5e-3, 10 epochs; sampling with top-k 8 and
temperature 2. One start token a class makes samples diverse: with one for all, no sample is a 1 or a 7.

The published loss (equation 4) weighs the codebook term by 2 and the commitment by 2 x 0.1, and does not
divide the squared error by the variance of the data: the weights called published. Ours divide it, with 2 and
0.1 (at small scale 1). One pair is that of all variants, at real scale the published one; the other stands
beside it in one run. Five heads at width 64, as published, do not divide: 4 are used.

At real scale the priors that variants are compared by are short, equally so for all, and those of the base
setting are trained again, longer, until most samples are legible: of these is what samples show.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.data import to_uint8
from models.evaluation.judge import Judge
from models.evaluation.pictures import save_curves
from models.evaluation.tables import Row
from models.studies.figures import compare_reconstructions, sample_panels
from models.studies.runner import Runner, StudyOptions

if TYPE_CHECKING:
    from torch import Tensor

    from models.autoencoders.base import Autoencoder

OPTIONS = ("batch_size",)
SETTINGS: dict[str, dict[str, Any]] = {
    "small": {
        "data": "digits",
        "epochs": 40,
        "batch_size": 64,
        "lr": 2e-3,
        "hidden": 32,
        "embedding_dim": 8,
        "codebook_size": 32,
        "downscale": 2,
        "decay": 0.9,
        # In 800 steps the published 0.1 lets the encoder run ahead of its codes, which move by about the
        # learning rate a step; some settings then collapse (MSE 0.03 to 0.07, 0.005 to 0.007 with 1.0).
        "beta": 1.0,
    },
    "real": {
        "data": "mnist",  # a folder of tables; as well fashion_mnist, or celeba64 with --label-column Male
        "size": "32",  # downscale 8 divides it
        "limit": 12_000,
        "epochs": 3,
        "batch_size": 64,
        "lr": 3e-3,
        "beta": 0.1,
        "hidden": 32,
        "embedding_dim": 8,
        "codebook_size": 128,
        "downscale": 4,
        "precision": "bf16-mixed",
        "pictures_every": 0,
    },
    "paper": {
        "beta": 0.1,
        "data": "ylecun/mnist",
        "epochs": 12,
        "batch_size": 128,
        "lr": 3e-3,
        "embedding_dim": 8,
        "codebook_size": 128,
        "downscale": 4,
    },
}
SHARED: dict[str, Any] = {
    "codebook": "gradient",
    "alpha": 2.0,
    "kmeans_init": True,
    "dead_code_threshold": 1.0,
}
# Equation 4: the squared error is not divided, as by a variance of 1.
PUBLISHED_WEIGHTS: dict[str, Any] = {"alpha": 2.0, "beta": 0.2, "variance": 1.0}
# Of the losses, by the name that tables have for them; ours are those of ``SETTINGS``. The first are those of
# all variants, each of the others is that of one more run of the base setting.
WEIGHTS: dict[str, dict[str, dict[str, Any]]] = {
    "small": {"ours": {}, "published": PUBLISHED_WEIGHTS},
    "real": {
        "published": PUBLISHED_WEIGHTS,
        "ours": {},
        "published, codes by averages": PUBLISHED_WEIGHTS | {"codebook": "ema", "decay": 0.98},
    },
    "paper": {"ours": {}, "published": PUBLISHED_WEIGHTS},
}
PRIORS: dict[str, dict[str, Any]] = {
    "small": {"width": 64, "layers": 3, "dropout": 0.2, "lr": 2e-3, "epochs": 40, "schedule": "cosine"},
    "real": {
        "width": 64,
        "layers": 3,
        "dropout": 0.1,
        "batch_size": 32,
        "lr": 3e-3,
        "warmup": 100,
        "epochs": 2,
        "schedule": "cosine",
        "precision": "bf16-mixed",
    },
    "paper": {"width": 64, "layers": 3, "dropout": 0.1, "lr": 1.5e-3, "epochs": 10},
}
# What the priors of the base setting, trained once more, have in place of that.
LONGER: dict[str, dict[str, Any]] = {"real": {"epochs": 12}}
# One setting is changed at a time.
VARIANTS: dict[str, dict[str, tuple[int, ...]]] = {
    "small": {"codebook_size": (16, 64), "embedding_dim": (2, 32), "downscale": (4,)},
    "real": {"codebook_size": (32, 512), "embedding_dim": (2, 64), "downscale": (8,)},
    "paper": {"codebook_size": (32, 64, 256, 512), "embedding_dim": (2, 4, 16, 64), "downscale": (2, 8)},
}
# As published, and the model's own distribution.
SAMPLING = {"temperature 2, top-k 8": (2.0, 8), "temperature 1": (1.0, None)}
PER_CLASS = {"small": 20, "real": 100, "paper": 20}
SHOWN = 10  # of them
CLASSES = (
    "How many of {} samples a classifier takes for each class: of a prior with one start token for all "
    "(unconditional) and with one a class (conditional). Entropy of these classes in nats, at most {:.2f}. "
    "Published for MNIST: without labels no 1 and no 7."
)


@dataclass(frozen=True)
class Case:
    """One VQ-VAE and a pair of priors.

    variant: the settings that the study varies. weights: the name of those of the losses. longer: with
    the priors of ``LONGER``.
    """

    variant: dict[str, int]
    weights: str
    longer: bool = False

    def names(self, scale: str) -> tuple[str, str]:
        """Of the folder of the VQ-VAE, and of that of its priors without their kind."""
        name = "-".join(f"{key}{value}" for key, value in self.variant.items())
        if self.weights != next(iter(WEIGHTS[scale])):
            name += "-" + self.weights.replace(",", "").replace(" ", "-")
        return name, f"{name}-longer" if self.longer else name

    def label(self, scale: str) -> str:
        """What a figure adds to the sizes of the codes: the weights unless the first, and longer priors."""
        others = "" if self.weights == next(iter(WEIGHTS[scale])) else f", weights: {self.weights}"
        return f"{others}, longer" if self.longer else others


@dataclass
class Results:
    """What the cases leave behind, in order."""

    rows: list[Row] = field(default_factory=list)
    classes: list[Row] = field(default_factory=list)
    curves: dict[str, dict[str, Any]] = field(
        default_factory=lambda: {"unconditional": {}, "conditional": {}}
    )
    decoders: dict[str, Autoencoder] = field(default_factory=dict)


def run(options: StudyOptions) -> Path:
    """Train every variant with an unconditional and a class-conditional prior; write table and samples."""
    runner = Runner("mnist-transformer", options, SETTINGS, OPTIONS)
    scale = options.scale
    cases, left_out = _cases(runner)
    runner.say("training the judge of samples")
    judge = _judge(runner) if runner.data.class_names else None
    results = Results()
    for case in cases:
        _run_case(runner, case, judge, results)
    skipped = f" Left out, as the image size is not a multiple: {', '.join(left_out)}." if left_out else ""
    runner.write_table(
        "variants",
        results.rows,
        f"Test split of {runner.data_name}. {_of_weights(runner)} {_of_classes(runner, judge)}{skipped}",
    )
    panels = {f"{kind} prior, validation": lines for kind, lines in results.curves.items()}
    units = dict.fromkeys(panels, "nats a code")
    caption = runner.caption("validation", "beta", *VARIANTS[scale])
    save_curves(runner.folder / "priors.png", panels, y_labels=units, caption=caption)
    if results.classes:
        classes = len(runner.data.class_names)
        about = CLASSES.format(PER_CLASS[scale] * classes, math.log(classes))
        runner.write_table("classes", results.classes, about)
    path, caption = runner.folder / "reconstructions.png", runner.caption("test", "beta", *VARIANTS[scale])
    compare_reconstructions(path, runner.data, results.decoders, caption=caption)
    return runner.folder


def _cases(runner: Runner) -> tuple[list[Case], list[str]]:
    """The cases whose code maps fit the images, those of the base setting first, and what does not fit."""
    scale = runner.options.scale
    base = {name: getattr(runner.config, name) for name in VARIANTS[scale]}
    variants = [base | {name: value} for name, values in VARIANTS[scale].items() for value in values]
    weights, *others = WEIGHTS[scale]
    cases = [Case(base, weights)]
    if scale in LONGER and "epochs" not in runner.given:
        cases.append(Case(base, weights, longer=True))
    cases += [Case(base, other) for other in others] + [Case(variant, weights) for variant in variants]
    fitting = [
        case for case in cases if all(size % case.variant["downscale"] == 0 for size in runner.data.size)
    ]
    sizes = dict.fromkeys(case.variant["downscale"] for case in cases if case not in fitting)
    return fitting, [f"downscale {size}" for size in sizes]


def _judge(runner: Runner) -> Judge:
    """A classifier of real images; pixels are enough for grey digits and clothes, not for coloured photos."""
    model = "svm" if runner.data.channels == 1 else "cnn"
    return Judge(runner.data.train, model=model, progress=runner.options.progress)


def _entropy(counts: Sequence[int]) -> float:
    """Of classes that were seen so many times, in nats."""
    total = sum(counts)
    return sum(count / total * math.log(total / count) for count in counts if count)


def _of_weights(runner: Runner) -> str:
    ours = f"codebook {SHARED['alpha']:g}, commitment {runner.config.beta:g}, error over the data's variance"
    return f"Weights: ours are {ours}; those published are codebook 2, commitment 0.2, error as it is."


def _of_classes(runner: Runner, judge: Judge | None) -> str:
    if judge is None:
        return f"No class-conditional priors, as {runner.data_name} has no labels."
    return (
        f"Agreement: share of class-conditional samples that a classifier (accuracy on real images "
        f"{judge.accuracy(runner.data.test):.3f}) takes for the class asked for."
    )


def _run_case(runner: Runner, case: Case, judge: Judge | None, results: Results) -> None:
    """Train one VQ-VAE, unless an earlier case has, and its priors; add to ``results``, draw their samples.

    The conditional prior is left out where there are no classes, and so no ``judge``.
    """
    from models.runs.history import read_history

    scale = runner.options.scale
    model_name, name = case.names(scale)
    trained = runner.train(model_name, **(SHARED | case.variant | WEIGHTS[scale][case.weights]))
    settings = PRIORS[scale] | (LONGER[scale] if case.longer else {})
    epochs = runner.given.get("epochs", settings["epochs"])
    about: dict[str, str | int] = {**case.variant, "weights": case.weights, "epochs of priors": epochs}
    row: dict[str, str | float | int] = dict(about)
    names = runner.data.class_names
    panels: dict[str, tuple[Tensor, Sequence[str]]] = {}
    for kind in ("unconditional", "conditional") if judge else ("unconditional",):
        store, priors = runner.train_priors(
            trained, f"{name}-{kind}", **settings, conditional=kind == "conditional"
        )
        metrics = runner.evaluate(trained, priors=priors)
        if kind == "unconditional":
            row["sequence length"] = sum(level[0] * level[1] for level in store.description.shapes)
            row |= {key: metrics[key] for key in ("mse", "ssim", "perplexity", "usage")}
        row[f"bits/dim {kind}"] = metrics["bits_per_dim"]
        row[f"nats a code {kind}"] = metrics["nats_per_code"]
        used = trained.config
        label = f"K={used.codebook_size}, D={used.embedding_dim}, {row['sequence length']} codes"
        label += case.label(scale)
        if not case.longer:
            results.decoders[label] = trained.model
        history = read_history(runner.folder / f"{name}-{kind}")
        results.curves[kind][label] = history["validation/nats_per_code"]
        for title, (temperature, top_k) in SAMPLING.items():
            images, labels = runner.sample(
                trained, priors, store, PER_CLASS[scale], temperature=temperature, top_k=top_k
            )
            shown = images.unflatten(0, (-1, PER_CLASS[scale]))[:, :SHOWN].flatten(0, 1)
            panels[f"{kind}, {title}"] = shown, names if kind == "conditional" else ()
            if judge:
                taken_for = judge.classes(to_uint8(images))
                counts = taken_for.bincount(minlength=len(names)).tolist()
                taken: dict[str, str | int] = {"prior": kind, "sampling": title}
                taken |= dict(zip(names, counts, strict=True))
                results.classes.append(about | taken | {"entropy": _entropy(counts)})
                if kind == "conditional":
                    row[f"agreement, {title}"] = float((taken_for == labels.cpu()).float().mean())
    results.rows.append(row)
    caption = f"{runner.caption('train', 'beta', *case.variant)}; {label}"
    sample_panels(runner.folder / f"samples-{name}.png", panels, SHOWN, caption)
