"""The chart as Helm renders it: nothing wide, nothing idle, and names and versions that agree."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
import yaml

from gemmatune_api import names, yamlio
from gemmatune_operator.manifests import access
from tests.support import chart
from tests.support.api import Object

pytestmark = pytest.mark.usefixtures("helm")
ROOT = Path(__file__).resolve().parents[2]


def rights(role: Object) -> set[tuple[str, str, str]]:
    """What a role grants, as (group, resource, verb)."""
    return {
        (g, r, v) for rule in role["rules"] for g in rule["apiGroups"] for r in rule["resources"] for v in rule["verbs"]
    }


def test_lint() -> None:
    done = chart.helm("lint", "--strict", str(chart.CHART))
    assert "0 chart(s) failed" in done.stdout


def test_no_wildcard_anywhere() -> None:
    for values in ({}, {"namespaces": ["team-a"]}):
        for document in chart.render(values):
            if document["kind"] in ("ClusterRole", "Role"):
                assert not [part for right in rights(document) for part in right if "*" in part]
                assert not [rule for rule in document["rules"] if "nonResourceURLs" in rule]


def test_secrets_are_never_read() -> None:
    """And of ConfigMaps only the one with a namespace's defaults."""
    role = chart.one(chart.render(), "ClusterRole")
    assert not [right for right in rights(role) if right[1] in ("secrets", "pods/exec", "pods/log")]
    (rule,) = [rule for rule in role["rules"] if "configmaps" in rule["resources"]]
    assert rule["resourceNames"] == [names.DEFAULTS_CONFIG_MAP]
    assert rule["verbs"] == ["get"]


def test_the_operator_holds_what_it_grants() -> None:
    """The API server lets nobody make a Role with rights that they do not hold."""
    (role,) = [obj for obj in access.objects("x", None) if obj["kind"] == "Role"]
    assert rights(role) == {
        (names.GROUP, names.PLURAL, "get"),
        (names.GROUP, f"{names.PLURAL}/status", "patch"),
    }
    assert rights(role) <= rights(chart.one(chart.render(), "ClusterRole"))


def test_some_namespaces_only() -> None:
    """The same rights as Roles; of the cluster, Nodes are read and nothing else."""
    everywhere, some = chart.render(), chart.render({"namespaces": ["team-a", "team-b"]})
    whole = rights(chart.one(everywhere, "ClusterRole"))
    cluster = rights(chart.one(some, "ClusterRole"))
    assert cluster == {("", "nodes", "get")}
    roles = [d for d in some if d["kind"] == "Role"]
    assert [d["metadata"]["namespace"] for d in roles] == ["team-a", "team-b"]
    for role in roles:
        assert rights(role) | cluster == whole
    bindings = [d for d in some if d["kind"] == "RoleBinding"]
    assert [d["metadata"]["namespace"] for d in bindings] == ["team-a", "team-b"]
    account = {"kind": "ServiceAccount", "name": chart.OPERATOR, "namespace": chart.NAMESPACE}
    assert all(d["subjects"] == [account] for d in [*bindings, chart.one(some, "ClusterRoleBinding")])
    selector = chart.one(some, "ValidatingAdmissionPolicyBinding")["spec"]["matchResources"]["namespaceSelector"]
    assert selector["matchExpressions"][0]["values"] == ["team-a", "team-b"]
    assert "matchResources" not in chart.one(everywhere, "ValidatingAdmissionPolicyBinding")["spec"]


def test_one_operator_or_several() -> None:
    """Several elect a leader by the Lease that they may write, and by no other."""
    alone, several = chart.render(), chart.render({"replicas": 2})
    room = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}}
    assert chart.one(alone, "Deployment")["spec"]["strategy"] == room
    assert [d for d in alone if d["kind"] in ("Role", "RoleBinding")] == []
    beside = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}
    assert chart.one(several, "Deployment")["spec"]["strategy"] == beside
    role = chart.one(several, "Role")
    assert role["metadata"]["namespace"] == chart.NAMESPACE
    for rule in role["rules"]:
        assert rule["resources"] == ["leases"]
        assert rule["verbs"] == ["create"] or rule["resourceNames"] == [chart.OPERATOR]
    assert rights(chart.one(several, "ClusterRole")) == rights(chart.one(alone, "ClusterRole"))


def test_people_get_their_part_by_roles_that_they_have() -> None:
    """They write resources, and never a status."""
    roles = {
        d["metadata"]["name"]: rights(d) for d in chart.render() if d["kind"] == "ClusterRole" and chart.of_people(d)
    }
    reading = {(names.GROUP, names.PLURAL, verb) for verb in ("get", "list", "watch")}
    assert roles.keys() == {f"{chart.OPERATOR}-view", f"{chart.OPERATOR}-edit"}
    assert reading < roles[f"{chart.OPERATOR}-view"]
    assert {verb for *_, verb in roles[f"{chart.OPERATOR}-view"]} == {"get", "list", "watch"}
    assert {resource for _, resource, _ in roles[f"{chart.OPERATOR}-edit"]} == {names.PLURAL}


def test_the_policy_knows_the_names() -> None:
    """What names.py says of the resource and of the trainer's fields stands in the policy too."""
    spec = chart.one(chart.render(), "ValidatingAdmissionPolicy")["spec"]
    (rule,) = spec["matchConstraints"]["resourceRules"]
    assert rule == {
        "apiGroups": [names.GROUP],
        "apiVersions": [names.VERSION],
        "operations": ["UPDATE"],
        "resources": [f"{names.PLURAL}/status"],
    }
    variables = {item["name"]: item["expression"] for item in spec["variables"]}
    assert json.loads(variables["trainers"].replace("'", '"')) == list(names.TRAINER_STATUS_FIELDS)
    assert spec["failurePolicy"] == "Fail"
    assert all(validation["reason"] == "Forbidden" for validation in spec["validations"])
    longest = len(names.job_name("x" * names.NAME_MAX_LENGTH, names.Role.TRAIN, 99_999_999))
    assert longest <= 55, "the Job controller would shorten names of pods"


def test_the_definition_is_the_trees() -> None:
    (ours,) = yamlio.load_all((ROOT / f"crds/{names.PLURAL}.{names.GROUP}.yaml").read_text())
    charted = chart.one(chart.render(), "CustomResourceDefinition")
    assert charted["metadata"].pop("annotations") == {"helm.sh/resource-policy": "keep"}
    assert charted == ours


def test_versions_agree() -> None:
    described = yaml.safe_load((chart.CHART / "Chart.yaml").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert described["appVersion"] == described["version"] == project["version"]


@pytest.mark.parametrize(
    ("release", "name"),
    [("gemmatune", "gemmatune-operator"), ("tuning", "tuning-gemmatune-operator"), ("x" * 53, None)],
)
def test_names_of_a_release(release: str, name: str | None) -> None:
    for document in chart.render(release=release):
        found = document["metadata"]["name"]
        assert len(found) <= 63
        if document["kind"] != "CustomResourceDefinition" and name is not None:
            assert found.startswith(name)
