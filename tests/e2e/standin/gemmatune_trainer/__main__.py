"""Prepares at once, and then ends, eats memory or waits for SIGTERM, as its environment says; FAULT is

`exit CODE MESSAGE`, `crash`, `oom`, `oom-child` (a child is killed, the process itself ends with 5) or `wait`.
"""

from __future__ import annotations

import json
import os
import signal
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
LOG = Path("/dev/termination-log")
SHAPE = {
    "model_type": "gemma3_text",
    "num_hidden_layers": 18,
    "hidden_size": 640,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 256,
    "intermediate_size": 2048,
    "vocab_size": 262144,
    "max_position_embeddings": 32768,
    "sliding_window": 512,
}
DATA = {"hash": "d", "rows": 100, "tokens": 1000, "labelledTokens": 1000, "longest": 10}
EATER = "held = [bytearray(1 << 24) for _ in range(10000)]"


def write_status(run: str, fields: dict[str, object]) -> int:
    """Writes status fields of a run with the pod's own token; the API server's HTTP code."""
    namespace = (ACCOUNT / "namespace").read_text()
    host = f"https://{os.environ['KUBERNETES_SERVICE_HOST']}:{os.environ['KUBERNETES_SERVICE_PORT']}"
    path = f"/apis/gemmatune.dev/v1alpha1/namespaces/{namespace}/gemmafinetunes/{run}/status"
    body = {
        "apiVersion": "gemmatune.dev/v1alpha1",
        "kind": "GemmaFineTune",
        "metadata": {"name": run},
        "status": fields,
    }
    request = urllib.request.Request(
        f"{host}{path}?fieldManager=gemmatune-trainer&force=true", json.dumps(body).encode(), method="PATCH"
    )
    request.add_header("Authorization", f"Bearer {(ACCOUNT / 'token').read_text()}")
    request.add_header("Content-Type", "application/apply-patch+yaml")
    context = ssl.create_default_context(cafile=str(ACCOUNT / "ca.crt"))
    try:
        with urllib.request.urlopen(request, timeout=30, context=context) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def say(**message: object) -> None:
    """Leaves the termination message."""
    LOG.write_text(json.dumps(message))


def wait(run: str) -> None:
    """Until SIGTERM: then a checkpoint is told of, as the trainer does."""

    def stopped(*_: object) -> None:
        write_status(run, {"checkpoint": {"step": 7, "uri": "gs://bucket/checkpoints/step-00000007"}})
        say(reason="Interrupted", message="Stopped by SIGTERM.", step=7)
        os._exit(30)

    signal.signal(signal.SIGTERM, stopped)
    own = write_status(run, {"progress": {"step": 3, "totalSteps": 10, "stepText": "3/10"}})
    others = write_status(os.environ["ANOTHER_RUN"], {"progress": {"step": 9}})
    rootfs = "read-only" if not os.access("/opt", os.W_OK) else "writable"
    write_status(run, {"progress": {"step": 4, "totalSteps": 10, "stepText": f"{own} {others} {os.getuid()} {rootfs}"}})
    while True:
        signal.pause()


def main() -> None:
    """What FAULT says."""
    run = json.loads(os.environ["GEMMATUNE_RUN"])["run"]["name"]
    if sys.argv[1] == "prepare":
        say(model={"family": "gemma3_text", "revision": "r", "shape": SHAPE}, data=DATA)
        return
    kind, _, rest = os.environ.get("FAULT", "wait").partition(" ")
    if kind == "exit":
        code, _, message = rest.partition(" ")
        say(message=message, step=3)
        sys.exit(int(code))
    if kind == "crash":
        raise ValueError("the tensor is upside down")
    if kind == "oom":
        exec(EATER)
    if kind == "oom-child":
        subprocess.run([sys.executable, "-c", EATER], check=False)
        sys.exit(5)
    wait(run)


main()
