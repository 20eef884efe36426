"""The processes that train one model together, and what they say to each other.

Each is a *rank*. All make the same global batch and compute their share of it; sums and counts are added before
anything is divided, so that the number of ranks changes results by rounding only. `ALONE` is one process: what it is
asked to add up it gives back.

**When one ends.** A rank that fails claims the word, says why and closes its connections; the others notice that,
find the word taken and end in silence. A rank that was killed says nothing: those that lost it call the roll, and the
first of them names who is missing. So a run ends with one message, within seconds.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from .errors import RuntimeFault

SILENT = 3  # exit code of a rank that leaves the word to another
PATIENCE = timedelta(minutes=30)  # with ranks that are connected: the first writes checkpoints alone
ROLL_CALL = 3.0  # seconds in which every rank that is left must have noticed
BY_THE_ENVIRONMENT = "env://"  # how torchrun has ranks meet


class RankLost(RuntimeFault):
    """Another rank has ended."""


@dataclass(frozen=True)
class Place:
    """Which of how many processes this is, on this machine too, and where they meet: an address as
    `torch.distributed.init_process_group` takes it."""

    number: int
    count: int
    on_machine: int
    meeting: str = BY_THE_ENVIRONMENT


@dataclass(frozen=True, eq=False)
class Ranks:
    """This rank's view. `store` holds what they tell each other beside tensors; of one process there is none."""

    number: int = 0
    count: int = 1
    device: torch.device = torch.device("cpu")  # where tensors that are exchanged lie
    store: Any = None

    @property
    def is_first(self) -> bool:
        """The one that writes and prints."""
        return self.number == 0

    @property
    def is_alone(self) -> bool:
        return self.count == 1

    def sum(self, tensor: Tensor) -> Tensor:
        """Over all ranks: a new tensor."""
        if self.is_alone:
            return tensor
        total = tensor.detach().to(self.device, copy=True)
        dist.all_reduce(total)
        return total.to(tensor.device)

    def sum_scalars(self, values: Sequence[Tensor]) -> list[Tensor]:
        """Tensors of one number each, over all ranks: in float64 and at once, then in their own types."""
        if self.is_alone or not values:
            return list(values)
        totals = self.sum(torch.stack([value.detach().double().reshape(()) for value in values]))
        return [total.to(value.dtype) for total, value in zip(totals, values, strict=True)]

    def largest(self, number: int) -> int:
        """Of all ranks' numbers."""
        if self.is_alone:
            return number
        found = torch.tensor(number, device=self.device)
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return int(found)

    def from_first(self, value: str | None) -> str | None:
        """What the first rank has for it."""
        if self.is_alone:
            return value
        told = [value]
        dist.broadcast_object_list(told, device=self.device)
        return told[0]

    def exchange(self, x: Tensor, sent: Sequence[int], received: Sequence[int]) -> Tensor:
        """The first `sent[r]` rows of what is left of x go to rank r; of each rank r come `received[r]` rows."""
        given = x.new_empty(sum(received), *x.shape[1:])
        dist.all_to_all_single(given, x.contiguous(), list(received), list(sent))
        return given

    def counts(self, numbers: Sequence[int]) -> list[int]:
        """`numbers[r]` is for rank r; what all ranks have for this one."""
        ones = [1] * self.count
        return self.exchange(torch.tensor(numbers, device=self.device), ones, ones).tolist()

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Turns a lost connection into a RankLost that says who is missing."""
        try:
            yield
        except RuntimeError as error:  # what torch raises; a RuntimeFault is none
            if self.is_alone or not _is_lost_connection(error):
                raise
            raise self._lost() from None

    def _lost(self) -> RankLost:
        self.store.set(f"left/{self.number}", "1")
        until = time.monotonic() + ROLL_CALL
        missing = list(range(self.count))
        while missing and time.monotonic() < until and not self.store.check(["word"]):
            missing = [number for number in missing if not self.store.check([f"left/{number}"])]
            time.sleep(0.05)
        if not missing or self.store.check(["word"]):
            return RankLost(f"the connection between the {self.count} processes broke")
        names = " and ".join(str(number) for number in missing)
        have = "has" if len(missing) == 1 else "have"
        return RankLost(
            f"process {names} of {self.count} (counted from 0) {have} died, so the others stopped: it was killed, or "
            "memory ran out"
        )

    def claim_the_word(self) -> bool:
        """Whether this rank is the one to say why the run ends."""
        try:
            return self.is_alone or self.store.add("word", 1) == 1
        except RuntimeError:  # the store went with the rank that held it
            return True


ALONE = Ranks()


@contextmanager
def joined(place: Place | None, device: str) -> Iterator[Ranks]:
    """Meets the other ranks, and leaves them in the end. `device` as in a run's config. None: alone."""
    if place is None or place.count == 1:
        yield ALONE
        return
    where = _device_of(place, device)
    store = _meet(place, where)
    ranks = Ranks(place.number, place.count, where, store)
    try:
        with ranks.watched():
            yield ranks
    except BaseException as error:
        # The connections are closed by the end of this process: orderly goodbyes could wait for one that is dead.
        if isinstance(error, SystemExit) or ranks.claim_the_word():
            raise
        raise SystemExit(SILENT) from None
    dist.destroy_process_group()


def _meet(place: Place, device: torch.device) -> Any:
    """What ranks tell each other beside tensors."""
    from torch.distributed.rendezvous import rendezvous  # there are systems without

    try:
        store, number, count = next(rendezvous(place.meeting, place.number, place.count, timeout=PATIENCE))
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            store=dist.PrefixStore("torch", store),
            rank=number,
            world_size=count,
            timeout=PATIENCE,
            device_id=device if device.type == "cuda" else None,
        )
    except (RuntimeError, ValueError) as error:
        what = str(error).splitlines()[0]
        raise RuntimeFault(f"process {place.number} of {place.count} did not find the others: {what}") from None
    return dist.PrefixStore("weft", store)


def _device_of(place: Place, device: str) -> torch.device:
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        return torch.device("cpu")
    if device != "cuda":
        raise RuntimeFault(f"each of {place.count} processes has a device of its own: cpu, cuda or auto, not {device}")
    there = torch.cuda.device_count()
    if place.on_machine >= there:
        raise RuntimeFault(f"process {place.on_machine} on this machine has no GPU: there are {there}, counted from 0")
    torch.cuda.set_device(place.on_machine)
    return torch.device("cuda", place.on_machine)


def _is_lost_connection(error: RuntimeError) -> bool:
    """Torch has a class for what its own store and NCCL report; gloo's come as plain RuntimeErrors."""
    return isinstance(error, dist.DistError) or "gloo" in str(error)
