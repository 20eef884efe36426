"""`weft tune` without a GPU: kernels run in Triton's interpreter, and a clock that only this file knows times them."""

from __future__ import annotations

import itertools
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.fused_models import assert_equal, gradients
from weft.codegen import candidates
from weft.codegen.artifact import compile_to
from weft.codegen.choices import TORCH
from weft.codegen.configuration import Configuration
from weft.codegen.functions.attention import attend_packed
from weft.codegen.gpu import linear_tiles, scatter
from weft.codegen.gpu.attention import attend
from weft.codegen.gpu.attention_kernels import forget
from weft.codegen.gpu.attention_library import attend_by_torch
from weft.codegen.linear_text import linear_kernel
from weft.codegen.lower import empty_weights, lower
from weft.codegen.pipeline import GPU_PASSES, optimise, with_choices
from weft.codegen.rowwise.fused import FusedOp
from weft.codegen.score import load as score_load
from weft.runtime.ahead_of_time import compile_each, problems
from weft.runtime.compiled import open_artifact
from weft.runtime.errors import LoadFault
from weft.runtime.graph_walk import GraphWalk, meanings_of
from weft.runtime.kernels import attach_kernels
from weft.runtime.measured import INTERPRETER, choices_for, measured_on, table_for
from weft.runtime.model import Model, check_file
from weft.runtime.tune import Answer, TuneOptions, _ask, tune_spec
from weft.runtime.tune_questions import Question
from weft.runtime.tuning import Key, Row, Table, merge, plain_rows, read, write
from weft.runtime.verify import Part, verify

SPEC = """\"\"\"A small decoder.\"\"\"

size tiny: dim = 32, heads = 2, vocab = 40
size head_dim = dim / heads

axis seq

model small(tokens: id[seq] in vocab) -> real[seq, vocab]:
    x = embed(tokens, vocab -> dim) as embed
    q = linear(x, dim -> (heads, head_dim)) as q
    k = linear(x, dim -> (heads, head_dim)) as k
    mixed = attend(q, k, k, over=head_dim, along=seq, mask=causal)
    x = x + rms_norm(linear(mixed, (heads, head_dim) -> dim) as out) as norm
    return linear(x, dim -> vocab) as head

objective next_token(tokens: id[seq] in vocab):
    loss text = cross_entropy(small(tokens), next(tokens))
"""
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def own_choices(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test puts into use ends with it, however it ends: tilings of tables and attention's choices are the whole
    process's."""
    monkeypatch.setattr(scatter, "_measured", {})
    monkeypatch.setattr(score_load, "_choices", [])
    yield
    forget()


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tune") / "small.weft"
    path.write_text(SPEC)
    return path


def getting_faster() -> Callable[[Callable[[], object]], float]:
    """Whoever is timed last is fastest."""
    times = itertools.count(100_000, -1)
    return lambda run: float(next(times))


def two_of_each(patch: pytest.MonkeyPatch) -> None:
    """The default and one more, and for linears small tiles: what is measured is not the point here."""
    for name in ("of_rows", "of_attention", "of_decoding", "of_logits", "of_table"):
        whole = getattr(candidates, name)
        patch.setattr(candidates, name, lambda *given, whole=whole: (whole(*given)[0], whole(*given)[-1]))
    tiles = candidates.linear_configuration(linear_tiles.Tiles(16, 32, 16, 4, 2))
    patch.setattr(candidates, "of_linear", lambda dtype: (Configuration(implementation=TORCH), tiles))


@pytest.fixture(scope="module")
def tuned(spec: Path) -> tuple[Table, list[Answer]]:
    with pytest.MonkeyPatch.context() as patch:
        two_of_each(patch)
        options = TuneOptions(rows=30, length=13, working=torch.float32, budget=1e9)
        found = list(tune_spec(check_file(spec, "tiny"), Table(), CPU, getting_faster(), options))
    return found[-1][0], [answer for _, answer in found]


def test_every_family_is_asked_about(tuned: tuple[Table, list[Answer]]) -> None:
    _, answers = tuned
    whats = [answer.what for answer in answers]
    assert len(whats) == len({(one.what, one.best and one.best.key.kernel) for one in answers})
    for what in (
        "gradient of a table 40 x 32", "linear 32 -> 32, forward", "linear 32 -> 32, x gradient",
        "linear 32 -> 32, weight gradient", "attention_forward", "attention_delta", "attention_query_gradient",
        "attention_key_gradient", "attention", "attention_decode", "attention_merge", "rms_norm_kernel",
        "rms_norm_backward_kernel", "logits 32 -> 40",
    ):  # fmt: skip
        assert what in whats, (what, whats)
    for answer in answers:
        assert (answer.failed, answer.reason) == (0, ""), answer
        assert answer.best is not None
        # The last that was timed was the fastest, so nothing is left as it was.
        assert answer.tried == 2
        assert answer.best.configuration != answer.default, answer
        assert answer.best.key.device == INTERPRETER
        assert answer.place.endswith("weft:" + answer.place.rpartition(":")[2])


def test_what_was_measured_is_what_runs(spec: Path, tuned: tuple[Table, list[Answer]]) -> None:
    table, _ = tuned
    model = Model(check_file(spec, "tiny"), torch.float32)
    reference = model.reference(model.objective())
    plain, chosen = optimise(reference, GPU_PASSES), optimise(
        reference, with_choices(GPU_PASSES, choices_for(table, INTERPRETER))
    )  # fmt: skip
    targets = [node.target for node in chosen.graph.nodes]
    # q, k and v are one product, which stays with torch.
    assert targets.count(linear_tiles.linear) == 1
    assert targets.count(torch.nn.functional.linear) == 0
    assert attend not in targets
    assert attend_by_torch in targets
    ops = {
        name: {node.name: node.target for node in graph.graph.nodes if isinstance(node.target, FusedOp)}
        for name, graph in (("plain", plain), ("chosen", chosen))
    }
    assert ops["plain"].keys() == ops["chosen"].keys()
    for name, op in ops["chosen"].items():
        assert op.forward.block_rows != ops["plain"][name].forward.block_rows
    attach_kernels(chosen)
    assert scatter.tiling_of(32, torch.float32) != scatter.Tiling(scatter.TILE, 32, scatter.WARPS)
    tokens = torch.randint(40, (33,), generator=torch.Generator().manual_seed(0))
    offsets = torch.tensor([0, 13, 14, 33], dtype=torch.int32)
    want, want_gradients = gradients(reference, [tokens, offsets])
    got, got_gradients = gradients(chosen, [tokens, offsets])
    for one, two in zip(got, want, strict=True):
        assert_equal(one, two, "result", 1e-5)
    for name, two in want_gradients.items():
        assert_equal(got_gradients[name], two, name, 1e-4)


def test_verify_names_what_was_chosen(spec: Path, tuned: tuple[Table, list[Answer]]) -> None:
    passes = with_choices(GPU_PASSES, choices_for(tuned[0], INTERPRETER))
    parts = [one for one in verify(check_file(spec, "tiny"), torch.float32, True, passes) if isinstance(one, Part)]
    assert not [part for part in parts if not part.is_ok]
    regions = [part.name for part in parts if part.kind == "region"]
    assert [name for name in regions if name.startswith("linear")]
    assert "mixed" in regions


def test_a_default_is_kept_on_a_device_that_nobody_measured(spec: Path, tuned: tuple[Table, list[Answer]]) -> None:
    choices = choices_for(tuned[0], "NVIDIA H200")
    assert choices.best == {}
    model = Model(check_file(spec, "tiny"), torch.float32)
    made = optimise(model.reference(), with_choices(GPU_PASSES, choices))
    assert [n.target for n in made.graph.nodes].count(torch.nn.functional.linear) == 2


def test_a_budget_ends_after_the_first(spec: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    two_of_each(monkeypatch)
    clock = itertools.count(0, 100)
    options = TuneOptions(rows=30, length=13, working=torch.float32, budget=350)
    found = list(
        tune_spec(check_file(spec, "tiny"), Table(), CPU, getting_faster(), options, lambda: float(next(clock)))
    )
    assert 1 <= len(found) <= 2
    assert all(answer.tried == 1 for _, answer in found)


def question(results: dict[int, Tensor | Exception]) -> Question:
    def prepare(chosen: Configuration) -> Callable[[], object]:
        def run() -> Tensor:
            found = results[chosen.warps]
            if isinstance(found, Exception):
                raise found
            return found

        return run

    return Question("a kernel", "00", (), tuple(Configuration((), warps, 1) for warps in results), prepare)


def test_a_fast_candidate_with_another_result_is_a_failure() -> None:
    x = torch.randn(50)
    asked = question({4: x, 8: x + 1, 1: RuntimeError("out of resource"), 2: x * (1 + 1e-4)})
    table, answer = _ask(asked, "here", Table(), CPU, getting_faster(), 100, lambda: 0.0)
    assert answer.best is not None
    assert answer.best.configuration.warps == 2
    assert (answer.tried, answer.failed, answer.default_us) == (4, 2, 100_000.0)
    failures = {row.configuration.warps: row.failure for row in table.rows if row.failure is not None}
    assert failures.keys() == {8, 1}
    assert "off by" in (failures[8] or "")
    assert failures[1] == "RuntimeError: out of resource"


def test_an_artifact_carries_what_was_measured(spec: Path, tuned: tuple[Table, list[Answer]], tmp_path: Path) -> None:
    table, _ = tuned
    checked = check_file(spec, "tiny")
    passes = with_choices(GPU_PASSES, choices_for(table, INTERPRETER))
    rows = plain_rows(table, INTERPRETER)
    folder = compile_to(checked, tmp_path / "small", torch.float32, passes, target="cuda:90", tuning=rows)
    assert json.loads((folder / "manifest.json").read_text())["tuning"] == rows
    assert choices_for(read(folder), INTERPRETER).best == choices_for(table, INTERPRETER).best
    text = (folder / "model.py").read_text()
    assert "forward=(16, 32, 16, 4, 2)" in text
    assert "attend_by_torch" in text
    assert "scatter.use(32, torch.float32" in (folder / "__init__.py").read_text()
    model, plain = open_artifact(folder), Model(checked, torch.float32, seed=0)
    tokens = [torch.arange(13), torch.arange(3)]
    for one, two in zip(model(tokens), plain(tokens), strict=True):
        assert_equal(one, two, "logits", 1e-5)
    with pytest.raises(LoadFault, match="no compiled artifact"):
        read(tmp_path)


def test_a_file_beside_the_spec_is_read(spec: Path, tuned: tuple[Table, list[Answer]], tmp_path: Path) -> None:
    other = tmp_path / "small.weft"
    other.write_text(SPEC)
    assert table_for(None, other) is None
    write(tmp_path / "tuning.json", tuned[0])
    assert table_for(None, other) == tuned[0]
    assert table_for(None, None) is None
    with pytest.raises(LoadFault, match=r"there is no file absent\.json"):
        table_for("absent.json", other)


def test_whose_measurements_are_meant() -> None:
    def row(device: str) -> Row:
        return Row(Key("00", device), Configuration(), (), 1.0)

    two = merge([row("NVIDIA H100 80GB HBM3"), row("NVIDIA H200")])
    assert measured_on(merge([row("NVIDIA H200")]), None, "f") == "NVIDIA H200"
    assert measured_on(two, "h200", "f") == "NVIDIA H200"
    for wanted in (None, "nvidia", "a100"):
        with pytest.raises(LoadFault, match="NVIDIA H100 80GB HBM3, NVIDIA H200"):
            measured_on(two, wanted, "f")
    with pytest.raises(LoadFault, match="of no device"):
        measured_on(Table(), None, "f")


def test_a_walk_goes_on_behind_a_kernel_that_fails(spec: Path) -> None:
    program = check_file(spec, "tiny").objectives["next_token"]
    module = optimise(lower(program, empty_weights(program.weights, torch.float32, "meta")), GPU_PASSES)
    meanings = meanings_of(module)
    for node in meanings:
        node.target = out_of_memory
    walk = GraphWalk(module, {"seq": (5, 3)}, CPU, torch.float32, meanings)
    assert [call.node for call in walk.calls() if call.node in meanings] == list(meanings)
    with pytest.raises(MemoryError):
        list(GraphWalk(module, {"seq": (5, 3)}, CPU, torch.float32).calls())


def out_of_memory(*args: object, **kwargs: object) -> None:
    raise MemoryError


# ---- the command -------------------------------------------------------------------------------


def weft(*words: str) -> int:
    from weft.cli import main

    with pytest.raises(SystemExit) as ended:
        main(list(words))
    return int(ended.value.code or 0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(("device", "code", "said"), [("cuda", 1, "there is no GPU here"), ("cpu", 2, "--device is a")])
def test_without_a_gpu_it_says_so(
    spec: Path, device: str, code: int, said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "tuning.json"
    assert weft("tune", str(spec), "--size", "tiny", "--device", device, "-o", str(out)) == code
    printed = capsys.readouterr()
    assert printed.err.startswith(f"weft: {said}")
    assert printed.err.count("\n") == 1
    assert not out.exists()


def test_the_command_writes_and_inspect_shows(
    spec: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from weft.views import choices, kernels

    two_of_each(monkeypatch)
    __import__("weft.commands.tune")
    monkeypatch.setattr(sys.modules["weft.commands.tune"], "_device_and_timer", lambda name: (CPU, getting_faster()))
    # What the kernels take is another test's matter.
    monkeypatch.setattr(kernels, "compiled", lambda *given, **more: [])
    out = tmp_path / "own.json"
    words = ("--size", "tiny", "--rows", "30", "--length", "13", "-o", str(out))
    assert weft("tune", str(spec), *words) == 0
    printed = capsys.readouterr().out
    assert re.search(r"small.weft:\d+  linear 32 -> 32, forward: ours 16 x 32 x 16, 4 warps, 2 stages", printed)
    assert f"{out}: " in printed
    assert weft("inspect", str(spec), "kernels", "--size", "tiny") == 0
    plain = capsys.readouterr().out
    assert "choices, of which none was measured" in plain
    lines = [line.split() for line in plain.splitlines()]
    assert any(line[1:] == ["linear", "32", "->", "32", "forward", "1", "torch", "(default)"] for line in lines)
    assert any(line[1:] == ["attention", "1", "ours", "(default)"] for line in lines)
    assert weft("inspect", str(spec), "kernels", "--size", "tiny", "--tuning", str(out), "--json") == 0
    shown = json.loads(capsys.readouterr().out)["kernels"]["choices"]
    by_op = {row["op"]: row for row in shown}
    assert by_op["linear 32 -> 32 forward"]["choice"] == "ours 16 x 32 x 16, 4 warps, 2 stages"
    assert by_op["attention"]["choice"] == "torch"
    assert all(row["microseconds"] > 90_000 for row in shown)
    assert choices.said(Configuration()) == "ours"


# ---- torch or ours ------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-12), (torch.float32, 1e-6), (torch.bfloat16, 4e-3)])
@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(63, 20, 50), (1, 500, 1), (60, 16, 128)])
def test_a_linear_in_tiles(dtype: torch.dtype, limit: float, rows: int, inputs: int, outputs: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x, w, bias, grad = (
        torch.randn(size, generator=generator, dtype=torch.float64).to(dtype)
        for size in ((rows, inputs), (outputs, inputs), (outputs,), (rows, outputs))
    )
    tiles = (16, 32, 16, 4, 2)
    ours = [t.clone().requires_grad_() for t in (x, w, bias)]
    truth = [t.double().requires_grad_() for t in (x, w, bias)]
    got = linear_tiles.linear(ours[0], ours[1], ours[2], forward=tiles, x_gradient=tiles, weight_gradient=tiles)
    want = torch.nn.functional.linear(truth[0], truth[1], truth[2])
    got.backward(grad)
    want.backward(grad.double())
    assert_equal(got, want, "y", limit)
    for name, one, two in zip("xwb", ours, truth, strict=True):
        assert_equal(one.grad, two.grad, f"gradient of {name}", 2.5 * limit)


def test_a_linear_in_tiles_is_an_operator() -> None:
    x, w = torch.randn(9, 20, requires_grad=True), torch.randn(7, 20, requires_grad=True)
    tiles = [16, 16, 16, 4, 2]
    torch.library.opcheck(linear_tiles._linear, (x, w, tiles, tiles, []))
    # As its backward calls it, whose first operand is not contiguous.
    for chosen in (tiles, []):
        torch.library.opcheck(linear_tiles._product, (torch.randn(9, 7).t(), x.detach(), chosen))
    whole = torch.compile(linear_tiles.linear, fullgraph=True, backend="aot_eager")
    assert_equal(whole(x, w, forward=(16, 16, 16, 4, 2)), torch.nn.functional.linear(x, w), "y", 1e-6)


@pytest.mark.parametrize(
    ("product", "target"),
    [("forward", "cuda:90"), ("x_gradient", "cuda:80"), ("weight_gradient", "cuda:100"), ("forward", "hip:gfx942")],
)
def test_a_product_compiles_without_spills(product: str, target: str) -> None:
    """Whole tiles are read through shared memory, in as many stages as asked for where they are more than two."""
    tiles = linear_tiles.Tiles(128, 128, 64, 8, 3)
    (made,) = compile_each([(linear_kernel(product, tiles, torch.bfloat16, target), target)])
    assert problems(made) == []
    assert made.resources is not None
    assert made.resources.shared >= 2 * (128 + 128) * 64 * 2


@pytest.mark.parametrize("high", [0, None])
@pytest.mark.parametrize("key_heads", [1, 4])
def test_attention_by_torch(high: int | None, key_heads: int) -> None:
    offsets = torch.tensor([0, 13, 13, 14, 33], dtype=torch.int32)
    q, k, v = (torch.randn(33, heads, 16) for heads in (4, key_heads, key_heads))
    ours = [t.clone().requires_grad_() for t in (q, k, v)]
    truth = [t.double().requires_grad_() for t in (q, k, v)]
    got = attend_by_torch(ours[0], ours[1], ours[2], offsets, offsets, 0.3, high=high)
    want = attend_packed(truth[0], truth[1], truth[2], offsets, offsets, 0.3, high=high)
    grad = torch.randn_like(got)
    got.backward(grad)
    want.backward(grad.double())
    assert_equal(got, want, "y", 1e-6)
    for name, one, two in zip("qkv", ours, truth, strict=True):
        assert_equal(one.grad, two.grad, name, 1e-5)


def test_a_query_without_keys_gets_nothing_from_torch() -> None:
    q, k = torch.randn(3, 2, 16), torch.randn(4, 2, 16)
    found = attend_by_torch(q, k, k, torch.tensor([0, 2, 3]), torch.tensor([0, 0, 4]), 0.3)
    assert not found[:2].any()
    assert found[2].any()
