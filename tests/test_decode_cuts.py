"""Derived decoding of specs with segments: row by row, in chunks and in batches it equals one full forward, and what
is computed of segments runs once for each that closes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.small_models import model
from tests.test_cuts import CAUSAL, CLAIM
from tests.test_decode import compare_everywhere
from weft.codegen.decode_stages import StagedGraph
from weft.codegen.pipeline import CPU_PASSES
from weft.dsl.diagnostics import SpecErrors
from weft.runtime.decoder import Decoder

LENGTHS = (9, 4, 1, 12)

MODEL = """
size dim = 6
size vocab = 7
axis seq
axis patch cut from seq
axis line cut from seq
model m(ids: id[seq] in vocab, f: flag[seq]) -> real[seq, dim]:
    x = embed(ids, vocab -> dim)
    {body}
init ** = normal(0.5)
"""
POOLS = """segment seq into patch ends where f{at_most}
    return x + spread(pool(x, seq -> patch, by={by}), patch -> seq, {which})"""
BODIES = {
    "global layers and a local window": """segment seq into patch ends where f
    p = pool(x, seq -> patch, by=max)
    p = p + attend(p, x, x, over=dim, along=seq, mask=same(patch))
    p = p + attend(p, p, p, over=dim, along=patch, mask=causal and window(2))
    p = p + attend(p, p, p, over=dim, along=patch, mask=causal)
    x = x + attend(x, x, x, over=dim, along=seq, mask=causal and window(3))
    return x + spread(p, patch -> seq, closed)""",
    "keys along patches": """segment seq into patch ends where f, at most 3
    p = pool(x, seq -> patch, by=mean)
    return x + attend(x, p, p, over=dim, along=patch, mask=near(patch, 2))""",
    "all patches that have closed": """segment seq into patch ends where f
    p = pool(x, seq -> patch, by=sum)
    return x + attend(x, p, p, over=dim, along=patch, mask=key(index(patch)) <= query(index(patch, closed)))""",
    "my patch, up to me": """segment seq into patch ends where f
    return x + attend(x, x, x, over=dim, along=seq, mask=causal and same(patch))""",
    "bytes of all patches so far": """segment seq into patch ends where f
    p = pool(x, seq -> patch, by=max)
    p = p + attend(p, x, x, over=dim, along=seq, mask=key(index(patch)) <= query(patch))
    return x + spread(p, patch -> seq, before)""",
    "numbers": """segment seq into patch ends where f
    p = pool(x, seq -> patch, by=max) * real(position(patch) + 1)
    p = p + previous(p) + previous(p, 2)
    return spread(p, patch -> seq, closed) + real(index(patch)) + 10 * real(index(patch, closed))""",
    "flags by what was read": """segment seq into patch ends where sum(x, over=dim) > 0
    p = pool(x, seq -> patch, by=last)
    x = x + spread(p, patch -> seq, closed)
    y = tanh(x) + spread(p, patch -> seq, before)
    return y""",
    "what is known when a segment opens": """segment seq into patch ends where f
    p = pool(x, seq -> patch, by=first)
    q = pool(x, seq -> patch, by=max)
    r = tanh(linear(p, dim -> dim) + previous(q) * real(position(patch)) + previous(q, 3))
    return x + spread(r, patch -> seq, own) + spread(r, patch -> seq, closed)""",
    "two cuts of one axis": """segment seq into patch ends where f
    segment seq into line ends where ids == 2, at most 4
    p = pool(x, seq -> patch, by=max)
    l = pool(x, seq -> line, by=mean)
    return x + spread(p, patch -> seq, closed) * spread(l, line -> seq, before)""",
}


def rows(seed: int = 0, lengths: tuple[int, ...] = LENGTHS) -> dict[str, list[Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "ids": [torch.randint(7, (n,), generator=generator) for n in lengths],
        "f": [torch.rand(n, generator=generator) < 0.4 for n in lengths],
    }


def spec(body: str) -> str:
    return MODEL.format(body=body)


@pytest.mark.parametrize("by", ["max", "mean", "sum", "first", "last"])
@pytest.mark.parametrize("which", ["before", "closed"])
@pytest.mark.parametrize("at_most", ["", ", at most 3"])
def test_pools(by: str, which: str, at_most: str) -> None:
    compare_everywhere(model(spec(POOLS.format(by=by, which=which, at_most=at_most))), rows())


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize("passes", [(), CPU_PASSES], ids=["reference", "after the passes"])
def test_every_construct(name: str, passes: tuple) -> None:
    for seed in range(3):
        compare_everywhere(model(spec(BODIES[name]), passes=passes), rows(seed))


@pytest.mark.parametrize("name", CAUSAL)
def test_what_checks_as_causal_is_decoded(name: str) -> None:
    ends, by, read = CAUSAL[name]
    compare_everywhere(model(CLAIM.format(ends=ends, by=by, read=read)), {"ids": [i % 5 for i in rows()["ids"]]})


def test_segments_run_only_when_one_closes() -> None:
    small = model(spec(BODIES["global layers and a local window"]))
    decoder = Decoder(small)
    given = rows(lengths=(12,))
    step = decoder.graphs.step
    assert isinstance(step, StagedGraph)
    stages = step.stages
    assert [stage.closing is None for stage in stages] == [True, False, True]
    runs = [0]
    forward = stages[1].module.forward
    stages[1].module.forward = lambda *args: runs.__setitem__(0, runs[0] + 1) or forward(*args)
    state = decoder.begin(1, 12)
    for t in range(12):
        _, state = decoder.step(state, {name: values[0][t : t + 1] for name, values in given.items()})
    assert runs[0] == int(given["f"][0].sum())


def test_no_stage_holds_rows_of_an_open_segment() -> None:
    """A sequence that closes nothing gives zeros where nothing has closed."""
    small = model(spec(POOLS.format(by="max", which="closed", at_most="")))
    decoder = Decoder(small)
    given = {"ids": [torch.tensor([1, 2, 3])], "f": [torch.zeros(3, dtype=torch.bool)]}
    out, _ = decoder.extend(decoder.begin(1, 3), given)
    torch.testing.assert_close(out, small(**given)[0])


def test_runs_of_ids_are_refused() -> None:
    body = "segment seq into patch by ids\n    return x + spread(pool(x, seq -> patch), patch -> seq, closed)"
    with pytest.raises(SpecErrors, match="cannot be generated row by row"):
        Decoder(model(spec(body)))


def test_a_selection_of_sequences_goes_on() -> None:
    """What is kept of open segments goes with the sequences."""
    small = model(spec(BODIES["numbers"]))
    decoder, given = Decoder(small), rows()
    whole = small(**given)
    _, state = decoder.extend(decoder.begin(4, 16), {name: [v[:1] for v in values] for name, values in given.items()})
    state = decoder.select(state, [3, 0])
    for t in range(1, 9):
        step = {name: torch.stack([values[3][t], values[0][t]]) for name, values in given.items()}
        out, state = decoder.step(state, step)
        torch.testing.assert_close(out, torch.stack([whole[3][t], whole[0][t]]))


@pytest.mark.parametrize("name", BODIES)
def test_sequences_may_pause(name: str) -> None:
    """A row that is computed for a sequence that waits leaves nothing behind."""
    small, given = model(spec(BODIES[name])), rows(seed=7, lengths=(9, 9, 9))
    whole, decoder = small(**given), Decoder(model(spec(BODIES[name])))
    generator = torch.Generator().manual_seed(8)
    state, done = decoder.begin(3, 12), [0, 0, 0]
    while min(done) < 9:
        active = [bool(torch.rand((), generator=generator) < 0.6) and n < 9 for n in done]
        if not any(active):
            continue
        step = {
            key: torch.stack([x[min(n, 8)] for x, n in zip(values, done, strict=True)]) for key, values in given.items()
        }
        out, state = decoder.step(state, step, active)
        for i, on in enumerate(active):
            if on:
                torch.testing.assert_close(out[i], whole[i][done[i]])
                done[i] += 1
