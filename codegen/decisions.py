"""What a decision reads is not rounded to the working type (SEMANTICS 10), nor is a whole number.

    top = topk(softmax(linear(x, dim -> n)), over=n, k=4)

In bfloat16 the softmax would have few different values, and which four are largest would be a matter of rounding. So
what is computed between the last product of matrices and a comparison, a selection or a step to whole numbers is
computed as if it stood in `precise(...)`. Readers that decide nothing get it rounded as before.

bfloat16 has no 301: `real(time)` is kept wide too, for readers that stand in `precise(...)`.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from ..dsl.causality import makers
from ..dsl.program import Node, Program, Value
from ..dsl.value_type import Real


def with_wide_values(program: Program, working: torch.dtype) -> Program:
    """The program whose decisions read unrounded values, as exact readers do whole numbers; itself where `working`
    rounds nothing."""
    if torch.promote_types(working, torch.float32) == working:
        return program
    maker = makers(program)
    exact = {node for node in program.nodes if node.op.counts}
    for node in program.nodes:
        if node.op.decides and not node.precise:
            chain = _behind_products(node, maker)
            if chain:
                exact |= {node, *chain}
    nodes = tuple(replace(node, precise=True) if node in exact else node for node in program.nodes)
    return replace(program, nodes=nodes) if exact else program


def _behind_products(decision: Node, maker: dict[Value, Node]) -> set[Node]:
    """The nodes that compute what it reads of products of matrices, but those that lead to one of these themselves."""
    chain: set[Node] = set()
    products: set[Node] = set()
    left = [value for value in decision.inputs if isinstance(value.type.kind, Real)]
    while left:
        node = maker.get(left.pop())
        if node is None or node in chain:
            continue
        if node.op.multiplies:
            products.add(node)
        else:
            chain.add(node)
            left += [value for value in node.inputs if isinstance(value.type.kind, Real)]
    return chain - _before(products, maker)


def _before(nodes: set[Node], maker: dict[Value, Node]) -> set[Node]:
    found: set[Node] = set()
    left = [value for node in nodes for value in node.inputs]
    while left:
        node = maker.get(left.pop())
        if node is not None and node not in found:
            found.add(node)
            left += node.inputs
    return found
