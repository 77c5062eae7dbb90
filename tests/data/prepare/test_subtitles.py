import pytest

from verl_care.data.prepare.subtitles import NONE_AVAILABLE, pick_lines, read_longvideobench, read_srt
from verl_care.data.records import RecordError


def test_subrip_in_its_variants(tmp_path):
    path = tmp_path / "a.srt"
    path.write_bytes(
        b'\xef\xbb\xbf1\r\n00:00:01,500 --> 00:00:02,000\r\n<font color="white">one</font>\r\ntwo\r\n\r\n'
        b"00:01:00.25 --> 01:00:00.250 X1:0\r\nno number\r\n\r\n3\r\n00:00:03,000 --> 00:00:04,000\r\n\r\n"
    )
    assert read_srt(path) == [(1.5, 2.0, "one two"), (60.25, 3600.25, "no number")]
    path.write_text("hello")
    with pytest.raises(RecordError, match="a.srt: subtitles: no line with times"):
        read_srt(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(RecordError, match="not valid UTF-8"):
        read_srt(path)
    path.write_text("")
    assert read_srt(path) == []


def test_longvideobench_shifts_widens_and_closes(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('[{"timestamp": [10.0, 10.5], "text": "short"}, {"timestamp": [12.0, null], "text": "open  end"}]')
    assert read_longvideobench(path, 10.0, 8.0) == [(-0.25, 0.75, "short"), (2.0, 8.0, "open end")]
    path.write_text('[{"from": 1}]')
    with pytest.raises(RecordError, match="a.json: subtitles: expected objects with timestamp"):
        read_longvideobench(path, 0.0, 8.0)


def test_lines_at_the_sampled_frames():
    lines = [(0.0, 1.0, "a"), (1.0, 2.0, "b"), (5.0, 6.0, "c"), (9.0, 11.0, "d")]
    # Frames at 0, 5 and 10 s; the end of a line is no longer it.
    assert pick_lines(lines, 10.0, 3) == "a\nc\nd"
    assert pick_lines(lines, 10.0, 0) == pick_lines(lines, None, 3) == "a\nb\nc\nd"
    assert pick_lines([], 10.0, 3) == pick_lines(lines[1:2], 10.0, 2) == NONE_AVAILABLE
