"""Frames kept on disk: the same as decoded ones, and never those of another video or way of sampling."""

from __future__ import annotations

import multiprocessing
import os

import pytest
import torch
from omegaconf import OmegaConf

from verl_care.data import frame_cache, video
from verl_care.data.dataset import CareDataset
from verl_care.data.frame_cache import FrameCache, content_digest, entry_name

ELEMENT = {"type": "video", "nframes": 4, "min_pixels": 28 * 28, "max_pixels": 56 * 56}


def messages(clip, **changed):
    return [{"role": "user", "content": [{**ELEMENT, "video": str(clip), **changed}, {"type": "text", "text": "?"}]}]


def process(clip, cache_dir, patch=14, **changed):
    config = OmegaConf.create({"care_video": {"cache_dir": str(cache_dir) if cache_dir else None}})
    return CareDataset._process_multi_modal_info(messages(clip, **changed), patch, config)


@pytest.fixture
def decodes(monkeypatch):
    """Paths that were decoded."""
    seen = []
    decode = video.decode_frames

    def counted(path, *args):
        seen.append(path)
        return decode(path, *args)

    monkeypatch.setattr(video, "decode_frames", counted)
    return seen


def test_the_second_time_comes_from_disk_and_is_the_same(clip, tmp_path, decodes):
    stock = process(clip, None)
    first = process(clip, tmp_path / "cache")
    second = process(clip, tmp_path / "cache")
    assert len(decodes) == 2
    for images, videos, audios in (first, second):
        assert images is None and audios is None
        [(frames, metadata)], [(expected, expected_metadata)] = videos, stock[1]
        assert torch.equal(frames, expected) and frames.dtype == expected.dtype
        assert metadata == expected_metadata


def test_images_and_text_beside_videos(clip, tmp_path):
    from PIL import Image

    picture = tmp_path / "picture.png"
    Image.new("RGB", (64, 64), "red").save(picture)
    content = [{"type": "image", "image": str(picture)}, {**ELEMENT, "video": str(clip)}]
    config = OmegaConf.create({"care_video": {"cache_dir": str(tmp_path / "cache")}})
    for _ in range(2):
        images, videos, _ = CareDataset._process_multi_modal_info([{"role": "user", "content": content}], 14, config)
        assert len(images) == len(videos) == 1 and images[0].getpixel((0, 0)) == (255, 0, 0)
    text = [{"role": "system", "content": "Be brief."}]
    assert CareDataset._process_multi_modal_info(text, 14, config) == (None, None, None)


@pytest.mark.parametrize(
    "changed",
    [
        {"nframes": 6},
        {"min_pixels": 28 * 28 * 2},
        {"max_pixels": 84 * 84},
        {"total_pixels": 28 * 28 * 8},
        {"resized_height": 56, "resized_width": 56},
        {"video_start": 1.0},
        {"video_end": 2.0},
    ],
)
def test_every_option_counts(clip, tmp_path, decodes, changed):
    process(clip, tmp_path / "cache")
    frames = process(clip, tmp_path / "cache", **changed)[1][0][0]
    assert len(decodes) == 2
    assert torch.equal(frames, process(clip, None, **changed)[1][0][0])


def test_the_patch_size_counts(clip, tmp_path, decodes):
    process(clip, tmp_path / "cache")
    assert process(clip, tmp_path / "cache", patch=16)[1][0][0].shape[-1] % 32 == 0
    assert len(decodes) == 2


def test_versions_of_what_decodes_count(clip, monkeypatch):
    before = entry_name({**ELEMENT, "video": str(clip)}, 14, "pyav")
    assert before != entry_name({**ELEMENT, "video": str(clip)}, 14, "torchcodec")
    monkeypatch.setattr(frame_cache, "_made_by", lambda: ["av 99"])
    assert before != entry_name({**ELEMENT, "video": str(clip)}, 14, "pyav")


def test_every_byte_of_the_video_counts(clip):
    whole = clip.read_bytes()
    digests = {content_digest(str(clip))}
    places = range(0, len(whole), max(1, len(whole) // 200))
    for place in places:
        clip.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        digests.add(content_digest(str(clip)))
    assert len(digests) == 1 + len(places)


def test_a_changed_video_of_the_same_size_and_time_is_another_video(clip, make_clip):
    stat = os.stat(clip)
    before = content_digest(str(clip))
    data = bytearray(clip.read_bytes())
    data[-1] ^= 1
    clip.write_bytes(bytes(data))
    os.utime(clip, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert content_digest(str(clip)) != before


def test_the_same_video_elsewhere_is_the_same_entry(clip, tmp_path):
    copy = tmp_path / "copy.mp4"
    copy.write_bytes(clip.read_bytes())
    names = {entry_name({**ELEMENT, "video": str(path)}, 14, "pyav") for path in (clip, copy, f"file://{copy}")}
    assert len(names) == 1


@pytest.mark.parametrize("damage", ["cut", "byte of the frames", "byte of the header", "empty", "other text"])
def test_a_damaged_entry_is_dropped_and_made_again(clip, tmp_path, decodes, damage, caplog):
    expected = process(clip, tmp_path / "cache")[1][0][0]
    [entry] = (tmp_path / "cache").glob("*/*.frames")
    data = bytearray(entry.read_bytes())
    if damage == "cut":
        del data[-100:]
    elif damage == "empty":
        data.clear()
    elif damage == "other text":
        data = bytearray(b"no frames\n")
    else:
        data[len(data) // 2 if "frames" in damage else 20] ^= 1
    entry.write_bytes(bytes(data))
    assert torch.equal(process(clip, tmp_path / "cache")[1][0][0], expected)
    assert len(decodes) == 2 and "dropped and made again" in caplog.text
    process(clip, tmp_path / "cache")
    assert len(decodes) == 2


def test_frames_that_are_not_whole_numbers_are_kept_as_they_are(tmp_path):
    frames = torch.rand(2, 3, 4, 4)
    cache = FrameCache(tmp_path, 1.0)
    for _ in range(2):
        found, metadata, fps = cache.get("ab" * 32, lambda: (frames, {"fps": 2.0}, 1.0))
        assert torch.equal(found, frames) and metadata == {"fps": 2.0} and fps == 1.0


def test_the_folder_stays_below_its_size_and_keeps_what_was_used_last(tmp_path):
    cache = FrameCache(tmp_path, 45_000 / 2**30)
    frames = torch.zeros(1, 3, 64, 64)  # 12 KiB as bytes

    def get(number):
        cache.get(f"{number:064x}", lambda: (frames, {}, 1.0))
        path = tmp_path / "00" / f"{number:064x}.frames"
        os.utime(path, ns=(clock[0], clock[0]))
        clock[0] += 10**9

    clock = [10**18]
    for number in (0, 1, 2, 0, 3, 4):
        get(number)
    cache.sweep()
    left = {int(path.stem, 16) for path in tmp_path.glob("*/*.frames")}
    assert left == {0, 3, 4}  # 1 and 2 were used longest ago; four of 12.4 KB are above 45,000 bytes
    assert sum(path.stat().st_size for path in tmp_path.glob("*/*")) <= cache.max_bytes


def test_an_entry_that_would_not_fit_is_not_kept(tmp_path):
    cache = FrameCache(tmp_path, 1000 / 2**30)
    cache.get("ab" * 32, lambda: (torch.zeros(1, 3, 64, 64), {}, 1.0))
    assert not list(tmp_path.rglob("*.frames"))


def test_a_size_of_nothing_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="data.care_video.cache_gib: expected a number > 0; got 0"):
        FrameCache(tmp_path, 0)


def fill(folder, barrier):
    cache = FrameCache(folder, 1.0)
    barrier.wait()
    for number in range(20):
        frames = torch.full((2, 3, 32, 32), float(number))
        found, _, _ = cache.get(f"{number:064x}", lambda frames=frames: (frames, {}, 1.0))
        assert torch.equal(found, frames)


@pytest.mark.timeout(100)
def test_processes_that_write_the_same_entries_at_once(tmp_path):
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(4)
    workers = [context.Process(target=fill, args=(tmp_path, barrier)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert len(list(tmp_path.rglob("*.frames"))) == 20 and not list(tmp_path.rglob("*.tmp"))
