import pytest
import torch

from minigpt_ext.model.config import PRESETS
from minigpt_ext.training.recipe import KEYS, PRESET_RECIPES, make_recipe, parse_assignments, read_toml


def test_presets_carry_their_recipes():
    tiny = make_recipe({"preset": "tiny"})
    assert (tiny.batch_size, tiny.block_size, tiny.learning_rate, tiny.min_lr) == (32, 256, 1e-3, 1e-4)
    assert (tiny.warmup_iters, tiny.dropout, tiny.steps, tiny.patience) == (100, 0.0, 1000, 0)
    assert (tiny.weight_decay, tiny.beta1, tiny.beta2, tiny.grad_clip) == (0.1, 0.9, 0.99, 1.0)
    medium = make_recipe({"preset": "medium"})
    assert (medium.batch_size, medium.block_size, medium.dropout, medium.steps) == (64, 256, 0.2, 5000)
    counts = {name: make_recipe({"preset": name}).model_config(65).n_embd for name in PRESET_RECIPES}
    sizes = {"tiny": 128, "small": 256, "medium": 384}
    larger = {"gpt2": 768, "gpt2-medium": 1024, "gpt2-large": 1280, "gpt2-xl": 1600}
    assert counts == sizes | {f"modern-{name}": width for name, width in sizes.items()} | larger


def test_without_data_and_preset_it_is_the_demonstration():
    demonstration = make_recipe({"steps": 7})
    assert demonstration.preset == "tiny" and demonstration.data == ("python",) and demonstration.steps == 7
    assert demonstration.block_size < 256
    assert make_recipe({"data": "x.txt"}).block_size == make_recipe({"preset": "tiny"}).block_size == 256
    assert make_recipe({"preset": "small"}).data == ("python",)


def test_the_cosine_ends_with_the_run_unless_it_is_told_otherwise():
    assert make_recipe({"steps": 30}).lr_decay_iters == 30
    assert make_recipe({"steps": 30, "lr_decay_iters": 50}).lr_decay_iters == 50
    recipe = make_recipe({"preset": "tiny"})
    assert recipe.learning_rate_at(100) == 1e-3 and recipe.learning_rate_at(1000) == 1e-4


def test_auto_becomes_a_device():
    assert make_recipe({"device": "auto"}).device in ("cpu", "cuda", "mps")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="device: cuda is not available here; .*cpu"):
            make_recipe({"device": "cuda"})


def test_assignments_are_typed():
    parsed = parse_assignments(
        ["batch_size=8", "learning_rate=1e-3", " dropout = 0 ", "dtype=bfloat16", "batch_size=16", "data=a=b.txt"]
    )
    assert parsed == {
        "batch_size": 16,
        "learning_rate": 1e-3,
        "dropout": 0.0,
        "dtype": "bfloat16",
        "data": ("a=b.txt",),
    }
    assert isinstance(parsed["dropout"], float)


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("batchsize=8", "unknown key 'batchsize': did you mean batch_size"),
        ("max_iters=8", "did you mean steps"),
        ("lr=8", "did you mean learning_rate"),
        ("zzzzzz=1", "the keys are data, tokenizer, preset, steps"),
        ("batch_size", "expected key=value, got 'batch_size'"),
        ("batch_size=8.5", "batch_size: expected an integer, got '8.5'"),
        ("batch_size=0", "batch_size: expected an integer, 1 or more, got 0"),
        ("learning_rate=fast", "learning_rate: expected a number, got 'fast'"),
        ("learning_rate=nan", "learning_rate: expected a number, above 0, got nan"),
        ("learning_rate=inf", "learning_rate"),
        ("dropout=1", "dropout: expected a number, 0 or more, below 1, got 1.0"),
        ("beta2=-0.1", "beta2"),
        ("preset=huge", f"preset: expected one of {', '.join(PRESETS)}, got 'huge'"),
        ("dtype=float16", "dtype: expected one of float32, bfloat16"),
        ("data=", "data: expected a name or path"),
        ("seed=-1", "seed"),
        ("n_layer=3", "n_layer is a field of the model: set it by model.n_layer"),
        ("model.layers=3", "unknown key 'model.layers': the model's fields are n_layer, n_head"),
        ("model.vocab_size=3", "model.vocab_size: the tokenizer gives it"),
        ("model.dropout=0.1", "model.dropout: it is a setting of its own, dropout"),
        ("model=3", "model: expected fields of the model's config, as in model.norm=rms_norm, got '3'"),
    ],
)
def test_a_wrong_assignment_is_refused_by_name(assignment, message):
    with pytest.raises(ValueError, match=message):
        parse_assignments([assignment])


def test_fields_of_the_model_go_before_the_presets():
    asked = parse_assignments(["model.window=[8, null]", "model.norm=rms_norm", "model.qk_norm=True"])
    recipe = make_recipe({"preset": "tiny", **asked})
    config = recipe.model_config(65)
    assert (config.window, config.norm, config.qk_norm, config.n_embd) == ((8, None), "rms_norm", True, 128)
    assert recipe.setting("model.window") == [8, None] and recipe.setting("steps") == 1000
    with pytest.raises(ValueError, match="norm must be one of layer_norm, rms_norm, not 'rms'"):
        make_recipe({"model.norm": "rms"})


def test_values_from_python_are_checked_too():
    with pytest.raises(TypeError, match="steps: expected an integer, got '5'"):
        make_recipe({"steps": "5"})
    with pytest.raises(TypeError, match="steps: expected an integer, got True"):
        make_recipe({"steps": True})
    with pytest.raises(ValueError, match="min_lr: 0.001 is above learning_rate 0.0001"):
        make_recipe({"learning_rate": 1e-4, "min_lr": 1e-3})


def test_a_toml_file_gives_settings(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text('data = ["a.txt", "b.txt"]\nsteps = 50\nlearning_rate = 1\ndtype = "bfloat16"\n')
    assert read_toml(path) == {"data": ("a.txt", "b.txt"), "steps": 50, "learning_rate": 1.0, "dtype": "bfloat16"}
    path.write_text('[model]\nnorm = "rms_norm"\nrope_scaling = {kind = "linear", factor = 2}\npositions = "rope"\n')
    assert make_recipe(read_toml(path)).model_config(65).rope_scaling.factor == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("step = 50", "did you mean steps"),
        ("steps = 5.5", "steps: expected an integer, got 5.5"),
        ("steps = ", "recipe.toml"),
        ("[training]\nsteps = 50", "unknown key 'training'"),
    ],
)
def test_a_wrong_toml_file_is_refused_by_name(tmp_path, content, message):
    path = tmp_path / "recipe.toml"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        read_toml(path)
    with pytest.raises(ValueError, match="cannot read .*missing.toml"):
        read_toml(tmp_path / "missing.toml")


def test_every_key_is_explained():
    assert all(field.metadata["help"] for field in KEYS.values())
