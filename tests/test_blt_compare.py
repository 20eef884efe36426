"""bench/blt_compare.py at sizes of seconds, and the operations that it counts."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.graph_flops import flops_per_token  # noqa: E402
from weft.runtime.model import Model, load  # noqa: E402


def model(root: Path, spec: str, **sizes: Any) -> Model:
    found = load(root / "specs" / f"{spec}.weft", "tiny", sizes)
    assert isinstance(found, Model)
    return found


def multiplied(made: Model, *names: str) -> int:
    """Entries of the weights that are multiplied with rows, of all or of those whose path has one of the names."""
    return sum(
        weight.numel()
        for path, weight in made.by_path()
        if weight.dim() > 1
        and path.endswith("weight")
        and "embed" not in path
        and (not names or any(name in path for name in names))
    )


def test_products_of_a_decoder_are_its_matrices_and_the_pairs_it_sees(root: Path) -> None:
    made = model(root, "olmo2")
    lengths = (40, 7)
    found = flops_per_token(made, [np.full(length, 5) for length in lengths])
    assert found.linear == 2 * multiplied(made)
    pairs = sum(length * (length + 1) // 2 for length in lengths)
    layers, dim = made.checked.sizes["layers"], made.checked.sizes["dim"]
    assert found.attention == layers * pairs * 4 * dim / sum(lengths)
    assert found.training == 3 * (found.linear + found.attention)


def test_a_window_bounds_the_pairs(root: Path) -> None:
    found = flops_per_token(model(root, "entropy_lm", reach=3), [np.full(10, 5)])
    assert found.attention == 2 * (1 + 2 + 8 * 3) * 4 * 64 / 10


@pytest.mark.parametrize(("pattern", "patches"), [((1.0, 1.0), 64), ((1.0, 0.0), 33)])
def test_products_of_patches_are_as_many_as_the_patches(root: Path, pattern: tuple[float, ...], patches: int) -> None:
    """The second pattern: the first byte, pairs of bytes, and the last one alone."""
    made = model(root, "blt", threshold=0.5)
    found = flops_per_token(made, [np.full(64, 5)], {"surprise": [np.array(pattern * 32)]})
    slots = multiplied(made, "own_attend.q", "own_attend.out", "closed_attend.k", "closed_attend.v")
    whole = multiplied(made, "pooled", "latent", "narrowed")
    of_bytes = multiplied(made) - slots - whole - multiplied(made, "entropy_lm")
    assert found.linear == 2 * (64 * of_bytes + patches * (2 * slots + whole)) / 64


@pytest.mark.slow
def test_both_sides_train_for_the_same_operations_and_read_the_same_bytes(tmp_path: Path) -> None:
    out = tmp_path / "made.json"
    command = [sys.executable, str(ROOT / "bench" / "blt_compare.py"), "--smoke", "--threads", "1", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "BLT in all" in done.stdout
    found = json.loads(out.read_text())
    assert str(ROOT) not in out.read_text()
    entropy, blt, plain = found["models"]
    wanted = found["setup"]["flops"]
    step = found["setup"]["bytes_per_step"]
    assert abs(found["flops"]["BLT in all"] - wanted) <= step * (blt["flops_per_byte"] + entropy["flops_per_byte"])
    assert abs(found["flops"]["OLMo 2"] - wanted) <= step * plain["flops_per_byte"]
    of_side = entropy["flops"] + found["entropies"]["flops"] + blt["flops"]
    assert found["flops"]["BLT in all"] == pytest.approx(of_side)
    assert blt["held_out_bytes"] == plain["held_out_bytes"] > 0
    assert 1 < blt["patch_bytes"] < 20
    for one in found["models"]:
        assert one["flops"] == pytest.approx(one["bytes_seen"] * one["flops_per_byte"])
        assert 0 < one["bits_per_byte"] < 2 * math.log2(260)
        assert one["curve"][-1] == [one["bytes_seen"], pytest.approx(one["flops"]), one["bits_per_byte"]]
