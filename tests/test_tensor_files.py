"""Files of tensors, and models whose weights stay in the file: tables larger than memory."""

from __future__ import annotations

import json
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
import gc, json, sys
from pathlib import Path
import torch
from weft.runtime.model import load

def anonymous():
    gc.collect()
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    # What the system has moved elsewhere is still ours.
    return sum(int(fields[name].split()[0]) for name in ("RssAnon", "VmSwap")) // 1024

def of_values(model):
    address = dict(model.by_path())["values"].data_ptr()
    inside, found = False, {}
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name, *rest = line.split()
        if not name.endswith(":"):
            begin, end = (int(one, 16) for one in name.split("-"))
            inside, file = begin <= address < end, "".join(rest[4:])
        elif inside:
            found["file"] = file
            if name == "Anonymous:":
                found["own"] = int(rest[0]) // 1024
    return found

def run(folder):
    model = load(folder, mapped=sys.argv[3] == "mapped")
    model([torch.randint(64, (50, 4))])
    return model

run(sys.argv[1])  # what the first model of a process brings with it, such as threads
before = anonymous()
model = run(sys.argv[2])
model([torch.randint(262144, (50, 4))])
print(json.dumps({"more": anonymous() - before, **of_values(model)}))
"""


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="reads /proc, which this system has not")
def test_a_table_stays_in_the_file(tmp_path: Path) -> None:
    """256 MiB of values: in memory when loaded; when mapped the file's own pages, of which no one has a copy."""
    checkpoint(MEMORY.replace("slots = 262144", "slots = 64"), tmp_path / "small")
    checkpoint(MEMORY, tmp_path / "saved")
    found = {}
    for how in ("loaded", "mapped"):
        command = [sys.executable, "-c", CHILD, str(tmp_path / "small"), str(tmp_path / "saved"), how]
        found[how] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    assert found["loaded"]["more"] >= 256
    assert found["mapped"]["more"] < 16
    assert found["mapped"]["file"].endswith("/saved/model.safetensors")
    assert found["mapped"]["own"] == 0
