"""Files and their instances: what each declared name stands for.

A `Module` is one parsed file. An `Instance` is a file with its sizes and options chosen: axes, shared values and the
names that `use` brings in belong to it. `use f` makes one instance of f; `use f as g` another.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import get_args

from . import syntax
from .diagnostics import Mistake, Noted, Problems
from .errors.names import CircularUse, DuplicateName, FileNotFound
from .names_read import all_words
from .parser import parse
from .record import record
from .source import Source, Span
from .statics import UNKNOWN, AxisFamily, BlockRef, MaskRef, Member, SharedFamily
from .value_type import EnumType

_WORD = re.compile(r"[A-Za-z_]\w*")
Loader = Callable[[str, Source], Source | None]

Named = (
    syntax.SizeDefault | syntax.OptionDeclaration | syntax.Axis | syntax.Enum | syntax.Shared | syntax.Mask
    | syntax.Block | syntax.Objective | syntax.Hook | syntax.Memory | syntax.Extern | syntax.Generate | syntax.Recipe
)  # fmt: skip
NAMED = get_args(Named)


@record(eq=False)
class Module:
    """One parsed file and its declarations by name."""

    file: syntax.File

    @property
    def source(self) -> Source:
        return self.file.source

    def of(self, kind: type | tuple[type, ...]) -> list:
        return [d for d in self.file.declarations if isinstance(d, kind)]

    @cached_property
    def named(self) -> dict[str, Named]:
        """The first declaration of each name. Presets and defaults name sizes, not things, and may repeat an option."""
        table: dict[str, Named] = {}
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

    def stands_for(self, declaration: Named) -> bool:
        """Whether a declaration is what its name means here."""
        return self.named.get(declaration.name.text) is declaration

    @cached_property
    def presets(self) -> dict[str, syntax.Preset]:
        table: dict[str, syntax.Preset] = {}
        for preset in self.of(syntax.Preset):
            table.setdefault(preset.name.text, preset)
        return table

    @cached_property
    def size_names(self) -> tuple[str, ...]:
        """Every size that a preset or a default gives a number, in order."""
        names = [setting.name.text for preset in self.of(syntax.Preset) for setting in preset.settings]
        names += [default.name.text for default in self.of(syntax.SizeDefault)]
        # What is declared as something else stays that; `check_names` tells of the second meaning.
        others = {name for name, declared in self.named.items() if not isinstance(declared, syntax.SizeDefault)}
        return tuple(dict.fromkeys(name for name in names if name not in others))

    @cached_property
    def settable(self) -> tuple[str, ...]:
        """What a preset or an override may set: options, sizes with a default, and sizes that something reads."""
        declared = tuple(d.name.text for d in self.of((syntax.OptionDeclaration, syntax.SizeDefault)))
        if self.file.broken:
            return (*declared, *self.size_names)
        read = set(all_words(tuple(d for d in self.file.declarations if not isinstance(d, syntax.Preset))))
        # A size may serve other sizes of its preset only: `size tiny: heads = 4, dim = 64 * heads`.
        read |= {word for d in self.of(syntax.Preset) for word in all_words(d.settings)}
        return tuple(dict.fromkeys((*declared, *(name for name in self.size_names if name in read))))

    @cached_property
    def lost(self) -> frozenset[str]:
        """Words of items that could not be parsed: what they would have declared, so that its readers stay silent."""
        if not self.file.broken:
            return frozenset()
        words: set[str] = set()
        parsed = {declaration.span.line for declaration in self.file.declarations}
        for number, line in enumerate(self.source.text.split("\n"), 1):
            if line[:1].strip() and number not in parsed:
                words.update(_WORD.findall(line))
        return frozenset(words)

    def check_names(self, problems: Problems) -> None:
        """No name twice among declarations, presets, settings of one preset, members, parameters."""
        _distinct((declaration.name for declaration in self.of(NAMED)), problems)
        presets = self.of(syntax.Preset)
        _distinct((preset.name for preset in presets), problems)
        for preset in presets:
            _distinct((setting.name for setting in preset.settings), problems)
        for enum in self.of(syntax.Enum):
            _distinct(enum.members, problems)
        for block in self.of((syntax.Block, syntax.Objective, syntax.Mask)):
            axes = block.axes if isinstance(block, syntax.Block) else ()
            _distinct((*axes, *(parameter.name for parameter in block.parameters)), problems)
        for preset in presets:
            for setting in preset.settings:
                other = self.named.get(setting.name.text)
                # `size tiny: seq = 4` beside `axis seq` gives one name two meanings.
                if other is not None and not isinstance(other, syntax.SizeDefault | syntax.OptionDeclaration):
                    problems.add(DuplicateName(setting.name.span, setting.name.text, other.name.span))


def _distinct(names: Iterable[syntax.Identifier], problems: Problems) -> None:
    seen: dict[str, Span] = {}
    for name in names:
        if name.text in seen:
            problems.add(DuplicateName(name.span, name.text, seen[name.text]))
        seen.setdefault(name.text, name.span)


@dataclass(eq=False)
class Instance:
    """A module with its sizes chosen. `values` are sizes (as axes) and options; `imports` what `use` brought in.

    `path` leads the weights of its models: empty for the spec itself.
    """

    module: Module
    values: dict[str, object]
    path: tuple[str, ...]
    imports: dict[str, object] = field(default_factory=dict)
    imported_at: dict[str, Span] = field(default_factory=dict)
    axes: dict[str, object] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)  # names of shared values read so far
    make_axis: Callable[[Instance, syntax.Axis], object] | None = None
    making: list[str] = field(default_factory=list)  # axes being made, for circles

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
                found = self.imports.get(name)
                return self._member(name) if found is None else found
            case syntax.Axis():
                if declaration.index is not None:
                    return AxisFamily(declaration, self)
                return self._axis(declaration)
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

    def _axis(self, declaration: syntax.Axis) -> object:
        """Made on first use, so that declarations may stand in any order. One that cannot be made is said so once."""
        name = declaration.name.text
        if name in self.making:
            raise Mistake(CircularUse(declaration.name.span, (*self.making[self.making.index(name) :], name)))
        assert self.make_axis is not None
        self.making.append(name)
        try:
            axis = self.make_axis(self, declaration)
        except (Mistake, Noted):
            self.axes[name] = UNKNOWN
            raise
        finally:
            self.making.pop()
        self.axes[name] = axis
        return axis

    def enum(self, declaration: syntax.Enum) -> EnumType:
        return self.module.enums[declaration.name.text]

    def _member(self, name: str) -> object | None:
        for enum in self._enums():
            if name in enum.members:
                return Member(enum, name)
        return None

    def _enums(self) -> Iterator[EnumType]:
        yield from self.module.enums.values()
        yield from (value for value in self.imports.values() if isinstance(value, EnumType))

    @property
    def names(self) -> tuple[str, ...]:
        members = [member for enum in self._enums() for member in enum.members]
        return (*self.values, *self.module.named, *self.imports, *members)


class Library:
    """Finds and parses files, each once. The prelude is the standard library: its names need no `use`."""

    def __init__(
        self, load: Loader, prelude: Mapping[str, Source], problems: Problems,
        names: Callable[[Source], tuple[str, ...]] = lambda user: (),
    ) -> None:  # fmt: skip
        self._load = load
        self._names = names
        self._prelude = prelude
        self._standard = frozenset(prelude.values())
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
        """The module that a `use` names; None when there is no such file, which is then noted."""
        name = ".".join(part.text for part in use.module)
        at = use.module[0].span.to(use.module[-1].span)
        try:
            source = self._load(name, user)
        except (OSError, ValueError) as error:
            self.problems.add(FileNotFound(at, name, (), str(error)))
            return None
        if source is None:
            self.problems.add(FileNotFound(at, name, self._names(user)))
            return None
        return self.module(source)

    def prelude(self, name: str) -> Module | None:
        """The standard library's file that defines a name."""
        source = self._prelude.get(name)
        return None if source is None else self.module(source)

    def is_standard(self, source: Source) -> bool:
        """Whether a text is of the standard library."""
        return source in self._standard

    @property
    def prelude_names(self) -> tuple[str, ...]:
        return tuple(self._prelude)
