"""`weft import` and `weft export`: a spec with a weight map, a foreign folder, a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..codegen.ops import OPS
from ..dsl.check import Checked, check, presets_of, read_source
from ..dsl.errors.sizes import SizeNotSet
from ..dsl.program import Weight
from ..dsl.sizes import Override
from ..dsl.source import Source
from ..dsl.weight_map import ConfigLine, WeightMap
from .checkpoint import (
    MANIFEST,
    ModelIdentity,
    SpecText,
    read_manifest,
    read_weights,
    refuse_to_replace,
    save_checkpoint,
)
from .errors import RuntimeFault
from .foreign import (
    Coverage,
    config_of,
    foreign_tensors,
    load_foreign,
    read_config,
    sizes_from_config,
    write_foreign,
)
from .initialise import initialise
from .model import check_texts
from .run_folder import latest_checkpoint
from .start_weights import start_from

FORMAT = "huggingface"  # which of the spec's maps is meant where nothing is said


@dataclass(frozen=True)
class Imported:
    """What an import did: the checkpoint written, the sizes read, and which foreign tensor filled which weights."""

    checkpoint: Path
    checked: Checked
    coverage: tuple[Coverage, ...]


def weight_map_of(checked: Checked, format: str = FORMAT) -> WeightMap:
    found = checked.weight_maps.get(format)
    if found is None:
        known = f", only of {', '.join(checked.weight_maps)}" if checked.weight_maps else ""
        raise RuntimeFault(f"{checked.source.name} has no `weights {format}:` block{known}")
    return found


def import_checkpoint(
    spec: Path,
    folder: Path,
    out: Path,
    size: str | None = None,
    overrides: Mapping[str, object] | None = None,
    *,
    format: str = FORMAT,
    parts: Mapping[str, str] | None = None,
) -> Imported:
    """Reads a foreign checkpoint into one of ours, by the spec's map called `format`. Nothing is written unless every
    tensor fits.

    Sizes come from config.json, where the map has lines for it; `overrides` win over it. `parts` are checkpoints of
    ours for new weights below a path. Raises SpecErrors for the spec, RuntimeFault for the checkpoint.
    """
    refuse_to_replace(out)
    if (out / MANIFEST).is_file() and read_manifest(out).run is not None:
        raise RuntimeFault(f"{out} is a checkpoint of a training run: name another folder")
    source = read_source(spec)
    # The map must be known before the sizes are: its config lines do not depend on them.
    first = check(source, OPS, size or _any_preset(source)).value()
    lines = weight_map_of(first, format).config
    sizes = {**(sizes_from_config(lines, read_config(folder)) if lines else {}), **(overrides or {})}
    result = check(source, OPS, size, sizes)
    _refuse_absent(result.problems.errors, lines, sizes)
    checked = result.value()
    weights = checked.weights
    weight_map = weight_map_of(checked, format)
    tensors, coverage = load_foreign(folder, weight_map, weights)
    made = _new(weight_map, weights, tensors)
    start_from(made, parts or {})
    tensors |= made
    texts = tuple(SpecText(file.name, file.text) for file in checked.files)
    identity = ModelIdentity(texts, size, _plain(sizes))
    return Imported(save_checkpoint(out, identity, tensors), checked, coverage)


def _new(weight_map: WeightMap, weights: Mapping[str, Weight], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of the `new` lines as their `init` says, some of them copies of what was read."""
    if not weight_map.new:
        return {}
    dtype = next((tensor.dtype for tensor in tensors.values()), torch.float32)
    made = {path: torch.empty(weights[path].stored_shape, dtype=dtype) for path in weight_map.new}
    initialise({**tensors, **made}, [weights[path] for path in weight_map.new])
    return made


def _refuse_absent(errors: Sequence[object], lines: tuple[ConfigLine, ...], sizes: Mapping[str, object]) -> None:
    """A size that config.json should give and does not: no choice of sizes is at fault, as the diagnostic would say."""
    without = {error.name for error in errors if isinstance(error, SizeNotSet)}
    for line in lines:
        if line.name in without and line.name not in sizes:
            raise RuntimeFault(f"config.json gives no `{line.key}`, so {line.name} has no number: --set {line.name}=N")


def export_checkpoint(checkpoint: Path, folder: Path, format: str = FORMAT) -> tuple[Coverage, ...]:
    """Writes a checkpoint of ours as a foreign folder: config.json and safetensors, as the spec's map called `format`
    says."""
    checkpoint = latest_checkpoint(checkpoint)
    manifest = read_manifest(checkpoint)
    checked = check_texts(manifest.model.spec, manifest.model.size, manifest.model.overrides)
    weight_map = weight_map_of(checked, format)
    saved: dict[str, Tensor] = read_weights(checkpoint, manifest)
    tensors = foreign_tensors(saved, weight_map, checked.weights)
    write_foreign(folder, tensors, config_of(checked, weight_map))
    return tuple(Coverage(line.foreign, line.paths, tuple(tensors[line.foreign].shape)) for line in weight_map.tensors)


def _any_preset(source: Source) -> str | None:
    presets = presets_of(source)
    return presets[0] if presets else None


def _plain(sizes: Mapping[str, object]) -> dict[str, Override]:
    return {name: value for name, value in sizes.items() if isinstance(value, int | float | str | bool | tuple)}
