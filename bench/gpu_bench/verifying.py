"""Every kernel of every spec against float64 on the device, outputs and gradients, in bfloat16 and float32.

At tiny sizes, and with one layer of real sizes: kernels for long rows are others than those for short ones. Without a
device, where an interpreter runs them, each spec in one of the types, in turn: `weft verify` takes either.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch

from weft.dsl.check import presets_of, read_source
from weft.runtime.model import check_file
from weft.runtime.verify import NotCompared, Part, verify

from .context import Context
from .results import Row

ROOT = Path(__file__).resolve().parent.parent.parent
DTYPES = (torch.bfloat16, torch.float32)
# Settings that make a spec small enough for an interpreter: of a plain transformer, of pictures, and the number of
# layers of any. A memory's table is checked in float64, which no device has room for at its real size.
SMALL = {"layers": 1, "dim": 32, "heads": 2, "kv_heads": 1, "ffn": 48, "vocab": 40}
PICTURE = {"side": 4, "base": 16}
HALVED = 2  # levels of a U-Net, which leave two by two places of such a picture
MARKS = {"begin": 38, "end": 39}  # of the small vocabulary
LAYERS = ("layers", "decoder_layers", "patcher_layers", "blocks")
KEYS = {"half": 64}
_MOST_NAMED = 20


def rows(context: Context) -> Iterator[Row]:
    """A row for each spec, size and type."""
    for number, path in enumerate(sorted((ROOT / "specs").glob("*.weft"))):
        presets = presets_of(read_source(path))
        types = DTYPES if context.device.type == "cuda" else DTYPES[number % 2 :][:1]
        # The first preset is the smallest, the next one real.
        for preset in presets[:1] if context.tiny else [presets[0], *_real(presets)]:
            for dtype in types:
                name = f"{path.stem} {preset} {str(dtype).removeprefix('torch.')}"
                if name in context.done:
                    continue
                labels = {"spec": path.stem, "size": preset, "dtype": str(dtype).removeprefix("torch.")}
                if context.is_over:
                    yield {"name": name, **labels, "failure": "the time budget was used up"}
                    continue
                context.begin(name)
                found, failure = context.attempt(partial(_of_spec, context, path, preset, dtype))
                yield {"name": name, **labels, **(found or {"failure": failure})}
                context.free()


def _real(presets: tuple[str, ...] | list[str]) -> list[str]:
    """One that people train: the 7b of OLMo 2, the 8b of Llama, else the second."""
    return [preset for preset in presets if preset in ("7b", "8b")] or list(presets[1:2])


def _settings(path: Path, preset: str, tiny: bool) -> dict[str, int]:
    sizes = check_file(path, preset).sizes
    if tiny and SMALL.keys() <= sizes.keys():
        return SMALL | {name: size for name, size in (PICTURE | MARKS).items() if name in sizes}
    fewer = {name: 1 for name in LAYERS if name in sizes}
    # A picture that was halved to one place has nothing to be normed by, and rounding is all that is left.
    picture = PICTURE | {"side": 2 ** max(HALVED, sizes.get("levels", HALVED))}
    smaller = picture if tiny else KEYS
    return fewer | {name: size for name, size in smaller.items() if name in sizes}


def _of_spec(context: Context, path: Path, preset: str, dtype: torch.dtype) -> Row:
    found = list(verify(check_file(path, preset, _settings(path, preset, context.tiny)), dtype, with_gradients=True))
    parts = [one for one in found if isinstance(one, Part)]
    wrong = [part for part in parts if not part.is_ok]
    worst = max(parts, key=lambda part: part.error / part.limit if part.limit else float(part.error > 0), default=None)
    return {
        "parts": dict(Counter(part.kind for part in parts)),
        "wrong": [part.to_json() for part in wrong[:_MOST_NAMED]],
        "wrong_count": len(wrong),
        "worst": None if worst is None else worst.to_json(),
        "not_compared": [f"{one.program}: {one.why}" for one in found if isinstance(one, NotCompared)],
    }
