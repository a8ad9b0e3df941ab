"""Writes the expected manifests anew: `python -m tests.golden.regenerate`; the diff is then read, line by line."""

from __future__ import annotations

from tests.golden.cases import cases, expected_file, manifests


def main() -> None:
    """Writes every case's file and names those that changed."""
    for case in cases():
        file, text = expected_file(case), manifests(case)
        if not file.exists() or file.read_text(encoding="utf-8") != text:
            file.write_text(text, encoding="utf-8")
            print(f"changed: {file.name}")


if __name__ == "__main__":
    main()
