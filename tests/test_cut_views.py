"""What walks graphs of specs with cuts: views of the decoder and of kernels, `verify`, artifacts."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from tests.small_models import checked
from weft.codegen.artifact import compile_to
from weft.codegen.decode_stages import StagedGraph
from weft.codegen.pipeline import BASIC_PASSES, GPU_PASSES
from weft.runtime.model import Model
from weft.runtime.verify import NotCompared, Part, verify
from weft.views import decode, planned_kernels

# As BLT in the small: local rows, a pool and slots that attend to their segment, global rows, slots that rows read.
PATCHES = """
size vocab = 11
size dim = 8
size heads = 2
size slots = 2
axis head_dim = dim / heads
axis seq
axis patch cut from seq

block own(p: real[patch, slots, dim], x: real[seq, dim]) -> real[patch, slots, dim]:
    q = linear(rms_norm(p, over=dim) as norm, dim -> (heads, head_dim)) as q
    k = linear(x, dim -> (heads, head_dim)) as k
    v = linear(x, dim -> (heads, head_dim)) as v
    return linear(attend(q, k, v, over=head_dim, along=seq, mask=same(patch)), (heads, head_dim) -> dim) as out

block closed(x: real[seq, dim], g: real[patch, slots, dim]) -> real[seq, dim]:
    m = rms_norm(g, over=dim) as memory_norm
    q = linear(rms_norm(x) as norm, dim -> (heads, head_dim)) as q
    k = linear(m, dim -> (heads, head_dim)) as k |> spread(patch -> seq, closed)
    v = linear(m, dim -> (heads, head_dim)) as v |> spread(patch -> seq, closed)
    return linear(attend(q, k, v, over=head_dim, along=slots), (heads, head_dim) -> dim) as out

model m(ids: id[seq] in vocab) -> real[seq, vocab]:
    x = embed(ids, vocab -> dim) as embed
    ends = sum(x, over=dim) > 0.4 or position(seq) == 0
    segment seq into patch ends where ends, at most 3
    x = x + attend(x, x, x, over=dim, along=seq, mask=causal and window(3))
    p = linear(pool(x, seq -> patch, by=max), dim -> (slots, dim)) as pooled
    p = 2 * p + own(p, x)
    g = linear(p, (slots, dim) -> dim) as down
    g = g + attend(g, g, g, over=dim, along=patch, mask=causal)
    g = linear(g, dim -> (slots, dim)) as up
    x = 2 * x + closed(x, g)
    return linear(rms_norm(x) as last, dim -> vocab) as head

objective text(ids: id[seq] in vocab):
    loss text = cross_entropy(m(ids), next(ids))

init **.weight = normal(0.5)
"""
IDS = torch.tensor([3, 1, 2, 4, 1, 5, 0, 7, 7, 2, 10, 6, 3])
OFFSETS = torch.tensor([0, 2, 2, 3, 13], dtype=torch.int32)


def test_the_decoder_is_shown_in_stages() -> None:
    program = checked(PATCHES).model
    text = decode.text(program)
    stages = decode.data(program)["stages"]
    assert [stage["closing"] for stage in stages] == [[], ["patch"], []]
    assert [line.split("  ")[0] for line in text.splitlines() if line.startswith(("at every row", "when a "))] == [
        "at every row",
        "when a patch closes",
        "at every row",
    ]
    weights = dict(Model(checked(PATCHES)).by_path())
    # What only the middle reads: the pool's linear, the queries of slots and what comes back, down and up, and the
    # keys and values that rows read.
    middle = ("pooled", "own.q", "own.norm", "own.out", "down", "up", "closed.k", "closed.v", "closed.memory_norm")
    count = sum(p.numel() for path, p in weights.items() if path.startswith(middle))
    assert stages[1]["weights"] == count > 0
    assert sum(stage["weights"] for stage in stages) == sum(p.numel() for p in weights.values())


def test_a_decoder_without_segments_has_one_stage() -> None:
    program = checked(PATCHES.split("model m")[0].split("axis patch")[0] + PLAIN).model
    assert [stage["closing"] for stage in decode.data(program)["stages"]] == [[]]
    assert "a step runs" not in decode.text(program)


PLAIN = """
model m(ids: id[seq] in vocab) -> real[seq, dim]:
    x = embed(ids, vocab -> dim)
    return rms_norm(x + attend(x, x, x, over=dim, along=seq, mask=causal))
"""


def test_kernels_of_every_stage_are_planned() -> None:
    spec = checked(PATCHES)
    step = planned_kernels.decoding_step(spec.model, torch.bfloat16)
    assert isinstance(step, StagedGraph)
    planned = planned_kernels.of_spec(spec, ["cuda:90"], 4096)
    decoding = {one.spec.rpartition(":")[2] for one in planned if one.direction == "decode"}
    lines = spec.source.text.splitlines()
    pooled = next(n for n, line in enumerate(lines, 1) if "q = linear(rms_norm(p" in line)
    last = next(n for n, line in enumerate(lines, 1) if "rms_norm(x) as last" in line)
    assert {str(pooled), str(last)} <= decoding, decoding
    assert {one.direction for one in planned} == {"forward", "backward", "decode"}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_verify_compares_everything(dtype: torch.dtype) -> None:
    found = list(verify(checked(PATCHES), dtype, with_gradients=True))
    parts = [part for part in found if isinstance(part, Part)]
    assert not [part for part in found if isinstance(part, NotCompared)]
    wrong = [part for part in parts if not part.is_ok]
    assert not wrong, "\n".join(f"{p.kind} {p.name} {p.place}: {p.error:.2e} of {p.limit:.2e} {p.note}" for p in wrong)
    assert {part.kind for part in parts} == {"region", "region gradient", "output", "loss", "gradient", "decode"}


@pytest.mark.parametrize(("target", "passes"), [("cpu", BASIC_PASSES), ("cuda:90", GPU_PASSES)])
def test_an_artifact_runs_in_a_folder_of_any_name(target: str, passes: tuple, tmp_path: Path) -> None:
    spec = checked(PATCHES)
    name = f"cuts-{target.replace(':', '.')}"
    compile_to(spec, tmp_path / name, torch.float64, passes, target=target)
    module = _imported(tmp_path / name, name)
    made = module.load(seed=3)
    truth = Model(spec, torch.float64, seed=None, passes=())
    with torch.no_grad():
        for path, parameter in truth.by_path():
            parameter.copy_(made[path])
    want = truth.reference(spec.model)(IDS, OFFSETS)[0]
    got = made(IDS, OFFSETS)[0]
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)
    want_loss = truth.reference(spec.objectives["text"])(IDS, OFFSETS)
    got_loss = made.loss_text(IDS, OFFSETS)
    torch.testing.assert_close(got_loss, tuple(want_loss), rtol=1e-9, atol=1e-9)
    got_loss[0].backward()
    want_loss[0].backward()
    for path, parameter in truth.by_path():
        torch.testing.assert_close(made[path].grad, parameter.grad, rtol=1e-8, atol=1e-9, msg=path)


def _imported(folder: Path, name: str):
    spec = importlib.util.spec_from_file_location(
        name.replace(".", "_"), folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
