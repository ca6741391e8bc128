"""The reference for dropout's random numbers, against the known answers that Random123 publishes (kat_vectors,
philox4x32 with 10 rounds); the kernels are held to this reference in test_attention_dropout.py."""

import pytest
import torch

from minigpt_ext.ops.philox import attention_keep_mask, dropout_threshold, philox

KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def signed(seed: int) -> int:
    """The same 64 bits as an int64 tensor can hold."""
    return seed - 2**64 if seed >= 2**63 else seed


@pytest.mark.parametrize("counter, key, words", KNOWN)
def test_known_answers(counter, key, words):
    counters = [torch.tensor([c]) for c in counter]
    seed = key[0] | key[1] << 32
    for given in (seed, signed(seed), torch.tensor([signed(seed)])):
        assert tuple(int(w) for w in philox(given, *counters)) == words


def test_the_mask_is_made_of_the_words():
    """Word j % 4 of counter (j // 4, i, b * H + h, 0), dropped where below dropout_p * 2^32."""
    B, H, T, S, p, seed = 2, 3, 4, 7, 0.4, 12345
    mask = attention_keep_mask(seed, B, H, T, S, p, torch.device("cpu"))
    assert mask.shape == (B, H, T, S)
    for b, h, i, j in torch.cartesian_prod(*(torch.arange(n) for n in mask.shape)).tolist():
        words = philox(seed, *(torch.tensor([c]) for c in (j // 4, i, b * H + h, 0)))
        assert mask[b, h, i, j] == (int(words[j % 4]) >= p * 2**32)


def test_threshold():
    assert dropout_threshold(0.0) == 0 and dropout_threshold(0.5) == 2**31
    assert dropout_threshold(1 - 2.0**-50) == 2**32 - 1
