"""Kernels made while a program runs: text to a jitted function, for launchers that find none compiled before."""

from __future__ import annotations

import hashlib
import linecache
import sys
import types
from typing import Any

from ..gpu.attention_form import read_form
from ..gpu.attention_kernels import AttentionKey, DecodeKey, Kernel, Key, provide
from .decode import DecodePlan, decode_text
from .kernels import kernel_text
from .plan import AttentionPlan


def connect() -> None:
    """Attention kernels are made when first called for."""
    provide(make)


def plan_of(key: Key) -> AttentionPlan:
    bias_type = key.bias_type if isinstance(key, AttentionKey) else None
    return AttentionPlan(read_form(key.form), key.dtype, key.heads, key.key_heads, key.q_width, key.v_width, bias_type)


def make(key: Key, name: str, target: str) -> Kernel:
    if isinstance(key, DecodeKey):
        text = decode_text(DecodePlan(plan_of(key), key.rows, key.low, key.high), name, target)
    else:
        text = kernel_text(plan_of(key), name, target)
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
