"""What following a registry costs: swaps under load, and polling while nothing changes."""
