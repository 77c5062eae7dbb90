"""Text-only micro-batches of Qwen2.5-VL: broken in verl without our fix, whole with it."""

import subprocess
import sys

import pytest

FORWARD = """
import sys
import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from verl.models.transformers.qwen2_vl import _get_input_embeds

config = Qwen2_5_VLConfig(
    text_config={"vocab_size": 16, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
                 "num_attention_heads": 2, "num_key_value_heads": 1,
                 "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}},
    vision_config={"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16,
                   "fullatt_block_indexes": [0]},
    image_token_id=14, video_token_id=15,
)
model = Qwen2_5_VLForConditionalGeneration(config).model
if sys.argv[1] == "fixed":
    import verl_care.workers.model_fixes
ids = torch.tensor([[1, 2, 3]])
embeds, _ = _get_input_embeds(model, ids, torch.ones_like(ids))
assert torch.equal(embeds, model.get_input_embeddings()(ids))
embeds.sum().backward()
# The vision tower took part, so that every rank enters its collectives.
assert all(p.grad is not None and not p.grad.any() for p in model.visual.parameters())
"""


def run(which: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", FORWARD, which], capture_output=True, text=True, timeout=300)


@pytest.mark.timeout(120)
def test_text_only_micro_batches_pass_with_the_fix():
    done = run("fixed")
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.timeout(120)
def test_upstream_still_needs_the_fix():
    """When this fails, verl unpacks the vision output itself: remove `verl_care.workers.model_fixes`."""
    done = run("stock")
    assert done.returncode != 0 and "has no attribute 'mean'" in done.stderr, done.stderr[-2000:]
