"""`minigpt generate --chat`: the message goes through the chat template, and the answer ends where the files say."""

import importlib
import json

import pytest
import torch
import typer
from safetensors.torch import save_file
from typer.testing import CliRunner

from minigpt_ext.cli.errors import UserError
from minigpt_ext.model import GPT, GPTConfig
from minigpt_ext.tokenizer import BPETokenizer
from minigpt_ext.tokenizer.chat import ChatTemplate

command = importlib.import_module("minigpt_ext.cli.generate")
app = typer.Typer()
app.command()(command.generate)

TEMPLATE = """\
{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


@pytest.fixture
def directory(tmp_path):
    tokenizer = BPETokenizer.train("what is a model? " * 9, 280, "gpt2", SPECIALS)
    tokenizer.save_directory(tmp_path)
    config = GPTConfig(vocab_size=tokenizer.vocab_size, block_size=128, n_layer=1, n_head=2, n_embd=16)
    model = GPT(config, seed=0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    run = {"format": "minigpt-run", "version": 1, "model": config.to_dict()}
    (tmp_path / "config.json").write_text(json.dumps(run))
    (tmp_path / "chat_template.jinja").write_text(TEMPLATE)
    return tmp_path


def invoke(directory, *arguments):
    result = CliRunner().invoke(app, ["--model", str(directory), "--device", "cpu", "--greedy", *arguments])
    if isinstance(result.exception, UserError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result


def answer(directory, messages, n):
    """The greedy ids that follow the template's prompt."""
    tokenizer = BPETokenizer.load_directory(directory)
    ids = ChatTemplate(TEMPLATE).encode(tokenizer, messages, add_generation_prompt=True)
    new = GPT.from_pretrained(directory).generate(torch.tensor([ids]), n, temperature=0)[0, len(ids) :].tolist()
    return tokenizer, new[: new.index(tokenizer.eos_id)] if tokenizer.eos_id in new else new


def test_the_answer_alone_is_printed(directory):
    user = {"role": "user", "content": "what is <|im_end|>?"}
    system = {"role": "system", "content": "Be short."}
    tokenizer, ids = answer(directory, [user], 20)
    said = invoke(directory, "--chat", user["content"], "--max-new-tokens", "20").stdout
    assert said == tokenizer.decode(ids) + "\n"
    tokenizer, other = answer(directory, [system, user], 20)
    asked = ["--chat", user["content"], "--system", system["content"], "--max-new-tokens", "20"]
    assert invoke(directory, *asked).stdout == tokenizer.decode(other) + "\n" != said


@pytest.mark.parametrize("as_list", [True, False])
def test_it_ends_where_generation_config_says(directory, as_list):
    tokenizer, ids = answer(directory, [{"role": "user", "content": "what"}], 20)
    end = ids[7]
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": [279, end] if as_list else end}))
    expected = ids[: ids.index(end)]
    assert invoke(directory, "--chat", "what", "--max-new-tokens", "20").stdout == tokenizer.decode(expected) + "\n"


@pytest.mark.parametrize("content", ["{", '{"eos_token_id": "x"}', '{"eos_token_id": [-1]}'])
def test_a_broken_generation_config_is_named(directory, content):
    (directory / "generation_config.json").write_text(content)
    with pytest.raises(UserError, match="generation_config.json"):
        invoke(directory, "--prompt", "what")


def test_refusals(directory):
    with pytest.raises(UserError, match="--chat and --prompt"):
        invoke(directory, "--chat", "a", "--prompt", "b")
    with pytest.raises(UserError, match="--system goes with --chat"):
        invoke(directory, "--system", "a")
    (directory / "chat_template.jinja").write_text("{{ raise_exception('no users') }}")
    with pytest.raises(UserError, match="--chat: the chat template failed: no users"):
        invoke(directory, "--chat", "a")
    (directory / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match="--chat: .* has no chat template.*; use --prompt"):
        invoke(directory, "--chat", "a")
