"""Random specs whose rows are words and the places of whole pictures, as LMFusion's are.

    spec = random_picture_spec(seed, statements=8)      spec.documents says which examples it is run on

Statements go along `seq`, `word`, `place` or `picture`, each written by a writer that sees the values of its axis
alone; a few of our own lead from one axis to another.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import count
from random import Random

from . import random_pictures
from .random_blocks import BLOCKS
from .random_documents import PICTURE, WORDS
from .random_picture_links import LINKS, along
from .random_routes import DECLARED, KIND
from .random_specs import COMMON, RandomSpec, statement, typed
from .random_values import EXAMPLE, FLAG, INT, REAL, Typed, Writer, listed

CUTS = ("kind == low", "kind == flat", "position(seq) mod 3 == 1")
AXES = ("seq", "word", "place", "picture")


def random_picture_spec(seed: int, statements: int = 8) -> RandomSpec:
    return _PictureSpec(Random(seed ^ 0xB1C), seed, statements).made()


class _PictureSpec:
    def __init__(self, chance: Random, seed: int, statements: int) -> None:
        self.chance, self.seed, self.statements = chance, seed, statements
        heads = chance.choice((1, 2, 3))
        kv_heads = chance.choice([n for n in (1, 2, 3) if heads % n == 0])
        dim, ffn, head_dim = chance.choice((1, 3, 4, 6)), chance.choice((1, 2, 5)), chance.choice((1, 2, 4))
        self.grid = chance.choice(((1, 1), (1, 2), (2, 1), (2, 2), (2, 3), (1, 3)))
        self.sizes: dict[str, int | None] = {
            "dim": dim, "ffn": ffn, "heads": heads, "kv_heads": kv_heads, "head_dim": head_dim,
            "vocab": chance.choice((2, 5, 11)), "two": 2, "three": 3, "nine": 9, "again": dim, "both": dim + ffn,
            "width": heads * head_dim, "spot": self.grid[0] * self.grid[1],
        }  # fmt: skip
        self.has_objective = chance.random() < 0.6
        is_causal = chance.random() < 0.7
        self.writer = Writer(chance, self.sizes, "seq", ("seq",), is_causal, count(), claims=False)

    def made(self) -> RandomSpec:
        writer, inputs = self.writer, self.inputs()
        writer.values += inputs
        texts = []
        for make in self.chance.sample(BLOCKS, self.chance.randrange(3)):
            text, block = make(writer)
            texts.append(text)
            writer.blocks += (block,)
        self.together()
        if self.chance.random() < 0.15:
            writer.line(f"segment seq into patch ends where {self.chance.choice(CUTS)}")
            writer.cut = "patch"
        seeds = [self.chance.randrange(2**32) for _ in range(40)]
        last_seed, documents = self.chance.randrange(2**32), self.documents()
        for number in range(self.statements):
            writer.chance = Random(seeds[number])
            self.statement()
        writer.chance = self.chance = Random(last_seed)
        outputs = self.outputs()
        parameters = ", ".join(f"{value.text}: {typed(value)}" for value in inputs)
        model = "\n".join(
            (f"model m({parameters}):", *writer.lines, f"    return {', '.join(v.text for v in outputs)}")
        )
        texts = [text for text in texts if not text.startswith("shared") or f" {text.split()[1][:-1]}(" in model]
        text = "\n\n".join((self.declarations(), *texts, model, *self.objective(inputs, outputs)))
        is_causal = self.is_promised(*outputs)
        return RandomSpec(
            self.seed, f"{text}\n\ninit ** = normal(0.4)\n", is_causal, documents, self.sizes["spot"] or 1
        )

    def is_promised(self, *values: Typed) -> bool:
        """Whether these see no later row, and the checker knows: not where segments or pairs of rows may cut pictures
        in two."""
        is_divided = self.writer.cut is not None or any("seq -> pair" in line for line in self.writer.lines)
        return not is_divided and not any(value.ahead for value in values)

    # -- the file ----------------------------------------------------------------------------------

    def declarations(self) -> str:
        names = ("dim", "ffn", "heads", "head_dim", "kv_heads", "vocab")
        return "\n".join((
            *(f"size {name} = {self.sizes[name]}" for name in names),
            "option wide: flag = " + self.chance.choice(("true", "false")),
            f"option rounds: int = {self.chance.randrange(3)}",
            "enum tone: low, high, flat",
            "axis seq",
            "axis word = seq where kind == low or kind == high",
            "axis place = seq where kind == flat",
            "axis picture",
            f"axis spot = grid{self.grid}",
            *(("axis patch cut from seq",) if self.writer.cut else random_pictures.DECLARATIONS),
            *DECLARED,
            *COMMON,
        ))  # fmt: skip

    def inputs(self) -> list[Typed]:
        always = [
            KIND,
            Typed("tokens", "vocab", "word"),
            Typed("latent", REAL, "picture", ("spot", "dim"), is_plain=True),
        ]
        more = [
            Typed("time", INT, "picture"),
            Typed("age", REAL, "picture", (), is_plain=True),
            Typed("x", REAL, "seq", ("dim",), is_plain=True),
            Typed("w", REAL, "seq", (), is_plain=True),
            Typed("v", REAL, "word", ("heads",), is_plain=True),
            Typed("y", REAL, "place", ("dim",), is_plain=True),
            Typed("on", FLAG, "seq"),
            Typed("c", REAL, EXAMPLE, ("dim",), is_plain=True),
            Typed("level", REAL, EXAMPLE, (), is_plain=True),
        ]
        return always + self.chance.sample(more, self.chance.randrange(4))

    def together(self) -> None:
        """Words and pictures in one text."""
        writer = self.writer
        writer.line("words = embed(tokens, vocab -> dim)")
        made = self.chance.choice(
            ("latent", "linear(latent, dim -> dim)", "conv(latent, spot -> spot, dim -> dim, size=3)")
        )
        times = [f"cos(real({v.text}))" for v in writer.values if v.level == "picture" and not v.axes]
        writer.line(f"tiles = {' + '.join((made, *times))}")
        writer.line("places = flatten(tiles, (picture, spot) -> place)")
        words, tiles, places = (
            Typed(name, REAL, axis, axes)
            for name, axis, axes in (
                ("words", "word", ("dim",)), ("tiles", "picture", ("spot", "dim")), ("places", "place", ("dim",)),
            )
        )  # fmt: skip
        writer.values += [words, tiles, places]
        writer.bind(Typed("join((words, places), (word, place) -> seq)", REAL, "seq", ("dim",)))

    def documents(self) -> tuple[str, ...]:
        """A letter for each part of each example; up to three pictures, anywhere."""
        made = []
        for _ in range(self.chance.choice((1, 2, 3, 4))):
            letters = self.chance.choices((*WORDS, PICTURE), (2, 2, 3), k=self.chance.choice((0, 1, 2, 3, 5, 7)))
            pictures = count()
            made.append("".join(one for one in letters if one != PICTURE or next(pictures) < 3))
        return tuple(made)

    # -- statements --------------------------------------------------------------------------------

    def statement(self) -> None:
        chance = self.writer.chance
        if chance.random() < 0.45 and chance.choice(LINKS)(self.writer):
            return
        along(self.writer, chance.choice(("seq", "seq", *AXES)), statement)

    # -- what comes out ----------------------------------------------------------------------------

    def outputs(self) -> list[Typed]:
        """Something of the text's rows, words, places and pictures."""
        writer = self.writer
        kept = [v for v in writer.values if v.text[0] == "h" and v.is_whole_real and v.has_rows]
        rows = [v for v in kept if v.level == "seq" and "spot" not in v.axes][-1]
        words = writer.bind(replace(rows, text=f"take({rows.text}, seq -> word)", level="word"))
        back = f"unflatten(take({rows.text}, seq -> place), place -> (picture, spot))"
        pictures = writer.bind(replace(rows, text=back, level="picture", axes=("spot", *rows.axes)))
        chosen = self.chance.choice(((words, pictures), (words, pictures), (words,), (pictures,), (rows,), ()))
        others = [v for v in kept if v not in chosen]
        number = self.chance.choice((0, 1, 2))
        return [*chosen, *others[-max(number, not chosen) :]] if number or not chosen else [*chosen]

    def objective(self, inputs: list[Typed], outputs: list[Typed]) -> list[str]:
        if not self.has_objective:
            return []
        parameters = ", ".join(f"{value.text}: {typed(value)}" for value in inputs)
        names = [f"out{number}" for number in range(len(outputs))]
        lines = [f"objective o({parameters}):", f"    {', '.join(names)} = m({', '.join(v.text for v in inputs)})"]
        for number, (name, v) in enumerate(zip(names, outputs, strict=True)):
            loss = f"mean({name}^2, over={listed(v.axes)})" if v.axes else f"{name}^2"
            if v.level == "word" and v.axes and "vocab" not in v.axes and self.is_promised(v):
                scores = f"linear({name}, {listed(v.axes)} -> vocab) as head{number}"
                loss = f"cross_entropy({scores}, take(next(tokens, along=seq), seq -> word))"
            if v.level == "picture" and v.axes == ("spot", "dim"):
                loss = f"mean(({name} - latent)^2, over=(spot, dim))"
            only = " only tokens != 0" if v.level == "word" and self.chance.random() < 0.4 else ""
            lines.append(f"    loss part{number} = {loss}{only}")
        return ["\n".join(lines)]
