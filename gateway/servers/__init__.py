"""Sockets, HTTP and gRPC. They hand bytes to the codecs and write bytes back."""

import os

# Read when grpc is imported: its core would write lines of its own about what clients send.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
