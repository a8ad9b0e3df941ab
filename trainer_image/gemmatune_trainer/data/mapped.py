"""A file of tokenised rows (Arrow IPC), mapped into memory: opening one costs next to nothing, whatever its size.

Columns: input_ids as list<int32>, trained (whether a token counts in the loss) as list<bool>, of rows with images also
image, their place in images.bin, as int32. A bucket's file may be anybody's: it is held against that when it is opened,
by the ends of its rows, not token by token.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from gemmatune_api.status import DataStatus
from gemmatune_trainer.data.imagestore import pixels
from gemmatune_trainer.data.pack import IGNORED
from gemmatune_trainer.stored import Unreadable

SCHEMA = pa.schema([("input_ids", pa.list_(pa.int32())), ("trained", pa.list_(pa.bool_()))])
"""Columns of rows without images."""
_SCHEMA_OF_IMAGES = SCHEMA.append(pa.field("image", pa.int32()))
_IMAGE_SIZE = b"imageSize"


def with_images(size: int) -> pa.Schema:
    """Columns of rows with images of `size` x `size` pixels."""
    return _SCHEMA_OF_IMAGES.with_metadata({_IMAGE_SIZE: str(size)})


class PreparedData:
    """Tokenised rows without images.

    Raises Unreadable: the file is none of such rows.
    """

    _schema = SCHEMA

    def __init__(self, path: Path, statistics: DataStatus, evaluation: PreparedData | None = None) -> None:
        self.statistics = statistics
        """What prepare counted."""
        self.evaluation = evaluation
        """The rows kept for evaluation."""
        self._metadata, self._batches = _opened(path, self._schema)
        self._begins = np.cumsum([0, *(batch.num_rows for batch in self._batches)])

    @property
    def rows(self) -> int:
        """Number of rows."""
        return int(self._begins[-1])

    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of every row, shape [rows]."""
        parts = [np.diff(batch.column(0).offsets.to_numpy()) for batch in self._batches]
        return np.concatenate(parts).astype(np.int64) if parts else np.zeros(0, np.int64)

    def row(self, index: int) -> tuple[list[int], list[int]]:
        """Input ids and labels of a row (labels IGNORED where not trained).

        Raises:
            IndexError: no such row.
        """
        batch, place = self._place(index)
        column, labels = batch.column(0), batch.column(1)
        begin, end = column.offsets.to_numpy()[place : place + 2].tolist()
        ids = column.values.to_numpy()[begin:end]
        trained = labels.values[begin:end].to_numpy(zero_copy_only=False)
        return ids.tolist(), np.where(trained, ids, IGNORED).tolist()

    def _place(self, index: int) -> tuple[pa.RecordBatch, int]:
        """A row's batch and place in it."""
        if not 0 <= index < self.rows:
            raise IndexError(f"row {index} of {self.rows}")
        found = int(np.searchsorted(self._begins, index, side="right")) - 1
        return self._batches[found], index - int(self._begins[found])


class PreparedImages(PreparedData):
    """Tokenised rows with an image each, which are mapped too."""

    _schema = _SCHEMA_OF_IMAGES

    def __init__(
        self, path: Path, statistics: DataStatus, images: Path, evaluation: PreparedImages | None = None
    ) -> None:
        super().__init__(path, statistics, evaluation)
        try:
            self._pixels = pixels(images, int(self._metadata[_IMAGE_SIZE]))
        except (KeyError, ValueError) as error:
            raise Unreadable(f"no images of one size: {error}") from error
        for batch in self._batches:
            places = batch.column(2).to_numpy(zero_copy_only=False)  # a missing one becomes nan, which is nowhere
            if not ((places >= 0) & (places < len(self._pixels))).all():
                raise Unreadable(f"a row has another image than the {len(self._pixels)} that there are")

    def image(self, index: int) -> npt.NDArray[np.uint8]:
        """The picture of a row, [height, width, 3] in bytes. Raises IndexError: no such row."""
        batch, place = self._place(index)
        return self._pixels[batch.column(2)[place].as_py()]


def _opened(path: Path, schema: pa.Schema) -> tuple[Mapping[bytes, bytes], list[pa.RecordBatch]]:
    """A file's metadata and batches. Raises Unreadable."""
    try:
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        if not reader.schema.equals(schema):
            raise Unreadable(f"its columns are {', '.join(f'{field.name} ({field.type})' for field in reader.schema)}")
        batches = [_whole(reader.get_batch(index)) for index in range(reader.num_record_batches)]
    except (OSError, UnicodeDecodeError, pa.ArrowException) as error:
        if getattr(error, "errno", None) is not None:  # the disk's, not the reader's
            raise
        raise Unreadable(str(error)) from error
    if not any(batch.num_rows for batch in batches):
        raise Unreadable("it has no rows")
    return reader.schema.metadata or {}, batches


def _whole(batch: pa.RecordBatch) -> pa.RecordBatch:
    """A batch whose rows lie inside of it, with a mark for each token. Raises pyarrow.ArrowInvalid, Unreadable."""
    batch.validate(full=True)
    ids, trained = batch.column(0), batch.column(1)
    if any(column.null_count for column in (ids, trained, ids.values, trained.values)):
        raise Unreadable("a row or a token is missing")
    if not ids.offsets.equals(trained.offsets):
        raise Unreadable("a row has more or fewer marks than tokens")
    return batch
