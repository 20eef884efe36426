"""What can be measured of one attention: tiles of each of its kernels, those of decoding, and torch's instead."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..codegen import candidates, subjects
from ..codegen.choices import OURS, TORCH
from ..codegen.configuration import Configuration
from ..codegen.gpu import attention_kernels
from ..codegen.gpu.attention import attend, table_sums
from ..codegen.gpu.attention_decode import attend_cached
from ..codegen.gpu.attention_form import read_form
from ..codegen.gpu.attention_kernels import AttentionKey, DecodeKey, Kernel, Key, register, target_of
from ..codegen.gpu.attention_library import attend_by_torch
from ..codegen.score.decode import DECODE_KERNELS, DecodePlan
from ..codegen.score.load import make, plan_of, text_of
from .tune_questions import Question, Run
from .tuning import bucket

# Of decoding, as it is measured: sequences, and rows that each has.
SEQUENCES, CACHED = 8, 4096
QUERY_GRADIENT = "attention_query_gradient"
# Which side of the grid's first dimension a kernel cuts.
_WRITTEN = {
    "attention_forward": ("out_ptr", "lse_ptr"),
    "attention_delta": ("delta_ptr",),
    QUERY_GRADIENT: ("dq_ptr",),
    "attention_key_gradient": ("dk_ptr", "dv_ptr"),
}
_BLOCKS = {"attention_key_gradient": ("BLOCK_N", "rows_k")}


@dataclass
class _Recorded:
    """A kernel that notes how it was launched, in the place of `inner`."""

    inner: Kernel
    name: str
    calls: dict[str, tuple[tuple[int, ...], Mapping[str, Any]]] = field(default_factory=dict)

    @property
    def constants(self) -> Mapping[str, Any]:
        return self.inner.constants

    def launch(self, grid: tuple[int, ...], values: Mapping[str, Any]) -> None:
        self.calls[self.name] = grid, dict(values)
        self.inner.launch(grid, values)


@contextmanager
def _recording() -> Iterator[dict[tuple[Key, str, str], _Recorded]]:
    """All kernels made meanwhile note how they are launched."""
    found: dict[tuple[Key, str, str], _Recorded] = {}

    def recorded(key: Key, name: str, target: str) -> Any:
        found[key, name, target] = one = _Recorded(make(key, name, target), name)
        return one

    attention_kernels.forget()
    attention_kernels._makers.insert(0, recorded)
    try:
        yield found
    finally:
        attention_kernels._makers.remove(recorded)
        attention_kernels.forget()


def _launched(kernel: Kernel, name: str, grid: tuple[int, ...], values: Mapping[str, Any]) -> list[Tensor]:
    """What the kernel writes."""
    kernel.launch(grid, values)
    return [values[pointer] for pointer in _WRITTEN[name]]


def of_attention(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[Question]:
    """Of the kernels of training, on the operands of a call of `attend`."""
    q, k, v = (x.detach().requires_grad_() for x in args[:3])
    with _recording() as made, torch.enable_grad():
        out = attend(q, k, v, *args[3:], **kwargs)
        out.backward(torch.randn_like(out))
    for (key, name, target), recorded in made.items():
        if not isinstance(key, AttentionKey) or name not in recorded.calls:
            continue
        grid, values = recorded.calls[name]
        block, rows = _BLOCKS.get(name, ("BLOCK_M", "rows_q"))

        def prepare(
            chosen: Configuration, key: Key = key, name: str = name, target: str = target,
            grid: tuple[int, ...] = grid, values: Mapping[str, Any] = values, block: str = block, rows: str = rows,
        ) -> Run:  # fmt: skip
            kernel = make(key, name, target, subjects.attention_tiles(chosen))
            tiles = -(-values[rows] // kernel.constants[block])
            given = {**values, **(table_sums(read_form(key.form), q, tiles) if name == QUERY_GRADIENT else {})}
            return partial(_launched, kernel, name, (tiles, *grid[1:]), given)

        subject = subjects.attention_subject(text_of(key, name, target))
        found = candidates.of_attention(plan_of(key), name, target)
        yield Question(name, subject, bucket(rows=q.shape[0]), found, prepare)


def of_plain_attention(key: AttentionKey, high: int | None, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Question:
    """Ours, in the tiles found so far, or torch's: forward and backward together."""
    q, k, v = (x.detach().requires_grad_() for x in args[:3])
    runs: dict[str, Callable[..., Tensor]] = {
        OURS: partial(attend, q, k, v, *args[3:], **kwargs),
        TORCH: partial(attend_by_torch, q, k, v, *args[3:], high=high),
    }
    grad = torch.randn(q.shape[0], q.shape[1], v.shape[2], dtype=q.dtype, device=q.device)

    def prepare(chosen: Configuration) -> Run:
        function = runs[chosen.implementation]

        def run() -> object:
            with torch.enable_grad():
                return torch.autograd.grad(function(), (q, k, v), grad)

        return run

    subject = subjects.plain_attention_subject(key, high)
    return Question("attention", subject, bucket(rows=q.shape[0]), candidates.of_plain_attention(), prepare)


def of_decoding(key: AttentionKey, scale: float, low: int | None, high: int, like: Tensor) -> Iterator[Question]:
    """One new row of each of SEQUENCES sequences with CACHED rows, heads as in training."""
    cached = CACHED if like.device.type != "cpu" else 64
    make_random = partial(torch.randn, dtype=like.dtype, device=like.device)
    q = make_random(SEQUENCES, 1, key.heads, key.q_width)
    keys = make_random(SEQUENCES, key.key_heads, cached, key.q_width)
    values = make_random(SEQUENCES, key.key_heads, cached, key.v_width)
    position = torch.full((SEQUENCES,), cached - 1, dtype=torch.int64, device=like.device)
    run = partial(attend_cached, q, keys, values, position, cached, scale, low, high)
    target = target_of(like)
    attention_kernels.forget()
    run()
    own = [one for one in attention_kernels.made() if isinstance(one[0], DecodeKey) and one[2] == target]
    for its_key, name, its_target in own:
        if name not in DECODE_KERNELS or not isinstance(its_key, DecodeKey):
            continue

        def prepare(chosen: Configuration, key: Key = its_key, name: str = name, target: str = its_target) -> Run:
            register(key, name, target, make(key, name, target, subjects.attention_tiles(chosen)))
            return run

        plan = DecodePlan(plan_of(its_key), its_key.rows, its_key.low, its_key.high)
        subject = subjects.attention_subject(text_of(its_key, name, its_target))
        sizes = bucket(sequences=SEQUENCES, columns=cached)
        yield Question(name, subject, sizes, candidates.of_decoding(plan, name, its_target), prepare)
