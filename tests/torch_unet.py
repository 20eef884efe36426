"""The U-Net of specs/unet.weft in torch's own modules, written as diffusers writes its blocks, and names of weights."""

from __future__ import annotations

import math
import re

import torch
from torch import Tensor, nn
from torch.nn import functional


class ResnetBlock(nn.Module):
    def __init__(self, width: int, out: int, time_width: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, width)
        self.conv1 = nn.Conv2d(width, out, 3, padding=1)
        self.time_emb_proj = nn.Linear(time_width, out)
        self.norm2 = nn.GroupNorm(groups, out)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(width, out, 1) if width != out else None

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = self.conv1(functional.silu(self.norm1(x)))
        h = h + self.time_emb_proj(functional.silu(time))[:, :, None, None]
        h = self.conv2(functional.silu(self.norm2(h)))
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class Attention(nn.Module):
    def __init__(self, width: int, head_size: int, groups: int) -> None:
        super().__init__()
        self.group_norm = nn.GroupNorm(groups, width)
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width) for _ in range(3))
        self.to_out = nn.Linear(width, width)
        self.head_size = head_size

    def forward(self, x: Tensor) -> Tensor:
        flat = self.group_norm(x).flatten(2).transpose(1, 2)
        q, k, v = (
            to(flat).unflatten(-1, (-1, self.head_size)).transpose(1, 2) for to in (self.to_q, self.to_k, self.to_v)
        )
        mixed = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return x + self.to_out(mixed).transpose(1, 2).reshape(x.shape)


class Stage(nn.Module):
    def __init__(self, width: int, out: int, time_width: int, groups: int, head_size: int | None) -> None:
        super().__init__()
        self.resnet = ResnetBlock(width, out, time_width, groups)
        self.attention = Attention(out, head_size, groups) if head_size is not None else None

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        x = self.resnet(x, time)
        return x if self.attention is None else self.attention(x)


class UNet(nn.Module):
    """On pictures `[N, channels, side, side]`, with nothing between the halves."""

    def __init__(
        self, channels: int, dim: int, base: int, mult: tuple[int, ...], attentive: tuple[bool, ...], blocks: int,
        groups: int, head_size: int, time_width: int,
    ) -> None:  # fmt: skip
        super().__init__()
        wide = [base * m for m in mult]
        self.base, self.blocks = base, blocks
        self.linear_1, self.linear_2 = nn.Linear(base, time_width), nn.Linear(time_width, time_width)
        self.conv_in = nn.Conv2d(channels, wide[0], 3, padding=1)
        self.down, self.smaller = nn.ModuleList(), nn.ModuleList()
        kept, width = [wide[0]], wide[0]
        for i, out in enumerate(wide):
            head = head_size if attentive[i] else None
            for _ in range(blocks):
                self.down.append(Stage(width, out, time_width, groups, head))
                width = out
                kept.append(out)
            if i < len(wide) - 1:
                self.smaller.append(nn.Conv2d(out, out, 3, stride=2, padding=1))
                kept.append(out)
        self.down_out, self.up_in = nn.Conv2d(width, dim, 1), nn.Conv2d(dim, width, 1)
        self.up, self.larger = nn.ModuleList(), nn.ModuleList()
        for i in reversed(range(len(wide))):
            for _ in range(blocks + 1):
                head = head_size if attentive[i] else None
                self.up.append(Stage(width + kept.pop(), wide[i], time_width, groups, head))
                width = wide[i]
            if i:
                self.larger.append(nn.Conv2d(width, width, 3, padding=1))
        self.norm, self.conv_out = nn.GroupNorm(groups, wide[0]), nn.Conv2d(wide[0], channels, 3, padding=1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return self.up_half(*self.down_half(x, time))

    def down_half(self, x: Tensor, time: Tensor) -> tuple[Tensor, list[Tensor], Tensor]:
        """What a transformer reads, what is kept for the way up, and the time as the blocks are told it."""
        half = self.base // 2
        waves = torch.exp(-math.log(10_000) * torch.arange(half, dtype=x.dtype) / half)
        angle = time.to(x.dtype)[:, None] * waves
        t = self.linear_2(functional.silu(self.linear_1(torch.cat((angle.cos(), angle.sin()), 1))))
        h = self.conv_in(x)
        kept, levels = [h], len(self.smaller) + 1
        for i in range(levels):
            for j in range(self.blocks):
                h = self.down[i * self.blocks + j](h, t)
                kept.append(h)
            if i < levels - 1:
                h = self.smaller[i](h)
                kept.append(h)
        return self.down_out(h), kept, t

    def up_half(self, x: Tensor, kept: list[Tensor], t: Tensor) -> Tensor:
        h, kept, levels = self.up_in(x), list(kept), len(self.smaller) + 1
        for k in range(levels):
            for j in range(self.blocks + 1):
                h = self.up[k * (self.blocks + 1) + j](torch.cat((h, kept.pop()), 1), t)
            if k < levels - 1:
                h = self.larger[k](functional.interpolate(h, scale_factor=2, mode="nearest"))
        return self.conv_out(functional.silu(self.norm(h)))


_STAGE = (
    (r"\bstage\.resnet\.time_projection", "resnet.time_emb_proj"),
    (r"\bstage\.resnet\.shortcut", "resnet.conv_shortcut"),
    (r"\bstage\.resnet", "resnet"),
    (r"\bstage\.picture_attention\.norm", "attention.group_norm"),
    (r"\bstage\.picture_attention\.(.)\.linear", r"attention.to_\1"),
    (r"\bstage\.picture_attention\.out", "attention.to_out"),
)


def torch_name(path: str, blocks: int) -> str:
    """What the torch modules call the weight at a path of the spec."""
    for pattern, name in _STAGE:
        path = re.sub(pattern, name, path)
    path = re.sub(r"^down\.i\.(\d+)\.j\.(\d+)", lambda m: f"down.{int(m[1]) * blocks + int(m[2])}", path)
    path = re.sub(r"^up\.k\.(\d+)\.j\.(\d+)\.wider_stage", lambda m: f"up.{int(m[1]) * (blocks + 1) + int(m[2])}", path)
    path = re.sub(r"^down\.i\.(\d+)\.smaller", r"smaller.\1", path)
    path = re.sub(r"^up\.k\.(\d+)\.larger", r"larger.\1", path)
    for ours, theirs in (
        ("t.told.time_embedding.first.linear", "linear_1"), ("t.told.time_embedding.second.linear", "linear_2"),
        ("down.first", "conv_in"), ("down.last", "down_out"), ("up.first", "up_in"), ("up.norm", "norm"),
        ("up.last", "conv_out"), ("gain", "weight"),
    ):  # fmt: skip
        path = path.replace(ours, theirs)
    return path
