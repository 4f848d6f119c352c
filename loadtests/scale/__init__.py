"""What size costs: models, connections, payloads, batches, versions, metrics; and overload."""
