"""Google's PyTorch containers, in which TorchServe runs an archive with a handler of t2i's."""

import json
import zipfile
from dataclasses import replace

from t2i_cli.errors import InputError
from t2i_cli.model_spec import ModelSpec
from t2i_cli.models import catalog
from t2i_cli.vertex.model_source import ModelSource

ARCHIVE = "model.mar"
"""The only name under which Google's PyTorch containers look for an archive."""
MANIFEST = "MAR-INF/MANIFEST.json"
WARNING = "Google withdraws its PyTorch containers on 14 January 2027."

_IMAGE = "us-docker.pkg.dev/vertex-ai/prediction/pytorch-{}.2-4:latest"


def archived_source(source: ModelSource) -> ModelSource:
    """The same, with the model that the archive's manifest names. Raises InputError."""
    folder = source.folder
    if not folder or [path.name for path in folder.iterdir()] != [ARCHIVE]:
        raise InputError(
            f"TorchServe takes a folder with {ARCHIVE} and nothing else, or a gs:// one.",
            hint="`t2i remote package` makes it.",
        )
    try:
        with zipfile.ZipFile(folder / ARCHIVE) as archive:
            manifest = json.loads(archive.read(MANIFEST))
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise InputError(f"{folder / ARCHIVE} is no archive of TorchServe's.") from error
    model = manifest.get("model") if isinstance(manifest, dict) else None
    described = model.get("description") if isinstance(model, dict) else None
    name = str(described or source.spec.name)
    return replace(source, spec=catalog.find_in_catalog(name) or ModelSpec(name=name))


def archive_resource(artifacts: str | None, *, gpu: bool) -> dict[str, object]:
    """The part of Vertex AI's Model that says what to run; `artifacts` is a gs:// address."""
    spec: dict[str, object] = {"imageUri": _IMAGE.format("gpu" if gpu else "cpu")}
    if gpu:
        spec["env"] = [{"name": "T2I_DEVICE", "value": "cuda"}]  # the handler asks for it
    return {"containerSpec": spec, "artifactUri": artifacts}
