"""Any spec, RunConfig, row or file: an answer or a refusal in words, never an exception that nobody expects."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gemmatune_api import names, validate
from gemmatune_api.errors import InvalidResourceError
from gemmatune_api.runconfig import RunConfig, RunConfigError, RunDataset
from gemmatune_api.spec import ChatFormat, InstructFormat, TextFormat
from gemmatune_cli.console import CommandError
from gemmatune_cli.planning import planned
from gemmatune_cli.render import objects
from gemmatune_operator.observe import of_resource
from gemmatune_operator.policies import plan
from gemmatune_operator.settings import Settings
from gemmatune_trainer.data.formats import documents
from gemmatune_trainer.data.readers import read
from gemmatune_trainer.data.rows import Row
from gemmatune_trainer.errors import TrainerError
from tests.security.mutations import BASES, anything, resources
from tests.support.soak import SOAK

EXAMPLES = 3000 if SOAK else 150
fuzzed = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
PRICED = Settings(prices={"nvidia-h100-80gb": {"onDemand": 1.0, "spot": 0.5}})
NOW = datetime(2026, 3, 1, tzinfo=UTC)
STORED = {"namespace": "team", "uid": "uid-1", "generation": 1, "resourceVersion": "7"}
AT_HOME = {"Job", "ServiceAccount", "Role", "RoleBinding", "Service"}


def told(text: str) -> None:
    """A refusal says something."""
    assert text.strip()


def test_sound_resources_get_as_far_as_their_jobs() -> None:
    """Or what is fuzzed would never be looked at."""
    for document in BASES:
        stored = {**document, "metadata": {**document["metadata"], **STORED}}
        assert [made["kind"] for made in plan(of_resource(stored), NOW, PRICED).create if made["kind"] == "Job"]


@fuzzed
@given(resources())
def test_any_spec_is_refused_or_planned_by_the_operator(document: dict[str, Any]) -> None:
    """The operator gets what the API server let through; nothing of it may end a look."""
    stored = {**document, "metadata": {**document["metadata"], **STORED}}
    decision = plan(of_resource(stored), NOW, PRICED)
    for made in decision.create:
        locked_in(made)
    json.dumps(decision.status.model_dump(mode="json", by_alias=True))


@fuzzed
@given(resources())
def test_any_spec_is_refused_or_rendered_by_gft(document: dict[str, Any]) -> None:
    try:
        found = validate.parse(document)
    except InvalidResourceError as error:
        told(str(error))
        return
    metadata = found.metadata.model_copy(update={"namespace": "team"})
    try:
        rendered = list(objects(planned(found.model_copy(update={"metadata": metadata})), 1, Settings()))
    except CommandError as error:
        told(error.message)
        return
    for made in rendered:
        locked_in(made)


def locked_in(made: dict[str, Any]) -> None:
    """What a spec can never get: another namespace, the host, more rights, another program, a value from outside."""
    assert made["kind"] in AT_HOME
    assert made["metadata"]["namespace"] == "team"
    if made["kind"] != "Job":
        return
    template = made["spec"]["template"]
    pod, (container,) = template["spec"], template["spec"]["containers"]
    assert not {"hostNetwork", "hostPID", "hostIPC", "initContainers", "nodeName"} & set(pod)
    assert all(set(volume) - {"name"} <= {"emptyDir", "persistentVolumeClaim"} for volume in pod["volumes"])
    assert all(mount.get("readOnly") for mount in container["volumeMounts"] if mount["name"].startswith("claim"))
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
    }
    assert container["command"][0] == "python"
    assert template["metadata"]["labels"][names.LABEL_RUN] == "quotes"
    (run,) = [variable for variable in container["env"] if variable["name"] == names.ENV_RUN]
    assert "$" not in run["value"], "the kubelet would put a variable's value there"
    for variable in container["env"]:
        assert set(variable.get("valueFrom", {})) <= {"secretKeyRef", "configMapKeyRef"}


@fuzzed
@given(st.text() | st.binary().map(lambda data: data.decode("latin-1")) | anything.map(lambda value: json.dumps(value)))
def test_any_run_config_is_read_or_refused(text: str) -> None:
    refused_or_read(text)


def test_run_configs_that_exhaust_a_reader() -> None:
    for text in ("[" * 60_000, '{"version": ' + "9" * 60_000 + "}", '{"a":' * 10_000, '{"version": true}'):
        refused_or_read(text)


def refused_or_read(text: str) -> None:
    try:
        RunConfig.from_env(text)
    except RunConfigError as error:
        told(str(error))


FORMATS: list[dict[str, Any]] = [
    {"text": TextFormat(template="Quote: {quote}\n{author}")},
    {"instruct": InstructFormat(instruction="quote", input="author", output="text")},
    {"chat": ChatFormat(messages="quote")},
]
messages = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "system", "tool", 7]), "content": anything}),
    max_size=4,
)


@fuzzed
@given(
    st.sampled_from(FORMATS),
    st.dictionaries(st.sampled_from(["quote", "author", "text"]), anything | messages, max_size=3),
)
def test_any_row_is_a_document_or_refused(form: dict[str, Any], row: dict[str, Any]) -> None:
    dataset = RunDataset.model_construct(uri="file:///rows", limit=None, **_all_formats(form))
    try:
        list(documents([Row(row, "row 1")], dataset))
    except TrainerError as error:
        told(error.message)
        told(error.remedy)


def _all_formats(form: dict[str, Any]) -> dict[str, Any]:
    return {"text": None, "instruct": None, "chat": None, **form}


@fuzzed
@given(
    st.sampled_from(["a.jsonl", "a.json", "a.csv", "a.tsv", "a.parquet", "a.jsonl.gz", "a.pkl", "a.py", "a.tar"]),
    st.binary(max_size=400) | st.lists(anything, max_size=3).map(lambda rows: json.dumps(rows).encode()),
)
def test_any_file_is_rows_or_refused(name: str, content: bytes) -> None:
    import io

    try:
        for row in read(lambda: io.BytesIO(content), name):
            assert isinstance(row.values, dict)
    except TrainerError as error:
        told(error.message)
