"""The kernels of shipped specs: which lines they serve, what they must move, and that they compile without spills."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from tests.small_models import DECODER, checked
from weft import spec_files
from weft.codegen.rowwise.fused import FusedOp
from weft.codegen.targets import TARGETS
from weft.commands.compile import _taken
from weft.runtime.ahead_of_time import Compiled, problems
from weft.views import kernels
from weft.views.kernels import Planned
from weft.views.planned_kernels import LENGTH, SEQUENCES, decoding_step, fused, of_graph, of_spec, of_step

ROWS = 1000

LOOKS_AHEAD = """
size dim = 8
axis seq
model m(x: real[seq, dim]) -> real[seq, dim]:
    return attend(x, x, x, over=dim, along=seq)
"""

HASHED = """
size vocab = 40
size dim = 8
axis seq
model m(a: id[seq] in vocab, b: id[seq] in vocab) -> real[seq, dim]:
    return tanh(embed(a, vocab -> dim) as one + 0.5 * (embed(b, vocab -> dim) as two))
"""


def planned(root: Path, name: str, *targets: str, **sizes: str) -> list[Planned]:
    source = spec_files.read(str(root / "specs" / name))
    return of_spec(spec_files.checked_source(source, "tiny", sizes), targets or ["cuda:90"], ROWS)


@pytest.fixture(scope="module")
def olmo2(root: Path) -> list[Planned]:
    return planned(root, "olmo2.weft")


def at(found: list[Planned], line: str) -> list[Planned]:
    return [one for one in found if one.written.startswith(line)]


def test_kernels_name_the_lines_they_serve(root: Path, olmo2: list[Planned]) -> None:
    for one in olmo2:
        name, _, line = one.spec.rpartition(":")
        # A spec is named as it was given, a library file within the library.
        file = root / "specs" / name if name.startswith("std/") else Path(name)
        assert file.read_text(encoding="utf-8").splitlines()[int(line) - 1].strip() == one.written


def test_a_backward_stands_beside_its_forward_and_runs_as_often(olmo2: list[Planned]) -> None:
    forward = {(one.kernel.name, one.spec, one.count) for one in olmo2 if one.direction == "forward"}
    # A table is read by torch: its gradient alone has kernels.
    backward = [
        one for one in olmo2 if one.direction == "backward" and one.kernel.name not in ("sum_runs", "join_parts")
    ]
    assert len(backward) >= 5
    for one in backward:
        # Logits and attention are differentiated by kernels of other names; logits in as many blocks.
        partner = one.kernel.name.replace("_backward", "").replace("_slopes", "_statistics")
        partner = "attention_forward" if partner.startswith("attention_") else partner
        assert (partner, one.spec, one.count) in forward


def test_a_gate_moves_each_entry_once(olmo2: list[Planned]) -> None:
    # The line that calls the library's block, not the block's own.
    served = at(olmo2, "x = x + rms_norm(swiglu")
    forward, backward, decode = (one for one in served if "silu" in one.kernel.name)
    assert [one.direction for one in (forward, backward, decode)] == ["forward", "backward", "decode"]
    assert (forward.count, backward.count) == (4, 4)
    # 384 entries of two bytes: gate and up in, their product out; then also its gradient in, and two out.
    entries = ROWS * 384 * 2
    for one, read, written in ((forward, 2, 1), (backward, 3, 2)):
        assert one.work is not None
        assert (one.work.read, one.work.written) == (read * entries, written * entries)
    assert forward.work is not None
    assert forward.work.matmul == 0
    # silu(gate) * up: at least a product with the logistic function, and a product.
    assert forward.work.vector >= 3 * ROWS * 384


def test_a_residual_and_its_norm_are_one_kernel_that_reads_weights_once(olmo2: list[Planned]) -> None:
    forward = next(one for one in at(olmo2, "x = x + rms_norm(attention(x)") if one.direction == "forward")
    assert forward.work is not None
    rows, weight = ROWS * 128 * 2, 128 * 2
    assert (forward.work.read, forward.work.written) == (2 * rows + weight, rows)


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
@pytest.mark.timeout(1500)
def test_kernels_compile_without_spills(root: Path) -> None:
    """Each kernel for one target, in turn; bench/aot.py compiles all for all, at all sizes."""
    # Configurations differ by target: each kernel is the one that its target gets.
    found: dict[str, list[Planned]] = {}
    for one in planned(root, "olmo2.weft", *TARGETS, layers="1"):
        found.setdefault(one.target, []).append(one)
    assert len(found["cuda:90"]) >= 8
    sample = [each[place % len(TARGETS)] for place, each in enumerate(zip(*found.values(), strict=True))]
    assert {one.target for one in sample} == set(TARGETS)
    rows = kernels.compiled(sample, timeout=120, workers=2)
    assert not [(row.made.kernel, row.made.target, problem) for row in rows for problem in problems(row.made)]


# Each spilled in its first default configuration: copies of angles in threads that differ by head, sums over rows of
# several gradients, a mask for each load of a narrow head, and where a few registers were given up for occupancy.
ONCE_SPILLED = {
    ("blt.weft", "tiny", ()): [
        ("rope_interleaved_turn_kernel", "decode", "cuda:80"),
        ("attention_forward", "forward", "cuda:100"),
    ],
    ("blt.weft", "2b", (("layers", "1"), ("patcher_layers", "1"))): [
        ("rms_norm_3_backward_kernel", "backward", "cuda:90"),
    ],
    ("entropy_lm.weft", "100m", (("layers", "2"),)): [("layer_rms_norm_4_backward_kernel", "backward", "cuda:90")],
}


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
@pytest.mark.parametrize("source", ONCE_SPILLED, ids=lambda source: " ".join(source[:2]))
@pytest.mark.timeout(1500)
def test_what_once_spilled_does_not(root: Path, source: tuple[str, str, tuple[tuple[str, str], ...]]) -> None:
    name, size, sizes = source
    wanted = ONCE_SPILLED[source]
    spec = spec_files.checked_source(spec_files.read(str(root / "specs" / name)), size, dict(sizes))
    made = of_spec(spec, [target for _, _, target in wanted], ROWS)
    sample = [one for one in made if (one.kernel.name, one.direction, one.target) in wanted]
    assert {(one.kernel.name, one.direction, one.target) for one in sample} == set(wanted)
    rows = kernels.compiled(sample, timeout=120, workers=2)
    assert not [(row.made.kernel, row.made.target, problem) for row in rows for problem in problems(row.made)]


def test_a_step_of_the_decoder_is_shown_by_its_shapes(olmo2: list[Planned]) -> None:
    found = {one.kernel.name: one for one in olmo2 if one.direction == "decode"}
    assert {"attention_decode", "attention_merge", "silu_swiglu_kernel", "rms_norm_turn_kernel"} <= set(found)
    attention = found["attention_decode"]
    assert attention.written.startswith("mixed = attend(")
    assert attention.count == 4
    assert attention.work is not None
    # Of every sequence its cached rows, keys and values, once; besides them its query and its position.
    caches = SEQUENCES * LENGTH * 2 * 2 * 32 * 2
    assert attention.work.read == caches + SEQUENCES * (4 * 32 * 2 + 8)
    assert attention.work.matmul == 2 * SEQUENCES * LENGTH * 4 * 2 * 32
    gate = found["silu_swiglu_kernel"]
    assert gate.work is not None
    assert (gate.work.read, gate.work.written) == (2 * SEQUENCES * 384 * 2, SEQUENCES * 384 * 2)
    merge = found["attention_merge"]
    assert merge.work is not None
    assert attention.work.written == merge.work.read
    assert merge.work.written == SEQUENCES * 4 * 32 * 2


def test_windows_are_read_as_far_as_they_reach() -> None:
    step = decoding_step(checked(DECODER).model, torch.bfloat16)
    assert step is not None
    found = [one for one in of_step(step, "cuda:90") if one.kernel.name == "attention_decode"]
    assert [one.work.read for one in found if one.work is not None] == [
        SEQUENCES * (rows * 2 * 2 * 4 * 2 + 4 * 4 * 2 + 8) for rows in (LENGTH, 3)
    ]
    assert decoding_step(checked(LOOKS_AHEAD).model, torch.bfloat16) is None


def test_gradients_of_tables_are_shown(olmo2: list[Planned]) -> None:
    runs, parts = (one for one in olmo2 if one.kernel.name in ("sum_runs", "join_parts"))
    assert (runs.direction, runs.count, runs.written) == ("backward", 1, parts.written)
    assert runs.written.startswith("x = embed(tokens")
    assert runs.work is not None
    assert runs.work.read == ROWS * (4 + 8 + 128 * 2)
    # All 260 rows of the table once; of 1000 sorted ids in tiles of 32 each run may lie in two, whose halves are kept.
    assert runs.work.written == 260 * 128 * 2 + 31 * 2 * 128 * 4


def test_tables_read_in_a_fused_call_are_among_them() -> None:
    graph = fused(checked(HASHED).model)
    ops = [node.target for node in graph.graph.nodes if isinstance(node.target, FusedOp)]
    assert [len(op.derivative.gathered) for op in ops if op.derivative is not None] == [2]
    found = [one for one in of_graph(graph, "cuda:90", ROWS) if one.kernel.name == "sum_runs"]
    assert sum(one.count for one in found) == 2
    assert {dict(one.kernel.constants)["WIDTH"] for one in found} == {8}
    assert {one.work.read for one in found if one.work is not None} == {ROWS * (4 + 8 + 8 * 2)}


def test_the_manifest_lists_them_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def compile_each(pairs, *_):
        return [Compiled(text.name, name, "3.7.1", 0.1, error="not compiled here") for text, name in pairs]

    monkeypatch.setattr(kernels, "compile_each", compile_each)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    spec = checked(DECODER)
    rows = _taken(spec, "cuda:90", torch.bfloat16, [fused(spec.model), fused(spec.objectives["next_token"])])
    found = {(row["kernel"], row["direction"]) for row in rows}
    assert found >= {
        ("attention_forward", "forward"),
        ("attention_key_gradient", "backward"),
        ("attention_decode", "decode"),
        ("silu_kernel", "decode"),
        ("sum_runs", "backward"),
    }
    # What model and objective share is there once.
    assert len({(row["kernel"], row["direction"], row["spec"], row["roofline_us"]) for row in rows}) == len(rows)


def test_a_model_alone_has_kernels_too(root: Path) -> None:
    source = spec_files.read(str(root / "specs" / "olmo2.weft"))
    checked = spec_files.checked_source(source, "tiny", {"layers": "1"})
    found = of_graph(fused(checked.model), "cuda:90", ROWS)
    assert "silu_swiglu_kernel" in [one.kernel.name for one in found]
    assert not [one for one in found if one.spec.endswith("loss.weft:4")]
