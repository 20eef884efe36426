"""Published implementations as oracles: weights imported, the same logits; exported, the same bits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import weft
from tests import huggingface
from weft.codegen.ops import OPS
from weft.dsl.check import check
from weft.dsl.source import Source
from weft.runtime.errors import RuntimeFault
from weft.runtime.transfer import export_checkpoint, import_checkpoint

SPECS = Path(__file__).parent.parent / "specs"
IDS = [[5, 9, 200, 31, 7, 7, 2], [3], [17, 255, 254, 90, 11, 60, 61, 62, 63, 8, 2, 100]]

SHAPES = [
    pytest.param("olmo2", {"kv_heads": 4}, id="olmo2-mha"),
    pytest.param("olmo2", {"kv_heads": 2}, id="olmo2-gqa"),
    pytest.param("llama", {"kv_heads": 4}, id="llama-mha"),
    pytest.param("llama", {"kv_heads": 1}, id="llama-mqa"),
    pytest.param("llama", {"kv_heads": 2, "head_dim": 24}, id="llama-wide-heads"),
]


def imported(name: str, shape: dict, folder: Path, dtype=torch.float32):
    theirs = getattr(huggingface, name)(**shape)
    huggingface.saved(theirs, folder / "theirs")
    import_checkpoint(SPECS / f"{name}.weft", folder / "theirs", folder / "ours")
    return theirs, weft.load(folder / "ours", dtype=dtype)


@pytest.mark.parametrize(("name", "shape"), SHAPES)
def test_same_logits(name, shape, tmp_path):
    theirs, ours = imported(name, shape, tmp_path)
    with torch.no_grad():
        got = ours([torch.tensor(ids) for ids in IDS])
    for ids, own in zip(IDS, got, strict=True):
        want = huggingface.logits(theirs, ids)
        assert own.shape == want.shape
        assert want.abs().max() > 1
        torch.testing.assert_close(own, want, rtol=0, atol=1e-5)


def test_same_logits_in_float64(tmp_path):
    theirs, ours = imported("olmo2", {"kv_heads": 2}, tmp_path, torch.float64)
    with torch.no_grad():
        got = ours([torch.tensor(IDS[2])])[0]
    # transformers computes its norms and softmax in float32 whatever the dtype.
    torch.testing.assert_close(got, huggingface.logits(theirs.double(), IDS[2]), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("name", "shape"), SHAPES)
def test_export_is_bit_equal_and_loads_again(name, shape, tmp_path):
    from transformers import AutoModelForCausalLM

    theirs, _ = imported(name, shape, tmp_path)
    export_checkpoint(tmp_path / "ours", tmp_path / "back")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "back", attn_implementation="eager").eval()
    assert type(again) is type(theirs)
    before, after = theirs.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    for key, tensor in before.items():
        assert torch.equal(tensor, after[key]), key
    torch.testing.assert_close(huggingface.logits(again, IDS[0]), huggingface.logits(theirs, IDS[0]), rtol=0, atol=0)


PER_HEAD = """
block per_head(x: real[..], over: axis, both: axes, eps: number) -> real[..]:
    param gain: real[both] = ones
    return precise(x * rsqrt(mean(x^2, over=over) + eps)) * gain

model olmo2("""


def wrong_variants() -> dict[str, dict[str, str]]:
    """The mistakes that olmo2.md lists, as edits of the spec. All of them load the same weights."""
    attention = "x = x + rms_norm(attention(x), eps=eps) as attention_norm"
    mlp = "x = x + rms_norm(swiglu(x, ffn), eps=eps) as swiglu_norm"
    return {
        "norms on inputs": {
            attention: "x = x + attention(rms_norm(x, eps=eps) as attention_norm)",
            mlp: "x = x + swiglu(rms_norm(x, eps=eps) as swiglu_norm, ffn)",
        },
        "the MLP reads the block's input": {
            attention: "start = x\n        " + attention,
            mlp: mlp.replace("swiglu(x, ffn)", "swiglu(start, ffn)"),
        },
        "QK-norm for each head": {
            "rms_norm(over=(heads, head_dim), eps=eps)": "per_head(over=head_dim, both=(heads, head_dim), eps=eps)",
            "rms_norm(over=(kv_heads, head_dim), eps=eps)":
                "per_head(over=head_dim, both=(kv_heads, head_dim), eps=eps)",
            "q.rms_norm.gain": "q.per_head.gain",
            "k.rms_norm.gain": "k.per_head.gain",
            "\nmodel olmo2(": PER_HEAD,
        },
        "QK-norm after the rotation": {
            " |> rms_norm(over=(heads, head_dim), eps=eps)": "",
            "q = rope(q, along=seq, theta=theta)":
                "q = rope(q, along=seq, theta=theta)\n    q = rms_norm(q, over=(heads, head_dim), eps=eps) as q_norm",
            "q.rms_norm.gain": "q_norm.gain",
        },
        "theta of 10,000": {"theta=theta": "theta=1e4"},
        "gate and up exchanged": {
            "swiglu.gate.linear.weight\n": "swiglu.here.linear.weight\n",
            "swiglu.up.linear.weight\n": "swiglu.gate.linear.weight\n",
            "swiglu.here.linear.weight\n": "swiglu.up.linear.weight\n",
        },
    }  # fmt: skip


@pytest.mark.parametrize("mistake", wrong_variants())
def test_wrong_variants_differ(mistake, tmp_path):
    """Each common mistake gives other logits from the same weights: the comparison above would catch it."""
    theirs = huggingface.olmo2(kv_heads=4)
    huggingface.saved(theirs, tmp_path / "theirs")
    text = (SPECS / "olmo2.weft").read_text()
    for right, wrong in wrong_variants()[mistake].items():
        assert right in text, right
        text = text.replace(right, wrong)
    spec = tmp_path / "olmo2.weft"
    spec.write_text(text)
    import_checkpoint(spec, tmp_path / "theirs", tmp_path / "ours")
    with torch.no_grad():
        got = weft.load(tmp_path / "ours")([torch.tensor(IDS[2])])[0]
    assert (got - huggingface.logits(theirs, IDS[2])).abs().max() > 0.05


TOTALS = {"1b": 1_484_916_736, "7b": 7_298_617_344, "13b": 13_716_198_400, "32b": 32_234_279_936}
TENSORS = {"1b": 179, "7b": 355, "13b": 443, "32b": 707}


@pytest.mark.parametrize("size", TOTALS)
def test_parameter_totals(size):
    path = SPECS / "olmo2.weft"
    checked = check(Source(str(path), path.read_text()), OPS, size).value()
    weights = checked.model.weights
    assert len(weights) == TENSORS[size]
    assert sum(torch.Size(weight.shape).numel() for weight in weights) == TOTALS[size]
    model = weft.load(path, size=size, device="meta")
    assert sum(p.numel() for p in model.parameters()) == TOTALS[size]


def test_import_refuses_what_does_not_fit(tmp_path):
    theirs = huggingface.olmo2()
    huggingface.saved(theirs, tmp_path / "theirs")
    with pytest.raises(RuntimeFault, match="not in the checkpoint"):
        import_checkpoint(SPECS / "llama.weft", _with_config(tmp_path, "llama"), tmp_path / "a")
    assert not (tmp_path / "a").exists()
    tensor_file = tmp_path / "theirs" / "model.safetensors"
    tensor_file.write_bytes(tensor_file.read_bytes()[:1000])
    with pytest.raises(RuntimeFault, match="complete safetensors"):
        import_checkpoint(SPECS / "olmo2.weft", tmp_path / "theirs", tmp_path / "b")
    tensor_file.unlink()
    with pytest.raises(RuntimeFault, match=r"neither model\.safetensors"):
        import_checkpoint(SPECS / "olmo2.weft", tmp_path / "theirs", tmp_path / "c")
    with pytest.raises(RuntimeFault, match=r"no config\.json"):
        import_checkpoint(SPECS / "olmo2.weft", tmp_path / "nowhere", tmp_path / "d")


def _with_config(folder: Path, model_type: str) -> Path:
    """The same tensors under another architecture's name."""
    path = folder / "theirs" / "config.json"
    config = json.loads(path.read_text())
    other = folder / "other"
    other.mkdir()
    config["model_type"] = model_type
    config["architectures"] = ["LlamaForCausalLM"]
    config["rms_norm_eps"] = 1e-5
    (other / "config.json").write_text(json.dumps(config))
    (other / "model.safetensors").write_bytes((folder / "theirs" / "model.safetensors").read_bytes())
    return other


def test_config_constant_that_differs_is_refused(tmp_path):
    theirs = huggingface.olmo2()
    huggingface.saved(theirs, tmp_path / "theirs")
    path = tmp_path / "theirs" / "config.json"
    config = json.loads(path.read_text())
    config["attention_bias"] = True
    path.write_text(json.dumps(config))
    with pytest.raises(RuntimeFault, match="attention_bias"):
        import_checkpoint(SPECS / "olmo2.weft", tmp_path / "theirs", tmp_path / "a")


def test_sharded_index(tmp_path):
    theirs = huggingface.olmo2()
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="100KB")
    assert (tmp_path / "theirs" / "model.safetensors.index.json").is_file()
    result = import_checkpoint(SPECS / "olmo2.weft", tmp_path / "theirs", tmp_path / "ours")
    assert len(result.coverage) == len(theirs.state_dict())
    with torch.no_grad():
        got = weft.load(tmp_path / "ours")([torch.tensor(IDS[0])])[0]
    torch.testing.assert_close(got, huggingface.logits(theirs, IDS[0]), rtol=0, atol=1e-5)


def rewritten(folder: Path, **changes: object) -> Path:
    """The config of a foreign folder with other values; None takes the key away."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    return folder


def test_rotary_scaling_is_another_model(tmp_path):
    """In the older place of config.json too: ignored, it would give other logits without a word."""
    for name in ("olmo2", "llama"):
        huggingface.saved(getattr(huggingface, name)(), tmp_path / name)
        rewritten(tmp_path / name, rope_scaling={"type": "linear", "factor": 2.0})
        with pytest.raises(RuntimeFault, match="`rope_scaling` is"):
            import_checkpoint(SPECS / f"{name}.weft", tmp_path / name, tmp_path / "ours")


@pytest.mark.parametrize(("key", "name"), [("num_key_value_heads", "kv_heads"), ("hidden_size", "dim")])
def test_a_size_that_config_does_not_give(tmp_path, key, name):
    huggingface.saved(huggingface.olmo2(), tmp_path / "theirs")
    rewritten(tmp_path / "theirs", **{key: None})
    with pytest.raises(RuntimeFault, match=f"config.json gives no `{key}`, so {name} has no number"):
        import_checkpoint(SPECS / "olmo2.weft", tmp_path / "theirs", tmp_path / "ours")


def test_whole_numbers_are_no_weights(tmp_path):
    huggingface.saved(huggingface.olmo2(), tmp_path / "theirs")
    file = tmp_path / "theirs" / "model.safetensors"
    tensors = load_file(file)
    save_file({**tensors, "model.norm.weight": tensors["model.norm.weight"].long()}, file, {"format": "pt"})
    with pytest.raises(RuntimeFault, match=r"model\.norm\.weight is int64"):
        import_checkpoint(SPECS / "olmo2.weft", tmp_path / "theirs", tmp_path / "ours")
    # Norms in float32 beside bfloat16 are common: nothing is rounded.
    narrow = {name: tensor.bfloat16() for name, tensor in tensors.items() if name != "model.norm.weight"}
    save_file({**narrow, "model.norm.weight": tensors["model.norm.weight"]}, file, {"format": "pt"})
    import_checkpoint(SPECS / "olmo2.weft", tmp_path / "theirs", tmp_path / "ours")
    assert torch.equal(weft.load(tmp_path / "ours").state_dict()["norm.gain"], tensors["model.norm.weight"])


def test_import_replaces_nothing_of_others(tmp_path):
    huggingface.saved(huggingface.olmo2(), tmp_path / "theirs")
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "notes.txt").write_text("keep")
    with pytest.raises(RuntimeFault, match="is there and is no checkpoint"):
        import_checkpoint(SPECS / "olmo2.weft", tmp_path / "theirs", mine)
    assert (mine / "notes.txt").read_text() == "keep"
