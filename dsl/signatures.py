"""Types as written in signatures: what they mean, and whether an argument or a result fits."""

from __future__ import annotations

from functools import lru_cache

from . import syntax
from .axes import Axis
from .body import Body
from .diagnostics import Mistake
from .errors.later import NotBuiltYet
from .errors.signatures import ArgumentAxes, BadType
from .errors.sizes import WrongOption
from .opdef import REQUIRED, Accepts, Param
from .program import Value
from .record import record
from .source import Span
from .statics import describe
from .suggest import suggest
from .value_type import EnumType, Flag, Id, Int, Kind, Real, Tag, ValueType, ordered_first

STATIC_KINDS = {
    "axis": Accepts.AXIS, "axes": Accepts.AXES, "mapping": Accepts.MAPPING, "number": Accepts.NUMBER,
    "size": Accepts.NUMBER,  # a number, or the name of a size
    "mask": Accepts.MASK, "block": Accepts.BLOCK, "list": Accepts.INDEX,
}  # fmt: skip
PLAIN_KINDS: dict[str, Kind] = {"real": Real(), "int": Int(), "flag": Flag()}
# What the kinds are called elsewhere.
_ELSEWHERE = {
    "real": "float float16 float32 float64 bfloat16 half double tensor f32 bf16",
    "flag": "bool boolean",
    "int": "integer long int32 int64",
}
OTHER_LANGUAGES = {word: kind for kind, words in _ELSEWHERE.items() for word in words.split()}
HOST_KINDS = ("example", "text", "folder", "table", "checkpoint")


@lru_cache(maxsize=4096)
def parameter(written: syntax.Parameter) -> Param:
    """A block's parameter as a Param, so that blocks and primitives bind their arguments alike."""
    kind = written.type.kind.text if written.type else "real"
    accepts = STATIC_KINDS.get(kind, Accepts.VALUE)
    return Param(written.name.text, accepts, REQUIRED if written.default is None else written.default)


@record
class Generic:
    """Axis parameters of a block still to be inferred from its arguments."""

    names: tuple[str, ...]


class Signatures(Body):
    """The part of elaboration that reads types."""

    def kind(self, type: syntax.TypeExpression) -> Kind:
        name = type.kind.text
        if name in PLAIN_KINDS:
            if type.element is not None:
                raise Mistake(
                    BadType(type.span, f"`{name} in ...` has no meaning", "only `id in A` says what it counts")
                )
            return PLAIN_KINDS[name]
        if name == "id":
            if type.element is None:
                raise Mistake(BadType(type.span, "`id` needs the axis it counts along", "write `id in A`"))
            axis = self.axis(type.element)
            if axis.is_ordered:
                raise Mistake(
                    BadType(
                        type.element.span,
                        f"`{axis.name}` has another length in each example; ids count along a static axis",
                    )
                )
            return Id(axis, type.or_none)
        # An enum's name may also be that of a parameter: `kind: kind[seq]`.
        declared = self.home.lookup(name)
        found = declared if isinstance(declared, EnumType) else self.find(name, type.kind.span)
        if isinstance(found, EnumType):
            return Tag(found)
        if name in HOST_KINDS:
            raise Mistake(NotBuiltYet(type.span, f"a parameter of type `{name}`"))
        known = (*PLAIN_KINDS, "id", *STATIC_KINDS)
        near = OTHER_LANGUAGES.get(name.lower()) or suggest(name, known)
        raise Mistake(BadType(type.kind.span, f"`{name}` is not a type", f"did you mean `{near}`?" if near else None))

    def type_axes(self, type: syntax.TypeExpression) -> tuple[Axis, ...]:
        axes = tuple(axis for item in type.axes or () for axis in self.axes(item))
        if len(set(axes)) != len(axes):
            raise Mistake(
                BadType(type.span, "a value cannot have one axis twice", "declare a second name: `axis out = dim`")
            )
        return axes

    def value_type(self, type: syntax.TypeExpression, per_example: bool = False) -> ValueType:
        """The type a signature writes out in full."""
        if type.kind.text in STATIC_KINDS:
            raise Mistake(BadType(type.span, f"`{type.kind.text}` is not the type of a tensor"))
        if type.any_axes:
            raise Mistake(BadType(type.span, "`[..]` stands for the axes of an argument; here the axes must be named"))
        axes = ordered_first(self.type_axes(type))
        ordered = [axis for axis in axes if axis.is_ordered]
        if len(ordered) > 1:
            names = " nor ".join(f"`{axis.name}`" for axis in ordered[:2])
            what = f"a value lies along one ordered axis; neither {names} owns the other"
            raise Mistake(BadType(type.span, what, "pairs of their rows meet inside `attend` only"))
        return ValueType(self.kind(type), axes, per_example and not ordered)

    def fits(
        self, written: syntax.TypeExpression, value: Value, name: str, generic: dict[str, Axis | None], at: Span
    ) -> None:
        """Checks a tensor argument against its parameter's type and infers generic axes from it."""
        if not self.kind_fits(written, value):
            raise Mistake(ArgumentAxes(at, name, describe(value), f"`{written.span.text}`", written.span))
        if written.any_axes:
            return
        left = list(value.type.axes)
        owners = () if value.type.rows is None else value.type.rows.ancestors
        open_names: list[str] = []
        for item in written.axes or ():
            text = item.text if isinstance(item, syntax.Name) else ""
            if text in generic and generic[text] is None and text not in open_names:
                open_names.append(text)
                continue
            wanted = generic.get(text)
            for axis in (wanted,) if wanted is not None else self.axes(item):
                if axis in owners:
                    continue  # `real[picture, pixel]` is `real[pixel]`
                if axis not in left:
                    raise Mistake(ArgumentAxes(at, name, describe(value), f"`{written.span.text}`", written.span))
                left.remove(axis)
        if len(left) != len(open_names):
            raise Mistake(ArgumentAxes(at, name, describe(value), f"`{written.span.text}`", written.span))
        # Inferred in order, and both sides write ordered axes first.
        generic.update(zip(open_names, left, strict=True))

    def kind_fits(self, written: syntax.TypeExpression, value: Value) -> bool:
        wanted, found = self.kind(written), value.type.kind
        match wanted, found:
            case Id(axis, or_none), Id(own, own_none):
                return (own is axis and or_none >= own_none) or (
                    own.size is not None
                    and axis.size is not None
                    and (own.size < axis.size or (own.size == axis.size and or_none >= own_none))
                )
            case Int(), Id() | Int():
                return True
            case Real(), Real() | Int():
                return True
            case _:
                return wanted == found


def check_option(declaration: syntax.OptionDeclaration, value: object, enum: EnumType | None, at: Span) -> object:
    """An option's value, if it is of the option's sort."""
    from .statics import Member

    kind = declaration.kind.text
    name = declaration.name.text
    match kind:
        case "real" if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value) if isinstance(value, float) else value
        case "int" if isinstance(value, int) and not isinstance(value, bool):
            return value
        case "flag" if isinstance(value, bool):
            return value
        case "list" if isinstance(value, tuple):
            return value
        case _ if enum is not None and isinstance(value, Member) and value.enum is enum:
            return value
    wanted = (
        "one of " + ", ".join(enum.members)
        if enum
        else {"real": "a number", "int": "a whole number", "flag": "true or false"}.get(kind, f"a {kind}")
    )
    raise Mistake(WrongOption(at, name, describe(value), wanted))
