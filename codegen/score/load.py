"""Kernels made while a program runs: text to a jitted function, for launchers that find none compiled before."""

from __future__ import annotations

import hashlib
import linecache
import sys
import types
from typing import Any

from ..choices import Choices
from ..gpu.attention_form import read_form
from ..gpu.attention_kernels import AttentionKey, DecodeKey, Kernel, Key, forget, provide
from ..kernel_text import KernelText
from ..subjects import chosen_tiles
from .configurations import Configuration
from .decode import DecodePlan, decode_text
from .kernels import kernel_text
from .plan import AttentionPlan

_choices: list[Choices] = []  # the newest, if any


def connect(choices: Choices | None = None) -> None:
    """Attention kernels are made when first called for; in the configurations of `choices`, if given, from now on."""
    provide(make)
    if choices is not None and _choices != [choices]:
        _choices[:] = [choices]
        forget()


def plan_of(key: Key) -> AttentionPlan:
    bias_type = key.bias_type if isinstance(key, AttentionKey) else None
    return AttentionPlan(read_form(key.form), key.dtype, key.heads, key.key_heads, key.q_width, key.v_width, bias_type)


def text_of(key: Key, name: str, target: str, configuration: Configuration | None = None) -> KernelText:
    """A kernel's text; in its default configuration unless given."""
    if isinstance(key, DecodeKey):
        return decode_text(DecodePlan(plan_of(key), key.rows, key.low, key.high), name, target, configuration)
    return kernel_text(plan_of(key), name, target, configuration)


def make(key: Key, name: str, target: str, configuration: Configuration | None = None) -> Kernel:
    """In the configuration that was measured to be best unless given, or its default."""
    text = text_of(key, name, target, configuration)
    if configuration is None and _choices and (tiles := chosen_tiles(text, _choices[0])) is not None:
        text = text_of(key, name, target, tiles)
    return Kernel(
        jitted(text.text, name),
        tuple(argument for argument, _ in text.arguments),
        dict(text.constants),
        text.warps,
        text.stages,
    )


def jitted(text: str, name: str) -> Any:
    """The function of a module's text. Triton reads source through `inspect`, so lines are left where that looks."""
    stem = f"weft_kernel_{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    module = sys.modules.get(stem)
    if module is None:
        module = types.ModuleType(stem)
        file = f"<{stem}>"
        module.__file__ = file
        linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
        sys.modules[stem] = module
        exec(compile(text, file, "exec"), module.__dict__)  # noqa: S102 (our own text)
    return getattr(module, name)
