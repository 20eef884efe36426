"""Fuzz the front end: broken texts in, a result or diagnostics out, never an exception, never a long wait.

    python bench/front_end_fuzz.py --minutes 10 [--seed 3]
    python bench/front_end_fuzz.py --count 100000

Texts are shipped specs, the syntax corpus and the broken specs, with pieces deleted, doubled, swapped, replaced by
pieces of others and by what tends to break compilers. A failure prints the text and stays in `fuzz_failures/`. A text
that hangs is stopped by a timer and is a failure like any other; where even that cannot stop it, because Python never
gets its turn, the run ends and `fuzz_failures/current.weft` is the text.
"""

from __future__ import annotations

import argparse
import faulthandler
import importlib
import pkgutil
import random
import re
import signal
import sys
import textwrap
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.random_specs import random_spec  # noqa: E402
from weft.codegen.ops import OPS  # noqa: E402
from weft.dsl import errors  # noqa: E402
from weft.dsl.check import check_all  # noqa: E402
from weft.dsl.diagnostics import SpecError  # noqa: E402
from weft.dsl.source import Source  # noqa: E402

SLOW = 2.0
ATTEMPTS = 3  # at a text that takes longer
REFERENCE = 0.015  # seconds of `_count_words` on the machine that this limit is meant for
KEPT = 5  # texts of one sort of failure
HANGING = 20.0  # seconds of this process after which a text is given up
TOKEN = re.compile(r"\n[ ]*|[A-Za-z_]\w*|\d[\w.]*|->|\|>|\.\.|[=<>!]=|//|\*\*|\"[^\"\n]*\"|[^\w\s]|[ ]+")
NASTY = (
    "9^9^9", "2^48", "-1", "0", "1e400", "1e-400", "99999999999999999999", "0 .. 10^9", "(1, 2, 3) * 1000000",
    "none", "true", "training", "seq", "dim", "x", "[..]", "[", "]", "(", ")", ":", "->", "as", "\n", "\n    ",
    "\n        ", "#", '"', '"""', "\t", "\u202e", "\x00", "ü", "*", "**", ".", "..", ",", "=", "==", "x[x]", "x(x)",
    "m(x)", "dim(dim)", "precise", "size", "axis", "static_axis", "query(position)", "key(position)", "causal",
    "index(seq)", "for i in 0 .. 3:", "if true:", "return x", "loss = x", "param w: real[dim]", "axis b = b",
    "use olmo2", "use std.norm: rms_norm", "shared x: x()", "enum e: a, b", "option o: e = a", "size s: s = s",
    "init ** = zeros", "freeze **", "optimise by adamw()", "mask m = m",
)  # fmt: skip


VALUES = (
    "9^9^9", "2^47", "(-1)", "0", "0.5", "1e400", "none", "true", "training", "seq", "dim", "x", "()", "(1, 2)",
    "(x, x)", "(1, (x, 2))", "x[x]", "x[0]", "x(x)", "m(x)", "(x, 2) * 3", "precise(x)", "precise", "size(seq)",
    "static_axis(x)", "last_axis(x)", "row_axis(x)", "query(position)", "key(position)", "causal", "not causal",
    "window(2)", "same(seq)", "index(dim)", "silu", "linear", "m", "m(x).x", "x.y", "topk(x, over=dim, k=2)",
    "topk(x, over=dim, k=2).index", "position(seq)", "length(seq)", "(x > 0)", "-x", "(not x)", "dim",
    "linear(x, dim -> dim)", "swiglu(x, dim)", "rms_norm(x)", "previous(x)", "next(x)", "normal(like=x)", "zeros",
    "normal(0.1)",
)  # fmt: skip


@dataclass(frozen=True)
class Failure:
    text: str
    why: str
    seconds: float = 0.0  # of a text that took too long


@dataclass
class Times:
    """Of a number of texts: how many there were, and the slowest."""

    texts: int = 0
    slowest: float = 0.0


class Hanging(BaseException):
    """Not an Exception: what catches those must not catch this."""


@contextmanager
def stopped(after: float) -> Iterator[None]:
    """Raises Hanging when this process has worked for so many seconds, however busy the machine is. pytest's own
    timeout is another timer."""

    def stop(number: int, frame: object) -> None:
        raise Hanging

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, after)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def corpus() -> list[str]:
    """The texts that mutations start from. Small ones often, because they are fast; whole models and random specs,
    in which every construct stands beside every other, as often as time allows."""
    small = [*_texts("tests/bad_specs"), *(text for text in examples() for _ in range(4))]
    large = [*_texts("specs"), *_texts("specs/std"), *_texts("tests/syntax")]
    return [*small, *large * 5, *(random_spec(seed, 2 + seed % 13).text for seed in range(120))]


def _texts(folder: str) -> list[str]:
    return [path.read_text("utf-8") for path in sorted((ROOT / folder).glob("*.weft"))]


def examples() -> list[str]:
    """The right and wrong specs of the error pages: small, most of them whole."""
    for module in pkgutil.iter_modules(errors.__path__):
        importlib.import_module(f"{errors.__name__}.{module.name}")
    pages = [kind.page() for _, kind in sorted(SpecError.by_code.items())]
    found = [
        text for page in pages for text in re.findall(r"^(?:Wrong|Right):\n((?:    .*\n?|\n)+)", page, re.MULTILINE)
    ]
    return [textwrap.dedent(text) for text in found]


def mutated(rng: random.Random, texts: list[str]) -> str:
    """A text with one to six pieces changed."""
    text = rng.choice(texts)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        text = rng.choice(_WAYS)(rng, text, texts)
    return text


def _pieces(rng: random.Random, text: str) -> list[str]:
    """Lines, tokens or characters."""
    unit = rng.random()
    if unit < 0.3:
        return text.splitlines(keepends=True)
    return TOKEN.findall(text) if unit < 0.9 else list(text)


def _delete(rng: random.Random, text: str, texts: list[str]) -> str:
    pieces = _pieces(rng, text)
    start = rng.randrange(len(pieces) + 1)
    del pieces[start : start + rng.choice((1, 1, 1, 3, 20))]
    return "".join(pieces)


def _double(rng: random.Random, text: str, texts: list[str]) -> str:
    pieces = _pieces(rng, text)
    start = rng.randrange(len(pieces) + 1)
    part = pieces[start : start + rng.choice((1, 1, 2, 8))]
    return "".join((*pieces[:start], *part * rng.choice((1, 1, 2, 50)), *pieces[start:]))


def _swap(rng: random.Random, text: str, texts: list[str]) -> str:
    pieces = _pieces(rng, text)
    if len(pieces) < 2:
        return text
    a, b = rng.randrange(len(pieces)), rng.randrange(len(pieces))
    pieces[a], pieces[b] = pieces[b], pieces[a]
    return "".join(pieces)


def _graft(rng: random.Random, text: str, texts: list[str]) -> str:
    pieces, others = _pieces(rng, text), _pieces(rng, rng.choice(texts))
    if not pieces or not others:
        return text
    at, start = rng.randrange(len(pieces)), rng.randrange(len(others))
    pieces[at : at + rng.randrange(2)] = others[start : start + rng.choice((1, 1, 4))]
    return "".join(pieces)


def _nasty(rng: random.Random, text: str, texts: list[str]) -> str:
    pieces = _pieces(rng, text)
    if not pieces:
        return rng.choice(NASTY)
    at = rng.randrange(len(pieces))
    pieces[at : at + rng.randrange(2)] = [rng.choice(NASTY)]
    return "".join(pieces)


def _nasty_value(rng: random.Random, text: str, texts: list[str]) -> str:
    """Something that parses, in the place of a name or number."""
    pieces = TOKEN.findall(text)
    names = [i for i, piece in enumerate(pieces) if piece[0].isalpha() or piece[0].isdigit()]
    if names:
        pieces[rng.choice(names)] = rng.choice(VALUES)
    return "".join(pieces)


def _same_sort(rng: random.Random, text: str, texts: list[str]) -> str:
    """A name for a name of the same text, a number for a number: such texts get furthest into the checker."""
    pieces = TOKEN.findall(text)
    names = [i for i, piece in enumerate(pieces) if piece[0].isalpha() or piece[0].isdigit()]
    if not names:
        return text
    at = rng.choice(names)
    sort = [pieces[i] for i in names if pieces[i][0].isdigit() == pieces[at][0].isdigit()]
    pieces[at] = rng.choice(sort)
    return "".join(pieces)


_WAYS: tuple[Callable[[random.Random, str, list[str]], str], ...] = (
    _delete, _double, _swap, _graft, _nasty, _nasty, _nasty_value, _nasty_value, *(_same_sort,) * 8,
)  # fmt: skip


def attempt(text: str, times: Times | None = None, limit: float = HANGING) -> Failure | None:
    """Checks one text. Only in the main thread, where signals arrive."""
    times = times or Times()
    source = Source(str(ROOT / "tests" / "bad_specs" / "fuzz.weft"), text)
    started = time.process_time()
    try:
        with stopped(limit):
            result = check_all(source, OPS)
            for error in result.problems.errors:
                said = error.describe()
                assert said.title
                assert 0 <= said.primary.span.start <= said.primary.span.end <= len(said.primary.span.source.text)
    except Hanging:
        why = f"stopped after {limit:.0f} s\n{traceback.format_exc(limit=-4)}\nHanging"
        return Failure(text, why, limit)
    except Exception:  # noqa: BLE001 - that none escapes is what is tested
        return Failure(text, traceback.format_exc(limit=-4))
    took = time.process_time() - started
    times.texts += 1
    times.slowest = max(times.slowest, took)
    return Failure(text, f"took {took:.1f} s", took) if took > SLOW else None


def slowdown() -> float:
    """How much slower this machine is now than the one that `SLOW` is meant for, at least 1."""
    times = []
    for _ in range(5):
        started = time.process_time()
        _count_words()
        times.append(time.process_time() - started)
    return max(1.0, sorted(times)[2] / REFERENCE)


def _count_words() -> None:
    """Work for an interpreter that is none of ours, so that a slower checker does not look like a slower machine."""
    counts: dict[tuple[int, str], int] = {}
    for number in range(60_000):
        word = (number % 977, str(number % 31))
        counts[word] = counts.get(word, 0) + len(word)


def failure_of(text: str, times: Times | None = None) -> Failure | None:
    """Attempts one text; how long it may take goes by how fast the machine is then, before and after. A neighbour on
    the machine can slow a text down, rarely each time."""
    found = attempt(text, times)
    for _ in range(ATTEMPTS - 1):
        if found is None or not found.seconds:
            break
        before = slowdown()
        found = attempt(text)
        if found is not None and 0 < found.seconds <= SLOW * max(before, slowdown()):
            return None
    return found


def failures(
    seed: int,
    count: int | None = None,
    seconds: float | None = None,
    times: Times | None = None,
    before: Callable[[str], object] | None = None,
) -> Iterator[Failure]:
    """Attempts from a seed, so many or for so long. `before` is told each text first."""
    rng, texts = random.Random(seed), corpus()
    until = None if seconds is None else time.monotonic() + seconds
    done = 0
    while (count is None or done < count) and (until is None or time.monotonic() < until):
        done += 1
        text = mutated(rng, texts)
        if before is not None:
            before(text)
        found = failure_of(text, times)
        if found is not None:
            yield found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=1)
    parser.add_argument("--count", type=int, help="so many texts, however long they take")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    folder = Path("fuzz_failures")
    folder.mkdir(exist_ok=True)
    current = folder / "current.weft"
    seen: Counter[str] = Counter()
    seconds = None if options.count else 60 * options.minutes
    times, started, reported = Times(), time.monotonic(), time.monotonic()

    def watch(text: str) -> None:
        nonlocal reported
        current.write_text(text, "utf-8", "surrogatepass")
        # Its thread is none of Python's, so it ends a process that holds on to the interpreter.
        faulthandler.dump_traceback_later(30 * HANGING, exit=True)
        if time.monotonic() - reported > 60:
            reported = time.monotonic()
            print(f"{times.texts} texts in {reported - started:.0f} s, {sum(seen.values())} failures", flush=True)

    for failure in failures(options.seed, options.count, seconds, times, watch):
        why = failure.why.strip().splitlines()
        where = next((line.strip() for line in reversed(why) if line.lstrip().startswith("File")), "")
        key = re.sub(r"[\d.]+ s$", "", why[-1]) + where
        seen[key] += 1
        if seen[key] <= KEPT:
            file = folder / f"{list(seen).index(key) + 1}_{seen[key]}.weft"
            file.write_text(failure.text, "utf-8", "surrogatepass")
            print(f"---- {file}\n{failure.why}", flush=True)
    faulthandler.cancel_dump_traceback_later()
    current.unlink(missing_ok=True)
    failed = sum(seen.values())
    print(
        f"{times.texts} texts from seed {options.seed} in {time.monotonic() - started:.0f} s, the slowest "
        f"{times.slowest:.2f} s; {failed} failures of {len(seen)} sorts"
    )
    sys.exit(bool(seen))


if __name__ == "__main__":
    main()
