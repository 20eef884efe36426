"""One step, and whole runs on a toy spec."""

import errno
import io
import json
import os
import re
import signal
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from weft.runtime import checkpoint as checkpoint_module
from weft.runtime import metrics as metrics_module
from weft.runtime.checkpoint import read_manifest, read_weights
from weft.runtime.data import DataOptions, load_corpus
from weft.runtime.errors import RuntimeFault
from weft.runtime.events import Evaluated, RunEnded, RunStarted, Saved, StepDone
from weft.runtime.loader import BatchPlan, TokenLoader
from weft.runtime.metrics import JsonLines
from weft.runtime.model import load
from weft.runtime.optimiser import Moment, WeightOptimiser, make_groups
from weft.runtime.progress import Reporter
from weft.runtime.run_config import RunConfig, make_config, read_config_file
from weft.runtime.tokens import ByteTokens
from weft.runtime.train import train
from weft.runtime.train_step import NonFinite, StepOptions, evaluate, train_step

SPEC = """size tiny: dim = 16, vocab = 260

axis seq

model toy(tokens: id[seq] in vocab) -> real[seq, vocab]:
    x = embed(tokens, vocab -> dim) as embed
    return linear(x, dim -> vocab) as head

objective next_token(tokens: id[seq] in vocab):
    logits = toy(tokens)
    loss text = cross_entropy(logits + 0.1 * normal(like=logits), next(tokens))

optimise by adamw(lr=1e-2, decay=0.1, clip=1.0):
    embed: decay=0
"""


class Bigram(torch.nn.Module):
    """A model by hand: what a step needs, with losses that can count different rows."""

    def __init__(self, kind="one", dtype=torch.float64):
        super().__init__()
        self.kind = kind
        generator = torch.Generator().manual_seed(0)
        self.table = torch.nn.Parameter(torch.randn(260, 260, generator=generator, dtype=dtype))
        self.bias = torch.nn.Parameter(torch.zeros(260, dtype=dtype))
        self.calls = []

    def loss(self, objective, *inputs, seed, step, example_ids, working):
        ((tokens, offsets),) = inputs
        self.calls.append((objective, seed, step, example_ids.tolist(), working))
        has_next = torch.ones(len(tokens), dtype=torch.bool)
        has_next[offsets[1:].long() - 1] = False
        logits = self.table[tokens] + self.bias
        ce = F.cross_entropy(logits[:-1][has_next[:-1]], tokens[1:][has_next[:-1]], reduction="none")
        z = torch.logsumexp(logits, -1).square()[has_next]
        losses = {"ce": (ce.sum(), has_next.sum())}
        if self.kind == "same rows":
            losses["z"] = (0.1 * z.sum(), has_next.sum())
        if self.kind == "other rows":
            chosen = tokens[has_next] % 3 == 0
            losses["z"] = (0.1 * z[chosen].sum(), chosen.sum())
        if self.kind == "nan":
            losses["z"] = (z.sum() * (float("nan") if step == 3 else 1.0), has_next.sum())
        if self.kind == "infinite gradient":
            losses["z"] = ((self.bias - self.bias.detach()).abs().sqrt().sum(), has_next.sum())
        return losses


@pytest.fixture(autouse=True)
def one_thread():
    """The products here are tiny, and the suite runs a process per core."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("".join(f"the {number}th thread of the weft goes over and under\n" * 3 for number in range(40)))
    return path


def loader_of(text, **plan):
    corpus = load_corpus(DataOptions((str(text),), max_length=32, eval_fraction=0.0), ByteTokens(260), 260)
    return TokenLoader(corpus, BatchPlan(**{"tokens": 256, "examples": None, "seed": 0} | plan))


def optimiser_of(model, **settings):
    weights = dict(model.named_parameters())
    return WeightOptimiser(make_groups(None, weights, **settings), weights)


# --- one step ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["one", "same rows", "other rows"])
@pytest.mark.parametrize("accumulate", [2, 3, 50])
def test_accumulation_equals_one_big_batch(text, kind, accumulate):
    results, weights = [], []
    for parts in (1, accumulate):
        model, loader = Bigram(kind), loader_of(text)
        optimiser = optimiser_of(model)
        options = StepOptions(accumulate=parts)
        results.append([train_step(model, optimiser, loader.next_batch(), options, n) for n in range(1, 5)])
        weights.append(torch.cat([model.table.detach().flatten(), model.bias.detach()]))
    for one, many in zip(*results, strict=True):
        assert one.losses == pytest.approx(many.losses, rel=1e-12)
        assert one.gradient_norm == pytest.approx(many.gradient_norm, rel=1e-12)
    torch.testing.assert_close(*weights, rtol=1e-9, atol=1e-11)


def test_steps_equal_a_plain_torch_loop(text):
    model, loader = Bigram(), loader_of(text)
    options = StepOptions(accumulate=2)
    optimiser = optimiser_of(model, lr=1e-2, decay=0.1, clip=0.5)
    for step in range(1, 21):
        train_step(model, optimiser, loader.next_batch(), options, step, Moment(step / 20))

    plain, loader = Bigram(), loader_of(text)
    adamw = torch.optim.AdamW(plain.parameters(), lr=1e-2, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, fused=False)
    for step in range(1, 21):
        batch = loader.next_batch()
        adamw.param_groups[0]["lr"] = 1e-2 * step / 20
        adamw.zero_grad()
        losses = plain.loss(
            None, (batch.tokens, batch.offsets), seed=0, step=0, example_ids=batch.example_ids, working=None
        )
        (losses["ce"][0] / losses["ce"][1]).backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
        adamw.step()
    torch.testing.assert_close(model.table, plain.table, rtol=1e-9, atol=1e-11)


def test_draws_follow_seed_step_and_examples(text):
    model, loader = Bigram(), loader_of(text)
    options = StepOptions("next", seed=9, accumulate=2, working=torch.bfloat16)
    batch = loader.next_batch()
    train_step(model, optimiser_of(model), batch, options, 17)
    assert [call[:3] for call in model.calls] == [("next", 9, 17)] * 2
    assert [number for call in model.calls for number in call[3]] == batch.example_ids.tolist()
    assert model.calls[0][4] == torch.bfloat16


@pytest.mark.parametrize(
    ("kind", "bad", "message"),
    [("nan", 3, "step 3: loss z is nan"), ("infinite gradient", 1, "step 1: the gradient norm is nan")],
)
def test_a_step_that_is_not_finite_changes_nothing(text, kind, bad, message):
    model, loader = Bigram(kind), loader_of(text)
    optimiser = optimiser_of(model)
    for step in range(1, bad):
        train_step(model, optimiser, loader.next_batch(), StepOptions(), step)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    batch = loader.next_batch()
    with pytest.raises(NonFinite, match=message) as fault:
        train_step(model, optimiser, batch, StepOptions(), bad)
    assert all(torch.equal(before[name], value) for name, value in model.named_parameters())
    assert f"examples {', '.join(batch.labels[:3])} and {batch.examples - 3} more; ids " in str(fault.value)


def test_examples_of_one_token_have_no_loss(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "x"}\n' * 8)
    corpus = load_corpus(DataOptions((str(file),), max_length=1, eval_fraction=0.0), ByteTokens(260), 260)
    model = Bigram()
    result = train_step(
        model, optimiser_of(model), TokenLoader(corpus, BatchPlan(4, None, 0)).next_batch(), StepOptions(), 1
    )
    assert (result.total, result.gradient_norm) == (0.0, 0.0)


def test_evaluation_is_the_mean_over_all_rows(text):
    model, loader = Bigram("other rows"), loader_of(text)
    batches = [loader.next_batch() for _ in range(4)]
    losses, tokens = evaluate(model, batches, StepOptions())
    parts = [
        model.loss(None, (b.tokens, b.offsets), seed=0, step=0, example_ids=b.example_ids, working=None)
        for b in batches
    ]
    for name in ("ce", "z"):
        wanted = sum(part[name][0].item() for part in parts) / sum(int(part[name][1]) for part in parts)
        assert losses[name] == pytest.approx(wanted, rel=1e-12)
    assert tokens == sum(batch.rows for batch in batches)


# --- the config ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"step": 5}, "no setting 'step' for a training run (did you mean steps?)"),
        ({"learning_rate": 5}, "no setting 'learning_rate' for a training run"),
        ({"steps": 0}, "steps: input should be greater than or equal to 1, got 0"),
        ({"steps": "many"}, "steps: input should be a valid integer, unable to parse string as an integer, got 'many'"),
        ({"schedule": "cosin"}, "schedule: input should be 'cosine', 'linear' or 'constant', got 'cosin'"),
        ({"max_length": 99, "tokens_per_step": 9}, "max_length 99 does not fit into tokens_per_step 9"),
        ({"tokens_per_step": None}, "a step has no end: give tokens_per_step, examples_per_step or patches_per_step"),
        ({"warmup_tokens": 9}, "warmup_tokens needs schedule_tokens: a schedule has one unit"),
        ({"warmup_steps": 2000}, "warmup_steps 2000 is more than steps 1000"),
        ({"data": None}, "data: input should be a valid tuple, got None"),
    ],
)
def test_config_mistakes_are_one_line(given, message):
    with pytest.raises(RuntimeFault) as fault:
        make_config({"spec": "a.weft", "data": ["b"]}, given)
    assert message in str(fault.value)
    assert "\n" not in str(fault.value)


def test_config_layers_and_files(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text('spec = "a.weft"\ndata = ["x"]\nlr = 1e-3\n[overrides]\ndim = 8\n')
    config = make_config(read_config_file(file), {"lr": 2e-3})
    assert (config.lr, config.overrides, config.steps) == (2e-3, {"dim": 8}, 1000)
    file.write_text("sped = 3\n")
    with pytest.raises(
        RuntimeFault, match=re.escape(f"{file}: no setting 'sped' for a training run (did you mean spec?)")
    ):
        read_config_file(file)
    file.write_text("= 3\n")
    with pytest.raises(RuntimeFault, match=re.escape(f"{file}: ")):
        read_config_file(file)
    with pytest.raises(RuntimeFault, match="cannot be read"):
        read_config_file(tmp_path / "none.toml")


# --- whole runs ----------------------------------------------------------------------------------------------------


@pytest.fixture
def config(tmp_path, text):
    spec = tmp_path / "toy.weft"
    spec.write_text(SPEC)

    def make(**settings) -> RunConfig:
        base = {
            "spec": str(spec), "size": "tiny", "data": [str(text)], "max_length": 32, "tokens_per_step": 256,
            "steps": 12, "save_every": 5, "eval_every": 6, "threads": 1, "tensorboard": "off",
            "out": str(tmp_path / "run"),
        }  # fmt: skip
        return make_config(base, settings)

    return make


def fault_of(config) -> str:
    with pytest.raises(RuntimeFault) as caught:
        train(config)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def lines_of(out, name="metrics.jsonl"):
    return [json.loads(line) for line in (Path(out) / name).read_text().splitlines()]


def final_state(out):
    newest = max((Path(out) / "checkpoints").iterdir())
    names = ("model.safetensors", "optimizer.safetensors", "loader.json")
    return [(newest / name).read_bytes() for name in names] + [(Path(out) / "metrics.jsonl").read_bytes()]


def test_a_run_from_start_to_end(config, tmp_path):
    events = []
    result = train(config(steps=30), events.append)
    assert (result.step, result.reason) == (30, "finished")
    out = tmp_path / "run"
    log = [line for line in lines_of(out) if line["kind"] == "train"]
    assert [line["step"] for line in log] == list(range(1, 31))
    assert log[-1]["total"] < log[0]["total"] - 0.5
    assert log[-1]["total"] == log[-1]["losses"]["text"]
    assert [line["step"] for line in lines_of(out) if line["kind"] == "held_out"] == [6, 12, 18, 24, 30]
    assert len(lines_of(out, "timing.jsonl")) == 30
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == [
        "step-00000020", "step-00000025", "step-00000030",
    ]  # fmt: skip
    manifest = read_manifest(result.checkpoint)
    assert (manifest.step, manifest.tokens) == (30, result.tokens)
    assert manifest.model.spec[0].text == SPEC
    assert json.loads((out / "run.json").read_text()) == config(steps=30).model_dump(mode="json") == manifest.run
    assert isinstance(events[0], RunStarted)
    assert isinstance(events[-1], RunEnded)
    assert len([event for event in events if isinstance(event, StepDone)]) == 30
    assert [event.step for event in events if isinstance(event, Saved)] == [5, 10, 15, 20, 25, 30]
    assert [event.step for event in events if isinstance(event, Evaluated)] == [6, 12, 18, 24, 30]


@pytest.mark.parametrize("settings", [{}, {"accumulate": 3, "schedule": "linear", "schedule_tokens": 2000}])
def test_stopped_runs_end_with_the_same_bits(config, tmp_path, settings):
    train(config(out=str(tmp_path / "whole"), **settings))
    train(config(stop_after=3, **settings))
    train(config(resume=True, stop_after=7, **settings))
    train(config(resume=True, **settings))
    assert final_state(tmp_path / "run") == final_state(tmp_path / "whole")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_stops(config, tmp_path, number):
    def interrupt(event):
        if isinstance(event, StepDone) and event.step == 4:
            os.kill(os.getpid(), number)

    handler = signal.getsignal(number)
    result = train(config(), interrupt)
    assert (result.step, result.reason) == (4, {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}[number])
    assert signal.getsignal(number) is handler
    train(config(resume=True))
    train(config(out=str(tmp_path / "whole")))
    assert final_state(tmp_path / "run") == final_state(tmp_path / "whole")


def test_going_back_to_an_older_checkpoint(config, tmp_path):
    first = train(config(keep=9))
    before = final_state(tmp_path / "run")
    older = first.checkpoint.with_name("step-00000005")
    train(config(keep=9, resume=str(older)))
    names = sorted(path.name for path in older.parent.iterdir())
    assert "step-00000012.aside-1" in names
    assert "step-00000012" in names
    for path in older.parent.glob("*.aside-1"):
        path.rename(tmp_path / path.name)
    assert final_state(tmp_path / "run") == before


def test_a_run_killed_before_its_first_checkpoint_starts_again(config, tmp_path):
    train(config(out=str(tmp_path / "whole")))
    out = tmp_path / "run"
    out.mkdir()
    (out / "run.json").write_text("{}")
    (out / "metrics.jsonl").write_text('{"kind": "train", "step": 1}\n{"kind": "tra')
    train(config(resume=True))
    assert final_state(out) == final_state(tmp_path / "whole")


def test_what_a_resumed_run_refuses(config, text, tmp_path):
    out = tmp_path / "run"
    train(config(stop_after=3))
    assert f"{out} already holds a run" in fault_of(config())
    changed = fault_of(config(resume=True, lr=0.5, accumulate=2))
    assert "started with other settings (accumulate: 1 -> 2; lr: null -> 0.5)" in changed
    assert "is already at step 3 of 3" in fault_of(config(resume=True, steps=3))
    spec = tmp_path / "toy.weft"
    spec.write_text(SPEC.replace("0.1 * normal", "0.2 * normal"))
    assert re.search(r"is a checkpoint of another spec: \S*toy.weft has changed since", fault_of(config(resume=True)))
    spec.write_text(SPEC)
    words = text.read_text()
    text.write_text(words + "more")
    assert "the data is not what this run was trained on: text.txt has changed" in fault_of(config(resume=True))
    text.write_text(words)
    assert train(config(resume=True)).reason == "finished"


def test_a_full_disk_keeps_the_last_checkpoint(config, tmp_path, monkeypatch):
    original, calls = checkpoint_module.write_tensors, []

    def full(*args, **kwargs):
        calls.append(args)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        return original(*args, **kwargs)

    monkeypatch.setattr(checkpoint_module, "write_tensors", full)
    out = tmp_path / "run"
    text = fault_of(config())
    assert "step-00000010 could not be written: the disk is full" in text
    assert text.endswith(f"the last good checkpoint is {out / 'checkpoints' / 'step-00000005'}")
    monkeypatch.undo()
    train(config(resume=True))
    train(config(out=str(tmp_path / "whole")))
    assert final_state(out) == final_state(tmp_path / "whole")


def test_a_log_that_cannot_be_written_names_the_last_checkpoint(config, tmp_path, monkeypatch):
    original = JsonLines.append

    def full(log, record):
        if record["step"] == 8:
            raise RuntimeFault(f"the log {log.path} could not be written: No space left on device")
        original(log, record)

    monkeypatch.setattr(JsonLines, "append", full)
    text = fault_of(config())
    assert text.endswith(
        f"No space left on device; the last good checkpoint is {tmp_path}/run/checkpoints/step-00000005"
    )


def test_a_loss_that_is_not_finite_stops_the_run(config, tmp_path):
    text = fault_of(config(lr=1e30, clip=0.0, warmup_steps=0, schedule="constant", save_every=1))
    assert re.match(
        r"step \d+: (loss text is|the gradient norm is) (nan|inf); the step was not taken \(examples ", text
    )
    assert "the last good checkpoint is" in text
    newest = max((tmp_path / "run" / "checkpoints").iterdir())
    assert read_weights(newest)


def test_frozen_weights_stay(config, tmp_path):
    spec = tmp_path / "toy.weft"
    spec.write_text(SPEC.replace("optimise by", "freeze head\n\noptimise by"))
    events = []
    result = train(config(save_every=1, keep=20), events.append)
    first = read_weights(result.checkpoint.with_name("step-00000001"))
    last = read_weights(result.checkpoint)
    moved = {name for name in last if not torch.equal(first[name], last[name])}
    assert len(last) == 2
    assert moved == {name for name in last if name.startswith("embed")}
    assert events[0].trained < events[0].parameters


def test_objective_that_text_cannot_feed(config, tmp_path):
    spec = tmp_path / "toy.weft"
    wider = SPEC.replace("next_token(tokens: id[seq] in vocab)", "next_token(tokens: id[seq] in vocab, w: real)")
    spec.write_text(wider.replace("0.1 * normal", "w * normal"))
    assert "objective next_token takes tokens: " in fault_of(config())


def test_double_precision_and_bfloat16(config, tmp_path):
    for precision in ("float64", "bfloat16"):
        out = str(tmp_path / precision)
        result = train(config(precision=precision, steps=3, out=out))
        wanted = torch.float64 if precision == "float64" else torch.float32
        assert all(value.dtype == wanted for value in read_weights(result.checkpoint).values())


def test_plain_lines_without_a_terminal(config):
    stream = io.StringIO()
    with Reporter(stream) as report:
        train(config(log_every=4), report)
    text = stream.getvalue()
    assert "  tokens_per_step = 256\n" in text
    assert [int(number) for number in re.findall(r"^step (\d+)/12 ", text, re.MULTILINE)] == [4, 8, 12]
    assert re.search(r"^step 12: held-out loss \d", text, re.MULTILINE)
    assert "\x1b" not in text
    assert text.splitlines()[-1].startswith("finished after 12 steps: ")


def test_a_bar_on_a_terminal(config):
    stream = io.StringIO()
    with Reporter(stream, bar=True) as report:
        train(config(), report)
    assert "held-out loss" in stream.getvalue()


def test_tensorboard_curves(config, tmp_path):
    pytest.importorskip("tensorboard", reason="an extra")
    train(config(tensorboard="on", steps=2))
    assert list((tmp_path / "run" / "tensorboard").glob("events.out.tfevents.*"))


def test_curves_that_cannot_be_written_end_the_run_in_one_line(config, tmp_path, monkeypatch):
    class Full:
        def add_scalar(self, tag: str, value: float, step: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def close(self) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(metrics_module, "open_curves", lambda *_: Full())
    with pytest.raises(RuntimeFault, match=r"the curves in .* could not be written: No space left"):
        train(config(tensorboard="on", steps=2))


def test_the_folder_of_a_run_is_its_newest_checkpoint(config, tmp_path):
    result = train(config(steps=4, save_every=2))
    loaded = load(tmp_path / "run")
    saved = read_weights(result.checkpoint)
    assert all(torch.equal(loaded.state_dict()[name], value) for name, value in saved.items())
