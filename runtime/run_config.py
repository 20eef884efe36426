"""A training run's configuration: every choice that is not in the spec, typed, strict and saved.

Layers, later ones win: the defaults here, a TOML or JSON file, the command line. An unknown key is an error with a
suggestion.
"""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from .errors import RuntimeFault

# What may differ between a run and its continuation. The first line does not enter the arithmetic of a step. What the
# second names is guarded by hashes of its contents in the checkpoint, so that files may lie elsewhere. `steps` moves
# the end of a cosine or linear schedule: a longer run goes on from the same state at another rate. Another number of
# processes changes sums by rounding.
CHANGEABLE_ON_RESUME = frozenset(
    {"out", "resume", "save_every", "keep", "eval_every", "eval_tokens", "log_every", "tensorboard", "stop_after"}
    | {"spec", "data", "columns", "format", "field", "suffixes", "tokenizer"}
    | {"steps"}
    | {"processes", "tables"}
)


class RunConfig(BaseModel):
    """Defaults suit a small model on one machine."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    # The model
    spec: str = Field(description="spec file, checkpoint folder or compiled artifact")
    size: str | None = Field(None, description="preset of the spec")
    overrides: dict[str, int | float | str | bool | tuple[int | float, ...]] = Field(
        default_factory=dict, description="sizes and options"
    )
    objective: str | None = Field(None, description="which objective; not needed when the spec has one")
    weights: dict[str, str] = Field(
        default_factory=dict, description="path of weights: checkpoint or run whose weights they start as"
    )
    precision: Literal["auto", "float32", "bfloat16", "float64"] = Field(
        "auto", description="bfloat16: float32 weights, matrix products in bf16; auto: that on CUDA, else float32"
    )
    device: str = Field("auto", description="cpu, cuda, cuda:1, ...; auto takes CUDA where there is one")
    tuning: str | None = Field(None, description="file of `weft tune`; by default the tuning.json beside the spec")
    threads: int | None = Field(None, ge=1, description="CPU threads of torch")
    processes: int = Field(1, ge=1, description="processes that train together, each with a part of every weight")
    tables: Literal["columns", "rows"] = Field(
        "columns", description="which part of a lazy table each of several processes has"
    )
    seed: int = Field(0, ge=0, lt=2**63, description="of weights, data order and draws")

    # The data
    data: tuple[str, ...] = Field(description="files, folders or globs")
    columns: dict[str, str] = Field(
        default_factory=dict, description="optional input: file of `weft entropies` with its value for each token"
    )
    format: Literal["auto", "text", "jsonl", "parquet"] = Field("auto", description="auto goes by the suffix")
    field: str = Field("text", description="JSONL field or parquet column that holds the text")
    suffixes: tuple[str, ...] = Field((), description="take only files with these suffixes from folders")
    tokenizer: str = Field(
        "bytes", description="bytes, bytes4 (four marks, then the bytes), or the path of a `tokenizers` JSON file"
    )
    end_token: str | None = Field(None, description="the tokenizer's mark between documents, when unusual")
    begin_mark: bool = Field(False, description="put the vocabulary's begin mark in front of every document")
    feeds: dict[str, str] = Field(
        default_factory=dict, description="input of the objective: kind of part it is given, where types do not say"
    )
    part_marks: dict[str, tuple[int | str, ...]] = Field(
        default_factory=dict,
        description="kind of part: tokens in front of it and behind it; by default the tokenizer's",
    )
    picture_first: float = Field(
        0.2, ge=0, le=1, description="share of captioned examples whose picture stands in front of its words"
    )
    drop_caption: float = Field(0.1, ge=0, le=1, description="share of captioned examples that lose their caption")
    noise_steps: int | None = Field(None, ge=1, description="steps of the noise, for `cap`; default: the size `steps`")
    early_noise: float = Field(
        0.5, ge=0, le=1, description="share of the noise's steps for pictures that words follow, as `cap` says"
    )
    max_length: int = Field(1024, ge=2, description="longest example; longer documents are cut into windows")
    tokens_per_step: int | None = Field(8192, ge=2, description="rows of one optimiser step, at most")
    examples_per_step: int | None = Field(None, ge=1, description="examples of one optimiser step, at most")
    patches_per_step: int | None = Field(
        None, ge=1, description="patches (segments of the objective's cut) of one optimiser step, exactly"
    )
    accumulate: int = Field(1, ge=1, description="micro-batches a step's batch is cut into, to save memory")
    recompute: bool = Field(False, description="compute activations of layers again in the backward, to save memory")
    eval_fraction: float = Field(0.05, ge=0, lt=1, description="share of documents held out for evaluation")

    # The optimiser. None leaves the spec's own value
    steps: int = Field(1000, ge=1, description="optimiser steps in all")
    lr: float | None = Field(None, ge=0, description="peak learning rate")
    decay: float | None = Field(None, ge=0, description="decoupled weight decay")
    clip: float | None = Field(None, ge=0, description="gradient norm; 0 does not clip")
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_steps: int | None = Field(None, ge=0, description="default: 2 % of the steps, at most 2000")
    warmup_tokens: int | None = Field(None, ge=0, description="warm-up in tokens; needs schedule_tokens")
    schedule_tokens: int | None = Field(None, ge=1, description="end of the schedule in tokens, instead of in steps")
    final_fraction: float = Field(0.1, ge=0, le=1, description="of the peak rate, at the end of the schedule")
    deterministic: bool = Field(True, description="only kernels that repeat bit by bit; CPU kernels here always do")

    # The run
    out: str = Field("runs/run", description="folder of the run: checkpoints, metrics, run.json")
    resume: bool | str = Field(False, description="go on from the latest checkpoint, or from the one named")
    save_every: int = Field(500, ge=1, description="steps between checkpoints; the last step is always saved")
    keep: int = Field(3, ge=1, description="checkpoints kept")
    eval_every: int = Field(250, ge=0, description="steps between evaluations; 0: none")
    eval_tokens: int | None = Field(131072, ge=1, description="rows of one evaluation, at most; None: all")
    log_every: int = Field(10, ge=1, description="steps between printed lines; the log file has every step")
    tensorboard: Literal["auto", "on", "off"] = Field("auto", description="auto: when it is installed")
    stop_after: int | None = Field(None, ge=1, description="save and stop after this step, as Ctrl-C would")

    @model_validator(mode="before")
    @classmethod
    def _one_budget(cls, given: Any) -> Any:
        """Patches are the budget of a step that asks for them; tokens limit it only when they are given as well."""
        if isinstance(given, dict) and given.get("patches_per_step") is not None:
            return {"tokens_per_step": None, **given}
        return given

    @model_validator(mode="after")
    def _fields_fit(self) -> RunConfig:
        if self.tokens_per_step is None and self.examples_per_step is None and self.patches_per_step is None:
            raise ValueError("a step has no end: give tokens_per_step, examples_per_step or patches_per_step")
        if self.tokens_per_step is not None and self.max_length > self.tokens_per_step:
            raise ValueError(f"max_length {self.max_length} does not fit into tokens_per_step {self.tokens_per_step}")
        if self.warmup_tokens is not None and self.schedule_tokens is None:
            raise ValueError("warmup_tokens needs schedule_tokens: a schedule has one unit")
        if self.schedule_tokens is not None and self.warmup_steps is not None:
            raise ValueError("warmup_steps does not go with schedule_tokens: give warmup_tokens")
        if self.schedule_tokens is not None and (self.warmup_tokens or 0) > self.schedule_tokens:
            raise ValueError(f"warmup_tokens {self.warmup_tokens} is past schedule_tokens {self.schedule_tokens}")
        if (self.warmup_steps or 0) > self.steps:
            raise ValueError(f"warmup_steps {self.warmup_steps} is more than steps {self.steps}")
        return self

    def differences(self, saved: Mapping[str, Any]) -> list[str]:
        """What of a saved config this one changes that a continued run may not change, as `name: saved -> here`."""
        own = self.model_dump(mode="json")
        # A setting that a saved config does not have was added later: the run had its default.
        defaults = {
            name: entry.get_default(call_default_factory=True) for name, entry in RunConfig.model_fields.items()
        }
        before = {name: saved.get(name, defaults[name]) for name in own}
        names = [name for name in own if name not in CHANGEABLE_ON_RESUME and own[name] != before[name]]
        return [f"{name}: {json.dumps(before[name])} -> {json.dumps(own[name])}" for name in names]


def make_config(*layers: Mapping[str, Any]) -> RunConfig:
    """The config of all layers together, later ones winning. Each mistake is one clear line."""
    merged: dict[str, Any] = {}
    for layer in layers:
        merged |= layer
    for name in merged:
        if name not in RunConfig.model_fields:
            raise RuntimeFault(f"no setting {name!r} for a training run{_suggest(name)}")
    try:
        return RunConfig(**merged)
    except ValidationError as error:
        raise RuntimeFault("; ".join(_worded(mistake) for mistake in error.errors(include_url=False))) from None


def read_config_file(path: str | Path) -> dict[str, Any]:
    """A layer from a TOML or JSON file."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        record = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except OSError as error:
        raise RuntimeFault(f"the config {path} cannot be read: {error.strerror}") from None
    except ValueError as error:  # of JSON, TOML and UTF-8 alike
        raise RuntimeFault(f"{path}: {error}") from None
    if not isinstance(record, dict):
        raise RuntimeFault(f"{path}: a table of settings was wanted")
    for name in record:
        if name not in RunConfig.model_fields:
            raise RuntimeFault(f"{path}: no setting {name!r} for a training run{_suggest(name)}")
    return record


def _suggest(name: str) -> str:
    near = difflib.get_close_matches(name.replace("-", "_"), RunConfig.model_fields, n=1, cutoff=0.5)
    return f" (did you mean {near[0]}?)" if near else ""


def _worded(mistake: Any) -> str:
    text = mistake["msg"].removeprefix("Value error, ")
    place = ".".join(str(part) for part in mistake["loc"])
    if not place:
        return text
    if mistake["type"] == "missing":
        return f"{place} is not given"
    return f"{place}: {text[0].lower()}{text[1:]}, got {mistake['input']!r}"
