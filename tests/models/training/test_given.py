"""Models, images, priors and codes of one's own, and how commands reopen runs of them."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import preloaded
import pytest
import torch
from PIL import Image
from training_support import SMALL, settings

from models import VQVAE, DataConfig, TransformerPrior, encode, evaluate, load_data, train, train_prior
from models.autoencoders.base import Autoencoder
from models.cli import main
from models.data.given import as_image_data
from models.runs.config import PriorConfig
from models.runs.export import checkpoint_models

ROOT = Path(__file__).parents[3]
MODULE = """
from torch import nn
from models.autoencoders.base import Autoencoder, AutoencoderOutput
from models.autoencoders.likelihoods import make_likelihood
from models.pretrained import constructor_arguments

class Linear(Autoencoder):
    def __init__(self, width=3):
        config = constructor_arguments(locals())
        super().__init__()
        self.config, self.in_channels = config, 1
        self.likelihood = make_likelihood("mse", 1, 0.1)
        self.inner = nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.Linear(width, 64),
        nn.Unflatten(1, (1, 8, 8)))
    def reconstruct(self, x):
        return self.inner(x)
    def forward(self, x):
        mean = self.inner(x)
        loss = self.likelihood.loss(mean, x)
        return AutoencoderOutput(mean, loss, {"reconstruction": loss.detach()}, ())
    def nats(self, x, output):
        return {"decoder": -self.likelihood.log_prob(output.reconstruction, x).flatten(1).sum(1)}
    def accepted_size(self, size):
        return None if tuple(size) == (8, 8) else "8x8"
"""


def pixels(count: int = 120) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    return generator.integers(0, 256, (count, 8, 8), dtype=np.uint8), np.arange(count) % 3


def quick(folder: Path, **changes: object) -> dict[str, object]:
    return {"epochs": 1, "batch_size": 16, "limit": None, **changes, "runs": str(folder)}


class Torch(torch.utils.data.Dataset):
    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int):
        return Image.fromarray(self.images[row]), self.labels[row]


def hugging_face(images: np.ndarray, labels: np.ndarray):
    import datasets

    rows = {"image": [Image.fromarray(image) for image in images], "label": labels.tolist()}
    return datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())


def test_every_form_of_data_gives_the_same_images() -> None:
    images, labels = pixels()
    forms = {
        "arrays": (images, labels),
        "tensors": (torch.from_numpy(images).unsqueeze(1), torch.from_numpy(labels)),
        "torch": Torch(images, labels),
        "hugging face": hugging_face(images, labels),
    }
    for name, form in forms.items():
        data = as_image_data(form, DataConfig())
        assert (data.size, data.channels, data.class_names) == ((8, 8), 1, ("0", "1", "2")), name
        held = []
        for split in (data.train, data.validation, data.test):
            batch, numbers = split.batch(range(len(split))), split.batch_labels(range(len(split)))
            pairs = zip(batch, numbers, strict=True)
            held += [(image.numpy().tobytes(), int(number)) for image, number in pairs]
        truth = [(image.tobytes(), int(label)) for image, label in zip(images, labels, strict=True)]
        assert sorted(held) == sorted(truth), name
    given = as_image_data({"train": images[:90], "val": images[90:100], "test": images[100:]}, DataConfig())
    assert [len(given.train), len(given.validation), len(given.test)] == [90, 10, 20]
    for bad, message in (
        (images.astype(np.float32), "image 0 is float32"),
        ((images, labels[:5]), "labels is of 5; accepted: one for each of 120"),
        (7, "data is a int; accepted: arrays of bytes"),
        ({"test": images}, "one must be called train"),
        (np.zeros((9, 2, 8, 8), dtype=np.uint8), "accepted: 1 or 3 channels"),
    ):
        with pytest.raises(ValueError, match=message):
            as_image_data(bad, DataConfig())


def test_a_model_and_images_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    (tmp_path / "my_nets.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    import my_nets

    own = my_nets.Linear(width=5)
    start = {name: value.clone() for name, value in own.state_dict().items()}
    trained = train(settings(tmp_path, **quick(tmp_path, name="own")), pixels(), model=own)
    assert isinstance(trained, my_nets.Linear)
    assert not torch.equal(trained.inner[1].weight, start["inner.1.weight"]), "it has learnt"
    stored = json.loads((tmp_path / "own" / "model" / "config.json").read_text())
    assert (stored["module"], stored["class"], stored["arguments"]) == ("my_nets", "Linear", {"width": 5})
    again = Autoencoder.from_pretrained(tmp_path / "own" / "model")
    assert torch.equal(again.inner[1].weight, trained.inner[1].weight)
    assert isinstance(checkpoint_models(tmp_path / "own")[0], my_nets.Linear), "an unfinished run, too"
    assert main(["evaluate", "own", "--device", "cpu"]) == 2
    said = capsys.readouterr().err
    assert "the images were given in Python and lie nowhere; give data (--data FOLDER" in said
    with pytest.raises(TypeError, match=r"model is a Linear; accepted: a subclass of models.autoencoders"):
        train(model=torch.nn.Linear(1, 1))
    wide = settings(tmp_path, **quick(tmp_path, name="wide"))
    with pytest.raises(ValueError, match="accepted: 8x8"):
        train(wide, np.random.default_rng(0).integers(0, 256, (90, 16, 16), np.uint8), model=own)


def models_command(folder: Path, *arguments: str, path: str = "") -> subprocess.CompletedProcess[str]:
    return preloaded.run(["-m", "models", *arguments], cwd=folder, PYTHONPATH=path, OMP_NUM_THREADS="1")


def test_commands_reopen_a_model_of_ones_own_where_that_is_allowed(tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "my_nets.py").write_text(MODULE)
    script = tmp_path / "script.py"
    script.write_text(
        f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(tmp_path / 'code')!r}]\n"
        "from models import train\nfrom models.runs.config import TrainConfig\nimport my_nets\n"
        "train(TrainConfig(epochs=1, limit=64, progress=False, pictures_every=0), model=my_nets.Linear())\n"
    )
    done = preloaded.run([str(script)], cwd=tmp_path, PYTHONPATH="", OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    evaluate_it = ("evaluate", "runs/run", "--device", "cpu")
    refused = models_command(tmp_path, *evaluate_it, path=str(tmp_path / "code"))
    assert refused.returncode == 2
    assert "class is Linear of the module my_nets, which is not imported; import it first" in refused.stderr
    missing = models_command(tmp_path, *evaluate_it, "--allow-import")
    assert missing.returncode == 2
    assert "Linear of the module my_nets cannot be imported" in missing.stderr
    assert "PYTHONPATH" in missing.stderr
    assert missing.stderr.count("\n") == 1
    opened = models_command(tmp_path, *evaluate_it, "--allow-import", path=str(tmp_path / "code"))
    assert opened.returncode == 0, opened.stderr
    assert "bits_decoder" in opened.stdout


def test_a_subclass_of_the_same_name_is_not_taken_for_ours(tmp_path: Path) -> None:
    ours = VQVAE(1, hidden=8, residual_hidden=4, embedding_dim=4, codebook_size=16, downscale=2)
    own = type("VQVAE", (VQVAE,), {"__module__": "their_nets"})
    ours.save_pretrained(tmp_path / "ours")
    own(**ours.config).save_pretrained(tmp_path / "own")
    assert type(VQVAE.from_pretrained(tmp_path / "ours")) is VQVAE
    assert type(VQVAE.from_pretrained(tmp_path / "own")) is own
    script = type("Net", (VQVAE,), {"__module__": "__main__"})
    script(**ours.config).save_pretrained(tmp_path / "script")
    del script
    text = (tmp_path / "script" / "config.json").read_text()
    (tmp_path / "script" / "config.json").write_text(text.replace('"Net"', '"Gone"'))
    with pytest.raises(ValueError, match=r"class is Gone of a script, .*; define it in a module"):
        VQVAE.from_pretrained(tmp_path / "script", allow_import=True)
    (tmp_path / "script" / "config.json").write_text(
        json.dumps({"class": "Path", "module": "pathlib", "arguments": {}})
    )
    with pytest.raises(ValueError, match=r"class is Path of pathlib; accepted: a subclass of VQVAE"):
        VQVAE.from_pretrained(tmp_path / "script", allow_import=True)


def test_a_prior_and_codes_of_ones_own(tmp_path: Path) -> None:
    import datasets

    class Own(TransformerPrior):
        pass

    codes = np.random.default_rng(0).integers(0, 16, (120, 4, 4))
    labels = np.arange(120) % 3
    loop = {name: SMALL[name] for name in ("epochs", "log_every", "progress", "accelerator")}
    loop |= {"runs": str(tmp_path), "batch_size": 16}
    forms = {
        "array": codes,
        "mapping": {"level0": codes, "label": labels},
        "torch": torch.utils.data.TensorDataset(torch.from_numpy(codes), torch.from_numpy(labels)),
        "hugging face": datasets.Dataset.from_dict({"level0": codes.tolist(), "label": labels.tolist()}),
    }
    losses = {}
    for name, form in forms.items():
        torch.manual_seed(0)
        classes = None if name == "array" else 3
        own = Own(16, 8, shape=(4, 4), layers=1, heads=2, num_classes=classes)
        (prior,) = train_prior(PriorConfig(name=name.replace(" ", ""), **loop), form, prior=own)
        conditions = None if classes is None else torch.from_numpy(labels)
        losses[name] = prior.log_prob(torch.from_numpy(codes), conditions).sum()
    assert losses["mapping"] == losses["torch"] == losses["hugging face"] != losses["array"]
    stored = json.loads((tmp_path / "array" / "level0" / "config.json").read_text())
    assert stored["module"] == __name__
    with pytest.raises(TypeError, match=r"prior is a Linear; accepted: a subclass of models.priors.base"):
        train_prior(PriorConfig(name="x", **loop), codes, prior=torch.nn.Linear(1, 1))
    with pytest.raises(ValueError, match="prior is of 2 levels; accepted: one for each of 1"):
        train_prior(PriorConfig(name="x", **loop), codes, prior=[own, own])
    few = Own(8, 8, shape=(4, 4), layers=1, heads=2)
    # An earlier run stays until the codes are known to fit.
    before = (tmp_path / "array" / "level0" / "model.safetensors").read_bytes()
    with pytest.raises(ValueError, match="level0 of codes holds values up to 15; accepted: 0 to 7, those of"):
        train_prior(PriorConfig(name="array", **loop), codes, prior=few, overwrite=True)
    assert (tmp_path / "array" / "level0" / "model.safetensors").read_bytes() == before
    with pytest.raises(ValueError, match=r"level0 of codes is torch.float64 of shape"):
        train_prior(PriorConfig(name="x", **loop), codes + 0.5)


def test_a_prior_in_eval_mode_is_trained_with_its_dropout(tmp_path: Path) -> None:
    codes = np.random.default_rng(0).integers(0, 16, (60, 4, 4))
    loop = {name: SMALL[name] for name in ("log_every", "progress", "accelerator")}
    loop |= {"runs": str(tmp_path), "batch_size": 16, "epochs": 2}
    probabilities = []
    for training in (True, False):
        torch.manual_seed(0)
        own = TransformerPrior(16, 8, shape=(4, 4), layers=1, heads=2, dropout=0.5).train(training)
        (prior,) = train_prior(PriorConfig(name=f"own-{training}", **loop), codes, prior=own)
        probabilities.append(prior.log_prob(torch.from_numpy(codes)))
    assert torch.equal(*probabilities)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kmeans_init", [True, False])
def test_looking_at_a_model_changes_nothing_of_it(tmp_path: Path, training: bool, kmeans_init: bool) -> None:
    data = load_data(DataConfig(limit=60))
    shape = {"hidden": 8, "residual_hidden": 4, "embedding_dim": 4, "codebook_size": 16, "downscale": 2}
    model = VQVAE(1, kmeans_init=kmeans_init, dead_code_threshold=1.0, likelihood="mse", **shape)
    x = torch.rand(4, 1, 8, 8) - 0.5
    model.train()
    model(x).loss.backward()
    model.decoder.eval()
    for parameter in model.encoder.parameters():
        parameter.requires_grad_(False)
    if not training:
        model.eval()

    def state() -> list[object]:
        return [
            [module.training for module in model.modules()],
            [(p.requires_grad, None if p.grad is None else p.grad.clone()) for p in model.parameters()],
            {name: value.clone() for name, value in model.state_dict().items()},
            torch.get_rng_state(),
            torch.is_grad_enabled(),
        ]

    for look in (
        lambda: evaluate(model, data),
        lambda: encode(model, data, tmp_path / "codes", overwrite=True),
        lambda: model.reconstruct(x),
        lambda: model.encode(x),
    ):
        before = state()
        look()
        after = state()
        assert before[0] == after[0]
        assert [flag for flag, _ in before[1]] == [flag for flag, _ in after[1]]
        for (_, first), (_, second) in zip(before[1], after[1], strict=True):
            assert (first is None) == (second is None)
            assert first is None or torch.equal(first, second)
        assert all(torch.equal(value, after[2][name]) for name, value in before[2].items())
        assert torch.equal(before[3], after[3])
        assert before[4] == after[4]


def test_documented_attributes_exist() -> None:
    """What a class lists under ``Attributes:`` is set, annotated or a property of it."""
    import ast
    import re

    for file in sorted((ROOT / "models").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.ClassDef) or "Attributes:" not in (ast.get_docstring(node) or ""):
                continue
            text = (ast.get_docstring(node) or "").partition("Attributes:\n")[2].partition("\n\n")[0]
            listed = re.findall(r"^    (\w[\w, ]*):", text, re.M)
            source = ast.unparse(node)
            for name in (name for entry in listed for name in entry.split(", ")):
                found = re.search(rf"(self\.{name}\b|^    {name}: |def {name}\()", source, re.M)
                assert found, (file, node.name, name)
