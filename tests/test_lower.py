"""The reference graph: what it takes and gives, what its nodes know, in every type; weights; artifacts."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from tests.small_models import DECODER, LEVELS, checked, model, tokens
from weft.codegen.artifact import ArtifactError, compile_to
from weft.codegen.lower import empty_weights, graph_text, lower, signature
from weft.codegen.origin import origin
from weft.codegen.pipeline import BASIC_PASSES, CPU_PASSES, optimise
from weft.codegen.weight_tree import OF_ROOTS
from weft.runtime.checkpoint import ModelIdentity, SpecText, save_checkpoint
from weft.runtime.errors import InputFault, LoadFault
from weft.runtime.initialise import initialise
from weft.runtime.model import Model, load
from weft.runtime.packed import pack


@pytest.fixture(scope="module")
def spec():
    return checked(DECODER)


def arguments(graph, *inputs, dtype=torch.float64):
    shape = signature(graph)
    return pack(shape, inputs, {}, dtype).arguments(shape)


def test_arguments_and_results(spec):
    graph = lower(spec.model)
    placeholders = [node.target for node in graph.graph.nodes if node.op == "placeholder"]
    assert placeholders == ["tokens", "seq_offsets"]
    assert [slot.describe() for slot in signature(graph).outputs] == ["real[seq, vocab]"]
    losses = lower(spec.objectives["next_token"])
    assert signature(losses).losses == ("text", "late")


def test_every_node_knows_where_it_comes_from(spec):
    for program in (spec.model, spec.objectives["next_token"]):
        for node in lower(program).graph.nodes:
            assert origin(node).span is not None, node
            assert origin(node).type is not None, node
    text = graph_text(lower(spec.model))
    assert "real[seq, vocab]" in text
    assert "test.weft:" in text


def test_weights_are_named_by_path(spec):
    small = Model(spec)
    assert list(small.state_dict()) == list(spec.weights)
    assert small.state_dict()["full.q.linear.weight"].shape == (16, 12)


def test_path_parts_may_be_names_of_torch():
    text = """
size dim = 4
axis seq
model m(x: real[seq, dim]) -> real[seq, dim]:
    half = linear(x, dim -> dim) as half
    type = linear(half, dim -> dim) as type
    return linear(type, dim -> dim) as forward
"""
    small = model(text)
    assert list(small.state_dict()) == ["half.weight", "type.weight", "forward.weight"]
    x = torch.randn(3, 4, dtype=torch.float64)
    expected = x
    for weight in small.state_dict().values():
        expected = expected @ weight.T
    torch.testing.assert_close(small([x])[0], expected)


def test_weights_of_an_objective_are_read():
    """Their paths begin with `objective`, which a Model has a method for."""
    text = """
size dim = 4
axis seq
model m(x: real[seq, dim]) -> real[seq, dim]:
    run = linear(x, dim -> dim)
    return run
objective o(x: real[seq, dim]):
    loss error = sum(linear(m(x), dim -> dim) as probe, over=dim)
"""
    small = model(text)
    assert list(small.state_dict()) == ["run.linear.weight", "objective.o.probe.weight"]
    total, count = small.loss(x=[torch.ones(3, 4, dtype=torch.float64)])["error"]
    assert count == 3
    first, second = small.state_dict().values()
    torch.testing.assert_close(total, 3 * (second @ first).sum())


def test_names_of_roots_are_known(spec):
    """What a Model has beside its parameters, a weight of that name must not be looked up as."""
    own = {name for name in dir(Model(spec)) if not name.startswith("_")} - set(dir(torch.nn.Module()))
    assert own - {path.split(".")[0] for path in spec.weights} <= OF_ROOTS


def test_types(spec):
    """float64 is the truth; bfloat16 stays near it, and its losses are summed wide."""
    exact = Model(spec, torch.float64)
    batch = tokens((5, 1, 9))
    wanted = torch.cat(exact(batch))
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 0.15)):
        small = Model(spec, dtype)
        got = torch.cat(small(batch))
        assert got.dtype == dtype
        torch.testing.assert_close(got.double(), wanted, rtol=0, atol=tolerance * wanted.abs().max().item())
        assert small.loss(tokens=batch)["text"][0].dtype == torch.float32
    # bfloat16 computation on float32 weights.
    mixed = Model(spec, torch.float32)
    total, _ = mixed.loss(tokens=batch, working=torch.bfloat16)["text"]
    total.backward()
    gradient = mixed["head.weight"].grad
    assert gradient is not None
    assert gradient.dtype == torch.float32


def test_double_lowers_again(spec):
    small = Model(spec, torch.float32)
    assert small([[1, 2]])[0].dtype == torch.float32
    assert small.double()([[1, 2]])[0].dtype == torch.float64


def test_checkpoint_loads(spec, tmp_path):
    small = Model(spec, torch.float64, seed=2)
    identity = ModelIdentity((SpecText(spec.source.name, spec.source.text),))
    folder = save_checkpoint(tmp_path / "step-00000001", identity, small.state_dict())
    loaded = load(folder)
    assert loaded([[1, 2, 3]])[0].equal(small([[1, 2, 3]])[0])
    with pytest.raises(LoadFault, match="sizes are fixed"):
        load(folder, size="tiny")
    with pytest.raises(LoadFault, match="is neither a checkpoint"):
        load(tmp_path)
    with pytest.raises(LoadFault, match="there is no file"):
        load(tmp_path / "none.weft")


def test_losses_count_rows(spec):
    small = Model(spec, torch.float64)
    batch = tokens((5, 1, 1, 3))
    sums = small.loss(tokens=batch)
    assert int(sums["text"][1]) == 4 + 2  # the last row of each example has no target
    assert int(sums["late"][1]) == 3 + 1
    logits = small(batch)
    expected = sum(
        torch.nn.functional.cross_entropy(rows[:-1], ids[1:], reduction="sum")
        for rows, ids in zip(logits, batch, strict=True)
        if len(ids) > 1
    )
    torch.testing.assert_close(sums["text"][0], expected)


def test_levels_by_hand():
    small = model(LEVELS)
    state = small.state_dict()
    ids, label = torch.tensor([1, 4, 6]), 2
    image = torch.randn(4, 6, dtype=torch.float64)
    x = state["words.weight"][ids] + state["classes.weight"][label]
    weights = torch.softmax(x @ image.T * 6**-0.5, -1)
    expected = x + 0.25 * (weights @ (image @ state["y.linear.weight"].T))
    got = small([torch.tensor([0]), ids], [torch.zeros(1, 6), image], [1, label], [1.0, 0.25])[1]
    torch.testing.assert_close(got, expected)


def test_start_of_weights(spec):
    first, again, other = Model(spec, seed=3), Model(spec, torch.float64, seed=3), Model(spec, seed=4)
    for path, weight in first.state_dict().items():
        assert torch.equal(weight, again.state_dict()[path].float()), path
    assert not torch.equal(first.state_dict()["head.weight"], other.state_dict()["head.weight"])
    # A further weight changes no other.
    wider = model(DECODER.replace("as norm |>", "as norm |> layer_norm(over=dim) as extra |>"), torch.float32, seed=3)
    assert torch.equal(first.state_dict()["head.weight"], wider.state_dict()["head.weight"])


def test_distributions():
    text = """
size dim = 200
axis seq
model m(x: real[seq, dim]) -> real[seq, dim]:
    a = linear(x, dim -> dim, init=trunc_normal(0.5, cut=2)) as a
    b = linear(a, dim -> dim, init=uniform(-1, 2)) as b
    c = linear(b, dim -> dim, init=eye) as c
    return linear(c, dim -> dim, init=constant(3)) as d
"""
    state = model(text).state_dict()
    assert state["a.weight"].abs().max() <= 1.0
    assert 0.40 < state["a.weight"].std() < 0.48  # a normal cut at 2 has 0.88 of the deviation
    assert -1 <= state["b.weight"].min() < -0.9
    assert 1.9 < state["b.weight"].max() <= 2
    assert torch.equal(state["c.weight"], torch.eye(200, dtype=torch.float64))
    assert state["d.weight"].unique().tolist() == [3]


def test_meta_device_needs_no_memory(spec):
    small = Model(spec, device="meta")
    assert small.parameter_count() == Model(spec).parameter_count()
    assert all(parameter.is_meta for parameter in small.parameters())


@pytest.mark.parametrize("passes", [BASIC_PASSES, CPU_PASSES], ids=["basic", "cpu"])
def test_passes_keep_the_meaning(spec, passes):
    for program in (spec.model, spec.objectives["next_token"]):
        weights = empty_weights(program.weights, torch.float64)
        initialise(dict(weights.by_path()), program.weights)
        reference = lower(program, weights, torch.float64)
        faster = optimise(reference, passes)
        assert len(list(faster.graph.nodes)) < len(list(reference.graph.nodes))
        given = arguments(reference, tokens((4, 1, 0, 6)))
        for one, other in zip(reference(*given), faster(*given), strict=True):
            torch.testing.assert_close(one, other)
        if passes is BASIC_PASSES:
            assert len(list(optimise(faster, passes).graph.nodes)) == len(list(faster.graph.nodes))


RUN_ALONE = """
import sys, torch
sys.path.insert(0, sys.argv[1])
import artifact
from artifact.reference import Reference
state = torch.load(sys.argv[2] + "/weights.pt", weights_only=True)
tokens, offsets = torch.tensor([3, 1, 2, 4, 1, 5]), torch.tensor([0, 2, 3, 6], dtype=torch.int32)
results = []
for model in (artifact.load(), Reference()):
    model.load_state_dict(state)
    results += [*model(tokens, offsets), *model.loss_next_token(tokens, offsets)]
assert "weft" not in sys.modules and "lark" not in sys.modules
torch.save([result.detach() for result in results], sys.argv[2] + "/results.pt")
"""


def test_artifact_runs_alone(spec, tmp_path):
    small = Model(spec, torch.float64, seed=5)
    folder = compile_to(spec, tmp_path / "artifact", torch.float64, BASIC_PASSES)
    torch.save(small.state_dict(), tmp_path / "weights.pt")
    command = [sys.executable, "-I", "-c", RUN_ALONE, str(tmp_path), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    results = torch.load(tmp_path / "results.pt", weights_only=True)
    batch = [[3, 1], [2], [4, 1, 5]]
    sums = small.loss(tokens=batch)
    wanted = [torch.cat(small(batch)), *sums["text"], *sums["late"]]
    for got, want in zip(results, wanted * 2, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-12)
    text = (folder / "reference.py").read_text()
    assert "# test.weft:" in text
    assert str(tmp_path) not in text


def test_artifact_is_deterministic_and_loads(spec, tmp_path):
    one, two = compile_to(spec, tmp_path / "one"), compile_to(checked(DECODER), tmp_path / "two")
    for file in sorted(path.relative_to(one) for path in one.rglob("*") if path.is_file()):
        assert (one / file).read_bytes() == (two / file).read_bytes(), file
    compile_to(spec, one)  # replaced, not refused
    loaded = load(one, seed=0)
    torch.testing.assert_close(loaded([[1, 2, 3]])[0], Model(spec, seed=0)([[1, 2, 3]])[0])
    assert list(loaded.state_dict()) == list(spec.weights)
    manifest = json.loads((one / "manifest.json").read_text())
    assert [weight["path"] for weight in manifest["weights"]] == list(spec.weights)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(ArtifactError, match="is no artifact"):
        compile_to(spec, tmp_path / "mine")


def test_names_that_are_python_words():
    text = """
size dim = 4
axis seq
model m(lambda: real[seq, dim], torch: real[seq, dim]) -> real[seq, dim]:
    class = lambda + torch
    self = class * lambda
    return self - torch
"""
    small = model(text)
    assert not list(small.parameters())
    assert small.dtype == torch.float64  # as asked, though no weight says so
    a, b = torch.randn(2, 3, 4, dtype=torch.float64)
    torch.testing.assert_close(small([a], [b])[0], (a + b) * a - b)


def test_choices_that_cannot_be_loaded(spec, tmp_path):
    path = tmp_path / "test.weft"
    path.write_text(DECODER)
    with pytest.raises(LoadFault, match="not in int32"):
        load(path, dtype=torch.int32)
    with pytest.raises(LoadFault, match="not in float32"):
        load(path, dtype="float32")  # type: ignore[arg-type]
    with pytest.raises(LoadFault, match="the device nowhere cannot be used"):
        load(path, device="nowhere")
    folder = compile_to(spec, tmp_path / "artifact")
    with pytest.raises(LoadFault, match="computes in float32, not in float64: compile it with --precision float64"):
        load(folder, dtype=torch.float64)
    assert load(folder, dtype=torch.float32)([[1, 2]])[0].dtype == torch.float32
    with pytest.raises(InputFault, match="example 1 is empty"):
        load(folder)([[1, 2], []])


def test_a_manifest_of_another_program_is_kept(spec, tmp_path):
    (tmp_path / "manifest.json").write_text('{"name": "another program"}')
    with pytest.raises(ArtifactError, match="is no artifact"):
        compile_to(spec, tmp_path)
    assert (tmp_path / "manifest.json").read_text() == '{"name": "another program"}'
