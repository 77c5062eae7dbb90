"""Looking at clips: what is found, what is kept, and that a run that was stopped goes on."""

import json
import os

import pytest
from PIL import Image

from verl_care.data import probe
from verl_care.data.probe import Cache, Clip, Limits, hash_file, probe_all, probe_file


def test_what_is_found_about_a_clip_and_a_picture(clip, tmp_path):
    found = probe_file(str(clip))
    assert (found.frames, found.fps, found.width, found.height, found.cause) == (30, 10.0, 64, 32, None)
    assert found.duration == pytest.approx(3.0)
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    picture = probe_file(str(tmp_path / "a.png"))
    assert (picture.width, picture.height, picture.duration, picture.cause) == (40, 30, None, None)


def test_faults_are_results(clip, tmp_path, make_clip):
    assert probe_file(str(tmp_path / "none.mp4")).cause == "missing"
    (tmp_path / "text.mp4").write_text("no video")
    assert probe_file(str(tmp_path / "text.mp4")).cause == "unreadable"
    (tmp_path / "empty.mp4").write_bytes(b"")
    assert probe_file(str(tmp_path / "empty.mp4")).cause == "unreadable"
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    assert probe_file(str(tmp_path / "bad.png")).cause == "unreadable"
    (tmp_path / "folder.mp4").mkdir()
    assert probe_file(str(tmp_path / "folder.mp4")).cause == "unreadable"


def test_a_clip_whose_packets_are_noise_has_no_frames_or_cannot_be_read(make_clip):
    path = make_clip()
    content = bytearray(path.read_bytes())
    start = content.index(b"mdat") + 4
    content[start : start + 4000] = os.urandom(4000)
    path.write_bytes(content)
    assert probe_file(str(path)).cause in ("unreadable", "no frames")


@pytest.mark.parametrize(
    ("clip_", "limits", "part", "cause"),
    [
        (Clip(path="a", frames=20, duration=2.0), Limits(), (None, None), None),
        (Clip(path="a", frames=1, duration=0.1), Limits(), (None, None), "too short"),
        (Clip(path="a", frames=20, duration=2.0), Limits(min_seconds=2.0), (None, None), None),
        (Clip(path="a", frames=20, duration=2.0), Limits(min_seconds=2.01), (None, None), "too short"),
        (Clip(path="a", frames=20, duration=2.0), Limits(max_seconds=1.99), (None, None), "too long"),
        (Clip(path="a", frames=20, duration=2.0), Limits(max_seconds=1.99), (0.5, 1.0), None),
        (Clip(path="a", frames=20, duration=2.0), Limits(), (2.0, 3.0), "too short"),
        (Clip(path="a", frames=20, duration=2.0), Limits(min_seconds=1.0), (1.5, 3.0), "too short"),
        (Clip(path="a", cause="missing"), Limits(), (None, None), "missing"),
        (Clip(path="a.png", width=3, height=3), Limits(min_seconds=9.0), (None, None), None),
    ],
)
def test_limits(clip_, limits, part, cause):
    verdict = limits.judge(clip_, *part)
    assert (verdict and verdict[0]) == cause


def test_equal_files_have_equal_hashes_and_others_do_not(tmp_path):
    sizes = [10, 3 << 16, (3 << 16) + 1, 1 << 20]
    hashes = set()
    for size in sizes:
        content = bytearray(os.urandom(size))
        first, second = tmp_path / "first", tmp_path / "second"
        first.write_bytes(content)
        second.write_bytes(content)
        assert hash_file(str(first), size) == hash_file(str(second), size)
        content[size // 2] ^= 1
        second.write_bytes(content)
        assert hash_file(str(first), size) != hash_file(str(second), size)
        hashes.add(hash_file(str(first), size))
    assert len(hashes) == len(sizes)


@pytest.fixture
def calls(monkeypatch):
    """Paths that are really looked at."""
    looked: list[str] = []
    real = probe.probe_file

    def look(path):
        looked.append(path)
        return real(path)

    monkeypatch.setattr(probe, "probe_file", look)
    return looked


def test_a_second_run_looks_at_new_and_changed_clips_alone(make_clip, tmp_path, calls):
    paths = [str(make_clip(f"{number}.mp4", crf=str(number))) for number in range(4)]
    missing = str(tmp_path / "none.mp4")
    done = []
    first = probe_all([*paths, missing, paths[0]], Cache(tmp_path / "c.jsonl"), 2, lambda a, b: done.append((a, b)))
    assert sorted(calls) == sorted([*paths, missing])
    assert done[-1] == (5, 5)
    calls.clear()
    os.utime(paths[1], ns=(1, 1))
    new = str(make_clip("new.mp4"))
    second = probe_all([*paths, missing, new], Cache(tmp_path / "c.jsonl"), 2)
    assert sorted(calls) == sorted([paths[1], missing, new])
    assert {path: second[path] for path in first} == first
    calls.clear()
    assert probe_all(paths, Cache(tmp_path / "c.jsonl"), 2) == {path: second[path] for path in paths}
    assert calls == []


def test_what_was_found_before_a_stop_is_kept(make_clip, tmp_path, calls):
    paths = [str(make_clip(f"{number}.mp4")) for number in range(6)]

    def stop(done, total):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        probe_all(paths, Cache(tmp_path / "c.jsonl"), 1, stop)
    kept = len((tmp_path / "c.jsonl").read_text().splitlines())
    assert kept >= 3
    # A kill in the middle of a line.
    with (tmp_path / "c.jsonl").open("a") as file:
        file.write('{"identity": [1')
    calls.clear()
    found = probe_all(paths, Cache(tmp_path / "c.jsonl"), 1)
    assert len(calls) == 6 - kept
    assert list(found) == paths
    again = Cache(tmp_path / "c.jsonl")
    assert all(again.get(path) == found[path] for path in paths)
    assert sum(1 for line in (tmp_path / "c.jsonl").open() if _is_json(line)) == 6


def _is_json(line):
    try:
        json.loads(line)
    except ValueError:
        return False
    return True
