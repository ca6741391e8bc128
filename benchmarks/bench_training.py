"""Training steps beside torch: `python benchmarks/bench_training.py [--quick] [--json FILE]`.

A step is the trainer's: forward, backward, clipping, AdamW, gradients set to None. Beside ours stand the same model on
torch's ops, and PlainGPT: what nanoGPT's users train, under `--dtype bfloat16` in that (autocast) and in float32.
"""

import copy
from collections.abc import Callable
from time import perf_counter

import report
import timing
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import minigpt_ext as mg
from minigpt_ext.training.recipe import make_recipe
from minigpt_ext.training.trainer import make_optimizer

# Least tokens/s beside nanoGPT's, by dtype: (preset, dropout) -> rival -> ratio.
GOALS = {
    torch.float32: {("tiny", 0.0): {"plain": 1.3}, ("medium", 0.0): {"plain": 1.15}},
    torch.bfloat16: {("medium", 0.0): {"plain": 1.35, "plain fp32": 2.2}},
}


class PlainBlock(nn.Module):
    """A block of torch's modules, with nanoGPT's GELU (erf, which torch computes faster than tanh)."""

    def __init__(self, config: mg.GPTConfig) -> None:
        super().__init__()
        C = config.n_embd
        self.n_head, self.dropout, self.approximate = config.n_head, config.dropout, "none"
        self.ln_1 = nn.LayerNorm(C)
        self.attn = nn.ModuleDict({"c_attn": nn.Linear(C, 3 * C), "c_proj": nn.Linear(C, C)})
        self.ln_2 = nn.LayerNorm(C)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(C, 4 * C), "c_proj": nn.Linear(4 * C, C)})

    def forward(self, x: Tensor) -> Tensor:
        p = self.dropout if self.training else 0.0
        q, k, v = self.attn["c_attn"](self.ln_1(x)).chunk(3, dim=-1)
        q, k, v = (t.unflatten(-1, (self.n_head, -1)).transpose(1, 2) for t in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=p).transpose(1, 2).flatten(2)
        x = x + F.dropout(self.attn["c_proj"](y), p)
        hidden = F.gelu(self.mlp["c_fc"](self.ln_2(x)), approximate=self.approximate)
        return x + F.dropout(self.mlp["c_proj"](hidden), p)


class PlainGPT(nn.Module):
    """The same GPT, of torch's modules alone; the names of its parameters are mg.GPT's."""

    def __init__(self, config: mg.GPTConfig) -> None:
        super().__init__()
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.block_size, config.n_embd)
        self.drop = nn.Dropout(config.dropout)
        self.h = nn.ModuleList(PlainBlock(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd)

    def forward(self, ids: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        x = self.drop(self.wte(ids) + self.wpe.weight[: ids.shape[1]])
        for block in self.h:
            x = block(x)
        logits = F.linear(self.ln_f(x), self.wte.weight)
        return logits, F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1)


def check(name: str, model: mg.GPT, plain: PlainGPT, ids: Tensor, targets: Tensor) -> dict[str, float]:
    """Errors of loss and gradients, without dropout, and with one GELU for all."""

    def loss_and_gradients(model: nn.Module) -> list[Tensor]:
        _, loss = model.eval()(ids, targets)
        return [loss, *torch.autograd.grad(loss, list(model.parameters()))]

    for block in plain.h:
        block.approximate = "tanh"
    results = {"ours": loss_and_gradients(model)}
    with mg.backend("torch"):
        truth = loss_and_gradients(copy.deepcopy(model).double())
        results |= {"torch": loss_and_gradients(model), "plain": loss_and_gradients(plain)}
    for block in plain.h:
        block.approximate = "none"
    model.train(), plain.train()
    return report.worst_errors(name, results, truth)


def stepper(
    model: nn.Module, preset: str, ids: Tensor, targets: Tensor, dtype: torch.dtype, backend: str
) -> Callable[[], float]:
    """Trains one step a call, and returns its seconds."""
    recipe = make_recipe({"preset": preset})
    optimizer = make_optimizer(model, recipe)

    def step() -> float:
        began = perf_counter()
        with mg.backend(backend), torch.autocast(ids.device.type, dtype, enabled=dtype != torch.float32):
            _, loss = model(ids, targets)
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.grad_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()  # as the trainer does; waits for a GPU
        return perf_counter() - began

    return step


def step_flops(model: nn.Module, tokens: int) -> float:
    """Of a step of mg.GPT over `tokens` tokens in windows of block_size.

    A token: 6 a weight of a product (forward 2, backward 4), and causal attention's 12 L C T / 2; wpe is only added.
    """
    config = model.config
    weights = model.num_parameters() - model.wpe.weight.numel()
    return tokens * (6 * weights + 6 * config.n_layer * config.n_embd * config.block_size)


def measure(
    session: report.Session, preset: str, batch: int, dropout: float, seconds: float, dtype: torch.dtype
) -> None:
    options = session.options
    config = mg.GPTConfig.preset(preset, dropout=dropout)
    model = mg.GPT(config, seed=1).to(options.device)
    plain = PlainGPT(config).to(options.device)
    plain.load_state_dict(model.state_dict())
    ids = torch.randint(config.vocab_size, (batch, config.block_size), device=options.device)
    targets = ids.roll(-1, dims=1)
    name = f"{preset} {batch}x{config.block_size}{f' dropout {dropout:g}' if dropout else ''}"
    name += " bf16" if dtype == torch.bfloat16 else ""
    errors = check(name, model, plain, ids[:2], targets[:2])

    contenders = {
        "ours": (model, "kernels", dtype),
        "torch": (copy.deepcopy(model), "torch", dtype),
        "plain": (plain, "torch", dtype),
    }
    if dtype != torch.float32:
        contenders["plain fp32"] = (copy.deepcopy(plain), "torch", torch.float32)
    if options.compile:
        torch._dynamo.reset()
        contenders["compile"] = (torch.compile(copy.deepcopy(plain), dynamic=False), "torch", dtype)
    runs = {
        key: stepper(each, preset, ids, targets, dtype, backend) for key, (each, backend, dtype) in contenders.items()
    }
    for step in runs.values():
        step()
    times = timing.interleave(runs, seconds, at_least=3, at_most=50)
    has_goal = options.device.type == "cpu" and not options.quick
    goals = GOALS.get(dtype, {}).get((preset, dropout), {}) if has_goal else {}
    measured = dtype == options.dtype  # the ceiling is that dtype's
    row = report.Row(
        shape=name,
        times=times,
        work=ids.numel(),
        work_unit="tokens/s",
        ceiling="gemm" if measured else None,
        share=step_flops(model, ids.numel()) / times["ours"].median / session.ceilings["gemm"] if measured else None,
        goals=goals,
        errors=errors,
    )
    session.add(row)


def run(session: report.Session) -> None:
    options = session.options
    on_cpu = options.device.type == "cpu"
    dtype = options.dtype
    # On a CPU a float32 run has its bfloat16 row, too: goals of both are in one table.
    with_bfloat16 = on_cpu and dtype == torch.float32 and not options.quick
    rivals = ["torch", "plain", *(["plain fp32"] if with_bfloat16 or dtype != torch.float32 else [])]
    rivals += ["compile"] if options.compile else []
    note = "one step; torch: the same model on torch's ops; plain: nanoGPT's way (PlainGPT here), with its erf GELU"
    session.begin("training", rivals, unit="ms", note=note)
    if options.quick:
        return measure(session, "tiny", 4, dropout=0.0, seconds=0.3, dtype=dtype)
    measure(session, "tiny", 32, dropout=0.0, seconds=10, dtype=dtype)
    measure(session, "small", 32, dropout=0.0, seconds=15, dtype=dtype)
    measure(session, "medium", 16, dropout=0.0, seconds=20, dtype=dtype)
    measure(session, "medium", 16, dropout=0.2, seconds=15, dtype=dtype)
    if with_bfloat16:
        measure(session, "medium", 16, dropout=0.0, seconds=20, dtype=torch.bfloat16)


if __name__ == "__main__":
    report.main("training")
