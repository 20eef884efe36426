"""An fx graph as readable Python: one line per node, and above each group of lines the spec line it serves.

    # olmo2.weft:14  q = linear(x, dim -> (heads, head_dim))
    q = torch.nn.functional.linear(x, self["layer.0.attention.q.weight"])

Only names that were validated, numbers, and functions found again under the name they are printed with reach the
text. Spec lines appear in comments, with everything unprintable replaced.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from ..dsl.program import Weight
from .bags.op import BagOp
from .graph_context import CompilerBug
from .grouped.op import GroupedOp
from .logits.op import LogitsOp
from .origin import origin
from .rowwise.fused import FusedOp
from .spec_comment import comment
from .weight_tree import attribute_path

_INFIX: dict[Callable[..., Any], str] = {
    operator.add: "+", operator.sub: "-", operator.mul: "*", operator.truediv: "/",
    operator.floordiv: "//", operator.mod: "%", operator.pow: "**", operator.eq: "==", operator.ne: "!=",
    operator.lt: "<", operator.le: "<=", operator.gt: ">", operator.ge: ">=", operator.and_: "&", operator.or_: "|",
}  # fmt: skip
_PREFIX: dict[Callable[..., Any], str] = {operator.neg: "-", operator.invert: "~"}
_LIBRARIES = (("torch.nn.functional", torch.nn.functional), ("torch", torch), ("operator", operator), ("math", math))
_PACKAGES = ("functions", "cpu", "gpu")
KERNELS = "_kernels"
# Calls of generated kernels.
KernelOp = FusedOp | LogitsOp | GroupedOp | BagOp


@dataclass
class Imports:
    """Which of our torch-only modules the text calls: (package, module), to be copied beside it; and which kernels.

    `home` is the package they are in, as the text names it: "." for the one the text itself is in.
    """

    modules: set[tuple[str, str]] = field(default_factory=set)
    libraries: set[str] = field(default_factory=set)
    kernels: dict[object, KernelOp] = field(default_factory=dict)  # by what they are, so that equal ones are one
    home: str = "."

    def kernel(self, op: KernelOp) -> str:
        """The name of a call among all that the text makes."""
        if op.key not in self.kernels:
            taken = {known.name for known in self.kernels.values()}
            name, number = op.name, 1
            while name in taken:
                number += 1
                name = f"{op.name}_{number}"
            self.kernels[op.key] = op if name == op.name else op.renamed(name)
        return self.kernels[op.key].name

    @property
    def lines(self) -> list[str]:
        ours = [
            f"from {self.home}{package} import {module} as {_alias(package, module)}"
            for package, module in sorted(self.modules)
        ]
        if self.kernels:
            ours.append(f"from . import kernels as {KERNELS}")
        return [
            *(f"import {name}" for name in sorted({name.partition(".")[0] for name in self.libraries} | {"torch"})),
            "",
            *ours,
        ]


def _alias(package: str, module: str) -> str:
    # A leading underscore keeps it apart from the variables, which are named after the spec's.
    return f"_{package}_{module}"


def method(name: str, module: fx.GraphModule, imports: Imports) -> str:
    """A method of a weight tree that runs the graph."""
    lines = function(name, module, imports, ("self",)).splitlines()
    return "".join(f"    {line}\n" for line in lines)


def function(name: str, module: fx.GraphModule, imports: Imports, before: tuple[str, ...] = ()) -> str:
    """A function that runs the graph; `before` are parameters ahead of the graph's own."""
    return "".join(f"{line}\n" for line, _ in function_lines(name, module, imports, before))


def function_lines(
    name: str, module: fx.GraphModule, imports: Imports, before: tuple[str, ...] = ()
) -> list[tuple[str, fx.Node | None]]:
    """The lines of such a function, each with the node it is for."""
    if not name.isidentifier():
        raise CompilerBug(f"{name!r} is not an identifier")
    names = _names(module.graph)
    arguments = [*before, *(names[node] for node in module.graph.nodes if node.op == "placeholder")]
    lines: list[tuple[str, fx.Node | None]] = [(f"def {name}({', '.join(arguments)}):", None)]
    freed = _last_uses(module.graph)
    where: tuple[str, int] | None = None
    group: list[fx.Node] = []
    for node in module.graph.nodes:
        if node.op == "placeholder":
            continue
        span = origin(node).span
        if node.op == "call_function" and span is not None and (place := (span.source.name, span.line)) != where:
            lines += [(line, None) for line in _release(group, freed, names)]
            lines.append((f"    # {comment(span)}", node))
            where, group = place, []
        group.append(node)
        if node.op == "output":
            lines.append((f"    return {_text(node.args[0], names)}", node))
        elif node.op == "call_function":
            lines.append((f"    {names[node]} = {_call(node, names, imports)}", node))
        elif node.op != "get_attr":
            raise CompilerBug(f"a node of kind {node.op} cannot be written")
    return lines


def _names(graph: fx.Graph) -> dict[fx.Node, str]:
    """What each node is called. Weights are read where they are used."""
    names: dict[fx.Node, str] = {}
    taken = {"self", "torch", "operator", "math"}
    for node in graph.nodes:
        if node.op == "get_attr":
            names[node] = f'self["{_checked_path(node)}"]'
            continue
        name = str(node.target) if node.op == "placeholder" else node.name
        if not (name.isascii() and name.isidentifier()):
            raise CompilerBug(f"{name!r} is not an identifier")
        while name in taken:
            name += "_"
        taken.add(name)
        names[node] = name
    return names


def _checked_path(node: fx.Node) -> str:
    value = origin(node).value
    if not isinstance(value, Weight) or str(node.target) != "weights." + attribute_path(value.path):
        raise CompilerBug(f"{node.target} is not the weight it says it is")
    for part in value.path.split("."):
        if not (part.isascii() and (part.isidentifier() or part.isdigit())):
            raise CompilerBug(f"{part!r} is not part of a weight's path")
    return value.path


def _last_uses(graph: fx.Graph) -> dict[fx.Node, list[fx.Node]]:
    """Which values are read for the last time by each node."""
    seen: set[fx.Node] = set()
    result: dict[fx.Node, list[fx.Node]] = {}
    for node in reversed(graph.nodes):
        for value in node.all_input_nodes:
            if value not in seen and node.op != "output":
                seen.add(value)
                if value.op == "call_function":
                    result.setdefault(node, []).append(value)
            seen.add(value)
    return result


def _release(group: list[fx.Node], freed: dict[fx.Node, list[fx.Node]], names: dict[fx.Node, str]) -> list[str]:
    """What nobody reads after a group is let go, so that it does not stay in memory until the end."""
    done = [names[value] for node in group for value in freed.get(node, ())]
    return [f"    del {', '.join(done)}"] if done else []


def _call(node: fx.Node, names: dict[fx.Node, str], imports: Imports) -> str:
    target: Any = node.target
    arguments = [_text(a, names) for a in node.args]
    if not node.kwargs:
        if target in _INFIX and len(arguments) == 2:
            # -2 ** x would mean -(2 ** x).
            left = f"({arguments[0]})" if arguments[0].startswith("-") else arguments[0]
            return f"{left} {_INFIX[target]} {arguments[1]}"
        if target in _PREFIX and len(arguments) == 1:
            return f"{_PREFIX[target]}{arguments[0]}"
        if target is operator.getitem:
            return f"{arguments[0]}[{_index(node.args[1], names)}]"
    words = [*arguments, *(f"{key}={_text(value, names)}" for key, value in node.kwargs.items())]
    name = getattr(target, "__name__", "")
    if name.isidentifier() and getattr(torch.Tensor, name, None) is target and node.args:
        return f"{words[0]}.{name}({', '.join(words[1:])})"
    return f"{function_name(target, imports)}({', '.join(words)})"


def function_name(function: Any, imports: Imports) -> str:
    """The dotted name that means `function` in the text."""
    if isinstance(function, KernelOp):
        return f"{KERNELS}.{imports.kernel(function)}"
    name = getattr(function, "__name__", "")
    module = getattr(function, "__module__", "") or ""
    for library, found in _LIBRARIES:
        if name.isidentifier() and getattr(found, name, None) is function:
            imports.libraries.add(library)
            return f"{library}.{name}"
    *_, package, short = ("", "", *module.split("."))
    if package in _PACKAGES and name.isidentifier() and short.isidentifier():
        imports.modules.add((package, short))
        return f"{_alias(package, short)}.{name}"
    raise CompilerBug(f"the function {function!r} has no name a generated module could use")


def _index(argument: Any, names: dict[fx.Node, str]) -> str:
    parts = argument if isinstance(argument, tuple) else (argument,)
    return ", ".join(":" if part == slice(None) else _text(part, names) for part in parts)


def _text(argument: Any, names: dict[fx.Node, str]) -> str:
    match argument:
        case fx.Node():
            return names[argument]
        case tuple():
            inner = ", ".join(_text(part, names) for part in argument)
            return f"({inner},)" if len(argument) == 1 else f"({inner})"
        case list():
            return "[" + ", ".join(_text(part, names) for part in argument) + "]"
        case None | bool() | int() | str():
            return repr(argument)
        case float():
            return repr(argument) if math.isfinite(argument) else f'float("{argument}")'
        case torch.dtype():
            return str(argument)
        case slice():
            return (
                f"slice({_text(argument.start, names)}, {_text(argument.stop, names)}, {_text(argument.step, names)})"
            )
        case _:
            raise CompilerBug(f"{argument!r} cannot be written into a generated module")
