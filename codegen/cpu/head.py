"""The vocabulary projection with its loss on a CPU, without ever holding all logits.

Cross-entropy and the squared log-partition ("z") of rows x weight^T are summed in chunks of rows. The loss comes last
in a step, so the gradients are made in the forward while a chunk of logits is still in cache: three products per chunk,
and one [chunk, V] buffer instead of several [N, V] tensors. See note "Two losses, one gradient" at the end of the file.

Letters in shapes: N rows, D model width, V vocabulary.
"""

import torch
from torch import Tensor

from .derivatives import once_differentiable
from .linear import product, weight_gradient

# Chunks are small enough for a share of the cache and wide enough for fast products.
_CHUNK_BYTES = 8 << 20


def _chunk_rows(vocabulary: int) -> int:
    return max(64, _CHUNK_BYTES // (4 * vocabulary) // 64 * 64)


def _sums(x, weight, targets, ce_scale, z_scale, rows, want_x, want_weight):
    """Sums of cross-entropy and z, and the gradients of ce_scale * ce + z_scale * z that are wanted."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    ce = torch.zeros((), dtype=wide)
    z = torch.zeros((), dtype=wide)
    dx = torch.empty(x.shape, dtype=wide) if want_x else None
    dweight = torch.zeros(weight.shape, dtype=wide) if want_weight else None
    for start in range(0, x.shape[0], rows):
        x_c = x[start : start + rows]
        target_c = targets[start : start + rows, None]
        logits = product(x_c, weight).to(wide)
        at_target = logits.gather(1, target_c)
        log_p = torch.log_softmax(logits, -1)
        log_p_target = log_p.gather(1, target_c)
        ce -= log_p_target.sum()
        partition = at_target - log_p_target
        z += torch.dot(partition[:, 0], partition[:, 0])
        if not (want_x or want_weight):
            continue
        # d/dlogits = s p - ce_scale onehot, s = ce_scale + 2 z_scale lse
        p = log_p.exp_()
        if z_scale or ce_scale != 1.0:
            p.mul_(partition.mul_(2.0 * z_scale).add_(ce_scale))
        p.scatter_add_(1, target_c, p.new_full((), -ce_scale).expand_as(target_c))
        p = p.to(x.dtype)
        if dx is not None:
            dx[start : start + rows] = product(p, weight.t())
        if dweight is not None:
            weight_gradient(p, x_c, dweight)
    return ce, z, dx, dweight


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, targets, z_coefficient, rows):
        want_x, want_weight = ctx.needs_input_grad[:2]
        ce, z, dx, dweight = _sums(x, weight, targets, 1.0, z_coefficient, rows, want_x, want_weight)
        ctx.save_for_backward(x, weight, targets)
        ctx.ready, ctx.z_coefficient, ctx.rows = (dx, dweight), z_coefficient, rows
        ctx.set_materialize_grads(False)
        return ce, z

    @staticmethod
    @once_differentiable
    def backward(ctx, dce, dz):
        x, weight, targets = ctx.saved_tensors
        a = 0.0 if dce is None else dce.item()
        b = 0.0 if dz is None else dz.item()
        expected = a * ctx.z_coefficient
        tolerance = 1e-12 if x.dtype == torch.float64 else 1e-6
        if ctx.ready is not None and abs(b - expected) <= tolerance * abs(expected):
            (dx, dweight), ctx.ready = ctx.ready, None  # scaled in place; a second backward computes them again
            dx, dweight = (None if grad is None else grad.mul_(a) for grad in (dx, dweight))
        else:
            _, _, dx, dweight = _sums(x, weight, targets, a, b, ctx.rows, *ctx.needs_input_grad[:2])
        dx = None if dx is None else dx.to(x.dtype)
        dweight = None if dweight is None else dweight.to(weight.dtype)
        return dx, dweight, None, None, None


def linear_cross_entropy(
    x: Tensor,
    weight: Tensor,
    targets: Tensor,
    keep: Tensor | None = None,
    z_coefficient: float = 0.0,
    ignore_index: int = -100,
    chunk_rows: int | None = None,
) -> tuple[Tensor, Tensor, int]:
    """(sum of cross-entropy, sum of squared log-partition, number of rows counted) of logits = x weight^T.

    x [N, D], weight [V, D], targets [N] integers; rows with targets == ignore_index or keep == False count nowhere and
    cost nothing. Both sums are float32 (float64 for float64 x) and have gradients for x and weight with any upstream
    factors. `z_coefficient` is a promise that makes them cheap: when the sums enter the loss as c * (ce +
    z_coefficient * z), the backward only multiplies; otherwise it computes the logits again.
    """
    counted = targets != ignore_index
    if keep is not None:
        counted &= keep
    index = counted.nonzero().squeeze(1)
    count = index.numel()
    if count < targets.shape[0]:
        x, targets = x.index_select(0, index), targets.index_select(0, index)
    rows = chunk_rows or _chunk_rows(weight.shape[0])
    ce, z = _LinearCrossEntropy.apply(x, weight, targets.long(), float(z_coefficient), rows)
    return ce, z, count


# Note: two losses, one gradient
#
# dlogits = a (p - onehot) + b 2 lse p, where a and b multiply the two sums in the loss. Both are unknown in the
# forward, and the two terms need separate products with the weight, so keeping both apart would cost as much as
# computing the logits twice. Their ratio b / a is a constant of the model in practice. The forward therefore makes the
# gradient for (1, z_coefficient), and the backward scales it by a after checking that b agrees.
