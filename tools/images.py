"""Build the images: by docker or podman where one runs, else by BuildKit, which is built into the user's cache first.

With BuildKit the base image is made here of Debian's packages, so that nothing but package registries is needed, and
the images become OCI archives in the cache directory. Standard library only, as tools/kube.py.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tools import debian, kube, oci
from tools.kube import BuildError, cache_dir, locked, say, timed

ROOT = Path(__file__).resolve().parent.parent
CONTAINERFILES = {
    "operator": "operator/Containerfile",
    "torch": "trainer_image/Containerfile.torch",
    "xla": "trainer_image/Containerfile.xla",
    "keras": "trainer_image/Containerfile.keras",
}
LIBPYTHON = r'?name("^libpython3\.[0-9]+(t64)?$")'
"""Python as a library, a pattern of apt: the packages' name has Python's version in it."""
BASE = ("base-files", "bash", "ca-certificates", "coreutils", "dash", "libc-bin", "libstdc++6", "python3", LIBPYTHON)
"""What every image stands on here: a shell, the C++ library that wheels ask for, and Python without pip, also as the
library that torch_xla asks for.
"""
BASES = {"base": BASE, "build": (*BASE, "python3-pip")}
NODE = ("busybox-static", "containerd", "containernetworking-plugins", "runc")
"""What runs containers, on the real node and for BuildKit."""
CERTIFICATES = ("SSL_CERT_FILE", "PIP_CERT", "REQUESTS_CA_BUNDLE")
"""Where a network's own certificate authority is named; the builds get it as a secret."""
UP_SECONDS = 30.0
ROOM = {"operator": 2 * 10**9, "torch": 21 * 10**9, "xla": 27 * 10**9, "keras": 8 * 10**9}
"""Bytes of disk that BuildKit takes for each image: its layers as files and packed, and the archive."""


class RoomError(BuildError):
    """The disk has not the room for a build."""


@dataclass(frozen=True)
class Built:
    """One image: where it lies, and how long it took."""

    name: str
    archive: Path | None
    """The OCI archive; None where docker or podman keeps the image."""
    seconds: float


def image_name(name: str) -> str:
    """The name under which an image is built, without a registry."""
    return "gemmatune-operator:latest" if name == "operator" else f"gemmatune-trainer-{name}:latest"


def engine() -> str:
    """Docker or podman, where one answers; else an empty text: BuildKit."""
    for program in ("docker", "podman"):
        if shutil.which(program):
            done = subprocess.run([program, "info"], capture_output=True, check=False)
            if done.returncode == 0 and b"ERROR" not in done.stdout + done.stderr:
                return program
    return ""


def build_with(program: str, name: str, arguments: Mapping[str, str]) -> Built:
    """Builds one image by docker or podman, which keeps it."""
    start = time.monotonic()
    command = [program, "build", "--file", CONTAINERFILES[name], "--tag", image_name(name)]
    command += [f"--build-arg={key}={value}" for key, value in arguments.items()]
    command += [f"--secret=id=ca,src={path}" for path in _certificates()]
    with timed(f"building {image_name(name)} by {program}"):
        done = subprocess.run([*command, "."], cwd=ROOT, env={**os.environ, "DOCKER_BUILDKIT": "1"}, check=False)
    if done.returncode != 0:
        raise BuildError(f"{image_name(name)}: {program} build ended with {done.returncode}")
    return Built(name, None, time.monotonic() - start)


def why_not_buildkit() -> str:
    """Why this machine cannot build by BuildKit; empty where it can."""
    if sys.platform != "linux":
        return "BuildKit needs Linux"
    if os.geteuid() != 0:
        return "BuildKit needs root (make image takes docker or podman, where one answers)"
    missing = [name for name in debian.PROGRAMS if shutil.which(name) is None]
    return f"{', '.join(missing)}: not here; the base image is made of packages of Debian or Ubuntu" if missing else ""


def base_layout(kind: str) -> tuple[Path, str]:
    """The OCI layout of a base image, made where it is missing, and its digest."""
    root = debian.ensure(kind, BASES[kind], whole=True)
    target = cache_dir() / "images" / root.name
    with locked(cache_dir() / "images" / "lock"):
        if not target.is_dir():
            with timed(f"making the image {kind}"), tempfile.TemporaryDirectory(dir=target.parent) as scratch:
                _complete(root)
                oci.write_layout(root, Path(scratch) / "layout", {"PATH": "/usr/local/bin:/usr/bin:/bin"})
                (Path(scratch) / "layout").rename(target)
    return target, oci.digest_of(target)


def _complete(root: Path) -> None:
    """What the packages' own scripts would have made, as far as the images need it."""
    bundle = root / "etc/ssl/certs/ca-certificates.crt"
    bundle.parent.mkdir(parents=True, exist_ok=True)
    roots = sorted((root / "usr/share/ca-certificates/mozilla").glob("*.crt"))
    bundle.write_text("".join(path.read_text() for path in roots))
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/usr/sbin/nologin\n")
    (root / "etc/group").write_text("root:x:0:\nnogroup:x:65534:\n")
    # Where /etc/ld.so.cache is missing, libraries below /usr/lib/x86_64-linux-gnu are found by their default path.
    for command in (["ldconfig"], ["python3", "-m", "compileall", "-q", "/usr/lib/python3"]):
        subprocess.run(["chroot", root, *command], check=False, capture_output=True)


@contextlib.contextmanager
def buildkit() -> Iterator[Path]:
    """BuildKit's daemon, with its state in the cache directory; the path of its socket.

    Errors: BuildError with the end of its log when it does not come up.
    """
    kube.ensure(("buildkit",))
    runc = debian.ensure("node", NODE, whole=False) / "usr/sbin/runc"
    state = cache_dir() / "buildkit"
    with locked(state / "lock"), tempfile.TemporaryDirectory(prefix="gft-bk-") as scratch:
        socket, log = Path(scratch) / "s", Path(scratch) / "log"
        flags = [f"--root={state}", f"--addr=unix://{socket}", f"--oci-worker-binary={runc}", "--oci-worker-net=host"]
        flags += ["--oci-worker=true", "--oci-worker-snapshotter=overlayfs", "--containerd-worker=false"]
        with log.open("wb") as output:
            command = [str(_program("buildkitd")), *flags, "--cdi-disabled"]
            daemon = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        try:
            _wait_up(socket, daemon, log)
            yield socket
        finally:
            daemon.terminate()
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()


def _wait_up(socket: Path, daemon: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + UP_SECONDS
    command = [str(_program("buildctl")), f"--addr=unix://{socket}", "debug", "workers"]
    while subprocess.run(command, capture_output=True, check=False).returncode != 0:
        if daemon.poll() is not None or time.monotonic() > deadline:
            raise BuildError(f"BuildKit did not come up:\n{log.read_text(errors='replace')[-2000:]}")
        time.sleep(0.1)


def archive_of(name: str) -> Path:
    """Where BuildKit puts an image, there or not."""
    return cache_dir() / "images" / f"{name}.tar"


def make_room(socket: Path, wanted: int) -> None:
    """Empties BuildKit's cache where fewer than `wanted` bytes of disk are free: it has no bound of its own.

    Errors: RoomError where that is not enough.
    """
    if _free() >= wanted:
        return
    with timed(f"{_free() / 1e9:.0f} GB of disk are free, {wanted / 1e9:.0f} GB are needed: emptying BuildKit's cache"):
        command = [str(_program("buildctl")), f"--addr=unix://{socket}", "prune"]
        subprocess.run(command, check=False, stdout=subprocess.DEVNULL)
    if (free := _free()) < wanted:
        raise RoomError(
            f"{cache_dir()}: {free / 1e9:.0f} GB of disk are free, {wanted / 1e9:.0f} GB are needed; "
            "make room there, or name a folder on a larger disk by XDG_CACHE_HOME"
        )


def _free() -> int:
    return shutil.disk_usage(cache_dir()).free


def build(socket: Path, name: str, archive: Path | None = None) -> Built:
    """Builds one image by BuildKit into an OCI archive, which replaces an older one only when it is whole.

    `archive` is where; without it, where BuildKit puts the image (`archive_of`).

    Errors: BuildError with the end of BuildKit's words; RoomError.
    """
    start = time.monotonic()
    make_room(socket, ROOM[name])
    archive = archive or archive_of(name)
    partial = archive.with_suffix(".partial")
    file = ROOT / CONTAINERFILES[name]
    command = [str(_program("buildctl")), f"--addr=unix://{socket}", "build", "--frontend=dockerfile.v0"]
    command += [f"--local=context={ROOT}", f"--local=dockerfile={file.parent}", f"--opt=filename={file.name}"]
    for kind in BASES:
        layout, digest = base_layout(kind)
        command += [f"--oci-layout={kind}={layout}", f"--opt=context:{kind}=oci-layout://{kind}@{digest}"]
        command += [f"--opt=build-arg:{kind.upper()}_IMAGE={kind}"]
    command += [f"--secret=id=ca,src={path}" for path in _certificates()]
    # Containerd calls an image without a registry docker.io/library/NAME, and finds it by the short name.
    output = f"type=oci,dest={partial},name=docker.io/library/{image_name(name)},compression=uncompressed"
    with timed(f"building {image_name(name)} by BuildKit"):
        done = subprocess.run(
            [*command, f"--output={output}", "--progress=plain"], capture_output=True, text=True, check=False
        )
    if done.returncode != 0:
        partial.unlink(missing_ok=True)
        raise BuildError(f"{image_name(name)} was not built:\n" + "\n".join(done.stderr.splitlines()[-30:]))
    partial.replace(archive)
    return Built(name, archive, time.monotonic() - start)


def _program(name: str) -> Path:
    path = kube.find(name)
    if path is None:
        raise BuildError(f"{name} is not built: python3 tools/kube.py buildkit")
    return path


def _certificates() -> list[str]:
    """The file of this network's certificate authorities, where one is named."""
    return [os.environ[name] for name in CERTIFICATES if Path(os.environ.get(name, "")).is_file()][:1]


def main(arguments: list[str] | None = None) -> int:
    """Builds the images that are named, or all."""
    parser = argparse.ArgumentParser(description="Build images by docker, podman or BuildKit.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"only these of {', '.join(CONTAINERFILES)}")
    parser.add_argument("--build-arg", action="append", default=[], metavar="NAME=VALUE", help="as docker takes it")
    options = parser.parse_args(arguments)
    for name in options.names:
        if name not in CONTAINERFILES:
            parser.error(f"{name}: no such image; there are {', '.join(CONTAINERFILES)}")
    names = options.names or list(CONTAINERFILES)
    try:
        found = engine()
        if found:
            pairs = dict(item.partition("=")[::2] for item in options.build_arg)
            done = [build_with(found, name, pairs) for name in names]
        else:
            if options.build_arg:
                parser.error("--build-arg is for docker and podman; BuildKit makes the base image by itself here")
            if reason := why_not_buildkit():
                raise BuildError(reason)
            with buildkit() as socket:
                done = [build(socket, name) for name in names]
    except BuildError as error:
        say(str(error))
        return 1
    for built in done:
        where = f"{built.archive} ({built.archive.stat().st_size / 1e6:.0f} MB)" if built.archive else "in " + found
        print(f"{image_name(built.name)}: {built.seconds:.0f} s, {where}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
