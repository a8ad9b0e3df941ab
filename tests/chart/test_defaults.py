"""The chart's defaults on the real control plane: by the operator into status and Jobs, and a namespace's over them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from gemmatune_api import names, yamlio
from gemmatune_api.names import DEFAULTS_CONFIG_MAP, ExitCode
from gemmatune_api.runconfig import RunConfig
from tests.support import chart
from tests.support.api import ApiError, Object
from tests.support.controlplane import ControlPlane
from tests.support.operator_process import OperatorProcess
from tests.support.stage import Stage
from tests.support.wait import wait_for

pytestmark = pytest.mark.cluster
TOLERATION = {"key": "dedicated", "operator": "Equal", "value": "tuning", "effect": "NoSchedule"}
VALUES: Object = {
    "trainer.tolerations": [TOLERATION],
    "defaults.outputPrefix": "gs://site/runs",
    "defaults.secretRef": {"name": "site-token"},
    "defaults.serviceAccountName": "tuner",
    "defaults.modelCache": "gs://site/models",
}


@pytest.fixture(scope="module")
def namespaces(
    crd: ControlPlane, make_namespace: Callable[..., str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, str]]:
    """Two namespaces, watched by an operator with the arguments and the file that the chart gives it."""
    watched = (make_namespace(), make_namespace())
    documents = chart.render({**VALUES, "namespaces": list(watched)})
    (file,) = [document for document in documents if document["kind"] == "ConfigMap"]
    (deployment,) = [document for document in documents if document["kind"] == "Deployment"]
    folder = tmp_path_factory.mktemp("defaults")
    (folder / "defaults.yaml").write_text(file["data"]["defaults.yaml"])
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    arguments = [argument.replace(mounts["defaults"], str(folder)) for argument in container["args"]]
    operator = OperatorProcess(crd.operator_kubeconfig, folder / "operator.log", arguments=arguments).ready()
    yield watched
    assert operator.stop() == 0
    assert operator.stacks() == []


def give(crd: ControlPlane, namespace: str, **data: str) -> None:
    """The namespace's ConfigMap, applied as people do."""
    meta = {"name": DEFAULTS_CONFIG_MAP, "namespace": namespace}
    document = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": data}
    crd.kubectl("apply", "-f", "-", input=document)


def shown(crd: ControlPlane, stage: Stage) -> Object:
    """What `kubectl get -o yaml` shows of the status."""
    (found,) = yamlio.load_all(crd.kubectl("get", "gft", stage.name, "-n", stage.namespace, "-o", "yaml").stdout)
    assert isinstance(found, dict)
    status: Object = found["status"]
    return status


def pod_spec(job: Object) -> Object:
    found: Object = job["spec"]["template"]["spec"]
    return found


def told(job: Object) -> RunConfig:
    variables = pod_spec(job)["containers"][0]["env"]
    return RunConfig.from_env(next(item["value"] for item in variables if item["name"] == names.ENV_RUN))


def tokens(job: Object) -> set[str]:
    """Names of the Secrets that the container gets a value from."""
    variables = pod_spec(job)["containers"][0]["env"]
    return {item["valueFrom"]["secretKeyRef"]["name"] for item in variables if "valueFrom" in item}


def test_values_reach_status_and_jobs(crd: ControlPlane, namespaces: tuple[str, str]) -> None:
    stage = Stage(crd.api, namespaces[0])
    stage.create(output={"overwrite": True})
    job = stage.job("p1")
    stage.wait_phase("Preparing")
    resolved = shown(crd, stage)["resolved"]
    assert resolved["output"] == {
        "uri": f"gs://site/runs/{stage.namespace}/quotes",
        "merge": False,
        "overwrite": True,
    }
    assert resolved["pod"] == {"serviceAccountName": "tuner"}
    assert resolved["model"]["secretRef"] == {"name": "site-token"}
    assert shown(crd, stage)["defaults"]["modelCache"] == told(job).model.cache == "gs://site/models"
    assert pod_spec(job)["serviceAccountName"] == "tuner"
    assert tokens(job) == {"site-token"}
    assert TOLERATION in pod_spec(job)["tolerations"]
    table = crd.kubectl("get", "gft", "quotes", "-n", stage.namespace, "-o", "wide").stdout
    assert f"gs://site/runs/{stage.namespace}/quotes" in table


def test_a_namespace_overrides_and_a_run_keeps_what_it_began_with(
    crd: ControlPlane, namespaces: tuple[str, str]
) -> None:
    here = namespaces[1]
    give(crd, here, outputPrefix="gs://team/runs", secretRef="name: team-token", serviceAccountName="", modelCache="")
    stage = Stage(crd.api, here, "kept")
    stage.create(output={}, pod={"priorityClassName": "mine"})
    stage.job("p1")
    stage.wait_phase("Preparing")
    resolved = shown(crd, stage)["resolved"]
    assert resolved["output"]["uri"] == f"gs://team/runs/{here}/kept"
    assert resolved["pod"] == {"priorityClassName": "mine"}, (
        "the resource's own stays, the installation's is taken away"
    )
    assert shown(crd, stage)["defaults"] == {"outputPrefix": "gs://team/runs", "secretRef": {"name": "team-token"}}

    give(crd, here, outputPrefix="gs://elsewhere", secretRef="name: other")
    crd.api.patch(f"{stage.runs}/kept", {"spec": {"pod": None}})
    stage.wait(lambda status: status["observedGeneration"] == 2, "the corrected spec")
    found = stage.wait(lambda status: "gs://elsewhere" in status["resolved"]["output"]["uri"], "today's defaults")
    assert found["resolved"]["pod"] == {"serviceAccountName": "tuner"}, "a correction takes those of its time"


def test_attempts_keep_the_defaults_of_the_first(crd: ControlPlane, namespaces: tuple[str, str]) -> None:
    here = namespaces[1]
    own = {"secretRef": "name: team-token", "serviceAccountName": "", "modelCache": "gs://team/models"}
    give(crd, here, outputPrefix="gs://team/runs", **own)
    stage = Stage(crd.api, here, "attempts")
    stage.create(output={})
    stage.to_training()
    give(crd, here, outputPrefix="s3://no", secretRef="name: other")
    stage.ends("t1", ExitCode.INTERRUPTED, {"message": "stopped"})
    first, second = stage.job("t1"), stage.job("t2")
    assert tokens(first) == tokens(second) == {"team-token"}
    assert told(first).model.cache == told(second).model.cache == "gs://team/models"
    assert shown(crd, stage)["resolved"]["output"]["uri"] == f"gs://team/runs/{here}/attempts"


def test_a_wrong_config_map_is_named_and_waited_for(crd: ControlPlane, namespaces: tuple[str, str]) -> None:
    here = namespaces[1]
    give(crd, here, outputPrefx="gs://team/runs")
    stage = Stage(crd.api, here, "waiting")
    stage.create(output={})
    status = stage.wait(lambda status: status.get("reason") == "InvalidDefaults", "InvalidDefaults")
    assert status["phase"] == "Pending"
    assert "ConfigMap gemmatune-defaults, outputPrefx: is no field" in status["message"]
    assert "did you mean outputPrefix?" in status["remedy"]
    give(crd, here, outputPrefix="gs://team/runs")
    stage.wait_phase("Preparing")


def test_allowed_buckets_hold_for_a_namespace_s_prefix(crd: ControlPlane, make_namespace: Callable[..., str]) -> None:
    namespace = make_namespace()
    documents = chart.render({"allowed.buckets": ["ours"], "namespaces": [namespace]}, release="bounded")
    chart.apply(crd, [d for d in documents if d["metadata"]["name"].endswith(("-allowed", "-allowed.defaults"))])
    path = f"/api/v1/namespaces/{namespace}/configmaps"

    def answer(prefix: str, name: str = DEFAULTS_CONFIG_MAP, key: str = "outputPrefix") -> str:
        document = {"metadata": {"name": name}, "data": {key: prefix}}
        try:
            crd.api.call("POST", path, {"apiVersion": "v1", "kind": "ConfigMap", **document}, dryRun="All")
        except ApiError as error:
            return str(error.body["message"])
        return ""

    wait_for(
        lambda: "outputPrefix: gs://theirs/x is in no bucket that is allowed here" in answer("gs://theirs/x"), "it"
    )
    assert "is in no bucket" in answer("gs://ours-not/x")
    assert answer("gs://ours/x") == answer("gs://ours") == ""
    assert "modelCache: gs://theirs/x is in no bucket" in answer("gs://theirs/x", key="modelCache")
    assert answer("gs://ours/x", key="modelCache") == ""
    assert answer("gs://theirs/x", "another") == "", "other ConfigMaps are nobody's affair"
    runs = f"/apis/{names.API_VERSION}/namespaces/{namespace}/{names.PLURAL}"
    stage = Stage(crd.api, namespace)
    assert stage.runs == runs
    stage.create(output={}, dataset={"uri": "hf://a/b", "text": {"template": "{a}"}})
