"""Tests: kills, storage faults, full disks, other owners and zombies, on the real fake-gcs-server."""
