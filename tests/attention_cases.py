"""What the tests of attention, its dropout and decode_attention share: cases, sizes of what is added up, the rule."""

import math
from dataclasses import dataclass

import torch
from accuracy import assert_all_accurate, forward_backward, largest
from tensors import normal

import minigpt_ext as mg
from minigpt_ext.ops.attention import attention_reference, visible_keys
from minigpt_ext.ops.philox import attention_keep_mask
from minigpt_ext.ops.score import accumulation_type, final_scores


@dataclass(frozen=True)
class Case:
    B: int
    T: int
    S: int
    H: int
    H_kv: int
    D: int
    causal: bool = True
    window: int | None = None

    def __str__(self) -> str:
        kind = "full" if not self.causal else f"window{self.window}" if self.window else "causal"
        return f"B{self.B}-T{self.T}-S{self.S}-H{self.H}.{self.H_kv}-D{self.D}-{kind}"

    def inputs(self, dtype=torch.float32, device="cpu") -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """q, k, v and an upstream gradient."""
        q = normal(self.B, self.T, self.H, self.D, dtype=dtype, device=device)
        k, v = (normal(self.B, self.S, self.H_kv, self.D, dtype=dtype, device=device) for _ in range(2))
        return {"q": q, "k": k, "v": v}, normal(*q.shape, dtype=dtype, device=device)

    @property
    def options(self) -> dict:
        return {"causal": self.causal, "window": self.window}


RULES = ("alibi", "softcap", "both")  # what may be asked of scores before the mask


def rule_options(rule: str, H: int, dtype=torch.float32, device="cpu") -> dict:
    """The ops' arguments for it; softcap is small enough here to bend most scores."""
    alibi = {} if rule == "softcap" else {"alibi_slopes": slopes(H, dtype, device)}
    return alibi if rule == "alibi" else alibi | {"softcap": 1.5}


def slopes(H: int, dtype=torch.float32, device="cpu") -> torch.Tensor:
    """ALiBi's range, 1 to 1/256, but random ones: no power of 2 whose products are exact."""
    return 2.0 ** (-8 * torch.rand(H, dtype=accumulation_type(dtype))).to(device)


def sizes(
    q,
    k,
    v,
    g,
    *,
    causal=True,
    window=None,
    scale=None,
    alibi_slopes=None,
    softcap=None,
    dropout_p=0.0,
    seed=None,
) -> dict:
    """Each quantity's (stored, added_up) of accuracy.py: attention.h's formulas in float64, with the absolute
    value of every term. A score s is known to eps x sum |q||k| scale, an error that its probability
    takes over whole: hence the factor `exponent`. A soft cap's derivative takes over 2 / softcap times
    that error. `rounded` counts the factors of a product that are rounded on their own: a probability, dropout's
    1 / (1 - dropout_p), and two for tanh and its derivative."""
    (B, T, H, D), (S, H_kv) = q.shape, k.shape[1:3]
    q, k, v, g = (t.double() for t in (q, k, v, g))
    scale = 1 / math.sqrt(D) if scale is None else abs(scale)
    k_wide, v_wide = (t.repeat_interleave(H // H_kv, 2) for t in (k, v))
    visible = visible_keys(T, S, causal, window, q.device)
    scores = torch.einsum("bthd,bshd->bhts", q, k_wide) * scale
    distance = torch.arange(T, device=q.device)[:, None] + (S - T) - torch.arange(S, device=q.device)
    gain = 1.0 if softcap is None else 1 - torch.tanh(scores / softcap) ** 2
    bias = final_scores(torch.zeros_like(scores), distance, alibi_slopes, None).abs()
    scores = final_scores(scores, distance, alibi_slopes, softcap)
    p = torch.softmax(scores.masked_fill(~visible, -1e300), -1) * visible
    kept = p if not dropout_p else p * attention_keep_mask(seed, B, H, T, S, dropout_p, q.device) / (1 - dropout_p)
    out = torch.einsum("bhts,bshd->bthd", kept, v_wide)
    q, k, v, g = q.abs(), k_wide.abs(), v_wide.abs(), g.abs()
    error = largest((torch.einsum("bthd,bshd->bhts", q, k) * scale + bias) * visible)
    rounded = 1 + (dropout_p > 0) + 2 * (softcap is not None)
    exponent = rounded * (1 + error)
    steepness = rounded * (1 + error * max(1.0, 2 / softcap if softcap else 1.0))
    delta = torch.einsum("bthd,bthd->bht", g, out.abs())[..., None]
    ds = (kept * torch.einsum("bthd,bshd->bhts", g, v) + p * delta) * gain

    def group(t: torch.Tensor) -> torch.Tensor:  # the heads of a group add up
        return t.reshape(B, S, H_kv, H // H_kv, D).sum(3)

    dq, dk = torch.einsum("bhts,bshd->bthd", ds, k) * scale, group(torch.einsum("bhts,bthd->bshd", ds, q)) * scale
    dv = group(torch.einsum("bhts,bthd->bshd", kept, g))
    # delta is made from `out` as stored, so it is what rounding to dtype adds to dq and dk.
    dq_stored = torch.einsum("bhts,bshd->bthd", p * delta * gain, k) * scale
    dk_stored = group(torch.einsum("bhts,bthd->bshd", p * delta * gain, q)) * scale
    return {
        "out": (largest(out), exponent * largest(torch.einsum("bhts,bshd->bthd", kept, v))),
        "dq": (largest(dq_stored), steepness * largest(dq)),
        "dk": (largest(dk_stored), steepness * largest(dk)),
        "dv": (0.0, exponent * largest(dv)),
    }


def check(inputs: dict, g: torch.Tensor, **options) -> dict:
    """The accuracy rule for forward and backward, against torch's own attention in the same dtype. Returns ours."""
    ours = forward_backward(lambda **t: mg.ops.attention(**t, **options), inputs, g)
    with mg.backend("torch"):
        torchs = forward_backward(lambda **t: mg.ops.attention(**t, **options), inputs, g)
    double = {name: t.double() for name, t in inputs.items()}
    reference = forward_backward(lambda **t: attention_reference(**t, **options), double, g.double())
    assert_all_accurate("attention", ours, torchs, reference, sizes(**inputs, g=g, **options))
    return ours
