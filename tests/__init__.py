"""Tests, grouped by what they run against."""
