"""Memory layers keep what they are shown (memory_layers.md 9, check 13)."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from tests.memory_models import alone, ends, weights_of
from weft.runtime.optimiser import Moment, WeightOptimiser, make_groups

PAIRS, CLASSES = 10_000, 16
# Two layers that share a table, and nothing between them that could remember.
RECALL = f"""size names = {PAIRS}
size classes = {CLASSES}

model recall(key: id[seq] in names) -> real[seq, classes]:
    x = embed(key, names -> dim) as embed
    x = x + memory(rms_norm(x) as norm_1) as layer_1
    x = x + memory(rms_norm(x) as norm_2) as layer_2
    return linear(x, dim -> classes) as head

objective told(key: id[seq] in names, answer: id[seq] in classes):
    loss cross_entropy = cross_entropy(recall(key), answer)

optimise by adamw(lr=0.3, decay=0.0, clip=0.0):
    values: lr=0.3, lazy=true
"""
SIZES = {"dim": 32, "half": 128, "lookups": 2, "top": 4, "key": 16, "gated": False}
STEPS, SHOWN_EVERY = 12, 3


def test_a_table_alone_remembers_ten_thousand_answers() -> None:
    """All 10^4 random pairs that the sheet asks for, each in every step: 12 steps of half a second are enough, as
    only the table is trained and a token's 16 rows are few of its 16,384. Without rows, or with rows in another order,
    answers are guesses, one in 16 of them right."""
    model = alone(SIZES, RECALL, torch.float32)
    model.reset(3)
    generator = torch.Generator().manual_seed(1)
    key, offsets = torch.arange(PAIRS), ends(PAIRS)
    answer = torch.randint(CLASSES, (PAIRS,), generator=generator)
    weights = weights_of(model)
    others = [path for path in weights if path != "values"]
    before = {path: weights[path].detach().clone() for path in others}
    optimiser = WeightOptimiser(make_groups(model.checked.optimiser, weights, others), weights)

    def shown() -> tuple[Tensor, float]:
        """The loss, and the share of right answers."""
        optimiser.bring_up()
        with torch.no_grad():
            logits = model((key, offsets)).values
        return torch.nn.functional.cross_entropy(logits, answer), float((logits.argmax(-1) == answer).double().mean())

    points = [shown()]
    for step in range(1, STEPS + 1):
        optimiser.zero_grad()
        ((total, count),) = model.loss(None, (key, offsets), (answer, offsets)).values()
        (total / count).backward()
        optimiser.step(Moment(), optimiser.gradient_norms())
        if step % SHOWN_EVERY == 0:
            points.append(shown())
    losses, right = zip(*points, strict=True)
    assert all(later < earlier for earlier, later in pairwise(losses)), losses
    assert all(later > earlier for earlier, later in pairwise(right)), right
    assert right[0] < 2 / CLASSES
    assert right[-1] > 0.99
    assert all(torch.equal(weights[path], was) for path, was in before.items())

    values = weights["values"]
    with torch.no_grad():
        trained = values.clone()
        values.copy_(trained[torch.randperm(len(trained), generator=generator)])
        assert shown()[1] < 2 / CLASSES
        values.zero_()
        assert shown()[1] < 2 / CLASSES
        values.copy_(trained)
        assert shown()[1] == right[-1], "it was not the table alone"
