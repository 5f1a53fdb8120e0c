"""``python -m api``: serve the API at the address of the settings."""

import uvicorn

from api.app import create_app
from service.parent import stop_with_parent
from service.settings import Settings


def main() -> None:
    """Serve until told to stop."""
    settings = Settings()
    stop_with_parent()
    # The access log stays off: a line per request of a polling client would bury what matters.
    uvicorn.run(
        create_app(settings),
        host=settings.host,
        port=settings.port,
        log_level=settings.log_level.lower(),
        access_log=False,
        timeout_graceful_shutdown=5,
    )


if __name__ == "__main__":
    main()
