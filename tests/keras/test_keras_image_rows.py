"""Rows with images: where the images are looked for, what a person is told of a bad one, and how pixels are kept."""

from __future__ import annotations

import io
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from PIL import Image

from gemmatune_api.names import ENV_CACHE, ENV_GCS_ENDPOINT
from gemmatune_api.runconfig import RunConfig, RunMesh
from gemmatune_api.spec import ImageTextFormat
from gemmatune_trainer.data import images, prepared
from gemmatune_trainer.data.mapped import PreparedImages
from gemmatune_trainer.errors import DataInvalid, InvalidConfig, TrainerError
from gemmatune_trainer.prepare import prepare
from gemmatune_trainer.stop import StopFlag
from gemmatune_trainer.storage import open_storage
from tests.support.fakegcs import FakeGcs
from tests.support.tinymodels import IMAGE, write_model, write_paligemma
from tests.trainer.conftest import run_config

FORMAT = ImageTextFormat(image="file", prefix="answer {question}", suffix="{answer}")


def png(colour: tuple[int, int, int] = (200, 30, 30), size: tuple[int, int] = (20, 10), **options: Any) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", size, colour).save(data, "PNG", **options)
    return data.getvalue()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two good images, beside which rows are written."""
    monkeypatch.setenv(ENV_CACHE, str(tmp_path / "cache"))
    data = tmp_path / "data"
    (data / "pictures").mkdir(parents=True)
    (data / "pictures/a.png").write_bytes(png())
    (data / "pictures/b.png").write_bytes(png((30, 30, 200)))
    (tmp_path / "secret.png").write_bytes(png((1, 2, 3)))
    return data


def row(file: Any, **changes: Any) -> dict[str, Any]:
    return {"file": file, "question": "what", "answer": "red", **changes}


Configure = Callable[..., RunConfig]


@pytest.fixture
def configure(folder: Path, tmp_path: Path) -> Configure:
    """`configure(rows)`: a run on these rows, in a jsonl file or whatever `name` says."""
    model = write_paligemma(tmp_path / "model")

    def make(rows: list[dict[str, Any]], name: str = "rows.jsonl", uri: str = "", **changes: Any) -> RunConfig:
        path = folder / name
        if name.endswith(".parquet"):
            pyarrow.parquet.write_table(pa.Table.from_pylist(rows), path)
        elif name.endswith(".csv"):
            lines = [",".join(rows[0]), *(",".join(str(value) for value in row.values()) for row in rows)]
            path.write_text("\n".join(lines) + "\n")
        else:
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        config = run_config(model, path, tmp_path / "out", global_batch_size=1, micro_batch_size=1, **changes)
        dataset = {"text": None, "image_text": FORMAT, "packing": False, **({"uri": uri} if uri else {})}
        return config.model_copy(
            update={
                "backend": "keras",
                "mesh": RunMesh(data=2, model=4),
                "dataset": config.dataset.model_copy(update=dataset),
                "samples": config.samples.model_copy(update={"prompts": []}),
            }
        )

    return make


def loaded(config: RunConfig, tmp_path: Path) -> PreparedImages:
    result = prepare(config, StopFlag())
    assert result.data is not None
    storage = open_storage(config.output.uri)
    found = prepared.load(storage, config.output.uri, result.data.hash or "", tmp_path / "loaded")
    assert isinstance(found, PreparedImages)
    return found


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv", "rows.parquet"])
def test_every_kind_of_file_names_its_images_relative_to_itself(
    name: str, configure: Configure, tmp_path: Path
) -> None:
    """An image that several rows share is kept once."""
    files = ["pictures/a.png", "pictures/b.png", "pictures/a.png"]
    found = loaded(configure([row(file) for file in files], name), tmp_path)
    colours = [tuple(found.image(index)[3, 5]) for index in range(3)]
    assert colours == [(200, 30, 30), (30, 30, 200), (200, 30, 30)]
    assert found.image(0).shape == (IMAGE, IMAGE, 3)
    (kept,) = (tmp_path / "loaded").rglob(prepared.IMAGES)
    assert kept.stat().st_size == 2 * IMAGE * IMAGE * 3


def test_the_suffix_and_its_terminator_are_trained_and_the_prefix_is_not(configure: Configure, tmp_path: Path) -> None:
    config = configure([row("pictures/a.png")])
    found = loaded(config, tmp_path)
    from gemmatune_trainer.models import fetch

    tokenizer = fetch(config.model, weights=False).tokenizer
    ids, labels = found.row(0)
    trained = [token for token, label in zip(ids, labels, strict=True) if label != -100]
    masked = [token for token, label in zip(ids, labels, strict=True) if label == -100]
    assert trained[-1] == tokenizer.eos_id
    assert tokenizer.decode(trained) == "red"
    assert masked[0] == tokenizer.bos_id
    assert tokenizer.decode(masked) == "answer what\n"


@pytest.mark.parametrize("as_datasets_writes_it", [False, True])
def test_a_parquet_file_may_hold_the_images(as_datasets_writes_it: bool, configure: Configure, tmp_path: Path) -> None:
    value = {"bytes": png(), "path": None} if as_datasets_writes_it else png()
    found = loaded(configure([row(value)], "rows.parquet"), tmp_path)
    assert tuple(found.image(0)[0, 0]) == (200, 30, 30)


def test_images_of_a_bucket(configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative to the rows' object, or by a URI of the same bucket."""
    with FakeGcs() as server:
        monkeypatch.setenv(ENV_GCS_ENDPOINT, server.endpoint)
        bucket = server.new_bucket()
        client = server.client()
        rows = [row("pictures/a.png"), row(f"gs://{bucket}/b.png")]
        client.bucket(bucket).blob("set/pictures/a.png").upload_from_string(png())
        client.bucket(bucket).blob("b.png").upload_from_string(png((30, 30, 200)))
        text = "".join(json.dumps(item) + "\n" for item in rows)
        client.bucket(bucket).blob("set/rows.jsonl").upload_from_string(text)
        uri = f"gs://{bucket}/set/rows.jsonl"
        found = loaded(configure(rows, uri=uri), tmp_path)
        assert [tuple(found.image(index)[0, 0]) for index in range(2)] == [(200, 30, 30), (30, 30, 200)]
        missing = json.dumps(row("pictures/none.png"))
        client.bucket(bucket).blob("set/rows.jsonl").upload_from_string(missing)
        with pytest.raises(DataInvalid, match=rf"no object gs://{bucket}/set/pictures/none.png"):
            prepare(configure(rows, uri=uri), StopFlag())
        client.bucket(bucket).blob("set/rows.jsonl").upload_from_string(json.dumps(row("empty.png")))
        client.bucket(bucket).blob("set/empty.png").upload_from_string(b"")
        with pytest.raises(DataInvalid, match="found no JPEG, PNG or WebP file: an empty file"):
            prepare(configure(rows, uri=uri), StopFlag())
        elsewhere = json.dumps(row("gs://another/b.png"))
        client.bucket(bucket).blob("set/rows.jsonl").upload_from_string(elsewhere)
        with pytest.raises(DataInvalid, match="expected an image in the bucket of the row's file"):
            prepare(configure(rows, uri=uri), StopFlag())


def bomb() -> bytes:
    """A PNG whose header says 60,000 x 60,000 pixels, in a few bytes."""
    data = bytearray(png())
    data[16:24] = (60_000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4, "big")
    return bytes(data)


def wide() -> bytes:
    """More pixels than are unpacked, and fewer than Pillow itself warns of."""
    data = bytearray(png())
    data[16:24] = (8_000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4, "big")
    return bytes(data)


def sixteen_bits() -> bytes:
    data = io.BytesIO()
    Image.fromarray(np.full((4, 4), 40_000, np.uint16)).save(data, "PNG")
    return data.getvalue()


BAD_FILES: dict[str, tuple[bytes, str]] = {
    "text": (b"<svg/>", "no JPEG, PNG or WebP file: 6 bytes that begin with b'<svg/>'"),
    "empty": (b"", "no JPEG, PNG or WebP file: an empty file"),
    "cut": (png(size=(300, 300), compress_level=0)[:2000], "a damaged image"),
    "bomb": (bomb(), "an image of more than 50,000,000 pixels"),
    "wide": (wide(), "an image of 8000 x 8000 pixels, more than 50,000,000"),
    "sixteen": (sixteen_bits(), "an image with pixels of kind 'I;16'"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_an_image_that_cannot_be_read_is_named(name: str, configure: Configure, folder: Path) -> None:
    data, found = BAD_FILES[name]
    (folder / "bad.png").write_bytes(data)
    with pytest.raises(DataInvalid) as caught:
        prepare(configure([row("pictures/a.png"), row("bad.png")]), StopFlag())
    assert caught.value.message.startswith("rows.jsonl line 2, column 'file': expected an image, found ")
    assert found in caught.value.message
    assert "JPEG, PNG or WebP" in caught.value.remedy


BAD_VALUES: dict[str, tuple[dict[str, Any], str]] = {
    "missing column": ({"question": "what", "answer": "red"}, "there is no column 'file'; the columns are"),
    "null": (row(None), "column 'file': expected an image's bytes, path or gs:// URI, found nothing"),
    "number": (row(7), "column 'file': expected an image's bytes, path or gs:// URI, found number 7"),
    "no file": (row("pictures/none.png"), "found no file that can be read at /"),
    "folder": (row("pictures"), "found no file but something else at /"),
    "upwards": (row("../secret.png"), "expected a path below the folder of the row's file"),
    "inside and upwards": (row("pictures/../../secret.png"), "expected a path below the folder of the row's file"),
    "absolute": (row("/etc/hostname"), "expected a path relative to the file of the row"),
    "file URI": (row("file:///etc/hostname"), "expected a path relative to the file of the row"),
    "bucket": (row("gs://another/a.png"), "expected an image in the bucket of the row's file"),
    "website": (row("https://h/a.png"), "expected a path relative to the file of the row"),
    "no question": ({"file": "pictures/a.png", "answer": "red"}, "there is no column 'question'"),
    "empty answer": (row("pictures/a.png", answer=" "), "the suffix's template gives an empty text"),
}


@pytest.mark.parametrize("name", BAD_VALUES)
def test_a_row_that_names_no_image_is_named(name: str, configure: Configure) -> None:
    value, found = BAD_VALUES[name]
    with pytest.raises(DataInvalid) as caught:
        prepare(configure([row("pictures/a.png"), value]), StopFlag())
    assert caught.value.message.startswith("rows.jsonl line 2")
    assert found in caught.value.message
    assert caught.value.remedy


def test_a_file_that_is_too_large_is_refused(
    configure: Configure, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (folder / "large.png").open("wb") as file:
        file.truncate(images.MOST_BYTES + 1)
    with pytest.raises(DataInvalid, match="a file of more than 64 MiB"):
        prepare(configure([row("large.png")]), StopFlag())


def test_rows_of_a_hub_read_no_file_of_this_machine() -> None:
    from gemmatune_trainer.data.rows import Row

    with pytest.raises(DataInvalid, match="these rows come from a hub"):
        images.reference(Row(row("pictures/a.png"), "train row 1"), "file")


def test_an_image_stands_upright_and_loses_its_transparency(tmp_path: Path) -> None:
    picture = Image.new("RGB", (20, 10), (0, 0, 0))
    picture.paste((255, 255, 255), (0, 0, 10, 10))  # the left half, which the tag turns to the top
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = io.BytesIO()
    picture.save(turned, "PNG", exif=exif)
    found = images.decode(turned.getvalue(), 8)
    assert found[0].min() > 240
    assert found[-1].max() < 15
    clear = io.BytesIO()
    Image.new("RGBA", (4, 4), (10, 20, 30, 0)).save(clear, "WEBP", lossless=True, exact=True)
    assert tuple(images.decode(clear.getvalue(), 2)[0, 0]) == (10, 20, 30)


def test_a_changed_image_is_other_data(configure: Configure, folder: Path) -> None:
    first = prepare(configure([row("pictures/a.png")]), StopFlag())
    again = prepare(configure([row("pictures/a.png")]), StopFlag())
    (folder / "pictures/a.png").write_bytes(png((9, 9, 9)))
    changed = prepare(configure([row("pictures/a.png")]), StopFlag())
    assert first.data is not None
    assert again.data is not None
    assert changed.data is not None
    assert first.data.hash == again.data.hash != changed.data.hash


def test_images_and_paligemma_belong_together(configure: Configure, tmp_path: Path) -> None:
    """What admission cannot know of a model without a known name, prepare says."""
    config = configure([row("pictures/a.png")])
    plain = config.model.model_copy(update={"uri": write_model(tmp_path / "plain", "1").as_uri()})
    with pytest.raises(InvalidConfig, match=r"dataset.imageText needs a PaliGemma") as caught:
        prepare(config.model_copy(update={"model": plain}), StopFlag())
    assert "hf://google/paligemma-3b-pt-224" in caught.value.remedy
    text = run_config(tmp_path / "model", tmp_path / "data/rows.jsonl", tmp_path / "out")
    with pytest.raises(InvalidConfig, match="the model is a PaliGemma") as caught:
        prepare(text, StopFlag())
    assert "dataset.imageText" in caught.value.remedy


def test_the_image_of_a_prompt_is_checked_before_training(configure: Configure, tmp_path: Path) -> None:
    config = configure([row("pictures/a.png")])
    missing = (tmp_path / "none.png").as_uri()
    samples = config.samples.model_copy(update={"prompts": ["answer what"], "images": [missing]})
    with pytest.raises(TrainerError, match=r"samples.prompts\[0\].image: expected an image at"):
        prepare(config.model_copy(update={"samples": samples}), StopFlag())
