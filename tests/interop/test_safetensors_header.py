"""What the safetensors reader refuses, with a reason, and the odd headers it accepts: as the library does."""

import json
import os

import pytest
import torch
from safetensors import safe_open
from safetensors_check import compare, entry, write_raw

from minigpt_ext.interop import safetensors_header
from minigpt_ext.interop.safetensors_header import DTYPES
from minigpt_ext.interop.safetensors_reader import MAX_HEADER, SafetensorsFile


def one(**changed):
    return json.dumps({"a": entry() | changed})


def two(first, second, **kinds):
    return json.dumps({"a": entry(offsets=first, **kinds), "b": entry(offsets=second, **kinds)})


FOUR = b"abcd"
ENTRY = json.dumps(entry())
UNKNOWN = '{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4], "more": %s}}'
REFUSED = {
    "empty header": ("", b"", "not JSON"),
    "not UTF-8": (b'{"\xed\xa0\x80": 1}', b"", "not UTF-8"),
    "not JSON": ("{]", b"", "not JSON"),
    "trailing zeros": ("{}\0\0", b"", "not JSON"),
    "byte order mark": ("\ufeff{}", b"", "not JSON"),
    "array": ("[]", b"", "an array, not an object"),
    "number": ("3", b"", "a number, not an object"),
    "NaN": (UNKNOWN % "NaN", FOUR, "NaN is no JSON value"),
    "infinite": (UNKNOWN % "1e999", FOUR, "out of range"),
    "long number": (UNKNOWN % ("9" * 400), FOUR, "out of range"),
    "longer than Python takes": (UNKNOWN % ("9" * 5000), FOUR, "out of range"),
    "deep": (UNKNOWN % ("[" * 126 + "]" * 126), FOUR, "more than 127 levels"),
    "bottomless": ("[" * 10**6, b"", "more than 127 levels"),
    "half a pair": (r'{"\ud800": 1}', b"", "half a surrogate pair"),
    "half a pair unread": (UNKNOWN % r'["\ude00\ud83d"]', FOUR, "half a surrogate pair"),
    "metadata array": ('{"__metadata__": []}', b"", "must be an object of strings, not an array"),
    "metadata number": ('{"__metadata__": {"a": 1}}', b"", "must hold strings, and 'a' is a number"),
    "null entry": ('{"a": null}', b"", "tensor 'a': its entry must be an object, not null"),
    "no dtype": ('{"a": {"shape": [1], "data_offsets": [0, 4]}}', FOUR, "tensor 'a': dtype is missing"),
    "no offsets": ('{"a": {"dtype": "F32", "shape": [1]}}', FOUR, "tensor 'a': data_offsets is missing"),
    "dtype": (one(dtype="f32"), FOUR, "tensor 'a': dtype must be one of BOOL, F4, .*, not 'f32'"),
    "dtype number": (one(dtype=3), FOUR, "dtype must be one of .*, not 3"),
    "shape number": (one(shape=1), FOUR, "shape must be a list of integers .*, not 1"),
    "shape negative": (one(shape=[-1]), FOUR, r"shape must be .*, not \[-1\]"),
    "shape true": (one(shape=[True]), FOUR, r"shape must be .*, not \[True\]"),
    "shape float": (one(shape=[1.0]), FOUR, r"shape must be .*, not \[1.0\]"),
    "shape beyond": (one(shape=[0, 2**64], data_offsets=[0, 0]), b"", "shape must be"),
    "offsets": (one(data_offsets=[0, 4, 4]), FOUR, r"data_offsets must be two integers .*, not \[0, 4, 4\]"),
    "minus zero": ('{"a": {"dtype": "F32", "shape": [1], "data_offsets": [-0, 4]}}', FOUR, "data_offsets must be"),
    "backwards": (one(data_offsets=[4, 0]), FOUR, "end before they begin: 4, 0"),
    "overflow": (one(shape=[2**63, 2]), FOUR, "overflows 64 bits"),
    "overflow before 0": (one(shape=[2**63, 2, 0], data_offsets=[0, 0]), b"", "overflows 64 bits"),
    "overflow in bits": (one(shape=[2**60], data_offsets=[0, 2**62]), FOUR, "overflows 64 bits"),
    "half a byte": (one(dtype="F4", shape=[7]), FOUR, "28 bits, which are no whole bytes"),
    "size": (one(shape=[2]), FOUR, r"takes 8 bytes, and data_offsets \[0, 4\] hold 4"),
    "overlap": (two([0, 4], [2, 6]), FOUR + b"ef", "tensor 'b': .* overlap another tensor, which ends at 4"),
    "overlap by a byte": (two([0, 4], [3, 7]), b"abcdefg", "tensor 'b': .* overlap another tensor"),
    "same place": (two([0, 4], [0, 4]), FOUR, "tensor 'b': .* overlap"),
    "hole": (two([0, 4], [5, 9]), FOUR + b"efghi", "tensor 'b': .* leave a hole: bytes 4 to 5 belong to no tensor"),
    "hole in front": (one(data_offsets=[1, 5]), FOUR + b"e", "leave a hole"),
    "far away": (one(data_offsets=[2**63, 2**63 + 4]), FOUR, "lie beyond the file's 4 bytes of data"),
    "truncated": (one(), b"abc", "lie beyond the file's 3 bytes of data"),
    "trailing": (one(), FOUR + b"e", "end at byte 4 of the data, and 1 bytes too many follow"),
    "data of nobody": ("{}", b"a", "1 bytes too many"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_library_refuses_is_refused_with_a_reason(tmp_path, case):
    header, data, message = REFUSED[case]
    path = write_raw(tmp_path / "file.safetensors", header, data)
    assert not compare(path)
    with pytest.raises(ValueError, match=message) as caught:
        SafetensorsFile(path)
    assert len(str(caught.value)) < 600 + len(str(path))


@pytest.mark.parametrize(
    ("length", "message"),
    [(0, "not JSON"), (1, "not JSON"), (3, "of 3 bytes, and only 2 follow"), (MAX_HEADER, "only 2 follow")]
    + [(length, f"of {length} bytes; 100000000 are the limit") for length in (MAX_HEADER + 1, 2**32, 2**63, 2**64 - 1)],
)
def test_wrong_lengths_of_the_header(tmp_path, length, message):
    path = write_raw(tmp_path / "file.safetensors", "{}", length=length)
    assert not compare(path)
    with pytest.raises(ValueError, match=message):
        SafetensorsFile(path)


def test_a_header_longer_than_the_limit(tmp_path):
    path = write_raw(tmp_path / "file.safetensors", "{}", length=MAX_HEADER + 1)
    os.truncate(path, MAX_HEADER + 9)
    with pytest.raises(ValueError, match="a header of 100000001 bytes; 100000000 are the limit"):
        SafetensorsFile(path)
    assert not compare(path)


@pytest.mark.parametrize("content", [b"", b"\2", bytes(7)])
def test_files_that_are_too_short(tmp_path, content):
    path = tmp_path / "file.safetensors"
    path.write_bytes(content)
    assert not compare(path)
    with pytest.raises(ValueError, match=f"a file of {len(content)} bytes: a safetensors file begins with 8"):
        SafetensorsFile(path)


@pytest.mark.parametrize(
    "header",
    [
        json.dumps({"a": entry(shape=[0, 2**63, 2], offsets=[0, 0])}),  # 0 first: no overflow, but no shape for torch
        json.dumps({"a": entry(shape=[0, 2**62, 4], offsets=[0, 0])}),
        '{"a": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0], "more": [{"x": -1.5e-999}, null]}}',
        UNKNOWN.replace("4", "0").replace("[1]", "[0]") % ("[" * 125 + "]" * 125),
        '{"": {"dtype": "F4", "shape": [0, 3], "data_offsets": [0, 0]}, "__metadata__": null}',
        '{"\\ud83d\\ude00": {"dtype": "F6_E2M3", "shape": [0], "data_offsets": [0, 0]}}',
        " \t\n\r{}\n",
    ],
)
def test_odd_headers_that_the_library_accepts(tmp_path, header):
    assert compare(write_raw(tmp_path / "file.safetensors", header))


def test_an_empty_tensor_lies_before_the_one_that_begins_there(tmp_path):
    header = {"b": entry("U8", [4], [0, 4]), "a": entry("U8", [0], [0, 0]), "c": entry("U8", [0, 9], [4, 4])}
    path = write_raw(tmp_path / "file.safetensors", json.dumps(header), FOUR)
    assert compare(path)
    assert SafetensorsFile(path).names == ["a", "b", "c"]


@pytest.mark.parametrize(
    "header",
    [
        f'{{"a": {ENTRY}, "a": {ENTRY}}}',
        f'{{"__metadata__": {{"a": "b", "a": "c"}}, "a": {ENTRY}}}',
        '{"a": ["F32", [1], [0, 4]]}',
        '{"a": {"dtype": {"F32": null}, "shape": [1], "data_offsets": [0, 4]}}',
    ],
)
def test_what_only_our_reader_refuses(tmp_path, header):
    path = write_raw(tmp_path / "file.safetensors", header, FOUR)
    with safe_open(path, "pt") as file:
        assert list(file.keys()) == ["a"]
    with pytest.raises(ValueError, match="twice|must be"):
        SafetensorsFile(path)
    assert not compare(path)


def test_the_comparison_sees_a_reader_that_is_too_lax_or_too_strict(tmp_path, monkeypatch):
    path = write_raw(tmp_path / "file.safetensors", one(data_offsets=[1, 5]), FOUR + b"e")
    with monkeypatch.context() as patched:
        patched.setattr(safetensors_header, "_check_layout", lambda tensors, data_size: None)
        with pytest.raises(AssertionError, match="the library refuses this file"):
            compare(path)
    write_raw(path, one(), FOUR)
    with monkeypatch.context() as patched:
        patched.setattr(safetensors_header, "_UINT64", 4)
        with pytest.raises(AssertionError, match="the library accepts this file"):
            compare(path)
    with monkeypatch.context() as patched:
        patched.setitem(DTYPES, "F32", (32, torch.int32))
        with pytest.raises(AssertionError, match="float32"):
            compare(path)


def test_a_key_twice_is_found_in_time_among_many(tmp_path):
    names = [f'"{i}":0' for i in range(200_000)]
    with pytest.raises(ValueError, match="the key '199999' is there twice"):
        SafetensorsFile(write_raw(tmp_path / "file.safetensors", "{" + ",".join([*names, names[-1]]) + "}"))
