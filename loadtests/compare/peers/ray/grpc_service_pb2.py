"""Messages are pickled from process to process under the module name that protoc gave them."""

from tritonclient.grpc.service_pb2 import *  # noqa: F403
