"""Small runs of the entropy model and of BLT: documents, trained checkpoints, settings."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from weft.runtime.run_config import make_config
from weft.runtime.train import TrainResult, train

SPECS = Path(__file__).parent.parent / "specs"
PATCHER = {"patcher_layers": 1, "patcher_dim": 16, "patcher_heads": 2, "patcher_ffn": 24}
SMALL = {
    **PATCHER, "layers": 1, "dim": 32, "heads": 2, "ffn": 48, "local": 16, "local_heads": 2, "local_ffn": 24,
    "decoder_layers": 1,
}  # fmt: skip
ENTROPY = {"layers": 1, "dim": 16, "heads": 2, "ffn": 24}


def documents(folder: Path, count: int = 24, longest: int = 150) -> Path:
    """Texts of unequal lengths whose letters are not equally hard to foresee."""
    chosen = random.Random(3)
    folder.mkdir()
    for i in range(count):
        words = [chosen.choice(("the ", "weft ", "of ", "a\n", "42, ", "na\u00efve ")) for _ in range(longest // 4)]
        (folder / f"{i:02}.txt").write_text("".join(words)[: chosen.randrange(5, longest)], encoding="utf-8")
    return folder


def settings(data: Path, out: Path, **more: Any) -> dict[str, Any]:
    return {
        "data": (str(data),), "out": str(out), "tokenizer": "bytes4", "begin_mark": True, "max_length": 64,
        "tokens_per_step": 512, "eval_every": 0, "tensorboard": "off", "save_every": 1000, "schedule": "constant",
        **more,
    }  # fmt: skip


def run_entropy_model(data: Path, out: Path, steps: int = 12, **more: Any) -> TrainResult:
    own = {"spec": str(SPECS / "entropy_lm.weft"), "size": "tiny", "overrides": ENTROPY, "steps": steps, "lr": 0.02}
    return train(make_config(settings(data, out), own, more))


def run_blt(data: Path, out: Path, steps: int = 2, overrides: dict[str, Any] | None = None, **more: Any) -> TrainResult:
    own = {"spec": str(SPECS / "blt.weft"), "size": "tiny", "overrides": {**SMALL, **(overrides or {})}, "steps": steps}
    return train(make_config(settings(data, out), own, more))
