"""A compiled folder is the same bytes whatever order sets of strings have: Python draws a new one for each process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

COMPILE = """
import sys
from pathlib import Path
import torch
from tests.small_models import checked
from tests.test_passes import TOWERS
from weft.codegen.artifact import compile_to
from weft.codegen.pipeline import CPU_PASSES, GPU_PASSES

out = Path(sys.argv[1])
compile_to(checked(TOWERS), out / "gpu", torch.bfloat16, GPU_PASSES, target="cuda:90")
compile_to(checked(TOWERS), out / "cpu", torch.float32, CPU_PASSES)
"""


def test_a_folder_is_the_same_in_every_process(root: Path, tmp_path: Path) -> None:
    pytest.importorskip("triton", reason="prints kernels")
    running = []
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONPATH": str(root), "PYTHONHASHSEED": seed}
        running.append(subprocess.Popen([sys.executable, "-c", COMPILE, str(tmp_path / seed)], env=environment))
    assert [process.wait(timeout=500) for process in running] == [0, 0]
    one, two = (
        {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
        for folder in (tmp_path / "1", tmp_path / "2")
    )
    assert {"gpu/kernels.py", "gpu/model.py", "gpu/manifest.json", "cpu/model.py"} <= one.keys()
    assert one.keys() == two.keys()
    assert [name for name in one if one[name] != two[name]] == []
