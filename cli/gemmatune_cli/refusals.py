"""What an API server's refusal means to a person: its own words, and a remedy that suits them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import urllib3
import yaml
from kubernetes import client

from gemmatune_cli.console import CommandError, harmless

UNAUTHORIZED, FORBIDDEN, NOT_FOUND = 401, 403, 404
LOG_IN = "Log in again (GKE: `gcloud auth login`), or name another context of the kubeconfig with --context."
_ANONYMOUS = "system:anonymous"
_NO_RIGHT = re.compile(r'User "(?P<user>[^"]*)" cannot (?P<verb>\w+) resource "(?P<resource>[^"]+)"')
"""How the API server says that RBAC gives no right; whatever else it forbids, a policy or a quota does."""


@contextmanager
def answers(about: object, verb: str = "read") -> Iterator[None]:
    """Puts an API server's refusal or silence into words; `about` is what was asked for, `verb` what was to be done."""
    try:
        yield
    except client.ApiException as error:
        raise api_error(error, about, verb) from error
    except urllib3.exceptions.HTTPError as error:
        raise silence(error) from error


def silence(error: Exception) -> CommandError:
    """An API server that does not answer."""
    return CommandError(f"the API server does not answer: {error}", "Check the kubeconfig and the network.")


def api_error(error: Any, about: object, verb: str = "read") -> CommandError:
    """What an answer of the API server means to a person."""
    if error.status == NOT_FOUND:
        return CommandError(f"{about} does not exist", "`kubectl get gft -A` lists the resources and namespaces.")
    if error.status == UNAUTHORIZED:
        return CommandError(f"the API server does not take your login: {reason(error)}", LOG_IN)
    if error.status == FORBIDDEN:
        return CommandError(f"{about} may not be {verb}: {reason(error)}", remedy(error))
    return CommandError(f"{about}: the API server answered {error.status} {reason(error)}")


def remedy(error: Any) -> str:
    """What to do about a 403: ask for a right, log in, or heed the policy that speaks in it."""
    found = _NO_RIGHT.search(reason(error))
    if found is None:
        return "It is no right that is missing: do what the message asks, or ask whoever runs the cluster."
    if found["user"] == _ANONYMOUS:
        return LOG_IN
    return f"Ask for a Role with the verb {found['verb']} for {found['resource']}."


def reason(error: Any) -> str:
    """The API server's own message, else the HTTP reason."""
    try:
        return str(harmless(str(yaml.safe_load(error.body)["message"])))
    except (yaml.YAMLError, TypeError, KeyError, AttributeError):
        return str(error.reason)
