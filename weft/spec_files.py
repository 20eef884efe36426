"""Spec files as the command line names them: read, checked, and their mistakes printed.

Whatever is wrong with a file itself (missing, a folder, not text) is one line here; what is wrong inside it is a
diagnostic.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from weft.faults import CommandFault

if TYPE_CHECKING:
    from weft.codegen.choices import Choices
    from weft.codegen.targets import Device, Target
    from weft.dsl.check import Checked, Result
    from weft.dsl.diagnostics import SpecError
    from weft.dsl.program import Program
    from weft.dsl.source import Source
    from weft.runtime.tuning import Table

STDIN = "-"


def read(path: str) -> Source:
    """The text of a spec; `-` is standard input."""
    from weft.dsl.source import Source

    data = sys.stdin.buffer.read() if path == STDIN else _bytes(path)
    name = "<stdin>" if path == STDIN else path
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise CommandFault(f"{name}: is UTF-16 text; save it as UTF-8", 2)
    if b"\0" in data:
        raise CommandFault(f"{name}: is a binary file, not a spec", 2)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise CommandFault(f"{name}: is not UTF-8 text (line {line})", 2) from None
    # Positions are counted in lines that end with one character.
    return Source(name, text.replace("\r\n", "\n"))


def known_target(name: str) -> Target:
    """What kernels are compiled for, by its name on the command line."""
    from weft.codegen.targets import UnknownTarget, target

    try:
        return target(name)
    except UnknownTarget as error:
        raise CommandFault(str(error), 2) from None


def known_device(name: str) -> Device:
    """A device that times are estimated for."""
    from weft.codegen.targets import UnknownTarget, device

    try:
        return device(name)
    except UnknownTarget as error:
        raise CommandFault(str(error), 2) from None


def measured(path: str, tuning: str | None, tuned_for: str | None) -> tuple[Table, Choices] | None:
    """What `weft tune` measured, for a command that makes code for a device that need not be here: of the file given,
    or of the one beside the spec."""
    from weft.runtime.measured import choices_for, measured_on, table_for

    table = table_for(tuning, None if path == STDIN else Path(path))
    if table is None:
        if tuned_for is not None:
            raise CommandFault("--tuned-for goes with --tuning, or with a tuning.json beside the spec", 2)
        return None
    return table, choices_for(table, measured_on(table, tuned_for, tuning or "the tuning.json beside the spec"))


def cache_folder() -> Path:
    """Where things are kept that can be made again."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "weft"


def _bytes(path: str) -> bytes:
    if Path(path).is_dir():
        raise CommandFault(f"{path}: is a folder; name the spec files in it", 2)
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        near = _near(path)
        hint = f"; did you mean {near}?" if near else ""
        raise CommandFault(f"{path}: no such file{hint}", 2) from None
    except ValueError as error:  # a NUL in the name
        raise CommandFault(f"{path!r}: {error}", 2) from None


def _near(path: str) -> str | None:
    """A spec in the same folder with almost that name."""
    from difflib import get_close_matches

    folder = Path(path).parent
    try:
        names = [item.name for item in folder.iterdir() if item.suffix == ".weft"]
    except OSError:
        return None
    wanted = Path(path).name
    found = get_close_matches(wanted, names, 1, 0.7) or get_close_matches(wanted + ".weft", names, 1, 0.9)
    return str(folder / found[0]) if found else None


def overrides(settings: Iterable[str]) -> dict[str, str]:
    """`--set dim=64 --set heads=2` as a table. What a name may be, and its kind, the checker knows."""
    return named(settings, "--set", "NAME=VALUE")


def named(settings: Iterable[str], option: str, form: str) -> dict[str, str]:
    """Words such as `NAME=VALUE` of a repeatable option as a table."""
    table: dict[str, str] = {}
    for setting in settings:
        name, equals, value = (part.strip() for part in setting.partition("="))
        if not (name and equals and value):
            raise CommandFault(f"{option} wants {form}, not `{setting}`", 2)
        if table.get(name, value) != value:
            raise CommandFault(f"{option} gives `{name}` twice: {table[name]} and {value}", 2)
        table[name] = value
    return table


def check(source: Source, size: str | None, settings: dict[str, str]) -> Result:
    """The checker with the op table. Without a size, every preset of the spec is checked."""
    from weft.codegen.ops import OPS
    from weft.dsl.check import check, check_all

    if size is None:
        return check_all(source, OPS, settings)
    return check(source, OPS, size, settings)


def typed(value: str) -> int | float | bool | str:
    """A setting's text as the plain value it is saved as."""
    if value in ("true", "false"):
        return value == "true"
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            pass
    return value


def first_preset(source: Source) -> str | None:
    """The size that a view shows when none is asked for."""
    from weft.dsl.check import presets_of

    presets = presets_of(source)
    return presets[0] if presets else None


def program(checked: Checked, name: str | None) -> Program:
    """A model or an objective by name; without one, the main model."""
    programs = {**checked.models, **checked.objectives}
    if name is None:
        if not checked.models:
            raise CommandFault(f"{checked.source.name} declares no model")
        return checked.model
    if name not in programs:
        raise CommandFault(f"{checked.source.name} has no model or objective {name}; it has {', '.join(programs)}", 2)
    return programs[name]


def checked(path: str, size: str | None, settings: dict[str, str]) -> Checked:
    """A spec that a command needs whole. Its mistakes, if any, are printed, and the command ends."""
    return checked_source(read(path), size, settings)


def checked_source(source: Source, size: str | None, settings: dict[str, str]) -> Checked:
    """One choice of sizes: a spec with several presets and no --size has sizes without a number, which is a mistake."""
    from weft.codegen.ops import OPS
    from weft.dsl.check import check

    result = check(source, OPS, size, settings)
    if result.checked is None:
        print_errors(result.problems.errors, file=sys.stderr)
        raise SystemExit(1)
    return result.checked


def print_errors(errors: Iterable[SpecError], file=None) -> None:
    from weft.dsl.render import render

    stream = file or sys.stdout
    color = wants_color(stream)
    for error in errors:
        print(render(error.describe(), color), end="\n\n", file=stream)


def wants_color(stream) -> bool:
    """NO_COLOR and FORCE_COLOR decide, then whether a person is looking."""
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def write(path: str, text: str) -> None:
    """Replace a file whole: an interrupted write must not leave half a spec."""
    target = Path(path).resolve()
    if target.is_dir():
        raise CommandFault(f"{path}: is a folder, not a file", 2)
    if not target.parent.is_dir():
        raise CommandFault(f"{path}: there is no folder {target.parent}", 2)
    beside = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        beside.write_text(text, encoding="utf-8", newline="\n")
        if target.exists():
            beside.chmod(target.stat().st_mode & 0o777)
        beside.replace(target)
    except OSError as error:
        # The name that the user gave, not the temporary one.
        raise OSError(error.errno, error.strerror, path) from None
    finally:
        beside.unlink(missing_ok=True)
