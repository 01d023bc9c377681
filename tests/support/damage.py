"""Damage to input files: of any byte, or of what a checksum covers with the checksum corrected afterwards."""

from __future__ import annotations

import io
import json
import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

from numpy.random import Generator

Mutation = Callable[[bytes, bytes, Generator], bytes]

_NUMBERS = (0, 1, 2, 127, 255, 256, 65535, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1, 2**63, 2**64 - 1)
_TEXTS = (
    *(b"", b"-1", b"0", b"9" * 30, b"1e999", b"0x10", b"1L", b"1_0", b"1j", b"NaN", b"True", b"None", b"'a'", b"()"),
    *(b"(" * 400, b"-" * 3000, b"[" * 3000, b'{"a":' * 900, b"\\u0000", b"\xff", b"'O'", b"'|V8'", b"'<f16'", b"'>i8'"),
)
_SCALARS = (None, True, False, 0, 1, -1, 3, 0.5, -0.0, 1e300, 2**31, 2**63, 10**400, float("nan"), float("inf"))
_WORDS = ("", "x" * 3000, "../../x", "\x00", "\ud800", "float64", "jax", "gpu:9", "sgd", "dann:1", "target")
_ENTRIES: tuple[Any, ...] = (
    *(None, -1, 2**63, 1e300, [], {}, "F64", "BF16", "F8_E4M3", [0, 2**40], [2**40, 1], "x" * 3000),
)
_VALUES: tuple[Any, ...] = (*_SCALARS, *_WORDS, [], [3], [-1], [10**9], [[]], {})


def mutate(data: bytes, other: bytes, generator: Generator) -> bytes:
    """Damage bytes in one to three places.

    Args:
        data: the file to damage.
        other: another file of the same kind, to splice with.
        generator: draws the places and the kinds of damage.
    """
    for _ in range(generator.integers(1, 4)):
        data = _MUTATIONS[generator.integers(len(_MUTATIONS))](data, other, generator)
    return data


def mutate_npz(data: bytes, other: bytes, generator: Generator) -> bytes:
    """Damage an archive, or one member of it with a correct checksum."""
    if generator.random() < 0.5:
        return mutate(data, other, generator)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    names = list(members)
    chosen = names[generator.integers(len(names))]
    members[chosen] = mutate(members[chosen], members[names[generator.integers(len(names))]], generator)
    methods = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", methods[generator.choice(4, p=(0.45, 0.45, 0.05, 0.05))]) as archive:
        for name, member in members.items():
            archive.writestr(name, member)
    return packed.getvalue()


def mutate_png(data: bytes, other: bytes, generator: Generator) -> bytes:
    """Damage a picture, or one chunk of it with a correct checksum."""
    if generator.random() < 0.4:
        return mutate(data, other, generator)
    chunks, start = [], 8
    while start < len(data):
        size = int.from_bytes(data[start : start + 4], "big")
        chunks.append((data[start + 4 : start + 8], data[start + 8 : start + 8 + size]))
        start += size + 12
    chosen = generator.integers(len(chunks))
    kind, content = chunks[chosen]
    chunks[chosen] = (kind, mutate(content, data, generator))
    if generator.random() < 0.3:
        kinds = (b"PLTE", b"tRNS", b"iCCP", b"zTXt", b"iTXt", b"acTL", b"fcTL", b"fdAT", b"gAMA", b"eXIf")
        chunks.insert(1, (kinds[generator.integers(len(kinds))], generator.bytes(int(generator.integers(40)))))
    written = b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )
    return data[:8] + written


def mutate_safetensors(data: bytes, other: bytes, generator: Generator) -> bytes:
    """Damage a file, its header with a correct length, or one value in the header."""
    size = int.from_bytes(data[:8], "little")
    header, numbers = data[8 : 8 + size], data[8 + size :]
    kind = generator.integers(3)
    if kind == 0:
        return mutate(data, other, generator)
    if kind == 1:
        header = mutate(header, other[8 : 8 + size], generator)
    else:
        tensors = json.loads(header)
        entry = tensors[list(tensors)[generator.integers(len(tensors))]]
        key = list(entry)[generator.integers(len(entry))]
        entry[key] = _ENTRIES[generator.integers(len(_ENTRIES))]
        header = json.dumps(tensors).encode()
    return len(header).to_bytes(8, "little") + header + numbers


def mutate_checkpoint(data: bytes, other: bytes, generator: Generator) -> bytes:
    """Damage one file of a checkpoint; a JSON file stays JSON, with one value changed or removed."""
    try:
        content = json.loads(data)
    except ValueError:
        is_text = data.startswith(b"{")  # the lines of the log
        return (mutate if is_text else mutate_safetensors)(data, other, generator)
    for _ in range(generator.integers(1, 3)):
        place, keys = content, list(content)
        key = keys[generator.integers(len(keys))]
        while isinstance(place[key], dict) and place[key] and generator.random() < 0.9:
            place, keys = place[key], list(place[key])
            key = keys[generator.integers(len(keys))]
        if generator.random() < 0.15:
            del place[key]
        else:
            place[key] = _VALUES[generator.integers(len(_VALUES))]
        if not content:
            break
    return json.dumps(content).encode()


def mutate_text(text: str, generator: Generator) -> str:
    """Damage a word of a command line with any characters except NUL, which no system passes on."""
    alphabet = "abcz019-+=:./, _%'\"\\[]{}()\n\t\x1bλé∞\U0001f600\udcff"
    for _ in range(generator.integers(1, 4)):
        at = int(generator.integers(len(text) + 1))
        extra = alphabet[generator.integers(len(alphabet))] * int(generator.choice([0, 1, 1, 1, 300]))
        text = text[:at] + extra + text[at + int(generator.integers(3)) :]
    return text


def _position(data: bytes, generator: Generator) -> int:
    """Draw a position: often among the first or the last bytes, where headers are."""
    near = int(generator.integers(min(len(data), 150) + 1))
    return [near, max(len(data) - near, 0), int(generator.integers(len(data) + 1))][generator.integers(3)]


def _flip(data: bytes, _: bytes, generator: Generator) -> bytes:
    at = _position(data, generator)
    return data[:at] + bytes(byte ^ (1 << int(generator.integers(8))) for byte in data[at : at + 1]) + data[at + 1 :]


def _overwrite(data: bytes, _: bytes, generator: Generator) -> bytes:
    at, count = _position(data, generator), int(generator.integers(1, 12))
    return data[:at] + generator.bytes(count) + data[at + count :]


def _truncate(data: bytes, _: bytes, generator: Generator) -> bytes:
    return data[: _position(data, generator)]


def _extend(data: bytes, _: bytes, generator: Generator) -> bytes:
    return data + generator.bytes(int(generator.integers(1, 40)))


def _drop(data: bytes, _: bytes, generator: Generator) -> bytes:
    at = _position(data, generator)
    return data[:at] + data[at + int(generator.integers(1, 60)) :]


def _repeat(data: bytes, _: bytes, generator: Generator) -> bytes:
    at, count = _position(data, generator), int(generator.integers(1, 60))
    return data[: at + count] * int(generator.integers(1, 3)) + data[at:]


def _splice(data: bytes, other: bytes, generator: Generator) -> bytes:
    return data[: _position(data, generator)] + other[_position(other, generator) :]


def _resize(data: bytes, _: bytes, generator: Generator) -> bytes:
    """Overwrite a few bytes with a number, where a size may be."""
    at, width = _position(data, generator), int(generator.choice([1, 2, 4, 8]))
    number = _NUMBERS[generator.integers(len(_NUMBERS))] % 256**width
    return data[:at] + number.to_bytes(width, generator.choice(["little", "big"])) + data[at + width :]


def _rewrite(data: bytes, _: bytes, generator: Generator) -> bytes:
    """Replace a number or a word in a text header."""
    words = list(re.finditer(rb"\d+|'[^']*'|\"[^\"]*\"|True|False", data[:2000]))
    if not words:
        return data
    word = words[generator.integers(len(words))]
    return data[: word.start()] + _TEXTS[generator.integers(len(_TEXTS))] + data[word.end() :]


_MUTATIONS: tuple[Mutation, ...] = (
    *(_flip, _flip, _overwrite, _truncate, _extend, _drop, _repeat, _splice, _resize, _resize, _rewrite, _rewrite),
)
