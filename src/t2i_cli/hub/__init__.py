"""Hugging Face Hub access; the only package that imports huggingface_hub.

The import takes half a second, and huggingface_hub reads HF_ENDPOINT and HF_HUB_OFFLINE only then:
import it lazily, after `settings.store.set_offline()`.
"""

import os

from t2i_cli import library_environment

# Send no telemetry, and do not fetch the list of agents to detect in the environment.
# huggingface_hub reads the variable at import.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
library_environment.set_aside_invalid()

from t2i_cli.hub.download import (  # noqa: E402 - it reads the variable
    DownloadSize,
    download_model,
    download_size,
    fetch_configs,
    needs_token,
)

__all__ = ["DownloadSize", "download_size", "download_model", "fetch_configs", "needs_token"]
