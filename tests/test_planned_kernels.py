"""The kernels of shipped specs: which lines they serve, what they must move, and that they compile without spills."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from weft import spec_files
from weft.codegen.targets import TARGETS
from weft.runtime.ahead_of_time import problems
from weft.views import kernels
from weft.views.kernels import Planned
from weft.views.planned_kernels import fused, of_graph, of_spec

ROWS = 1000


def planned(root: Path, name: str, *targets: str, **sizes: str) -> list[Planned]:
    source = spec_files.read(str(root / "specs" / name))
    return of_spec(spec_files.checked_source(source, "tiny", sizes), targets or ["cuda:90"], ROWS)


@pytest.fixture(scope="module")
def olmo2(root: Path) -> list[Planned]:
    return planned(root, "olmo2.weft")


def at(found: list[Planned], line: str) -> list[Planned]:
    return [one for one in found if one.written.startswith(line)]


def test_kernels_name_the_lines_they_serve(root: Path, olmo2: list[Planned]) -> None:
    for one in olmo2:
        name, _, line = one.spec.rpartition(":")
        # A spec is named as it was given, a library file within the library.
        file = root / "specs" / name if name.startswith("std/") else Path(name)
        assert file.read_text(encoding="utf-8").splitlines()[int(line) - 1].strip() == one.written


def test_a_backward_stands_beside_its_forward_and_runs_as_often(olmo2: list[Planned]) -> None:
    forward = {(one.kernel.name, one.spec, one.count) for one in olmo2 if one.direction == "forward"}
    # What adds up the gradient of a table stands for torch's own reading of it.
    tables = [one for one in olmo2 if one.kernel.name in ("sum_runs", "join_parts")]
    assert [(one.written[:9], one.count) for one in tables] == [("x = embed", 1)] * 2
    backward = [one for one in olmo2 if one.direction == "backward" and one not in tables]
    assert len(backward) >= 5
    for one in backward:
        # Logits and attention are differentiated by kernels of other names; logits in as many blocks.
        partner = one.kernel.name.replace("_backward", "").replace("_slopes", "_statistics")
        partner = "attention_forward" if partner.startswith("attention_") else partner
        assert (partner, one.spec, one.count) in forward


def test_a_gate_moves_each_entry_once(olmo2: list[Planned]) -> None:
    # The line that calls the library's block, not the block's own.
    served = at(olmo2, "x = x + rms_norm(swiglu")
    forward, backward = (one for one in served if "silu" in one.kernel.name)
    assert (forward.direction, backward.direction) == ("forward", "backward")
    assert (forward.count, backward.count) == (4, 4)
    # 384 entries of two bytes: gate and up in, their product out; then also its gradient in, and two out.
    entries = ROWS * 384 * 2
    for one, read, written in ((forward, 2, 1), (backward, 3, 2)):
        assert one.work is not None
        assert (one.work.read, one.work.written) == (read * entries, written * entries)
    assert forward.work is not None
    assert forward.work.matmul == 0
    # silu(gate) * up: at least a product with the logistic function, and a product.
    assert forward.work.vector >= 3 * ROWS * 384


def test_a_residual_and_its_norm_are_one_kernel_that_reads_weights_once(olmo2: list[Planned]) -> None:
    forward = next(one for one in at(olmo2, "x = x + rms_norm(attention(x)") if one.direction == "forward")
    assert forward.work is not None
    rows, weight = ROWS * 128 * 2, 128 * 2
    assert (forward.work.read, forward.work.written) == (2 * rows + weight, rows)


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_kernels_compile_without_spills(root: Path) -> None:
    """Each kernel for one target, in turn; bench/aot.py compiles all for all, at all sizes."""
    # Configurations differ by target: each kernel is the one that its target gets.
    found: dict[str, list[Planned]] = {}
    for one in planned(root, "olmo2.weft", *TARGETS, layers="1"):
        found.setdefault(one.target, []).append(one)
    assert len(found["cuda:90"]) >= 8
    sample = [each[place % len(TARGETS)] for place, each in enumerate(zip(*found.values(), strict=True))]
    assert {one.target for one in sample} == set(TARGETS)
    rows = kernels.compiled(sample, timeout=120, workers=2)
    assert not [(row.made.kernel, row.made.target, problem) for row in rows for problem in problems(row.made)]


def test_a_model_alone_has_kernels_too(root: Path) -> None:
    source = spec_files.read(str(root / "specs" / "olmo2.weft"))
    checked = spec_files.checked_source(source, "tiny", {"layers": "1"})
    found = of_graph(fused(checked.model), "cuda:90", ROWS)
    assert "silu_swiglu_kernel" in [one.kernel.name for one in found]
    assert not [one for one in found if one.spec.endswith("loss.weft:4")]
