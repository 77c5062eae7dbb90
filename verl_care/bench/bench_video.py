"""A prompt with a clip through verl's agent loop worker: decoding, processing, storing, handing to the engine.

Both arms run in this process on a real TransferQueue, with the same reader, and send their requests to a Ray actor that
stands for the rollout engine: it receives the frames and answers at once. What the engine itself does with them is not
part of it.
"""

from __future__ import annotations

import shutil
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from verl_care.bench.clock import TreeClock, cpu_seconds, summary, take_turns

FRAMES, SECONDS, FPS, WIDTH, HEIGHT, MAX_PIXELS = 16, 20, 30, 854, 480, 401_408


def measure(*, responses: int = 8, repeats: int = 3) -> dict[str, Any]:
    """CPU seconds of all processes for one prompt with its responses, and what is decoded, processed and stored."""
    folder = Path(tempfile.mkdtemp(prefix="vc-bench-"))
    try:
        from verl_care.testing import clips

        clip = clips.write_clip(folder / "clip.mp4", seconds=SECONDS, fps=FPS, width=WIDTH, height=HEIGHT, crf="28")
        result = _measure_worker(folder, clip, responses, repeats)
        return {**result, **_measure_reader(clip, repeats), **_measure_cache(folder, clip, repeats)}
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _cluster() -> Iterator[None]:
    """Ray and TransferQueue of our own, which end with the measurement."""
    import ray
    import transfer_queue as tq

    temp_dir = tempfile.mkdtemp(prefix="vc-")
    ray.init(
        address="local",
        num_cpus=8,
        num_gpus=0,
        include_dashboard=False,
        object_store_memory=2 << 30,
        log_to_driver=False,
        _temp_dir=temp_dir,
    )
    try:
        tq.init({"backend": {"SimpleStorage": {"num_data_storage_units": 1}}})
        yield
        tq.close()
    finally:
        ray.shutdown()
        shutil.rmtree(temp_dir, ignore_errors=True)


@contextmanager
def _counted() -> Iterator[Counter[str]]:
    """Counts decodes of clips and runs of the video processor in this process."""
    from transformers.video_processing_utils import BaseVideoProcessor

    from verl_care.data import video

    seen: Counter[str] = Counter()
    decode, process = video.decode_frames, BaseVideoProcessor.preprocess

    def counted_decode(*args: Any, **kwargs: Any) -> Any:
        seen["decodes"] += 1
        return decode(*args, **kwargs)

    def counted_process(self: Any, *args: Any, **kwargs: Any) -> Any:
        seen["processor_passes"] += 1
        return process(self, *args, **kwargs)

    video.decode_frames, BaseVideoProcessor.preprocess = counted_decode, counted_process
    try:
        yield seen
    finally:
        video.decode_frames, BaseVideoProcessor.preprocess = decode, process


def _measure_worker(folder: Path, clip: Path, responses: int, repeats: int) -> dict[str, Any]:
    import ray

    from verl_care.testing import agent_loops, tiny_models

    model = tiny_models.save(folder / "model", "qwen2_5_vl", max_pixels=1 << 30)
    content: list[dict[str, Any]] = [
        {"type": "video", "video": str(clip), "nframes": FRAMES, "max_pixels": MAX_PIXELS},
        {"type": "text", "text": "What colour is it?"},
    ]
    with _cluster(), _counted() as seen:

        class Engine:
            """Receives requests; keeps nothing."""

            def generate(self, **request: Any) -> int:
                video, _ = request["video_data"][0]
                return video.shape[0]

        class Reward:
            def compute_score(self, data: Any) -> dict[str, Any]:
                return {"reward_score": 1.0, "reward_extra_info": {"acc": 1.0}}

        engine, reward = ray.remote(Engine).remote(), ray.remote(Reward).remote()

        class Client(agent_loops.EchoClient):
            async def generate(self, **request: Any) -> Any:
                frames = await engine.generate.remote(**request)
                if frames != FRAMES:
                    raise RuntimeError(f"the engine received {frames} frames, expected {FRAMES}")
                return await super().generate(**request)

        config = agent_loops.compose(model, "data.max_prompt_length=8192", "care.video.positions=stock")
        workers = {
            name: agent_loops.make_worker(
                config, Client(range(10, 40), keep=False), ours=name == "ours", reward_handles=[reward]
            )
            for name in ("ours", "stock")
        }
        counts: dict[str, dict[str, int]] = {}
        stored: dict[str, dict[str, int]] = {}
        wall: dict[str, list[float]] = {"ours": [], "stock": []}

        def arm(name: str) -> float:
            uid = uuid.uuid4().hex
            seen.clear()
            start, clock = time.perf_counter(), TreeClock()
            agent_loops.run_prompts(workers[name], [agent_loops.make_prompt(uid, content)], responses)
            seconds = clock.seconds()
            wall[name].append(time.perf_counter() - start)
            counts[name] = dict(seen)
            stored[name] = _stored_bytes(uid, responses)
            _clear(uid, responses)
            return seconds

        found = take_turns({name: partial(arm, name) for name in workers}, repeats)
    ours, stock = summary(found["ours"]), summary(found["stock"])
    return {
        "work": f"{responses} responses, {FRAMES} frames of a {SECONDS} s clip of {WIDTH} x {HEIGHT}, "
        f"at most {MAX_PIXELS} pixels a frame",
        "unit": "CPU seconds of all processes, one prompt",
        "ours": {**ours, **counts["ours"], **stored["ours"], "wall": summary(wall["ours"][1:])},
        "stock": {**stock, **counts["stock"], **stored["stock"], "wall": summary(wall["stock"][1:])},
        "ratio": round(stock["median"] / ours["median"], 2),
        "pixel_bytes_ratio": round(stored["stock"]["pixel_bytes"] / stored["ours"]["pixel_bytes"], 2),
    }


def _stored_bytes(uid: str, responses: int) -> dict[str, int]:
    """What a prompt leaves in TransferQueue: its pixels, in rows and shared; one row; what shaping reads of a row."""
    import transfer_queue as tq

    from verl_care.testing import agent_loops
    from verl_care.workers.batch import FIELDS
    from verl_care.workers.shared_inputs import PARTITION

    rows = agent_loops.read_rows(uid, responses)
    pixels = sum(_nbytes(row["multi_modal_inputs"]) + _nbytes(row.get("mm_processor_output")) for row in rows)
    if uid in (tq.kv_list(PARTITION) or {}).get(PARTITION, {}):
        shared = tq.kv_batch_get(keys=[uid], partition_id=PARTITION)
        pixels += sum(_nbytes(shared[name].unbind()[0]) for name in shared.keys())
    return {
        "pixel_bytes": pixels,
        "row_bytes": sum(map(_nbytes, rows[0].values())),
        "row_bytes_for_shaping": sum(_nbytes(rows[0][name]) for name in FIELDS if name in rows[0]),
    }


def _nbytes(value: Any) -> int:
    """Size of a row's value: tensors as they are, shared inputs without what they share, the rest pickled."""
    import pickle

    import torch

    from verl_care.workers.shared_inputs import SharedInputs

    if isinstance(value, torch.Tensor):
        return value.nbytes
    if isinstance(value, SharedInputs):
        return sum(map(_nbytes, value._small.values()))
    if isinstance(value, dict):
        return sum(map(_nbytes, value.values()))
    if isinstance(value, list):
        return sum(map(_nbytes, value))
    return len(pickle.dumps(value))


def _clear(uid: str, responses: int) -> None:
    import transfer_queue as tq

    from verl_care.workers.shared_inputs import PARTITION

    tq.kv_clear(keys=[uid, *(f"{uid}_{session}_0" for session in range(responses))], partition_id="train")
    if uid in (tq.kv_list(PARTITION) or {}).get(PARTITION, {}):
        tq.kv_clear(keys=[uid], partition_id=PARTITION)


def _measure_reader(clip: Path, repeats: int) -> dict[str, Any]:
    """Our reader, which also counts frames and chooses them, against PyAV's plain decoding of the same frames."""
    import av
    import numpy as np
    import torch

    from verl_care.data.video import read_video

    element = {"video": str(clip), "nframes": FRAMES}
    wanted = read_video(element)[1]["frames_indices"]

    def plain() -> Any:
        with av.open(str(clip)) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            frames = []
            for number, frame in enumerate(container.decode(stream)):
                if number in wanted:
                    frames.append(frame.to_ndarray(format="rgb24"))
                if number == wanted[-1]:
                    break
        return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)

    if not torch.equal(plain(), read_video(element)[0]):
        raise RuntimeError("our reader and PyAV gave different frames")
    found = take_turns(
        {"ours": lambda: cpu_seconds(lambda: read_video(element)), "plain": lambda: cpu_seconds(plain)}, repeats + 4
    )
    ours, raw = summary(found["ours"]), summary(found["plain"])
    return {"reader": {"ours": ours, "plain_pyav": raw, "ratio": round(ours["median"] / raw["median"], 3)}}


def _measure_cache(folder: Path, clip: Path, repeats: int) -> dict[str, Any]:
    """Frames of a second epoch, decoded again against taken from the cache on disk."""
    from omegaconf import OmegaConf

    from verl_care.data.dataset import CareDataset

    messages = [
        {
            "role": "user",
            "content": [{"type": "video", "video": str(clip), "nframes": FRAMES, "max_pixels": MAX_PIXELS}],
        }
    ]

    def read(cache_dir: str | None) -> float:
        config = OmegaConf.create({"care_video": {"cache_dir": cache_dir}})
        return cpu_seconds(lambda: CareDataset._process_multi_modal_info(messages, 14, config))

    found = take_turns({"with": lambda: read(str(folder / "cache")), "without": lambda: read(None)}, repeats + 2)
    cached, decoded = summary(found["with"]), summary(found["without"])
    return {
        "second_epoch": {
            "with_cache": cached,
            "without_cache": decoded,
            "ratio": round(decoded["median"] / cached["median"], 2),
        }
    }
