"""What results and speed depend on in the processor.

With other vector instructions, sums are rounded in another order, so the last digits of a training
run differ. Without instructions for bfloat16, bfloat16 is slower than float32.
"""

import platform
from pathlib import Path


def instructions() -> str:
    """The widest vector instructions that torch uses here, such as "AVX2" or "AVX512"."""
    import torch

    return torch.backends.cpu.get_cpu_capability()


def has_bfloat16() -> bool:
    """Whether torch can use bfloat16 instructions on this processor."""
    import torch

    able = torch.cpu.get_capabilities()
    if able["architecture"] != "x86_64":
        return bool(able.get("bf16"))
    # torch can be told to use less than there is.
    return instructions().startswith("AVX512") and bool(
        able.get("avx512_bf16") or able.get("amx_bf16")
    )


def name() -> str:
    """The name of the processor, or its kind where the system gives no name."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
