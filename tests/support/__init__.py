"""What the tests share: a real control plane, a node that runs pods as processes, and a Cloud Storage double."""
