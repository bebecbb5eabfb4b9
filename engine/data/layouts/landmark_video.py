"""The layout of landmark videos, 300VW's: VIDEO/annot/000001.pts beside VIDEO/frames/000001.jpg or VIDEO/vid.avi.

Each frame is cropped around its landmarks once, into the cache folder, as a set in the manifest layout. The crop is a
square around the second point of the nose's bridge. Half its side is 2.5 times the landmark radius (half the longer
side of the landmarks' bounding box), or less where it would leave the frame. The splits are those of the 300VW
challenge, by the names of the videos.
"""

import csv
import errno
import hashlib
import io
import itertools
import os
import re
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import numpy as np
from PIL import Image
from tqdm import tqdm

from engine.data.cache import cache_folder, make_once
from engine.data.decoding.dali import worker_threads
from engine.data.decoding.plain_images import MIN_SIDE, BadImage, plain_bytes
from engine.data.landmarks import POINTS
from engine.data.layouts.manifest import MANIFEST
from engine.data.layouts.sources import FolderSource, Source, Stamp, is_image_name
from engine.data.layouts.tables import read_text
from engine.errors import InputError
from engine.host.contained_paths import contained
from engine.host.input_files import UnreadableFile, check_input
from engine.host.terminal import printable

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
_ANNOTATION = re.compile(r"(?:(?P<video>.+)/)?annot/(?P<frame>[^/]+)\.pts")
_MOVIES = ("vid.avi", "vid.mp4", "vid.mov", "vid.mkv")
_LEFT_OUT = "left_out.csv"
_EXTRACT = "extract its frames into frames/000001.jpg ..."
_DIGITS = 15  # of a frame's number at most: a table's numbers are exact so far


@dataclass
class Video:
    """The files of one video.

    name:        path of its folder.
    annotations: frame number -> .pts file.
    frames:      frame number -> image file.
    movie:       the file that holds all frames where `frames` is empty; "" for none.
    problem:     why the video is set aside; "" for one that can be tried.
    """

    name: str
    annotations: dict[int, str] = field(default_factory=dict)
    frames: dict[int, str] = field(default_factory=dict)
    movie: str = ""
    problem: str = ""

    def add(self, numbered: dict[int, str], file: str) -> None:
        """Enter a file in `annotations` or `frames`, by the number in its name; a name that has none is a problem."""
        stem = file.rsplit("/", 1)[-1].rsplit(".", 1)[0]
        if not stem.isdecimal() or len(stem) > _DIGITS:
            self.problem = self.problem or f"{file} is not named after its frame's number, such as 000001"
            return
        other = numbered.setdefault(int(stem), file)
        if other != file:
            self.problem = self.problem or f"{other} and {file} are of one frame: remove one of them"


@dataclass(frozen=True, slots=True)
class _Crop:
    """A frame that was cropped: its file in images/, and its landmarks (68, 2) float32 in pixels of the crop."""

    file: str
    video: str
    frame: int
    landmarks: np.ndarray


class _BadFilm(Exception):
    """A video that cannot be used; the message says why. The others still can."""


def find_videos(files: list[str]) -> list[Video]:
    """The videos among the files of a source, sorted by name; [] where it has another layout."""
    if any(name.rsplit("/", 1)[-1] == MANIFEST for name in files):
        return []
    annotations = [match for name in files if (match := _ANNOTATION.fullmatch(name))]
    videos = {name: Video(name) for name in sorted({match["video"] or "" for match in annotations})}
    for match in annotations:
        video = videos[match["video"] or ""]
        video.add(video.annotations, match.string)
    for name in files:
        folder, _, file = name.rpartition("/")
        if file in _MOVIES and folder in videos:
            videos[folder].movie = videos[folder].movie or name
        parent = folder[: -len("/frames")] if folder.endswith("/frames") else ("" if folder == "frames" else None)
        if parent in videos and is_image_name(file):
            videos[parent].add(videos[parent].frames, name)
    for video in videos.values():
        if not video.frames and not video.movie:
            video.problem = video.problem or (
                "it has landmarks in annot/, but neither frames/000001.jpg ... nor vid.avi beside them"
            )
    return list(videos.values())


def prepare_videos(source: Source, videos: list[Video], progress: bool) -> FolderSource:
    """The crops of all frames with usable landmarks, as a folder in the manifest layout, made on first use.

    A video that cannot be used is set aside: named on standard error and in `left_out`. Raises InputError where none
    remains, and where a movie needs OpenCV and that is missing.
    """
    for video in videos:
        if not video.frames and not video.problem:
            _require_opencv(f"{source.root}: {video.movie}")
    folder = cache_folder() / "videos" / _key(source, videos)

    def make(out: Path) -> None:
        if progress:
            print(f"kiln: cropping {len(videos):,} videos into {folder} (once)", file=sys.stderr)
        _write(out, source, videos, progress)

    return FolderSource(make_once(folder, make, "the cropped frames"))


def left_out(prepared: FolderSource) -> list[tuple[str, str]]:
    """(name, reason) of the frames that were not cropped, and of the videos that were set aside."""
    with (prepared.root / _LEFT_OUT).open(newline="", encoding="utf-8") as file:
        return [(row["file"], row["reason"]) for row in csv.DictReader(file)]


def parse_points(text: str, place: str) -> np.ndarray:
    """(68, 2) float64, x and y in pixels with 0 the centre of the first pixel.

    text:  content of a .pts file, which counts pixels from 1 (as menpo's importer reads it too).
    place: the file, for messages.
    Raises InputError for anything but `version: 1`, `n_points: 68` and 68 lines of two numbers in braces.
    """
    lines = [line.strip() for line in text.strip().splitlines()]
    if not lines or not re.fullmatch(r"version:\s*1", lines[0]):
        raise InputError(f"{place} line 1: expected `version: 1`")
    count = re.fullmatch(r"n_points:\s*(\d+)", lines[1]) if len(lines) > 1 else None
    if count is None:
        raise InputError(f"{place} line 2: expected `n_points: {POINTS}`")
    if int(count[1]) != POINTS:
        raise InputError(f"{place} line 2: it has {count[1]} points; this layout needs {POINTS} (iBUG order)")
    if len(lines) != POINTS + 4 or lines[2] != "{" or lines[-1] != "}":
        raise InputError(f"{place}: expected {POINTS} lines of two numbers between {{ and }}, and nothing after them")
    points = np.empty((POINTS, 2))
    for row, line in enumerate(lines[3:-1]):
        try:
            x, y = line.split()
            points[row] = float(x), float(y)
        except ValueError as error:
            raise InputError(f"{place} line {row + 4}: expected two numbers, not {line[:40]!r}") from error
    return points - 1


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
    aside: list[tuple[str, str]] = []
    with (
        tqdm(total=total, desc="cropping", unit="frame", file=sys.stderr, delay=0.5, disable=hidden) as bar,
        ThreadPoolExecutor(worker_threads()) as pool,
    ):
        stop = threading.Event()
        work = [pool.submit(_crop_video, out / "images", source, video, bar, stop) for video in videos]
        try:
            for video, done in zip(videos, work, strict=True):
                try:
                    cropped, unusable = done.result()
                except _BadFilm as error:
                    aside.append((video.name or source.name, str(error)))
                    continue
                crops += cropped
                bad += unusable
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise
    if not crops:
        name, reason = (aside + bad)[0]
        what = f"{len(bad)} frames" if bad else f"{len(aside)} videos"
        raise InputError(f"{source.root}: no frame can be used: all {what} are left out, the first: {name}: {reason}")
    if aside:
        name, reason = aside[0]
        first = f"{len(aside):,} of {len(videos):,} videos set aside, the first: {name}: {reason}"
        print(printable(f"kiln: {source.name}: {first}"), file=sys.stderr)
    np.save(out / "landmarks_68.npy", np.stack([crop.landmarks for crop in crops]))
    rows = [(crop.file, row, crop.video, crop.frame, _split(crop.video)) for row, crop in enumerate(crops)]
    _write_csv(out / "manifest.csv", ["file", "landmarks_row", "video", "frame", "split"], rows)
    _write_csv(out / _LEFT_OUT, ["file", "reason"], aside + bad)


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
    Raises _BadFilm where the video cannot be used, OSError where its crops cannot be written.
    """
    if video.problem:
        raise _BadFilm(video.problem)
    name = (video.name or source.name).encode("utf-8", "backslashreplace").decode()
    points = {number: _points(source, file) for number, file in video.annotations.items()}
    _make_folder(contained(images, name))
    crops, bad = [], []
    with _open_frames(source, video) as frames:
        numbers = set()
        for number, file, image in frames:
            if stop.is_set():
                return [], []
            numbers.add(number)
            if number not in points:
                bad.append((file, f"no landmarks: there is no annot/{number:06d}.pts"))
                continue
            bar.update()
            target = f"{name}/{number:06d}.jpg"
            landmarks = _save_crop(image, points[number], contained(images, target))
            if isinstance(landmarks, str):
                bad.append((file, landmarks))
            else:
                crops.append(_Crop(target, name, number, landmarks))
    if not numbers:
        raise _BadFilm(f"{video.movie} holds no frame that OpenCV can read: {_EXTRACT}")
    bad += [(video.annotations[i], "there is no frame for it") for i in sorted(video.annotations.keys() - numbers)]
    return crops, bad


def _make_folder(path: Path) -> None:
    """Make the folder of a video's crops. Raises _BadFilm for a name that no folder can have, and OSError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        raise _BadFilm("its name is too long for a folder") from error


def _points(source: Source, file: str) -> np.ndarray:
    """The landmarks of a .pts file, (68, 2) in pixels of its frame. Raises _BadFilm."""
    try:
        return parse_points(read_text(source, file), file)
    except InputError as error:
        raise _BadFilm(str(error)) from error


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
    with tempfile.TemporaryDirectory() as folder:
        # OpenCV gets a name of our own: it prints names as they are, and takes digits in them for a series of pictures
        path = Path(folder, "film" + os.path.splitext(video.movie)[1])
        try:
            if isinstance(source, FolderSource):
                film = contained(source.root, video.movie)
                check_input(film)
                path.symlink_to(film.resolve())
            else:
                path.write_bytes(source.read(video.movie))
        except UnreadableFile as error:
            raise _BadFilm(f"{video.movie}: {error}") from error
        yield _decode(path, video.movie)


def _read_frame(source: Source, name: str) -> Image.Image | str:
    try:
        return Image.open(io.BytesIO(plain_bytes(source.read(name))))
    except (UnreadableFile, BadImage) as error:
        return str(error)


def _require_opencv(place: str) -> ModuleType:
    """OpenCV. Raises InputError where it is missing; place: the movie that needs it."""
    try:
        import cv2  # heavy and optional: only movies need it
    except ImportError as error:
        raise InputError(
            f"{place}: OpenCV decodes it, which is not installed: pip install opencv-python-headless, or extract its "
            "frames into frames/000001.jpg ... beside annot/"
        ) from error
    return cv2


def _decode(path: Path, name: str) -> Iterator[tuple[int, str, Image.Image]]:
    """The frames of a movie file, as `_open_frames` gives them.

    path: of the file. name: of the movie, for messages. Raises _BadFilm.
    """
    cv2 = _require_opencv(name)
    movie = cv2.VideoCapture(str(path))
    try:
        if not movie.isOpened():
            raise _BadFilm(f"{name} is not a video that OpenCV can read: {_EXTRACT}")
        for number in itertools.count(1):
            there, picture = movie.read()
            if not there:
                return
            yield number, f"{name} frame {number}", Image.fromarray(np.ascontiguousarray(picture[..., ::-1]))
    except cv2.error as error:
        raise _BadFilm(f"{name}: OpenCV fails on it: {_EXTRACT}") from error
    finally:
        movie.release()
