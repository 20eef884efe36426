"""Rows that no loss counts get no logits, forward and backward, and nothing else changes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.small_models import checked, model, tokens
from weft.codegen.cpu.linear import linear
from weft.codegen.cpu.logits import partition_and_logit
from weft.codegen.functions.counted_rows import Counting, begin_count, counted
from weft.codegen.lower import lower
from weft.codegen.pipeline import COUNTED_ROWS, CPU_PASSES, GPU_PASSES, Pass, optimise
from weft.runtime.model import Model
from weft.views import counted_rows

VOCAB, WIDTH, LENGTHS = 80, 24, (5, 1, 7, 3)

HEAD = """
size vocab = 80
size dim = 24
axis seq

model m(ids: id[seq] in vocab):
    x = embed(ids, vocab -> dim)
    x = x + attend(x, x, x, over=dim, along=seq, mask=causal)
    hidden = rms_norm(x) as norm
    return linear(hidden, dim -> vocab{bias}) as head

init ** = normal(0.5)

objective o(ids: id[seq] in vocab, keep: flag[seq], other: flag[seq]):
    logits = m(ids)
"""
CROSS = "cross_entropy(logits, next(ids))"
# The losses, and which rows have logits, of rows whose flags are `keep`, `other`, and that a row follows.
LOSSES: dict[str, tuple[str, Callable[[Tensor, Tensor, Tensor], Tensor]]] = {
    "targets alone": (f"loss a = {CROSS}", lambda keep, other, follows: follows),
    "only": (f"loss a = {CROSS} only keep", lambda keep, other, follows: follows & keep),
    "z-loss as well": (
        f"loss a = {CROSS} only keep\n    loss z = 0.1 * z_loss(logits) only other",
        lambda keep, other, follows: (follows & keep) | other,
    ),
    "one of two counts everything": (
        f"loss a = {CROSS} only keep\n    loss z = 0.1 * z_loss(logits)",
        lambda keep, other, follows: torch.ones_like(keep),
    ),
    "entropy": ("loss a = entropy(logits) only keep", lambda keep, other, follows: keep),
    "a formula": (
        f"loss a = (max(logits) - mean(tanh(logits))) * {CROSS} * real(ids) only keep",
        lambda keep, other, follows: follows & keep,
    ),
    "chosen by where": (f"loss a = where(keep, {CROSS}, 0.5)", lambda keep, other, follows: follows),
    "chosen by where, all counted": (
        "loss a = where(keep, z_loss(logits), real(ids))",
        lambda keep, other, follows: keep,
    ),
    "missing from a mean": (f"loss a = mean({CROSS}, over=seq)", lambda keep, other, follows: follows),
    "a mean of all": ("loss a = mean(z_loss(logits), over=seq) ", lambda keep, other, follows: torch.ones_like(keep)),
    "read by somebody else": (
        f"loss a = {CROSS} only keep\n    loss b = previous(z_loss(logits)) only other",
        lambda keep, other, follows: torch.ones_like(keep),
    ),
    "rows chosen by their own loss": (
        f"hard = z_loss(logits)\n    loss a = {CROSS} only hard > 15",
        lambda keep, other, follows: torch.ones_like(keep),
    ),
    "through a cap": (
        "capped = 3 * tanh(logits / 3)\n    loss a = cross_entropy(capped, next(ids)) only keep",
        lambda keep, other, follows: follows & keep,
    ),
}
FLAGS: dict[str, Callable[[int], Tensor]] = {
    "none": lambda rows: torch.zeros(rows, dtype=torch.bool),
    "all": lambda rows: torch.ones(rows, dtype=torch.bool),
    "one": lambda rows: torch.arange(rows) == rows // 2,
    "some": lambda rows: torch.arange(rows) % 3 != 1,
}


def spec(losses: str, bias: str = "") -> str:
    return HEAD.replace("{bias}", bias) + f"    {losses}\n"


def batch(flags: str = "some", others: str = "some", lengths: Sequence[int] = LENGTHS) -> dict[str, Any]:
    rows = sum(lengths)
    return {
        "ids": tokens(lengths, VOCAB, seed=1),
        "keep": list(FLAGS[flags](rows).split(lengths)),
        "other": list(FLAGS[others](rows).flip(0).split(lengths)),
    }


def results(subject: Model, given: dict[str, Any]) -> dict[str, Tensor]:
    """Sums and counts of the losses, and the gradients of their sum."""
    losses = subject.loss(**given)
    torch.stack([total for total, _ in losses.values()]).sum().backward()
    found = {path: torch.zeros_like(w) if w.grad is None else w.grad.clone() for path, w in subject.by_path()}
    for weight in subject.parameters():
        weight.grad = None
    for name, (total, count) in losses.items():
        found |= {f"sum of {name}": total.detach(), f"count of {name}": count}
    return found


class RowsOfHead(TorchDispatchMode):
    """How many rows of logits each product makes, or reads."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.aten.addmm_.default):
            # Of [rows, vocab], [vocab, width] and [rows, width] two are multiplied.
            shapes = [x.shape for x in (*args, result) if isinstance(x, Tensor)]
            sizes = {size for shape in shapes for size in shape}
            self.rows += sizes - {VOCAB, WIDTH} if VOCAB in sizes else ()
        return result


@pytest.mark.parametrize("flags", FLAGS)
@pytest.mark.parametrize("losses", [text for text, _ in LOSSES.values()], ids=LOSSES)
def test_losses_and_gradients_are_those_of_the_reference(losses: str, flags: str) -> None:
    text, given = spec(losses), batch(flags)
    want = results(model(text, passes=()), given)
    for passes in ((COUNTED_ROWS,), CPU_PASSES):
        found = results(model(text, passes=passes), given)
        assert found.keys() == want.keys()
        for name, expected in want.items():
            torch.testing.assert_close(found[name], expected, rtol=1e-10, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")
    assert any(one.abs().max() > 0 for name, one in want.items() if "of" not in name) or flags == "none"


@pytest.mark.parametrize("flags", ["some", "one", "all"])
@pytest.mark.parametrize(("losses", "wanted"), LOSSES.values(), ids=LOSSES)
def test_only_what_counts_is_multiplied(losses: str, wanted: Callable[..., Tensor], flags: str) -> None:
    """By the weight of the head: forward, and twice backward."""
    given = batch(flags)
    follows = torch.cat([torch.arange(length) < length - 1 for length in LENGTHS])
    expected = int(wanted(torch.cat(given["keep"]), torch.cat(given["other"]), follows).sum())
    subject = model(spec(losses), passes=CPU_PASSES)
    with RowsOfHead() as seen:
        results(subject, given)
    assert seen.rows == [expected] * 3


TWO_HEADS = """
size vocab = 80
size dim = 24
axis seq

model m(ids: id[seq] in vocab):
    x = rms_norm(embed(ids, vocab -> dim))
    near = linear(x, dim -> vocab) as near
    far = linear(x, dim -> vocab) as far
    return near, far

init ** = normal(0.5)

objective o(ids: id[seq] in vocab, keep: flag[seq], other: flag[seq]):
    one, two = m(ids)
    loss near = cross_entropy(one, next(ids)) only keep
    loss far = cross_entropy(two, next(ids, 2))
    loss both = (z_loss(one) - cross_entropy(two, next(ids))) only keep and other
"""


@pytest.mark.parametrize("passes", [(COUNTED_ROWS,), CPU_PASSES], ids=["alone", "cpu"])
def test_each_head_has_rows_of_its_own(passes: tuple[Pass, ...]) -> None:
    """Of what is made of both, the rows are those that its own loss counts."""
    given = batch()
    want = results(model(TWO_HEADS, passes=()), given)
    found = results(model(TWO_HEADS, passes=passes), given)
    for name, expected in want.items():
        torch.testing.assert_close(found[name], expected, rtol=1e-10, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")
    keep, other = (torch.cat(given[name]) for name in ("keep", "other"))
    left = torch.cat([torch.arange(length, 0, -1) - 1 for length in LENGTHS])
    near = int((keep & (left > 0)).sum())
    far = int(((left > 1) | ((left > 0) & keep & other)).sum())
    with RowsOfHead() as seen:
        results(model(TWO_HEADS, passes=passes), given)
    assert sorted(seen.rows) == sorted([near, far] * 3)


def test_losses_that_count_other_rows_share_one_pass() -> None:
    """Over the rows that either counts, without stored logits."""
    nodes = of_objective(spec(LOSSES["z-loss as well"][0]), CPU_PASSES).graph.nodes
    assert sum(node.target is partition_and_logit for node in nodes) == 1
    assert not any(node.target in (linear, torch.nn.functional.linear) for node in nodes)


def test_nothing_is_multiplied_where_nothing_counts() -> None:
    subject = model(spec(LOSSES["only"][0]), passes=CPU_PASSES)
    with RowsOfHead() as seen:
        found = results(subject, batch("none"))
    assert not any(seen.rows)
    assert not any(one.any() for one in found.values())


def test_rows_without_a_loss_may_hold_anything() -> None:
    """A prompt whose logits are no numbers."""
    # Attention would hand them on.
    text = "\n".join(line for line in spec(LOSSES["only"][0]).splitlines() if "attend" not in line)
    given = batch()
    ids, keep = torch.cat(given["ids"]), torch.cat(given["keep"])
    broken = next(int(one) for one in ids[~keep] if one not in ids[keep])
    subject, plain = (model(text, passes=passes) for passes in (CPU_PASSES, ()))
    for one in (subject, plain):
        with torch.no_grad():
            dict(one.by_path())["x.embed.weight"][broken] = float("nan")
    found, expected = results(subject, given), results(plain, given)
    torch.testing.assert_close(found["sum of a"], expected["sum of a"], rtol=1e-10, atol=0)
    assert found["head.weight"].isfinite().all()


@pytest.mark.parametrize("losses", ["z-loss as well", "entropy", "through a cap"])
@pytest.mark.parametrize("flags", ["none", "some"])
def test_kernels_are_given_the_same_rows(losses: str, flags: str) -> None:
    text, given = spec(LOSSES[losses][0], ", bias=true"), batch(flags)
    want = results(model(text, passes=()), given)
    found = results(model(text, passes=GPU_PASSES), given)
    for name, expected in want.items():
        torch.testing.assert_close(found[name], expected, rtol=1e-9, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}")


def test_flags_are_found_first() -> None:
    """Before anything that takes long on a device, which the host is not to wait for."""
    nodes = list(of_objective(spec(LOSSES["only"][0]), GPU_PASSES).graph.nodes)
    begun = next(place for place, node in enumerate(nodes) if node.target is begin_count)
    first_weight = next(place for place, node in enumerate(nodes) if node.op == "get_attr")
    assert begun < first_weight


def test_a_head_of_a_few_outputs_is_left_alone() -> None:
    """Taking rows apart costs more."""
    text = spec(LOSSES["only"][0]).replace("vocab = 80", "vocab = 60")
    assert not any(node.target is begin_count for node in of_objective(text, CPU_PASSES).graph.nodes)


def of_objective(text: str, passes: Sequence[Pass]) -> torch.fx.GraphModule:
    subject = model(text, passes=())
    (objective,) = subject.checked.objectives.values()
    return optimise(lower(objective, subject, torch.float64), tuple(passes))


def test_inspect_says_which_rows_count() -> None:
    text = spec("loss a = cross_entropy(logits, next(ids)) only keep\n    loss z = 0.1 * z_loss(logits) only other")
    rows = counted_rows.of_programs(list(checked(text).objectives.values()))
    (head,) = (line for line, of in enumerate(text.lstrip().splitlines(), 1) if "as head" in of)
    (a, z) = (line for line, of in enumerate(text.lstrip().splitlines(), 1) if "loss " in of)
    assert [(row.spec, row.what, row.losses) for row in rows] == [
        (f"test.weft:{head}", "linear 24 -> 80", (f"test.weft:{a}", f"test.weft:{z}"))
    ]
    assert "linear 24 -> 80" in counted_rows.text(rows)
    everything = counted_rows.of_programs(list(checked(spec("loss z = z_loss(logits)")).objectives.values()))
    assert counted_rows.text(everything) == "every linear is made for all rows"


@pytest.mark.gpu
def test_the_host_knows_how_many_rows_count() -> None:
    flags = torch.arange(1000) % 7 < 3
    begun = begin_count(flags.cuda())
    assert isinstance(begun, Counting)
    assert torch.equal(counted(begun).cpu(), flags.nonzero()[:, 0])
