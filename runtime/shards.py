"""A model's weights over several ranks: each holds a part of each, and its moments.

Dense weights are FSDP2's: a level of the tree that is one turn of a loop (`layer.3`) is gathered when a stage of the
graph runs within it, let go afterwards, and its gradients are summed to where their parts lie. All other weights are
gathered for the whole step. Tables that are updated by rows stay where they are, and what is read of them is exchanged
(table_shards.py). A weight that is one number lies on every rank.

A weight in parts is a DTensor, with the shape of the whole; parts.py has what can be done with one.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import Shard, distribute_tensor

from ..codegen.functions import row_tables
from ..codegen.weight_tree import WeightTree
from .model import Model
from .ranks import Ranks
from .table_shards import ColumnShards, RowShards, chunks


def shard(model: Model, ranks: Ranks, tables: Collection[str] = (), tables_by: str = "columns") -> None:
    """Leaves this rank's part of each weight in the model. `tables`: paths of those that are updated by rows."""
    mesh = init_device_mesh(ranks.device.type, (ranks.count,))
    left_out = set()
    for path, weight in list(model.by_path()):
        if path in tables:
            kept = _shard_table(weight, mesh, ranks, tables_by)
        elif weight.dim() == 0:
            kept = torch.nn.Parameter(weight.to(ranks.device), weight.requires_grad)
            if weight.requires_grad:
                kept.register_hook(ranks.sum)
        else:
            continue
        model.add(path, kept)
        left_out.add(kept)
    levels = dict(turns(model))
    # A stage may return a view, which nothing changes in place.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")
    for level in (*levels.values(), model):
        hooked: Any = fully_shard(level, mesh=mesh, ignored_params=left_out)
        # Losses are divided by counts of all ranks: gradients are added up.
        hooked.set_gradient_divide_factor(1.0)
        hooked.set_force_sum_reduction_for_comms(True)
        register_fsdp_forward_method(hooked, "within")
    model.run_in_stages(levels)


def turns(tree: torch.nn.Module, prefix: str = "") -> Iterator[tuple[str, WeightTree]]:
    """The levels that are turns of a loop, by path; of nested loops the outermost."""
    for name, below in tree._modules.items():
        if isinstance(below, WeightTree):
            if name.isdigit():
                yield prefix + name, below
            else:
                yield from turns(below, f"{prefix}{name}.")


def _shard_table(weight: Tensor, mesh: Any, ranks: Ranks, by: str) -> torch.nn.Parameter:
    # Where there are too few columns for every rank to have some, rows it is.
    has_columns = weight.dim() > 1 and all(chunks(weight.shape[1], ranks.count))
    placement = Shard(1) if by == "columns" and has_columns else Shard(0)
    parts = distribute_tensor(weight.detach().to(ranks.device), mesh, [placement], src_data_rank=None)
    table = torch.nn.Parameter(parts, weight.requires_grad)
    part = parts.to_local().detach().requires_grad_(weight.requires_grad)
    kind = ColumnShards if placement.dim else RowShards
    setattr(table, row_tables.SHARDS, kind(part, tuple(weight.shape), ranks))
    return table
