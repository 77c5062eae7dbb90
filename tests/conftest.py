"""Fixtures for the whole suite: Ray and TransferQueue, started only when a test asks for them."""

pytest_plugins = ["verl_care.testing.plugin"]
