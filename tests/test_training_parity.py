"""Fifty steps beside transformers: same weights, same batches, same AdamW, the same loss curve."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.nn import functional

from tests import huggingface
from weft.runtime.model import load
from weft.runtime.optimiser import Moment, WeightOptimiser, make_groups
from weft.runtime.transfer import import_checkpoint

SPECS = Path(__file__).parent.parent / "specs"
STEPS, LR, BETAS, EPS, DECAY, CLIP, Z = 50, 3e-3, (0.9, 0.95), 1e-8, 0.1, 1.0, 1e-5
LENGTHS = (24, 9, 17, 1, 30)


def batches() -> list[list[torch.Tensor]]:
    """Documents that can be learnt: each counts upwards from a random start."""
    generator = torch.Generator().manual_seed(3)
    starts = torch.randint(2, 200, (STEPS, len(LENGTHS)), generator=generator)
    return [[(start + torch.arange(n)) % 256 for start, n in zip(row, LENGTHS, strict=True)] for row in starts]


def their_losses(model, steps: list[list[torch.Tensor]]) -> list[float]:
    """Padded batches with a mask; cross-entropy and z-loss over the labelled rows of the step."""
    embedding = {id(model.get_input_embeddings().weight)}
    decayed = [p for p in model.parameters() if id(p) not in embedding]
    groups = [
        {"params": decayed, "weight_decay": DECAY},
        {"params": [model.get_input_embeddings().weight], "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(groups, lr=LR, betas=BETAS, eps=EPS)
    losses = []
    for documents in steps:
        longest = max(LENGTHS)
        ids = torch.stack([functional.pad(d, (0, longest - len(d))) for d in documents])
        mask = torch.arange(longest) < torch.tensor(LENGTHS)[:, None]
        logits = model(input_ids=ids, attention_mask=mask.long()).logits[:, :-1][mask[:, 1:]]
        targets = ids[:, 1:][mask[:, 1:]]
        loss = functional.cross_entropy(logits, targets) + Z * logits.logsumexp(-1).square().mean()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimiser.step()
        losses.append(loss.item())
    return losses


def our_losses(model, steps: list[list[torch.Tensor]]) -> list[float]:
    weights = dict(model.by_path())
    optimiser = WeightOptimiser(make_groups(model.checked.optimiser, weights, lr=LR), weights)
    losses = []
    for number, documents in enumerate(steps):
        parts = model.loss(None, documents, step=number)
        loss = torch.stack([total / count for total, count in parts.values()]).sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step(Moment(), optimiser.gradient_norms())
        losses.append(loss.item())
    return losses


def test_fifty_steps_agree_with_transformers(tmp_path):
    theirs = huggingface.olmo2(kv_heads=2)
    huggingface.saved(theirs, tmp_path / "theirs")
    import_checkpoint(SPECS / "olmo2.weft", tmp_path / "theirs", tmp_path / "ours")
    ours = load(tmp_path / "ours")
    # Padding is another way to compute the same; the pad row must not learn by its own rule.
    embedding = theirs.get_input_embeddings()
    assert isinstance(embedding, torch.nn.Embedding)
    embedding.padding_idx = None
    want, got = their_losses(theirs.train(), batches()), our_losses(ours, batches())
    assert want[-1] < 0.5 * want[0], "the task is learnt, so the curves say something"
    for step, (a, b) in enumerate(zip(got, want, strict=True)):
        assert abs(a - b) <= 1e-4 * abs(b), f"step {step}: {a} against {b}"
