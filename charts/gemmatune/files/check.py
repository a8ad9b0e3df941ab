"""`helm test`: the definition is served and checks what it is given, and the operator is available."""

import json
import os
import ssl
import sys
import time
import urllib.error
import urllib.request

ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
HOST, PORT = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
NAMESPACE, DEPLOYMENT = os.environ["CHECK_NAMESPACE"], os.environ["CHECK_DEPLOYMENT"]
SECONDS = 120
RUN = {
    "apiVersion": "gemmatune.dev/v1alpha1",
    "kind": "GemmaFineTune",
    "metadata": {"name": "helm-test"},
    "spec": {
        "model": {"uri": "hf://google/gemma-3-270m"},
        "dataset": {"uri": "hf://Abirate/english_quotes", "text": {"template": "{quote}"}},
        "output": {"uri": "gs://helm-test/run"},
        "accelerator": {"cpu": {}},
    },
}


def ask(path, body=None):
    """HTTP code and document of an answer of the API server."""
    with open(f"{ACCOUNT}/token", encoding="utf-8") as file:
        headers = {"Authorization": f"Bearer {file.read()}", "Content-Type": "application/json"}
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"https://{HOST}:{PORT}{path}", data, headers)
    context = ssl.create_default_context(cafile=f"{ACCOUNT}/ca.crt")
    try:
        with urllib.request.urlopen(request, timeout=10, context=context) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def main():
    runs = f"/apis/gemmatune.dev/v1alpha1/namespaces/{NAMESPACE}/gemmafinetunes?dryRun=All"
    code, said = ask(runs, {**RUN, "spec": {**RUN["spec"], "accelerator": {}}})
    if code != 422:
        sys.exit(
            f"a GemmaFineTune without an accelerator must be refused with 422, and was answered with {code}: {said}"
        )
    code, said = ask(runs, RUN)
    # An admission policy of the installation may say no to the bucket; the definition has then said yes.
    if code not in (201, 403):
        sys.exit(f"a GemmaFineTune was answered with {code}: {said}")
    print("the definition accepts a sound GemmaFineTune and refuses an unsound one")
    deadline = time.monotonic() + SECONDS
    while True:
        code, found = ask(f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments/{DEPLOYMENT}")
        if code == 200 and found["status"].get("availableReplicas"):
            break
        if time.monotonic() > deadline:
            sys.exit(f"deployment {DEPLOYMENT} is not available after {SECONDS} s: {found.get('status', found)}")
        time.sleep(1)
    print(f"the operator is available: {found['status']['availableReplicas']} of {found['spec']['replicas']}")


main()
