"""What `weft inspect` shows of kernels, from rows made by hand."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from weft.codegen.cost import Work
from weft.codegen.kernel_text import KernelText
from weft.codegen.targets import device
from weft.faults import CommandFault
from weft.runtime.ahead_of_time import Compiled
from weft.runtime.resources import Resources
from weft.views import kernels
from weft.views.kernels import KernelRow, Planned

TAKEN = Resources(
    registers=40, scalar_registers=0, spill_stores=0, spill_loads=0, scalar_spills=0, stack=0, shared=16, warps=8,
    stages=1, matrix=(), local_memory=0, async_copies=0, instructions=1208,
)  # fmt: skip
DOT = replace(TAKEN, registers=255, shared=98304, stages=3, matrix=(("HGMMA", 12), ("HMMA", 4)))
MEGABYTE = 2**20

NORM = KernelRow(
    Compiled("norm", "cuda:90", "3.7.1", 0.2, TAKEN, ".version 8.7\n", "LDG ;\n"), "tiny.weft:7", "forward",
    Work(read=64 * MEGABYTE, written=32 * MEGABYTE, vector=2e8), 8, "h = rms_norm(x)",
)  # fmt: skip
NORM_BACK = replace(
    NORM, direction="backward", made=replace(NORM.made, kernel="norm_backward"),
    work=Work(read=96 * MEGABYTE, written=32 * MEGABYTE, vector=4e8),
)  # fmt: skip
ATTENTION = KernelRow(
    Compiled("attention", "cuda:90", "3.7.1", 2.0, replace(DOT, spill_stores=16, spill_loads=24)), "tiny.weft:9",
    "forward", Work(read=3 * MEGABYTE, written=MEGABYTE, matmul=1.5e12), 1, "y = attend(q, k, v)",
)  # fmt: skip
BROKEN = KernelRow(
    Compiled("gather", "cuda:90", "3.7.1", 0.1, error="CompilationError: at 2:4\nValueError: no"), "tiny.weft:9",
    "backward",
)  # fmt: skip
ON_AMD = replace(NORM, made=Compiled("norm", "hip:gfx942", "3.7.1", 0.2, TAKEN, "\ts_endpgm\n"))

# Not in the order of the spec: the view brings together what belongs together.
ROWS = [NORM, ATTENTION, BROKEN, NORM_BACK]


def test_kernels_stand_under_the_line_they_serve() -> None:
    assert (
        kernels.text(ROWS)
        == """\
kernel           pass      launches  target   regs  spills    shared  warps  stages  matrix             code
---------------  --------  --------  -------  ----  ------  --------  -----  ------  ----------------  -----
tiny.weft:7  h = rms_norm(x)
  norm           forward          8  cuda:90    40       0  16 bytes      8       1  -                 1,208
  norm_backward  backward         8  cuda:90    40       0  16 bytes      8       1  -                 1,208
tiny.weft:9  y = attend(q, k, v)
  attention      forward          1  cuda:90   255   16+24  96.0 KiB      8       3  12 HGMMA, 4 HMMA  1,208
  gather         backward         1  cuda:90     -       -         -      -       -  -                     -

attention for cuda:90 (tiny.weft:9): spills 16 bytes per thread, reads back 24
gather for cuda:90 (tiny.weft:9): does not compile: ValueError: no"""
    )
    lanes = replace(NORM, made=replace(NORM.made, resources=replace(TAKEN, scalar_spills=4)))
    assert "  0 (4 scalar)  16 bytes " in kernels.text([lanes])
    assert kernels.text([NORM]).endswith("\n\nno spills, and all within the limits of their targets")
    assert kernels.text([]) == kernels.cost([]) == kernels.sass([]) == "no kernels"


def test_targets_of_a_kernel_stand_together() -> None:
    rows = [replace(row, made=replace(row.made, target=name)) for name in ("cuda:90", "cuda:80") for row in ROWS]
    found = [(one["kernel"], one["target"]) for one in kernels.data(rows)["kernels"]]
    names = ["norm", "norm_backward", "attention", "gather"]
    assert found == [(name, target) for name in names for target in ("cuda:90", "cuda:80")]


def test_cost_is_bytes_operations_and_the_least_time() -> None:
    # 96 MiB at 4.3 TB/s are 23.4 us; 1.5 TFLOP at 0.8 of 989.4 TFLOP/s are 1895 us.
    assert (
        kernels.cost(ROWS)
        == """\
kernel           pass      launches  device      read   written     FLOPs  FLOPs/byte  least us  limited by
---------------  --------  --------  ------  --------  --------  --------  ----------  --------  ----------
tiny.weft:7  h = rms_norm(x)
  norm           forward          8  h200    64.0 MiB  32.0 MiB  200.00 M         2.0      23.4  memory
  norm_backward  backward         8  h200    96.0 MiB  32.0 MiB  400.00 M         3.0      31.2  memory
tiny.weft:9  y = attend(q, k, v)
  attention      forward          1  h200     3.0 MiB   1.0 MiB    1.50 T   357,627.9   1,895.1  matmul
  gather         backward         1  h200           -         -         -           -         -  -

in all   pass      launches      moved  least us
-------  --------  --------  ---------  --------
cuda:90  forward          9  772.0 MiB   2,082.4
cuda:90  backward         9    1.0 GiB     249.7

h200: NVIDIA H200 SXM 141GB, copies 4.30 TB/s, multiplies 792 TFLOP/s in bf16"""
    )


def test_a_device_can_be_named_and_other_targets_keep_theirs() -> None:
    found = kernels.data([NORM, ON_AMD], device("h100"))
    assert [(one["device"], round(one["roofline_us"], 1)) for one in found["kernels"]] == [
        ("h100", 33.6),
        ("mi300x", 23.4),
    ]
    assert list(found["devices"]) == ["h100", "mi300x"]


def test_data_holds_what_the_tables_show() -> None:
    found = json.loads(json.dumps(kernels.data(ROWS)))
    assert [one["kernel"] for one in found["kernels"]] == ["norm", "norm_backward", "attention", "gather"]
    norm, _, attention, gather = found["kernels"]
    assert norm["spec"] == "tiny.weft:7"
    assert (norm["launches"], norm["resources"]["registers"], norm["work"]["bytes"]) == (8, 40, 96 * MEGABYTE)
    assert (norm["limiter"], norm["problems"], norm["error"]) == ("memory", [], None)
    assert attention["resources"]["matrix"] == {"HGMMA": 12, "HMMA": 4}
    assert attention["problems"] == ["spills 16 bytes per thread, reads back 24"]
    assert (gather["resources"], gather["work"], gather["roofline_us"]) == (None, None, None)
    assert gather["error"].startswith("CompilationError")
    assert [(one["direction"], one["launches"]) for one in found["totals"]] == [("forward", 9), ("backward", 9)]


def test_planned_kernels_become_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    def compile_each(pairs, *_):
        return [replace(NORM.made, kernel=text.name, target=name) for text, name in pairs]

    monkeypatch.setattr(kernels, "compile_each", compile_each)
    texts = [KernelText(name, "", (), (), (), 4, 1) for name in ("a", "b")]
    planned = [
        Planned(text, name, f"tiny.weft:{line}", "forward", NORM.work, line)
        for line, text in enumerate(texts, 1)
        for name in ("cuda:90", "cuda:80")
    ]
    assert [(row.made.kernel, row.made.target, row.spec, row.count, row.work) for row in kernels.compiled(planned)] == [
        ("a", "cuda:90", "tiny.weft:1", 1, NORM.work),
        ("a", "cuda:80", "tiny.weft:1", 1, NORM.work),
        ("b", "cuda:90", "tiny.weft:2", 2, NORM.work),
        ("b", "cuda:80", "tiny.weft:2", 2, NORM.work),
    ]
    monkeypatch.undo()
    with pytest.raises(CommandFault, match="did you mean cuda:90"):
        kernels.compiled([replace(planned[0], target="cuda:99")])


def test_code_is_shown_with_what_it_is_for() -> None:
    assert kernels.ptx([NORM]) == "// norm, cuda:90, forward, tiny.weft:7\n// h = rms_norm(x)\n.version 8.7"
    assert kernels.sass([NORM]).endswith("// h = rms_norm(x)\nLDG ;")
    assert kernels.sass([ON_AMD]) == "; norm, hip:gfx942, forward, tiny.weft:7\n; h = rms_norm(x)\n\ts_endpgm"
    assert kernels.ptx(ROWS, "gather") == (
        "// gather, cuda:90, backward, tiny.weft:9\n"
        "// does not compile:\n// CompilationError: at 2:4\n// ValueError: no"
    )
    assert kernels.ptx(ROWS).count("// does not compile:") == 1


def test_code_that_is_not_there_is_a_fault() -> None:
    with pytest.raises(CommandFault, match=r"no kernel `nrom`; did you mean norm\?"):
        kernels.ptx(ROWS, "nrom")
    with pytest.raises(CommandFault, match="no kernel `x`; there are norm, norm_backward, attention, gather"):
        kernels.sass(ROWS, "x")
    with pytest.raises(CommandFault, match="hip:gfx942 has no PTX; `sass` shows its assembly"):
        kernels.ptx([ON_AMD])
