"""What PPO and GRPO share: models, the halves of an iteration, and what both report. Floor 6."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, cast

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from deepseek_jax.core.policy_spec import PolicyRunSpec
from deepseek_jax.nn.model import Decoder
from deepseek_jax.objectives import kl, masked
from deepseek_jax.ops import answers, balance
from deepseek_jax.parallel.layout import Layout
from deepseek_jax.reinforcement import forward, rollout
from deepseek_jax.reinforcement import rewards as rewards_lib
from deepseek_jax.reinforcement.rewards import RewardModel
from deepseek_jax.reinforcement.rollout import Prompts, Rollout
from deepseek_jax.reinforcement.state import PolicyState
from deepseek_jax.training import step as step_lib

_F = TypeVar("_F", bound=Callable[..., Any])

Metrics = dict[str, Array]
# (state, prompts) -> answers, and what the array verifier says of them
Collect = Callable[[PolicyState, Prompts], tuple[Rollout, rewards_lib.Verdict]]
# (state, answers, verdict, reward model's variables) -> (state, metrics)
Update = Callable[[PolicyState, Rollout, rewards_lib.Verdict, Any], tuple[PolicyState, Metrics]]


class Tokens(NamedTuple):
    """Ids of the tokenizer that rollouts need: how many there are, and the tags."""

    vocab_size: int
    ids: answers.AnswerIds


class Halves(NamedTuple):
    """An iteration in two parts, between which a verifier may run on the host."""

    collect: Collect
    update: Update


def with_exact_matmuls(function: _F) -> _F:
    """`function` with float32 matmuls that are float32 everywhere.

    JAX's default on a GPU is TF32, in which rollout and training round apart until a token
    changes its expert: differences of whole nats. Products of bfloat16 are the same either way.
    """

    @functools.wraps(function)
    def exact(*arguments: Any, **named: Any) -> Any:
        with jax.default_matmul_precision("highest"):
            return function(*arguments, **named)

    return cast(_F, exact)


def exact_halves(collect: Collect, update: Update) -> Halves:
    """Both halves with exact matmuls, so that they agree about what was sampled."""
    return Halves(with_exact_matmuls(collect), with_exact_matmuls(update))


def make_collect(spec: PolicyRunSpec, layout: Layout | None, tokens: Tokens) -> Collect:
    """Answers to `samples_per_prompt` copies of each prompt, drawn with the state's key.

    Args:
      spec: of the run.
      layout: the mesh; None is one device.
      tokens: of the tokenizer.
    """
    model = Decoder(spec.model, layout)

    def collect(state: PolicyState, prompts: Prompts) -> tuple[Rollout, rewards_lib.Verdict]:
        asked = rollout.repeated(prompts, times=spec.rollout.samples_per_prompt)
        drawn = rollout.collect(
            model,
            {"params": state.params, "balance": state.balance},
            asked,
            sample_key(state),
            spec=spec.rollout,
            temperature=spec.rollout.temperature,
            vocab_size=tokens.vocab_size,
            end_id=tokens.ids.eos,
        )
        return drawn, rewards_lib.verify(drawn, asked, ids=tokens.ids)

    return collect


def sample_key(state: PolicyState) -> jax.Array:
    """The key that draws the answers of the state's iteration."""
    return jax.random.split(jax.random.fold_in(state.key, state.step))[0]


def shuffle_key(state: PolicyState) -> jax.Array:
    """The key of the orders of its minibatches."""
    return jax.random.split(jax.random.fold_in(state.key, state.step))[1]


def scored(
    spec: PolicyRunSpec,
    reward_model: RewardModel | None,
    variables: Any,
    drawn: Rollout,
    verdict: rewards_lib.Verdict,
) -> tuple[Float[Array, " B"], Metrics]:
    """Rewards of the answers, and the metrics about them.

    Args:
      spec: of the run.
      reward_model: its shape; None without one.
      variables: its parameters; arrays that are handed in, not constants of the program.
      drawn: the answers.
      verdict: of the verifier.
    """
    scores = None
    metrics = {
        "accuracy": jnp.mean(verdict.is_right, dtype=jnp.float32),
        "format_rate": jnp.mean(verdict.has_format, dtype=jnp.float32),
        "finished_rate": jnp.mean(drawn.is_finished, dtype=jnp.float32),
        "length": jnp.mean(jnp.sum(drawn.response_mask, axis=1, dtype=jnp.float32)),
    }
    if reward_model is not None:
        scores = rewards_lib.learned_scores(reward_model._replace(variables=variables), drawn)
        metrics["learned_score"] = jnp.mean(scores)
    earned = rewards_lib.rewards(spec.rewards, verdict, scores)
    return earned, {**metrics, "reward": jnp.mean(earned), "reward_std": jnp.std(earned)}


def policy_metrics(
    before: forward.PolicyTerms, reference_logprobs: Float[Array, "B L"], drawn: Rollout
) -> Metrics:
    """What is true of the policy that drew the answers.

    `kl` is in nats a response, `entropy` in nats a token; `logprob_mismatch` is the largest
    difference between what the sampler and the training pass say of a token.
    """
    terms = kl.kl_k1_terms(
        masked.zeroed(before.logprobs, drawn.mask), masked.zeroed(reference_logprobs, drawn.mask)
    )
    differences = jnp.abs(drawn.sampled_logprobs - before.logprobs)
    metrics = {
        "kl": jnp.mean(jnp.sum(terms, axis=1)),
        "entropy": masked.masked_mean(before.entropies, drawn.mask),
        "logprob_mismatch": jnp.max(masked.zeroed(differences, drawn.mask)),
    }
    if before.stats is not None:
        metrics["load_max_over_mean"] = jnp.max(balance.max_over_mean_load(before.stats))
    return metrics


def applied(
    optimizer: optax.GradientTransformation,
    gradients: PyTree,
    params: PyTree,
    opt_state: optax.OptState,
) -> tuple[PyTree, optax.OptState]:
    """Parameters and moments after one update."""
    updates, opt_state = optimizer.update(gradients, opt_state, params)
    return optax.apply_updates(params, updates), opt_state


def finished(
    old: PolicyState,
    new: PolicyState,
    metrics: Metrics,
    stats: balance.RouterStats | None,
    *,
    bias_update_rate: float,
) -> tuple[PolicyState, Metrics]:
    """The state after the iteration; the old one if anything is not finite.

    The choice biases move here, by the load of the whole batch.
    """
    moved = step_lib.moved_biases(old.balance, stats, rate=bias_update_rate)
    new = new._replace(step=old.step + 1, balance=moved)
    return step_lib.new_if_finite(new, old, metrics.values()), metrics


def make_iteration(
    halves: Halves, *, shardings: PolicyState | None
) -> Callable[[PolicyState, Prompts, Any], tuple[PolicyState, Metrics]]:
    """One jitted function for a whole iteration; it consumes its state.

    Args:
      halves: of `ppo.make_halves` or `grpo.make_halves`.
      shardings: of the state on a mesh, which it keeps; None on one device.
    """

    def iteration(
        state: PolicyState, prompts: Prompts, reward_variables: Any
    ) -> tuple[PolicyState, Metrics]:
        drawn, verdict = halves.collect(state, prompts)
        return halves.update(state, drawn, verdict, reward_variables)

    return step_lib.jitted(iteration, shardings)


def make_update(halves: Halves, *, shardings: PolicyState | None) -> Update:
    """The second half alone, jitted, for verdicts from the host; arguments as `make_iteration`."""
    return step_lib.jitted(halves.update, shardings)
