"""Writing D4RL's HDF5 layout without an HDF5 library: whole arrays, one after the other.

The subset of the format (The HDF Group, "HDF5 File Format Specification Version 3.0") that needs
no checksums: superblock 0, version-1 object headers, groups as link messages, contiguous data.

    superblock | root group | each dataset's header | metadata group | its headers | data ...
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from dmamba.common.files import replacing

_UNDEFINED = (1 << 64) - 1
_SUPERBLOCK_BYTES = 96

# Class, version and layout of an element, as message 0x0003 describes it (IV.A.2.d).
_FLOAT32 = struct.pack("<B3BIHHBBBBI", 0x11, 0x20, 31, 0, 4, 0, 32, 23, 8, 0, 23, 127)
_UINT8 = struct.pack("<B3BIHH", 0x10, 0, 0, 0, 1, 0, 8)
_ELEMENTS = {np.dtype(np.float32): _FLOAT32, np.dtype(np.uint8): _UINT8}


def write(
    path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> None:
    """Writes a file, in place of the one that is there.

    Args:
        path: The file.
        arrays: Datasets of the root group: float32 or uint8, of any shape, none of them empty.
        metadata: Texts, scalars of the group ``metadata``; none of them empty.

    Raises:
        OSError: It cannot be written.
    """
    with replacing(Path(path)) as temporary, open(temporary, "wb") as file:
        head, data = _layout(arrays, metadata)
        file.write(head)
        for value in data:
            file.write(value)


def _layout(
    arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> tuple[bytes, list[bytes | memoryview]]:
    """All headers, and the data that follows them."""
    values = [_little_endian(array) for array in arrays.values()]
    texts = [text.encode() for text in metadata.values()]
    data = [value.data.cast("B") for value in values]
    groups = [[*arrays, "metadata"], list(metadata)]

    def headers(at: list[int], data_at: list[int]) -> list[bytes]:
        """In the file's order, given where each header and each piece of data begins."""
        first_text = len(values) + 2
        root = _group(groups[0], [*at[1 : len(values) + 1], at[len(values) + 1]])
        return [
            root,
            *(
                _dataset(_ELEMENTS[value.dtype], value.shape, address, value.nbytes)
                for value, address in zip(values, data_at, strict=False)
            ),
            _group(groups[1], at[first_text:]),
            *(
                _dataset(_text(text), (), address, len(text))
                for text, address in zip(texts, data_at[len(values) :], strict=True)
            ),
        ]

    count = len(values) + len(texts) + 2
    sizes = [len(h) for h in headers([0] * count, [0] * (len(values) + len(texts)))]
    at = _addresses(_SUPERBLOCK_BYTES, sizes)
    pieces: list[bytes | memoryview] = [*data, *texts]
    data_at = _addresses(at[-1], [len(piece) for piece in pieces])
    head = _superblock(at[0], data_at[-1]) + b"".join(headers(at[:-1], data_at[:-1]))
    return head, pieces


def _little_endian(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))


def _addresses(start: int, sizes: list[int]) -> list[int]:
    """Where pieces of these sizes begin, back to back, and where the last one ends."""
    addresses = [start]
    for size in sizes:
        addresses.append(addresses[-1] + size)
    return addresses


def _superblock(root: int, end: int) -> bytes:
    versions = struct.pack("<8B", 0, 0, 0, 0, 0, 8, 8, 0)  # then sizes of addresses and lengths
    trees = struct.pack("<HHI", 4, 16, 0)
    addresses = struct.pack("<4Q", 0, _UNDEFINED, end, _UNDEFINED)
    entry = struct.pack("<QQII16x", 0, root, 0, 0)
    return b"\x89HDF\r\n\x1a\n" + versions + trees + addresses + entry


def _object(messages: list[tuple[int, bytes]]) -> bytes:
    """A version-1 object header (IV.A.1.a)."""
    body = b""
    for kind, content in messages:
        content += bytes(-len(content) % 8)
        body += struct.pack("<HHB3x", kind, len(content), 0) + content
    return struct.pack("<BxHII4x", 1, len(messages), 1, len(body)) + body


def _group(names: list[str], addresses: list[int]) -> bytes:
    info = struct.pack("<BBQQ", 0, 0, _UNDEFINED, _UNDEFINED)
    links = [
        (0x0006, struct.pack("<BBB", 1, 0, len(name.encode())) + name.encode() + _word(address))
        for name, address in zip(names, addresses, strict=True)
    ]
    return _object([(0x0002, info), (0x000A, bytes(2)), *links])


def _dataset(element: bytes, shape: tuple[int, ...], address: int, size: int) -> bytes:
    space = struct.pack("<BBB5x", 1, len(shape), 0) + b"".join(map(_word, shape))
    fill = struct.pack("<4B", 2, 2, 2, 0)
    layout = struct.pack("<BBQQ", 3, 1, address, size)
    return _object([(0x0001, space), (0x0003, element), (0x0005, fill), (0x0008, layout)])


def _text(text: bytes) -> bytes:
    """A string of fixed length in UTF-8, padded with zeros."""
    return struct.pack("<B3BI", 0x13, 0x11, 0, 0, len(text))


def _word(value: int) -> bytes:
    return struct.pack("<Q", value)
