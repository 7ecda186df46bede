"""Generation: against a plain loop without a cache, streaming, end tokens, bad prompts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepseek_jax.decoding import generate, prompts
from deepseek_jax.nn import model as model_lib
from tests import tiny, tolerances

PROMPTS = [np.array([5, 7, 9]), np.array([1, 2, 3, 4, 5, 6, 7, 8]), np.array([11])]
NEW, NEVER = 9, 50  # NEVER is outside the vocabulary: no row ends


@pytest.fixture(scope="module")
def built():
    return tiny.make(tiny.SPARSE)


def _generate(built, *, temperature=0.0, end_id=NEVER, key=0, which=PROMPTS):
    model, variables = built
    tokens, lengths = prompts.pad_prompts(which, block_size=4, pad_id=0)
    return generate.generate(
        model,
        variables,
        jnp.asarray(tokens),
        jnp.asarray(lengths),
        jax.random.key(key),
        max_new_tokens=NEW,
        temperature=temperature,
        top_p=1.0,
        vocab_size=50,
        end_id=end_id,
    )


@pytest.mark.deep
def test_greedy_equals_a_plain_loop_without_a_cache(built):
    model, variables = built
    out = _generate(built)
    forward = jax.jit(
        lambda t, ids, pos: model.apply(variables, t, document_ids=ids, positions=pos).logits
    )
    for row, prompt in enumerate(PROMPTS):
        text = list(prompt)
        for step in range(NEW):
            padded = jnp.asarray([text + [0] * (20 - len(text))], jnp.int32)
            index = jnp.arange(20, dtype=jnp.int32)[None]
            ids = (index < len(text)).astype(jnp.int32)
            logits = forward(padded, ids, index)[0, len(text) - 1]
            token = int(jnp.argmax(logits))
            assert token == int(out.tokens[row, step])
            np.testing.assert_allclose(
                out.logprobs[row, step],
                jax.nn.log_softmax(logits)[token],
                **tolerances.MODEL_F32,
            )
            text.append(token)


def _equations(jaxpr):
    """Of a program and of all programs within it."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")
        ):
            if hasattr(inner, "eqns"):
                yield from _equations(getattr(inner, "jaxpr", inner))


@pytest.mark.deep
def test_no_step_cuts_a_layer_out_of_all_or_rounds_the_experts():
    spec = dataclasses.replace(tiny.SPARSE, compute_dtype="bfloat16", tie_embeddings=False)
    model, variables = tiny.make(spec)
    traced = jax.make_jaxpr(lambda variables: _generate((model, variables)))(variables)
    loops = [each for each in _equations(traced.jaxpr) if each.primitive.name == "while"]
    bodies = [list(_equations(each.params["body_jaxpr"].jaxpr)) for each in loops]
    cut = {"slice", "dynamic_slice", "gather", "squeeze"}
    step = max(bodies, key=len)
    assert len(step) > 200
    experts = (spec.num_experts, spec.model_dim, spec.expert_hidden_dim)
    down = (spec.num_experts, spec.expert_hidden_dim, spec.model_dim)
    head, query = (spec.model_dim, spec.vocab_size), (spec.model_dim, spec.num_heads, spec.head_dim)
    matrices = {experts, down, query, head}
    for each in (each for each in step if each.invars):
        name, operand = each.primitive.name, each.invars[0].aval
        assert name not in cut or operand.shape[1:] not in matrices
        is_cast = name == "convert_element_type" and operand.dtype == jnp.float32
        assert not is_cast or operand.shape not in matrices


@pytest.mark.deep
def test_stream_draws_what_generate_draws(built):
    model, variables = built
    whole = _generate(built, temperature=1.0, key=3, which=PROMPTS[:1])
    tokens, lengths = prompts.pad_prompts(PROMPTS[:1], block_size=4, pad_id=0)
    streamed = generate.stream(
        model,
        variables,
        tokens[0],
        int(lengths[0]),
        jax.random.key(3),
        max_new_tokens=NEW,
        temperature=1.0,
        top_p=1.0,
        vocab_size=50,
        end_id=NEVER,
    )
    assert list(streamed) == whole.tokens[0].tolist()


@pytest.mark.deep
def test_a_row_ends_with_its_end_token_and_the_others_go_on(built):
    free = _generate(built)
    end_id = int(free.tokens[0, 2])
    out = _generate(built, end_id=end_id)
    for row in range(len(PROMPTS)):
        drawn = free.tokens[row].tolist()
        expected = drawn.index(end_id) + 1 if end_id in drawn else NEW
        assert int(out.token_mask[row].sum()) == expected
        assert out.tokens[row, :expected].tolist() == drawn[:expected]
        np.testing.assert_array_equal(out.tokens[row, expected:], 0)
        np.testing.assert_array_equal(out.logprobs[row, expected:], 0.0)


@pytest.mark.deep
def test_a_row_does_not_depend_on_its_neighbours(built):
    together, alone = _generate(built), _generate(built, which=PROMPTS[1:2])
    assert together.tokens[1].tolist() == alone.tokens[0].tolist()


@pytest.mark.deep
def test_same_key_same_tokens_other_key_other_tokens(built):
    first, second, other = (_generate(built, temperature=1.0, key=k).tokens for k in (1, 1, 2))
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, other)


def test_refusals(built):
    with pytest.raises(ValueError, match="no prompts"):
        prompts.pad_prompts([], block_size=4, pad_id=0)
    with pytest.raises(ValueError, match="prompt 1 is empty"):
        prompts.pad_prompts([np.array([1]), np.array([])], block_size=4, pad_id=0)
    capacity = dataclasses.replace(tiny.SPARSE, dispatch="capacity", capacity_factor=1.0)
    with pytest.raises(ValueError, match="model.dispatch='capacity'"):
        _generate((model_lib.Decoder(capacity), built[1]))
    with pytest.raises(ValueError, match="outside"):
        _generate(built, which=[np.arange(60)])


def test_padding_is_right_and_whole_blocks():
    tokens, lengths = prompts.pad_prompts(PROMPTS, block_size=4, pad_id=42)
    assert tokens.shape == (3, 8)
    assert tokens[0].tolist() == [5, 7, 9, 42, 42, 42, 42, 42]
    assert lengths.tolist() == [3, 8, 1]


def test_ids_beyond_the_tokenizer_are_never_drawn(built):
    model, variables = built
    tokens, lengths = prompts.pad_prompts(PROMPTS, block_size=4, pad_id=0)
    free = _generate(built, temperature=1.0).tokens
    assert int(free.max()) >= 7
    few = generate.generate(
        model,
        variables,
        jnp.asarray(tokens),
        jnp.asarray(lengths),
        jax.random.key(0),
        max_new_tokens=NEW,
        temperature=1.0,
        top_p=1.0,
        vocab_size=7,
        end_id=NEVER,
    )
    assert int(few.tokens.max()) < 7
