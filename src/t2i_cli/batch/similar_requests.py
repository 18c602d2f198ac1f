"""Requests that differ from the last one in the prompt only: they need not be resolved anew."""

from collections.abc import Mapping
from dataclasses import replace

from t2i_cli.errors import InputError
from t2i_cli.prompts.entries import Value
from t2i_cli.request import ResolvedRequest
from t2i_cli.request_fields import FIELDS


class SimilarRequests:
    """The values of the last request, and what they were resolved to; nothing unless `enabled`.

    Only the check of the prompt itself depends on the prompt: a million rows of a text file are
    resolved once.
    """

    def __init__(self, *, enabled: bool) -> None:
        self._enabled = enabled
        self._last: tuple[dict[str, Value], ResolvedRequest, tuple[str, ...]] | None = None

    def keep(
        self, values: Mapping[str, Value], resolved: ResolvedRequest, notes: tuple[str, ...]
    ) -> None:
        """Keep a request that was resolved, and the notes on it."""
        if self._enabled:
            self._last = ({**values, "prompt": ""}, resolved, notes)

    def find(self, values: Mapping[str, Value]) -> tuple[ResolvedRequest, tuple[str, ...]] | None:
        """The request of the values, with notes, if all but the prompt is the last one's.

        `None` for a prompt that is invalid, or has line ends that are settled with a request.
        """
        prompt = values.get("prompt")
        if self._last is None or not isinstance(prompt, str) or "\r" in prompt:
            return None
        others, resolved, notes = self._last
        if others != {**values, "prompt": ""}:
            return None
        try:
            FIELDS["prompt"].check(prompt)
        except InputError:
            return None
        return replace(resolved, prompt=prompt), notes
