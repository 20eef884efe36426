"""What is installed is complete: a wheel is built, unpacked elsewhere, and used from there without the checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like site-packages, with nothing but the wheel's files in it."""
    pytest.importorskip("setuptools", reason="building a wheel needs setuptools")
    base = tmp_path_factory.mktemp("wheel")
    # A copy, because a build leaves folders behind and would pick up those of an earlier one.
    copy = base / "source"
    skipped = shutil.ignore_patterns(".git", ".venv", "build", "runs", "*.egg-info", "__pycache__", ".*_cache")
    shutil.copytree(ROOT, copy, ignore=skipped)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
    run = subprocess.run([*command, "-w", str(base), str(copy)], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    (wheel,) = base.glob("*.whl")
    site = base / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    return site


def _weft(installed: Path, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [sys.executable, "-m", "weft", *arguments],
        cwd=cwd,
        env={**environment, "PYTHONPATH": str(installed), "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.slow
def test_a_wheel_works_away_from_the_checkout(installed: Path, tmp_path: Path) -> None:
    spec = tmp_path / "olmo2.weft"
    shutil.copy(ROOT / "specs" / "olmo2.weft", spec)
    run = _weft(installed, "check", "olmo2.weft", cwd=tmp_path)
    assert (run.returncode, run.stdout) == (0, "olmo2.weft: no mistakes\n"), run.stderr
    run = _weft(installed, "inspect", "olmo2.weft", "params", "--size", "tiny", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    run = _weft(installed, "explain", "E301", cwd=tmp_path)
    assert run.stdout.startswith("E301"), run.stderr
    code = "import weft, weft.dsl.source as s; print(weft.__file__); print(s.__file__)"
    where = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": str(installed)}, capture_output=True, text=True
    )
    assert all(line.startswith(str(installed)) for line in where.stdout.splitlines()), where.stdout


@pytest.mark.slow
def test_the_wheel_holds_every_module_and_data_file(installed: Path) -> None:
    missing = []
    for folder in ("weft", "dsl", "codegen", "runtime", "specs"):
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                inside = path.relative_to(ROOT / "weft") if folder == "weft" else path.relative_to(ROOT)
                if not (installed / "weft" / inside).is_file():
                    missing.append(str(path.relative_to(ROOT)))
    assert not missing
