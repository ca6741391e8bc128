"""Our GPT beside Hugging Face's GPT-2, with the same random weights: same logits, same gradients."""

import pytest
import torch
import torch.nn.functional as F

from minigpt_ext.model import GPT, GPTConfig

transformers = pytest.importorskip("transformers", reason="the oracle of this test: pip install -e '.[test]'")

TRANSPOSED = ("c_attn.weight", "c_proj.weight", "c_fc.weight")  # Conv1D keeps (in, out)


def as_theirs(name, tensor):
    return tensor.t() if name.endswith(TRANSPOSED) else tensor


@pytest.mark.parametrize(("activation", "theirs"), [("gelu_tanh", "gelu_new"), ("gelu", "gelu")])
def test_logits_and_gradients_equal_gpt2s(activation, theirs):
    config = GPTConfig(vocab_size=101, block_size=48, n_layer=3, n_head=4, n_embd=64, activation=activation)
    model = GPT(config, seed=0)
    with torch.no_grad():  # biases and LayerNorms with something in them, and logits that are not all nearly 0
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)), alpha=0.1)
    oracle = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=101,
            n_positions=48,
            n_embd=64,
            n_layer=3,
            n_head=4,
            activation_function=theirs,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=0,
            eos_token_id=0,
        )
    )
    weights = {name: as_theirs(name, value) for name, value in model.state_dict().items()}
    missing, unexpected = oracle.transformer.load_state_dict(weights, strict=False)
    assert not unexpected and all(name.endswith(("attn.bias", "attn.masked_bias")) for name in missing)

    generator = torch.Generator().manual_seed(2)
    ids, targets = torch.randint(101, (2, 2, 48), generator=generator)
    logits, loss = model(ids, targets)
    their_logits = oracle(ids).logits
    their_loss = F.cross_entropy(their_logits.flatten(0, 1), targets.flatten())
    assert (logits - their_logits).abs().max() <= 1e-4 * their_logits.abs().max()
    assert loss.item() == pytest.approx(their_loss.item(), rel=1e-5)

    loss.backward()
    their_loss.backward()
    their_parameters = dict(oracle.transformer.named_parameters())
    for name, parameter in model.named_parameters():
        expected = as_theirs(name, their_parameters[name].grad)
        assert (parameter.grad - expected).abs().max() <= 1e-4 * expected.abs().max(), name
