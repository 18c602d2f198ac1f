"""Paths of the operator's files, which a server's clients must not learn, and what they see."""

import copy
import os
from collections.abc import Mapping
from dataclasses import replace

from t2i_cli.backend import Failure, GeneratedImage
from t2i_cli.errors import T2IError
from t2i_cli.events import Downloading, Event, Loaded, Loading, Notice
from t2i_cli.files.user_paths import expand_home
from t2i_cli.model_spec import ModelSpec
from t2i_cli.models import adapter_sources, catalog
from t2i_cli.part_source import PART_FIELDS, PartSource
from t2i_cli.request import ResolvedRequest
from t2i_cli.request_adapters import Adapter


class PrivatePaths:
    """What stands in answers in place of paths; without any, nothing is changed."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}

    def add_model(self, model: str) -> None:
        """Hide the path of a model that is a file or folder of this machine."""
        if catalog.find_in_catalog(model) is None and os.path.exists(expand_home(model)):
            self._add(model, _last(model))

    def add_parts(self, parts: Mapping[str, PartSource]) -> None:
        """Hide the paths of parts from elsewhere."""
        for source in parts.values():
            if os.path.exists(expand_home(source.source)):
                self._add(source.source, source.name)

    def add_spec(self, spec: ModelSpec) -> None:
        """Hide the paths in a model's spec: of its files, and of the LoRAs that it brings."""
        self.add_model(spec.name)
        own = (getattr(spec, name) for name in PART_FIELDS)
        self.add_parts({str(n): source for n, source in enumerate(own) if source is not None})
        for _, value in spec.defaults:
            for each in value if isinstance(value, tuple) else ():
                if isinstance(each, Adapter) and os.path.isabs(each.source):
                    self._add(each.source, each.name)
        if spec.adapter_folder:
            self._add(spec.adapter_folder, "the server's folder")
        if spec.folder:
            self._add(str(spec.folder), _last(spec.name))

    def _add(self, path: str, shown: str) -> None:
        whole = expand_home(path)
        for each in (path, whole, os.path.abspath(whole), os.path.realpath(whole)):
            if each != shown and "/" in each.replace("\\", "/"):
                self._names[each] = shown

    def text(self, text: str) -> str:
        """The text without the paths; the longest is looked for first."""
        for path in sorted(self._names, key=len, reverse=True):
            text = text.replace(path, self._names[path])
        return text

    def error(self, error: T2IError) -> T2IError:
        """The error without the paths in its sentences."""
        message, hint = self.text(error.message), error.hint and self.text(error.hint)
        if (message, hint) == (error.message, error.hint):
            return error
        shown = copy.copy(error)  # the operator's log has the path
        shown.message, shown.hint, shown.args = message, hint, (message,)
        return shown

    def request(self, request: ResolvedRequest) -> ResolvedRequest:
        """The request with names of files."""
        if not self._names:
            return request
        named = adapter_sources.without_paths(request)
        model = self._names.get(request.model, request.model)
        return replace(named, model=model) if model != named.model else named

    def event(self, event: Event) -> Event:
        """The event without the paths."""
        match event:
            case Notice():
                hint = event.hint and self.text(event.hint)
                return replace(event, message=self.text(event.message), hint=hint)
            case Loading() | Loaded() | Downloading():
                return replace(event, model=self.text(event.model))
        return event

    def outcome(self, outcome: GeneratedImage | Failure) -> GeneratedImage | Failure:
        """An image or a failure without the paths, in the image's records as well."""
        if not self._names:
            return outcome
        if isinstance(outcome, Failure):
            return replace(outcome, error=self.error(outcome.error))
        info = replace(outcome.info, model=self.text(outcome.info.model))
        return replace(outcome, request=self.request(outcome.request), info=info)


def _last(path: str) -> str:
    return os.path.basename(path.rstrip("/\\")) or path
