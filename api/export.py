"""All trials of a search as a file."""

from typing import Any

from fastapi import APIRouter
from fastapi.responses import StreamingResponse

from api.auth import Reader
from api.deps import AppDatabase, SearchId
from api.errors import responses
from service.export import Format, export, media_type

router = APIRouter(prefix="/v1", tags=["export"])

_FILES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Every trial, in order of its number, excluded ones marked",
        "content": {
            "text/csv": {"schema": {"type": "string"}},
            "application/jsonl": {"schema": {"type": "string"}},
            "application/vnd.apache.parquet": {"schema": {"type": "string", "format": "binary"}},
        },
    }
}


@router.get(
    "/searches/{search_id}/export",
    response_class=StreamingResponse,
    responses={**responses(404, 422), **_FILES},
)
def export_search(
    search_id: SearchId, database: AppDatabase, caller: Reader, format: Format = "csv"
) -> StreamingResponse:
    """All trials of a search in one file, whatever their state: CSV, JSON Lines or Parquet."""
    pieces = export(database, search_id, format)
    file = f'attachment; filename="search-{search_id}.{format}"'
    return StreamingResponse(pieces, media_type=media_type(format), headers={"Content-Disposition": file})
