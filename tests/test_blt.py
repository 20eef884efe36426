"""The Byte Latent Transformer: its golden values, transformers' implementation, its patchers, decoding, memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests import blt_models
from tests.blt_models import imported, noise, patch_lengths, published, text, tiny
from tests.test_cuts import capped
from tests.test_decode import compare_everywhere
from weft.codegen.decode_stages import StagedGraph
from weft.codegen.ops import OPS
from weft.dsl.check import check, read_source
from weft.runtime.decoder import Decoder
from weft.runtime.errors import InputFault
from weft.runtime.transfer import export_checkpoint

# -- golden values (systems sheet, 9.4 and 4) ------------------------------------------------------


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Any:
    model = published()
    blt_models.fill_by_formula(model)
    return imported(model, tmp_path_factory.mktemp("golden"))


def test_golden_case(golden: Any) -> None:
    ids = torch.tensor(text(b"The cat sat on the mat."))
    seen = golden.values(("surprise", "ends"), [ids])
    want = torch.tensor([5.0172, 5.0000, 5.0117, 4.9466, 5.0173, 4.8550])
    torch.testing.assert_close(seen["surprise"][0][:6], want, rtol=0, atol=6e-5)
    assert patch_lengths(seen["ends"][0]) == [1, 1, 1, 2, 2, 1, 2, 9, 1, 1, 1, 3]
    (got,) = golden([ids])
    assert got.argmax(-1).tolist() == [
        38, 256, 188, 185, 84, 217, 115, 188, 131, 156, 21, 89, 250, 38, 212, 82, 93, 258, 230, 93, 21, 244, 131, 153,
    ]  # fmt: skip
    rows = {5: [0.29818, -0.84990, 2.48516, -2.93819, -1.85007], 23: [0.56200, 0.00744, 0.38827, -0.72849, 0.16221]}
    for row, numbers in rows.items():
        torch.testing.assert_close(got[row, :5], torch.tensor(numbers), rtol=0, atol=1.5e-5)
    total, count = golden.loss(None, [ids])["cross_entropy"]
    assert (total / count).item() == pytest.approx(5.94854, abs=1e-5)


HASHES = """
size vocab = 260
size buckets = 500002
axis seq
model m(bytes: id[seq] in vocab) -> int[seq]:
    code = int(bytes)
    for back in 1 .. {n}:
        code = previous(int(bytes), back) + 1000000007 * code
    return int(wrap(code, buckets))
"""


@pytest.mark.parametrize(
    ("n", "want"),
    [
        (3, [443987, 124875, 393970, 386145, 358223, 190185, 217383, 142034, 146186, 10172, 334275, 306354]),
        (8, [172383, 205585, 456240, 129346, 299568, 322649, 282857, 290820, 494436, 174564, 143229, 223667]),
    ],
)
def test_golden_hashes(n: int, want: list[int]) -> None:
    from tests.small_models import model

    (got,) = model(HASHES.format(n=n))([torch.tensor(text(b"Hello world"))])
    assert got.tolist() == want


def test_hashes_wrap_as_64_bits() -> None:
    from tests.small_models import model

    (got,) = model(HASHES.format(n=8))([torch.arange(5, 13)])
    assert got[7] == 262684  # exact arithmetic would give 7946


def test_parameter_totals() -> None:
    result = check(read_source(blt_models.SPEC), OPS, "1b").value()
    sizes = {path: torch.Size(w.stored_shape).numel() for path, w in result.weights.items()}
    patcher = sum(n for path, n in sizes.items() if path.startswith("entropy_lm."))
    assert patcher == 99_512_064
    assert sum(sizes.values()) - patcher == 4_533_879_808
    alone = check(read_source(blt_models.SPEC.parent / "entropy_lm.weft"), OPS, "100m").value()
    assert sum(torch.Size(w.stored_shape).numel() for w in alone.weights.values()) == 99_512_064


@pytest.mark.parametrize("size", ["2b", "4b", "8b"])
def test_every_size_checks(size: str) -> None:
    assert not check(read_source(blt_models.SPEC), OPS, size).problems.errors


# -- against transformers --------------------------------------------------------------------------

SHAPES = {
    "as wide": {},
    "narrower": {"dim": 48},
    "one slot": {"slots": 1, "dim": 32},
    "four slots": {"slots": 4, "dim": 128},
    "three encoder layers": {"encoder_layers": 3},
    "a short window": {"window": 5},
    "all of it": {"slots": 4, "dim": 48, "encoder_layers": 3, "window": 5},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_logits_equal_transformers(shape: str, tmp_path: Path) -> None:
    model = published(**SHAPES[shape])
    blt_models.fill_at_random(model)
    ids = noise(61)
    found = blt_models.entropies(model, ids)
    threshold = found.sort().values[40].item() + 1e-4
    blt_models.set_threshold(model, threshold)
    ours = imported(model, tmp_path)
    seen = ours.values(("surprise", "ends"), [torch.tensor(ids)])
    torch.testing.assert_close(seen["surprise"][0], found, rtol=0, atol=1e-5)
    # With the boundaries of its own entropies, and with given ones.
    torch.testing.assert_close(ours([torch.tensor(ids)])[0], blt_models.logits(model, ids), rtol=0, atol=1e-5)
    ends = torch.rand(61, generator=torch.Generator().manual_seed(1)) < 0.3
    ends[0] = True
    given = blt_models.logits(model, ids, patch_lengths(ends))
    torch.testing.assert_close(ours([torch.tensor(ids)], ends=[ends])[0], given, rtol=0, atol=1e-5)


def test_gradients_equal_transformers(tmp_path: Path) -> None:
    model = published()
    blt_models.fill_at_random(model)
    ids, ends = noise(40), torch.rand(40, generator=torch.Generator().manual_seed(2)) < 0.3
    ends[0] = True
    ours = imported(model, tmp_path)
    total, count = ours.loss(None, [torch.tensor(ids)], ends=[ends])["cross_entropy"]
    (total / count).backward()
    lengths = torch.tensor([patch_lengths(ends)])
    batch = torch.tensor([ids])
    model(input_ids=batch, labels=batch, patch_lengths=lengths, use_cache=False).loss.backward()
    pairs = {
        "embed.weight": model.model.local_encoder.embed_tokens,
        "pooled.weight": model.model.local_encoder.patch_embedding_projection,
        "latent.1.layer.ffn.down.linear.weight": model.model.global_transformer.layers[1].mlp.down_proj,
        "cross.0.own_attend.k.linear.weight": model.model.local_encoder.cross_attn_layers[0].k_proj,
        "decoder.1.closed_attend.memory_norm.gain": model.model.local_decoder.cross_attn_layers[1].k_norm,
        "head.weight": model.lm_head,
    }
    mine = dict(ours.by_path())
    for path, theirs in pairs.items():
        torch.testing.assert_close(mine[path].grad, theirs.weight.grad, rtol=1e-4, atol=1e-6, msg=path)
    tables: Any = [weight.grad for path, weight in mine.items() if path.startswith("hash.")]
    torch.testing.assert_close(
        torch.cat(tables), model.model.encoder_hash_tok_embedding.weight.grad, rtol=1e-4, atol=1e-6
    )
    assert all(weight.grad is None for path, weight in mine.items() if path.startswith("entropy_lm."))


def test_export_and_reload_are_bit_equal(tmp_path: Path) -> None:
    from transformers import BltForCausalLM

    model = published(dim=48)
    blt_models.fill_at_random(model)
    imported(model, tmp_path)
    export_checkpoint(tmp_path / "weft", tmp_path / "back")
    again = BltForCausalLM.from_pretrained(tmp_path / "back")
    assert {k: v.tolist() for k, v in again.state_dict().items()} == {
        k: v.tolist() for k, v in model.state_dict().items()
    }


# -- patchers --------------------------------------------------------------------------------------


def lengths_by(
    rule: str, n: int, surprise: list[float] | None = None, ids: list[int] | None = None, **more: Any
) -> list[int]:
    """Lengths over the n bytes and the byte to come, as the sheet counts them."""
    model = tiny(torch.float32, rule=rule, **more)
    bytes_ = torch.tensor(ids or [1, *([50] * (n - 1))])
    given = torch.tensor(surprise or [0.0] * n)
    (ends,) = model.values(("ends",), [bytes_], surprise=[given])["ends"]
    starts = [0, *(t + 1 for t, flag in enumerate(ends.tolist()) if flag)]
    return [b - a for a, b in zip(starts, [*starts[1:], n + 1], strict=True)]


@pytest.mark.parametrize(
    ("rule", "n", "want"),
    [
        ("entropy", 1, [1, 1]), ("entropy", 2, [1, 2]), ("entropy", 3, [1, 3]),
        ("monotonic", 2, [1, 1, 1]), ("monotonic", 3, [1, 1, 2]),
        ("rise", 2, [1, 1, 1]), ("rise", 3, [1, 1, 2]),
        ("byte", 4, [1, 1, 1, 1, 1]), ("static", 9, [1, 3, 4, 2]),
    ],
)  # fmt: skip
def test_smallest_cases_of_patchers(rule: str, n: int, want: list[int]) -> None:
    assert lengths_by(rule, n) == want


def test_the_space_patcher() -> None:
    ids = [*text(b"Hello, world 42! na\xc3\xafve x"), 2]
    assert lengths_by("space", len(ids), ids=ids) == [1, 6, 7, 3, 4, 4, 2, 1]


def starts_by_definition(rule: str, h: list[float], threshold: float, rise: float) -> list[bool]:
    starts = []
    for t in range(len(h) + 1):
        if t < 2:
            found = True
        elif rule == "entropy":
            found = h[t - 1] > threshold
        elif rule == "monotonic":
            found = t == 2 or h[t - 1] - h[t - 2] > threshold
        else:
            found = t == 2 or (t > 3 and h[t - 1] > threshold and h[t - 1] - h[t - 2] > rise)
        starts.append(found)
    return starts


@pytest.mark.parametrize("rule", ["entropy", "monotonic", "rise"])
def test_patchers_by_their_definition(rule: str) -> None:
    h = torch.rand(40, generator=torch.Generator().manual_seed(3)).tolist()
    starts = [t for t, flag in enumerate(starts_by_definition(rule, h, 0.4, 0.1)) if flag]
    want = [b - a for a, b in zip(starts, [*starts[1:], 41], strict=True)]
    assert lengths_by(rule, 40, surprise=h, threshold=0.4, threshold_rise=0.1) == want


def test_the_longest_patch() -> None:
    """`at most` ends patches without a flag: the same flags, given, make the same model."""
    small, ids = tiny(longest=3), noise(50)
    (ends,) = small.values(("ends",), [torch.tensor(ids)])["ends"]
    cut = capped(ends, 3)
    assert max(patch_lengths(cut)) <= 4  # the last counts the byte to come
    assert cut.sum() > ends.sum()
    free = tiny()
    torch.testing.assert_close(small([torch.tensor(ids)])[0], free([torch.tensor(ids)], ends=[cut])[0])


def test_a_line_starts_the_entropy_model_again() -> None:
    from weft.runtime.model import load

    small = load(blt_models.SPEC.parent / "entropy_lm.weft", "tiny", {"newline_reset": True}, dtype=torch.float64)
    line = text(b"one line\nand another")
    (whole,) = small([torch.tensor(line)])
    (alone,) = small([torch.tensor(line[10:])])
    # Rotary positions are relative, so what follows a newline equals the line alone.
    torch.testing.assert_close(whole[10:], alone)


# -- decoding --------------------------------------------------------------------------------------

TEXTS = (text(b"The cat sat on the mat."), text(b"x"), [1], text(b"hello hello hello hello world"))


@pytest.mark.parametrize(
    "more", [{}, {"longest": 3}, {"rule": "space"}, {"rule": "monotonic", "threshold": 0.0}, {"slots": 1}]
)
def test_decoding_equals_the_full_forward(more: dict[str, Any]) -> None:
    compare_everywhere(tiny(**more), {"bytes": [torch.tensor(t) for t in TEXTS]}, capacity=40)


def test_decoding_in_float32_after_the_passes() -> None:
    small = tiny(torch.float32)
    compare_everywhere(small, {"bytes": [torch.tensor(t) for t in TEXTS]}, capacity=40, tolerance=5e-5)


def test_one_global_step_for_each_patch() -> None:
    small = tiny()
    decoder = Decoder(small)
    ids = text(b"hello hello hello hello world")
    step = decoder.graphs.step
    assert isinstance(step, StagedGraph)
    (stage,) = [stage for stage in step.stages if stage.closing is not None]
    runs: list[int] = []
    forward = stage.module.forward
    stage.module.forward = lambda *args: runs.append(1) or forward(*args)
    state = decoder.begin(1, 64)
    for byte in ids:
        _, state = decoder.step(state, torch.tensor([byte]))
    (ends,) = small.values(("ends",), [torch.tensor(ids)])["ends"]
    assert 1 < len(runs) == int(ends.sum()) < len(ids)


# -- texts -----------------------------------------------------------------------------------------


def test_documents_packed_together_equal_each_alone() -> None:
    small = tiny()
    for got, ids in zip(small([torch.tensor(t) for t in TEXTS]), TEXTS, strict=True):
        torch.testing.assert_close(got, small([torch.tensor(ids)])[0])


def test_causality_byte_by_byte() -> None:
    small, ids = tiny(), noise(40)
    (before,) = small([torch.tensor(ids)])
    ids[25] = (ids[25] + 17) % 250 + 4
    (after,) = small([torch.tensor(ids)])
    assert torch.equal(before[:25], after[:25])
    assert not torch.equal(before[25:], after[25:])
    torch.testing.assert_close(small([torch.tensor(ids[:25])])[0], after[:25])


def test_odd_texts() -> None:
    small = tiny(torch.float32)
    for ids in ([1], [1, 2], text(b"\xff\xfe\x80\xc3"), [0, 3, 259]):
        assert small([torch.tensor(ids)])[0].isfinite().all()
    with pytest.raises(InputFault, match="260"):
        small([torch.tensor([1, 260])])


@pytest.mark.parametrize("longest", [0, 7])
def test_ten_thousand_equal_bytes(longest: int) -> None:
    small = tiny(torch.float32, longest=longest)
    (out,) = small([torch.tensor([1, *([36] * 9_999)])])
    assert out.isfinite().all()


# -- memory ----------------------------------------------------------------------------------------


class Largest(TorchDispatchMode):
    """The most entries that one operator's result has."""

    def __init__(self) -> None:
        super().__init__()
        self.entries = 0
        self.what = ""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            # A view (of an expanded tensor) takes no memory.
            if isinstance(tensor, Tensor) and not tensor._is_view() and tensor.numel() > self.entries:
                self.entries, self.what = tensor.numel(), f"{func} {tuple(tensor.shape)}"
        return result


def test_no_table_of_pairs_is_ever_allocated() -> None:
    """Rows by rows, rows by patches, patches by rows: the largest result grows with the text, not with its square."""
    small = tiny(torch.float32)
    decoder = Decoder(small)
    trained, generated = [], []
    for length in (1500, 3000):
        with Largest() as largest:
            total, _ = small.loss(None, [torch.tensor(noise(length))])["cross_entropy"]
            total.backward()
        trained.append(largest)
        with Largest() as largest:
            _, state = decoder.prefill([noise(length)], length + 8)
            decoder.step(state, torch.tensor([5]))
        generated.append(largest)
    assert trained[1].entries <= 2.2 * trained[0].entries, trained[1].what
    assert generated[1].entries <= 2.2 * generated[0].entries, generated[1].what
