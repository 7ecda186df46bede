"""How evenly tokens spread over devices: routings drawn at random, or of a trained router.

Letters as in `deepseek_jax.parallel.exchange`; S sources (devices that send), T tokens of each.
"""

import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32, Int32

from deepseek_jax.core.mesh_spec import MeshSpec
from deepseek_jax.core.model_spec import ModelSpec
from deepseek_jax.data import batches
from deepseek_jax.evaluation import heldout
from deepseek_jax.nn.router import Router
from deepseek_jax.ops import routing
from deepseek_jax.parallel import exchange
from deepseek_jax.training import workdir as workdir_lib
from experiments import trained


class Load(NamedTuple):
    """Rows between devices.

    Attributes:
      visits: devices that a token has experts on, on average.
      uneven_sent: rows of one source to its busiest destination over the mean, on average.
      uneven_received: rows that the busiest destination gets from all sources over the mean.
      overflow: share of visits that find no row, by `rows_factor`.
    """

    visits: float
    uneven_sent: float
    uneven_received: float
    overflow: dict[float, float]


def measure(
    ids: Int32[np.ndarray, "S T K"],
    model: ModelSpec,
    *,
    num_devices: int,
    factors: tuple[float, ...],
) -> Load:
    """What `exchange.make` would count for each source, without making its plans.

    Args:
      ids: expert ids of every token.
      model: the router's settings, for the expected number of rows.
      num_devices: P.
      factors: each a `rows_factor`.
    """
    num_sources, num_tokens, top_k = ids.shape
    owners = ids.reshape(-1, top_k) // (model.num_experts // num_devices)
    visited = np.zeros((len(owners), num_devices), bool)
    visited[np.arange(len(owners))[:, None], owners] = True
    rows = visited.reshape(num_sources, num_tokens, num_devices).sum(axis=1)
    overflow = {}
    for factor in factors:
        mesh = MeshSpec(data=1, expert=num_devices, model=1, exchange="bounded", rows_factor=factor)
        capacity = exchange.rows_per_destination(mesh, model, num_tokens=num_tokens)
        overflow[factor] = float(np.maximum(rows - capacity, 0).sum() / rows.sum())
    received = rows.sum(axis=0)
    return Load(
        visits=float(rows.sum() / len(owners)),
        uneven_sent=float((rows.max(axis=1) / rows.mean(axis=1)).mean()),
        uneven_received=float(received.max() / received.mean()),
        overflow=overflow,
    )


def cut_to_sources(ids: Int32[np.ndarray, "N K"], num_tokens: int) -> Int32[np.ndarray, "S T K"]:
    """Consecutive tokens a source; what is left over is not used."""
    num_sources = len(ids) // num_tokens
    return ids[: num_sources * num_tokens].reshape(num_sources, num_tokens, -1)


def random_scores(
    model: ModelSpec, *, zipf: float, num_tokens: int, seed: int
) -> Float32[np.ndarray, "T E"]:
    """Scores that know nothing of the token: of independent normal logits, some liked better.

    The expert of rank r, ranks dealt to the ids by the seed, has `zipf` log(r) less in every logit,
    a factor r^-zipf in exp (Zipf's law); with `zipf` 0 no expert is liked better.
    """
    rank_key, logit_key = jax.random.split(jax.random.key(seed))
    ranks = 1 + jax.random.permutation(rank_key, model.num_experts)
    logits = jax.random.normal(logit_key, (num_tokens, model.num_experts))
    logits -= zipf * jnp.log(ranks)[None]
    return np.asarray(routing.router_scores(logits, kind=model.router_scores))


def choose(
    scores: Float32[np.ndarray, "T E"], model: ModelSpec, *, top_groups: int
) -> Int32[np.ndarray, "T K"]:
    """The ids that the router's own rule chooses by scores, from `top_groups` groups."""
    chosen = routing.top_k_routing(
        jnp.asarray(scores),
        top_k=model.top_k,
        num_groups=model.num_groups,
        top_groups=top_groups,
    )
    return np.asarray(chosen.expert_ids)


def draw(model: ModelSpec, *, zipf: float, num_tokens: int, seed: int) -> Int32[np.ndarray, "T K"]:
    """Expert ids that the router's own rule chooses by `random_scores`."""
    scores = random_scores(model, zipf=zipf, num_tokens=num_tokens, seed=seed)
    return choose(scores, model, top_groups=model.top_groups)


class HeldoutRouting(NamedTuple):
    """What a run's router did with held-out tokens N: ids, and scores as shares of their sum."""

    name: str
    model: ModelSpec
    step: int
    expert_ids: Int32[np.ndarray, "layers N K"]
    probs: Float32[np.ndarray, "layers N E"]


def route_heldout(workdir: pathlib.Path) -> HeldoutRouting:
    """Routes the held-out rows of a run by its newest checkpoint.

    Raises:
      FileNotFoundError: no run there, or none that has saved anything.
      ValueError: a dense model, or the installed text is not the run's.
    """
    run = trained.open_run(workdir)
    spec = run.run_spec
    if spec.model.is_dense:
        raise ValueError(f"{workdir} holds a dense model (model.num_experts=1): it has no router")
    data = workdir_lib.load_data(workdir, spec)
    rows = type(data.heldout)(*(array[: spec.eval.num_rows] for array in data.heldout))

    @jax.jit
    def routed(variables: Any, batch: heldout.Batch) -> tuple[jax.Array, jax.Array]:
        _, kept = run.model.apply(
            variables,
            batch["tokens"],
            document_ids=batch["document_ids"],
            positions=batch["positions"],
            capture_intermediates=lambda module, _: isinstance(module, Router),
            mutable=["intermediates"],
        )
        (output,) = kept["intermediates"]["layers"]["feed_forward"]["router"]["__call__"]
        return output.routing.expert_ids, output.probs

    ids, probs = [], []
    for batch in batches.eval_batches(rows, batch_size=spec.eval.batch_size):
        is_token = np.asarray(batch["document_ids"]).reshape(-1) > 0
        found_ids, found_probs = jax.device_get(routed(run.variables, jax.device_put(batch)))
        ids.append(found_ids[:, is_token])
        probs.append(found_probs[:, is_token])
    return HeldoutRouting(
        workdir.name,
        spec.model,
        run.step,
        np.concatenate(ids, axis=1),
        np.concatenate(probs, axis=1),
    )
