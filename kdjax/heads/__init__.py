"""Any loss on logits from hidden states and heads, with the logits of a few tokens in memory.

A language model's loss holds several arrays [tokens, vocab]: ten gigabytes at 4,096 tokens and
131,072 words. Here the product with the head is part of the loss, taken a chunk of tokens at a
time, and the gradients are made on the way: nothing is computed twice, and nothing is approximate.

    import functools
    from kdjax import heads, losses

    loss_fn = functools.partial(losses.kd_loss, temperature=2.0)

    def loss(params, batch):
        hidden = network.apply(params, batch["tokens"])  # [batch, tokens, width]: no logits
        student = heads.Head(params["head"])  # [vocab, width]; the embedding table where it is tied
        mean, values = heads.chunked_mean(
            loss_fn, hidden, student, batch["teacher_hidden"], teacher_head,
            labels=batch["label"], mask=batch["mask"],
        )
        return mean
"""

from kdjax.heads._head import Head
from kdjax.heads._mean import chunked_mean
from kdjax.heads._squares import logit_mse
from kdjax.losses._inputs import TopK

__all__ = ["Head", "TopK", "chunked_mean", "logit_mse"]
