"""residual_layer_norm and residual_rms_norm: cases and their check, for tests/ops and tests/emulator."""

import torch
from accuracy import DTYPES, assert_accurate, largest, name_of, scale_of
from ops.test_layer_norm import sizes as layer_norm_sizes
from ops.test_rms_norm import sizes as rms_norm_sizes
from tensors import normal
from torch import Tensor

import minigpt_ext as mg
from minigpt_ext.ops.layer_norm import layer_norm_reference
from minigpt_ext.ops.rms_norm import rms_norm_reference

FUNCTIONS = {"layer_norm": mg.ops.residual_layer_norm, "rms_norm": mg.ops.residual_rms_norm}
REFERENCES = {"layer_norm": layer_norm_reference, "rms_norm": rms_norm_reference}
SIZES = {"layer_norm": layer_norm_sizes, "rms_norm": rms_norm_sizes}
HALVES = (torch.bfloat16, torch.float16)
# The dtypes of x, residual and weight.
TYPES = [(dtype, dtype, dtype) for dtype in DTYPES]
TYPES += [(half, residual, torch.float32) for half in HALVES for residual in (half, torch.float32)]


def types_name(types: tuple[torch.dtype, ...]) -> str:
    return "-".join(name_of(dtype) for dtype in types)


def case(norm: str, *shape: int, types=TYPES[0], bias: bool = True, device="cpu") -> tuple[dict, dict]:
    """The arguments (weight and bias around 1 and 0, as in a model), and gradients of y and s."""
    dtype, residual_dtype, weight_dtype = types
    inputs = {
        "x": normal(*shape, dtype=dtype, device=device),
        "residual": normal(*shape, dtype=residual_dtype, device=device, factor=3),
        "weight": normal(shape[-1], dtype=weight_dtype, device=device) * 0.5 + 1,
    }
    if norm == "layer_norm" and bias:
        inputs["bias"] = normal(shape[-1], dtype=weight_dtype, device=device)
    dy, ds = normal(*shape, dtype=dtype, device=device), normal(*shape, dtype=residual_dtype, device=device)
    return inputs, {"y": dy, "s": ds}


def run(norm: str, inputs: dict, gradients: dict) -> dict[str, Tensor]:
    """y, s, and the gradient of each argument, from the gradients of y, of s or of both."""
    leaves = {name: t.detach().requires_grad_() for name, t in inputs.items()}
    results = dict(zip("ys", FUNCTIONS[norm](**leaves), strict=True))
    torch.autograd.backward([results[name] for name in gradients], list(gradients.values()))
    gradients = {f"d{name}": leaf.grad for name, leaf in leaves.items()}
    return {name: t.detach() for name, t in results.items()} | gradients


def check(norm: str, inputs: dict, gradients: dict) -> dict[str, Tensor]:
    """s is torch's own sum, bit for bit; y and the gradients keep the accuracy rule, against torch's addition and norm
    in the same dtypes, from s as it was rounded. Returns ours."""
    ours = run(norm, inputs, gradients)
    with mg.backend("torch"):
        torchs = run(norm, inputs, gradients)
    assert torch.equal(ours["s"], inputs["residual"] + inputs["x"]) and ours["s"].dtype == inputs["residual"].dtype
    assert ours["y"].is_contiguous() and ours["s"].is_contiguous()
    weights = {name: t for name, t in inputs.items() if name not in ("x", "residual")}
    wide = {name: t.double().requires_grad_() for name, t in weights.items()}
    s = ours["s"].double().requires_grad_()
    dy, ds = gradients["y"], gradients.get("s", torch.zeros_like(ours["s"]))
    y = REFERENCES[norm](s, **wide)
    norms = {"out": y, **zip_gradients(y, {"x": s} | wide, dy.double())}
    eps = 1e-5 if norm == "layer_norm" else 1e-6
    sizes = SIZES[norm](x=s.detach(), **weights, dy=dy, reference=norms, eps=eps)
    stored, added_up = sizes.pop("dx")
    total = norms.pop("dx") + ds.double()
    truths = {"y": norms.pop("out").detach(), "dx": total, "dresidual": total, **norms}
    sizes["y"] = sizes.pop("out")
    sizes["dx"] = sizes["dresidual"] = stored + largest(ds), added_up + largest(ds)
    for name, truth in truths.items():
        scale = scale_of(ours[name].dtype, *sizes[name])
        assert_accurate(f"residual_{norm} {name}", ours[name], torchs[name], truth, scale, 2 if name == "y" else 3)
    return ours


def zip_gradients(y: Tensor, leaves: dict[str, Tensor], dy: Tensor) -> dict[str, Tensor]:
    grads = torch.autograd.grad(y, list(leaves.values()), dy)
    return {f"d{name}": grad for name, grad in zip(leaves, grads, strict=True)}
