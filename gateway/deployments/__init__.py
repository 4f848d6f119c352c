"""The ``mlflow deployments`` plugin: target ``sluicegate``. Needs mlflow, and not the gateway."""
