"""The Hugging Face Hub: the only place that talks to huggingface_hub.

Importing it costs half a second and fixes HF_ENDPOINT and HF_HUB_OFFLINE, which
huggingface_hub reads once: import it where it is needed, after `settings.store.set_offline()`.
"""

import os

# The Hub is asked for models and told nothing else; without this it is also asked for a list of
# programs to look for in the environment. Read at huggingface_hub's import.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

from t2i_cli.hub.download import (  # noqa: E402 - after the variable that it reads
    DownloadSize,
    download_model,
    download_size,
    fetch_configs,
    needs_token,
)

__all__ = ["DownloadSize", "download_size", "download_model", "fetch_configs", "needs_token"]
