"""MLflow: one run for all attempts, found again by a tag that holds the resource's UID."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

from gemmatune_api.runconfig import RunConfig
from gemmatune_api.runtracking import RunMlflow
from gemmatune_trainer.tracking import Ending, Record

UID_TAG = "gemmatune.uid"
ATTEMPT_TAG = "gemmatune.attempt"
EXPERIMENT = "gemmatune"
"""Where the environment variable MLFLOW_EXPERIMENT_NAME (pod.env) names no other."""
_BATCH = 1000
_STATES = {"finished": "FINISHED", "interrupted": "KILLED", "failed": "FAILED"}
_PATIENCE = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "20", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
"""MLflow asks for minutes otherwise; here what fails is offered again later."""


class MLflow:
    """Logs to a tracking server."""

    name = "mlflow"

    def __init__(self, config: RunConfig, wanted: RunMlflow, settings: Mapping[str, str]) -> None:
        self._config = config
        self._uri = wanted.uri
        self._settings = dict(settings)
        self._client: Any = None
        self._run = ""

    def open(self) -> None:
        """Finds the run of earlier attempts, or makes it."""
        os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
        for name, value in _PATIENCE.items():
            os.environ.setdefault(name, value)
        if self._uri.startswith("file:"):
            os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"
        for library in ("mlflow", "urllib3.connectionpool"):
            logging.getLogger(library).setLevel(logging.ERROR)  # that it failed is said once, by us
        from mlflow.tracking import MlflowClient

        self._client = MlflowClient(tracking_uri=self._uri)
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
        experiment = self._client.get_experiment_by_name(name)
        where = experiment.experiment_id if experiment is not None else self._client.create_experiment(name)
        uid = self._config.run.uid
        found = self._client.search_runs([where], filter_string=f"tags.`{UID_TAG}` = '{uid}'", max_results=1)
        if found:
            self._run = found[0].info.run_id
            self._client.update_run(self._run, status="RUNNING")
        else:
            self._create(where)
        self._client.set_tag(self._run, ATTEMPT_TAG, str(self._config.attempt))

    def _create(self, experiment: str) -> None:
        from mlflow.entities import Param

        identity = self._config.run
        name = f"{identity.namespace}/{identity.name}"
        made = self._client.create_run(experiment, tags={UID_TAG: identity.uid}, run_name=name)
        self._run = made.info.run_id
        settings = iter(self._settings.items())
        while some := list(islice(settings, 100)):  # the most that a server takes at once
            self._client.log_batch(self._run, params=[Param(key, value[:500]) for key, value in some])

    def log(self, records: Sequence[Record]) -> None:
        """Logs the values at their steps; a value that is told again counts once."""
        from mlflow.entities import Metric

        values = iter(
            Metric(name, value, int(record.time * 1000), record.step)
            for record in records
            for name, value in record.values.items()
        )
        while some := list(islice(values, _BATCH)):
            self._client.log_batch(self._run, metrics=some)

    def close(self, ending: Ending) -> None:
        """Says how the attempt ended."""
        if self._run:
            self._client.set_terminated(self._run, _STATES[ending])
