"""What all tests share: the fixtures for the control plane, the storage double and the model."""

import hypothesis

pytest_plugins = ["tests.support.fixtures"]

# On a busy machine a single example may take any time; how many there are bounds a test.
hypothesis.settings.register_profile("tests", deadline=None)
hypothesis.settings.load_profile("tests")
