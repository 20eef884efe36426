"""LMFusion on a CPU against the ways to write it in plain torch.

    python bench/lmfusion_cpu.py                  # everything
    python bench/lmfusion_cpu.py --only train     # or denoise

A model of specs/lmfusion.weft with four layers of width 512 and pictures of 256 rows; documents of a caption and a
picture, packed end to end; fp32. Text weights are frozen, as the spec says.

    train    forward, backward and AdamW
             ours     rows sorted by tower, masks as intervals
             select   both towers on all rows, a dense mask
             index    rows picked by a flag for each part of a layer, a dense mask
    denoise  the noise in one picture behind 64 rows of text
             ours     behind the caches of the text
             full     the whole sequence again

Sides take turns; a row gives medians and ratios of times (above 1: we are faster). Before anything is timed, all sides
have to agree.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.lmfusion_torch import Sizes  # noqa: E402
from tests.torch_unet import UNet  # noqa: E402
from weft.codegen.ops import OPS  # noqa: E402
from weft.dsl.check import check, read_source  # noqa: E402
from weft.runtime.model import Model  # noqa: E402

SIZES = Sizes(layers=4, dim=512, heads=8, kv_heads=2, ffn=1792, vocab=1024, side=32, channels=4, base=32, begin=1)
UNET = {"side": SIZES.side, "channels": SIZES.channels, "base": SIZES.base}
SPOTS = (SIZES.side // 2) ** 2
CAPTIONS = (34, 21, 48, 30)
PREFIX = 64


def ours(dtype: torch.dtype = torch.float32) -> Model:
    source = read_source(ROOT / "specs" / "lmfusion.weft")
    named = ("layers", "dim", "heads", "kv_heads", "ffn", "vocab", "begin")
    overrides = {name: getattr(SIZES, name) for name in named} | {f"unet.{name}": size for name, size in UNET.items()}
    return Model(check(source, OPS, "tiny", overrides).value(), dtype)


def unet() -> UNET:  # type: ignore[valid-type]
    return UNet(SIZES.channels, SIZES.dim, SIZES.base, (1, 2), (False, True), 2, 8, 16, 64)
