"""`minigpt generate` with a Hugging Face directory: its text, padded vocabularies, and no tokenizer."""

import pytest
import torch
import typer
from typer.testing import CliRunner

transformers = pytest.importorskip("transformers", reason="the oracle of this test: pip install -e '.[test]'")
tokenizers = pytest.importorskip("tokenizers", reason="the oracle of this test: pip install -e '.[test]'")

from hf_models import change_tensors, saved  # noqa: E402

from minigpt_ext.cli.errors import UserError  # noqa: E402
from minigpt_ext.cli.generate import generate  # noqa: E402
from minigpt_ext.generation import stream  # noqa: E402
from minigpt_ext.model import GPT  # noqa: E402
from minigpt_ext.tokenizer import CharTokenizer  # noqa: E402

app = typer.Typer()
app.command()(generate)
TOKENIZER = CharTokenizer("\n abcdefghijklmnopqrstuvwxyz")


def invoke(directory, *arguments):
    return CliRunner().invoke(app, ["--model", str(directory), "--device", "cpu", "--greedy", *arguments])


def test_the_text_is_that_of_transformers(tmp_path):
    theirs = saved(tmp_path, "qwen3", vocab_size=TOKENIZER.vocab_size)
    TOKENIZER.save(tmp_path / "tokenizer.json")
    result = invoke(tmp_path, "--prompt", "once upon", "--max-new-tokens", "30")
    assert result.exit_code == 0, result.exception
    prompt = torch.tensor([TOKENIZER.encode("once upon")])
    ids = theirs.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=30, do_sample=False)
    assert result.stdout == TOKENIZER.decode(ids[0].tolist()) + "\n"


def test_a_directory_with_a_tokenizer_of_hugging_face(tmp_path):
    """Prompt and continuation by transformers alone, from the same directory."""
    tokenizer = tokenizers.ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(
        ["the cat sat on the mat, and the dog on the log"] * 9, vocab_size=290, min_frequency=1
    )
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer._tokenizer).save_pretrained(tmp_path)
    theirs = saved(tmp_path, "gpt2", seed=1, vocab_size=tokenizer.get_vocab_size())
    read = transformers.AutoTokenizer.from_pretrained(tmp_path)
    prompt = read("the cat, naïve", return_tensors="pt")
    ids = theirs.generate(**prompt, max_new_tokens=25, do_sample=False, pad_token_id=0)
    result = invoke(tmp_path, "--prompt", "the cat, naïve", "--max-new-tokens", "25")
    assert result.exit_code == 0, result.exception
    assert result.stdout == read.decode(ids[0]) + "\n"


def test_ids_that_only_pad_the_vocabulary_are_never_drawn(tmp_path):
    """The head is made to like them best."""
    saved(tmp_path, "llama", vocab_size=TOKENIZER.vocab_size + 5, tie_word_embeddings=False)
    TOKENIZER.save(tmp_path / "tokenizer.json")

    def liking_the_last(tensors):
        head = tensors["lm_head.weight"]
        head[-5:] = 100 * head[:5]
        head[-5:-3] *= -1
        return tensors

    change_tensors(tmp_path, liking_the_last)
    model, prompt = GPT.from_pretrained(tmp_path), torch.tensor([TOKENIZER.encode("abc")])
    freely = [int(new) for new in stream(model, prompt, 20, temperature=0)]
    assert max(freely) >= TOKENIZER.vocab_size
    expected = [int(new) for new in stream(model, prompt, 20, temperature=0, n_ids=TOKENIZER.vocab_size)]
    assert max(expected) < TOKENIZER.vocab_size
    result = invoke(tmp_path, "--prompt", "abc", "--max-new-tokens", "20")
    assert result.stdout == "abc" + TOKENIZER.decode(expected) + "\n"
    with pytest.raises(ValueError, match="n_ids must be a positive integer or None, not 0"):
        stream(model, prompt, 20, n_ids=0)


def test_a_tokenizer_that_knows_more_than_the_model(tmp_path):
    saved(tmp_path, "gpt2", vocab_size=TOKENIZER.vocab_size - 1)
    TOKENIZER.save(tmp_path / "tokenizer.json")
    result = invoke(tmp_path, "--prompt", "abc")
    assert isinstance(result.exception, UserError)
    assert f"the tokenizer has {TOKENIZER.vocab_size} tokens and the model {TOKENIZER.vocab_size - 1}" in str(
        result.exception
    )


def test_without_a_tokenizer_the_model_loads_and_text_is_refused(tmp_path):
    saved(tmp_path, "mistral")
    assert GPT.from_pretrained(tmp_path).config.n_embd
    result = invoke(tmp_path, "--prompt", "abc")
    assert isinstance(result.exception, UserError) and result.stdout == ""
    assert "no tokenizer" in str(result.exception) and "weights alone can be loaded" in str(result.exception)


def test_what_is_no_model_is_not_asked_for_a_tokenizer(tmp_path):
    result = invoke(tmp_path)
    assert isinstance(result.exception, UserError) and "it holds no config.json" in str(result.exception)
