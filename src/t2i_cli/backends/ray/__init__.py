"""Backend on a Ray cluster: workers on many GPUs and machines, each with a model of its own."""

from t2i_cli.backends.ray.backend import RayBackend as RayBackend
from t2i_cli.backends.ray.options import RayOptions as RayOptions
