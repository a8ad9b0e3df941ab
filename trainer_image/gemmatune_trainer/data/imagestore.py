"""The images of prepared rows: each different one once, at the model's size, in one file that training maps.

The file is pixels and nothing else, [images, size, size, 3] in bytes. A row names its image by its place there.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gemmatune_trainer.data import images
from gemmatune_trainer.data.rows import Row

_DIGEST_BYTES = 16


class ImageStore:
    """Takes in the images of rows while they are read. In memory are a digest and a name of each, never its pixels."""

    def __init__(self, path: Path, size: int) -> None:
        """`path`: where the pixels are written. `size`: height and width that the model reads."""
        self.size = size
        self._path = path
        self._file = path.open("wb")
        self._named: dict[str, str] = {}
        self.places: dict[str, int] = {}
        """The place of each image by its digest."""

    def add(self, row: Row, column: str) -> str:
        """The digest of a row's image, whose pixels are written where they are new.

        Raises:
            DataInvalid: it cannot be read or is no image; names row and column.
        """
        found = images.reference(row, column)
        if isinstance(found, str) and found in self._named:
            return self._named[found]
        try:
            data = found if isinstance(found, bytes) else images.load(found)
            digest = hashlib.blake2b(data, digest_size=_DIGEST_BYTES).hexdigest()
            if digest not in self.places:
                self._file.write(images.decode(data, self.size).tobytes())
                self.places[digest] = len(self.places)
        except images.Unreadable as error:
            raise images.invalid(row, column, error) from error
        if isinstance(found, str):
            self._named[found] = digest
        return digest

    def finish(self, path: Path) -> None:
        """Moves the pixels to their place; nothing can be added any more."""
        self._file.close()
        self._path.rename(path)


def pixels(path: Path, size: int) -> npt.NDArray[Any]:
    """The images of a file, mapped: what is not looked at takes no memory."""
    return np.memmap(path, np.uint8, "r").reshape(-1, size, size, 3)
