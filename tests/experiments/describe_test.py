"""What `experiments.describe` prints, and that it allocates nothing."""

import pathlib
import subprocess
import sys

import pytest

from experiments import describe, numbers, settings
from tests import tiny

ROOT = pathlib.Path(__file__).parents[2]
# Runs the program and tells which libraries that allocate on a device it has loaded.
PROGRAM = """
import runpy, sys
try:
    runpy.run_module("experiments.describe", run_name="__main__")
finally:
    print("loaded:", sorted({"jax", "jaxlib", "flax", "numpy"} & set(sys.modules)))
"""


def start(*arguments):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return " ".join(done.stdout.split())


@pytest.mark.parametrize(
    ("config", "facts"),
    [
        (
            "r1_12b.py",
            [
                "all 12,762,624,384 458,633,600",
                "12.8 B 458.6 M",
                "share of the total 3.6%",
                "Top-4 of 128 alone is 3.1% of the routed experts' weights",
                "cannot hold here",
            ],
        ),
        (
            "r1_12b.py:top2",
            [
                "all 12,762,624,384 260,452,736",
                "share of the total 2.0%",
                "output head does (277.2 M with the whole table)",
                "parameters 47.5 GiB 23.8 GiB",
                "KV cache, 102,400 tokens 46.1 MiB 23.1 MiB",
                "the same with full attention 1.8 GiB 900.0 MiB",
                "(about 256 M of 12.8 B) holds here.",
            ],
        ),
    ],
)
def test_the_article_is_checked_without_any_array(config, facts):
    printed = start(f"--config=experiments/configs/{config}")
    for fact in facts:
        assert fact in printed
    assert printed.endswith("loaded: []")


def test_overrides_are_described():
    printed = start(
        "--config=experiments/configs/laptop.py",
        "--config.model.num_experts=64",
        "--config.model.remat=block",
        "--config.model.expert_kernel=loop",
    )
    assert "Top-4 of 64 alone is 6.2%" in printed
    assert "recomputed (remat)" in printed
    assert "remat=experts" not in printed


def test_what_experts_keep_is_described_where_a_kernel_keeps_it():
    printed = start("--config=experiments/configs/r1_12b.py")
    # Of 4 rows 12 bytes each; 1024 + 3 x 1792 numbers of each row, or 1024 of the token.
    assert "a layer's kernels keep a token, remat=none 100.0 KiB 50.0 KiB" in printed
    assert "a layer's kernels keep a token, remat=experts 4.0 KiB 2.0 KiB" in printed
    assert "a layer's kernels keep a token, remat=block 0 B 0 B" in printed


def test_a_dense_model_makes_no_claim_about_sparsity():
    *_, last = describe.sentences(tiny.DENSE)
    assert last.startswith("Dense: every parameter")


@pytest.mark.parametrize("variant", ["", "dense_active"])
def test_short_contexts_have_a_table_too(variant):
    run_spec = settings.freeze(
        settings.load_config(f"{ROOT}/experiments/configs/laptop.py:{variant}")
    )
    assert describe.flops_table(run_spec).row_count == 5


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0"), (999, "999"), (1000, "1.0 k"), (999_960, "1.0 M"), (12_762_624_384, "12.8 B")],
)
def test_counts_are_readable(count, text):
    assert numbers.human_count(count) == text


def test_bytes_have_binary_units():
    assert numbers.human_bytes(1023) == "1023 B"
    assert numbers.human_bytes(1024 * 1024) == "1.0 MiB"
    assert numbers.human_flops(25.3e9) == "25.3 G"


@pytest.mark.deep
def test_a_mesh_that_is_not_there_is_described():
    out = start(
        "--config=experiments/configs/r1_12b.py",
        "--config.mesh.data=8",
        "--config.mesh.expert=8",
        "--config.train.batch_size=256",
    )
    # 12,762,624,384 float32 parameters over 64 devices: 761 MiB, and norms and summaries whole.
    assert "Mesh of 64 devices, 8x8x1" in out
    assert "parameters, float32 763.2 MiB 47.5 GiB" in out
    # 1,024 x 16,384 float32 numbers of the head, gathered for each of 4 microbatches
    assert "output head all-gather data and expert 64 64.0 MiB 4" in out
    assert "A token has experts on 3.28 of 8 devices" in out and "on 4 at most" in out


def test_one_device_has_no_mesh_tables():
    assert "Mesh of" not in start("--config=experiments/configs/laptop.py")
