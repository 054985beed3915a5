"""optuna-dashboard over a run's studies, on loopback."""

from __future__ import annotations

from kdsearch.errors import UserError
from kdsearch.runs.address import storage_url
from kdsearch.runs.ledger import open_storage
from kdsearch.runs.run import Run


def serve(run_dir: str, port: int) -> None:
    """Serve until interrupted.

    Raises:
        UserError: optuna-dashboard is not installed, or the port is taken.
    """
    try:
        import optuna_dashboard
    except ImportError:
        raise UserError("dashboard: optuna-dashboard is not installed; pip install 'kdsearch[dashboard]'") from None
    run = Run(run_dir)
    storage = open_storage(storage_url(run.config, run.path))
    try:
        optuna_dashboard.run_server(storage, host="127.0.0.1", port=port)
    except OSError as error:
        raise UserError(f"--port: cannot listen on 127.0.0.1:{port}: {error.strerror}") from None
