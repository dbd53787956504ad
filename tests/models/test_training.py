"""Training loops: exact resumption, equal runs for equal seeds, several processes, what is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from models.config import PriorConfig, TrainConfig
from models.data import DataConfig, load_data
from models.pretrained import load_pretrained

pytestmark = pytest.mark.xdist_group("training")  # one process pays for importing Lightning

Settings = dict[str, object]
SMALL: Settings = {
    "hidden": 8,
    "residual_hidden": 4,
    "embedding_dim": 4,
    "codebook_size": 16,
    "downscale": 2,
    "channels_vae": (4, 4, 4, 4),
    "latent_dim": 3,
    "kmeans_init": True,
    "dead_code_threshold": 1.0,
    "batch_size": 64,
    "lr": 1e-3,
    "limit": 256,
    "epochs": 2,
    "log_every": 1,
    "checkpoint_every": 3,
    "pictures_every": 0,
    "progress": False,
    "accelerator": "cpu",
}


def settings(folder: Path, **changes: object) -> TrainConfig:
    return TrainConfig(**{"runs": str(folder), **SMALL, **changes})


@pytest.fixture(scope="module")
def data():
    return load_data(DataConfig(data="digits", limit=256))


def histories(*folders: Path) -> list[dict[str, object]]:
    from models.training.history import read_history

    return [read_history(folder) for folder in folders]


def train(config: TrainConfig, data, **options: bool):
    from models.training.autoencoder import train

    return train(config, data, **options)


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, str(Path.cwd() / "tests" / "models"))
import test_training, models.training.modules as modules
step = modules.AutoencoderModule.training_step
def dying(self, batch, index):
    if self.trainer.global_step == 6:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, batch, index)
modules.AutoencoderModule.training_step = dying
data = test_training.load_data(test_training.DataConfig(data="digits", limit=256))
test_training.train(test_training.settings(Path(sys.argv[1]), name="killed", **eval(sys.argv[2])), data)
"""


def run_python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    root = Path(__file__).parents[2]
    env = os.environ | {"PYTHONPATH": str(root), "CUDA_VISIBLE_DEVICES": ""} | environment
    return subprocess.run([sys.executable, *arguments], cwd=root, env=env, capture_output=True, text=True)


@pytest.mark.parametrize(
    "changes",
    [{"model": "vqvae", "schedule": "cosine"}, {"model": "vae", "likelihood": "gaussian", "kl_warmup": 3}],
    ids=["vqvae", "vae"],
)
def test_killed_in_the_middle_of_an_epoch_and_resumed(tmp_path: Path, data, changes: Settings) -> None:
    """Four steps an epoch, last checkpoint after step 3 and 6, killed in step 7: all losses are equal."""
    killed = run_python("-c", KILLED, str(tmp_path), repr(changes))
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    resumed = train(settings(tmp_path, name="killed", **changes), data, resume=True)
    whole = train(settings(tmp_path, name="whole", **changes), data)
    first, second = histories(tmp_path / "killed", tmp_path / "whole")
    assert len(second["train/loss"][0]) == 8
    assert first == second
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, resumed.state_dict()[name]), name


def test_more_epochs_go_on_where_a_finished_run_stopped(tmp_path: Path, data) -> None:
    train(settings(tmp_path, name="longer", epochs=1), data)
    train(settings(tmp_path, name="longer", epochs=3), data, resume=True)
    train(settings(tmp_path, name="whole", epochs=3), data)
    first, second = histories(tmp_path / "longer", tmp_path / "whole")
    assert first == second


def test_equal_seeds_give_equal_runs_and_other_seeds_do_not(tmp_path: Path, data) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        torch.rand(7)  # what ran before must not matter
        train(settings(tmp_path, name=name, seed=seed, model="vae", likelihood="gaussian"), data)
    a, b, c = histories(tmp_path / "a", tmp_path / "b", tmp_path / "c")
    assert a == b
    assert a["train/loss"] != c["train/loss"]


def test_accumulated_batches_equal_one_large_batch(tmp_path: Path, data) -> None:
    """Gradients and code averages of two batches of 32 are those of one batch of 64."""
    common = {"codebook": "ema", "kmeans_init": False, "dead_code_threshold": 0.0, "epochs": 1}
    small = train(settings(tmp_path, name="small", batch_size=32, accumulate=2, **common), data)
    large = train(settings(tmp_path, name="large", **common), data)
    for name, weight in large.state_dict().items():
        if "likelihood" not in name:
            torch.testing.assert_close(small.state_dict()[name], weight, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize("precision", ["bf16-mixed"])
def test_mixed_precision_learns(tmp_path: Path, data, precision: str) -> None:
    train(settings(tmp_path, name="amp", precision=precision, epochs=6, lr=1e-2), data)
    (history,) = histories(tmp_path / "amp")
    losses = history["train/loss"][1]
    assert losses[-1] < 0.7 * losses[0]


def test_what_a_run_leaves_behind(tmp_path: Path, data) -> None:
    config = settings(tmp_path, name="run", model="vqvae2", downscales=(2, 2), pictures_every=1, epochs=2)
    model = train(config, data)
    folder = config.folder
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]
    pictures = sorted(path.name for path in (folder / "reconstructions").iterdir())
    assert pictures == ["epoch_0001.png", "epoch_0002.png"]
    assert (folder / "curves.png").stat().st_size > 5000
    assert TrainConfig.load(folder / "config.yaml") == config
    (history,) = histories(folder)
    for name in ("loss", "reconstruction", "commitment", "perplexity_top", "usage_bottom"):
        assert f"train/{name}" in history
        assert f"validation/{name}" in history
    assert {"train/lr", "validation/ssim", "validation/psnr"} <= set(history)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard" / "version_0")).Reload()
    assert "reconstructions" in events.Tags()["images"]
    assert "validation/ssim" in events.Tags()["scalars"]
    x = torch.rand(2, 1, 8, 8) - 0.5
    assert torch.equal(load_pretrained(folder / "model").reconstruct(x), model.reconstruct(x))
    with pytest.raises(ValueError, match=r"holds an earlier run; go on with it \(--resume\)"):
        train(config, data)
    train(config, data, overwrite=True)


@pytest.mark.parametrize("steps", [3, 6], ids=["within_the_first_epoch", "within_the_second_epoch"])
def test_a_run_that_ends_inside_an_epoch_keeps_its_last_steps(tmp_path: Path, data, steps: int) -> None:
    model = train(settings(tmp_path, name="steps", steps=steps, epochs=9, lr=1e-2), data)
    (history,) = histories(tmp_path / "steps")
    assert len(history["train/loss"][0]) == steps
    assert history["validation/loss"][0][-1] >= steps - 1
    last = torch.load(tmp_path / "steps" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    name = "decoder.conv.weight"
    assert torch.equal(model.state_dict()[name], last[f"model.{name}"])


def test_early_stopping(tmp_path: Path, data) -> None:
    train(
        settings(
            tmp_path, name="stop", lr=1e-12, kmeans_init=False, codebook="gradient", patience=1, epochs=9
        ),
        data,
    )
    (history,) = histories(tmp_path / "stop")
    assert len(history["validation/loss"][0]) < 9


def test_two_processes_train_one_model(tmp_path: Path) -> None:
    """torchrun with gloo: the same weights and codebook on both, and nothing waits for ever."""
    script = tmp_path / "ddp.py"
    script.write_text(
        "import os, sys, torch\n"
        "sys.path.insert(0, 'tests/models')\n"
        "from pathlib import Path\n"
        "import test_training as t\n"
        "data = t.load_data(t.DataConfig(data='digits', limit=256))\n"
        "model = t.train(t.settings(Path(sys.argv[1]), name='ddp', batch_size=32), data)\n"
        "torch.save(model.state_dict(), Path(sys.argv[1]) / f\"rank{os.environ['RANK']}.pt\")\n"
    )
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = run_python(*torchrun, str(script), str(tmp_path), OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr[-3000:]
    states = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2)]
    assert [k for k in states[0] if not torch.equal(states[0][k], states[1][k])] == []
    (history,) = histories(tmp_path / "ddp")
    assert len(history["train/loss"][0]) == 8
    assert history["validation/loss"][1][1] < history["validation/loss"][1][0]


def test_priors_resume_too(tmp_path: Path, data) -> None:
    from models.encode import encode
    from models.training.prior import train_prior

    torch.manual_seed(0)
    from models import VQVAE2

    model = VQVAE2(1, downscales=(2, 2), hidden=8, residual_hidden=4, embedding_dim=4, codebook_size=8)
    store = encode(model.eval(), data, tmp_path / "codes")
    common = {"runs": str(tmp_path), "codes": str(tmp_path / "codes"), "width": 16, "layers": 1, "heads": 2}
    common |= {"batch_size": 64, "log_every": 1, "progress": False, "accelerator": "cpu", "lr": 3e-3}
    train_prior(PriorConfig(name="longer", epochs=1, **common), store)
    train_prior(PriorConfig(name="longer", epochs=3, **common), store, resume=True)
    whole = train_prior(PriorConfig(name="whole", epochs=3, **common), store)
    first, second = histories(tmp_path / "longer", tmp_path / "whole")
    assert first == second
    assert second["validation/loss"][1][-1] < second["validation/loss"][1][0]
    assert [prior.upper_codebook_size for prior in whole] == [None, 8]
    assert {"validation/nats_per_code_top", "validation/nats_per_code_bottom"} <= set(second)
