"""Losses in float64 against sums written out by hand: which rows count, and what each holds."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tests import small_models

SPEC = """
size d = 4
size v = 9
axis seq

model g(t: id[seq] in v) -> real[seq, v]:
    return embed(t, v -> d) as table |> linear(d -> v) as head

objective o(t: id[seq] in v, keep: flag[seq], w: real):
    l = g(t)
    loss kept = cross_entropy(l, next(t)) only keep
    loss z = 0.1 * z_loss(l)
    loss example = mean(l, over=(seq, v)) * w
    loss ahead = real(next(t)) + real(next(t, 2)) only not keep
    loss late = real(step) * mean(l, over=v)
    loss filled = or(real(next(t)), 0)
    loss total = sum(real(next(t)), over=seq)
    loss fixed = 0.5
    loss some = w only w > 0
"""
LENGTHS = (5, 1, 3)
STEP = 3


def test_losses_are_sums_over_the_rows_that_count() -> None:
    torch.manual_seed(0)
    model = small_models.model(SPEC, dtype=torch.float64)
    tokens = [torch.randint(0, 9, (n,)) for n in LENGTHS]
    keep = [torch.rand(n) < 0.6 for n in LENGTHS]
    weights = [torch.tensor(number, dtype=torch.float64) for number in (0.5, -2.0, 3.0)]
    table, head = (dict(model.named_parameters())[path] for path in ("table.weight", "head.weight"))
    rows: dict[str, list[torch.Tensor]] = {}

    def row(name: str, value: torch.Tensor | float) -> None:
        rows.setdefault(name, []).append(torch.as_tensor(value, dtype=torch.float64))

    for t, kept, w in zip(tokens, keep, weights, strict=True):
        logits = table[t] @ head.T
        for i in range(len(t)):
            if i + 1 < len(t) and kept[i]:
                row("kept", F.cross_entropy(logits[i], t[i + 1]))
            if i + 2 < len(t) and not kept[i]:
                row("ahead", float(t[i + 1] + t[i + 2]))
            row("z", 0.1 * logits[i].logsumexp(-1) ** 2)
            row("late", STEP * logits[i].mean())
            row("filled", float(t[i + 1]) if i + 1 < len(t) else 0.0)
        row("example", logits.mean() * w)
        row("total", float(t[1:].sum()))
        if w > 0:
            row("some", w)
    row("fixed", 0.5)

    found = model.loss(t=tokens, keep=keep, w=weights, step=STEP)
    assert found.keys() == rows.keys()
    for name, (total, count) in found.items():
        assert int(count) == len(rows[name]), name
        torch.testing.assert_close(total.detach(), torch.stack(rows[name]).sum().detach(), msg=name)


def test_rows_without_an_id_are_equal_to_none() -> None:
    spec = """
size d = 4
size n = 3
axis seq
model m(x: real[seq, d], doc: id[seq] in n or none, f: flag[seq]) -> real[seq, d]:
    return attend(x, x, x, over=d, along=seq, mask=same(doc) and key(f))
"""
    model = small_models.model(spec, dtype=torch.float64)
    torch.manual_seed(0)
    x, doc = torch.randn(5, 4, dtype=torch.float64), torch.tensor([0, 3, 0, 3, 1])
    flags = torch.tensor([True, True, True, True, False])
    allowed = (doc[:, None] == doc) & (doc != 3)[:, None] & flags
    scores = (x @ x.T / 2).masked_fill(~allowed, -torch.inf)
    expected = torch.where(allowed.any(-1, keepdim=True), torch.softmax(scores, -1).nan_to_num() @ x, 0.0)
    torch.testing.assert_close(model([x], [doc], [flags])[0], expected)
