"""Proximal policy optimization with a critic, arXiv:1707.06347. Floor 6."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from deepseek_jax.core.policy_spec import PpoRunSpec
from deepseek_jax.nn.model import Decoder
from deepseek_jax.nn.scalar import ScalarDecoder
from deepseek_jax.objectives import advantages as advantages_lib
from deepseek_jax.objectives import kl, masked, ppo
from deepseek_jax.parallel.layout import Layout
from deepseek_jax.reinforcement import forward, learner, minibatches
from deepseek_jax.reinforcement.rewards import RewardModel, Verdict
from deepseek_jax.reinforcement.rollout import Rollout
from deepseek_jax.reinforcement.state import PolicyState


class Experience(NamedTuple):
    """What the epochs learn from; fixed while they last."""

    rollout: Rollout
    logprobs: Float[Array, "B L"]
    reference_logprobs: Float[Array, "B L"]
    values: Float[Array, "B L"]
    advantages: Float[Array, "B L"]
    returns: Float[Array, "B L"]


class _Learned(NamedTuple):
    """What an update changes."""

    params: PyTree
    opt_state: optax.OptState
    critic_params: PyTree
    critic_opt_state: optax.OptState


def make_halves(
    spec: PpoRunSpec,
    optimizer: optax.GradientTransformation,
    critic_optimizer: optax.GradientTransformation,
    reward_model: RewardModel | None,
    layout: Layout | None,
    tokens: learner.Tokens,
) -> learner.Halves:
    """The two halves of an iteration: draw answers; learn from them.

    Args:
      spec: of the run.
      optimizer: the policy's.
      critic_optimizer: the critic's.
      reward_model: whose shape alone is read; None without a learned reward.
      layout: the mesh; None is one device.
      tokens: of the tokenizer.
    """
    actor, critic = Decoder(spec.model, layout), ScalarDecoder(spec.model, layout)

    def update(
        state: PolicyState, drawn: Rollout, verdict: Verdict, reward_variables: Any
    ) -> tuple[PolicyState, learner.Metrics]:
        assert state.critic is not None
        critic_balance = state.critic.balance
        earned, metrics = learner.scored(spec, reward_model, reward_variables, drawn, verdict)
        before = forward.policy_terms(
            actor, {"params": state.params, "balance": state.balance}, drawn
        )
        reference = forward.policy_terms(actor, state.reference, drawn).logprobs
        valued = forward.values(
            critic, {"params": state.critic.params, "balance": critic_balance}, drawn
        ).values
        in_reward = state.kl_coefficient if spec.kl.place == "reward" else jnp.float32(0.0)
        token_rewards = kl.penalized_rewards(
            earned, before.logprobs, reference, drawn.mask, coefficient=in_reward
        )
        estimated = advantages_lib.generalized_advantages(
            token_rewards,
            valued,
            drawn.mask,
            discount=spec.critic.discount,
            gae_lambda=spec.critic.gae_lambda,
        )
        gains = estimated.advantages
        if spec.critic.whiten:
            gains = advantages_lib.whitened(gains, drawn.mask, shift_mean=True)
        experience = Experience(drawn, before.logprobs, reference, valued, gains, estimated.returns)
        in_loss = state.kl_coefficient if spec.kl.place == "loss" else jnp.float32(0.0)

        def policy_loss(params: PyTree, part: Experience) -> tuple[Array, learner.Metrics]:
            mask = part.rollout.mask
            now = forward.policy_terms(
                actor, {"params": params, "balance": state.balance}, part.rollout
            )
            logprobs = masked.zeroed(now.logprobs, mask)
            old = masked.zeroed(part.logprobs, mask)
            surrogate = ppo.clipped_surrogate_terms(
                logprobs, old, part.advantages, clip=spec.update.clip
            )
            drift = kl.kl_k3_terms(logprobs, masked.zeroed(part.reference_logprobs, mask))
            loss = masked.masked_mean(surrogate + in_loss * drift, mask)
            clipped = ppo.is_clipped(logprobs, old, part.advantages, clip=spec.update.clip)
            share = masked.masked_mean(clipped.astype(jnp.float32), mask)
            return loss + now.aux_loss, {"policy_loss": loss, "clip_fraction": share}

        def value_loss(params: PyTree, part: Experience) -> tuple[Array, learner.Metrics]:
            mask = part.rollout.mask
            now = forward.values(
                critic, {"params": params, "balance": critic_balance}, part.rollout
            )
            terms = ppo.clipped_value_terms(
                masked.zeroed(now.values, mask),
                masked.zeroed(part.values, mask),
                part.returns,
                clip=spec.critic.value_clip,
            )
            loss = masked.masked_mean(terms, mask)
            return loss + now.aux_loss, {"value_loss": loss}

        def learn(learned: _Learned, part: Experience) -> tuple[_Learned, learner.Metrics]:
            gradients, told = jax.grad(policy_loss, has_aux=True)(learned.params, part)
            d_critic, told_critic = jax.grad(value_loss, has_aux=True)(learned.critic_params, part)
            params, opt_state = learner.applied(
                optimizer, gradients, learned.params, learned.opt_state
            )
            critic_params, critic_opt_state = learner.applied(
                critic_optimizer, d_critic, learned.critic_params, learned.critic_opt_state
            )
            norms = {
                "gradient_norm": optax.tree.norm(gradients),
                "critic_gradient_norm": optax.tree.norm(d_critic),
            }
            return (
                _Learned(params, opt_state, critic_params, critic_opt_state),
                {**told, **told_critic, **norms},
            )

        learned, told = minibatches.run(
            learn,
            _Learned(state.params, state.opt_state, state.critic.params, state.critic.opt_state),
            experience,
            learner.shuffle_key(state),
            spec=spec.update,
        )
        metrics |= learner.policy_metrics(before, reference, drawn) | told
        metrics["explained_variance"] = explained_variance(valued, estimated.returns, drawn)
        metrics["kl_coefficient"] = state.kl_coefficient
        new = state._replace(
            params=learned.params,
            opt_state=learned.opt_state,
            kl_coefficient=_moved(spec, state, metrics["kl"]),
            critic=state.critic._replace(
                step=state.critic.step + 1,
                params=learned.critic_params,
                opt_state=learned.critic_opt_state,
            ),
        )
        return learner.finished(
            state, new, metrics, before.stats, bias_update_rate=spec.model.bias_update_rate
        )

    return learner.exact_halves(learner.make_collect(spec, layout, tokens), update)


def explained_variance(
    values: Float[Array, "B L"], returns: Float[Array, "B L"], drawn: Rollout
) -> Float[Array, ""]:
    """1 - Var(returns - values) / Var(returns): 1 is a perfect critic, 0 a constant one.

    0 where all returns are equal.
    """
    spread = _variance(returns, drawn)
    left = _variance(returns - values, drawn)
    return jnp.where(spread > 0.0, 1.0 - left / jnp.where(spread > 0.0, spread, 1.0), 0.0)


def _variance(x: Float[Array, "B L"], drawn: Rollout) -> Float[Array, ""]:
    mean = masked.masked_mean(x, drawn.mask)
    return masked.masked_mean(jnp.square(x - mean), drawn.mask)


def _moved(spec: PpoRunSpec, state: PolicyState, observed: Float[Array, ""]) -> Array:
    """The coefficient of the next iteration."""
    if spec.kl.target is None or spec.kl.horizon is None:
        return state.kl_coefficient
    return kl.adapted_coefficient(
        state.kl_coefficient,
        observed,
        target=spec.kl.target,
        horizon=spec.kl.horizon,
        num_samples=spec.rollout.num_rows,
    )
