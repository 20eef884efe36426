"""What BLT 1B launches on a GPU: found by the passes, compiled for every target, and what it moves beside the least."""

from __future__ import annotations

import pytest
import torch
from torch import fx

from weft import spec_files
from weft.codegen.facts import facts
from weft.codegen.functions import attention, cuts
from weft.codegen.functions import segments as reference
from weft.codegen.gpu import segments
from weft.codegen.logits.op import LogitsOp
from weft.codegen.rowwise.fused import FusedOp
from weft.runtime.ahead_of_time import compile_ahead, problems
from weft.views.kernels import Planned
from weft.views.planned_kernels import fused, of_graph

# A row of 16,384 bytes in 4,096 patches.
BYTES = 16384
# One layer of each kind: all others are equal.
ONE_EACH = {"layers": "1", "patcher_layers": "1", "decoder_layers": "1"}
TARGETS = ("cuda:80", "cuda:90", "cuda:100", "hip:gfx942")


@pytest.fixture(scope="module")
def graph(root) -> fx.GraphModule:
    source = spec_files.read(str(root / "specs" / "blt.weft"))
    return fused(spec_files.checked_source(source, "1b", ONE_EACH).objectives["next_byte"])


@pytest.fixture(scope="module")
def planned(graph: fx.GraphModule) -> list[Planned]:
    return of_graph(graph, "cuda:90", BYTES)


def moved(planned: list[Planned], *names: str) -> tuple[float, float]:
    """Bytes read and written by all launches of kernels."""
    found = [one for one in planned if one.kernel.name in names]
    assert {one.kernel.name for one in found} == set(names)
    work = [(one.work, one.count) for one in found if one.work is not None]
    assert len(work) == len(found)
    return sum(one.read * count for one, count in work), sum(one.written * count for one, count in work)


def test_segments_are_left_to_kernels(graph: fx.GraphModule) -> None:
    targets = [node.target for node in graph.graph.nodes]
    assert segments.max_rows in targets
    for function in (reference.max_rows, cuts.spread, attention.attend_static, attention.attend_packed):
        assert function not in targets, function


def test_the_decoder_reads_slots_where_they_lie(graph: fx.GraphModule) -> None:
    """Keys and values of the last closed patch are no tensors of their own."""
    (op,) = (node.target for node in graph.graph.nodes if getattr(node.target, "name", "") == "closed_attend")
    assert isinstance(op, FusedOp)
    assert [result.dims for result in op.program.results] == [(1024,)]


def test_surprise_and_loss_store_no_logits(graph: fx.GraphModule) -> None:
    """Nothing of `[bytes, 260]` is made: the head and its entropy are one call, with one number a row out."""
    known = facts(graph)
    heads = [node for node in graph.graph.nodes if isinstance(node.target, LogitsOp)]
    assert [node.target.name for node in heads] == ["entropy_lm_logits", "blt_logits"]
    read = [known[user] for head in heads for user in head.users]
    assert len(read) == 4
    assert all(fact.dims == () and fact.dtype == torch.float32 for fact in read)
    # The entropies have no gradient: tiles of logits are made in registers. Those of the loss are in memory by blocks.
    assert [head.target.in_tiles for head in heads] == [True, False]
    made = [fact for node, fact in known.items() if node not in heads and node.op == "call_function"]
    assert not [fact for fact in made if 260 in fact.dims and fact.level is not None]


def test_planned_bytes_are_near_the_least(planned: list[Planned]) -> None:
    # The entropy of a head of 768: hidden states in, 4 bytes out, the product included. Between the two kernels are a
    # few numbers a row.
    read, written = moved(planned, "entropy_lm_logits_statistics", "entropy_lm_logits_merge")
    assert read + written <= 1.2 * BYTES * (1536 + 4)
    # Pools of patches: each row once, and one row for each patch.
    read, written = moved(planned, "pool_runs")
    assert read <= 1.2 * 33.6e6
    assert written <= 1.2 * 8.4e6
    read, written = moved(planned, "share_max")
    assert read <= 1.2 * (33.6e6 + 8.4e6)
    assert written <= 1.2 * 33.6e6
    # Attention to slots: queries and slots in, one row out.
    row, slots = BYTES * 1024 * 2, BYTES // 4 * 2 * 2 * 1024 * 2
    read, written = moved(planned, "closed_attend_kernel")
    assert read + written <= 1.2 * (2 * row + slots)
    # Back: also the gradient of the result in, those of queries and slots out. Nothing of slots for each row.
    read, written = moved(planned, "closed_attend_backward_kernel")
    assert read + written <= 1.2 * (3 * row + 2 * slots)


HASHES = """
size buckets = 500002
size local = 1024
size vocab = 260
option grams: list = (3, 4, 5, 6, 7, 8)
axis seq
model m(bytes: id[seq] in vocab) -> real[seq, local]:
    x = embed(bytes, vocab -> local) as embed
    code = int(bytes)
    for back in 1 .. 8:
        code = previous(int(bytes), back) + 1000000007 * code
        for gram in grams:
            if gram == back + 1:
                x = x + embed(wrap(code, buckets), buckets -> local)
    return x
"""


def test_planned_bytes_of_hashes() -> None:
    """Rows of seven tables in, their sum out: 268 MB."""
    from tests.small_models import checked

    planned = of_graph(fused(checked(HASHES).model), "cuda:90", BYTES)
    (forward,) = (one for one in planned if one.direction == "forward")
    assert forward.work is not None
    assert 267e6 <= forward.work.bytes <= 1.2 * 268e6


@pytest.mark.parametrize("target", TARGETS)
def test_no_spills_at_the_sizes_of_1b(planned: list[Planned], target: str) -> None:
    names = ("closed_attend_kernel", "closed_attend_backward_kernel", "pool_runs", "share_max")
    names += ("entropy_lm_logits_statistics", "entropy_lm_logits_merge")
    wanted = list(dict.fromkeys(one.kernel for one in planned if one.kernel.name in names))
    assert {kernel.name for kernel in wanted} == set(names)
    for made in compile_ahead(wanted, [target]):
        assert problems(made) == [], made.kernel
