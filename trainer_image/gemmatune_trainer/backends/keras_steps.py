"""What JAX compiles: forward passes through KerasHub's layers, the loss of labelled positions, one optimizer step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np

from gemmatune_api.memory_mesh import HEAD_CHUNK
from gemmatune_trainer.backends import keras_mesh
from gemmatune_trainer.backends.keras_batches import Batch
from gemmatune_trainer.data.pack import IGNORED

_SMALL = 1e-6
"""Keeps the clipping from dividing by zero (PyTorch's)."""

Arrays = Sequence[jax.Array]


class Steps:
    """The compiled functions of one backbone; `trained` and `frozen` are its variables."""

    def __init__(
        self,
        backbone: Any,
        distribution: keras_mesh.DividedModel,
        *,
        checkpointing: bool,
        trained: Sequence[Any] | None = None,
        further: Sequence[Any] = (),
    ) -> None:
        """`trained`: what is trained, where no part of the backbone; `further`: frozen variables that are none."""
        self.backbone = backbone
        self.trained = list(backbone.trainable_variables if trained is None else trained)
        self.frozen = [*backbone.non_trainable_variables, *further]
        self._distribution = distribution
        self._checkpointing = checkpointing
        self._images = hasattr(backbone, "vit_encoder")
        for block in backbone.transformer_layers:
            block._compute_attention_mask = _given_mask
        self._rows = keras_mesh.sharding(distribution, keras_mesh.DATA)
        self._copies = keras_mesh.sharding(distribution)
        placed = [variable.value.sharding for variable in self.trained]
        self.loss = jax.jit(self._loss, out_shardings=self._copies)
        self.zeros = jax.jit(
            lambda values: [jnp.zeros(value.shape, jnp.float32) for value in values], out_shardings=placed
        )
        self.accumulate = jax.jit(self._accumulate, donate_argnums=(2,), out_shardings=(placed, self._copies))
        self.logits = jax.jit(self._logits, out_shardings=self._rows)
        self.prefill = jax.jit(self._prefill, out_shardings=(self._copies, None))
        self.decode = jax.jit(self._decode, donate_argnums=(2,), out_shardings=(self._copies, None))

    def values(self) -> tuple[list[jax.Array], list[jax.Array]]:
        """The variables' values now: trained, frozen."""
        return [item.value for item in self.trained], [item.value for item in self.frozen]

    def updater(self, optimizer: Any, max_norm: float) -> Any:
        """The compiled optimizer step: (values, state, gradients, learning rate) -> (values, state, gradient norm)."""
        rate = next(index for index, item in enumerate(optimizer.variables) if item is optimizer._learning_rate)

        def update(values: Any, state: Any, gradients: Any, learning_rate: Any) -> Any:
            norm = jnp.sqrt(sum(jnp.sum(jnp.square(item)) for item in gradients))
            if max_norm > 0:
                gradients = [item * jnp.minimum(1.0, max_norm / (norm + _SMALL)) for item in gradients]
            state = [learning_rate if index == rate else item for index, item in enumerate(state)]
            values, state = optimizer.stateless_apply(state, gradients, values)
            return values, state, norm

        placed = [item.value.sharding for item in self.trained]
        states = [item.value.sharding for item in optimizer.variables]
        return jax.jit(update, donate_argnums=(0, 1), out_shardings=(placed, states, self._copies))

    def device(self, batch: Batch) -> dict[str, jax.Array]:
        """A batch on the devices, its sequences divided along data."""
        arrays = {"tokens": batch.tokens, "labels": batch.labels, "segments": batch.segments, "prefix": batch.prefix}
        if batch.images is not None:
            arrays["images"] = batch.images
        return {name: keras_mesh.placed_array(array, self._rows) for name, array in arrays.items()}

    def copied(self, array: Any) -> jax.Array:
        """A host array on every device."""
        return keras_mesh.placed_array(np.asarray(array), self._copies)

    def _scope(self, trained: Arrays, frozen: Arrays) -> keras.StatelessScope:
        pairs = [*zip(self.trained, trained, strict=True), *zip(self.frozen, frozen, strict=True)]
        return keras.StatelessScope(state_mapping=pairs)

    def _embedded(self, tokens: Any, images: Any) -> Any:
        x = self.backbone.token_embedding(tokens)
        x = x * jnp.sqrt(jnp.float32(self.backbone.hidden_dim)).astype(x.dtype)
        if images is None:
            return x
        pictures = images.astype(jnp.float32) / 127.5 - 1.0
        return jnp.concatenate([self.backbone.vit_encoder(pictures).astype(x.dtype), x], axis=1)

    def _hidden(self, batch: dict[str, Any]) -> Any:
        """The decoder's last hidden states at the text's positions."""
        length = batch["tokens"].shape[1]
        x = self._embedded(batch["tokens"], batch.get("images"))
        images = x.shape[1] - length
        masks = {size: attention_mask(batch["segments"], batch["prefix"], images, size) for size in self._windows()}
        x = jax.lax.with_sharding_constraint(x, self._rows)
        for block in self.backbone.transformer_layers:
            through = partial(block, padding_mask=masks[_window(block)])
            x = jax.checkpoint(through)(x) if self._checkpointing else through(x)
        return self.backbone.layer_norm(x)[:, -length:]

    def _windows(self) -> set[int | None]:
        return {_window(block) for block in self.backbone.transformer_layers}

    def _head(self, hidden: Any) -> Any:
        """Logits in fp32."""
        table = self.backbone.token_embedding.embeddings
        logits = jnp.einsum(
            "...d,vd->...v", hidden, jnp.asarray(table).astype(hidden.dtype), preferred_element_type=jnp.float32
        )
        cap = self.backbone.token_embedding.logit_soft_cap
        return logits if cap is None else jnp.tanh(logits / cap) * cap

    def _summed(self, trained: Arrays, frozen: Arrays, batch: dict[str, Any]) -> Any:
        """Summed loss in nats over the labelled positions; the head works on a part of each sequence at a time."""
        with self._scope(trained, frozen):
            hidden = self._hidden(batch)
            targets = jnp.pad(batch["labels"][:, 1:], ((0, 0), (0, 1)), constant_values=IGNORED)
            size = min(HEAD_CHUNK, hidden.shape[1])

            @jax.checkpoint
            def part(states: Any, wanted: Any) -> Any:
                scores = jax.nn.log_softmax(self._head(states))
                found = jnp.take_along_axis(scores, jnp.maximum(wanted, 0)[..., None], axis=-1)[..., 0]
                return -jnp.sum(jnp.where(wanted == IGNORED, 0.0, found))

            total = jnp.float32(0)
            for begin in range(0, hidden.shape[1], size):
                total += part(hidden[:, begin : begin + size], targets[:, begin : begin + size])
            return total

    def _loss(self, trained: Arrays, frozen: Arrays, batch: dict[str, Any]) -> Any:
        return self._summed(trained, frozen, batch)

    def _accumulate(self, trained: Arrays, frozen: Arrays, sums: Arrays, batch: dict[str, Any], labelled: Any) -> Any:
        """Adds the gradients of a forward pass; its share of the step's mean loss."""
        loss, found = jax.value_and_grad(lambda values: self._summed(values, frozen, batch) / labelled)(list(trained))
        return [total + item.astype(jnp.float32) for total, item in zip(sums, found, strict=True)], loss

    def _logits(self, trained: Arrays, frozen: Arrays, batch: dict[str, Any]) -> Any:
        with self._scope(trained, frozen):
            return self._head(self._hidden(batch))

    def cache(self, length: int) -> list[Any]:
        """Empty keys and values of every layer for one sequence."""
        backbone = self.backbone
        shape = (1, length, backbone.num_key_value_heads, backbone.head_dim)
        kind = backbone.transformer_layers[0].compute_dtype
        pairs = not isinstance(backbone, keras.Model) or type(backbone).__name__ == "Gemma3Backbone"
        empty = self.copied(np.zeros(shape if pairs else (1, 2, *shape[1:]), jnp.dtype(kind)))
        return [(empty, empty) if pairs else empty for _ in backbone.transformer_layers]

    def _prefill(self, trained: Arrays, frozen: Arrays, cache: Any, batch: dict[str, Any], size: Any) -> Any:
        """Reads a padded prompt of `size` positions (its image's among them): the next token, and the cache."""
        with self._scope(trained, frozen):
            x = self._embedded(batch["tokens"], batch.get("images"))
            query = jnp.arange(x.shape[1])
            keys = jnp.arange(_length(cache))
            both = (keys[None] < batch["prefix"]) & (query[:, None] < batch["prefix"])
            x, cache = self._cached(x, lambda size: (_before(query[:, None], keys[None], size) | both)[None], cache, 0)
            last = jax.lax.dynamic_slice_in_dim(x, size - 1, 1, axis=1)
            return jnp.argmax(self._head(self.backbone.layer_norm(last))[0, 0]), cache

    def _decode(self, trained: Arrays, frozen: Arrays, cache: Any, token: Any, place: Any) -> Any:
        """The token after `token`, which stands at position `place`."""
        with self._scope(trained, frozen):
            x = self._embedded(token.reshape(1, 1), None)
            keys = jnp.arange(_length(cache))
            x, cache = self._cached(x, lambda size: _before(place, keys, size)[None, None], cache, place)
            return jnp.argmax(self._head(self.backbone.layer_norm(x))[0, 0]), cache

    def _cached(self, x: Any, mask: Callable[[int | None], Any], cache: Any, place: Any) -> Any:
        """`mask` gives what is seen through a window of this many positions, or of all."""
        grown, masks = [], {size: mask(size) for size in self._windows()}
        for block, old in zip(self.backbone.transformer_layers, cache, strict=True):
            x, new = block(x, padding_mask=masks[_window(block)], cache=old, cache_update_index=place)
            grown.append(new)
        return x, grown


def _window(block: Any) -> int | None:
    """Positions that a block of a PaliGemma looks back, None for all; other models' attention knows it itself."""
    size: int | None = getattr(block, "window", None)
    return size


def _before(query: Any, keys: Any, window: int | None) -> Any:
    """Whether a key is not behind its query, nor further ahead of it than the window reaches."""
    seen = keys <= query
    return seen if window is None else seen & (query - keys < window)


def attention_mask(segments: Any, prefix: Any, images: int, window: int | None = None) -> Any:
    """Which position attends to which, [sequences, positions, positions]: to earlier ones of its own document, and
    within image and prefix to all.

    `images`: positions of the image before the text; they belong to the first document. `window`: how many positions
    are looked back, where that is not all.
    """
    segments = jnp.pad(segments, ((0, 0), (images, 0)), constant_values=1)
    place = jnp.arange(segments.shape[1])
    both = jnp.where(prefix > 0, prefix + images, 0)[:, None, None]
    within = (place[None, :, None] < both) & (place[None, None, :] < both)
    causal = _before(place[None, :, None], place[None, None, :], window)
    return (segments[:, :, None] == segments[:, None, :]) & (causal | within)


def _given_mask(x: Any, padding_mask: Any, *_: Any, **__: Any) -> Any:
    """In place of the blocks' own mask: the one that is given in the padding mask's place."""
    return padding_mask


def _length(cache: Any) -> int:
    """Positions of a cache."""
    first = cache[0]
    return int(first[0].shape[1] if isinstance(first, tuple | list) else first.shape[2])
