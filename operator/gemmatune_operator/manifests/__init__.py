"""Resource in, Kubernetes manifests out: pure functions that build dicts."""
