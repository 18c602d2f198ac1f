"""How the results of workers come from a Ray that was started on this machine."""

import subprocess
import sys

import pytest

from t2i_cli.backends.ray import connection

pytest.importorskip("ray")
pytestmark = pytest.mark.full

PROGRAM = """
import sys
from t2i_cli.backends.local.options import LocalOptions
from t2i_cli.backends.ray import connection
from t2i_cli.backends.ray.options import RayOptions

connection.connect_ray(RayOptions(local=LocalOptions(device="cpu"), workers=1))
ray = connection.import_ray()

@ray.remote(num_cpus=0)
class Worker:
    def image(self, size):
        return bytes(size)

worker = Worker.remote()
for size in map(int, sys.argv[1:]):
    result = worker.image.remote(size)
    ray.wait([result])
    print(len(ray.experimental.get_object_locations([result])[result]["node_ids"]))
ray.shutdown()
"""


def test_images_do_not_pass_through_the_object_store() -> None:
    sizes = [300_000, 3_000_000, connection.DIRECT_RESULT_BYTES + 1]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *map(str, sizes)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["0", "0", "1"]
