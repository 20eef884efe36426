"""`weft sample`: prompts to text and pictures on the disk, as a person runs it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest
import torch
from PIL import Image

from tests.commands import says, weft
from tests.small_models import model
from tests.test_answers import DDIM, ORACLE
from weft.picture_files import PictureForm, picture_input, pixels, sheet
from weft.runtime.checkpoint import WEIGHTS, ModelIdentity, SpecText, TrainingState, read_manifest, save_checkpoint
from weft.runtime.latent_scale import LatentScale
from weft.runtime.optimiser import OptimiserState

# Pictures of three channels and two by three pixels, whose noise the model knows; a vocabulary for bytes.
SPEC = (
    ORACLE.replace("STEP", DDIM)
    .replace("size dim = 2", "size dim = 3")
    .replace("size vocab = 5", "size vocab = 260")
    .replace("grid(2, 2)", "grid(2, 3)")
    .replace("token == 3", "token == 258")
    .replace("append(4)", "append(259)")
)


@dataclass(frozen=True)
class Trained:
    folder: Path
    known: np.ndarray  # uint8 [height, width, channels]: what every picture turns out to be


def saved(folder: Path, text: str) -> Trained:
    made = model(text, torch.float32)
    weights = {path: weight.detach() for path, weight in made.by_path()}
    identity = ModelIdentity((SpecText("spec.weft", text),))
    save_checkpoint(folder, identity, weights)
    known = ((weights["known"].numpy() + 1) * 127.5).round().clip(0, 255).astype(np.uint8)
    return Trained(folder, known.reshape(2, 3, -1))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return saved(tmp_path_factory.mktemp("sample") / "step-00000001", SPEC)


def read(path: Path) -> np.ndarray:
    with Image.open(path) as opened:
        return np.asarray(opened)


def test_pictures_and_text(trained: Trained, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ("--picture", "--count", "3", "--tokens", "4", "--set", "taken=3", "--latents", "-o", str(out))
    run = weft("sample", str(trained.folder), "--prompt", "a ", *options)
    assert (run.returncode, run.stderr) == (0, "")
    for i in range(3):
        assert f"--- {i + 1}\na [{out / f'{i}-0.png'}]" in run.stdout
        picture = read(out / f"{i}-0.png")
        larger = picture.shape[0] // 2
        assert picture.shape == (larger * 2, larger * 3, 3)
        assert larger * 2 >= 256
        assert (np.abs(picture[::larger, ::larger].astype(int) - trained.known) <= 1).all()
        numbers = np.load(out / f"{i}-0.npy")
        assert numbers.shape == (2, 3, 3)
        assert (np.abs((numbers + 1) * 127.5 - trained.known) <= 0.6)[trained.known % 255 > 0].all()
    assert read(out / "all.png").ndim == 3


def test_as_json(trained: Trained, tmp_path: Path) -> None:
    run = weft("sample", str(trained.folder), "--picture", "--tokens", "0", "-o", str(tmp_path), "--json")
    (one,) = json.loads(run.stdout)["answers"]
    assert [list(piece) for piece in one["pieces"]] == [["text"], ["picture"], ["text"]]
    assert one["tokens"][-2:] == [258, 259]
    assert Path(one["pieces"][1]["picture"]).is_file()


def test_latents_are_no_pixels(tmp_path: Path) -> None:
    five = saved(tmp_path / "step-00000001", SPEC.replace("size dim = 3", "size dim = 5"))
    run = weft("sample", str(five.folder), "--picture", "--tokens", "0", "-o", str(tmp_path / "out"))
    assert run.returncode == 0
    assert "a picture of 5 channels is a latent" in run.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["0-0.npy"]


DECODER = """
size five = 5
size colours = 3
axis picture
axis pixel = grid(4, 6)
axis cell = pixel / 2

model decode(latent: real[picture, cell, five]) -> real[picture, pixel, colours]:
    return spread(linear(latent, five -> colours), cell -> pixel)
"""


def test_a_decoder_makes_pixels_of_latents(tmp_path: Path) -> None:
    """Of latents divided by what they were multiplied by, which the model's checkpoint knows."""
    decoder, text = tmp_path / "vae", SPEC.replace("size dim = 3", "size dim = 5")
    made = model(DECODER, torch.float32)
    weight = dict(made.by_path())["linear.weight"].detach()
    identity = ModelIdentity((SpecText("vae.weft", DECODER),))
    save_checkpoint(decoder, identity, {"linear.weight": weight})
    own = next(entry.sha256 for entry in read_manifest(decoder).files if entry.name == WEIGHTS)
    maker = model(text, torch.float32)
    weights = {path: one.detach() for path, one in maker.by_path()}
    for name, scale in (("named", LatentScale(0.25, own)), ("other", LatentScale(0.25, "0")), ("none", None)):
        state = TrainingState(OptimiserState(), {}, {}, latents=scale)
        save_checkpoint(tmp_path / name, ModelIdentity((SpecText("spec.weft", text),)), weights, training=state)

    def sample(name: str, *options: str) -> CompletedProcess[str]:
        out = ("--picture", "--tokens", "0", "--set", "taken=3", "-o", str(tmp_path / "out"))
        return weft("sample", str(tmp_path / name), *out, "--decoder", str(decoder), *options)

    latent = weights["known"].reshape(6, 5)
    for name, factor in (("named", None), ("none", 0.5)):
        run = sample(name, *(() if factor is None else ("--factor", str(factor))))
        assert (run.returncode, run.stderr) == (0, "")
        picture = read(tmp_path / "out" / "0-0.png")
        larger = picture.shape[0] // 4
        assert picture.shape == (larger * 4, larger * 6, 3)
        expected = ((latent @ weight.reshape(3, 5).T / (factor or 0.25) + 1) * 127.5).clamp(0, 255).numpy()
        found = picture[::larger, ::larger].reshape(2, 2, 3, 2, 3)[:, 0, :, 0].reshape(6, 3)
        assert (np.abs(found - expected) <= 2).all()
    says(sample("none"), 2, "does not say by what its latents were multiplied: give --factor X")
    says(sample("other"), 2, "latents of another autoencoder")
    says(sample("named", "--factor", "0"), 2, "--factor is a number above 0")
    run = weft("sample", str(tmp_path / "named"), "--picture", "--decoder", str(tmp_path / "named"))
    says(run, 2, "has no model `decode` that makes pictures of latents")


def test_mistakes(trained: Trained, tmp_path: Path) -> None:
    folder = str(trained.folder)
    says(weft("sample", folder), 2, "give a --prompt")
    says(
        weft("generate", folder, "--prompt", "a"), 1, "one input of ids; `weft sample` runs the spec's generate program"
    )
    says(weft("sample", folder, "--picture", "--of", "sing"), 1, "no generate program sing; it has tell")
    says(weft("sample", folder, "--picture", "--set", "taken"), 2, "--set wants NAME=VALUE")
    run = weft("sample", folder, "--picture", "--set", "takn=3")
    assert run.returncode == 1
    assert "did you mean `taken`" in run.stderr
    run = weft("sample", folder, "--picture", "--set", "taken=few")
    assert "`taken` is `few`, not a whole number" in run.stderr
    # Without the library for pictures: a module of its name that cannot be imported.
    (tmp_path / "PIL").mkdir()
    (tmp_path / "PIL" / "__init__.py").write_text("raise ImportError('gone')")
    root = Path(__file__).resolve().parent.parent
    run = weft("sample", folder, "--picture", PYTHONPATH=f"{tmp_path}:{root}")
    says(run, 1, "pictures are written by the library `pillow`: pip install 'weft[train]'")
    plain = "size vocab = 260\nsize dim = 4\naxis seq\nmodel m(tokens: id[seq] in vocab) -> real[seq, vocab]:\n"
    plain += "    param known: real[dim]\n    return linear(embed(tokens, vocab -> dim) + known, dim -> vocab)\n"
    text = saved_text(tmp_path / "text", plain)
    says(weft("sample", text, "--prompt", "a"), 2, "has no generate program: weft generate continues text")
    waits = saved_text(tmp_path / "waits", plain + "generate g():\n    on token == 65:\n        append(66)\n")
    says(weft("sample", waits, "--prompt", "a", "--picture"), 2, "m has no input of pictures")


def saved_text(folder: Path, text: str) -> str:
    made = model(text, torch.float32)
    save_checkpoint(
        folder, ModelIdentity((SpecText("m.weft", text),)), {path: weight.detach() for path, weight in made.by_path()}
    )
    return str(folder)


def test_pixels_and_sheets() -> None:
    found = PictureForm("latent", 2, 3, 3)
    assert picture_input(model(SPEC).program) == found
    values = torch.tensor([-2.0, -1.0, 0.0, 1.0, 3.0, 0.5]).reshape(6, 1).expand(6, 3)
    assert pixels(found, values)[:, :, 0].tolist() == [[0, 0, 128], [255, 255, 191]]
    pictures = [np.full((2, 3, 1), i + 1, np.uint8) for i in range(5)]
    whole = sheet(pictures)
    assert whole.shape == (2 * 2 + 2, 3 * 3 + 2 * 2, 1)
    assert whole[0, 0, 0] == 1
    assert whole[4, 5, 0] == 5
    assert whole[4, 10, 0] == 0


def test_what_a_program_does_is_shown() -> None:
    run = weft("inspect", "specs/lmfusion.weft", "decode", "--size", "digits")
    shown = run.stdout[run.stdout.index("generate tell") :]
    lines = [line.rsplit("  line ", 1)[0].strip() for line in shown.splitlines()]
    assert lines == [
        "generate tell(guide = 1, taken = 250, draws = false) goes on with lmfusion",
        "when token 258 comes",
        "x in 1 operation",
        "250 turns of i, handing on x",
        lines[4],
        "look at noise of a row of picture, from latent = x, time = now",
        lines[6],
        "keep a row of picture: latent = x, time = 0",
        "keep a row of word: ids = 259",
    ]
    assert lines[4].startswith("now, after in ")
    assert lines[6].startswith("x in ")
    decode = json.loads(weft("inspect", "specs/lmfusion.weft", "decode", "--json").stdout)["decode"]
    assert [(one["tag"], one["rows"], one["masked"]) for one in decode["phases"]] == [
        ("kind", "text", 0),
        ("kind", "image", 0),
    ]
    found = decode["generate"]
    assert [one["name"] for one in found] == ["tell"]
    assert found[0]["events"][0]["actions"][1]["carried"] == ["x"]
