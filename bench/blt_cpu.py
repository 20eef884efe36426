"""Compare Weft's BLT with transformers' BltForCausalLM on a CPU: training, generation, memory.

    python bench/blt_cpu.py                      # everything
    python bench/blt_cpu.py --only train         # train, generate, flat or memory

A model of about 20M parameters (hash tables included), fp32, the same weights and the same patch boundaries on both
sides. Rows are bytes of the standard library, of unequal length: transformers pads them, we pack them. Sides take
turns within one process; a row gives the median of each and the ratio of times (above 1: we are faster).

    train      forward, loss, backward and fused AdamW on 8 rows
    generate   256 bytes after a prompt of 1,024; transformers without its cache, the only mode that is right
    flat       milliseconds per byte after prompts of 256, 1,024 and 4,096 bytes
    memory     peak of one training step and of one generation, as the text doubles: bytes of live tensors
"""

import argparse
import itertools
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.process_memory import high_water  # noqa: E402
from weft.runtime.decoder import Decoder, decoder_of  # noqa: E402
from weft.runtime.model import Model, load  # noqa: E402
from weft.runtime.transfer import import_checkpoint  # noqa: E402

LENGTHS = (512, 120, 180, 400, 220, 140, 300, 176)  # half of the padded rectangle, as in bench/cpu.py
PATCH = 4.5  # bytes of a patch, on average
NEW_BYTES = 256
MEMORY_LENGTHS = (1024, 2048, 4096, 8192)


def theirs():
    """The transformers model, with weights that spread the entropies of its patcher."""
    from transformers import BltConfig, BltForCausalLM
    from transformers.utils import logging

    logging.set_verbosity_error()
    local = {
        "vocab_size": 260, "hidden_size": 256, "num_attention_heads": 8, "intermediate_size": 768,
        "max_position_embeddings": 8192, "cross_attn_k": 2, "hidden_size_global": 512,
    }  # fmt: skip
    make_config: Any = BltConfig
    config = make_config(
        vocab_size=260, patch_in_forward=True, patching_mode="entropy", patch_size=4, patching_threshold=0.0,
        cross_attn_k=2, local_attention_window_len=512, encoder_hash_byte_group_size=[3, 4, 5, 6, 7, 8],
        encoder_hash_byte_group_vocab=2003, encoder_hash_byte_group_nb_functions=1, max_position_embeddings=8192,
        hidden_size_global=512,
        patcher_config={
            "vocab_size": 260, "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
            "intermediate_size": 384, "max_position_embeddings": 8192, "sliding_window": 512,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        },
        encoder_config=dict(local, num_hidden_layers=1, cross_attn_all_layers=False),
        decoder_config=dict(local, num_hidden_layers=4, cross_attn_all_layers=True),
        global_config={
            "hidden_size": 512, "num_hidden_layers": 4, "num_attention_heads": 8, "intermediate_size": 1408,
            "max_position_embeddings": 8192,
        },
    )  # fmt: skip
    torch.manual_seed(0)
    model: Any = BltForCausalLM(config)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 2:
                weight.copy_(torch.randn_like(weight) * weight.shape[1] ** -0.5)
        entropies = torch.cat(
            [model.model.patcher(row[None], patch_size=4, threshold=0.0)[0][0] for row in texts(LENGTHS)]
        )
        threshold = entropies.quantile(1 - 1 / PATCH).item()
    model.config.patching_threshold = model.model.config.patching_threshold = threshold
    return model


def ours(model) -> Model:
    """The same model, imported."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        imported = import_checkpoint(ROOT / "specs/blt.weft", Path(folder), Path(folder) / "weft")
        return load(imported.checkpoint)  # type: ignore[return-value]


def texts(lengths: tuple[int, ...]) -> list[Tensor]:
    """Bytes of files of the standard library behind the mark that begins a text."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"), key=lambda f: f.name)
    found = [file.read_bytes() for file in files if file.stat().st_size > 20_000]
    return [torch.tensor([1, *(b + 4 for b in data[: n - 1])]) for data, n in zip(found, lengths, strict=False)]


class Ours:
    name = "ours"

    def __init__(self, state) -> None:
        self.model = ours(state)
        self.optimizer = adamw(self.model)

    def train(self, rows: list[Tensor], ends: list[Tensor]) -> None:
        total, count = self.model.loss(None, rows, ends=ends)["cross_entropy"]
        (total / count).backward()
        update(self.model, self.optimizer)

    def generate(self, prompt: Tensor, new: int) -> Tensor:
        decoder = decoder_of(self.model)
        logits, state = decoder.prefill([prompt], capacity=len(prompt) + new)
        made = []
        for _ in range(new):
            made.append(logits.argmax(-1))
            if len(made) < new:
                logits, state = decoder.step(state, made[-1])
        return torch.cat(made)


class Theirs:
    name = "transformers"

    def __init__(self, model) -> None:
        self.model = model
        for weight in model.model.patcher.parameters():
            weight.requires_grad_(False)
        self.optimizer = adamw(model)

    def train(self, rows: list[Tensor], ends: list[Tensor]) -> None:
        """Padded; padding lies in the last patch and is no target."""
        longest = max(map(len, rows))
        ids = torch.stack([torch.nn.functional.pad(row, (0, longest - len(row))) for row in rows])
        labels = torch.stack([torch.nn.functional.pad(row, (0, longest - len(row)), value=-100) for row in rows])
        lengths = [patch_lengths(flags, longest) for flags in ends]
        most = max(map(len, lengths))
        table = torch.tensor([row + [0] * (most - len(row)) for row in lengths])
        self.model(input_ids=ids, labels=labels, patch_lengths=table, use_cache=False).loss.backward()
        update(self.model, self.optimizer)

    def generate(self, prompt: Tensor, new: int) -> Tensor:
        made = self.model.generate(
            prompt[None], max_new_tokens=new, min_new_tokens=new, do_sample=False, use_cache=False, pad_token_id=0
        )
        return made[0, len(prompt) :]


def patch_lengths(flags: Tensor, total: int) -> list[int]:
    stops = (flags.nonzero()[:, 0] + 1).tolist()
    stops = [stop for stop in stops if stop < total] + [total]
    return [stop - start for start, stop in zip([0, *stops], stops, strict=False)]


def adamw(model) -> torch.optim.Optimizer:
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    return torch.optim.AdamW(trained, lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)


def update(model, optimizer: torch.optim.Optimizer) -> None:
    torch.nn.utils.clip_grad_norm_([w for w in model.parameters() if w.grad is not None], 1.0)
    optimizer.step()
    optimizer.zero_grad()


# Measuring ------------------------------------------------------------------------------------------------------------


def in_turns(work: dict[str, Callable[[], object]], turns: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in work}
    for run in work.values():
        run()
    for _ in range(turns):
        for name, run in work.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    return times


def report(what: str, times: dict[str, list[float]]) -> None:
    mine = times["ours"]
    for name, found in times.items():
        ratio, best = statistics.median(found) / statistics.median(mine), min(found) / min(mine)
        print(f"{what:10} {name:14} {statistics.median(found):9.3f} s   {ratio:6.2f}x   best {best:6.2f}x", flush=True)


def train(turns: int) -> None:
    model = theirs()
    us, them = Ours(model), Theirs(model)
    print(f"{sum(p.numel() for p in us.model.parameters()):,} weights, rows of {', '.join(map(str, LENGTHS))} bytes")
    rows = texts(LENGTHS)
    ends = us.model.values(("ends",), rows)["ends"]
    lengths = [int(flags.sum()) for flags in ends]
    print(f"{sum(map(len, rows)) / sum(lengths):.2f} bytes a patch")
    check_equal(us, them, rows[1], ends[1])
    work: dict[str, Any] = {side.name: (lambda side=side: side.train(rows, ends)) for side in (us, them)}
    report("train", in_turns(work, turns))


def check_equal(us: Ours, them: Theirs, row: Tensor, ends: Tensor) -> None:
    with torch.no_grad():
        want = them.model(
            input_ids=row[None], patch_lengths=torch.tensor([patch_lengths(ends, len(row))]), use_cache=False
        ).logits[0]
        got = us.model([row], ends=[ends])[0]
    error = (got - want).abs().max().item()
    print(f"logits differ by {error:.1e} at a scale of {want.abs().max().item():.1f}")
    if error > 1e-3:
        raise SystemExit("the two sides do not compute the same")


def generate(turns: int) -> None:
    model = theirs()
    us, them = Ours(model), Theirs(model)
    (prompt,) = texts((1024,))
    with torch.inference_mode():
        work: dict[str, Any] = {side.name: (lambda side=side: side.generate(prompt, NEW_BYTES)) for side in (us, them)}
        times = in_turns({"ours": work["ours"]}, turns)
        start = time.perf_counter()
        theirs_made = work["transformers"]()
        times["transformers"] = [time.perf_counter() - start]
        same = (us.generate(prompt, NEW_BYTES) == theirs_made).float().mean().item()
    report("generate", times)
    print(f"{same:.0%} of the bytes are the same")


def flat(turns: int) -> None:
    us = Ours(theirs())
    decoder = Decoder(us.model)
    for length in (256, 1024, 4096):
        (prompt,) = texts((length,))
        with torch.inference_mode():
            logits, state = decoder.prefill([prompt], capacity=length + NEW_BYTES * (turns + 1))
            times = []
            for _ in range(turns + 1):
                start = time.perf_counter()
                for _ in range(NEW_BYTES):
                    logits, state = decoder.step(state, logits.argmax(-1))
                times.append((time.perf_counter() - start) / NEW_BYTES)
        print(f"flat       prompt of {length:5}: {statistics.median(times[1:]) * 1e3:7.2f} ms per byte", flush=True)


def memory() -> None:
    for what in ("train", "generate"):
        found = []
        for length in MEMORY_LENGTHS:
            command = [sys.executable, __file__, "--peak", what, str(length)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found.append(tuple(map(int, done.stdout.split()[-4:])))
        alive, largest, resident, patches = zip(*found, strict=True)
        lengths = ", ".join(f"{length:,}" for length in MEMORY_LENGTHS)
        print(f"memory     {what}: {lengths} bytes in {', '.join(map(str, patches))} patches", flush=True)
        for name, peaks in (("live tensors", alive), ("largest tensor", largest), ("resident", resident)):
            growth = ", ".join(f"{b / a:.2f}x" for a, b in itertools.pairwise(peaks))
            shown = ", ".join(f"{peak / 2**20:.1f}" for peak in peaks)
            print(f"           {name:14} {shown} MiB; growth {growth}", flush=True)


def peak(what: str, length: int) -> None:
    """Prints, in bytes, over what was there before: the most that tensors took at once, the largest of them, the high
    water of the process; and the number of patches.

    The allocator keeps what was freed and gives pages back in its own time, so that the process says little about what
    a step needs. Text is one kilobyte again and again: more text, but none that is cut more finely.
    """
    from tests.counted_memory import allocated

    us = Ours(theirs())
    (once,) = texts((MEMORY_LENGTHS[0],))
    row = once.repeat(length // len(once))

    def run(row: Tensor) -> None:
        if what == "train":
            total, count = us.model.loss(None, [row])["cross_entropy"]
            (total / count).backward()
            us.optimizer.zero_grad()
        else:
            with torch.inference_mode():
                us.generate(row, 8)

    run(row[:64])  # graphs are made, weights packed
    resident = high_water(lambda: run(row))
    with allocated() as found:
        run(row)
    patches = int(us.model.values(("ends",), [row])["ends"][0].sum())
    print(found.peak, found.largest, resident, patches)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=("train", "generate", "flat", "memory"))
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        peak(options.peak[0], int(options.peak[1]))
        return 0
    for name in options.only or ("train", "generate", "flat", "memory"):
        if name == "memory":
            memory()
        else:
            {"train": train, "generate": generate, "flat": flat}[name](options.turns)
    return 0


if __name__ == "__main__":
    sys.exit(main())
