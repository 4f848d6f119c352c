"""Models that are Python files: a small class of our own kind, or Triton's Python backend's."""

from runtimes.python.runtime import PythonRuntime

__all__ = ["PythonRuntime"]
