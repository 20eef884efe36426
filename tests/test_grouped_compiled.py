"""Grouped linears at the size of LMFusion 8B, compiled for GPUs that are not here: nothing is spilled."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from tests.grouped_models import grouped
from weft import spec_files
from weft.codegen.emit_kernels import render
from weft.codegen.grouped.kernels import PRODUCTS
from weft.codegen.grouped.text import kernel_text
from weft.codegen.kernel_text import KernelText
from weft.codegen.lower import empty_weights, lower
from weft.codegen.pipeline import GPU_PASSES, optimise
from weft.runtime.ahead_of_time import compile_ahead, problems

TARGETS = ("cuda:90", "hip:gfx942")


@pytest.fixture(scope="module")
def texts(root: Path) -> list[dict[str, KernelText]]:
    """Every product of a layer in the default tiles of ours, also those that the matrix library makes by default; for
    each target. The second layer is looked at: in the first the angles of rotations are found."""
    spec = spec_files.checked_source(spec_files.read(str(root / "specs" / "lmfusion.weft")), "8b", {"layers": "2"})
    program = spec.objectives["joint"]
    weights = empty_weights(program.weights, torch.bfloat16, "meta")
    made = grouped(optimise(lower(program, weights, torch.bfloat16), GPU_PASSES))
    return [
        {target: kernel_text(op, product, op.default_tiles(product), target, render) for target in TARGETS}
        for op in made[-4:]
        for product in PRODUCTS
    ]


def test_which_they_are(texts: list[dict[str, KernelText]]) -> None:
    """Of three groups, of which the first two are by the same weights: rotated, read in place, gated, plain."""
    names = [text["cuda:90"].name for text in texts]
    assert [name.removesuffix("_forward") for name in names[::3]] == [
        "grouped_4096_4096_1024_1024_turn",
        "grouped_4096_4096_variant_1",
        "grouped_4096_14336_14336_silu_swiglu_2",
        "grouped_14336_4096",
    ]


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
@pytest.mark.parametrize("place", range(len(TARGETS)), ids=TARGETS)
@pytest.mark.timeout(1500)
def test_nothing_is_spilled(texts: list[dict[str, KernelText]], place: int) -> None:
    """Each kernel for one target in turn, and what the row programs are printed in for both; bench/aot.py compiles all
    for all."""
    target = TARGETS[place]
    sample = [text[target] for number, text in enumerate(texts) if number % 2 == place or number in (0, 6)]
    made = compile_ahead(sample, [target], timeout=120, workers=2)
    assert not [(one.kernel, problem) for one in made for problem in problems(one)]
    assert all(one.resources is not None and one.resources.matrix for one in made)
