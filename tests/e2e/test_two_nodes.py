"""The demo on a Ray cluster of two nodes, both on this machine: two raylets, each with one worker of the actor."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections import defaultdict
from types import SimpleNamespace

import psutil
import pytest

from verl_care import launch

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(900)]

ON_EACH_NODE = {"WorkerDict", "HFServer", "AgentLoopWorker", "RewardLoopWorker"}


@pytest.fixture(scope="module")
def cluster():
    """Address of a cluster of two nodes with one logical GPU each, and their raylets."""
    from ray.cluster_utils import Cluster

    ray_folder = tempfile.mkdtemp(prefix="vc-", dir="/tmp")
    marker = f"RAY_TMPDIR={ray_folder}"
    # Slots, not cores: verl's bundles ask for three of them, every other actor for one.
    node = {"num_cpus": 10, "num_gpus": 1, "object_store_memory": 300 * 2**20, "include_dashboard": False}
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as logs:
        patch.setenv("RAY_TMPDIR", ray_folder)
        patch.setenv("TMPDIR", logs)
        patch.delenv("RAY_ADDRESS", raising=False)
        made = Cluster(initialize_head=True, head_node_args=dict(node))
        try:
            made.add_node(**node)
            raylets = [
                psutil.Process(info.process.pid)
                for each in made.list_all_nodes()
                for info in each.all_processes["raylet"]
            ]
            yield SimpleNamespace(address=made.address, raylets=raylets)
            made.shutdown()
        finally:
            for pid in launch.processes_with(marker):
                os.kill(pid, signal.SIGKILL)
            shutil.rmtree(ray_folder, ignore_errors=True)


@pytest.fixture(scope="module")
def titles():
    """What ran under each raylet, by its process id."""
    return defaultdict(set)


@pytest.fixture(scope="module")
def run(main_ppo, cluster, titles, tmp_path_factory):
    def watch(driver: int, last_step: int) -> bool:
        for raylet in cluster.raylets:
            for process in raylet.children():
                try:
                    title = " ".join(process.cmdline())
                except psutil.NoSuchProcess:
                    continue
                titles[raylet.pid] |= {name for name in ON_EACH_NODE if name in title}
        return False

    return main_ppo(
        tmp_path_factory.mktemp("two_nodes"),
        f"ray_kwargs.ray_init.address={cluster.address}",
        "ray_kwargs.ray_init.num_cpus=null",
        "ray_kwargs.ray_init.num_gpus=null",
        "trainer.nnodes=2",
        "actor_rollout_ref.rollout.agent.num_workers=2",
        "reward.num_workers=2",
        "trainer.total_training_steps=2",
        "trainer.save_freq=2",
        watch=watch,
        # A process that joins a cluster does not take the CPU for its platform by itself.
        environ={"VERL_PLATFORM": "cpu"},
        seconds=600,
    )


def test_both_nodes_train_and_generate(run, titles):
    assert sorted(run.steps) == [1, 2]
    assert list(titles.values()) == [ON_EACH_NODE, ON_EACH_NODE]
    for metrics in run.steps.values():
        assert metrics["actor/grad_norm"] > 0
        # The weights of both reached their rollout servers.
        assert metrics["training/rollout_probs_diff_max"] < 1e-6
        assert metrics["care/rollouts/missing"] == 0 and metrics["care/reward_errors"] == 0
    shards = {path.name for path in (run.folder / "global_step_2" / "actor").glob("model_*")}
    assert shards == {f"model_world_size_2_rank_{rank}.pt" for rank in (0, 1)}


def test_state_and_log_are_one(run):
    assert run.state(2)["competence"] == pytest.approx([run.replay(2)], abs=1e-6)
    assert len(run.rollouts(2)) == 16 * 4


def test_the_run_leaves_the_cluster_empty(run, cluster):
    workers = [process for raylet in cluster.raylets for process in raylet.children()]
    _, left = psutil.wait_procs([p for p in workers if "ray::" in " ".join(p.cmdline())], timeout=60)
    assert not [process for process in left if any(name in " ".join(process.cmdline()) for name in ON_EACH_NODE)]
