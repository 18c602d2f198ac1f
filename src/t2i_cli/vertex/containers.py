"""Chooses the serving container, and where it loads its weights from."""

import re
from pathlib import Path

from t2i_cli.errors import InputError
from t2i_cli.known_names import suggest_name
from t2i_cli.model_spec import ModelSpec
from t2i_cli.models import catalog, diffusers_folder, weight_sources
from t2i_cli.request_fields import SERVINGS
from t2i_cli.settings import store
from t2i_cli.vertex import garden_containers
from t2i_cli.vertex.model_source import ModelSource


def find_source(model: str | None, serving: str) -> ModelSource:
    """Resolve the model to deploy; may ask the Hub whether it needs a token.

    Raises InputError, ModelError, or what the Hub's failure is.
    """
    name = model or store.get_setting("model") or catalog.DEFAULT_MODEL
    if name.startswith("gs://"):
        if not re.fullmatch(r"gs://[a-z0-9][a-z0-9._-]+(/[^/\s]+)+/?", name):
            raise InputError(f"{name} is not of the form gs://BUCKET/FOLDER.", field="model")
        return ModelSource(
            spec=ModelSpec(name=name.rstrip("/").split("/")[-1]), uri=name.rstrip("/")
        )
    name, revision = catalog.parse_address(name)
    spec = catalog.find_known(name, revision)
    if spec is None and weight_sources.names_file(name):
        raise InputError(
            f"{name} is a single file; an endpoint takes a whole model: a folder, or a repository.",
            hint="`t2i serve` serves a single file, on a machine of yours as well.",
            field="model",
        )
    if spec is None and (folder := catalog.folder_named(name)):
        if serving != "torchserve":
            diffusers_folder.read_model_index(folder)
        resolved = folder.resolve()
        source = ModelSource(spec=ModelSpec(name=resolved.name), folder=resolved)
    elif spec is None and catalog.is_repository(name):
        from t2i_cli import hub

        source = ModelSource(
            spec=ModelSpec(name=name, repo=name, revision=revision), fetch=hub.needs_token(name)
        )
    elif spec is None:
        others = "a folder, owner/name on the Hub and gs://BUCKET/FOLDER do as well"
        raise catalog.unknown_model(name, others)
    elif spec.folder and serving == "t2i":
        source = ModelSource(spec=spec)  # its weights are in the image
    else:
        source = ModelSource(spec=spec, folder=spec.folder, fetch=spec.gated)
    if serving == "torchserve":
        from t2i_cli.vertex.torchserve import container

        return container.archived_source(source)
    return source


def local_weights(source: ModelSource, *, dtype: str) -> Path:
    """The model's local folder, downloaded from the Hub if needed; `dtype` chooses variants.

    Raises T2IError.
    """
    if source.folder:
        return source.folder
    if source.spec.repo is None:
        raise InputError(f"{source.label_name} does not lie on this machine, nor on the Hub.")
    from t2i_cli import hub
    from t2i_cli.terminal.console import console
    from t2i_cli.terminal.progress import Progress

    with Progress(console, 1) as progress:
        return hub.download_model(
            source.spec.repo,
            revision=source.spec.revision,
            offline=False,
            dtype=dtype,
            on_event=progress,
        )


def choose_container(serving: str | None, image: str | None) -> tuple[str, str | None]:
    """The kind of serving, and the image for t2i's own server. Raises InputError."""
    image = store.resolve_setting("vertex_image", image)
    serving = serving or ("t2i" if image else "model-garden")
    check_serving(serving)
    if serving == "t2i" and not image:
        raise InputError(
            "There is no image of t2i's server.",
            hint="`t2i remote build` makes one; --image or T2I_VERTEX_IMAGE names it.",
        )
    return serving, image


def check_serving(serving: str) -> None:
    """Raise InputError for a kind of serving that there is not."""
    if serving not in SERVINGS:
        raise InputError(
            f"--serving must be {', '.join(SERVINGS)}, not {serving}.",
            hint=suggest_name(serving, SERVINGS).strip() or None,
            field="serving",
        )


def serving_warning(serving: str) -> str | None:
    """What to know of a way of serving before one relies on it."""
    if serving != "torchserve":
        return None
    from t2i_cli.vertex.torchserve import container

    return container.WARNING


def model_resource(
    serving: str, source: ModelSource, image: str | None, artifacts: str | None, *, gpu: bool
) -> dict[str, object]:
    """The container fields of Vertex AI's Model resource; `artifacts` is a gs:// address."""
    repo = source.spec.repo or source.spec.name
    if serving == "t2i":
        return _container_resource(
            str(image),
            8080,
            "/predict",
            "/health",
            # Without its GPU the server is not healthy, rather than compute on the CPU.
            ({} if artifacts else {"T2I_MODEL": repo}) | ({"T2I_DEVICE": "cuda"} if gpu else {}),
            artifacts,
        )
    if serving == "model-garden":
        # It downloads a gs:// address itself and does not read Vertex AI's copy (artifactUri).
        garden = garden_containers.find_container(source)
        environment = {"MODEL_ID": artifacts or repo, "TASK": garden.task, **garden.environment}
        return _container_resource(garden.image, 7080, "/predict", "/health", environment, None)
    from t2i_cli.vertex.torchserve import container

    return container.archive_resource(artifacts, gpu=gpu)


def _container_resource(
    image: str,
    port: int,
    predict: str,
    health: str,
    environment: dict[str, str],
    artifacts: str | None,
) -> dict[str, object]:
    spec = {
        "imageUri": image,
        "ports": [{"containerPort": port}],
        "predictRoute": predict,
        "healthRoute": health,
        "env": [{"name": name, "value": value} for name, value in environment.items()],
        "deploymentTimeout": "3600s",
    }
    return {"containerSpec": spec} | ({"artifactUri": artifacts} if artifacts else {})
