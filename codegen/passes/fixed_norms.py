"""For decoding on a CPU: norms whose gain is a constant of the graph become one object that has it prepared.

rms_norm(x, constant, eps)                  ->      fixed(x)
add_rms_norm(residual, x, constant, eps)    ->      fixed(x, residual)
"""

from __future__ import annotations

import operator

from torch import Tensor, fx

from ..cpu.fixed_norm import FixedNorm
from ..cpu.rowwise import add_rms_norm, rms_norm
from ..origin import inherit
from .constants import add_constant, constant_value
from .matching import is_call, replace


def fix_norms(module: fx.GraphModule) -> None:
    for node in list(module.graph.nodes):
        if not is_call(node, rms_norm, add_rms_norm):
            continue
        *operands, gain, eps = node.args
        value = constant_value(module, gain)
        if not isinstance(value, Tensor):
            continue  # without a gain, or with one that the row computes
        fixed = add_constant(module, FixedNorm(value, float(eps)), node)
        with module.graph.inserting_before(node):
            new = module.graph.call_function(operator.call, (fixed, *reversed(operands)))
        replace(node, inherit(new, node))
