"""What the operator's process is told: command-line arguments, each with an environment variable as its default."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from gemmatune_operator.manifests import quantities
from gemmatune_operator.settings import DEFAULT_IMAGE, Settings


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


def read(arguments: Sequence[str] | None = None, environment: Mapping[str, str] = os.environ) -> Options:
    """Reads the arguments; a wrong one ends the process with a usage message."""
    parser = _parser(environment)
    found = parser.parse_args(arguments)
    try:
        settings = Settings(
            image=found.trainer_image,
            image_pull_policy=found.image_pull_policy,
            trainer_env=_pairs(found.trainer_env),
            prices=_prices(found.prices),
            host_memory=_bytes(found.host_memory),
        )
    except ValueError as error:
        parser.error(str(error))
    return Options(
        settings=settings,
        namespaces=tuple(item for item in found.namespaces.split(",") if item),
        workers=found.workers,
        resync=found.resync,
        bind=found.bind,
        port=found.port,
        log_format=found.log_format,
    )


def _parser(environment: Mapping[str, str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m gemmatune_operator",
        description="Runs GemmaFineTune resources. Every option can be set as GEMMATUNE_OPERATOR_NAME_OF_OPTION.",
    )

    def add(name: str, default: object, text: str, kind: type = str) -> None:
        variable = f"GEMMATUNE_OPERATOR_{name.replace('-', '_').upper()}"
        value = environment.get(variable, default)
        parser.add_argument(f"--{name}", type=kind, default=value, help=f"{text} (default: {default!r})")

    add("trainer-image", DEFAULT_IMAGE, "trainer image where a resource names none")
    add("image-pull-policy", "IfNotPresent", "pull policy of the trainer's container")
    add("trainer-env", "", "environment of every trainer: NAME=VALUE, separated by commas")
    add("prices", "", "YAML file of prices per hour by accelerator type")
    add("host-memory", "0", "memory of the CPU nodes, such as 16Gi; 0 where unknown")
    add("namespaces", "", "namespaces to watch, separated by commas; all where empty")
    add("workers", 16, "runs looked at at the same time", int)
    add("resync", 300.0, "seconds between two looks at every resource", float)
    add("bind", "0.0.0.0", "address of probes and metrics")
    add("port", 8080, "port of probes and metrics; 0 takes a free one", int)
    add("log-format", "json", "json or console")
    return parser


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


def _prices(file: str) -> dict[str, float]:
    if not file:
        return {}
    try:
        found = yaml.safe_load(Path(file).read_text()) or {}
    except (OSError, yaml.YAMLError) as error:
        raise ValueError(f"--prices: {error}") from error
    if not isinstance(found, dict) or not all(isinstance(price, int | float) for price in found.values()):
        raise ValueError(f"--prices: {file} must hold accelerator types with a price per hour each")
    return {str(kind): float(price) for kind, price in found.items()}
