"""LMFusion on a CPU against the ways to write it in plain torch.

    python bench/lmfusion_cpu.py                  # everything
    python bench/lmfusion_cpu.py --only train     # or denoise, guided or step

A model of specs/lmfusion.weft with eight layers of width 512 and pictures of 256 rows; documents of a caption and a
picture, packed end to end; fp32. Text weights are frozen, as the spec says.

    train    forward, backward and AdamW
             ours     rows sorted by tower, masks as intervals
             select   both towers on all rows, a dense mask
             index    rows picked by a flag for each part of a layer, a dense mask
    denoise  the noise in one picture behind 64 rows of text
             ours     behind the caches of the text
             mixed    the same by the graph that takes any rows
             full     the whole sequence again
    guided   a step of a guided picture, for one request and for four, whose captions differ in length; of this model,
             and of the spec's own size tiny, whose pictures have 16 rows
             ours     both looks of all requests in one call
             turns    one look after the other
    step     the next word behind 64 rows of text
             ours, mixed

Sides take turns; a row gives medians and ratios of times (above 1: we are faster). Before anything is timed, all sides
have to agree.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.lmfusion_torch import IMAGE, TEXT, Route, Rows, Sizes, TorchLMFusion, index, load, select  # noqa: E402
from tests.looks_in_turn import one_by_one  # noqa: E402
from tests.torch_unet import UNet  # noqa: E402
from weft.codegen.ops import OPS  # noqa: E402
from weft.dsl.check import check, read_source  # noqa: E402
from weft.dsl.generation import Generation  # noqa: E402
from weft.runtime.answer import answer, generation_of  # noqa: E402
from weft.runtime.decoder import Decoder  # noqa: E402
from weft.runtime.model import Model  # noqa: E402
from weft.runtime.model import load as load_spec  # noqa: E402

SIZES = Sizes(layers=8, dim=512, heads=8, kv_heads=2, ffn=1792, vocab=1024, side=32, channels=4, begin=1)
BASE, BLOCKS, STEPS = 32, 2, 100
SPOTS = (SIZES.side // 2) ** 2
CAPTIONS = (34, 21, 48, 30)
PREFIX = 64
GUIDED_STEPS = 2
TINY_BEGIN = 258


def ours(dtype: torch.dtype = torch.float32) -> Model:
    source = read_source(ROOT / "specs" / "lmfusion.weft")
    named = ("layers", "dim", "heads", "kv_heads", "ffn", "vocab", "side", "channels", "begin")
    return Model(check(source, OPS, "tiny", {name: getattr(SIZES, name) for name in named}).value(), dtype)


def plain(model: Model, route: Route) -> TorchLMFusion:
    """In torch, with the weights of ours."""
    unet = UNet(SIZES.channels, SIZES.dim, BASE, (1, 2), (False, True), BLOCKS, 8, 16, 64)
    made = TorchLMFusion(SIZES, unet, route)
    load(made, dict(model.by_path()), BLOCKS)
    return made


def documents(captions: Sequence[int], generator: torch.Generator) -> Rows:
    """Captions first, each with a picture behind it and two words that end it."""
    lengths = [caption + SPOTS + 2 for caption in captions]
    kinds = [torch.tensor([TEXT] * n + [IMAGE] * SPOTS + [TEXT] * 2) for n in captions]
    return Rows(
        torch.cat(kinds),
        torch.cat([torch.where(kind == IMAGE, number, -1) for number, kind in enumerate(kinds)]),
        torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)),
        torch.cat([torch.arange(length) for length in lengths]),
        torch.randint(2, SIZES.vocab, (sum(captions) + 2 * len(captions),), generator=generator),
        torch.randn(len(captions), SIZES.side**2, SIZES.channels, generator=generator),
        torch.randint(STEPS, (len(captions),), generator=generator),
    )


def per_document(rows: Rows, captions: Sequence[int]) -> dict[str, list[Tensor]]:
    """The inputs of a model of ours."""
    lengths = [caption + SPOTS + 2 for caption in captions]
    return {
        "kind": list(rows.kind.split(lengths)),
        "ids": list(rows.ids.split([caption + 2 for caption in captions])),
        "latent": list(rows.latent.split(1)),
        "time": list(rows.time.split(1)),
    }


# -- training --------------------------------------------------------------------------------------


def text_targets(rows: Rows) -> tuple[Tensor, Tensor]:
    """Which words are followed by a word of their document, and that word."""
    is_word = rows.kind == TEXT
    follows = torch.zeros_like(is_word)
    follows[:-1] = is_word[:-1] & is_word[1:] & (rows.document[:-1] == rows.document[1:])
    has_target = follows[is_word].nonzero()[:, 0]
    return has_target, rows.ids[has_target + 1]


def losses_of(logits: Tensor, noise: Tensor, drawn: Tensor, targets: tuple[Tensor, Tensor]) -> Tensor:
    text = torch.nn.functional.cross_entropy(logits[targets[0]], targets[1])
    return text + 5 * (noise - drawn).square().mean()


def train_plain(model: TorchLMFusion) -> Callable[[Rows], None]:
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-4, fused=True)

    def step(rows: Rows) -> None:
        drawn = torch.randn_like(rows.latent)
        left = 0.5 + 0 * rows.time[:, None, None]
        noisy = replace(rows, latent=left.sqrt() * rows.latent + (1 - left).sqrt() * drawn)
        logits, noise = model(noisy)
        losses_of(logits, noise, drawn, text_targets(rows)).backward()
        optimiser.step()
        optimiser.zero_grad()

    return step


def train_ours(model: Model) -> Callable[[Rows], None]:
    trained = [weight for path, weight in model.by_path() if weight.requires_grad]
    optimiser = torch.optim.AdamW(trained, 1e-4, fused=True)
    cap = torch.full((len(CAPTIONS),), STEPS)

    def step(rows: Rows) -> None:
        given: dict[str, Any] = {name: x for name, x in per_document(rows, CAPTIONS).items() if name != "time"}
        sums = model.loss(**given, cap=cap)
        torch.stack([total / count for total, count in sums.values()]).sum().backward()
        optimiser.step()
        optimiser.zero_grad()

    return step


def check_equal(model: Model, others: Mapping[str, TorchLMFusion], rows: Rows) -> None:
    found = model(**per_document(rows, CAPTIONS))
    logits, noise = torch.cat(list(found["logits"])), torch.cat(list(found["noise"]))
    for name, other in others.items():
        expected = other(rows)
        for ours_, theirs in zip((logits, noise), expected, strict=True):
            assert (ours_ - theirs).abs().max() < 1e-3 * theirs.abs().max(), name


def compare_training(rounds: int) -> None:
    model, generator = ours(), torch.Generator().manual_seed(0)
    others = {"select": plain(model, select), "index": plain(model, index)}
    with torch.no_grad():
        check_equal(model, others, documents(CAPTIONS, generator))
    sides = {"ours": train_ours(model), **{name: train_plain(other) for name, other in others.items()}}
    report("train", alternate(sides, lambda: documents(CAPTIONS, generator), rounds))


# -- denoising -------------------------------------------------------------------------------------


def compare_denoising(rounds: int) -> None:
    model, generator = ours(), torch.Generator().manual_seed(1)
    rows = documents((PREFIX,), generator)
    given = {name: value[0] for name, value in per_document(rows, (PREFIX,)).items()}
    text = {
        "kind": [given["kind"][:PREFIX]], "ids": [given["ids"][:PREFIX]], "latent": [given["latent"][:0]],
        "time": [given["time"][:0]],
    }  # fmt: skip
    picture = {"kind": [given["kind"][PREFIX:-2]], "ids": [given["ids"][:0]]}

    def behind_caches(decoder: Decoder) -> Callable[[Tensor], Tensor]:
        _, state = decoder.prefill(text, capacity=PREFIX + SPOTS + 2)
        return lambda latent: decoder.look(state, {**picture, "latent": [latent], "time": [given["time"]]})["noise"]

    def whole(latent: Tensor) -> Tensor:
        kind, ids = given["kind"][:-2], given["ids"][:PREFIX]
        return model(kind=[kind], ids=[ids], latent=[latent], time=[given["time"]])["noise"][0]

    def draw() -> Tensor:
        return torch.randn(1, SIZES.side**2, SIZES.channels, generator=generator)

    with torch.no_grad():
        latent = draw()
        sides = {"ours": behind_caches(Decoder(model)), "mixed": behind_caches(Decoder(model, phases=False))}
        assert all((side(latent) - whole(latent)).abs().max() < 1e-4 for side in sides.values())
        report("denoise", alternate({**sides, "full": whole}, draw, rounds))


def compare_guidance(rounds: int) -> None:
    """As `answer` makes pictures: prompts and the picture that is kept are in the times of both sides."""
    tiny = load_spec(ROOT / "specs" / "lmfusion.weft", size="tiny")
    assert isinstance(tiny, Model)
    for name, model, begin in (("tiny", tiny, TINY_BEGIN), ("", ours(), SIZES.begin)):
        for captions in ((PREFIX,), CAPTIONS):
            guide(f"guided {name} {len(captions)}".replace("  ", " "), model, begin, captions, rounds)


def guide(title: str, model: Model, begin: int, captions: Sequence[int], rounds: int) -> None:
    guided = generation_of(model, guide=1.55, taken=GUIDED_STEPS)
    generator = torch.Generator().manual_seed(3)

    def draw() -> list[list[int]]:
        words = torch.randint(2, 250, (sum(captions),), generator=generator)
        return [[*part.tolist(), begin] for part in words.split(list(captions))]

    def made(program: Generation, prompts: list[list[int]]) -> Tensor:
        found = answer(model, program, prompts, 0)
        return torch.stack([row.values["latent"] for one in found for row in one.rows])

    sides = {"ours": partial(made, guided), "turns": partial(made, one_by_one(guided))}
    prompts = draw()
    expected = sides["turns"](prompts)
    assert (sides["ours"](prompts) - expected).abs().max() < 1e-3 * expected.abs().max()
    times = alternate(sides, draw, rounds)
    report(title, {name: seconds / GUIDED_STEPS for name, seconds in times.items()})


def compare_steps(rounds: int) -> None:
    model, generator = ours(), torch.Generator().manual_seed(2)
    given = per_document(documents((PREFIX,), generator), (PREFIX,))
    text = {name: [value[0][:PREFIX]] for name, value in given.items() if name in ("kind", "ids")}
    none = {name: [given[name][0][:0]] for name in ("latent", "time")}

    def words(decoder: Decoder) -> Callable[[Tensor], Tensor]:
        _, state = decoder.prefill({**text, **none}, capacity=PREFIX + 1)
        return lambda ids: decoder.step(state, {"kind": torch.tensor([TEXT]), "ids": ids})[0]

    def draw() -> Tensor:
        return torch.randint(2, SIZES.vocab, (1,), generator=generator)

    with torch.no_grad():
        sides = {"ours": words(Decoder(model)), "mixed": words(Decoder(model, phases=False))}
        word = draw()
        assert (sides["ours"](word) - sides["mixed"](word)).abs().max() < 1e-4
        report("step", alternate(sides, draw, rounds))


# -- timing ----------------------------------------------------------------------------------------


def alternate(sides: Mapping[str, Callable[[Any], object]], draw: Callable[[], Any], rounds: int) -> dict[str, float]:
    """Median seconds of each side; all take what is drawn for a round, in turns."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        given = draw()
        for name, side in sides.items():
            begin = time.perf_counter()
            side(given)
            if number:  # the first round compiles
                times[name].append(time.perf_counter() - begin)
    return {name: statistics.median(taken) for name, taken in times.items()}


def report(what: str, times: Mapping[str, float]) -> None:
    for name, seconds in times.items():
        print(f"{what:8} {name:8} {seconds * 1e3:9.1f} ms  {seconds / times['ours']:6.2f}x")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("train", "denoise", "guided", "step"))
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.manual_seed(0)
    if options.only in (None, "train"):
        compare_training(options.rounds)
    if options.only in (None, "denoise"):
        compare_denoising(3 * options.rounds)
    if options.only in (None, "guided"):
        compare_guidance(options.rounds)
    if options.only in (None, "step"):
        compare_steps(20 * options.rounds)


if __name__ == "__main__":
    main()
