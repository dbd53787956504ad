"""Foreign checkpoints: the converted model computes what the described network computes.

The networks below are written from the published descriptions of the two architectures: which layer has
which name and shape, and in which order they act on a state_dict.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models import load_pretrained
from models.autoencoders.convert import convert_file, convert_rosinality, convert_zalando
from models.cli import main
from models.data import load_data
from models.runs.build import build_model
from models.runs.config import TrainConfig

HIDDEN, RESIDUAL, DIM, SIZE = 8, 4, 6, 10


class Layers:
    """Random weights by name, and the operations that use them."""

    def __init__(self) -> None:
        self.state: dict[str, Tensor] = {}
        torch.manual_seed(0)

    def conv(self, name: str, inputs: int, outputs: int, kernel: int, bias: bool = True) -> None:
        self.state[f"{name}.weight"] = (
            torch.randn(outputs, inputs, kernel, kernel) / (inputs * kernel**2) ** 0.5
        )
        if bias:
            self.state[f"{name}.bias"] = torch.randn(outputs) / 4

    def transposed(self, name: str, inputs: int, outputs: int) -> None:
        self.state[f"{name}.weight"] = torch.randn(inputs, outputs, 4, 4) / (inputs * 4) ** 0.5
        self.state[f"{name}.bias"] = torch.randn(outputs) / 4

    def run(self, name: str, x: Tensor, stride: int = 1) -> Tensor:
        weight, bias = self.state[f"{name}.weight"], self.state.get(f"{name}.bias")
        return F.conv2d(x, weight, bias, stride=stride, padding={1: 0, 3: 1, 4: 1}[weight.shape[-1]])

    def up(self, name: str, x: Tensor) -> Tensor:
        return F.conv_transpose2d(
            x, self.state[f"{name}.weight"], self.state[f"{name}.bias"], stride=2, padding=1
        )


def nearest(z: Tensor, codes: Tensor) -> Tensor:
    rows = z.movedim(1, -1).reshape(-1, z.shape[1])
    indices = torch.cdist(rows.double(), codes.double()).argmin(1)
    return codes[indices].view(*z.movedim(1, -1).shape).movedim(-1, 1)


class Zalando(Layers):
    def __init__(self, ema: bool, blocks: int = 2) -> None:
        super().__init__()
        self.number_of_blocks = blocks
        self.conv("_encoder._conv_1", 3, HIDDEN // 2, 4)
        self.conv("_encoder._conv_2", HIDDEN // 2, HIDDEN, 4)
        self.conv("_encoder._conv_3", HIDDEN, HIDDEN, 3)
        self.conv("_pre_vq_conv", HIDDEN, DIM, 1)
        self.conv("_decoder._conv_1", DIM, HIDDEN, 3)
        for side in ("_encoder", "_decoder"):
            for layer in range(blocks):
                block = f"{side}._residual_stack._layers.{layer}._block"
                self.conv(f"{block}.1", HIDDEN, RESIDUAL, 3, bias=False)
                self.conv(f"{block}.3", RESIDUAL, HIDDEN, 1, bias=False)
        self.transposed("_decoder._conv_trans_1", HIDDEN, HIDDEN // 2)
        self.transposed("_decoder._conv_trans_2", HIDDEN // 2, 3)
        self.state["_vq_vae._embedding.weight"] = torch.randn(SIZE, DIM) / 4
        if ema:
            self.state["_vq_vae._ema_w"] = torch.randn(SIZE, DIM)
            self.state["_vq_vae._ema_cluster_size"] = torch.rand(SIZE)

    def residual(self, side: str, x: Tensor) -> Tensor:
        for layer in range(self.number_of_blocks):
            block = f"{side}._residual_stack._layers.{layer}._block"
            x = x.relu()  # in place there, so the skip carries it too
            x = x + self.run(f"{block}.3", self.run(f"{block}.1", x).relu())
        return x.relu()

    def forward(self, x: Tensor) -> Tensor:
        x = self.run("_encoder._conv_1", x, 2).relu()
        x = self.run("_encoder._conv_2", x, 2).relu()
        z = self.run("_pre_vq_conv", self.residual("_encoder", self.run("_encoder._conv_3", x)))
        q = nearest(z, self.state["_vq_vae._embedding.weight"])
        x = self.residual("_decoder", self.run("_decoder._conv_1", q))
        return self.up("_decoder._conv_trans_2", self.up("_decoder._conv_trans_1", x).relu())


class Rosinality(Layers):
    def __init__(self, blocks: int = 2) -> None:
        super().__init__()
        self.number_of_blocks = blocks
        half = HIDDEN // 2
        for name, widths in (("enc_b", ((3, half, 4), (half, HIDDEN, 4), (HIDDEN, HIDDEN, 3))),
                             ("enc_t", ((HIDDEN, half, 4), (half, HIDDEN, 3)))):  # fmt: skip
            for position, (inputs, outputs, kernel) in enumerate(widths):
                self.conv(f"{name}.blocks.{2 * position}", inputs, outputs, kernel)
            self.blocks(f"{name}.blocks", 2 * len(widths) - 1)
        self.conv("quantize_conv_t", HIDDEN, DIM, 1)
        self.conv("quantize_conv_b", HIDDEN + DIM, DIM, 1)
        for name, inputs in (("dec_t", DIM), ("dec", 2 * DIM)):
            self.conv(f"{name}.blocks.0", inputs, HIDDEN, 3)
            self.blocks(f"{name}.blocks", 1)
        self.transposed(f"dec_t.blocks.{blocks + 2}", HIDDEN, DIM)
        self.transposed(f"dec.blocks.{blocks + 2}", HIDDEN, half)
        self.transposed(f"dec.blocks.{blocks + 4}", half, 3)
        self.transposed("upsample_t", DIM, DIM)
        for level in "tb":
            self.state[f"quantize_{level}.embed"] = torch.randn(DIM, SIZE) / 4
            self.state[f"quantize_{level}.embed_avg"] = torch.randn(DIM, SIZE)
            self.state[f"quantize_{level}.cluster_size"] = torch.rand(SIZE)

    def blocks(self, name: str, first: int) -> None:
        for layer in range(first, first + self.number_of_blocks):
            self.conv(f"{name}.{layer}.conv.1", HIDDEN, RESIDUAL, 3)
            self.conv(f"{name}.{layer}.conv.3", RESIDUAL, HIDDEN, 1)

    def residual(self, name: str, first: int, x: Tensor) -> Tensor:
        for layer in range(first, first + self.number_of_blocks):
            x = x + self.run(f"{name}.{layer}.conv.3", self.run(f"{name}.{layer}.conv.1", x.relu()).relu())
        return x.relu()

    def forward(self, x: Tensor) -> Tensor:
        bottom = self.run("enc_b.blocks.2", self.run("enc_b.blocks.0", x, 2).relu(), 2).relu()
        bottom = self.residual("enc_b.blocks", 5, self.run("enc_b.blocks.4", bottom))
        top = self.run("enc_t.blocks.2", self.run("enc_t.blocks.0", bottom, 2).relu())
        top = nearest(
            self.run("quantize_conv_t", self.residual("enc_t.blocks", 3, top)),
            self.state["quantize_t.embed"].T,
        )
        condition = self.residual("dec_t.blocks", 1, self.run("dec_t.blocks.0", top))
        last = self.number_of_blocks + 2
        condition = self.up(f"dec_t.blocks.{last}", condition)
        z = self.run("quantize_conv_b", torch.cat([condition, bottom], 1))
        q = torch.cat([self.up("upsample_t", top), nearest(z, self.state["quantize_b.embed"].T)], 1)
        x = self.residual("dec.blocks", 1, self.run("dec.blocks.0", q))
        return self.up(f"dec.blocks.{last + 2}", self.up(f"dec.blocks.{last}", x).relu())


@pytest.mark.parametrize("blocks", [0, 2])
@pytest.mark.parametrize("ema", [True, False], ids=["ema", "gradient"])
def test_zalando(ema: bool, blocks: int, tmp_path: Path) -> None:
    theirs = Zalando(ema, blocks)
    torch.save(theirs.state, tmp_path / "model.pt")
    model = convert_file(tmp_path / "model.pt")
    x = torch.rand(2, 3, 16, 16) - 0.5
    torch.testing.assert_close(model.reconstruct(x), theirs.forward(x), rtol=1e-4, atol=1e-5)
    assert model.config["codebook"] == ("ema" if ema else "gradient")
    if ema:
        torch.testing.assert_close(
            model.quantizer._codebook.cluster_size[0], theirs.state["_vq_vae._ema_cluster_size"]
        )


@pytest.mark.parametrize("blocks", [0, 1, 2])
def test_rosinality(blocks: int, tmp_path: Path) -> None:
    theirs = Rosinality(blocks)
    torch.save({f"module.{key}": value for key, value in theirs.state.items()}, tmp_path / "vqvae.pt")
    model = convert_file(tmp_path / "vqvae.pt")
    x = torch.rand(2, 3, 32, 16) - 0.5
    torch.testing.assert_close(2 * model.reconstruct(x), theirs.forward(2 * x), rtol=1e-4, atol=1e-5)
    averages = model.quantizers[1]._codebook.embed_avg[0]
    torch.testing.assert_close(averages, theirs.state["quantize_t.embed_avg"].T)


@pytest.mark.parametrize("theirs", [Zalando(True), Rosinality()], ids=["zalando", "rosinality"])
def test_a_converted_run_serves_the_other_commands(theirs: Layers, tmp_path: Path, capsys) -> None:
    torch.save(theirs.state, tmp_path / "model.pt")
    folder = tmp_path / "converted"
    convert = [
        "convert",
        str(tmp_path / "model.pt"),
        "--out",
        str(folder),
        "--data",
        "digits",
        "--channels",
        "3",
    ]
    assert main([*convert, "--limit", "40", "--size", "16"]) == 0
    assert main(["evaluate", str(folder)]) == 0
    assert "| perplexity" in capsys.readouterr().out
    config = TrainConfig.load(folder / "config.yaml")
    ours, stored = build_model(config, load_data(config)), load_pretrained(folder / "model")
    assert type(ours) is type(stored)
    assert {k: v.shape for k, v in ours.state_dict().items()} == {
        k: v.shape for k, v in stored.state_dict().items()
    }
    assert main(convert) == 2
    assert "converted, which exists; accepted: a new folder" in capsys.readouterr().err


def test_what_is_no_checkpoint_is_named(tmp_path: Path) -> None:
    (tmp_path / "junk.pt").write_bytes(b"junk")
    with pytest.raises(ValueError, match=r"junk\.pt is no checkpoint"):
        convert_file(tmp_path / "junk.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="holds a list, expected a state_dict"):
        convert_file(tmp_path / "list.pt")


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    state = Zalando(True).state
    with pytest.raises(ValueError, match=r"lacks the key _encoder\._conv_1\.weight"):
        convert_zalando({key: value for key, value in state.items() if "_conv_1" not in key})
    with pytest.raises(ValueError, match=r"decoder.up.1.bias is missing; accepted: \(3,\)"):
        convert_zalando({key: value for key, value in state.items() if key != "_decoder._conv_trans_2.bias"})
    with pytest.raises(ValueError, match=r"extra.weight of \(2,\) is unknown"):
        convert_rosinality(Rosinality().state | {"extra.weight": torch.zeros(2)})
    state["_vq_vae._ema_w"][3, 2] = torch.inf
    with pytest.raises(ValueError, match=r"hold NaN or infinity, the first in .*embed_avg; accepted: fin"):
        convert_zalando(state)
    torch.save({"weight": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="is neither a VQ-VAE-2 of rosinality"):
        convert_file(tmp_path / "other.pt")
    with pytest.raises(FileNotFoundError, match=r"nowhere.pt does not exist"):
        convert_file(tmp_path / "nowhere.pt")
