"""What was written: the syntax tree, one frozen dataclass per construct, every node with its span.

The parser is the only maker of these. Comments are not nodes: they travel beside the tree, for the formatter.
Trees compare by identity; `structure` in parser.py compares two trees by content, spans left out.
"""

from __future__ import annotations

from .record import record
from .source import Source, Span

# ---- expressions --------------------------------------------------------------------------------


@record(eq=False)
class Identifier:
    """A name where one is declared or mentioned: axis, size, binding, parameter."""

    text: str
    span: Span


@record(eq=False)
class Number:
    """`32`, `50_000`, `5e5`, `1e-6`. An int when written without point and exponent."""

    value: int | float
    span: Span


@record(eq=False)
class String:
    """`"..."`: foreign names, file names, never code."""

    value: str
    span: Span


@record(eq=False)
class Name:
    text: str
    span: Span


@record(eq=False)
class Field:
    """`run.logits`."""

    base: Expression
    name: Identifier
    span: Span


@record(eq=False)
class Subscript:
    """`ref[found.index]`, `skip[n - 1 - i]`, `stage[2](x)`."""

    base: Expression
    items: tuple[Expression, ...]
    span: Span


@record(eq=False)
class Argument:
    """`x`, `over=dim`, `dim -> (heads, head_dim)`."""

    name: Identifier | None
    value: Expression
    span: Span


@record(eq=False)
class Call:
    """`linear(x, dim -> ffn) as gate`. In a pipe the first argument is the left side, and `arguments` lacks it.

    `label` is what `as` names; None without `as`.
    """

    callee: Expression
    arguments: tuple[Argument, ...]
    label: Identifier | None
    span: Span


@record(eq=False)
class Pipe:
    """`x |> rms_norm(over=dim)`, `x |> silu`. A bare name on the right is a call without further arguments
    (and may carry an `as` label): the parser makes a Call of it with `parenthesised=False` kept by its span."""

    left: Expression
    call: Call
    span: Span


@record(eq=False)
class Mapping:
    """`dim -> (heads, head_dim)`: each side a name or a parenthesised list of names."""

    left: Expression
    right: Expression
    span: Span


@record(eq=False)
class Group:
    """`(a)`: parentheses as written. One item, no comma."""

    inner: Expression
    span: Span


@record(eq=False)
class Tuple:
    """`(heads, head_dim)`, `(1, 1, 2, 2)`, `(one,)`, `()`."""

    items: tuple[Expression, ...]
    span: Span


@record(eq=False)
class ListOf:
    """`[a, b]`, in recipes."""

    items: tuple[Expression, ...]
    span: Span


@record(eq=False)
class Unary:
    """`operator` is `-` or `not`."""

    operator: str
    operand: Expression
    span: Span


@record(eq=False)
class Binary:
    """`operator` is one of `+ - * / // mod ^ and or`."""

    operator: str
    left: Expression
    right: Expression
    span: Span


@record(eq=False)
class Comparison:
    """`0.2 <= time <= 1.0`: operands one more than operators. Operators: `== != < <= > >=`."""

    operands: tuple[Expression, ...]
    operators: tuple[str, ...]
    span: Span


@record(eq=False)
class Range:
    """`0 .. layers`: half open, static."""

    start: Expression
    stop: Expression
    span: Span


Expression = (
    Number | String | Name | Field | Subscript | Call | Pipe | Mapping | Group | Tuple | ListOf | Unary
    | Binary | Comparison | Range
)  # fmt: skip

# ---- types in signatures ------------------------------------------------------------------------


@record(eq=False)
class TypeExpression:
    """`real[seq, dim]`, `id[seq] in vocab`, `id in classes or none`, `modality[seq]`, `real[..]`, `size`, `mask`.

    `axes` is None where no brackets are written; `any_axes` is true for `[..]`. `element` is what follows `in`.
    """

    kind: Identifier
    axes: tuple[Expression, ...] | None
    any_axes: bool
    element: Expression | None
    or_none: bool
    span: Span


@record(eq=False)
class Parameter:
    """`x: real[row, width]`, `alpha = 0.9`, `over: axes = feature(x)`. `type` is None when only a default is given;
    both are None for a bare name (recipes, generate)."""

    name: Identifier
    type: TypeExpression | None
    default: Expression | None
    span: Span


@record(eq=False)
class Pattern:
    """A pattern over weight paths or sites: `**.linear.weight`, `layer.*.attention.heads_out`. `*` is one part, `**`
    any.

    A part may also be a number (`layer.3`).
    """

    parts: tuple[str, ...]
    span: Span

    @property
    def text(self) -> str:
        return ".".join(self.parts)


# ---- statements ---------------------------------------------------------------------------------


@record(eq=False)
class Target:
    """Left of `=`: `x`, or a family member `skip[i]`."""

    name: Identifier
    index: Expression | None
    span: Span


@record(eq=False)
class Bind:
    """`q = ...`, `shift, scale = split(...)`."""

    targets: tuple[Target, ...]
    value: Expression
    span: Span


@record(eq=False)
class Evaluate:
    """A bare expression as a statement: `rewind(row, tries=1)`."""

    value: Expression
    span: Span


@record(eq=False)
class Send:
    """`knowledge <- retrieve(prompt)`."""

    target: Identifier
    value: Expression
    span: Span


@record(eq=False)
class Return:
    value: Expression
    span: Span


@record(eq=False)
class Param:
    """`param keys: real[half_key, heads, half, key] = normal(0.02)`."""

    name: Identifier
    type: TypeExpression
    init: Expression | None
    span: Span


@record(eq=False)
class OptionalInput:
    """`input ends: flag[seq] = EXPR`."""

    name: Identifier
    type: TypeExpression
    default: Expression
    span: Span


@record(eq=False)
class LocalAxis:
    """`axis head_dim = width / heads` inside a body. Same meaning as the declaration, fresh per instantiation."""

    declaration: Axis
    span: Span


@record(eq=False)
class For:
    """`for i in 0 .. layers:` or over a static list."""

    variable: Identifier
    over: Expression
    body: tuple[Statement, ...]
    span: Span


@record(eq=False)
class If:
    """`if cond:`, then `elif` arms as a nested If in `orelse` (`is_elif` true), `else:`. Static only."""

    condition: Expression
    body: tuple[Statement, ...]
    orelse: tuple[Statement, ...]
    is_elif: bool
    span: Span


@record(eq=False)
class Routed:
    """`routed by kind:`."""

    tag: Expression
    body: tuple[Statement, ...]
    span: Span


@record(eq=False)
class Arm:
    """`text, image:` and its body."""

    tags: tuple[Identifier, ...]
    body: tuple[Statement, ...]
    span: Span


@record(eq=False)
class Match:
    """`match tag:` with arms."""

    tag: Expression
    arms: tuple[Arm, ...]
    span: Span


@record(eq=False)
class Segment:
    """`segment seq into patch ends where cond, at most 16` (ends) or `segment seq into line by x` (by)."""

    axis: Identifier
    into: Identifier
    ends: Expression | None
    at_most: Expression | None
    by: Expression | None
    span: Span


@record(eq=False)
class Loss:
    """`loss text = cross_entropy(...)`. `name` is None for `loss = ...`. `only` is the condition after `only`:
    rows where it is false are not counted."""

    name: Identifier | None
    value: Expression
    only: Expression | None
    span: Span


@record(eq=False)
class On:
    """`on token == boi:`, `on sentence each n:`, `on end:` in a generate program.

    `event` is `token`, `sentence`, `end`, ...; `condition` follows it as a comparison; `each` follows `each`.
    """

    event: Identifier
    condition: Expression | None
    each: Expression | None
    body: tuple[Statement, ...]
    span: Span


Statement = (
    Bind | Evaluate | Send | Return | Param | OptionalInput | LocalAxis | For | If | Routed | Match | Segment
    | Loss | On
)  # fmt: skip

# ---- declarations -------------------------------------------------------------------------------


@record(eq=False)
class Docstring:
    text: str
    span: Span


@record(eq=False)
class UsedName:
    """`layer`, `layer as block_layer` in `use transformer: layer`."""

    name: Identifier
    alias: Identifier | None
    span: Span


@record(eq=False)
class Use:
    """`use transformer: layer, norm`, `use llama as policy`, `use entropy_lm(dim = local)`.

    `module` has several parts for `use std.norm`. `names` is empty without a colon.
    """

    module: tuple[Identifier, ...]
    settings: tuple[Argument, ...]
    alias: Identifier | None
    names: tuple[UsedName, ...]
    span: Span


@record(eq=False)
class Setting:
    """`dim = 4096` in a preset, `decay=0` in an optimise line."""

    name: Identifier
    value: Expression
    span: Span


@record(eq=False)
class Preset:
    """`size 7b: layers = 32, dim = 4096`. `name` may start with a digit."""

    name: Identifier
    settings: tuple[Setting, ...]
    span: Span


@record(eq=False)
class SizeDefault:
    """`size head_dim = dim / heads`: a size with a default, which a preset or the command line may override."""

    name: Identifier
    value: Expression
    span: Span


@record(eq=False)
class OptionDeclaration:
    """`option rule: patcher = entropy`, `option theta: real = 5e5`, `option tied: flag = false`, `option places: list
    = (3,)`."""

    name: Identifier
    kind: Identifier
    default: Expression
    span: Span


@record(eq=False)
class Axis:
    """All axis declarations. `form` says which, and which fields are set:

    ragged      `axis seq`
    grid        `axis image grid`
    static      `axis head_dim = dim / heads`, also scaled, joined and `grid(32, 32)`: `value`
    nested      `axis pixel in picture`: `parent`
    cut         `axis patch cut from seq`: `parent`
    selected    `axis word = seq where kind == text`: `parent`, `where`
    by_case     `axis cell = match worth: r8: image / 8, r16: image / 16`: `value` (the tag), `cases`
    Family members also have `index` (`axis level[i] = image / 2^i`); their form is `static`.
    """

    form: str
    name: Identifier
    index: Identifier | None
    value: Expression | None
    parent: Identifier | None
    where: Expression | None
    cases: tuple[tuple[Identifier, Expression], ...]
    span: Span


@record(eq=False)
class Enum:
    name: Identifier
    members: tuple[Identifier, ...]
    span: Span


@record(eq=False)
class Shared:
    """`shared values: real[slot, dim]` (type) or `shared stage[i]: upstage(width=wide[i])` (call)."""

    name: Identifier
    index: Identifier | None
    type: TypeExpression | None
    call: Expression | None
    init: Expression | None
    span: Span


@record(eq=False)
class Mask:
    """`mask window(w) = abs(query(position) - key(position)) < w`."""

    name: Identifier
    parameters: tuple[Parameter, ...]
    value: Expression
    span: Span


@record(eq=False)
class Block:
    """`block layer[row, width](x: real[row, width], heads: size) -> real[row, width]:`. `form` is `block` or
    `model`."""

    form: str
    name: Identifier
    axes: tuple[Identifier, ...]
    parameters: tuple[Parameter, ...]
    result: TypeExpression | None
    body: tuple[Statement, ...]
    span: Span


@record(eq=False)
class Objective:
    """`objective joint(...) trains lmfusion.**:`. `trains` is empty when not written: all weights."""

    name: Identifier
    parameters: tuple[Parameter, ...]
    trains: tuple[Pattern, ...]
    body: tuple[Statement, ...]
    span: Span


@record(eq=False)
class Init:
    """`init **.linear.weight = trunc_normal(0.02, cut=3)`, `init layer.*.image = copy(layer.*.text)`.

    The one argument of `copy` is a Pattern, which stands in no other expression.
    """

    pattern: Pattern
    value: Expression
    span: Span


@record(eq=False)
class Freeze:
    """`freeze **.text, embed`, `freeze layer where kind == text`."""

    patterns: tuple[Pattern, ...]
    where: Expression | None
    span: Span


@record(eq=False)
class OptimiseLine:
    """`embed: decay=0`."""

    pattern: Pattern
    settings: tuple[Setting, ...]
    span: Span


@record(eq=False)
class Optimise:
    """`optimise by adamw(lr=3e-4, betas=(0.9, 0.95)):` with lines; `call` is the optimiser and its settings."""

    call: Call
    lines: tuple[OptimiseLine, ...]
    span: Span


@record(eq=False)
class Hook:
    """`hook negtome(alpha = 0.9) at **.attention.heads_out as x when 0.2 <= time <= 1.0:`."""

    name: Identifier
    parameters: tuple[Parameter, ...]
    site: Pattern
    alias: Identifier | None
    when: Expression | None
    body: tuple[Statement, ...]
    span: Span


@record(eq=False)
class Memory:
    """`memory knowledge: units = 8, tokens = 128`."""

    name: Identifier
    settings: tuple[Setting, ...]
    span: Span


@record(eq=False)
class Extern:
    """`extern retrieve(query: text) -> text`: a function the host supplies to `generate` programs."""

    name: Identifier
    parameters: tuple[Parameter, ...]
    result: TypeExpression
    span: Span


@record(eq=False)
class Generate:
    name: Identifier
    parameters: tuple[Parameter, ...]
    body: tuple[Statement, ...]
    span: Span


@record(eq=False)
class Recipe:
    name: Identifier
    parameters: tuple[Parameter, ...]
    body: tuple[Statement, ...]
    span: Span


@record(eq=False)
class ConfigEntry:
    """`config "hidden_size" = dim`: read into a size or option on import, or checked when the right side is a constant;
    written on export."""

    key: String
    value: Expression
    span: Span


@record(eq=False)
class TensorEntry:
    """`tensor "model.layers.*.mlp.up_proj.weight" = layer.*.swiglu.up.linear.weight`.

    `*` on the right is matched, in order, by `*` in the foreign name. Several patterns: the foreign tensor is their
    concatenation along its first axis (split on import, merge on export). `axes` is the order of the foreign tensor's
    axes when it is not ours: `[dim, (heads, head_dim)]`; the parts are names or tuples of names.
    """

    foreign: String
    patterns: tuple[Pattern, ...]
    axes: tuple[Expression, ...] | None
    span: Span


@record(eq=False)
class Weights:
    """`weights huggingface:` with config and tensor lines, and the patterns of its `new` lines."""

    format: Identifier
    config: tuple[ConfigEntry, ...]
    tensors: tuple[TensorEntry, ...]
    new: tuple[Pattern, ...]
    span: Span


Declaration = (
    Use | Preset | SizeDefault | OptionDeclaration | Axis | Enum | Shared | Mask | Block | Objective | Init
    | Freeze | Optimise | Hook | Memory | Extern | Generate | Recipe | Weights
)  # fmt: skip


@record(eq=False)
class Comment:
    """`# ...` with where it stands. `own_line` is false for a comment after code on the same line."""

    text: str
    own_line: bool
    span: Span


@record(eq=False)
class File:
    """One parsed spec. `comments` are in order of position; `broken` is true when an item could not be parsed and is
    missing from `declarations`."""

    source: Source
    docstring: Docstring | None
    declarations: tuple[Declaration, ...]
    comments: tuple[Comment, ...]
    broken: bool
