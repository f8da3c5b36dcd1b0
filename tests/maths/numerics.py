"""What several tests of numerics share."""

import pytest


def rows_per_block(rows: int, d: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have features (N, d) read in blocks of so many rows."""
    for module in ("blocks", "alignment.moments", "alignment.distances"):
        monkeypatch.setattr(f"cltools.maths.{module}.BLOCK_BYTES", rows * d * 8)
    # Several chunks to a block, the last one smaller.
    monkeypatch.setattr("cltools.maths.alignment.features.CACHE_BYTES", -(-rows // 3) * d * 8)
