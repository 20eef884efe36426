"""Which values each fused call saves for its gradient, and which the gradient computes again (rowwise/saved.py).

x = rms_norm(out, gain, x)      ->      x, [rsqrt] = rms_norm(out, gain, x), and a backward that reads both
"""

from __future__ import annotations

from torch import fx

from ..rowwise.fused import FusedOp


def choose_saved_values(module: fx.GraphModule) -> None:
    """What is saved beside the results is the call's own: the graph does not see it."""
    made: dict[FusedOp, FusedOp] = {}
    for node in module.graph.nodes:
        if isinstance(node.target, FusedOp):
            if node.target not in made:
                made[node.target] = node.target.saving()
            node.target = made[node.target]
