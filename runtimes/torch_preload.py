"""Imports PyTorch as the gateway wants it, for processes that wait to take over from another."""

from __future__ import annotations

import importlib

from runtimes.torch_threads import waiting_passively

with waiting_passively():
    importlib.import_module("torch")
