"""The processes of one attempt: who this one is, how they meet, and the small things that they tell each other.

With torch, tensors travel through the default process group (NCCL on GPUs); what is said here goes through a group of
its own over gloo, so that it never waits for a GPU. With JAX it goes through JAX's coordinator (`ranks_jax`).
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from gemmatune_api.names import ENV_JOIN_SECONDS
from gemmatune_trainer.errors import explain

if TYPE_CHECKING:
    from gemmatune_trainer.ranks_jax import Meeting
    from gemmatune_trainer.stop import StopFlag

Value = TypeVar("Value")

PATIENCE = timedelta(days=1)
"""How long a process waits for another: hanging is for rank 0's watchdog to judge."""
FAREWELL_SECONDS = 5.0
END = "end"
"""What rank 0 says last."""
_TOLD = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class Ranks:
    """The processes; of one process by default."""

    def __init__(self, rank: int = 0, size: int = 1, local_rank: int = 0) -> None:
        self.rank = rank
        self.size = size
        self.local_rank = local_rank
        self._address = ("", 0)
        self._wait = PATIENCE
        self._group: Any = None
        self._meeting: Meeting | None = None

    @classmethod
    def of_environment(cls) -> Ranks:
        """What the launcher says. It is taken out of the environment: libraries shall see one process."""
        found = {name: os.environ.pop(name, "") for name in _TOLD}
        if not found["RANK"]:
            return cls()
        ranks = cls(int(found["RANK"]), int(found["WORLD_SIZE"]), int(found["LOCAL_RANK"]))
        ranks._address = (found["MASTER_ADDR"], int(found["MASTER_PORT"]))
        ranks._wait = timedelta(seconds=float(os.environ.get(ENV_JOIN_SECONDS) or PATIENCE.total_seconds()))
        os.environ["CUDA_VISIBLE_DEVICES"] = str(ranks.local_rank)
        return ranks

    @property
    def main(self) -> bool:
        """Whether this is rank 0, which tells the story; the others only help to compute."""
        return self.rank == 0

    def join(self, device: str, backend: str = "torch") -> None:
        """Meets the other processes; torch or JAX is imported only here."""
        if self.size == 1:
            return
        host, port = self._address
        if backend == "keras":
            from gemmatune_trainer.ranks_jax import Meeting

            self._meeting = Meeting(f"{host}:{port}", self.rank, self.size, self._wait)
            return
        from torch import distributed

        store = distributed.TCPStore(host, port, self.size, is_master=self.main, timeout=self._wait)
        backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
        distributed.init_process_group(backend, store=store, rank=self.rank, world_size=self.size, timeout=PATIENCE)
        self._group = distributed.new_group(backend="gloo", timeout=PATIENCE)

    def from_main(self, value: Value | None) -> Value:
        """What rank 0 says, on every rank."""
        if self._meeting is not None:
            return self._meeting.from_main(value, PATIENCE.total_seconds())  # type: ignore[no-any-return]
        from torch import distributed

        box = [value]
        distributed.broadcast_object_list(box, src=0, group=self._group)
        return box[0]  # type: ignore[return-value]

    def gather(self, value: Value) -> list[Value]:
        """What every rank says, in the order of ranks, on every rank."""
        if self.size == 1:
            return [value]
        if self._meeting is not None:
            return self._meeting.gather(value, PATIENCE.total_seconds())
        from torch import distributed

        found: list[Any] = [None] * self.size
        distributed.all_gather_object(found, value, group=self._group)
        return found

    def add(self, numbers: Sequence[float]) -> list[float]:
        """Sums over the ranks, in fp64 and in the order of ranks: the same bits everywhere."""
        return [sum(column) for column in zip(*self.gather(list(numbers)), strict=True)]

    def any(self, flag: bool) -> bool:
        """Whether it is so on any rank."""
        if self.size == 1:
            return flag
        if self._meeting is not None:
            return any(self.gather(flag))
        import torch

        found = torch.tensor([int(flag)])
        torch.distributed.all_reduce(found, op=torch.distributed.ReduceOp.MAX, group=self._group)
        return bool(found.item())

    def stopping(self, stop: StopFlag, *, waiting: bool = False) -> bool:
        """Whether any rank shall stop; then the flag of every rank is up, so that rank 0 takes nothing for finished.

        `waiting`: who asks only waits, which is no sign of life.
        """
        found = self.any(stop.raised if waiting else stop.requested)
        if found and not stop.raised:
            stop.request("SIGTERM of another pod")
        return found

    def barrier(self) -> None:
        """Waits until all are here."""
        self.gather(None)

    def leaders_first(self, work: Callable[[], Value]) -> Value:
        """Does work on every rank, on each host first on one of them: downloads are then there for the others."""
        if self.local_rank:
            self.barrier()
            return work()
        done = work()
        self.barrier()
        return done

    def end(self) -> None:
        """Lets the others end as rank 0 does, whose exception may be passing through.

        They may be busy with what rank 0 has broken off: it does not wait long for them.
        """
        if self._group is None and self._meeting is None:
            return
        error = sys.exception()
        known = explain(error) if error is not None else None
        end = (END, (known, error is not None and known is None))

        def tell() -> None:
            self.from_main(end)
            self.leave()

        teller = threading.Thread(target=tell, daemon=True)
        teller.start()
        teller.join(FAREWELL_SECONDS)

    def leave(self) -> None:
        """What every process does last, once rank 0 has said that this is the end."""
        if self._meeting is not None:
            self._meeting.leave()

    def broadcast(self, tensor: Any, like: tuple[Sequence[int], Any], device: Any) -> Any:
        """A tensor of rank 0 on every rank, on `device`; `like` is its shape and data type."""
        import torch

        if self.size == 1:
            return tensor.to(device)
        shape, dtype = like
        found = tensor.to(device, dtype).contiguous() if self.main else torch.empty(shape, dtype=dtype, device=device)
        torch.distributed.broadcast(found, src=0)
        return found
