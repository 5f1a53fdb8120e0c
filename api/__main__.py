"""``python -m api``: serve the API at the address of the settings."""

import sys

import uvicorn

from api.app import create_app
from service import logs
from service.keys import why_not_listen
from service.parent import stop_with_parent
from service.settings import Settings


def main() -> int:
    """Serve until told to stop, unless that cannot be done or nobody could use it; the status to exit with."""
    try:
        settings = Settings()
        logs.configure(settings)
    except ValueError as error:
        print(f"settings: {error}", file=sys.stderr)
        return 1
    stop_with_parent()
    if (reason := why_not_listen(settings)) is not None:
        print(reason, file=sys.stderr)
        return 1
    app = create_app(settings)
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            host=settings.host,
            port=settings.port,
            log_config=None,  # ours, which is configured already
            # A line per request of a polling client would bury what matters.
            access_log=False,
            timeout_graceful_shutdown=5,
        )
    )
    app.state.is_stopping = lambda: server.should_exit  # streams end by themselves
    server.run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
