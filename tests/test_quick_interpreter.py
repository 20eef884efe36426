"""Triton's interpreter with less repeated work: what it replaces, once a launch, and back again afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from triton.runtime import interpreter

from weft.codegen import quick_interpreter
from weft.codegen.quick_interpreter import quicken


@triton.jit
def _doubled(x):
    return x + x


@triton.jit
def _sum_rows(x_ptr, out_ptr, SIZE: tl.constexpr):
    at = tl.program_id(0)
    x = tl.load(x_ptr + at * SIZE + tl.arange(0, SIZE))
    # Functions of a kernel's own, and one of the language's.
    tl.store(out_ptr + at, tl.sum(_doubled(_doubled(x)), 0))


_sums: Any = _sum_rows  # whose constants are numbers to who calls it


@pytest.fixture
def patched(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[object]]:
    """The functions for which the language is gone through."""
    quicken()
    calls: list[object] = []
    once = interpreter._patch_lang
    assert isinstance(once, quick_interpreter._PatchOnce)
    whole = once.patch

    def patch(function: object) -> object:
        calls.append(function)
        return whole(function)

    monkeypatch.setattr(once, "patch", patch)
    yield calls
    assert once.seen is None


def test_the_language_is_gone_through_once_a_launch(patched: list[object]) -> None:
    x = torch.arange(5 * 8, dtype=torch.float32)
    out = torch.zeros(5)
    for number in (1, 2):
        _sums[(5,)](x, out, SIZE=8)
        torch.testing.assert_close(out, 4 * x.view(5, 8).sum(1))
        # This file's functions see one module of the language, those of the language another.
        assert len(patched) == 2 * number
    assert tl.core.is_builtin(tl.arange)


def test_a_launch_that_fails_is_left(patched: list[object]) -> None:
    with pytest.raises(Exception, match="arange"):
        _sums[(1,)](torch.zeros(6), torch.zeros(1), SIZE=6)
    assert tl.core.is_builtin(tl.arange)
    out = torch.zeros(1)
    _sums[(1,)](torch.ones(8), out, SIZE=8)
    assert out.item() == 32


@pytest.mark.parametrize("element", [tl.float32, tl.bfloat16, tl.int1, tl.pointer_type(tl.float16)], ids=str)
@pytest.mark.parametrize("shape", [[1], [4, 8], [2, 1, 16]])
def test_types_of_blocks(element: tl.dtype, shape: list[int]) -> None:
    quicken()
    first, second = tl.block_type(element, shape), tl.block_type(element, shape)
    assert first == second
    assert (first.shape, first.numel, str(first)) == (second.shape, second.numel, str(second))
    assert first.element_ty is element
    assert first.shape == tuple(shape)
    assert second != tl.block_type(element, [*shape, 2])


def test_a_shape_that_no_block_has() -> None:
    quicken()
    for _ in range(2):
        with pytest.raises(ValueError, match="power of 2"):
            tl.block_type(tl.float32, [3])
        with pytest.raises(TypeError):
            tl.block_type(tl.float32, [])
