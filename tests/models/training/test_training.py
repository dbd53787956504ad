"""Training loops: exact resumption, equal runs for equal seeds, several processes, what is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import preloaded
import pytest
import torch
from training_support import Settings, histories, settings, train

from models import load_pretrained
from models.data import DataConfig, load_data, to_float
from models.evaluation.metrics import ReconstructionMeter
from models.runs.config import PriorConfig, TrainConfig


@pytest.fixture(scope="module")
def data():
    return load_data(DataConfig(data="digits", limit=256))


KILLED_IN_VALIDATION = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, str(Path.cwd() / "tests" / "models"))
from models.data import DataConfig, load_data
import training_support, models.training.modules as modules
def dying(self, batch, index, step=modules.AutoencoderModule.validation_step):
    if self.trainer.current_epoch == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, batch, index)
modules.AutoencoderModule.validation_step = dying
data = load_data(DataConfig(data="digits", limit=256))
config = training_support.settings(Path(sys.argv[1]), name="killed", epochs=3, checkpoint_every=4)
training_support.train(config, data, resume=sys.argv[3] == "resume")
"""


def test_kills_at_the_ends_of_epochs(tmp_path: Path, data) -> None:
    """Four steps an epoch, a save due after the last one; both kills come before the validation."""
    for epoch, resume in (("0", "start"), ("1", "resume")):
        killed = run_program(KILLED_IN_VALIDATION, str(tmp_path), epoch, resume)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
    resumed = train(settings(tmp_path, name="killed", epochs=3, checkpoint_every=4), data, resume=True)
    whole = train(settings(tmp_path, name="whole", epochs=3, checkpoint_every=4), data)
    first, second = histories(tmp_path / "killed", tmp_path / "whole")
    assert second["validation/loss"][0] == [3, 7, 11]
    assert first == second
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, resumed.state_dict()[name]), name


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, str(Path.cwd() / "tests" / "models"))
from models.data import DataConfig, load_data
import training_support, models.training.modules as modules
step = modules.AutoencoderModule.training_step
def dying(self, batch, index):
    if self.trainer.global_step == 6:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, batch, index)
modules.AutoencoderModule.training_step = dying
data = load_data(DataConfig(data="digits", limit=256))
training_support.train(training_support.settings(Path(sys.argv[1]), name="killed", **eval(sys.argv[2])), data)
"""


def run_python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    root = Path(__file__).parents[3]
    env = os.environ | {"PYTHONPATH": str(root), "CUDA_VISIBLE_DEVICES": ""} | environment
    return subprocess.run([sys.executable, *arguments], cwd=root, env=env, capture_output=True, text=True)


def run_program(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return preloaded.run(["-c", code, *arguments], CUDA_VISIBLE_DEVICES="")


@pytest.mark.parametrize(
    "changes",
    [{"model": "vqvae", "schedule": "cosine"}, {"model": "vae", "likelihood": "gaussian", "kl_warmup": 3}],
    ids=["vqvae", "vae"],
)
def test_killed_in_the_middle_of_an_epoch_and_resumed(tmp_path: Path, data, changes: Settings) -> None:
    """Four steps an epoch, last checkpoint after step 3 and 6, killed in step 7: all losses are equal."""
    killed = run_program(KILLED, str(tmp_path), repr(changes))
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    resumed = train(settings(tmp_path, name="killed", **changes), data, resume=True)
    whole = train(settings(tmp_path, name="whole", **changes), data)
    first, second = histories(tmp_path / "killed", tmp_path / "whole")
    assert len(second["train/loss"][0]) == 8
    assert first == second
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, resumed.state_dict()[name]), name


@pytest.mark.parametrize(
    "changes",
    [
        {"model": "vqvae", "epochs": 3},
        {"model": "vae", "likelihood": "gaussian", "batch_size": 32, "accumulate": 3, "epochs": 3},
        {"batch_size": 32, "accumulate": 2, "precision": "bf16-mixed", "epochs": 3},
    ],
    ids=["vqvae", "vae_accumulating", "vqvae_accumulating_bf16"],
)
def test_steps_end_inside_an_epoch_and_the_run_goes_on(tmp_path: Path, data, changes: Settings) -> None:
    """Three or four steps an epoch; the rest is what it would have been without the stop."""
    whole = train(settings(tmp_path, name="whole", **changes), data)
    for steps in (1, 3, 4, 5):
        name = f"longer{steps}"
        train(settings(tmp_path, name=name, steps=steps, **changes), data)
        resumed = train(settings(tmp_path, name=name, **changes), data, resume=True)
        first, second = histories(tmp_path / name, tmp_path / "whole")
        assert second["train/loss"][0] == [float(step) for step in range(len(second["train/loss"][0]))]
        for series_name, series in second.items():
            found = dict(zip(*first[series_name], strict=True))  # one more validation, where the run stopped
            assert [found.get(step) for step in series[0]] == series[1], (steps, series_name)
        for weight_name, weight in whole.state_dict().items():
            assert torch.equal(weight, resumed.state_dict()[weight_name]), (steps, weight_name)


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


@pytest.mark.parametrize("seed", [20_240_101, 2**32 - 1])
def test_any_seed_trains(tmp_path: Path, data, seed: int) -> None:
    train(settings(tmp_path, name="seeded", seed=seed, steps=1), data)


def test_noise_of_a_step_is_that_of_its_seed_and_number(tmp_path: Path, data) -> None:
    from models.training.modules import AutoencoderModule

    seen: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            AutoencoderModule,
            "record_divergence",
            lambda self, loss: seen.append(torch.initial_seed()) or loss,
        )
        train(settings(tmp_path, name="seeded", seed=3, steps=2), data)
    assert seen == [3 * 65_537 * 1_000_000_007 + number for number in range(2)]


def test_accumulated_batches_equal_one_large_batch(tmp_path: Path, data) -> None:
    """Gradients and code averages of two batches of 32 are those of one batch of 64."""
    common = {"codebook": "ema", "kmeans_init": False, "dead_code_threshold": 0.0, "epochs": 1}
    small = train(settings(tmp_path, name="small", batch_size=32, accumulate=2, **common), data)
    large = train(settings(tmp_path, name="large", **common), data)
    for name, weight in large.state_dict().items():
        if "likelihood" not in name:
            torch.testing.assert_close(small.state_dict()[name], weight, rtol=1e-3, atol=1e-5, msg=name)


def test_the_last_smaller_group_of_an_epoch_is_averaged_by_its_own_size(tmp_path: Path, data) -> None:
    """With eight batches in groups of five, the second step is that of three batches, averaged."""
    common = {"kmeans_init": False, "codebook": "gradient", "epochs": 1, "batch_size": 32}
    gradients: list[torch.Tensor] = []
    from models.training.modules import AutoencoderModule

    def record(self: AutoencoderModule, *given: object, step=AutoencoderModule.optimizer_step) -> None:
        step(self, *given)
        gradients.append(torch.cat([p.grad.flatten() for p in self.parameters() if p.grad is not None]))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AutoencoderModule, "optimizer_step", record)
        patch.setattr(AutoencoderModule, "configure_optimizers", lambda self: torch.optim.SGD(
            self.parameters(), lr=1e-12))  # fmt: skip
        patch.setattr(AutoencoderModule, "log_step", lambda *_: None)
        for name, accumulate in (("groups", 5), ("single", 1)):
            train(settings(tmp_path, name=name, accumulate=accumulate, **common), data)
    first, last, *single = gradients
    torch.testing.assert_close(first, torch.stack(single[:5]).mean(0), rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(last, torch.stack(single[5:]).mean(0), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("precision", ["bf16-mixed"])
def test_mixed_precision_learns(tmp_path: Path, data, precision: str) -> None:
    train(settings(tmp_path, name="amp", precision=precision, epochs=6, lr=1e-2), data)
    (history,) = histories(tmp_path / "amp")
    losses = history["train/loss"][1]
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.figures
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


def test_one_table_and_one_run_of_tensorboard_over_all_resumes(tmp_path: Path, data) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = settings(tmp_path, name="run", steps=3, epochs=3)
    train(config, data)
    table = config.layout.logs / "version_0" / "metrics.csv"
    with open(table, "a") as file:
        file.write("0,7,9.0,a row of the fu")  # of an attempt that was killed later, cut off
    train(config.replace(steps=None), data, resume=True)
    assert [path.name for path in config.layout.logs.iterdir()] == ["version_0"]
    assert [path.name for path in config.layout.tensorboard.iterdir()] == ["version_0"]
    whole = settings(tmp_path, name="whole", epochs=3)
    train(whole, data)
    rows, expected = (
        (folder.layout.logs / "version_0" / "metrics.csv").read_text().splitlines()
        for folder in (config, whole)
    )
    assert rows == expected
    events = EventAccumulator(str(config.layout.tensorboard / "version_0")).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == list(range(12))


def test_fine_tuning_starts_from_a_trained_model(tmp_path: Path, data) -> None:
    first = train(settings(tmp_path, name="first"), data)
    still = {"lr": 1e-12, "codebook": "ema", "decay": 1.0, "dead_code_threshold": 0.0, "steps": 1}
    init = str(tmp_path / "first")
    tuned = train(settings(tmp_path, name="tuned", init=init, **still), data)
    for name, weight in first.state_dict().items():
        if not name.startswith("likelihood."):
            torch.testing.assert_close(tuned.state_dict()[name], weight, msg=name)
    assert tuned.likelihood.calibrated
    train(settings(tmp_path, name="tuned", init=init, **still | {"steps": 2}), data, resume=True)
    with pytest.raises(ValueError, match=r"first does not fit VQVAE: .*to_embedding.bias is \(4,\); acc"):
        train(settings(tmp_path, name="other", init=init, embedding_dim=6), data)
    assert not (tmp_path / "other").exists()


def test_early_stopping(tmp_path: Path, data) -> None:
    train(
        settings(
            tmp_path, name="stop", lr=1e-12, kmeans_init=False, codebook="gradient", patience=1, epochs=9
        ),
        data,
    )
    (history,) = histories(tmp_path / "stop")
    assert len(history["validation/loss"][0]) < 9


@pytest.mark.parametrize("checkpoint_every", [1, 200])
def test_divergence_is_an_error_and_the_last_good_checkpoint_stays(
    tmp_path: Path, data, checkpoint_every: int
) -> None:
    """The loss of the fifth step is not a number."""
    good = settings(tmp_path, name="bad", steps=3)
    train(good, data)
    last = tmp_path / "bad" / "checkpoints" / "last.ckpt"
    before = last.read_bytes()
    bad = settings(tmp_path, name="bad", epochs=9, checkpoint_every=checkpoint_every)
    from models.training.modules import AutoencoderModule

    def broken(
        self: AutoencoderModule, loss: torch.Tensor, record=AutoencoderModule.record_divergence
    ) -> torch.Tensor:
        return record(self, loss * (1.0 if self.trainer.global_step < 4 else float("nan")))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AutoencoderModule, "record_divergence", broken)
        with pytest.raises(FloatingPointError, match=r"loss .* in step 5; take a lower learning rate \(--lr"):
            train(bad, data, resume=True)
    state = torch.load(last, weights_only=True)
    assert state["global_step"] == (4 if checkpoint_every == 1 else 3)
    assert all(weight.isfinite().all() for weight in state["state_dict"].values())
    assert checkpoint_every == 1 or last.read_bytes() == before


def test_weights_that_diverge_are_not_saved(tmp_path: Path, data) -> None:
    """The loss before the only step is finite; the step is not."""
    from models.training.modules import AutoencoderModule

    def broken(self: AutoencoderModule, *given: object, step=AutoencoderModule.optimizer_step) -> None:
        step(self, *given)
        next(self.parameters()).data.fill_(float("inf"))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AutoencoderModule, "optimizer_step", broken)
        with pytest.raises(FloatingPointError, match="weights became infinite or not a number in step 1"):
            train(settings(tmp_path, name="bad", steps=1), data)
    assert not list((tmp_path / "bad").rglob("*.ckpt"))


INTERRUPTED = """
import os, signal, sys
import models.cli, models.training.modules as modules
step = modules.AutoencoderModule.training_step
number = getattr(signal, sys.argv[1])
def pressing(self, batch, index):
    if self.trainer.global_step == int(sys.argv[2]) and not signalled:
        signalled.append(True)
        os.kill(os.getpid(), number)
    return step(self, batch, index)
signalled = []
modules.AutoencoderModule.training_step = pressing
# A shell that starts the tests in the background has them ignore SIGINT.
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.exit(models.cli.main(["train", *sys.argv[3:]]))
"""


@pytest.mark.parametrize(
    ("name", "step"), [("SIGINT", 5), ("SIGTERM", 5), ("SIGUSR1", 7)], ids=["int", "term", "usr1_at_the_end"]
)
def test_signals_save_and_the_run_goes_on(tmp_path: Path, name: str, step: int) -> None:
    """Four steps an epoch: the last signal comes in the last step of the second one."""
    flags = ["--runs", str(tmp_path), "--limit", "256", "--downscale", "2", "--hidden", "8", "--epochs", "3"]
    flags += ["--pictures-every", "0", "--no-progress", "--log-every", "1", "--accelerator", "cpu"]
    stopped = run_program(INTERRUPTED, name, str(step), *flags, "--name", "stopped", "--resume", "auto")
    assert stopped.returncode == 128 + getattr(signal, name), stopped.stderr
    assert stopped.stderr.endswith(f"stopped by {name}, the run is saved; go on with --resume\n")
    assert "Traceback" not in stopped.stderr
    state = torch.load(tmp_path / "stopped" / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["global_step"] == step + 1
    from models.cli import main

    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
    assert main(["train", *flags, "--name", "stopped", "--resume", "auto"]) == 0
    assert main(["train", *flags, "--name", "whole"]) == 0
    assert handlers == [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
    first, second = histories(tmp_path / "stopped", tmp_path / "whole")
    assert first == second
    assert len(second["train/loss"][0]) == 12


def test_a_stopped_early_run_stays_finished(tmp_path: Path, data) -> None:
    still = {"lr": 1e-12, "kmeans_init": False, "codebook": "gradient", "patience": 1, "epochs": 9}
    config = settings(tmp_path, name="stop", **still)
    train(config, data)
    (before,) = histories(config.folder)
    train(config, data, resume=True)
    (after,) = histories(config.folder)
    assert before == after
    train(config.replace(patience=2), data, resume=True)
    (longer,) = histories(config.folder)
    assert len(longer["validation/loss"][0]) == len(before["validation/loss"][0]) + 1
    train(config.replace(epochs=1), data, resume=True)
    assert histories(config.folder) == [longer], "fewer epochs than were done change nothing"


RANKS = """
import os, sys, torch
sys.path.insert(0, "tests/models")
from pathlib import Path
import training_support as t
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from models.data import DataConfig, load_data

def rank(folder):
    data = load_data(DataConfig(data="digits", limit=256))
    model = t.train(t.settings(Path(folder), name="ddp", batch_size=32), data)
    torch.save(model.state_dict(), Path(folder) / f"rank{os.environ['RANK']}.pt")

# As torchrun --standalone does, but that ranks are forks of a process that has imported everything.
place = {"rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0", "run_id": "test"}
config = LaunchConfig(min_nodes=1, max_nodes=1, nproc_per_node=2, start_method="fork", **place)
elastic_launch(config, rank)(sys.argv[1])
"""


def test_two_processes_train_one_model(tmp_path: Path) -> None:
    """The launcher of torchrun, with gloo: the same weights and codes on both, and nothing waits for ever."""
    done = run_program(RANKS, str(tmp_path))
    assert done.returncode == 0, done.stderr[-3000:]
    states = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2)]
    assert [k for k in states[0] if not torch.equal(states[0][k], states[1][k])] == []
    (history,) = histories(tmp_path / "ddp")
    assert len(history["train/loss"][0]) == 8
    assert history["validation/loss"][1][1] < history["validation/loss"][1][0]


@pytest.mark.slow
def test_two_processes_go_on_and_validate_like_one(tmp_path: Path) -> None:
    """A resumed run of two ends where an uninterrupted one does; perplexity is that of all images."""
    script = tmp_path / "runs.py"
    script.write_text(
        "import sys\n"
        "from models.cli import main\n"
        "statuses = [main(['train', *run.split(), *sys.argv[2:]]) for run in sys.argv[1].split(',')]\n"
        "sys.exit(max(statuses))\n"
    )
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    flags = ["--runs", str(tmp_path), "--limit", "256", "--downscale", "2", "--hidden", "8"]
    flags += ["--batch-size", "32", "--pictures-every", "0", "--no-progress", "--log-every", "1"]
    flags += ["--accelerator", "cpu"]
    flags += ["--kmeans-init", "--codebook-size", "32"]  # codes in use, so that perplexity tells

    def train_each(*runs: str) -> str:
        done = run_python(*torchrun, ",".join(runs), *flags, OMP_NUM_THREADS="1")
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    assert train_each("--name longer --epochs 2 --steps 6").count("model in") == 1
    train_each("--name longer --resume --steps none", "--name whole --epochs 2")
    first, second = histories(tmp_path / "longer", tmp_path / "whole")
    assert first["train/loss"] == second["train/loss"]
    assert first["validation/loss"][1][-1] == second["validation/loss"][1][-1]
    config = TrainConfig.load(tmp_path / "whole" / "config.yaml")
    truth, model = (
        ReconstructionMeter([(config.codebook_size,)]),
        load_pretrained(tmp_path / "whole" / "model"),
    )
    images = load_data(config).validation
    for x in to_float(images.batch(range(len(images)))).split(32):
        with torch.no_grad():
            output = model(x)
        truth.update(x, output.reconstruction, output.codes)
    best = min(range(2), key=lambda epoch: second["validation/loss"][1][epoch])
    for name, value in truth.compute(1.0).items():
        if name in ("mse", "ssim", "perplexity", "usage"):
            assert second[f"validation/{name}"][1][best] == pytest.approx(value, rel=1e-5), name


def test_priors_resume_too(tmp_path: Path, data) -> None:
    from models.codes.encode import encode
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
