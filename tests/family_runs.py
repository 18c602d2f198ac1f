"""Run one text-to-image class's tiny pipeline: by plain diffusers, and by t2i."""

import importlib.util
import inspect
import random
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from t2i_cli.backend import Failure, GeneratedImage
from t2i_cli.backends.local import LocalBackend, LocalOptions
from t2i_cli.errors import T2IError
from t2i_cli.model_spec import ModelSpec
from t2i_cli.models import libraries, sources
from t2i_cli.models.libraries import LibraryObject
from t2i_cli.models.request_resolution import resolve_request
from t2i_cli.request import GenerateRequest, ResolvedRequest
from tests.families import PACKAGES

Pixels = NDArray[np.int16]

PROMPTS = ("a red house", "a blue star over the sea at night, with many waves and a boat", "cat")
STEPS = {"Ideogram4Pipeline": 48, "Kandinsky5T2IPipeline": 1}
"""Steps, of classes that plain diffusers does not run in 2, or not quickly."""
SIDE = 64
SIDES = {"HiDreamImagePipeline": 256, "Kandinsky5T2IPipeline": 1024}
"""Pixels, of classes whose tiny pipelines do not make 64."""
_UNKEPT_SIZE = {"use_resolution_binning": False, "use_resolution_bucket": False}


class Broken(Exception):  # noqa: N818 - a finding, not an error
    """A promise that is not kept, and how."""


class Refused(Exception):  # noqa: N818 - a finding, not an error
    """What t2i says before it loads weights."""

    def __init__(self, error: T2IError, name: str, folder: Path) -> None:
        text = f"{error.message} {error.hint or ''}".replace(str(folder), "the model")
        super().__init__(error.message.replace(str(folder), "the model"))
        field = getattr(error, "field", None)
        self.names_it = bool(field) or name in text


class Family:
    """One class's tiny pipeline: run by plain diffusers, and by t2i."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self._folder = folder
        self._backend = LocalBackend(LocalOptions())
        self._pipe: LibraryObject = None
        self.side = SIDES.get(name, SIDE)
        self._steps = STEPS.get(name, 2)
        self._made: dict[tuple[object, ...], Pixels] = {}

    def close(self) -> None:
        """Give back the memory of both."""
        self._backend.close()
        self._pipe = None

    def spec(self) -> ModelSpec:
        """What t2i knows of the model. Raises Refused."""
        try:
            return self._backend.describe(GenerateRequest(prompt="x", model=str(self._folder)))
        except T2IError as error:
            raise Refused(error, self.name, self._folder) from error

    def ask(self, backend: LocalBackend | None = None, **fields: object) -> ResolvedRequest:
        """The request as a dry run takes it: described, resolved, checked. Raises Refused."""
        backend = backend or self._backend
        values: dict[str, Any] = {"prompt": PROMPTS[0], "seed": 1, "steps": self._steps}
        values |= {"width": self.side, "height": self.side}
        request = GenerateRequest(model=str(self._folder), **values | fields)
        try:
            resolved = resolve_request(request, backend.describe(request))
            backend.check(resolved)
            backend.estimate(resolved)
        except T2IError as error:
            raise Refused(error, self.name, self._folder) from error
        return resolved

    def planned_mib(self, request: ResolvedRequest) -> int | None:
        """MiB that the plan wants beside the weights; `None` if it says that it does not know."""
        return self._backend.plan(request).working_mib

    def run(
        self, requests: Sequence[ResolvedRequest], backend: LocalBackend | None = None
    ) -> list[Pixels]:
        """The pictures of t2i. Raises Broken."""
        made = list((backend or self._backend).run(requests, lambda _: None, threading.Event()))
        outcomes = sorted(made, key=lambda outcome: outcome.index)
        return [_pixels(outcome) for outcome in outcomes]

    def picture(self, **fields: object) -> Pixels:
        """One picture of t2i, made once. Raises Refused, Broken."""
        key = tuple(sorted(fields.items()))
        if key not in self._made:
            (self._made[key],) = self.run([self.ask(None, **fields)])
        return self._made[key]

    def plain(self, **arguments: object) -> Pixels:
        """The picture of diffusers itself, called with nothing else set; raises what it does."""
        import torch
        from diffusers import DiffusionPipeline

        with libraries.suppress_warnings():
            if self._pipe is None:
                without = dict.fromkeys(sources.absent_parts(self._folder))
                self._pipe = DiffusionPipeline.from_pretrained(
                    self._folder, use_safetensors=True, **without
                )
                self._pipe.set_progress_bar_config(disable=True)
            taken = inspect.signature(self._pipe.__call__).parameters
            size = _UNKEPT_SIZE | {"max_area": self.side**2}
            values: dict[str, object] = {"prompt": PROMPTS[0], "num_inference_steps": self._steps}
            values |= {"height": self.side, "width": self.side}
            values |= {name: value for name, value in size.items() if name in taken}
            torch.manual_seed(1)
            np.random.seed(1)  # noqa: NPY002 - what a pipeline would draw from
            random.seed(1)
            made = self._pipe(**values | arguments, generator=torch.Generator("cpu").manual_seed(1))
        (picture,) = made[0]
        return np.asarray(picture.convert("RGB"), dtype=np.int16)

    def takes(self, argument: str) -> bool:
        """Whether plain diffusers' call has that argument."""
        cls = getattr(libraries.import_diffusers(), self.name)
        return argument in inspect.signature(cls.__call__).parameters


def _pixels(outcome: GeneratedImage | Failure) -> Pixels:
    """height x width x 3, 0 to 255. Raises Broken."""
    if isinstance(outcome, Failure):
        raise Broken(f"{type(outcome.error).__name__}: {outcome.error.message}")
    return np.asarray(outcome.image, dtype=np.int16)


def difference(one: Pixels, other: Pixels) -> int:
    """The largest of two pictures' differences, 0 to 255; 255 if their sizes differ."""
    return int(np.abs(one - other).max()) if one.shape == other.shape else 255


def lacks_package(name: str) -> bool:
    """Whether plain diffusers does not run the class here, for want of a package."""
    return name in PACKAGES and importlib.util.find_spec(PACKAGES[name]) is None
