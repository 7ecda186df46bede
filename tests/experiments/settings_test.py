"""From files, overrides and saved runs to a RunSpec; what the user sees when it is wrong."""

import ast
import json
import pathlib
import subprocess
import sys

import pytest

from experiments import settings

ROOT = pathlib.Path(__file__).parents[2]
LAPTOP = "experiments/configs/laptop.py"
FLAGS = {"describe": {"config"}, "main": {"config", "workdir"}}  # no setting is a flag of its own
PROGRAM = """
from experiments import settings
def main(run_spec, workdir):
    print(run_spec.model.num_experts, run_spec.data, workdir.name)
    if run_spec.seed == 7:
        raise ValueError("inside main")
settings.run_app(main, settings.config_flag(), settings.workdir_flag())
"""


@pytest.fixture
def config():
    return settings.load_config(str(ROOT / LAPTOP))


def start(*arguments, config=LAPTOP):
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, f"--config={config}", "--workdir=runs/x", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_overrides_reach_the_spec_and_none_may_be_given():
    done = start(
        "--config.model.num_experts=64",
        "--config.data.tokenizer=bytes",
        "--config.data.bpe_vocab_size=None",
        "--config.data.source=folder",
        "--config.data.path=/some/folder",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("64 DataSpec(source='folder', path='/some/folder', field=None")
    assert "bpe_vocab_size=None" in done.stdout
    assert done.stdout.endswith(" x\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.model.topk=3"], "unknown setting model.topk; did you mean model.top_k?"),
        (["--config.model.top_k=2.5"], "flag --config.model.top_k=2.5: invalid literal for int"),
        (["--config.model.top_k=99"], "model.top_k=99: must be at most 16, the experts in"),
        (["--config.data.path=3"], "data.path=3 has type int, want str or None"),
        (["--config.data.path", "x"], "unexpected arguments ['x']; settings are --config.NODE"),
        (["--topk=3"], "Unknown command line flag 'topk'"),
    ],
)
def test_a_bad_setting_is_one_line_and_exit_code_2(arguments, message):
    done = start(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {message}"), done.stderr
    assert done.stderr.count("\n") == 1
    assert not done.stdout


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            "experiments/configs/lapto.py",
            "config file 'experiments/configs/lapto.py': no such file",
        ),
        (f"{LAPTOP}:dense_activ", "unknown variant 'dense_activ'; did you mean dense_active?"),
    ],
)
def test_a_bad_config_file_is_one_line_and_exit_code_2(config, message):
    done = start(config=config)
    assert (done.returncode, done.stderr) == (2, f"error: {message}\n")


def test_an_error_of_the_program_keeps_its_traceback():
    done = start("--config.seed=7")
    assert done.returncode == 1
    assert "Traceback" in done.stderr and "ValueError: inside main" in done.stderr


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("topk", "model.top_k"),
        ("modle.top_k", "model.top_k"),
        ("model.num_expert", "model.num_experts"),
        ("model.learning_rate", "optimizer.learning_rate"),
        ("sed", "seed"),
    ],
)
def test_the_nearest_setting_is_suggested(name, near):
    with pytest.raises(ValueError, match=rf"unknown setting {name}; did you mean {near}\?"):
        settings.check_overrides(["program", f"--config.{name}=3"])


def test_names_that_exist_pass():
    settings.check_overrides(
        ["--config=x.py:top2", "--config.seed=3", "--config.model.top_k", "3", "--other=config.x"]
    )
    settings.check_overrides(["-config.model.top_k=3", "--noconfig.model.tie_embeddings"])
    with pytest.raises(
        ValueError, match=r"unknown setting qqq.zzz; known nodes: \['contrastive', "
    ):
        settings.check_overrides(["--config.qqq.zzz=3"])


def test_freezing_checks_nodes_keys_and_types(config):
    frozen = settings.freeze(config)
    assert (frozen.seed, frozen.model.num_experts, frozen.data.path) == (0, 32, None)
    values = settings.to_dict(frozen)
    with pytest.raises(ValueError, match=r"unknown setting config.modle; did you mean .*model\?"):
        settings.freeze({**values, "modle": values["model"]})
    with pytest.raises(ValueError, match=r"missing settings: \['config.model'\]"):
        settings.freeze({name: value for name, value in values.items() if name != "model"})
    with pytest.raises(TypeError, match=r"config.model=3 has type int, want ModelSpec"):
        settings.freeze({**values, "model": 3})
    with pytest.raises(TypeError, match=r"config.seed=True has type bool, want int"):
        settings.freeze({**values, "seed": True})
    config.model.num_layers = True  # a ConfigDict lets it pass
    with pytest.raises(TypeError, match=r"model.num_layers=True has type bool, want int"):
        settings.freeze(config)


def test_loading_leaves_the_settings_open_to_changes(config):
    config.model.top_k = 2
    assert settings.freeze(config).model.top_k == 2
    with pytest.raises(FileNotFoundError, match=r"config file 'nowhere.py': no such file"):
        settings.load_config("nowhere.py:top2")


def test_a_saved_run_is_read_back(config, tmp_path):
    config.optimizer.eps = 1e-20
    config.train.profile_at = 3
    config.eval.prompt = "def \u00e9\n"
    frozen = settings.freeze(config)
    (tmp_path / settings.FILE_NAME).write_text(json.dumps(settings.to_dict(frozen)))
    assert settings.load_run_spec(tmp_path) == frozen


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (None, FileNotFoundError, "no such file; expected the settings of a run"),
        (b'{"seed": 0,', ValueError, r"expected .* as JSON: .*line 1 column 12"),
        (b"\xff\xfe\xfa", ValueError, "expected the settings of a run as JSON"),
        (b"[]", TypeError, "expected an object of settings, got list"),
        (b'{"sed": 0}', ValueError, r"unknown setting config.sed; did you mean config.seed\?"),
        (b'{"train": {"num_steps": 2.0}}', ValueError, r"missing settings: \['train.batch_size'"),
    ],
)
def test_a_bad_saved_run_is_an_error_that_names_the_file(content, error, message, tmp_path):
    if content is not None:
        (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(error, match=message) as caught:
        settings.load_run_spec(tmp_path)
    assert str(tmp_path / "config.json") in str(caught.value)


@pytest.mark.parametrize("program", FLAGS)
def test_the_flags_are_frozen(program):
    flags = set()
    for node in ast.walk(ast.parse((ROOT / "experiments" / f"{program}.py").read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            name = node.func.attr
            if name in ("config_flag", "workdir_flag"):
                flags.add(name.removesuffix("_flag"))
            elif name.startswith("DEFINE_"):
                flags.add(ast.literal_eval(node.args[0]))
    assert flags == FLAGS[program]
