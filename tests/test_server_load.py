"""A thousand requests from fifty clients against a queue of sixteen, over real sockets."""

import asyncio
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator

import httpx2
import psutil
import pytest

CLIENTS, REQUESTS, WARM_UP = 50, 1000, 300
ROOM = 4.0
"""MiB that the server's memory may grow by: half of what the jobs would take if they stayed, and a
tenth of what their images would.
"""


@pytest.fixture
def server(t2i_env: dict[str, str]) -> Iterator[tuple[str, psutil.Process]]:
    """The address of a server in a process of its own, with a queue of 16, and that process."""
    command = [sys.executable, "-m", "tests.fakes.serving"]
    env = t2i_env | {"PAUSE": "0.002"}
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip(), psutil.Process(process.pid)
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0


async def ask(url: str, requests: int) -> Counter[int]:
    """The statuses that fifty clients got for so many requests, without a pause between them."""
    left = iter(range(requests))
    statuses: Counter[int] = Counter()
    limits = httpx2.Limits(max_connections=CLIENTS, max_keepalive_connections=CLIENTS)

    async def client(http: httpx2.AsyncClient) -> None:
        for number in left:
            answer = await http.post("/predict", json={"prompt": f"image {number}"})
            statuses[answer.status_code] += 1
            if answer.status_code == 200:
                assert answer.content.startswith(b"\xff\xd8")
            else:
                assert int(answer.headers["Retry-After"]) >= 1

    async with (
        httpx2.AsyncClient(base_url=url, limits=limits, timeout=120) as http,
        asyncio.TaskGroup() as group,
    ):
        for _ in range(CLIENTS):
            group.create_task(client(http))
    return statuses


def test_every_request_is_answered_and_memory_stays(server: tuple[str, psutil.Process]) -> None:
    url, process = server
    asyncio.run(ask(url, WARM_UP))
    before = process.memory_info().rss
    statuses = asyncio.run(ask(url, REQUESTS))
    grown = (process.memory_info().rss - before) / 2**20
    assert statuses.keys() == {200, 429}
    assert statuses.total() == REQUESTS
    assert grown < ROOM
    metrics = httpx2.get(f"{url}/metrics").text
    assert "t2i_jobs_waiting 0.0" in metrics
    assert "t2i_images_running 0.0" in metrics
