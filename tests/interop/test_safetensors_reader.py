"""The safetensors reader: its page's example, the library's verdict on every kind of file, and what it maps."""

import json
import os
import re
import struct
from pathlib import Path

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from safetensors.torch import save, save_file
from safetensors_check import bytes_of, compare, entry, write_raw

from minigpt_ext.interop import safetensors_reader
from minigpt_ext.interop.safetensors_header import DTYPES
from minigpt_ext.interop.safetensors_reader import SafetensorsFile

TORCH = {name: dtype for name, (_, dtype) in DTYPES.items() if dtype is not None and name != "F4"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("safetensors")


def test_the_example_of_the_page_is_a_file(tmp_path):
    content = save({"w": torch.tensor([1.0, -2.0], dtype=torch.float16)})
    told = dict(re.findall(r"^ +(\d+)   ([0-9a-f .]+?)  ", safetensors_reader.__doc__, re.MULTILINE))
    assert sorted(map(int, told)) == [0, 8, 64, 66] and len(content) == 68
    for offset, hexadecimal in told.items():
        before, _, after = hexadecimal.partition(" ... ")
        assert content[int(offset) :].startswith(bytes.fromhex(before))
        assert content[:64].endswith(bytes.fromhex(after)) or not after
    path = tmp_path / "w.safetensors"
    path.write_bytes(content)
    with SafetensorsFile(path) as file:
        assert file.names == ["w"] and file.tensor("w").tolist() == [1.0, -2.0]


@pytest.mark.parametrize("dtype", TORCH)
@pytest.mark.parametrize("shape", [(), (1,), (0,), (3, 0, 2), (3, 5, 2)])
def test_every_dtype_as_the_library_writes_it(tmp_path, dtype, shape):
    count = torch.Size(shape).numel() * TORCH[dtype].itemsize
    values = torch.randint(0, 2 if dtype == "BOOL" else 256, (count,), dtype=torch.uint8)
    tensor = values.view(TORCH[dtype]).reshape(shape)
    path = tmp_path / "t.safetensors"
    save_file({"t": tensor, "other": torch.ones(3)}, path, {"format": "pt"})
    with SafetensorsFile(path) as file:
        info, read = file.info("t"), file.tensor("t")
        assert (info.dtype, info.shape, info.nbytes, info.numel) == (dtype, shape, count, tensor.numel())
        assert read.dtype == tensor.dtype and read.shape == tensor.shape and bytes_of(read) == bytes_of(tensor)
        assert file.metadata == {"format": "pt"} and "t" in file and "u" not in file
    assert compare(path)


names = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
sizes = st.one_of(st.integers(0, 4), st.sampled_from([8, 2**31, 2**32, 2**62, 2**63 - 1, 2**63, 2**64 - 1]))


shapes = st.lists(st.integers(0, 4), max_size=4)


@st.composite
def files(draw):
    """Header, as Python values, and data of a valid file: any names and dtypes, entries in any order."""
    entries, position = [], 0
    for name in draw(st.lists(names.filter(lambda name: name != "__metadata__"), max_size=4, unique=True)):
        dtype, sizes = draw(st.sampled_from(sorted(DTYPES))), draw(shapes)
        bits = torch.Size(sizes).numel() * DTYPES[dtype][0]
        if bits % 8:
            dtype, bits = "U8", bits // DTYPES[dtype][0] * 8
        entries.append((name, entry(dtype, sizes, [position, position + bits // 8])))
        position += bits // 8
    entries = draw(st.permutations(entries))
    if draw(st.booleans()):
        entries.insert(0, ("__metadata__", draw(st.none() | st.dictionaries(names, names, max_size=2))))
    return dict(entries), draw(st.binary(min_size=position, max_size=position))


def header_text(draw, header):
    text = json.dumps(header, ensure_ascii=draw(st.booleans()), indent=draw(st.sampled_from([None, 1])))
    return draw(st.sampled_from(["", " ", "\n"])) + text + " " * draw(st.integers(0, 8))


@given(files(), st.data())
def test_valid_files_are_read_as_the_library_reads_them(folder, file, data):
    header, content = file
    assert compare(write_raw(folder / "valid.safetensors", header_text(data.draw, header), content))


ODD = st.one_of(
    st.sampled_from([None, True, "", "F32", "f32", -1, 0.0, 1.5, 1e400, [], {}, ["F32", [1], [0, 4]], {"F32": None}]),
    sizes,
    st.lists(sizes, max_size=3),
    st.sampled_from(sorted(DTYPES)),
)


def _with_a_change(draw, header):
    """Another value, a missing key or one too many, somewhere in the header."""
    header = json.loads(json.dumps(header))
    places = [(header, key) for key in header]
    places += [(value, key) for value in header.values() if isinstance(value, dict) for key in value]
    places += [(items, i) for place, key in places if isinstance(items := place[key], list) for i in range(len(items))]
    place, key = draw(st.sampled_from(places)) if places else (header, "new")
    if draw(st.integers(0, 3)) == 0 and places:
        del place[key]
    elif draw(st.integers(0, 3)) == 0 and isinstance(place, dict):
        place[draw(names)] = draw(ODD)
    else:
        place[key] = draw(ODD)
    return header


@given(files(), st.data())
@hypothesis_settings(max_examples=200)
def test_changed_headers_get_the_librarys_verdict(folder, file, data):
    header, content = file
    header = _with_a_change(data.draw, header)
    compare(write_raw(folder / "changed.safetensors", header_text(data.draw, header), content))


@given(files(), st.data())
@hypothesis_settings(max_examples=300)
def test_damaged_files_get_the_librarys_verdict(folder, file, data):
    header, content = file
    path = write_raw(folder / "damaged.safetensors", header_text(data.draw, header), content)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        kind = data.draw(st.sampled_from(["flip", "byte", "cut", "grow", "insert", "length"]))
        at = data.draw(st.integers(0, max(len(content) - 1, 0)))
        if kind == "flip" and content:
            content[at] ^= 1 << data.draw(st.integers(0, 7))
        elif kind == "byte" and content:
            content[at] = data.draw(st.sampled_from(b'0123456789-eE.,:[]{}"\\ \n\0\xff'))
        elif kind == "cut":
            del content[at:]
        elif kind == "grow":
            content += data.draw(st.binary(max_size=9))
        elif kind == "insert":
            content[at:at] = data.draw(st.sampled_from([b"0", b",", b"[", b"{}", b'"', b"-", b"\\ud800", b"9" * 20]))
        elif kind == "length" and len(content) >= 8:
            content[:8] = struct.pack("<Q", data.draw(st.integers(0, 200) | sizes.map(lambda size: size % 2**64)))
    path.write_bytes(content)
    compare(path)


def test_packed_and_askew_tensors(tmp_path):
    header = json.dumps(
        {
            "four": entry("F4", [2, 4], [0, 4]),
            "odd": entry("F4", [2, 1], [4, 5]),
            "six": entry("F6_E3M2", [4], [5, 8]),
            "byte": entry("U8", [1], [8, 9]),
            "askew": entry("F32", [2], [9, 17]),
        }
    )
    path = write_raw(tmp_path / "file.safetensors", header, b"abcdefghi" + struct.pack("<2f", 1.5, -2.0))
    assert compare(path)
    with SafetensorsFile(path) as file:
        assert file.tensor("four").dtype == torch.float4_e2m1fn_x2 and file.tensor("four").shape == (2, 2)
        assert file.tensor("askew").tolist() == [1.5, -2.0]
        with pytest.raises(ValueError, match="tensor 'odd': torch has F4 in pairs only"):
            file.tensor("odd")
        with pytest.raises(ValueError, match="tensor 'six': torch has no dtype F6_E3M2"):
            file.tensor("six")


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", Path("/dev/null")):
        with pytest.raises(ValueError, match="not a file but a directory, a pipe or a device"):
            SafetensorsFile(path)
    with pytest.raises(FileNotFoundError):
        SafetensorsFile(tmp_path / "nothing")


@pytest.fixture
def ones(tmp_path):
    path = tmp_path / "ones.safetensors"
    save_file({"a": torch.ones(4), "b": torch.ones(1 << 20)}, path)
    return path


def test_tensors_outlive_the_file_and_never_write_into_it(ones):
    before = ones.read_bytes()
    with SafetensorsFile(ones) as file:
        kept = file.tensor("b")
        kept[0] = 5.0
        assert file.tensor("b")[0] == 5.0, "a copy, where a view was promised"
    assert ones.read_bytes() == before
    ones.unlink()
    assert kept[0] == 5.0 and kept[1:].eq(1).all()
    with pytest.raises(ValueError, match="closed"):
        file.tensor("a")


def test_a_file_that_becomes_shorter_is_noticed(ones):
    with SafetensorsFile(ones) as file:
        os.truncate(ones, file.size - 4)
        assert file.tensor("a").eq(1).all()
        with pytest.raises(ValueError, match="tensor 'b': the file has become shorter"):
            file.tensor("b")


def test_an_unknown_name(ones):
    with SafetensorsFile(ones) as file:
        for ask in (file.info, file.tensor):
            with pytest.raises(ValueError, match=r"ones.safetensors: there is no tensor 'c\\x1b'"):
                ask("c\x1b")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="resident memory is told by Linux' /proc only")
def test_nothing_is_read_until_it_is_touched(tmp_path):
    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")

    size = 1 << 33  # of a sparse file, which takes no room on the disk
    header = json.dumps({"a": entry("F32", [size // 4], [0, size])}).ljust(96)  # else it lies askew, and is copied
    path = write_raw(tmp_path / "large.safetensors", header)
    os.truncate(path, 8 + len(header) + size)
    before = resident()
    with SafetensorsFile(path) as file:
        tensor = file.tensor("a")
        assert tensor.shape == (size // 4,) and tensor[-1] == 0 and len(header) == 96
        assert resident() - before < 1 << 25
