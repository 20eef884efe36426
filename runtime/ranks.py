"""The processes that train one model together, and what they say to each other.

Each is a *rank*. All make the same global batch and compute their share of it; sums and counts are added before
anything is divided, so that the number of ranks changes results by rounding only. `ALONE` is one process: what it is
asked to add up it gives back.

**When one ends.** A rank that fails claims the word, says why and closes its connections; the others notice that,
find the word taken and end in silence. A rank that was killed says nothing: whoever loses it calls the roll, and the
first to do so names who is missing. So a run ends with one message, within seconds.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from .errors import RuntimeFault
from .rank_place import SILENT, Place

CPU = torch.device("cpu")
PATIENCE = timedelta(minutes=30)  # with ranks that are connected: the first writes checkpoints alone
ROLL_CALL = 4.0  # seconds in which every rank that is alive answers
LISTENING = 0.3  # seconds between looks whether the roll is called

# What the store of a run holds.
_WORD, _CALLED, _HERE = "weft/word", "weft/called", "weft/here/{}"


class RankLost(RuntimeFault):
    """Another rank has ended."""


@dataclass(frozen=True, eq=False)
class Ranks:
    """This rank's view. `store` holds what they tell each other beside tensors; of one process there is none."""

    number: int = 0
    count: int = 1
    device: torch.device = CPU  # where tensors that are exchanged lie
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
        self.store.set(_CALLED, "")
        until = time.monotonic() + ROLL_CALL
        missing = list(range(self.count))
        while missing and time.monotonic() < until and not self.store.check([_WORD]):
            missing = [number for number in missing if not self.store.check([_HERE.format(number)])]
            time.sleep(0.05)
        if not missing or self.store.check([_WORD]):
            return RankLost(f"the connection between the {self.count} processes broke")
        names = " and ".join(str(number) for number in missing)
        have = "has" if len(missing) == 1 else "have"
        return RankLost(
            f"process {names} of {self.count} (counted from 0) {have} died, killed or out of memory, so all stopped: "
            "the same command with --resume goes on, on any number of processes"
        )

    def claim_the_word(self) -> bool:
        """Whether this rank is the one to say why the run ends."""
        try:
            return self.is_alone or self.store.add(_WORD, 1) == 1
        except RuntimeError:  # the store went with the rank that held it
            return True


ALONE = Ranks()


@contextmanager
def joined(place: Place | None, device: str) -> Iterator[Ranks]:
    """Meets the other ranks, and leaves them in the end. `device` as in a run's config. None: alone."""
    if place is None or place.count == 1:
        yield ALONE
        return
    ranks = Ranks(place.number, place.count, _kind_of(device), _meet(place))
    try:
        with ranks.watched():
            ranks = replace(ranks, device=_own_device(place, ranks.device))
            _connect(ranks)
            with _answering(ranks):
                yield ranks
    except BaseException as error:
        # The connections are closed by the end of this process: orderly goodbyes could wait for one that is dead.
        if isinstance(error, SystemExit) or ranks.claim_the_word():
            raise
        raise SystemExit(SILENT) from None
    dist.destroy_process_group()


def _meet(place: Place) -> Any:
    """What ranks tell each other beside tensors."""
    from torch.distributed.rendezvous import rendezvous  # there are systems without

    try:
        store, _, _ = next(rendezvous(place.meeting, place.number, place.count, timeout=PATIENCE))
    except (RuntimeError, ValueError) as error:
        what = str(error).splitlines()[0]
        raise RuntimeFault(f"process {place.number} of {place.count} did not find the others: {what}") from None
    return store


def _connect(ranks: Ranks) -> None:
    on_gpu = ranks.device.type == "cuda"
    dist.init_process_group(
        "nccl" if on_gpu else "gloo",
        store=ranks.store,
        rank=ranks.number,
        world_size=ranks.count,
        timeout=PATIENCE,
        device_id=ranks.device if on_gpu else None,
    )
    # One that ends at once, for a mistake, would leave others waiting for their connection to it.
    dist.barrier()


@contextmanager
def _answering(ranks: Ranks) -> Iterator[None]:
    """A thread that answers when the roll is called: this rank may be waiting for one that waits in turn."""
    is_over = threading.Event()

    def listen() -> None:
        with suppress(RuntimeError):  # the store has gone with the rank that held it
            while not is_over.wait(LISTENING):
                if ranks.store.check([_CALLED]):
                    ranks.store.set(_HERE.format(ranks.number), "")
                    return

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def _kind_of(device: str) -> torch.device:
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device not in ("cpu", "cuda"):
        raise RuntimeFault(f"several processes have a device each: give cpu, cuda or auto, not {device}")
    return torch.device(device)


def _own_device(place: Place, kind: torch.device) -> torch.device:
    if kind.type == "cpu":
        return kind
    there = torch.cuda.device_count()
    if place.on_machine >= there:
        raise RuntimeFault(f"{place.on_machine + 1} processes or more on a machine with {there} GPUs")
    torch.cuda.set_device(place.on_machine)
    return torch.device("cuda", place.on_machine)


def _is_lost_connection(error: RuntimeError) -> bool:
    """Torch has a class for what its own store and NCCL report; gloo's come as plain RuntimeErrors."""
    return isinstance(error, dist.DistError) or "gloo" in str(error)
