"""Faults provoked on the real control plane, one by one, against the real operator."""
