"""A second process of an attempt that has been told to stop, for one that generates: no process is needed for that."""

from __future__ import annotations

from gemmatune_trainer.ranks import Ranks


class OtherToldToStop(Ranks):
    """Rank 0 of two; the other one's flag is up."""

    def any(self, flag: bool) -> bool:
        """Whether it is so on any rank: on the other it is."""
        return True
