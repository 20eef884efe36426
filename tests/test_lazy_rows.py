"""Tables whose rows are updated when they are read: dense AdamW, to its numbers (memory_layers.md 9, checks 4 to 9)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests import small_models
from tests.counted_memory import allocated
from weft.codegen.functions import row_tables
from weft.codegen.functions.gathers import bag as plain_bag
from weft.codegen.pipeline import CPU_PASSES
from weft.runtime.errors import RuntimeFault
from weft.runtime.lazy_rows import LazyRows
from weft.runtime.model import Model
from weft.runtime.optimiser import Moment, WeightOptimiser, make_groups
from weft.runtime.row_moments import RowMoments
from weft.runtime.rows_behind import RowSettings

WIDTH = 8


def lookups(generator: torch.Generator, rows: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Rows and weights of a step: often few, at times none, at times the same row many times."""
    lines = int(torch.randint(0, 4, (), generator=generator))
    index = torch.randint(0, rows, (lines, 3), generator=generator)
    if lines and torch.rand((), generator=generator) < 0.2:
        index[:, :2] = 7
    return index, torch.randn(index.shape, generator=generator, dtype=dtype)


def rates(step: int) -> float:
    """Up and down again."""
    return 1e-3 * min(1, (step + 1) / 20) * (1 - step / 300)


def trained(
    settings: RowSettings, dtype: torch.dtype, rows: int, scale: float, steps: int = 200, catches_up: bool = True
) -> tuple[Tensor, Tensor]:
    """The table after the steps, and torch's AdamW's in float64. What each step reads is compared too."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(rows, WIDTH, generator=generator, dtype=dtype) * WIDTH**-0.5
    lazy = start.clone().requires_grad_()
    dense = start.double().requires_grad_()
    by_rows = LazyRows(lazy, settings)
    setattr(lazy, row_tables.ATTRIBUTE, by_rows)
    adamw = torch.optim.AdamW([dense], betas=settings.betas, eps=settings.eps, weight_decay=settings.decay)
    for step in range(steps):
        index, weight = lookups(generator, rows, dtype)
        gradient = scale * torch.randn(len(index), WIDTH, generator=generator, dtype=dtype)
        read = row_tables.bag(lazy, index, weight)
        wanted = plain_bag(dense, index, weight.double())
        if catches_up and len(index):
            torch.testing.assert_close(read.double(), wanted, rtol=1e-5, atol=1e-6)
        read.backward(gradient)
        dense.grad = torch.zeros_like(dense)
        wanted.backward(gradient.double())
        adamw.param_groups[0]["lr"] = rates(step)
        adamw.step()
        assert lazy.grad is None
        by_rows.step(rates(step))
    if catches_up:
        by_rows.bring_up_all()
    return lazy.detach().double(), dense.detach()


@pytest.mark.parametrize("eps", [1e-8, 1e-3])
@pytest.mark.parametrize("scale", [1.0, 1e-4, 1e-9])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-6)], ids=str)
def test_lazy_is_dense(eps: float, scale: float, dtype: torch.dtype, tolerance: float) -> None:
    lazy, dense = trained(RowSettings((0.9, 0.95), eps, 0.1), dtype, 300, scale)
    assert (lazy - dense).abs().max() < tolerance


@pytest.mark.parametrize(("betas", "decay"), [((0.9, 0.999), 0.5), ((0.0, 0.95), 0.1), ((0.95, 0.9), 0.0)], ids=str)
def test_other_settings(betas: tuple[float, float], decay: float) -> None:
    lazy, dense = trained(RowSettings(betas, 1e-8, decay), torch.float64, 200, 1.0)
    assert (lazy - dense).abs().max() < 1e-8


def test_rows_left_behind_differ() -> None:
    """Or the tests above would see nothing: rows that are not made up for lack what moments and decay did."""
    lazy, dense = trained(RowSettings((0.9, 0.95), 1e-8, 0.1), torch.float64, 500, 1.0, catches_up=False)
    assert (lazy - dense).abs().max() > 1e-3


def test_a_step_may_be_clipped_and_divided() -> None:
    start = torch.randn(9, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    lazy, dense = start.clone().requires_grad_(), start.clone().requires_grad_()
    by_rows = LazyRows(lazy, RowSettings((0.9, 0.95), 1e-8, 0.1))
    setattr(lazy, row_tables.ATTRIBUTE, by_rows)
    adamw = torch.optim.AdamW([dense], lr=1e-2, betas=(0.9, 0.95), weight_decay=0.1)
    index, weight = torch.tensor([[1, 2], [2, 8]]), torch.tensor([[0.5, 1.0], [2.0, -1.0]], dtype=torch.float64)
    for _ in range(5):
        for table in (lazy, dense):
            for _ in range(2):  # micro-batches
                (row_tables.bag(table, index, weight) ** 2).sum().backward()
        by_rows.divide_gradient(4.0)
        assert dense.grad is not None
        dense.grad.div_(4.0)
        norm = torch.nn.utils.clip_grad_norm_([dense], 0.5)
        torch.testing.assert_close(by_rows.gradient_norm(), norm)
        torch.testing.assert_close(by_rows.dense_gradient() * (0.5 / (norm + 1e-6)).clamp(max=1), dense.grad)
        by_rows.step(1e-2, min(1.0, 0.5 / (float(norm) + 1e-6)))
        adamw.step()
        dense.grad = None
    by_rows.bring_up_all()
    torch.testing.assert_close(lazy, dense, rtol=0, atol=1e-12)


def test_it_goes_on_from_dense_moments() -> None:
    start = torch.randn(9, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    dense, lazy = start.clone().requires_grad_(), start.clone().requires_grad_()
    adamw = torch.optim.AdamW([dense], lr=1e-2, betas=(0.9, 0.95), weight_decay=0.1)
    by_rows = LazyRows(lazy, RowSettings((0.9, 0.95), 1e-8, 0.1))
    setattr(lazy, row_tables.ATTRIBUTE, by_rows)
    for step in range(12):
        if step == 6:
            state = adamw.state[dense]
            with torch.no_grad():
                lazy.copy_(dense)
            by_rows.load(state["exp_avg"], state["exp_avg_sq"], step)
        index = torch.tensor([[step % 9, (3 * step) % 9]])
        row_tables.bag(dense, index, None).square().sum().backward()
        if step >= 6:
            row_tables.bag(lazy, index, None).square().sum().backward()
            by_rows.step(1e-2)
        adamw.step()
        adamw.zero_grad()
        dense.grad = torch.zeros_like(dense)
    by_rows.bring_up_all()
    torch.testing.assert_close(lazy, dense, rtol=0, atol=1e-12)


# --- one moment for each row ---------------------------------------------------------------------------------------


class DenseRowMoments:
    """The rule as row_moments.py states it, on the whole table at every step."""

    def __init__(self, table: Tensor, settings: RowSettings) -> None:
        self.table, self.settings, self.updates = table, settings, 0
        self.second = table.new_zeros(len(table))

    def step(self, gradient: Tensor, lr: float) -> None:
        beta, self.updates = self.settings.betas[1], self.updates + 1
        self.second = beta * self.second + (1 - beta) * gradient.square().mean(1)
        root = (self.second / (1 - beta**self.updates)).sqrt() + self.settings.eps
        self.table.mul_(1 - lr * self.settings.decay).sub_(lr * gradient / root[:, None])


@pytest.mark.parametrize("decay", [0.0, 0.3])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)], ids=str)
def test_a_moment_for_each_row(decay: float, dtype: torch.dtype, tolerance: float) -> None:
    settings = RowSettings((0.9, 0.95), 1e-8, decay)
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(300, WIDTH, generator=generator, dtype=dtype) * WIDTH**-0.5
    table = start.clone().requires_grad_()
    dense = DenseRowMoments(start.double().clone(), settings)
    by_rows = RowMoments(table, settings)
    setattr(table, row_tables.ATTRIBUTE, by_rows)
    for step in range(200):
        if step == 100:  # saved, and gone on from
            by_rows.bring_up_all()
            by_rows = RowMoments(table, settings)
            by_rows.load(dense.second.to(dtype), step)
            setattr(table, row_tables.ATTRIBUTE, by_rows)
        index, weight = lookups(generator, 300, dtype)
        gradient = torch.randn(len(index), WIDTH, generator=generator, dtype=dtype)
        read = row_tables.bag(table, index, weight)
        torch.testing.assert_close(read.double(), plain_bag(dense.table, index, weight.double()), rtol=1e-5, atol=1e-6)
        read.backward(gradient)
        whole = torch.zeros_like(dense.table)
        whole.index_put_((index,), weight.double()[..., None] * gradient.double()[:, None], accumulate=True)
        assert table.grad is None
        torch.testing.assert_close(by_rows.dense_gradient().double(), whole, rtol=1e-4, atol=1e-6)
        by_rows.step(rates(step), 0.5)
        dense.step(0.5 * whole, rates(step))
    by_rows.bring_up_all()
    assert (table.detach().double() - dense.table).abs().max() < tolerance
    assert (by_rows.second.double() - dense.second).abs().max() < tolerance
    assert (table.detach() - start).abs().max() > 1e-3


ROWS = """
size vocab = 40
size dim = 4
axis seq
shared table: real[vocab, dim] = normal(0.5)

model toy(tokens: id[seq] in vocab) -> real[seq, vocab]:
    return linear(embed(tokens, vocab -> dim, weight=table), dim -> vocab) as head

objective text(tokens: id[seq] in vocab):
    loss text = cross_entropy(toy(tokens), next(tokens))

optimise by adamw(lr=1e-2, decay=0.1, clip=1.0):
    table: {settings}
"""


def optimiser(settings: str) -> tuple[WeightOptimiser, Model]:
    model = small_models.model(ROWS.format(settings=settings), passes=CPU_PASSES)
    weights = dict(model.by_path())
    return WeightOptimiser(make_groups(model.checked.optimiser, weights), weights), model


def test_moments_of_rows_are_saved_and_of_nothing_else() -> None:
    made, model = optimiser("lazy=true, moments=row, betas=(0.9, 0.99)")
    for _ in range(3):
        tokens = (torch.randint(40, (9,)), torch.tensor([0, 9], dtype=torch.int32))
        model.loss(None, tokens)["text"][0].backward()
        made.step(Moment(), made.gradient_norms())
        made.zero_grad()
    state = made.state()
    first, second = state.moments["table"]
    assert first is None
    assert second.shape == (40,)
    assert 0 < int((second > 0).sum()) < 40
    again, _ = optimiser("lazy=true, moments=row, betas=(0.9, 0.99)")
    again.load_state(state)
    kept = again.lazy["table"]
    assert torch.equal(kept.second, second)
    assert kept.settings.betas == (0.9, 0.99)
    other, _ = optimiser("lazy=true")
    with pytest.raises(RuntimeFault, match="of table with moments=row, not with moments=entry"):
        other.load_state(state)


# --- the function --------------------------------------------------------------------------------------------------


def test_bag_is_a_gather_and_a_sum() -> None:
    table = torch.randn(13, 2, 3, dtype=torch.float64, requires_grad=True)
    index = torch.randint(13, (4, 2, 5))
    index[0, 0] = 3  # one row many times
    weight = torch.randn(4, 2, 5, dtype=torch.float64, requires_grad=True)
    wanted = (table[index] * weight[..., None, None]).sum(2)
    torch.testing.assert_close(row_tables.bag(table, index, weight), wanted)
    torch.testing.assert_close(row_tables.rows_of_table(table, index), table[index])
    assert torch.autograd.gradcheck(lambda t, w: row_tables.bag(t, index, w), (table, weight))
    assert torch.autograd.gradcheck(lambda t: row_tables.rows_of_table(t, index), (table,))


SEVERAL_AXES = """
size vocab = 5
size heads = 2
size dim = 3
axis seq
shared table: real[vocab, heads, dim] = normal(0.5)

model m(i: id[seq] in vocab) -> real[seq, heads, dim]:
    return {read}
"""


@pytest.mark.parametrize("read", ["embed(i, vocab -> (heads, dim), weight=table)", "table[i]"])
def test_entries_with_several_axes(read: str) -> None:
    """Read by rows as they are read otherwise."""
    model = small_models.model(SEVERAL_AXES.format(read=read), passes=CPU_PASSES)
    index, offsets = torch.tensor([4, 0, 0, 2, 1]), torch.tensor([0, 2, 5], dtype=torch.int32)
    ((_, table),) = model.by_path()
    by_rows = LazyRows(table, RowSettings((0.9, 0.95), 1e-8, 0.1))
    setattr(table, row_tables.ATTRIBUTE, by_rows)
    found = model((index, offsets)).values
    assert torch.equal(found, table[index])
    found.square().sum().backward()
    assert table.grad is None
    wanted = torch.zeros_like(table).index_add(0, index, 2 * table.detach()[index])
    torch.testing.assert_close(by_rows.dense_gradient().view_as(table), wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_torchs(dtype: torch.dtype) -> None:
    table = torch.randn(50, 16).to(dtype).requires_grad_()
    index, weight = torch.randint(50, (40, 6)), torch.rand(40, 6).to(dtype).requires_grad_()
    gradient = torch.randn(40, 16).to(dtype)
    found = torch.autograd.grad(row_tables.bag(table, index, weight), (table, weight), gradient)
    wide = [x.detach().double().requires_grad_() for x in (table, weight)]
    wanted = torch.autograd.grad((wide[0][index] * wide[1][..., None]).sum(1), wide, gradient.double())
    limit = 2e-6 if dtype is torch.float32 else 3e-2
    for one, other in zip(found, wanted, strict=True):
        assert ((one.double() - other).abs() <= limit * (1 + other.abs())).all()


def test_a_row_with_a_hundred_thousand_hits() -> None:
    """Check 6: the sum of all contributions, in float32 to 1e-5, and the same bits every time."""
    index = torch.zeros(1000, 100, dtype=torch.int64)
    index[::7, 3] = 5
    generator = torch.Generator().manual_seed(4)
    weight, gradient = torch.rand(1000, 100, generator=generator), torch.randn(1000, 4, generator=generator)
    wanted = torch.zeros(6, 4, dtype=torch.float64)
    wanted.index_add_(0, index.flatten(), (weight[..., None].double() * gradient[:, None].double()).reshape(-1, 4))
    found = row_tables.add_factors([(index, weight, gradient)], 6)
    assert ((found - wanted).abs() <= 1e-5 * wanted.abs().clamp(min=1)).all()
    assert torch.equal(found, row_tables.add_factors([(index, weight, gradient)], 6))


@pytest.mark.parametrize("lazy", [True, False])
def test_what_was_read_is_never_stored(lazy: bool) -> None:
    """Check 14: no tensor of lines x n x width, forward, backward or in the update."""
    lines, n, width, rows = 64, 128, 256, 2000
    table = torch.randn(rows, width, requires_grad=True)
    by_rows = LazyRows(table, RowSettings((0.9, 0.95), 1e-8, 0.1))
    if lazy:
        setattr(table, row_tables.ATTRIBUTE, by_rows)
    index = torch.randint(rows, (lines, n))
    weight = torch.rand(lines, n, requires_grad=True)
    with allocated() as memory:
        for _ in range(2):
            row_tables.bag(table, index, weight).square().sum().backward()
            by_rows.step(1e-3)
    assert memory.largest < lines * n * width * 4 / 2
