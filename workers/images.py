"""Images as arrays, in two parts: to train on, and to score with."""

# N images, R rows, S columns, C channels

import hashlib
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import numpy.typing as npt

from einlayers.errors import FieldError
from search.corpora import IMAGE_BYTES, locate_images
from search.proxies.images import HubImages, ImageFiles, Images
from workers.cache import Arrays, GrowingArray, prepared, prepared_by_one, save
from workers.hugging_face import fingerprint, stream
from workers.workspace import Workspace

HELD_OUT_DIGITS = 397
"""How many of the 1,797 digits are held out."""

_HELD_OUT_OF_5M = 10_000


@dataclass(frozen=True, slots=True)
class ImageSet:
    """Images ``(N, R, S, C)`` by the level of each pixel, and their classes ``(N,)``."""

    levels_NRSC: npt.NDArray[np.uint8]
    classes_N: npt.NDArray[np.unsignedinteger]

    def __len__(self) -> int:
        return len(self.classes_N)


def load_images(images: Images, workspace: Workspace) -> tuple[ImageSet, ImageSet]:
    """The images to train on, and those held out; files are prepared on first use.

    Raises:
        FieldError: files of the user's own are not where they may be, or hold something else than they should; or a data set
            of Hugging Face is not what it should be.
    """
    if isinstance(images, HubImages):
        return _from_hub(images, workspace)
    if isinstance(images, ImageFiles):
        return _from_files(images, locate_images(images, workspace.corpora_dir), workspace)
    # Here and not above: it takes a second to import, and most proxies need none of it.
    from sklearn.datasets import load_digits  # type: ignore[import-untyped]  # it ships no types

    digits = load_digits()
    whole = ImageSet(digits.images[..., None].astype(np.uint8), digits.target.astype(np.uint8))
    # Neighbours in the file were written by one hand: a shuffled split has all hands in both parts, always the same.
    order = np.random.default_rng(0).permutation(len(whole))
    held_out, train = order[:HELD_OUT_DIGITS], order[HELD_OUT_DIGITS:]
    return _part(whole, train), _part(whole, held_out)


def _from_files(images: ImageFiles, paths: Sequence[Path], workspace: Workspace) -> tuple[ImageSet, ImageSet]:
    stats = [path.stat() for path in paths]
    listing = [f"{p} {s.st_size} {s.st_mtime_ns}" for p, s in zip(paths, stats, strict=True)]
    cache = _cache_dir(workspace, images.kind, [str(images), *listing])  # type: ignore[attr-defined]  # each has one
    return _parts_of(prepared(cache, lambda folder: save(folder, _read(images, paths))))


def _from_hub(images: HubImages, workspace: Workspace) -> tuple[ImageSet, ImageSet]:
    cache = _cache_dir(workspace, images.kind, fingerprint(images, workspace))

    def write(folder: Path) -> None:
        # The smaller part first: what is wrong with a data set shows after minutes there, not after hours.
        for part in ("held_out", "train"):
            _write_part(images, part, workspace, folder)

    return _parts_of(prepared_by_one(cache, write))


def _cache_dir(workspace: Workspace, kind: str, fingerprint: Sequence[str]) -> Path:
    digest = hashlib.sha256("\n".join(fingerprint).encode()).hexdigest()[:16]
    return workspace.cache_dir / "images" / f"{kind}-{digest}"


def _parts_of(arrays: Arrays) -> tuple[ImageSet, ImageSet]:
    train, held_out = (ImageSet(arrays[f"{part}_levels"], arrays[f"{part}_classes"]) for part in ("train", "held_out"))
    return train, held_out


def _write_part(images: HubImages, part: str, workspace: Workspace, folder: Path) -> None:
    with (
        GrowingArray(folder / f"{part}_levels.npy", np.uint8, (images.size, images.size, images.channels)) as levels,
        GrowingArray(folder / f"{part}_classes.npy", np.uint16) as classes,
    ):
        for image, label in stream(images, f"{part}_split", ("image_field", "label_field"), workspace):
            levels.append(_decoded(image, images)[None])
            classes.append(_checked_class(label, images)[None])
        if len(classes) == 0:
            raise FieldError(f"{part}_split", expected="images", got=f"none in {getattr(images, f'{part}_split')}")


def _decoded(image: object, images: HubImages) -> npt.NDArray[np.uint8]:
    """An image ``(R, S, C)`` of the file whose bytes these are: upright, in colours, scaled and cut to a square."""
    from PIL import Image, ImageOps

    if not isinstance(image, bytes):
        expected, got = "a field of images", f"{images.image_field} of {type(image).__name__}"
        raise FieldError("image_field", expected=expected, got=got)
    square = (images.size, images.size)
    try:
        with Image.open(BytesIO(image)) as file:
            file.draft("RGB", square)  # a JPEG is scaled by powers of two while it is read, at a fraction of the time
            upright = ImageOps.exif_transpose(file).convert("RGB")
        levels_RSC: npt.NDArray[np.uint8] = np.asarray(ImageOps.fit(upright, square, Image.Resampling.BILINEAR))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        got = f"{type(error).__name__}: {error}"
        raise FieldError("image_field", expected="images that Pillow can read", got=got) from error
    return levels_RSC


def _checked_class(label: object, images: HubImages) -> npt.NDArray[np.uint16]:
    if not isinstance(label, int) or isinstance(label, bool) or not 0 <= label < images.num_classes:
        expected = f"a field of classes from 0 to {images.num_classes - 1}"
        raise FieldError("label_field", expected=expected, got=f"{label!r} in {images.label_field}")
    return np.array(label, dtype=np.uint16)


def _read(images: ImageFiles, paths: Sequence[Path]) -> dict[str, npt.NDArray[np.unsignedinteger]]:
    files = [_read_archive(path) if images.label_bytes is None else _read_records(path, images) for path in paths]
    for path, file in zip(paths, files, strict=True):
        if len(file) and file.classes_N.max() >= images.num_classes:
            expected = f"classes from 0 to {images.num_classes - 1} in {path.name}"
            raise FieldError("images", expected=expected, got=int(file.classes_N.max()))
    levels_NRSC = np.concatenate([_averaged(file.levels_NRSC, images.size) for file in files])
    classes_N = np.concatenate([file.classes_N for file in files])
    border = len(classes_N) - (_HELD_OUT_OF_5M if images.label_bytes is None else len(files[-1]))
    if border <= 0:
        raise FieldError("images", expected=f"more than {_HELD_OUT_OF_5M} images", got=len(classes_N))
    return {
        "train_levels": levels_NRSC[:border],
        "train_classes": classes_N[:border],
        "held_out_levels": levels_NRSC[border:],
        "held_out_classes": classes_N[border:],
    }


def _read_records(path: Path, images: ImageFiles) -> ImageSet:
    """The binary version: for each image its classes, the last of which is the finest, and its pixels colour by colour."""
    assert images.label_bytes is not None, "archives have no records"
    records = np.fromfile(path, dtype=np.uint8).reshape(-1, images.label_bytes + IMAGE_BYTES)
    pixels_NCRS = records[:, images.label_bytes :].reshape(-1, 3, 32, 32)
    return ImageSet(pixels_NCRS.transpose(0, 2, 3, 1), records[:, images.label_bytes - 1])


def _read_archive(path: Path) -> ImageSet:
    """An archive of the arrays X ``(N, 32, 32, 3)`` and Y ``(N,)``; nothing in it is run."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            levels_NRSC, classes_N = archive["X"], archive["Y"]
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
        expected = f"{path.name} to be an archive of the arrays X and Y"
        raise FieldError("images", expected=expected, got=f"{type(error).__name__}: {error}") from error
    if levels_NRSC.dtype != np.uint8 or levels_NRSC.shape != (len(classes_N), 32, 32, 3):
        expected = f"X of {path.name} to be bytes of the shape ({len(classes_N)}, 32, 32, 3)"
        raise FieldError("images", expected=expected, got=f"{levels_NRSC.dtype} {levels_NRSC.shape}")
    return ImageSet(levels_NRSC, classes_N.astype(np.uint8))


def _averaged(levels_NRSC: npt.NDArray[np.uint8], size: int) -> npt.NDArray[np.uint8]:
    """Images of ``size`` x ``size`` pixels, each the rounded mean of a square of the original ones."""
    if levels_NRSC.shape[1] == size:
        return levels_NRSC
    times = levels_NRSC.shape[1] // size
    squares = levels_NRSC.reshape(-1, size, times, size, times, levels_NRSC.shape[3])
    averaged_NRSC: npt.NDArray[np.uint8] = np.rint(squares.mean(axis=(2, 4), dtype=np.float32)).astype(np.uint8)
    return averaged_NRSC


def _part(images: ImageSet, which: npt.NDArray[np.int64]) -> ImageSet:
    return ImageSet(images.levels_NRSC[which], images.classes_N[which])
