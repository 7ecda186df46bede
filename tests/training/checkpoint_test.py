"""Saving, sealing, passing over, and every kind of damage by its name."""

import logging
import re
import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepseek_jax.training import checkpoint, manifest
from deepseek_jax.training import state as state_lib

LARGE = 200_000  # floats; orbax keeps no checksum of arrays of this size


def _state(step, *, dtype=jnp.float32):
    key = jax.random.key(step)
    return state_lib.TrainState(
        step=jnp.int32(step),
        params={"layers": {"gate": jax.random.normal(key, (LARGE,), dtype)}, "scale": jnp.ones(3)},
        balance={"choice_bias": jnp.full((2, 4), 0.5 * step)},
        opt_state=({"mu": jnp.arange(4.0)}, ()),
        key=key,
    )


def _abstract(make):
    """Shapes of what `make` makes, placed on the first device."""
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        jax.eval_shape(make),
    )


ABSTRACT = _abstract(lambda: _state(0))


def _saved(directory, steps, *, keep=5):
    keeper = checkpoint.Checkpoints(directory, keep=keep)
    for step in steps:
        keeper.save(_state(step), {"seconds": 0.1 * step})
    keeper.close()


def _restore(directory, *, step=None, abstract=ABSTRACT):
    keeper = checkpoint.Checkpoints(directory, keep=5)
    try:
        return keeper.restore(abstract, step=step)
    finally:
        keeper.close()


def _step_path(directory, step):
    return directory / f"step_{step:08d}"


def _largest_file(directory, step):
    files = (path for path in _step_path(directory, step).rglob("*") if path.is_file())
    return max(files, key=lambda path: path.stat().st_size)


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory):
    directory = tmp_path_factory.mktemp("checkpoints")
    _saved(directory, [20, 40])
    return directory


@pytest.fixture
def copied(two_steps, tmp_path):
    return shutil.copytree(two_steps, tmp_path / "copied")


def test_the_newest_comes_back_bit_for_bit(copied):
    restored = _restore(copied)
    chex.assert_trees_all_equal(restored.state, _state(40))
    assert jax.tree.map(lambda x: x.dtype, restored.state) == jax.tree.map(
        lambda x: x.dtype, _state(40)
    )
    assert restored.progress == {"seconds": 0.1 * 40}


def test_no_checkpoint_is_none(tmp_path):
    assert _restore(tmp_path / "new") is None


def test_a_donated_buffer_is_not_saved_late(tmp_path):
    overwrite = jax.jit(lambda s: jax.tree.map(lambda x: x * 0 - 1, s), donate_argnums=0)
    keeper = checkpoint.Checkpoints(tmp_path, keep=5)
    params = {"gate": jax.random.normal(jax.random.key(0), (4_000_000,))}
    state = _state(3)._replace(params=params)
    expected = np.array(params["gate"])
    keeper.save(state, {})
    params = overwrite(params)
    for _ in range(3):
        params = overwrite(params)
    keeper.close()
    abstract = _abstract(lambda: state._replace(params=params))
    restored = _restore(tmp_path, abstract=abstract)
    np.testing.assert_array_equal(restored.state.params["gate"], expected)


def test_only_the_newest_are_kept(tmp_path):
    _saved(tmp_path, [1, 2, 3, 4], keep=2)
    assert checkpoint.finished_steps(tmp_path) == [3, 4]
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["sealed.json", "step_00000003", "step_00000004"]


def test_an_older_step_is_taken_when_asked_for(copied, caplog):
    restored = _restore(copied, step=20)
    chex.assert_trees_all_equal(restored.state, _state(20))
    assert checkpoint.finished_steps(copied) == [20]
    assert (copied / "aside_0_step_00000040").is_dir()  # renamed, not deleted
    assert "step_00000040: newer than step 20" in caplog.text


def test_a_step_that_is_not_there_is_an_error(copied):
    with pytest.raises(FileNotFoundError, match=r"restore_step=30.*\[20, 40\]"):
        _restore(copied, step=30)


def _flip_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def _add_extra(path):
    (path.parent / "extra").write_bytes(b"x")


def _manifest_beside(path):
    step = next(parent for parent in path.parents if parent.name.startswith("step_"))
    return step / manifest.NAME


def _cut_manifest(path):
    _truncate(_manifest_beside(path))


def _change_manifest(path):
    path = next(parent for parent in path.parents if parent.name.startswith("step_"))
    text = (path / manifest.NAME).read_text()
    (path / manifest.NAME).write_text(text.replace("float32", "float64", 1))


def _drop_manifest(path):
    _manifest_beside(path).unlink()


DAMAGE = {
    "flipped bit": (_flip_bit, "{largest}: sha256 is"),
    "truncated": (_truncate, "{largest}: size is"),
    "missing": (lambda path: path.unlink(), "{largest}: the file is missing"),
    "extra": (_add_extra, "extra: the checkpoint was saved without this file"),
    "manifest missing": (_drop_manifest, "manifest.json: the file is missing"),
    "manifest cut": (_cut_manifest, "manifest.json: not a manifest"),
    "manifest changed": (_change_manifest, "manifest.json: sha256 of the content"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_named(copied, kind):
    damage, message = DAMAGE[kind]
    largest = _largest_file(copied, 40)
    assert largest.stat().st_size > 2 * LARGE
    damage(largest)
    with pytest.raises(manifest.CheckpointDamagedError) as caught:
        _restore(copied)
    text = str(caught.value)
    assert "the checkpoint of step 40 is damaged" in text
    assert message.format(largest=largest) in text
    assert "the older steps [20] are whole" in text and "restore_step=20" in text
    # Nothing was touched, and the older step is there for who asks for it.
    assert checkpoint.finished_steps(copied) == [20, 40]
    chex.assert_trees_all_equal(_restore(copied, step=20).state, _state(20))


def test_every_file_is_covered(copied):
    """One flipped bit in any file whatever, large or small."""
    files = sorted(path for path in _step_path(copied, 40).rglob("*") if path.is_file())
    assert len(files) > 10
    for path in files:
        if path.name == manifest.NAME:
            continue
        whole = path.read_bytes()
        _flip_bit(path)
        with pytest.raises(manifest.CheckpointDamagedError, match=re.escape(str(path))):
            manifest.verify(_step_path(copied, 40))
        path.write_bytes(whole)
    manifest.verify(_step_path(copied, 40))


def test_without_a_whole_older_step_the_message_says_so(copied):
    for step in (20, 40):
        _flip_bit(_largest_file(copied, step))
    with pytest.raises(manifest.CheckpointDamagedError, match="no older step that is whole"):
        _restore(copied)


def test_unfinished_saves_are_passed_over_with_a_word(copied, caplog):
    caplog.set_level(logging.WARNING)
    # Killed between the last file and the seal.
    (_step_path(copied, 40) / manifest.NAME).unlink()
    (copied / "sealed.json").write_text("[20]")
    shutil.copytree(_step_path(copied, 40), copied / "step_00000060.orbax-checkpoint-tmp")
    (copied / "80").mkdir()  # a numeric directory is no step here
    restored = _restore(copied)
    chex.assert_trees_all_equal(restored.state, _state(20))
    for name in ("step_00000040", "step_00000060.orbax-checkpoint-tmp"):
        assert re.search(rf"{name}: unfinished save", caplog.text)
    _saved(copied, [40])  # its place is free again
    chex.assert_trees_all_equal(_restore(copied).state, _state(40))


def test_a_half_removed_checkpoint_is_cleared(copied):
    (copied / "sealed.json").write_text("[40]")
    _step_path(copied, 20).rename(copied / "removed_20")
    _largest_file(copied, 40)
    _restore(copied)
    assert not (copied / "removed_20").exists()


def test_saving_a_step_twice_is_an_error(copied):
    keeper = checkpoint.Checkpoints(copied, keep=5)
    with pytest.raises(ValueError, match="already exists"):
        keeper.save(_state(40), {})
    keeper.close()


def test_an_error_in_the_background_is_raised_later(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    keeper = checkpoint.Checkpoints(tmp_path, keep=5)
    monkeypatch.setattr(manifest, "write", fail)
    keeper.save(_state(1), {})
    with pytest.raises(OSError, match="disk full"):
        keeper.close()


def test_another_dtype_or_shape_is_an_error(copied):
    other = _abstract(lambda: _state(0, dtype=jnp.bfloat16))
    with pytest.raises(ValueError, match=r"params.layers.gate.*float32.*bfloat16"):
        _restore(copied, abstract=other)
    grown = ABSTRACT._replace(balance={"choice_bias": jax.ShapeDtypeStruct((2, 5), jnp.float32)})
    with pytest.raises(ValueError, match=r"balance.choice_bias.*\(2, 4\).*\(2, 5\)"):
        _restore(copied, abstract=grown)
    extra = ABSTRACT._replace(opt_state=({"nu": ABSTRACT.balance["choice_bias"]}, ()))
    with pytest.raises(ValueError, match=r"no array opt_state.0.nu"):
        _restore(copied, abstract=extra)


def test_the_model_alone_can_be_read(copied):
    abstract = ABSTRACT._replace(opt_state=())  # whoever generates has no optimizer
    model = checkpoint.restore_model(copied, abstract, step=None)
    chex.assert_trees_all_equal(model.params, _state(40).params)
    chex.assert_trees_all_equal(model.balance, _state(40).balance)
    assert model.step == 40
    assert checkpoint.restore_model(copied, abstract, step=20).step == 20
    with pytest.raises(FileNotFoundError, match="no finished checkpoint"):
        checkpoint.restore_model(copied / "nowhere", abstract, step=None)
