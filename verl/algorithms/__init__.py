"""The mathematics of post-training: pure functions on tensors that import torch and nothing else.

One mask contract, for every function in this package:

1. The policy mask is applied once, at the door: ``verl.data.batch`` picks the tokens that the policy chose out of the
   packed ``[tokens]`` arrays, and every function here takes flat ``[n]`` tensors of policy tokens alone. A prompt or an
   observation cannot leak into a loss, an advantage, a KL or a metric, because it is never there; a value and a running
   sum pass an observation unchanged, because the next element is the next policy token.
2. ``sequence [n]`` (int64) says which sequence each token belongs to; tokens of one sequence are contiguous, in order,
   and all in the same call (a micro-batch holds whole sequences).
3. Whatever is averaged is divided by the ``Totals`` of the global batch (all micro-batches and ranks of one optimizer
   step), so the SUM of losses, gradients and metrics over micro-batches and ranks is the global value, however split.

A value at position t speaks of token t given the tokens before it. What is a statistic of a batch (group means,
whitening, KTO's reference point) is computed from the whole batch, before it is split.

Reading order: ``config``, ``tokens``, ``aggregation``, ``losses``, ``sequence_losses``, ``kl``, ``correction``,
``displacement``, ``marks``, ``objective``; then ``advantages``, ``gae``, ``turn_credit``, ``value_loss``; then the
``penalties``, what is taken off a reward, and ``lora``.
"""
