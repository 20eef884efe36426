"""The parts of `make digits` that are not commands of Weft: its data, and what is asked of the trained model.

    python bench/digits.py data FOLDER                 pictures, digits.jsonl and captions.jsonl
    python bench/digits.py unchanged BEFORE AFTER      the logits of texts, bit for bit
    python bench/digits.py losses RUN MOST             how the losses of held-out examples fell
    python bench/digits.py judge FOLDER                how well the classifier of pictures reads the real ones
    python bench/digits.py drawn FOLDER ANSWERS LEAST  which share of drawings it reads as their prompts say

The digits are scikit-learn's: 1,797 pictures of 8 x 8 grey pixels, from the UCI machine learning repository.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PICTURES = "digits.jsonl"
CAPTIONS = "captions.jsonl"
BRIGHTEST = 16  # of the pixels that scikit-learn gives


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    commands = parser.add_subparsers(required=True)
    for name, function, words in (
        ("data", write_data, ("folder",)),
        ("unchanged", show_unchanged, ("before", "after")),
        ("losses", show_losses, ("run", "most")),
        ("judge", show_judge, ("folder",)),
        ("drawn", show_drawn, ("folder", "answers", "least")),
    ):
        command = commands.add_parser(name)
        for word in words:
            command.add_argument(word, type=Path)
        command.set_defaults(function=function, words=words)
    given = parser.parse_args()
    given.function(*(getattr(given, word) for word in given.words))


def caption(label: int) -> str:
    return f"a{'n' if NAMES[label].startswith('e') else ''} {NAMES[label]}"


def write_data(folder: Path) -> None:
    """Pictures as files, each with its caption; and the captions alone, for a model of text."""
    from PIL import Image
    from sklearn.datasets import load_digits  # type: ignore[import-not-found]

    digits: Any = load_digits()
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    pairs, texts = [], []
    for number, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        name = f"pictures/{number:04}.png"
        Image.fromarray(np.rint(pixels * (255 / BRIGHTEST)).astype(np.uint8)).save(folder / name)
        pairs.append({"caption": caption(label), "image": name})
        texts.append({"text": caption(label)})
    for file, records in ((PICTURES, pairs), (CAPTIONS, texts)):
        (folder / file).write_text("".join(json.dumps(record) + "\n" for record in records))
    print(f"wrote {len(pairs):,} pictures and their captions to {folder}")


def show_unchanged(before: Path, after: Path) -> None:
    """Fails where a single bit of a text's logits has changed."""
    import torch

    import weft

    texts = [torch.tensor(list(f"{caption(label)}; {NAMES[label]}".encode())) for label in range(len(NAMES))]
    logits = [_text_logits(weft.load(path), texts) for path in (before, after)]
    same = all(torch.equal(one, other) for one, other in zip(*logits, strict=True))
    numbers = sum(one.numel() for one in logits[0])
    if not same:
        sys.exit(f"the logits of {len(texts)} texts have changed")
    print(f"the {numbers:,} logits of {len(texts)} texts are the same, bit for bit")


def _text_logits(model: Any, texts: list[Any]) -> list[Any]:
    import torch

    kinds = [torch.zeros(len(text), dtype=torch.int64) for text in texts]
    latent = next(slot for slot in model.signature.inputs if slot.name == "latent")
    pictures = [torch.zeros(0, *latent.shape) for _ in texts]
    with torch.no_grad():
        return model(kinds, texts, pictures, [torch.zeros(0, dtype=torch.int64) for _ in texts])["logits"]


def show_losses(run: Path, most: Path) -> None:
    """A line for each evaluation, with a bar as long as the picture's loss. Fails where that of the last is not below
    MOST of the first."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    found = [(line["step"], line["losses"]) for line in lines if line["kind"] == "held_out"]
    largest = max(losses["image"] for _, losses in found)
    for step, losses in found:
        bar = "#" * round(40 * losses["image"] / largest)
        print(f"step {step:>6}  text {losses['text']:.4f}  image {losses['image']:.4f}  {bar}")
    first, last = found[0][1]["image"], found[-1][1]["image"]
    if not last < float(str(most)) * first:
        sys.exit(f"the loss of held-out pictures has not fallen: from {first:.4f} to {last:.4f}")


def show_judge(folder: Path) -> None:
    """One picture in five is not shown to the classifier, and asked about."""
    from bench.digit_classifier import fit

    pictures, labels = read_data(folder)
    asked = np.arange(len(labels)) % 5 == 0
    judge = fit(pictures[~asked], labels[~asked])
    right = judge.accuracy(pictures[asked], labels[asked])
    print(f"of {asked.sum()} pictures that it has not seen, the classifier names {right:.1%} as their captions do")


def show_drawn(folder: Path, answers: Path, least: Path) -> None:
    """ANSWERS is what `weft sample --json --latents` printed. Fails where a smaller share than LEAST is read right."""
    import torch

    from bench.digit_classifier import fit

    judge = fit(*read_data(folder))
    records = json.loads(answers.read_text())["answers"]
    labels = torch.tensor([NAMES.index(record["prompt"].split()[-1]) for record in records])
    files = [next(Path(piece["picture"]) for piece in record["pieces"] if "picture" in piece) for record in records]
    drawn = torch.from_numpy(np.stack([np.load(file.with_suffix(".npy")).reshape(-1) for file in files])).float()
    named = judge.labels(drawn.clamp(-1, 1))
    for label, name in enumerate(NAMES):
        own = named[labels == label].tolist()
        print(f"{name:>6}: read as {' '.join(map(str, own))}")
    right = (named == labels).double().mean().item()
    print(
        f"the classifier reads {right:.0%} of {len(labels)} drawings as they were asked for; by chance it would be 10%"
    )
    if right < float(str(least)):
        sys.exit("the drawings are hardly told apart")


def read_data(folder: Path) -> tuple[Any, Any]:
    """float32 [pictures, 64] in -1 .. 1, and the digits (int64) that their captions name."""
    import torch

    from weft.runtime.media import as_numbers, read_picture

    records = [json.loads(line) for line in (folder / PICTURES).read_text().splitlines()]
    pictures = [as_numbers(read_picture(folder / record["image"], (8, 8), 1))[:, 0] for record in records]
    labels = [NAMES.index(record["caption"].split()[-1]) for record in records]
    return torch.from_numpy(np.stack(pictures)), torch.tensor(labels)


if __name__ == "__main__":
    main()
