"""`generate` programs as they run: text, pictures, text, against whole passes of the model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.small_models import model
from tests.test_std import run
from weft.codegen.lower import lower
from weft.codegen.pipeline import CPU_PASSES, REFERENCE_PASSES
from weft.dsl.diagnostics import SpecErrors
from weft.dsl.generation import Compute, Repeat
from weft.runtime.answer import Answer, answer, generation_of
from weft.runtime.decoder import Decoder
from weft.runtime.errors import GenerateFault
from weft.runtime.model import Model, check_file, load
from weft.runtime.new_rows import Part, Rows

SPEC = """
size dim = 8
size vocab = 40
size begin = 38
size end = 39
size steps = 1000
enum modality: text, image
axis seq
axis word = seq where kind == text
axis place = seq where kind == image
axis picture
axis cell = grid(3, 2)

model m(kind: modality[seq], ids: id[word] in vocab, latent: real[picture, cell, dim], time: int[picture]):
    z = conv(latent, cell -> cell, dim -> dim, size=3) + real(time) * 0.001
    words = embed(ids, vocab -> dim)
    places = flatten(z, (picture, cell) -> place)
    x = join((words, places), (word, place) -> seq)
    for layer in 0 .. 2:
        routed by kind:
            q = linear(x, dim -> dim) |> rope(along=seq)
            k = linear(x, dim -> dim) |> rope(along=seq)
        mixed = attend(q, k, x, over=dim, along=seq, mask=causal or same(picture))
        routed by kind:
            x = x + linear(mixed, dim -> dim) as out
    logits = linear(take(x, seq -> word), dim -> vocab) as head
    noise = linear(unflatten(take(x, seq -> place), place -> (picture, cell)), dim -> dim)
    return logits, noise

generate tell(guide: real = 1.0, taken: int = 4):
    on token == begin:
        x = normal(per=(cell, dim))
        for i in 0 .. taken:
            now = (steps - 3) * (taken - i) // taken - 1
            after = (steps - 3) * (taken - i - 1) // taken - 1
            noise = m(latent=x, time=now).noise
            if guide != 1:
                plain = m(latent=x, time=now, prompt=none).noise
                noise = plain + guide * (noise - plain)
            x = ddim(x, tanh(noise), cosine_left(now, steps), cosine_left(after, steps))
        append(latent=x, time=0)
        append(end)

init ** = normal(0.5)
"""
BEGIN, END = 38, 39
ROOT = Path(__file__).resolve().parent.parent


def spec(program: str) -> str:
    """The model with another program in the place of `tell`."""
    head, _ = SPEC.split("generate tell")
    return f"{head}{program}\ninit ** = normal(0.5)\n"


@pytest.fixture(scope="module")
def subject() -> Model:
    return model(SPEC)


def as_inputs(sequences: Sequence[Sequence[Part]]) -> dict[str, list[Tensor]]:
    """What the model is given for whole sequences, made without the runtime's own packing."""
    inputs: dict[str, list[Tensor]] = {"kind": [], "ids": [], "latent": [], "time": []}
    for parts in sequences:
        kinds = [tag for part in parts for tag in ([0] if isinstance(part, int) else [1] * 6)]
        rows = [part.values for part in parts if isinstance(part, Rows)]
        inputs["kind"].append(torch.tensor(kinds))
        inputs["ids"].append(torch.tensor([part for part in parts if isinstance(part, int)], dtype=torch.int64))
        latents = [row["latent"][None] for row in rows]
        inputs["latent"].append(torch.cat(latents) if rows else torch.empty(0, 6, 8, dtype=torch.float64))
        inputs["time"].append(torch.tensor([int(row["time"]) for row in rows], dtype=torch.int64))
    return inputs


def whole(subject: Model, sequences: Sequence[Sequence[Part]]) -> dict[str, list[Tensor]]:
    with torch.no_grad():
        return subject(**as_inputs(sequences))


def check_greedy(subject: Model, found: Answer, prompt: Sequence[Part]) -> int:
    """Every token that was chosen is the likeliest after what a whole pass of the finished sequence sees before it.
    How many there were."""
    scores = whole(subject, [found.parts])["logits"][0]
    places = [i for i, part in enumerate(found.parts) if isinstance(part, int)]
    start = len(found.parts) - 1
    while start >= 0 and isinstance(found.parts[start], int) and found.parts[start] != END:
        start -= 1
    chosen = places[places.index(start) + 1 :] if start >= 0 else places[len(prompt) :]
    for place in chosen:
        word = places.index(place)
        assert int(scores[word - 1].argmax()) == found.parts[place]
    return len(chosen)


# ---- samplers -------------------------------------------------------------------------------------


def test_ddpm_is_the_posterior() -> None:
    """Against the form with alpha and beta of one step, as it is usually written."""
    left, after = 0.3, 0.45
    found, (x, e, d), _ = run(
        f"x: real[seq, dim], e: real[seq, dim], d: real[seq, dim] => ddpm(x, e, {left}, {after}, d)"
    )
    alpha = left / after
    mean = (x - (1 - alpha) / math.sqrt(1 - left) * e) / math.sqrt(alpha)
    deviation = math.sqrt((1 - alpha) * (1 - after) / (1 - left))
    torch.testing.assert_close(found, mean + deviation * d, rtol=1e-10, atol=1e-10)


def test_a_step_may_be_clipped() -> None:
    found, (x, e), _ = run("x: real[seq, dim], e: real[seq, dim] => ddim(x, e, 0.01, 0.5, clip=0.75)")
    clean = ((x - math.sqrt(0.99) * e) / 0.1).clamp(-0.75, 0.75)
    assert (clean.abs() == 0.75).any()
    torch.testing.assert_close(found, math.sqrt(0.5) * clean + math.sqrt(0.5) * e, rtol=1e-10, atol=1e-10)


ORACLE = """
size vocab = 5
size dim = 2
size steps = 1000
enum modality: text, image
axis seq
axis word = seq where kind == text
axis place = seq where kind == image
axis picture
axis cell = grid(2, 2)

model m(kind: modality[seq], ids: id[word] in vocab, latent: real[picture, cell, dim], time: int[picture]):
    param known: real[cell, dim]
    left = cosine_left(time, steps)
    noise = (latent - sqrt(left) * known) / sqrt(1 - left)
    places = flatten(noise, (picture, cell) -> place)
    x = join((embed(ids, vocab -> dim), places), (word, place) -> seq)
    logits = linear(take(x, seq -> word), dim -> vocab)
    return logits, unflatten(take(x, seq -> place), place -> (picture, cell))

generate tell(taken: int = 5):
    on token == 3:
        x = normal(per=(cell, dim))
        for i in 0 .. taken:
            now = (steps - 3) * (taken - i) // taken - 1
            after = (steps - 3) * (taken - i - 1) // taken - 1
            noise = m(latent=x, time=now).output1
            x = STEP
        append(latent=x, time=0)
        append(4)

init ** = normal(1)
"""
DDIM = "ddim(x, noise, cosine_left(now, steps), cosine_left(after, steps))"
DDPM = "ddpm(x, noise, cosine_left(now, steps), cosine_left(after, steps), normal(like=x))"


@pytest.mark.parametrize("step", [DDIM, DDPM], ids=["ddim", "ddpm"])
@pytest.mark.parametrize("taken", [1, 7, 250])
def test_true_noise_leads_to_what_it_was_put_on(step: str, taken: int) -> None:
    subject = model(ORACLE.replace("STEP", step), torch.float32)
    (found,) = answer(subject, generation_of(subject, taken=taken), [[1, 3]], 0)
    known = dict(subject.by_path())["known"]
    torch.testing.assert_close(found.rows[0].values["latent"], known.detach(), rtol=0, atol=1e-4)


def test_samplers_keep_float32_under_a_narrow_model() -> None:
    subject = model(SPEC, torch.bfloat16, passes=CPU_PASSES)
    (found,) = answer(subject, generation_of(subject), [[1, BEGIN]], 2)
    latent = found.rows[0].values["latent"]
    assert latent.dtype == torch.float32
    assert (latent != latent.bfloat16().float()).any()


# ---- guidance -------------------------------------------------------------------------------------

GUIDED = spec("""generate guided(guide: real = 1.0):
    on token == begin:
        x = normal(per=(cell, dim))
        noise = m(latent=x, time=400).noise
        plain = m(latent=x, time=400, prompt=none).noise
        append(latent=x, time=0)
        append(latent=plain + guide * (noise - plain), time=0)
        append(end)
""")


@pytest.mark.parametrize("guide", [0.0, 1.0, 1.55])
def test_guidance_is_two_passes(guide: float) -> None:
    """The two caches against one batch of both whole sequences."""
    subject = model(GUIDED)
    prompts = [[1, 2, 3, BEGIN], [4, BEGIN]]
    found = answer(subject, generation_of(subject, guide=guide), prompts, 0, begin=37)
    for prompt, one in zip(prompts, found, strict=True):
        x, mixed = (row.values["latent"] for row in one.rows)
        drawn = Rows({"latent": x, "time": torch.tensor(400)})
        noise, plain = whole(subject, [[37, *prompt, drawn], [37, BEGIN, drawn]])["noise"]
        assert (noise - plain).abs().max() > 1e-3
        torch.testing.assert_close(mixed, (plain + guide * (noise - plain))[0], rtol=1e-10, atol=1e-10)


def test_guide_of_one_is_one_branch(subject: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    looked = []
    look = Decoder.look
    monkeypatch.setattr(Decoder, "look", lambda self, state, rows: looked.append(state.size) or look(self, state, rows))
    answer(subject, generation_of(subject, taken=3), [[1, BEGIN]], 0)
    assert looked == [1] * 3
    answer(subject, generation_of(subject, taken=3, guide=2.0), [[1, BEGIN]], 0)
    assert looked[3:] == [2] * 3


# ---- text, picture, text --------------------------------------------------------------------------


@pytest.mark.parametrize("passes", [REFERENCE_PASSES, CPU_PASSES], ids=["reference", "cpu"])
def test_text_after_a_picture_is_that_of_a_whole_pass(passes) -> None:
    subject = model(SPEC, passes=passes)
    prompts = [[1, 2, 3, BEGIN], [4, 5], [6, BEGIN]]
    for prompt, one in zip(prompts, answer(subject, generation_of(subject), prompts, 9), strict=True):
        assert list(one.parts[: len(prompt)]) == prompt
        assert len(one.rows) == (BEGIN in prompt)
        assert check_greedy(subject, one, prompt) == 9
        if one.rows:
            assert one.parts[len(prompt) + 1] == END
            assert int(one.rows[0].values["time"]) == 0


def test_a_request_alone_gets_what_it_gets_among_others(subject: Model) -> None:
    prompts = [[1, 2, 3, BEGIN], [4, 5], [6, BEGIN, 7, 8], [BEGIN, 9, BEGIN]]
    tell = generation_of(subject, guide=1.5, taken=2)
    options = {"max_new_tokens": 8, "temperature": 1.0, "top_p": 0.9, "eos": [3, 11], "begin": 37, "at_most": 2}
    together = answer(subject, tell, prompts, seed=[5, 6, 7, 8], **options)
    for i, prompt in enumerate(prompts):
        (alone,) = answer(subject, tell, [prompt], seed=5 + i, **options)
        assert alone.tokens == together[i].tokens
        assert alone.stopped == together[i].stopped
        assert len(alone.rows) == len(together[i].rows)
        for a, b in zip(alone.rows, together[i].rows, strict=True):
            torch.testing.assert_close(a.values["latent"], b.values["latent"], rtol=1e-9, atol=1e-9)
    other = answer(subject, tell, prompts, seed=1, **options)
    assert (other[0].rows[0].values["latent"] - together[0].rows[0].values["latent"]).abs().max() > 0.1


def test_two_pictures_in_one_text(subject: Model) -> None:
    prompt = [1, BEGIN, 2, 3, BEGIN, 4]
    (found,) = answer(subject, generation_of(subject), [prompt], 5)
    forms = ["picture" if isinstance(part, Rows) else part for part in found.parts]
    assert forms[:10] == [1, BEGIN, "picture", END, 2, 3, BEGIN, "picture", END, 4]
    first, second = (row.values["latent"] for row in found.rows)
    assert (first - second).abs().max() > 0.1
    scores = whole(subject, [found.parts])["logits"][0]
    for place in range(10, 15):
        assert int(scores[place - 3].argmax()) == found.parts[place]
    # The second is drawn behind the first.
    prefix = list(found.parts[:7])
    (again,) = answer(subject, generation_of(subject), [prefix], 0)
    torch.testing.assert_close(again.rows[1].values["latent"], second, rtol=1e-9, atol=1e-9)


def test_a_picture_of_the_prompt_is_taken_as_it_is(subject: Model) -> None:
    given = Rows({"latent": torch.randn(6, 8, dtype=torch.float64), "time": torch.tensor(0)})
    prompt = [1, BEGIN, given, END, 2]
    (found,) = answer(subject, generation_of(subject), [prompt], 6)
    assert len(found.rows) == 1
    scores = whole(subject, [found.parts])["logits"][0]
    for place in range(5, 11):
        assert int(scores[place - 2].argmax()) == found.parts[place]


def test_a_token_that_the_model_chooses(subject: Model) -> None:
    """The token that is waited for is made one that comes by itself."""
    prompt, options = [1, 2, 3], {"max_new_tokens": 8, "temperature": 2.0, "seed": 4}
    (plain,) = answer(subject, generation_of(subject), [prompt], **options)
    assert not plain.rows
    place = next(i for i in range(4, 11) if plain.parts[i] not in plain.parts[:i])
    token = plain.parts[place]
    own = model(SPEC.replace("size begin = 38", f"size begin = {token}"))
    seen: list[tuple[int, Part]] = []
    tell = generation_of(own)
    found = answer(own, tell, [prompt, [7]], at_most=2, stream=lambda *part: seen.append(part), **options)[0]
    assert found.parts[: place + 1] == plain.parts[: place + 1]
    assert isinstance(found.parts[place + 1], Rows)
    assert found.parts[place + 2] == END
    assert tuple(part for which, part in seen if which == 0) == found.parts[3:]
    assert sum(isinstance(part, int) for part in found.parts[3:]) == 8 + len(found.rows)  # each with its END
    (stopped,) = answer(own, tell, [prompt], at_most=0, **options)
    assert stopped.parts == plain.parts[:place]
    assert stopped.stopped == token


def test_nothing_is_kept_of_a_look() -> None:
    looking = spec("""generate tell():
    on token == begin:
        seen = m(ids=3).logits
        x = m(latent=normal(per=(cell, dim)), time=5).noise
        append(latent=x, time=real_time(seen))
        append(end)

block real_time(scores: real[vocab]):
    return where(max(scores) > 1e9, 1, 0)
""")
    subject = model(looking)
    (found,) = answer(subject, generation_of(subject), [[1, BEGIN]], 7)
    assert check_greedy(subject, found, [1, BEGIN]) == 7


def test_lmfusion() -> None:
    """The spec itself: a guided picture between two texts, with weights as they start but for the last layers."""
    subject = load(ROOT / "specs" / "lmfusion.weft", size="tiny", dtype=torch.float64)
    assert isinstance(subject, Model)
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in subject.parameters():
            weight += 0.03 * torch.randn_like(weight)
    prompts = [[97, 98, 258], [99, 258, 100]]
    found = answer(subject, generation_of(subject, guide=1.55, taken=2), prompts, 4, begin=257)
    for one in found:
        (row,) = one.rows
        assert row.values["latent"].shape == (64, 4)
        kinds = torch.tensor([tag for part in one.parts for tag in ([0] if isinstance(part, int) else [1] * 16)])
        with torch.no_grad():
            scores = subject(
                kind=[kinds],
                ids=[torch.tensor(one.tokens)],
                latent=[row.values["latent"][None]],
                time=[torch.tensor([0])],
            )["logits"][0]
        for place in range(-4, 0):
            assert int(scores[place - 1].argmax()) == one.tokens[place]


@pytest.mark.parametrize("taken", [1, 7, 250, 1000])
def test_steps_of_lmfusion(taken: int) -> None:
    """Each turn goes on where the one before ended, from a step in which a little of the picture is left to all of it,
    and makes no error more than a few times larger."""
    tell = check_file(ROOT / "specs" / "lmfusion.weft", "digits").generates["tell"].again({"taken": taken})
    loop = tell.events[0].body[1]
    assert isinstance(loop, Repeat)
    schedule = loop.body[0]
    assert isinstance(schedule, Compute)
    graph = lower(schedule.program)
    named = [name for name, _ in schedule.program.outputs]
    steps = [dict(zip(named, map(int, graph(torch.tensor(turn))), strict=True)) for turn in loop.turns]
    assert [step["after"] for step in steps] == [step["now"] for step in steps[1:]] + [-1]
    assert steps[-1]["now"] == 0
    assert steps[0]["now"] == min(1000 - -(-1000 // taken), 996)
    left = [math.cos((max(step["now"], -1) + 1) / 1000 * math.pi / 2) ** 2 for step in steps]
    assert all(math.sqrt(after / now) < 3 for now, after in pairwise(left))


# ---- loops and draws ------------------------------------------------------------------------------


def made(body: str, **settings: object) -> Tensor:
    """What a body appends as `x`, a number for each entry."""
    lines = "\n".join("        " + line for line in body.strip("\n").split("\n"))
    text = spec(
        f"generate g(turns: int = 3, loud: flag = false):\n    on token == begin:\n{lines}\n        append(end)\n"
    )
    subject = model(text)
    (found,) = answer(subject, generation_of(subject, **settings), [[1, BEGIN]], 0)
    return torch.stack([row.values["latent"] for row in found.rows])


def test_loops_hand_on_what_they_bind() -> None:
    body = """
x = 0 * normal(per=(cell, dim))
count = 0
for i in 0 .. turns:
    for j in i .. i + 2:
        count = count + 10 * i + j
        x = x + 1
    before = count
    if loud:
        x = x * 2
append(latent=x + real(count) * 100, time=0)
"""
    with pytest.raises(SpecErrors, match="known when the spec is checked"):
        made(body)
    body = body.replace("j in i .. i + 2", "j in 0 .. 2")
    counts = sum(10 * i + j for i in range(3) for j in range(2))
    assert (made(body) == 6 + 100 * counts).all()
    assert (made(body, turns=0) == 0).all()
    assert (made(body, turns=2, loud=True) == (2 * 2 + 2) * 2 + 100 * 22).all()


def test_every_draw_is_another() -> None:
    drawn = made("""
x = normal(per=(cell, dim))
append(latent=x, time=0)
for i in 0 .. turns:
    x = normal(per=(cell, dim))
    append(latent=x, time=0)
""")
    assert len(drawn) == 4
    gaps = (drawn[:, None] - drawn[None]).abs().amax((2, 3)) + torch.eye(4)
    assert gaps.min() > 0.1


# ---- what is refused ------------------------------------------------------------------------------


def test_clear_faults(subject: Model) -> None:
    tell = generation_of(subject)
    latent = torch.zeros(6, 8, dtype=torch.float64)
    with pytest.raises(GenerateFault, match="prompt 1 ends without a token"):
        answer(subject, tell, [[1], []], 3)
    with pytest.raises(GenerateFault, match="prompt 0 ends without a token"):
        answer(subject, tell, [[1, Rows({"latent": latent, "time": torch.tensor(0)})]], 3)
    with pytest.raises(GenerateFault, match="rows of sound are no rows of one axis"):
        answer(subject, tell, [[1, Rows({"sound": latent}), 2]], 3)
    with pytest.raises(GenerateFault, match="max_new_tokens is -1"):
        answer(subject, tell, [[1]], -1)
    with pytest.raises(GenerateFault, match="no generate program sing; it has tell"):
        generation_of(subject, "sing")
    with pytest.raises(SpecErrors, match="did you mean `guide`"):
        generation_of(subject, guid=2)
    with pytest.raises(SpecErrors, match=r"`taken` is the number 2\.5, not a whole number"):
        generation_of(subject, taken=2.5)
    assert answer(subject, tell, [], 3) == []


def test_a_token_with_more_than_its_id() -> None:
    subject = model("""
size dim = 8
size vocab = 16
axis seq
model m(tokens: id[seq] in vocab, loud: real[seq]) -> real[seq, vocab]:
    return linear(embed(tokens, vocab -> dim) * loud, dim -> vocab)
generate g():
    on token == 3:
        append(tokens=4, loud=0.5)
""")
    with pytest.raises(GenerateFault, match="a token of m has loud, too"):
        answer(subject, generation_of(subject), [[1]], 3)


def test_plain_text_has_programs_too() -> None:
    """A model of one input: what is appended stands in the text."""
    subject = model("""
size dim = 8
size vocab = 16
axis seq
model m(tokens: id[seq] in vocab) -> real[seq, vocab]:
    x = embed(tokens, vocab -> dim)
    x = x + attend(x, x, x, over=dim, along=seq, mask=causal)
    return linear(x, dim -> vocab)
generate g(times: int = 2):
    on token == 3:
        for i in 0 .. times:
            append(4)
        append(5)
init ** = normal(0.7)
""")
    (found,) = answer(subject, generation_of(subject), [[1, 3, 2]], 6)
    assert found.parts[:6] == (1, 3, 4, 4, 5, 2)
    with torch.no_grad():
        (scores,) = subject([torch.tensor(found.parts)])
    chosen = [place for place in range(6, len(found.parts)) if 3 not in found.parts[6:place]]
    assert all(int(scores[place - 1].argmax()) == found.parts[place] for place in chosen)
