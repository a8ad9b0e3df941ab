"""What the operator's process is told: command-line arguments, each with an environment variable as its default."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar
from urllib.parse import urlsplit

from pydantic import TypeAdapter, ValidationError

from gemmatune_api import prices, site_defaults
from gemmatune_api.placement import Toleration
from gemmatune_api.site_defaults import SiteDefaults
from gemmatune_operator.election import Terms, own_namespace
from gemmatune_operator.manifests import quantities
from gemmatune_operator.settings import DEFAULT_IMAGE, DEFAULT_TPU_IMAGES, Settings

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Options:
    """The arguments, read."""

    settings: Settings
    namespaces: tuple[str, ...]
    """Namespaces to watch; empty: all."""
    workers: int
    resync: float
    """Seconds between two looks at every resource."""
    bind: str
    port: int
    """Of probes and metrics; 0 takes a free one."""
    log_format: str
    traces_endpoint: str = ""
    """URL of a collector that takes traces by OTLP over HTTP; empty: none are made."""
    traces_share: float = 1.0
    """Of all looks so many are traced."""
    election: Terms | None = None
    """How a leader is elected; None: this is the only operator."""


def read(arguments: Sequence[str] | None = None, environment: Mapping[str, str] = os.environ) -> Options:
    """Reads the arguments; a wrong one ends the process with a usage message."""
    parser = _parser(environment)
    found = parser.parse_args(arguments)
    try:
        settings = _settings(found, _text)
        election = _election(found)
    except ValueError as error:
        parser.error(str(error))
    return Options(
        settings=settings,
        namespaces=_namespaces(found),
        workers=found.workers,
        resync=found.resync,
        bind=found.bind,
        port=found.port,
        log_format=found.log_format,
        traces_endpoint=found.traces_endpoint,
        traces_share=found.traces_share,
        election=election,
    )


def elsewhere(
    arguments: Sequence[str], environment: Mapping[str, str], text: Callable[[str], str]
) -> tuple[Settings, tuple[str, ...]]:
    """What an operator that runs elsewhere was told: its settings, and the namespaces that it watches (none: all).

    Args:
        text: reads a file that an argument names.

    Raises:
        ValueError: the operator cannot have started with these arguments. What only a newer one knows is left out.
    """
    found, _ = _parser(environment, _Raising).parse_known_args(arguments)
    return _settings(found, text), _namespaces(found)


class _Raising(argparse.ArgumentParser):
    """Ends no process."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def _settings(found: argparse.Namespace, text: Callable[[str], str]) -> Settings:
    return Settings(
        image=found.trainer_image,
        tpu_images={"xla": found.trainer_image_xla, "keras": found.trainer_image_keras},
        image_pull_policy=found.image_pull_policy,
        trainer_env=_pairs(found.trainer_env),
        tolerations=_tolerations(found.trainer_tolerations),
        defaults=_of_file("--defaults", found.defaults, text, site_defaults.of_file, SiteDefaults()),
        prices=_of_file("--prices", found.prices, text, prices.parse, {}),
        host_memory=_bytes(found.host_memory),
        tpu_webhook=found.tpu_webhook,
    )


def _namespaces(found: argparse.Namespace) -> tuple[str, ...]:
    return tuple(item for item in found.namespaces.split(",") if item)


def _election(found: argparse.Namespace) -> Terms | None:
    if not found.leader_elect:
        return None
    return Terms(
        name=found.lease_name,
        namespace=found.lease_namespace or own_namespace(),
        lease=found.lease_duration,
        renew=found.renew_deadline,
        retry=found.retry_period,
    )


def _parser(
    environment: Mapping[str, str], kind: type[argparse.ArgumentParser] = argparse.ArgumentParser
) -> argparse.ArgumentParser:
    parser = kind(
        prog="python -m gemmatune_operator",
        description="Runs GemmaFineTune resources. Every option can be set as GEMMATUNE_OPERATOR_NAME_OF_OPTION.",
    )

    def add(name: str, default: object, text: str, kind: Callable[[str], object] = str, **more: Any) -> None:
        variable = f"GEMMATUNE_OPERATOR_{name.replace('-', '_').upper()}"
        value = environment.get(variable, default)
        parser.add_argument(f"--{name}", type=kind, default=value, help=f"{text} (default: {default!r})", **more)

    add("trainer-image", DEFAULT_IMAGE, "image of the trainer's backend torch where a resource names none")
    for backend, image in DEFAULT_TPU_IMAGES.items():
        add(f"trainer-image-{backend}", image, f"the same for the backend {backend}")
    add("image-pull-policy", "IfNotPresent", "pull policy of the trainer's container")
    add("trainer-env", "", "environment of every trainer: NAME=VALUE, separated by commas")
    add("trainer-tolerations", "", "tolerations of the pods of every run, as a JSON list")
    add("defaults", "", "YAML file of what resources that do not say otherwise get")
    add("prices", "", "YAML file of prices per hour by accelerator type")
    add("host-memory", "0", "memory of the CPU nodes, such as 16Gi; 0 where unknown")
    add("tpu-webhook", "true", "whether the cluster tells TPU hosts who they are, as GKE does", _truth)
    add("namespaces", "", "namespaces to watch, separated by commas; all where empty")
    add("workers", 16, "runs looked at at the same time", _workers)
    add("resync", 300.0, "seconds between two looks at every resource", _seconds)
    add("bind", "0.0.0.0", "address of probes and metrics")
    add("port", 8080, "port of probes and metrics; 0 takes a free one", _port)
    add("log-format", "json", "json or console", _log_format)
    add(
        "traces-endpoint",
        "",
        "URL that takes traces by OTLP over HTTP, as http://HOST:4318/v1/traces; empty: none",
        _url,
    )
    add("traces-share", 1.0, "of all looks at runs so many are traced, 0 to 1", _share)
    add(
        "leader-elect",
        "false",
        "true: of several replicas only the holder of a Lease works",
        _truth,
        nargs="?",
        const=True,
    )
    add("lease-name", "gemmatune-operator", "name of that Lease")
    add("lease-namespace", "", "its namespace; the pod's own where empty")
    add("lease-duration", 15.0, "seconds after which another takes over from a silent holder", _seconds)
    add("renew-deadline", 10.0, "seconds without a renewal after which the holder stops", _seconds)
    add("retry-period", 2.0, "seconds between two tries to take or renew the Lease", _seconds)
    return parser


def _workers(text: str) -> int:
    if not (text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 (found {text!r})")
    return int(text)


def _port(text: str) -> int:
    if not (text.isdecimal() and int(text) < 65536):
        raise argparse.ArgumentTypeError(f"must be a whole number from 0 to 65535 (found {text!r})")
    return int(text)


def _seconds(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number of seconds above 0 (found {text!r})")
    return number


def _truth(text: str) -> bool:
    if text not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"must be true or false (found {text!r})")
    return text == "true"


def _log_format(text: str) -> str:
    if text not in ("json", "console"):
        raise argparse.ArgumentTypeError(f"must be json or console (found {text!r})")
    return text


def _url(text: str) -> str:
    parts = urlsplit(text)
    if text and not (parts.scheme in ("http", "https") and parts.hostname):
        raise argparse.ArgumentTypeError(f"must be a URL of http or https (found {text!r})")
    return text


def _share(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"must be a number from 0 to 1 (found {text!r})")
    return number


def _pairs(text: str) -> dict[str, str]:
    pairs = [item.partition("=") for item in text.split(",") if item]
    wrong = [name for name, sign, _ in pairs if not (name and sign)]
    if wrong:
        raise ValueError(f"--trainer-env: {wrong[0]!r} is no NAME=VALUE")
    return {name: value for name, _, value in pairs}


def _bytes(text: str) -> int:
    try:
        return int(quantities.parse(text))
    except ValueError as error:
        raise ValueError(f"--host-memory: {error}") from error


def _text(file: str) -> str:
    return Path(file).read_text(encoding="utf-8")


def _of_file(option: str, file: str, text: Callable[[str], str], parse: Callable[[str], Value], absent: Value) -> Value:
    if not file:
        return absent
    try:
        return parse(text(file))
    except OSError as error:
        raise ValueError(f"{option} {file}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise ValueError(f"{option} {file}: {error}") from error


def _tolerations(text: str) -> tuple[Toleration, ...]:
    try:
        return TypeAdapter(tuple[Toleration, ...]).validate_json(text or "[]", strict=True)
    except ValidationError as error:
        raise ValueError(f"--trainer-tolerations: {_first(error)}") from error


def _first(error: ValidationError) -> str:
    item = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in item["loc"])
    return f"{where}: {item['msg']}".removeprefix(": ")
