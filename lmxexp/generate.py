"""Text from a model, one token at a time."""

from collections.abc import Iterator

import mlx.core as mx

from lmxexp.interfaces import ConfigError
from lmxexp.model.language_model import LanguageModel
from lmxexp.ops.own_gradient import without_own_gradients
from lmxexp.ops.trees import number


def generate(
    model: LanguageModel,
    prompt: list[int],
    *,
    max_tokens: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int = 0,
) -> Iterator[int]:
    """Token ids that continue ``prompt``, drawn one after the other with a cache.

    A model with a bounded number of positions forgets the older half of its context when it is full.

    Args:
        prompt: token ids, at least one.
        max_tokens: ids to draw.
        temperature: the logits are divided by it; 0 always takes the likeliest token.
        top_p: draws from the likeliest tokens that together have at least this probability (Holtzman et al. 2020,
            "The Curious Case of Neural Text Degeneration").
        seed: of the draws; MLX's global random state stays as it is.

    Raises:
        ConfigError: settings out of range.
    """
    if not prompt:
        raise ConfigError("prompt='' has no tokens: give at least one character")
    if temperature < 0:
        raise ConfigError(f"temperature={temperature} must not be negative; 0 takes the likeliest token")
    if not 0 < top_p <= 1:
        raise ConfigError(f"top_p={top_p} must be in (0, 1]; 1 draws from all tokens")
    key = subkey = mx.random.key(seed)
    context = list(prompt)
    if model.max_len is not None:
        context = context[-model.max_len :]
    training = model.training
    model.eval()
    try:
        cache, new = model.make_cache(), mx.array([context])
        waiting: mx.array | None = None  # the token drawn last: the device computes the next one while it is read
        for _ in range(max_tokens):
            if model.max_len is not None and len(context) + (waiting is not None) > model.max_len:
                if waiting is not None:
                    context.append(_number(waiting))
                    yield context[-1]
                    waiting = None
                context = context[-max(1, model.max_len // 2) :]
                cache, new = model.make_cache(), mx.array([context])
            with without_own_gradients():  # not around the yield: a reader may train meanwhile
                logits = model(new, cache=cache)[0, -1].astype(mx.float32)
            if temperature > 0:
                key, subkey = mx.random.split(key)
            drawn = _draw(logits, temperature, top_p, subkey)
            mx.async_eval(drawn)
            if waiting is not None:
                context.append(_number(waiting))
                yield context[-1]
            waiting, new = drawn, drawn.reshape(1, 1)
        if waiting is not None:
            yield _number(waiting)
    finally:
        model.train(training)


def _number(token: mx.array) -> int:
    return int(number(token))


def _draw(logits: mx.array, temperature: float, top_p: float, key: mx.array) -> mx.array:
    if temperature == 0:
        return logits.argmax()
    logits = logits / temperature
    if top_p < 1:
        order = mx.argsort(-logits)
        probabilities = mx.softmax(logits[order])
        before = mx.cumsum(probabilities) - probabilities  # of the likelier ones: the likeliest always stays
        kept = mx.where(before < top_p, logits[order], -mx.inf)
        return order[mx.random.categorical(kept, key=key)]
    return mx.random.categorical(logits, key=key)
