"""Where prometheus and promtool are: `python3 -m tools.prometheus` fetches Debian's where PATH has none, and prints it.

Nothing is installed, and no service is started: the package is unpacked into the user's cache directory.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from tools import debian
from tools.kube import BuildError

PROGRAMS = ("prometheus", "promtool")
PACKAGES = ("prometheus",)


def find() -> Path | None:
    """The folder with both programs, of PATH or of the cache; None where they are not here."""
    for path in (None, str(debian.folder("prometheus", PACKAGES) / "usr/bin")):
        found = [shutil.which(name, path=path) for name in PROGRAMS]
        if found[0] and all(found):
            return Path(found[0]).parent
    return None


def ensure() -> Path:
    """The folder with both programs, fetched where they are missing.

    Errors: BuildError with what is missing or what apt-get said.
    """
    return find() or debian.ensure("prometheus", PACKAGES, whole=False) / "usr/bin"


def main() -> int:
    """Prints the folder; in CI it is an error where there is none, elsewhere the tests that want it say so."""
    try:
        print(ensure())
    except BuildError as error:
        print(f"gemmatune: {error}\nput prometheus and promtool on PATH for the tests of alerts", file=sys.stderr)
        return int(os.environ.get("CI", "").lower() in ("true", "1"))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
