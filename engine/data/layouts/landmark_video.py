"""The layout of landmark videos, 300VW's: VIDEO/annot/000001.pts beside VIDEO/frames/000001.jpg or VIDEO/vid.avi.

Each frame is cropped around its landmarks once, into the cache folder, as a set in the manifest layout. The crop is a
square around the second point of the nose's bridge. Half its side is 2.5 times the landmark radius (half the longer
side of the landmarks' bounding box), or less where it would leave the frame. The splits are those of the 300VW
challenge, by the names of the videos.
"""

import csv
import hashlib
import io
import itertools
import os
import re
import sys
import tempfile
import threading
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from engine.data.cache import cache_folder, make_once
from engine.data.decoding.dali import worker_threads
from engine.data.decoding.plain_images import MIN_SIDE, BadImage, plain_bytes
from engine.data.layouts.manifest import MANIFEST
from engine.data.layouts.names import frame_numbers
from engine.data.layouts.pts import parse_points
from engine.data.layouts.sources import FolderSource, Source, Stamp, UnreadableFile, is_image_name
from engine.data.layouts.tables import is_table_name, read_text
from engine.errors import InputError

SPLITS = {
    "train": "001 002 003 004 007 009 010 011 013 015 016 017 018 019 020 022 025 027 028 029 031 033 034 035 037 "
    "039 041 043 044 046 047 048 049 053 057 059 112 113 115 119 120 123 138 143 144 160 204 205 223 225",
    "test1": "114 124 125 126 150 158 401 402 505 506 507 508 509 510 511 514 515 518 519 520 521 522 524 525 537 "
    "538 540 541 546 547 548",
    "test2": "203 208 211 212 213 214 218 224 403 404 405 406 407 408 409 412 550 551 553",
    "test3": "410 411 516 517 526 528 529 530 531 533 557 558 559 562",
}
"""Videos of training and of the three test categories. Source: Shen et al. 2015 (300VW); as listed in
StijnVerdenius/DeepFaceImageSynthesis, utils/constants.py.
"""
_SPLIT_OF = {video: split for split, videos in SPLITS.items() for video in videos.split()}

_EXPAND = 2.5  # half a crop's side, in landmark radii
_CENTRE = 28  # the landmark in the middle of a crop: the second point of the nose's bridge
_SIDE = 256  # of a crop in pixels at most: the largest resolution that is trained
_VERSION = 1  # of the prepared sets: raise it when the crops change
_ANNOTATION = re.compile(r"(?:(?P<video>.+)/)?annot/[^/]+\.pts", re.IGNORECASE)
_FRAME = re.compile(r"(?:(?P<video>.+)/)?frames/[^/]+", re.IGNORECASE)
_MOVIES = ("vid.avi", "vid.mp4", "vid.mov", "vid.mkv")
_LEFT_OUT = "left_out.csv"


@dataclass
class Video:
    """The files of one video.

    name:        path of its folder.
    annotations: frame number -> .pts file.
    frames:      frame number -> image file.
    movie:       the file that holds all frames where `frames` is empty; "" for none.
    """

    name: str
    annotations: dict[int, str] = field(default_factory=dict)
    frames: dict[int, str] = field(default_factory=dict)
    movie: str = ""


@dataclass(frozen=True, slots=True)
class _Crop:
    """A frame that was cropped: its file in images/, and its landmarks (68, 2) float32 in pixels of the crop."""

    file: str
    video: str
    frame: int
    landmarks: np.ndarray


def find_videos(source: Source, files: list[str]) -> list[Video]:
    """The videos of a source, sorted by name; [] where the source has another layout. Raises InputError."""
    if any(is_table_name(name, MANIFEST) for name in files):
        return []
    annotations: dict[str, list[str]] = defaultdict(list)
    frames: dict[str, list[str]] = defaultdict(list)
    for name in files:
        if match := _ANNOTATION.fullmatch(name):
            annotations[match["video"] or ""].append(name)
        elif is_image_name(name) and (match := _FRAME.fullmatch(name)):
            frames[match["video"] or ""].append(name)
    place = str(source.root)
    videos = {
        name: Video(name, frame_numbers(annotations[name], place), frame_numbers(frames[name], place))
        for name in sorted(annotations)
    }
    for name in files:
        folder, _, file = name.rpartition("/")
        if file.lower() in _MOVIES and folder in videos:
            videos[folder].movie = videos[folder].movie or name
    for video in videos.values():
        if not video.frames and not video.movie:
            raise InputError(
                f"{source.root}: {video.name or 'it'} has landmarks in annot/, but neither frames/000001.jpg ... "
                "nor vid.avi beside them"
            )
    return list(videos.values())


def prepare_videos(source: Source, videos: list[Video], progress: bool) -> FolderSource:
    """The crops of all frames with usable landmarks, as a folder in the manifest layout, made on first use.

    Raises InputError for .pts files that cannot be understood, and where a movie needs OpenCV and that is missing.
    """
    folder = cache_folder() / "videos" / _key(source, videos)

    def make(out: Path) -> None:
        if progress:
            print(f"kiln: cropping {len(videos):,} videos into {folder} (once)", file=sys.stderr)
        _write(out, source, videos, progress)

    return FolderSource(make_once(folder, make, "the cropped frames"))


def left_out(prepared: FolderSource) -> list[tuple[str, str]]:
    """(name, reason) of the frames that were not cropped."""
    with (prepared.root / _LEFT_OUT).open(newline="", encoding="utf-8") as file:
        return [(row["file"], row["reason"]) for row in csv.DictReader(file)]


def crop_square(points: np.ndarray, width: int, height: int) -> tuple[int, int, int]:
    """Left, top and side in pixels of the crop, which lies within the frame.

    points: (68, 2) in pixels of the frame. width, height: of the frame.
    """
    radius = _EXPAND * (points.max(axis=0) - points.min(axis=0)).max() / 2
    x, y = (int(value) for value in points[_CENTRE])
    room = int(min(radius, x, y, width - 1 - x, height - 1 - y))
    return x - room, y - room, 2 * room + 1


def _key(source: Source, videos: list[Video]) -> str:
    """Name of the prepared set's folder: another one when a file of the videos has changed."""
    key = hashlib.sha256(f"{_VERSION}\0{source.root.resolve()}\n".encode("utf-8", "surrogateescape"))
    for video in videos:
        for name in (*video.annotations.values(), *video.frames.values(), video.movie):
            if name:
                key.update(f"{name}\0{_stamp(source, name)}\n".encode("utf-8", "surrogateescape"))
    return key.hexdigest()[:24]


def _stamp(source: Source, name: str) -> Stamp | None:
    """Size and times of a file; None when it is gone, which is reported where the file is read."""
    try:
        return source.stamp(name)
    except UnreadableFile:
        return None


def _write(out: Path, source: Source, videos: list[Video], progress: bool) -> None:
    """Write the crops of all videos, their landmarks, the manifest and the list of frames left out into `out`."""
    total = sum(len(video.annotations) for video in videos)
    hidden = None if progress else True  # None: shown on a terminal only
    crops: list[_Crop] = []
    bad: list[tuple[str, str]] = []
    with (
        tqdm(total=total, desc="cropping", unit="frame", file=sys.stderr, delay=0.5, disable=hidden) as bar,
        ThreadPoolExecutor(worker_threads()) as pool,
    ):
        stop = threading.Event()
        work = [pool.submit(_crop_video, out / "images", source, video, bar, stop) for video in videos]
        try:
            for video_done in work:
                cropped, unusable = video_done.result()
                crops += cropped
                bad += unusable
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise
    if not crops:
        name, reason = bad[0]
        raise InputError(
            f"{source.root}: no frame can be used: all {len(bad)} are left out, the first: {name}: {reason}"
        )
    np.save(out / "landmarks_68.npy", np.stack([crop.landmarks for crop in crops]))
    rows = [(crop.file, row, crop.video, crop.frame, _split(crop.video)) for row, crop in enumerate(crops)]
    _write_csv(out / "manifest.csv", ["file", "landmarks_row", "video", "frame", "split"], rows)
    _write_csv(out / _LEFT_OUT, ["file", "reason"], bad)


def _write_csv(path: Path, columns: list[str], rows: list[tuple]) -> None:
    with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)


def _split(video: str) -> str:
    return _SPLIT_OF.get(video.rsplit("/", 1)[-1], "")


def _crop_video(
    images: Path, source: Source, video: Video, bar: tqdm, stop: threading.Event
) -> tuple[list[_Crop], list[tuple[str, str]]]:
    """Write the crops of one video.

    images:  folder to write into. stop: set when another video has failed, so that this one ends early.
    returns: the crops, and (name, reason) of the frames left out.
    """
    name = (video.name or source.name).encode("utf-8", "backslashreplace").decode()
    (images / name).mkdir(parents=True, exist_ok=True)
    crops, bad = [], []
    with _open_frames(source, video) as frames:
        numbers = set()
        for number, file, image in frames:
            if stop.is_set():
                return [], []
            numbers.add(number)
            if number not in video.annotations:
                bad.append((file, f"no landmarks: there is no annot/{number:06d}.pts"))
                continue
            bar.update()
            points = parse_points(
                read_text(source, video.annotations[number]), f"{source.root}: {video.annotations[number]}"
            )
            target = f"{name}/{number:06d}.jpg"
            landmarks = _save_crop(image, points, images / target)
            if isinstance(landmarks, str):
                bad.append((file, landmarks))
            else:
                crops.append(_Crop(target, name, number, landmarks))
    bad += [(video.annotations[i], "there is no frame for it") for i in sorted(video.annotations.keys() - numbers)]
    return crops, bad


def _save_crop(image: Image.Image | str, points: np.ndarray, path: Path) -> np.ndarray | str:
    """Write the crop of one frame.

    image:   the frame, or the reason why it cannot be read.
    points:  (68, 2) float64 in pixels of the frame.
    returns: (68, 2) float32 in pixels of the crop, or the reason why there is no crop.
    """
    if isinstance(image, str):
        return image
    if not np.isfinite(points).all():
        return "its landmarks are not all finite numbers"
    outside = ((points < -0.5) | (points > np.array(image.size) - 0.5)).any(axis=1)
    if outside.any():
        return f"{outside.sum()} landmarks lie outside the {image.width}x{image.height} frame"
    left, top, side = crop_square(points, *image.size)
    if side < MIN_SIDE:
        return "the face is too near the border of the frame to be cropped"
    kept = min(side, _SIDE)
    crop = image.convert("RGB").crop((left, top, left + side, top + side))
    if kept < side:
        crop = crop.resize((kept, kept), Image.Resampling.BOX)
    crop.save(path, "JPEG", quality=95, subsampling=0)
    return ((points - [left, top] + 0.5) * (kept / side) - 0.5).astype(np.float32)


@contextmanager
def _open_frames(source: Source, video: Video) -> Iterator[Iterator[tuple[int, str, Image.Image | str]]]:
    """The frames of a video in order: number, name for messages, and the picture or the reason why there is none."""
    if video.frames:
        yield ((number, name, _read_frame(source, name)) for number, name in sorted(video.frames.items()))
        return
    with tempfile.NamedTemporaryFile(suffix=os.path.splitext(video.movie)[1]) as file:
        path = source.root / video.movie
        if not isinstance(source, FolderSource):
            try:
                file.write(source.read(video.movie))
            except UnreadableFile as error:
                raise InputError(f"{source.root}: {video.movie}: {error}") from error
            file.flush()
            path = Path(file.name)
        yield _decode(path, f"{source.root}: {video.movie}", video.movie)


def _read_frame(source: Source, name: str) -> Image.Image | str:
    try:
        return Image.open(io.BytesIO(plain_bytes(source.read(name))))
    except (UnreadableFile, BadImage) as error:
        return str(error)


def _decode(path: Path, place: str, name: str) -> Iterator[tuple[int, str, Image.Image]]:
    """The frames of a movie file, as `_open_frames` gives them.

    path: of the file. place and name: of the movie, for error messages and for frames.
    """
    try:
        import cv2  # heavy and optional: only movies need it
    except ImportError as error:
        raise InputError(
            f"{place}: OpenCV decodes it, which is not installed: pip install opencv-python-headless, or extract its "
            "frames into frames/000001.jpg ... beside annot/"
        ) from error
    movie = cv2.VideoCapture(str(path))
    try:
        if not movie.isOpened():
            raise InputError(
                f"{place} is not a video that OpenCV can read: extract its frames into frames/000001.jpg ..."
            )
        for number in itertools.count(1):
            there, picture = movie.read()
            if not there:
                return
            yield number, f"{name} frame {number}", Image.fromarray(np.ascontiguousarray(picture[..., ::-1]))
    finally:
        movie.release()
