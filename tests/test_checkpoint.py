"""Checkpoints: whole or not there, and every damage is one clear line."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from weft.runtime import checkpoint as module
from weft.runtime.checkpoint import (
    ModelIdentity,
    SpecText,
    TrainingState,
    apply_weights,
    checkpoint_name,
    find_checkpoints,
    keep_last,
    read_manifest,
    read_training,
    read_weights,
    save_checkpoint,
)
from weft.runtime.errors import RuntimeFault
from weft.runtime.optimiser import OptimiserState
from weft.runtime.run_folder import find_resume_point, latest_checkpoint, locked

IDENTITY = ModelIdentity((SpecText("toy.weft", "model toy"),), "tiny", {"dim": 8}, "next_token")


def weights(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(3, 4, generator=generator) for name in ("embed.weight", "head.weight")}


def save(folder, step, seed=0):
    """A checkpoint with a training state; its files are what a run writes."""
    state = OptimiserState({name: (value + 1, value**2) for name, value in weights(seed).items()}, updates=step)
    training = TrainingState(state, {"epoch": 1, "position": step}, {"steps": 100, "lr": 1e-3})
    return save_checkpoint(folder / checkpoint_name(step), IDENTITY, weights(seed), step, 10 * step, training)


def fault(function, *args) -> str:
    with pytest.raises(RuntimeFault) as caught:
        function(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_round_trip(tmp_path):
    path = save(tmp_path, 7)
    manifest = read_manifest(path)
    assert (manifest.step, manifest.tokens, manifest.model) == (7, 70, IDENTITY)
    assert manifest.spec_hash == IDENTITY.spec_hash
    assert "torch" in manifest.versions
    saved = read_weights(path)
    assert all(torch.equal(saved[name], value) for name, value in weights().items())
    training = read_training(path)
    assert training.loader == {"epoch": 1, "position": 7}
    assert training.run == {"steps": 100, "lr": 1e-3}
    assert training.optimiser.updates == 7
    for name, value in weights().items():
        first, second = training.optimiser.moments[name]
        assert first is not None
        assert torch.equal(first, value + 1)
        assert torch.equal(second, value**2)


def test_only_plain_files_are_written(tmp_path):
    path = save(tmp_path, 1)
    names = {"weft.json", "model.safetensors", "optimizer.safetensors", "loader.json"}
    assert {file.name for file in path.iterdir()} == names
    assert [entry.name for entry in tmp_path.iterdir()] == ["step-00000001"]


def test_a_model_alone(tmp_path):
    path = save_checkpoint(tmp_path / "imported", IDENTITY, weights())
    assert torch.equal(read_weights(path)["head.weight"], weights()["head.weight"])
    assert "without a training state" in fault(read_training, path)


def test_every_type_and_shared_storage(tmp_path):
    joined = torch.arange(12.0).reshape(2, 6)
    tensors = {
        "half": torch.ones(3, dtype=torch.bfloat16),
        "double": torch.full((2,), 1 / 3, dtype=torch.float64),
        "a": joined[0],
        "b": joined[1],
        "turned": joined.T,
        "empty": torch.zeros(0, 4),
        "scalar": torch.tensor(2.5),
    }
    saved = read_weights(save_checkpoint(tmp_path / "all", IDENTITY, tensors))
    for name, value in tensors.items():
        assert saved[name].dtype == value.dtype
        assert torch.equal(saved[name], value)


def test_saving_again_replaces(tmp_path):
    save(tmp_path, 3, seed=0)
    path = save(tmp_path, 3, seed=1)
    assert torch.equal(read_weights(path)["head.weight"], weights(1)["head.weight"])
    assert len(list(tmp_path.iterdir())) == 1


def test_the_last_ones_are_kept(tmp_path):
    for step in (1, 2, 30, 100):
        save(tmp_path, step)
    (tmp_path / ".tmp-step-00000200-1").mkdir()
    keep_last(tmp_path, 2)
    assert [entry.step for entry in find_checkpoints(tmp_path)] == [30, 100]
    assert len(list(tmp_path.iterdir())) == 2


# --- stopped while writing -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["write_tensors", "_write_text", "_sync", "_digest_of"])
@pytest.mark.parametrize("call", [0, 1])
def test_a_failure_at_any_write_leaves_the_last_good_one(tmp_path, monkeypatch, name, call):
    good = save(tmp_path, 1)
    original, calls = getattr(module, name), []

    def failing(*args, **kwargs):
        calls.append(args)
        if len(calls) == call + 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(*args, **kwargs)

    monkeypatch.setattr(module, name, failing)
    text = fault(save, tmp_path, 2)
    assert text.startswith(f"the checkpoint {tmp_path / 'step-00000002'} could not be written: the disk is full (")
    assert [entry.path for entry in find_checkpoints(tmp_path)] == [good]
    assert [entry.name for entry in tmp_path.iterdir()] == ["step-00000001"]


def test_full_disk_for_real(tmp_path):
    """A small file system where one may be mounted (root), so that the library's own writes fail."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("no small file system can be mounted here; the limit on file sizes below covers it")
    try:
        good = save(disk, 1)
        big = {"head.weight": torch.zeros(200_000)}
        text = fault(save_checkpoint, disk / "step-00000002", IDENTITY, big)
        assert "could not be written: the disk is full (0 MB free in" in text
        assert [entry.path for entry in find_checkpoints(disk)] == [good]
        read_weights(good)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_file_size_limit(tmp_path):
    """The system refuses the write in the middle of a file."""
    good = save(tmp_path, 1)
    code = f"""
import resource, torch
from pathlib import Path
from weft.runtime.checkpoint import ModelIdentity, SpecText, save_checkpoint
resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
identity = ModelIdentity((SpecText("toy.weft", ""),))
try:
    save_checkpoint(Path({str(tmp_path)!r}) / "step-00000002", identity, {{"w": torch.zeros(100000)}})
except Exception as error:
    print(type(error).__name__, error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=python_path())
    assert done.stdout.startswith("RuntimeFault the checkpoint"), done.stdout + done.stderr
    assert "could not be written" in done.stdout
    assert [entry.path for entry in find_checkpoints(tmp_path)] == [good]
    assert [entry.name for entry in tmp_path.iterdir()] == ["step-00000001"]


def python_path() -> dict[str, str]:
    """A subprocess finds `weft` where this process did."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}


# --- damage --------------------------------------------------------------------------------------------------------


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-5])


def flip_a_bit(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(bytes(data))


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        ("model.safetensors", truncate, "model.safetensors has "),
        ("model.safetensors", flip_a_bit, "the contents of model.safetensors are not those that were written"),
        ("model.safetensors", Path.unlink, "model.safetensors is missing"),
        ("optimizer.safetensors", flip_a_bit, "the contents of optimizer.safetensors are not"),
        ("loader.json", truncate, "loader.json has "),
        ("weft.json", truncate, "weft.json is not what weft writes"),
        ("weft.json", Path.unlink, "is not a checkpoint: it has no weft.json"),
    ],
)
def test_damage_is_named_and_the_last_good_one_offered(tmp_path, file, damage, message):
    folder = tmp_path / "checkpoints"
    good, bad = save(folder, 10), save(folder, 20)
    damage(bad / file)
    text = fault(find_resume_point, tmp_path, True)
    assert message in text
    assert str(bad) in text
    assert text.endswith(f"the last good one is {good} (move the damaged one away to go on from it)")
    point = find_resume_point(tmp_path, str(good))
    assert point is not None
    assert point.manifest.step == 10
    # The damaged one would be taken for the latest again: it is set aside, not deleted.
    assert sorted(entry.name for entry in folder.iterdir()) == ["step-00000010", "step-00000020.aside-1"]
    assert latest_checkpoint(tmp_path) == good


def test_two_damaged_ones(tmp_path):
    folder = tmp_path / "checkpoints"
    good, first, second = (save(folder, step) for step in (10, 20, 30))
    flip_a_bit(first / "model.safetensors")
    truncate(second / "model.safetensors")
    assert fault(find_resume_point, tmp_path, True).endswith(
        f"the last good one is {good} (move the damaged one away to go on from it)"
    )
    truncate(good / "weft.json")
    assert fault(find_resume_point, tmp_path, True).endswith("there is no good one beside it")


def test_edited_spec_text_and_format(tmp_path):
    path = save(tmp_path, 1)
    record = json.loads((path / "weft.json").read_text())
    (path / "weft.json").write_text(json.dumps({**record, "format": 99}))
    assert "has format 99; this version of weft reads format 1" in fault(read_manifest, path)
    record["model"]["spec"][0]["text"] = "model other"
    (path / "weft.json").write_text(json.dumps(record))
    assert "its spec text does not have the hash" in fault(read_manifest, path)


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"null", b'{"format": 1}', b"\xff\xfe"])
def test_any_manifest_is_one_line(tmp_path, content):
    path = save(tmp_path, 1)
    (path / "weft.json").write_bytes(content)
    assert str(path) in fault(read_manifest, path)


def test_files_outside_the_folder_are_not_read(tmp_path):
    path = save(tmp_path, 1)
    record = json.loads((path / "weft.json").read_text())
    record["files"][0]["name"] = "../../etc/passwd"
    (path / "weft.json").write_text(json.dumps(record))
    assert find_checkpoints(tmp_path) == ()


def test_nothing_there(tmp_path):
    assert fault(read_manifest, tmp_path / "none").endswith("is not a checkpoint: there is no such folder")
    assert "nothing to resume" in fault(find_resume_point, tmp_path, True)
    (tmp_path / "checkpoints").mkdir()
    assert "has no checkpoint yet" in fault(latest_checkpoint, tmp_path)
    (tmp_path / "run.json").write_text("{}")
    assert find_resume_point(tmp_path, True) is None


def test_a_run_is_not_overwritten(tmp_path):
    save(tmp_path / "checkpoints", 5)
    assert "already holds a run: go on with it (--resume)" in fault(find_resume_point, tmp_path, False)


def test_two_runs_in_one_folder(tmp_path):
    def enter_twice():
        with locked(tmp_path), locked(tmp_path):
            pass

    assert fault(enter_twice) == f"another run is writing in {tmp_path}"
    with locked(tmp_path):
        pass


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        ({"a": torch.zeros(2)}, "it lacks b (2 differ)"),
        ({"a": torch.zeros(2), "b": torch.zeros(2), "c": torch.zeros(1), "d": torch.zeros(1)}, "the spec has no d"),
        ({"a": torch.zeros(2), "b": torch.zeros(3), "c": torch.zeros(1)}, "b has shape (3,), the spec makes it (2,)"),
    ],
)
def test_weights_that_do_not_fit(saved, message):
    target = {"a": torch.ones(2), "b": torch.ones(2), "c": torch.ones(1)}
    assert message in fault(apply_weights, target, saved, Path("here"))
    assert all(value.eq(1).all() for value in target.values())


@pytest.mark.parametrize("what", ["file", "folder"])
def test_only_a_checkpoint_is_replaced(tmp_path, what):
    precious = tmp_path / "precious"
    if what == "file":
        precious.write_text("keep")
    else:
        precious.mkdir()
        (precious / "notes.txt").write_text("keep")
    assert "is there and is no checkpoint" in fault(save_checkpoint, precious, IDENTITY, weights())
    assert (precious if what == "file" else precious / "notes.txt").read_text() == "keep"
    empty = tmp_path / "empty"
    empty.mkdir()
    save_checkpoint(empty, IDENTITY, weights(1))
    save_checkpoint(empty, IDENTITY, weights(2))
    assert torch.equal(read_weights(empty)["embed.weight"], weights(2)["embed.weight"])
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["empty", "precious"]


@pytest.mark.parametrize("change", [('"step": 7', '"step": 8'), ('"lr": 0.001', '"lr": 0.101')])
def test_a_digit_of_the_manifest(tmp_path, change):
    path = save(tmp_path, 7)
    text = (path / "weft.json").read_text()
    assert change[0] in text
    (path / "weft.json").write_text(text.replace(*change))
    assert fault(read_manifest, path).endswith("weft.json are not those that were written")


def test_the_latest_is_not_passed_over_when_damaged(tmp_path):
    """Somebody who generates would take an older model for the last one."""
    good, bad = (save(tmp_path / "checkpoints", step) for step in (10, 20))
    os.truncate(bad / "model.safetensors", 50)
    text = fault(latest_checkpoint, tmp_path)
    assert f"{bad} is damaged: model.safetensors has 50 bytes" in text
    assert f"the last good one is {good}" in text


def test_a_file_larger_than_the_system_allows(tmp_path):
    """`ulimit -f`, or a file system with small files: one line, and nothing half-written."""
    code = f"""
import resource, signal, sys, torch
from pathlib import Path
from weft.runtime.checkpoint import ModelIdentity, save_checkpoint
from weft.runtime.errors import RuntimeFault
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
try:
    save_checkpoint(Path({str(tmp_path / "c")!r}), ModelIdentity(()), {{"w": torch.zeros(10000)}})
except RuntimeFault as fault:
    print(fault)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.endswith("could not be written: a file would be larger than this system allows\n"), done.stderr
    assert list(tmp_path.iterdir()) == []
