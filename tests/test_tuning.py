"""Choices by measurement: what is timed, kept, merged and looked up. Time is a list of numbers here."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.gpu_kernels import NORM, matmul
from weft.codegen.configuration import Configuration, configuration, kernel_hash
from weft.runtime.errors import LoadFault
from weft.runtime.tuning import (
    Key,
    Row,
    Table,
    bucket,
    measure,
    merge,
    read,
    tune,
    write,
)

SMALL, WIDE, DEEP = (
    Configuration((("BLOCK_M", block), ("BLOCK_N", block)), warps, stages)
    for block, warps, stages in ((64, 4, 2), (128, 8, 3), (64, 4, 5))
)
LIBRARY = Configuration(implementation="torch")
KEY = Key("0123456789abcdef", "NVIDIA H200", bucket(rows=4096))
VERSIONS = (("torch", "2.11.0"), ("triton", "3.6.0"))


def times(table: dict[Configuration, float | Exception]) -> Callable[[Configuration], float]:
    def run(candidate: Configuration) -> float:
        found = table[candidate]
        if isinstance(found, Exception):
            raise found
        return found

    return run


def ticking(*readings: float) -> Callable[[], float]:
    return iter(readings).__next__


def row(microseconds: float | None, made: Configuration = SMALL, key: Key = KEY, versions=VERSIONS) -> Row:
    return Row(key, made, versions, microseconds, None if microseconds is not None else "OutOfResources: registers")


def test_the_fastest_is_chosen_and_a_failure_is_passed_over() -> None:
    run = times({SMALL: 40.0, WIDE: RuntimeError("out of\nshared memory"), DEEP: 25.1234, LIBRARY: 31.0})
    table, best = tune(Table(), KEY, [SMALL, WIDE, DEEP, LIBRARY], run, 10, VERSIONS)
    assert best == DEEP
    assert [(one.configuration, one.microseconds, one.failure) for one in table.rows] == [
        (DEEP, 25.123, None),
        (WIDE, None, "RuntimeError: out of shared memory"),
    ]
    assert table.choose(KEY, SMALL, VERSIONS) == DEEP


def test_a_candidate_that_failed_is_not_tried_again_in_the_same_versions() -> None:
    tried: list[Configuration] = []

    def run(candidate: Configuration) -> float:
        tried.append(candidate)
        return 10.0

    table = merge([row(None, WIDE)])
    tune(table, KEY, [SMALL, WIDE], run, 10, VERSIONS)
    assert tried == [SMALL]
    tune(table, KEY, [SMALL, WIDE], run, 10, (("triton", "3.7.1"),))
    assert tried == [SMALL, SMALL, WIDE]
    # Once it has worked, and is the fastest, the failure is history.
    assert merge(table, [row(9.0, WIDE)]).failed(KEY, VERSIONS) == frozenset()


def test_nothing_works_and_the_default_stays() -> None:
    run = times({SMALL: ValueError("no"), WIDE: float("nan"), DEEP: 0.0})
    table, best = tune(Table(), KEY, [SMALL, WIDE, DEEP], run, 10, VERSIONS)
    assert best == SMALL
    assert {one.configuration: one.failure for one in table.rows} == {
        SMALL: "ValueError: no",
        WIDE: "the time is nan",
        DEEP: "the time is 0.0",
    }
    with pytest.raises(ValueError, match="nothing to choose"):
        tune(Table(), KEY, [], run, 10, VERSIONS)


def test_the_budget_ends_measuring_but_not_before_the_first() -> None:
    run = times({SMALL: 3.0, WIDE: 2.0, DEEP: 1.0})
    candidates = [SMALL, WIDE, DEEP]
    # Read once at the start, and before each candidate but the first.
    assert [t.configuration for t in measure(candidates, run, 5, ticking(100, 104, 106))] == [SMALL, WIDE]
    assert [t.configuration for t in measure(candidates, run, 0, ticking(100, 100))] == [SMALL]
    assert [t.configuration for t in measure([SMALL, SMALL, WIDE], run, 5, ticking(0, 1))] == [SMALL, WIDE]


def test_stopping_by_hand_is_not_a_failure_of_the_candidate() -> None:
    def run(_: Configuration) -> float:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure([SMALL], run, 10)


def test_merging_keeps_the_fastest_whatever_the_order_and_grouping() -> None:
    other = replace(KEY, device="AMD Instinct MI300X")
    newer = (("triton", "3.7.1"),)
    rows = [
        row(30.0), row(20.0, WIDE), row(20.0, DEEP), row(None, LIBRARY), row(None, WIDE), row(5.0, key=other),
        row(40.0, versions=newer),
    ]  # fmt: skip
    whole = merge(rows)
    # Equal times are decided by what is written, so the file does not depend on who measured first.
    assert [(one.key.device, one.configuration, one.microseconds) for one in whole.rows] == [
        ("AMD Instinct MI300X", SMALL, 5.0),
        ("NVIDIA H200", WIDE, 20.0),
        ("NVIDIA H200", WIDE, None),
        ("NVIDIA H200", LIBRARY, None),
        ("NVIDIA H200", SMALL, 40.0),
    ]
    for order in itertools.permutations(rows, len(rows)):
        assert merge(order[:3], merge(order[3:5]), Table(order[5:])) == whole


def test_a_choice_prefers_near_sizes_then_the_same_versions() -> None:
    newer = (("torch", "2.13.0"), ("triton", "3.7.1"))
    table = merge(
        [
            row(50.0, SMALL, replace(KEY, bucket=bucket(rows=256))),
            row(9.0, WIDE, replace(KEY, bucket=bucket(rows=4096))),
            row(8.0, DEEP, replace(KEY, bucket=bucket(rows=4096)), newer),
        ]
    )
    rows = {256: SMALL, 300: SMALL, 3000: WIDE, 4096: WIDE, 1 << 20: WIDE}
    assert {size: table.choose(replace(KEY, bucket=bucket(rows=size)), LIBRARY, VERSIONS) for size in rows} == rows
    assert table.choose(KEY, LIBRARY, newer) == DEEP
    # Nobody knows these versions: the fastest of the others.
    assert table.choose(KEY, LIBRARY, ()) == DEEP
    assert table.choose(replace(KEY, device="another"), LIBRARY) == LIBRARY
    assert table.choose(replace(KEY, kernel="another"), LIBRARY) == LIBRARY
    assert table.choose(replace(KEY, bucket=bucket(keys=4096)), LIBRARY) == LIBRARY


def test_a_file_is_read_back_and_written_the_same(tmp_path: Path) -> None:
    path = tmp_path / "tuning" / "kernels.jsonl"
    assert read(path) == Table()
    tuples = Configuration((("SHAPE", (16, 32)),), 4, 1)
    table = merge([row(30.0), row(None, WIDE), row(12.5, tuples, replace(KEY, kernel="ff"))])
    write(path, table)
    assert read(path) == table
    text = path.read_text()
    lines = text.splitlines()
    assert len(lines) == 3
    assert json.loads(lines[0])["microseconds"] == 30.0
    # Two files one after the other are a file too; what git leaves empty is no row.
    path.write_text("\n".join([*reversed(lines), "", *lines]))
    write(path, read(path))
    assert path.read_text() == text
    assert [item.name for item in path.parent.iterdir()] == ["kernels.jsonl"]


@pytest.mark.parametrize(
    "line",
    ["<<<<<<< ours", "[]", "{}", '{"kernel": "a", "device": "d", "bucket": {}, "versions": {}, "configuration": {}}'],
)
def test_a_line_that_is_no_row_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "kernels.jsonl"
    write(path, merge([row(1.0)]))
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(LoadFault, match=r"kernels\.jsonl:2: not a row of measurements"):
        read(path)


def test_a_bucket_has_sizes_of_powers_of_two() -> None:
    assert bucket(rows=1, keys=1000) == (("keys", 1024), ("rows", 1))
    assert bucket(rows=0) == bucket(rows=1)
    assert bucket(rows=1024) == bucket(rows=513) != bucket(rows=1025)


def test_a_hash_ignores_what_is_chosen_and_nothing_else() -> None:
    tuned = ("BLOCK_M", "BLOCK_N", "BLOCK_K")
    one, two = matmul(64, 32, 4, 3), matmul(128, 64, 8, 4)
    assert kernel_hash(one, tuned) == kernel_hash(two, tuned)
    assert kernel_hash(one, tuned[:2]) != kernel_hash(two, tuned[:2])
    assert kernel_hash(one, tuned) != kernel_hash(replace(one, text=one.text + "\n"), tuned)
    assert kernel_hash(one, tuned) != kernel_hash(matmul(64, 32, 4, 3, divisible=False), tuned)
    wide = configuration(two, tuned)
    assert wide == Configuration((("BLOCK_K", 64), ("BLOCK_M", 128), ("BLOCK_N", 128)), 8, 4)
    assert wide.applied(one) == two
    with pytest.raises(ValueError, match="no constant BLOCK_K"):
        wide.applied(NORM)
