"""Changes to files as damage and malice make them: of any bytes, and of what torch.save writes."""

from __future__ import annotations

import io
import random
import zipfile

_NUMBERS = [0, 1, 2, 255, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 60, (1 << 63) - 1]
_OPCODES = [  # of pickles: build, reduce, a global, memo, persistent id, long numbers, stop
    *(
        b"cos\nsystem\n",
        b"cbuiltins\neval\n",
        b"ctorch\nFloatStorage\n",
        b"ccollections\nOrderedDict\n",
    ),
    *(b"R", b"b", b"(", b"t", b"}", b"]", b"s", b"u", b"Q", b".", b"0", b"2", b"h\x00", b"q\x01"),
    *(b"J\xff\xff\xff\x7f", b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f", b"M\xff\xff", b"K\x00"),
    *(b"X\xff\xff\xff\x7f", b"\x80\x05", b"\x93", b"\x81", b"G\x7f\xf0\x00\x00\x00\x00\x00\x00"),
]


def change(data: bytearray, generator: random.Random, words: list[bytes] = _OPCODES[:0]) -> None:
    """One change in place: a bit, a byte, an awkward number, a word; a piece moved or cut."""
    if not data:
        return
    at = generator.randrange(len(data))
    kind = generator.randrange(10 if words else 8)
    if kind == 0:
        data[at] ^= 1 << generator.randrange(8)
    elif kind <= 2:
        data[at] = generator.randrange(256)
    elif kind <= 4:
        size = 1 << generator.randrange(4)
        number = generator.choice(_NUMBERS) & ((1 << 8 * size) - 1)
        data[at : at + size] = number.to_bytes(size, generator.choice(["little", "big"]))
    elif kind == 5:
        start = generator.randrange(len(data))
        piece = data[start : start + generator.randint(1, 64)]
        data[at : at + len(piece)] = piece
    elif kind == 6 and generator.randrange(8) == 0:
        del data[at:]
    elif kind <= 7:
        start = generator.randrange(len(data))
        data[at:at] = data[start : start + generator.randint(1, 16)]
    else:
        word = generator.choice(words)
        data[at : at + (len(word) if kind == 8 else 0)] = word


def mutate(data: bytes, generator: random.Random, words: list[bytes] = _OPCODES[:0]) -> bytes:
    """A copy with one change, or a few."""
    changed = bytearray(data)
    for _ in range(generator.randint(1, 5)):
        change(changed, generator, words)
    return bytes(changed)


def mutate_archive(data: bytes, generator: random.Random) -> bytes:
    """A zip archive with changes in its parts, whose checksums are right again; else mutate()."""
    if generator.randrange(4) == 0 or not zipfile.is_zipfile(io.BytesIO(data)):
        return mutate(data, generator, _OPCODES)
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as before:
        names = before.namelist()
        chosen = generator.choice([name for name in names if name.endswith("data.pkl")] + names)
        action = generator.randrange(12)
        with zipfile.ZipFile(out, "w") as after:
            for name in names:
                content = before.read(name)
                if name == chosen and action == 0:
                    continue
                if name == chosen and action > 2:
                    content = mutate(content, generator, _OPCODES)
                given = "../" + name if name == chosen and action == 1 else name
                packed = zipfile.ZIP_DEFLATED if action == 2 else zipfile.ZIP_STORED
                after.writestr(zipfile.ZipInfo(given), content, packed)
    return out.getvalue()
