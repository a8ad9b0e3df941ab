"""A process that keeps to the trainer's contract and trains nothing, for tests of what starts and stops trainers."""
