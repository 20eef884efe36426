"""A short, seeded run of bench/front_end_fuzz.py: any text gives a result or diagnostics, soon, never an exception."""

from __future__ import annotations

import importlib.util
import signal
import threading
from pathlib import Path
from types import ModuleType

import pytest

from tests.diagnostics import checked, rendered

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def fuzz() -> ModuleType:
    path = ROOT / "bench" / "front_end_fuzz.py"
    spec = importlib.util.spec_from_file_location("front_end_fuzz", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules["front_end_fuzz"] = module  # its dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("seed", range(4))
def test_any_text(seed: int, fuzz: ModuleType) -> None:
    for failure in fuzz.failures(seed, count=900):
        pytest.fail(f"{failure.why}\n{failure.text}")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n\n\n",
        "#",
        '"""',
        "size",
        "model",
        "size tiny: " + ", ".join(f"s{i} = {i}" for i in range(5_000)),
        "option o: list = (" + "1, " * 20_000 + ")",
        "option o: list = (1, 2) * 1000000000\nsize d = o[0]\nmodel m(x: real[d]) -> real[d]:\n    return x",
        "size d = 9^9^9^9",
        "size d = " + "-" * 5_000 + "1",
        "size d = " + "1 + " * 5_000 + "1",
        "size d = 2\nmodel m(x: real[d]) -> real[d]:\n    return " + "(" * 5_000 + "x" + ")" * 5_000,
        "size d = 2\nmodel m(x: real[d]) -> real[d]:\n    return " + "-" * 90 + "x",
        "size d = 2\nmodel m(x: real[d]) -> real[d]:\n    return x" + " |> silu" * 3_000,
        "size d = 2\nmodel m(x: real[d]) -> real[d]:\n    return " + "x + " * 3_000 + "x",
        "size d = 2\nmodel m(x: real[d]) -> real[d]:\n" + "    x = x\n" * 10_000 + "    return x",
        "size d = 2\nmodel m(x: real[d]) -> real[d]:\n    for i in 0 .. 10^15:\n        y = i\n    return x",
        "size d = 2\nmodel m(x: real[d]) -> real[d]:\n    for i in 0 .. 20_000:\n        y = unknown\n    return x",
        "axis a[i] = a[i + 1] * 2\nmodel m(x: real[a[0]]) -> real[a[0]]:\n    return x",
        "axis a[i] = a[i - 1] * 2\nmodel m(x: real[a[0]]) -> real[a[0]]:\n    return x",
        "shared t: real[t]\nmodel m(x: real) -> real:\n    return x * t",
        "shared t: t()\nmodel m(x: real) -> real:\n    return t(x)",
        "mask m = m\naxis s\nsize d = 2\nmodel n(x: real[s, d]) -> real[d]:\n    return attend(x, x, x, d, s, mask=m)",
        "option o: real = o\nsize s = s\nmodel m(x: real) -> real:\n    return x * o * s",
        "\n".join(f"use f{i}" for i in range(500)),
        "\n".join(f"enum e{i}: a{i}, b{i}" for i in range(3_000)),
    ],
    ids=range(27),
)
def test_hostile(text: str, fuzz: ModuleType) -> None:
    failure = fuzz.failure_of(text)
    assert failure is None, failure.why


CALL = """    drawn = normal(like=latent)
    found = unet(noised(latent, drawn, cosine_left(time, steps)), time)
"""
OBJECTIVE = """objective next_token(tokens: id[seq] in vocab):
    loss cross_entropy = cross_entropy(llama(tokens), next(tokens))
"""


def inputs(count: int) -> str:
    return ", ".join(f"t{number}: id[seq] in vocab" for number in range(count))


def objective(count: int) -> str:
    """Of one prediction and so many targets."""
    losses = "".join(f"    loss of_{number} = cross_entropy(y, next(t{number}))\n" for number in range(count))
    return f"objective many(tokens: id[seq] in vocab, {inputs(count)}):\n    y = llama(tokens)\n{losses}"


# Found by long runs, cut down, and by hand.
FOUND = {
    "an axis of a broken size, read by an `if` on that size": """
size tiny: dim = 4, ffn
axis seq
axis again = dim

model m(x: real[seq, dim]) -> real[seq, dim]:
    if dim > 3:
        y = rename(x, dim -> again)
    return x
""",
    "thousands of turns under nine presets, and two mistakes": (ROOT / "specs" / "memory_layers.weft")
    .read_text("utf-8")
    .replace("for layer in 0 .. layers:", "for layer in 0 .. half:")
    .replace(
        "22, dim = 2048, heads = 16, ffn = 5632, half = 8192", "22,headsdim = 2048, heads = 16, ffn = 5632, half = 8192"
    ),
    "copies of weights that are not there, in every layer": (ROOT / "specs" / "lmfusion.weft")
    .read_text("utf-8")
    .replace("ffn_apart, feed) as feed", "ffn_apart, feed) as image"),
    "a hundred and twenty-eight routed layers under the first preset": (ROOT / "specs" / "lmfusion.weft")
    .read_text("utf-8")
    .replace("layers = 4, ", "layers = 128, ", 1),
    "a model called sixty times": (ROOT / "specs" / "unet.weft").read_text("utf-8").replace(CALL, 60 * CALL),
    "two hundred targets of a prediction": (ROOT / "specs" / "llama.weft")
    .read_text("utf-8")
    .replace(OBJECTIVE, objective(200)),
    "two hundred inputs of a model, each a target": (ROOT / "specs" / "llama.weft")
    .read_text("utf-8")
    .replace("tokens: id[seq] in vocab) -> ", f"tokens: id[seq] in vocab, {inputs(200)}) -> ")
    .replace(
        " as embed\n",
        " as embed\n" + "".join(f"    x = x + embed(t{n}, vocab -> dim) as more_{n}\n" for n in range(200)),
    )
    .replace(
        OBJECTIVE, objective(200).replace("llama(tokens", "llama(tokens, " + ", ".join(f"t{n}" for n in range(200)))
    ),
    "an objective declared two hundred times": (ROOT / "specs" / "llama.weft").read_text("utf-8")
    + 200
    * "\nobjective next_token(tokens: id[seq] in vocab):\n    loss text = cross_entropy(llama(tokens), next(tokens))\n",
}


@pytest.mark.parametrize("text", FOUND.values(), ids=FOUND.keys())
def test_found(text: str, fuzz: ModuleType) -> None:
    failure = fuzz.failure_of(text)
    assert failure is None, failure.why


def test_a_text_that_hangs_is_stopped(fuzz: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also inside code that goes on after any exception."""

    def endless(*given: object) -> None:
        while True:
            try:
                sum(range(1000))
            except Exception:  # noqa: BLE001, S112 - what must not get in the timer's way
                continue

    monkeypatch.setattr(fuzz, "check_all", endless)
    failure = fuzz.attempt("size dim = 4", limit=0.2)
    assert failure is not None
    assert failure.why.startswith("stopped after")
    assert "in endless" in failure.why
    assert signal.getitimer(signal.ITIMER_PROF) == (0.0, 0.0)


def test_threads() -> None:
    """Several checks at once give what one at a time gives."""
    names = ("many", "mistake_in_a_generic_block", "broken_items_and_others", "not_built_yet")
    texts = [(ROOT / "tests" / "bad_specs" / f"{name}.weft").read_text("utf-8") for name in names]
    texts.append((ROOT / "specs" / "olmo2.weft").read_text("utf-8"))
    expected = [rendered(checked(text).problems.errors) for text in texts]
    found: dict[int, list[str]] = {}

    def run(number: int) -> None:
        found[number] = [rendered(checked(text).problems.errors) for text in texts]

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[number] for number in range(4)] == [expected] * 4
