"""Kernels compiled for GPUs that are not here: what is read of them, and what happens to the ones that fail."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from tests.gpu_kernels import BROKEN, ENDLESS, GLUON, NORM, PTX_INSIDE, matmul
from weft.codegen.kernel_text import KernelText
from weft.codegen.targets import UnknownTarget
from weft.runtime import ahead_of_time, resources
from weft.runtime.ahead_of_time import Compiled, compile_ahead, problems
from weft.runtime.resources import Resources

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")

SMALL = matmul(64, 32, 4, 3)
UNHINTED = matmul(128, 64, 4, 3, divisible=False)
# Found wrong before any compiler is asked.
NOTHING = KernelText("nothing", "", (), (), (), 4, 1)
METADATA = {"shared": 1000, "warps": 4, "stages": 2}


@pytest.fixture(scope="module")
def compiled() -> dict[tuple[KernelText, str], Compiled]:
    """The crash comes first, so that everything behind it needs a second process."""
    kernels = [PTX_INSIDE, BROKEN, NORM, SMALL, GLUON]
    targets = ["cuda:90", "hip:gfx942"]
    with pytest.MonkeyPatch.context() as patch:
        # What a test process that interprets kernels has set does not reach the compiler.
        patch.setenv("TRITON_INTERPRET", "1")
        made = compile_ahead(kernels, targets, timeout=90, workers=2)
    pairs = [(kernel, name) for kernel in kernels for name in targets]
    assert [(one.kernel, one.target) for one in made] == [(kernel.name, name) for kernel, name in pairs]
    return dict(zip(pairs, made, strict=True))


def taken(made: Compiled) -> Resources:
    assert made.resources is not None, made.error
    return made.resources


@needs_triton
@pytest.mark.parametrize(("name", "code"), [("cuda:90", "ld.global.v4"), ("hip:gfx942", "buffer_load_dwordx")])
def test_a_row_kernel_is_compiled_and_read(compiled, name: str, code: str) -> None:
    made = compiled[NORM, name]
    found = taken(made)
    assert problems(made) == []
    assert 8 <= found.registers <= 64
    assert (found.warps, found.stages, found.matrix, found.local_memory, found.stack) == (4, 1, (), 0, 0)
    # One sum over four warps: a number per warp.
    assert found.shared == 16
    assert 50 < found.instructions < 500
    # Several entries at a time, which is what the hints of divisibility are for.
    assert code in made.assembly
    assert 0 < made.seconds < 90
    assert ".section\t.debug" not in made.assembly


@needs_triton
def test_machine_code_names_lines_of_the_kernel_and_no_place_of_this_machine(compiled) -> None:
    made = compiled[NORM, "cuda:90"]
    line = 1 + NORM.text.splitlines().index("    w = tl.load(w_ptr + offs_n, mask=mask_n, other=0.0).to(tl.float32)")
    assert f'File "kernels.py", line {line}\n' in made.sass
    assert f"// kernels.py:{line}:" in made.assembly
    # `tl.sum` is Triton's own code, in a file that lies somewhere else on every machine.
    assert 'File "triton/language/standard.py", line ' in made.sass
    for one in compiled.values():
        assert '"/' not in one.assembly + one.sass


@needs_triton
def test_a_matrix_product_uses_matrix_units(compiled) -> None:
    hopper, amd = taken(compiled[SMALL, "cuda:90"]), taken(compiled[SMALL, "hip:gfx942"])
    assert [name for name, _ in hopper.matrix] == ["HGMMA"]
    assert [name for name, _ in amd.matrix] == ["v_mfma_f32_32x32x8_bf16"]
    assert hopper.matrix_instructions > 0
    # Three stages of two blocks of 64 x 32 in bf16, copied without passing registers.
    assert hopper.shared == 3 * 2 * 64 * 32 * 2
    assert hopper.async_copies > 0


@needs_triton
def test_gluon_kernels_are_compiled(compiled) -> None:
    made = compiled[GLUON, "cuda:90"]
    assert problems(made) == []
    assert "LDG.E.128" in made.sass
    # Its layout is for 32 threads in a warp; AMD has 64.
    assert compiled[GLUON, "hip:gfx942"].error is not None


# What the launcher makes of real arguments, against what the compiler is told here. In a process of its own, as Triton
# must not interpret.
LAUNCH = """
import torch
from dataclasses import asdict
from triton.backends.compiler import GPUTarget
from triton.compiler.compiler import make_backend
from triton.runtime.jit import create_function_from_signature
from tests.gpu_kernels import NORM
from weft.runtime.kernel_worker import _function, as_launched

function = _function(NORM.name, NORM.text)
for target in (("cuda", 90, 32), ("hip", "gfx942", 64)):
    backend = make_backend(GPUTarget(*target))
    values = {"*bf16": torch.zeros(64, dtype=torch.bfloat16), "i32": 4096}
    values = [values[type] for _, type in NORM.arguments]
    options = {"num_warps": NORM.warps, "num_stages": NORM.stages}
    binder = create_function_from_signature(function.signature, function.params, backend)
    bound, specialization, _ = binder(*values, **dict(NORM.constants), **options, debug=False)
    _, *launched = function._pack_args(backend, options, bound, specialization, options)
    launched[2] = {place: attrs for place, attrs in launched[2].items() if attrs}
    assert launched == list(as_launched(asdict(NORM), function, backend)), (target, launched)
print("equal")
"""


@needs_triton
def test_a_kernel_is_described_as_its_launcher_would(root: Path) -> None:
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", LAUNCH], cwd=root, env=env, capture_output=True, text=True, timeout=120
    )
    assert done.stdout == "equal\n", done.stderr


@needs_triton
def test_a_kernel_that_is_wrong_is_an_error_with_its_line(compiled) -> None:
    for name in ("cuda:90", "hip:gfx942"):
        made = compiled[BROKEN, name]
        assert made.resources is None
        assert made.error is not None
        assert "incompatible dimensions at index 0: 16 and 32" in made.error
        assert "tl.store(x_ptr" in made.error
        assert problems(made) == [f"does not compile: {made.error.splitlines()[-1]}"]


@needs_triton
def test_a_kernel_that_ends_the_compiler_does_not_take_others_with_it(compiled) -> None:
    assert problems(compiled[PTX_INSIDE, "cuda:90"]) == []
    ended = compiled[PTX_INSIDE, "hip:gfx942"]
    assert ended.error is not None
    assert ended.error.startswith("the compiler's process ended ")
    assert "couldn't allocate output register" in ended.error
    assert compiled[NORM, "hip:gfx942"].error is None


@needs_triton
def test_spills_are_found_and_hints_avoid_them(compiled) -> None:
    [made] = compile_ahead([UNHINTED], ["cuda:90"])
    found = taken(made)
    assert found.spill_stores > 0
    assert found.spill_loads > 0
    assert found.local_memory > 0
    assert found.async_copies == 0
    assert problems(made) == [f"spills {found.spill_stores} bytes per thread, reads back {found.spill_loads}"]
    assert taken(compiled[SMALL, "cuda:90"]).spills == 0


@needs_triton
@pytest.mark.parametrize("name", ["cuda:80", "cuda:100"])
def test_other_targets_compile(name: str) -> None:
    [made] = compile_ahead([SMALL], [name])
    found = taken(made)
    assert problems(made) == []
    assert [name for name, _ in found.matrix] == [{"cuda:80": "HMMA", "cuda:100": "UTCHMMA"}[name]]
    assert f".target sm_{name.removeprefix('cuda:')}" in made.assembly


@needs_triton
def test_registers_are_limited_where_a_kernel_says_so() -> None:
    nvidia, amd = compile_ahead([replace(NORM, registers=128)], ["cuda:90", "hip:gfx942"])
    assert ".maxnreg 128\n" in nvidia.assembly
    assert problems(nvidia) == problems(amd) == []


@needs_triton
def test_a_kernel_that_takes_too_long_is_given_up(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for limit in (1.5, 6.0, 24.0):  # where others have the cores, the kernel behind needs longer too
        endless, behind = compile_ahead([ENDLESS, NOTHING], ["cuda:90"], tmp_path / "cache", timeout=limit)
        assert endless.error == f"not compiled within {limit:g} s"
        assert limit <= endless.seconds < limit + 60
        if behind.error != endless.error:
            break
    assert behind.error == "ValueError: the text defines no jitted function `nothing`"
    # Nothing stays behind, and only what would be the same again is kept.
    assert [item.name for item in tmp_path.iterdir()] == ["cache"]
    assert len(list((tmp_path / "cache").iterdir())) == 1


@needs_triton
def test_results_are_kept_and_a_damaged_one_is_made_again(monkeypatch, tmp_path: Path) -> None:
    first = compile_ahead([NORM, NOTHING], ["cuda:90"], tmp_path)
    assert first[0].error is None
    files = sorted(tmp_path.iterdir())
    assert len(files) == 2

    def refuse(*_: object) -> None:
        raise AssertionError("nothing has to be compiled")

    with monkeypatch.context() as patch:
        patch.setattr(ahead_of_time, "_Worker", refuse)
        assert compile_ahead([NOTHING, NORM, NORM], ["cuda:90"], tmp_path) == [first[1], first[0], first[0]]
        with pytest.raises(AssertionError, match="nothing has"):
            compile_ahead([replace(NORM, stages=2)], ["cuda:90"], tmp_path)
    path = next(file for file in files if json.loads(file.read_text())["kernel"] == "nothing")
    path.write_text(path.read_text()[:40])
    again = compile_ahead([NOTHING], ["cuda:90"], tmp_path)
    assert again[0].error == first[1].error
    assert sorted(tmp_path.iterdir()) == files


def test_a_key_depends_on_everything() -> None:
    changed = [
        NORM,
        replace(NORM, text=NORM.text + "\n"),
        replace(NORM, constants=(("EPS", 1e-6), ("BLOCK_N", 2048))),
        replace(NORM, constants=(("EPS", 1e-6), ("BLOCK_N", 1024.0))),
        replace(NORM, arguments=(("x_ptr", "*fp32"), *NORM.arguments[1:])),
        replace(NORM, divisible=NORM.divisible[1:]),
        replace(NORM, warps=8),
        replace(NORM, stages=2),
        replace(NORM, registers=128),
    ]
    keys = {ahead_of_time.key(kernel, "cuda:90", "3.7.1") for kernel in changed}
    keys |= {ahead_of_time.key(NORM, "cuda:80", "3.7.1"), ahead_of_time.key(NORM, "cuda:90", "3.6.0")}
    assert len(keys) == len(changed) + 2


WRONG = {
    replace(NORM, arguments=NORM.arguments[1:], divisible=()): "no argument and no constant for x_ptr",
    replace(NORM, constants=(*NORM.constants, ("BLOCK_M", 1))): "no parameter named BLOCK_M",
    replace(NORM, constants=(*NORM.constants, ("width", 8))): "argument and constant at once: width",
    replace(NORM, divisible=("rows",)): "divisible, but not an argument: rows",
    replace(NORM, text="def norm_rows(x_ptr):\n    pass\n"): "the text defines no jitted function `norm_rows`",
    replace(NORM, text="import triton\n  oops\n"): "IndentationError",
}


@needs_triton
def test_a_text_that_does_not_fit_what_is_said_of_it_is_an_error() -> None:
    for made, message in zip(compile_ahead(list(WRONG), ["cuda:90"]), WRONG.values(), strict=True):
        assert message in (made.error or "")


def test_a_target_that_is_not_known_is_refused_before_anything_starts() -> None:
    with pytest.raises(UnknownTarget, match="did you mean cuda:90"):
        compile_ahead([NORM], ["cuda:80", "sm_90"])
    assert compile_ahead([], ["cuda:90"]) == []


# ---- reading texts -----------------------------------------------------------------------------

USAGE = " Function f:\n  REG:40 STACK:16 SHARED:1024 LOCAL:0 CONSTANT[0]:584\n Function g:\n  REG:64 STACK:0 SHARED:0\n"
LOG = """ptxas info    : Function properties for f
    16 bytes stack frame, 12 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 64 registers, used 1 barriers, 512 bytes smem
ptxas info    : Function properties for g
    0 bytes stack frame, 4 bytes spill stores, 0 bytes spill loads
"""
SASS = """\
        /*0000*/                   LDC R1, c[0x0][0x28] ;
\t//## File "kernels.py", line 3
        /*0010*/              @!P0 LDGSTS.E.BYPASS.128 [R9], desc[UR4][R2.64] ;
        /*0020*/              @UP1 UTMALDG.2D [UR4], [UR6] ;
        /*0030*/                   HGMMA.64x64x16.F32.BF16 R24, gdesc[UR8], R24 ;
        /*0040*/                   HGMMA.64x64x16.F32.BF16 R24, gdesc[UR8], R24 ;
        /*0050*/               @P2 STL.64 [R1], R2 ;
        /*0060*/                   LDL R3, [R1+0x8] ;
.L_x_1:
        /*12340*/                  EXIT ;
"""


def test_nvidia_texts_are_read() -> None:
    assert resources.nvidia(USAGE, LOG, SASS, METADATA) == Resources(
        registers=64, scalar_registers=0, spill_stores=16, spill_loads=8, scalar_spills=0, stack=16, shared=1512,
        warps=4, stages=2, matrix=(("HGMMA", 2),), local_memory=2, async_copies=2, instructions=8,
    )  # fmt: skip


AMDGCN = """\
f:
\ts_load_dwordx2 s[2:3], s[0:1], 0x0
\tscratch_store_dword off, v1, off offset:4
\tscratch_load_dword v1, off, off offset:4
\tglobal_load_lds_dword v[2:3], off
\tbuffer_load_dword v1, s[0:3], 0 offen lds
\tbuffer_load_dwordx4 v[10:13], v26, s[20:23], 0 offen
\tv_mfma_f32_32x32x8_bf16 a[0:15], v[0:1], v[2:3], a[0:15]
\ts_endpgm
\t.section\t.rodata,"a",@progbits
\tnot_an_instruction 1
\t.amdgpu_metadata
  - .agpr_count:     16
    .group_segment_fixed_size: 24
    .private_segment_fixed_size: 8
    .sgpr_count:     32
    .sgpr_spill_count: 2
    .vgpr_count:     62
    .vgpr_spill_count: 1
"""


def test_amd_texts_are_read() -> None:
    found = resources.amd(AMDGCN, METADATA)
    assert found == Resources(
        registers=62, scalar_registers=32, spill_stores=4, spill_loads=4, scalar_spills=2, stack=8, shared=1024,
        warps=4, stages=2, matrix=(("v_mfma_f32_32x32x8_bf16", 1),), local_memory=2, async_copies=2, instructions=8,
    )  # fmt: skip
    made = Compiled("f", "hip:gfx942", "3.7.1", 1.0, replace(found, shared=70_000))
    assert problems(made) == [
        "spills 4 bytes per thread, reads back 4, 2 scalar registers",
        "takes 70,000 bytes of shared memory of 65,536",
    ]
    # Scalar registers that found a place in vector registers went through no memory.
    in_lanes = replace(found, spill_stores=0, spill_loads=0, stack=0)
    assert problems(replace(made, resources=in_lanes)) == []
    assert problems(replace(made, resources=replace(in_lanes, stack=8))) != []


@pytest.mark.parametrize(
    ("usage", "log", "sass"),
    [("", LOG, SASS), (USAGE, "", SASS), (USAGE, LOG, "")],
    ids=["cuobjdump", "ptxas", "machine code"],
)
def test_a_tool_that_says_something_else_is_not_read_as_zeros(usage: str, log: str, sass: str) -> None:
    with pytest.raises(ValueError, match=r"cuobjdump|ptxas|instruction"):
        resources.nvidia(usage, log, sass, METADATA)
