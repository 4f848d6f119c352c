"""Runtimes: the plugins that load artifacts and run them."""
