"""The decoder that is told its task in words. Floor 3.

The description goes through the encoder alone: it is never among the decoder's tokens.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from deepseek_jax.nn import description as description_lib
from deepseek_jax.nn import model as model_lib


class SteeredDecoder(model_lib.Decoder):
    """A decoder with a task vector and the encoder that makes it; `task_spec` must be given.

    Params: those of `Decoder` with a `task_spec`, and `description`.
    """

    def setup(self) -> None:
        """Makes the parts."""
        super().setup()
        if self.task_spec is None:
            raise ValueError("a SteeredDecoder without task_spec; use Decoder")
        self.description = description_lib.DescriptionEncoder(self.task_spec, self.spec.vocab_size)

    def __call__(  # type: ignore[override]
        self,
        tokens: Int[Array, "B L"],
        *,
        document_ids: Int[Array, "B L"],
        positions: Int[Array, "B L"],
        description: Int[Array, "R W"] | None = None,
    ) -> model_lib.ModelOutput:
        """Next-token logits at every position of whole rows, by the tasks described.

        Arguments and errors as of `Decoder.__call__`, and:

        Args:
          tokens: see there.
          document_ids: see there.
          positions: see there.
          description: [R, W] int32, each for B / R consecutive rows; None is missing everywhere.
        """
        if description is None:
            assert self.task_spec is not None
            description = jnp.zeros((1, self.task_spec.description_length), jnp.int32)
        vectors = self.encode(description)
        return super().__call__(
            tokens,
            document_ids=document_ids,
            positions=positions,
            task_vector=jnp.repeat(vectors, len(tokens) // len(vectors), axis=0),
        )

    def encode(self, description: Int[Array, "R W"]) -> Float[Array, "R Z"]:
        """The task vectors of descriptions; one of nothing but padding is missing."""
        return self.description(description)
