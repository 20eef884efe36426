"""A kernel as text, with what a launcher would pass: all that is needed to compile it without a GPU or a model."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class KernelText:
    """One Triton kernel in one configuration.

    name       the jitted function in `text`
    text       a Python module: imports, what the kernel calls, the kernel
    arguments  (name, type as Triton spells it) of every argument passed at launch, such as ("x_ptr", "*bf16") or
               ("rows", "i32"), in the order of the signature. A launcher makes an integer that is 1 a constant: if
               that can happen, it is another kernel
    constants  (name, value) of every `tl.constexpr` parameter: numbers, truths, strings, None, tuples of them; a type
               of Triton's is written "tl.float32"
    divisible  the arguments that are multiples of 16, pointers in bytes and integers in value. Without them another,
               slower kernel would be compiled than the one that a launcher gets
    warps      warps of a program (wavefronts on AMD)
    stages     how many loop turns are in flight in a software pipeline
    """

    name: str
    text: str
    arguments: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, object], ...]
    divisible: tuple[str, ...]
    warps: int
    stages: int
