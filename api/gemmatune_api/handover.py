"""Why a RunConfig cannot be handed over or read, in words with a remedy."""

from __future__ import annotations

from pydantic import ValidationError

OTHER_IMAGE = "Use the trainer's image of the operator's release"
"""How the remedy begins; operators of later releases know it by that."""
OTHER_RELEASE = (
    f"{OTHER_IMAGE}: correct pod.image where the resource names one, else trainer.image (xlaImage, kerasImage) in the "
    "chart's values."
)


class RunConfigError(ValueError):
    """A RunConfig that cannot be handed over or read; the trainer ends with exit code 10.

    `remedy` says what to do, where that is known.
    """

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.remedy = remedy


def of_version(found: object, known: int) -> RunConfigError:
    """One of a version that this trainer does not read."""
    return RunConfigError(f"GEMMATUNE_RUN has version {found!r}, this trainer reads up to {known}", OTHER_RELEASE)


def of_fields(error: ValidationError) -> RunConfigError:
    """One whose fields this trainer does not read; those that it does not know are a newer release's."""
    unknown = [".".join(map(str, e["loc"])) for e in error.errors() if e["type"] == "extra_forbidden"]
    if unknown:
        text = f"GEMMATUNE_RUN has fields that this trainer does not know: {', '.join(unknown)}"
        return RunConfigError(text, OTHER_RELEASE)
    return RunConfigError(f"GEMMATUNE_RUN cannot be read: {error}")
