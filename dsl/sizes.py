"""Choosing sizes and options for one instance of a file: overrides, then the preset, then defaults."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from . import syntax
from .axes import Axis, Static
from .axis_declarations import check_length, length
from .diagnostics import Mistake, Noted, Problems
from .errors.names import CircularUse, did_you_mean
from .errors.signatures import BadType
from .errors.sizes import BadSize, SizeNotSet, UnknownPreset, UnknownSize, WrongOption
from .expressions import Expressions
from .length import Length
from .modules import Instance, Module
from .record import record
from .signatures import check_option
from .source import Source, Span
from .static_math import Measure, number_of
from .statics import UNKNOWN, Member, describe
from .suggest import is_slip, suggest
from .value_type import EnumType

Override = int | float | bool | str | tuple[int | float, ...]


@record
class Given:
    """A size or option given from outside: on a command line, by a program, or by the `use` of another file."""

    value: object
    at: Span


class ChosenValues(dict):
    """Sizes and options by name, each computed when first read, so that defaults may use one another in any order."""

    def __init__(
        self, module: Module, preset: str | None, overrides: Mapping[str, Given], problems: Problems,
        body: Callable[[], Expressions],
    ) -> None:  # fmt: skip
        super().__init__()
        self._module = module
        self._preset = preset
        self._overrides = overrides
        self._problems = problems
        self._body = body
        self._options = {option.name.text: option for option in module.of(syntax.OptionDeclaration)}
        self._defaults = {default.name.text: default for default in module.of(syntax.SizeDefault)}
        self._settings = {s.name.text: s for s in module.presets[preset].settings} if preset in module.presets else {}
        self._names = (*module.size_names, *self._options)
        self._computing: list[str] = []
        self.unset: list[str] = []  # read so far and without a number, in the order of reading

    def forget_unset(self, since: int) -> None:
        """Names that were asked for without a number after the first `since`: whoever asked says nothing of it, so the
        next reader does."""
        while len(self.unset) > since:
            self.pop(self.unset.pop(), None)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self):
        return iter(self._names)

    def __missing__(self, name: str) -> object:
        if name in self._computing:
            raise Mistake(CircularUse(self._place(name), (*self._computing[self._computing.index(name) :], name)))
        self._computing.append(name)
        try:
            value = self._option(self._options[name]) if name in self._options else self._size(name)
        except Mistake as mistake:
            if isinstance(mistake.error, SizeNotSet):
                # Said once, by the first reader, at the place where it reads the size.
                self[name] = UNKNOWN
                self.unset.append(name)
                raise
            self._problems.add(mistake.error)
            value = UNKNOWN
        except Noted:
            value = UNKNOWN
        finally:
            self._computing.pop()
        self[name] = value
        return value

    # ---- sizes ------------------------------------------------------------------------------------

    def _size(self, name: str) -> object:
        if name in self._overrides:
            given = self._overrides[name]
            if isinstance(given.value, Axis) and given.value.is_static:
                return given.value
            symbol = Length.symbol(name, self._module.source.name)
            return self._axis(name, Measure(symbol, _whole(name, given)), given.at)
        if name in self._settings:
            setting = self._settings[name]
            measured = length(self._body(), setting.value, name)
            return self._axis(
                name, Measure(Length.symbol(name, self._module.source.name), measured.number), setting.value.span
            )
        if name in self._defaults:
            default = self._defaults[name]
            measured = length(self._body(), default.value, name)
            if measured.form == Length.number(measured.number or 0):
                # A default that is a plain number may be overridden: two such sizes are equal by chance only.
                measured = Measure(Length.symbol(name, self._module.source.name), measured.number)
            return self._axis(name, measured, default.value.span)
        preset = self._module.presets.get(self._preset or "")
        known = tuple(self._module.presets)
        raise Mistake(SizeNotSet(self._place(name), name, self._preset, known, preset.name.span if preset else None))

    def _axis(self, name: str, measured: Measure, at: Span) -> Axis:
        number = measured.number
        if number is None:
            raise Mistake(BadSize(at, name, "is not static"))
        check_length(number, name, at)
        return Axis(name, Static(), measured.form, number, self._place(name))

    def _place(self, name: str) -> Span:
        """Where a size is set, or first mentioned in a preset."""
        if name in self._settings:
            return self._settings[name].name.span
        if name in self._defaults:
            return self._defaults[name].name.span
        for preset in self._module.of(syntax.Preset):
            for setting in preset.settings:
                if setting.name.text == name:
                    return setting.name.span
        return self._options[name].name.span

    # ---- options ----------------------------------------------------------------------------------

    def _option(self, declaration: syntax.OptionDeclaration) -> object:
        name = declaration.name.text
        body = self._body()
        enum = body.find(declaration.kind.text, declaration.kind.span)
        if enum is UNKNOWN:
            raise Noted
        enum = enum if isinstance(enum, EnumType) else None
        if enum is None and declaration.kind.text not in ("real", "int", "flag", "list"):
            near = suggest(declaration.kind.text, ("real", "int", "flag", "list", *self._module.enums))
            help = f"did you mean `{near}`?" if near else "an option is `real`, `int`, `flag`, `list` or an enum"
            raise Mistake(BadType(declaration.kind.span, f"`{declaration.kind.text}` is not a kind of option", help))
        if name in self._overrides:
            given = self._overrides[name]
            value = number_of(given.value) if isinstance(given.value, Axis) else parsed(given.value, enum)
            return check_option(declaration, value, enum, given.at)
        expression = self._settings[name].value if name in self._settings else declaration.default
        if enum is not None and isinstance(expression, syntax.Name) and expression.text in enum.members:
            return Member(enum, expression.text)  # whatever else the name stands for
        if enum is not None and isinstance(expression, syntax.Name) and self._is_unknown(body, expression):
            help = did_you_mean(expression.text, enum.members)
            wanted = "one of " + ", ".join(enum.members)
            raise Mistake(WrongOption(expression.span, name, f"`{expression.text}`", wanted, help))
        value = body.evaluate(expression)
        if value is UNKNOWN:
            return UNKNOWN
        number = number_of(value)
        return check_option(declaration, value if number is None else number, enum, expression.span)

    @staticmethod
    def _is_unknown(body: Expressions, name: syntax.Name) -> bool:
        return body.find(name.text, name.span) is None


def _whole(name: str, given: Given) -> int:
    """A whole number, whether typed on a command line, passed by a program or written in a `use`."""
    number = parsed(given.value, None)
    if isinstance(number, float) and math.isfinite(number) and number == int(number):
        number = int(number)
    if isinstance(number, bool) or not isinstance(number, int):
        found = f"`{given.value}`" if isinstance(given.value, str) else describe(given.value)
        raise Mistake(WrongOption(given.at, name, found, "a whole number"))
    return number


def parsed(given: object, enum: EnumType | None) -> object:
    """A value from the command line: a number, true, false, a member's name, or several with commas between."""
    if isinstance(given, list | tuple):
        return tuple(parsed(item, enum) for item in given)
    if not isinstance(given, str):
        return given
    if "," in given:
        return tuple(parsed(item.strip(), enum) for item in given.strip("()").split(",") if item.strip())
    if enum is not None and given in enum.members:
        return Member(enum, given)
    if given in ("true", "false"):
        return given == "true"
    text = given.replace("_", "")
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        return given


def asked_for(size: str | None, overrides: Mapping[str, object]) -> dict[str, Given]:
    """Overrides with a text to point at: what was asked for, as a preset line would say it."""
    start = "size" if size is None else f"size {size}"
    text, spans = f"{start}: ", {}
    for name, value in overrides.items():
        written = f"{name} = {str(value).lower() if isinstance(value, bool) else value}"
        spans[name] = (len(text), len(text) + len(written))
        text += written + ", "
    source = Source("<sizes asked for>", text.rstrip(": ").rstrip(","))
    return {name: Given(overrides[name], Span(source, *spans[name])) for name in overrides}


def check_choice(module: Module, size: str | None, overrides: Mapping[str, Given], problems: Problems) -> None:
    """The preset exists, and every override names a size or option of the file."""
    if size is not None and size not in module.presets:
        at = Span(Source("<sizes asked for>", f"size {size}"), len("size "), len(f"size {size}"))
        problems.add(UnknownPreset(at, size, tuple(module.presets)))
    for name, given in overrides.items():
        if name not in module.settable:
            problems.add(UnknownSize(given.at, name, module.settable))


def check_settings(module: Module, problems: Problems) -> None:
    """A preset's line that nothing reads is a slip where its name is nearly one that is read: it would be dropped in
    silence. Otherwise it is a size that this file happens not to need."""
    for preset in module.of(syntax.Preset):
        given = {setting.name.text for setting in preset.settings}
        for setting in preset.settings:
            name = setting.name.text
            near = suggest(name, module.settable) if name not in module.settable else None
            if near is not None and (near not in given or is_slip(name, near)):
                problems.add(UnknownSize(setting.name.span, name, module.settable))


__all__ = ["ChosenValues", "Given", "Instance", "Override", "asked_for", "check_choice", "check_settings", "describe"]
