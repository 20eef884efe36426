"""What is allocated, piece by piece: neither scores nor logits in training, and nothing of a model of segments that
grows faster than its text."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from tests.blt_models import noise, tiny
from tests.counted_memory import Memory, allocated
from weft.codegen.cpu import logits as cpu_logits
from weft.codegen.gpu import logits_blocks
from weft.codegen.pipeline import CPU_PASSES, GPU_PASSES, Pass, optimise
from weft.runtime.decoder import Decoder
from weft.runtime.kernels import attach_kernels
from weft.runtime.model import Model, load

ITEM = 4


@dataclass(frozen=True)
class Size:
    """One document of all rows, so that every row may meet every other."""

    rows: int
    vocabulary: int

    @property
    def scores(self) -> int:
        return self.rows * self.rows * ITEM

    @property
    def logits(self) -> int:
        return self.rows * self.vocabulary * ITEM


# The interpreter runs kernels slowly; torch's own attention has tiles of 2 MiB, which must not look like scores.
INTERPRETED, LARGE = Size(360, 720), Size(2500, 5000)


def step(root, size: Size, passes: tuple[Pass, ...]) -> Memory:
    """A forward and a backward of the objective of OLMo 2."""
    sizes = {"layers": 1, "dim": 8, "heads": 1, "kv_heads": 1, "ffn": 8, "vocab": size.vocabulary}
    model = load(root / "specs" / "olmo2.weft", "tiny", sizes, torch.float32)
    assert isinstance(model, Model)
    graph = optimise(model.reference(model.objective()), passes)
    attach_kernels(graph)
    tokens = torch.randint(size.vocabulary, (size.rows,), generator=torch.Generator().manual_seed(0))
    with allocated() as memory:
        results = graph(tokens, torch.tensor([0, size.rows], dtype=torch.int32))
        torch.stack([result.double() for result in results]).sum().backward()
    assert all(parameter.grad is not None for parameter in graph.parameters())
    return memory


@pytest.mark.parametrize("size", [INTERPRETED, LARGE], ids=str)
def test_the_unfused_graph_allocates_both(root, size: Size) -> None:
    """Or the test below would see nothing."""
    memory = step(root, size, ())
    assert memory.largest >= size.logits
    assert memory.peak >= size.logits + size.scores


@pytest.mark.parametrize(("size", "passes"), [(INTERPRETED, GPU_PASSES), (LARGE, CPU_PASSES)], ids=["kernels", "cpu"])
def test_no_scores_and_no_logits(root, size: Size, passes: tuple[Pass, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """No piece holds an entry for each pair of rows, or each row and word; nor do all pieces together. The limits
    below which logits are kept because their memory does not matter are lowered to what a test has."""
    monkeypatch.setattr(logits_blocks, "LEAST_ENTRIES", 1 << 15)
    monkeypatch.setattr(logits_blocks, "SHORTEST", 128)
    monkeypatch.setattr(cpu_logits, "_KEEP_BYTES", 0)
    memory = step(root, size, passes)
    assert 0 < memory.largest < size.scores // 2
    assert memory.peak < min(size.scores, size.logits)


# -- segments --------------------------------------------------------------------------------------

# From here on the text outweighs the weights; noise is cut into patches of one length on average.
TEXTS = (1500, 3000, 6000)
MOST_GROWTH = 2.2


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return Decoder(tiny(torch.float32))


@pytest.mark.parametrize("what", ["train", "generate"])
def test_a_text_twice_as_long_takes_twice_the_memory(decoder: Decoder, what: str) -> None:
    """Bytes of all live tensors and of the largest: tables of rows by rows, rows by patches or patches by rows would
    take four times as many."""
    model = decoder.model

    def run(text: torch.Tensor) -> None:
        if what == "train":
            total, _ = model.loss(None, [text])["cross_entropy"]
            total.backward()
            model.zero_grad()
        else:
            _, state = decoder.prefill([text], len(text) + 8)
            decoder.step(state, torch.tensor([5]))

    texts = [torch.tensor(noise(length)) for length in TEXTS]
    patches = [int(model.values(("ends",), [text])["ends"][0].sum()) for text in texts]
    run(texts[0][:64])  # graphs are made and weights packed
    found = []
    for text in texts:
        with allocated() as memory:
            run(text)
        found.append(memory)
    for shorter, longer, few, many in zip(found, found[1:], patches, patches[1:], strict=False):
        assert 1.8 < many / few < 2.2  # or the text would not be twice as long for the middle of the model
        assert longer.peak <= MOST_GROWTH * shorter.peak
        assert longer.largest <= MOST_GROWTH * shorter.largest
    assert found[-1].largest < TEXTS[-1] * patches[-1] * ITEM // 2
