"""Training on several processes is training on one (gloo, 2 to 4 ranks on this machine)."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from weft.runtime.checkpoint import OPTIMISER, WEIGHTS, read_manifest, read_training, read_weights
from weft.runtime.model import load
from weft.runtime.run_config import make_config
from weft.runtime.run_folder import latest_checkpoint
from weft.runtime.train import train

ROOT = Path(__file__).parent.parent
MODELS = ("olmo2", "blt", "memory_layers")
TABLES = ("columns", "rows")
# Memory+ by columns is among the models.
MEMORIES = (("memory_layers", "rows"), ("peer", "columns"), ("peer", "rows"))
STEPS = 3
# A weight of every kind: dense, of turns of a loop, one number, and a table by rows; losses that count different rows.
# Widths that a processor's vectors divide, or a part would be rounded otherwise than the whole.
EVERY_KIND = """size tiny: dim = 16, vocab = 260

axis seq
shared table: real[vocab, dim] = normal(0.5)
shared rough: real[vocab, dim] = normal(0.5)

block turn(x: real[seq, dim]) -> real[seq, dim]:
    param scale: real = ones
    return scale * tanh(linear(x, dim -> dim))

model toy(tokens: id[seq] in vocab) -> real[seq, vocab]:
    x = embed(tokens, vocab -> dim, weight=table) + embed(tokens, vocab -> dim, weight=rough)
    for layer in 0 .. 2:
        x = x + turn(x)
    return linear(x, dim -> vocab) as head

objective next_token(tokens: id[seq] in vocab):
    logits = toy(tokens)
    loss text = cross_entropy(logits + 0.1 * normal(like=logits), next(tokens))
    loss late = z_loss(logits) only position(seq) >= 20

optimise by adamw(lr=1e-2, decay=0.1, clip=CLIP):
    table: lr=3e-2, lazy=true
    rough: lr=3e-3, lazy=true, moments=MOMENTS
    **.scale: clip=CLIP
"""


def environment() -> dict[str, str]:
    path = os.pathsep.join([str(ROOT), *(entry for entry in sys.path if entry)])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "FATAL"}


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("".join(f"the {number}th thread of the weft goes over and under\n" for number in range(120)))
    return path


def spec(folder: Path, clip: float) -> str:
    path = folder / f"toy-{clip}.weft"
    # A mean over a row of which each rank has some columns is added up in another order: not to the bit.
    path.write_text(EVERY_KIND.replace("CLIP", str(clip)).replace("MOMENTS", "row" if clip else "entry"))
    return str(path)


@dataclass(frozen=True)
class Done:
    """What came of the jobs: a folder for each, the exit codes of its ranks, and what they said."""

    folder: Path
    results: dict[str, tuple[list[int], str]]

    def out(self, name: str) -> Path:
        codes, said = self.results[name]
        assert not any(codes), said
        return self.folder / name


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, text: Path) -> Done:
    """All runs of this file but those of the command: in one process, as importing takes longer than they do."""
    folder = tmp_path_factory.mktemp("runs")
    base = {
        "data": [str(text)], "size": "tiny", "max_length": 48, "tokens_per_step": 400, "steps": STEPS, "lr": 1e-3,
        "eval_every": STEPS, "eval_tokens": 600, "eval_fraction": 0.2, "threads": 1, "tensorboard": "off",
    }  # fmt: skip
    jobs: dict[str, Any] = {}

    def add(name: str, ranks: int, kills: int | None = None, out: str = "", **settings: Any) -> None:
        config = {**base, "out": str(folder / (out or name)), **settings}
        jobs[name] = {"ranks": ranks, "config": config, "kills": kills}

    of_models = {
        "olmo2": {"accumulate": 2, "overrides": {"layers": 2, "dim": 32, "ffn": 48}},
        "blt": {"tokenizer": "bytes4", "begin_mark": True},
        "memory_layers": {"overrides": {"layers": 3, "dim": 32, "ffn": 48, "stride": 1, "memories": 2}},
    }
    for name, settings in of_models.items():
        for ranks in (1, 2, 4):
            # Recomputed as well by four, which is the same: nothing is exchanged twice.
            add(f"{name}-{ranks}", ranks, spec=f"specs/{name}.weft", recompute=ranks == 4, **settings)

    memory = {"spec": "specs/memory_layers.weft", **of_models["memory_layers"]}
    peer = {**memory, "overrides": {**of_models["memory_layers"]["overrides"], "experts": True, "gated": False}}
    add("peer-1", 1, **peer)
    for name, tables in MEMORIES:
        add(f"{name}-{tables}", 2, tables=tables, **(peer if name == "peer" else memory))

    single = {"spec": spec(folder, 0.0), "tokens_per_step": None, "examples_per_step": 1, "steps": 6, "eval_every": 0}
    add("single", 1, save_every=2, **single)
    for tables in TABLES:
        parts = {**single, "save_every": 2, "tables": tables, "out": f"parts-{tables}"}
        for ranks, end in ((3, 2), (2, 4), (1, 6)):
            name = f"parts-{tables}" if end == 6 else f"parts-{tables}-{end}"
            add(name, ranks, stop_after=end, resume=end > 2, **parts)

    kinds = {"spec": spec(folder, 0.05), "precision": "float64", "steps": 4, "accumulate": 3}
    add("kinds", 1, **kinds)
    for tables, ranks in zip(TABLES, (4, 2), strict=True):
        add(f"kinds-{tables}", ranks, tables=tables, **kinds)

    killed = {"spec": spec(folder, 1.0), "steps": 6, "save_every": 2, "eval_every": 0}
    add("undisturbed", 1, **killed)
    add("killed", 4, kills=2, **killed)
    add("resumed", 3, out="killed", resume=True, **killed)

    for name, mistake in MISTAKES.items():
        add(name, 3, **{"spec": spec(folder, 1.0), **mistake})

    file = folder / "jobs.json"
    file.write_text(json.dumps(jobs))
    results = folder / "results.json"
    command = [sys.executable, "-m", "tests.rank_runs", str(file), str(results)]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment(), cwd=ROOT, timeout=600)
    assert ended.returncode == 0, ended.stderr
    return Done(folder, json.loads(results.read_text()))


# --- the same losses -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("name", MODELS)
def test_losses_are_those_of_one_process(done: Done, name: str, ranks: int) -> None:
    check_losses(done, f"{name}-1", f"{name}-{ranks}")


@pytest.mark.parametrize(("name", "tables"), MEMORIES, ids=str)
def test_memories_in_parts_of_either_kind(done: Done, name: str, tables: str) -> None:
    """Memory+ by rows: bags with weights. PEER by columns and by rows: products with the rows of a second table too.
    Beside the losses the tables' moments, as three losses tell little of a small gradient."""
    check_losses(done, f"{name}-1", f"{name}-{tables}")
    one, many = (read_training(latest_checkpoint(done.out(f"{name}-{form}"))).optimiser for form in ("1", tables))
    for path in ("values", *(["readers"] if name == "peer" else [])):
        for wanted, found in zip(one.moments[path], many.moments[path], strict=True):
            assert wanted is not None
            assert found is not None
            assert wanted.count_nonzero() > 0
            assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max(), path


def check_losses(done: Done, alone: str, together: str) -> None:
    one, many = lines(done.out(alone)), lines(done.out(together))
    assert [line["kind"] for line in many] == ["train"] * STEPS + ["held_out"]
    for wanted, found in zip(one, many, strict=True):
        assert found["losses"] == pytest.approx(wanted["losses"], rel=1e-6, abs=0)
        assert found.get("tokens") == wanted.get("tokens")
        assert found.get("cuts") == wanted.get("cuts")
        assert found.get("gradient_norm", 0) == pytest.approx(wanted.get("gradient_norm", 0), rel=1e-5)
    for wanted, found in zip(one[-1].get("tables", {}).values(), many[-1].get("tables", {}).values(), strict=True):
        weighed = pytest.approx(wanted["kl_weights"], rel=1e-5)
        assert found == {**wanted, "kl_weights": weighed}


def test_what_is_compared_is_there(done: Done) -> None:
    assert lines(done.out("blt-4"))[0]["cuts"]
    assert lines(done.out("memory_layers-4"))[-1]["tables"]


@pytest.mark.parametrize("name", MODELS)
def test_checkpoints_have_one_form(done: Done, name: str) -> None:
    """Whole weights and moments, by the same names; `load` does not ask who wrote them."""
    one, many = (latest_checkpoint(done.out(f"{name}-{ranks}")) for ranks in (1, 4))
    first, second = read_training(one).optimiser, read_training(many).optimiser
    assert first.updates == second.updates == STEPS
    assert first.moments.keys() == second.moments.keys()
    for path, weight in read_weights(one).items():
        assert read_weights(many)[path].shape == weight.shape
        if path in first.moments:
            torch.testing.assert_close(second.moments[path], first.moments[path], rtol=1e-4, atol=1e-6)
    assert read_manifest(many).model == read_manifest(one).model
    assert load(many).state_dict().keys() == load(one).state_dict().keys()


@pytest.mark.parametrize("tables", TABLES)
def test_every_kind_of_weight(done: Done, tables: str) -> None:
    """With clipping by two norms, micro-batches, and losses whose rows are counted apart; in float64, to its digits."""
    one, many = done.out("kinds"), done.out(f"kinds-{tables}")
    for wanted, found in zip(lines(one), lines(many), strict=True):
        assert found["losses"] == pytest.approx(wanted["losses"], rel=1e-12)
        assert found.get("gradient_norm", 1) == pytest.approx(wanted.get("gradient_norm", 1), rel=1e-12)
    weights = read_weights(latest_checkpoint(many))
    for path, weight in read_weights(latest_checkpoint(one)).items():
        torch.testing.assert_close(weights[path], weight, rtol=1e-10, atol=1e-10)
    norms = [line["gradient_norm"] for line in lines(one) if line["kind"] == "train"]
    assert min(norms) > 0.05, "nothing was clipped"


# --- the same bits -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tables", TABLES)
def test_where_one_rank_has_all_the_work_not_a_bit_differs(done: Done, tables: str) -> None:
    """Steps of one example, to which other ranks add zeros; on three processes, then two, then one."""
    whole, parts = done.out("single"), done.out(f"parts-{tables}")
    for name in (WEIGHTS, OPTIMISER, "loader.json"):
        first, second = latest_checkpoint(whole) / name, latest_checkpoint(parts) / name
        assert first.read_bytes() == second.read_bytes(), name
    assert [line["losses"] for line in lines(whole)] == [line["losses"] for line in lines(parts)]


# --- the end of one ------------------------------------------------------------------------------------------------


def test_a_rank_that_is_killed(done: Done) -> None:
    """The others stop with one line, and nothing is half written; on other processes the run goes on."""
    codes, said = done.results["killed"]
    assert codes[2] == -signal.SIGKILL
    assert sorted(codes) == [-signal.SIGKILL, 1, 3, 3]
    folder = done.folder / "killed" / "checkpoints"
    assert said == (
        "weft: process 2 of 4 (counted from 0) has died, killed or out of memory, so all stopped: the same command "
        f"with --resume goes on, on any number of processes; the last good checkpoint is {folder / 'step-00000002'}\n"
    )
    assert done.results["resumed"] == [[0, 0, 0], ""]
    assert sorted(path.name for path in folder.iterdir()) == [f"step-0000000{step}" for step in (2, 4, 6)]
    for wanted, found in zip(lines(done.out("undisturbed")), lines(done.folder / "killed"), strict=True):
        assert found["losses"] == pytest.approx(wanted["losses"], rel=1e-6, abs=0)


MISTAKES: dict[str, dict[str, Any]] = {
    "nothing to resume": {"resume": True},
    "none.txt": {"data": ["none.txt"]},
    "the step was not taken": {"lr": 1e30, "clip": 0.0},
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_once(done: Done, mistake: str) -> None:
    codes, said = done.results[mistake]
    assert sorted(codes) == [1, 3, 3]
    assert len(said.splitlines()) == 1
    assert mistake in said


# --- the command ---------------------------------------------------------------------------------------------------


def command(text: Path, out: Path, *more: str) -> list[str]:
    settings = ("--size", "tiny", "--data", str(text), "--max-length", "48", "--tokens-per-step", "200")
    logs = ("--out", str(out), "--eval-every", "0", "--log-every", "1")
    return [sys.executable, "-m", "weft", "train", *settings, *logs, *more]


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
    start = [*start, "--resume", "--json"]
    pipe = subprocess.PIPE
    with subprocess.Popen(start, stdout=pipe, stderr=pipe, text=True, env=environment(), cwd=ROOT) as running:
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


TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def test_torchrun(tmp_path: Path, text: Path) -> None:
    """Its losses are those of one process."""
    toy = spec(tmp_path, clip=1.0)
    start = [*TORCHRUN, *command(text, tmp_path / "run", toy, "--steps", "4")[1:]]
    done = subprocess.run(start, capture_output=True, text=True, env=environment(), cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("finished after 4 steps") == 1
    assert json.loads((tmp_path / "run" / "run.json").read_text())["processes"] == 2
    alone = {
        "spec": toy, "size": "tiny", "data": [str(text)], "max_length": 48, "tokens_per_step": 200, "steps": 4,
        "eval_every": 0, "log_every": 1, "tensorboard": "off", "device": "cpu", "out": str(tmp_path / "alone"),
    }  # fmt: skip
    train(make_config(alone))
    want, found = lines(tmp_path / "alone"), lines(tmp_path / "run")
    assert [line["step"] for line in found] == [1, 2, 3, 4]
    for one, other in zip(want, found, strict=True):
        assert other["losses"] == pytest.approx(one["losses"], rel=1e-6, abs=0)


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds a rank by what Linux says of processes")
def test_torchrun_and_a_rank_that_is_killed(tmp_path: Path, text: Path) -> None:
    """One line of ours says so, beside torchrun's own report, and names the last checkpoint."""
    own = command(text, tmp_path / "run", spec(tmp_path, clip=1.0), "--steps", "100000", "--save-every", "2")[1:]
    with subprocess.Popen([*TORCHRUN, *own], stderr=subprocess.PIPE, text=True, env=environment(), cwd=ROOT) as running:
        assert running.stderr is not None
        _wait_for(running, r"step 3/")
        os.kill(_child(running.pid, 1), signal.SIGKILL)
        said = running.stderr.read()
    assert running.returncode == 1
    (ours,) = [line for line in said.splitlines() if line.startswith("weft: ")]
    last = latest_checkpoint(tmp_path / "run")
    assert ours == (
        "weft: process 1 of 2 (counted from 0) has died, killed or out of memory, so all stopped: the same command "
        f"with --resume goes on, on any number of processes; the last good checkpoint is {last}"
    )
    assert said.count("Traceback") == said.count("ChildFailedError: ") == 1, said  # torchrun's


def _wait_for(running: subprocess.Popen[str], pattern: str) -> None:
    assert running.stderr is not None
    for line in running.stderr:
        if re.match(pattern, line):
            return
    raise AssertionError(f"ended with {running.wait()} before {pattern}")


def _child(parent: int, rank: int) -> int:
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    (found,) = [
        int(child)
        for child in children
        if f"RANK={rank}".encode() in Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
    ]
    return found
