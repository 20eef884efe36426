"""Targets and devices by name, and the least time of some work on them."""

from __future__ import annotations

import pytest

from weft.codegen.cost import Work, roofline
from weft.codegen.targets import DEVICES, TARGETS, UnknownTarget, device, devices_of, target


def test_every_target_has_a_device_and_every_device_a_target() -> None:
    assert {one.target for one in DEVICES.values()} == set(TARGETS)
    assert list(TARGETS) == ["cuda:80", "cuda:90", "cuda:100", "hip:gfx942"]


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("cuda:91", "cuda:90"),
        ("cuda:9", "cuda:90"),
        ("CUDA:80", "cuda:80"),
        ("sm_90", "cuda:90"),
        ("sm_90a", "cuda:90"),
        ("sm100", "cuda:100"),
        ("h200", "cuda:90"),
        ("B200", "cuda:100"),
        ("gfx942", "hip:gfx942"),
        ("hip:gfx94", "hip:gfx942"),
        ("mi300x", "hip:gfx942"),
    ],
)
def test_a_wrong_target_names_the_one_that_was_meant(wrong: str, meant: str) -> None:
    with pytest.raises(UnknownTarget) as caught:
        target(wrong)
    assert str(caught.value) == (
        f"unknown target `{wrong}`; did you mean {meant}? known are cuda:80, cuda:90, cuda:100, hip:gfx942"
    )


def test_a_name_like_no_other_lists_what_is_known() -> None:
    with pytest.raises(UnknownTarget, match=r"^unknown target `tpu`; known are cuda:80, "):
        target("tpu")
    with pytest.raises(UnknownTarget, match=r"^unknown device `h2000`; did you mean h200\? known are a100, "):
        device("h2000")


def test_a_target_stands_for_its_usual_device() -> None:
    assert device("cuda:90").name == "h200"
    assert [one.name for one in devices_of("cuda:90")] == ["h200", "h100"]
    assert device("h100").target == "cuda:90"


@pytest.mark.parametrize("name", DEVICES)
def test_what_is_attained_is_below_the_data_sheet(name: str) -> None:
    one = DEVICES[name]
    assert 0.5 * one.bandwidth < one.copy_bandwidth < one.bandwidth
    assert 0 < one.matmul_attained < 1
    # Halving the width of an operand at most doubles the rate, whatever a row of the table says.
    assert one.matmul["bf16"] == one.matmul["fp16"] <= 2.1 * one.matmul["tf32"]
    assert one.matmul["bf16"] > one.vector["fp32"] > one.vector["fp64"]


def test_a_norm_is_limited_by_memory() -> None:
    # Residual and RMSNorm, 32768 rows of 4096 in bf16: two reads, two writes.
    moved = 32768 * 4096 * 2
    found = roofline(Work(read=2 * moved, written=2 * moved, vector=32768 * 4096 * 6), device("h200"))
    assert found.limiter == "memory"
    assert found.microseconds == pytest.approx(250, rel=0.01)


def test_a_large_product_is_limited_by_matrix_units() -> None:
    # Gate and up of a SwiGLU, 16384 x 4096 x 28672: 3.85 TFLOP at about 790 TFLOP/s.
    flops = 2 * 16384 * 4096 * 28672
    found = roofline(Work(read=1e9, written=1e9, matmul=flops), device("h200"))
    assert found.limiter == "matmul"
    assert found.microseconds == pytest.approx(4870, rel=0.01)
    # The same product where every product must be exact has vector units only.
    exact = roofline(Work(read=1e9, written=1e9, matmul=flops, matmul_type="fp32"), device("h200"))
    assert exact.microseconds == pytest.approx(flops / 66.9e12 * 1e6)
    # In bf16 elementwise work is done in fp32, so its rate is that of fp32.
    assert device("h200").vector_rate("bf16") == device("h200").vector_rate("fp32")


def test_a_type_that_a_device_lacks_is_named() -> None:
    with pytest.raises(ValueError, match="NVIDIA A100 SXM 80GB has no rate for fp8"):
        roofline(Work(0, 0, matmul=1, matmul_type="fp8"), device("a100"))


def test_work_adds_up() -> None:
    both = Work(1, 2, vector=5) + Work(10, 20, matmul=100, matmul_type="tf32")
    assert both == Work(11, 22, matmul=100, matmul_type="tf32", vector=5)
    assert (both.bytes, both.flops) == (33, 105)
    with pytest.raises(ValueError, match="bf16 and tf32"):
        _ = Work(0, 0, matmul=1) + both
