"""Small data sets as the Hub has them: folders of files, below one that stands for what was fetched beforehand."""

import json
from collections.abc import Iterable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa  # type: ignore[import-untyped]  # it ships no types
import pyarrow.parquet as pq  # type: ignore[import-untyped]  # it ships no types
from PIL import Image


def write_lines(hub_dir: Path, name: str, rows: Iterable[Mapping[str, object]], split: str = "train") -> Path:
    """A split as a file of JSON lines."""
    path = hub_dir / name / f"{split}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_rows(hub_dir: Path, name: str, columns: Mapping[str, object], split: str = "train") -> Path:
    """A split as a Parquet file."""
    path = hub_dir / name / "data" / f"{split}-00000-of-00001.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    _write_table(pa.table(dict(columns)), path)
    return path


def write_images(
    hub_dir: Path, name: str, images: Iterable[bytes], labels: Iterable[object], split: str = "train"
) -> Path:
    """A split of encoded images as a Parquet file, as the library itself writes them."""
    cells = [{"bytes": image, "path": None} for image in images]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    path = write_rows(
        hub_dir, name, {"image": pa.array(cells, kind), "label": pa.array(list(labels) or np.zeros(0, np.int64))}, split
    )
    table = pq.read_table(path)
    features = {
        "image": {"_type": "Image"},
        "label": {"dtype": str(table.schema.field("label").type), "_type": "Value"},
    }
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    _write_table(table.replace_schema_metadata(metadata), path)
    return path


def png(levels: npt.NDArray[np.uint8], **options: Any) -> bytes:
    """An image ``(R, S)`` or ``(R, S, C)`` as the bytes of a file."""
    file = BytesIO()
    Image.fromarray(levels).save(file, format="PNG", **options)
    return file.getvalue()


def _write_table(table: pa.Table, path: Path) -> None:
    with pq.ParquetWriter(path, table.schema) as writer:
        if len(table):  # the library cannot read groups of no rows
            writer.write_table(table)
