"""Files of tensors in the safetensors format, laid out so that tables can be used where they lie.

A row of a table that is read from a mapped file brings in the pages it lies on. So the data begin on a page, and
tensors of whole pages, as large tables are, come first: each then begins on a page of its own.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

PAGE = 4096
_NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes tensors by name; the same tensors give the same bytes. Raises OSError."""
    plain = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
    order = sorted(plain, key=lambda name: (plain[name].nbytes % PAGE != 0, -plain[name].nbytes, name))
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in order:
        tensor = plain[name]
        begin, end = end, end + tensor.nbytes
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % PAGE)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)))
        file.write(text)
        for name in order:
            file.write(memoryview(plain[name].reshape(-1).view(torch.uint8).numpy()))


def map_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors by name that lie in the file: what is read of them is loaded, and dropped when memory is short. Raises
    OSError and SafetensorError."""
    with safe_open(str(path), framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
