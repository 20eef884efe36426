"""bench/gpu.py without a GPU: all of it at tiny sizes in Triton's interpreter, and what it does when parts fail."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench import gpu  # noqa: E402
from bench.gpu_bench import page  # noqa: E402
from bench.gpu_bench.contest import Contest, Work, run  # noqa: E402
from bench.gpu_bench.context import Context, DeviceLost  # noqa: E402
from bench.gpu_bench.results import Results, file_name  # noqa: E402

CEILINGS = {"copy_bytes_per_s": 1e9, "matmul_flops_per_s": 1e12}


def context(**more: Any) -> Context:
    return Context(torch.device("cpu"), True, time.monotonic() + 600, frozenset(), "aot_eager", **more)


# ---- all of it -----------------------------------------------------------------------------------

# Whichever test reads them first, alone or in any order, waits for all measurements.
WAITS = pytest.mark.timeout(1500)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("bench") / "cpu.json"
    command = [sys.executable, str(ROOT / "bench" / "gpu.py"), "--device", "cpu", "--tiny", "--backend", "aot_eager"]
    done = subprocess.run([*command, "--out", str(out)], capture_output=True, text=True, timeout=1400, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert [one.name for one in out.parent.iterdir()] == ["cpu.json"]
    return json.loads(out.read_text())


def rows(measured: dict[str, Any], section: str) -> list[dict[str, Any]]:
    return measured["sections"][section]["rows"]


@pytest.mark.slow
@WAITS
def test_every_section_says_with_what_it_was_measured(measured: dict[str, Any]) -> None:
    assert measured["device"] == "CPU with Triton's interpreter"
    assert list(measured["sections"]) == ["verify", "kernels", "step"]
    for section in measured["sections"].values():
        assert section["versions"]["torch"] == torch.__version__
        assert len(section["date"]) == 10
    assert str(ROOT) not in json.dumps(measured)


@pytest.mark.slow
@WAITS
def test_kernels_of_every_spec_agree_with_float64(measured: dict[str, Any]) -> None:
    found = {row["name"]: row for row in rows(measured, "verify")}
    # A file of blocks alone has nothing to run. The interpreter takes each in one type, in turn.
    files = list(enumerate(sorted((ROOT / "specs").glob("*.weft"))))
    specs = [(number, path.stem) for number, path in files if "\nmodel " in path.read_text("utf-8")]
    assert list(found) == [f"{spec} tiny {('bfloat16', 'float32')[number % 2]}" for number, spec in specs]
    for row in found.values():
        assert "failure" not in row, row
        assert (row["wrong_count"], row["wrong"]) == (0, [])
        assert row["parts"]["region"] >= 5
        assert row["parts"]["region gradient"] >= 5


@pytest.mark.slow
@WAITS
def test_every_kernel_is_timed_beside_its_peers(measured: dict[str, Any]) -> None:
    ceilings, *kernels = rows(measured, "kernels")
    assert ceilings["copy_bytes_per_s"] > 0
    assert ceilings["matmul_flops_per_s"] > 0
    found = {row["kernel"]: row for row in kernels}
    assert {"table", "attention", "loss", "silu_swiglu", "rms_norm", "rms_norm_rope_turn"} <= found.keys()
    of_patches = [row for row in kernels if row["spec"] == "blt.weft"]
    assert [row["kernel"] for row in of_patches] == [
        "boundary scan", "max of patches", "mean of patches", "sum of patches", "patches at bytes",
        "n-gram hashes and tables", "entropy of a head", "slots attend to bytes", "bytes attend to slots",
    ]  # fmt: skip
    of_memories = [row for row in kernels if row["spec"] == "memory_layers.weft"]
    assert [row["kernel"] for row in of_memories] == [
        "bag, uniform ids", "bag, Zipf ids", "bag of a softmax", "selection of pairs"
    ]  # fmt: skip
    of_routes = [row for row in kernels if row["spec"] == "lmfusion.weft"]
    assert [row["kernel"] for row in of_routes] == [
        "routed q, k and v", "routed out", "routed gate and up", "routed down", "attention of words and pictures",
    ]  # fmt: skip
    # 19 rows of 32 entries in and out, their numbers, and the weights of two towers.
    assert found["routed out"]["passes"]["forward"]["bytes"] == 2 * 19 * 32 * 2 + 19 * 8 + 2 * 32 * 32 * 2
    assert {"eager", "compile", "grouped_mm"} <= found["routed out"]["passes"]["both"]["peers"].keys()
    # Two heads of 16 and captions of nine rows, four of which are a picture, and of one.
    assert found["attention of words and pictures"]["passes"]["forward"]["flops"] == 4 * 32 * (2 * (45 + 6) + 1)
    # Two lists of four for each of twelve tokens: rows of 24 entries, ids, weights, and the sums.
    assert found["bag, uniform ids"]["passes"]["forward"]["bytes"] == (64 + 12) * 48 + 12 * 8 * (8 + 2)
    assert {"eager", "compile", "sdpa, a mask of all pairs"} <= found["slots attend to bytes"]["passes"]["both"][
        "peers"
    ].keys()
    # Seven rows of 32 entries for each of 24 bytes and their sum, and the bytes' ids.
    assert found["n-gram hashes and tables"]["passes"]["forward"]["bytes"] >= 24 * 8 * 64
    for row in kernels:
        # Where a boundary lies is a whole number, or wrong.
        assert row["error"] is None if row["kernel"] == "boundary scan" else row["error"] <= 8e-3, row
        assert row in (*of_patches, *of_memories, *of_routes) or row["spec"].startswith("olmo2.weft:")
        for made in row["passes"].values():
            assert made["us"] > 0
            assert made["of_copy"] == pytest.approx(made["bytes"] / made["us"] * 1e6 / ceilings["copy_bytes_per_s"])
            failed = {name for name, peer in made["peers"].items() if "us" not in peer}
            # There is no backward of FlexAttention on a CPU: the row says so, and the others are there.
            assert all(name.startswith("flex") for name in failed), made["peers"]
            assert made["peers"][made["best_peer"]]["us"] == pytest.approx(made["ratio"] * made["us"])
    assert {"eager", "compile"} <= found["rms_norm"]["passes"]["both"]["peers"].keys()
    assert {"eager", "flex", "sdpa, one call an example"} <= found["attention"]["passes"]["forward"]["peers"].keys()
    # 24 rows of which 13 and 11 are examples, 2 heads of 16, two products: causal pairs alone.
    assert found["attention"]["passes"]["forward"]["flops"] == 2 * 2 * 32 * (13 * 14 // 2 + 11 * 12 // 2)
    packed = found["attention of packed documents"]["passes"]["forward"]
    assert packed["flops"] == 2 * 2 * 32 * (9 * 10 // 2 + 1 + 14 * 15 // 2)
    assert {"eager", "flex", "sdpa, one call an example"} <= packed["peers"].keys()
    gate = found["silu_swiglu"]["passes"]
    assert (gate["forward"]["bytes"], gate["both"]["bytes"]) == (3 * 24 * 48 * 2, (3 + 5) * 24 * 48 * 2)


@pytest.mark.slow
@WAITS
def test_both_sides_train_and_decode_the_same(measured: dict[str, Any]) -> None:
    steps = rows(measured, "step")
    assert not [row for row in steps if "failure" in row]
    for case in ("equal lengths", "documents"):
        by_side = {row["side"]: row for row in steps if row["case"] == case}
        assert by_side.keys() == {"ours", "transformers, eager", "transformers, torch.compile"}
        for row in by_side.values():
            # Ours adds a z-loss of 1e-5 times the square of a logarithm near 4.
            assert row["first_loss"] == pytest.approx(by_side["transformers, eager"]["first_loss"], abs=2e-3)
            assert row["tokens_per_s"] > 0
    for case in ("1 sequences", "2 sequences"):
        tokens = [row["tokens"] for row in steps if row["case"] == case]
        assert len(tokens) == 4
        assert all(one == tokens[0] for one in tokens)


@pytest.mark.slow
@WAITS
def test_the_page_shows_every_row(measured: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "cpu.json"
    file.write_text(json.dumps(measured))
    text = page.text([file])
    assert "## CPU with Triton's interpreter" in text
    assert "not installed: " in text
    for section in measured["sections"].values():
        for row in section["rows"]:
            assert row["name"] == "ceilings" or row.get("what") or f"| {row['name']} |" in text
    widths = [line.count("|") for line in text.splitlines() if line.startswith("|")]
    assert len(widths) > 30
    assert "No device has been measured" not in text


# ---- the page ------------------------------------------------------------------------------------


def test_the_page_is_up_to_date() -> None:
    assert page.PAGE.read_text() == page.text(page.RESULTS.glob("*.json"))


def test_without_results_the_page_says_so() -> None:
    assert page.text([]).endswith("No device has been measured yet.\n")


# ---- failures ------------------------------------------------------------------------------------


def contest(ours: Any, **peers: Any) -> Contest:
    x = torch.randn(6, 4)
    work = Work(1e6, 0.0)
    return Contest("a kernel", {"size": "tiny"}, (x,), frozenset((0,)), ours, peers, work, work, lambda x: 2 * x)


def broken(x: torch.Tensor) -> torch.Tensor:
    raise RuntimeError("shared memory:\n  too much")


def test_a_peer_that_fails_is_part_of_the_row() -> None:
    row = run(context(), contest(lambda x: 2 * x, broken=broken, slow=lambda x: (time.sleep(0.01), 2 * x)[1]), CEILINGS)
    made = row["passes"]["both"]
    assert made["peers"]["broken"] == {"failure": "RuntimeError: shared memory: too much"}
    assert made["best_peer"] == "slow"
    assert made["ratio"] > 1
    assert made["of_copy"] == pytest.approx(1e6 / made["us"] * 1e6 / 1e9)
    assert row["error"] == 0


def test_a_kernel_that_fails_leaves_its_peers() -> None:
    row = run(context(), contest(broken, plain=lambda x: 2 * x), CEILINGS)
    made = row["passes"]["forward"]
    assert (made["us"], made["failure"]) == (None, "RuntimeError: shared memory: too much")
    assert made["peers"]["plain"]["us"] > 0
    assert "ratio" not in made
    assert row["error"] is None
    assert row["error_failure"].startswith("RuntimeError")


def test_a_kernel_that_is_wrong_shows_its_error() -> None:
    row = run(context(), contest(lambda x: 2.5 * x), CEILINGS)
    assert row["error"] == pytest.approx(0.25)


def test_time_that_is_up_is_said() -> None:
    over = Context(torch.device("cpu"), True, time.monotonic() - 1, frozenset())
    row = run(over, contest(lambda x: 2 * x, plain=lambda x: 2 * x), CEILINGS)
    assert row["passes"]["forward"]["peers"]["plain"] == {"failure": "the time budget was used up"}
    assert row["passes"]["forward"]["us"] > 0


def test_a_lost_device_keeps_what_was_measured() -> None:
    def lose(x: torch.Tensor) -> torch.Tensor:
        raise DeviceLost("an illegal address")

    with pytest.raises(DeviceLost) as lost:
        run(context(), contest(lambda x: 2 * x, first=lambda x: 2 * x, deadly=lose), CEILINGS)
    assert lost.value.row is not None
    peers = lost.value.row["passes"]["forward"]["peers"]
    assert peers["first"]["us"] > 0
    assert peers["deadly"] == {"failure": "the device failed: an illegal address"}


def test_another_process_goes_on_behind_the_one_that_died(tmp_path: Path) -> None:
    path, device = tmp_path / "results" / "x.json", torch.device("cpu")
    first = Results(path, "kernels", "run 1", device, {})
    first.add({"name": "a"})
    first.begin("b")
    second = Results(path, "kernels", "run 1", device, {})
    assert second.give_up("the process ended with code -11")
    assert not second.give_up("again")
    assert second.done == {"a", "b"}
    Results(path, "step", "run 1", device, {}).write()
    third = Results(path, "kernels", "run 2", device, {})
    third.add({"name": "c"})
    saved = json.loads(path.read_text())["sections"]
    assert [row["name"] for row in saved["kernels"]["rows"]] == ["c"]
    assert saved["step"]["rows"] == []
    path.write_text("{}")
    with pytest.raises(SystemExit, match="no results file"):
        Results(path, "kernels", "run 3", device, {})


DYING = """
import os, sys
sys.path.insert(0, {root!r})
from bench import gpu
from bench.gpu_bench.context import DeviceLost

def rows(context):
    for name in ("a", "b", "c", "d"):
        if name in context.done:
            continue
        context.begin(name)
        if name == "b":
            os._exit(11)
        if name == "c":
            raise DeviceLost("an illegal address")
        yield {{"name": name}}

gpu._rows = lambda name: rows
gpu.__file__ = __file__
sys.exit(gpu.main(sys.argv[1:]))
"""


def test_a_process_that_dies_is_a_row_and_the_rest_goes_on(tmp_path: Path) -> None:
    script, out = tmp_path / "dying.py", tmp_path / "x.json"
    script.write_text(DYING.format(root=str(ROOT)))
    command = [sys.executable, str(script), "--device", "cpu", "--tiny", "--only", "kernels", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    found = {row["name"]: row.get("failure") for row in json.loads(out.read_text())["sections"]["kernels"]["rows"]}
    assert found == {
        "a": None,
        "b": "the process ended with code 11",
        "c": "the device failed: an illegal address",
        "d": None,
    }


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ((), 1, "there is no GPU here"),
        (("--device", "cpu"), 2, "a CPU needs --tiny"),
        (("--only", "kernels,speed"), 2, "--only takes verify, kernels, step, not speed"),
        (("--peers", "eager,magic"), 2, "--peers takes eager, compile"),
    ],
)
def test_wrong_usage_is_one_line(
    words: tuple[str, ...], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gpu.main(list(words)) == code
    printed = capsys.readouterr().err
    assert printed.startswith(said)
    assert printed.count("\n") == 1


def test_a_file_has_the_name_of_its_device() -> None:
    assert file_name("NVIDIA H100 80GB HBM3") == "nvidia-h100-80gb-hbm3.json"
