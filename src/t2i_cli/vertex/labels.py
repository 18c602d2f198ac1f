"""Labels that t2i puts on every cloud resource, encoded in the characters that labels allow."""

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
"""Characters of a value: Vertex AI allows 64, Cloud Storage 63."""

_TIME = re.compile("[0-9]{1,11}")
"""Unix seconds; those of twelve digits are no date any more."""
_TRUNCATION_MARK = "_x"


@dataclass(frozen=True, kw_only=True)
class Labels:
    """A resource's deployment: name, expiry (unix seconds), model, serving, and creator (`by`).

    `google_end` (unix seconds) is when Google itself undeploys it, by flex-start; else None.
    """

    name: str
    expires: int
    model: str
    serving: str
    by: str
    google_end: int | None = None
    paused: bool = False
    """Undeployed by `t2i remote pause`."""

    def encoded(self) -> dict[str, str]:
        """As labels of a resource, or metadata of an object."""
        labels = dict([MANAGED]) | {
            "t2i-name": self.name,
            "t2i-expires": str(self.expires),
            "t2i-model": encode_label(self.model),
            "t2i-serving": self.serving,
            "t2i-by": encode_label(self.by),
        }
        if self.google_end is not None:
            labels["t2i-google-end"] = str(self.google_end)
        if self.paused:
            labels["t2i-paused"] = "yes"
        return labels

    @classmethod
    def parse(cls, labels: Mapping[str, str]) -> Self | None:
        """Decode labels; None if t2i did not write them."""
        if labels.get(MANAGED[0]) != MANAGED[1] or not all(
            isinstance(value, str) and value.isascii() for value in labels.values()
        ):
            return None
        expires, end = labels.get("t2i-expires", ""), labels.get("t2i-google-end", "")
        return cls(
            name=labels.get("t2i-name", ""),
            # A resource of t2i without a valid date counts as expired.
            expires=int(expires) if _TIME.fullmatch(expires) else 0,
            # Anybody in the project can write labels, and they are printed on terminals.
            model=escape_controls(decode_label(labels.get("t2i-model", ""))),
            serving=labels.get("t2i-serving", ""),
            by=escape_controls(decode_label(labels.get("t2i-by", ""))),
            google_end=int(end) if _TIME.fullmatch(end) else None,
            paused=labels.get("t2i-paused") == "yes",
        )


def encode_label(text: str) -> str:
    """Encode text in lowercase letters, digits, `-` and `_`; long values are cut, with a hash."""
    value = "".join(
        char if re.fullmatch("[a-z0-9-]", char) else "".join(f"_{b:02x}" for b in char.encode())
        for char in text
    )
    if len(value) <= MAX_LABEL_LENGTH:
        return value
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    kept = value[: MAX_LABEL_LENGTH - len(digest) - len(_TRUNCATION_MARK)]
    return re.sub("_.?$", "", kept) + _TRUNCATION_MARK + digest


def decode_label(value: str) -> str:
    """The encoded text; of a cut value the beginning with an ellipsis."""
    text, cut, _ = value.partition(_TRUNCATION_MARK)
    return unquote_to_bytes(text.replace("_", "%")).decode(errors="replace") + "…" * bool(cut)


def format_time(seconds: float) -> str:
    """Format unix seconds as 2026-11-23 18:30 UTC."""
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))
