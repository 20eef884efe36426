"""What every test shares: golden files, the device mark, and a fixed number of threads."""

from __future__ import annotations

import importlib.util
import os
import random
import sys
from pathlib import Path

import pytest

# Sums in torch depend on how many threads split them, whatever the shell says. Fixed before torch is imported
# anywhere: one, as the workers of a run have a core each, and more threads wait for each other a quarter of its time.
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"
# Kernels run on this machine's CPU, whether it has a GPU or not; read when triton is imported. Not to be chosen: the
# tests give their kernels tensors on a CPU, which nothing else takes.
os.environ["TRITON_INTERPRET"] = "1"
# No test may reach for a hub or a network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

ROOT = Path(__file__).resolve().parent.parent

if importlib.util.find_spec("hypothesis") is not None:  # the front end's tests can do without
    from hypothesis import HealthCheck, settings

    # The same examples in every run, and none of it goes by the clock: bench/ looks for new ones.
    settings.register_profile(
        "same", derandomize=True, database=None, deadline=None, suppress_health_check=[HealthCheck.too_slow]
    )
    settings.load_profile("same")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="rewrite expected outputs instead of comparing")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked or _has_device():
        return
    for item in marked:
        item.add_marker(pytest.mark.skip(reason="no CUDA device on this machine"))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    _seed()
    if "triton" in sys.modules:
        from weft.codegen.quick_interpreter import quicken

        quicken()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call() -> None:
    _seed()  # again: of tests that share a fixture, only the first makes it


def _seed() -> None:
    """What a test draws without a seed of its own is the same alone and in any order."""
    random.seed(0)
    if "torch" in sys.modules:  # the front end's tests do without
        import numpy
        import torch

        torch.manual_seed(0)
        numpy.random.seed(0)


def _has_device() -> bool:
    if importlib.util.find_spec("torch") is None:
        return False
    import torch

    return torch.cuda.is_available()


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture
def golden(request: pytest.FixtureRequest):
    """Compare a text with an expected one that is kept in a file; `--update-golden` rewrites it."""
    update = request.config.getoption("--update-golden")

    def compare(path: Path, text: str) -> None:
        if update:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            return
        assert path.is_file(), f"no expected output {path}; run pytest --update-golden and read the diff"
        assert text == path.read_text(encoding="utf-8"), f"differs from {path}"

    return compare
