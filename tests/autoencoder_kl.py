"""The autoencoder of latent diffusion in plain torch, with the names of modules that diffusers gives them: an oracle
for specs/vae.weft that shares nothing with it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

EPS = 1e-6


class Resnet(nn.Module):
    def __init__(self, width: int, out: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, width, EPS)
        self.conv1 = nn.Conv2d(width, out, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, out, EPS)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1)
        if width != out:
            self.conv_shortcut = nn.Conv2d(width, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(functional.silu(self.norm1(x)))
        h = self.conv2(functional.silu(self.norm2(h)))
        return h + (self.conv_shortcut(x) if hasattr(self, "conv_shortcut") else x)


class Attention(nn.Module):
    """One head over all places."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.group_norm = nn.GroupNorm(groups, width, EPS)
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def forward(self, x: Tensor) -> Tensor:
        rows = self.group_norm(x).flatten(2).transpose(1, 2)
        q, k, v = self.to_q(rows), self.to_k(rows), self.to_v(rows)
        weights = torch.softmax(q @ k.transpose(1, 2) / q.shape[-1] ** 0.5, dim=-1)
        return x + self.to_out[0](weights @ v).transpose(1, 2).reshape(x.shape)


class Middle(nn.Module):
    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList([Resnet(width, width, groups) for _ in range(2)])
        self.attentions = nn.ModuleList([Attention(width, groups)])

    def forward(self, x: Tensor) -> Tensor:
        return self.resnets[1](self.attentions[0](self.resnets[0](x)))


class Sampler(nn.Module):
    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride, padding=0 if stride == 2 else 1)


class Level(nn.Module):
    def __init__(self, width: int, out: int, count: int, groups: int, sampler: str | None) -> None:
        super().__init__()
        self.resnets = nn.ModuleList([Resnet(width if i == 0 else out, out, groups) for i in range(count)])
        if sampler is not None:
            setattr(self, sampler, nn.ModuleList([Sampler(out, 2 if sampler == "downsamplers" else 1)]))

    def forward(self, x: Tensor) -> Tensor:
        for resnet in self.resnets:
            x = resnet(x)
        down, up = (getattr(self, name, None) for name in ("downsamplers", "upsamplers"))
        if down is not None:
            x = down[0].conv(functional.pad(x, (0, 1, 0, 1)))
        if up is not None:
            x = up[0].conv(x.repeat_interleave(2, 2).repeat_interleave(2, 3))
        return x


class Encoder(nn.Module):
    def __init__(self, colours: int, channels: int, widths: list[int], blocks: int, groups: int) -> None:
        super().__init__()
        last = len(widths) - 1
        self.conv_in = nn.Conv2d(colours, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(
            Level(widths[max(i - 1, 0)], width, blocks, groups, "downsamplers" if i < last else None)
            for i, width in enumerate(widths)
        )
        self.mid_block = Middle(widths[-1], groups)
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], EPS)
        self.conv_out = nn.Conv2d(widths[-1], 2 * channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.down_blocks:
            x = level(x)
        return self.conv_out(functional.silu(self.conv_norm_out(self.mid_block(x))))


class Decoder(nn.Module):
    def __init__(self, colours: int, channels: int, widths: list[int], blocks: int, groups: int) -> None:
        super().__init__()
        back, last = widths[::-1], len(widths) - 1
        self.conv_in = nn.Conv2d(channels, back[0], 3, padding=1)
        self.mid_block = Middle(back[0], groups)
        self.up_blocks = nn.ModuleList(
            Level(back[max(i - 1, 0)], width, blocks + 1, groups, "upsamplers" if i < last else None)
            for i, width in enumerate(back)
        )
        self.conv_norm_out = nn.GroupNorm(groups, widths[0], EPS)
        self.conv_out = nn.Conv2d(widths[0], colours, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid_block(self.conv_in(x))
        for level in self.up_blocks:
            x = level(x)
        return self.conv_out(functional.silu(self.conv_norm_out(x)))


class AutoencoderKL(nn.Module):
    def __init__(self, colours: int, channels: int, widths: list[int], blocks: int, groups: int) -> None:
        super().__init__()
        self.encoder = Encoder(colours, channels, widths, blocks, groups)
        self.decoder = Decoder(colours, channels, widths, blocks, groups)
        self.quant_conv = nn.Conv2d(2 * channels, 2 * channels, 1)
        self.post_quant_conv = nn.Conv2d(channels, channels, 1)
        self.config: dict[str, Any] = {
            "_class_name": "AutoencoderKL",
            "_diffusers_version": "0.30.0",
            "act_fn": "silu",
            "block_out_channels": widths,
            "down_block_types": ["DownEncoderBlock2D"] * len(widths),
            "up_block_types": ["UpDecoderBlock2D"] * len(widths),
            "in_channels": colours,
            "out_channels": colours,
            "latent_channels": channels,
            "layers_per_block": blocks,
            "norm_num_groups": groups,
            "sample_size": 16,
            "scaling_factor": 0.18215,
        }

    def encode(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """`[N, C, H, W]` to the mean and the logarithm of the variance."""
        mean, told = self.quant_conv(self.encoder(pictures)).chunk(2, 1)
        return mean, told.clamp(-30, 20)

    def decode(self, latents: Tensor) -> Tensor:
        return self.decoder(self.post_quant_conv(latents))
