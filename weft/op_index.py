"""The page that lists every operator, made from the op table: `python -m weft.op_index` writes docs/operators.md."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from weft.dsl.opdef import REQUIRED

if TYPE_CHECKING:
    from weft.dsl.opdef import OpDef, Param

_HEAD = """# Operators

The primitives of the language, grouped by file, and then the [standard library](#standard-library), which is built on
them. This page is generated from the op table and from `specs/std` by `python -m weft.op_index`.
"""
_STANDARD = """## Standard library

Written in Weft under `specs/std`, and known in every spec without a `use`. What has a default may be left out.
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
    return "\n".join((*parts, _STANDARD, *_standard_library()))


def _standard_library() -> Iterator[str]:
    """For each file its docstring, and the signatures of what it declares."""
    from weft.dsl import syntax
    from weft.dsl.diagnostics import Problems
    from weft.dsl.parser import parse
    from weft.dsl.source import Source

    for path in sorted((files("weft.specs") / "std").iterdir(), key=lambda path: path.name):
        if not path.name.endswith(".weft"):
            continue
        source = Source(path.name, path.read_text("utf-8"))
        file = parse(source, Problems())
        heads = []
        for declaration in file.declarations:
            if isinstance(declaration, syntax.Block):
                end = declaration.body[0].span.start
                heads.append(" ".join(source.text[declaration.span.start : end].split()).removesuffix(":"))
            else:
                heads.append(declaration.span.text)
        heads = [head.replace("( ", "(").replace(", )", ")") for head in heads]
        said = file.docstring.text.strip() if file.docstring else ""
        yield f"### {path.name.removesuffix('.weft')}\n\n{said}\n\n```\n" + "\n".join(heads) + "\n```\n"


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
