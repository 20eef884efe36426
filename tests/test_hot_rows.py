"""Rows that are read most in fast memory: what is read is the same, and where it was found is what a Zipf reader makes
expect; models on any device whose tables stay in their file."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from weft.cli import main
from weft.codegen.decode_stages import modules
from weft.codegen.pipeline import CPU_PASSES, GPU_PASSES, Pass
from weft.dsl.sizes import Override
from weft.runtime import hot_rows
from weft.runtime.checkpoint import ModelIdentity, SpecText, save_checkpoint
from weft.runtime.decoder import Decoder
from weft.runtime.errors import RuntimeFault
from weft.runtime.hot_rows import HotRows
from weft.runtime.model import Model, check_texts, load

CPU = torch.device("cpu")


def zipf(count: int, lookups: int, power: float = 1.1, seed: int = 0) -> Tensor:
    """Row numbers, of which that of rank r is read as often as 1 / r^power says."""
    generator = torch.Generator().manual_seed(seed)
    heights = torch.arange(1, count + 1, dtype=torch.float64).pow(-power).cumsum(0)
    drawn = torch.rand(lookups, generator=generator, dtype=torch.float64) * heights[-1]
    ranks = torch.searchsorted(heights, drawn).clamp(max=count - 1)
    return torch.randperm(count, generator=torch.Generator().manual_seed(99))[ranks]


def best_rate(count: int, kept: int, power: float = 1.1) -> float:
    mass = torch.arange(1, count + 1, dtype=torch.float64).pow(-power)
    return float(mass[:kept].sum() / mass.sum())


def test_what_is_read_is_the_same() -> None:
    """Through filling, full, and after decisions; entries with axes, any shape of index, none at all."""
    table = torch.randn(5000, 3, 4)
    tier = HotRows(table, 0.02, CPU)
    for turn in range(40):
        index = zipf(5000, 600, seed=turn).reshape(5, 40, 3)
        rows, place = tier(index)
        assert torch.equal(rows[place], table[index])
    rows, place = tier(torch.zeros(0, 3, dtype=torch.int64))
    assert (rows.shape, place.shape) == ((0, 3, 4), (0, 3))
    assert tier.reads().reads == 40 * 600


def test_hits_of_a_zipf_reader() -> None:
    """Near to what the best rows would serve, and far above what rows that came first would."""
    count, share = 20_000, 0.05
    table = torch.arange(count, dtype=torch.float32)[:, None].repeat(1, 2)
    tier = HotRows(table, share, CPU)
    for turn in range(150):
        tier(zipf(count, 4000, seed=turn))
    before = tier.reads()
    for turn in range(150, 180):
        tier(zipf(count, 4000, seed=turn))
    after = tier.reads()
    rate = (after.hits - before.hits) / (after.reads - before.reads)
    best = best_rate(count, 1000)
    assert best - 0.03 < rate <= best + 0.01
    assert after.rows == 1000
    assert after.bytes == 1000 * 2 * 4
    uneven = HotRows(table, share, CPU)
    for turn in range(20):
        uneven(torch.randint(count, (4000,), generator=torch.Generator().manual_seed(turn)))
    assert uneven.reads().rate == pytest.approx(share, abs=0.01)


def test_it_follows_a_reader_who_changes() -> None:
    count = 20_000
    tier = HotRows(torch.randn(count, 2), 0.05, CPU)
    for turn in range(100):
        tier(zipf(count, 4000, seed=turn))
    before = tier.reads()
    for turn in range(100, 200):
        tier((zipf(count, 4000, seed=turn) + count // 2) % count)
    for turn in range(200, 210):
        before = tier.reads() if turn == 200 else before
        tier((zipf(count, 4000, seed=turn) + count // 2) % count)
    after = tier.reads()
    assert (after.hits - before.hits) / (after.reads - before.reads) > best_rate(count, 1000) - 0.05


def test_a_decision_moves_few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    tier = HotRows(torch.randn(20_000, 2), 0.5, CPU)
    moved: list[int] = []
    fetched = HotRows._fetched

    def counting(self: HotRows, ids: Tensor) -> Tensor:
        moved.append(len(ids))
        return fetched(self, ids)

    monkeypatch.setattr(HotRows, "_fetched", counting)
    tier(torch.arange(10_000))
    moved.clear()
    for _ in range(3):
        tier(10_000 + torch.arange(4000))
    # The last call makes the decision: 12,000 reads move at most 1,500 rows.
    assert moved == [4000, 4000, 4000, 12_000 // hot_rows.READS_PER_MOVE]


# -- models ------------------------------------------------------------------------------------------------------------

SPEC = Path(__file__).resolve().parent.parent / "specs" / "memory_layers.weft"
SIZES = {"half": 80, "layers": 3, "memories": 2, "stride": 1, "dim": 48, "heads": 2, "ffn": 64}


def checkpoint(folder: Path, **overrides: Override) -> Model:
    """Memory layers with 6,400 values of 48 numbers."""
    texts, sizes = (SpecText("memory_layers.weft", SPEC.read_text("utf-8")),), SIZES | overrides
    made = Model(check_texts(texts, "tiny", sizes), torch.float32, seed=0)
    save_checkpoint(folder, ModelIdentity(texts, "tiny", sizes), dict(made.by_path()))
    return made


def batch(turn: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(turn)
    return [torch.randint(260, (length,), generator=generator) for length in (7, 1, 5)]


@pytest.mark.parametrize("passes", [CPU_PASSES, GPU_PASSES], ids=["cpu", "kernels"])
@pytest.mark.parametrize("experts", [False, True])
def test_a_model_is_the_same(
    tmp_path: Path, passes: tuple[Pass, ...], experts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PEER reads two tables, one of them by products. Rows move between the calls."""
    monkeypatch.setattr(hot_rows, "PERIOD", 100)
    checkpoint(tmp_path, experts=experts, gated=not experts)
    plain = load(tmp_path, passes=passes)
    found = load(tmp_path, passes=passes, mapped=True, hot=0.02)
    assert isinstance(found, Model)
    with torch.no_grad():
        for turn in range(3):
            for ours, expected in zip(found(batch(turn)), plain(batch(turn)), strict=True):
                assert torch.equal(ours, expected)
    assert found.hot_reads().keys() == ({"values", "readers"} if experts else {"values"})
    for reads in found.hot_reads().values():
        assert (reads.entries, reads.rows, reads.reads) == (6400, 128, 3 * 13 * 2 * 8)
        assert 0 < reads.hits < reads.reads
    # It computes; it is not trained.
    assert [path for path, weight in found.by_path() if not weight.requires_grad] == sorted(found.hot_reads())


def test_decoding_is_the_same(tmp_path: Path) -> None:
    made = checkpoint(tmp_path)
    found = load(tmp_path, mapped=True, hot=0.02)
    assert isinstance(found, Model)
    logits = []
    for model in (made, found):
        decoder = Decoder(model)
        first, state = decoder.prefill([[1, 2, 7], [3]], capacity=9)
        steps = [first]
        for _ in range(5):
            after, state = decoder.step(state, steps[-1].argmax(-1))
            steps.append(after)
        logits.append(torch.stack(steps))
    assert torch.equal(*logits)
    assert found.hot_reads()["values"].reads == (4 + 5 * 2) * 2 * 8


def test_nothing_but_the_tier_touches_the_table(tmp_path: Path) -> None:
    """So the model may be on any device: all graphs ask for rows, and everything else lies there."""
    checkpoint(tmp_path)
    found = load(tmp_path, mapped=True, hot=0.02, device="meta")
    assert isinstance(found, Model)
    assert found.device.type == "meta"
    devices = {path: weight.device.type for path, weight in found.by_path()}
    assert devices.pop("values") == "cpu"
    assert set(devices.values()) == {"meta"}
    decoder = Decoder(found)
    graphs = [found.graph(found.program), found.graph(found.objective()), *modules(decoder.graphs.step)]
    for graph in graphs:
        weights = {node.target for node in graph.graph.nodes if node.op == "get_attr"}
        assert not [name for name in weights if str(name).endswith("values")]
        assert sum(isinstance(node.target, HotRows) for node in graph.graph.nodes) == 2


def test_small_tables_and_whole_ones_are_no_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table that something reads all of lies with the other weights."""
    checkpoint(tmp_path)
    monkeypatch.setattr(hot_rows, "SMALLEST", 1)
    found = load(tmp_path, mapped=True, hot=0.5)
    assert isinstance(found, Model)
    assert found.hot_reads().keys() == {"values", "embed.weight"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"hot": 0.1}, "stay in the file"),
        ({"hot": 0.0, "mapped": True}, "above 0 and up to 1, not 0"),
        ({"hot": 1.5, "mapped": True}, "above 0 and up to 1, not 1.5"),
        ({"device": "meta", "mapped": True}, "with `hot`, a share of rows, tables alone are"),
        ({"hot": 0.1, "mapped": True, "half": 16}, "no large table"),
        ({"hot": 0.1, "mapped": True, "dtype": torch.float64}, "of one type"),
    ],
    ids=str,
)
def test_mistakes_are_one_line(tmp_path: Path, arguments: dict, said: str) -> None:
    sizes = {name: arguments[name] for name in arguments if name == "half"}
    checkpoint(tmp_path, **sizes)
    with pytest.raises(RuntimeFault, match=said) as fault:
        load(tmp_path, **{name: value for name, value in arguments.items() if name != "half"})
    assert "\n" not in str(fault.value)
    with pytest.raises(RuntimeFault, match="stay in the file"):
        load(SPEC, "tiny", hot=0.1)


def test_generate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint(tmp_path)

    def run(*more: str) -> tuple[int, str, str]:
        words = ["generate", str(tmp_path), "--prompt", "one", "--tokens", "6", "--ignore-end", "--device", "cpu"]
        with pytest.raises(SystemExit) as ended:
            main([*words, *more])
        out, said = capsys.readouterr()
        return int(ended.value.code or 0), out, said

    code, out, said = run("--map", "--hot", "0.02")
    assert (code, out, "") == run()
    line = r"values: 128 of 6,400 rows in fast memory \(0.0 MiB\) served \d+\.\d% of (\d+) reads\n"
    found = re.fullmatch(line, said)
    assert found is not None
    assert json.loads(run("--map", "--hot", "0.02", "--json")[1])["hot"]["values"]["reads"] == int(found[1])
    assert run("--hot", "0.02")[0] == 2
