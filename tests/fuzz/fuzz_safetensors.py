"""Coverage-guided fuzzing of the safetensors reader, beside the library: every input must get the same verdict, and the
same tensors. Needs atheris (`pip install atheris`). Ten minutes of it, from the root of a checkout:

    python tests/fuzz/fuzz_safetensors.py -max_total_time=600

What else libFuzzer takes may be given too: a folder to keep inputs in, -jobs=2, or a file `crash-...` to run once more.
The first byte of an input tells how the rest is used; seeds and a dictionary are made here.
"""

import json
import math
import sys
import tempfile
from pathlib import Path
from typing import Any

import atheris

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parents[1])]
with atheris.instrument_imports(include=["minigpt_ext.interop"]):
    from minigpt_ext.interop.checkpoint import Checkpoint
    from minigpt_ext.interop.safetensors_header import DTYPES

from safetensors.torch import save  # noqa: E402
from safetensors_check import compare, entry, write_raw  # noqa: E402

RAW, HEADER, FITTED, BUILT, INDEX = range(5)
MAX_DATA = 4096  # bytes that a header may ask for and get
FOLDER = tempfile.TemporaryDirectory(prefix="fuzz-safetensors-")
FILE = Path(FOLDER.name) / "file.safetensors"


def one_input(content: bytes) -> None:
    if not content:
        return
    kind, content = content[0] % 5, content[1:]
    if kind == RAW:  # a whole file
        FILE.write_bytes(content)
        compare(FILE)
    elif kind == HEADER:  # a header up to the last brace, its length put right, and data
        end = content.rfind(b"}") + 1
        write_raw(FILE, content[:end], content[end:])
        compare(FILE)
    elif kind == FITTED:  # a header, and as many data as it asks for
        write_raw(FILE, content, bytes(i % 251 for i in range(_asked_for(content))))
        compare(FILE)
    elif kind == BUILT:  # choices that build a file, of which few are odd
        header, data = _built(atheris.FuzzedDataProvider(content))
        write_raw(FILE, header, data)
        compare(FILE)
    else:
        _open_index(content)


def _asked_for(header: bytes) -> int:
    """By the largest number in it that may be an offset."""
    digits = bytes(byte if byte in b"0123456789" else 32 for byte in header)
    return max((n for word in digits.split() if len(word) < 6 and (n := int(word)) <= MAX_DATA), default=0)


def _built(choices: atheris.FuzzedDataProvider) -> tuple[bytes, bytes]:
    position, header = 0, {}
    for _ in range(choices.ConsumeIntInRange(0, 4)):
        dtype = choices.PickValueInList(sorted(DTYPES))
        shape = [choices.ConsumeIntInRange(0, 8) for _ in range(choices.ConsumeIntInRange(0, 3))]
        size = math.prod(shape) * DTYPES[dtype][0] // 8
        fields = entry(dtype, shape, [position, position + size])
        position += size
        if choices.ConsumeProbability() < 0.1:
            field = choices.PickValueInList([*fields, "more"])
            fields[field] = _odd(choices, choices.ConsumeIntInRange(0, 3))
        header[choices.ConsumeUnicodeNoSurrogates(4)] = fields
    names = list(header)
    if choices.ConsumeBool():  # the order of the names is not that of the data
        header = {name: header[name] for name in reversed(names)}
    if choices.ConsumeBool():
        header["__metadata__"] = {choices.ConsumeUnicodeNoSurrogates(3): choices.ConsumeUnicodeNoSurrogates(3)}
    if choices.ConsumeProbability() < 0.05:
        header["__metadata__"] = _odd(choices, 2)
    text = json.dumps(header, ensure_ascii=choices.ConsumeBool(), indent=choices.PickValueInList([None, 1]))
    text = text.encode("utf-8", "surrogatepass")
    if choices.ConsumeProbability() < 0.2:
        at = choices.ConsumeIntInRange(0, len(text))
        text = text[:at] + choices.ConsumeBytes(4) + text[at + choices.ConsumeIntInRange(0, 4) :]
    if choices.ConsumeProbability() < 0.1:
        position += choices.ConsumeIntInRange(-4, 4)
    data = choices.ConsumeBytes(choices.remaining_bytes())[: max(position, 0)]
    return text, data.ljust(position, b"\1")


def _odd(choices: atheris.FuzzedDataProvider, depth: int) -> Any:
    kind = choices.ConsumeIntInRange(0, 8 if depth else 4)
    if kind < 2:
        return choices.ConsumeInt(9)
    if kind < 4:
        return choices.PickValueInList([None, True, 0.0, 1e300, "F32", "", 2**63, 2**64 - 1, 2**64, -1])
    if kind == 4:
        return choices.ConsumeUnicode(3)  # perhaps half a surrogate pair
    parts = [_odd(choices, depth - 1) for _ in range(choices.ConsumeIntInRange(0, 3))]
    return parts if kind < 7 else {str(key): part for key, part in enumerate(parts)}


def _open_index(content: bytes) -> None:
    """An index of shards must be opened, or refused by a ValueError, and never lead out of its folder."""
    folder = Path(FOLDER.name)
    index = folder / "model.safetensors.index.json"
    index.write_bytes(content)
    try:
        with Checkpoint.open(index) as checkpoint:
            assert all(file.path.resolve().is_relative_to(folder / "shards") for file in checkpoint.files)
            assert all(checkpoint.tensor(name).shape == checkpoint.info(name).shape for name in checkpoint.names)
    except ValueError as error:
        assert str(index) in str(error) or "shards" in str(error)


def write_seeds(folder: Path) -> None:
    """A few inputs of each kind, and the format's words for libFuzzer's dictionary."""
    import torch

    folder.mkdir(exist_ok=True)
    headers = [
        {},
        {"__metadata__": {"format": "pt"}},
        {"a": entry(), "b": entry("F16", [2, 3], [4, 16]), "c": entry("I64", [], [16, 24])},
        {"b": entry("U8", [0], [4, 4]), "a": entry() | {"more": [1.5, None, {"x": []}]}},
        {"a": entry(), "__metadata__": None, "\U0001f600": entry("F4", [4, 2], [4, 8])},
        *({name: entry(name, [8], [0, bits])} for name, (bits, _) in DTYPES.items()),
    ]
    seeds = [bytes([RAW]) + save({"a": torch.ones(3), "b": torch.zeros(2, dtype=torch.bool)}, {"format": "pt"})]
    for header in headers:
        text = json.dumps(header).encode()
        seeds += [bytes([FITTED]) + text, bytes([HEADER]) + text + bytes(8)]
    index = {"metadata": {"total_size": 8}, "weight_map": {"a": "shards/1.safetensors", "b": "shards/2.safetensors"}}
    seeds.append(bytes([INDEX]) + json.dumps(index).encode())
    seeds += [bytes([BUILT]) + bytes((i * step) % 256 for i in range(200)) for step in (1, 7, 31)]
    for number, seed in enumerate(seeds):
        (folder / f"seed-{number}").write_bytes(seed)


def write_dictionary(path: Path) -> None:
    words = ["dtype", "shape", "data_offsets", "__metadata__", "weight_map", *DTYPES]
    words = [f'"{word}"' for word in words] + [
        *(r"\ud800", r"\udc00", r"\u0000", "null", "true", "NaN", "-0", "1e999", "1e5", "[]", "{}", "[[[[", "]]]]"),
        *(str(2**power - minus) for power in (31, 32, 61, 62, 63, 64) for minus in (0, 1)),
        *("shards/1.safetensors", "../", "/etc/"),
    ]
    escaped = ["".join(f"\\x{byte:02x}" for byte in word.encode()) for word in words]
    path.write_text("".join(f'"{word}"\n' for word in escaped))


def main() -> None:
    folder = Path(FOLDER.name)
    write_seeds(folder / "seeds")
    write_dictionary(folder / "words")
    (folder / "shards").mkdir()
    for number, name in ((1, "a"), (2, "b")):
        write_raw(folder / "shards" / f"{number}.safetensors", json.dumps({name: entry()}), bytes(4))
    arguments = [sys.argv[0], f"-dict={folder / 'words'}", "-max_len=1000", "-timeout=20", *sys.argv[1:]]
    if not any(Path(argument).is_file() for argument in sys.argv[1:]):
        arguments.append(str(folder / "seeds"))
    atheris.Setup(arguments, one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
