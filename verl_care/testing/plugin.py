"""Pytest fixtures for tests on a real TransferQueue. Switch on with ``pytest_plugins = ["verl_care.testing.plugin"]``.

Fixtures:

- ``transfer_queue`` (session): Ray on this machine and TransferQueue in it; both end with the session.
- ``partition``: name of a TransferQueue partition of one's own, emptied after the test.
- ``train_partition``: the partition ``train``, from which verl's replay buffers sample; emptied before and after.

A test that uses one of them and has no ``timeout`` marker gets one of ``verl_care_timeout`` seconds (ini option,
default 120), because a hang in Ray has no end of its own; pytest-timeout enforces it.
"""

from __future__ import annotations

import shutil
import tempfile
import uuid
from collections.abc import Iterator
from types import ModuleType

import pytest

_NUM_CPUS = 8
_OBJECT_STORE_BYTES = 256 * 1024**2


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addini(
        "verl_care_timeout", "seconds after which a test on TransferQueue fails (needs pytest-timeout)", default="120"
    )


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    items = [item for item in items if "transfer_queue" in getattr(item, "fixturenames", ())]
    if items and not config.pluginmanager.hasplugin("timeout"):
        raise pytest.UsageError("verl_care.testing.plugin: a hang in Ray would never end; pip install pytest-timeout")
    for item in items:
        if item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(float(config.getini("verl_care_timeout"))))


@pytest.fixture(scope="session")
def transfer_queue() -> Iterator[ModuleType]:
    """The module ``transfer_queue``, connected; uses a Ray that runs already, else starts one and stops it."""
    import ray
    import transfer_queue as tq

    temp_dir = None if ray.is_initialized() else tempfile.mkdtemp(prefix="vc-")
    try:
        if temp_dir is not None:
            # address="local": a cluster that RAY_ADDRESS names is not for tests. num_cpus counts slots, not cores:
            # TransferQueue's actors ask for one each, and wait without end where there is none.
            ray.init(
                address="local",
                num_cpus=_NUM_CPUS,
                num_gpus=0,
                include_dashboard=False,
                object_store_memory=_OBJECT_STORE_BYTES,
                log_to_driver=False,
                _temp_dir=temp_dir,
            )
        tq.init({"backend": {"SimpleStorage": {"num_data_storage_units": 2}}})
        yield tq
    finally:
        if temp_dir is not None:
            tq.close()
            ray.shutdown()
            shutil.rmtree(temp_dir, ignore_errors=True)


@pytest.fixture
def partition(transfer_queue: ModuleType) -> Iterator[str]:
    """Name of a partition that no other test uses."""
    name = f"test-{uuid.uuid4().hex}"
    yield name
    _empty(transfer_queue, name)


@pytest.fixture
def train_partition(transfer_queue: ModuleType) -> Iterator[str]:
    """The name ``train``, with nothing in it."""
    _empty(transfer_queue, "train")
    yield "train"
    _empty(transfer_queue, "train")


def _empty(tq: ModuleType, partition_id: str) -> None:
    keys = list((tq.kv_list(partition_id) or {}).get(partition_id, {}))
    if keys:
        tq.kv_clear(keys=keys, partition_id=partition_id)
