"""specs/vae.weft is the autoencoder of latent diffusion: its weights come in and go out as diffusers has them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import weft
from tests.autoencoder_kl import AutoencoderKL
from weft.cli import main
from weft.runtime.errors import RuntimeFault
from weft.runtime.transfer import export_checkpoint, import_checkpoint

SPEC = Path(__file__).parent.parent / "specs" / "vae.weft"


@pytest.fixture(scope="module")
def other() -> AutoencoderKL:
    torch.manual_seed(0)
    model = AutoencoderKL(3, 4, [16, 32, 32], 2, 8).double()
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(0.0 if weight.dim() > 1 else 0.5, 0.1 if weight.dim() > 1 else 0.3)
    return model


@pytest.fixture(scope="module")
def folder(other: AutoencoderKL, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vae") / "theirs"
    path.mkdir()
    (path / "config.json").write_text(json.dumps(other.config))
    save_file(other.state_dict(), path / "diffusion_pytorch_model.safetensors")
    return path


def rows(pictures: Tensor) -> Tensor:
    return pictures.flatten(2).transpose(1, 2)


def test_encoder_and_decoder_are_theirs(other: AutoencoderKL, folder: Path, tmp_path: Path) -> None:
    ours: Any = weft.load(import_checkpoint(SPEC, folder, tmp_path / "ours").checkpoint)
    pictures = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    with torch.no_grad():
        mean, told = other.encode(pictures)
        found = ours.run(ours.checked.models["encode"], [rows(pictures)])
        torch.testing.assert_close(found["mean"][0], rows(mean), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(found["log_variance"][0], rows(told), rtol=1e-12, atol=1e-12)
        again = ours.run(ours.checked.models["decode"], [rows(mean)])[0]
        torch.testing.assert_close(again, rows(other.decode(mean)), rtol=1e-12, atol=1e-12)


def test_it_goes_out_as_it_came(other: AutoencoderKL, folder: Path, tmp_path: Path) -> None:
    import_checkpoint(SPEC, folder, tmp_path / "ours")
    export_checkpoint(tmp_path / "ours", tmp_path / "back")
    back = load_file(tmp_path / "back" / "diffusion_pytorch_model.safetensors")
    assert back.keys() == other.state_dict().keys()
    assert all(torch.equal(back[name], value) for name, value in other.state_dict().items())
    config = json.loads((tmp_path / "back" / "config.json").read_text())
    assert {key: config[key] for key in other.config if key in config} == {
        key: value for key, value in other.config.items() if key not in ("_diffusers_version", "scaling_factor")
    }


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("down_block_types", ["DownEncoderBlock2D", "AttnDownEncoderBlock2D", "DownEncoderBlock2D"], "times levels"),
        ("_class_name", "AutoencoderTiny", "this spec means 'AutoencoderKL'"),
        ("use_quant_conv", False, "tensors of the checkpoint have no line"),
    ],
)
def test_another_autoencoder_is_refused(folder: Path, tmp_path: Path, key: str, value: object, told: str) -> None:
    (tmp_path / "theirs").mkdir()
    config = json.loads((folder / "config.json").read_text()) | {key: value}
    (tmp_path / "theirs" / "config.json").write_text(json.dumps(config))
    weights = "diffusion_pytorch_model.safetensors"
    (tmp_path / "theirs" / weights).symlink_to(folder / weights)
    with pytest.raises(RuntimeFault, match=told):
        import_checkpoint(SPEC, tmp_path / "theirs", tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def test_published_size(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["inspect", str(SPEC), "params", "--size", "sd"])
    assert "83,653,863 (83.65 M) parameters" in capsys.readouterr().out
