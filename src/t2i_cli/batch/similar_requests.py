"""Requests that differ from the last one in the prompt only: they need not be resolved anew."""

import re
from collections.abc import Mapping
from dataclasses import replace

from t2i_cli.errors import InputError
from t2i_cli.models.prompt_support import check_prompt_texts
from t2i_cli.prompts.entries import Value
from t2i_cli.request import ResolvedRequest
from t2i_cli.request_fields import FIELDS

_PROMPT_SETTLES = re.compile(r"[\r<]")
"""In a prompt that is settled with its request: line ends, and tags that name LoRAs."""


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
        # A style is in the prompt that it is resolved to.
        if self._enabled and not resolved.style and not _PROMPT_SETTLES.search(resolved.prompt):
            self._last = ({**values, "prompt": ""}, resolved, notes)

    def find(self, values: Mapping[str, Value]) -> tuple[ResolvedRequest, tuple[str, ...]] | None:
        """The request of the values, with notes, if all but the prompt is the last one's.

        `None` for a prompt that is invalid, or that settles more than itself.
        """
        prompt = values.get("prompt")
        if self._last is None or not isinstance(prompt, str) or _PROMPT_SETTLES.search(prompt):
            return None
        others, resolved, notes = self._last
        if others != {**values, "prompt": ""}:
            return None
        try:
            FIELDS["prompt"].check(prompt)
            request = replace(resolved, prompt=prompt)
            check_prompt_texts(request)
        except InputError:
            return None
        return request, notes
