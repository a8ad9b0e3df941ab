"""The headless Service of an attempt with several pods: it gives each pod a name that the others find it by."""

from __future__ import annotations

from gemmatune_api.names import Role, job_name
from gemmatune_api.spec import GemmaFineTune
from gemmatune_operator.manifests.job import labels, owner
from gemmatune_operator.ports import Object

JOB_NAME_LABEL = "batch.kubernetes.io/job-name"
"""Label that the Job controller gives to a Job's pods."""
RENDEZVOUS_PORT = 29500
"""Where rank 0 listens."""
TPU_PORT = 8471
"""Where the TPU runtimes of a slice talk to each other."""
COORDINATOR_PORT = 8476
"""Where JAX's coordinator listens, in the first pod: there the pods of backend keras meet."""


def service(resource: GemmaFineTune, number: int) -> Object:
    """The Service of attempt `number`, named as its Job; pods are found before they are ready."""
    name = job_name(resource.metadata.name, Role.TRAIN, number)
    ports = {"rendezvous": RENDEZVOUS_PORT}
    if resource.spec.accelerator.tpu is not None:
        ports = {"tpu": TPU_PORT, "coordinator": COORDINATOR_PORT}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": name,
            "namespace": resource.metadata.namespace,
            "labels": labels(resource, Role.TRAIN, number),
            "ownerReferences": [owner(resource)],
        },
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": {JOB_NAME_LABEL: name},
            "ports": [{"name": port, "port": number, "targetPort": number} for port, number in ports.items()],
        },
    }


def host(job: str, index: int) -> str:
    """Name by which the pods of a Job reach the one with a completion index."""
    return f"{job}-{index}.{job}"
