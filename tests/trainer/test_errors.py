"""Which exceptions of others mean which end: real ones wherever a library can be made to raise them."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import httpx2
import pytest
import requests
import torch
from google.api_core import exceptions as google
from google.auth.exceptions import DefaultCredentialsError, RefreshError
from huggingface_hub import HfApi
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

from gemmatune_api.handover import RunConfigError
from gemmatune_api.messages import TerminationMessage, from_text, to_text
from gemmatune_api.names import ENV_GCS_ENDPOINT, EXIT_REASONS, ExitCode, Reason
from gemmatune_api.runconfig import RunModel
from gemmatune_trainer import errors
from gemmatune_trainer.__main__ import main
from gemmatune_trainer.models import fetch


def answer(status: int) -> httpx2.Response:
    return httpx2.Response(status, request=httpx2.Request("GET", "https://hub.example/x"))


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RunConfigError("GEMMATUNE_RUN is no JSON"), Reason.INVALID_CONFIG),
        (OSError(errno.ENOSPC, "No space left on device"), Reason.DISK_FULL),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), Reason.DISK_FULL),
        (PermissionError(errno.EACCES, "Permission denied", "/data"), Reason.ACCESS_DENIED),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), Reason.ACCELERATOR_OUT_OF_MEMORY),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED"), Reason.ACCELERATOR_OUT_OF_MEMORY),
        (RuntimeError("RESOURCE_EXHAUSTED: Error allocating device buffer"), Reason.ACCELERATOR_OUT_OF_MEMORY),
        (RuntimeError("Ran out of memory in memory space hbm. Used 20G of 15G"), Reason.ACCELERATOR_OUT_OF_MEMORY),
        (google.Forbidden("no"), Reason.ACCESS_DENIED),
        (google.Unauthorized("no"), Reason.ACCESS_DENIED),
        (DefaultCredentialsError("none"), Reason.ACCESS_DENIED),
        (RefreshError("expired"), Reason.ACCESS_DENIED),
        (RefreshError("later", retryable=True), Reason.STORAGE_UNAVAILABLE),
        (google.NotFound("The specified bucket does not exist."), Reason.INVALID_CONFIG),
        (google.ServiceUnavailable("later"), Reason.STORAGE_UNAVAILABLE),
        (google.TooManyRequests("later"), Reason.STORAGE_UNAVAILABLE),
        (requests.ConnectionError("refused"), Reason.STORAGE_UNAVAILABLE),
        (requests.Timeout("slow"), Reason.STORAGE_UNAVAILABLE),
        (GatedRepoError("gated", response=answer(403)), Reason.ACCESS_DENIED),
        (RepositoryNotFoundError("none", response=answer(404)), Reason.ACCESS_DENIED),
        (HfHubHTTPError("no", response=answer(401)), Reason.ACCESS_DENIED),
        (HfHubHTTPError("no", response=answer(503)), Reason.HUB_UNAVAILABLE),
        (LocalEntryNotFoundError("offline"), Reason.HUB_UNAVAILABLE),
        (httpx2.ConnectTimeout("slow"), Reason.HUB_UNAVAILABLE),
    ],
)
def test_foreign_exceptions(error: Exception, reason: Reason) -> None:
    found = errors.explain(error)
    assert found is not None
    assert found.reason is reason
    assert EXIT_REASONS[found.exit_code] is reason
    assert found.remedy
    assert str(error).split()[0] in found.message


@pytest.mark.parametrize(
    "text",
    [
        "UNIMPLEMENTED: While rewriting computation to not contain X64 element types, XLA encountered an HLO for which "
        "this rewriting is not implemented",
        "Bad StatusOr access: INVALID_ARGUMENT: Mosaic failed to compile TPU kernel",
        "Ran out of memory in memory space vmem. Used 20M of 16M",
    ],
)
def test_what_xla_cannot_compile_is_no_crash_that_is_tried_again(text: str) -> None:
    """Only where XLA says it: another library's RuntimeError with such words is none of its compiler's."""
    raised = compile("def fail(text): raise RuntimeError(text)", "torch_xla.py", "exec")
    found: dict[str, Any] = {"__name__": "torch_xla.torch_xla"}
    exec(raised, found)
    with pytest.raises(RuntimeError) as caught:
        found["fail"](text)
    known = errors.explain(caught.value)
    assert isinstance(known, errors.InvalidConfig)
    assert text in known.message
    assert "Set mesh, training.microBatchSize, dataset.maxLength" in known.remedy
    jax_error = type("JaxRuntimeError", (RuntimeError,), {"__module__": "jaxlib._jax"})
    assert isinstance(errors.explain(jax_error(text)), errors.InvalidConfig)
    assert errors.explain(RuntimeError(text)) is None


def test_the_cause_counts() -> None:
    try:
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as error:
            raise RuntimeError("the rows cannot be written") from error
    except RuntimeError as error:
        found = errors.explain(error)
    assert isinstance(found, errors.DiskFull)


def test_anything_else_is_a_crash() -> None:
    assert errors.explain(ValueError("what")) is None
    assert errors.explain(KeyError("x")) is None


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_full_disk_under_torch_save() -> None:
    """The library wraps the system's error in its own words."""
    with pytest.raises(RuntimeError) as caught:
        torch.save({"x": torch.zeros(1_000_000)}, "/dev/full")
    assert isinstance(errors.explain(caught.value), errors.DiskFull)


def test_a_hub_that_does_not_answer() -> None:
    with pytest.raises(Exception, match=r".") as caught:
        HfApi(endpoint="http://127.0.0.1:9").model_info("google/gemma-2b", timeout=2)
    assert isinstance(errors.explain(caught.value), errors.HubUnavailable)


def test_a_foreign_exception_says_what_it_happened_to() -> None:
    uri = "model.uri: hf://google/gemma-2b"
    with pytest.raises(errors.HubUnavailable, match=rf"^{uri}: \w+: "), errors.naming(uri):
        HfApi(endpoint="http://127.0.0.1:9").model_info("google/gemma-2b", timeout=2)
    with pytest.raises(errors.DataInvalid, match=r"^row 3 is empty$"), errors.naming("dataset.uri: file:///rows"):
        raise errors.DataInvalid("row 3 is empty")
    with pytest.raises(ZeroDivisionError), errors.naming("dataset.uri: file:///rows"):
        _ = 1 / 0


def test_a_bucket_without_a_login_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENV_GCS_ENDPOINT, raising=False)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "none.json"))
    monkeypatch.setenv("GEMMATUNE_CACHE", str(tmp_path))
    with pytest.raises(errors.AccessDenied, match=r"^gs://my-bucket/model: DefaultCredentialsError: .*none\.json"):
        fetch(RunModel(uri="gs://my-bucket/model"), weights=False)


def test_every_way_of_failing_has_its_own_code() -> None:
    kinds = errors.TrainerError.__subclasses__()
    assert len({kind.exit_code for kind in kinds}) == len(kinds)
    assert {kind.exit_code for kind in kinds} == set(EXIT_REASONS) - {ExitCode.STALLED}


def test_the_termination_message_of_a_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unexpected error is exit 1 with its last line; the message is parseable however long the error is."""
    monkeypatch.setenv("GEMMATUNE_TERMINATION_LOG", str(tmp_path / "message"))
    monkeypatch.setenv("GEMMATUNE_RUN", '{"version": 1}')
    monkeypatch.setattr("gemmatune_trainer.__main__._config", lambda: 1 / 0)
    assert main(["train"]) == ExitCode.CRASHED
    message = from_text((tmp_path / "message").read_text(), TerminationMessage)
    assert message is not None
    assert message.reason == Reason.CRASHED
    assert message.message == "ZeroDivisionError: division by zero"
    long = errors.text_of(ValueError("ü\n" * 10_000))
    assert "\n" not in long
    text = to_text(TerminationMessage(reason="Crashed", message=long))
    assert from_text(text, TerminationMessage) is not None


def out_of_memory() -> None:
    raise RuntimeError("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20G of 15G")


def test_an_end_for_want_of_memory_tells_the_sequences_of_its_passes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An evaluation inside a training has passes of its own. Nothing else that goes through is changed."""
    monkeypatch.setenv("GEMMATUNE_TERMINATION_LOG", str(tmp_path / "message"))
    monkeypatch.setattr("gemmatune_trainer.__main__._config", out_of_memory)

    def told() -> TerminationMessage | None:
        assert main(["train"]) == ExitCode.ACCELERATOR_OUT_OF_MEMORY
        return from_text((tmp_path / "message").read_text(), TerminationMessage)

    without = told()
    assert without is not None
    assert without.sequences is None
    monkeypatch.setattr("gemmatune_trainer.__main__._config", errors.passing(8)(errors.passing(2)(out_of_memory)))
    found = told()
    assert found is not None
    assert (found.sequences, found.reason) == (2, Reason.ACCELERATOR_OUT_OF_MEMORY)
    assert "20G of 15G" in found.message
    for other in (ValueError("what"), errors.Interrupted("stop", step=3)):
        with pytest.raises(type(other)) as caught, errors.passing(2):
            raise other
        assert caught.value is other


def test_unknown_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMMATUNE_TERMINATION_LOG", str(tmp_path / "message"))
    assert main(["dance"]) == ExitCode.INVALID_CONFIG
    assert "dance" in (tmp_path / "message").read_text()
