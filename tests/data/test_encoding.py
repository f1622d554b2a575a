from __future__ import annotations

import bz2
import gzip
import json
import lzma
from pathlib import Path

import pytest

from hftk.config import DataConfig, InputError
from hftk.data.encoding import likely_encodings, open_text
from hftk.data.files import File
from hftk.data.load import read_rows

CHINESE = "如果不是看在离奥运场馆近的份上，绝对不住这家。地理位置较难找，走廊超长，吃不消啊。\n"
RUSSIAN = "Кодировка используется на компьютерах, и текст этот достаточно длинный, чтобы её узнать.\n"
JAPANESE = "日本語の文章をここに書きます。これは文字コードを判定するための例です。\n"
KOREAN = "이 문장은 한국어로 쓰여 있으며 문자 집합을 알아내기 위한 예입니다.\n"
FRENCH = "Il a mangé des crêpes à la crème près de la forêt, où l'été était déjà très avancé.\n"


def read(path: Path, encoding: str = "utf-8") -> str:
    with open_text(File(path=path, format="txt", setting="data.path"), encoding) as text:
        return text.read()


def test_utf8_is_read_with_and_without_bom(tmp_path):
    path = tmp_path / "a.txt"
    for data in (CHINESE.encode(), CHINESE.encode("utf-8-sig")):
        path.write_bytes(data)
        assert read(path) == CHINESE


@pytest.mark.parametrize(
    "ending, pack", [(".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress), (".zst", None)]
)
def test_compressed_files_read_as_plain_ones(tmp_path, lm, ending, pack):
    path = tmp_path / f"a.txt{ending}"
    if pack is None:
        import pyarrow

        with pyarrow.output_stream(str(path), compression="zstd") as file:
            file.write(CHINESE.encode())
    else:
        path.write_bytes(pack(CHINESE.encode()))
    assert list(read_rows(path, DataConfig(), lm)[0]["text"]) == [CHINESE]


def test_a_cut_off_compressed_file_is_named(tmp_path, refusal):
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress(CHINESE.encode() * 100)[:-20])
    assert "cut off" in refusal(read, path) and str(path) in refusal(read, path)


@pytest.mark.parametrize(
    "text, encoding, suggestions",
    [
        (CHINESE, "gb18030", {"gb18030"}),
        ("繁體中文與簡體中文的差別，在於字形與用詞，這是一個例子。\n", "big5", {"big5"}),
        (JAPANESE, "shift_jis", {"shift_jis"}),
        (JAPANESE, "euc_jp", {"euc_jp"}),
        (KOREAN, "euc-kr", {"euc-kr"}),
        (RUSSIAN, "cp1251", {"cp1251"}),
        (RUSSIAN, "koi8-r", {"koi8_r", "koi8_u"}),
        (FRENCH, "cp1252", {"cp1252"}),
        (CHINESE, "utf-16", {"utf-16"}),
        (CHINESE, "utf-32", {"utf-32"}),
    ],
)
def test_an_undecodable_file_is_named_with_line_byte_and_likely_encoding(
    tmp_path, refusal, text, encoding, suggestions
):
    path = tmp_path / "a.txt"
    path.write_bytes(("plain line\n" * 2 + text).encode(encoding))
    message = refusal(read, path)
    assert f"{path}, line {1 if encoding.startswith('utf') else 3}: byte 0x" in message
    suggested = message.split("--data.encoding ")[1].split()[0]
    assert suggested in suggestions
    assert read(path, suggested) == "plain line\n" * 2 + text  # doing what it says works


def test_the_line_is_right_far_into_a_large_file(tmp_path, refusal):
    path = tmp_path / "a.txt"
    good = ("x" * 99 + "\n").encode() * 30_000  # 3 MB, several blocks
    path.write_bytes(good + "naïve\n".encode("latin-1") + good)
    message = refusal(read, path)
    assert "line 30001: byte 0xef at offset 3,000,002" in message


def test_one_damaged_line_in_a_utf8_file_is_called_damage(tmp_path, refusal):
    path = tmp_path / "a.txt"
    path.write_bytes(CHINESE.encode() * 5 + b"caf\xe9\n" + CHINESE.encode() * 5)
    message = refusal(read, path)
    assert "line 6" in message and "damaged" in message and "--data.encoding" not in message


def test_a_utf8_file_read_in_another_encoding_is_recognized(tmp_path, refusal):
    path = tmp_path / "a.txt"
    path.write_bytes(("é" + CHINESE).encode())
    assert "add --data.encoding utf-8" in refusal(read, path, "ascii")


def test_an_unknown_encoding_is_corrected(tmp_path, refusal):
    path = tmp_path / "a.txt"
    path.write_text("a")
    assert "did you mean gb18030?" in refusal(read, path, "gb18300")


def test_an_undecodable_json_line_is_reported_too(tmp_path, lm, refusal):
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        "".join(
            json.dumps({"text": t}, ensure_ascii=False) + "\n" for t in ("plain", CHINESE, CHINESE)
        ).encode("gb18030")
    )
    assert "line 2" in refusal(read_rows, path, DataConfig(), lm)
    assert len(read_rows(path, DataConfig(encoding="gb18030"), lm)[0]) == 3


def test_the_encodings_of_real_files_are_mostly_found(shared):
    folder = shared / "dirty_encodings"
    exact = undecodable = 0
    for line in (folder / "manifest.jsonl").read_text().splitlines():
        fact = json.loads(line)
        try:
            read(folder / fact["file"])
        except InputError as error:
            undecodable += 1
            data, (problem,) = (folder / fact["file"]).read_bytes(), error.problems
            assert str(folder / fact["file"]) in problem.message and "line" in problem.message
            suggested = problem.fix.split()[-1] if "NAME" not in problem.fix else ""
            try:
                exact += bool(suggested) and data.decode(suggested).lstrip("\ufeff") == data.decode(
                    fact["encoding"]
                ).lstrip("\ufeff")
            except LookupError:  # euc-tw and viscii, which Python cannot decode
                continue
    assert exact / undecodable >= 0.8, f"{exact} of {undecodable}"


def test_a_short_latin_text_is_not_taken_for_utf_16() -> None:
    found = [name for name, _ in likely_encodings("café,a\nthé,b".encode("latin-1"))]
    assert found and not any(name.startswith("utf_16") for name in found)
    assert likely_encodings("咖啡,好\n茶,坏\n".encode("utf-16-le") * 20)[0][0] == "utf_16_le"
