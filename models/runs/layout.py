"""Every name in the folder of a run, once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from models.codes.description import DESCRIPTION_FILE
from models.pretrained import WEIGHTS_FILE

_EVERY_LOOP = ("checkpoints", "logs", "tensorboard", "curves.png", "warnings.txt", "made.json")
# All that a command writes into the folder of its run beside config.yaml and the folders of levels.
_OUTPUTS = {
    "train": (*_EVERY_LOOP, "data.json", "model", "reconstructions"),
    "train-prior": (*_EVERY_LOOP, DESCRIPTION_FILE, "nats.json"),
}


@dataclass(frozen=True)
class RunLayout:
    """Where the files of one run lie: ``RunLayout(Path("runs/digits")).model`` is ``runs/digits/model``.

    `train` writes ``config.yaml``, ``data.json``, ``checkpoints/{best,last}.ckpt``, ``logs/``,
    ``tensorboard/``, ``reconstructions/``, ``model/``, ``curves.png``, ``made.json`` and, where something
    went wrong, ``warnings.txt``; `train-prior` the same with ``level0/`` (top), ``level1/``, ...,
    ``codes.json`` and ``nats.json`` in place of ``data.json``, ``model/`` and ``reconstructions/``. The other
    commands add ``codes/``, ``evaluation-SPLIT.json``, ``reconstruct-SPLIT/`` and ``samples/``, both with
    ``made_of.json``, and ``report.html``. Nothing is read or made here.
    """

    folder: Path

    @property
    def config(self) -> Path:
        """The settings of the run, as YAML."""
        return self.folder / "config.yaml"

    @property
    def data(self) -> Path:
        """Digests of the images that the run was trained on, as JSON."""
        return self.folder / "data.json"

    @property
    def model(self) -> Path:
        """The folder of a trained autoencoder, for ``load_pretrained``."""
        return self.folder / "model"

    def level(self, number: int) -> Path:
        """The folder of the prior of one level of codes, for ``load_pretrained``; 0 is the top level."""
        return self.folder / f"level{number}"

    @property
    def levels(self) -> list[Path]:
        """The folders of priors that exist, top level first."""
        numbers = [path.name.removeprefix("level") for path in self.folder.glob("level*")]
        return [self.level(number) for number in sorted(int(text) for text in numbers if text.isdecimal())]

    @property
    def checkpoints(self) -> Path:
        """The folder of what training goes on from."""
        return self.folder / "checkpoints"

    @property
    def best(self) -> Path:
        """The checkpoint of lowest validation loss."""
        return self.checkpoints / "best.ckpt"

    @property
    def last(self) -> Path:
        """The checkpoint that a resumed run goes on from."""
        return self.checkpoints / "last.ckpt"

    @property
    def best_models(self) -> Path:
        """The best checkpoint of an unfinished run as a model folder, or as one for each level of a prior."""
        return self.checkpoints / "best"

    @property
    def logs(self) -> Path:
        """The folder of logged values: ``version_N/metrics.csv``, N growing with each start."""
        return self.folder / "logs"

    @property
    def tensorboard(self) -> Path:
        """The folder of logged values and pictures for TensorBoard."""
        return self.folder / "tensorboard"

    @property
    def curves(self) -> Path:
        """The figure of losses over the steps."""
        return self.folder / "curves.png"

    @property
    def warnings(self) -> Path:
        """What was noticed in training, a line each; there is none where nothing was."""
        return self.folder / "warnings.txt"

    @property
    def machine(self) -> Path:
        """Of every start of the run the commit, the time and the processor, as JSON."""
        return self.folder / "made.json"

    @property
    def reconstructions(self) -> Path:
        """The folder of the pictures that training draws."""
        return self.folder / "reconstructions"

    def epoch_picture(self, epoch: int) -> Path:
        """The picture of reconstructions after ``epoch``, counted from 1."""
        return self.reconstructions / f"epoch_{epoch:04d}.png"

    @property
    def epoch_pictures(self) -> dict[int, Path]:
        """The pictures of reconstructions that exist, by epoch, in order."""
        pictures = {path.stem.removeprefix("epoch_"): path for path in self.reconstructions.glob("epoch_*")}
        return {int(epoch): pictures[epoch] for epoch in sorted(filter(str.isdecimal, pictures), key=int)}

    @property
    def description(self) -> Path:
        """What the codes of a prior are, see :class:`models.codes.description.CodeDescription`."""
        return self.folder / DESCRIPTION_FILE

    @property
    def nats(self) -> Path:
        """What the codes of each level cost under the priors, of training and held-out images, as JSON."""
        return self.folder / "nats.json"

    @property
    def codes(self) -> Path:
        """The store that `encode` writes."""
        return self.folder / "codes"

    def evaluation(self, split: str) -> Path:
        """The figures that `evaluate` writes, as JSON."""
        return self.folder / f"evaluation-{split}.json"

    def reconstruct(self, split: str) -> Path:
        """The folder that `reconstruct` writes."""
        return self.folder / f"reconstruct-{split}"

    @property
    def samples(self) -> Path:
        """The folder that `sample` writes."""
        return self.folder / "samples"

    @property
    def report(self) -> Path:
        """The page that `report` writes."""
        return self.folder / "report.html"

    @staticmethod
    def made_of(folder: Path) -> Path:
        """Of which weights what `sample` and `reconstruct` wrote into ``folder`` is, as JSON."""
        return folder / "made_of.json"

    def is_finished(self, models: Sequence[Path]) -> bool:
        """Whether training came to its end, and not only a checkpoint was exported to where ``models`` lie.

        The figure is what training writes last. A run without it whose checkpoints are gone has nothing to go
        on from.
        """
        is_complete = self.curves.is_file() or not self.last.is_file()
        return is_complete and all((model / WEIGHTS_FILE).is_file() for model in models)

    def outputs(self, command: str) -> list[Path]:
        """What ``command``, `train` or `train-prior`, wrote here beside ``config.yaml``, by name."""
        levels = self.levels if command == "train-prior" else []
        names = [self.folder / name for name in _OUTPUTS[command]]
        return sorted(path for path in (*names, *levels) if path.exists() or path.is_symlink())

    @property
    def written(self) -> list[Path]:
        """What training and the commands wrote here, but for their folders of pictures."""
        figures = sorted(self.folder.glob("evaluation-*.json"))
        training = {*self.outputs("train"), *self.outputs("train-prior")}
        return [self.config, *sorted(training), self.codes, *figures, self.report]
