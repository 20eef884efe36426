"""Files and their instances: what each declared name stands for.

A `Module` is one parsed file. An `Instance` is a file with its sizes and options chosen: axes, shared values and the
names that `use` brings in belong to it. `use f` makes one instance of f; `use f as g` another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from . import syntax
from .axes import Axis
from .diagnostics import Problems
from .errors.names import DuplicateName, FileNotFound
from .parser import parse
from .source import Source, Span
from .statics import AxisFamily, BlockRef, MaskRef, Member, SharedFamily
from .value_type import EnumType

Loader = Callable[[str, Source], Source | None]

NAMED = (
    syntax.SizeDefault, syntax.OptionDeclaration, syntax.Axis, syntax.Enum, syntax.Shared, syntax.Mask, syntax.Block,
    syntax.Objective, syntax.Hook, syntax.Memory, syntax.Extern, syntax.Generate, syntax.Recipe,
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Module:
    """One parsed file and its declarations by name."""

    file: syntax.File

    @property
    def source(self) -> Source:
        return self.file.source

    def of(self, kind: type | tuple[type, ...]) -> list:
        return [d for d in self.file.declarations if isinstance(d, kind)]

    @cached_property
    def named(self) -> dict[str, syntax.Declaration]:
        """The first declaration of each name. Presets and defaults name sizes, not things, and may repeat an option."""
        table: dict[str, syntax.Declaration] = {}
        for declaration in self.of(NAMED):
            table.setdefault(declaration.name.text, declaration)
        return table

    @cached_property
    def enums(self) -> dict[str, EnumType]:
        return {
            declaration.name.text: EnumType(
                declaration.name.text, tuple(member.text for member in declaration.members), declaration.span
            )
            for declaration in self.of(syntax.Enum)
        }

    @cached_property
    def presets(self) -> dict[str, syntax.Preset]:
        return {preset.name.text: preset for preset in reversed(self.of(syntax.Preset))}

    @cached_property
    def size_names(self) -> tuple[str, ...]:
        """Every size that a preset or a default gives a number, in order."""
        names = [setting.name.text for preset in self.of(syntax.Preset) for setting in preset.settings]
        names += [default.name.text for default in self.of(syntax.SizeDefault)]
        options = {option.name.text for option in self.of(syntax.OptionDeclaration)}
        return tuple(dict.fromkeys(name for name in names if name not in options))

    def check_names(self, problems: Problems) -> None:
        """No name twice, and no preset twice."""
        seen: dict[str, Span] = {}
        for declaration in self.of(NAMED):
            name = declaration.name
            if name.text in seen:
                problems.add(DuplicateName(name.span, name.text, seen[name.text]))
            seen.setdefault(name.text, name.span)
        sizes = set(self.size_names) - set(self.named)
        for preset in self.of(syntax.Preset):
            own: dict[str, Span] = {}
            for setting in preset.settings:
                if setting.name.text in own:
                    problems.add(DuplicateName(setting.name.span, setting.name.text, own[setting.name.text]))
                own.setdefault(setting.name.text, setting.name.span)
        for declaration in self.of(NAMED):
            # `size tiny: seq = 4` beside `axis seq` gives one name two meanings.
            if isinstance(declaration, syntax.SizeDefault | syntax.OptionDeclaration):
                continue
            for preset in self.of(syntax.Preset):
                for setting in preset.settings:
                    if setting.name.text == declaration.name.text and setting.name.text not in sizes:
                        problems.add(DuplicateName(setting.name.span, setting.name.text, declaration.name.span))
        presets: dict[str, Span] = {}
        for preset in self.of(syntax.Preset):
            if preset.name.text in presets:
                problems.add(DuplicateName(preset.name.span, preset.name.text, presets[preset.name.text]))
            presets.setdefault(preset.name.text, preset.name.span)


@dataclass(eq=False)
class Instance:
    """A module with its sizes chosen. `values` are sizes (as axes) and options; `imports` what `use` brought in.

    `path` leads the weights of its models: empty for the spec itself. `prefix_models` says that a model's name leads
    too.
    """

    module: Module
    values: dict[str, object]
    path: tuple[str, ...]
    imports: dict[str, object] = field(default_factory=dict)
    axes: dict[str, Axis] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)  # names of shared values read so far
    make_axis: Callable[[Instance, syntax.Axis], object] | None = None

    @property
    def models(self) -> list[syntax.Block]:
        return [block for block in self.module.of(syntax.Block) if block.form == "model"]

    def lookup(self, name: str) -> object | None:
        """What a name of this file stands for; None when the file has no such name."""
        if name in self.values:
            return self.values[name]
        if name in self.axes:
            return self.axes[name]
        declaration = self.module.named.get(name)
        match declaration:
            case None:
                return self.imports.get(name) or self._member(name)
            case syntax.Axis():
                if declaration.index is not None:
                    return AxisFamily(declaration, self)
                assert self.make_axis is not None
                axis = self.make_axis(self, declaration)
                if isinstance(axis, Axis):
                    self.axes[name] = axis
                return axis
            case syntax.Enum():
                return self.enum(declaration)
            case syntax.Block():
                return BlockRef(declaration, self)
            case syntax.Mask():
                return MaskRef(declaration, self)
            case syntax.Shared():
                return SharedFamily(declaration, self)
            case _:
                return declaration

    def enum(self, declaration: syntax.Enum) -> EnumType:
        return self.module.enums[declaration.name.text]

    def _member(self, name: str) -> object | None:
        for enum in self.module.enums.values():
            if name in enum.members:
                return Member(enum, name)
        return None

    @property
    def names(self) -> tuple[str, ...]:
        members = [member for enum in self.module.enums.values() for member in enum.members]
        return (*self.values, *self.module.named, *self.imports, *members)


class Library:
    """Finds and parses files, each once. The prelude is the standard library: its names need no `use`."""

    def __init__(self, load: Loader, prelude: Mapping[str, Source], problems: Problems) -> None:
        self._load = load
        self._prelude = prelude
        self._modules: dict[str, Module] = {}
        self.problems = problems

    def module(self, source: Source) -> Module:
        known = self._modules.get(source.name)
        if known is None:
            known = Module(parse(source, self.problems))
            known.check_names(self.problems)
            self._modules[source.name] = known
        return known

    def used(self, use: syntax.Use, user: Source) -> Module | None:
        name = ".".join(part.text for part in use.module)
        source = self._load(name, user)
        if source is None:
            self.problems.add(FileNotFound(use.module[0].span.to(use.module[-1].span), name))
            return None
        return self.module(source)

    def prelude(self, name: str) -> Module | None:
        """The standard library's file that defines a name."""
        source = self._prelude.get(name)
        return None if source is None else self.module(source)

    @property
    def prelude_names(self) -> tuple[str, ...]:
        return tuple(self._prelude)
