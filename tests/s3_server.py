"""A server of S3's protocol on loopback (moto's), with failures on demand."""

import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

Environ = dict[str, Any]
StartResponse = Callable[..., Any]


class S3Server:
    """Holds one bucket, `images`.

    `answer` gives a status for a request by its method and path, or `None` to let S3 answer;
    `asked` are the requests. While `cut`, every connection ends without an answer.
    """

    bucket = "images"

    def __init__(self) -> None:
        import boto3
        from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
        from werkzeug.serving import WSGIRequestHandler, make_server

        class QuietHandler(WSGIRequestHandler):
            """Logs nothing."""

            def log(self, type: str, message: str, *args: object) -> None:
                """Log nothing."""

        self.answer: Callable[[str, str], int | None] = lambda method, path: None
        self.asked: list[tuple[str, str]] = []
        self.cut = False
        self._app = DomainDispatcherApplication(create_backend_app)
        self._server = make_server(
            "127.0.0.1", 0, self._respond, threaded=True, request_handler=QuietHandler
        )
        self._server.daemon_threads = True  # type: ignore[attr-defined]
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self.env = {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        self._client = boto3.client(
            "s3",
            endpoint_url=self.url,
            aws_access_key_id="testing",
            aws_secret_access_key="testing",  # noqa: S106
            region_name="us-east-1",
        )
        self._client.create_bucket(Bucket=self.bucket)

    def close(self) -> None:
        """Stop serving."""
        self._client.close()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def objects(self, folder: str) -> dict[str, bytes]:
        """Every object in a folder, by its name there."""
        pages = self._client.get_paginator("list_objects_v2").paginate(
            Bucket=self.bucket, Prefix=f"{folder}/"
        )
        keys = [found["Key"] for page in pages for found in page.get("Contents", [])]
        return {key.removeprefix(f"{folder}/"): self.get(key) for key in keys}

    def get(self, key: str) -> bytes:
        """The content of an object."""
        data: bytes = self._client.get_object(Bucket=self.bucket, Key=key)["Body"].read()
        return data

    def put(self, key: str, data: bytes) -> None:
        """Write an object."""
        self._client.put_object(Bucket=self.bucket, Key=key, Body=data)

    def _respond(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        self.asked.append((method, path))
        if self.cut:
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            raise ConnectionError("the network was cut")
        if (status := self.answer(method, path)) is not None:
            code = {403: "AccessDenied", 503: "SlowDown"}.get(status, "InternalError")
            body = f"<Error><Code>{code}</Code><Message>as told</Message></Error>".encode()
            headers = [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))]
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start_response(f"{status} as told", headers)
            return [body] if method != "HEAD" else []
        found: Iterator[bytes] = self._app(environ, start_response)
        return found
