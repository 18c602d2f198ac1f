"""Builds the container image of t2i's server with docker or Cloud Build, and pushes it."""

import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import t2i_cli
from t2i_cli.errors import AccessError, InputError, RemoteError, os_reason
from t2i_cli.known_names import suggest_name
from t2i_cli.models import catalog
from t2i_cli.net import google_credentials
from t2i_cli.settings.options import LocationOptions, ProjectOptions
from t2i_cli.vertex import cuda_builds, location, pinned_packages
from t2i_cli.vertex.location import Location

DOCKERFILE = Path(__file__).with_name("Dockerfile")
REPOSITORY = "t2i"
"""Default repository in Artifact Registry."""
BUILDERS = ("docker", "cloud-build")

_PACKAGE = Path(t2i_cli.__file__).parent
_SOURCES = ("pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md")
_BUILD_TIMEOUT = "7200s"
_DIGEST = re.compile(r"[^@]@sha256:[0-9a-f]{64}$")


@dataclass(frozen=True, kw_only=True)
class ImageBuild:
    """One image build: image name, builder and build arguments."""

    image: str
    builder: str
    arguments: dict[str, str]
    region: str
    project: str

    def commands(self, context: Path) -> list[list[str]]:
        """The command lines to run, in order; `context` is the folder with the Dockerfile."""
        pairs = [f"{name}={value}" for name, value in self.arguments.items()]
        if self.builder == "cloud-build":
            return [
                ["gcloud", "builds", "submit", str(context)]
                + ["--config", str(context / "cloudbuild.json")]
                + ["--project", self.project, "--region", self.region]
            ]
        flags = [part for pair in pairs for part in ("--build-arg", pair)]
        return [
            ["docker", "build", "--platform", "linux/amd64", "--tag", self.image]
            + [*flags, str(context)],
            ["docker", "push", self.image],
        ]

    def cloud_build(self) -> dict[str, object]:
        """The same build as a Cloud Build configuration (cloudbuild.json)."""
        flags = [f"--build-arg={name}={value}" for name, value in self.arguments.items()]
        step = {
            "name": "gcr.io/cloud-builders/docker",
            "args": ["build", "--tag", self.image, *flags, "."],
        }
        return {"steps": [step], "images": [self.image], "timeout": _BUILD_TIMEOUT}


def plan_build(
    image: str | None,
    builder: str | None,
    bake: str | None,
    find_place: Callable[[], Location],
    *,
    base_image: str | None = None,
    cuda: str | None = None,
) -> ImageBuild:
    """Plan the build; `bake` names a model to include in the image, `cuda` a build of torch.

    `find_place` may need credentials, and is called last. Raises InputError, or what that raises.
    """
    cuda = cuda or cuda_builds.DEFAULT_CUDA_BUILD
    cuda_builds.check_cuda_build(cuda)
    if base_image and not _DIGEST.search(base_image):
        raise InputError(
            f"--base-image {base_image} has no digest: IMAGE@sha256:… names the same image always.",
            hint=f"`docker buildx imagetools inspect {base_image}` says it.",
            field="base_image",
        )
    if builder not in (None, *BUILDERS):
        raise InputError(
            f"--with must be {' or '.join(BUILDERS)}, not {builder}.",
            hint=suggest_name(builder, BUILDERS).strip() or None,
        )
    arguments = {"T2I": _requirement(), "CUDA": cuda}
    if base_image:
        arguments["BASE"] = base_image
    if bake:
        spec = catalog.find_in_catalog(bake) or catalog.find_spelled(bake)
        if (spec and spec.gated) or not (spec or bake.count("/") == 1):
            raise InputError(
                f"{bake} cannot be put into an image: only models that the Hub gives to anybody.",
                hint="`t2i remote deploy` takes others through a bucket.",
            )
        arguments["MODEL"] = spec.name if spec else bake
    place = find_place()
    default = (
        f"{place.region}-docker.pkg.dev/{place.project.replace(':', '/')}/{REPOSITORY}/"
        f"t2i:{cuda_builds.image_tag(t2i_cli.__version__, cuda)}"
    )
    return ImageBuild(
        image=image or default,
        builder=builder or _find_builder(),
        arguments=arguments,
        region=place.region,
        project=place.project,
    )


def build_location(options: ProjectOptions) -> Location:
    """The project and region to build for; credentials are used only for their default project."""
    login_project = None
    with suppress(AccessError):
        login_project = google_credentials.find_credentials()[1].project
    return location.find_location(LocationOptions(**vars(options)), login_project=login_project)


def run_build(build: ImageBuild) -> None:
    """Build the image and push it; the builder's output goes to stderr.

    Raises InputError, AccessError or RemoteError.
    """
    with tempfile.TemporaryDirectory(prefix="t2i-build-") as folder:
        context = Path(folder)
        _fill_context(context, build)
        for command in build.commands(context):
            _run(command, build)


def _run(command: Sequence[str], build: ImageBuild) -> None:
    try:
        done = subprocess.run(command, stdout=2, check=False)  # noqa: S603 - built above
    except OSError as error:
        raise InputError(f"Cannot run {command[0]}: {os_reason(error)}.") from error
    if done.returncode == 0:
        return
    if command[:2] == ["docker", "push"]:
        host, _, _ = build.image.partition("/")
        raise AccessError(
            f"docker could not push {build.image}.",
            hint=f"`gcloud auth configure-docker {host}`; the repository must exist: "
            f"`gcloud artifacts repositories create {REPOSITORY} --repository-format=docker "
            f"--location={build.region}`",
        )
    raise RemoteError(
        f"`{' '.join(command[:2])}` ended with exit code {done.returncode}.",
        hint="Its own words are above.",
    )


def _find_builder() -> str:
    """docker if its daemon runs, else gcloud. Raises InputError where there is neither."""
    if shutil.which("docker"):
        version = ["docker", "version", "--format", "{{.Server.Version}}"]
        if subprocess.run(version, capture_output=True, check=False).returncode == 0:  # noqa: S603
            return "docker"
    if shutil.which("gcloud"):
        return "cloud-build"
    raise InputError(
        "There is neither a docker daemon nor gcloud to build with.",
        hint="Install one of them, or deploy with --serving model-garden, which needs no image.",
    )


def _checkout() -> Path | None:
    """The root of the source checkout that t2i runs from, None for an installed package."""
    root = _PACKAGE.parent.parent
    return root if all((root / name).is_file() for name in _SOURCES) else None


def _requirement() -> str:
    """What pip installs in the image: the copied sources, or the released version."""
    return "/context" if _checkout() else f"t2i-cli=={t2i_cli.__version__}"


def _fill_context(context: Path, build: ImageBuild) -> None:
    """Copy only what the Dockerfile needs into the build context."""
    shutil.copy(DOCKERFILE, context)
    constraints = pinned_packages.package_constraints("t2i-cli", cuda_build=build.arguments["CUDA"])
    (context / "constraints.txt").write_text(constraints)
    if root := _checkout():
        for name in _SOURCES:
            shutil.copy(root / name, context)
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(_PACKAGE, context / "src" / _PACKAGE.name, ignore=ignored)
    if build.builder == "cloud-build":
        configuration = json.dumps(build.cloud_build(), indent=1)
        (context / "cloudbuild.json").write_text(configuration)
