"""Small specs, checked, and models of them, for the tests of lowering and the runtime."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from weft.codegen.ops import OPS
from weft.codegen.pipeline import REFERENCE_PASSES, Pass
from weft.dsl.check import Checked, check
from weft.dsl.source import Source
from weft.runtime.model import Model

# A decoder with everything decoding must carry: full and windowed attention, shared heads, the row before.
DECODER = """
size vocab = 19
size dim = 12
size heads = 4
size kv_heads = 2
size ffn = 20
size head_dim = 4
axis seq

block attention(x: real[seq, dim], mask: mask) -> real[seq, dim]:
    q = linear(x, dim -> (heads, head_dim)) |> rope(along=seq)
    k = linear(x, dim -> (kv_heads, head_dim)) |> rope(along=seq)
    v = linear(x, dim -> (kv_heads, head_dim))
    mixed = attend(q, k, v, over=head_dim, along=seq, group=heads -> kv_heads, mask=mask)
    out = linear(mixed, (heads, head_dim) -> dim)
    return out

model decoder(tokens: id[seq] in vocab) -> real[seq, vocab]:
    x = embed(tokens, vocab -> dim) as embed
    before = linear(previous(x, 2), dim -> dim2)
    x = x + rename(before, dim2 -> dim)
    x = x + rms_norm(attention(x, causal) as full) as full_norm
    x = x + rms_norm(attention(x, causal and window(3)) as near) as near_norm
    x = x + rms_norm(swiglu(x, ffn)) as swiglu_norm
    return rms_norm(x) as norm |> linear(dim -> vocab) as head

axis dim2 = dim

objective next_token(tokens: id[seq] in vocab):
    logits = decoder(tokens)
    loss text = cross_entropy(logits, next(tokens))
    loss late = z_loss(logits) only position(seq) >= 2

init **.weight = normal(0.3)
"""

# Every level: a value per row, per example and for the call; two ragged axes.
LEVELS = """
size vocab = 7
size dim = 6
size label = 3
axis seq
axis frame

model levels(tokens: id[seq] in vocab, image: real[frame, dim], class: id in label, scale: real) -> real[seq, dim]:
    x = embed(tokens, vocab -> dim) as words
    y = linear(image, dim -> out)
    x = x + embed(class, label -> dim) as classes
    z = attend(x, image, y, over=dim, along=frame)
    return x + scale * rename(z, out -> dim)

axis out = dim
init ** = normal(0.5)
"""


def checked(text: str, **overrides: object) -> Checked:
    return check(Source("test.weft", text.lstrip()), OPS, overrides=overrides).value()


def model(
    text: str,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    passes: tuple[Pass, ...] = REFERENCE_PASSES,
    **overrides: object,
) -> Model:
    return Model(checked(text, **overrides), dtype, seed=seed, passes=passes)


def tokens(lengths: Sequence[int], limit: int = 19, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(limit, (length,), generator=generator) for length in lengths]
