"""The rules of the operator, one policy a file: (resource, observed, now) -> decision, without I/O."""
