"""Group relative policy optimization, arXiv:2402.03300: no critic. Floor 6."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from deepseek_jax.core.policy_spec import GrpoRunSpec
from deepseek_jax.nn.model import Decoder
from deepseek_jax.objectives import advantages, grpo, masked, ppo
from deepseek_jax.parallel.layout import Layout
from deepseek_jax.reinforcement import forward, learner, minibatches
from deepseek_jax.reinforcement.forward import PolicyTerms
from deepseek_jax.reinforcement.rewards import RewardModel, Verdict
from deepseek_jax.reinforcement.rollout import Rollout
from deepseek_jax.reinforcement.state import PolicyState


class Experience(NamedTuple):
    """What the epochs learn from; fixed while they last.

    `logprobs` are those of the policy that drew; None where that is the policy that learns.
    """

    rollout: Rollout
    logprobs: Float[Array, "B L"] | None
    reference_logprobs: Float[Array, "B L"]
    advantages: Float[Array, " B"]


class _Learned(NamedTuple):
    """What an update changes."""

    params: PyTree
    opt_state: optax.OptState


def make_halves(
    spec: GrpoRunSpec,
    optimizer: optax.GradientTransformation,
    reward_model: RewardModel | None,
    layout: Layout | None,
    tokens: learner.Tokens,
) -> learner.Halves:
    """The two halves of an iteration: draw groups of answers; learn from them.

    Args:
      spec: of the run.
      optimizer: the policy's.
      reward_model: whose shape alone is read; None without a learned reward.
      layout: the mesh; None is one device.
      tokens: of the tokenizer.
    """
    actor = Decoder(spec.model, layout)

    def update(
        state: PolicyState, drawn: Rollout, verdict: Verdict, reward_variables: Any
    ) -> tuple[PolicyState, learner.Metrics]:
        earned, metrics = learner.scored(spec, reward_model, reward_variables, drawn, verdict)
        reference = forward.policy_terms(actor, state.reference, drawn).logprobs
        size = spec.rollout.samples_per_prompt
        gains = advantages.group_advantages(
            earned, group_size=size, divide_by_std=spec.group.divide_by_std
        )
        metrics["silent_groups"] = jnp.mean(
            jnp.all(gains.reshape(-1, size) == 0.0, axis=1), dtype=jnp.float32
        )

        def terms_of(params: PyTree, rows: Rollout) -> PolicyTerms:
            return forward.policy_terms(actor, {"params": params, "balance": state.balance}, rows)

        def policy_loss(
            params: PyTree, part: Experience
        ) -> tuple[Array, tuple[PolicyTerms, learner.Metrics]]:
            mask = part.rollout.mask
            now = terms_of(params, part.rollout)
            logprobs = masked.zeroed(now.logprobs, mask)
            # The objective gives a gradient to the first of the two alone.
            old = logprobs if part.logprobs is None else masked.zeroed(part.logprobs, mask)
            terms = grpo.grpo_terms(
                logprobs,
                old,
                masked.zeroed(part.reference_logprobs, mask),
                part.advantages,
                clip=spec.update.clip,
                kl_coefficient=spec.kl.coefficient,
            )
            loss = masked.mean_of_row_means(terms, mask)
            spread = jnp.broadcast_to(part.advantages[:, None], mask.shape)
            clipped = ppo.is_clipped(logprobs, old, spread, clip=spec.update.clip)
            share = masked.masked_mean(clipped.astype(jnp.float32), mask)
            return loss + now.aux_loss, (now, {"policy_loss": loss, "clip_fraction": share})

        def learn(
            learned: _Learned, part: Experience
        ) -> tuple[_Learned, tuple[PolicyTerms, learner.Metrics]]:
            gradients, (now, told) = jax.grad(policy_loss, has_aux=True)(learned.params, part)
            updated = learner.applied(optimizer, gradients, learned.params, learned.opt_state)
            told["gradient_norm"] = optax.tree.norm(gradients)
            return _Learned(*updated), (now, told)

        def learn_alone(learned: _Learned, part: Experience) -> tuple[_Learned, learner.Metrics]:
            learned, (_, told) = learn(learned, part)
            return learned, told

        learned = _Learned(state.params, state.opt_state)
        if spec.update.num_updates == 1:
            # The pass that the only update takes gradients of is the old policy's as well.
            learned, (before, told) = learn(learned, Experience(drawn, None, reference, gains))
        else:
            before = terms_of(state.params, drawn)
            learned, told = minibatches.run(
                learn_alone,
                learned,
                Experience(drawn, before.logprobs, reference, gains),
                learner.shuffle_key(state),
                spec=spec.update,
            )
        metrics |= learner.policy_metrics(before, reference, drawn) | told
        new = state._replace(params=learned.params, opt_state=learned.opt_state)
        return learner.finished(
            state, new, metrics, before.stats, bias_update_rate=spec.model.bias_update_rate
        )

    return learner.exact_halves(learner.make_collect(spec, layout, tokens), update)
