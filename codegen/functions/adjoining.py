"""Weights that lie behind one another in memory, and so are one matrix without a copy.

    weights [O_1, I], [O_2, I]      ->      one matrix [O_1 + O_2, I] that both are rows of

`lay_out` puts them there once; the parameters stay the same objects with the same names. Moved since (another type,
another device), they are separate again.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def lay_out(weights: Sequence[torch.nn.Parameter]) -> None:
    """Moves the data of weights [O_i, I] of one type behind one another; on a device without memory there is none, and
    weights that lie on several ranks stay where they are."""
    if weights[0].device.type == "meta" or type(weights[0].data) is not Tensor or adjoin(weights):
        return
    # A graph may be made inside a caller's inference mode, whose tensors could never be trained afterwards.
    with torch.inference_mode(False), torch.no_grad():
        together = torch.cat([weight.data for weight in weights])
        for weight, part in zip(weights, together.split([w.shape[0] for w in weights]), strict=True):
            weight.data = part


def adjoin(weights: Sequence[Tensor]) -> bool:
    """Whether they lie behind one another, in one allocation."""
    first = weights[0]
    end = first.data_ptr()
    for weight in weights:
        if weight.data_ptr() != end or not weight.is_contiguous() or weight.dtype != first.dtype:
            return False
        end += weight.numel() * weight.element_size()
    # Neighbours by chance may belong to different allocations.
    return len({weight.untyped_storage().data_ptr() for weight in weights}) == 1


def as_one(weights: Sequence[Tensor]) -> Tensor:
    """[O, I] of weights that adjoin. Not differentiable."""
    rows = sum(weight.shape[0] for weight in weights)
    return weights[0].detach().as_strided((rows, weights[0].shape[1]), (weights[0].shape[1], 1))
