"""A generated kernel as an ahead-of-time compiler needs it: text and how it is called, nothing of how it was made."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Argument:
    """A parameter of a kernel, Triton's name of its type, and whether it is a multiple of 16."""

    name: str
    type: str
    divisible: bool = False


@dataclass(frozen=True)
class KernelText:
    """`text` is a whole module that holds the jitted function `name`.

    arguments: names and Triton types ("*bf16", "i32") of what is passed at run time; constants: values of the
    constexpr parameters; divisible: arguments that are multiples of 16 (pointers: of 16 bytes). Together they name
    every parameter of the function. `warps` and `stages` are launch options, and so is `registers`: how many a thread
    may have on NVIDIA's GPUs, where that is not left to the assembler.
    """

    name: str
    text: str
    arguments: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, int | float | bool | str], ...]
    divisible: tuple[str, ...]
    warps: int
    stages: int
    registers: int | None = None
