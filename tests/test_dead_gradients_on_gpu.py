"""Rows that nothing trainable precedes are groups of their own in grouped linears, which hand on no gradient."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.grouped_models import KERNEL_PASSES
from tests.lmfusion_models import checked, document, model, spec_text
from tests.test_dead_gradients import BATCHES, CAPTIONS, gradients, saved_rows
from weft.codegen.gpu.grouped import Grouped, Product
from weft.codegen.gpu.grouped_form import GroupedForm
from weft.codegen.pipeline import DEAD_GRADIENTS, GPU_PASSES
from weft.runtime.model import Model
from weft.views.choices import of_programs

WITHOUT = tuple(one for one in KERNEL_PASSES if one is not DEAD_GRADIENTS)


@pytest.mark.parametrize("name", BATCHES)
def test_no_gradient_changes(name: str) -> None:
    found = gradients(model(passes=KERNEL_PASSES, layers=1), BATCHES[name])
    expected = gradients(model(passes=(), layers=1), BATCHES[name])
    assert found.keys() == expected.keys()
    for path, wanted in expected.items():
        torch.testing.assert_close(found[path], wanted, rtol=1e-9, atol=1e-12)


def test_they_are_a_group_of_their_own() -> None:
    """Words in front, words behind, pictures: by the weights of two towers."""
    built = model(passes=GPU_PASSES, layers=1)
    ops = [node.target for node in built.graph(built.objective()).graph.nodes if isinstance(node.target, Grouped)]
    assert [op.form for op in ops] == [
        GroupedForm(3, 64, (64, 16, 16), scatters=True),
        GroupedForm(3, 64, (64,), gathers=True, detached=(0,)),
        GroupedForm(3, 64, (160, 160)),
        GroupedForm(3, 160, (64,)),
    ]
    # What is made of gates is one text, though words in front have no gradient of it.
    assert ops[2].epilogue is not None


def test_inspect_says_so() -> None:
    """With q, k and v of the first layer: there words behind a picture have none either, as they are embedded still."""
    rows = of_programs([checked(spec_text(), (("layers", 2),)).objectives["joint"]], None)
    forward = [row for row in rows if row.what.startswith("grouped linear") and row.what.endswith("forward")]
    assert [(row.what.removesuffix(", forward"), row.count) for row in forward] == [
        ("grouped linear 64 -> 64 + 16 + 16, 3 groups (2 without gradient)", 1),
        ("grouped linear 64 -> 64, 3 groups (1 without gradient)", 2),
        ("grouped linear 64 -> 160 + 160, 3 groups (1 without gradient)", 2),
        ("grouped linear 160 -> 64, 3 groups (1 without gradient)", 2),
        ("grouped linear 64 -> 64 + 16 + 16, 3 groups (1 without gradient)", 1),
    ]


def programs_backward(built: Model, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[int]]:
    """Of the kernels that make gradients, over two captions of 13 words in front of pictures of 18 rows."""
    found: dict[str, list[int]] = {"x": [], "weight": []}
    launch = Product.launch

    def counted(self: Product, programs: int, *rest: object) -> None:
        name = self.function.fn.__name__
        for what, numbers in found.items():
            numbers += [programs] if name.endswith(f"_{what}_gradient") else []
        launch(self, programs, *rest)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(Product, "launch", counted)
        gradients(built, CAPTIONS)
    return found


def test_they_have_no_tiles_backward(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of 64 rows and 64 entries: one of pictures, where there was one of words too. The first linear of all reads
    words themselves, which are frozen."""
    before, after = (
        programs_backward(model(passes=passes, layers=1), monkeypatch) for passes in (WITHOUT, KERNEL_PASSES)
    )
    # Down, gates, out, and q with k and v: three tiles are as wide as the feed-forward.
    assert before["x"] == [6, 2, 2, 1]
    assert after["x"] == [3, 1, 1, 1]
    assert after["weight"] == before["weight"]


def test_nothing_of_them_is_saved() -> None:
    words, saved = sum(len(one.ids) for one in CAPTIONS), []
    for passes in (WITHOUT, KERNEL_PASSES):
        saved.append(saved_rows(model(passes=passes, layers=1), CAPTIONS))
    assert sum(shape[:1] == (words,) for shape in saved[0]) > 3
    assert not [shape for shape in saved[1] if shape[:1] == (words,)]


def test_words_behind_a_picture_are_saved() -> None:
    documents = [document(5, "p", 6)]
    shapes = saved_rows(model(passes=KERNEL_PASSES, layers=1), documents)
    count = {rows: sum(shape[:1] == (rows,) for shape in shapes) for rows in (5, 6, 11)}
    assert count[5] == count[11] == 0
    assert count[6] > 3


def test_the_operator_of_a_call_with_an_epilogue(monkeypatch: pytest.MonkeyPatch) -> None:
    """As torch checks it: a list says of which groups the pieces are kept."""
    calls: list[tuple[Grouped, tuple[Tensor, ...]]] = []
    call = Grouped.__call__
    monkeypatch.setattr(Grouped, "__call__", lambda self, *given: calls.append((self, given)) or call(self, *given))
    gradients(model(passes=KERNEL_PASSES, layers=1), [document(5, "p", 6)])
    op, given = next((op, given) for op, given in calls if op.epilogue is not None)
    operands = [x.detach().requires_grad_(x.requires_grad) for x in given]
    assert [x.requires_grad for x in operands[:3]] == [False, True, True]
    torch.library.opcheck(op.operator, (*operands, [False, True, True]))
