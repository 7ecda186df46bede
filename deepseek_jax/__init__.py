"""R1 and R1-Zero in JAX: sparse mixture of experts, local-global attention, training.

Reading order:
`ops/routing` -> `ops/dispatch` -> `ops/experts` -> `nn/feed_forward` -> `nn/model` ->
`objectives/next_token` -> `training/step` -> `training/loop` -> `experiments/main`.
"""
