"""Tests of backend keras, in its own environment."""
