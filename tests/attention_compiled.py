"""Compiles attention kernels for an absent GPU and prints what they need, as JSON: one target per process.

python attention_compiled.py cuda:90 attention_forward attention_delta
python attention_compiled.py cuda:90 bucketed 64 attention_forward
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from weft.codegen.gpu.attention_form import AttentionForm, Captured
from weft.codegen.gpu.formula import from_tuple
from weft.codegen.kernel_text import KernelText
from weft.codegen.score.decode import DECODE_KERNELS, DecodePlan, decode_text
from weft.codegen.score.kernels import kernel_text
from weft.codegen.score.load import jitted
from weft.codegen.score.plan import AttentionPlan


def resources(kernel: KernelText, target: str) -> dict[str, int]:
    """Spilled bytes or registers, shared memory in bytes, and instructions of tensor cores."""
    function = jitted(kernel.text, kernel.name)
    backend, _, architecture = target.partition(":")
    gpu = GPUTarget("cuda", int(architecture), 32) if backend == "cuda" else GPUTarget("hip", architecture, 64)
    signature = {**dict(kernel.arguments), **{name: "constexpr" for name, _ in kernel.constants}}
    hints = {(function.arg_names.index(name),): [["tt.divisibility", 16]] for name in kernel.divisible}
    compiled = triton.compile(
        ASTSource(function, signature, dict(kernel.constants), hints),
        target=gpu,
        options={"num_warps": kernel.warps, "num_stages": kernel.stages},
    )
    if backend == "hip":
        text = compiled.asm["amdgcn"]
        spills = sum(int(n) for n in re.findall(r"\.vgpr_spill_count:\s*(\d+)", text))
        stack = sum(int(n) for n in re.findall(r"\.private_segment_fixed_size:\s*(\d+)", text))
        products = len(re.findall(r"v_mfma", text))
        return {"spills": spills + stack, "shared": compiled.metadata.shared, "products": products}
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage, code = (
            subprocess.run([tools / "cuobjdump", f"--dump-{what}", file.name], capture_output=True, text=True).stdout
            for what in ("resource-usage", "sass")
        )
    stack = sum(int(n) for n in re.findall(r"STACK:(\d+)", usage))
    spills = len(re.findall(r"\b(?:LDL|STL)\b", code))
    products = len(re.findall(r"\b(?:HGMMA|UTCHMMA|HMMA)\b", code))
    return {"spills": spills + stack, "shared": compiled.metadata.shared, "products": products}


def bucketed(width: int, key_position: int) -> AttentionForm:
    """T5's decoder: a score and the entry of a trained table, by the logarithm of the distance. `key_position`: which
    of the captured values that is."""
    back = ("-", ("query", 0), ("key", key_position))
    steps = (
        "*",
        ("/", ("log", ("/", ("real", ("max", back, ("number", 16))), ("number", 16))), ("number", 2.0794)),
        ("number", 16),
    )
    far = ("+", ("number", 16), ("int", steps))
    near = ("where", ("<", back, ("number", 16)), ("max", back, ("number", 0)), ("min", far, ("number", 31)))
    score = from_tuple(("+", ("score",), ("entry", 2, ("mod", near, ("number", 32)))))
    positions = tuple(Captured(side, "i32", False, False) for side in ("query", "key"))
    return AttentionForm(width**-0.5, score, None, (*positions, Captured("table", "bf16", True, True, 32)))


def main(target: str, names: list[str]) -> None:
    width, is_bucketed = 128, names[0] == "bucketed"
    if is_bucketed:
        width, names = int(names[1]), names[2:]
    found = {}
    for name in names:
        is_cached = name in DECODE_KERNELS
        form = bucketed(width, 0 if is_cached else 1) if is_bucketed else AttentionForm(width**-0.5)
        plan = AttentionPlan(form, "bf16", 32, 8, width, width, None)
        cached = DecodePlan(plan, 1, None, 0)
        kernel = decode_text(cached, name, target) if is_cached else kernel_text(plan, name, target)
        found[name] = resources(kernel, target)
    print(json.dumps(found))  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
