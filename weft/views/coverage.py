"""Which foreign tensor filled which weights: the table that an import or export prints."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .table import table

if TYPE_CHECKING:
    from weft.runtime.foreign import Coverage

# A 32-layer model has hundreds of tensors, and all say the same.
SHOWN = 40


def show(coverage: Sequence[Coverage], as_json: bool, last_line: str) -> None:
    """Prints the table and what was done."""
    if as_json:
        rows = [{"foreign": row.foreign, "paths": list(row.paths), "shape": list(row.shape)} for row in coverage]
        print(json.dumps({"tensors": rows}, indent=2))
        return
    rows = [(row.foreign, " x ".join(map(str, row.shape)), _paths(row.paths)) for row in coverage[:SHOWN]]
    print(table(("foreign tensor", "shape", "weights"), rows))
    if len(coverage) > SHOWN:
        print(f"... and {len(coverage) - SHOWN} more (--json prints all)")
    print(f"{len(coverage)} tensors, all used; {last_line}")


def _paths(paths: Sequence[str]) -> str:
    return paths[0] if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"
