"""What this machine's processor can do beyond the usual."""

from t2i_cli.models import libraries

_BFLOAT16 = {"amx_bf16": "AMX", "avx512_bf16": "AVX512-BF16"}
"""Names in `torch.cpu.get_capabilities()` of the instructions that multiply bfloat16."""


def bfloat16_instructions() -> str | None:
    """The best instructions that the processor has for bfloat16, `None` if it has none."""
    capabilities = libraries.import_torch().cpu.get_capabilities()
    return next((label for name, label in _BFLOAT16.items() if capabilities.get(name)), None)
