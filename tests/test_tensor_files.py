"""Files of tensors, and models whose weights stay in the file: tables larger than memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from tests.small_models import DECODER
from weft.dsl.check import Checked
from weft.runtime.checkpoint import ModelIdentity, SpecText, save_checkpoint
from weft.runtime.decoder import Decoder
from weft.runtime.errors import RuntimeFault
from weft.runtime.model import Model, check_texts, load
from weft.runtime.tensor_files import PAGE, map_tensors, write_tensors

MEMORY = """
size slots = 262144
size dim = 256
axis seq
axis slot = slots
axis top = 4
shared values: real[slot, dim] = normal(0.02)
model m(x: id[seq, top] in slot) -> real[seq, dim]:
    return linear(bag(values, x, over=top), dim -> dim) as out
"""


def checkpoint(text: str, folder: Path, seed: int = 0) -> Model:
    texts = (SpecText("model.weft", text.lstrip()),)
    checked: Checked = check_texts(texts, None, {})
    made = Model(checked, torch.float32, seed=seed)
    save_checkpoint(folder, ModelIdentity(texts, None, {}), dict(made.by_path()))
    return made


def test_tensors_of_whole_pages_begin_on_pages(tmp_path: Path) -> None:
    given = {
        "small": torch.arange(5), "table": torch.randn(512, 16), "flags": torch.tensor([True, False, True]),
        "larger": torch.randn(1024, 16, dtype=torch.bfloat16), "number": torch.tensor(3.5), "none": torch.empty(0, 4),
    }  # fmt: skip
    first, second = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    write_tensors(first, given)
    write_tensors(second, dict(reversed(given.items())))
    assert first.read_bytes() == second.read_bytes()
    for name, tensor in load_file(first).items():
        assert tensor.dtype == given[name].dtype
        assert torch.equal(tensor, given[name])
    for name, tensor in map_tensors(first).items():
        assert torch.equal(tensor, given[name])
        if name in ("table", "larger"):
            assert tensor.data_ptr() % PAGE == 0
    with safe_open(str(first), framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_a_mapped_model_is_the_model(tmp_path: Path) -> None:
    made = checkpoint(DECODER, tmp_path / "saved")
    found = load(tmp_path / "saved", mapped=True)
    assert isinstance(found, Model)
    tokens = [torch.tensor([1, 5, 3]), torch.tensor([2])]
    with torch.no_grad():
        for ours, expected in zip(found(tokens), made(tokens), strict=True):
            assert torch.equal(ours, expected)
        logits = [Decoder(model).prefill([[1, 2], [3]], capacity=4)[0] for model in (found, made)]
    assert torch.equal(*logits)


@pytest.mark.parametrize("change", ["dtype", "device", "cut short", "another spec"])
def test_what_cannot_be_mapped_is_one_line(tmp_path: Path, change: str) -> None:
    checkpoint(DECODER, tmp_path / "saved")
    weights = tmp_path / "saved" / "model.safetensors"
    arguments = {"dtype": {"dtype": torch.float64}, "device": {"device": "meta"}}.get(change, {})
    if change == "cut short":
        weights.write_bytes(weights.read_bytes()[:-10])
    if change == "another spec":
        tensors = {name: tensor.clone() for name, tensor in load_file(weights).items()}
        tensors["embed.weight"] = tensors["embed.weight"].T.contiguous()
        write_tensors(weights, tensors)
    with pytest.raises(RuntimeFault) as fault:
        load(tmp_path / "saved", mapped=True, **arguments)
    assert "\n" not in str(fault.value)


CHILD = """
import sys, torch
from weft.runtime.model import load
def anonymous():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) // 1024
model = load(sys.argv[1], mapped=sys.argv[2] == "mapped")
before = anonymous()
model([torch.randint(262144, (50, 4))])
warm = anonymous()
import gc; gc.collect()
print(warm)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc, which this system has not")
def test_a_table_stays_in_the_file(tmp_path: Path) -> None:
    """256 MiB of values: in memory when loaded, on the file when mapped."""
    checkpoint(MEMORY, tmp_path / "saved")
    needed = {}
    for how in ("loaded", "mapped"):
        command = [sys.executable, "-c", CHILD, str(tmp_path / "saved"), how]
        needed[how] = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert needed["mapped"] < needed["loaded"] - 240
