"""Figures of the runtimes: what each costs beside the same work without the gateway."""
