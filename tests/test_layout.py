"""How the project is laid out: what may import what, what ships, and what no file may hold."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

# Each may import itself and those to its left.
ORDER = ("dsl", "codegen", "runtime", "weft")
# Folders whose modules are imported as a checkout or a wheel's `weft.<folder>`.
SHIPPED = ("dsl", "codegen", "runtime")
LONGEST = 500
# The list of the language's constructs: one place to read, and nothing in it to take apart.
LONG_ON_PURPOSE = {"dsl/syntax.py"}


def _tracked() -> list[Path]:
    """Files of the project: tracked, or new and not ignored."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listed.returncode == 0:
        names = listed.stdout.splitlines()
    else:  # an unpacked archive without git
        names = [str(p.relative_to(ROOT)) for p in ROOT.rglob("*") if not {".venv", "build"} & set(p.parts)]
    return [path for name in sorted(set(names)) if (path := ROOT / name).is_file()]


FILES = _tracked()
MODULES = [path for path in FILES if path.suffix == ".py"]


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _imports(path: Path) -> list[tuple[str, int, int]]:
    """Absolute names of what a module imports, with the relative level as written and the line.

    A checkout's dsl/source.py counts as weft.dsl.source.
    """
    relative = path.relative_to(ROOT)
    parts = relative.with_suffix("").parts
    package = parts[:-1] if parts[0] not in SHIPPED else ("weft", *parts[:-1])
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(alias.name, 0, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            stem = ".".join((*base, *((node.module or "").split(".") if node.module else ())))
            found.append((stem, node.level, node.lineno))
            found += [(f"{stem}.{alias.name}", node.level, node.lineno) for alias in node.names]
    return found


def _layer(name: str) -> str | None:
    """Which of ORDER a module belongs to; None for other packages."""
    parts = name.split(".")
    if parts[0] != "weft":
        return None
    return parts[1] if len(parts) > 1 and parts[1] in SHIPPED else "weft"


@pytest.mark.parametrize("folder", ORDER)
def test_imports_go_one_way(folder: str) -> None:
    allowed = set(ORDER[: ORDER.index(folder) + 1])
    wrong = []
    for path in MODULES:
        if path.relative_to(ROOT).parts[0] != folder:
            continue
        for name, _, line in _imports(path):
            layer = _layer(name)
            if name == "weft" and folder != "weft":
                continue  # the stem of `from ... import`; its members are listed one by one
            if layer is not None and layer not in allowed:
                wrong.append(f"{_name(path)}:{line} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_no_subpackage_is_imported_by_its_bare_name() -> None:
    """`import dsl` works in a checkout and loads a second copy of every class."""
    bare = {*SHIPPED, "specs"}
    wrong = [
        f"{_name(path)}:{line} imports {name}"
        for path in MODULES
        for name, level, line in _imports(path)
        if level == 0 and name.split(".")[0] in bare
    ]
    assert not wrong, "\n".join(wrong)


def test_shipped_folders_import_relatively() -> None:
    """So that one file is one module for a type checker, whatever is installed."""
    wrong = [
        f"{_name(path)}:{line} imports {name}"
        for path in MODULES
        if path.relative_to(ROOT).parts[0] in SHIPPED
        for name, level, line in _imports(path)
        if level == 0 and name.split(".")[0] == "weft"
    ]
    assert not wrong, "\n".join(wrong)


def _imports_of(path: Path, package: str) -> list[str]:
    return [f"{_name(path)}:{line}" for name, _, line in _imports(path) if name.split(".")[0] == package]


def test_the_front_end_does_not_import_torch() -> None:
    modules = [path for path in MODULES if path.relative_to(ROOT).parts[0] == "dsl"]
    wrong = [place for path in modules for place in _imports_of(path, "torch")]
    assert not wrong, "\n".join(wrong)


def test_the_op_table_does_not_import_torch() -> None:
    """`weft check` reads it. Found by importing it: an indirect import is as slow as a direct one."""
    code = "import sys, weft.codegen.ops; print(sorted({'torch', 'sympy', 'numpy'} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "[]"


def test_only_emit_renders_templates() -> None:
    wrong = [
        place
        for path in MODULES
        if path.relative_to(ROOT).parts[0] in ORDER and not _name(path).startswith("codegen/emit")
        for place in _imports_of(path, "jinja2")
    ]
    assert not wrong, "\n".join(wrong)


def test_every_package_folder_is_listed_and_ships() -> None:
    """A folder with modules is importable in a checkout without being listed; a wheel would lack it."""
    folders = set()
    for path in MODULES:
        relative = path.relative_to(ROOT).parent
        if relative.parts and relative.parts[0] in SHIPPED:
            folders.add(".".join(("weft", *relative.parts)))
        elif relative.parts and relative.parts[0] == "weft":
            folders.add(".".join(relative.parts))
    folders |= {
        ".".join(("weft", *path.relative_to(ROOT).parent.parts))
        for path in FILES
        if path.suffix == ".weft" and path.relative_to(ROOT).parts[0] == "specs"
    }
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == folders


def test_every_data_file_ships() -> None:
    """Files that are not modules need a pattern in package-data."""
    patterns = PROJECT["tool"]["setuptools"]["package-data"]
    missing = []
    for path in FILES:
        relative = path.relative_to(ROOT)
        top = relative.parts[0]
        if top not in (*SHIPPED, "weft", "specs") or path.suffix == ".py":
            continue
        parts = relative.parts if top == "weft" else ("weft", *relative.parts)
        # The innermost listed package that holds the file.
        packages = PROJECT["tool"]["setuptools"]["packages"]
        depth = max(n for n in range(1, len(parts)) if ".".join(parts[:n]) in packages)
        inside = Path(*parts[depth:])
        if not any(inside.match(pattern) for pattern in patterns.get(".".join(parts[:depth]), [])):
            missing.append(_name(path))
    assert not missing, "\n".join(missing)


def test_every_op_file_is_in_the_table() -> None:
    """An op file that nobody lists is an op that no spec can call."""
    from weft.codegen.ops import OPS

    homes = {op.lower.__module__.rpartition(".")[2] for op in OPS.ops.values()}
    homes |= {op.infer.__module__.rpartition(".")[2] for op in OPS.ops.values()}
    listed = {path.stem for path in (ROOT / "codegen" / "ops").glob("*.py")}
    defining = {
        path.stem
        for path in (ROOT / "codegen" / "ops").glob("*.py")
        if re.search(r"\bOpDef\(", path.read_text(encoding="utf-8")) and path.stem != "__init__"
    }
    assert defining <= homes, f"not in OPS: {sorted(defining - homes)}"
    assert homes - {"__init__"} <= listed | {"signature"}


def test_files_are_short() -> None:
    lines = {_name(path): len(path.read_text(encoding="utf-8").splitlines()) for path in MODULES}
    long = {name: count for name, count in lines.items() if count > LONGEST and name not in LONG_ON_PURPOSE}
    assert not long


def test_no_drawer_for_everything() -> None:
    names = {"utils", "helpers", "common", "misc", "util", "helper"}
    assert not [_name(path) for path in MODULES if path.stem in names]


def test_no_module_is_named_like_the_standard_library() -> None:
    """Inside packages it would work; run as a script or put on the path, it would hide the other."""
    own = [path for path in MODULES if path.relative_to(ROOT).parts[0] in (*ORDER, "bench", "tests")]
    # An op file may be named for its op, and a command for its command: they are never on the path.
    wrong = [_name(path) for path in own if path.stem in sys.stdlib_module_names and not path.stem.startswith("__")]
    allowed = {"weft/commands/inspect.py"}
    assert set(wrong) <= allowed, wrong


# Written in pieces, so that this file passes its own test.
FORBIDDEN = {
    "a home or work folder": re.compile(r"/(?:root|home)/\w|(?<![\w.])/work/"),
    "an address of a machine": re.compile(r"\b(?:10|127|172|192)\.\d+\.\d+\.\d+\b"),
    "a package index or its folder": re.compile("/" + r"opt/(?:wheels|pypi)|--(?:extra-)?index-url\s+\S*:" + "//"),
    "a key": re.compile(r"\b(?:sk-|ghp_|AKIA|hf_)[A-Za-z0-9]{16,}"),
}


def test_no_place_or_key_of_a_machine_is_in_a_file() -> None:
    wrong = []
    for path in FILES:
        data = path.read_bytes()
        if b"\0" in data[:8000] or path.resolve() == Path(__file__).resolve():
            continue
        text = data.decode("utf-8")
        for what, pattern in FORBIDDEN.items():
            if found := pattern.search(text):
                line = text.count("\n", 0, found.start()) + 1
                wrong.append(f"{_name(path)}:{line} holds {what}: {found.group()}")
    assert not wrong, "\n".join(wrong)


def test_constraints_pin_everything_exactly() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert not [line for line in pins if not re.fullmatch(r"[\w.\-]+==[\w.]+(; .*)?", line)]
    pinned = {re.split("==", line)[0].lower().replace("_", "-") for line in pins}
    wanted = list(PROJECT["project"]["dependencies"])
    for extra in PROJECT["project"]["optional-dependencies"].values():
        wanted += extra
    names = {re.split(r"[\[<>=;~! ]", need)[0].lower().replace("_", "-") for need in wanted} - {"weft"}
    assert names <= pinned, f"not pinned: {sorted(names - pinned)}"


def test_the_version_is_written_once() -> None:
    import weft

    assert weft.__version__ == PROJECT["project"]["version"]
