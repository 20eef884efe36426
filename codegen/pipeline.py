"""The visible lists of passes over an fx graph.

A pass takes a graph module and changes its graph; origins are kept (`origin.inherit`). `optimise` works on a copy of
the graph that reads the same weights, so that the reference graph stays what `weft verify` compares with.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import fx

from .bags.op import BagOp
from .choices import Choices
from .facts import WORKING
from .gpu import attention_caches
from .gpu.attention import attend
from .graph_context import CompilerBug
from .grouped.op import GroupedOp
from .lower import SIGNATURE, graph_module
from .passes.activations import recognise_activations
from .passes.attention_kernels import use_attention_kernels
from .passes.bag_kernels import use_bag_kernels
from .passes.bag_weights import weigh_in_bags
from .passes.bands import recognise_bands
from .passes.cached_attention import use_cached_attention
from .passes.cached_masks import use_cached_masks
from .passes.canonicalize import canonicalize
from .passes.common_subexpressions import join_common_subexpressions
from .passes.constants import lift_weights
from .passes.counted_rows import leave_out_uncounted_rows
from .passes.cpu_linears import choose_linears, join_linears, recognise_gates
from .passes.cut_scans import scan_cuts
from .passes.dead_code import drop_dead_code
from .passes.dead_gradients import stop_dead_gradients
from .passes.few_keys import read_few_keys, spread_segments
from .passes.fixed_norms import fix_norms
from .passes.fuse import fuse_rows
from .passes.group_norms import recognise_group_norms
from .passes.grouped_epilogues import take_epilogues
from .passes.grouped_linears import group_linears
from .passes.joined_linears import join_linears_on_gpu
from .passes.measured_choices import use_choices
from .passes.packed_linears import pack_linears
from .passes.recomputation import mark_turns
from .passes.reshapes import cancel_reshapes
from .passes.rotary import recognise_rotary
from .passes.row_norms import join_residuals, recognise_rms_norms
from .passes.row_tiers import read_from_tiers
from .passes.run_attention import use_run_attention
from .passes.saved_values import choose_saved_values
from .passes.segment_kernels import use_segment_kernels
from .passes.selection_kernels import select_few_of_many, use_selection_kernels
from .passes.selections import select_by_partial_sort
from .passes.sorted_rows import keep_rows_sorted
from .passes.streamed_logits import stream_logits, stream_logits_on_gpu
from .passes.tables import multiply_rows, read_by_rows, read_tables
from .rowwise.fused import FusedOp
from .weight_tree import WeightTree


@dataclass(frozen=True)
class Pass:
    """`function(module)` changes the module's graph in place. `why`: what it is for, why it stands where it does.
    `trusts_frozen`: right only while the weights that the spec freezes are not trained."""

    name: str
    function: Callable[[fx.GraphModule], None]
    why: str
    trusts_frozen: bool = False


REFERENCE_PASSES: tuple[Pass, ...] = ()

BASIC_PASSES: tuple[Pass, ...] = (
    Pass("dead-code", drop_dead_code, "nodes nobody reads; first, so that later passes see only what counts"),
    Pass("common-subexpressions", join_common_subexpressions, "equal calls once, such as the angles of all layers"),
)

SORTED_ROWS = Pass(
    "sorted-rows", keep_rows_sorted, "rows that arms join and arms take apart again; needs equal calls once"
)

DEAD_GRADIENTS = Pass(
    "dead-gradients",
    stop_dead_gradients,
    "rows nothing trainable precedes; while attention still has its mask",
    trusts_frozen=True,
)

COUNTED_ROWS = Pass(
    "counted-rows",
    leave_out_uncounted_rows,
    "rows that no loss counts get no logits; after dead gradients, which take rows apart, and before losses are fused",
)

# On a GPU every function that is left is a launch of torch's own.
GPU_PASSES: tuple[Pass, ...] = (
    BASIC_PASSES[0],
    Pass("canonicalize", canonicalize, "steps that do nothing; before equal calls are looked for, which they hide"),
    BASIC_PASSES[1],
    DEAD_GRADIENTS,
    Pass("segment-attention", use_run_attention, "segments that see their own rows; before other attention is taken"),
    Pass("attention", use_attention_kernels, "attention to kernels; the rows each row sees become a call of their own"),
    Pass("cached-attention", use_cached_attention, "the same in decoding graphs, whose keys and values lie in caches"),
    *BASIC_PASSES[1:],
    COUNTED_ROWS,
    SORTED_ROWS,
    Pass("rows", read_by_rows, "tables whose rows an optimiser updates when they are read; before they are fused"),
    Pass("row-products", multiply_rows, "products with rows of tables, of which only the products are stored"),
    Pass("row-tiers", read_from_tiers, "tables of which only some rows are at hand; when it is said how they are read"),
    Pass("bags", use_bag_kernels, "rows that are read and not stored; readers of a table share one sum of gradients"),
    Pass("selections", use_selection_kernels, "the largest scores of a product, which are never stored"),
    Pass("bag-weights", weigh_in_bags, "weights of bags from their lists' scores; after selections, which leave them"),
    Pass("streamed-logits", stream_logits_on_gpu, "losses that never store their logits; before their steps are fused"),
    Pass("joined-linears", join_linears_on_gpu, "linears of one input are one product; after losses took theirs"),
    Pass("grouped-linears", group_linears, "linears of the parts of a routing are one call; after joined linears"),
    Pass("cut-scans", scan_cuts, "segments are numbered by one kernel, of flags that a fused group packs for it"),
    Pass("fuse-rows", fuse_rows, "row-by-row groups become calls of generated kernels"),
    Pass("saved-values", choose_saved_values, "what backward kernels read of the forward and what they compute again"),
    Pass("grouped-epilogues", take_epilogues, "what is made of the results of grouped linears; when all of it is said"),
    Pass("tables", read_tables, "gradients of tables in a fixed order; last, as most tables are read in fused groups"),
    Pass("segments", use_segment_kernels, "pools of segments, and values of segments that no fused group reads"),
)

CPU_PASSES: tuple[Pass, ...] = (
    *BASIC_PASSES,
    DEAD_GRADIENTS,
    COUNTED_ROWS,
    SORTED_ROWS,
    Pass("rows", read_by_rows, "sums of rows of tables, and tables whose rows an optimiser updates when they are read"),
    Pass("row-products", multiply_rows, "products with rows of tables, of which only the products are stored"),
    Pass("row-tiers", read_from_tiers, "tables of which only some rows are at hand; when it is said how they are read"),
    Pass("few-scores", select_few_of_many, "a few of many scores of a product, whose gradients are those of the few"),
    Pass("selections", select_by_partial_sort, "the largest scores by torch's partial sort"),
    Pass("cached-masks", use_cached_masks, "masked attention over caches; one plan for all layers"),
    Pass("few-keys", read_few_keys, "attention to a few keys of each row's own; while reshapes have their facts"),
    Pass("segments", spread_segments, "values of segments that no attention reads; after few keys, which read some"),
    Pass("activations", recognise_activations, "formulas of silu and gelu; before gates, which look for them"),
    Pass("rotary", recognise_rotary, "turns of halves over shared tables"),
    Pass("reshapes", cancel_reshapes, "reshapes the turns leave behind; before norms, which look at dimensions"),
    Pass("rms-norms", recognise_rms_norms, "norm formulas"),
    Pass("group-norms", recognise_group_norms, "norm formulas of pictures"),
    Pass("norm-reshapes", cancel_reshapes, "norms over several axes flatten what a linear has just unflattened"),
    Pass("residuals", join_residuals, "a residual added to a norm; after norms"),
    Pass("bands", recognise_bands, "attention in a band to the fused kernel"),
    Pass("joined-linears", join_linears, "linears of one input are one product; needs shared inputs to be one node"),
    Pass("gates", recognise_gates, "a gate and its partner; after joined linears and activations"),
    Pass("streamed-logits", stream_logits, "losses that never store their logits"),
    Pass(
        "linears", choose_linears, "the faster matrix library for each linear; last, so that others see plain linears"
    ),
    Pass("shared-plans", join_common_subexpressions, "weights, tables and plans the recognised functions read, once"),
)

# A step reads every weight for a few rows: their order in memory decides, so they are copied into the best one.
CPU_STEP_PASSES: tuple[Pass, ...] = (
    *(
        Pass(
            "packed-linears",
            pack_linears,
            "weights in the order a few rows read fastest; they must not change afterwards",
        )
        if pass_.function is join_linears
        else pass_
        for pass_ in CPU_PASSES
    ),
    Pass("constants", lift_weights, "weights are looked up once; late, because other passes look for weights"),
    Pass(
        "fixed-norms", fix_norms, "what depends on a gain alone is computed once; after constants, which gains then are"
    ),
)


# For a training step that has little memory; `recompute.recompute_turns` then cuts out what is marked.
RECOMPUTATION = Pass(
    "recomputation", mark_turns, "what a backward computes again; last, when the calls are what they stay"
)


def passes_for(device: torch.device) -> tuple[Pass, ...]:
    """What a model runs by default on a device."""
    return CPU_PASSES if device.type == "cpu" else GPU_PASSES


# Functions that launch attention kernels.
ATTENTION: tuple[Callable[..., Any], ...] = (
    attend,
    attention_caches.attend_step,
    attention_caches.attend_extend,
    attention_caches.attend_general,
)


def with_choices(passes: tuple[Pass, ...], choices: Choices) -> tuple[Pass, ...]:
    """The passes, then what was measured on a device."""
    why = "what was measured instead of defaults; last, when the calls are what they stay"
    return (*passes, Pass("measured-choices", partial(use_choices, choices=choices), why))


Watch = Callable[[Pass, fx.GraphModule], None]


def optimise(module: fx.GraphModule, passes: tuple[Pass, ...], watch: Watch | None = None) -> fx.GraphModule:
    """A new module after the passes. `watch` sees the module after each."""
    graph = fx.Graph()
    copied: dict[fx.Node, fx.Node] = {}
    copied[module.graph.output_node()] = graph.output(graph.graph_copy(module.graph, copied))
    for old, new in copied.items():
        new.meta = dict(old.meta)
    signature, weights = module.meta[SIGNATURE], module.weights
    assert isinstance(weights, WeightTree)
    optimised = graph_module(graph, weights, signature, signature.name, module.meta[WORKING])
    for pass_ in passes:
        pass_.function(optimised)
        # Passes ask who reads a node; what they replaced would still count.
        drop_dead_code(optimised)
        try:
            optimised.graph.lint()
        except RuntimeError as error:
            raise CompilerBug(f"the pass {pass_.name} broke the graph: {error}") from error
        if watch is not None:
            watch(pass_, optimised)
    optimised.recompile()
    return optimised


def asks_for_kernels(module: fx.GraphModule) -> bool:
    """Whether calls of generated kernels stand in the graph."""
    kernels = FusedOp | GroupedOp | BagOp
    return any(isinstance(node.target, kernels) or node.target in ATTENTION for node in module.graph.nodes)
