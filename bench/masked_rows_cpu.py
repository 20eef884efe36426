"""What prompts without a loss cost a training step on a CPU: their rows get no logits.

    python bench/masked_rows_cpu.py                 # half of the rows
    python bench/masked_rows_cpu.py --share 0.9     # or another share

A decoder of four layers of width 256 with 16,384 tokens, fp32; eight documents of 128 rows, whose first rows are a
prompt that `only` leaves out of the loss. Forward and backward, by the passes for a CPU (ours) and by the same without
the one that leaves rows out (all). Sides take turns; a row gives medians and the ratio of times (above 1: we are
faster). Losses and gradients have to agree before anything is timed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from weft.codegen.ops import OPS  # noqa: E402
from weft.codegen.pipeline import COUNTED_ROWS, CPU_PASSES  # noqa: E402
from weft.dsl.check import check  # noqa: E402
from weft.dsl.source import Source  # noqa: E402
from weft.runtime.model import Model  # noqa: E402

SPEC = """
size small: layers = 4, dim = 256, heads = 4, head_dim = 64, ffn = 768, vocab = 16384
axis seq

model decoder(ids: id[seq] in vocab) -> real[seq, vocab]:
    x = embed(ids, vocab -> dim) as embed
    for layer in 0 .. layers:
        h = rms_norm(x) as attention_norm
        q = linear(h, dim -> (heads, head_dim)) as q |> rope(along=seq)
        k = linear(h, dim -> (heads, head_dim)) as k |> rope(along=seq)
        v = linear(h, dim -> (heads, head_dim)) as v
        mixed = attend(q, k, v, over=head_dim, along=seq, mask=causal)
        x = x + linear(mixed, (heads, head_dim) -> dim) as out
        x = x + swiglu(rms_norm(x) as swiglu_norm, ffn)
    return rms_norm(x) as norm |> linear(dim -> vocab) as head

objective answers(ids: id[seq] in vocab, is_answer: flag[seq]):
    logits = decoder(ids)
    loss text = cross_entropy(logits, next(ids)) only is_answer
    loss z = 1e-4 * z_loss(logits) only is_answer
"""
DOCUMENTS, LENGTH, VOCAB = 8, 128, 16384


def step(model: Model, given: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
    """The losses added up, and the gradients of all weights."""
    total = torch.stack([value / count for value, count in model.loss(**given).values()]).sum()
    total.backward()
    found = {path: weight.grad for path, weight in model.by_path() if weight.grad is not None}
    for weight in model.parameters():
        weight.grad = None
    return total.detach(), found


def batch(share: float) -> dict[str, list[Tensor]]:
    generator = torch.Generator().manual_seed(0)
    flags = torch.arange(LENGTH) >= round(share * LENGTH)
    ids = [torch.randint(VOCAB, (LENGTH,), generator=generator) for _ in range(DOCUMENTS)]
    return {"ids": ids, "is_answer": [flags] * DOCUMENTS}


def want_equal(sides: dict[str, Model], given: dict[str, Any]) -> None:
    (loss, gradients), (expected, wanted) = (step(side, given) for side in sides.values())
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    for path, gradient in wanted.items():
        assert (gradients[path] - gradient).abs().max() <= 1e-4 * gradient.abs().max(), path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, default=0.5, help="of the rows that have no loss")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    checked = check(Source("decoder.weft", SPEC.lstrip()), OPS).value()
    without = tuple(one for one in CPU_PASSES if one is not COUNTED_ROWS)
    sides = {name: Model(checked, seed=0, passes=passes) for name, passes in (("ours", CPU_PASSES), ("all", without))}
    given = batch(options.share)
    want_equal(sides, given)
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(options.rounds):
        for name, side in sides.items():
            begin = time.perf_counter()
            step(side, given)
            times[name].append(time.perf_counter() - begin)
    medians = {name: statistics.median(taken) for name, taken in times.items()}
    for name, seconds in medians.items():
        print(f"{name:5} {seconds * 1e3:9.1f} ms  {seconds / medians['ours']:6.2f}x")


if __name__ == "__main__":
    main()
