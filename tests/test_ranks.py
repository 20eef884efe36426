"""Training on several processes is training on one (gloo, 2 to 4 ranks on this machine)."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from weft.runtime.checkpoint import OPTIMISER, WEIGHTS, read_manifest, read_training, read_weights
from weft.runtime.model import load
from weft.runtime.run_folder import latest_checkpoint

ROOT = Path(__file__).parent.parent
# A weight of every kind: dense, of turns of a loop, one number, and a table by rows; losses that count different rows.
EVERY_KIND = """size tiny: dim = 16, vocab = 260

axis seq
shared table: real[vocab, dim] = normal(0.5)

block turn(x: real[seq, dim]) -> real[seq, dim]:
    param scale: real = ones
    return scale * tanh(linear(x, dim -> dim))

model toy(tokens: id[seq] in vocab) -> real[seq, vocab]:
    x = embed(tokens, vocab -> dim, weight=table)
    for layer in 0 .. 2:
        x = x + turn(x)
    return linear(x, dim -> vocab) as head

objective next_token(tokens: id[seq] in vocab):
    logits = toy(tokens)
    loss text = cross_entropy(logits + 0.1 * normal(like=logits), next(tokens))
    loss late = z_loss(logits) only position(seq) >= 20

optimise by adamw(lr=1e-2, decay=0.1, clip=CLIP):
    table: lr=3e-2, lazy=true
    head: clip=CLIP
"""
MODELS = ("olmo2", "blt", "memory_layers")
STEPS = 3


def environment(**more: str) -> dict[str, str]:
    path = os.pathsep.join([str(ROOT), *(entry for entry in sys.path if entry)])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "FATAL", **more}


def runs(folder: Path, jobs: list[dict[str, Any]]) -> tuple[list[list[int]], str]:
    """Exit codes of the ranks of each job, and what they printed."""
    file = folder / "jobs.json"
    file.write_text(json.dumps(jobs))
    command = [sys.executable, "-m", "tests.rank_runs", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


def run(folder: Path, jobs: list[dict[str, Any]]) -> None:
    codes, said = runs(folder, jobs)
    assert not any(code for of_job in codes for code in of_job), said


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("".join(f"the {number}th thread of the weft goes over and under\n" for number in range(120)))
    return path


def base(text: Path, **settings: Any) -> dict[str, Any]:
    return {
        "data": [str(text)], "size": "tiny", "max_length": 48, "tokens_per_step": 400, "steps": STEPS, "lr": 1e-3,
        "eval_every": STEPS, "eval_tokens": 600, "eval_fraction": 0.2, "threads": 1, "tensorboard": "off", **settings,
    }  # fmt: skip


# --- the same losses -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, text: Path) -> Path:
    """The three models on 1, 2 and 4 processes."""
    folder = tmp_path_factory.mktemp("models")
    of = {
        "olmo2": {"accumulate": 2, "overrides": {"layers": 2, "dim": 32, "ffn": 48}},
        "blt": {"tokenizer": "bytes4", "begin_mark": True},
        "memory_layers": {"overrides": {"layers": 3, "dim": 32, "ffn": 48, "stride": 1, "memories": 2}},
    }
    jobs = [
        {"ranks": ranks, "config": base(text, spec=f"specs/{name}.weft", out=str(folder / f"{name}-{ranks}"), **more)}
        for name, more in of.items()
        for ranks in (1, 2, 4)
    ]
    run(folder, jobs)
    return folder


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("name", MODELS)
def test_losses_are_those_of_one_process(trained: Path, name: str, ranks: int) -> None:
    one, many = lines(trained / f"{name}-1"), lines(trained / f"{name}-{ranks}")
    assert [line["kind"] for line in many] == ["train"] * STEPS + ["held_out"]
    for wanted, found in zip(one, many, strict=True):
        assert found["losses"] == pytest.approx(wanted["losses"], rel=1e-6, abs=1e-6)
        assert found.get("tokens") == wanted.get("tokens")
        assert found.get("cuts") == wanted.get("cuts")
        assert found.get("gradient_norm", 0) == pytest.approx(wanted.get("gradient_norm", 0), rel=1e-5)
    for wanted, found in zip(one[-1].get("tables", {}).values(), many[-1].get("tables", {}).values(), strict=True):
        assert found == {**wanted, "kl_weights": pytest.approx(wanted["kl_weights"], rel=1e-5)}


def test_what_is_compared_is_there(trained: Path) -> None:
    assert lines(trained / "blt-4")[0]["cuts"]
    assert lines(trained / "memory_layers-4")[-1]["tables"]


@pytest.mark.parametrize("name", MODELS)
def test_checkpoints_have_one_form(trained: Path, name: str) -> None:
    """Whole weights and moments, by the same names; `load` does not ask who wrote them."""
    one, many = (latest_checkpoint(trained / f"{name}-{ranks}") for ranks in (1, 4))
    first, second = read_training(one).optimiser, read_training(many).optimiser
    assert first.updates == second.updates == STEPS
    assert first.moments.keys() == second.moments.keys()
    for path, weight in read_weights(one).items():
        assert read_weights(many)[path].shape == weight.shape
        if path in first.moments:
            torch.testing.assert_close(second.moments[path], first.moments[path], rtol=1e-4, atol=1e-6)
    assert read_manifest(many).model == read_manifest(one).model
    assert load(trained / f"{name}-4").parameter_count() == load(trained / f"{name}-1").parameter_count()


# --- the same bits -------------------------------------------------------------------------------------------------


def spec(folder: Path, clip: float) -> str:
    path = folder / "toy.weft"
    path.write_text(EVERY_KIND.replace("CLIP", str(clip)))
    return str(path)


@pytest.mark.parametrize("tables", ["columns", "rows"])
def test_where_one_rank_has_all_the_work_not_a_bit_differs(tmp_path: Path, text: Path, tables: str) -> None:
    """A step of one example: other ranks add zeros. Three processes, then two, then one, resumed each time."""
    common = base(text, spec=spec(tmp_path, clip=0), tokens_per_step=None, examples_per_step=1, steps=6, tables=tables)
    common |= {"save_every": 2, "eval_every": 0}
    parts = {**common, "out": str(tmp_path / "parts")}
    jobs = [{"ranks": 1, "config": {**common, "out": str(tmp_path / "whole")}}]
    jobs += [{"ranks": 3, "config": {**parts, "stop_after": 2}}]
    jobs += [{"ranks": 2, "config": {**parts, "stop_after": 4, "resume": True}}]
    jobs += [{"ranks": 1, "config": {**parts, "resume": True}}]
    run(tmp_path, jobs)
    whole, found = latest_checkpoint(tmp_path / "whole"), latest_checkpoint(tmp_path / "parts")
    for name in (WEIGHTS, OPTIMISER, "loader.json"):
        assert (whole / name).read_bytes() == (found / name).read_bytes(), name
    losses = [[line["losses"] for line in lines(tmp_path / name)] for name in ("whole", "parts")]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("tables", ["columns", "rows"])
def test_every_kind_of_weight(tmp_path: Path, text: Path, tables: str) -> None:
    """With clipping by two norms, micro-batches, and losses whose rows are counted apart; in float64, to its digits."""
    common = base(text, spec=spec(tmp_path, clip=0.05), precision="float64", steps=5, accumulate=3, tables=tables)
    run(tmp_path, [{"ranks": n, "config": {**common, "out": str(tmp_path / str(n))}} for n in (1, 2, 4)])
    wanted = read_weights(latest_checkpoint(tmp_path / "1"))
    for ranks in (2, 4):
        for one, many in zip(lines(tmp_path / "1"), lines(tmp_path / str(ranks)), strict=True):
            assert many["losses"] == pytest.approx(one["losses"], rel=1e-12)
            assert many.get("gradient_norm", 1) == pytest.approx(one.get("gradient_norm", 1), rel=1e-12)
        for path, weight in read_weights(latest_checkpoint(tmp_path / str(ranks))).items():
            torch.testing.assert_close(weight, wanted[path], rtol=1e-10, atol=1e-10)
    norms = [line["gradient_norm"] for line in lines(tmp_path / "1") if line["kind"] == "train"]
    assert min(norms) > 0.05, "nothing was clipped"


# --- the end of one ------------------------------------------------------------------------------------------------


def test_a_rank_that_is_killed(tmp_path: Path, text: Path) -> None:
    """The others stop with one line; the run goes on with another number of processes, to the same losses."""
    common = base(text, spec=spec(tmp_path, clip=1.0), steps=6, save_every=2, eval_every=0)
    broken = {**common, "out": str(tmp_path / "broken")}
    began = time.monotonic()
    (codes,), said = runs(tmp_path, [{"ranks": 4, "config": broken, "kills": 2}])
    assert time.monotonic() - began < 60
    assert codes[2] == -signal.SIGKILL
    assert sorted(codes) == [-signal.SIGKILL, 1, 3, 3]
    (line,) = [line for line in said.splitlines() if line]
    saved = tmp_path / "broken" / "checkpoints" / "step-00000002"
    assert line == (
        "weft: process 2 of 4 (counted from 0) has died, killed or out of memory, so all stopped: the same command with "
        f"--resume goes on, on any number of processes; the last good checkpoint is {saved}"
    )
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]
    whole = {"ranks": 1, "config": {**common, "out": str(tmp_path / "whole")}}
    run(tmp_path, [{"ranks": 3, "config": {**broken, "resume": True}}, whole])
    for wanted, found in zip(lines(tmp_path / "whole"), lines(tmp_path / "broken"), strict=True):
        assert found["losses"] == pytest.approx(wanted["losses"], rel=1e-6, abs=1e-6)


def test_a_mistake_is_told_once(tmp_path: Path, text: Path) -> None:
    common = base(text, spec=spec(tmp_path, clip=1.0), out=str(tmp_path / "run"))
    blocked = tmp_path / "blocked"
    blocked.write_text("a file")
    bad = [{"resume": True}, {"data": ["none.txt"]}, {"out": str(blocked)}, {"lr": 1e30, "clip": 0.0}]
    codes, said = runs(tmp_path, [{"ranks": 3, "config": {**common, **more}} for more in bad])
    assert [sorted(of_job) for of_job in codes] == [[1, 3, 3]] * len(bad)
    wanted = ["nothing to resume", "none.txt", "blocked cannot be written", "the step was not taken"]
    found = [line for line in said.splitlines() if line]
    assert len(found) == len(bad), said
    assert all(part in line for part, line in zip(wanted, found, strict=True)), said


# --- the command ---------------------------------------------------------------------------------------------------


def command(text: Path, out: Path, *more: str) -> list[str]:
    settings = ("--size", "tiny", "--data", str(text), "--max-length", "48", "--tokens-per-step", "200", "--out", str(out))
    return [sys.executable, "-m", "weft", "train", *settings, "--eval-every", "0", "--log-every", "1", *more]


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds a rank by what Linux says of processes")
def test_the_command_with_processes(tmp_path: Path, text: Path) -> None:
    """One is killed; what is left is resumed, stopped by a signal, and says what a run on one process says."""
    out = tmp_path / "run"
    start = command(text, out, spec(tmp_path, clip=1.0), "--steps", "100000", "--save-every", "5", "--processes", "2")
    with subprocess.Popen(start, stderr=subprocess.PIPE, text=True, env=environment(), cwd=ROOT) as running:
        assert running.stderr is not None
        _wait_for(running, r"step 6/")
        os.kill(_child(running.pid, 1), signal.SIGKILL)
        rest = running.stderr.read().splitlines()
    assert running.returncode == 1
    assert re.match(r"weft: process 1 of 2 .* --resume goes on, .*; the last good checkpoint is ", rest[-1])
    assert all(line.startswith("step ") for line in rest[:-1]), rest
    with subprocess.Popen(
        [*start, "--resume", "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(),
        cwd=ROOT,
    ) as running:  # fmt: skip
        assert running.stderr is not None
        assert running.stdout is not None
        _wait_for(running, r"resumed from ")
        _wait_for(running, r"step \d+/")
        running.send_signal(signal.SIGTERM)
        rest = running.stderr.read().splitlines()
        result = json.loads(running.stdout.read())
    assert running.returncode == 143
    assert rest[-1] == f"stopped by SIGTERM after step {result['step']}; the same command with --resume goes on"
    steps = [line["step"] for line in lines(out)]
    assert all(after == before + 1 for before, after in pairwise(steps))


def test_torchrun(tmp_path: Path, text: Path) -> None:
    starter = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    own = command(text, tmp_path / "run", spec(tmp_path, clip=1.0), "--steps", "2")[1:]
    done = subprocess.run(
        [*starter, *own], capture_output=True, text=True, env=environment(), cwd=ROOT, timeout=120
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("finished after 2 steps") == 1
    assert json.loads((tmp_path / "run" / "run.json").read_text())["processes"] == 2


def _wait_for(running: subprocess.Popen[str], pattern: str) -> None:
    assert running.stderr is not None
    for line in running.stderr:
        if re.match(pattern, line):
            return
    raise AssertionError(f"ended with {running.wait()} before {pattern}")


def _child(parent: int, rank: int) -> int:
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    (found,) = [
        int(child) for child in children if f"RANK={rank}".encode() in Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
    ]
    return found
