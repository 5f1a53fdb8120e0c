"""Data sets of Hugging Face as streams of rows: read as data, of which nothing is run and nothing lies elsewhere.

Where ``Workspace.hub_dir`` has a folder ``OWNER/NAME``, that is read; otherwise the Hub is asked. What the data set is to
blame for is a ``FieldError``; a network that fails is not, and whatever it raises is left to rise.
"""

from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from einlayers.errors import FieldError
from search.proxies.char_lm import HubCorpus
from search.proxies.images import HubImages
from workers.workspace import Workspace

LOADERS = ("arrow", "csv", "imagefolder", "json", "parquet", "text", "webdataset")
"""The library's loaders that read rows and nothing else; others open catalogues and links of their own."""

_BAD_CONFIG = ("BuilderConfig", "Config name is missing")
_BAD_FILES = ("Dataset scripts are no longer supported", "Data files don't belong")
"""How the library's messages begin about what no other attempt would mend; it has no errors of their own for them."""

HubData = HubCorpus | HubImages


def stream(data: HubData, split: str, fields: tuple[str, ...], workspace: Workspace) -> Iterator[tuple[Any, ...]]:
    """The values of some fields, of every row of a split, in order; images are the bytes of their files.

    ``split`` and ``fields`` are the attributes of ``data`` that name them.

    Raises:
        FieldError: the library is not installed, or there is no such data set, configuration, split or field, or it is none
            that is read.
    """
    builder, root = _open(data, workspace)
    splits, name = [str(each) for each in builder.config.data_files], getattr(data, split)
    if name not in splits:
        raise FieldError(split, expected=f"one of the splits {', '.join(splits)}", got=name)
    rows = builder.as_streaming_dataset(split=name)
    # Where the library does not know the types of the fields, it decodes nothing as it is.
    for row in rows.decode(False) if rows.features else rows:
        yield tuple(_content(_value(data, field, row), root) for field in fields)


def fingerprint(data: HubData, workspace: Workspace) -> list[str]:
    """What tells prepared copies apart: the settings and, where there is a folder, the state of its files."""
    folder = _folder(data, workspace)
    files = sorted(path for path in folder.rglob("*") if path.is_file()) if folder else []
    stats = [path.stat() for path in files]
    return [str(data), *(f"{p} {s.st_size} {s.st_mtime_ns}" for p, s in zip(files, stats, strict=True))]


def _folder(data: HubData, workspace: Workspace) -> Path | None:
    folder = workspace.hub_dir and (workspace.hub_dir / data.name).resolve()
    return folder if folder and folder.is_dir() else None


def _open(data: HubData, workspace: Workspace) -> tuple[Any, str]:
    """The library's builder, and how the places of all that belongs to the data set begin."""
    datasets = _library(data)
    folder = _folder(data, workspace)
    # With this prefix the library looks nowhere but on the Hub, and a folder of that name in the working directory is none.
    place = str(folder) if folder else f"hf://datasets/{data.name}"
    missing = (
        datasets.exceptions.DatasetNotFoundError,
        datasets.exceptions.DataFilesNotFoundError,
        datasets.data_files.EmptyDatasetError,
    )
    try:
        # A cache of our own: it stays empty, so that no forgotten copy is taken where the Hub does not answer.
        cache = str(workspace.cache_dir / "hugging_face")
        builder = datasets.load_dataset_builder(place, data.config, cache_dir=cache)
    except missing as error:
        expected = f"a data set with files, open to all or to the HF_TOKEN of the worker: {_in_a_line(error)}"
        raise FieldError("name", expected=expected, got=data.name) from error
    except (ValueError, RuntimeError) as error:
        if str(error).startswith(_BAD_CONFIG):
            expected = f"a configuration of {data.name}: {_in_a_line(error)}"
            raise FieldError("config", expected=expected, got=data.config) from error
        if str(error).startswith(_BAD_FILES):
            expected = f"a data set that is rows in files of its own, and no program: {_in_a_line(error)}"
            raise FieldError("name", expected=expected, got=data.name) from error
        raise
    root = f"{folder}/" if folder else f"{place}@"
    if builder.name not in LOADERS:
        expected = f"a data set that is read by one of the loaders {', '.join(LOADERS)}"
        raise FieldError("name", expected=expected, got=f"{data.name}, read by {builder.name}")
    for path in chain.from_iterable(builder.config.data_files.values()):
        _require_inside(path, root)
    return builder, root


def _library(data: HubData) -> Any:
    try:
        # Here and not above: it takes two seconds to import, and few workers need it.
        import datasets  # type: ignore[import-untyped]  # it ships no types
        import PIL  # noqa: F401
    except ImportError as error:
        expected = "a worker with the libraries for data sets of Hugging Face: pip install 'einsearch[huggingface]'"
        raise FieldError("name", expected=expected, got=f"{data.name} and no {error.name}") from error
    return datasets


def _value(data: HubData, field: str, row: Mapping[str, Any]) -> Any:
    name = getattr(data, field)
    if name not in row:
        raise FieldError(field, expected=f"one of the fields {', '.join(sorted(row))}", got=name)
    return row[name]


def _content(value: Any, root: str) -> Any:
    """Of a file the bytes, which lie in the row or, as part of the data set, beside it; other values as they are."""
    if not (isinstance(value, dict) and value.keys() == {"bytes", "path"}):
        return value
    if value["bytes"] is not None or value["path"] is None:
        return value["bytes"]
    from datasets.utils.file_utils import xopen  # type: ignore[import-untyped]  # it ships no types

    _require_inside(value["path"], root)
    with xopen(value["path"], "rb") as file:
        return file.read()


def _require_inside(path: str, root: str) -> None:
    """A data set could name a file of the worker, or an address in its network, as one of its own."""
    *members, place = path.split("::")
    inside = place.startswith(root) and ".." not in place.split("/")
    if not inside or not all(member.startswith("zip://") for member in members):
        raise FieldError("name", expected="a data set whose files are its own", got=path)


def _in_a_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
