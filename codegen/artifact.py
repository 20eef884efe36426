"""The artifact: a folder with a model as readable Python that needs torch and nothing of Weft.

    model.py        the nn.Module; runs what the passes made of the graph
    kernels.py      the generated kernels it launches on a GPU, if the passes made any
    attention.py    those of attention
    reference.py    the same, unfused: what the spec says, line by line
    functions/ ...  the functions both call, copied
    manifest.json   what it was made from, what it takes and gives, its weights
    report.html     spec, graph, kernels and their code side by side

Written to a temporary folder and renamed: the folder is whole or not there. The same spec, size, type and versions
give the same bytes.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import fx

from ..dsl.check import Checked
from ..dsl.program import Weight
from .choices import Choices
from .emit import Imports, method
from .emit_kernels import kernels_text
from .graph_context import CompilerBug
from .kernel_text import KernelText
from .lower import empty_weights, lower, signature
from .passes.joined_linears import joined_paths
from .passes.measured_choices import choices_of
from .pipeline import Pass, optimise
from .score.configurations import Configuration as AttentionTiles
from .score.graph_keys import attention_keys
from .score.kernels import module_text
from .subjects import chosen_tiles, table_subject, table_tiling
from .table_gradients import tables_added
from .targets import TARGETS

FORMAT = "weft-artifact"
VERSION = 1
MANIFEST = "manifest.json"
HERE = Path(__file__).parent
# Configurations of attention kernels differ by target; the folder has those of all, and of Triton's interpreter.
ATTENTION_TARGETS = (*TARGETS, "interpreter")


# What the kernels of some graphs take on the artifact's target, as data for the manifest.
Inspect = Callable[[Sequence[fx.GraphModule]], list[dict[str, Any]]]

# The page, of the unfused graphs by name and of those that run.
Report = Callable[[Mapping[str, fx.GraphModule], Mapping[str, fx.GraphModule]], str]


class ArtifactError(Exception):
    """An artifact cannot be written where it was asked for. The text is one line for the user."""


def compile_to(
    checked: Checked,
    folder: str | Path,
    dtype: torch.dtype = torch.float32,
    passes: tuple[Pass, ...] = (),
    weft_version: str = "0.1.0",
    target: str = "cpu",
    inspect: Inspect | None = None,
    report: Report | None = None,
    tuning: Sequence[Mapping[str, Any]] = (),
) -> Path:
    """Writes the artifact of a checked spec: its main model, and a loss method for each objective.

    `target` is what it is made for; `inspect` says what each kernel takes there, and `tuning` what the choices in
    `passes` were measured by, for the manifest; `report` makes report.html.
    """
    folder = Path(folder)
    files = artifact_files(checked, dtype, passes, weft_version, target, inspect, report, tuning)
    if folder.exists() and not _is_artifact(folder) and (not folder.is_dir() or any(folder.iterdir())):
        raise ArtifactError(f"{folder} is there and is no artifact: give a new or empty folder")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError as error:
        raise ArtifactError(f"{folder} cannot be written: {error.strerror}") from None
    try:
        for name, text in files.items():
            file = temporary / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8", newline="\n")
        temporary.chmod(0o755)
        if folder.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{folder.name}-old-", dir=folder.parent))
            os.replace(folder, old / "old")
            os.replace(temporary, folder)
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.replace(temporary, folder)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise ArtifactError(f"{folder} cannot be written: {error.strerror}") from None
    return folder


def _is_artifact(folder: Path) -> bool:
    """Whether what is there may be replaced: other programs have a manifest.json too."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(manifest, dict) and manifest.get("format") == FORMAT


def artifact_files(
    checked: Checked,
    dtype: torch.dtype,
    passes: tuple[Pass, ...],
    weft_version: str,
    target: str = "cpu",
    inspect: Inspect | None = None,
    report: Report | None = None,
    tuning: Sequence[Mapping[str, Any]] = (),
) -> dict[str, str]:
    """The text of every file by name."""
    weights = {weight.path: weight for weight in checked.weights.values()}
    tree = empty_weights(weights.values(), dtype, "meta")
    references = {"forward": lower(checked.model, tree, dtype)}
    for name, objective in checked.objectives.items():
        references[f"loss_{name}"] = lower(objective, tree, dtype)
    fused = {name: optimise(graph, passes) if passes else graph for name, graph in references.items()}
    files = {
        "__init__.py": _PACKAGE,
        "model.py": "",
        "reference.py": "",
        "weight_tree.py": (HERE / "weight_tree.py").read_text("utf-8"),
    }
    imports = Imports({("functions", "start")})
    files["model.py"] = _module_text(checked, fused, weights, dtype, imports, weft_version, "Model")
    files["reference.py"] = _module_text(checked, references, weights, dtype, imports, weft_version, "Reference")
    if imports.kernels:
        launchers = (
            "fused", "grouped", "grouped_epilogue", "grouped_form", "linear_tiles", "logits", "logits_form",
            "logits_tiles", "rowwise", "scatter_kernels", "weighed_bags",
        )  # fmt: skip
        meanings = Imports({("gpu", launcher) for launcher in launchers})
        files["kernels.py"] = kernels_text(imports.kernels.values(), meanings, f"of {_file_name(checked)}")
        imports.modules |= meanings.modules
    choices = next((found for graph in fused.values() if (found := choices_of(graph)) is not None), None)

    def measured(text: KernelText, its_target: str) -> AttentionTiles | None:
        return chosen_tiles(text, choices) if choices is not None and its_target == target else None

    attentions = {key: None for graph in fused.values() for key in attention_keys(graph)}
    for number, key in enumerate(attentions, 1):
        name = "attention.py" if number == 1 else f"attention_{number}.py"
        files[name] = module_text(key, ATTENTION_TARGETS, f"of {_file_name(checked)}", measured)
        imports.modules.add(("gpu", "attention"))
    if attentions:
        files["__init__.py"] = _PACKAGE.replace("from .model", f"from . import {_stems(len(attentions))}\nfrom .model")
    files["__init__.py"] += _tilings(fused.values(), choices, imports)
    files.update(copied_modules(imports.modules))
    if report is not None:
        files["report.html"] = report(references, fused)
    manifest = _manifest(checked, references, weights, dtype, passes, weft_version, files)
    manifest |= {"target": target, "kernels": inspect(tuple(fused.values())) if inspect else []}
    manifest |= {"tuning": [dict(row) for row in tuning]} if tuning else {}
    files[MANIFEST] = json.dumps(manifest, indent=1) + "\n"
    return files


def _tilings(graphs: Iterable[fx.GraphModule], choices: Choices | None, imports: Imports) -> str:
    """Lines that set how gradients of tables are added up, where that was measured."""
    if choices is None:
        return ""
    lines = []
    for width, dtype in dict.fromkeys(table for graph in graphs for table in tables_added(graph)):
        choice = choices.best.get(table_subject(width, dtype))
        if choice is not None:
            numbers = tuple(table_tiling(choice.configuration))
            lines.append(f"scatter.use({width}, {dtype}, scatter.Tiling{numbers})\n")
    if not lines:
        return ""
    imports.modules.add(("gpu", "scatter"))
    return "".join(["\nimport torch\n\nfrom .gpu import scatter\n\n# Measured.\n", *lines])


def _stems(count: int) -> str:
    return ", ".join(["attention", *(f"attention_{number}" for number in range(2, count + 1))])


def _module_text(
    checked: Checked,
    graphs: Mapping[str, fx.GraphModule],
    weights: Mapping[str, Weight],
    dtype: torch.dtype,
    all_imports: Imports,
    weft_version: str,
    class_name: str,
) -> str:
    imports = Imports({("functions", "start")}, kernels=all_imports.kernels if class_name == "Model" else {})
    methods = [method(name, graph, imports) for name, graph in graphs.items()]
    all_imports.modules |= imports.modules
    source = _file_name(checked)
    size = f", size {checked.size}" if checked.size else ""
    what = "Compiled" if class_name == "Model" else "The unfused reference"
    table = "".join(_weight_line(weight) for weight in weights.values())
    joined = dict.fromkeys(paths for graph in graphs.values() for paths in joined_paths(graph))
    if joined:
        imports.modules.add(("functions", "adjoining"))
    header = f'"""{what} from {source}{size} by weft {weft_version}. Computes in {_short(dtype)}.\n'
    needs = "torch, triton" if imports.kernels else "torch"
    return (
        header
        + f"\nIt needs {needs} and the files beside it. A ragged input is packed:\n"
        + "rows of all examples end to end, and int32 offsets [batch + 1].\n"
        + _argument_lines(graphs)
        + '"""\n\n'
        + "\n".join(imports.lines)
        + "\nfrom .weight_tree import WeightTree\n\n"
        + "# Path, shape, how it starts, whether training leaves it alone.\n"
        + f"WEIGHTS = (\n{table})\n"
        + ("# Read as one matrix, so they lie behind one another.\nJOINED = (\n" if joined else "")
        + "".join(f"    {paths!r},\n" for paths in joined)
        + (")\n\n\n" if joined else "\n\n")
        + f"class {class_name}(WeightTree):\n"
        + _CONSTRUCTOR.replace("DTYPE", str(dtype)).replace("        LAY_OUT\n", _LAY_OUT if joined else "")
        + "\n"
        + "\n".join(methods)
        + (_LOAD if class_name == "Model" else "")
    )


_PACKAGE = """\
\"\"\"A compiled Weft model: see model.py.\"\"\"

from .model import Model, load

__all__ = ["Model", "load"]
"""

_CONSTRUCTOR = '''    """Parameters are named by weight path. They start as the spec says, from `seed`; None: not."""

    def __init__(self, device=None, seed=0):
        super().__init__()
        for path, shape, start, is_frozen in WEIGHTS:
            parameter = torch.nn.Parameter(torch.empty(shape, dtype=DTYPE, device=device))
            self.add(path, parameter.requires_grad_(not is_frozen))
        LAY_OUT
        if seed is not None:
            self.reset(seed)

    @torch.no_grad()
    def reset(self, seed=0):
        copies = []
        for path, shape, (kind, numbers, source), _ in WEIGHTS:
            if source is not None:
                copies.append((path, source))
            elif not self[path].is_meta:
                self[path].copy_(_functions_start.start(path, shape, kind, dict(numbers), seed))
        for path, source in copies:
            self[path].copy_(self[source])
'''

_LAY_OUT = """\
        for paths in JOINED:
            _functions_adjoining.lay_out([self[path] for path in paths])
"""

_LOAD = '''

def load(device=None, seed=0):
    """The model on a device."""
    return Model(device, seed)
'''


def _weight_line(weight: Weight) -> str:
    init = weight.init
    starts = (init.kind, init.numbers, init.source)
    return f"    ({weight.path!r}, {weight.stored_shape}, {starts!r}, {weight.frozen}),\n"


def _argument_lines(graphs: Mapping[str, fx.GraphModule]) -> str:
    lines = []
    for name, graph in graphs.items():
        shape = signature(graph)
        taken = ", ".join(f"{slot.name}: {slot.describe()}" for slot in shape.inputs)
        given = ", ".join(slot.describe() for slot in shape.outputs) or ", ".join(
            f"{loss} (sum, count)" for loss in shape.losses
        )
        lines.append(f"\n    {name}({taken}) -> {given}\n")
    return "".join(lines)


def copied_modules(wanted: Iterable[tuple[str, str]]) -> dict[str, str]:
    """The text of modules of codegen/functions, cpu and gpu, with what they import of each other."""
    files: dict[str, str] = {}
    left = list(wanted)
    while left:
        package, module = left.pop()
        name = f"{package}/{module}.py"
        if name in files:
            continue
        files[name] = text = (HERE / package / f"{module}.py").read_text("utf-8")
        files.setdefault(f"{package}/__init__.py", (HERE / package / "__init__.py").read_text("utf-8"))
        left += _imported(package, name, text)
    return files


def _imported(package: str, name: str, text: str) -> list[tuple[str, str]]:
    """Neighbours a module imports; anything but those, torch and the standard library is our bug."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.level == 1 and node.module:
            found.append((package, node.module))
        elif isinstance(node, ast.ImportFrom) and node.level == 2 and node.module and node.module.count(".") == 1:
            other, _, module = node.module.partition(".")
            found.append((other, module))
        elif isinstance(node, ast.ImportFrom) and node.level == 1:
            found += [(package, alias.name) for alias in node.names]
        else:
            roots = (
                [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else [a.name for a in getattr(node, "names", ())]
            )
            if isinstance(node, ast.Import | ast.ImportFrom) and any(not _is_plain(root) for root in roots):
                raise CompilerBug(f"{name} imports {roots}, which an artifact cannot")
    return found


def _is_plain(module: str) -> bool:
    root = module.partition(".")[0]
    return root in ("torch", "triton") or root in sys.stdlib_module_names


def _manifest(
    checked: Checked,
    graphs: Mapping[str, fx.GraphModule],
    weights: Mapping[str, Weight],
    dtype: torch.dtype,
    passes: tuple[Pass, ...],
    weft_version: str,
    files: Mapping[str, str],
) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "version": VERSION,
        "versions": {"weft": weft_version, "torch": torch.__version__.partition("+")[0]},
        "name": checked.model.name,
        "spec": {"name": _file_name(checked), "sha256": hashlib.sha256(checked.source.text.encode()).hexdigest()},
        "size": checked.size,
        "overrides": {key: checked.overrides[key] for key in sorted(checked.overrides)},
        "sizes": dict(sorted(checked.sizes.items())),
        "dtype": _short(dtype),
        "passes": [pass_.name for pass_ in passes],
        "graphs": {name: signature(graph).to_json() for name, graph in graphs.items()},
        "weights": [
            {
                "path": w.path,
                "shape": list(w.stored_shape),
                "axes": [axis.name for axis in w.type.axes],
                "frozen": w.frozen,
            }
            for w in weights.values()
        ],
        "files": {name: hashlib.sha256(text.encode()).hexdigest() for name, text in sorted(files.items())},
    }


def _file_name(checked: Checked) -> str:
    """The spec's name without the machine's folders, harmless in a docstring."""
    name = os.path.basename(checked.source.name)
    return "".join(c for c in name if c.isalnum() or c in "._- ") or "spec"


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
