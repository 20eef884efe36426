"""Which of several processes one is. Nothing here imports torch: the process that starts them needs none of it."""

from __future__ import annotations

from dataclasses import dataclass

SILENT = 3  # exit code of a rank that leaves the word to another
BY_THE_ENVIRONMENT = "env://"  # how torchrun has ranks meet


@dataclass(frozen=True)
class Place:
    """Which of how many processes this is, on this machine too, and where they meet: an address as
    `torch.distributed.init_process_group` takes it."""

    number: int
    count: int
    on_machine: int
    meeting: str = BY_THE_ENVIRONMENT
