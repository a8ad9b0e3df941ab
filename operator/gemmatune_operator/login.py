"""How the operator logs in to an API server, and that it does so again when the server takes its login no more."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import structlog
from kubernetes.aio import config
from kubernetes.aio.client import ApiClient, Configuration
from kubernetes.aio.client.rest import RESTClientObject
from kubernetes.aio.config import kube_config
from kubernetes.aio.config.exec_provider import ExecProvider

PLUGIN_SECONDS = 60.0
"""How long a login plugin may take."""
PAUSE_SECONDS = 10.0
"""Between two logins: a server that refuses every one gets no more of them."""
REFUSED = "the API server refuses the login, also after a new one"
_CERTIFICATES = (("cert_file", "clientCertificateData"), ("key_file", "clientKeyData"))

LogIn = Callable[[], Awaitable[Configuration]]

log = structlog.get_logger(__name__)


class LoginError(config.ConfigException):  # type: ignore[misc]
    """There are no credentials; the text says why, for a login plugin in its own words."""


class _Loader(kube_config.KubeConfigLoader):  # type: ignore[misc]
    """The library's, which logs why a login plugin gives nothing and goes on without a login."""

    async def load_from_exec_plugin(self) -> bool:
        plugin = self._user["exec"]
        try:
            status = await _asked(ExecProvider(plugin))
        except (config.ConfigException, OSError) as error:
            hint = " ".join(str(plugin.safe_get("installHint") or "").split())
            why = f"{error} ({hint})" if hint else str(error)
            raise LoginError(f"the login plugin {plugin['command']} of the kubeconfig failed: {why}") from error
        if status.get("token"):
            self.token = f"Bearer {status['token']}"
        for name, field in _CERTIFICATES if status.get("clientCertificateData") else ():
            data = kube_config.FileOrData(status, None, data_key_name=field, base64_file_content=False)
            setattr(self, name, data.as_file())
        return True


async def _asked(plugin: ExecProvider) -> dict[str, Any]:
    """A plugin's credentials; the library's own way waits for ever, and gives its words as Python shows bytes."""
    asks = {"apiVersion": plugin.api_version, "kind": "ExecCredential", "spec": {"interactive": False}}
    process = await asyncio.create_subprocess_exec(
        *plugin.args,
        env={**plugin.env, "KUBERNETES_EXEC_INFO": json.dumps(asks)},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(PLUGIN_SECONDS):
            answer, words = await process.communicate()
    except TimeoutError as error:
        raise LoginError(f"it has not ended within {PLUGIN_SECONDS:g} s") from error
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        said = " ".join(words.decode(errors="replace").split())[:1000]
        raise LoginError(f"exit code {process.returncode}: {said or 'it says nothing'}")
    try:
        status = json.loads(answer)["status"]
        given = bool(status.get("token")) or all(status.get(field) for _, field in _CERTIFICATES)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise LoginError("its answer is no ExecCredential with a status") from error
    if not given:
        raise LoginError("it gives neither a token nor a client certificate with its key")
    found: dict[str, Any] = status
    return found


async def login() -> Configuration:
    """How to reach the API server: KUBECONFIG where it is set, the pod's service account elsewhere.

    Raises:
        LoginError: the kubeconfig's login plugin fails.
        kubernetes.aio.config.ConfigException: there is neither.
    """
    configuration = Configuration()
    file = os.environ.get("KUBECONFIG")
    if file or not os.environ.get("KUBERNETES_SERVICE_HOST"):
        found = kube_config.KubeConfigMerger(file or kube_config.KUBE_CONFIG_DEFAULT_LOCATION).config
        await _Loader(found, config_base_path=None).load_and_set(configuration)
    else:
        config.load_incluster_config(client_configuration=configuration)
    configuration.connection_pool_maxsize = 100
    configuration.client_session_kwargs = {"trust_env": False}  # as kopf does: both take the same way
    return configuration


class Session:
    """An API client that is logged in, and logs in again where the API server refuses it; a context manager.

    Logins of people end (GKE's plugin gives one for an hour), and tokens of pods are replaced in their files. However
    many requests are refused at once, there is one new login.

    Args:
        log_in: how.
        clock: seconds that never jump.
    """

    def __init__(self, log_in: LogIn = login, clock: Callable[[], float] = time.monotonic) -> None:
        self._log_in, self._clock = log_in, clock
        self._under_way: asyncio.Task[None] | None = None
        self._not_before = float("-inf")
        self.failure = ""
        """Why there is no login; empty where the last one works."""
        self._way: tuple[Any, ...] = ()
        self._left: RESTClientObject | None = None
        self._client: ApiClient

    async def __aenter__(self) -> Self:
        configuration = await self._log_in()
        self._client, self._way = ApiClient(configuration), _way(configuration)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._under_way is not None:
            self._under_way.cancel()
        if self._left is not None:
            await self._left.close()
        await self._client.close()

    @property
    def configuration(self) -> Configuration:
        """The login in force."""
        return self._client.configuration

    @property
    def rest(self) -> RESTClientObject:
        """Its connections."""
        return self._client.rest_client

    async def renew(self, refused: Configuration) -> bool:
        """Logs in again, unless that was done since: the API server has refused this login.

        Returns:
            Whether there is another login now; False where the one that is refused is itself a new one.

        Raises:
            LoginError: there are no new credentials.
        """
        if self.configuration is not refused:
            return True
        if self._under_way is None and self._clock() >= self._not_before:
            self._under_way = asyncio.create_task(self._again(), name="login")
        if self._under_way is not None:
            await asyncio.shield(self._under_way)  # it goes on for the others where this request is given up
        renewed = self.configuration is not refused
        if self.failure not in ("", REFUSED) and not renewed:
            raise LoginError(self.failure)
        return renewed

    def gives_up(self) -> str:
        """A request was refused to the end, with a new login too: why there is none that works."""
        self.failure = self.failure or REFUSED
        return self.failure

    def works(self) -> None:
        """A request was answered."""
        self.failure = ""

    async def _again(self) -> None:
        try:
            configuration = await self._log_in()
            way = _way(configuration)
            if way != self._way:
                follows = RESTClientObject(configuration)  # first: it fails where certificate and key are no pair
                await self._leave()
                self._client.rest_client, self._way = follows, way
            self._client.configuration, self.failure = configuration, ""
            log.info("logged in again")
        except Exception as error:  # noqa: BLE001  (a kubeconfig that is being written, a provider: later it may work)
            self.failure = str(error) or type(error).__name__
            log.warning("not logged in again", error=self.failure)
        finally:
            self._under_way, self._not_before = None, self._clock() + PAUSE_SECONDS

    async def _leave(self) -> None:
        """Other connections follow; requests under way end on theirs, which the change after this one closes."""
        if self._left is not None:
            await self._left.close()
        self._left = self._client.rest_client


def _way(configuration: Configuration) -> tuple[Any, ...]:
    """What the connections themselves are made of; a token goes with each request."""
    files = (configuration.ssl_ca_cert, configuration.cert_file, configuration.key_file)
    contents = [Path(file).read_bytes() if file else b"" for file in files]
    return (configuration.host, configuration.proxy, configuration.verify_ssl, configuration.ca_cert_data, *contents)
