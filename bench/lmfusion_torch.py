"""LMFusion in plain torch, routed as public code does it: the other sides of bench/lmfusion_cpu.py.

    select   both towers on all rows, and a choice between their results
    index    each tower on the rows that a flag picks out, scattered back, for each of the layer's parts

Both with one dense mask of all pairs of rows. Weights are read from a model of ours, so all sides compute one function.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.torch_unet import UNet, torch_name

TEXT, IMAGE = 0, 1


@dataclass(frozen=True)
class Sizes:
    layers: int
    dim: int
    heads: int
    kv_heads: int
    ffn: int
    vocab: int
    side: int
    channels: int
    begin: int


@dataclass(frozen=True)
class Rows:
    """Documents end to end. kind, picture (-1: none), document, position [T]; ids [words]; latent [P, cells, channels];
    time [P]."""

    kind: Tensor
    picture: Tensor
    document: Tensor
    position: Tensor
    ids: Tensor
    latent: Tensor
    time: Tensor

    @property
    def mask(self) -> Tensor:
        """bool [T, T]."""
        row = torch.arange(len(self.kind))
        same = (self.picture[:, None] == self.picture) & (self.picture >= 0)
        return ((row <= row[:, None]) | same) & (self.document[:, None] == self.document)


class Tower(nn.Module):
    """What a layer has for one modality."""

    def __init__(self, s: Sizes) -> None:
        super().__init__()
        head_dim = s.dim // s.heads
        self.norm, self.ffn_norm = nn.RMSNorm(s.dim, 1e-5), nn.RMSNorm(s.dim, 1e-5)
        self.q, self.k, self.v = (
            nn.Linear(s.dim, heads * head_dim, bias=False) for heads in (s.heads, s.kv_heads, s.kv_heads)
        )
        self.out = nn.Linear(s.dim, s.dim, bias=False)
        self.gate, self.up = (nn.Linear(s.dim, s.ffn, bias=False) for _ in range(2))
        self.down = nn.Linear(s.ffn, s.dim, bias=False)

    def read(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        return torch.cat((self.q(h), self.k(h), self.v(h)), -1)

    def merge(self, x: Tensor) -> Tensor:
        return self.out(x)

    def feed(self, x: Tensor) -> Tensor:
        h = self.ffn_norm(x)
        return self.down(functional.silu(self.gate(h)) * self.up(h))


Part = Callable[[Tower, Tensor], Tensor]
Route = Callable[[nn.ModuleList, Part, Tensor, Tensor], Tensor]


def select(towers: nn.ModuleList, part: Part, x: Tensor, kind: Tensor) -> Tensor:
    text, image = (part(tower, x) for tower in towers)  # type: ignore[arg-type]
    return torch.where(kind[:, None] == TEXT, text, image)


def index(towers: nn.ModuleList, part: Part, x: Tensor, kind: Tensor) -> Tensor:
    flags = [kind == member for member in (TEXT, IMAGE)]
    parts = [part(tower, x[flag]) for tower, flag in zip(towers, flags, strict=True)]  # type: ignore[arg-type]
    result = parts[0].new_empty(len(x), parts[0].shape[1])
    for flag, made in zip(flags, parts, strict=True):
        result[flag] = made
    return result


class TorchLMFusion(nn.Module):
    def __init__(self, s: Sizes, unet: UNet, route: Route) -> None:
        super().__init__()
        self.sizes, self.unet, self.route = s, unet, route
        self.embed, self.head = nn.Embedding(s.vocab, s.dim), nn.Linear(s.dim, s.vocab, bias=False)
        self.layers = nn.ModuleList(nn.ModuleList(Tower(s) for _ in range(2)) for _ in range(s.layers))
        self.last = nn.ModuleList(nn.RMSNorm(s.dim, 1e-5) for _ in range(2))

    def forward(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """logits [words, vocab], noise [P, cells, channels]."""
        s = self.sizes
        pictures = rows.latent.transpose(1, 2).unflatten(2, (s.side, s.side))
        z, kept, t = self.unet.down_half(pictures, rows.time)
        is_text = rows.kind == TEXT
        x = torch.empty(len(rows.kind), s.dim, dtype=rows.latent.dtype)
        x[is_text] = self.embed(rows.ids)
        x[~is_text] = z.flatten(2).transpose(1, 2).flatten(0, 1)
        head_dim, mask = s.dim // s.heads, rows.mask
        turn = self._turn(rows.position, head_dim, x.dtype)
        for towers in self.layers:
            joined = self.route(towers, Tower.read, x, rows.kind)
            q, k, v = joined.split([s.dim, s.kv_heads * head_dim, s.kv_heads * head_dim], -1)
            q, k, v = (part.unflatten(-1, (-1, head_dim)).transpose(0, 1) for part in (q, k, v))
            q, k = _turned(q, *turn), _turned(k, *turn)
            mixed = functional.scaled_dot_product_attention(q[None], k[None], v[None], mask, enable_gqa=True)[0]
            x = x + self.route(towers, Tower.merge, mixed.transpose(0, 1).flatten(1), rows.kind)
            x = x + self.route(towers, Tower.feed, x, rows.kind)
        x = torch.where(is_text[:, None], self.last[0](x), self.last[1](x))
        places = x[~is_text].unflatten(0, (len(rows.time), -1)).transpose(1, 2)
        side = z.shape[-1]
        noise = self.unet.up_half(places.unflatten(2, (side, side)), kept, t)
        return self.head(x[is_text]), noise.flatten(2).transpose(1, 2)

    @staticmethod
    def _turn(position: Tensor, head_dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        wave = 5e5 ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
        angle = position[:, None].double() * wave
        angle = torch.cat((angle, angle), -1)
        return angle.cos().to(dtype), angle.sin().to(dtype)


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    left, right = x.chunk(2, -1)
    return x * cos + torch.cat((-right, left), -1) * sin


_PARTS = {
    "attention": "norm.weight", "q": "q.weight", "k": "k.weight", "v": "v.weight", "out": "out.weight",
    "ffn": "ffn_norm.weight",
}  # fmt: skip


def weight_name(path: str, blocks: int) -> str:
    """What the torch modules call the weight at a path of specs/lmfusion.weft."""
    layer = re.match(r"layer\.(\d+)\.(\w+)\.(text|image)\.part\.(.*)", path)
    if layer:
        number, part, tower, rest = layer.groups()
        name = _PARTS.get(part) or rest.removeprefix("ffn.").replace(".linear", "")
        return f"layers.{number}.{('text', 'image').index(tower)}.{name}"
    if path.startswith("last."):
        return f"last.{('text', 'image').index(path.split('.')[1])}.weight"
    if path in ("embed.weight", "head.weight"):
        return path
    return "unet." + torch_name(path.removeprefix("noise."), blocks)


def load(target: TorchLMFusion, weights: Mapping[str, Tensor], blocks: int) -> None:
    named = {weight_name(path, blocks): weight.detach() for path, weight in weights.items()}
    own = target.state_dict()
    target.load_state_dict({name: named[name].reshape(own[name].shape) for name in own})
    for name, parameter in target.named_parameters():
        is_text = re.match(r"layers\.\d+\.0\.|last\.0\.|embed|head", name) is not None
        parameter.requires_grad_(not is_text)
