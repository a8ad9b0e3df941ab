"""A stand-in for the trainer package, found before the real one on the test node."""
