"""Each test of this folder runs on a device: see on_devices.py."""

from on_devices import device  # noqa: F401 a fixture
