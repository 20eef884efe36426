"""Grouped linears: kernels in Triton's interpreter against float64, what they skip, and how torch sees them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from weft.codegen.emit import Imports
from weft.codegen.emit_kernels import kernels_text
from weft.codegen.functions.selections import order_of
from weft.codegen.gpu.grouped import Grouped, Product
from weft.codegen.gpu.grouped_form import GroupedForm
from weft.codegen.gpu.grouped_torch import operand_names
from weft.codegen.gpu.linear_tiles import Tiles
from weft.codegen.grouped.kernels import PRODUCTS
from weft.codegen.grouped.op import grouped_op
from weft.runtime.kernels import _load

# Of the largest entry: results, gradients.
LIMITS = {torch.float64: (1e-12, 1e-12), torch.float32: (1e-5, 1e-5), torch.bfloat16: (4e-3, 1e-2)}
SIDES = {"apart": (False, False), "gathered": (True, False), "scattered": (False, True), "both": (True, True)}
# Sizes that miss every tile; groups without rows, of one row, one group alone.
COUNTS = [(63, 500), (60, 0, 1), (7,), (0, 33, 1, 5, 40)]


@dataclass(frozen=True)
class Case:
    form: GroupedForm
    operands: list[Tensor]

    @property
    def names(self) -> list[str]:
        return operand_names(self.form)

    def of_type(self, dtype: torch.dtype) -> list[Tensor]:
        """Copies that ask for a gradient."""
        return [x.detach().to(dtype, copy=True).requires_grad_() if x.is_floating_point() else x for x in self.operands]


def case(form: GroupedForm, counts: tuple[int, ...], dtype: torch.dtype, spare: int = 0) -> Case:
    """Rows of the groups mixed; `spare` rows are in none."""
    generator = torch.Generator().manual_seed(sum(counts))

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    mixed = torch.randperm(sum(counts) + spare, generator=generator)[: sum(counts)]
    rows = [part.sort().values for part in mixed.split(counts)]
    x = [draw(sum(counts) + spare, form.inputs)] if form.gathers else [draw(n, form.inputs) for n in counts]
    weights = [draw(size, form.inputs) / form.inputs**0.5 for _ in counts for size in form.outputs]
    biases = [draw(size) for _ in counts for size in form.outputs] if form.has_bias else []
    order = [order_of(tuple(rows))] if form.scatters else []
    return Case(form, [*x, *(rows if form.moves else []), *order, *weights, *biases])


def call_of(form: GroupedForm, dtype: torch.dtype) -> Grouped:
    """In tiles that suit the interpreter, whose time goes by programs."""
    tiles = dict.fromkeys(PRODUCTS, Tiles(64, 32, 32, 1, 1))
    op = replace(grouped_op("tower", form, dtype, True), **tiles)
    return _load(kernels_text([op], Imports(home="weft.codegen."), f"of {form}")).tower


def oracle(form: GroupedForm, operands: list[Tensor]) -> list[Tensor]:
    """Row by row: each by the weights of its group."""
    given = dict(zip(operand_names(form), operands, strict=True))
    found: list[list[Tensor]] = []
    for g in range(form.groups):
        x = given["x"][given[f"rows_{g}"]] if form.gathers else given[f"x_{g}"]
        x = x.detach() if g in form.detached else x
        found.append([
            functional.linear(x, given[f"weight_{g}_{j}"], given.get(f"bias_{g}_{j}")) for j in range(form.pieces)
        ])  # fmt: skip
    if not form.scatters:
        return [piece for pieces in found for piece in pieces]
    total = sum(pieces[0].shape[0] for pieces in found)
    whole = [operands[0].new_zeros(total, size) for size in form.outputs]
    for g, pieces in enumerate(found):
        whole = [all_.index_put((given[f"rows_{g}"],), one) for all_, one in zip(whole, pieces, strict=True)]
    return whole


def listed(found: Any) -> list[Tensor]:
    return list(found) if isinstance(found, tuple | list) else [found]


def near(found: Tensor, expected: Tensor, limit: float, what: str) -> None:
    largest = expected.abs().max() if expected.numel() else torch.tensor(0.0)
    off = (found.to(torch.float64) - expected).abs().max() if expected.numel() else torch.tensor(0.0)
    assert found.shape == expected.shape
    assert off <= limit * largest, f"{what}: off by {off:.3g} of {largest:.3g}"


def agree(made: Case, dtype: torch.dtype) -> None:
    """Results and every gradient against float64, of the same rounded operands."""
    call = call_of(made.form, dtype)
    given, exact = made.of_type(dtype), made.of_type(torch.float64)
    found, expected = listed(call(*given)), oracle(made.form, exact)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == dtype
        near(one, other, LIMITS[dtype][0], "result")
    grads = [torch.randn_like(one.detach(), dtype=torch.float64).to(dtype) for one in found]
    torch.autograd.backward(found, grads)
    torch.autograd.backward(expected, [grad.to(torch.float64) for grad in grads])
    for name, one, other in zip(made.names, given, exact, strict=True):
        if one.is_floating_point():
            assert one.grad is not None
            near(one.grad, other.grad if other.grad is not None else torch.zeros_like(other), LIMITS[dtype][1], name)


@pytest.mark.parametrize("counts", COUNTS, ids=str)
@pytest.mark.parametrize("side", SIDES)
def test_float32(side: str, counts: tuple[int, ...]) -> None:
    gathers, scatters = SIDES[side]
    form = GroupedForm(len(counts), 60, (33, 16), gathers, scatters)
    agree(case(form, counts, torch.float32), torch.float32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("has_bias", [False, True])
def test_other_types(dtype: torch.dtype, has_bias: bool) -> None:
    """One piece and a bias; rows are read and written in other orders."""
    agree(case(GroupedForm(3, 48, (40,), True, True, has_bias), (63, 0, 21), dtype), dtype)


@pytest.mark.parametrize("rows", [0, 1])
def test_a_short_group_of_wider_rows(rows: int) -> None:
    """What has no row, or one, is contiguous to torch whatever the distance between its rows: not that of others."""
    made = case(GroupedForm(2, 20, (24,), False, True), (rows, 13), torch.float32)
    given, exact = made.of_type(torch.float32), made.of_type(torch.float64)
    wide = torch.cat((given[0], given[0]), 1)[:, :20]
    assert wide.stride() == (40, 1)
    found, (expected,) = call_of(made.form, torch.float32)(wide, *given[1:]), oracle(made.form, exact)
    near(found, expected, LIMITS[torch.float32][0], "result")
    found.sum().backward()
    expected.sum().backward()
    for name, one, other in zip(made.names, given, exact, strict=True):
        if one.is_floating_point():
            assert one.grad is not None
            assert other.grad is not None
            near(one.grad, other.grad, LIMITS[torch.float32][1], name)


def test_three_pieces_with_biases_in_bfloat16() -> None:
    agree(case(GroupedForm(2, 64, (64, 16, 16), False, True, True), (17, 70), torch.bfloat16), torch.bfloat16)


def test_rows_of_no_group_get_no_gradient() -> None:
    agree(case(GroupedForm(2, 20, (24,), True), (9, 13), torch.float32, spare=6), torch.float32)


@pytest.mark.parametrize("counts", [(9, 70, 13), (0, 5, 0), (12, 0, 1)], ids=str)
@pytest.mark.parametrize("scatters", [False, True])
def test_detached_rows_get_no_gradient(scatters: bool, counts: tuple[int, ...]) -> None:
    """Of x; their weights have one all the same."""
    form = GroupedForm(3, 20, (24, 33), True, scatters, detached=(1,))
    agree(case(form, counts, torch.float32), torch.float32)


def test_results_of_a_group_without_a_gradient_have_none() -> None:
    """Of rows that are detached and weights that are frozen; only what is left is read again."""
    form = GroupedForm(2, 20, (24, 33), gathers=True, detached=(0,))
    made = case(form, (9, 13), torch.float32)
    given = dict(zip(made.names, made.of_type(torch.float32), strict=True))
    for j in range(form.pieces):
        given[f"weight_0_{j}"].requires_grad_(False)
    found = call_of(form, torch.float32)(*given.values())
    assert [one.requires_grad for one in found] == [False, False, True, True]
    torch.stack([one.sin().sum() for one in found]).sum().backward()
    x = given["x"].grad
    assert x is not None
    assert not x[given["rows_0"]].any()
    exact = [x.detach().to(torch.float64) if x.is_floating_point() else x for x in made.operands]
    exact[0].requires_grad_()
    torch.stack([one.sin().sum() for one in oracle(form, exact)]).sum().backward()
    assert exact[0].grad is not None
    near(x, exact[0].grad, LIMITS[torch.float32][1], "x")


def test_operators() -> None:
    """As torch checks them: schema, fake tensors, autograd."""
    form = GroupedForm(2, 24, (16, 8), True, True, True)
    given = case(form, (3, 6), torch.float32).of_type(torch.float32)
    torch.library.opcheck(call_of(form, torch.float32).operator, tuple(given))


@pytest.mark.parametrize("moves", [False, True], ids=["in place", "moved"])
def test_operators_of_gradients(moves: bool) -> None:
    """As a compiled backward calls them: where everything wants a gradient, and where a group wants none."""
    form = GroupedForm(2, 24, (16, 8), moves, moves, True)
    given = [x.detach() for x in case(form, (3, 6), torch.float32).of_type(torch.float32)]
    call = call_of(form, torch.float32)
    grads = [torch.randn_like(one) for one in listed(call(*given))]
    operators = getattr(torch.ops, call.library)
    of_x, of_weights = (getattr(operators, f"{call.name}_{which}_gradient") for which in ("x", "weight"))
    for wanted in ([True] * form.tensors_of_x, [False, True][: form.tensors_of_x]):
        if any(wanted):
            torch.library.opcheck(of_x, (*grads, *given, wanted))
    for wanted in ([True] * 4, [False, False, True, True], [False, True, False, False]):
        torch.library.opcheck(of_weights, (*grads, *given, wanted))


def test_by_the_matrix_library() -> None:
    """Each product by itself: what its kernel computes."""
    detached = GroupedForm(2, 24, (16, 8), gathers=True, detached=(0,))
    for form in (GroupedForm(2, 24, (16, 8), True, True, True), GroupedForm(2, 24, (16, 8)), detached):
        made = case(form, (5, 9), torch.float64)
        call = call_of(form, torch.float64)
        want = products_of(call, made)
        for product in PRODUCTS:
            for one, other in zip(products_of(replace(call, **{product: None}), made), want, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def products_of(call: Grouped, made: Case) -> list[Tensor]:
    """Results and gradients, of operators with a name of their own."""
    name = "_".join(product for product in PRODUCTS if getattr(call, product) is not None)
    given = made.of_type(torch.float64)
    leaves = [x for x in given if x.requires_grad]
    found = listed(
        replace(call, library="grouped_by_torch", name=f"{name}_{call.form.results}_{call.form.gathers}")(*given)
    )
    return [*found, *torch.autograd.grad(found, leaves, [one.sin() for one in found])]


def test_frozen_towers_cost_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that are not trained have no tile, and no memory; rows that want no gradient have none either."""
    form = GroupedForm(2, 32, (64, 32), scatters=True)
    made, programs = case(form, (64, 64), torch.float32), []
    launch = Product.launch
    monkeypatch.setattr(Product, "launch", lambda self, n, *rest: programs.append(n) or launch(self, n, *rest))
    found = []
    for frozen in (False, True):
        given = dict(zip(made.names, made.of_type(torch.float32), strict=True))
        for name in ("x_0", "weight_0_0", "weight_0_1") if frozen else ():
            given[name].requires_grad_(False)
        torch.stack([one.sin().sum() for one in call_of(form, torch.float32)(*given.values())]).sum().backward()
        found.append({name: x.grad for name, x in given.items()})
    assert programs == [6, 2, 4, 6, 1, 2]
    for name, gradient in found[1].items():
        assert (gradient is None) == (name in ("x_0", "weight_0_0", "weight_0_1") or found[0][name] is None)
        if gradient is not None:
            torch.testing.assert_close(gradient, found[0][name], rtol=0, atol=0)
