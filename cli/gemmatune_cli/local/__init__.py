"""The embedded cluster: the reconcile loop of the operator over a dict store and a process runner."""
