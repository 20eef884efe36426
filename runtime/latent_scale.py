"""What a file of `weft latents` says of itself: by what its latents were multiplied, and whose they are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from .errors import RuntimeFault

FORMAT = "weft latents 1"


@dataclass(frozen=True)
class LatentScale:
    """`factor`: latents were multiplied by it, so that their entries have a variance of 1; a decoder takes them divided
    by it. `weights`: the hash of the autoencoder's."""

    factor: float
    weights: str

    def metadata(self, spec: str) -> dict[str, str]:
        return {"format": FORMAT, "factor": repr(self.factor), "weights": self.weights, "spec": spec}


def read_scale(path: Path) -> LatentScale | None:
    """None for other files of tensors."""
    try:
        with safe_open(path, framework="numpy") as opened:
            about = opened.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise RuntimeFault(f"{path} cannot be read: {str(error).splitlines()[0]}") from None
    if about.get("format") != FORMAT:
        return None
    try:
        return LatentScale(float(about["factor"]), about["weights"])
    except (KeyError, ValueError):
        raise RuntimeFault(f"{path} is a damaged file of `weft latents`: it does not tell its factor") from None
