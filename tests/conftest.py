"""What all tests share: the fixtures for the control plane, the storage double and the model."""

pytest_plugins = ["tests.support.fixtures"]
