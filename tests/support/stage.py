"""A GemmaFineTune on the real control plane whose pods' ends are played by writing pod statuses."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from gemmatune_api import names
from gemmatune_operator.conditions import rfc3339
from tests.support.api import APPLY, STRATEGIC, Api, Object
from tests.support.play import PREPARED, SPEC, ended
from tests.support.wait import wait_for

SECONDS = 30.0


class Stage:
    """One resource in one namespace."""

    def __init__(self, api: Api, namespace: str, name: str = "quotes") -> None:
        self.api, self.namespace, self.name = api, namespace, name
        self.runs = f"/apis/{names.API_VERSION}/namespaces/{namespace}/{names.PLURAL}"
        self.jobs = f"/apis/batch/v1/namespaces/{namespace}/jobs"
        self.pods = f"/api/v1/namespaces/{namespace}/pods"

    def create(self, **changes: Any) -> Object:
        """Creates the resource; `changes` replace blocks of the spec."""
        spec = {**copy.deepcopy(SPEC), **changes}
        spec["output"] = changes.get("output", {"uri": f"gs://bucket/{self.namespace}/{self.name}"})
        document = {
            "apiVersion": names.API_VERSION,
            "kind": names.KIND,
            "metadata": {"name": self.name},
            "spec": spec,
        }
        return self.api.create(self.runs, document)

    def change(self, **blocks: Any) -> Object:
        """Merges blocks into the spec."""
        return self.api.patch(f"{self.runs}/{self.name}", {"spec": blocks})

    def annotate(self, value: str) -> Object:
        """Asks for another try."""
        return self.api.patch(
            f"{self.runs}/{self.name}", {"metadata": {"annotations": {names.ANNOTATION_RETRY: value}}}
        )

    @property
    def resource(self) -> Object:
        return self.api.get(f"{self.runs}/{self.name}")

    @property
    def status(self) -> Object:
        status: Object = self.resource.get("status") or {}
        return status

    def condition(self, kind: str) -> Object:
        """A condition, or {}."""
        found: list[Object] = self.status.get("conditions") or []
        return next((item for item in found if item["type"] == kind), {})

    def wait_phase(self, phase: str, seconds: float = SECONDS) -> Object:
        """Waits for the phase; the status."""
        return self.wait(lambda status: status.get("phase") == phase, f"phase {phase}", seconds)

    def wait(self, holds: Callable[[Object], object], what: str, seconds: float = SECONDS) -> Object:
        """Waits until the status is such."""

        def look() -> Object | None:
            status = self.status
            return status if holds(status) else None

        found = wait_for(look, what, seconds=seconds, detail=lambda: json.dumps(self.status, indent=1)[:4000])
        assert found is not None
        return found

    def job(self, suffix: str) -> Object:
        """Waits for a Job of the run (`p1`, `t2`)."""
        found = wait_for(
            lambda: self.api.find(f"{self.jobs}/{self.name}-{suffix}"), f"Job {suffix}", detail=lambda: self.status
        )
        assert found is not None
        return found

    def job_names(self) -> list[str]:
        return sorted(item["metadata"]["name"] for item in self.api.get(self.jobs)["items"])

    def pod(self, suffix: str) -> Object:
        """Waits for the pod of a Job."""
        self.job(suffix)
        found = wait_for(lambda: self.pods_of(suffix), f"a pod of {suffix}")
        assert len(found) == 1, f"{suffix} has {len(found)} pods"
        pod: Object = found[0]
        return pod

    def pods_of(self, suffix: str) -> list[Object]:
        """The pods that a Job has now."""
        selector = f"batch.kubernetes.io/job-name={self.name}-{suffix}"
        found: list[Object] = self.api.get(self.pods, labelSelector=selector)["items"]
        return found

    def pod_status(self, suffix: str, status: Object, pod: str = "") -> None:
        """Plays the kubelet; `pod` names one of several."""
        pod = pod or self.pod(suffix)["metadata"]["name"]
        for item in status.get("containerStatuses", []):
            item.update({"image": "x", "imageID": "x", "ready": False, "restartCount": 0})
        self.api.patch(f"{self.pods}/{pod}/status", {"status": status}, STRATEGIC)

    def runs_now(self, suffix: str, pod: str = "") -> None:
        """The pod of a Job runs."""
        state = {"running": {"startedAt": rfc3339(datetime.now(UTC))}}
        self.pod_status(suffix, {"phase": "Running", "containerStatuses": [{"name": "trainer", "state": state}]}, pod)

    def ends(self, suffix: str, code: int, message: Object | str = "", reason: str = "", pod: str = "") -> None:
        """The container of a Job's pod ends."""
        self.pod_status(suffix, ended(code, message, reason, datetime.now(UTC)), pod)

    def trainer(self, **fields: Any) -> None:
        """The trainer applies its status fields."""
        body = {
            "apiVersion": names.API_VERSION,
            "kind": names.KIND,
            "metadata": {"name": self.name},
            "status": fields,
        }
        query = {"fieldManager": names.FIELD_MANAGER_TRAINER, "force": "true"}
        self.api.patch(f"{self.runs}/{self.name}/status", body, APPLY, **query)

    def to_training(self) -> None:
        """Plays preparation and the start of attempt 1."""
        self.ends("p1", 0, PREPARED)
        self.runs_now("t1")
        self.wait_phase("Training")

    def events(self) -> list[Object]:
        """Events about the resource, oldest first."""
        uid = self.resource["metadata"]["uid"]
        path = f"/api/v1/namespaces/{self.namespace}/events"
        items: list[Object] = self.api.get(path, fieldSelector=f"involvedObject.uid={uid}")["items"]
        return sorted(items, key=lambda item: int(item["metadata"]["resourceVersion"]))
