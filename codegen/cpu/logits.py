"""The vocabulary projection as the losses read it: per row the logarithm of the partition, and the logit of one id.

Whatever a spec makes of the two (cross-entropy, z-loss, a formula nobody foresaw) is arithmetic on [N] numbers. The
logits are kept once,
in chunks, and turned into their own gradient in place; above a limit they are not kept and computed again in the
backward.

Letters in shapes: N rows, D model width, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .derivatives import once_differentiable
from .linear import product, weight_gradient

# A chunk of logits stays in a share of the cache.
_CHUNK_BYTES = 8 << 20
# Logits of a step are kept up to this size; beyond it memory is dearer than a second product.
_KEEP_BYTES = 512 << 20


def _chunk_rows(vocabulary: int) -> int:
    return max(64, _CHUNK_BYTES // (4 * vocabulary) // 64 * 64)


class _PartitionAndLogit(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, ids):
        wide = torch.promote_types(x.dtype, torch.float32)
        rows, count = _chunk_rows(weight.shape[0]), x.shape[0]
        keep = any(ctx.needs_input_grad[:2]) and count * weight.shape[0] * wide.itemsize <= _KEEP_BYTES
        partition = torch.empty(count, dtype=wide)
        logit = torch.empty(count, dtype=wide)
        kept: list[Tensor] = []
        for start in range(0, count, rows):
            part = slice(start, start + rows)
            logits = product(x[part], weight).to(wide)
            torch.logsumexp(logits, -1, out=partition[part])
            logit[part] = logits.gather(1, ids[part, None])[:, 0]
            if keep:
                kept.append(logits)
        ctx.save_for_backward(x, weight, ids, partition)
        ctx.kept, ctx.rows = kept if keep else None, rows
        return partition, logit

    @staticmethod
    @once_differentiable
    def backward(ctx, dpartition, dlogit):
        x, weight, ids, partition = ctx.saved_tensors
        needs_x, needs_weight, _ = ctx.needs_input_grad
        wide = partition.dtype
        dx = torch.empty_like(x) if needs_x else None
        dweight = torch.zeros(weight.shape, dtype=wide) if needs_weight else None
        kept, ctx.kept = ctx.kept, None
        for number, start in enumerate(range(0, x.shape[0], ctx.rows)):
            part = slice(start, start + ctx.rows)
            x_c = x[part]
            logits = product(x_c, weight).to(wide) if kept is None else kept[number]
            # d lse / d logits is the softmax, d logit / d logits the id's unit vector.
            grad = logits.sub_(partition[part, None]).exp_().mul_(dpartition[part, None])
            grad.scatter_add_(1, ids[part, None], dlogit[part, None])
            if kept is not None:
                kept[number] = None
            grad = grad.to(x.dtype)
            if dx is not None:
                dx[part] = product(grad, weight.t())
            if dweight is not None:
                weight_gradient(grad, x_c, dweight)
        return dx, None if dweight is None else dweight.to(weight.dtype), None


def partition_and_logit(x: Tensor, weight: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """`logsumexp(x weight^T)` and `(x weight^T)[id]` per row: x [N, D], weight [V, D], ids [N] in 0 .. V-1 -> [N], [N].

    Both in at least float32, with first derivatives for x and weight. A second backward through kept logits is an
    error.
    """
    return _PartitionAndLogit.apply(x, weight, ids.long())
