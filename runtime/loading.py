"""What a path given to `load` is, and the model in it."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch

from ..codegen.ops import OPS
from ..codegen.pipeline import Pass
from ..dsl.check import Checked, check, read_source
from ..dsl.source import Source
from .checkpoint import MANIFEST, SpecText, apply_weights, read_manifest, read_weights
from .errors import LoadFault
from .model import Model

ARTIFACT = "manifest.json"


def open_path(
    path: Path,
    size: str | None,
    overrides: Mapping[str, object] | None,
    dtype: torch.dtype | None,
    device: torch.device | str | None,
    seed: int,
    passes: tuple[Pass, ...],
) -> torch.nn.Module:
    """See `model.load`."""
    if path.is_dir():
        if (path / MANIFEST).is_file():
            _no_choices(path, size, overrides, "checkpoint")
            return from_checkpoint(path, dtype, device, passes)
        if (path / ARTIFACT).is_file():
            _no_choices(path, size, overrides, "compiled artifact")
            return from_artifact(path, dtype, device)
        raise LoadFault(f"{path} is neither a checkpoint (no {MANIFEST}) nor a compiled artifact (no {ARTIFACT})")
    checked = check_file(path, size, overrides)
    return Model(checked, dtype or torch.float32, device, seed, passes)


def check_file(path: Path, size: str | None = None, overrides: Mapping[str, object] | None = None) -> Checked:
    """A checked spec file; its mistakes are raised as SpecErrors."""
    try:
        source = read_source(path)
    except FileNotFoundError:
        raise LoadFault(f"there is no file {path}") from None
    except OSError as error:
        raise LoadFault(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise LoadFault(str(error)) from None
    return check(source, OPS, size, overrides).value()


def from_checkpoint(
    path: Path, dtype: torch.dtype | None, device: torch.device | str | None, passes: tuple[Pass, ...]
) -> Model:
    """The model of a checkpoint folder: its own spec text, its sizes, its weights."""
    manifest = read_manifest(path)
    checked = check_texts(manifest.model.spec, manifest.model.size, manifest.model.overrides)
    saved = read_weights(path, manifest)
    stored = next((tensor.dtype for tensor in saved.values()), torch.float32)
    model = Model(checked, dtype or stored, device, seed=None, passes=passes)
    if model.device.type != "meta":
        apply_weights(dict(model.by_path()), saved, path)
    return model


def check_texts(texts: tuple[SpecText, ...], size: str | None, overrides: Mapping[str, object] | None) -> Checked:
    """Checks spec texts that a checkpoint carries: the first is the spec, the others are files it uses beside itself."""
    if not texts:
        raise LoadFault("the checkpoint carries no spec text")
    main, *used = texts
    home = os.path.dirname(main.name)
    beside = {os.path.relpath(text.name, home): text.text for text in used if not text.name.startswith("std/")}
    beside = {name: text for name, text in beside.items() if not name.startswith("..")}
    if not beside:
        return check(Source(main.name, main.text), OPS, size, overrides).value()
    # `use` finds files by name beside the spec, so they are put there.
    with tempfile.TemporaryDirectory() as folder:
        for name, text in beside.items():
            file = Path(folder) / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
        source = Source(os.path.join(folder, os.path.basename(main.name)), main.text)
        return check(source, OPS, size, overrides).value()


def from_artifact(path: Path, dtype: torch.dtype | None, device: torch.device | str | None) -> torch.nn.Module:
    """The module that `weft compile` wrote. Its code is imported: an artifact is a program, as trustworthy as who made it."""
    try:
        manifest = json.loads((path / ARTIFACT).read_text(encoding="utf-8"))
        name = str(manifest["name"])
    except (OSError, ValueError, KeyError, TypeError):
        raise LoadFault(f"the artifact {path} is damaged: {ARTIFACT} is not what weft writes") from None
    package = f"weft_artifact_{name}_{abs(hash(str(path.resolve())))}"
    spec = importlib.util.spec_from_file_location(package, path / "__init__.py", submodule_search_locations=[str(path)])
    if spec is None or spec.loader is None or not (path / "model.py").is_file():
        raise LoadFault(f"the artifact {path} is damaged: it has no model.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[package] = module
    spec.loader.exec_module(module)
    model = module.load(device=device)
    return model if dtype is None else model.to(dtype)


def _no_choices(path: Path, size: str | None, overrides: Mapping[str, object] | None, what: str) -> None:
    if size is not None or overrides:
        raise LoadFault(f"{path} is a {what}, whose sizes are fixed: size and overrides are for spec files")
