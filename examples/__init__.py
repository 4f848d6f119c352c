"""Example models for Sluicegate: their data, their training, and their model folders."""
