#!/usr/bin/env bash
# Run a command as on a processor without AVX-512 and bfloat16 instructions, where sums are rounded
# otherwise:  tests/on_avx2.sh uv run pytest -m rounding
exec env ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2 \
  OPENBLAS_CORETYPE=Haswell NPY_DISABLE_CPU_FEATURES="X86_V4 AVX512_ICL AVX512_SPR" "$@"
