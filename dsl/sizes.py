"""Choosing sizes and options for one instance of a file: overrides, then the preset, then defaults."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from . import syntax
from .axes import Axis, Static
from .axis_declarations import length
from .diagnostics import Mistake, Noted, Problems
from .errors.names import BadSize, CircularUse, SizeNotSet, UnknownPreset, UnknownSize, WrongOption
from .expressions import Expressions
from .length import Length
from .modules import Instance, Module
from .signatures import check_option
from .source import Span
from .static_math import LARGEST, Measure, number_of
from .statics import UNKNOWN, Member, describe
from .suggest import suggest
from .value_type import EnumType

Override = int | float | bool | str


class ChosenValues(dict):
    """Sizes and options by name, each computed when first read, so that defaults may use one another in any order."""

    def __init__(
        self, module: Module, preset: str | None, overrides: Mapping[str, object], problems: Problems,
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

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self):
        return iter(self._names)

    def __missing__(self, name: str) -> object:
        if name in self._computing:
            at = self._defaults[name].name.span if name in self._defaults else self._settings[name].span
            raise Mistake(CircularUse(at, (*self._computing[self._computing.index(name) :], name)))
        self._computing.append(name)
        try:
            value = self._option(self._options[name]) if name in self._options else self._size(name)
        except Mistake as mistake:
            if isinstance(mistake.error, SizeNotSet):
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
            if isinstance(given, Axis):
                return given
            at = self._place(name)
            return self._axis(name, Measure(Length.symbol(name, self._module.source.name), _whole(name, given, at)), at)
        if name in self._settings:
            setting = self._settings[name]
            measured = length(self._body(), setting.value, name)
            return self._axis(
                name, Measure(Length.symbol(name, self._module.source.name), measured.number), setting.value.span
            )
        if name in self._defaults:
            default = self._defaults[name]
            return self._axis(name, length(self._body(), default.value, name), default.value.span)
        return UNKNOWN if self._preset is not None and self._preset not in self._module.presets else self._unset(name)

    def _unset(self, name: str) -> object:
        raise Mistake(SizeNotSet(self._place(name), name, self._preset))

    def _axis(self, name: str, measured: Measure, at: Span) -> Axis:
        number = measured.number
        if number is None:
            raise Mistake(BadSize(at, name, "is not static"))
        if not 0 <= number < LARGEST:
            raise Mistake(BadSize(at, name, f"is {number}, " + ("below 0" if number < 0 else "2^48 or more")))
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
        enum = enum if isinstance(enum, EnumType) else None
        if enum is None and declaration.kind.text not in ("real", "int", "flag", "list"):
            near = suggest(declaration.kind.text, ("real", "int", "flag", "list", *self._module.enums))
            help = f"did you mean `{near}`?" if near else "an option is `real`, `int`, `flag`, `list` or an enum"
            raise Mistake(
                WrongOption(declaration.kind.span, declaration.kind.text, "unknown", "the kind of an option", help)
            )
        if name in self._overrides:
            return check_option(declaration, _parsed(self._overrides[name], enum), enum, declaration.span)
        expression = self._settings[name].value if name in self._settings else declaration.default
        value = body.evaluate(expression)
        if value is UNKNOWN:
            return UNKNOWN
        number = number_of(value)
        return check_option(declaration, value if number is None else number, enum, expression.span)


def _whole(name: str, given: object, at: Span) -> int:
    """An override's whole number, whether typed on a command line or passed by a program."""
    number = _parsed(given, None)
    if isinstance(number, float) and number == int(number):
        number = int(number)
    if isinstance(number, bool) or not isinstance(number, int):
        raise Mistake(WrongOption(at, name, f"`{given}`", "a whole number"))
    return number


def _parsed(given: object, enum: EnumType | None) -> object:
    """A value from the command line: a number, true, false, or a member's name."""
    if not isinstance(given, str):
        return given
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


@dataclass(frozen=True)
class Choice:
    """The sizes asked for: a preset's name (None: defaults only) and overrides by name."""

    size: str | None = None
    overrides: Mapping[str, object] = ()  # type: ignore[assignment]


def check_choice(
    module: Module, size: str | None, overrides: Mapping[str, object], problems: Problems, at: Span
) -> None:
    """The preset exists, and every override names a size or option of the file."""
    if size is not None and size not in module.presets:
        problems.add(UnknownPreset(at, size, tuple(module.presets)))
    known = (*module.size_names, *(option.name.text for option in module.of(syntax.OptionDeclaration)))
    for name in overrides:
        if name not in known:
            problems.add(UnknownSize(at, name, known))


__all__ = ["Choice", "ChosenValues", "Instance", "Override", "check_choice", "describe"]
