"""A reader of safetensors files, from scratch: what the format is, and tensors that are views of the file.

A safetensors file is three things in a row:

    8 bytes     N, the length of the header: an unsigned integer, the lowest byte first
    N bytes     the header: one JSON object in UTF-8; spaces may fill it up to a multiple of 8
    the rest    the data: every tensor's numbers, lowest byte first, rows first (C order), end to end

The header has an entry a tensor, {"dtype": ..., "shape": [...], "data_offsets": [begin, end]}, the offsets counted in
bytes from the start of the data, and perhaps "__metadata__", an object of strings. As an example a file of 68 bytes:
one tensor, "w", of two half-precision numbers.

    at   bytes                                   meaning
     0   38 00 00 00 00 00 00 00                 N = 0x38 = 56
     8   7b 22 77 22 3a 7b ... 7d 7d 20 20       {"w":{"dtype":"F16","shape":[2],"data_offsets":[0,4]}} and two spaces
    64   00 3c                                   w[0]: 0x3c00 is 1.0 in half precision
    66   00 c0                                   w[1]: 0xc000 is -2.0

Nothing in it is a program, unlike in a pickle, and no number has to be read to know where a tensor lies: the file is
mapped into memory, a tensor is a view of its bytes, and the operating system fetches a page when it is first touched.

A file from elsewhere is not to be trusted: `safetensors_header.py` checks the header to its last field first. The
library, `safetensors`, is what this package writes files with, and what this reader is tested against.
"""

from __future__ import annotations

import mmap
import os
import stat
from pathlib import Path

import torch
from torch import Tensor

from .safetensors_header import DTYPES, TensorInfo, parse_header, shown

MAX_HEADER = 100_000_000  # bytes; the library's own limit


class SafetensorsFile:
    """A safetensors file, checked and mapped into memory; its tensors are views of the mapping.

    Tensors may outlive the `with` block: the mapping goes when the last of them does. Writing into one never changes
    the file, but a private copy of the page it lies on, which all tensors taken from this object share.

    A mapping is the file, not a copy of it. A file replaced under its name (as `minigpt` and most tools write) stays
    readable here. Should another process cut it short or write into it, the tensors change with it, and touching a part
    that is gone ends this process with SIGBUS, which Python cannot catch: whoever keeps weights copies them first.

    Args:
        path: the file.

    Raises:
        ValueError: the file is malformed in any way; the message names the file, the tensor and the fault. Nothing but
            the header has been read then.
        OSError: there is no such file, or it may not be read.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        # O_NONBLOCK: opening a pipe must not wait for somebody who writes into it.
        descriptor = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise ValueError("not a file but a directory, a pipe or a device")
            self.size = status.st_size  #: of the file, in bytes
            header = _read_header(descriptor, self.size)
            self._data = 8 + len(header)
            self.metadata, self._tensors = parse_header(header, self.size - self._data)
            self._mapping: mmap.mmap | None = mmap.mmap(descriptor, self.size, access=mmap.ACCESS_COPY)
        except ValueError as error:
            raise ValueError(f"{self.path}: {error}") from None
        finally:
            os.close(descriptor)
        self.names = list(self._tensors)  #: of the tensors, in the order in which they lie in the file

    def __enter__(self) -> SafetensorsFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file. Tensors taken before stay valid."""
        self._mapping = None  # not closed: torch keeps a reference to the mapping, but no hold that close() would see

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def info(self, name: str) -> TensorInfo:
        """What the header says of the tensor `name`. Raises ValueError where there is none of that name."""
        try:
            return self._tensors[name]
        except KeyError:
            raise ValueError(f"{self.path}: there is no tensor {shown(name)}") from None

    def tensor(self, name: str) -> Tensor:
        """The tensor `name`, on the CPU: a view of the mapping, of which nothing is read until it is touched.

        Only a tensor that lies askew (its offset in the file is no multiple of its element's size, which other writers
        may do) is copied, since kernels count on alignment. Of dtype F4 the last dimension is half the header's: torch
        counts pairs.

        Raises:
            ValueError: no such name, the file is closed or has become shorter, or torch has no such dtype or shape.
        """
        info = self.info(name)
        bits, dtype = DTYPES[info.dtype]
        shape = info.shape
        if self._mapping is None:
            raise ValueError(f"{self.path}: closed")
        if dtype is None:
            raise ValueError(f"{self.path}: tensor {shown(name)}: torch has no dtype {info.dtype}")
        if bits == 4:
            if not shape or shape[-1] % 2:
                raise ValueError(
                    f"{self.path}: tensor {shown(name)}: torch has F4 in pairs only, not with a last dimension that is "
                    f"odd, as of shape {shown(shape)}"
                )
            shape = (*shape[:-1], shape[-1] // 2)
        begin = self._data + info.begin
        if self._mapping.size() < begin + info.nbytes:
            raise ValueError(f"{self.path}: tensor {shown(name)}: the file has become shorter since it was opened")
        try:
            if info.nbytes == 0:  # of which frombuffer makes nothing
                flat = torch.empty(0, dtype=torch.uint8, device="cpu")
            else:
                flat = torch.frombuffer(self._mapping, dtype=torch.uint8, count=info.nbytes, offset=begin)
            if begin % dtype.itemsize:
                flat = flat.clone()
            return flat.view(dtype).reshape(shape)
        except (RuntimeError, TypeError, OverflowError) as error:  # dimensions beyond torch's 63 bits
            raise ValueError(f"{self.path}: tensor {shown(name)}: torch has no shape {shown(shape)}") from error

    def release(self, name: str) -> None:
        """Let the system take back the memory in which it keeps the tensor `name`, until it is touched again.

        What was written into it is forgotten. Of pages that it shares with its neighbours nothing is.

        Raises ValueError where there is none of that name.
        """
        info = self.info(name)
        begin = -(-(self._data + info.begin) // mmap.PAGESIZE) * mmap.PAGESIZE
        end = (self._data + info.end) // mmap.PAGESIZE * mmap.PAGESIZE
        if self._mapping is not None and begin < end:
            self._mapping.madvise(mmap.MADV_DONTNEED, begin, end - begin)


def _read_header(descriptor: int, size: int) -> bytes:
    if size < 8:
        raise ValueError(f"a file of {size} bytes: a safetensors file begins with 8 that tell its header's length")
    length = int.from_bytes(_read(descriptor, 8, 0), "little")
    if length > MAX_HEADER:
        raise ValueError(f"the first 8 bytes tell of a header of {length} bytes; {MAX_HEADER} are the limit")
    if length > size - 8:
        raise ValueError(f"the first 8 bytes tell of a header of {length} bytes, and only {size - 8} follow")
    return _read(descriptor, length, 8)


def _read(descriptor: int, count: int, offset: int) -> bytes:
    pieces = []
    while count:
        piece = os.pread(descriptor, count, offset)
        if not piece:
            raise ValueError("the file became shorter while its header was read")
        pieces.append(piece)
        count, offset = count - len(piece), offset + len(piece)
    return b"".join(pieces)
