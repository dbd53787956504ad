"""The choice of the instruction set."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from native_support import ISAS, ON_REQUEST, use_isa

from vq_kernels.backends import marshal, native
from vq_kernels.build_info import read_build_info


@pytest.fixture(autouse=True)
def _available() -> None:
    if (reason := native.unavailable_reason()) is not None:
        pytest.skip(reason)


def test_features_name_what_the_machine_has_and_what_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VQ_ISA", raising=False)
    features = native.cpu_features()
    usable = [isa for isa in ISAS if isa in features["machine"] and isa in features["compiled"]]
    assert "portable" in usable
    assert features["used"] == [isa for isa in usable if isa not in ON_REQUEST][-1]


def test_the_build_lists_the_instruction_sets_that_have_kernels() -> None:
    info = read_build_info()
    assert info is not None
    assert ["portable", *info["native"]["instruction_sets"]] == native.cpu_features()["compiled"]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/cpuinfo")
def test_features_agree_with_the_system() -> None:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    flags = next((line.split() for line in lines if line.startswith("flags")), None)
    if flags is None:
        pytest.skip("/proc/cpuinfo has no flags line")
    machine = native.cpu_features()["machine"]
    assert ("avx2" in machine) == {"avx2", "fma", "f16c"}.issubset(flags)
    avx512 = {"avx512f", "avx512bw", "avx512dq", "avx512vl"}
    assert ("avx512" in machine) == avx512.issubset(flags)
    assert ("avxvnni" in machine) == {"avx2", "fma", "f16c", "avx_vnni"}.issubset(flags)
    assert ("avx512vnni" in machine) == (avx512 | {"avx512_vnni"}).issubset(flags)
    assert ("avx512bf16" in machine) == (avx512 | {"avx512_vnni", "avx512_bf16"}).issubset(flags)


def test_the_environment_is_followed_from_call_to_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VQ_ISA", raising=False)
    best = native.cpu_features()["used"]
    monkeypatch.setenv("VQ_ISA", "portable")
    assert native.cpu_features()["used"] == "portable"
    monkeypatch.delenv("VQ_ISA")
    assert native.cpu_features()["used"] == best


def test_an_unknown_instruction_set_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VQ_ISA", "sse9")
    with pytest.raises(ValueError, match="VQ_ISA is 'sse9'; accepted here: portable"):
        native.nearest_code(torch.zeros(1, 2, 3), torch.zeros(4, 3), "l2", "exact")
    # and stays one until the variable changes
    with pytest.raises(ValueError, match="sse9"):
        native.cpu_features()


def test_an_instruction_set_that_is_not_there_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    features = native.cpu_features()
    missing = [i for i in ISAS if i not in features["machine"] or i not in features["compiled"]]
    if not missing:
        pytest.skip("this machine and this build have every instruction set")
    monkeypatch.setenv("VQ_ISA", missing[0])
    with pytest.raises(ValueError, match=f"VQ_ISA is '{missing[0]}', but"):
        native.cpu_features()


def _first_pass(n: int, d: int, k: int, dtype: torch.dtype = torch.float32) -> str:
    from vq_kernels import _C

    x, codebook = torch.empty(1, 1, d, dtype=dtype).expand(1, n, d), torch.empty(k, d)
    first_pass: str = _C.first_pass(marshal.rows(x), marshal.codes(codebook))
    return first_pass


@pytest.mark.parametrize(
    ("isa", "n", "d", "k", "want"),
    [
        ("portable", 65536, 64, 512, "float32"),
        ("avx2", 65536, 64, 512, "int8"),
        ("avx2", 65536, 64, 511, "int16"),
        ("avx2", 65536, 257, 8192, "int16"),
        ("avx2", 65536, 16, 256, "int16"),
        ("avx2", 65536, 16, 255, "float32"),
        ("avx2", 65536, 8, 16384, "float32"),
        ("neon", 65536, 64, 512, "float32"),
        ("dotprod", 65536, 64, 512, "int8"),
        ("dotprod", 65536, 16, 511, "float32"),
        ("i8mm", 65536, 64, 512, "int8"),
        ("i8mm", 65536, 8, 16384, "float32"),
        ("avxvnni", 65536, 16, 512, "int8"),
        ("avxvnni", 65536, 16, 511, "float32"),
        ("avx512", 8192, 256, 8192, "float32"),
        ("portable", 192, 64, 512, "direct"),
        ("avx2", 128, 64, 512, "direct"),
        ("avx2", 129, 64, 512, "int8"),
        ("avx2", 192, 8, 512, "direct"),
        ("avx2", 193, 8, 512, "float32"),
        ("avx512vnni", 64, 64, 512, "direct"),
        ("avx512vnni", 65, 64, 512, "int8"),
        ("avx512vnni", 192, 8, 16384, "direct"),
        ("avx512vnni", 193, 8, 16384, "float32"),
        ("avx512vnni", 65536, 64, 512, "int8"),
        ("avx512vnni", 16384, 64, 8192, "int8"),
        ("avx512vnni", 65536, 8, 16384, "float32"),
        ("avx512vnni", 65536, 16, 512, "int8"),
        ("avx512vnni", 65536, 16, 511, "float32"),
        ("avx512vnni", 65536, 64, 128, "int8"),
        ("avx512bf16", 65536, 64, 128, "int8"),
        ("avx512vnni", 200, 65537, 2, "float32"),
        ("amxint8", 65536, 64, 512, "int8"),
        ("amxint8", 65536, 16, 511, "float32"),
        ("amx", 65536, 64, 512, "int8"),
        ("amx", 65536, 64, 1024, "bfloat16"),
        ("amx", 65536, 16, 511, "float32"),
        ("amx", 65536, 8, 128, "float32"),
    ],
)
def test_the_first_pass_follows_the_rule(
    isa: str, n: int, d: int, k: int, want: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_isa(isa, monkeypatch)
    assert _first_pass(n, d, k) == want


def test_the_environment_forces_the_first_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    for wanted in native.cpu_features()["first_passes"]:
        monkeypatch.setenv("VQ_FIRST_PASS", wanted)
        assert _first_pass(10, 17, 3) == wanted
    monkeypatch.delenv("VQ_FIRST_PASS")
    assert _first_pass(10, 7, 3) == "direct"
    assert _first_pass(1000, 7, 3) == "float32"


def test_a_first_pass_that_is_not_there_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """After which the instruction set that was named with it does not count either."""
    monkeypatch.delenv("VQ_ISA", raising=False)
    best = native.cpu_features()["used"]
    monkeypatch.setenv("VQ_ISA", "portable")
    for wanted in ("int8", "int4"):
        monkeypatch.setenv("VQ_FIRST_PASS", wanted)
        with pytest.raises(
            ValueError, match=f"VQ_FIRST_PASS is '{wanted}'; accepted with portable: float32, direct"
        ):
            native.nearest_code(torch.zeros(1, 2, 3), torch.zeros(4, 3), "l2", "exact")
    monkeypatch.delenv("VQ_FIRST_PASS")
    monkeypatch.delenv("VQ_ISA")
    assert native.cpu_features()["used"] == best


@pytest.mark.parametrize(
    ("x", "codebook", "word"),
    [
        (torch.zeros(1, 1, 2, dtype=torch.float64), None, "float64"),
        (torch.zeros(1, 1, 2), torch.zeros(1, 2, dtype=torch.float64), "codebook is torch.float64"),
        (torch.zeros(1, 1, 2, device="meta"), None, "meta"),
    ],
    ids=["float64_x", "float64_codebook", "other_device"],
)
def test_what_is_not_served_is_named(x: torch.Tensor, codebook: torch.Tensor | None, word: str) -> None:
    reason = native.unsupported_reason("nearest_code", x, codebook)
    assert reason is not None
    assert word in reason


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["f32", "bf16", "f16"])
def test_what_is_served(dtype: torch.dtype) -> None:
    x = torch.zeros(1, 1, 2, dtype=dtype)
    assert native.unsupported_reason("nearest_code", x, torch.zeros(1, 2)) is None
    assert native.unsupported_reason("nearest_code", x, torch.zeros(1, 2, dtype=dtype)) is None
