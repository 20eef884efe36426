"""From reductions of the grammar to syntax classes: one function per rule or `-> name` of grammar.lark.

Each takes the span of what was reduced and the children that `Rule.keep` selects. Tokens arrive as `Token`. A rule
without a function here must have one child, which stands for it. What the grammar lets through to give a better message
(a sum left of `=`) is refused here, with a Mistake.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from . import syntax
from .diagnostics import Mistake
from .errors.syntax import BadDeclaration, BadTarget
from .source import Span
from .syntax import Expression, Identifier
from .tree_expressions import (
    Parts,
    Token,
    any_axes,
    argument,
    binary,
    bracketed,
    call,
    compare,
    comparison_tail,
    expressions,
    field,
    group,
    identifier,
    items,
    labelled,
    list_,
    mapping,
    name,
    number,
    or_call,
    parameter,
    pattern,
    pattern_part,
    pipe,
    plain,
    range_,
    string,
    subscript,
    tuple_,
    type_,
    type_axes,
    unary,
    unit,
)

# ---- statements ---------------------------------------------------------------------------------


def local_axis(span: Span, declaration: syntax.Axis) -> syntax.LocalAxis:
    return syntax.LocalAxis(declaration, span)


def evaluate(span: Span, value: Any) -> syntax.Evaluate:
    return syntax.Evaluate(plain(value), span)


def bind(span: Span, *parts: Any) -> syntax.Bind:
    return syntax.Bind(tuple(_target(part) for part in parts[:-1]), plain(parts[-1]), span)


def _target(value: Any) -> syntax.Target:
    match value:
        case syntax.Name(text=text, span=span):
            return syntax.Target(Identifier(text, span), None, span)
        case syntax.Subscript(base=syntax.Name(text=text, span=base), items=(index,), span=span):
            return syntax.Target(Identifier(text, base), index, span)
    raise Mistake(BadTarget(value.span))


def send(span: Span, target: Any, value: Any) -> syntax.Send:
    if not isinstance(target, syntax.Name):
        raise Mistake(BadTarget(target.span))
    return syntax.Send(Identifier(target.text, target.span), plain(value), span)


def return_(span: Span, *values: Any) -> syntax.Return:
    if len(values) == 1:
        return syntax.Return(plain(values[0]), span)
    several = tuple(plain(value) for value in values)
    return syntax.Return(syntax.Tuple(several, several[0].span.to(several[-1].span)), span)


def param(span: Span, named: Identifier, type: syntax.TypeExpression, init: Any) -> syntax.Param:
    return syntax.Param(named, type, plain(init), span)


def optional_input(span: Span, named: Identifier, type: syntax.TypeExpression, default: Any) -> syntax.OptionalInput:
    return syntax.OptionalInput(named, type, plain(default), span)


def for_(span: Span, variable: Identifier, over: Any, body: Parts) -> syntax.For:
    return syntax.For(variable, plain(over), body, span)


def if_(span: Span, condition: Any, body: Parts, orelse: Parts | None) -> syntax.If:
    return syntax.If(plain(condition), body, orelse or (), False, span)


def elif_(span: Span, condition: Any, body: Parts, orelse: Parts | None) -> Parts:
    return (syntax.If(plain(condition), body, orelse or (), True, span),)


def else_(span: Span, body: Parts) -> Parts:
    return body


def routed(span: Span, tag: Any, body: Parts) -> syntax.Routed:
    return syntax.Routed(plain(tag), body, span)


def match_(span: Span, tag: Any, *arms: syntax.Arm) -> syntax.Match:
    return syntax.Match(plain(tag), arms, span)


def arm(span: Span, tags: tuple[Identifier, ...], body: Parts) -> syntax.Arm:
    return syntax.Arm(tags, body, span)


def segment_ends(span: Span, axis: Identifier, into: Identifier, ends: Any, at_most: Any) -> syntax.Segment:
    return syntax.Segment(axis, into, plain(ends), plain(at_most), None, span)


def segment_by(span: Span, axis: Identifier, into: Identifier, by: Any) -> syntax.Segment:
    return syntax.Segment(axis, into, None, None, plain(by), span)


def loss(span: Span, named: Identifier | None, value: Any, only: Any) -> syntax.Loss:
    return syntax.Loss(named, plain(value), plain(only), span)


def on(span: Span, event: Identifier, body: Parts) -> syntax.On:
    return syntax.On(event, None, None, body, span)


def on_each(span: Span, event: Identifier, each: Any, body: Parts) -> syntax.On:
    return syntax.On(event, None, plain(each), body, span)


def on_condition(span: Span, event: Identifier, tail: Parts, body: Parts) -> syntax.On:
    condition = compare(event.span.to(tail[-1].span), syntax.Name(event.text, event.span), tail)
    return syntax.On(event, condition, None, body, span)


# ---- declarations -------------------------------------------------------------------------------


def docstring(span: Span, token: Token) -> syntax.Docstring:
    return syntax.Docstring(token.text[3:-3].replace("\r\n", "\n"), span)


def use(
    span: Span,
    module: tuple[Identifier, ...],
    settings: Parts | None,
    alias: Identifier | None,
    *names: syntax.UsedName | None,
) -> syntax.Use:
    return syntax.Use(module, settings or (), alias, tuple(used for used in names if used), span)


def used_name(span: Span, named: Identifier, alias: Identifier | None) -> syntax.UsedName:
    return syntax.UsedName(named, alias, span)


def preset(span: Span, named: Identifier, *settings: Parts | None) -> syntax.Preset:
    return syntax.Preset(named, tuple(setting for some in settings if some for setting in some), span)


def setting_lines(span: Span, *lines: Parts) -> Parts:
    return tuple(setting for line in lines for setting in line)


def setting(span: Span, named: Identifier, value: Any) -> syntax.Setting:
    return syntax.Setting(named, plain(value), span)


def size_default(span: Span, named: Identifier, value: Any) -> syntax.SizeDefault:
    return syntax.SizeDefault(named, plain(value), span)


def option(span: Span, named: Identifier, kind: Identifier, default: Any) -> syntax.OptionDeclaration:
    return syntax.OptionDeclaration(named, kind, plain(default), span)


def _axis(form: str, span: Span, named: Identifier, **parts: Any) -> syntax.Axis:
    fields: dict[str, Any] = {"index": None, "value": None, "parent": None, "where": None, "cases": ()}
    return syntax.Axis(form, named, span=span, **(fields | parts))


def axis_ragged(span: Span, named: Identifier) -> syntax.Axis:
    return _axis("ragged", span, named)


def axis_grid(span: Span, named: Identifier) -> syntax.Axis:
    return _axis("grid", span, named)


def axis_static(span: Span, named: Identifier, index: Identifier | None, value: Any) -> syntax.Axis:
    return _axis("static", span, named, index=index, value=plain(value))


def axis_nested(span: Span, named: Identifier, parent: Identifier) -> syntax.Axis:
    return _axis("nested", span, named, parent=parent)


def axis_cut(span: Span, named: Identifier, parent: Identifier) -> syntax.Axis:
    return _axis("cut", span, named, parent=parent)


def axis_selected(span: Span, named: Identifier, parent: Any, where: Any) -> syntax.Axis:
    if not isinstance(parent, syntax.Name):
        what = "rows are selected from one axis: `axis word = seq where ...`"
        raise Mistake(BadDeclaration(parent.span, what))
    return _axis("selected", span, named, parent=Identifier(parent.text, parent.span), where=plain(where))


def axis_by_case(span: Span, named: Identifier, tag: Any, *cases: Any) -> syntax.Axis:
    return _axis("by_case", span, named, value=plain(tag), cases=cases)


def axis_case(span: Span, tag: Identifier, value: Any) -> tuple[Identifier, Expression]:
    return (tag, plain(value))


def enum(span: Span, named: Identifier, members: tuple[Identifier, ...]) -> syntax.Enum:
    return syntax.Enum(named, members, span)


def shared(
    span: Span, named: Identifier, index: Identifier | None, type: syntax.TypeExpression, init: Any
) -> syntax.Shared:
    return syntax.Shared(named, index, type, None, plain(init), span)


def shared_call(span: Span, named: Identifier, index: Identifier | None, made: syntax.Call, init: Any) -> syntax.Shared:
    return syntax.Shared(named, index, None, made, plain(init), span)


def mask(span: Span, named: Identifier, parameters: Parts | None, value: Any) -> syntax.Mask:
    return syntax.Mask(named, parameters or (), plain(value), span)


def block(
    span: Span, form: Token, named: Identifier, axes: Parts | None, parameters: Parts, result: Any, body: Parts
) -> syntax.Block:
    return syntax.Block(form.text, named, axes or (), parameters, result, body, span)


def model(span: Span, form: Token, named: Identifier, parameters: Parts, result: Any, body: Parts) -> syntax.Block:
    return syntax.Block(form.text, named, (), parameters, result, body, span)


def objective(span: Span, named: Identifier, parameters: Parts, trains: Parts | None, body: Parts) -> syntax.Objective:
    return syntax.Objective(named, parameters, trains or (), body, span)


def init(span: Span, where: syntax.Pattern, value: Any) -> syntax.Init:
    return syntax.Init(where, plain(value), span)


def init_copy(span: Span, where: syntax.Pattern, copy: Token, source: syntax.Pattern) -> syntax.Init:
    # A pattern is not an expression: it stands in a tree here only.
    argument = syntax.Argument(None, cast("Expression", source), source.span)
    made = syntax.Call(
        syntax.Name(copy.text, copy.span), (argument,), None, Span(span.source, copy.span.start, span.end)
    )
    return syntax.Init(where, made, span)


def freeze(span: Span, patterns: Parts, where: Any) -> syntax.Freeze:
    return syntax.Freeze(patterns, plain(where), span)


def optimise(span: Span, made: syntax.Call, *lines: syntax.OptimiseLine) -> syntax.Optimise:
    return syntax.Optimise(made, lines, span)


def optimiser(span: Span, callee: Expression, arguments: Parts | None) -> syntax.Call:
    return syntax.Call(callee, arguments or (), None, span)


def optimise_line(span: Span, where: syntax.Pattern, settings: Parts) -> syntax.OptimiseLine:
    return syntax.OptimiseLine(where, settings, span)


def hook(
    span: Span,
    named: Identifier,
    parameters: Parts | None,
    site: syntax.Pattern,
    alias: Identifier | None,
    when: Any,
    body: Parts,
) -> syntax.Hook:
    return syntax.Hook(named, parameters or (), site, alias, plain(when), body, span)


def memory(span: Span, named: Identifier, settings: Parts) -> syntax.Memory:
    return syntax.Memory(named, settings, span)


def extern(span: Span, named: Identifier, parameters: Parts, result: syntax.TypeExpression) -> syntax.Extern:
    return syntax.Extern(named, parameters, result, span)


def generate(span: Span, named: Identifier, parameters: Parts, body: Parts) -> syntax.Generate:
    return syntax.Generate(named, parameters, body, span)


def recipe(span: Span, named: Identifier, parameters: Parts, body: Parts) -> syntax.Recipe:
    return syntax.Recipe(named, parameters, body, span)


def weights(span: Span, format: Identifier, *lines: syntax.ConfigEntry | syntax.TensorEntry | Parts) -> syntax.Weights:
    config = tuple(line for line in lines if isinstance(line, syntax.ConfigEntry))
    tensors = tuple(line for line in lines if isinstance(line, syntax.TensorEntry))
    new = tuple(pattern for line in lines if isinstance(line, tuple) for pattern in line)
    return syntax.Weights(format, config, tensors, new, span)


def config_entry(span: Span, key: Token, value: Any) -> syntax.ConfigEntry:
    return syntax.ConfigEntry(string(key.span, key), plain(value), span)


def new_entry(span: Span, patterns: Parts) -> Parts:
    return patterns


def tensor_entry(span: Span, foreign: Token, patterns: Parts, axes: Parts | None) -> syntax.TensorEntry:
    return syntax.TensorEntry(string(foreign.span, foreign), patterns, axes, span)


BUILDERS: dict[str, Callable[..., Any]] = {
    "name": name, "number": number, "string": string, "identifier": identifier, "group": group, "unit": unit,
    "tuple_": tuple_, "list_": list_, "expressions": expressions, "call": call, "named_call": call, "or_call": or_call,
    "subscript": subscript,
    "field": field, "labelled": labelled, "pipe": pipe, "binary": binary, "unary": unary, "compare": compare,
    "comparison_tail": comparison_tail, "range_": range_, "mapping": mapping, "argument": argument, "arguments": items,
    "type": type_, "any_axes": any_axes, "type_axes": type_axes, "tensor_axes": type_axes, "parameter": parameter,
    "parameters": items, "parameter_list": bracketed, "axis_parameters": bracketed, "settings_call": bracketed,
    "pattern": pattern, "patterns": items, "pattern_part": pattern_part, "settings": items, "identifiers": items,
    "module": items, "body": items, "local_axis": local_axis, "evaluate": evaluate, "bind": bind, "send": send,
    "return_": return_, "param": param, "optional_input": optional_input, "for_": for_, "if_": if_, "elif_": elif_,
    "else_": else_, "routed": routed, "match_": match_, "arm": arm, "segment_ends": segment_ends,
    "segment_by": segment_by, "loss": loss, "on": on, "on_each": on_each, "on_condition": on_condition,
    "docstring": docstring, "use": use, "used_name": used_name, "preset": preset, "preset_name": identifier,
    "preset_in_brackets": preset, "setting_lines": setting_lines, "setting": setting, "size_default": size_default,
    "option": option, "axis_ragged": axis_ragged, "axis_grid": axis_grid, "axis_static": axis_static,
    "axis_nested": axis_nested, "axis_cut": axis_cut, "axis_selected": axis_selected, "axis_by_case": axis_by_case,
    "axis_case": axis_case, "enum": enum, "shared": shared, "shared_call": shared_call, "mask": mask, "block": block,
    "model": model, "objective": objective, "init": init, "init_copy": init_copy, "freeze": freeze,
    "optimise": optimise,
    "optimise_bare": optimise, "optimiser": optimiser, "optimise_line": optimise_line, "hook": hook, "memory": memory,
    "extern": extern, "generate": generate, "recipe": recipe, "weights": weights, "config_entry": config_entry,
    "tensor_entry": tensor_entry, "new_entry": new_entry,
}  # fmt: skip

# What counts as one level of nesting: later stages walk trees recursively, so depth has a limit.
NESTING = frozenset({
    "group", "tuple_", "list_", "call", "or_call", "subscript", "field", "pipe", "binary", "unary", "compare", "range_",
    "for_",
    "if_", "elif_", "routed", "match_", "on", "on_each", "on_condition", "labelled",
})  # fmt: skip
