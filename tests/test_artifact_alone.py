"""An artifact made for a GPU, in a process where only torch and triton can be imported: results, gradients, opcheck of
every operator, export and back."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.fused_models import assert_equal
from weft import spec_files
from weft.codegen.artifact import compile_to
from weft.codegen.pipeline import GPU_PASSES
from weft.runtime.model import Model

SIZES = {"layers": "2", "dim": "16", "heads": "2", "kv_heads": "1", "ffn": "24", "vocab": "40"}
# torch, triton, and what torch itself imports; jinja2, which torch asks for when it compiles for a GPU, is not there.
PACKAGES = (
    "torch", "torchgen", "functorch", "triton", "numpy", "numpy.libs", "typing_extensions.py", "sympy", "mpmath",
    "networkx", "filelock", "fsspec",
)  # fmt: skip


@pytest.fixture(scope="module")
def alone(root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder, site = tmp_path_factory.mktemp("compiled"), tmp_path_factory.mktemp("site")
    installed = Path(torch.__file__).parent.parent
    for name in PACKAGES:
        if (installed / name).exists():
            (site / name).symlink_to(installed / name)
    checked = spec_files.checked_source(spec_files.read(str(root / "specs" / "olmo2.weft")), "tiny", SIZES)
    compile_to(checked, folder / "artifact", torch.float64, GPU_PASSES, target="cuda:90")
    torch.save(Model(checked, torch.float64, seed=2).state_dict(), folder / "weights.pt")
    script = Path(__file__).with_name("artifact_alone.py")
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(script), str(site), str(folder)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "TRITON_INTERPRET": "1"},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return torch.load(folder / "found.pt", weights_only=True)


def test_nothing_of_weft_is_there(alone: dict[str, Any]) -> None:
    assert not {"weft", "lark", "jinja2"} & set(alone["modules"])
    assert {"torch", "triton", "artifact"} <= set(alone["modules"])


def test_results_and_gradients_are_those_of_the_reference(alone: dict[str, Any]) -> None:
    (got, got_gradients), (want, want_gradients) = alone["artifact"], alone["reference"]
    assert len(got) == len(want) == 5
    for number, (one, two) in enumerate(zip(got, want, strict=True)):
        assert_equal(one, two, f"result {number}", 1e-9)
    assert len(want_gradients) == 25
    for name, gradient in want_gradients.items():
        assert gradient is not None
        assert_equal(got_gradients[name], gradient, f"gradient of {name}", 1e-9)


def test_compiled_whole_before_it_ever_ran(alone: dict[str, Any]) -> None:
    assert len(alone["compiled"]) == 5
    for number, (one, two) in enumerate(zip(alone["compiled"], alone["reference"][0], strict=True)):
        assert_equal(one, two, f"result {number}", 1e-9)


def test_every_operator_was_checked(alone: dict[str, Any]) -> None:
    """opcheck ended the process otherwise; here, that none was left out: each call forward and backward, attention's,
    and those of tables."""
    assert len(alone["calls"]) >= 6
    for name in alone["calls"]:
        assert name in alone["operators"]
    backward = [name for name in alone["operators"] if name.endswith("_backward") and name[:-9] in alone["calls"]]
    assert len(backward) >= 4
    others = set(alone["operators"]) - set(alone["calls"]) - set(backward)
    assert {"read_rows", "add_rows"} <= others
    assert {"attention_forward", "attention_backward"} <= others


def test_exported_and_read_back(alone: dict[str, Any]) -> None:
    (logits,) = alone["exported"]
    assert_equal(logits, alone["reference"][0][0], "logits", 1e-9)
