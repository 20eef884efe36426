"""A weight of which each of several ranks has a part (shards.py): a DTensor, with the shape of the whole.

Torch's module of DTensors takes seconds to import, so it is imported where there are some.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..codegen.functions import row_tables


def is_in_parts(weight: Tensor) -> bool:
    return type(weight.data) is not Tensor


def part_of(weight: Tensor) -> Tensor:
    """What lies on this rank: the weight itself where it is whole. It shares the weight's memory."""
    shards = getattr(weight, row_tables.SHARDS, None)
    if shards is not None:
        return shards.part
    return _local(weight).detach() if is_in_parts(weight) else weight


def part_of_gradient(weight: Tensor) -> Tensor | None:
    return _local(weight.grad) if weight.grad is not None and is_in_parts(weight) else weight.grad


def cut_like(weight: Tensor, whole: Tensor) -> Tensor:
    """This rank's part of a tensor of the weight's shape, such as one of its moments."""
    return _cut(weight, whole) if is_in_parts(weight) else whole


def cut_rows_like(weight: Tensor, whole: Tensor) -> Tensor:
    """This rank's part of a number for each of the weight's rows."""
    return _cut(weight, whole) if _has_own_rows(weight) else whole


def whole(weight: Tensor, part: Tensor | None = None) -> Tensor:
    """The weight from all ranks' parts, or a tensor like it of which this rank has `part`. All ranks must ask; of a
    weight in parts the first gets the whole, in main memory, and the others nothing."""
    if not is_in_parts(weight):
        return weight.detach() if part is None else part
    return _gathered(weight.detach() if part is None else _of_parts(weight, part, weight.shape, weight.stride()))


def whole_rows(weight: Tensor, part: Tensor) -> Tensor:
    """A number for each of the weight's rows, of which this rank has `part`. As `whole`."""
    return _gathered(_of_parts(weight, part, weight.shape[:1], (1,))) if _has_own_rows(weight) else part


def _cut(weight: Any, whole: Tensor) -> Tensor:
    from torch.distributed.tensor import distribute_tensor

    return _local(distribute_tensor(whole, weight.device_mesh, weight.placements, src_data_rank=None))


def _of_parts(weight: Any, part: Tensor, shape: torch.Size, stride: tuple[int, ...]) -> Any:
    """A tensor that is cut as the weight is."""
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(part, weight.device_mesh, weight.placements, run_check=False, shape=shape, stride=stride)


def _gathered(of_parts: Any) -> Tensor:
    found = of_parts.full_tensor()
    return found.cpu() if of_parts.device_mesh.get_local_rank() == 0 else found.new_empty(0)


def _has_own_rows(weight: Tensor) -> bool:
    """Whether a rank has some rows of a table; otherwise it has all, or some columns of all."""
    of_parts: Any = weight
    return is_in_parts(weight) and of_parts.placements[0].is_shard(0)


def _local(tensor: Any) -> Tensor:
    return tensor.to_local()
