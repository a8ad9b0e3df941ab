"""`python -m gemmatune_cli` is `gft`."""

from __future__ import annotations

from gemmatune_cli.main import app

if __name__ == "__main__":
    app()
