"""The preparation's Job: access and data are checked on a cheap CPU node before an accelerator starts."""

from __future__ import annotations

from gemmatune_api import names
from gemmatune_api.names import Role
from gemmatune_api.placement import PodSpec
from gemmatune_api.runconfig import RunConfig
from gemmatune_api.spec import FineTuneSpec, GemmaFineTune
from gemmatune_operator.manifests import credentials, pod
from gemmatune_operator.manifests.job import job as whole_job
from gemmatune_operator.manifests.job import labels
from gemmatune_operator.manifests.quantities import GI, text
from gemmatune_operator.manifests.resources import CPU, DISK, MEMORY, Resources
from gemmatune_operator.ports import Object
from gemmatune_operator.settings import Settings

RESOURCES = Resources(
    requests={CPU: "1", MEMORY: text(2 * GI), DISK: text(10 * GI)},
    limits={MEMORY: text(8 * GI), DISK: text(20 * GI)},
)
"""Memory for the tokenizer, whatever the number of rows, and disk for tens of millions of short ones; what lies above
the request is used only where the node has it."""
SHARED_MEMORY = GI // 4
_ACCOUNT = names.TRAINER_SERVICE_ACCOUNT
READINESS = {
    "exec": {"command": ["test", "!", "-e", f"{names.DEFAULT_CACHE}/{names.WAITING_FILE}"]},
    "periodSeconds": 5,
    "timeoutSeconds": 5,
    "failureThreshold": 1,
}
"""Not ready means that access is refused and asked for again: a preparation writes no status, but its kubelet does."""


def job(resource: GemmaFineTune, config: RunConfig, number: int, settings: Settings) -> Object:
    """The Job of preparation `number`.

    pod.nodeSelector and pod.resources speak of the accelerator's nodes and do not apply; neither do tolerations
    that would let the pod onto such a node.
    """
    spec = resource.spec
    needs = pod.Needs(
        resources=RESOURCES,
        shared_memory=SHARED_MEMORY,
        grace=30,
        tolerations=tolerations(spec),
        environment=[
            pod.value(names.ENV_SERVICE_ACCOUNT, (spec.pod or PodSpec()).service_account_name or _ACCOUNT),
            *credentials.environment(spec, Role.PREPARE),
        ],
        readiness=READINESS,
    )
    template = pod.template(spec, Role.PREPARE, labels(resource, Role.PREPARE, number), config, needs, settings)
    return whole_job(resource, Role.PREPARE, number, template)


def tolerations(spec: FineTuneSpec) -> list[Object]:
    """The user's tolerations but those that would let a pod onto a node with accelerators."""
    return [
        toleration.model_dump(by_alias=True, exclude_none=True)
        for toleration in (spec.pod or PodSpec()).tolerations or []
        if not pod.opens_accelerators(toleration)
    ]
