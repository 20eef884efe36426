"""A compiled artifact as a model: the same calls as `Model`, run by the code in its folder."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..codegen.artifact import FORMAT, VERSION
from ..codegen.artifact import MANIFEST as ARTIFACT
from ..codegen.signature import Signature
from ..codegen.weight_tree import WeightTree
from .draws import Draws, draw_arguments
from .errors import InputFault, LoadFault
from .packed import Batch, named_outputs, pack, require_rows


class CompiledModel(WeightTree):
    """Parameters are those of the artifact's own module, under the same paths."""

    def __init__(self, inner: WeightTree, signatures: dict[str, Signature], dtype: torch.dtype) -> None:
        super().__init__()
        self.signatures, self.dtype = signatures, dtype
        self._parameters, self._modules = inner._parameters, inner._modules
        # Held in a tuple, so that it is not a second copy of the parameters.
        self._inner = (inner,)

    def forward(self, *args: Any, draws: Draws | None = None, **inputs: Any) -> Any:
        results, batch = self._run("forward", args, inputs, draws)
        return named_outputs(self.signatures["forward"], results, batch)

    def loss(
        self,
        objective: str | None = None,
        *args: Any,
        seed: int = 0,
        step: int = 0,
        example_ids: Sequence[int] | Tensor | None = None,
        **inputs: Any,
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """Sum over counted rows and their number, per loss, as `Model.loss`."""
        known = {name.removeprefix("loss_"): name for name in self.signatures if name != "forward"}
        name = next(iter(known)) if objective is None and len(known) == 1 else objective
        if name not in known:
            raise InputFault(f"the artifact has the objectives {', '.join(known) or 'none'}: name one of them")
        results, _ = self._run(known[name], args, inputs, Draws(seed, step, example_ids))
        losses = self.signatures[known[name]].losses
        return {loss: (results[2 * i], results[2 * i + 1]) for i, loss in enumerate(losses)}

    def _run(
        self, name: str, args: Sequence[Any], inputs: dict[str, Any], draws: Draws | None
    ) -> tuple[tuple[Tensor, ...], Batch]:
        shape = self.signatures[name]
        device = next((parameter.device for parameter in self.parameters()), torch.device("cpu"))
        batch = pack(shape, args, inputs, self.dtype, device)
        require_rows(batch)
        arguments = batch.arguments(shape)
        if shape.draws:
            arguments += draw_arguments(draws or Draws(), batch.size, device)
        return getattr(self._inner[0], name)(*arguments), batch


def open_artifact(
    path: Path, device: torch.device | str | None = None, wanted: torch.dtype | None = None
) -> CompiledModel:
    """The model that `weft compile` wrote. Its code is imported: an artifact is a program, to be trusted as one. The
    type it computes in is part of that code; `wanted` must be that one."""
    try:
        manifest = json.loads((path / ARTIFACT).read_text(encoding="utf-8"))
        if (manifest["format"], manifest["version"]) != (FORMAT, VERSION):
            raise LoadFault(f"{path} is not an artifact of this version of weft (format {FORMAT} {VERSION})")
        signatures = {name: Signature.from_json(data) for name, data in manifest["graphs"].items()}
        dtype = getattr(torch, str(manifest["dtype"]), None)
    except (OSError, ValueError, KeyError, TypeError):
        raise LoadFault(f"the artifact {path} is damaged: {ARTIFACT} is not what weft writes") from None
    if not isinstance(dtype, torch.dtype) or not (path / "__init__.py").is_file():
        raise LoadFault(f"the artifact {path} is damaged: it has no code")
    if wanted not in (None, dtype):
        own, other = (str(one).removeprefix("torch.") for one in (dtype, wanted))
        raise LoadFault(f"the artifact {path} computes in {own}, not in {other}: compile it with --precision {other}")
    package = f"weft_artifact_{len(sys.modules)}_{path.resolve().name.replace('-', '_').replace('.', '_')}"
    spec = importlib.util.spec_from_file_location(
        package, path / "__init__.py", submodule_search_locations=[str(path.resolve())]
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[package] = module
    spec.loader.exec_module(module)
    return CompiledModel(module.load(device=device), signatures, dtype)
