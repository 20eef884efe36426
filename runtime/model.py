"""Model: the weights of a spec as an nn.Module, and the graphs that run on them.

    model = load("specs/olmo2.weft", size="tiny")
    logits = model([tokens_a, tokens_b])                              one list entry per example
    sums = model.loss(tokens=[tokens_a, tokens_b])                    {"next_token": (sum, count)}

Graphs are lowered when they are first needed and again when the type of the weights changes, so `model.double()`
computes in float64.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, fx

from ..codegen.graph_context import NotLowered
from ..codegen.lower import empty_weights, lower, signature
from ..codegen.ops import OPS
from ..codegen.pipeline import RECOMPUTATION, Pass, asks_for_kernels, optimise, passes_for, with_choices
from ..codegen.recompute import recompute_turns
from ..codegen.signature import Signature
from ..codegen.stages import cut_into_stages
from ..codegen.weight_tree import WeightTree
from ..dsl.check import Checked, check, read_source
from ..dsl.program import Program, Weight
from ..dsl.source import Source
from .checkpoint import MANIFEST, SpecText, apply_weights, check_weights, map_weights, read_manifest, read_weights
from .compiled import ARTIFACT, open_artifact
from .cut_lengths import cuts_of, lengths_of, with_cuts
from .draws import Draws, draw_arguments
from .errors import InputFault, LoadFault, RuntimeFault
from .hot_rows import HotReads, hot_rows, hot_tables, keep_hot
from .initialise import initialise
from .measured import choices_for, device_name, table_for
from .packed import Batch, named_outputs, pack, require_rows
from .run_folder import latest_checkpoint
from .table_usage import Reads, bags_of, reads_of, with_lookups
from .tuning import Table

PRECISIONS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class Model(WeightTree):
    """One spec for one choice of sizes. Calling it runs its main model; parameters are named by weight path.

    `checked` is the checked spec, `program` its main model, `weights` what is known of each parameter by path.
    `passes` are run on every graph (codegen/pipeline.py), by default those for the device; the reference graphs stay
    available through `reference`.
    """

    def __init__(
        self,
        checked: Checked,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
        seed: int | None = 0,
        passes: tuple[Pass, ...] | None = None,
        tuning: Table | None = None,
    ) -> None:
        """`seed` None leaves the weights uninitialised, for a caller that fills them. `tuning`: what was measured, for
        the default passes on a GPU."""
        super().__init__()
        if not checked.models:
            raise LoadFault(f"{checked.source.name} declares no model")
        self.checked = checked
        self.program: Program = checked.model
        self.weights: dict[str, Weight] = checked.weights
        self._has_frozen = any(weight.frozen for weight in self.weights.values())
        self._passes = passes
        self._tuning = tuning
        self._tuned: dict[torch.device, tuple[Pass, ...]] = {}
        self._asked_dtype = dtype
        self._graphs: dict[tuple[object, ...], fx.GraphModule] = {}
        self._given: dict[tuple[object, ...], Program] = {}
        self._levels: dict[str, WeightTree] | None = None
        self._recomputes = False
        self.decoders: dict[torch.dtype, Any] = {}  # filled by decoder.decoder_of
        tree = empty_weights(self.weights.values(), dtype, device)
        self._parameters.update(tree._parameters)
        self._modules.update(tree._modules)
        for path, parameter in self.by_path():
            # Gradients still pass through a frozen weight to what it multiplies.
            parameter.requires_grad_(not self.weights[path].frozen)
        if seed is not None:
            self.reset(seed)

    # -- what it is --------------------------------------------------------------------------------

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights; of a model without any, the one asked for."""
        return next((parameter.dtype for _, parameter in self.by_path()), self._asked_dtype)

    @property
    def passes(self) -> tuple[Pass, ...]:
        if self._passes is not None:
            return self._passes
        device = self.device
        if self._tuning is None or device.type != "cuda":
            return passes_for(device)
        if device not in self._tuned:
            choices = choices_for(self._tuning, device_name(device))
            self._tuned[device] = with_choices(passes_for(device), choices)
        return self._tuned[device]

    @property
    def device(self) -> torch.device:
        """Where it computes. Tables that are read by way of a tier may lie elsewhere."""
        own = (parameter.device for _, parameter in self.by_path() if hot_rows(parameter) is None)
        return next(own, torch.device("cpu"))

    @property
    def signature(self) -> Signature:
        return signature(self.graph(self.program))

    def hot_reads(self) -> dict[str, HotReads]:
        """How often rows of tables were read and found in fast memory, by path; of a model loaded with `hot`."""
        tiers = {path: hot_rows(parameter) for path, parameter in self.by_path()}
        return {path: tier.reads() for path, tier in tiers.items() if tier is not None}

    def parameter_count(self) -> int:
        return sum(parameter.numel() for _, parameter in self.by_path())

    def reset(self, seed: int = 0) -> None:
        """Draws all weights anew, as the spec says."""
        initialise(dict(self.by_path()), self.weights.values(), seed)

    def graph(self, program: Program, working: torch.dtype | None = None) -> fx.GraphModule:
        """The graph that calls of `program` run: the reference graph after the model's passes."""
        passes = self.passes
        if self._has_frozen and any(one.requires_grad and self.weights[path].frozen for path, one in self.by_path()):
            passes = tuple(one for one in passes if not one.trusts_frozen)  # somebody trains what the spec freezes
        if self._recomputes:
            passes = (*passes, RECOMPUTATION)
        key = (program, self.dtype, working or self.dtype, passes)
        if key not in self._graphs:
            reference = self.reference(program, working)
            graph = run_passes(reference, passes) if passes else reference
            graph = graph if self._levels is None else cut_into_stages(graph, self, self._levels)
            self._graphs[key] = recompute_turns(graph) if self._recomputes else graph
        return self._graphs[key]

    def run_in_stages(self, levels: Mapping[str, WeightTree]) -> None:
        """From now on weights are read within the levels of the tree that hold them, by path (codegen/stages.py)."""
        self._levels = dict(levels)
        self._graphs.clear()

    def recompute(self) -> None:
        """From now on a backward computes turns of loops again, of which little is kept (codegen/recompute.py)."""
        self._recomputes = True

    def let_go(self) -> None:
        """After a pass without gradients, which leaves weights of several ranks gathered for one that may follow."""
        if self._levels is not None:
            cast(Any, self).reshard()

    def reference(self, program: Program | None = None, working: torch.dtype | None = None) -> fx.GraphModule:
        """The unfused graph: what every pass, kernel and decoder is compared with."""
        program = program or self.program
        key = (program, self.dtype, working or self.dtype, "reference")
        if key not in self._graphs:
            try:
                self._graphs[key] = lower(program, self, working or self.dtype, self.dtype)
            except NotLowered as missing:
                raise RuntimeFault(str(missing)) from None
        return self._graphs[key]

    def objective(self, name: str | None = None) -> Program:
        """An objective by name; without one, the only one."""
        objectives = self.checked.objectives
        if name is None and len(objectives) == 1:
            return next(iter(objectives.values()))
        if name is None:
            known = ", ".join(objectives) or "none"
            raise InputFault(f"{self.checked.source.name} has {len(objectives)} objectives ({known}): name one")
        if name not in objectives:
            raise InputFault(
                f"{self.checked.source.name} has no objective {name}; it has {', '.join(objectives) or 'none'}"
            )
        return objectives[name]

    # -- running -----------------------------------------------------------------------------------

    def forward(self, *args: Any, draws: Draws | None = None, **inputs: Any) -> Any:
        """The main model's outputs, in the form of the inputs: a value, or a dict when there are several."""
        return self.run(self.program, *args, draws=draws, **inputs)

    def run(self, program: Program, *args: Any, draws: Draws | None = None, **inputs: Any) -> Any:
        """As `forward`, for any model of the spec. Optional inputs are given by name."""
        graph = self.graph(self.given(program, inputs))
        results, batch = self._run(graph, args, inputs, draws)
        return named_outputs(signature(graph), results, batch)

    def values(self, names: Sequence[str], *args: Any, **inputs: Any) -> dict[str, Any]:
        """Values that the main model binds once, by name, for the same inputs: `model.values(("surprise",), texts)`.
        What they do not need is not computed."""
        program = self.given(self.program, inputs)
        key = ("values", program, tuple(names))
        if key not in self._given:
            unknown = [name for name in names if name not in program.bindings]
            if unknown:
                known = ", ".join(program.bindings) or "none"
                raise InputFault(f"{program.name} binds no {unknown[0]} once; it binds {known}")
            shown = tuple((name, program.bindings[name]) for name in names)
            self._given[key] = replace(program, outputs=shown)
        found = self.run(self._given[key], *args, **inputs)
        return found if len(names) > 1 else {names[0]: found}

    def given(self, program: Program, inputs: Iterable[str]) -> Program:
        """The program that takes those of its optional inputs that are among `inputs`."""
        names = tuple(name for name in program.optional if name in inputs)
        key = ("given", program, names)
        if names and key not in self._given:
            self._given[key] = program.given(names)
        return self._given[key] if names else program

    def loss(
        self,
        objective: str | None = None,
        *args: Any,
        seed: int = 0,
        step: int = 0,
        example_ids: Sequence[int] | Tensor | None = None,
        working: torch.dtype | None = None,
        **inputs: Any,
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """Sum over counted rows and their number, per loss of an objective. Micro-batches and ranks add both before
        they divide.

        `working` is the type of the computation when it is not that of the weights: bfloat16 on float32 weights.
        """
        graph = self.graph(self.given(self.objective(objective), inputs), working)
        results, _ = self._run(graph, args, inputs, Draws(seed, step, example_ids), working)
        return _sums_and_counts(signature(graph), results)

    def loss_and_cuts(
        self,
        objective: str | None = None,
        *args: Any,
        seed: int = 0,
        step: int = 0,
        example_ids: Sequence[int] | Tensor | None = None,
        working: torch.dtype | None = None,
        **inputs: Any,
    ) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, Tensor]]:
        """As `loss`, and the number of rows of every segment, by the name of its cut (int64 [segments])."""
        program = self.given(self.objective(objective), inputs)
        found = cuts_of(program)
        sums, flags, batch = self._loss_and(
            "cuts", program, lambda: with_cuts(program, found), args, inputs, Draws(seed, step, example_ids), working
        )
        return sums, lengths_of(found, flags, batch.offsets)

    def loss_and_reads(
        self,
        objective: str | None = None,
        *args: Any,
        seed: int = 0,
        step: int = 0,
        example_ids: Sequence[int] | Tensor | None = None,
        working: torch.dtype | None = None,
        **inputs: Any,
    ) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, Reads]]:
        """As `loss`, and how often each row of a table was read by `bag`, by the path of the table."""
        program = self.given(self.objective(objective), inputs)
        bags = bags_of(program)
        sums, values, _ = self._loss_and(
            "reads", program, lambda: with_lookups(program, bags), args, inputs, Draws(seed, step, example_ids), working
        )
        return sums, reads_of(bags, values)

    def _loss_and(
        self,
        what: str,
        program: Program,
        with_outputs: Callable[[], Program],
        args: Sequence[Any],
        inputs: Mapping[str, Any],
        draws: Draws,
        working: torch.dtype | None,
    ) -> tuple[dict[str, tuple[Tensor, Tensor]], Sequence[Tensor], Batch]:
        """Losses and further results of one graph."""
        key = (what, program)
        if key not in self._given:
            self._given[key] = with_outputs()
        graph = self.graph(self._given[key], working)
        results, batch = self._run(graph, args, inputs, draws, working)
        shape = signature(graph)
        sums = results[len(shape.outputs) + len(shape.born) :]
        return _sums_and_counts(shape, sums), results[: len(shape.outputs)], batch

    def _run(
        self,
        graph: fx.GraphModule,
        args: Sequence[Any],
        inputs: Mapping[str, Any],
        draws: Draws | None,
        working: torch.dtype | None = None,
    ) -> tuple[tuple[Tensor, ...], Batch]:
        shape = signature(graph)
        device = self.device
        batch = pack(shape, args, inputs, working or self.dtype, device)
        require_rows(batch)
        arguments = batch.arguments(shape)
        if shape.draws:
            arguments += draw_arguments(draws or Draws(), batch.size, device)
        return graph(*arguments), batch


def _sums_and_counts(shape: Signature, results: Sequence[Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    return {name: (results[2 * i], results[2 * i + 1]) for i, name in enumerate(shape.losses)}


def run_passes(reference: fx.GraphModule, passes: tuple[Pass, ...]) -> fx.GraphModule:
    """The graph after passes, with kernels where they asked for some."""
    graph = optimise(reference, passes)
    if asks_for_kernels(graph):
        try:
            from .kernels import attach_kernels  # triton is an extra, for machines with a GPU
        except ImportError:
            raise RuntimeFault("generated kernels need triton: pip install 'weft[gpu]'") from None
        attach_kernels(graph)
    return graph


def load(
    path: str | Path,
    size: str | None = None,
    overrides: Mapping[str, object] | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    seed: int = 0,
    passes: tuple[Pass, ...] | None = None,
    tuning: str | Path | None = None,
    mapped: bool = False,
    hot: float | None = None,
) -> torch.nn.Module:
    """A model from a spec file, a checkpoint folder (of a run: its newest) or a compiled artifact.

    A spec's weights start as it says, drawn from `seed`. `dtype` defaults to float32 for a spec, to the stored type
    else. `tuning` is a file that `weft tune` wrote, or an artifact made with one; a spec has the tuning.json beside it
    by default. `mapped`: weights of a checkpoint are used where they lie in its file, which may be larger than memory;
    of a table only the rows that are read are loaded. With `hot`, a share of the rows of each large table, those that
    are read most are kept in the memory of the device, and everything else but tables lies there. On the "meta" device
    nothing is allocated: a 32B model's shapes and parameter totals cost no memory.
    Raises SpecErrors for the spec, LoadFault or another RuntimeFault of one line for everything else.
    """
    if dtype is not None and dtype not in PRECISIONS:
        known = ", ".join(str(one).removeprefix("torch.") for one in PRECISIONS)
        raise LoadFault(f"a model computes in {known}, not in {str(dtype).removeprefix('torch.')}")
    if device is not None:
        device = usable_device(device)
    path = latest_checkpoint(Path(path))
    if path.is_dir():
        if (path / MANIFEST).is_file():
            _no_choices(path, size, overrides, "checkpoint")
            return from_checkpoint(path, dtype, device, passes, table_for(tuning), mapped, hot)
        if hot is not None:
            raise LoadFault(_NO_FILE)
        if (path / ARTIFACT).is_file():
            _no_choices(path, size, overrides, "compiled artifact")
            if tuning is not None:
                raise LoadFault(f"{path} is a compiled artifact, whose choices are made: tuning is for `weft compile`")
            return open_artifact(path, device, dtype)
        raise LoadFault(f"{path} is neither a checkpoint (no {MANIFEST}) nor a compiled artifact (no {ARTIFACT})")
    if hot is not None:
        raise LoadFault(_NO_FILE)
    checked = check_file(path, size, overrides)
    return Model(checked, dtype or torch.float32, device, seed, passes, table_for(tuning, path))


def usable_device(device: torch.device | str) -> torch.device:
    """A device by name, or one line on why it cannot be used here."""
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        raise LoadFault(f"the device {device} cannot be used: {str(error).splitlines()[0]}") from None
    return found


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
    path: Path,
    dtype: torch.dtype | None,
    device: torch.device | str | None,
    passes: tuple[Pass, ...] | None,
    tuning: Table | None = None,
    mapped: bool = False,
    hot: float | None = None,
) -> Model:
    """The model of a checkpoint folder: its own spec text, its sizes, its weights."""
    manifest = read_manifest(path)
    checked = check_texts(manifest.model.spec, manifest.model.size, manifest.model.overrides)
    if hot is not None and not mapped:
        raise LoadFault(_NO_FILE)
    if mapped:
        return _on_file(path, checked, map_weights(path, manifest), dtype, device, passes, hot)
    saved = read_weights(path, manifest)
    # The widest: an imported checkpoint may keep its norms in float32 beside bfloat16 matrices.
    stored = reduce(torch.promote_types, (tensor.dtype for tensor in saved.values())) if saved else torch.float32
    model = Model(checked, dtype or stored, device, seed=None, passes=passes, tuning=tuning)
    if model.device.type != "meta":
        apply_weights(dict(model.by_path()), saved, path)
    return model


def _on_file(
    path: Path,
    checked: Checked,
    saved: Mapping[str, Tensor],
    dtype: torch.dtype | None,
    device: torch.device | str | None,
    passes: tuple[Pass, ...] | None,
    hot: float | None = None,
) -> Model:
    """A model whose weights are those of a mapped file; with `hot`, on any device, of which tables alone are."""
    stored = {tensor.dtype for tensor in saved.values()}
    names = " and ".join(sorted(str(one).removeprefix("torch.") for one in stored))
    device = torch.device(device or "cpu")
    if device.type != "cpu" and hot is None:
        where = f"{path}: weights are mapped into the memory of the CPU, not of {device}"
        raise LoadFault(f"{where}; with `hot`, a share of rows, tables alone are")
    if len(stored) > 1 or (dtype is not None and {dtype} != stored):
        raise LoadFault(f"{path} holds {names}: mapped weights are of one type, that of the computation")
    model = Model(checked, next(iter(stored), torch.float32), "meta", seed=None, passes=passes)
    check_weights(dict(model.by_path()), saved, path)
    tables = set() if hot is None else _tables(path, checked, saved, hot)
    if hot is not None:
        saved = {name: tensor if name in tables else tensor.to(device) for name, tensor in saved.items()}
    trained = {name: weight.requires_grad for name, weight in model.by_path()}
    model.load_state_dict(saved, assign=True)
    for name, weight in model.by_path():
        weight.requires_grad_(trained[name])
        if name in tables and hot is not None:
            keep_hot(weight, hot, device)
    return model


_NO_FILE = "`hot` is a share of the rows of tables that stay in the file of a checkpoint: mapped=True"


def _tables(path: Path, checked: Checked, saved: Mapping[str, Tensor], hot: float) -> set[str]:
    """The paths of tables of which a share of rows is kept."""
    if not 0 < hot <= 1:
        raise LoadFault(f"`hot` is the share of rows that is kept, above 0 and up to 1, not {hot:g}")
    programs = (*checked.models.values(), *checked.objectives.values())
    found = hot_tables(programs, {name: tensor.nbytes for name, tensor in saved.items()})
    if not found:
        raise LoadFault(f"{path} has no large table of which rows are read: there is nothing to keep `hot` rows of")
    return found


def check_texts(texts: tuple[SpecText, ...], size: str | None, overrides: Mapping[str, object] | None) -> Checked:
    """Checks spec texts that a checkpoint carries: the first is the spec, the others are files it uses beside
    itself."""
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


def _no_choices(path: Path, size: str | None, overrides: Mapping[str, object] | None, what: str) -> None:
    if size is not None or overrides:
        raise LoadFault(f"{path} is a {what}, whose sizes are fixed: size and overrides are for spec files")
