"""The FSDP2 engine over gloo, in a subprocess: building it changes transformers' classes, as in verl's workers."""

import subprocess
import sys

import pytest

ENGINE = """
import os, sys
folder = sys.argv[1]
os.environ.update(WG_BACKEND="ray", RANK="0", WORLD_SIZE="1", DIST_INIT_METHOD=f"file://{folder}/rendezvous",
                  VERL_PLATFORM="cpu")
import torch
from verl.workers.config import FSDPEngineConfig, FSDPOptimizerConfig, HFModelConfig
from verl.workers.engine import EngineRegistry

fp32 = {"param_dtype": "fp32", "reduce_dtype": "fp32", "buffer_dtype": "fp32"}
model_config = HFModelConfig(
    path=folder, external_lib="verl_care.workers.cpu.process_group", use_remove_padding=False,
    override_config={"attn_implementation": "sdpa"},
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


@pytest.mark.timeout(180)
def test_actor_and_reference_engines_build_and_export_all_weights(tiny_qwen25):
    done = subprocess.run(
        [sys.executable, "-c", ENGINE, str(tiny_qwen25.folder)], capture_output=True, text=True, timeout=170
    )
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    refusals = [line for line in done.stdout.splitlines() if line.startswith("REFUSED")]
    assert "strategy=fsdp2" in refusals[0] and "offload" in refusals[1]


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
