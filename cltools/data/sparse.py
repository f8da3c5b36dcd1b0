"""A file in memory that holds only what was written, and zeros between."""

import io
from collections.abc import Iterator
from typing import Any

PAGE = 1 << 16


class SparseFile(io.RawIOBase):
    """A file that may be long, where little is written: HDF5 lays out large variables in it."""

    def __init__(self) -> None:
        self.size = 0
        self._at = 0
        self._pages: dict[int, bytearray] = {}

    def parts(self) -> Iterator[tuple[int, bytes]]:
        """What was written, as (place, bytes), in pages."""
        for number in sorted(self._pages):
            start = number * PAGE
            yield start, bytes(self._pages[number][: self.size - start])

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def truncate(self, size: int | None = None) -> int:
        self.size = self._at if size is None else size
        return self.size

    def write(self, content: Any) -> int:
        view = memoryview(content).cast("B")
        for number, inside, part in self._places(len(view)):
            page = self._pages.setdefault(number, bytearray(PAGE))
            page[inside : inside + len(view[part])] = view[part]
        self._at += len(view)
        self.size = max(self.size, self._at)
        return len(view)

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")[: max(0, self.size - self._at)]
        for number, inside, part in self._places(len(view)):
            page = self._pages.get(number, bytes(PAGE))
            view[part] = page[inside : inside + len(view[part])]
        self._at += len(view)
        return len(view)

    def _places(self, count: int) -> Iterator[tuple[int, int, slice]]:
        """For each page that the next bytes are in: its number, where in it, and which of them."""
        done = 0
        while done < count:
            number, inside = divmod(self._at + done, PAGE)
            taken = min(PAGE - inside, count - done)
            yield number, inside, slice(done, done + taken)
            done += taken
