"""Documents, tokens, windows, the held-out split, and the resumable loader."""

import gzip
import json
import random

import numpy as np
import pytest
import torch

from weft.runtime.data import Corpus, DataOptions, load_corpus
from weft.runtime.documents import find_files, read_documents
from weft.runtime.errors import RuntimeFault
from weft.runtime.loader import BatchPlan, TokenLoader, held_out_batches
from weft.runtime.tokens import BYTE_BEGIN, BYTE_END, ByteTokens, bytes_of, load_tokens, marks_begin


@pytest.fixture
def folder(tmp_path):
    """40 documents of unequal lengths in a folder, one of them empty."""
    rng = random.Random(0)
    root = tmp_path / "books"
    (root / "deep").mkdir(parents=True)
    for number in range(40):
        place = root / "deep" if number % 3 else root
        text = "".join(rng.choice("abcdefgh \n") for _ in range(rng.randrange(1, 90)))
        (place / f"{number:02}.txt").write_text(text)
    (root / "empty.txt").write_text("")
    (root / ".hidden.txt").write_text("never read")
    return root


def corpus_of(*sources, vocab=260, tokenizer="bytes", **options) -> Corpus:
    chosen = {"max_length": 16, "eval_fraction": 0.2} | options
    return load_corpus(DataOptions(tuple(map(str, sources)), **chosen), load_tokens(tokenizer, vocab), vocab)


def fault(function, *args, **kwargs) -> str:
    with pytest.raises(RuntimeFault) as caught:
        function(*args, **kwargs)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_marks_in_front_of_the_bytes():
    tokens = load_tokens("bytes4", 260)
    assert (tokens.begin, tokens.end) == (1, 2)
    assert tokens.encode("a\x00é") == [101, 4, 199, 173]
    assert tokens.decode([1, 101, 199, 173, 2, 3, 0]) == "aé"
    assert (bytes_of(tokens, 101), bytes_of(tokens, 3)) == (b"a", None)
    assert (bytes_of(ByteTokens(260), 97), bytes_of(ByteTokens(260), 256)) == (b"a", None)
    assert tokens.digest != ByteTokens(260).digest
    assert "the tokenizer bytes4 has 260 ids" in fault(load_tokens, "bytes4", 259)
    assert "byte vocabularies have their own" in fault(load_tokens, "bytes4", 260, "x")
    assert [marks_begin("bytes4", None), marks_begin("bytes", None)] == [True, False]
    assert [marks_begin("bytes4", {}), marks_begin("bytes", {"begin_mark": True})] == [False, True]


# --- documents -----------------------------------------------------------------------------------------------------


def test_folder_order_and_names(folder):
    names = [document.name for document in read_documents([str(folder)])]
    assert names == sorted(names)
    assert names[0] == "books/00.txt"
    assert "books/deep/01.txt" in names
    assert not any("hidden" in name for name in names)


def test_names_do_not_hold_the_place(folder, tmp_path):
    moved = tmp_path / "elsewhere" / "books"
    moved.parent.mkdir()
    before = [document.name for document in read_documents([str(folder)])]
    folder.rename(moved)
    assert [document.name for document in read_documents([str(moved)])] == before


def test_globs_and_suffixes(folder):
    assert len(find_files([str(folder / "**" / "0*.txt")])) == 10
    assert len(find_files([str(folder)], ["txt"])) == 41
    assert fault(find_files, [str(folder)], [".py"]) == f"no data in {folder}: none of its 41 files ends in .py"


def test_same_names_in_two_sources_stay_apart(tmp_path):
    for place in "ab":
        (tmp_path / place).mkdir()
        (tmp_path / place / "x.txt").write_text(place)
    names = [document.name for document in read_documents([str(tmp_path / p / "x.txt") for p in "ab"])]
    assert names == ["x.txt", "x.txt~2"]


def test_missing_source(folder, tmp_path):
    text = fault(find_files, [str(tmp_path / "bookz")])
    assert text == f"no such data: {tmp_path / 'bookz'} (did you mean {folder}?)"
    assert "at least one" in fault(find_files, [])


def test_jsonl(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "one"}\n\n{"text": "zwölf", "id": 3}\n')
    documents = list(read_documents([str(file)]))
    assert [document.text.decode() for document in documents] == ["one", "zwölf"]
    assert [document.name for document in documents] == ["a.jsonl:1", "a.jsonl:3"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"texts": "x"}', ":2: no field 'text' (did you mean 'texts'?)"),
        (b'{"a": 1, "b": 2}', ":2: no field 'text' (there is 'a', 'b')"),
        (b'{"text": 7}', ":2: the field 'text' must be text, not a number"),
        (b'{"text": null}', ":2: the field 'text' must be text, not null"),
        (b'{"text": "x"', ":2: not JSON: Expecting ',' delimiter"),
        (b'["text"]', ":2: a JSON object with the field 'text' was wanted, not a list"),
        (b'{"text": "\xff"}', ":2: byte 0xff is not UTF-8"),
        (b'{"text": "\\ud800"}', ":2: the field 'text' holds half of a surrogate pair, no character"),
    ],
)
def test_bad_jsonl_names_file_and_line(tmp_path, line, message):
    file = tmp_path / "bad.jsonl"
    file.write_bytes(b'{"text": "fine"}\n' + line + b"\n")
    assert fault(lambda: list(read_documents([str(file)]))) == f"{file}{message}"


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow", reason="parquet is an extra")
    parquet = pytest.importorskip("pyarrow.parquet", reason="parquet is an extra")
    file = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"body": ["one", "two"], "n": [1, 2]}), file)
    documents = list(read_documents([str(file)], field="body"))
    assert [(document.name, document.text) for document in documents] == [
        ("a.parquet:1", b"one"),
        ("a.parquet:2", b"two"),
    ]
    assert fault(lambda: list(read_documents([str(file)]))) == f"{file}: no column 'text' (there is 'body', 'n')"
    parquet.write_table(pyarrow.table({"text": ["one", None]}), file)
    assert fault(lambda: list(read_documents([str(file)]))) == f"{file}:2: the field 'text' must be text, not null"
    file.write_bytes(b"PAR1 no")
    assert f"{file} is not a readable parquet file" in fault(lambda: list(read_documents([str(file)])))


# --- tokens --------------------------------------------------------------------------------------------------------


def test_byte_vocabulary():
    assert (ByteTokens(256).end, ByteTokens(256).begin) == (None, None)
    assert (ByteTokens(260).end, ByteTokens(260).begin) == (BYTE_END, BYTE_BEGIN) == (256, 257)
    tokens = ByteTokens(260)
    assert tokens.decode([*tokens.encode("süß"), 256]) == "süß"


@pytest.fixture
def tokenizer(tmp_path):
    tokenizers = pytest.importorskip("tokenizers", reason="tokenizer files are an extra")
    words = {"<|endoftext|>": 0, "red": 1, "blue": 2, "green": 3, "[UNK]": 4}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    path = tmp_path / "tokenizer.json"
    made.save(str(path))
    return str(path)


def test_tokenizer_file(tmp_path, tokenizer):
    (tmp_path / "a.txt").write_text("red blue\nred")
    (tmp_path / "b.txt").write_text("green")
    corpus = corpus_of(tmp_path / "a.txt", tmp_path / "b.txt", vocab=5, tokenizer=tokenizer, eval_fraction=0.0)
    assert corpus.tokens.tolist() == [1, 2, 1, 0, 3, 0]


def test_id_outside_the_vocabulary_names_file_and_line(tmp_path, tokenizer):
    file = tmp_path / "a.txt"
    file.write_text("red blue\nred\n green")
    text = fault(corpus_of, file, vocab=3, tokenizer=tokenizer)
    assert text.startswith(f"{file}:3: token id 3 of tokenizer.json is not in the model's vocabulary of 3")


def test_byte_outside_the_vocabulary(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("abc\né")
    assert fault(corpus_of, file, vocab=128).startswith(f"{file}:2: token id 195 of bytes")


def test_tokenizer_mistakes(tmp_path, tokenizer):
    file = tmp_path / "latin.txt"
    file.write_bytes(b"red\nblu\xe9")
    assert fault(corpus_of, file, vocab=5, tokenizer=tokenizer).startswith(f"{file}:2: byte 0xe9 is not UTF-8")
    other = tmp_path / "not.json"
    other.write_text("{}")
    assert f"{other} is not a `tokenizers` file" in fault(load_tokens, str(other), 5)
    assert "cannot be read" in fault(load_tokens, str(tmp_path / "none.json"), 5)
    assert "has no token 'stop'" in fault(load_tokens, tokenizer, 5, "stop")


# --- windows and the split -----------------------------------------------------------------------------------------


def all_windows(corpus):
    for windows in (corpus.train, corpus.held_out):
        for index in range(len(windows)):
            begin, length = int(windows.begins[index]), int(windows.lengths[index])
            yield corpus.label(windows, index), corpus.tokens[begin : begin + length].tolist()


def test_windows_put_documents_back_together(folder):
    corpus = corpus_of(folder)
    pieces = dict(all_windows(corpus))
    for document in read_documents([str(folder)]):
        text, number = [], 0
        while (label := f"{document.name}[{number}]") in pieces:
            assert len(pieces[label]) <= 16
            text += pieces[label]
            number += 1
        assert text == ([*document.text, BYTE_END] if document.text else [])


def test_held_out_documents_are_whole_and_stay(folder):
    corpus = corpus_of(folder)
    train, held_out = set(corpus.train.documents.tolist()), set(corpus.held_out.documents.tolist())
    assert not train & held_out
    assert 2 <= len(held_out) <= 16
    before = {corpus.names[number] for number in held_out}
    for number in range(60):
        (folder / f"new{number}.txt").write_text("some text")
    grown = corpus_of(folder)
    after = {grown.names[number] for number in grown.held_out.documents.tolist()}
    assert before <= after
    assert not {name for name in after - before if "new" not in name}


def test_few_documents_hold_out_windows(tmp_path):
    (tmp_path / "a.txt").write_text("x" * 3000)
    corpus = corpus_of(tmp_path / "a.txt", eval_fraction=0.1)
    assert corpus.held_out_by_window
    assert 0.03 < len(corpus.held_out) / (len(corpus.train) + len(corpus.held_out)) < 0.2


def test_split_follows_the_fraction(tmp_path):
    with (tmp_path / "many.jsonl").open("w") as file:
        for number in range(4000):
            file.write(json.dumps({"text": f"line {number}"}) + "\n")
    corpus = corpus_of(tmp_path / "many.jsonl", eval_fraction=0.1)
    assert 0.08 < len(set(corpus.held_out.documents.tolist())) / 4000 < 0.12
    assert len(set(corpus.train.ids.tolist())) == len(corpus.train)
    assert corpus.train.ids.min() >= 0


def test_no_text(tmp_path):
    (tmp_path / "a.txt").write_text("")
    assert fault(corpus_of, tmp_path / "a.txt") == f"no text in {tmp_path / 'a.txt'}: 1 documents, all empty"
    (tmp_path / "b.txt").write_text("short")
    assert "too little data: all of its 1 windows would be held out" in fault(corpus_of, tmp_path / "b.txt")
    (tmp_path / "none").mkdir()
    assert "there is no file in it" in fault(corpus_of, tmp_path / "none")


# --- the loader ----------------------------------------------------------------------------------------------------


def content(batch):
    return batch.tokens.tolist(), batch.offsets.tolist(), batch.example_ids.tolist(), batch.labels


def test_every_epoch_sees_every_example_once(folder):
    corpus = corpus_of(folder)
    loader = TokenLoader(corpus, BatchPlan(None, 1, seed=3))
    epochs = [[loader.next_batch().labels[0] for _ in range(len(corpus.train))] for _ in range(3)]
    assert len(set(epochs[0])) == len(corpus.train)
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(epochs[2])
    assert epochs[0] != epochs[1] != epochs[2]
    assert TokenLoader(corpus, BatchPlan(None, 1, seed=4)).next_batch().labels[0] != epochs[0][0]


def test_batches_are_packed_within_the_budget(folder):
    corpus = corpus_of(folder)
    loader = TokenLoader(corpus, BatchPlan(64, None, seed=0))
    rows = []
    for _ in range(50):
        batch = loader.next_batch()
        assert batch.tokens.dtype == torch.int64
        assert batch.offsets.dtype == torch.int32
        assert batch.offsets[0] == 0
        assert batch.offsets[-1] == batch.rows == len(batch.tokens) <= 64
        assert (batch.offsets.diff() > 0).all()
        rows.append(batch.rows)
    assert np.mean(rows) > 64 - 16
    assert TokenLoader(corpus, BatchPlan(64, 2, seed=0)).next_batch().examples <= 2


@pytest.mark.parametrize("split", [0, 1, 7, 23])
def test_resumed_batches_equal_uninterrupted_ones(folder, split):
    corpus, plan = corpus_of(folder), BatchPlan(64, None, seed=5)
    whole = [content(batch) for batch, _ in zip(TokenLoader(corpus, plan), range(40), strict=False)]
    first = TokenLoader(corpus, plan)
    for _ in range(split):
        first.next_batch()
    state = json.loads(json.dumps(first.state_dict()))
    second = TokenLoader(corpus_of(folder), plan)
    second.load_state_dict(state)
    assert [content(second.next_batch()) for _ in range(40 - split)] == whole[split:]


def test_changed_data_is_named(folder):
    plan = BatchPlan(64, None, seed=5)
    state = TokenLoader(corpus_of(folder), plan).state_dict()
    (folder / "deep" / "01.txt").write_text("other words")
    text = fault(TokenLoader(corpus_of(folder), plan).load_state_dict, state)
    assert "books/deep/01.txt has changed" in text
    (folder / "00.txt").unlink()
    assert "books/00.txt is missing, and 1 more" in fault(TokenLoader(corpus_of(folder), plan).load_state_dict, state)


def test_other_windows_are_other_data(folder):
    plan = BatchPlan(64, None, seed=5)
    state = TokenLoader(corpus_of(folder), plan).state_dict()
    loader = TokenLoader(corpus_of(folder, max_length=8), plan)
    assert "read with other settings" in fault(loader.load_state_dict, state)
    assert "damaged" in fault(loader.load_state_dict, {"epoch": 1})
    other = TokenLoader(corpus_of(folder), BatchPlan(64, None, seed=6))
    assert "of another run (seed 5" in fault(other.load_state_dict, state)


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_ranks_share_the_same_global_batches(folder, world_size):
    corpus, plan = corpus_of(folder), BatchPlan(80, None, seed=1)
    whole = TokenLoader(corpus, plan)
    for _ in range(20):
        wanted = whole.next_batch()
        every = [wanted.share(rank, world_size) for rank in range(world_size)]
        assert all(len(of_rank) == 1 and of_rank[0].examples for of_rank in every)
        shares = [one for of_rank in every for one in of_rank if not one.stands_in]
        assert torch.equal(torch.cat([share.tokens for share in shares]), wanted.tokens)
        assert torch.equal(torch.cat([share.example_ids for share in shares]), wanted.example_ids)
        assert sum((share.labels for share in shares), ()) == wanted.labels
        assert all(share.offsets[0] == 0 and share.offsets[-1] == share.rows for share in shares)
        assert max(share.rows for share in shares) <= wanted.rows / world_size + 16


def test_split_can_leave_parts_empty(folder):
    batch = TokenLoader(corpus_of(folder), BatchPlan(None, 2, seed=1)).next_batch()
    parts = batch.split(7)
    assert len(parts) == 7
    assert sum(part.examples for part in parts) == 2
    assert all(part.offsets.tolist()[0] == 0 for part in parts)


def test_held_out_batches_are_always_the_same(folder):
    corpus, plan = corpus_of(folder), BatchPlan(64, None, seed=1)
    batches = held_out_batches(corpus, plan)
    assert [content(b) for b in batches] == [content(b) for b in held_out_batches(corpus, BatchPlan(64, None, seed=2))]
    assert sum(batch.examples for batch in batches) == len(corpus.held_out)
    assert sum(batch.rows for batch in held_out_batches(corpus, plan, most_tokens=40)) <= 40


def test_torchdata_can_drive_the_loader(folder):
    """The protocol is that of its stateful loaders: wrapping one keeps exact resume."""
    torchdata = pytest.importorskip("torchdata.stateful_dataloader", reason="torchdata is an extra")

    class Stream(torch.utils.data.IterableDataset):
        def __init__(self):
            self.loader = TokenLoader(corpus_of(folder), BatchPlan(64, None, seed=5))

        def __iter__(self):
            return iter(self.loader)

        def state_dict(self):
            return self.loader.state_dict()

        def load_state_dict(self, state):
            self.loader.load_state_dict(state)

    wrapped = torchdata.StatefulDataLoader(Stream(), batch_size=None)
    before = iter(wrapped)
    for _ in range(5):
        next(before)
    state = wrapped.state_dict()
    wanted = [content(next(before)) for _ in range(5)]
    again = torchdata.StatefulDataLoader(Stream(), batch_size=None)
    again.load_state_dict(state)
    after = iter(again)
    assert [content(next(after)) for _ in range(5)] == wanted


def test_compressed_file_is_only_bytes(tmp_path):
    """Nothing is guessed: a .gz is read as the bytes it has."""
    (tmp_path / "a.gz").write_bytes(gzip.compress(b"text" * 50))
    assert corpus_of(tmp_path / "a.gz", eval_fraction=0.0).tokens[:2].tolist() == [0x1F, 0x8B]


@pytest.mark.parametrize(("ranks", "parts"), [(2, 3), (4, 2), (3, 5)])
def test_every_rank_has_as_many_micro_batches(folder, ranks, parts):
    """Those without examples compute one that counts for nothing: the others wait for their part of the weights."""
    loader = TokenLoader(corpus_of(folder), BatchPlan(None, 4, seed=1))
    for _ in range(5):
        batch = loader.next_batch()
        every = [batch.share(rank, ranks, parts) for rank in range(ranks)]
        assert len({len(of_rank) for of_rank in every}) == 1
        counted = [one for together in zip(*every, strict=True) for one in together if not one.stands_in]
        assert sum((one.labels for one in counted), ()) == batch.labels
        idle = [one for of_rank in every for one in of_rank if one.stands_in]
        assert all(one.rows == int(batch.offsets.diff().min()) for one in idle)
        assert all(any(not one.stands_in for one in together) for together in zip(*every, strict=True))
