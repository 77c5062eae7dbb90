"""The FSDP2 engine over gloo, in a subprocess: building it changes transformers' classes, as in verl's workers."""

import subprocess
import sys

import pytest
import torch

SETUP = """
import os, sys
folder, rank, world_size = sys.argv[1:4]
os.environ.update(WG_BACKEND="ray", RANK=rank, WORLD_SIZE=world_size, VERL_PLATFORM="cpu",
                  DIST_INIT_METHOD=f"file://{folder}/rendezvous{world_size}")
import torch
torch.set_num_threads(1)
from verl.workers.config import FSDPEngineConfig, FSDPOptimizerConfig, HFModelConfig
from verl.workers.engine import EngineRegistry

fp32 = {"param_dtype": "fp32", "reduce_dtype": "fp32", "buffer_dtype": "fp32"}
model_config = HFModelConfig(
    path=folder, external_lib="verl_care.workers.cpu.process_group", use_remove_padding=False,
    enable_gradient_checkpointing=False, override_config={"attn_implementation": "sdpa"},
)
assert torch.distributed.get_backend() == "gloo"

def build(forward_only, **options):
    config = FSDPEngineConfig(strategy=options.pop("strategy", "fsdp2"), forward_only=forward_only,
                              model_dtype="fp32", mixed_precision=fp32, **options)
    engine = EngineRegistry.new(
        model_type="language_model", backend="fsdp2", model_config=model_config, engine_config=config,
        optimizer_config=FSDPOptimizerConfig(lr=1e-3, total_training_steps=1), checkpoint_config=None,
    )
    engine.initialize()
    return engine
"""

ENGINES = """
def refusal(**options):
    try:
        build(False, **options)
    except ValueError as error:
        return str(error)

from transformers import AutoModelForImageTextToText
stored = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)

from verl_care.workers.cpu.hf_rollout import WeightLoader
for forward_only in (True, False):
    engine = build(forward_only)
    assert type(engine).__name__ == "CPUEngineWithLMHead" and engine.engine_config.forward_only is forward_only
    assert (engine.optimizer is None) is forward_only
    # A pinned copy of the reference policy would need a CUDA driver.
    assert not any(p.to_local().is_pinned() for p in engine.module.parameters())
    weights, peft_config = engine.get_per_tensor_param()
    weights = list(weights)
    assert peft_config is None
    own = dict(stored.state_dict())
    loader = WeightLoader(stored)
    before = [tensor.clone() for tensor in own.values()]
    loader.load(weights)
    loader.finish()
    assert all(torch.equal(a, b) for a, b in zip(before, own.values()))
print("REFUSED", refusal(strategy="fsdp"))
print("REFUSED", refusal(param_offload=True))
torch.distributed.destroy_process_group()
"""

# Rank 0 runs the vision tower for images and for videos, rank 1 for a text prompt that it does not concern.
MIXED = """
engine = build(False)
inputs = torch.load(f"{folder}/mixed{rank}.pt")
logits = engine.module(**inputs, use_cache=False).logits
weight = inputs["attention_mask"][..., None]
(logits.float().log_softmax(-1) * weight).sum().backward()
gradients = {name: p.grad.full_tensor() for name, p in engine.module.named_parameters()}
torch.save({"logits": logits.detach(), "gradients": gradients}, f"{folder}/result{rank}.pt")
torch.distributed.destroy_process_group()
"""


def start(script: str, folder, rank: int = 0, world_size: int = 1) -> subprocess.Popen:
    command = [sys.executable, "-c", SETUP + script, str(folder), str(rank), str(world_size)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process: subprocess.Popen) -> str:
    try:
        output, _ = process.communicate(timeout=170)
    finally:
        process.kill()
    assert process.returncode == 0, output[-4000:]
    return output


@pytest.mark.timeout(180)
def test_actor_and_reference_engines_build_and_export_all_weights(tiny_qwen25):
    lines = finish(start(ENGINES, tiny_qwen25.folder)).splitlines()
    refusals = [line for line in lines if line.startswith("REFUSED")]
    assert "strategy=fsdp2" in refusals[0] and "offload" in refusals[1]


def padded(tiny, kinds) -> dict[str, torch.Tensor]:
    """Prompts of these kinds as one right-padded batch of model inputs, positions (4, N, L)."""
    requests = [tiny.request(kind, None, f"Which colour has the {kind} ?") for kind in kinds]
    length = max(len(request.prompt_ids) for request in requests)
    ids = torch.zeros(len(requests), length, dtype=torch.long)
    positions = torch.zeros(4, len(requests), length, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, request in enumerate(requests):
        size = len(request.prompt_ids)
        ids[row, :size] = torch.tensor(request.prompt_ids)
        mask[row, :size] = 1
        positions[:, row, :size] = request.position_ids
    vision = [request.vision for request in requests]
    media = {name: torch.cat([v[name] for v in vision if name in v]) for name in {key for v in vision for key in v}}
    return {"input_ids": ids, "attention_mask": mask, "position_ids": positions, **media}


@pytest.mark.timeout(240)
def test_ranks_with_different_media_compute_the_loss_and_gradients_of_one_model(tiny):
    batches = [padded(tiny, kinds) for kinds in (("image", "video", "image"), ("text", "text"))]
    for rank, batch in enumerate(batches):
        torch.save(batch, tiny.folder / f"mixed{rank}.pt")
    processes = [start(MIXED, tiny.folder, rank, 2) for rank in (0, 1)]
    try:
        for process in processes:
            finish(process)
    finally:
        for process in processes:
            process.kill()
    results = [torch.load(tiny.folder / f"result{rank}.pt") for rank in (0, 1)]

    tiny.model.zero_grad()
    for batch, result in zip(batches, results, strict=True):
        logits = tiny.model(**batch, use_cache=False).logits
        kept = batch["attention_mask"].bool()
        assert (result["logits"][kept] - logits[kept]).abs().max() < 1e-4
        (logits.log_softmax(-1) * batch["attention_mask"][..., None]).sum().backward()
    for name, parameter in tiny.model.named_parameters():
        # FSDP averages over the two ranks.
        expected = (parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)) / 2
        for result in results:
            difference = (result["gradients"][name] - expected).norm()
            assert difference <= 1e-4 * expected.norm() + 1e-6, name
    tiny.model.zero_grad()


@pytest.mark.timeout(60)
def test_only_trainer_workers_get_a_process_group():
    code = (
        "import os, torch.distributed as dist; os.environ.pop('WG_BACKEND', None);"
        "import verl_care.workers.cpu.process_group as pg; assert not dist.is_initialized();"
        "os.environ.update(WG_BACKEND='ray', DIST_INIT_METHOD='tcp://127.0.0.1:0');"
        "pg.ensure_process_group(); assert dist.get_backend() == 'gloo';"
        "pg.ensure_process_group(); dist.destroy_process_group()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50)
    assert done.returncode == 0, done.stderr[-2000:]
