"""Which rows of a batch count, found while the device is still busy with something else.

How many rows a tensor has must be known on the host. A device computes in order, so asking for the number where it is
needed would wait for all that was asked before. It is sent to the host where the flags are made, which is as soon as a
batch is there, and waited for later.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Counting:
    """`rows` int64 [N]: those with a flag, in order, in front of the others. `count`: how many have one, on the host,
    once `sent` has happened."""

    rows: Tensor
    count: Tensor
    sent: torch.cuda.Event


def begin_count(flags: Tensor) -> Tensor | Counting:
    """Of flags [N]; for `counted`."""
    if flags.device.type != "cuda" or torch.compiler.is_compiling():
        return flags.nonzero()[:, 0]
    rows = torch.argsort((~flags).to(torch.uint8), stable=True)
    count = torch.empty((), dtype=torch.int64, pin_memory=True)
    count.copy_(flags.sum(), non_blocking=True)
    sent = torch.cuda.Event()
    sent.record()
    return Counting(rows, count, sent)


def counted(begun: Tensor | Counting) -> Tensor:
    """int64: the rows with a flag, in order."""
    if isinstance(begun, Tensor):
        return begun
    begun.sent.synchronize()
    return begun.rows[: int(begun.count)]
