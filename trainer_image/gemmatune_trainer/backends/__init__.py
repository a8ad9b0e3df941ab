"""The training loops behind one protocol."""
