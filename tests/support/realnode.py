"""A real node: kubelet, containerd and runc in a network namespace, with images that were built here."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType

from tests.support.api import Object
from tests.support.controlplane import ControlPlane
from tests.support.network import NODE_ADDRESS, SERVICE_ADDRESS, Network
from tests.support.servers import Server
from tests.support.wait import wait_for
from tools import debian, images, kube, oci

PAUSE = "localhost/pause:1"
NAMESPACE = "k8s.io"
"""Where containerd keeps what the kubelet may use."""
CGROUPS = Path("/sys/fs/cgroup")
SYSCTLS = ("vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops")
"""What the kubelet sets for the whole machine; put back at the end."""
TOOLS = ("ip", "mount", "nsenter", "umount", "unshare")


def why_not() -> str:
    """Why no real node can run on this machine; empty where one can."""
    if sys.platform != "linux":
        return "a real node needs Linux"
    if os.geteuid() != 0:
        return "a real node needs root"
    missing = [name for name in (*TOOLS, *debian.PROGRAMS) if shutil.which(name) is None]
    if missing:
        return f"a real node needs {', '.join(missing)}"
    if not os.access(CGROUPS, os.W_OK):
        return f"a real node needs control groups that it may write ({CGROUPS} is read-only)"
    return ""


class RealNode:
    """One node of a control plane; a context manager. `seconds` says when what was up, from the start on."""

    def __init__(self, control_plane: ControlPlane, name: str = "node-1") -> None:
        self.name = name
        self._control_plane = control_plane
        # Short: paths of Unix sockets have at most 107 characters, and containerd adds to them.
        self.folder = Path(tempfile.mkdtemp(prefix="gftn-"))
        self._programs = debian.ensure("node", images.NODE, whole=False)
        self._socket = self.folder / "c.sock"
        self._servers: list[Server] = []
        self._sysctls: dict[str, str] = {}
        self._group = f"gemmatune-{os.getpid()}"
        self.seconds: dict[str, float] = {}
        self.network: Network | None = None

    # --- what tests use ---

    def load(self, archive: Path) -> None:
        """Brings an OCI archive's image onto the node."""
        self._ctr("images", "import", "--snapshotter", "overlayfs", str(archive))

    def image_names(self) -> list[str]:
        """The images that the node has."""
        return self._ctr("images", "list", "--quiet").split()

    def logs(self, namespace: str, pod: str) -> str:
        """What the containers of a pod have written, all of it."""
        found = sorted((self.folder / "pods").glob(f"{namespace}_{pod}_*/*/*.log"))
        return "\n".join(path.read_text(errors="replace") for path in found)

    def tail(self, lines: int = 40) -> str:
        """The ends of the logs of kubelet and containerd."""
        return "\n".join(f"{server.name}:\n{server.tail(lines)}" for server in self._servers)

    # --- start and stop ---

    def start(self) -> RealNode:
        """Errors: TimeoutError or RuntimeError with the end of the log of what did not come up."""
        begin = time.monotonic()
        try:
            self.network = Network(self.folder)
            self.network.forward(SERVICE_ADDRESS, 443, self._control_plane.port)
            self._save_sysctls()
            self._make_cgroups()
            self._start_containerd()
            self.seconds["containerd"] = time.monotonic() - begin
            self._load_pause()
            self._start_kubelet()
            wait_for(self._ready, f"node {self.name} to be Ready", seconds=180, detail=self.tail)
            self.seconds["ready"] = time.monotonic() - begin
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """The kubelet first, so that nothing comes back; then what it left: containers, mounts, control groups."""
        for server in [server for server in self._servers if server.name == "kubelet"]:
            server.stop(patience=10)
        with contextlib.suppress(Exception):
            self._end_tasks()
        for server in self._servers:
            server.stop(patience=10)
        self._end_shims()
        if self.network is not None:
            self.network.stop()
        self._unmount()
        self._remove_cgroups()
        for name, value in self._sysctls.items():
            Path("/proc/sys", name).write_text(value)
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> RealNode:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # --- containerd ---

    def _start_containerd(self) -> None:
        config = self.folder / "containerd.toml"
        config.write_text(self._containerd_config())
        path = f"{self._programs}/usr/bin:{self._programs}/usr/sbin:{os.environ['PATH']}"
        self._serve("containerd", [self._program("bin/containerd"), "--config", str(config)], {"PATH": path})
        wait_for(self._answers, "containerd to answer", detail=self.tail)

    def _containerd_config(self) -> str:
        cni = self.folder / "cni"
        cni.mkdir()
        # Own data folder: addresses of an earlier node's failed pods would be taken.
        network = {
            "cniVersion": "1.0.0",
            "name": "pods",
            "plugins": [
                {
                    "type": "bridge",
                    "bridge": "pods0",
                    "isGateway": True,
                    "ipam": {
                        "type": "host-local",
                        "dataDir": str(self.folder / "addresses"),
                        "ranges": [[{"subnet": "10.88.0.0/16"}]],
                        "routes": [{"dst": "0.0.0.0/0"}],
                    },
                }
            ],
        }
        (cni / "pods.conflist").write_text(json.dumps(network))
        cri = '[plugins."io.containerd.grpc.v1.cri"'
        runc = self._programs / "usr/sbin/runc"
        return "\n".join(
            [
                "version = 2",
                f'root = "{self.folder}/root"',
                f'state = "{self.folder}/s"',
                f'[grpc]\n  address = "{self._socket}"',
                f'{cri}]\n  sandbox_image = "{PAUSE}"\n  enable_selinux = false',
                # Without CAP_SYS_RESOURCE no process may take a lower oom_score_adj than it has.
                "  restrict_oom_score_adj = true",
                f'{cri}.cni]\n  bin_dir = "{self._programs}/usr/lib/cni"\n  conf_dir = "{cni}"',
                f'{cri}.containerd]\n  snapshotter = "overlayfs"\n  default_runtime_name = "runc"',
                f'{cri}.containerd.runtimes.runc]\n  runtime_type = "io.containerd.runc.v2"',
                f'{cri}.containerd.runtimes.runc.options]\n  BinaryName = "{runc}"',
            ]
        )

    def _load_pause(self) -> None:
        """The container that holds a pod's network: busybox, asleep."""
        root, layout = self.folder / "pause", self.folder / "layout"
        (root / "bin").mkdir(parents=True)
        shutil.copy2(self._programs / "usr/bin/busybox", root / "bin/busybox")
        oci.write_layout(
            root, layout, {"PATH": "/bin"}, name=PAUSE, command=["/bin/busybox", "tail", "-f", "/dev/null"]
        )
        archive = self.folder / "pause.tar"
        oci.pack(layout, archive)
        self.load(archive)

    def load_addition(self, archive: Path, files: Path, name: str) -> None:
        """An image that adds files to one that the node has already, which came from `archive`."""
        with tempfile.TemporaryDirectory(dir=self.folder) as scratch:
            oci.write_addition(oci.Archive(archive), files, Path(scratch) / "layout", name)
            oci.pack(Path(scratch) / "layout", Path(scratch) / "image.tar")
            self.load(Path(scratch) / "image.tar")

    def _answers(self) -> bool:
        for server in self._servers:
            server.check()
        return self._socket.exists() and "overlayfs" in self._ctr("plugins", "list", check=False)

    def _ctr(self, *arguments: str, check: bool = True) -> str:
        command = [self._program("bin/ctr"), "--address", str(self._socket), "--namespace", NAMESPACE, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if check and done.returncode != 0:
            raise RuntimeError(f"ctr {' '.join(arguments)} ended with {done.returncode}: {done.stderr.strip()}")
        return done.stdout

    def _end_tasks(self) -> None:
        for name in self._ctr("tasks", "list", "--quiet").split():
            self._ctr("tasks", "kill", "--signal", "SIGKILL", name, check=False)
        deadline = time.monotonic() + 20
        while (names := self._ctr("tasks", "list", "--quiet", check=False).split()) and time.monotonic() < deadline:
            for name in names:
                self._ctr("tasks", "delete", "--force", name, check=False)

    def _end_shims(self) -> None:
        """Shims outlive containerd, by design."""
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if str(self._socket).encode() in (process / "cmdline").read_bytes():
                    os.kill(int(process.name), 9)

    # --- kubelet ---

    def _start_kubelet(self) -> None:
        certificate, key = self._control_plane.serving_cert(self.name, [NODE_ADDRESS])
        config = {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "address": NODE_ADDRESS,
            "authentication": {"anonymous": {"enabled": False}, "webhook": {"enabled": True},
                               "x509": {"clientCAFile": str(self._control_plane.ca_path)}},
            "authorization": {"mode": "Webhook"},
            "tlsCertFile": str(certificate),
            "tlsPrivateKeyFile": str(key),
            "containerRuntimeEndpoint": f"unix://{self._socket}",
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": f"/{self._group}",
            "failCgroupV1": False,
            "failSwapOn": False,
            "makeIPTablesUtilChains": False,
            "resolvConf": "",
            "clusterDNS": [SERVICE_ADDRESS],  # nobody answers there; without one each pod gets a warning
            "imageGCHighThresholdPercent": 100,
            "evictionHard": {"memory.available": "50Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
            "podLogsDir": str(self.folder / "pods"),
            "volumePluginDir": str(self.folder / "volumes"),
            "maxOpenFiles": 20000,
            "syncFrequency": "10s",
        }  # fmt: skip
        file = self.folder / "kubelet.json"
        file.write_text(json.dumps(config))
        kubeconfig = self._control_plane.kubeconfig_for(
            f"system:node:{self.name}", ["system:nodes"], server=f"https://{SERVICE_ADDRESS}:443"
        )
        program = kube.find("kubelet")
        if program is None:
            raise FileNotFoundError("kubelet is not built: run `python3 tools/kube.py kubelet`")
        flags = [f"--config={file}", f"--kubeconfig={kubeconfig}", f"--root-dir={self.folder / 'k'}"]
        flags += [
            f"--cert-dir={self.folder / 'k-pki'}",
            f"--hostname-override={self.name}",
            f"--node-ip={NODE_ADDRESS}",
        ]
        self._serve("kubelet", [str(program), *flags], {})

    def _ready(self) -> bool:
        for server in self._servers:
            server.check()
        node = self._control_plane.api.find(f"/api/v1/nodes/{self.name}")
        return node is not None and _is_ready(node) and not node["spec"].get("taints")

    def _serve(self, name: str, command: list[str], variables: dict[str, str]) -> None:
        assert self.network is not None
        environment = {**os.environ, **variables}
        self._servers.append(Server(name, [*self.network.enter, *command], self.folder / f"{name}.log", environment))

    def _program(self, name: str) -> str:
        return str(self._programs / "usr" / name)

    # --- what belongs to the machine ---

    def _save_sysctls(self) -> None:
        for name in SYSCTLS:
            with contextlib.suppress(OSError):
                self._sysctls[name] = Path("/proc/sys", name).read_text()

    def _hierarchies(self) -> list[Path]:
        """Roots of the control groups: one (v2), or one for each controller (v1)."""
        return [CGROUPS] if (CGROUPS / "cgroup.controllers").exists() else [p for p in CGROUPS.iterdir() if p.is_dir()]

    def _make_cgroups(self) -> None:
        for root in self._hierarchies():
            group = root / self._group
            group.mkdir(exist_ok=True)
            for name in ("cpuset.cpus", "cpuset.mems"):
                with contextlib.suppress(OSError):
                    if not (group / name).read_text().strip():
                        (group / name).write_text((root / name).read_text())
            with contextlib.suppress(OSError):
                controllers = (root / "cgroup.controllers").read_text().split()
                (group / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in controllers))

    def _remove_cgroups(self) -> None:
        for root in self._hierarchies():
            group = root / self._group
            for path in sorted((p for p in group.rglob("*") if p.is_dir()), reverse=True):
                with contextlib.suppress(OSError):
                    path.rmdir()
            with contextlib.suppress(OSError):
                group.rmdir()

    def _unmount(self) -> None:
        mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
        for path in sorted((path for path in mounts if path.startswith(f"{self.folder}/")), reverse=True):
            subprocess.run(["umount", "--lazy", path], check=False, capture_output=True)


def _is_ready(node: Object) -> bool:
    return any(c["type"] == "Ready" and c["status"] == "True" for c in node["status"].get("conditions", []))
