"""Small Triton kernels, written by hand, for tests of what compiles, measures and shows kernels."""

from __future__ import annotations

from weft.codegen.kernel_text import KernelText

HEAD = """import triton
import triton.language as tl


"""

NORM_TEXT = (
    HEAD
    + '''@triton.jit
def norm_rows(x_ptr, w_ptr, y_ptr, width, stride_xm, EPS: tl.constexpr, BLOCK_N: tl.constexpr):
    """y = x / rms(x) * w, a row per program."""
    row = tl.program_id(0).to(tl.int64)
    offs_n = tl.arange(0, BLOCK_N)
    mask_n = offs_n < width
    x = tl.load(x_ptr + row * stride_xm + offs_n, mask=mask_n, other=0.0).to(tl.float32)
    w = tl.load(w_ptr + offs_n, mask=mask_n, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(x * x, 0) / width + EPS)
    tl.store(y_ptr + row * stride_xm + offs_n, x * scale * w, mask=mask_n)
'''
)

NORM = KernelText(
    name="norm_rows",
    text=NORM_TEXT,
    arguments=(("x_ptr", "*bf16"), ("w_ptr", "*bf16"), ("y_ptr", "*bf16"), ("width", "i32"), ("stride_xm", "i32")),
    constants=(("EPS", 1e-6), ("BLOCK_N", 1024)),
    divisible=("x_ptr", "w_ptr", "y_ptr", "width", "stride_xm"),
    warps=4,
    stages=1,
)

MATMUL_TEXT = (
    HEAD
    + '''@triton.jit
def matmul(
    a_ptr, b_ptr, c_ptr, K, stride_am, stride_bk, stride_cm,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):
    """c = a b for sizes that are multiples of the blocks."""
    offs_m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    offs_k = tl.arange(0, BLOCK_K)
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, K, BLOCK_K):
        a = tl.load(a_ptr + offs_m[:, None] * stride_am + (start + offs_k)[None, :])
        b = tl.load(b_ptr + (start + offs_k)[:, None] * stride_bk + offs_n[None, :])
        acc = tl.dot(a, b, acc)
    tl.store(c_ptr + offs_m[:, None] * stride_cm + offs_n[None, :], acc.to(tl.bfloat16))
'''
)


def matmul(block: int, block_k: int, warps: int, stages: int, divisible: bool = True) -> KernelText:
    pointers = ("a_ptr", "b_ptr", "c_ptr")
    numbers = ("K", "stride_am", "stride_bk", "stride_cm")
    return KernelText(
        name="matmul",
        text=MATMUL_TEXT,
        arguments=(*((name, "*bf16") for name in pointers), *((name, "i32") for name in numbers)),
        constants=(("BLOCK_M", block), ("BLOCK_N", block), ("BLOCK_K", block_k)),
        divisible=(*pointers, *numbers) if divisible else (),
        warps=warps,
        stages=stages,
    )


# The same language one level lower, where layouts are written out.
GLUON = KernelText(
    name="copy",
    text="""from triton.experimental import gluon
from triton.experimental.gluon import language as gl


@gluon.jit
def copy(x_ptr, y_ptr, BLOCK_N: gl.constexpr):
    layout: gl.constexpr = gl.BlockedLayout([4], [32], [4], [0])
    offs_n = gl.program_id(0) * BLOCK_N + gl.arange(0, BLOCK_N, layout=layout)
    gl.store(y_ptr + offs_n, gl.load(x_ptr + offs_n))
""",
    arguments=(("x_ptr", "*fp32"), ("y_ptr", "*fp32")),
    constants=(("BLOCK_N", 512),),
    divisible=("x_ptr", "y_ptr"),
    warps=4,
    stages=1,
)

# A kernel that no compiler takes: shapes that cannot be added.
BROKEN = KernelText(
    name="broken",
    text=HEAD
    + """@triton.jit
def broken(x_ptr, BLOCK_N: tl.constexpr):
    tl.store(x_ptr + tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_N) + tl.arange(0, 2 * BLOCK_N))
""",
    arguments=(("x_ptr", "*fp32"),),
    constants=(("BLOCK_N", 16),),
    divisible=("x_ptr",),
    warps=4,
    stages=1,
)

# PTX inside a kernel is good for NVIDIA and ends the process when it is compiled for AMD.
PTX_INSIDE = KernelText(
    name="ptx_inside",
    text=HEAD
    + """@triton.jit
def ptx_inside(x_ptr, BLOCK_N: tl.constexpr):
    offs_n = tl.arange(0, BLOCK_N)
    x = tl.load(x_ptr + offs_n)
    y = tl.inline_asm_elementwise("ex2.approx.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)
    tl.store(x_ptr + offs_n, y)
""",
    arguments=(("x_ptr", "*fp32"),),
    constants=(("BLOCK_N", 128),),
    divisible=("x_ptr",),
    warps=4,
    stages=1,
)

# Never done compiling: its module does not come to an end.
ENDLESS = KernelText("endless", "while True:\n    pass\n", (), (), (), 4, 1)

# What compiles for every target without spills.
EXAMPLES = [NORM, matmul(64, 32, 4, 3), matmul(128, 64, 8, 3)]
