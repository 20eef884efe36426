"""Documents with parts: what feeds which input, how examples are laid out, files of pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

import weft
from tests.picture_data import (
    BEGIN,
    CLOSE,
    END,
    OPEN,
    SMALL,
    SPECS,
    as_bytes,
    corpus_of,
    fault,
    grey,
    model_of,
    only_batch,
    picture,
    write_lines,
)  # fmt: skip
from weft.codegen.ops import OPS
from weft.dsl.check import check
from weft.dsl.source import Source
from weft.runtime.draws import Draws
from weft.runtime.examples import Item, Laid, Marks, Orders, Pair, Words, cut_runs, drawn, pair_of
from weft.runtime.feeds import Feeds, ItemFeed, bind
from weft.runtime.media import MediaFile, as_numbers, as_pixels, read_item
from weft.runtime.model import Model
from weft.runtime.part_loader import PartBatch
from weft.runtime.tokens import ByteTokens, find_marks, load_tokens

pytest.importorskip("PIL.Image", reason="pictures are an extra")


@pytest.fixture(scope="module")
def lmfusion() -> Model:
    model = weft.load(SPECS / "lmfusion.weft", size="tiny", overrides=SMALL)
    assert isinstance(model, Model)
    return model


# -- what feeds which input --------------------------------------------------------------------------------------------


def test_types_say_which_part_feeds_which_input(lmfusion: Model) -> None:
    feeds = bind(lmfusion.objective())
    assert (feeds.tags, feeds.members, feeds.order) == ("kind", ("text", "image"), ("kind", "ids", "latent", "cap"))
    (text,), (item,), (value,) = feeds.texts, feeds.items, feeds.values
    assert (text.input, text.kinds, text.vocab, feeds.plain) == ("ids", ("text",), 260, "text")
    # 8 x 8 cells, which the way down makes 4 x 4 rows.
    assert item == ItemFeed("latent", "image", (64, 1), 16, sides=(8, 8))
    assert (value.input, value.of, value.is_whole) == ("cap", None, True)


def test_an_objective_of_pictures_alone() -> None:
    unet = weft.load(SPECS / "unet.weft", size="tiny")
    assert isinstance(unet, Model)
    feeds = bind(unet.objective())
    assert (feeds.tags, feeds.plain, feeds.kinds) == (None, None, ("image",))
    assert feeds.items == (ItemFeed("latent", "image", (64, 4), 64, sides=(8, 8)),)
    assert bind(unet.objective(), {"latent": "drawing"}).kinds == ("drawing",)


OBJECTIVE = """
enum modality: text, image, sound

size s: dim = 8, vocab = 260, mel = 3

axis seq
axis word = seq where kind == text
axis place = seq where kind == image
axis frame = seq where kind == sound
axis either = seq where kind == image or kind == sound
axis picture
axis cell = grid(2, 2)

model m(kind: modality[seq], ids: id[word] in vocab) -> real[word, dim]:
    return embed(ids, vocab -> dim)

objective o({takes}):
    loss small = mean(m(kind, ids)^2, over=dim)
"""


@pytest.mark.parametrize(
    ("takes", "message"),
    [
        ("kind: modality[seq], ids: id[word] in vocab, x: real[picture, cell]", "no flatten(.., (picture, ..) -> ..)"),
        ("kind: modality[seq], ids: id[word] in vocab, x: real[seq, mel]", "no flatten(.., (seq, ..) -> ..)"),
        ("kind: modality[seq], ids: id[word] in vocab, x: real[either, mel]", "its rows are those of image or sound"),
        ("kind: modality[seq], ids: id[word] in vocab, x: flag[seq]", "takes x: flag[seq]"),
        ("kind: modality[seq], ids: id[word] in vocab, x: real[frame], y: real[frame]", "two inputs are fed by sound"),
    ],
)
def test_inputs_that_no_part_feeds(takes: str, message: str) -> None:
    model = model_of(OBJECTIVE.replace("{takes}", takes), size="s")
    assert message in fault(bind, model.objective())


def test_feeds_decide_where_types_do_not() -> None:
    takes = "kind: modality[seq], ids: id[word] in vocab, x: real[either, mel]"
    model = model_of(OBJECTIVE.replace("{takes}", takes), size="s")
    assert bind(model.objective(), {"x": "sound"}).items[0].kind == "sound"
    assert "has no input z (feeds)" in fault(bind, model.objective(), {"z": "sound"})


# -- rows --------------------------------------------------------------------------------------------------------------


def test_a_document_of_parts(lmfusion: Model, tmp_path: Path) -> None:
    for name, value in (("a", 255), ("b", 0)):
        picture(tmp_path / f"{name}.png", grey(value))
    parts = ["see ", {"image": "a.png"}, {"image": "b.png"}, {"text": "and"}]
    file = write_lines(tmp_path / "x.jsonl", {"parts": parts}, {"text": "words"}, {"image": "b.png"})
    batch = only_batch(corpus_of(lmfusion, file))
    (tags, rows), (ids, words), (latent, pictures), cap = batch.given
    around = [0] + [1] * 16 + [0]
    assert tags.tolist() == [0] * 5 + around * 2 + [0] * 4 + [0] * 7 + [0] + around + [0]
    first = [BEGIN, *as_bytes("see "), OPEN, CLOSE, OPEN, CLOSE, *as_bytes("and"), END]
    assert ids.tolist() == [*first, BEGIN, *as_bytes("words"), END, BEGIN, OPEN, CLOSE, END]
    assert rows.tolist() == [0, 45, 52, 72]
    assert words.tolist() == [0, 13, 20, 24]
    assert pictures.tolist() == [0, 2, 2, 3]
    assert latent.shape == (3, 64, 1)
    assert [row.unique().tolist() for row in latent] == [[1], [-1], [-1]]
    assert cap.tolist() == [51, 100, 100]  # of 100 steps; words follow the first example's pictures alone
    losses = lmfusion.loss("joint", *batch.given, example_ids=batch.example_ids)
    # No loss where a picture follows, nor on the last row of an example.
    assert losses["text"][1].item() == 10 + 6 + 2
    assert losses["image"][1].item() == 3


@pytest.mark.parametrize(("first", "dropped"), [(0.0, 0.0), (1.0, 0.0), (0.5, 1.0)])
def test_both_orders_of_a_caption(lmfusion: Model, tmp_path: Path, first: float, dropped: float) -> None:
    picture(tmp_path / "a.png", grey(7))
    file = write_lines(tmp_path / "x.jsonl", {"caption": "hi", "image": "a.png"})
    batch = only_batch(corpus_of(lmfusion, file, picture_first=first, drop_caption=dropped))
    (tags, _), (ids, _), _, cap = batch.given
    image = [0] + [1] * 16 + [0]
    if dropped:
        assert (tags.tolist(), ids.tolist(), cap.tolist()) == ([0, *image, 0], [BEGIN, OPEN, CLOSE, END], [100])
    elif first:
        assert (tags.tolist(), cap.tolist()) == ([0, *image, 0, 0, 0], [51])
        assert ids.tolist() == [BEGIN, OPEN, CLOSE, *as_bytes("hi"), END]
    else:
        assert (tags.tolist(), cap.tolist()) == ([0, 0, 0, *image, 0], [100])
        assert ids.tolist() == [BEGIN, *as_bytes("hi"), OPEN, CLOSE, END]


TIMES = """
axis picture
axis cell = grid(1, 1)

model times(latent: real[picture, cell], cap: int) -> int[picture]:
    return uniform_int(0, cap, per=picture)
"""


def test_orders_and_times_of_many_examples() -> None:
    """A hundred thousand draws: four in five captions first with times up to 999, the rest pictures first, up to 500.
    The draws of two epochs, and of an order and its time, say nothing of each other."""
    count, orders = 100_000, Orders(drop_caption=0.1, noise_steps=1000)
    pair = Pair(Words("text", np.array([5])), Item("image", 0, 1), Marks("text"), {})
    laid = [pair.laid(orders, 0, i) for i in range(count)]
    early = np.array([one.is_early("image") == (True,) for one in laid])
    has_caption = np.array([one.rows == 2 for one in laid])
    assert has_caption.mean() == pytest.approx(0.9, abs=0.003)
    assert early[has_caption].mean() == pytest.approx(0.2, abs=0.004)
    assert not early[~has_caption].any()

    model = model_of(TIMES)
    feeds = Feeds("o", None, (), (), (ItemFeed("latent", "image", (1,), 1),), bind(with_cap()).values, ("cap",))
    corpus: Any = type("corpus", (), {"feeds": feeds, "orders": orders})
    ids = torch.arange(count)
    batch = PartBatch(ids, torch.arange(count + 1), ids, ("",) * count, corpus=corpus, laid=tuple(laid), values=())
    caps = batch._values(feeds.values[0])
    offsets = torch.arange(count + 1, dtype=torch.int32)
    times = model((torch.zeros(count, 1), offsets), caps, draws=Draws(3, 1, ids)).values.numpy()
    assert times[early].max() == 500
    assert times[~early].max() == 999
    for chosen, cap in ((early, 501), (~early, 1000)):
        assert times[chosen].min() == 0
        shares = np.histogram(times[chosen], bins=10, range=(0, cap))[0] / chosen.sum()
        assert shares == pytest.approx(0.1, abs=4 * (0.09 / chosen.sum()) ** 0.5 + 0.001)
    again = np.array([drawn(0, 1, i, 1)[0] for i in range(10_000)])
    before = np.array([drawn(0, 0, i, 1)[0] for i in range(10_000)])
    assert abs(np.corrcoef(before, again)[0, 1]) < 0.04


def with_cap() -> Any:
    text = TIMES + "\nobjective o(latent: real[picture, cell], cap: int):\n    loss t = real(times(latent, cap))\n"
    return model_of(text).objective()


def test_a_cap_for_each_picture(lmfusion: Model) -> None:
    orders = Orders(noise_steps=10)
    runs = (Item("image", 0, 1), Words("text", np.array([1])), Item("image", 1, 1), Words("text", np.array([2]), True))
    assert Laid(runs).is_early("image") == (True, False)
    text = (SPECS / "lmfusion.weft").read_text().replace("cap: int)", "cap: int[picture])")
    feeds = bind(check(Source(str(SPECS / "lmfusion.weft"), text), OPS, size="tiny").value().objectives["joint"])
    assert feeds.values[0].of == "image"
    corpus: Any = type("corpus", (), {"feeds": feeds, "orders": orders})
    ids = torch.zeros(1, dtype=torch.int64)
    batch = PartBatch(ids, ids, ids, ("",), corpus=corpus, laid=(Laid(runs),), values=({},))
    caps, offsets = batch._caps(feeds.values[0])
    assert (caps.tolist(), offsets.tolist()) == ([6, 10], [0, 2])


def test_long_documents_are_cut_between_parts() -> None:
    marks = Marks("text", (1,), (2,), {"image": (3, 4)})
    words, item = Words("text", np.arange(10, 17)), Item("image", 0, 4)
    windows = list(cut_runs((words, item, words, item), marks, 10))
    shown = [[run.ids.tolist() if isinstance(run, Words) else "image" for run in window] for window in windows]
    assert shown == [
        [[1], [10, 11, 12, 13, 14, 15, 16]],
        [[3], "image", [4], [10, 11, 12, 13]],
        [[14, 15, 16], [3], "image", [4], [2]],
    ]
    assert all(Laid(window).rows <= 10 for window in windows)
    # A picture that is longer is alone; a caption beside one is cut to what fits.
    assert [len(window) for window in cut_runs((words, item), marks, 5)] == [2, 1, 3, 1]
    pair = pair_of(words, item, marks, {}, 11)
    assert pair.caption.ids.tolist() == [10, 11, 12]
    assert pair.laid(Orders(drop_caption=0), 0, 0).rows == 11


# -- files -------------------------------------------------------------------------------------------------------------


def test_pictures_are_cut_to_their_middle(tmp_path: Path) -> None:
    wide = np.zeros((8, 12), np.uint8)
    wide[:, 2:10] = np.arange(64).reshape(8, 8) * 4
    file = MediaFile(picture(tmp_path / "wide.png", wide))
    feed = ItemFeed("latent", "image", (64, 1), 16, sides=(8, 8))
    pixels = read_item(file, feed)
    assert pixels[:, 0].tolist() == wide[:, 2:10].flatten().tolist()
    numbers = as_numbers(pixels)
    assert numbers.dtype == np.float32
    np.testing.assert_allclose(numbers[:, 0], wide[:, 2:10].flatten() / 127.5 - 1, atol=1e-6)
    assert (as_numbers(np.array([0, 255], np.uint8)) == [-1, 1]).all()
    assert (as_pixels(numbers) == pixels).all()
    # The same in colours, twice as large: each cell the mean of four.
    large = np.kron(np.stack([wide] * 3, -1), np.ones((2, 2, 1), np.uint8))
    colours = ItemFeed("latent", "image", (64, 3), 16, sides=(8, 8))
    found = read_item(MediaFile(picture(tmp_path / "large.png", large)), colours)
    assert found.shape == (64, 3)
    assert (found[:, 0] == found[:, 2]).all()
    # A side of 16 bits is not cut off at 255.
    deep = np.full((8, 8), 32768, np.uint16)
    assert read_item(MediaFile(picture(tmp_path / "deep.png", deep)), feed)[0, 0] == 127


def test_latents_from_arrays(tmp_path: Path) -> None:
    latent = np.random.default_rng(0).normal(size=(2, 2, 3)).astype(np.float32)
    feed = ItemFeed("latent", "image", (4, 3), 1, sides=(2, 2))
    np.save(tmp_path / "grid.npy", latent)
    np.save(tmp_path / "cells.npy", latent.reshape(4, 3).astype(np.float16))
    save_file({"x": latent.reshape(4, 3)}, tmp_path / "one.safetensors")
    save_file({"latents": np.stack([0 * latent, latent]).reshape(2, 4, 3)}, tmp_path / "many.safetensors")
    expected = latent.reshape(4, 3)
    for file in (MediaFile(tmp_path / "grid.npy"), MediaFile(tmp_path / "one.safetensors")):
        assert (as_numbers(read_item(file, feed)) == expected).all()
    assert (as_numbers(read_item(MediaFile(tmp_path / "many.safetensors", 1), feed)) == expected).all()
    np.testing.assert_allclose(as_numbers(read_item(MediaFile(tmp_path / "cells.npy"), feed)), expected, atol=2e-3)
    message = fault(read_item, MediaFile(tmp_path / "many.safetensors", 2), feed)
    assert message.endswith("many.safetensors has 2 items, and none of number 2")


def test_a_file_of_latents_by_itself(tmp_path: Path) -> None:
    unet = weft.load(SPECS / "unet.weft", size="tiny", overrides={"channels": 2})
    assert isinstance(unet, Model)
    latents = np.random.default_rng(0).normal(size=(5, 64, 2)).astype(np.float32)
    save_file({"latents": latents}, tmp_path / "many.safetensors")
    batch = only_batch(corpus_of(unet, tmp_path / "many.safetensors"))
    ((found, offsets),) = batch.given
    assert (found.numpy() == latents).all()
    assert offsets.tolist() == [0, 1, 2, 3, 4, 5]
    assert batch.rows == 5 * 64


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"caption": "x", "image": "c.png"}', ":2: there is no file c.png (did you mean cut.png?)"),
        ('{"caption": "x", "image": "broken.png"}', "broken.png is not a readable picture: cannot identify image file"),
        ('{"caption": "x", "image": "cut.png"}', "cut.png is not a readable picture"),
        ('{"image": "wrong.npy"}', "wrong.npy has shape [3, 2]: [64, 1] or [8, 8, 1] was wanted for latent"),
        ('{"image": "nan.npy"}', "nan.npy holds numbers that are not finite"),
        ('{"image": "text.npy"}', "text.npy is not a readable .npy file"),
        ('{"image": 3}', ":2: 'image' must name a file, not a number"),
        ('{"parts": ["x", {"imagee": "a.png"}]}', ":2: part 2 is of the kind 'imagee', which no input of joint reads"),
        ('{"parts": ["x", 7]}', ":2: part 2 is a number: text, or an object with one kind, was wanted"),
        ('{"parts": [{"image": "a.png", "text": "x"}]}', ":2: part 1 is an object of 2 fields"),
        ('{"parts": "x"}', ":2: 'parts' must be a list, not text"),
        ('{"caption": "x"}', ":2: a 'caption' goes with one of 'image', not with it alone"),
        ('{"caption": 3, "image": "a.png"}', ":2: the field 'text' must be text, not a number"),
        ('{"title": "x"}', ":2: 'parts', 'caption' and 'image' or 'text' was wanted, not 'title'"),
        ('{"caption": "x"', ":2: not JSON"),
        ("[1]", ":2: a JSON object with parts or a caption was wanted, not a list"),
    ],
)
def test_mistakes_in_data_name_file_and_line(lmfusion: Model, tmp_path: Path, line: str, message: str) -> None:
    picture(tmp_path / "a.png", np.random.default_rng(0).integers(0, 255, (64, 64)).astype(np.uint8))
    (tmp_path / "broken.png").write_bytes(b"no picture")
    (tmp_path / "cut.png").write_bytes((tmp_path / "a.png").read_bytes()[:500])
    (tmp_path / "text.npy").write_bytes(b"no array")
    np.save(tmp_path / "wrong.npy", np.zeros((3, 2)))
    np.save(tmp_path / "nan.npy", np.full((64, 1), np.nan))
    file = tmp_path / "x.jsonl"
    file.write_text('{"caption": "fine", "image": "a.png"}\n' + line + "\n")
    found = fault(corpus_of, lmfusion, file)
    assert found.startswith(f"{file}:2: ")
    assert message in found


def test_marks_around_parts(lmfusion: Model, tmp_path: Path) -> None:
    assert find_marks(ByteTokens(262), "sound", 1, None) == (260, 261)
    assert find_marks(ByteTokens(260), "image", 0, []) == ()
    assert find_marks(ByteTokens(260), "image", 0, [5, 6]) == (5, 6)
    assert "has no marks around parts of the kind sound" in fault(find_marks, ByteTokens(260), "sound", 1, None)
    assert "two tokens were wanted" in fault(find_marks, ByteTokens(260), "image", 0, [1])
    assert "bytes has no token 'x'" in fault(find_marks, ByteTokens(260), "image", 0, ["x", "y"])
    picture(tmp_path / "a.png", grey(0))
    file = write_lines(tmp_path / "x.jsonl", {"image": "a.png"})
    batch = only_batch(corpus_of(lmfusion, file, part_marks={"image": []}))
    assert batch.given[1][0].tolist() == [BEGIN, END]
    assert "no parts of the kind sound" in fault(corpus_of, lmfusion, file, part_marks={"sound": [1, 2]})


def test_marks_of_a_tokenizer_file(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers", reason="tokenizer files are an extra")
    names = ["<s>", "</s>", "<|image_start|>", "<|image_end|>", "<|spare|>", "a"]
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({name: i for i, name in enumerate(names)}, "a"))
    made.save(str(tmp_path / "t.json"))
    tokens = load_tokens(str(tmp_path / "t.json"), 10)
    assert find_marks(tokens, "image", 0, None) == (2, 3)
    assert find_marks(tokens, "sound", 1, ["<|spare|>", 9]) == (4, 9)
    assert "t.json has no marks around parts of the kind sound" in fault(find_marks, tokens, "sound", 1, None)
