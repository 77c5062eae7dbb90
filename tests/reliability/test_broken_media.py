"""Clips as they really come: each is an error that names the file, or a defined number of frames; none is a hang."""

import asyncio
import os
import socket
import subprocess
import sys
from fractions import Fraction

import av
import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image

from verl_care.data.dataset import CareDataset
from verl_care.data.prepare.base import find_media
from verl_care.data.probe import probe_file
from verl_care.data.records import RecordError
from verl_care.data.video import VideoError, read_video

pytestmark = pytest.mark.timeout(120)

SAMPLING = {"fps": 2.0, "min_frames": 4, "max_frames": 16}


def write(
    path, frames=40, fps=10, width=64, height=32, codec="libx264", pixels="yuv420p", step=None, form=None, **options
):
    """A clip, by default 4 s at 10 frames a second; `step(n)` gives the ticks from frame n to the next."""
    with av.open(str(path), "w", format=form, options=options) as container:
        stream = container.add_stream(codec, rate=fps)
        stream.width, stream.height, stream.pix_fmt = width, height, pixels
        time = 0
        for number in range(frames):
            image = np.full((height, width, 3), 5 * number % 256, dtype=np.uint8)
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            if step:
                frame.pts, frame.time_base = time, Fraction(1, fps)
                time += step(number)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def truncated(path, share, **options):
    write(path, **options)
    os.truncate(path, int(path.stat().st_size * share))
    return path


def fifo(path):
    os.mkfifo(path)
    return path


def unix_socket(path):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
    return path


def header_alone(path):
    """A file that declares a stream and holds no packet of it."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv420p"
        container.start_encoding()
    return path


def sound_alone(path):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 16000), dtype=np.float32), format="fltp", layout="mono")
        sound.rate = 16000
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    return path


def text(path):
    path.write_text("not a video\n" * 1000)
    return path


def noise(path):
    path.write_bytes(np.random.default_rng(0).bytes(100_000))
    return path


def picture(path):
    Image.new("RGB", (64, 32)).save(path, format="PNG")
    return path


def link(path, target):
    path.symlink_to(target)
    return path


def folder(path):
    path.mkdir()
    return path


ERROR = None

# File name -> how it is made, frames that a reader gives at 2 a second (4 to 16), cause that a look at it gives.
MEDIA = {
    "sound.mp4": (write, 8, None),
    "index_lost.mp4": (lambda path: truncated(path, 0.6), ERROR, "unreadable"),
    "cut.mkv": (lambda path: truncated(path, 0.5, frames=400), None, None),
    "cut_faststart.mp4": (lambda path: truncated(path, 0.5, frames=400, movflags="faststart"), ERROR, None),
    "empty.mp4": (lambda path: path.touch() or path, ERROR, "unreadable"),
    "header_alone.avi": (header_alone, ERROR, "no frames"),
    "no_video.mp4": (sound_alone, ERROR, "unreadable"),
    "text.mp4": (text, ERROR, "unreadable"),
    "noise.mp4": (noise, ERROR, "unreadable"),
    "folder.mp4": (folder, ERROR, "unreadable"),
    "pipe.mp4": (fifo, ERROR, "unreadable"),
    "socket.mp4": (unix_socket, ERROR, "unreadable"),
    "device.mp4": (lambda path: link(path, "/dev/zero"), ERROR, "unreadable"),
    "lost_link.mp4": (lambda path: link(path, "/nowhere/at/all.mp4"), ERROR, "missing"),
    "loop.mp4": (lambda path: link(path, path), ERROR, "unreadable"),
    "none.mp4": (lambda path: path, ERROR, "missing"),
    "one_frame.mp4": (lambda path: write(path, frames=1), ERROR, None),
    "two_frames.mp4": (lambda path: write(path, frames=2), 2, None),
    "matroska_in_disguise.mp4": (lambda path: write(path, form="matroska"), 8, None),
    "video.txt": (lambda path: write(path, form="mp4"), 8, None),
    "picture.mp4": (picture, ERROR, None),
    "variable_rate.mkv": (lambda path: write(path, step=lambda n: 1 + 7 * (n % 5 == 0)), None, None),
    "odd_size.mp4": (lambda path: write(path, width=33, height=17, pixels="yuv444p"), 8, None),
    "one_pixel.mkv": (lambda path: write(path, width=1, height=1, codec="ffv1", pixels="yuv444p"), 8, None),
    "ten_bit.mkv": (lambda path: write(path, codec="ffv1", pixels="yuv420p10le"), 8, None),
    "grey.mkv": (lambda path: write(path, codec="ffv1", pixels="gray"), 8, None),
}


def look_at(path):
    """Frames read, or the error, which names the file."""
    try:
        frames, metadata, rate = read_video({"video": str(path), **SAMPLING})
    except VideoError as error:
        assert str(error).startswith(f"{path}: "), error
        return ERROR
    assert frames.shape[0] == len(metadata["frames_indices"]) and frames.shape[1] == 3 and rate > 0
    return frames.shape[0]


@pytest.mark.parametrize("name", MEDIA)
def test_each_kind_of_file(name, tmp_path):
    make, frames, cause = MEDIA[name]
    path = make(tmp_path / name)
    found = look_at(path)
    # What a reader may do with half a file, or with frames at uneven times, is its own affair, the same each time.
    assert found == frames or name in ("cut.mkv", "variable_rate.mkv")
    assert look_at(path) == found
    clip = probe_file(str(path))
    if cause:
        assert clip.cause == cause
    if found is not ERROR:
        assert clip.cause is None and clip.frames >= 2


def test_what_lies_behind_a_link_is_read(tmp_path):
    """Hugging Face's cache is made of links that leave the folder; who owns a folder decides what it links to."""
    path = write(tmp_path / "elsewhere.mp4")
    assert look_at(link(tmp_path / "linked.mp4", path)) == 8


@pytest.mark.parametrize("name", ["../secret.mp4", "a/../../secret.mp4", "/etc/passwd", "c:\\x.mp4", "a\0.mp4", ".."])
def test_the_path_of_a_record_stays_in_the_folder(name, tmp_path):
    with pytest.raises(RecordError, match="leaves the video folder"):
        find_media(tmp_path, name, "records.json, record 3", "path")


def test_every_error_reaches_the_prompt_with_its_file(tmp_path):
    """By verl's own way of reading a prompt's media, which keeps no error of a reader's to itself."""
    config = OmegaConf.create({})
    for name in ("index_lost.mp4", "text.mp4", "pipe.mp4", "picture.mp4", "none.mp4", "one_frame.mp4"):
        path = MEDIA[name][0](tmp_path / name)
        messages = [{"role": "user", "content": [{"type": "video", "video": str(path), **SAMPLING}]}]
        with pytest.raises(ValueError, match=name):
            asyncio.run(CareDataset.process_multi_modal_info(messages, image_patch_size=14, config=config))


FOUR_HOURS = """
import resource, sys
from verl_care.data.probe import probe_file
from verl_care.data.video import read_video

read_video({"video": sys.argv[1], "nframes": 4})
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
frames, metadata, _ = read_video({"video": sys.argv[2], "fps": 2.0, "max_frames": 64})
clip = probe_file(sys.argv[2])
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(len(frames), metadata["frames_indices"][-1], clip.frames, clip.duration, (after - before) // 1024)
"""


def test_four_hours_in_little_memory(tmp_path):
    """4 h at one frame a second, 64 of 14,400 frames."""
    short = write(tmp_path / "short.mp4")
    long = write(tmp_path / "long.mkv", frames=14_400, fps=1, width=16, height=16, codec="mpeg4")
    done = subprocess.run(
        [sys.executable, "-c", FOUR_HOURS, str(short), str(long)], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr[-2000:]
    frames, last, counted, duration, mib = (float(word) for word in done.stdout.split()[-5:])
    assert (frames, last, counted, duration) == (64, 14_399, 14_400, 14_400)
    # The packets' times; a clip of this length at 480p, whole, would take 18 GB.
    assert mib < 64
