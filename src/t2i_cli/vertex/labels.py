"""What t2i writes on everything that it makes in the cloud, in the few characters labels allow."""

import hashlib
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self
from urllib.parse import unquote_to_bytes

from t2i_cli.terminal.console import escape_controls

MANAGED = ("managed-by", "t2i")
MAX_LABEL_LENGTH = 63
"""Characters of a value: Vertex AI takes 64, storage 63."""

_MARK_OF_CUT = "_x"


@dataclass(frozen=True, kw_only=True)
class Labels:
    """Which deployment something belongs to, when that ends (unix seconds), and who made it."""

    name: str
    expires: int
    model: str
    serving: str
    by: str

    def encoded(self) -> dict[str, str]:
        """As labels of a resource, or as metadata of an object."""
        return dict([MANAGED]) | {
            "t2i-name": self.name,
            "t2i-expires": str(self.expires),
            "t2i-model": encode_label(self.model),
            "t2i-serving": self.serving,
            "t2i-by": encode_label(self.by),
        }

    @classmethod
    def of(cls, labels: Mapping[str, str]) -> Self | None:
        """What they tell, or None if t2i did not write them."""
        if labels.get(MANAGED[0]) != MANAGED[1]:
            return None
        expires = labels.get("t2i-expires", "")
        return cls(
            name=labels.get("t2i-name", ""),
            # What t2i made and nobody can date is past its time.
            expires=int(expires) if expires.isdecimal() else 0,
            # Anybody in the project may write labels, and these are shown on terminals.
            model=escape_controls(decode_label(labels.get("t2i-model", ""))),
            serving=labels.get("t2i-serving", ""),
            by=escape_controls(decode_label(labels.get("t2i-by", ""))),
        )


def encode_label(text: str) -> str:
    """Any text in lowercase letters, digits, `-` and `_`; what is too long is cut, with a hash."""
    value = "".join(
        char if re.fullmatch("[a-z0-9-]", char) else "".join(f"_{b:02x}" for b in char.encode())
        for char in text
    )
    if len(value) <= MAX_LABEL_LENGTH:
        return value
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    kept = value[: MAX_LABEL_LENGTH - len(digest) - len(_MARK_OF_CUT)]
    return re.sub("_.?$", "", kept) + _MARK_OF_CUT + digest


def decode_label(value: str) -> str:
    """The text that was encoded; of a cut one its beginning, with an ellipsis."""
    text, cut, _ = value.partition(_MARK_OF_CUT)
    return unquote_to_bytes(text.replace("_", "%")).decode(errors="replace") + "…" * bool(cut)


def format_time(seconds: float) -> str:
    """A time in unix seconds for people, as 2026-11-23 18:30 UTC."""
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))
