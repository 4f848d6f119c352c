"""A real implementation of S3 (moto's server) on the loopback interface, as a process.

``python -m tests.support.s3 PORT`` is the server; it forgets everything when it ends.
"""

from __future__ import annotations

import subprocess
import sys
import urllib.request
from typing import Any, Self

from tests.support.gateway import ROOT

ADMIN = {"aws_access_key_id": "admin", "aws_secret_access_key": "secret"}
READ_ONLY = """{"Version": "2012-10-17", "Statement": [
  {"Effect": "Allow", "Action": ["s3:GetObject", "s3:ListBucket"], "Resource": "*"}]}"""
ANYTHING = """{"Version": "2012-10-17", "Statement": [
  {"Effect": "Allow", "Action": "*", "Resource": "*"}]}"""


class S3:
    """The server, with one bucket. `port` is taken again after a restart."""

    def __init__(self, bucket: str = "models") -> None:
        self.bucket = bucket
        self.port = 0
        self.start()

    def start(self) -> None:
        """Starts the server, empty but for the bucket."""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.s3", str(self.port)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=ROOT,
        )  # fmt: skip
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())
        self.client = self.make_client("s3", **ADMIN)
        self.client.create_bucket(Bucket=self.bucket)

    def kill(self) -> None:
        """Ends the server; what it held is lost."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def environment(self, key: str = "admin", secret: str = "secret") -> dict[str, str]:
        """What a user of the bucket sets."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": key,
            "AWS_SECRET_ACCESS_KEY": secret,
            "AWS_REGION": "us-east-1",
        }

    def make_client(self, service: str, **credentials: str) -> Any:
        import boto3

        return boto3.client(service, endpoint_url=self.url, region_name="us-east-1", **credentials)

    def put(self, key: str, content: bytes | str) -> str:
        """Puts an object and returns its ETag."""
        data = content.encode() if isinstance(content, str) else content
        return str(self.client.put_object(Bucket=self.bucket, Key=key, Body=data)["ETag"])

    def get(self, key: str) -> str:
        body: bytes = self.client.get_object(Bucket=self.bucket, Key=key)["Body"].read()
        return body.decode()

    def delete(self, key: str) -> None:
        self.client.delete_object(Bucket=self.bucket, Key=key)

    def read_only(self) -> dict[str, str]:
        """From now on credentials count; returns the environment of those that may only read."""
        iam = self.make_client("iam", **ADMIN)
        keys = []
        for name, policy in (("reader", READ_ONLY), ("writer", ANYTHING)):
            iam.create_user(UserName=name)
            iam.put_user_policy(UserName=name, PolicyName="it", PolicyDocument=policy)
            key = iam.create_access_key(UserName=name)["AccessKey"]
            keys.append((key["AccessKeyId"], key["SecretAccessKey"]))
        request = urllib.request.Request(
            f"{self.url}/moto-api/reset-auth", b"0", {"content-type": "text/plain"}
        )
        urllib.request.urlopen(request).close()
        own, secret = keys[1]
        self.client = self.make_client("s3", aws_access_key_id=own, aws_secret_access_key=secret)
        return self.environment(*keys[0])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.kill()


def main(port: int) -> None:
    """Serves until standard input is closed."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    server.start()
    _, bound = server.get_host_and_port()
    print(bound, flush=True)
    sys.stdin.buffer.read()
    server.stop()


if __name__ == "__main__":
    main(int(sys.argv[1]))
