"""Folders of frames -> clips: TVQA's part of MVBench is published as pictures at 3 frames a second."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

from verl_care.data.records import DataError, replace_file

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


def make_clip(folder: Path, path: Path, fps: int = 3) -> Path:
    """Writes a folder's frames, by the order of their names, as an H.264 file; one that is newer stays.

    Args:
        folder: holds the frames.
        path: file to write; its folder is made.
        fps: frames a second.

    Raises:
        DataError: no frames in the folder, or one that cannot be read.
    """
    import av
    from PIL import Image

    if path.exists() and path.stat().st_mtime_ns >= folder.stat().st_mtime_ns:
        return path
    frames = sorted(entry for entry in folder.iterdir() if entry.suffix.lower() in IMAGE_SUFFIXES)
    if not frames:
        raise DataError(f"{folder}: no frames in the folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_file(path) as unfinished, av.open(str(unfinished), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps), options={"crf": "18"})
        stream.pix_fmt = "yuv420p"
        for number, frame in enumerate(frames):
            try:
                with Image.open(frame) as image:
                    picture = image.convert("RGB")
            except OSError as error:
                raise DataError(f"{frame}: cannot read the frame: {error}") from error
            if number == 0:
                # H.264 in this pixel format has even sides alone.
                stream.width, stream.height = picture.width // 2 * 2, picture.height // 2 * 2
            container.mux(stream.encode(av.VideoFrame.from_image(picture.resize((stream.width, stream.height)))))
        container.mux(stream.encode())
    return path
