"""What ``mlflow deployments help -t sluicegate`` prints."""

from __future__ import annotations

from typing import Final

HELP: Final = """\
Target 'sluicegate': models on a running Sluicegate gateway.

Target URIs
  sluicegate                      the gateway in SLUICE_URL, else http://127.0.0.1:8080
  sluicegate:/http://HOST:PORT    that gateway (also https://)
The gateway's admin.token, if it has one, goes into the environment variable SLUICE_TOKEN.

Model URIs
  models:/NAME/VERSION, models:/NAME@ALIAS, models:/m-ID, runs:/RUN/PATH: in the registry that
  the gateway knows; s3://, gs://, az://, hf://, https://, oci://; a path, where the gateway is
  on this machine. (What log_model of MLflow 3 returned is a models:/m-ID.)

Config (-C KEY=VALUE) of create and update
  traffic.VERSION=WEIGHT   split over versions; 'new' is the version that comes with the URI, and
                           alone there (traffic.new=10) it leaves the others the rest
  weights={"1": 90, "2": 10}   the same as one JSON object
  stable=VERSION           takes the share of versions that are not ready
  labels.LABEL=VERSION     names for versions
  sticky.header=NAME, sticky.parameter=NAME   where the key is that keeps a caller on a version
  settings.KEY=VALUE       a key of model.yaml, such as settings.max_batch_size=8 or
                           settings.batching.max_delay_us=500
  message=TEXT             why, for the gateway's history
An update with a new URI adds a version; without 'traffic' it gets everything once it is ready.

A deployment is a model of the gateway, and an endpoint is the same: list-endpoints and
get-endpoint show every model, update-endpoint sets its split, predict takes either.

run-local starts a gateway with the model in the foreground. Its config: http=HOST:PORT,
grpc=HOST:PORT, trust.code=SOURCES, settings.KEY=VALUE.
"""


def target_help() -> str:
    """Help on this target."""
    return HELP
