"""What is made of each group's results of a grouped linear alone, entry by entry, is made before they are stored.

    g, u, h, v = grouped(a, b, ..); y = silu_swiglu(g, u); z = silu_swiglu(h, v)
        ->      y, z = grouped(a, b, ..), of silu(g) * u and silu(h) * v
    q, k, v = grouped(a, b, ..); q, k = turn(q, k, cos, sin)
        ->      q, k, v = grouped(a, b, .., cos, sin)

The rows of all groups must meet the same program, whatever it computes and reads besides (grouped/epilogue.py). Whose
rows have no gradient need not have the same there.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Mapping
from dataclasses import replace as replace_fields
from typing import Any

from torch import fx

from ..facts import FACT, facts
from ..grouped.epilogue import Epilogue, epilogue_of
from ..grouped.op import GroupedOp
from ..origin import inherit, mark, origin
from ..rowwise.fused import FusedOp
from .fuse import needs_gradient
from .matching import depends_on, is_call, replace
from .ordering import pull_operands


def take_epilogues(module: fx.GraphModule) -> None:
    ops: dict[object, GroupedOp] = {}
    wanted = needs_gradient(module, facts(module))
    for node in list(module.graph.nodes):
        if isinstance(node.target, GroupedOp):
            calls = _calls(node, node.target)
            epilogue = _epilogue(node, calls, wanted) if calls else None
            if epilogue is not None and not _waits(node, calls):
                _rewrite(module, node, calls, epilogue, ops)
    pull_operands(module, "taking epilogues in")


def _calls(node: fx.Node, op: GroupedOp) -> list[fx.Node]:
    """The fused call of each tensor of the pieces, which alone reads those it reads; none where there is no such."""
    if op.form.results == 1:
        return []  # what is read of it by an index is a view of a tensor
    pieces = {user.args[1]: user for user in node.users if is_call(user, operator.getitem)}
    if len(pieces) != op.form.results or len(pieces) != len(node.users):
        return []
    calls = []
    for own in _by_tensor(pieces, op.form.pieces):
        call = next((reader for piece in own for reader in piece.users if isinstance(reader.target, FusedOp)), None)
        if call is None or call.kwargs:
            return []
        read = [operand for operand in call.all_input_nodes if _piece(operand, node) is not None]
        if any(piece not in own or len(piece.users) > 1 for piece in read):
            return []
        calls.append(call)
    return calls


def _by_tensor(pieces: Mapping[Any, fx.Node], count: int) -> list[list[fx.Node]]:
    return [[pieces[start + j] for j in range(count)] for start in range(0, len(pieces), count)]


def _epilogue(node: fx.Node, calls: list[fx.Node], wanted: Collection[fx.Node]) -> Epilogue | None:
    op = node.target
    assert isinstance(op, GroupedOp)
    found, with_gradient = [], []
    for g, call in enumerate(calls):
        pieces = [_piece(operand, node) for operand in call.args]
        own = [None if piece is None else piece - g * op.form.pieces for piece in pieces]
        fused: Any = call.target
        one = epilogue_of(fused, own, op.form.outputs, op.dtype)
        if one is None or (op.form.scatters and one.parts is None):
            return None
        found.append(one)
        with_gradient += [one] if any(operand in wanted for operand in call.all_input_nodes) else []
    first = (with_gradient or found)[0]
    is_alike = all(one.shape == first.shape for one in found)
    return first if is_alike and all(one.gradient == first.gradient for one in with_gradient) else None


def _piece(operand: Any, node: fx.Node) -> Any:
    """Which result of the linear."""
    return operand.args[1] if is_call(operand, operator.getitem) and operand.args[0] is node else None


def _others(call: fx.Node, epilogue: Epilogue) -> list[fx.Node]:
    pairs = zip(call.args, epilogue.pieces, strict=True)
    return [operand for operand, piece in pairs if piece is None and isinstance(operand, fx.Node)]


def _waits(node: fx.Node, calls: list[fx.Node]) -> bool:
    """Whether something that an epilogue reads besides needs the linear's results."""
    others = (operand for call in calls for operand in call.all_input_nodes if _piece(operand, node) is None)
    return depends_on(others, {node})


def _rewrite(
    module: fx.GraphModule, node: fx.Node, calls: list[fx.Node], epilogue: Epilogue, ops: dict[object, GroupedOp]
) -> None:
    graph, old = module.graph, node.target
    assert isinstance(old, GroupedOp)
    key = old.key, epilogue.key
    if key not in ops:
        name = f"{old.name}_{epilogue.call.name}"
        alike = sum(op.name.startswith(name) for op in ops.values())
        made = replace_fields(old, name=f"{name}_variant_{alike}" if alike else name, epilogue=epilogue)
        forward = None if old.forward is None else made.default_tiles("forward")
        ops[key] = replace_fields(made, forward=forward)
    others = [other for call in calls for other in _others(call, epilogue)]
    with graph.inserting_before(calls[-1]):
        new = inherit(graph.call_function(ops[key], (*node.args, *others)), calls[0])
        mark(new, replace_fields(origin(new), value=None))  # its parts compute values
        each = epilogue.results(old.form.pieces)
        parts = [graph.call_function(operator.getitem, (new, place)) for place in range(len(calls) * each)]
    pieces = _by_tensor({user.args[1]: user for user in node.users}, old.form.pieces)
    for number, (call, own) in enumerate(zip(calls, pieces, strict=True)):
        taken: dict[Any, fx.Node] = {0: call}
        if epilogue.made > 1:
            taken = {user.args[1]: user for user in call.users}
        taken |= {epilogue.made + i: own[piece] for i, piece in enumerate(epilogue.left(old.form.pieces))}
        for place, part in enumerate(parts[number * each : (number + 1) * each]):
            result = taken.get(place)
            if result is not None:
                part.meta.update({FACT: result.meta[FACT]} if FACT in result.meta else {})
                replace(result, inherit(part, result))
