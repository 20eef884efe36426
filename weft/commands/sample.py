"""`weft sample`: text and pictures of a checkpoint whose spec has a `generate` program."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .sampling_options import Device, IgnoreEnd, Precision, Temperature, Threads, Tokenizer, TopK, TopP, Tuning

if TYPE_CHECKING:
    from weft.answers import Told
    from weft.latent_pictures import LatentDecoder
    from weft.picture_files import PictureForm

EXAMPLES = """\b
Examples:
  weft sample runs/digits --prompt "a three" --picture -o samples
  weft sample runs/digits --prompt "a three" --picture --count 16 --set guide=1.55 --set taken=50 -o samples
  weft sample runs/digits --prompt "one: " --tokens 40 --pictures 2 --temperature 0.8 --seed 3
  weft sample runs/lmfusion --prompt "a cat" --picture --decoder runs/vae -o samples
"""
SMALLEST = 256  # pixels that the shorter side of a written picture has at least


def run(
    checkpoint: Annotated[str, typer.Argument(metavar="CKPT", help="A checkpoint, or the folder of a run.")],
    prompt: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="What to go on from; - is standard input. Repeatable.")
    ] = None,
    picture: Annotated[bool, typer.Option("--picture", help="Have a picture made behind the prompt.")] = False,
    out: Annotated[str, typer.Option("-o", "--out", metavar="FOLDER", help="Where pictures go.")] = "samples",
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="A parameter of the generate program; repeatable."),
    ] = None,
    count: Annotated[int, typer.Option(metavar="N", min=1, help="Answers to each prompt.")] = 1,
    tokens: Annotated[int, typer.Option(metavar="N", min=0, help="At most this many new tokens.")] = 200,
    pictures: Annotated[
        int, typer.Option(metavar="N", min=0, help="At most so many that the model itself begins.")
    ] = 1,
    temperature: Temperature = 0.0,
    top_k: TopK = None,
    top_p: TopP = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same answers; answer i uses seed + i.")] = 0,
    of: Annotated[
        str | None, typer.Option("--of", metavar="NAME", help="Which generate program, where a spec has several.")
    ] = None,
    latents: Annotated[bool, typer.Option("--latents", help="Write the numbers of pictures too, as .npy.")] = False,
    decoder: Annotated[
        str | None, typer.Option(metavar="CKPT", help="Autoencoder that makes pictures of latents.")
    ] = None,
    factor: Annotated[
        float | None,
        typer.Option(help="By what latents were multiplied [default: as in the files it learned from]."),
    ] = None,
    tokenizer: Tokenizer = None,
    ignore_end: IgnoreEnd = False,
    precision: Precision = None,
    device: Device = None,
    tuning: Tuning = None,
    threads: Threads = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object at the end instead of text.")] = False,
) -> None:
    """Runs the spec's `generate` program: text token by token, and what the program does when a token comes.

    Text goes to standard output, with the file of each picture where it stands. All pictures are on one sheet, too.
    Pictures of 1, 3 or 4 channels are pixels and become PNG files; those of others are latents, written as .npy. With
    --decoder all are latents, and the model `decode` of that checkpoint makes pixels of them.
    """
    from weft import spec_files
    from weft.faults import CommandFault, want_checkpoint

    prompts = [sys.stdin.read() if text == "-" else text for text in prompt or ([""] if picture else [])]
    if not prompts:
        raise CommandFault('give a --prompt "...", or --picture for one without a prompt', 2)
    for folder in (checkpoint, decoder):
        if folder is not None:
            want_checkpoint(folder)
    settings = spec_files.overrides(set_ or [])

    from weft.answers import open_answering, tell
    from weft.latent_pictures import open_decoder
    from weft.picture_files import require_pillow

    opened = open_answering(checkpoint, of, settings, tokenizer, precision, device, threads, tuning)
    if picture and opened.picture is None:
        raise CommandFault(f"{opened.generation.model.name} has no input of pictures: leave out --picture", 2)
    if factor is not None and (decoder is None or not factor > 0):
        raise CommandFault("--factor is a number above 0, for --decoder", 2)
    maker = None
    if decoder is not None:
        if opened.picture is None:
            raise CommandFault(f"{opened.generation.model.name} has no input of pictures: leave out --decoder", 2)
        maker = open_decoder(decoder, opened.picture, opened.latents, factor, device)
    if maker is not None or (opened.picture is not None and opened.picture.has_pixels):
        require_pillow()
    asked = [text for text in prompts for _ in range(count)]
    with _progress() as watch:
        found = tell(
            opened,
            asked,
            tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
            stop_at_end=not ignore_end,
            with_picture=picture,
            at_most=pictures,
            watch=watch,
        )
    files = _write(opened.picture, maker, found, Path(out), latents)
    if as_json:
        _print_json(asked, found, files)
    else:
        _print_text(found, files)


@contextmanager
def _progress():
    """A bar over the turns of a sampler, where a person is looking."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(file=sys.stderr), transient=True) as bar:
        task = bar.add_task("picture", total=None)
        yield lambda done, turns: bar.update(task, completed=done, total=turns)


def _write(
    form: PictureForm | None, decoder: LatentDecoder | None, found: list[Told], out: Path, latents: bool
) -> list[list[Path]]:
    """The files of the pictures of each answer. The sheet of all of them is beside."""
    from weft.picture_files import pixels, sheet, write_npy, write_png

    made = [value for one in found for value in one.pictures]
    if form is None or not made:
        return [[] for _ in found]
    out.mkdir(parents=True, exist_ok=True)
    shown = None
    if decoder is not None:
        shown = decoder.pixels(made)
    elif form.has_pixels:
        shown = [pixels(form, value) for value in made]
    files = [[out / f"{i}-{j}" for j in range(len(one.pictures))] for i, one in enumerate(found)]
    paths = [path for own in files for path in own]
    if latents or shown is None:
        for path, value in zip(paths, made, strict=True):
            write_npy(path.with_suffix(".npy"), form, value)
    if shown is None:
        what = f"a picture of {form.channels} channels is a latent: its numbers are written; --decoder makes pixels"
        print(what, file=sys.stderr)
        return [[path.with_suffix(".npy") for path in own] for own in files]
    larger = max(1, -(-SMALLEST // min(shown[0].shape[:2])))
    for path, picture in zip(paths, shown, strict=True):
        write_png(path.with_suffix(".png"), picture, larger)
    if len(shown) > 1:
        write_png(out / "all.png", sheet(shown), max(1, larger // 2))
    return [[path.with_suffix(".png") for path in own] for own in files]


def _print_text(found: list[Told], files: list[list[Path]]) -> None:
    for i, (one, own) in enumerate(zip(found, files, strict=True)):
        names = iter(own)
        text = "".join(piece if isinstance(piece, str) else f"[{next(names)}]" for piece in one.pieces)
        print(f"--- {i + 1}\n{text}" if len(found) > 1 else text)


def _print_json(asked: list[str], found: list[Told], files: list[list[Path]]) -> None:
    import json

    rows = []
    for text, one, own in zip(asked, found, files, strict=True):
        names = iter(own)
        pieces = [{"text": p} if isinstance(p, str) else {"picture": str(next(names))} for p in one.pieces]
        rows.append({"prompt": text, "pieces": pieces, "tokens": list(one.tokens), "ended": one.ended})
    print(json.dumps({"version": 1, "answers": rows}, indent=2))
