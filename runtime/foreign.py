"""Foreign checkpoints: `weft import` and `weft export` through the `weights` block of a spec.

The block's lines were resolved by the checker (dsl/weight_map.py); here they meet files. Loading is strict: every
weight must be found, every
foreign tensor must be mapped, every shape must fit, or nothing is written. Only safetensors are read.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..dsl.check import Checked
from ..dsl.program import Weight
from ..dsl.weight_map import ConfigLine, Constant, TensorLine, WeightMap
from .checkpoint import why_not_written
from .errors import RuntimeFault

# What libraries call the file of weights: transformers, and diffusers, whose configs name a class.
STEM, STEM_OF_CLASS = "model", "diffusion_pytorch_model"
CLASS = "_class_name"
SHARD_BYTES = 5 * 10**9
REALS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
REAL_NAMES = [str(one).removeprefix("torch.") for one in REALS]


@dataclass(frozen=True)
class Coverage:
    """One row of the coverage table: a foreign tensor and the weights it filled."""

    foreign: str
    paths: tuple[str, ...]
    shape: tuple[int, ...]


# ---- config -------------------------------------------------------------------------------------


def read_config(folder: Path) -> Mapping[str, object]:
    """config.json of a foreign checkpoint."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise RuntimeFault(f"{folder} has no config.json") from None
    except (OSError, ValueError) as error:
        raise RuntimeFault(f"{path} cannot be read: {error}") from None
    if not isinstance(config, dict):
        raise RuntimeFault(f"{path} is not an object")
    return config


def sizes_from_config(lines: tuple[ConfigLine, ...], config: Mapping[str, object]) -> dict[str, object]:
    """Sizes and options as a foreign config gives them. A constant that differs is an error: the spec is another
    model."""
    found: dict[str, object] = {}
    for line in lines:
        present, value = _lookup(config, line.key)
        if line.name is not None:
            # A key that is absent or null leaves the spec's default.
            if present and value is not None:
                if isinstance(value, list) and all(isinstance(item, int | float) for item in value):
                    value = tuple(value)
                if not isinstance(value, bool | int | float | str | tuple):
                    raise RuntimeFault(f"config.json: `{line.key}` is {value!r}, not a number")
                found[line.name] = value
        elif present and not _fits(value, line):
            times = f" times {line.times}" if line.times else ""
            meant = f"{_plain(line.constant)!r}{times}"
            raise RuntimeFault(f"config.json: `{line.key}` is {value!r}, but this spec means {meant}")
    return found


def _lookup(config: Mapping[str, object], key: str) -> tuple[bool, object]:
    value: object = config
    for part in key.split("."):
        if not isinstance(value, dict) or part not in value:
            return False, None
        value = value[part]
    return True, value


def _fits(value: object, line: ConfigLine) -> bool:
    if line.times is None:
        return _same(value, line.constant)
    once = _plain(line.constant)
    return isinstance(value, list) and isinstance(once, list) and value == once * (len(value) // max(len(once), 1))


def _plain(constant: Constant) -> object:
    return [_plain(item) for item in constant] if isinstance(constant, tuple) else constant


def _same(value: object, constant: Constant) -> bool:
    wanted = _plain(constant)
    if isinstance(value, bool) or isinstance(wanted, bool) or value is None or wanted is None:
        return value is wanted
    if isinstance(value, int | float) and isinstance(wanted, int | float):
        return abs(value - wanted) <= 1e-9 * max(abs(value), abs(wanted))
    return value == wanted


def config_of(checked: Checked, weight_map: WeightMap) -> dict[str, object]:
    """The config.json an export writes."""
    config: dict[str, object] = {}
    for line in weight_map.config:
        value = _plain(line.constant) if line.name is None else _value_of(checked, line.name)
        if line.times is not None:
            assert isinstance(value, list)
            value = value * checked.sizes[line.times]
        inner = config
        *parents, last = line.key.split(".")
        for part in parents:
            child = inner.setdefault(part, {})
            assert isinstance(child, dict)
            inner = child
        inner[last] = value
    return config


def _value_of(checked: Checked, name: str) -> object:
    if name in checked.sizes:
        return checked.sizes[name]
    value = checked.options[name]
    return getattr(value, "name", value)


# ---- tensors ------------------------------------------------------------------------------------


def foreign_files(folder: Path) -> dict[str, Path]:
    """Which file holds each foreign tensor."""
    stem = next((stem for stem in (STEM, STEM_OF_CLASS) if any(folder.glob(f"{stem}.safetensors*"))), STEM)
    index = folder / f"{stem}.safetensors.index.json"
    if index.is_file():
        try:
            entries = json.loads(index.read_text("utf-8"))["weight_map"]
            table = {str(name): folder / str(file) for name, file in entries.items()}
        except (OSError, ValueError, KeyError, AttributeError) as error:
            raise RuntimeFault(f"{index} is not a safetensors index: {error!r}") from None
        if any(path.parent != folder for path in table.values()):
            raise RuntimeFault(f"{index} names files outside its folder")
        return table
    single = folder / f"{stem}.safetensors"
    if not single.is_file():
        other = sorted(p.name for p in folder.glob("*.bin")) if folder.is_dir() else []
        hint = f" ({other[0]} is a pickle, which is never loaded: convert it to safetensors)" if other else ""
        raise RuntimeFault(f"{folder} has neither {single.name} nor {index.name}{hint}")
    with _opened(single) as file:
        return dict.fromkeys(file.keys(), single)


def _opened(path: Path):
    try:
        return safe_open(str(path), framework="pt")
    except FileNotFoundError:
        raise RuntimeFault(f"{path} is missing") from None
    except (SafetensorError, OSError) as error:
        raise RuntimeFault(f"{path} is not a complete safetensors file: {error}") from None


def load_foreign(
    folder: Path, weight_map: WeightMap, weights: Mapping[str, Weight]
) -> tuple[dict[str, Tensor], tuple[Coverage, ...]]:
    """Our weights by path, in the stored shapes and the foreign dtype, and the coverage table."""
    where = foreign_files(folder)
    _check_names(weight_map, where)
    tensors: dict[str, Tensor] = {}
    rows: list[Coverage] = []
    for path in sorted(set(where.values())):
        with _opened(path) as file:
            for line in weight_map.tensors:
                if where.get(line.foreign) != path:
                    continue
                try:
                    foreign = file.get_tensor(line.foreign)
                except SafetensorError as error:
                    raise RuntimeFault(f"{path}: {error}") from None
                if foreign.dtype not in REALS:
                    found = str(foreign.dtype).removeprefix("torch.")
                    raise RuntimeFault(f"{line.foreign} is {found}: weights of {', '.join(REAL_NAMES)} are read")
                rows.append(Coverage(line.foreign, line.paths, tuple(foreign.shape)))
                tensors.update(_split(line, foreign, weights))
    order = {line.foreign: position for position, line in enumerate(weight_map.tensors)}
    return tensors, tuple(sorted(rows, key=lambda row: order[row.foreign]))


def _check_names(weight_map: WeightMap, where: Mapping[str, Path]) -> None:
    wanted = {line.foreign for line in weight_map.tensors}
    missing = sorted(wanted - set(where))
    extra = sorted(set(where) - wanted)
    if missing:
        raise RuntimeFault(f"{len(missing)} tensors of the spec's map are not in the checkpoint: {_some(missing)}")
    if extra:
        raise RuntimeFault(f"{len(extra)} tensors of the checkpoint have no line in the spec's map: {_some(extra)}")


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _foreign_axes(line: TensorLine, weight: Weight) -> tuple[tuple[int, ...], tuple[int, ...] | None]:
    """The foreign tensor's shape for one weight, and the permutation that takes our axes into its order."""
    if line.layout is None:
        return weight.stored_shape, None
    names = [axis.name for axis in weight.type.axes]
    sizes = dict(zip(names, weight.shape, strict=True))
    order = tuple(names.index(name) for group in line.layout for name in group)
    return tuple(prod(sizes[name] for name in group) for group in line.layout), order


def _split(line: TensorLine, foreign: Tensor, weights: Mapping[str, Weight]) -> Iterator[tuple[str, Tensor]]:
    """A foreign tensor as the weights it holds."""
    shapes = [_foreign_axes(line, weights[path])[0] for path in line.paths]
    wanted = (sum(shape[0] for shape in shapes), *shapes[0][1:]) if len(shapes) > 1 else shapes[0]
    if tuple(foreign.shape) != wanted:
        raise RuntimeFault(
            f"{line.foreign} has shape {tuple(foreign.shape)}, not {tuple(wanted)} as {line.paths[0]} needs"
        )
    start = 0
    for path, shape in zip(line.paths, shapes, strict=True):
        part = foreign if len(shapes) == 1 else foreign[start : start + shape[0]]
        start += shape[0] if shape else 0
        yield path, _ours(part, line, weights[path])


def _ours(part: Tensor, line: TensorLine, weight: Weight) -> Tensor:
    _, order = _foreign_axes(line, weight)
    if order is not None:
        part = part.reshape([weight.shape[axis] for axis in order])
        inverse = [order.index(axis) for axis in range(len(order))]
        part = part.permute(inverse)
    return part.reshape(weight.stored_shape).clone(memory_format=torch.contiguous_format)


def _theirs(tensor: Tensor, line: TensorLine, weight: Weight) -> Tensor:
    shape, order = _foreign_axes(line, weight)
    if order is not None:
        tensor = tensor.reshape(weight.shape).permute(order)
    return tensor.reshape(shape)


def foreign_tensors(
    tensors: Mapping[str, Tensor], weight_map: WeightMap, weights: Mapping[str, Weight]
) -> dict[str, Tensor]:
    """Our weights as the foreign checkpoint names and shapes them."""
    result: dict[str, Tensor] = {}
    for line in weight_map.tensors:
        missing = [path for path in line.paths if path not in tensors]
        if missing:
            raise RuntimeFault(f"the checkpoint has no weight `{missing[0]}`")
        parts = [_theirs(tensors[path], line, weights[path]) for path in line.paths]
        result[line.foreign] = (torch.cat(parts) if len(parts) > 1 else parts[0]).contiguous()
    return result


def write_foreign(folder: Path, tensors: Mapping[str, Tensor], config: Mapping[str, object]) -> None:
    """Writes config.json and safetensors (in shards above 5 GB) under a temporary name, then renames."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RuntimeFault(f"{folder} exists and is not empty")
    temporary = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    try:
        temporary.mkdir(parents=True)
        (temporary / "config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")
        stem, shards = STEM_OF_CLASS if CLASS in config else STEM, _shards(tensors)
        names = [f"{stem}-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
        if len(shards) == 1:
            names = [f"{stem}.safetensors"]
        for name, shard in zip(names, shards, strict=True):
            save_file(shard, temporary / name, metadata={"format": "pt"})
        if len(shards) > 1:
            index = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
            total = sum(t.numel() * t.element_size() for t in tensors.values())
            (temporary / f"{stem}.safetensors.index.json").write_text(
                json.dumps({"metadata": {"total_size": total}, "weight_map": index}, indent=2), "utf-8"
            )
        if folder.exists():
            folder.rmdir()
        temporary.rename(folder)
    except (OSError, SafetensorError) as error:
        raise RuntimeFault(f"{folder} cannot be written: {why_not_written(error, folder.parent)}") from None
    finally:
        if temporary.exists():
            for item in temporary.iterdir():
                item.unlink()
            temporary.rmdir()


def _shards(tensors: Mapping[str, Tensor], limit: int = SHARD_BYTES) -> list[dict[str, Tensor]]:
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        here = tensor.numel() * tensor.element_size()
        if shards[-1] and size + here > limit:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += here
    return shards
