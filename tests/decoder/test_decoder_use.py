"""The decode engine in use: generation on it, what it refuses, threads, processes, memory."""

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from decoder.decoder_check import random_ids, random_model

import minigpt_ext as mg
from minigpt_ext.backend import backend
from minigpt_ext.decoder import FORMATS, Decoder
from minigpt_ext.generation import stream
from minigpt_ext.generation.engine import WORTH_PACKING, reader_of


@pytest.mark.parametrize("options", [dict(temperature=0), dict(seed=3), dict(seed=3, top_k=5, temperature=0.7)])
@pytest.mark.parametrize("variant", [None, "all modern", "sinusoidal", "alibi, window and soft-cap"])
def test_the_same_ids_as_the_model_itself(variant, options):
    """Past the context too, where its second half is read anew."""
    model, ids = random_model(variant), random_ids(3, 7)
    assert isinstance(reader_of(model, None, 90), Decoder)
    own = model.generate(ids, 90, weights="model", **options)
    assert torch.equal(model.generate(ids, 90, **options), own)
    assert torch.equal(Decoder(model, threads=2).generate(ids, 90, **options), own)


@pytest.mark.parametrize("weights", FORMATS)
def test_every_format_generates_what_its_logits_say(weights):
    model, ids = random_model("all modern"), random_ids(2, 9)
    decoder, tokens = Decoder(model, weights), ids
    for _ in range(20):
        tokens = torch.cat([tokens, decoder.logits(tokens)[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(model.generate(ids, 20, temperature=0, weights=weights), tokens)


@pytest.mark.parametrize("weights", FORMATS)
def test_generation_on_an_int8_cache(weights):
    """Past the context too."""
    model, ids = random_model("all modern"), random_ids(2, 7)
    decoder = Decoder(model, weights)
    cache, own = decoder.new_cache(2, dtype=torch.int8), model.new_cache(2, dtype=torch.int8)
    made = decoder.generate(ids, 60, temperature=0, cache=cache)
    assert torch.equal(model.generate(ids, 60, temperature=0, weights=weights, cache=own), made)
    for ours, models in zip((*cache.k, *cache.v_scales), (*own.k, *own.v_scales), strict=True):
        assert torch.equal(ours, models)
    if weights == "fp32":
        assert torch.equal(model.generate(ids, 60, temperature=0, cache=own), made)
        assert isinstance(reader_of(model, None, 90, own), Decoder)


def test_when_the_model_steps_itself():
    model = random_model()
    assert reader_of(model, None, WORTH_PACKING - 1) is model and reader_of(model, "model", 99) is model
    with backend("torch"):
        assert reader_of(model, None, 99) is model
        with pytest.raises(ValueError, match="weights='int8' is for the decode engine, and another backend than the"):
            reader_of(model, "int8", 99)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert reader_of(model, None, 99) is model
    hook = model.h[1].register_forward_hook(lambda *_: None)
    assert reader_of(model, None, 99) is model
    hook.remove()
    assert isinstance(reader_of(model, None, WORTH_PACKING), Decoder)
    assert isinstance(reader_of(model, "int4", 1), Decoder)
    assert reader_of(model.to(torch.bfloat16), None, 99) is model


def test_what_is_learned_later_shows():
    """model.generate packs anew; a decoder of one's own keeps what it was made of."""
    model, ids = random_model(), random_ids(1, 5)
    decoder = Decoder(model)
    before = model.generate(ids, 30, temperature=0)
    with torch.no_grad():
        model.wte.weight.data.mul_(-1)
    after = model.generate(ids, 30, temperature=0)
    assert not torch.equal(before, after)
    assert torch.equal(after, model.generate(ids, 30, temperature=0, weights="model"))
    assert torch.equal(before, decoder.generate(ids, 30, temperature=0))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (dict(weights="int3"), ValueError, "weights must be one of fp32, bf16, int8, int4, not 'int3'"),
        (dict(threads=0), ValueError, "threads must be an integer from 1 to 1024, not 0"),
        (dict(threads=1.5), ValueError, "threads must be an integer from 1 to 1024, not 1.5"),
        (dict(model=torch.nn.Linear(2, 2)), TypeError, "model must be a GPT, not Linear"),
        (dict(model=mg.GPT(mg.GPTConfig.preset("tiny")).to("meta")), ValueError, "and the model is on meta"),
    ],
)
def test_wrong_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        Decoder(**dict(model=random_model()) | arguments)


@pytest.mark.parametrize("bad", [float("inf"), float("nan"), -float("inf")])
@pytest.mark.parametrize("name", ["wte.weight", "h.1.mlp.c_fc.weight", "h.2.attn.c_proj.weight"])
def test_integers_have_no_inf_and_no_nan(name, bad):
    model = random_model("swiglu")
    with torch.no_grad():
        model.get_parameter(name)[-1, 7] = bad
    for weights in ("int8", "int4"):
        with pytest.raises(ValueError, match=f"{name} holds inf or NaN, which {weights} has no numbers for"):
            Decoder(model, weights, threads=2)
    for weights in ("fp32", "bf16"):
        logits = Decoder(model, weights).next_logits(random_ids(1, 2), model.new_cache(1))
        assert not logits.isfinite().all()


def test_a_cache_of_a_model_with_a_longer_context_is_refused():
    """Its positions would lie behind the tables of this one."""
    decoder = Decoder(random_model(block_size=16))
    cache = Decoder(random_model(block_size=64)).new_cache(1)
    with pytest.raises(ValueError, match=r"cache must be for block_size \(16\) tokens at most, not 64"):
        decoder.logits(random_ids(1, 40), cache)
    assert cache.length == 0


def test_a_cache_of_two_dtypes_is_refused():
    decoder = Decoder(random_model())
    cache = decoder.new_cache(1)
    cache.v[1] = cache.v[1].bfloat16()
    with pytest.raises(ValueError, match="of one shape, dtype and device in all layers"):
        decoder.next_logits(random_ids(1, 2), cache)


def test_torchs_defaults_do_not_matter():
    model, ids = random_model("alibi, window and soft-cap"), random_ids(1, 3)
    expected = Decoder(model).logits(ids)
    try:
        torch.set_default_dtype(torch.float64)
        torch.set_default_device("meta")
        assert torch.equal(Decoder(model).logits(ids), expected)
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)


def test_too_few_threads_are_an_error():
    """The process lives on. Address space is what it runs out of here: a thread reserves megabytes for its stack."""
    pytest.importorskip("resource", reason="limits are a matter of Unix")
    program = """
import resource, minigpt_ext as mg
model = mg.GPT(mg.GPTConfig.preset("tiny"))
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 400 * 2**20,) * 2)
try:
    mg.Decoder(model, threads=1024)
except RuntimeError as error:
    print(error)
"""
    if not Path("/proc/self/statm").exists():
        pytest.skip("the address space in use is read from /proc, and there is none")
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("threads: the system gave ") and " of 1024 (" in result.stdout


def test_wrong_calls():
    decoder = Decoder(random_model())
    cache = decoder.new_cache(2)
    for ids, error, message in [
        ([1], TypeError, "ids must be a tensor, not list"),
        (torch.zeros(2, 2), TypeError, "ids must be int64 or int32"),
        (torch.full((2, 1), 23), ValueError, r"ids must lie in \[0, 23\), and holds 23"),
        (random_ids(3, 1), ValueError, "cache is for 2 sequences, and ids holds 3"),
        (random_ids(2, 41), ValueError, "the cache is full"),
    ]:
        with pytest.raises(error, match=message):
            decoder.next_logits(ids, cache)
    assert cache.length == 0
    with pytest.raises(TypeError, match="cache must be a KVCache, not dict"):
        decoder.next_logits(random_ids(2, 1), {})
    with pytest.raises(ValueError, match=r"3 layers of 4 heads of 6, .*float32, .* or .*int8 on .*, .*float16 on cpu"):
        decoder.next_logits(random_ids(2, 1), mg.KVCache(decoder.config, 2, 9, dtype=torch.float16))
    allowed = "torch.float32, torch.bfloat16 or torch.int8"
    with pytest.raises(ValueError, match=f"dtype must be {allowed}, or None, not torch.float16"):
        decoder.new_cache(1, dtype=torch.float16)
    with pytest.raises(ValueError, match="weights must be None or the decoder's own, 'fp32', not 'int8'"):
        stream(decoder, random_ids(1, 1), 3, weights="int8")
    model = random_model()
    model.h[0].mlp.c_fc = torch.nn.Linear(24, 95)
    with pytest.raises(ValueError, match=r"h.0.mlp.c_fc.weight must be \(96, 24\), not \(95, 24\)"):
        Decoder(model)


def test_callers_are_served_one_after_the_other():
    model = random_model()
    decoder, ids = Decoder(model, threads=2), random_ids(4, 9)
    expected = [decoder.generate(ids[i : i + 1], 60, temperature=0) for i in range(4)]
    results = [None] * 4

    def work(i):
        results[i] = decoder.generate(ids[i : i + 1], 60, temperature=0)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert all(torch.equal(*pair) for pair in zip(results, expected, strict=True))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_is_told_and_ends():
    decoder = Decoder(random_model(), threads=3)
    cache, ids = decoder.new_cache(1), random_ids(1, 3)
    decoder.next_logits(ids, cache)
    child = os.fork()
    if child == 0:
        try:
            decoder.next_logits(ids, cache)
        except RuntimeError as error:
            told = "make one in this process too" in str(error)
            del decoder
            gc.collect()
            os._exit(0 if told else 1)
        os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    decoder.next_logits(ids, cache)


PRINTS = """
import minigpt_ext as mg, torch, sys
decoder = mg.Decoder(mg.GPT(mg.GPTConfig.preset("tiny"), seed=0), threads=3)
from minigpt_ext.generation import stream
for token in stream(decoder, torch.zeros(1, 1, dtype=torch.int64), {n}):
    print("token", flush=True)
"""


def test_workers_end_with_the_interpreter_and_ctrl_c_is_heard():
    command = [sys.executable, "-c", PRINTS.format(n=3)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "token\n" * 3, "")
    process = subprocess.Popen([sys.executable, "-c", PRINTS.format(n=10**9)], stdout=-1, stderr=-1, text=True)
    assert process.stdout.readline() == "token\n"
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode != 0 and told.rstrip().endswith("KeyboardInterrupt")


def test_a_small_model_takes_fewer_threads(threads):
    """Unless it is told: a thread for every million parameters, of those that torch has."""
    threads(3)
    small, large = random_model(), random_model(n_embd=1024, n_head=8, n_layer=1)
    assert small.num_parameters() < 1e6 and large.num_parameters() > 3e6
    assert [Decoder(small).threads, Decoder(small, threads=2).threads, Decoder(large).threads] == [1, 2, 3]


def test_workers_end_with_the_decoder():
    tasks = Path("/proc/self/task")
    if not tasks.exists():
        pytest.skip("threads are counted in /proc, and there is none")
    before = len(list(tasks.iterdir()))
    decoder = Decoder(random_model(), threads=5)
    assert len(list(tasks.iterdir())) == before + 4
    del decoder
    gc.collect()
    assert len(list(tasks.iterdir())) == before


def test_memory_is_told_and_does_not_grow():
    """2,000 tokens, the context filled a dozen times, add nothing to the process."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        pytest.skip("memory is read in /proc, and there is none")
    model = random_model(block_size=150, n_embd=96, vocab_size=997)
    decoder = Decoder(model, "int8")
    matrices = sum(p.numel() for name, p in model.named_parameters() if p.ndim == 2 and name != "wpe.weight")
    assert 8.5 / 8 * matrices <= decoder.weight_bytes <= 1.2 * matrices + 4 * (model.num_parameters() - matrices)
    assert 0 < decoder.buffer_bytes < 4 * 2**20

    def resident():
        gc.collect()
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    for tokens in (300, 2000):  # the first time lets torch and the allocator make what they keep
        before = resident()
        for _ in stream(decoder, random_ids(1, 5), tokens, temperature=0):
            pass
        grown = resident() - before
    assert grown < 2**20


def test_a_token_costs_what_the_one_before_cost():
    """But for the cache, of which a window is seen here: two generations in turns, of which one has made 2,500 tokens
    already. Whatever else the machine does meets both. To read the whole cache would take four times as long."""
    decoder = Decoder(random_model(block_size=3000, n_embd=128, n_head=2, window=64))
    late, early = (stream(decoder, random_ids(1, 64), 3000, temperature=0) for _ in range(2))
    for _ in range(2500):
        next(late)
    next(early)
    times = {early: [], late: []}
    for _ in range(300):
        for tokens, taken in times.items():
            began = time.perf_counter()
            next(tokens)
            taken.append(time.perf_counter() - began)
    early, late = (sorted(taken)[75] for taken in times.values())
    assert late < 1.5 * early
