"""Makes the mlflow library quiet; imported before it, by whoever imports it.

MLflow sends usage data from a thread of its own and sets up logging to stderr, unless its
environment variables say otherwise; a server wants neither. A value that is set already stays.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import logging
import os
import warnings
from typing import Any, Final

from gateway.errors import ModelLoadError

QUIET: Final = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_CONFIGURE_LOGGING": "false"}
MISSING: Final = "mlflow is not installed; type: pip install 'sluicegate[mlflow]'"
PACKAGES: Final = ("mlflow", "mlflow-skinny")
LOGGERS: Final = ("mlflow.pyfunc", "mlflow.models.utils", "mlflow.utils.requirements_utils")
MOST_MESSAGES: Final = 1000

for _name, _value in QUIET.items():
    os.environ.setdefault(_name, _value)


class Once(logging.Filter):
    """Lets each message through once, on one line: MLflow repeats some at each request."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether `record` is new."""
        text = " ".join(record.getMessage().split())
        if text in self._seen or len(self._seen) >= MOST_MESSAGES:
            return False
        self._seen.add(text)
        record.msg, record.args = text, None
        return True


_once: Final = Once()


def installed_version() -> str:
    """Of mlflow, or of its smaller distribution; empty where neither is installed."""
    if not importable():
        return ""
    for name in PACKAGES:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return ""


def importable() -> bool:
    """Whether there is an mlflow; it is not imported."""
    try:
        return importlib.util.find_spec("mlflow") is not None
    except ValueError:  # a stand-in for a module that must not be imported
        return False


def import_pyfunc() -> Any:
    """The module ``mlflow.pyfunc``. Raises `ModelLoadError` that says what to install."""
    try:
        with warnings.catch_warnings():  # it warns of itself while it is imported
            warnings.simplefilter("ignore")
            module = importlib.import_module("mlflow.pyfunc")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in ("mlflow", "pandas", "numpy"):
            raise ModelLoadError(MISSING) from None
        raise ModelLoadError(
            f"mlflow cannot be imported: {error}; type: pip install 'sluicegate[mlflow]'"
        ) from error
    except ImportError as error:
        cause = " ".join(str(error).split())
        raise ModelLoadError(f"mlflow cannot be imported: {cause}") from error
    # For those who save models; said again for each that is loaded.
    warnings.filterwarnings("ignore", message=".*Add type hints to the `predict` method")
    for name in LOGGERS:
        logger = logging.getLogger(name)
        if _once not in logger.filters:
            logger.addFilter(_once)
    return module
