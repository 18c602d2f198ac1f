"""The fake of Vertex AI, proved by Google's own client: it drives a whole life against it."""

import base64
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fakes.vertex import PROJECT, REGION, running_vertex

LIFE = """
import logging, sys
from google.auth.credentials import AnonymousCredentials
from google.cloud import aiplatform

logging.disable(logging.INFO)
aiplatform.init(
    project="{project}", location="{region}", credentials=AnonymousCredentials(),
    api_transport="rest", api_endpoint=sys.argv[1],
)
model = aiplatform.Model.upload(
    display_name="painter", serving_container_image_uri="europe-docker.pkg.dev/x/y/z",
    serving_container_predict_route="/predict", serving_container_health_route="/health",
    serving_container_ports=[8080], labels={{"managed-by": "test"}},
)
endpoint = aiplatform.Endpoint.create(display_name="easel", labels={{"managed-by": "test"}})
endpoint.deploy(
    model, machine_type="g2-standard-4", accelerator_type="NVIDIA_L4", accelerator_count=1,
    min_replica_count=1, max_replica_count=2,
)
(deployed,) = endpoint.list_models()
assert deployed.dedicated_resources.machine_spec.accelerator_count == 1, deployed
answer = endpoint.predict(instances=[{{"prompt": "a star", "seed": 1}}, {{"prompt": "a moon"}}])
print(*answer.predictions, answer.deployed_model_id == deployed.id, file=sys.stdout)
(listed,) = aiplatform.Endpoint.list(filter='labels.managed-by="test"')
assert listed.name == endpoint.name
assert not aiplatform.Endpoint.list(filter='labels.managed-by="other"')
endpoint.update(labels={{"managed-by": "nobody"}})
endpoint.undeploy_all()
endpoint.delete()
model.delete()
"""


def test_google_s_own_client_lives_a_whole_life(tmp_path: Path, t2i_env: dict[str, str]) -> None:
    pytest.importorskip("google.cloud.aiplatform_v1", exc_type=ImportError)
    with running_vertex(tmp_path) as vertex:
        vertex.require_token = False
        done = subprocess.run(
            [
                sys.executable,
                "-W",
                "ignore",
                "-c",
                LIFE.format(project=PROJECT, region=REGION),
                vertex.url,
            ],
            env=t2i_env,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        star, moon, told = done.stdout.split()
        assert base64.b64decode(star).startswith(b"\x89PNG")
        assert star != moon
        assert told == "True"
        assert vertex.predictions[0]["instances"][0] == {"prompt": "a star", "seed": 1.0}
        assert vertex.left() == {}
        assert len(vertex.spans) == 1
        assert vertex.spans[0].replicas == 1
