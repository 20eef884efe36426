"""What can go wrong while a model is loaded or runs, told to the user in one line."""

from __future__ import annotations


class RuntimeFault(Exception):
    """Base of every user error of the runtime. The text is one line: what is, then what was wanted. No traceback is
    needed."""


class InputFault(RuntimeFault):
    """Something handed to a model does not fit: ids, types, lengths, offsets."""


class LoadFault(RuntimeFault):
    """A file or folder cannot be loaded: missing, damaged, or made for something else."""


class GenerateFault(RuntimeFault):
    """Generation cannot go on as asked: capacity, empty prompts, sampling settings."""
