import pickle
import struct
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from qwen_vl_utils import vision_process

from verl_care.data import video
from verl_care.data.video import BACKEND, VideoError, decode_frames, probe, read_video, register_pyav_reader


def decode_all(path):
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


@pytest.fixture
def vision(monkeypatch):
    """qwen-vl-utils as a fresh process has it, and as it was afterwards."""
    readers = {name: getattr(vision_process, f"_read_video_{name}") for name in ("decord", "torchvision", "torchcodec")}
    monkeypatch.setattr(vision_process, "VIDEO_READER_BACKENDS", readers)
    monkeypatch.setattr(vision_process, "FORCE_QWENVL_VIDEO_READER", None)
    vision_process.get_video_reader_backend.cache_clear()
    yield vision_process
    vision_process.get_video_reader_backend.cache_clear()


@pytest.mark.parametrize(
    ("sampling", "indices"),
    [
        ({"nframes": 4}, [0, 10, 19, 29]),  # 29/3 = 9.67, 19.33
        ({"nframes": 5}, [0, 10, 19, 29]),  # rounded to the even 4
        ({"nframes": 30}, list(range(30))),
        ({"fps": 2.0}, [0, 6, 12, 17, 23, 29]),  # 3 s at 2 fps: 6 frames, 5.8 apart
        ({"fps": 2.0, "max_frames": 4}, [0, 10, 19, 29]),
        ({"fps": 0.5}, [0, 10, 19, 29]),  # 1.5 frames, at least 4
        ({}, [0, 6, 12, 17, 23, 29]),  # 2 fps by default
        ({"nframes": 2, "video_start": 1.0, "video_end": 2.0}, [10, 20]),
        ({"nframes": 2, "video_start": 1.01}, [11, 29]),  # first whole frame after the start
        ({"nframes": 2, "video_end": 0.59}, [0, 5]),
    ],
)
def test_same_frames_as_a_whole_decode(clip, sampling, indices):
    frames, metadata, sample_fps = read_video({"video": str(clip), **sampling})
    everything = decode_all(clip)
    assert len(everything) == 30
    assert frames.dtype == torch.uint8 and frames.shape == (len(indices), 3, 32, 64)
    assert metadata["frames_indices"] == indices
    assert metadata["fps"] == 10.0
    assert metadata["video_backend"] == BACKEND
    span = 30
    if "video_start" in sampling or "video_end" in sampling:
        span = indices[-1] - indices[0] + 1
    assert metadata["total_num_frames"] == span
    assert sample_fps == pytest.approx(len(indices) / span * 10.0)
    for frame, index in zip(frames, indices, strict=True):
        np.testing.assert_array_equal(frame.permute(1, 2, 0).numpy(), everything[index])


@pytest.mark.parametrize("nframes", [2, 6, 8, 16, 28])
def test_frames_are_those_of_the_torchvision_reader(clip, vision, monkeypatch, nframes):
    """torchvision's reader of qwen-vl-utils, over a stand-in for the function that torchvision 0.26 dropped."""

    def read(path, start_pts, end_pts, pts_unit, output_format):
        video = torch.from_numpy(np.stack(decode_all(path))).permute(0, 3, 1, 2)
        return video, None, {"video_fps": 10.0}

    monkeypatch.setattr(vision.io, "read_video", read, raising=False)
    theirs, their_metadata, their_fps = vision._read_video_torchvision({"video": str(clip), "nframes": nframes})
    ours, metadata, fps = read_video({"video": str(clip), "nframes": nframes})
    assert torch.equal(ours, theirs)
    assert metadata["frames_indices"] == their_metadata["frames_indices"].tolist()
    assert (metadata["total_num_frames"], metadata["fps"], fps) == (30, their_metadata["fps"], their_fps)


def test_frames_come_in_display_order(clip):
    levels = decode_frames(str(clip), range(30))[:, 0, -4, -4].tolist()
    assert levels == sorted(levels)
    assert levels[-1] - levels[0] > 200


def test_repeated_frames(clip):
    frames = decode_frames(str(clip), [3, 3, 7])
    assert torch.equal(frames[0], frames[1])
    assert not torch.equal(frames[1], frames[2])


def test_probe(clip, make_clip):
    assert probe(str(clip)) == (30, 10.0)
    count, fps = probe(str(make_clip(frames=7, fps=Fraction(30000, 1001))))
    assert count == 7
    assert fps == pytest.approx(30000 / 1001)


@pytest.mark.parametrize("name", ["clip.mkv", "clip.avi", "clip.webm", "clip.ts"])
def test_containers_that_declare_no_frame_count(tmp_path, name):
    path = tmp_path / name
    codec = "libvpx" if name.endswith("webm") else "libx264"
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv420p"
        for number in range(12):
            frame = av.VideoFrame.from_ndarray(np.full((32, 64, 3), 20 * number, dtype=np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    everything = decode_all(path)
    frames, metadata, _ = read_video({"video": str(path), "nframes": 12})
    assert metadata["total_num_frames"] == len(everything) == 12
    np.testing.assert_array_equal(frames.permute(0, 2, 3, 1).numpy(), np.stack(everything))


def test_a_rotated_clip_is_shown_upright(clip):
    """A phone's clip: the track's matrix turns it clockwise, so the red half goes from the top to the right."""
    data = bytearray(clip.read_bytes())
    matrix = data.index(b"tkhd") + 4 + 40
    clockwise = (0, 1 << 16, 0, -(1 << 16), 0, 0, 32 << 16, 0, 1 << 30)
    data[matrix : matrix + 36] = struct.pack(">9i", *clockwise)
    clip.write_bytes(data)
    frame = decode_frames(str(clip), [0])[0]
    assert frame.shape == (3, 64, 32)
    assert frame[0, 32, 28] > 200 and frame[1, 32, 28] < 60
    assert frame[0, 32, 4] < 60


def test_errors_name_the_file_and_keep_the_cause(tmp_path, clip):
    missing, text = tmp_path / "missing.mp4", tmp_path / "text.mp4"
    text.write_text("no video")
    for path in (missing, text):
        with pytest.raises(VideoError, match=path.name) as caught:
            read_video({"video": str(path), "nframes": 4})
        assert isinstance(caught.value.__cause__, OSError | ValueError)
    with pytest.raises(VideoError, match="clip.mp4: cannot sample 30 frames at 10 fps: .*32") as caught:
        read_video({"video": str(clip), "nframes": 32})
    assert isinstance(caught.value.__cause__, ValueError)
    with pytest.raises(VideoError, match="Only accept either"):
        read_video({"video": str(clip), "nframes": 4, "fps": 2.0})
    with pytest.raises(VideoError, match="ends after 30 frames; frame 30 was asked for"):
        decode_frames(str(clip), [0, 30])


def test_a_file_without_video(tmp_path):
    path = tmp_path / "sound.wav"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), dtype=np.int16), format="s16", layout="mono")
        frame.rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(VideoError, match="sound.wav: no video stream"):
        read_video({"video": str(path), "nframes": 4})


def test_a_truncated_file_is_an_error(tmp_path, make_clip):
    whole = make_clip("whole.mkv", frames=30, fps=10, size=256, crf="10")
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    decoded = decode_all(cut)
    assert 0 < len(decoded) < 30
    with pytest.raises(VideoError, match="cut.mkv: the video ends after"):
        decode_frames(str(cut), [0, 29])


def test_error_survives_pickling():
    assert str(pickle.loads(pickle.dumps(VideoError("clip.mp4: broken")))) == "clip.mp4: broken"


def test_registered_reader_serves_qwen_vl_utils(clip, vision):
    register_pyav_reader()
    register_pyav_reader()
    assert vision.get_video_reader_backend() == BACKEND
    ele = {"video": f"file://{clip}", "nframes": 4, "min_pixels": 28 * 28, "max_pixels": 56 * 56}
    (video, metadata), sample_fps = vision.fetch_video(ele, return_video_sample_fps=True, return_video_metadata=True)
    assert video.shape[0] == 4 and video.shape[1] == 3
    assert metadata["video_backend"] == BACKEND
    assert sample_fps == pytest.approx(4 / 3)


def test_the_error_that_is_seen_is_the_videos_own(tmp_path, vision):
    with pytest.raises(Exception) as caught:
        vision.fetch_video({"video": str(tmp_path / "missing.mp4")})
    assert "missing.mp4" not in str(caught.value), "qwen-vl-utils names the file by itself now"
    register_pyav_reader()
    with pytest.raises(VideoError, match="missing.mp4"):
        vision.fetch_video({"video": str(tmp_path / "missing.mp4")})


def test_a_reader_that_the_user_forced_stays(vision, monkeypatch):
    monkeypatch.setattr(vision, "FORCE_QWENVL_VIDEO_READER", "torchcodec")
    register_pyav_reader()
    assert vision.get_video_reader_backend() == "torchcodec"


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"g": "12"}, id="short groups"),
        pytest.param({"g": "40", "bf": "3"}, id="B-frames"),
        pytest.param({"g": "30", "bf": "3", "x264-params": "open-gop=1"}, id="open groups"),
        pytest.param({"g": "400"}, id="one group"),
    ],
)
@pytest.mark.parametrize("container", ["mp4", "mkv", "ts"])
def test_frames_far_apart_are_those_of_a_whole_decode(make_clip, options, container):
    """Jumps over the frames between land on the right ones."""
    path = make_clip(f"long.{container}", frames=200, fps=10, **options)
    everything = decode_all(path)
    frames, metadata, _ = read_video({"video": str(path), "nframes": 6})
    assert metadata["frames_indices"] == [0, 40, 80, 119, 159, 199]
    np.testing.assert_array_equal(
        frames.permute(0, 2, 3, 1).numpy(), np.stack([everything[index] for index in metadata["frames_indices"]])
    )


def test_frames_between_are_not_decoded(make_clip, monkeypatch):
    path = make_clip("long.mkv", frames=200, fps=10, g="10", bf="0")
    monkeypatch.setattr(video, "_decode_from_start", None)
    frames, metadata, _ = read_video({"video": str(path), "nframes": 6})
    assert len(frames) == 6


def test_a_timeline_that_lies_costs_nothing_but_time(make_clip):
    path = str(make_clip("long.mkv", frames=200, fps=10, g="10", bf="0"))
    truth = video.scan(path)
    wrong = video.Timeline(200, 10.0, tuple(time + 7 for time in truth.times), truth.keys)
    assert torch.equal(decode_frames(path, [0, 60, 120], wrong), decode_frames(path, [0, 60, 120]))
