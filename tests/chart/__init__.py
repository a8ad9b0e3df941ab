"""Tests of the chart: what Helm renders, and what it does on the real control plane."""
