"""Documents with parts: what feeds which input, how examples are laid out, files of pictures, and training on them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

import weft
from weft.cli import main
from weft.codegen.ops import OPS
from weft.dsl.check import check
from weft.dsl.source import Source
from weft.runtime.checkpoint import read_weights
from weft.runtime.draws import Draws
from weft.runtime.errors import RuntimeFault
from weft.runtime.examples import Item, Laid, Marks, Orders, Pair, Words, cut_runs, drawn, pair_of
from weft.runtime.feeds import Feeds, ItemFeed, bind
from weft.runtime.loader import BatchPlan, held_out_batches
from weft.runtime.media import MediaFile, as_numbers, as_pixels, read_item
from weft.runtime.model import Model
from weft.runtime.part_corpus import PartCorpus
from weft.runtime.part_loader import PartBatch, PartLoader, pack_parts
from weft.runtime.run_config import make_config
from weft.runtime.run_folder import latest_checkpoint
from weft.runtime.tokens import ByteTokens, find_marks, load_tokens
from weft.runtime.train import train
from weft.runtime.training_data import load_data

Image = pytest.importorskip("PIL.Image", reason="pictures are an extra")

SPECS = Path(__file__).parent.parent / "specs"
BEGIN, OPEN, CLOSE, END = 257, 258, 259, 256
SMALL = {"layers": 1, "channels": 1}


def model_of(text: str, **settings: Any) -> Model:
    return Model(check(Source("parts.weft", text), OPS, **settings).value())


@pytest.fixture(scope="module")
def lmfusion() -> Model:
    model = weft.load(SPECS / "lmfusion.weft", size="tiny", overrides=SMALL)
    assert isinstance(model, Model)
    return model


def write_lines(file: Path, *records: Any) -> Path:
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return file


def picture(file: Path, pixels: np.ndarray) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file)
    return file


def grey(value: int, side: int = 8) -> np.ndarray:
    return np.full((side, side), value, np.uint8)


def corpus_of(model: Model, file: Path, **settings: Any) -> PartCorpus:
    given = {"spec": "unread", "data": [str(file)], "eval_fraction": 0.0} | settings
    corpus = load_data(make_config(given), model, model.objective())
    assert isinstance(corpus, PartCorpus)
    return corpus


def only_batch(corpus: PartCorpus) -> PartBatch:
    batch = PartLoader(corpus, BatchPlan(None, len(corpus.train), 0, shuffle=False)).next_batch()
    assert isinstance(batch, PartBatch)
    return batch


def fault(function: Any, *args: Any, **settings: Any) -> str:
    with pytest.raises(RuntimeFault) as caught:
        function(*args, **settings)
    text = str(caught.value)
    assert "\n" not in text
    return text


def as_bytes(text: str) -> list[int]:
    return list(text.encode())


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


# -- batches -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def captions(tmp_path: Path) -> Path:
    rng = np.random.default_rng(1)
    for number in range(30):
        picture(tmp_path / "pictures" / f"{number}.png", rng.integers(0, 255, (8, 8)).astype(np.uint8))
    records = [{"caption": "x" * (1 + i % 7), "image": f"pictures/{i}.png"} for i in range(30)]
    return write_lines(tmp_path / "x.jsonl", *records)


def by_example(batch: Any) -> dict[str, tuple[Any, ...]]:
    """What each example is given, by its label."""
    shown = {}
    for one in batch.split(10_000):
        if one.examples:
            (tags, _), (ids, _), (latent, _), cap = one.given
            shown[one.labels[0]] = (tags.tolist(), ids.tolist(), latent.tolist(), cap.tolist())
    return shown


def test_an_example_is_the_same_whatever_it_is_packed_with(lmfusion: Model, captions: Path) -> None:
    corpus = corpus_of(lmfusion, captions, max_length=64)
    few, many = PartLoader(corpus, BatchPlan(60, None, 0)), PartLoader(corpus, BatchPlan(None, 30, 0))
    whole = by_example(many.next_batch())
    assert len(whole) == 30
    seen: dict[str, Any] = {}
    while few.epoch == 0:
        batch = few.next_batch()
        assert batch.examples == 1 or batch.rows <= 60
        seen |= by_example(batch)
    assert {label: seen[label] for label in whole if label in seen} | whole == whole
    assert by_example(many.next_batch()) != whole  # the next epoch draws anew


def test_parts_of_a_batch_have_the_losses_of_the_whole(captions: Path) -> None:
    """The shares of ranks and micro-batches: sums and counts add up, draws included."""
    model: Any = weft.load(SPECS / "lmfusion.weft", size="tiny", overrides=SMALL, dtype=torch.float64)
    batch = PartLoader(corpus_of(model, captions), BatchPlan(None, 7, 0)).next_batch()
    whole = model.loss("joint", *batch.given, example_ids=batch.example_ids, seed=4, step=2)
    parts = [part for part in batch.split(3) if part.examples]
    assert len(parts) == 3
    found = [model.loss("joint", *part.given, example_ids=part.example_ids, seed=4, step=2) for part in parts]
    for name, (total, count) in whole.items():
        torch.testing.assert_close(sum(one[name][0] for one in found), total, rtol=1e-10, atol=1e-10)
        assert sum(one[name][1] for one in found) == count


def test_the_loader_goes_on_where_it_was(lmfusion: Model, captions: Path) -> None:
    corpus, plan = corpus_of(lmfusion, captions), BatchPlan(200, None, 5)
    loader = PartLoader(corpus, plan)
    for _ in range(4):
        loader.next_batch()
    state = json.loads(json.dumps(loader.state_dict()))
    again = PartLoader(corpus_of(lmfusion, captions), plan)
    again.load_state_dict(state)
    for _ in range(5):
        assert by_example(again.next_batch()) == by_example(loader.next_batch())
    picture(captions.parent / "pictures" / "3.png", grey(9))
    message = fault(PartLoader(corpus_of(lmfusion, captions), plan).load_state_dict, state)
    assert "pictures/3.png has changed" in message


def test_held_out_examples_are_always_the_same(lmfusion: Model, captions: Path) -> None:
    corpus = corpus_of(lmfusion, captions, eval_fraction=0.3)
    assert len(corpus.train) + len(corpus.held_out) == 30
    plan = BatchPlan(100, None, 0)
    first, again = (held_out_batches(corpus, plan, None, pack_parts) for _ in range(2))
    assert sum(batch.examples for batch in first) == len(corpus.held_out) > 3
    assert [by_example(one) for one in first] == [by_example(one) for one in again]
    assert all(batch.examples == 1 or batch.rows <= 100 for batch in first)


def test_items_beyond_what_is_kept_are_read_again(
    lmfusion: Model, captions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = by_example(only_batch(corpus_of(lmfusion, captions)))
    monkeypatch.setattr("weft.runtime.part_corpus.MOST_BYTES_KEPT", 100)
    corpus = corpus_of(lmfusion, captions)
    assert by_example(only_batch(corpus)) == kept
    os.remove(captions.parent / "pictures" / "5.png")
    with pytest.raises(RuntimeFault, match=r"pictures/5\.png cannot be read: No such file"):
        by_example(only_batch(corpus))


# -- training ----------------------------------------------------------------------------------------------------------


def settings(tmp_path: Path, data: Path, out: str, **more: Any) -> dict[str, Any]:
    return {
        "spec": str(SPECS / "lmfusion.weft"), "size": "tiny", "overrides": SMALL, "data": [str(data)], "steps": 4,
        "tokens_per_step": 150, "max_length": 64, "lr": 1e-3, "out": str(tmp_path / out), "tensorboard": "off",
        "eval_every": 2, "save_every": 2,
    } | more  # fmt: skip


def weights_of(out: str) -> dict[str, torch.Tensor]:
    return dict(read_weights(latest_checkpoint(Path(out))))


def test_a_stopped_run_goes_on_with_the_same_bits(tmp_path: Path, captions: Path) -> None:
    whole = settings(tmp_path, captions, "whole")
    assert train(make_config(whole)).reason == "finished"
    cut = settings(tmp_path, captions, "cut")
    assert train(make_config(cut | {"stop_after": 2})).reason == "stop_after"
    train(make_config(cut | {"resume": True}))
    expected, found = weights_of(whole["out"]), weights_of(cut["out"])
    assert all(torch.equal(found[path], weight) for path, weight in expected.items())
    logs = [(Path(run["out"]) / "metrics.jsonl").read_bytes() for run in (whole, cut)]
    assert logs[0] == logs[1]
    record = json.loads(logs[0].splitlines()[0])
    assert set(record["losses"]) == {"text", "image"}


def test_text_stays_as_it_was(tmp_path: Path, captions: Path) -> None:
    """Every weight of the text tower, and the logits of texts, bit for bit; the pictures' tower has moved."""
    run = settings(tmp_path, captions, "run", overrides={**SMALL, "picture_weight": 1})
    before: Any = weft.load(run["spec"], size="tiny", overrides=run["overrides"])
    train(make_config(run))
    after: Any = weft.load(Path(run["out"]))
    moved = {path for path, weight in after.by_path() if not torch.equal(weight, dict(before.by_path())[path])}
    frozen = {path for path, weight in before.weights.items() if weight.frozen}
    assert frozen
    assert not moved & frozen
    assert {path for path in before.weights if ".image." in path} <= moved
    text = [torch.tensor(as_bytes(words)) for words in ("some words", "x")]
    kinds = [torch.zeros(len(ids), dtype=torch.int64) for ids in text]
    nothing = [torch.zeros(0, 64, 1)] * 2, [torch.zeros(0, dtype=torch.int64)] * 2
    with torch.no_grad():
        logits = [model(kinds, text, *nothing)["logits"] for model in (before, after)]
    assert all(torch.equal(one, other) for one, other in zip(*logits, strict=True))


def test_pictures_alone(tmp_path: Path) -> None:
    """A folder of files, each an example; other files in it are nothing to do with it."""
    for number in range(6):
        picture(tmp_path / "data" / f"{number}.png", grey(40 * number, 9))
    (tmp_path / "data" / "README").write_text("six pictures")
    run = settings(tmp_path, tmp_path / "data", "run", spec=str(SPECS / "unet.weft"), eval_fraction=0.2)
    run |= {"overrides": {"channels": 1, "base": 16, "blocks": 1}, "tokens_per_step": 128, "steps": 2}
    result = train(make_config(run))
    assert (result.tokens, set(result.losses)) == (256, {"noise"})


def test_a_mistake_in_the_data_ends_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_lines(tmp_path / "x.jsonl", {"caption": "x", "image": "a.png"})
    command = ["train", str(SPECS / "lmfusion.weft"), "--size", "tiny", "--data", str(file)]
    with pytest.raises(SystemExit) as ended:
        main([*command, "--out", str(tmp_path / "run")])
    assert ended.value.code == 1
    assert capsys.readouterr().err.splitlines()[-1].endswith(f"{file}:1: there is no file a.png")


# -- more kinds of parts -----------------------------------------------------------------------------------------------

SOUNDS = """
enum modality: text, image, sound

size s: dim = 16, vocab = 262, heads = 2, mel = 3, classes = 4, channels = 1

axis seq
axis head_dim = dim / heads
axis word = seq where kind == text
axis place = seq where kind == image
axis frame = seq where kind == sound
axis picture
axis cell = grid(2, 2)

model m(
    kind: modality[seq],
    ids: id[word] in vocab,
    latent: real[picture, cell, channels],
    sound: real[frame, mel],
    label: id in classes,
):
    words = embed(ids, vocab -> dim)
    places = flatten(linear(latent, channels -> dim), (picture, cell) -> place)
    frames = linear(sound, mel -> dim)
    x = join((words, places, frames), (word, place, frame) -> seq) + embed(label, classes -> dim)
    routed by kind:
        q = linear(x, dim -> (heads, head_dim))
    x = x + linear(
        attend(q, q, q, over=head_dim, along=seq, mask=causal or same(picture)),
        (heads, head_dim) -> dim,
    ) as out
    return linear(take(x, seq -> word), dim -> vocab) as head

objective o(
    kind: modality[seq],
    ids: id[word] in vocab,
    latent: real[picture, cell, channels],
    sound: real[frame, mel],
    label: id in classes,
):
    loss text = cross_entropy(m(kind, ids, latent, sound, label), take(next(ids, along=seq), seq -> word))
"""


def test_three_kinds_and_a_label(tmp_path: Path) -> None:
    """Rows of any number for each sound; a value of the example from its record; marks for each kind."""
    (tmp_path / "sounds.weft").write_text(SOUNDS)
    picture(tmp_path / "a.png", grey(255, 2))
    np.save(tmp_path / "b.npy", np.arange(9.0).reshape(3, 3))
    parts = ["hear ", {"sound": "b.npy"}, {"image": "a.png"}, "ok"]
    file = write_lines(
        tmp_path / "x.jsonl", {"parts": parts, "label": 3}, {"caption": "c", "sound": "b.npy", "label": 0}
    )
    model: Any = weft.load(tmp_path / "sounds.weft", size="s")
    batch = only_batch(corpus_of(model, file, drop_caption=0.0, picture_first=0.0))
    (tags, _), (ids, _), (latent, _), (sound, frames), label = batch.given
    assert tags.tolist() == [0] * 7 + [2] * 3 + [0, 0] + [1] * 4 + [0] * 4 + [0] * 3 + [2] * 3 + [0, 0]
    assert ids.tolist()[6:8] == [260, 261]
    assert (label.tolist(), frames.tolist(), latent.flatten().tolist()) == ([3, 0], [0, 3, 6], [1.0] * 4)
    assert sound.flatten().tolist() == [*range(9), *range(9)]
    run = settings(tmp_path, file, "run", spec=str(tmp_path / "sounds.weft"), size="s", overrides={}, eval_fraction=0.0)
    assert train(make_config(run | {"max_length": 32})).reason == "finished"


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ({}, ":1: no field 'label', which an input of that name is given"),
        ({"label": 4}, ":1: the field 'label' is 4, not in 0 .. 3"),
        ({"label": "x"}, ":1: the field 'label' is text, not a whole number"),
        ({"label": 1.5}, ":1: the field 'label' is a number, not a whole number"),
    ],
)
def test_mistakes_in_values(tmp_path: Path, label: dict[str, Any], message: str) -> None:
    file = write_lines(tmp_path / "x.jsonl", {"text": "x", **label})
    assert fault(corpus_of, model_of(SOUNDS, size="s"), file) == f"{file}{message}"


@pytest.mark.parametrize("where", ["kind == text and kind == code", "kind == text or other == code", "kind"])
def test_rows_are_selected_by_members_of_one_tag(where: str) -> None:
    text = f"enum modality: text, code\naxis seq\naxis word = seq where {where}\n"
    text += "model m(kind: modality[seq], x: real[word]) -> real[word]:\n    return x\n"
    assert [error.code for error in check(Source("m.weft", text), OPS).problems.errors] == ["E253"]


def test_a_modality_more_is_three_lines_of_the_spec(tmp_path: Path, captions: Path) -> None:
    """LMFusion with a tower for code, beside words: what tags there are, which rows are words, what stays as it was."""
    text = (SPECS / "lmfusion.weft").read_text()
    for line, other in (
        ("enum modality: text, image", "enum modality: text, code, image"),
        ("axis word = seq where kind == text", "axis word = seq where kind == text or kind == code"),
        ("init **.image.** = copy(**.text.**)", "init **.code.** = copy(**.text.**)"),
    ):
        assert text.count(line) == 1
        text = text.replace(line, other)
    (tmp_path / "coded.weft").write_text(text)
    file = tmp_path / "y.jsonl"
    lines = [json.loads(line) for line in captions.read_text().splitlines()]
    made = [{"parts": [one["caption"], {"code": "x = 1"}, {"image": one["image"]}]} for one in lines]
    write_lines(file, *made)
    run = settings(tmp_path, file, "run", spec=str(tmp_path / "coded.weft"))
    before: Any = weft.load(run["spec"], size="tiny", overrides=SMALL)
    assert train(make_config(run)).reason == "finished"
    after: Any = weft.load(Path(run["out"]))
    code = [path for path, _ in after.by_path() if ".code." in path and path.startswith("layer")]
    start = dict(before.by_path())
    assert code
    assert all(not torch.equal(weight, start[path]) for path, weight in after.by_path() if path in code)
