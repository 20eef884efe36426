"""The page that lists every operator, made from the op table: `python -m weft.op_index` writes docs/operators.md."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from weft.dsl.opdef import OpDef, Param

_HEAD = """# Operators

The primitives of the language, grouped by file. What is built on them (`rms_norm`, `rope`, `swiglu`, `cross_entropy`,
masks) is written in Weft under `specs/std`. This page is generated from the op table by `python -m weft.op_index`.
"""

# Operators that are written between or before their operands, under their names in the table.
_SYMBOLS = {
    "add": "a + b", "sub": "a - b", "mul": "a * b", "div": "a / b", "floordiv": "a // b", "mod": "a mod b",
    "pow": "a ^ b", "neg": "-a", "eq": "a == b", "ne": "a != b", "lt": "a < b", "le": "a <= b", "gt": "a > b",
    "ge": "a >= b",
    "and_": "a and b", "or_": "a or b", "not_": "not a", "gather": "x[index]",
}  # fmt: skip


def index() -> str:
    """The text of docs/operators.md."""
    from weft.codegen.ops import OPS

    groups: dict[str, list[OpDef]] = {}
    for op in OPS.ops.values():
        groups.setdefault(op.infer.__module__.rpartition(".")[2], []).append(op)
    parts = [_HEAD]
    for group, ops in groups.items():
        parts.append(f"## {group.replace('_', ' ').capitalize()}\n")
        parts += [_entry(op) for op in ops]
    return "\n".join(parts)


def _entry(op: OpDef) -> str:
    written = _SYMBOLS.get(op.name) or f"{op.name}({', '.join(_parameter(param) for param in op.params)})"
    return f"### `{written}`\n\n{' '.join(op.doc.split())}\n"


def _parameter(param: Param) -> str:
    from weft.dsl.opdef import REQUIRED

    if param.default is REQUIRED:
        return param.name
    if param.default is None:
        return f"{param.name}="
    default = str(param.default).lower() if isinstance(param.default, bool) else str(param.default)
    return f"{param.name}={default}"


if __name__ == "__main__":
    Path("docs/operators.md").write_text(index(), encoding="utf-8")
