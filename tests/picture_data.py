"""JSONL and files of pictures for tests, and the corpora that are read from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from weft.codegen.ops import OPS
from weft.dsl.check import check
from weft.dsl.source import Source
from weft.runtime.errors import RuntimeFault
from weft.runtime.loader import BatchPlan
from weft.runtime.model import Model
from weft.runtime.part_corpus import PartCorpus
from weft.runtime.part_loader import PartBatch, PartLoader
from weft.runtime.run_config import make_config
from weft.runtime.training_data import load_data

Image = pytest.importorskip("PIL.Image", reason="pictures are an extra")

SPECS = Path(__file__).parent.parent / "specs"
BEGIN, OPEN, CLOSE, END = 257, 258, 259, 256
SMALL = {"layers": 1, "channels": 1}


def model_of(text: str, **settings: Any) -> Model:
    return Model(check(Source("parts.weft", text), OPS, **settings).value())


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
