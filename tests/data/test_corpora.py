import hashlib

import pytest

from minigpt_ext.data.corpora import load_corpus, split


def test_a_file_is_read_as_it_is(tmp_path):
    path = tmp_path / "a.md"
    path.write_bytes("línea\r\nzwei\n".encode())
    corpus = load_corpus([str(path)])
    assert corpus.text == "línea\r\nzwei\n"
    assert corpus.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert corpus.sources == (str(path),)


def test_sources_are_absolute_so_that_a_run_finds_them_again(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("a")
    monkeypatch.chdir(tmp_path)
    assert load_corpus(["a.txt"]).sources == (str(tmp_path / "a.txt"),)


def test_files_are_joined_in_the_order_given_with_line_breaks_between(tmp_path):
    for name, text in {"a": "one", "b": "two\n", "c": "", "d": "three"}.items():
        (tmp_path / name).write_text(text)
    assert load_corpus([str(tmp_path / name) for name in "abcd"]).text == "one\ntwo\nthree"
    assert load_corpus([str(tmp_path / name) for name in "da"]).text == "three\none"


def test_a_folder_gives_its_txt_files_by_path(tmp_path):
    (tmp_path / "sub").mkdir()
    for name, text in {"b.txt": "b", "a.txt": "a", "sub/c.txt": "c", "z.md": "no", "d.txt.bak": "no"}.items():
        (tmp_path / name).write_text(text)
    assert load_corpus([str(tmp_path)]).text == "a\nb\nc"


def test_a_byte_order_mark_is_no_character(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfabc")
    assert load_corpus([str(path)]).text == "abc"


def test_what_is_not_utf8_is_named_with_file_and_offset(tmp_path):
    path = tmp_path / "latin.txt"
    path.write_bytes(b"caf\xe9 noir")
    with pytest.raises(ValueError, match=r"latin\.txt is not UTF-8: .* at byte offset 3"):
        load_corpus([str(path)])


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match="'shakespear' is not a file, a folder, or one of python, shakespeare"):
        load_corpus(["shakespear"])
    with pytest.raises(ValueError, match=r"holds no \.txt files"):
        load_corpus([str(tmp_path)])
    with pytest.raises(ValueError, match="data: give"):
        load_corpus([])
    with pytest.raises(TypeError, match="sources: expected a sequence"):
        load_corpus("python")


def test_the_split_is_nine_to_one():
    text = "".join(chr(65 + i % 26) for i in range(1115394 % 10007))
    train, validation = split(text)
    assert train + validation == text and len(train) == int(0.9 * len(text))
    assert len(split("x" * 1115394)[0]) == 1003854  # Tiny Shakespeare
