"""A run to look at, however it is named: a resource of a cluster, a file with one, or the output itself."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import BaseModel

from gemmatune_api.names import NAME_MAX_LENGTH, NAME_PATTERN
from gemmatune_api.serving import Served
from gemmatune_api.status import FineTuneStatus, Sample
from gemmatune_cli import bucket
from gemmatune_cli.console import CommandError, harmless
from gemmatune_cli.documents import STDIN, SUFFIXES, fine_tunes
from gemmatune_cli.shapes import Before, Manifest, check

MANIFEST = "manifest.json"
REPORT = "report/report.html"
BEFORE = "samples/before.json"
_NOT_OURS = "It was not written by gemmatune."

Source = Annotated[
    str,
    typer.Argument(
        help="Name of a GemmaFineTune in the cluster, a YAML or JSON file with one, "
        "or an output: gs://BUCKET/PATH, file:///PATH, a folder."
    ),
]
Namespace = Annotated[
    str, typer.Option("--namespace", "-n", help="Namespace of a name. Default: that of the kubeconfig's context.")
]
Context = Annotated[str, typer.Option("--context", help="Context of the kubeconfig. Default: the current one.")]


@dataclass
class Run:
    """A run: its output's prefix, its status where it was named in a cluster, and the manifest once it has finished."""

    title: str
    output: str
    status: FineTuneStatus | None = None
    manifest: dict[str, Any] | None = None
    _asked: bool = field(default=False, repr=False)

    def at(self, name: str) -> str:
        """The URI of an object below the output."""
        return f"{self.output}/{name}"

    def finished(self) -> dict[str, Any]:
        """The manifest. Raises CommandError where the run has none yet."""
        found = self.read_manifest()
        if found is not None:
            return found
        phase = f" (it is {self.status.phase})" if self.status is not None and self.status.phase else ""
        raise CommandError(
            f"{self.title} has not finished{phase}: {self.at(MANIFEST)} does not exist",
            "Wait for its end (`gft watch NAME`), or correct the name.",
        )

    def read_manifest(self) -> dict[str, Any] | None:
        """The manifest, None where there is none; read once. Raises CommandError where it cannot be read."""
        if not self._asked:
            content = bucket.read(self.at(MANIFEST))
            self._asked = True
            self.manifest = _object(self.at(MANIFEST), content, Manifest) if content is not None else None
        return self.manifest

    def samples(self) -> list[Sample]:
        """Prompts with their answers: whole from the manifest, else cut from the status, else those before training."""
        found = self.read_manifest()
        if found is not None:
            return [
                Sample.model_construct(prompt=item["prompt"], before=item.get("before"), after=item.get("after"))
                for item in found.get("samples", [])
            ]
        if self.status is not None and self.status.samples:
            return self.status.samples
        content = bucket.read(self.at(BEFORE))
        if content is None:
            return []
        before = _object(self.at(BEFORE), content, Before)
        pairs = zip(before["prompts"], before["answers"], strict=False)
        return [Sample.model_construct(prompt=prompt, before=answer) for prompt, answer in pairs]

    def name(self, instead: str) -> str:
        """The run's name, which becomes part of paths and commands.

        Raises:
            CommandError: the manifest names it as no run can be called; `instead` is what to do then.
        """
        found: str = self.finished()["run"]["name"]
        if re.fullmatch(NAME_PATTERN, found) and len(found) <= NAME_MAX_LENGTH:
            return found
        raise CommandError(f"the manifest names the run {found!r}", instead)

    def served(self) -> Served:
        """What a server must know of it.

        Raises:
            CommandError: the run has not finished, or its manifest holds what is no name.
        """
        found = self.finished()
        artifacts, base, method = (found.get(name, {}) for name in ("artifacts", "base", "method"))
        kind: Any = "model" if "model" in artifacts else "adapter"
        for field_, value in (("base.name", base.get("name")), ("base.revision", base.get("revision"))):
            if value and value.startswith("-"):
                raise CommandError(f"the manifest's {field_} would be an option: {value!r}", _NOT_OURS)
        merged = bucket.read(self.at("merged/manifest.json")) is not None
        return Served(
            name=self.name(_NOT_OURS),
            base=base.get("name", ""),
            where=self.at(kind),
            kind=kind,
            revision=base.get("revision"),
            rank=int(method.get("servedRank") or method.get("rank") or 0),
            chat=bool(found.get("chat")),
            images=bool(found.get("images")),
            merged=self.at("merged") if merged else None,
        )


def find(source: str, namespace: str = "", context: str = "") -> Run:
    """The run that is meant.

    Raises:
        CommandError: there is none of that name, or the file holds none or several.
    """
    if "://" in source:
        output = source.rstrip("/").removesuffix(f"/{MANIFEST}")
        return Run(output, output)
    path = Path(source)
    if path.is_dir() and (path / MANIFEST).exists():
        return Run(source, path.absolute().as_uri())
    if source == STDIN or path.suffix in SUFFIXES or path.is_file():
        resources = fine_tunes([source])
        if len(resources) > 1:
            named = ", ".join(resource.metadata.name for resource in resources)
            raise CommandError(f"{source} holds several resources: {named}", "Put the one into a file of its own.")
        return Run(resources[0].metadata.name, _output(resources[0].model_dump(by_alias=True)))
    if path.is_dir():
        raise CommandError(f"{source} is a folder without {MANIFEST}", "Name the output of a finished run.")
    return _of_cluster(source, namespace, context)


def _of_cluster(name: str, namespace: str, context: str) -> Run:
    from gemmatune_cli.remote import remote
    from gemmatune_operator.observe import status_of

    found = remote(name, namespace, context)
    resource = found.get()
    return Run(str(found), _output(resource), status_of(resource.get("status")))


def _output(resource: dict[str, Any]) -> str:
    from gemmatune_operator.observe import output_of

    if found := output_of(resource):
        return found
    raise CommandError("where its results go is not decided yet", "Name the output itself, such as gs://BUCKET/PATH.")


def _object(uri: str, content: bytes, shape: type[BaseModel]) -> dict[str, Any]:
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise CommandError(f"{uri} is no JSON: {error}", _NOT_OURS) from error
    if not isinstance(found, dict):
        raise CommandError(f"{uri} holds no object", _NOT_OURS)
    check(uri, found, shape)
    cleaned: dict[str, Any] = harmless(found)
    return cleaned
