"""Compare a Weft model with transformers' eager Olmo2ForCausalLM on a CPU: training, prefill, decoding, memory.

    python bench/cpu.py                    # everything but torch.compile
    python bench/cpu.py --compile          # a third column: torch.compile of the transformers model
    python bench/cpu.py --only train       # train, prefill, decode or memory

All sides take turns within one process, because other work on the machine changes times more than it changes ratios.
A row gives the median time of each side and its ratio to ours (above 1: we are faster), then the ratio of best times
and of least processor time. On a machine that others use, only the last is steady, and OMP_WAIT_POLICY=passive keeps
threads that wait out of it.
Documents are source files of Python's standard library, cut into words and numbered by frequency. Both sides have the
same weights, the same optimizer (fused AdamW, clipping at 1) and the same thread count. transformers computes padded
batches with an attention mask; our side has no padding, and adds a z-loss in training. Peak memory is measured in a
process of its own per side: the high-water mark of training steps over the level before the model was made.
"""

import argparse
import collections
import gc
import re
import statistics
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.compiled_olmo2 import Sizes, compiled, continued, logits, loss
from bench.process_memory import held

SIZES = Sizes()
ROWS, LENGTH, PROMPT = 8, 256, 64
NEW_TOKENS = 64
IGNORED = -100
LEARNING_RATE, DECAY, CLIP, Z = 3e-4, 0.1, 1.0, 1e-5


# Data -----------------------------------------------------------------------------------------------------------------


def documents() -> list[Tensor]:
    """Files of the standard library as ids; 0 is padding and 1 never occurs."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    words = [re.findall(rb"\w+|\W", file.read_bytes()) for file in files]
    ranks = collections.Counter(word for document in words for word in document).most_common()
    ids = {word: 2 + rank % (SIZES.vocabulary - 2) for rank, (word, _) in enumerate(ranks)}
    return [torch.tensor([ids[word] for word in document]) for document in words if document]


@dataclass
class Batch:
    """The same documents packed (ids, offsets, targets) and padded (padded, mask, labels)."""

    ids: Tensor
    offsets: list[int]
    targets: Tensor
    padded: Tensor
    mask: Tensor | None
    labels: Tensor


def batch(lengths: list[int]) -> Batch:
    found = [d for d in documents() if len(d) >= max(lengths)][: len(lengths)]
    parts = [d[:n] for d, n in zip(found, lengths, strict=True)]
    offsets = [0]
    padded = torch.zeros(len(parts), max(lengths), dtype=torch.long)
    for i, part in enumerate(parts):
        offsets.append(offsets[-1] + len(part))
        padded[i, : len(part)] = part
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    labels = padded.masked_fill(mask == 0, IGNORED)
    targets = torch.cat([torch.cat((part[1:], torch.tensor([IGNORED]))) for part in parts])
    equal = len(set(lengths)) == 1
    return Batch(torch.cat(parts), offsets, targets, padded, None if equal else mask, labels)


def half_padding() -> list[int]:
    """One full row and seven shorter ones; half of the rectangle is real."""
    lengths = [LENGTH, 60, 90, 200, 110, 70, 150]
    return [*lengths, ROWS * LENGTH // 2 - sum(lengths)]


# The sides ------------------------------------------------------------------------------------------------------------


class Ours:
    """specs/olmo2.weft through the public interface."""

    name = "ours"

    def __init__(self, state: dict[str, Tensor], dtype: torch.dtype = torch.float32) -> None:
        self.model = compiled(SIZES, state, dtype)
        self.optimizer = adamw(self.model)

    def train(self, b: Batch) -> None:
        loss(self.model, b.ids, b.offsets).backward()
        update(self.model, self.optimizer)

    @torch.inference_mode()
    def prefill(self, b: Batch) -> Tensor:
        return logits(self.model, b.ids, b.offsets)

    def generate(self, prompts: list[Tensor]) -> Tensor:
        return continued(self.model, prompts, NEW_TOKENS)


class Theirs:
    name = "transformers"

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        from transformers import Olmo2Config, Olmo2ForCausalLM
        from transformers.utils import logging

        logging.set_verbosity_error()
        torch.manual_seed(0)
        config = Olmo2Config(
            hidden_size=SIZES.width,
            num_hidden_layers=SIZES.layers,
            num_attention_heads=SIZES.heads,
            intermediate_size=SIZES.hidden,
            vocab_size=SIZES.vocabulary,
            rope_parameters={"rope_type": "default", "rope_theta": SIZES.theta},
            rms_norm_eps=SIZES.eps,
            tie_word_embeddings=False,
            pad_token_id=0,
            bos_token_id=None,
            eos_token_id=None,
        )
        model: Any = Olmo2ForCausalLM(config)
        self.model = model.to(dtype)
        self.optimizer = adamw(self.model)
        self.forward: Callable[..., Any] = self.model

    def train(self, b: Batch) -> None:
        self.forward(input_ids=b.padded, attention_mask=b.mask, labels=b.labels, use_cache=False).loss.backward()
        update(self.model, self.optimizer)

    @torch.inference_mode()
    def prefill(self, b: Batch) -> Tensor:
        return self.forward(input_ids=b.padded, attention_mask=b.mask, use_cache=False).logits

    def generate(self, prompts: list[Tensor], cache: str | None = None) -> Tensor:
        longest = max(map(len, prompts))
        ids = torch.stack([torch.cat((torch.zeros(longest - len(p), dtype=torch.long), p)) for p in prompts])
        return self.model.generate(
            ids,
            attention_mask=(ids != 0).long(),
            max_new_tokens=NEW_TOKENS,
            min_new_tokens=NEW_TOKENS,
            do_sample=False,
            cache_implementation=cache,
            disable_compile=True,
        )[:, longest:]


def adamw(model: torch.nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=DECAY, fused=True)


def update(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
    optimizer.step()
    optimizer.zero_grad()


# Measuring ------------------------------------------------------------------------------------------------------------


Sides = dict[str, Callable[[], object]]


@dataclass
class Times:
    """Seconds of each call of one side, by the clock and by the processor (all threads)."""

    wall: list[float]
    cpu: list[float]


def alternate(sides: Sides, rounds: int) -> dict[str, Times]:
    """One call of every side per round, after a warm-up round."""
    for call in sides.values():
        call()
    times = {name: Times([], []) for name in sides}
    for _ in range(rounds):
        for name, call in sides.items():
            wall, cpu = time.perf_counter(), time.process_time()
            call()
            times[name].wall.append(time.perf_counter() - wall)
            times[name].cpu.append(time.process_time() - cpu)
    return times


def report(title: str, times: dict[str, Times], per: int = 1) -> None:
    ours = times["ours"]
    cells = [f"ours {statistics.median(ours.wall) / per * 1e3:8.2f} ms"]
    for name, other in times.items():
        if name == "ours":
            continue
        median = statistics.median(other.wall) / statistics.median(ours.wall)
        best, cpu = min(other.wall) / min(ours.wall), min(other.cpu) / min(ours.cpu)
        milliseconds = statistics.median(other.wall) / per * 1e3
        cells.append(f"{name} {milliseconds:8.2f} ms  {median:.2f}x (best {best:.2f}x, processor {cpu:.2f}x)")
    print(f"{title:32}", " | ".join(cells), flush=True)


def first_call(side: Callable[[], object]) -> float:
    """Seconds of a first call, which compiles; what was compiled before is forgotten."""
    torch.compiler.reset()
    start = time.perf_counter()
    side()
    return time.perf_counter() - start


def report_compiling(times: dict[str, Times], seconds: float) -> None:
    """The line above has the compiled side without the time of compiling; this one adds it."""
    ours, compiled = (statistics.median(times[name].wall) for name in ("ours", "compiled"))
    ratio = (seconds + 99 * compiled) / (100 * ours)
    print(f"{'':32} compiling took {seconds:.1f} s; 100 calls with it: {ratio:.2f}x the time of ours", flush=True)


def compare_batches(what: str, rounds: int, with_compile: bool) -> None:
    for title, lengths in (("half padding", half_padding()), ("equal lengths", [LENGTH] * ROWS)):
        b = batch(lengths)
        theirs = Theirs()
        ours = Ours(theirs.model.state_dict())
        gap = check(ours, theirs, b)
        sides: Sides = {side.name: partial(getattr(side, what), b) for side in (ours, theirs)}
        seconds = 0.0
        if with_compile:
            compiled = Theirs()
            compiled.forward = torch.compile(compiled.model)
            sides["compiled"] = partial(getattr(compiled, what), b)
            seconds = first_call(sides["compiled"])
        times = alternate(sides, rounds)
        report(f"{what}, {title}", times)
        print(f"{'':32} largest difference of logits before training: {gap:.1e}")
        if with_compile:
            report_compiling(times, seconds)


def check(ours: Ours, theirs: Theirs, b: Batch) -> float:
    """Both sides must compute the same model."""
    packed, padded = ours.prefill(b), theirs.prefill(b)
    pairs = zip(b.offsets, b.offsets[1:], strict=False)
    rows = torch.cat([padded[i, : stop - start] for i, (start, stop) in enumerate(pairs)])
    gap = (packed - rows).abs().max().item()
    if gap > 1e-4:
        raise SystemExit(f"the sides disagree: logits differ by {gap}")
    return gap


def compare_decoding(rounds: int, with_compile: bool) -> None:
    # Any prompts but the first: licence headers are much alike.
    found = [d[200:] for d in documents() if len(d) > 400]
    for dtype in (torch.float32, torch.bfloat16):
        for lengths in ([PROMPT], [PROMPT, 20, 33, 60, 12, 47, 55, 39]):
            prompts = [d[:n] for d, n in zip(found, lengths, strict=False)]
            theirs = Theirs(dtype)
            theirs.model.eval()
            ours = Ours(theirs.model.state_dict(), dtype)
            ours.model.requires_grad_(False)
            same = (ours.generate(prompts) == theirs.generate(prompts)).float().mean().item()
            sides: Sides = {
                "ours": partial(ours.generate, prompts),
                "dynamic": partial(theirs.generate, prompts),
                "static": partial(theirs.generate, prompts, "static"),
            }
            seconds = 0.0
            if with_compile:
                compiled = Theirs(dtype)
                compiled.model.eval()
                compiled.model.forward = torch.compile(compiled.model.forward)
                sides["compiled"] = partial(compiled.generate, prompts, "static")
                seconds = first_call(sides["compiled"])
            times = alternate(sides, rounds)
            name = str(dtype).removeprefix("torch.")
            report(f"decode {len(prompts)} x {NEW_TOKENS}, {name}", times, per=NEW_TOKENS)
            print(f"{'':32} times are per step, prefill included; {same:.0%} of the greedy tokens are the same")
            if with_compile:
                report_compiling(times, seconds)


# Memory ---------------------------------------------------------------------------------------------------------------


def measure_memory(side: str, lengths: list[int]) -> None:
    """Print the high-water mark of three training steps, over the level before the model and in all."""
    b = batch(lengths)
    if side == "transformers":
        import transformers  # noqa: F401  the library itself is not counted

    gc.collect()
    before = held("VmRSS")
    model = Theirs() if side == "transformers" else Ours(random_state())
    for _ in range(3):
        model.train(b)
    peak = held("VmHWM")
    print(f"{(peak - before) / 2**20:.0f} {peak / 2**20:.0f}")


def random_state() -> dict[str, Tensor]:
    """A state dict with the names and shapes of transformers, made without it."""
    s, d = SIZES, SIZES.width
    shapes: dict[str, tuple[int, ...]] = {}
    for i in range(s.layers):
        at = f"model.layers.{i}."
        shapes |= {f"{at}self_attn.{n}_proj.weight": (d, d) for n in "qkvo"}
        shapes |= {f"{at}self_attn.{n}_norm.weight": (d,) for n in "qk"}
        shapes |= {f"{at}mlp.{n}_proj.weight": (s.hidden, d) for n in ("gate", "up")}
        shapes |= {f"{at}mlp.down_proj.weight": (d, s.hidden)}
        shapes |= {f"{at}post_{n}_layernorm.weight": (d,) for n in ("attention", "feedforward")}
    shapes |= {"model.norm.weight": (d,), "model.embed_tokens.weight": (s.vocabulary, d)}
    shapes |= {"lm_head.weight": (s.vocabulary, d)}
    return {name: torch.randn(shape) * 0.02 if len(shape) > 1 else torch.ones(shape) for name, shape in shapes.items()}


def compare_memory(threads: int) -> None:
    for title, lengths in (("half", half_padding()), ("equal", [LENGTH] * ROWS)):
        peaks = {}
        for side in ("ours", "transformers"):
            command = [sys.executable, __file__, "--threads", str(threads), "--memory-of", side, "--lengths"]
            out = subprocess.run([*command, *map(str, lengths)], check=True, capture_output=True, text=True)
            peaks[side] = [float(x) for x in out.stdout.split()]
        (ours, ours_all), (theirs, theirs_all) = peaks["ours"], peaks["transformers"]
        print(
            f"{'peak memory, ' + title:32} ours {ours:.0f} MiB | transformers {theirs:.0f} MiB  {theirs / ours:.2f}x"
            f"  (whole process {ours_all:.0f} and {theirs_all:.0f} MiB)",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["train", "prefill", "decode", "memory"])
    parser.add_argument("--compile", action="store_true", help="also torch.compile the transformers model (a minute)")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--memory-of", choices=["ours", "transformers"], help=argparse.SUPPRESS)
    parser.add_argument("--lengths", type=int, nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.memory_of:
        measure_memory(options.memory_of, options.lengths)
        return
    count = sum(x.numel() for x in random_state().values())
    print(f"torch {torch.__version__}, {options.threads} threads, {count / 1e6:.1f}M parameters, {SIZES}")
    for what in ("train", "prefill"):
        if options.only in (None, what):
            compare_batches(what, options.rounds, options.compile)
    if options.only in (None, "decode"):
        compare_decoding(options.rounds, options.compile)
    if options.only in (None, "memory"):
        compare_memory(options.threads)


if __name__ == "__main__":
    main()
