"""Counterfactual passes of verl's actor on the CPU equal plain transformers on the same weights."""

import subprocess
import sys

import pytest
import torch
from verl.utils.tokenizer import build_multimodal_processor_inputs

from verl_care.data.shuffle import permute_frames
from verl_care.workers.counterfactual import shuffle_video_pixels

# verl's own training worker behind the method that the trainer calls, in a process of its own.
WORKER = """
import os, sys
folder = sys.argv[1]
os.environ.update(WG_BACKEND="ray", RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", VERL_PLATFORM="cpu",
                  MASTER_ADDR="localhost", MASTER_PORT="1",
                  DIST_INIT_METHOD=f"file://{folder}/rendezvous_counterfactual")
import torch
torch.set_num_threads(1)
from types import SimpleNamespace
from tensordict import TensorDict
from verl.utils import tensordict_utils as tu
from verl.workers.config import FSDPEngineConfig, FSDPOptimizerConfig, HFModelConfig
from verl.workers.engine_workers import TrainingWorker, TrainingWorkerConfig
from verl_care.workers import counterfactual as cf

fp32 = {"param_dtype": "fp32", "reduce_dtype": "fp32", "buffer_dtype": "fp32"}
worker = TrainingWorker(TrainingWorkerConfig(
    model_type="language_model",
    model_config=HFModelConfig(
        path=folder, external_lib="verl_care.workers.cpu.process_group", use_remove_padding=False,
        enable_gradient_checkpointing=False, override_config={"attn_implementation": "sdpa"},
    ),
    engine_config=FSDPEngineConfig(strategy="fsdp2", model_dtype="fp32", mixed_precision=fp32, use_dynamic_bsz=True,
                                   infer_max_token_len_per_gpu=700, infer_micro_batch_size_per_gpu=1),
    optimizer_config=FSDPOptimizerConfig(lr=1e-3, total_training_steps=1),
    checkpoint_config=None,
))
worker.reset()
rows = torch.load(f"{folder}/rows.pt", weights_only=False)
nested = {name: torch.nested.as_nested_tensor([row[name] for row in rows], layout=torch.jagged)
          for name in ("input_ids", "position_ids", "prompts", "responses", "response_mask", "loss_mask")}
result = {}
for kind, request in torch.load(f"{folder}/requests.pt", weights_only=False).items():
    data = TensorDict(dict(nested), batch_size=len(rows))
    tu.assign_non_tensor_stack(data, "multi_modal_inputs", [row["multi_modal_inputs"] for row in rows])
    tu.assign_non_tensor_stack(data, "data_source", ["toy"] * len(rows))
    for name in ("index", "uid"):
        tu.assign_non_tensor_stack(data, name, [row[name] for row in rows])
    tu.assign_non_tensor(data, calculate_entropy=False, compute_loss=False, temperature=0.7)
    tu.assign_non_tensor_data(data, cf.REQUEST, request)
    holder = SimpleNamespace(actor=worker)
    output = cf.CounterfactualMixin.compute_counterfactual_log_prob(holder, data)
    result[kind] = [row.clone() for row in output[cf.output_field(kind)].unbind()]
torch.save(result, f"{folder}/result.pt")
torch.distributed.destroy_process_group()
"""
TEMPERATURE, SEED, STEP = 0.7, 3, 11


def make_rows(tiny) -> list[dict]:
    """Two responses to a video, and one each to an image and a text; as verl's agent loop stores them."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for index, kind in enumerate(["video", "video", "image", "text"]):
        request = tiny.request(kind, None, f"What is in the {kind} ?" * (1 + index % 2))
        prompt = torch.tensor(request.prompt_ids)
        response = torch.randint(0, 250, (7 + 3 * index,), generator=generator)
        length = len(prompt) + len(response)
        positions = torch.zeros(4, length, dtype=torch.long)
        positions[:, : len(prompt)] = request.position_ids
        after = torch.arange(1, len(response) + 1)
        positions[:, len(prompt) :] = positions[:, len(prompt) - 1 : len(prompt)] + after
        positions[1:, len(prompt) :] = int(positions[1:, : len(prompt)].max()) + after
        ones = torch.ones_like(response)
        rows.append(
            {
                "input_ids": torch.cat([prompt, response]),
                "position_ids": positions,
                "prompts": prompt,
                "responses": response,
                "response_mask": ones,
                "loss_mask": ones,
                "multi_modal_inputs": dict(request.vision),
                # The two videos are one record's: their frames take one order.
                "index": max(0, index - 1),
                "uid": f"prompt{max(0, index - 1)}",
            }
        )
    return rows


@torch.no_grad()
def reference(tiny, row, *, mask_vision=False, pixels=None) -> torch.Tensor:
    """Log-probabilities of a response by transformers alone, one sequence, attention and positions given in full."""
    config = tiny.model.config
    ids = row["input_ids"][None]
    attention = torch.ones_like(ids)
    if mask_vision:
        attention[(ids == config.image_token_id) | (ids == config.video_token_id)] = 0
    inputs = dict(row["multi_modal_inputs"]) | ({} if pixels is None else {"pixel_values_videos": pixels})
    inputs.pop("images_seqlens", None)
    logits = tiny.model(
        input_ids=ids, attention_mask=attention, position_ids=row["position_ids"][:, None], use_cache=False, **inputs
    ).logits[0]
    num = len(row["responses"])
    log_probs = (logits / TEMPERATURE).log_softmax(-1)[-num - 1 : -1]
    return log_probs.gather(1, row["responses"][:, None])[:, 0]


def processed(tiny, kind="video", order=None) -> dict:
    """What the processor gives for the clip, with its frames in an order."""
    _, images, videos = tiny.prompt(kind, "x")
    frames, metadata = videos[0]
    videos = [(frames if order is None else frames[order], metadata)]
    processor = tiny.model_config.processor
    content = [{"type": kind}, {"type": "text", "text": "x"}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], tokenize=False)
    return build_multimodal_processor_inputs(processor, text=[text], images=None, videos=videos)


def layout(tiny) -> dict[str, int]:
    processor = tiny.model_config.processor.video_processor
    return {"temporal_patch_size": processor.temporal_patch_size, "patch_size": processor.patch_size}


@pytest.mark.timeout(180)
def test_passes_equal_transformers(tiny):
    rows = make_rows(tiny)
    config = tiny.model.config
    requests = {
        "visual": {"kind": "visual", "placeholder_ids": [config.image_token_id, config.video_token_id]},
        "temporal": {"kind": "temporal", **layout(tiny), "seed": SEED, "step": STEP},
    }
    torch.save(rows, tiny.folder / "rows.pt")
    torch.save(requests, tiny.folder / "requests.pt")
    done = subprocess.run([sys.executable, "-c", WORKER, str(tiny.folder)], capture_output=True, text=True, timeout=170)
    assert done.returncode == 0, done.stderr[-4000:]
    result = torch.load(tiny.folder / "result.pt")

    plain = [reference(tiny, row) for row in rows]
    order = permute_frames(4, f"{SEED}/toy/0/{STEP}/0")
    pixels = processed(tiny, order=order)["pixel_values_videos"]
    for number, row in enumerate(rows):
        masked = reference(tiny, row, mask_vision=True)
        assert (result["visual"][number] - masked).abs().max() <= 1e-5
        shuffled = reference(tiny, row, pixels=pixels) if number < 2 else plain[number]
        assert (result["temporal"][number] - shuffled).abs().max() <= 1e-5
        # What is equal above differs from the plain pass, where there is something to differ.
        assert ((masked - plain[number]).abs().max() > 1e-2) == (number < 3)
        assert ((shuffled - plain[number]).abs().max() > 1e-3) == (number < 2)


@pytest.mark.parametrize("frames", [4, 3])
def test_shuffling_patches_equals_processing_shuffled_frames(tiny, frames):
    _, _, videos = tiny.prompt("video", "x")
    clip = videos[0][0][:frames]
    processor = tiny.model_config.processor.video_processor
    metadata = [{"fps": 2.0, "frames_indices": list(range(frames)), "total_num_frames": frames}]

    def patches(clip):
        return processor(videos=[clip], video_metadata=metadata, do_sample_frames=False, return_tensors="pt")

    given = patches(clip)
    grid = given["video_grid_thw"]
    slots = int(grid[0, 0]) * processor.temporal_patch_size
    order = permute_frames(slots, "7/toy/0/1/0")
    got = shuffle_video_pixels(given["pixel_values_videos"], grid, **layout(tiny), identity="7/toy/0/1")
    # The processor repeats the last frame of an odd number; the repeat takes part.
    padded = torch.cat([clip, clip[-1:].expand(slots - frames, -1, -1, -1)])
    assert torch.equal(got, patches(padded[order])["pixel_values_videos"])


def test_videos_of_a_row_take_orders_of_their_own(tiny):
    given = processed(tiny)
    pixels, grid = given["pixel_values_videos"], given["video_grid_thw"]
    two = shuffle_video_pixels(torch.cat([pixels, pixels]), torch.cat([grid, grid]), **layout(tiny), identity="x")
    first, second = two.chunk(2)
    assert torch.equal(first, shuffle_video_pixels(pixels, grid, **layout(tiny), identity="x"))
    assert not torch.equal(first, second) and not torch.equal(first, pixels)


def test_pixels_of_another_layout_are_an_error(tiny):
    given = processed(tiny)
    with pytest.raises(ValueError, match="leave temporal out"):
        shuffle_video_pixels(given["pixel_values_videos"][1:], given["video_grid_thw"], **layout(tiny), identity="x")
