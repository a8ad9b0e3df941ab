"""A real Kubernetes control plane on loopback: etcd, API server, controller manager and scheduler, up in seconds."""

from __future__ import annotations

import base64
import json
import shutil
import signal
import ssl
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.support import audit, chart
from tests.support.api import Api, Object
from tests.support.certificates import Authority, token_key
from tests.support.servers import LOOPBACK, Server, free_ports
from tests.support.wait import wait_for
from tools import kube

PROGRAMS = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl", "helm")
ADMIN = ("admin", ["system:masters"])


def missing_programs() -> list[str]:
    """The programs that neither KUBEBUILDER_ASSETS nor the cache has."""
    return [name for name in PROGRAMS if kube.find(name) is None]


def program(name: str) -> str:
    """The path of a program. Errors: FileNotFoundError with the remedy."""
    path = kube.find(name)
    if path is None:
        raise FileNotFoundError(f"{name} is not built: run `make kube`")
    return str(path)


class ControlPlane:
    """A control plane with its own certificates, ports and temporary folder; a context manager.

    `seconds` holds how long each step of the start took, counted from its beginning. Without `controllers` there are
    etcd and the API server only, and nothing happens to an object by itself.
    """

    def __init__(self, *, controllers: bool = True) -> None:
        self._controllers = controllers
        self.folder = Path(tempfile.mkdtemp(prefix="gemmatune-controlplane-"))
        self.logs = self.folder / "logs"
        self.logs.mkdir()
        self._audit_log = self.logs / "audit.log"
        self._starts: list[tuple[int, int]] = []
        self._looked_at = 0
        self.seconds: dict[str, float] = {}
        self._servers: dict[str, Server] = {}
        self._etcd_port, self._peer_port, self.port, self._manager_port, self._scheduler_port = free_ports(5)

    # --- what tests use ---

    @property
    def server_url(self) -> str:
        return f"https://{LOOPBACK}:{self.port}"

    @property
    def ca_path(self) -> Path:
        return self._authority.path

    @property
    def api(self) -> Api:
        """The API server as its administrator."""
        return self.api_as(*ADMIN)

    def api_as(self, user: str, groups: Sequence[str] = ()) -> Api:
        """The API server as somebody else, by client certificate."""
        certificate, key = self.client_cert(user, groups)
        return Api(self.server_url, str(self.ca_path), certificate=(str(certificate), str(key)))

    def api_with_token(self, token: str) -> Api:
        return Api(self.server_url, str(self.ca_path), token=token)

    def client_cert(self, user: str, groups: Sequence[str] = ()) -> tuple[Path, Path]:
        """A client certificate of this user, made once: (certificate file, key file)."""
        name = "-".join([user, *groups]).replace(":", ".").replace("/", "_")
        certificate, key = self._authority.folder / f"{name}.crt", self._authority.folder / f"{name}.key"
        if not certificate.exists():
            self._authority.client(name, user, list(groups))
        return certificate, key

    def serving_cert(self, name: str, hosts: Sequence[str] = (LOOPBACK,)) -> tuple[Path, Path]:
        """A certificate of another server of the cluster: (certificate file, key file)."""
        return self._authority.server(f"serving-{name}", list(hosts))

    def kubeconfig_for(
        self, user: str, groups: Sequence[str] = (), namespace: str = "default", server: str = ""
    ) -> Path:
        """A self-contained kubeconfig of this user; `server` is another way to the API server."""
        certificate, key = self.client_cert(user, groups)
        credentials = {"client-certificate-data": _base64(certificate), "client-key-data": _base64(key)}
        return self._kubeconfig(f"{certificate.stem}-{namespace}", user, credentials, namespace, server)

    @property
    def operator_kubeconfig(self) -> Path:
        """The kubeconfig of the operator's ServiceAccount, whose rights are the chart's (`crd` installs them)."""
        path = self.folder / f"{chart.OPERATOR}.kubeconfig"
        if path.exists():
            return path
        return self._kubeconfig(chart.OPERATOR, chart.OPERATOR, {"token": self.operator_token}, "default")

    @property
    def operator_token(self) -> str:
        """A token of the operator's ServiceAccount."""
        return chart.token(self, chart.NAMESPACE, chart.OPERATOR)

    @property
    def pids(self) -> dict[str, int]:
        """Process ids of its servers, by name."""
        return {name: server.process.pid for name, server in self._servers.items()}

    @property
    def audit_position(self) -> int:
        """Where the audit log ends now, for `audited`."""
        return self._audit_log.stat().st_size if self._audit_log.exists() else 0

    def audited(self, position: int = 0) -> list[audit.Request]:
        """What ServiceAccounts of the operator's namespace have asked since then, oldest first.

        Without what was answered before the API server was ready: it knows nobody's rights then (measured).
        """
        starts = self._starts
        return [
            request
            for request in audit.requests(self._audit_log, position)
            if not any(begin <= request.position < end for begin, end in starts)
        ]

    def newly_audited(self) -> list[audit.Request]:
        """What they have asked since the last call."""
        position, self._looked_at = self._looked_at, self.audit_position
        return [request for request in self.audited(position) if request.position < self._looked_at]

    def _kubeconfig(self, name: str, user: str, credentials: Object, namespace: str, server: str = "") -> Path:
        cluster = {"server": server or self.server_url, "certificate-authority-data": _base64(self.ca_path)}
        path = self.folder / f"{name}.kubeconfig"
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": cluster}],
            "users": [{"name": user, "user": credentials}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": user, "namespace": namespace}}],
            "current-context": "test",
        }
        path.write_text(json.dumps(document, indent=2))
        path.chmod(0o600)
        return path

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig."""
        path = self.folder / "admin-system.masters-default.kubeconfig"
        return path if path.exists() else self.kubeconfig_for(*ADMIN)

    def kubectl(
        self, *arguments: str, input: str | Object | None = None, check: bool = True, timeout: float = 120
    ) -> subprocess.CompletedProcess[str]:
        """Run kubectl as the administrator; an `input` that is a dict goes in as JSON.

        Errors: AssertionError with kubectl's own words when it fails and `check` is set.
        """
        text = json.dumps(input) if isinstance(input, dict) else input
        flags = ["--kubeconfig", str(self.kubeconfig), "--cache-dir", str(self.folder / "kubectl-cache")]
        done = subprocess.run(
            [program("kubectl"), *flags, *arguments],
            input=text,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if check and done.returncode != 0:
            raise AssertionError(f"kubectl {' '.join(arguments)} ended with {done.returncode}: {done.stderr.strip()}")
        return done

    def kubectl_json(self, *arguments: str) -> Any:
        """The answer of `kubectl ARGUMENTS -o json`."""
        return json.loads(self.kubectl(*arguments, "-o", "json").stdout)

    def restart_apiserver(self) -> None:
        """End the API server without ceremony and start it again on the same port and data."""
        self.stop_apiserver()
        self.start_apiserver()

    def stop_apiserver(self) -> None:
        """SIGKILL the API server: connections break in the middle."""
        self._servers.pop("kube-apiserver").stop(patience=0)

    def start_apiserver(self) -> None:
        """Start the API server and wait until it is ready."""
        begin = self.audit_position
        self._start("kube-apiserver", self._apiserver_flags())
        self._wait_ok("kube-apiserver", f"{self.server_url}/readyz", self._admin_context())
        self._starts.append((begin, self.audit_position))

    def pause_etcd(self) -> None:
        """SIGSTOP the store: the API server runs on, and every request that needs it hangs."""
        self._servers["etcd"].process.send_signal(signal.SIGSTOP)

    def resume_etcd(self) -> None:
        self._servers["etcd"].process.send_signal(signal.SIGCONT)

    def compact_etcd(self) -> int:
        """Forget all history of the store: a watch from an older revision is answered with 410. The revision."""
        revision = int(self._etcd("range", {"key": base64.b64encode(b"x").decode()})["header"]["revision"])
        self._etcd("compaction", {"revision": str(revision), "physical": True})
        return revision

    def _etcd(self, call: str, body: Object) -> Object:
        url = f"http://{LOOPBACK}:{self._etcd_port}/v3/kv/{call}"
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(url, data=json.dumps(body).encode(), timeout=30) as answer:
            document: Object = json.load(answer)
        return document

    # --- start and stop ---

    def start(self) -> ControlPlane:
        """Start everything. Errors: TimeoutError or RuntimeError with the end of the log of what did not come up."""
        begin = time.monotonic()
        try:
            self._make_certificates()
            self.seconds["certificates"] = time.monotonic() - begin
            self._start("etcd", self._etcd_flags())
            self.start_apiserver()
            self.seconds["apiserver"] = time.monotonic() - begin
            if not self._controllers:
                return self
            self._start_controllers()
            self.seconds["controllers"] = time.monotonic() - begin
            account = "/api/v1/namespaces/default/serviceaccounts/default"
            api = self.api
            wait_for(lambda: api.find(account), "the service account `default`", detail=self._manager_log)
            self.seconds["ready"] = time.monotonic() - begin
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Stop clients of the API server first, then the server, then its store; remove the folder."""
        for name in ("kube-scheduler", "kube-controller-manager", "kube-apiserver", "etcd"):
            if name in self._servers:
                self._servers.pop(name).stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> ControlPlane:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def log_tail(self, name: str, lines: int = 40) -> str:
        """The end of a server's log."""
        return self._servers[name].tail(lines)

    def _manager_log(self) -> str:
        return self.log_tail("kube-controller-manager", 20)

    def _make_certificates(self) -> None:
        folder = self.folder / "pki"
        folder.mkdir()
        self._authority = Authority(folder)
        hosts = [LOOPBACK, "localhost", "10.96.0.1", "kubernetes", "kubernetes.default", "kubernetes.default.svc"]
        self._serving = self._authority.server("kube-apiserver", hosts)
        self._token_keys = token_key(folder)

    def _start(self, name: str, flags: list[str]) -> None:
        self._servers[name] = Server(name, [program(name), *flags], self.logs / f"{name}.log")

    def _start_controllers(self) -> None:
        self._start("kube-controller-manager", self._manager_flags())
        self._start("kube-scheduler", self._scheduler_flags())
        # Both serve a certificate of their own making.
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        self._wait_ok("kube-controller-manager", f"https://{LOOPBACK}:{self._manager_port}/healthz", context)
        self._wait_ok("kube-scheduler", f"https://{LOOPBACK}:{self._scheduler_port}/healthz", context)

    def _wait_ok(self, name: str, url: str, context: ssl.SSLContext) -> None:
        server = self._servers[name]

        def answers() -> bool:
            server.check()
            try:
                with urllib.request.urlopen(url, timeout=5, context=context) as answer:
                    return bool(answer.status == 200)
            except OSError:
                return False

        wait_for(answers, f"{name} at {url}", detail=server.tail)

    def _admin_context(self) -> ssl.SSLContext:
        # Anonymous requests are refused, also to /readyz.
        context = ssl.create_default_context(cafile=str(self.ca_path))
        context.load_cert_chain(*self.client_cert(*ADMIN))
        return context

    # --- flags ---

    def _etcd_flags(self) -> list[str]:
        client, peer = f"http://{LOOPBACK}:{self._etcd_port}", f"http://{LOOPBACK}:{self._peer_port}"
        return [
            f"--data-dir={self.folder / 'etcd'}",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
            "--unsafe-no-fsync",
            "--log-level=warn",
        ]

    def _apiserver_flags(self) -> list[str]:
        certificate, key = self._serving
        public, private = self._token_keys
        policy = self.folder / "audit-policy.json"
        policy.write_text(json.dumps(audit.policy(chart.AUDITED_GROUP)))
        return [
            f"--etcd-servers=http://{LOOPBACK}:{self._etcd_port}",
            f"--bind-address={LOOPBACK}",
            f"--secure-port={self.port}",
            # The default one logs for ever that endpoints may not be on loopback.
            "--endpoint-reconciler-type=none",
            "--service-cluster-ip-range=10.96.0.0/24",
            # Names of test nodes are known to no resolver.
            "--kubelet-preferred-address-types=InternalIP",
            "--authorization-mode=Node,RBAC",
            "--anonymous-auth=false",
            f"--client-ca-file={self.ca_path}",
            f"--tls-cert-file={certificate}",
            f"--tls-private-key-file={key}",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={public}",
            f"--service-account-signing-key-file={private}",
            # The second asks for the rights that a cluster may ask of whoever sets owner references.
            "--enable-admission-plugins=NodeRestriction,OwnerReferencesPermissionEnforcement",
            f"--audit-policy-file={policy}",
            f"--audit-log-path={self._audit_log}",
        ]

    def _manager_flags(self) -> list[str]:
        return [
            *self._controller_flags("system:kube-controller-manager", self._manager_port),
            "--use-service-account-credentials=true",
            f"--service-account-private-key-file={self._token_keys[1]}",
            f"--root-ca-file={self.ca_path}",
            # The default of 20 requests a second delays the first service account by seconds.
            "--kube-api-qps=200",
            "--kube-api-burst=400",
            f"--flex-volume-plugin-dir={self.folder / 'flex'}",
        ]

    def _scheduler_flags(self) -> list[str]:
        return self._controller_flags("system:kube-scheduler", self._scheduler_port)

    def _controller_flags(self, user: str, port: int) -> list[str]:
        kubeconfig = self.kubeconfig_for(user)
        return [
            *(f"--{kind}kubeconfig={kubeconfig}" for kind in ("", "authentication-", "authorization-")),
            "--authentication-skip-lookup=true",
            "--leader-elect=false",
            f"--bind-address={LOOPBACK}",
            f"--secure-port={port}",
        ]


def _base64(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()
