"""Sampling that a data set sets for records which do not say so themselves."""

import av
import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image
from qwen_vl_utils import fetch_image, fetch_video

import verl_care.conf
from verl_care.data.sampling import fill_sampling
from verl_care.data.video import register_pyav_reader

DEFAULTS = {"video": {"fps": 2.0, "min_frames": 4, "max_frames": 16, "max_pixels": 100}, "image": {"max_pixels": 50}}


def fill(item: dict) -> dict:
    (message,) = fill_sampling([{"role": "user", "content": [item]}], DEFAULTS)
    return message["content"][0]


def test_media_without_sampling_get_that_of_their_type():
    assert fill({"type": "video", "video": "a.mp4"}) == {"type": "video", "video": "a.mp4", **DEFAULTS["video"]}
    assert fill({"type": "image", "image": "a.png"}) == {"type": "image", "image": "a.png", "max_pixels": 50}
    assert fill({"type": "text", "text": "?"}) == {"type": "text", "text": "?"}


def test_keys_of_the_record_win():
    filled = fill({"type": "video", "video": "a.mp4", "fps": 1.0, "max_pixels": 7})
    assert (filled["fps"], filled["max_pixels"], filled["max_frames"]) == (1.0, 7, 16)


@pytest.mark.parametrize(
    ("own", "dropped"),
    [
        ({"nframes": 8}, {"fps", "min_frames", "max_frames"}),
        ({"resized_height": 56, "resized_width": 56}, {"max_pixels"}),
    ],
)
def test_keys_that_exclude_each_other_do_not_meet(own, dropped):
    filled = fill({"type": "video", "video": "a.mp4", **own})
    assert set(filled) == {"type", "video", *own, *(DEFAULTS["video"].keys() - dropped)}


def test_messages_stay_as_they_were():
    item = {"type": "video", "video": "a.mp4"}
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": [item]}]
    filled = fill_sampling(messages, DEFAULTS)
    assert filled[0] == messages[0]
    assert item == {"type": "video", "video": "a.mp4"}


@pytest.fixture(scope="module")
def video_r1():
    path = f"{verl_care.conf.__path__[0]}/care_dataset/video_r1.yaml"
    care = OmegaConf.load(path).data.care
    return {"video": OmegaConf.to_container(care.video), "image": OmegaConf.to_container(care.image)}


def clip(path, seconds: float, width: int, height: int) -> str:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.width, stream.height = width, height
        for _ in range(round(seconds * 8)):
            frame = av.VideoFrame.from_ndarray(np.zeros((height, width, 3), dtype=np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return str(path)


@pytest.mark.parametrize(("seconds", "num_frames"), [(1, 4), (5, 10), (20, 16)])
@pytest.mark.parametrize(("width", "height"), [(96, 64), (640, 360), (1280, 720)])
def test_video_r1_gives_two_frames_a_second_of_about_100k_pixels(
    seconds, num_frames, width, height, video_r1, tmp_path
):
    register_pyav_reader()
    item = {"type": "video", "video": clip(tmp_path / "clip.mp4", seconds, width, height)}
    (message,) = fill_sampling([{"role": "user", "content": [item]}], video_r1)
    frames = fetch_video(message["content"][0])
    assert len(frames) == num_frames
    # Sides are multiples of 28, so that the area lands near the bounds, not on them.
    assert 0.9 * 100352 <= frames.shape[2] * frames.shape[3] <= 1.1 * 105369


def test_video_r1_bounds_images_from_above(video_r1):
    def pixels(size: tuple[int, int]) -> int:
        item = {"type": "image", "image": Image.new("RGB", size)}
        (message,) = fill_sampling([{"role": "user", "content": [item]}], video_r1)
        width, height = fetch_image(message["content"][0]).size
        return width * height

    assert pixels((1920, 1080)) <= 200704
    assert pixels((280, 280)) == 280 * 280
