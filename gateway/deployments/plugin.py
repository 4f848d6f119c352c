"""What MLflow loads for the target ``sluicegate``: one client class and two functions."""

from gateway.deployments.client import SluicegateDeployments
from gateway.deployments.local import run_local
from gateway.deployments.words import target_help

__all__ = ["SluicegateDeployments", "run_local", "target_help"]
