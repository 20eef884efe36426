"""The autoencoder of pictures: trained on a folder, its latents stored and trained on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

import weft
from weft.cli import main
from weft.runtime.checkpoint import read_manifest
from weft.runtime.errors import RuntimeFault
from weft.runtime.latent_scale import read_scale
from weft.runtime.latents import encoder_of, make_latents
from weft.runtime.media import as_numbers, read_picture
from weft.runtime.model import Model
from weft.runtime.run_config import make_config
from weft.runtime.train import train

Image = pytest.importorskip("PIL.Image", reason="pictures are an extra")

SPECS = Path(__file__).parent.parent / "specs"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """24 pictures of bright squares at random places."""
    rng = np.random.default_rng(0)
    (tmp_path / "pictures").mkdir()
    for number in range(24):
        pixels = np.zeros((8, 8), np.uint8)
        row, column = rng.integers(0, 5, 2)
        pixels[row : row + 4, column : column + 4] = 255
        Image.fromarray(pixels).save(tmp_path / "pictures" / f"{number:02}.png")
    return tmp_path


def model_of(**sizes: Any) -> Model:
    model = weft.load(SPECS / "vae.weft", size="digits", overrides=sizes)
    assert isinstance(model, Model)
    return model


@pytest.mark.parametrize(("size", "pixels", "latent"), [("digits", (64, 1), (16, 2)), ("tiny", (1024, 3), (64, 4))])
def test_shapes(size: str, pixels: tuple[int, ...], latent: tuple[int, ...]) -> None:
    model: Any = weft.load(SPECS / "vae.weft", size=size)
    pictures = torch.randn(2, *pixels)
    found = model.run(model.checked.models["encode"], [pictures])
    assert [found[name][0].shape for name in ("mean", "log_variance")] == [(2, *latent)] * 2
    assert model.run(model.checked.models["decode"], [found["mean"][0]])[0].shape == pictures.shape


def test_the_divergence_is_torchs() -> None:
    """From the latent's distribution to a standard normal one."""
    model: Any = model_of(kl_weight=1.0).double()
    pictures = torch.randn(3, 64, 1, dtype=torch.float64)
    found = model.run(model.checked.models["encode"], [pictures])
    mean, spread = found["mean"][0], torch.exp(0.5 * found["log_variance"][0])
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(normal(mean, spread), normal(0.0 * mean, 0.0 * mean + 1)).sum()
    total, count = model.loss("autoencode", image=[pictures])["kl"]
    torch.testing.assert_close(total, expected, rtol=1e-10, atol=1e-10)
    assert count == 3


def test_pictures_come_back_and_their_latents_train(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = {
        "spec": str(SPECS / "vae.weft"), "size": "digits", "data": [str(folder / "pictures")], "steps": 60,
        "examples_per_step": 12, "lr": 3e-3, "out": str(folder / "vae"), "tensorboard": "off", "eval_fraction": 0.0,
    }  # fmt: skip
    result = train(make_config(settings))
    records = [json.loads(line) for line in (folder / "vae" / "metrics.jsonl").read_text().splitlines()]
    assert result.losses["picture"] < 0.2 * records[0]["losses"]["picture"]

    lines: list[Any] = [{"caption": f"square {n}", "image": f"pictures/{n:02}.png"} for n in range(10)]
    lines.append({"parts": ["two: ", {"image": "pictures/03.png"}, {"image": "pictures/20.png"}]})
    (folder / "x.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(SystemExit) as ended:
        main(["latents", str(folder / "vae"), "--data", str(folder / "x.jsonl"), "--out", str(folder / "made")])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("11 pictures as latents of 16 x 2, multiplied by ")
    written = [json.loads(line) for line in (folder / "made" / "x.jsonl").read_text().splitlines()]
    assert written[2] == {"caption": "square 2", "image": "latents.safetensors#2"}
    assert written[-1]["parts"][1:] == [{"image": "latents.safetensors#3"}, {"image": "latents.safetensors#10"}]

    scale = read_scale(folder / "made" / "latents.safetensors")
    assert scale is not None
    factor = scale.factor
    with safe_open(folder / "made" / "latents.safetensors", framework="numpy") as opened:
        latents = opened.get_tensor("latents").astype(np.float32)
    assert latents.std() == pytest.approx(1, abs=2e-3)
    model: Any = weft.load(folder / "vae")
    files = [folder / "pictures" / f"{n:02}.png" for n in (*range(10), 20)]
    pictures = torch.from_numpy(np.stack([as_numbers(read_picture(file, (8, 8), 1)) for file in files]))
    with torch.no_grad():
        expected = model.run(model.checked.models["encode"], [pictures])["mean"][0].numpy()
    np.testing.assert_allclose(latents / factor, expected, rtol=2e-3, atol=2e-3)

    latent_run = {
        "spec": str(SPECS / "unet.weft"), "size": "tiny", "overrides": {"side": 4, "channels": 2, "base": 16},
        "data": [str(folder / "made" / "x.jsonl")], "steps": 2, "out": str(folder / "unet"), "tensorboard": "off",
        "eval_fraction": 0.0,
    }  # fmt: skip
    ended_run = train(make_config(latent_run))
    assert ended_run.reason == "finished"
    assert read_manifest(ended_run.checkpoint).latents == scale


def test_pictures_without_jsonl(folder: Path) -> None:
    made = make_latents(model_of(), [str(folder / "pictures")], folder / "made", "hash", at_once=7)
    assert (made.pictures, made.shape, made.files) == (24, (16, 2), ("latents.safetensors", "latents.jsonl"))
    lines = (folder / "made" / "latents.jsonl").read_text().splitlines()
    assert json.loads(lines[5])["image"] == "latents.safetensors#5"


def test_mistakes(folder: Path) -> None:
    unet: Any = weft.load(SPECS / "unet.weft", size="tiny")
    with pytest.raises(RuntimeFault, match="has no model `encode` that makes latents of pictures"):
        encoder_of(unet)
    (folder / "x.jsonl").write_text('{"image": "pictures/00.png"}\n{"image": "gone.png"}\n')
    with pytest.raises(RuntimeFault, match=r"x\.jsonl:2: there is no file gone\.png"):
        make_latents(model_of(), [str(folder / "x.jsonl")], folder / "made", "hash")
    assert not (folder / "made").exists()
    (folder / "plain.safetensors").write_bytes(b"no")
    with pytest.raises(RuntimeFault, match=r"plain\.safetensors cannot be read"):
        read_scale(folder / "plain.safetensors")
