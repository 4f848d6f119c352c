"""Triton's Python backend, as its models see it: ``triton_python_backend_utils`` and around it."""
