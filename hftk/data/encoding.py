"""Opening text files, compressed or not, and saying what is wrong with their bytes."""

from __future__ import annotations

import bz2
import codecs
import gzip
import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from encodings.aliases import aliases
from io import TextIOWrapper
from pathlib import Path
from typing import IO, Any, TextIO, cast

from hftk.config import InputError, Problem
from hftk.data.files import COMPRESSIONS, File
from hftk.data.tables import did_you_mean

_BOMS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),  # before UTF-16, whose BOM they begin with
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# What texts of today are found in, common ones first; the detector takes rarer ones for short texts where it
# may.
_CANDIDATES = (
    "gb18030",
    "big5",
    "cp932",
    "euc_jp",
    "cp949",
    "cp1252",
    "cp1251",
    "cp1250",
    "cp1253",
    "cp1254",
    "cp1255",
    "cp1256",
    "cp1257",
    "cp1258",
    "koi8_r",
    "koi8_u",
    "iso8859_2",
    "iso8859_5",
    "iso8859_6",
    "iso8859_7",
    "iso8859_8",
    "cp874",
    "cp866",
    "cp855",
    "mac_roman",
    "mac_cyrillic",
    "utf_16_le",
    "utf_16_be",
)
_LATIN = ("cp1250", "cp1254", "cp1257", "cp1258", "iso8859_2", "mac_roman")
_NAMES = {"cp932": "shift_jis", "cp949": "euc-kr"}
_BLOCK = 1 << 20
_SAMPLE = 200


def check_encoding(name: str) -> str:
    """The codec for an encoding's name; UTF-8 also reads past a BOM. InputError for a name that Python does
    not know."""
    try:
        codec = codecs.lookup(name).name
    except LookupError:
        known = {*aliases, *aliases.values(), "utf-8"}
        raise InputError(
            Problem(
                setting="data.encoding",
                message=f"expected the name of a text encoding, found {name}{did_you_mean(name, known)}",
                fix="such as utf-8, gb18030, big5, shift_jis, euc-kr, latin-1, cp1252",
            )
        ) from None
    return "utf-8-sig" if codec == "utf-8" else codec


def open_bytes(path: Path) -> IO[bytes]:
    """The file's content, decompressed by its ending."""
    compression = COMPRESSIONS.get(path.suffix.lower())
    if compression == "gzip":
        return cast(IO[bytes], gzip.open(path, "rb"))
    if compression == "bz2":
        return cast(IO[bytes], bz2.open(path, "rb"))
    if compression == "xz":
        return cast(IO[bytes], lzma.open(path, "rb"))
    if compression == "zstd":
        import pyarrow as pa  # the standard library reads Zstandard from Python 3.14 on only

        return cast(IO[bytes], pa.input_stream(str(path), compression="zstd"))
    return path.open("rb")


@contextmanager
def open_text(file: File, encoding: str) -> Iterator[TextIO]:
    """Open for reading; undecodable bytes and damaged files become an InputError that says where and what to
    type."""
    codec = check_encoding(encoding)
    try:
        with (
            open_bytes(file.path) as binary,
            TextIOWrapper(cast(Any, binary), encoding=codec, newline="") as text,
        ):
            yield text
    except UnicodeError:
        raise InputError(_undecodable(file, encoding, codec)) from None
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise InputError(unreadable(file, error)) from error


def unreadable(file: File, error: Exception) -> Problem:
    """What to say about a file that cannot be opened or is cut off."""
    kind = COMPRESSIONS.get(file.path.suffix.lower())
    fix = (
        f"the {kind} data is damaged or cut off; copy or download the file again"
        if kind
        else "check the file and its permissions"
    )
    return Problem(setting=file.setting, message=f"cannot read {file.path}: {error}", fix=fix)


def _undecodable(file: File, encoding: str, codec: str) -> Problem:
    """Find the first bad byte again, slowly, and what the file may be instead."""
    offset, line, found, sample = _first_bad_byte(file.path, codec)
    where = f"{file.path}, line {line}: byte 0x{found[0]:02x} at offset {offset:,} is not {encoding}"
    with open_bytes(file.path) as binary:
        head = binary.read(_BLOCK)
    boms = [name for bom, name in _BOMS if head.startswith(bom)]
    if boms and codec != codecs.lookup(boms[0]).name:
        message = f"{where}; the file begins with the mark of {boms[0].upper()}"
        return Problem(setting=file.setting, message=message, fix=f"add --data.encoding {boms[0]}")
    lines = [part for part in sample if not part.isascii()]
    in_utf8 = sum(_decodes(part, "utf-8") for part in lines)
    if in_utf8 > 0.5 * len(lines):
        if codec == "utf-8-sig":
            message = (
                f"{where}; {in_utf8} of {len(lines)} lines around it with other than ASCII letters are, so"
                " the file is damaged there"
            )
            return Problem(
                setting=file.setting,
                message=message,
                fix="repair or remove the line, or save the file again as UTF-8",
            )
        return Problem(
            setting=file.setting,
            message=f"{where}; the file looks like UTF-8",
            fix="add --data.encoding utf-8",
        )
    likely = likely_encodings(head if b"\0" in head else b"\n".join(lines))
    if not likely:
        return Problem(
            setting=file.setting, message=where, fix="add --data.encoding NAME, or save the file as UTF-8"
        )
    name, text = likely[0]
    others = f" or {' or '.join(other for other, _ in likely[1:3])}" if likely[1:] else ""
    return Problem(
        setting=file.setting,
        message=f"{where}; likely {name}{others}, in which it reads: {text.strip()[:60]!r}",
        fix=f"add --data.encoding {name}",
    )


def likely_encodings(data: bytes) -> list[tuple[str, str]]:
    """Encodings that fit the bytes equally well, the likeliest first, each with the text that it gives.

    charset-normalizer over the encodings that texts are found in; where another Latin encoding fits hardly
    better than Western cp1252, that more common one goes first.
    """
    from charset_normalizer import from_bytes

    # Every text in UTF-16 or UTF-32 has a NUL, be it in a line's end alone; two letters of a short one pass
    # for a Chinese sign.
    fits = [name for name in _CANDIDATES if b"\0" in data or not name.startswith(("utf_16", "utf_32"))]
    matches = list(from_bytes(data, cp_isolation=fits))
    if not matches:
        return []
    best = [m for m in matches if (m.chaos, -m.coherence) <= (matches[0].chaos, -matches[0].coherence)]
    names = list(dict.fromkeys(name for match in best for name in match.could_be_from_charset))
    western = next((m for m in matches if "cp1252" in m.could_be_from_charset), None)
    if (
        names[0] in _LATIN
        and western
        and western.chaos <= best[0].chaos + 0.1
        and western.coherence >= best[0].coherence
    ):
        names = list(dict.fromkeys(["cp1252", *names]))
    return [(_NAMES.get(name, name), data.decode(name, "replace")) for name in names]


def _first_bad_byte(path: Path, codec: str) -> tuple[int, int, bytes, list[bytes]]:
    """Offset, line (from 1), the bytes from there on, and lines before and after as a sample."""
    decoder = codecs.getincrementaldecoder(codec)()
    read = newlines = 0
    with open_bytes(path) as file:
        while True:
            block = file.read(_BLOCK)
            read += len(block)
            newlines += block.count(b"\n")
            try:
                decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                data = bytes(error.object)
                begin = data.rfind(b"\n", 0, error.start) + 1
                before = [line for line in data[:begin].split(b"\n") if not line.isascii()][-_SAMPLE:]
                after = (data[begin:] + file.read(_BLOCK)).split(b"\n")[:-1] or [data[begin:]]
                sample = before + [line for line in after if not line.isascii()][:_SAMPLE]
                line = newlines - data[error.start :].count(b"\n") + 1
                return read - len(data) + error.start, line, data[error.start :], sample
            except UnicodeError:  # UTF-16 without a BOM where one is needed
                return 0, 1, block[:4] or b"\0", block.split(b"\n")[:_SAMPLE]
            if not block:
                return read, newlines + 1, b"\0", []


def _decodes(data: bytes, codec: str) -> bool:
    try:
        data.decode(codec)
    except UnicodeDecodeError:
        return False
    return True
