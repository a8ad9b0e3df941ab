"""Images as the OCI writes them on disk: made of a folder, read, and measured."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
NAME = "io.containerd.image.name"
EPOCH = "1970-01-01T00:00:00Z"
SETUID = 0o6000


def write_layout(
    root: Path, target: Path, environment: Mapping[str, str], name: str = "", command: Sequence[str] = ()
) -> str:
    """Writes the files of `root` as an image of one layer into the folder `target`; the digest of its manifest.

    All files belong to root, carry no time and no set-uid bit: the same files are the same image. Work on a machine
    whose user is not root gives the same image too.
    """
    blobs = target / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    layer = _layer(root, blobs)
    process = {"Cmd": list(command)} if command else {}
    config = {
        "architecture": "amd64",
        "os": "linux",
        "created": EPOCH,
        "config": {"Env": [f"{key}={value}" for key, value in environment.items()], **process},
        "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]},
        "history": [{"created": EPOCH, "created_by": "tools/oci.py"}],
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": _blob(blobs, config, CONFIG),
        "layers": [layer],
    }
    entry = _blob(blobs, manifest, MANIFEST) | ({"annotations": {NAME: name}} if name else {})
    _write_index(target, entry)
    digest: str = entry["digest"]
    return digest


def write_addition(archive: Archive, root: Path, target: Path, name: str) -> None:
    """Writes an image that adds the files of `root` to the one in `archive` into the folder `target`.

    Only what is new: it can be brought to where the other image is already.
    """
    blobs = target / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    layer = _layer(root, blobs)
    document = json.loads(json.dumps(archive.document))
    document["rootfs"]["diff_ids"].append(layer["digest"])
    document.pop("history", None)
    manifest = {**archive.manifest, "config": _blob(blobs, document, CONFIG)}
    manifest["layers"] = [*archive.manifest["layers"], layer]
    entry = _blob(blobs, manifest, MANIFEST) | {"annotations": {NAME: name}}
    _write_index(target, entry)


def _write_index(target: Path, entry: dict[str, Any]) -> None:
    (target / "index.json").write_text(json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]}))
    (target / "oci-layout").write_text(json.dumps({"imageLayoutVersion": "1.0.0"}))


def pack(layout: Path, archive: Path) -> None:
    """An OCI layout as one file."""
    with tarfile.open(archive, "w") as content:
        for name in ("oci-layout", "index.json", "blobs"):
            content.add(layout / name, name)


def digest_of(layout: Path) -> str:
    """The digest of the one image of an OCI layout."""
    digest: str = json.loads((layout / "index.json").read_text())["manifests"][0]["digest"]
    return digest


def _blob(blobs: Path, content: Any, media_type: str) -> dict[str, Any]:
    data = json.dumps(content, sort_keys=True).encode()
    digest = hashlib.sha256(data).hexdigest()
    (blobs / digest).write_bytes(data)
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}


def _layer(root: Path, blobs: Path) -> dict[str, Any]:
    scratch = blobs / ".layer"
    with tarfile.open(scratch, "w", format=tarfile.PAX_FORMAT) as archive:
        for path in sorted(root.rglob("*")):
            info = archive.gettarinfo(path, str(path.relative_to(root)))
            info.uid = info.gid = info.mtime = 0
            info.uname = info.gname = ""
            info.mode &= ~SETUID
            if info.isreg():
                with path.open("rb") as content:
                    archive.addfile(info, content)
            else:
                archive.addfile(info)
    with scratch.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    os.replace(scratch, blobs / digest)
    return {"mediaType": LAYER, "digest": f"sha256:{digest}", "size": (blobs / digest).stat().st_size}


class Archive:
    """An image in an OCI archive (a tar file), as a builder exports it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with tarfile.open(path) as archive:
            index = _read(archive, "index.json")
            self.manifest = _find(archive, index["manifests"][0])
            self.document = _find(archive, self.manifest["config"])
            self.config: dict[str, Any] = self.document["config"]


def _blob_name(digest: str) -> str:
    return f"blobs/{digest.replace(':', '/')}"


def _read(archive: tarfile.TarFile, name: str) -> dict[str, Any]:
    member = archive.extractfile(name)
    document: dict[str, Any] = json.load(member if member is not None else io.BytesIO(b"{}"))
    return document


def _find(archive: tarfile.TarFile, entry: Mapping[str, Any]) -> dict[str, Any]:
    """The document behind a descriptor; behind an index, its first image."""
    document = _read(archive, _blob_name(entry["digest"]))
    return _find(archive, document["manifests"][0]) if "manifests" in document else document
