"""The page that lists every operator, made from the op table: `python -m weft.op_index` writes docs/operators.md."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from weft.dsl.opdef import REQUIRED

if TYPE_CHECKING:
    from weft.dsl.opdef import OpDef, Param

_HEAD = """# Operators

The primitives of the language, grouped by file. What is built on them (`rms_norm`, `rope`, `swiglu`, `cross_entropy`,
masks) is written in Weft under `specs/std`. This page is generated from the op table by `python -m weft.op_index`.
"""


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
    """A doc begins with how the operator is written; the parameters it leaves out of that follow."""
    doc = " ".join(op.doc.split())
    unnamed = [param for param in op.params if f"{param.name}=" not in doc and param.default is not REQUIRED]
    more = "".join(f"\n\n`{param.name}`: {_default(param)}." for param in unnamed)
    return f"### {op.name.rstrip('_')}\n\n{doc}{more}\n"


def _default(param: Param) -> str:
    if param.default is None:
        return "may be left out"
    default = str(param.default).lower() if isinstance(param.default, bool) else str(param.default)
    return f"{default} where it is left out"


if __name__ == "__main__":
    Path("docs/operators.md").write_text(index(), encoding="utf-8")
