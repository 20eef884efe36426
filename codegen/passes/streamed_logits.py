"""Logits that losses only read through logsumexp and the target's entry are not stored as a whole.

    logits = linear(x, w)
    lse = logsumexp(logits);  at = logits[target]     ->     lse, at = partition_and_logit(x, w, target)

Everything else the spec makes of the two stays as it is. A model whose logits have another reader keeps them.
"""

from __future__ import annotations

import operator

from torch import fx
from torch.nn import functional

from ..cpu.logits import partition_and_logit
from ..functions.gathers import entries
from ..functions.statics import logsumexp_static
from ..origin import inherit, origin
from .matching import bare, is_call, readers, replace, tuple_at


def stream_logits(module: fx.GraphModule) -> None:
    for node in list(module.graph.nodes):
        if is_call(node, functional.linear) and len(node.args) <= 3 and node.args[2:] in ((), (None,)):
            _stream(module, node)


def _stream(module: fx.GraphModule, logits: fx.Node) -> None:
    partitions, picks = [], []
    for reader in set(readers(logits)):
        if is_call(reader, logsumexp_static) and tuple_at(reader, 1) == (-1,):
            partitions.append(reader)
        elif is_call(reader, entries) and bare(reader.args[0]) is logits and reader.args[2] == 1:
            picks.append(reader)
        else:
            return
    targets = {reader.args[1] for reader in picks}
    if not partitions or len(targets) != 1 or not _is_one_id_per_row(logits, picks):
        return
    graph, (target,) = module.graph, targets
    # The target may be computed after the logits; both readers stand after it.
    order = {node: position for position, node in enumerate(graph.nodes)}
    after = max((logits, target), key=order.__getitem__)
    with graph.inserting_after(after):
        both = inherit(graph.call_function(partition_and_logit, (logits.args[0], logits.args[1], target)), logits)
    with graph.inserting_after(both):
        logit = inherit(graph.call_function(operator.getitem, (both, 1)), picks[0])
        partition = inherit(graph.call_function(operator.getitem, (both, 0)), partitions[0])
    early = [reader for reader in (*partitions, *picks) for user in reader.users if order[user] < order[after]]
    if early:
        return  # a reader stands before the target is known; leave the dead call to the dead-code pass
    for reader in partitions:
        replace(reader, partition)
    for reader in picks:
        replace(reader, logit)


def _is_one_id_per_row(logits: fx.Node, picks: list[fx.Node]) -> bool:
    """Rows along one packed axis, one id each."""
    ranks = [_static_rank(node) for node in (logits, *picks)]
    return ranks[0] == 1 and all(rank == 0 for rank in ranks[1:])


def _static_rank(node: fx.Node) -> int | None:
    """The number of static axes of a value along a packed axis; None for any other value."""
    type = origin(node).type
    return None if type is None or type.rows is None else len(type.static_axes)
