"""Linears of one input as one product on a GPU: the same numbers and names, and nothing copied."""

from __future__ import annotations

import sys
from collections import Counter
from importlib import import_module
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from weft.codegen.artifact import compile_to
from weft.codegen.functions.adjoining import adjoin, lay_out
from weft.codegen.gpu.joined import joined_linears
from weft.codegen.passes.joined_linears import join_linears_on_gpu, joined_paths
from weft.codegen.pipeline import BASIC_PASSES, GPU_PASSES, Pass, optimise
from weft.runtime.model import Model, load

ROWS, INPUTS, OUTPUTS = 7, 5, (6, 2, 3)


def weights(dtype: torch.dtype = torch.float64) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(n, INPUTS, generator=generator, dtype=torch.float64).to(dtype))
            for n in OUTPUTS]  # fmt: skip


class Ops(TorchDispatchMode):
    """Counts what torch runs, without names for what is there."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


NAMES = {"t", "detach", "as_strided", "split_with_sizes", "view", "alias"}


def step(x: torch.Tensor, given: list[torch.nn.Parameter], parts: tuple[int, ...]) -> dict[str, torch.Tensor | None]:
    """Gradients where only some of the products are used."""
    x = x.clone().requires_grad_()
    for weight in given:
        weight.grad = None
    made = joined_linears(x, *given)
    torch.autograd.backward([made[i] for i in parts], [torch.cos(torch.arange(made[i].numel())).view_as(made[i]).to(x)
                                                       for i in parts])  # fmt: skip
    return {"x": x.grad} | {str(i): weight.grad for i, weight in enumerate(given)}


@pytest.mark.parametrize("parts", [(0, 1, 2), (1,), (0, 2)], ids=str)
def test_one_product_gives_what_three_give(parts: tuple[int, ...]) -> None:
    x = torch.randn(ROWS, INPUTS, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    apart, together = weights(), weights()
    lay_out(together)
    assert adjoin(together)
    assert not adjoin(apart)
    for one, two in zip(joined_linears(x, *together), joined_linears(x, *apart), strict=True):
        assert torch.allclose(one, two, rtol=1e-13, atol=0)
    got, want = step(x, together, parts), step(x, apart, parts)
    for name in want:
        one, two = got[name], want[name]
        assert (one is None) == (two is None), name
        assert one is None or two is None or torch.allclose(one, two, rtol=1e-12, atol=1e-14), name


def test_a_step_copies_nothing() -> None:
    """Forward one product; backward one for each gradient, those of x added by the matrix library."""
    given = weights()
    lay_out(given)
    x = torch.randn(ROWS, INPUTS, dtype=torch.float64, requires_grad=True)
    grads = [torch.randn(ROWS, n, dtype=torch.float64) for n in OUTPUTS]
    with Ops() as ops:
        made = joined_linears(x, *given)
    assert {name: n for name, n in ops.calls.items() if name not in NAMES} == {"mm": 1}
    with Ops() as ops:
        found = torch.autograd.grad(made, [x, *given], grads)
    assert {name: n for name, n in ops.calls.items() if name not in NAMES} == {"mm": 4, "addmm_": 2}
    assert len(found) == 4


def test_frozen_weights_have_no_gradient() -> None:
    given = weights()
    lay_out(given)
    given[1].requires_grad_(False)
    found = step(torch.ones(ROWS, INPUTS, dtype=torch.float64), given, (0, 1, 2))
    assert [name for name, gradient in found.items() if gradient is None] == ["1"]


def test_compiled_whole() -> None:
    given = weights()
    lay_out(given)
    x = torch.randn(ROWS, INPUTS, dtype=torch.float64)
    compiled = torch.compile(joined_linears, fullgraph=True, backend="aot_eager")
    for one, two in zip(compiled(x, *given), joined_linears(x, *given), strict=True):
        assert torch.allclose(one, two)


# -- in a model --------------------------------------------------------------------------------------------------------


def olmo2(root: Path, **options: object) -> Model:
    model = load(root / "specs" / "olmo2.weft", "tiny", {"layers": 2}, **options)  # type: ignore[arg-type]
    assert isinstance(model, Model)
    return model


def test_which_are_joined(root: Path) -> None:
    model = olmo2(root)
    before = {path: (parameter, parameter.detach().clone()) for path, parameter in model.by_path()}
    graph = optimise(model.reference(), (*BASIC_PASSES, Pass("joined-linears", join_linears_on_gpu, "")))
    assert joined_paths(graph) == [
        paths
        for layer in range(2)
        for paths in (
            tuple(f"layer.{layer}.attention.{name}.linear.weight" for name in "qkv"),
            tuple(f"layer.{layer}.swiglu.{name}.linear.weight" for name in ("gate", "up")),
        )
    ]
    # The parameters are the same objects, under the same names, with the same numbers.
    for path, parameter in model.by_path():
        old, numbers = before[path]
        assert parameter is old
        assert torch.equal(parameter, numbers)
    for paths in joined_paths(graph):
        assert adjoin([model[path] for path in paths])
    # The others, and both programs of a model, agree about it.
    optimise(model.reference(model.objective()), GPU_PASSES)
    assert all(adjoin([model[path] for path in paths]) for paths in joined_paths(graph))


def test_weights_that_moved_are_multiplied_one_by_one(root: Path) -> None:
    model = olmo2(root, passes=GPU_PASSES)
    want = model([[1, 2, 3]])[0]
    for _, parameter in model.by_path():
        parameter.data = parameter.data.clone()
    got = model([[1, 2, 3]])[0]
    assert torch.allclose(got, want, atol=1e-5)


def test_an_artifact_lays_its_weights_out(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = olmo2(root)
    folder = compile_to(model.checked, tmp_path / "olmo2_joined", passes=GPU_PASSES, target="cuda:90")
    monkeypatch.syspath_prepend(str(folder.parent))
    try:
        made = import_module(folder.name).load()
        module = sys.modules[f"{folder.name}.model"]
        assert len(module.JOINED) == 4
        assert all(adjoin([made[path] for path in paths]) for paths in module.JOINED)
        assert list(made.state_dict()) == list(model.state_dict())
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] == folder.name]:
            del sys.modules[name]
