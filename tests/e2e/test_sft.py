"""The supervised start, end to end without an accelerator: verl's own trainer under torchrun."""

from __future__ import annotations

import random
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from omegaconf import OmegaConf
from transformers import Qwen2_5_VLForConditionalGeneration
from verl.utils.tokenizer import hf_processor, hf_tokenizer

from verl_care.data import demo_model
from verl_care.data.records import strip_none
from verl_care.data.sft_dataset import CareSFTDataset

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

BATCH = 8


@dataclass(frozen=True)
class SFTRun:
    """What the trainer printed and left."""

    folder: Path
    dev: Path
    log: str

    def series(self, key: str) -> list[float]:
        return [float(value) for value in re.findall(rf"{key}:([-\d.e]+)", self.log)]


def supervised(rows: list[dict], rng: random.Random) -> list[dict]:
    """Records of the demo with a chain of thought each."""
    made = []
    for row in rows:
        thought = " ".join(rng.choices(demo_model.THOUGHTS, k=rng.randint(2, 6)))
        response = f"<think>{thought}</think>\n<answer>{row['reward_model']['ground_truth']}</answer>"
        media = {key: [strip_none(item) for item in row[key] or []] for key in ("videos", "images")}
        messages = [*row["prompt"], {"role": "assistant", "content": response}]
        made.append({"data_source": "cot", "messages": messages, **media, "extra_info": row["extra_info"]})
    return made


@pytest.fixture(scope="module")
def sft(assets, tmp_path_factory) -> SFTRun:
    """48 steps from random weights on records about clips, images and text, the last eight of them held out."""
    folder = tmp_path_factory.mktemp("sft")
    rows = supervised(pq.read_table(assets.folder / "train.parquet").to_pylist(), random.Random(0))
    for name, part in (("train", rows[:-BATCH]), ("dev", rows[-BATCH:])):
        pq.write_table(pa.Table.from_pylist(part), folder / f"{name}.parquet")
    processor = demo_model.build_processor()
    demo_model.save_model(demo_model.build_model(processor.tokenizer, seed=0), processor, folder / "model")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=1"]
    overrides = [
        "+recipe@_global_=sft_video_r1",
        "care_sft_hardware=cpu",
        f"data.train_files={folder}/train.parquet",
        f"data.val_files={folder}/dev.parquet",
        f"data.train_batch_size={BATCH}",
        f"model.path={folder}/model",
        "optim.lr=3e-3",
        "trainer.total_epochs=100",
        "trainer.total_training_steps=48",
        "trainer.test_freq=-1",
        "trainer.save_freq=48",
        "trainer.logger=[console]",
        f"trainer.default_local_dir={folder}/checkpoints",
        "hydra.run.dir=hydra",
    ]
    done = subprocess.run(
        [*command, "-m", "verl.trainer.sft_trainer", *overrides],
        capture_output=True,
        text=True,
        cwd=folder,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return SFTRun(folder=folder, dev=folder / "dev.parquet", log=done.stdout + done.stderr)


def test_the_loss_falls_on_a_cosine(sft):
    losses, rates = sft.series("train/loss"), sft.series("train/lr")
    assert len(losses) == len(rates) == 48
    assert sum(losses[-8:]) < 0.5 * sum(losses[:8])
    assert rates == sorted(rates, reverse=True) and rates[-1] < 1e-5 < 2e-3 < rates[0]


def test_the_checkpoint_is_a_model_to_start_from(sft):
    """Loss of the saved model by transformers alone: what the trainer logged about it."""
    saved = sft.folder / "checkpoints" / "global_step_48" / "huggingface"
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(saved, dtype=torch.float32).eval()
    # The config of the run; the checkpoint brings tokenizer and processor of its own.
    config = OmegaConf.load(sft.folder / "hydra" / ".hydra" / "config.yaml").data
    dataset = CareSFTDataset([str(sft.dev)], hf_tokenizer(str(saved)), config, hf_processor(str(saved)))
    total = torch.zeros(())
    tokens = 0
    with torch.no_grad():
        for item in dataset:
            ids, mask = item["input_ids"][None], item["loss_mask"][None, 1:].bool()
            positions = item["position_ids"][:, None]
            logits = model(input_ids=ids, position_ids=positions, **item["multi_modal_inputs"]).logits
            log_probs = logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
            total -= log_probs[mask].sum()
            tokens += int(mask.sum())
    assert sft.series("val/loss")[-1] == pytest.approx(float(total) / tokens, abs=1e-4)
    assert float(total) / tokens < 0.5 * sft.series("train/loss")[0]


def test_the_response_alone_is_learnt(sft):
    model = str(sft.folder / "model")
    config = OmegaConf.load(sft.folder / "hydra" / ".hydra" / "config.yaml").data
    tokenizer = hf_tokenizer(model)
    dataset = CareSFTDataset([str(sft.dev)], tokenizer, config, hf_processor(model))
    kinds = set()
    for row, item in zip(pq.read_table(sft.dev).to_pylist(), dataset, strict=True):
        learnt = tokenizer.decode(item["input_ids"][item["loss_mask"] == 1])
        response = row["messages"][-1]["content"]
        assert learnt.replace(" ", "") == (response + tokenizer.eos_token).replace(" ", "")
        # One run of learnt tokens, at the end.
        assert item["loss_mask"].tolist() == sorted(item["loss_mask"].tolist())
        kinds |= set(item["multi_modal_inputs"])
    assert "pixel_values_videos" in kinds


def test_a_record_that_is_too_long_is_named(sft):
    model = str(sft.folder / "model")
    config = OmegaConf.create({"max_length": 12})
    dataset = CareSFTDataset([str(sft.dev)], hf_tokenizer(model), config, hf_processor(model))
    with pytest.raises(Exception, match=r"cot, record \d+: messages: \d+ \+ \d+ tokens .* data.max_length=12"):
        dataset[0]


def test_records_with_media_need_a_processor(sft):
    with pytest.raises(ValueError, match="can load no processor from model.path"):
        CareSFTDataset(str(sft.dev), hf_tokenizer(str(sft.folder / "model")), OmegaConf.create({"max_length": 512}))
