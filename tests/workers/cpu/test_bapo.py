"""BAPO in verl's training worker on the CPU: each mini-batch trains under the bounds that its own tokens ask for."""

import subprocess
import sys

import pytest
import torch

from verl_care.config import BapoConfig
from verl_care.shaping.bapo import contributions, search_bounds

# Two ranks in turn on the rows of one batch; learning rate 0, so that all mini-batches see the same weights.
WORKER = """
import os, sys
folder, rank = sys.argv[1:3]
os.environ.update(WG_BACKEND="ray", RANK=rank, WORLD_SIZE="2", LOCAL_RANK=rank, VERL_PLATFORM="cpu",
                  MASTER_ADDR="localhost", MASTER_PORT="1", DIST_INIT_METHOD=f"file://{folder}/rendezvous_bapo")
import torch
torch.set_num_threads(1)
from functools import partial
from tensordict import TensorDict
from verl.utils import tensordict_utils as tu
from verl.workers.config import FSDPActorConfig, FSDPEngineConfig, FSDPOptimizerConfig, HFModelConfig
from verl.workers.engine_workers import TrainingWorkerConfig
from verl.workers.utils.losses import ppo_loss
from verl.workers.utils.padding import response_from_nested
from verl_care.config import BapoConfig
from verl_care.workers.bapo import BapoTrainingWorker

fp32 = {"param_dtype": "fp32", "reduce_dtype": "fp32", "buffer_dtype": "fp32"}
worker = BapoTrainingWorker(TrainingWorkerConfig(
    model_type="language_model",
    model_config=HFModelConfig(
        path=folder, external_lib="verl_care.workers.cpu.process_group", use_remove_padding=False,
        enable_gradient_checkpointing=False, override_config={"attn_implementation": "sdpa"},
    ),
    engine_config=FSDPEngineConfig(strategy="fsdp2", model_dtype="fp32", mixed_precision=fp32, use_dynamic_bsz=True,
                                   infer_max_token_len_per_gpu=200, max_token_len_per_gpu=200,
                                   infer_micro_batch_size_per_gpu=1, micro_batch_size_per_gpu=1),
    optimizer_config=FSDPOptimizerConfig(lr=0.0, total_training_steps=9),
    checkpoint_config=None,
))
worker.reset()
given = torch.load(f"{folder}/bapo.pt", weights_only=False)
worker.bapo = given["config"]
actor = FSDPActorConfig(strategy="fsdp2", rollout_n=1, use_dynamic_bsz=True, loss_agg_mode="token-mean",
                        ppo_mini_batch_size=4)
worker.set_loss_fn(partial(ppo_loss, config=actor))
rows = given["rows"][int(rank)::2]
def nested(name):
    return torch.nested.as_nested_tensor([row[name] for row in rows], layout=torch.jagged)
names = ["input_ids", "position_ids", "prompts", "responses", "response_mask", "loss_mask", "advantages"]
fields = {name: nested(name) for name in names}
data = TensorDict(dict(fields), batch_size=len(rows))
tu.assign_non_tensor_stack(data, "multi_modal_inputs", [{}] * len(rows))
tu.assign_non_tensor(data, calculate_entropy=False, compute_loss=False, temperature=1.0)
log_probs = response_from_nested(worker.infer_batch(data.copy())["log_probs"], fields["response_mask"])
# The policy that sampled was another: its log-probabilities differ by what the test chose.
old = [row - shift["shift"] for row, shift in zip(log_probs.unbind(), rows)]
data["old_log_probs"] = torch.nested.as_nested_tensor(old, layout=torch.jagged)
tu.assign_non_tensor(data, mini_batch_size=4, epochs=1, seed=0, dataloader_kwargs={"shuffle": False},
                     global_batch_size=4)
metrics = tu.get(worker.train_mini_batch(data), "metrics")
torch.save({"metrics": metrics, "log_probs": list(log_probs.unbind()), "clip": actor.clip_ratio_high},
           f"{folder}/bapo{rank}.pt")
torch.distributed.destroy_process_group()
"""


def make_rows(tiny) -> list[dict]:
    """Eight texts: the first four in favour of tokens that became rare, the others of tokens that became common."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for number in range(8):
        request = tiny.request("text", None, "x" * (3 + number))
        prompt = torch.tensor(request.prompt_ids)
        response = torch.randint(0, 250, (6 + number,), generator=generator)
        length = len(prompt) + len(response)
        ones = torch.ones_like(response)
        sign = 1.0 if number % 4 < 2 else -1.0
        rows.append(
            {
                "input_ids": torch.cat([prompt, response]),
                "position_ids": torch.arange(length).expand(4, -1).clone(),
                "prompts": prompt,
                "responses": response,
                "response_mask": ones,
                "loss_mask": ones,
                "advantages": sign * torch.ones(len(response)) * (1.0 if number < 4 else 3.0 - sign),
                "shift": torch.randn(len(response), generator=generator) * 0.6,
            }
        )
    return rows


@pytest.mark.timeout(180)
def test_bounds_are_those_of_the_whole_mini_batch_over_all_ranks(tiny_qwen25):
    folder, rows = tiny_qwen25.folder, make_rows(tiny_qwen25)
    config = BapoConfig(enabled=True, target_share=0.4, weight="none")
    torch.save({"rows": rows, "config": config}, folder / "bapo.pt")
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(folder), str(rank)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        for rank in (0, 1)
    ]
    try:
        outputs = [process.communicate(timeout=170)[0].decode() for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(output[-3000:] for output in outputs)

    results = [torch.load(folder / f"bapo{rank}.pt", weights_only=False) for rank in (0, 1)]
    for place in (0, 1):
        # Rank r has rows r, r + 2, …; a mini-batch takes two of each rank.
        part = rows[4 * place : 4 * place + 4]
        ratio = torch.cat([row["shift"] for row in part]).exp()
        advantage = torch.cat([row["advantages"] for row in part])
        parts = contributions(ratio, advantage, torch.ones_like(ratio), torch.ones_like(ratio).bool(), config)
        expected = search_bounds(*parts, config)
        for result in results:
            metrics = result["metrics"]
            assert metrics["bapo/clip_low"][place] == expected.low
            assert metrics["bapo/clip_high"][place] == expected.high
            assert metrics["bapo/positive_share"][place] == pytest.approx(expected.positive_share, abs=1e-4)
            # What verl's loss made of them; dual clip at 3.
            clipped = torch.minimum(ratio * advantage, ratio.clamp(expected.low, expected.high) * advantage)
            loss = -torch.where(advantage < 0, torch.maximum(clipped, 3 * advantage), clipped).mean()
            assert metrics["actor/pg_loss"][place] == pytest.approx(float(loss), abs=1e-4)
            # The config that other parts of the worker hold stays as it was.
            assert result["clip"] == 0.2
    highs = results[0]["metrics"]["bapo/clip_high"]
    assert highs[0] != highs[1]
