"""Tests of backend xla, in its own environment."""
